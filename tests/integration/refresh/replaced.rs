//! A user authorizes anew while a refresh of the old grant is at the provider.

use libtest_mimic::Trial;
use token_broker::demo::provider::ScriptedAnswer;
use token_broker_client::proto;

use super::{BACKOFF, DEADLINE, LIFETIME, get, json, refresh, revoke, script, state};
use crate::harness::world::{World, authorize, get_token};
use crate::harness::{Browser, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("refresh::a_late_refresh_does_not_harm_the_new_grant", late),
        trial("refresh::a_late_refusal_does_not_flag_the_new_grant", late_refusal),
        trial("refresh::a_revocation_ends_the_tokens_of_earlier_authorizations_too", earlier),
        trial("refresh::the_old_grant_serves_until_the_new_one_is_confirmed", until_confirmed),
    ]
}

/// Holds a refresh of u1's grant at the provider while the user authorizes anew; gives the new
/// grant's token, and what became of the caller of the refresh.
async fn overtaken(
    world: &World,
    answer: ScriptedAnswer,
) -> (String, Result<String, tonic::Status>) {
    world.granted("u1").await;
    // The code that waits is confirmed while the refresh is held: the exchange needs no hold.
    let (_, code) = world.consent("u1").await;
    world.advance(super::LATE);
    script(world, [answer]);
    let held = world.provider.pause_token_endpoint();
    let calls = world.provider.ledger().token_calls;
    let mut client = world.client();
    let min_ttl = Some(prost_types::Duration { seconds: super::HALF, nanos: 0 });
    let request = proto::GetTokenRequest { min_ttl, ..get_token("u1") };
    let caller = tokio::spawn(async move { client.get_token(request).await });
    world.provider.wait_for_token_calls(calls + 1).await;
    let request =
        proto::ConfirmAuthorizationRequest { subject: "u1".into(), code, ..Default::default() };
    world.client().confirm_authorization(request).await.expect("a grant");
    let new = get(world, "u1").await.expect("a token").access_token;
    drop(held);
    let told = tokio::time::timeout(DEADLINE, caller).await.expect("an end").expect("no panic");
    (new, told.map(|told| told.into_inner().token.expect("a token").access_token))
}

async fn late() {
    let world = World::start().await;
    let late = r#"{"access_token":"late-at","refresh_token":"late-rt","expires_in":300}"#;
    let (new, told) = overtaken(&world, json(200, late)).await;
    // The caller gets what is current.
    assert_eq!(told.expect("a token"), new);
    assert_eq!(get(&world, "u1").await.expect("a token").access_token, new);
    assert!(world.provider.is_living(&new));
    // What came late is deleted, not revoked: that could end the new grant.
    assert_eq!(world.broker.revocations.count_pending().await.expect("storage"), 0);
    assert_eq!(world.provider.ledger().revoke_calls, 0);

    let next = refresh(&world, "u1", "").await.expect("a token").access_token;
    assert!(world.provider.is_living(&next));
    assert_eq!(world.provider.ledger().refreshes_of("late-rt"), 0);
    assert_eq!(world.provider.ledger().reuse_detections, 0);
}

/// The demo provider makes a grant of its own for each authorization, as most servers do.
async fn earlier() {
    let world = World::start().await;
    let first = world.granted("u1").await;
    let second = world.granted("u1").await;
    // To end the first one now could end the second one too.
    assert!(world.provider.is_living(&first) && world.provider.is_living(&second));
    assert_eq!(world.provider.ledger().living_refresh_tokens, 2);
    assert_eq!(revoke(&world, "u1").await, proto::Revocation::Done);
    let ledger = world.provider.ledger();
    assert_eq!((ledger.living_refresh_tokens, ledger.living_access_tokens), (0, 0));
}

async fn late_refusal() {
    for body in [r#"{"error":"invalid_grant"}"#, r#"{"error":"invalid_client"}"#] {
        let world = World::start().await;
        let (new, told) = overtaken(&world, json(400, body)).await;
        assert_eq!(state(&world, "u1").await, proto::GrantState::Active, "{body}");
        // Were the caller told anything else than the new token, it would be the old one, which
        // lives.
        assert!(world.provider.is_living(&told.expect("a token")), "{body}");
        assert_eq!(get(&world, "u1").await.expect("a token").access_token, new, "{body}");
        // No pause of the old grant's failure either.
        world.advance(LIFETIME);
        let next = get(&world, "u1").await.expect("a token").access_token;
        assert!(next != new && world.provider.is_living(&next), "{body}");
    }
}

async fn until_confirmed() {
    let world = World::start().await;
    let old = world.granted("u1").await;
    let started = world.client().authorize(authorize("u1")).await.expect("a link").into_inner();
    assert_eq!(get(&world, "u1").await.expect("a token").access_token, old);
    let page = Browser::new().allow(&started.authorization_url).await;
    let code = page.confirmation_code().expect("a code");
    // Refreshed all the same while the new tokens wait.
    world.advance(BACKOFF);
    let refreshed = refresh(&world, "u1", "").await.expect("a token").access_token;
    assert!(refreshed != old && world.provider.is_living(&refreshed));
    let request =
        proto::ConfirmAuthorizationRequest { subject: "u1".into(), code, ..Default::default() };
    world.client().confirm_authorization(request).await.expect("a grant");
    let new = get(&world, "u1").await.expect("a token").access_token;
    assert!(new != refreshed && world.provider.is_living(&new));
    assert_eq!(world.broker.revocations.count_pending().await.expect("storage"), 0);
    assert_eq!(world.provider.ledger().revoke_calls, 0);
}
