//! The clock of the database is set while replicas hold leases.
//!
//! A function of the same name, earlier in the search path, is the database's clock in these tests.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use super::{Fleet, REPLICA_TIMEOUT};
use crate::harness::soak::report;
use crate::harness::world::{get_token, refresh};
use crate::harness::{long_trial_with, tools};

pub fn trials() -> Vec<Trial> {
    let needs = &[tools::POSTGRESQL];
    vec![
        long_trial_with(
            needs,
            "process::fleet::a_database_clock_set_20_s_forward_makes_nobody_send_twice",
            forward,
        ),
        long_trial_with(
            needs,
            "process::fleet::a_database_clock_set_5_minutes_back_leaves_no_grant_stuck",
            back,
        ),
    ]
}

/// A fleet whose database's clock can be set.
async fn fleet(grace: Duration) -> Fleet {
    use sea_orm::{ConnectionTrait, Database};

    let url = super::databases::database().await;
    let database = Database::connect(&url).await.expect("it answers");
    let name = url.split('?').next().and_then(|url| url.rsplit_once('/')).expect("a database").1;
    for sql in [
        "CREATE TABLE clock_step (seconds DOUBLE PRECISION NOT NULL)",
        "INSERT INTO clock_step VALUES (0)",
        "CREATE FUNCTION clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS \
         'SELECT pg_catalog.clock_timestamp() + seconds * interval ''1 second'' FROM clock_step'",
        // For every session, also behind a pooler.
        &format!("ALTER DATABASE {name} SET search_path = public, pg_catalog"),
    ] {
        database.execute_unprepared(sql).await.expect("a statement");
    }
    database.close().await.expect("closed");
    Fleet::on(url, grace, &[(REPLICA_TIMEOUT, "5s")]).await
}

async fn set(fleet: &Fleet, seconds: i32) {
    fleet.execute(&format!("UPDATE clock_step SET seconds = {seconds}")).await;
}

/// Replicas take over nothing until they have watched the database for this long.
const CALM: Duration = Duration::from_secs(11);

async fn forward() {
    let fleet = fleet(Duration::ZERO).await;
    fleet.granted("u1").await;
    tokio::time::sleep(CALM).await;
    let calls = fleet.site.provider.ledger().token_calls;
    let pause = fleet.site.provider.pause_token_endpoint();
    let mut client = fleet.client(1);
    let holding = tokio::spawn(async move { client.refresh(refresh("u1")).await });
    fleet.site.provider.wait_for_token_calls(calls + 1).await;
    fleet.expire().await;
    set(&fleet, 20).await;
    // By the database's clock the lease has ended; its holder waits for the provider still.
    let until = Instant::now() + Duration::from_secs(6);
    while Instant::now() < until {
        let mut client = fleet.client(0);
        let call = client.get_token(get_token("u1"));
        drop(tokio::time::timeout(Duration::from_millis(500), call).await);
        assert_eq!(fleet.site.provider.ledger().token_calls, calls + 1, "two replicas have sent");
    }
    drop(pause);
    holding.await.expect("no panic").expect("a token");
    fleet.settled().await;
    let ledger = fleet.site.provider.ledger();
    assert_eq!((ledger.token_calls, ledger.reuse_detections), (calls + 1, 0), "{ledger:?}");
    fleet.assert_no_double();
}

async fn back() {
    let mut fleet = fleet(Duration::from_secs(60)).await;
    fleet.granted("u1").await;
    let calls = fleet.site.provider.ledger().token_calls;
    let pause = fleet.site.provider.pause_token_endpoint();
    let mut client = fleet.client(2);
    let refreshing = tokio::spawn(async move { client.refresh(refresh("u1")).await });
    fleet.site.provider.wait_for_token_calls(calls + 1).await;
    fleet.kill(2).await;
    assert!(refreshing.await.expect("no panic").is_err());
    drop(pause);
    set(&fleet, -300).await;
    let began = Instant::now();
    // By its own account the lease would end in five minutes.
    let recovered = fleet.site.provider.wait_for_token_calls(calls + 2);
    tokio::time::timeout(Duration::from_secs(60), recovered).await.expect("it is stuck");
    fleet.settled().await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(60), "{took:?}");
    assert_eq!(fleet.site.provider.ledger().reuse_detections, 0);
    fleet.assert_no_double();
    report("the clock set back by 300 s", &format!("an open refresh was recovered after {took:?}"));
}
