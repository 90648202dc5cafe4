//! How PostgreSQL works on the rows: updates in place, and by which indexes it finds them.
//!
//! `TOKEN_BROKER_SOAK_ROWS` sets how many grants there are, for example 10000000.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use sea_orm::{ConnectionTrait, Statement};
use token_broker::domain::grant::Subject;
use token_broker::domain::id::Id;
use token_broker::domain::name::Name;
use token_broker::storage::{ListFilter, ListPosition, OpenIntents, SubjectFilter};

use super::backend::{Place, Store, TAKEOVER, disposal, key, keyring, open_with, tokens};
use crate::harness::soak::{is_full, report, size};
use crate::harness::world::name;
use crate::harness::{long_trial_with, postgres, tools, trial_with};

pub fn trials() -> Vec<Trial> {
    vec![
        trial_with(
            &[tools::POSTGRESQL],
            "storage::postgres::access_tokens_are_updated_in_place",
            in_place,
        ),
        long_trial_with(
            &[tools::POSTGRESQL],
            "storage::postgres::every_statement_finds_its_rows_by_an_index",
            by_index,
        ),
    ]
}

/// What fills the tables.
const FILL: &str = include_str!("../../fixtures/fill.sql");

/// No statement may take longer, but for the counts.
const SLOW_MS: f64 = 50.0;

fn rows() -> usize {
    let set = std::env::var("TOKEN_BROKER_SOAK_ROWS").ok();
    set.map_or_else(|| size(20_000, 1_000_000), |rows| rows.parse().expect("a number of rows"))
}

/// A statement as `auto_explain` has logged it.
struct Explained {
    ms: f64,
    text: String,
}

fn explained(log: &str) -> Vec<Explained> {
    log.split("LOG:  duration: ")
        .skip(1)
        .filter_map(|entry| {
            let (ms, rest) = entry.split_once(" ms  plan:")?;
            // The entry ends where the next line of the log begins.
            let text = rest.split("\n20").next().unwrap_or(rest).to_owned();
            Some(Explained { ms: ms.parse().ok()?, text })
        })
        .collect()
}

/// Counts of grants and of the outbox, and the look at keys that no version has recorded yet. They are
/// bounded by the statement's time limit or by a number of rows, and keep no call waiting.
fn is_count(text: &str) -> bool {
    ["GROUP BY", "SUBSTR", "SELECT COUNT("].iter().any(|part| text.contains(part))
}

async fn by_index() {
    let server = postgres::Server::prepared();
    server.start_with(
        &[
            "-c shared_preload_libraries=auto_explain -c auto_explain.log_min_duration=0",
            "-c auto_explain.log_analyze=on -c auto_explain.log_timing=off",
            "-c shared_buffers=1GB -c max_wal_size=8GB",
            // Small tables are faster read whole; there it counts whether an index could be used.
            if is_full() { "" } else { "-c enable_seqscan=off" },
        ]
        .join(" "),
    );
    let place = Place { url: server.new_database().await, folder: None };
    let store = open_with(&place, keyring(&[("test", 7)])).await;
    let (rows, began) = (rows(), Instant::now());
    let raw = store.raw().await;
    raw.execute_unprepared("SET auto_explain.log_min_duration = -1").await.expect("a setting");
    raw.close().await.expect("closed");
    let quiet = format!("{}?options=-c%20auto_explain.log_min_duration%3D-1", place.url);
    let raw = sea_orm::Database::connect(quiet).await.expect("it answers");
    for statement in FILL.replace("{rows}", &rows.to_string()).split("\n--;") {
        raw.execute_unprepared(statement).await.expect("a statement");
    }
    raw.close().await.expect("closed");
    let filled = began.elapsed();

    let mut slowest: Vec<(f64, String)> = Vec::new();
    let mut counts: Vec<(f64, String)> = Vec::new();
    // The first round warms the cache and the connections.
    for round in 0..2 {
        let before = server.log().len();
        everything(&store, rows, round).await;
        let log = server.log();
        for statement in explained(&log[before..]) {
            let text = statement.text.trim().to_owned();
            let scans =
                ["Seq Scan on grants", "Seq Scan on access_tokens", "Seq Scan on revocations"];
            let scanned = scans.iter().any(|scan| text.contains(scan));
            assert!(!scanned || is_count(&text), "{rows} rows:\n{text}");
            if round > 0 {
                let figures = if is_count(&text) { &mut counts } else { &mut slowest };
                figures.push((statement.ms, text));
            }
        }
    }
    slowest.sort_by(|one, other| other.0.total_cmp(&one.0));
    assert!(slowest.len() > 40, "only {} statements were seen", slowest.len());
    let (worst, text) = &slowest[0];
    if is_full() {
        assert!(*worst <= SLOW_MS, "{worst} ms at {rows} rows:\n{text}");
    }
    report(
        "plans",
        &format!(
            "{rows} grants, filled in {filled:?}: {} statements, none over {worst} ms; counts: {:?} ms",
            slowest.len(),
            counts.iter().map(|(ms, _)| *ms).collect::<Vec<_>>()
        ),
    );
}

/// Runs every statement of storage.
async fn everything(store: &Store, rows: usize, round: usize) {
    let storage = &store.storage;
    let of = |what: &str| key(&format!("acme.rocket.chat/{what}-{round}"));
    let acme = name("acme");
    let providers: Vec<Name> = std::iter::once(acme.clone())
        .chain((1..20).map(|n| name(&format!("acme{n:02}"))))
        .collect();
    let many: Vec<Name> = (0..1000).map(|number| name(&format!("p{number}"))).collect();

    // The life of a grant.
    let grant = store.grant(&of("a"), "1").await;
    assert!(storage.grants().find_grant(&grant.key).await.expect("storage").is_some());
    let lease =
        storage.grants().claim_refresh(&grant, TAKEOVER).await.expect("storage").expect("a lease");
    assert!(storage.grants().renew_lease(&grant, lease.owner).await.expect("storage"));
    storage.grants().release(&grant, lease.owner, false, None, "x").await.expect("storage");
    storage.grants().claim_refresh(&grant, TAKEOVER).await.expect("storage").expect("a lease");
    storage
        .grants()
        .commit_refresh(&grant, &tokens("2", store.now()), &disposal())
        .await
        .expect("storage");
    let grant = store.held(&grant.key).await.grant;
    storage.grants().note_used(&[grant.id]).await.expect("storage");
    storage.grants().look_again(&grant, None).await.expect("storage");
    store.awaiting(&of("b"), "3").await;
    let subject = Subject::parse(of("b").subject.as_str()).expect("a subject");
    storage
        .authorizations()
        .count_attempt(&name("helper"), &subject, None, &providers)
        .await
        .expect("storage");
    storage
        .authorizations()
        .keys_under_way(&name("helper"), &subject, &providers)
        .await
        .expect("storage");
    storage.grants().revoke(&of("b"), &disposal()).await.expect("storage");
    storage.revocations().revoking(&of("b")).await.expect("storage");
    let revoked = storage.grants().revoke(&grant.key, &disposal()).await.expect("storage");
    for entry in &revoked.revocations {
        storage
            .revocations()
            .postpone_revocation(entry.id, Duration::ZERO, "x")
            .await
            .expect("storage");
        storage.revocations().finish_revocation(entry.id).await.expect("storage");
    }
    // A revocation that reaches the user's other tokens looks whether anybody has a grant.
    let reaching = token_broker::storage::Disposal {
        reach: token_broker::domain::provider::RevocationReach::UserClient,
        ..disposal()
    };
    let cancelled = store.awaiting(&of("c"), "4").await;
    storage.authorizations().cancel_authorization(&cancelled, &reaching).await.expect("storage");

    // The workers.
    storage.replicas().register_replica(None).await.expect("storage");
    storage.replicas().heartbeat().await.expect("storage");
    for some in [&providers, &many] {
        storage.grants().due_work(some).await.expect("storage");
        storage.backlog(some).await.expect("storage");
        let wanted = OpenIntents {
            with_grace: some,
            without_grace: &providers,
            expected_now: None,
            holder_timeout: Duration::from_secs(60),
            passed_over: &[Id::from_bytes([1; 16])],
            limit: 32,
        };
        storage.grants().open_intents(&wanted).await.expect("storage");
    }
    storage.grants().claim_due(&acme, 16).await.expect("storage");
    storage.revocations().claim_revocations(&acme, 16).await.expect("storage");
    storage.grants().look_at_all(&[name("acme01")], None, 100).await.expect("storage");
    let used: Vec<_> = (0..100_u8).map(|byte| Id::from_bytes([byte; 16])).collect();
    storage.grants().note_used(&used).await.expect("storage");
    storage.revocations().forget_ended_revocations().await.expect("storage");
    storage.authorizations().sweep_authorizations(100, |_| disposal()).await.expect("storage");
    // With many grants it takes longer than a statement may, and its worker waits an hour.
    drop(storage.count_grants().await);

    // Lists, also deep within.
    let deep = ListPosition {
        subject: format!("acme.rocket.chat/u{:06}", rows / 4),
        provider: "acme".to_owned(),
        account: String::new(),
    };
    let prefix = SubjectFilter::StartsWith("acme.rocket.chat/u0001".to_owned());
    for (after, subjects) in [
        (None, None),
        (Some(deep.clone()), None),
        (None, Some(vec![prefix.clone()])),
        (Some(deep), Some(vec![prefix, SubjectFilter::Is("nobody".to_owned())])),
    ] {
        let filter = ListFilter {
            namespace: name("helper"),
            providers: Some(providers.clone()),
            subjects,
            after,
            limit: 101,
        };
        storage.grants().list_grants(&filter).await.expect("storage");
    }
}

/// The updates of a table so far, and those of them that left its indexes alone.
async fn updates(store: &Store, table: &str) -> (i64, i64) {
    let db = store.raw().await;
    let sql = format!(
        "SELECT n_tup_upd AS all_of_them, n_tup_hot_upd AS in_place, n_tup_del AS deleted \
         FROM pg_stat_user_tables WHERE relname = '{table}'"
    );
    let statement = Statement::from_string(db.get_database_backend(), sql);
    let row = db.query_one_raw(statement).await.expect("a statement").expect("a row");
    db.close().await.expect("closed");
    assert_eq!(row.try_get::<i64>("", "deleted").expect("a number"), 0, "{table}");
    (
        row.try_get("", "all_of_them").expect("a number"),
        row.try_get("", "in_place").expect("a number"),
    )
}

async fn in_place() {
    // Transactions in other databases of a server keep it from tidying pages up.
    let server = postgres::Server::prepared();
    server.start();
    let place = Place { url: server.new_database().await, folder: None };
    let store = open_with(&place, keyring(&[("test", 7)])).await;
    let refreshes = size(200, 2000);
    for number in 0..20 {
        store.grant(&key(&format!("u{number}")), "1").await;
    }
    for number in 0..refreshes {
        let key = key(&format!("u{}", number % 20));
        let grant = store.held(&key).await.grant;
        let lease = store.grants().claim_refresh(&grant, TAKEOVER).await.expect("storage");
        let lease = lease.expect("a lease");
        assert!(store.grants().renew_lease(&grant, lease.owner).await.expect("storage"));
        let tokens = tokens(&number.to_string(), store.now());
        store.grants().commit_refresh(&grant, &tokens, &disposal()).await.expect("storage");
    }
    let wanted = i64::try_from(refreshes).expect("a number");
    // The server publishes its counts now and then.
    let (mut tokens, mut grants) = ((0, 0), (0, 0));
    while tokens.0 < wanted {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        tokens = updates(&store, "access_tokens").await;
        grants = updates(&store, "grants").await;
    }
    report(
        "updates in place",
        &format!(
            "{refreshes} refreshes: access_tokens {} of {}, grants {} of {}",
            tokens.1, tokens.0, grants.1, grants.0
        ),
    );
    assert!(tokens.1 * 100 >= tokens.0 * 75, "access_tokens: {} of {}", tokens.1, tokens.0);
    // Of three updates of a grant, the renewal of the lease changes no index.
    assert!(grants.1 * 100 >= grants.0 * 25, "grants: {} of {}", grants.1, grants.0);
}
