//! Refreshes ahead of time, by three replicas that do not know of each other.

use std::time::Duration;

use libtest_mimic::Trial;
use tokio::time::Instant;

use super::seeding::seeder;
use super::{Fleet, get};
use crate::harness::soak::{report, size};
use crate::harness::{long_trial_with, tools, trial_with};

pub fn trials() -> Vec<Trial> {
    let needs = &[tools::POSTGRESQL];
    vec![
        long_trial_with(needs, "process::fleet::each_grant_is_refreshed_ahead_once", once),
        trial_with(needs, "process::fleet::a_hot_grant_never_waits_for_its_provider", hot),
    ]
}

/// Makes every grant's access token one that is to be renewed, and lives on: for 100 of its 300 s.
const DUE: &str = "UPDATE grants SET next_refresh_at = 0, expires_at = now_ms + 100000, \
                   issued_at = now_ms - 200000 \
                   FROM (SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT) AS now_ms) AS clock";

async fn once() {
    let grants = size(10_000, 100_000);
    // They come too early for workers that look each second.
    let fleet = Fleet::start(&[]).await;
    let seeder = seeder(&fleet.site).await;
    let subjects: Vec<_> = (0..grants).map(|number| format!("u{number}")).collect();
    let began = Instant::now();
    let seeded = seeder.grants(&subjects).await;
    let seeding = began.elapsed();
    // A tenth is idle.
    let idle = grants / 10;
    let used: Vec<_> = seeded[idle..].iter().map(|grant| grant.id).collect();
    for some in used.chunks(1000) {
        seeder.storage.grants().note_used(some).await.expect("storage");
    }
    let began = Instant::now();
    fleet.execute(DUE).await;
    // Not those that were refreshed, and not used since.
    let let_go =
        "SELECT count(*) FROM grants WHERE next_refresh_at IS NULL AND last_used_at IS NULL";
    while fleet.site.provider.ledger().refreshes < used.len() || fleet.count(let_go).await < idle {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let took = began.elapsed();
    fleet.settled().await;
    let ledger = fleet.site.provider.ledger();
    assert_eq!(ledger.refreshes, used.len());
    assert_eq!(ledger.most_refreshes_of_one_token(), 1);
    assert_eq!(ledger.reuse_detections, 0);
    fleet.assert_no_double();
    assert_eq!(fleet.count(let_go).await, idle);
    report("ahead", &format!("{} refreshes in {took:?}, seeded in {seeding:?}", used.len()));
}

async fn hot() {
    let fleet = Fleet::start(&[]).await;
    let seeder = seeder(&fleet.site).await;
    let grant = seeder.grant("u0").await;
    seeder.storage.grants().note_used(&[grant.id]).await.expect("storage");
    let clients = fleet.clients().await;
    let old = get(clients[0].clone(), "u0".to_owned()).await;
    let pause = fleet.site.provider.pause_token_endpoint();
    let calls = fleet.site.provider.ledger().token_calls;
    fleet.execute(DUE).await;
    fleet.site.provider.wait_for_token_calls(calls + 1).await;
    // The refresh is under way, and will not end before this has: nobody waits for it.
    for _ in 0..20 {
        for client in &clients {
            assert_eq!(get(client.clone(), "u0".to_owned()).await, old);
        }
    }
    drop(pause);
    for client in &clients {
        while get(client.clone(), "u0".to_owned()).await == old {}
    }
    assert_eq!(fleet.site.provider.ledger().refreshes, 1);
}
