//! While an answer cannot be stored, its refresh token is not sent again.

use libtest_mimic::Trial;
use sea_orm::{ConnectionTrait, Database};
use token_broker_client::proto;

use super::LIFETIME;
use crate::harness::world::{self, get_token};
use crate::harness::{World, trial};

pub fn trials() -> Vec<Trial> {
    vec![trial("refresh::an_answer_that_waits_for_storage_is_not_asked_for_again", not_again)]
}

/// Longer than a lease.
const LEASE_ENDS: std::time::Duration = std::time::Duration::from_secs(16);

async fn not_again() {
    let world = World::start().await;
    world.granted("u1").await;
    let old = world.client().get_token(get_token("u1")).await.expect("a token").into_inner();
    world.advance(LIFETIME);
    // Storage that reads and claims, and refuses the commit alone.
    let file = world.folder.path().join("token-broker.db");
    let database = Database::connect(format!("sqlite://{}", file.display())).await.expect("a file");
    let refuse = "CREATE TRIGGER refuse BEFORE UPDATE OF token_version ON grants \
                  BEGIN SELECT RAISE(ABORT, 'the test says no'); END";
    database.execute_unprepared(refuse).await.expect("a trigger");

    let call = || {
        let mut client = world.client();
        tokio::spawn(async move { client.get_token(get_token("u1")).await })
    };
    let calls_before = world.provider.ledger().token_calls;
    let first = call();
    world.provider.wait_for_token_calls(calls_before + 1).await;
    world.advance(LEASE_ENDS);
    // With the old etag, so that it means the same if it comes after the answer was stored.
    let etag = old.token.expect("a token").etag;
    let refresh = proto::RefreshRequest { etag, ..world::refresh("u1") };
    let mut client = world.client();
    let second = tokio::spawn(async move { client.refresh(refresh).await });
    let third = call();
    // The answer is tried again every second.
    database.execute_unprepared("DROP TRIGGER refuse").await.expect("no trigger");

    let token = |response: token_broker_client::proto::GetTokenResponse| response.token;
    let first = token(first.await.expect("no panic").expect("a token").into_inner());
    let third = token(third.await.expect("no panic").expect("a token").into_inner());
    let second = second.await.expect("no panic").expect("a token").into_inner().token;
    assert_eq!((&first, &first), (&second, &third));
    let stored = first.expect("a token").access_token;
    assert!(world.provider.is_living(&stored));
    assert_eq!(world.provider.ledger().most_refreshes_of_one_token(), 1);
    assert_eq!(world.provider.ledger().reuse_detections, 0);
}
