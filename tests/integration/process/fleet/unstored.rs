//! PostgreSQL goes away at the moment at which answers are to be stored.

use std::time::Duration;

use futures::future::join_all;
use libtest_mimic::Trial;
use token_broker_client::Reason;

use super::seeding::seed_grants;
use super::{Fleet, REPLICAS, reason_of};
use crate::harness::soak::{is_full, report};
use crate::harness::world::refresh;
use crate::harness::{tools, trial_with};

pub fn trials() -> Vec<Trial> {
    let needs = &[tools::POSTGRESQL];
    vec![trial_with(
        needs,
        "process::fleet::answers_are_kept_while_the_database_is_away_at_their_commit",
        away,
    )]
}

/// As many as one replica refreshes at once at one provider.
const A_REPLICA: usize = 32;

async fn away() {
    let server = super::databases::server();
    server.start();
    let grace = Duration::from_secs(60);
    let fleet = Fleet::on(server.new_database().await, grace, &[]).await;
    let grants = REPLICAS * A_REPLICA;
    let subjects = seed_grants(&fleet, grants).await;
    let calls = fleet.site.provider.ledger().token_calls;
    let pause = fleet.site.provider.pause_token_endpoint();
    let clients = fleet.clients().await;
    let callers: Vec<_> = subjects
        .iter()
        .enumerate()
        .map(|(number, subject)| {
            let (mut client, of) = (clients[number % REPLICAS].clone(), refresh(subject));
            tokio::spawn(async move { client.refresh(of).await })
        })
        .collect();
    fleet.site.provider.wait_for_token_calls(calls + grants).await;
    server.stop();
    drop(pause);
    let away = Duration::from_secs(if is_full() { 30 } else { 10 });
    tokio::time::sleep(away).await;
    server.start();
    let mut given_up = 0;
    for ended in join_all(callers).await {
        if let Err(status) = ended.expect("no panic") {
            // A caller may be told to come back; its token is kept.
            assert_eq!(reason_of(&status), Reason::StorageUnavailable);
            given_up += 1;
        }
    }
    fleet.settled().await;
    let ledger = fleet.site.provider.ledger();
    assert_eq!(ledger.reuse_detections, 0);
    let repeats = ledger.repeats;
    assert_eq!(fleet.lost(&subjects).await, 0);
    assert_eq!(fleet.site.provider.ledger().repeats, repeats, "an old one was stored");
    fleet.assert_no_double();
    report(
        "unstored",
        &format!(
            "{grants} in flight, away {away:?}: 0 lost, {repeats} repeated, {given_up} callers came back"
        ),
    );
}
