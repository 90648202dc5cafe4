//! What waits for too long ends by itself.

use std::time::Duration;

use libtest_mimic::Trial;
use token_broker_client::proto;
use tonic::Code;

use super::support::{begin, confirm, key_at, look, refused, seconds, until, why};
use crate::harness::world::key;
use crate::harness::{Browser, World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("rpc::a_link_ends_after_its_time_and_its_authorization_after_the_grace", link),
        trial("rpc::an_unconfirmed_authorization_expires_and_its_tokens_are_revoked", confirmation),
        trial("rpc::a_final_authorization_can_be_read_for_a_day", retention),
    ]
}

async fn link() {
    let world = World::start().await;
    let mut client = world.client();
    let started = begin(&mut client, key("u1"), &[]).await;
    let late = begin(&mut client, key("u2"), &[]).await;
    let mut browser = Browser::new();
    let redirect = browser.redirect_of(&late.authorization_url, "allow").await;

    world.advance(seconds(600) - Duration::from_millis(1));
    assert_eq!(Browser::new().get(&started.authorization_url).await.status, 303);
    world.advance(Duration::from_millis(1));
    let page = Browser::new().get(&started.authorization_url).await;
    assert_eq!((page.status, page.heading().as_str()), (400, "This link no longer works"));
    let seen = look(&mut client, &started.authorization_id).await;
    assert_eq!(seen.state(), proto::AuthorizationState::Pending);

    world.advance(seconds(300));
    for id in [&started.authorization_id, &late.authorization_id] {
        let seen = look(&mut client, id).await;
        assert_eq!(seen.state(), proto::AuthorizationState::Expired);
        assert_eq!((seen.expire_time, seen.grant, seen.error.as_str()), (None, None, ""));
    }
    // Who left for the provider in time comes back after the grace: no code is exchanged.
    assert_eq!(browser.get(redirect.as_str()).await.status, 400);
    assert_eq!(world.provider.ledger().token_calls, 0);
}

async fn confirmation() {
    let world = World::start().await;
    let mut client = world.client();
    // A second one of the same subject, so that the time of each is its own.
    let (id, code) = world.consent("u1").await;
    world.advance(seconds(299));
    let other = begin(&mut client, key_at("acme", "u1", "work"), &[]).await;
    let page = Browser::new().allow(&other.authorization_url).await;
    let seen = look(&mut client, &id).await;
    assert_eq!(seen.state(), proto::AuthorizationState::AwaitingConfirmation);

    world.advance(seconds(1));
    let seen = look(&mut client, &id).await;
    assert_eq!((seen.state(), seen.expire_time), (proto::AuthorizationState::Expired, None));
    let request = proto::ConfirmAuthorizationRequest {
        subject: "u1".into(),
        code: code.clone(),
        authorization_id: id.clone(),
    };
    let told = refused(client.confirm_authorization(request).await);
    assert_eq!(told.reason, "AUTHORIZATION_NOT_AWAITING_CONFIRMATION");
    assert_eq!((told.code, told.metadata("state")), (Code::FailedPrecondition, "EXPIRED"));

    // The sweep takes the tokens that nobody confirmed; the other's go on waiting.
    world.broker.authorizations.sweep(100).await.expect("swept");
    world.advance(seconds(15));
    until(|| world.provider.ledger().living_refresh_tokens == 1).await;
    let granted = confirm(&mut client, "u1", page.confirmation_code().expect("a code")).await;
    assert_eq!(granted.key, Some(key_at("acme", "u1", "work")));
    assert_eq!(why(client.get_token(super::tokens::ask("u1")).await).1, "AUTHORIZATION_REQUIRED");
}

async fn retention() {
    let world = World::start().await;
    let mut client = world.client();
    let (id, code) = world.consent("u1").await;
    confirm(&mut client, "u1", code).await;
    world.advance(seconds(24 * 60 * 60 - 1));
    assert_eq!(world.broker.authorizations.sweep(100).await.expect("swept").rows, 0);
    assert_eq!(look(&mut client, &id).await.state(), proto::AuthorizationState::Authorized);
    world.advance(seconds(1));
    world.broker.authorizations.sweep(100).await.expect("swept");
    let request = proto::GetAuthorizationRequest { authorization_id: id };
    assert_eq!(why(client.get_authorization(request).await).1, "AUTHORIZATION_NOT_FOUND");
    // The grant stays.
    world.token("u1").await;
}
