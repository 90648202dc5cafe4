//! Revocation: nothing is served after, and nothing lives at the provider in the end.

use std::time::Duration;

use libtest_mimic::Trial;
use token_broker::demo::provider::{ScriptedAnswer, ScriptedEndpoint};
use token_broker::domain::provider::RevocationReach;
use token_broker_client::{Reason, proto};

use super::{DEADLINE, LATE, LIFETIME, get, json, outbox_empty, reason, refresh, revoke};
use crate::harness::trial;
use crate::harness::world::{World, get_token, key};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("revoke::a_refresh_under_way_is_pending_and_mints_nothing_that_lives", under_way),
        trial("revoke::an_orphan_of_a_refresh_under_way_is_revoked", orphan),
        trial("revoke::a_call_that_outlasts_a_revocation_is_given_nothing", outlasted),
        trial("revoke::a_provider_that_is_down_is_told_once_it_is_back", down),
        trial("revoke::what_the_outbox_holds_outlives_the_broker", outlives),
        trial("revoke::a_token_that_the_provider_does_not_know_is_done", unknown_there),
        trial("revoke::a_provider_without_an_endpoint_is_unsupported", unsupported),
        trial("revoke::a_waiting_revocation_does_not_end_a_new_grant", new_grant),
        trial("revoke::a_redirect_of_the_revocation_is_not_followed", redirect),
    ]
}

fn script(world: &World, answers: impl IntoIterator<Item = ScriptedAnswer>) {
    for answer in answers {
        world.provider.script(ScriptedEndpoint::Revoke, answer);
    }
}

/// Nothing of u1 is left, here or there.
async fn all_gone(world: &World) {
    assert_eq!(reason(get(world, "u1").await), Reason::AuthorizationRequired);
    assert_eq!(reason(refresh(world, "u1", "").await), Reason::AuthorizationRequired);
    assert_eq!(super::grant(world, "u1").await, None);
    let ledger = world.provider.ledger();
    assert_eq!((ledger.living_refresh_tokens, ledger.living_access_tokens), (0, 0));
}

type Caller =
    tokio::task::JoinHandle<Result<tonic::Response<proto::GetTokenResponse>, tonic::Status>>;

/// A call that is about to refresh u1's token, held at the provider.
async fn refreshing(world: &World) -> Caller {
    let mut client = world.client();
    let min_ttl = Some(prost_types::Duration { seconds: super::HALF, nanos: 0 });
    let request = proto::GetTokenRequest { min_ttl, ..get_token("u1") };
    let caller = tokio::spawn(async move { client.get_token(request).await });
    world.provider.wait_for_token_calls(2).await;
    caller
}

async fn ended(caller: Caller) {
    tokio::time::timeout(DEADLINE, caller).await.expect("an end").expect("no panic").ok();
}

async fn under_way() {
    let world = World::start().await;
    world.granted("u1").await;
    world.advance(LATE);
    let held = world.provider.pause_token_endpoint();
    let caller = refreshing(&world).await;
    assert_eq!(revoke(&world, "u1").await, proto::Revocation::Pending);
    assert_eq!(reason(get(&world, "u1").await), Reason::AuthorizationRequired);
    assert_eq!(revoke(&world, "u1").await, proto::Revocation::NotNeeded);
    drop(held);
    ended(caller).await;
    outbox_empty(&world).await;
    all_gone(&world).await;
    assert_eq!(world.provider.ledger().refreshes, 1);
}

async fn orphan() {
    let world = World::start().await;
    world.granted("u1").await;
    world.advance(LATE);
    let held = world.provider.pause_token_endpoint();
    let caller = refreshing(&world).await;
    // The revocation does not reach the provider, so that the refresh still brings tokens.
    script(&world, [json(503, "{}"), json(503, "{}")]);
    assert_eq!(revoke(&world, "u1").await, proto::Revocation::Pending);
    assert_eq!(world.provider.ledger().revocations, 0);
    drop(held);
    ended(caller).await;
    let ledger = world.provider.ledger();
    assert_eq!((ledger.tokens_issued, ledger.refreshes), (2, 1));
    // Both of the old tokens, and both that came late.
    assert_eq!(world.broker.revocations.count_pending().await.expect("storage"), 4);
    outbox_empty(&world).await;
    all_gone(&world).await;
}

/// Revoke has returned: from then on nobody is given a token of the grant, not even a caller that
/// had come before.
async fn outlasted() {
    for elapsed in [LIFETIME, LATE] {
        for reached in [true, false] {
            let world = World::start().await;
            world.granted("u1").await;
            world.advance(elapsed);
            let held = world.provider.pause_token_endpoint();
            let caller = refreshing(&world).await;
            if !reached {
                script(&world, [json(503, "{}"), json(503, "{}")]);
            }
            assert_eq!(revoke(&world, "u1").await, proto::Revocation::Pending);
            drop(held);
            let told = tokio::time::timeout(DEADLINE, caller).await.expect("an end");
            let told = super::told(told.expect("no panic"));
            let case = format!("after {elapsed:?}, revocation reached the provider: {reached}");
            let refusal = told.expect_err(&case);
            assert_eq!(refusal.reason, Reason::AuthorizationRequired, "{case}");
        }
    }
}

async fn down() {
    let world = World::start().await;
    let token = world.granted("u1").await;
    // Both tokens, at the first attempt and at two more; in every way a provider can be down.
    script(&world, [json(503, "{}"), json(500, ""), json(429, "{}"), json(503, "{}")]);
    script(&world, [json(403, ""), json(401, r#"{"error":"invalid_client"}"#)]);
    assert_eq!(revoke(&world, "u1").await, proto::Revocation::Pending);
    assert_eq!(reason(get(&world, "u1").await), Reason::AuthorizationRequired);
    assert!(world.provider.is_living(&token));
    assert_eq!(world.broker.revocations.count_pending().await.expect("storage"), 2);
    outbox_empty(&world).await;
    all_gone(&world).await;
    let ledger = world.provider.ledger();
    // Six in vain, and one that each token needed.
    assert_eq!(ledger.revoke_calls, 8);
}

async fn outlives() {
    let before = World::start().await;
    before.granted("u1").await;
    script(&before, [json(503, "{}"), json(503, "{}")]);
    assert_eq!(revoke(&before, "u1").await, proto::Revocation::Pending);
    let folder = before.folder.clone();
    before.stop().await.expect("a clean end");

    let world = World::with(|setup| setup.folder = Some(folder)).await;
    outbox_empty(&world).await;
    // The provider of this world does not know them; it was asked about both.
    assert_eq!(world.provider.ledger().revoke_calls, 2);
    assert_eq!(reason(get(&world, "u1").await), Reason::AuthorizationRequired);
}

async fn unknown_there() {
    for body in [r#"{"error":"invalid_token"}"#, r#"{"error":"invalid_grant"}"#] {
        let world = World::start().await;
        world.granted("u1").await;
        script(&world, [json(400, body), json(400, body)]);
        assert_eq!(revoke(&world, "u1").await, proto::Revocation::Done);
        assert_eq!(world.broker.revocations.count_pending().await.expect("storage"), 0);
        assert_eq!(world.provider.ledger().revoke_calls, 2);
    }
}

async fn unsupported() {
    let world = World::with(|setup| setup.providers[0].endpoints.revocation = None).await;
    world.granted("u1").await;
    assert_eq!(revoke(&world, "u1").await, proto::Revocation::Unsupported);
    assert_eq!(reason(get(&world, "u1").await), Reason::AuthorizationRequired);
    assert_eq!(world.broker.revocations.count_pending().await.expect("storage"), 0);
    assert_eq!(world.provider.ledger().revoke_calls, 0);
    assert_eq!(revoke(&world, "u1").await, proto::Revocation::NotNeeded);
}

async fn new_grant() {
    for reach in [RevocationReach::Token, RevocationReach::Grant, RevocationReach::UserClient] {
        new_grant_with(reach).await;
    }
}

/// The provider reaches as far as the broker is told that it does.
async fn new_grant_with(reach: RevocationReach) {
    let world = World::with(|setup| setup.providers[0].revocation_reach = reach).await;
    world.granted("u1").await;
    script(&world, [json(503, "{}"), json(503, "{}")]);
    assert_eq!(revoke(&world, "u1").await, proto::Revocation::Pending);
    // Nobody moves the clock, so that no second attempt is due before the user is back.
    let new = world.granted("u1").await;
    assert_eq!(world.broker.revocations.count_pending().await.expect("storage"), 0);
    world.advance(Duration::from_secs(60));
    let mut calls = 2;
    // The same person as another chat user; to end that grant would end this one, too, where a
    // revocation reaches all that the person has allowed.
    if reach != RevocationReach::UserClient {
        world.granted("u2").await;
        script(&world, [json(503, "{}"), json(503, "{}")]);
        assert_eq!(revoke(&world, "u2").await, proto::Revocation::Pending);
        // So the outbox has run.
        outbox_empty(&world).await;
        calls += 4;
    }
    assert!(world.provider.is_living(&new), "{reach:?}");
    let refreshed = refresh(&world, "u1", "").await.expect("a token").access_token;
    assert!(world.provider.is_living(&refreshed), "{reach:?}");
    assert_eq!(world.provider.ledger().revoke_calls, calls);
}

async fn redirect() {
    let target = super::raw::Raw::answering(|_| super::raw::response("", b"")).await;
    let world = World::start().await;
    world.granted("u1").await;
    world.granted("u2").await;
    let away = || super::with_header(json(307, ""), "location", &target.url);
    script(&world, [away(), away()]);
    // RevokeAll as Revoke: what cannot be told now is told later.
    let request = proto::RevokeAllRequest { subject: "u1".into(), provider: String::new() };
    let revoked = world.client().revoke_all(request).await.expect("revoked").into_inner().grants;
    assert_eq!(revoked.len(), 1);
    assert_eq!(revoked[0].key, Some(key("u1")));
    assert_eq!(revoked[0].revocation(), proto::Revocation::Pending);
    assert_eq!(target.connections(), 0);
    outbox_empty(&world).await;
    assert_eq!(target.connections(), 0);
    let ledger = world.provider.ledger();
    assert_eq!((ledger.revoke_calls, ledger.living_refresh_tokens), (4, 1));
    get(&world, "u2").await.expect("another user's token");
}
