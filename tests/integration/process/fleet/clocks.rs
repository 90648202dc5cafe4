//! Replicas whose clocks are wrong.

use std::time::{Duration, UNIX_EPOCH};

use libtest_mimic::Trial;

use super::seeding::seed_grants;
use super::{Fleet, get};
use crate::harness::{tools, trial_with};

pub fn trials() -> Vec<Trial> {
    let needs = &[tools::POSTGRESQL, tools::FAKETIME];
    vec![trial_with(
        needs,
        "process::fleet::replicas_with_clocks_five_minutes_apart_agree",
        five_minutes_apart,
    )]
}

const MINUTES: Duration = Duration::from_secs(300);

/// As long as an access token of the provider lives.
const WRONG: [&str; 2] = ["-300s", "+300s"];

async fn five_minutes_apart() {
    let mut fleet = Fleet::start(&[]).await;
    let library = tools::faketime().expect("the harness has found it");
    let library = library.to_str().expect("a plain path");
    for (number, wrong) in [1, 2].into_iter().zip(WRONG) {
        fleet.take(number).terminate().await;
        // The time since the machine started stays as it is: no clock that is wrong moves that.
        let variables =
            [("LD_PRELOAD", library), ("FAKETIME", wrong), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
        fleet.restart_with(number, &variables).await;
    }
    for (number, wrong) in [1, 2].into_iter().zip([-300, 300]) {
        let told = &mut fleet.replicas[number].as_mut().expect("it runs").process.stderr;
        let line = told.logged("storage answers").await;
        let told = humantime::parse_rfc3339(line["timestamp"].as_str().expect("a time"));
        let told = told.expect("a time");
        let told = told.duration_since(UNIX_EPOCH).expect("after 1970");
        let now = UNIX_EPOCH.elapsed().expect("after 1970");
        // By as much as it was told, save for the time since.
        let shown = if wrong < 0 { now - MINUTES } else { now + MINUTES };
        assert!(told <= shown && shown - told < MINUTES / 2, "replica {number} says {line}");
    }
    let subjects = seed_grants(&fleet, 10).await;
    let clients = fleet.clients().await;
    for subject in &subjects {
        // Nobody takes the new token for an expired one.
        let first = get(clients[0].clone(), subject.clone()).await;
        for client in &clients[1..] {
            assert_eq!(get(client.clone(), subject.clone()).await, first);
        }
    }
    assert_eq!(fleet.site.provider.ledger().refreshes, 0);
    fleet.site.provider.expire_access_tokens();
    fleet.expire().await;
    let calls = subjects.iter().flat_map(|subject| {
        clients.iter().map(|client| get(client.clone(), subject.clone())).collect::<Vec<_>>()
    });
    // Nor an expired one for a living one.
    for token in futures::future::join_all(calls).await {
        assert!(fleet.site.provider.is_living(&token));
    }
    let ledger = fleet.site.provider.ledger();
    assert_eq!((ledger.refreshes, ledger.reuse_detections), (subjects.len(), 0));
    fleet.assert_no_double();
}
