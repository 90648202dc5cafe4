//! Revocations while the provider cannot be told, and replicas that end in the middle of telling it.

use std::time::Duration;

use futures::future::join_all;
use libtest_mimic::Trial;
use token_broker_client::proto::{self, Revocation};
use tokio::time::Instant;

use super::seeding::seed_grants;
use super::{Fleet, REPLICAS};
use crate::harness::soak::{report, size};
use crate::harness::world::key;
use crate::harness::{long_trial_with, tools};
use crate::process::weather::Conditions;

pub fn trials() -> Vec<Trial> {
    let needs = &[tools::POSTGRESQL];
    vec![long_trial_with(
        needs,
        "process::fleet::what_could_not_be_revoked_is_revoked_once_the_provider_is_back",
        down_and_back,
    )]
}

async fn down_and_back() {
    let grants = size(100, 1000);
    let mut fleet = Fleet::start(&[]).await;
    let subjects = seed_grants(&fleet, grants).await;
    assert_eq!(fleet.site.provider.ledger().living_refresh_tokens, grants);
    fleet.site.weather.set_revoke(Conditions { refused: 100, ..Conditions::default() });
    let clients = fleet.clients().await;
    let revocations = subjects.iter().enumerate().map(|(number, subject)| {
        let mut client = clients[number % REPLICAS].clone();
        let revoke = proto::RevokeRequest { key: Some(key(subject)) };
        async move { client.revoke(revoke).await.expect("revoked").into_inner().revocation() }
    });
    assert!(join_all(revocations).await.iter().all(|told| *told == Revocation::Pending));
    let calls = fleet.site.provider.ledger().revoke_calls;
    // Now and then an answer is lost, too.
    let after = Duration::from_millis(50);
    fleet.site.weather.set_revoke(Conditions { dropped: 10, after, ..Conditions::default() });
    let back = Instant::now();
    while fleet.site.provider.ledger().revoke_calls < calls + grants / 4 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Those that were telling the provider end without having written down that they did.
    fleet.kill(0).await;
    fleet.kill(1).await;
    while fleet.count("SELECT count(*) FROM revocations").await > 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let took = back.elapsed();
    let ledger = fleet.site.provider.ledger();
    assert_eq!((ledger.living_refresh_tokens, ledger.living_access_tokens), (0, 0));
    assert!(took < Duration::from_secs(60), "{took:?}");
    report("outbox", &format!("{grants} grants, all revoked {took:?} after its return"));
}
