//! The parts of the benchmark.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use token_broker_client::{ApiKey, Client, proto};

use crate::callers::{self, Call, Load, Outcome};
use crate::harness::grants::{Seeder, subjects};
use crate::harness::postgres;
use crate::pgbench;
use crate::place::{API_KEY, ENCRYPTION_KEY, TOKEN_LIFETIME};
use crate::servers::{self, Broker, Process, Provider};
use crate::strangers::{strangers, sweep};
use crate::table::{Table, figure, line, median};

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(3);

/// The number of users that the calls are about where nothing else is said.
const USERS: usize = 1000;

/// As long as it may be, so that few entries end within a round.
const CACHED: [(&str, &str); 1] = [("TOKEN_BROKER__CACHE__MAX_AGE", "60s")];
const UNCACHED: [(&str, &str); 1] = [("TOKEN_BROKER__CACHE__MAX_AGE", "0s")];

/// Runs a part, or everything. Returns `false` if a limit was exceeded.
pub async fn run(part: Option<&str>) -> bool {
    match part {
        Some("guard") => return guard().await,
        Some("cached") => cached().await,
        Some("database") => database().await,
        Some("calls") => calls().await,
        Some("growth") => growth().await,
        Some("outage") => outage().await,
        Some("memory") => memory().await,
        Some("strangers") => strangers().await,
        Some("sweep") => sweep().await,
        Some(other) => {
            line(&format!(
                "unknown part {other:?}: guard, cached, database, calls, growth, outage, memory, \
                 strangers, sweep"
            ));
            return false;
        }
        None => {
            cached().await;
            database().await;
            calls().await;
            growth().await;
            outage().await;
            memory().await;
            strangers().await;
            sweep().await;
        }
    }
    true
}

pub async fn seeded(broker: &Broker, provider: &Provider, users: usize, token_length: usize) {
    let provider = provider.provider.clone();
    let url = &broker.database_url;
    let mut seeder = Seeder::new(url, ENCRYPTION_KEY, provider, TOKEN_LIFETIME).await;
    seeder.token_length = token_length;
    seeder.storage.migrate().await.expect("the schema");
    seeder.grants(&subjects(users)).await;
    seeder.storage.close().await.expect("closed");
}

fn get_token(callers: usize, users: usize, rate: Option<f64>) -> Load {
    Load { call: Call::GetToken, callers, users, rate, duration: ROUND }
}

/// A load, with the processor time that each call took the server.
async fn measure(server: &Process, load: Load) -> (Outcome, f64) {
    let before = server.cpu();
    let outcome = callers::run(&[server.address], API_KEY, load).await;
    let cpu = (server.cpu() - before).as_secs_f64() * 1e6 / outcome.calls as f64;
    assert_eq!(outcome.failed, 0, "calls failed");
    (outcome, cpu)
}

/// Reads every token once.
pub async fn warm(address: SocketAddr, users: usize) -> proto::GetTokenResponse {
    let url = format!("http://{address}");
    let channel = Client::channel(url).expect("a URL").connect().await.expect("it listens");
    let key = ApiKey::new(API_KEY).expect("a key");
    let mut last = None;
    for chunk in subjects(users).chunks(64) {
        let calls = chunk.iter().map(|subject| {
            let mut client = Client::new(channel.clone(), key.clone());
            let key = proto::GrantKey {
                provider: "acme".to_owned(),
                subject: subject.clone(),
                account: String::new(),
            };
            let request = proto::GetTokenRequest { key: Some(key), ..Default::default() };
            async move { client.get_token(request).await.expect("a token").into_inner() }
        });
        last = futures::future::join_all(calls).await.pop();
    }
    last.expect("a user")
}

/// The cached path beside the bare service.
struct Pair {
    _provider: Provider,
    _broker: Broker,
    cached: Process,
    bare: Process,
}

impl Pair {
    async fn start() -> Self {
        let provider = Provider::start().await;
        let broker = Broker::on_sqlite(&provider);
        seeded(&broker, &provider, USERS, 0).await;
        let cached = broker.start(&CACHED).await;
        let response = warm(cached.address, USERS).await;
        let bare = servers::bare(&response).await;
        Self { _provider: provider, _broker: broker, cached, bare }
    }
}

/// Figures of two services over several rounds.
#[derive(Default)]
struct Figures(BTreeMap<(&'static str, bool), Vec<f64>>);

impl Figures {
    fn add(&mut self, is_bare: bool, (outcome, cpu): &(Outcome, f64)) {
        for (name, value) in [
            ("calls/s", outcome.per_second),
            ("p50", outcome.percentile(50.0)),
            ("p99", outcome.percentile(99.0)),
            ("p99.9", outcome.percentile(99.9)),
            ("cpu", *cpu),
        ] {
            self.0.entry((name, is_bare)).or_default().push(value);
        }
    }

    fn median(&self, name: &'static str, is_bare: bool) -> f64 {
        median(self.0.get(&(name, is_bare)).cloned().unwrap_or_default())
    }

    /// The median of the ratios of each round.
    fn ratio(&self, name: &'static str) -> f64 {
        let of = |is_bare| self.0.get(&(name, is_bare)).into_iter().flatten();
        median(of(false).zip(of(true)).map(|(ours, bare)| ours / bare).collect())
    }
}

const FIGURES: [&str; 5] = ["calls/s", "p50", "p99", "p99.9", "cpu"];

async fn rounds(pair: &Pair, callers: usize, rates: Option<(f64, f64)>) -> Figures {
    let mut figures = Figures::default();
    for _ in 0..ROUNDS {
        let (ours, bare) = (rates.map(|rates| rates.0), rates.map(|rates| rates.1));
        figures.add(true, &measure(&pair.bare, get_token(callers, USERS, bare)).await);
        figures.add(false, &measure(&pair.cached, get_token(callers, USERS, ours)).await);
    }
    figures
}

async fn cached() {
    let pair = Pair::start().await;
    let columns = ["callers", "load", "figure", "cached GetToken", "bare tonic", "ratio"];
    let table = Table::new("GetToken from the cache, beside a bare tonic service", &columns);
    let print = |callers: usize, load: &str, figures: &Figures| {
        for name in FIGURES {
            table.row(&[
                callers.to_string(),
                load.to_owned(),
                with_unit(name),
                figure(figures.median(name, false)),
                figure(figures.median(name, true)),
                figure(figures.ratio(name)),
            ]);
        }
    };
    for callers in [1, 32, 128, 256] {
        let figures = rounds(&pair, callers, None).await;
        print(callers, "saturated", &figures);
        if callers > 1 {
            let rate = |is_bare| 0.7 * figures.median("calls/s", is_bare);
            let figures = rounds(&pair, callers, Some((rate(false), rate(true)))).await;
            print(callers, "70 %", &figures);
        }
    }
}

fn with_unit(name: &str) -> String {
    match name {
        "calls/s" => name.to_owned(),
        "cpu" => "server CPU per call, µs".to_owned(),
        percentile => format!("{percentile}, µs"),
    }
}

/// One caller, with margins wide enough for a busy machine.
async fn guard() -> bool {
    const MOST: f64 = 3.0;

    let pair = Pair::start().await;
    let figures = rounds(&pair, 1, None).await;
    let ratio = figures.ratio("p50");
    line(&format!(
        "one caller: p50 {} µs, bare tonic {} µs: ratio {} (at most {MOST})",
        figure(figures.median("p50", false)),
        figure(figures.median("p50", true)),
        figure(ratio)
    ));
    ratio <= MOST
}

async fn on_postgres() -> Option<String> {
    if postgres::binaries().is_none() || !pgbench::is_there() {
        line("skipped: PostgreSQL, because its programs are not here");
        return None;
    }
    Some(postgres::database().await)
}

/// GetToken without the cache.
async fn database() {
    let columns =
        ["database", "callers", "calls/s", "p50, µs", "p99, µs", "pgbench -S, 1/s", "ratio"];
    let table = Table::new("GetToken without the cache", &columns);
    let provider = Provider::start().await;
    let sqlite = Broker::on_sqlite(&provider);
    let mut places = vec![("SQLite", sqlite)];
    if let Some(url) = on_postgres().await {
        places.push(("PostgreSQL", Broker::on(url, &provider)));
    }
    for (name, broker) in &places {
        seeded(broker, &provider, USERS, 0).await;
        let is_postgres = *name == "PostgreSQL";
        if is_postgres {
            pgbench::prepare(&broker.database_url, 1).await;
        }
        let server = broker.start(&UNCACHED).await;
        for callers in [1, 32, 128, 256] {
            let mut figures = Figures::default();
            let mut ratios = Vec::new();
            let mut pgbench_rates = Vec::new();
            for _ in 0..ROUNDS {
                let measured = measure(&server, get_token(callers, USERS, None)).await;
                if is_postgres {
                    let rate = pgbench::select_only(&broker.database_url, callers, ROUND).await;
                    ratios.push(measured.0.per_second / rate);
                    pgbench_rates.push(rate);
                }
                figures.add(false, &measured);
            }
            let or_none = |rates: Vec<f64>| match rates.is_empty() {
                true => String::new(),
                false => figure(median(rates)),
            };
            table.row(&[
                (*name).to_owned(),
                callers.to_string(),
                figure(figures.median("calls/s", false)),
                figure(figures.median("p50", false)),
                figure(figures.median("p99", false)),
                or_none(pgbench_rates),
                or_none(ratios),
            ]);
        }
        server.stop().await;
    }
}

/// The other calls.
async fn calls() {
    let columns = [
        "call",
        "database",
        "callers",
        "calls/s",
        "p50, µs",
        "p99, µs",
        "p99.9, µs",
        "server CPU, µs",
    ];
    let table = Table::new("Other calls", &columns);
    let provider = Provider::start().await;
    let mut places = vec![("SQLite", Broker::on_sqlite(&provider))];
    if let Some(url) = on_postgres().await {
        places.push(("PostgreSQL", Broker::on(url, &provider)));
    }
    for (name, broker) in &places {
        seeded(broker, &provider, USERS, 0).await;
        let server = broker.start(&CACHED).await;
        for (what, call) in [
            ("Refresh", Call::Refresh),
            ("Authorize", Call::Authorize),
            ("ListGrants", Call::ListGrants),
        ] {
            for callers in [1, 32] {
                let mut figures = Figures::default();
                for _ in 0..ROUNDS {
                    let load = Load { call, callers, users: USERS, rate: None, duration: ROUND };
                    figures.add(false, &measure(&server, load).await);
                }
                let mut cells = vec![what.to_owned(), (*name).to_owned(), callers.to_string()];
                cells.extend(FIGURES.map(|name| figure(figures.median(name, false))));
                table.row(&cells);
            }
        }
        server.stop().await;
    }
}

/// More grants, more replicas. `TOKEN_BROKER_BENCH_GRANTS` adds a number, for example 10000000.
async fn growth() {
    let Some(url) = on_postgres().await else { return };
    let provider = Provider::start().await;
    let columns =
        ["grants", "replicas", "callers", "calls/s", "p99 at 70 %, µs", "ratio to 1,000 grants"];
    let table = Table::new("GetToken without the cache: growth, on PostgreSQL", &columns);
    let more = std::env::var("TOKEN_BROKER_BENCH_GRANTS").ok();
    let more = more.map(|number| number.parse::<usize>().expect("a number of grants"));
    let mut first = None;
    for grants in [Some(USERS), Some(100_000), more].into_iter().flatten() {
        let url = if grants == USERS { url.clone() } else { postgres::database().await };
        let broker = Broker::on(url, &provider);
        // Calls use these; the rest of the rows only makes the tables large.
        let users = grants.min(20_000);
        // The schema alone: the script fills an empty database.
        seeded(&broker, &provider, 0, 0).await;
        fill(&broker.database_url, grants - users).await;
        seeded(&broker, &provider, users, 0).await;
        let server = broker.start(&UNCACHED).await;
        let (mut rates, mut tails) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let (saturated, _) = measure(&server, get_token(32, users, None)).await;
            let rate = Some(0.7 * saturated.per_second);
            let (calm, _) = measure(&server, get_token(32, users, rate)).await;
            rates.push(saturated.per_second);
            tails.push(calm.percentile(99.0));
        }
        let tail = median(tails);
        let ratio = tail / *first.get_or_insert(tail);
        table.row(&[
            grants.to_string(),
            "1".to_owned(),
            "32".to_owned(),
            figure(median(rates)),
            figure(tail),
            figure(ratio),
        ]);
        server.stop().await;
    }
    let broker = Broker::on(url, &provider);
    let mut replicas = Vec::new();
    for count in 1..=3 {
        replicas.push(broker.start(&UNCACHED).await);
        let addresses: Vec<_> = replicas.iter().map(|replica| replica.address).collect();
        let mut rates = Vec::new();
        for _ in 0..ROUNDS {
            let outcome = callers::run(&addresses, API_KEY, get_token(128, USERS, None)).await;
            assert_eq!(outcome.failed, 0, "calls failed");
            rates.push(outcome.per_second);
        }
        table.row(&[
            USERS.to_string(),
            count.to_string(),
            "128".to_owned(),
            figure(median(rates)),
            String::new(),
            String::new(),
        ]);
    }
}

/// Adds grants that no call is about.
async fn fill(url: &str, rows: usize) {
    use sea_orm::{ConnectionTrait, Database};

    let db = Database::connect(url).await.expect("it answers");
    let fill = include_str!("../../tests/fixtures/fill.sql").replace("{rows}", &rows.to_string());
    // Sealed under the id `fill` instead of `test`: a service refuses to start whose key opens nothing.
    let fill = fill.replace("74657374", "66696c6c");
    if rows > 0 {
        for statement in fill.split("\n--;") {
            db.execute_unprepared(statement).await.expect("a statement");
        }
    }
    db.execute_unprepared("VACUUM ANALYZE grants").await.expect("a statement");
    db.execute_unprepared("VACUUM ANALYZE access_tokens").await.expect("a statement");
    db.close().await.expect("closed");
}

/// While PostgreSQL is stopped: a token that was read before, and everything that is refused.
async fn outage() {
    if postgres::binaries().is_none() {
        line("skipped: the outage, because PostgreSQL is not here");
        return;
    }
    let server = postgres::Server::prepared();
    server.start();
    let provider = Provider::start().await;
    let broker = Broker::on(server.new_database().await, &provider);
    seeded(&broker, &provider, USERS, 0).await;
    let replica = broker.start(&[("TOKEN_BROKER__CACHE__MAX_AGE", "1s")]).await;
    warm(replica.address, USERS).await;
    // Older than max_age, so that only the outage lets them be served.
    tokio::time::sleep(Duration::from_secs(2)).await;
    server.stop();
    let table = Table::new(
        "While PostgreSQL is stopped",
        &["call", "calls", "failed", "p50, µs", "p99, µs", "longest, µs"],
    );
    for (name, call, users) in [
        ("GetToken of a token that was read before", Call::GetToken, USERS),
        ("Refresh", Call::Refresh, USERS),
        ("Authorize", Call::Authorize, USERS),
        ("ListGrants", Call::ListGrants, USERS),
    ] {
        let load = Load { call, callers: 32, users, rate: Some(500.0), duration: ROUND };
        let outcome = callers::run(&[replica.address], API_KEY, load).await;
        table.row(&[
            name.to_owned(),
            outcome.calls.to_string(),
            outcome.failed.to_string(),
            figure(outcome.percentile(50.0)),
            figure(outcome.percentile(99.0)),
            figure(outcome.percentile(100.0)),
        ]);
    }
}

/// Memory, and the time that a start takes.
async fn memory() {
    const TOKENS: usize = 100_000;
    const MIB: f64 = 1024.0 * 1024.0;

    let provider = Provider::start().await;
    let broker = Broker::on_sqlite(&provider);
    let began = Instant::now();
    seeded(&broker, &provider, TOKENS, 1200).await;
    let filled = began.elapsed();
    let mut starts = Vec::new();
    for _ in 0..ROUNDS {
        let server = broker.start(&CACHED).await;
        starts.push(server.ready_after.as_secs_f64() * 1000.0);
        server.stop().await;
    }
    let server = broker.start(&CACHED).await;
    let idle = server.resident() as f64 / MIB;
    warm(server.address, TOKENS).await;
    let full = server.resident() as f64 / MIB;
    let table = Table::new("Memory and start, on SQLite", &["figure", "value"]);
    table.row(&["resident when idle, MiB".to_owned(), figure(idle)]);
    table.row(&[format!("more with {TOKENS} cached tokens of 1.2 KB, MiB"), figure(full - idle)]);
    table.row(&["from start to ready, ms".to_owned(), figure(median(starts))]);
    line(&format!("\n({TOKENS} grants were made in {filled:.0?})"));
}
