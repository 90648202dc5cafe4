//! Callers that come in crowds, and callers that go away: the refresh is nobody's to lose.

use std::time::Duration;

use futures::future::join_all;
use libtest_mimic::Trial;
use token_broker::crypto::random::Random;
use token_broker_client::proto;
use tonic::Code;

use super::{DEADLINE, LIFETIME, get, refresh};
use crate::harness::world::get_token;
use crate::harness::{World, trial};
use crate::harness::{soak, world};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("refresh::a_refresh_whose_callers_have_gone_is_stored", all_gone),
        trial("refresh::a_deadline_ends_the_call_and_not_the_refresh", deadline),
        trial("refresh::callers_that_go_at_random_moments_lose_nothing", random_moments),
        trial("refresh::a_living_token_is_not_kept_back_by_a_provider_that_hangs", hanging),
        trial("refresh::none_of_64_callers_on_sqlite_is_told_of_a_lock", crowd),
        trial("refresh::twenty_grants_and_ten_callers_each_are_twenty_calls", many_grants),
        trial("refresh::an_etag_that_is_not_current_costs_no_call", stale_etag),
        trial("refresh::a_refresh_under_way_is_stored_before_the_broker_ends", graceful_stop),
        trial("refresh::a_refresh_whose_caller_has_gone_is_stored_before_the_end", abandoned_stop),
    ]
}

/// Every refresh token was sent once, and what is served is what the provider issued last.
async fn nothing_lost(world: &World, subject: &str, refreshes: usize) {
    let served = get(world, subject).await.expect("a token").access_token;
    assert!(world.provider.is_living(&served));
    let ledger = world.provider.ledger();
    assert_eq!((ledger.refreshes, ledger.tokens_issued), (refreshes, refreshes + 1));
    assert_eq!((ledger.most_refreshes_of_one_token(), ledger.reuse_detections), (1, 0));
    assert_eq!(ledger.living_refresh_tokens, 1);
}

async fn all_gone() {
    let world = World::start().await;
    let old = world.granted("u1").await;
    let etag = get(&world, "u1").await.expect("a token").etag;
    world.advance(LIFETIME);
    let held = world.provider.pause_token_endpoint();
    let callers: Vec<_> = (0..5)
        .map(|_| {
            let mut client = world.client();
            tokio::spawn(async move { client.get_token(get_token("u1")).await })
        })
        .collect();
    // The code was the first call of the token endpoint.
    world.provider.wait_for_token_calls(2).await;
    for caller in &callers {
        caller.abort();
    }
    assert!(join_all(callers).await.into_iter().all(|ended| ended.is_err()));
    drop(held);
    // Joins the refresh that goes on, or sees what it has stored.
    let new = refresh(&world, "u1", &etag).await.expect("a token").access_token;
    assert_ne!(new, old);
    nothing_lost(&world, "u1", 1).await;
}

async fn deadline() {
    let world = World::start().await;
    world.granted("u1").await;
    let etag = get(&world, "u1").await.expect("a token").etag;
    world.advance(LIFETIME);
    let held = world.provider.pause_token_endpoint();
    let mut request = tonic::Request::new(get_token("u1"));
    request.set_timeout(Duration::from_secs(2));
    let mut client = world.client();
    let call = tokio::spawn(async move { client.get_token(request).await });
    world.provider.wait_for_token_calls(2).await;
    let status = call.await.expect("no panic").expect_err("the deadline");
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    drop(held);
    refresh(&world, "u1", &etag).await.expect("a token");
    nothing_lost(&world, "u1", 1).await;
}

async fn random_moments() {
    let world = World::start().await;
    world.granted("u1").await;
    let random = Random::seeded(1);
    let mut refreshes = 0;
    let mut gone = 0;
    let rounds = soak::size(100, 1000);
    for round in 0..rounds {
        let before = get(&world, "u1").await.expect("a token");
        // Every third one is held at the provider, so that the others may still be faster.
        let held = (round % 3 == 0).then(|| world.provider.pause_token_endpoint());
        let patience = random.jitter(Duration::from_millis(12));
        let call = refresh(&world, "u1", &before.etag);
        gone += usize::from(tokio::time::timeout(patience, call).await.is_err());
        drop(held);
        // Whether the call never arrived, is under way or is done: one refresh in all.
        let after = refresh(&world, "u1", &before.etag).await.expect("a token");
        assert_ne!(after.access_token, before.access_token, "round {round}");
        assert_ne!(after.etag, before.etag, "round {round}");
        refreshes += 1;
        nothing_lost(&world, "u1", refreshes).await;
    }
    // All of the held ones, at least: otherwise this has tested nothing.
    assert!(gone >= rounds / 3, "{gone}");
}

async fn many_grants() {
    let world = World::start().await;
    let subjects: Vec<_> = (0..20).map(|index| format!("u{index}")).collect();
    for subject in &subjects {
        world.granted(subject).await;
    }
    world.advance(LIFETIME);
    let held = world.provider.pause_token_endpoint();
    let calls = subjects.iter().flat_map(|subject| std::iter::repeat_n(subject.clone(), 10));
    let callers: Vec<_> = calls
        .map(|subject| {
            let mut client = world.client();
            tokio::spawn(async move {
                let token = client.get_token(get_token(&subject)).await.expect("a token");
                (subject, token.into_inner().token.expect("a token").access_token)
            })
        })
        .collect();
    // All of them are under way at once: no grant waits for another.
    let arrived = world.provider.wait_for_token_calls(40);
    tokio::time::timeout(DEADLINE, arrived).await.expect("20 refreshes beside each other");
    drop(held);
    let mut tokens = std::collections::BTreeSet::new();
    for caller in join_all(callers).await {
        tokens.insert(caller.expect("a token"));
    }
    // One for each subject, and none for two.
    assert_eq!(tokens.len(), 20);
    let values: std::collections::BTreeSet<_> = tokens.iter().map(|(_, token)| token).collect();
    assert_eq!(values.len(), 20);
    assert!(values.iter().all(|token| world.provider.is_living(token)));
    let ledger = world.provider.ledger();
    assert_eq!((ledger.refreshes, ledger.most_refreshes_of_one_token()), (20, 1));
}

async fn stale_etag() {
    let world = World::start().await;
    world.granted("u1").await;
    let first = get(&world, "u1").await.expect("a token");
    let calls = (0..50).map(|_| refresh(&world, "u1", &first.etag));
    let mut etags = std::collections::BTreeSet::new();
    for token in join_all(calls).await {
        let token = token.expect("a token");
        assert!(world.provider.is_living(&token.access_token));
        assert_ne!(token.access_token, first.access_token);
        etags.insert(token.etag);
    }
    // Fifty workers that met a 401 with one token.
    assert_eq!(etags.len(), 1);
    nothing_lost(&world, "u1", 1).await;
    // One that has the new token, and it does not work either.
    let second = etags.into_iter().next().expect("an etag");
    let third = refresh(&world, "u1", &second).await.expect("a token");
    assert_ne!(third.etag, second);
    nothing_lost(&world, "u1", 2).await;
}

/// What a broker that starts on the same folder serves.
async fn served_after(folder: std::sync::Arc<tempfile::TempDir>) -> proto::Token {
    let world = World::with(|setup| setup.folder = Some(folder)).await;
    world.advance(LIFETIME);
    let token = get(&world, "u1").await.expect("a token");
    assert_eq!(world.provider.ledger().token_calls, 0, "it is good, and was not refreshed");
    token
}

async fn graceful_stop() {
    let world = World::start().await;
    let old = world.granted("u1").await;
    world.advance(LIFETIME);
    let (provider, folder) = (world.provider.clone(), world.folder.clone());
    let draining = world.broker.tasks.draining().clone();
    let held = provider.pause_token_endpoint();
    let mut client = world.client();
    let caller = tokio::spawn(async move { client.get_token(get_token("u1")).await });
    provider.wait_for_token_calls(2).await;
    let stopping = tokio::spawn(world.stop());
    draining.cancelled().await;
    drop(held);
    // Whoever was being served still is.
    let served = caller.await.expect("no panic").expect("a token").into_inner();
    let served = served.token.expect("a token").access_token;
    stopping.await.expect("no panic").expect("a clean end");
    assert!(served != old && provider.is_living(&served));
    assert_eq!(served_after(folder).await.access_token, served);
    assert_eq!(provider.ledger().refreshes, 1);
}

async fn abandoned_stop() {
    let world = World::start().await;
    let old = world.granted("u1").await;
    world.advance(LIFETIME);
    let (provider, folder) = (world.provider.clone(), world.folder.clone());
    let draining = world.broker.tasks.draining().clone();
    let held = provider.pause_token_endpoint();
    let mut client = world.client();
    let caller = tokio::spawn(async move { client.get_token(get_token("u1")).await });
    provider.wait_for_token_calls(2).await;
    caller.abort();
    assert!(caller.await.is_err());
    let stopping = tokio::spawn(world.stop());
    draining.cancelled().await;
    assert!(!stopping.is_finished());
    drop(held);
    stopping.await.expect("no panic").expect("a clean end");
    let served = served_after(folder).await.access_token;
    assert!(served != old && provider.is_living(&served));
    assert_eq!((provider.ledger().refreshes, provider.ledger().living_refresh_tokens), (1, 1));
}

/// Each takes one grant through its whole life, on a database that has one writer.
async fn crowd() {
    const CALLERS: usize = 64;

    let world = std::sync::Arc::new(World::start().await);
    let callers: Vec<_> = (0..CALLERS)
        .map(|number| {
            let world = std::sync::Arc::clone(&world);
            tokio::spawn(async move {
                let subject = format!("u{number}");
                let mut last = world.granted(&subject).await;
                for _ in 0..5 {
                    let next = refresh(&world, &subject, "").await.expect("a token").access_token;
                    assert_ne!(next, last);
                    last = get(&world, &subject).await.expect("a token").access_token;
                    assert_eq!(next, last);
                }
                let revoke = proto::RevokeRequest { key: Some(world::key(&subject)) };
                world.client().revoke(revoke).await.expect("revoked");
            })
        })
        .collect();
    for caller in callers {
        caller.await.expect("no caller failed");
    }
    let ledger = world.provider.ledger();
    assert_eq!((ledger.refreshes, ledger.living_refresh_tokens), (5 * CALLERS, 0));
}

/// The refresh is held at the provider until this has ended: nobody waits for it.
async fn hanging() {
    let world = World::start().await;
    let old = world.granted("u1").await;
    world.advance(super::LATE);
    let held = world.provider.pause_token_endpoint();
    let lent = super::get_for(&world, "u1", super::HALF).await.expect("the old token");
    assert_eq!(lent.access_token, old);
    drop(held);
    // What was begun for this caller is there for the next one.
    while get(&world, "u1").await.expect("a token").access_token == old {}
    nothing_lost(&world, "u1", 1).await;
}
