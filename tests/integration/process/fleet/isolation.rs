//! Databases that are stricter than PostgreSQL's defaults: serializable transactions, no notifications,
//! no writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use libtest_mimic::Trial;
use token_broker_client::{Reason, proto};

use super::seeding::seed_grants;
use super::{Fleet, reason};
use crate::harness::soak::{report, size};
use crate::harness::world::{authorize, get_token, key, refresh};
use crate::harness::{Browser, long_trial_with, postgres, tools};
use crate::process::life::token;
use crate::storage::backend::{serializable as on_serializable, without_notify};

pub fn trials() -> Vec<Trial> {
    let needs = &[tools::POSTGRESQL];
    vec![
        long_trial_with(
            needs,
            "process::fleet::no_call_fails_where_transactions_are_serializable",
            serializable,
        ),
        long_trial_with(
            needs,
            "process::fleet::a_revocation_holds_where_nobody_may_notify",
            unnotified,
        ),
        long_trial_with(
            needs,
            "process::fleet::a_server_that_accepts_no_writes_is_not_healthy",
            read_only,
        ),
    ]
}

const USERS: usize = 24;

async fn serializable() {
    let url = on_serializable(&postgres::database().await);
    let fleet = Fleet::on(url, Duration::ZERO, &[]).await;
    let subjects = seed_grants(&fleet, USERS).await;
    let calls = Arc::new(AtomicUsize::new(0));
    let rounds = size(8, 80);
    let users = subjects.iter().enumerate().map(|(number, subject)| {
        let (subject, calls) = (subject.clone(), Arc::clone(&calls));
        let mut client = fleet.client(number % super::REPLICAS);
        tokio::spawn(async move {
            for round in 0..rounds {
                let failed = match round % 4 {
                    0 => client.authorize(authorize(&subject)).await.err(),
                    3 if number % 2 == 0 => {
                        let request = proto::RevokeRequest { key: Some(key(&subject)) };
                        let revoked = client.revoke(request).await.err();
                        calls.fetch_add(1, Ordering::SeqCst);
                        // Whoever has revoked is done.
                        assert!(revoked.is_none(), "{subject}: {revoked:?}");
                        return;
                    }
                    _ => client.refresh(refresh(&subject)).await.err(),
                };
                assert!(failed.is_none(), "{subject}, {round}: {failed:?}");
                calls.fetch_add(1, Ordering::SeqCst);
            }
        })
    });
    for ended in join_all(users).await {
        ended.expect("no call fails");
    }
    fleet.settled().await;
    fleet.assert_no_double();
    report("serializable", &format!("{} calls, 0 failed", calls.load(Ordering::SeqCst)));
}

async fn unnotified() {
    let url = without_notify(&postgres::database().await).await;
    let fleet = Fleet::on(url, Duration::ZERO, &[("TOKEN_BROKER__CACHE__MAX_AGE", "5s")]).await;
    fleet.granted("u1").await;
    // The other replica has it in its cache.
    token(fleet.replica(1), "u1").await;
    let request = proto::RevokeRequest { key: Some(key("u1")) };
    let revoked = fleet.client(0).revoke(request).await.expect("a revocation").into_inner();
    assert_eq!(revoked.revocation(), proto::Revocation::Done);
    assert_eq!(
        reason(fleet.client(0).get_token(get_token("u1")).await),
        Reason::AuthorizationRequired
    );
    let began = Instant::now();
    while fleet.client(1).get_token(get_token("u1")).await.is_ok() {
        assert!(began.elapsed() < Duration::from_millis(5500), "it is served past the bound");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let served = began.elapsed();
    let metrics = format!("http://{}/metrics", fleet.replica(0).ops);
    let metrics = Browser::new().get(&metrics).await.body;
    assert!(metrics.contains("token_broker_invalidations_unsent_total 1"), "{metrics}");
    report("without notifications", &format!("served for {served:?} of 5 s after Revoke"));
}

async fn read_only() {
    let server = super::databases::server();
    server.start();
    let fleet = Fleet::on(server.new_database().await, Duration::ZERO, &[]).await;
    fleet.granted("u1").await;
    let up = |wanted: &'static str| {
        let metrics = format!("http://{}/metrics", fleet.replica(0).ops);
        async move {
            let began = Instant::now();
            loop {
                if Browser::new().get(&metrics).await.body.contains(wanted) {
                    return began.elapsed();
                }
                assert!(began.elapsed() < Duration::from_secs(15), "{wanted} is not shown");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    up("token_broker_storage_up 1").await;
    // As a primary that was demoted answers.
    fleet.execute("ALTER SYSTEM SET default_transaction_read_only = on").await;
    fleet.execute("SELECT pg_reload_conf()").await;
    let noticed = up("token_broker_storage_up 0").await;
    assert_eq!(reason(fleet.client(0).refresh(refresh("u1")).await), Reason::StorageUnavailable);
    fleet.execute("SET default_transaction_read_only = off").await;
    fleet.execute("ALTER SYSTEM RESET default_transaction_read_only").await;
    fleet.execute("SELECT pg_reload_conf()").await;
    let healthy = up("token_broker_storage_up 1").await;
    fleet.client(0).refresh(refresh("u1")).await.expect("a token");
    report("read only", &format!("noticed after {noticed:?}, healthy after {healthy:?}"));
}
