//! Authorize, and what Get, Watch and CancelAuthorization tell of it.

use libtest_mimic::Trial;
use token_broker_client::{Client, proto};
use tonic::{Code, Streaming};

use super::support::{
    at, begin, confirm, grant, key_at, look, query_of, refusal, refused, script_token, seconds,
    token_of, until, why,
};
use crate::harness::world::{authorize, bot, key};
use crate::harness::{Browser, World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("rpc::authorize_tells_the_link_and_until_when_it_works", fields_of_a_run),
        trial("rpc::authorize_asks_for_what_the_grant_has_too", joined_scopes),
        trial("rpc::a_denied_authorization_tells_why", denied),
        trial("rpc::a_failed_exchange_tells_why", failed),
        trial("rpc::watch_sends_now_and_at_each_change_and_ends", watched),
        trial("rpc::watch_of_a_final_authorization_sends_one_message", watched_late),
        trial("rpc::watch_ends_with_overloaded_when_the_broker_stops", watched_to_the_end),
        trial("rpc::cancel_is_final_and_kills_the_link", cancelled),
        trial("rpc::cancel_of_an_awaiting_one_revokes_its_tokens", cancelled_while_awaiting),
        trial("rpc::cancel_leaves_a_final_one_as_it_is", cancelled_too_late),
        trial("rpc::authorizations_of_another_namespace_look_absent", foreign),
        trial("rpc::ids_that_cannot_exist_are_not_found", malformed_ids),
        trial("rpc::an_id_that_cannot_exist_is_told_as_one_that_does_not", told_alike),
    ]
}

async fn fields_of_a_run() {
    let world = World::start().await;
    let mut client = world.client();
    let started = begin(&mut client, key("u1"), &[]).await;
    let id = started.authorization_id.clone();
    assert_eq!(id.len(), 32);
    let expected = proto::AuthorizeResponse {
        authorization_url: format!("{}/oauth2/start/{id}", world.http_url),
        authorization_id: id.clone(),
        expire_time: at(600),
        ..Default::default()
    };
    assert_eq!(started, expected);

    // A browser that is at the provider when the link ends may still come back for 5 minutes.
    let mut expected = proto::Authorization {
        authorization_id: id.clone(),
        key: Some(key("u1")),
        state: proto::AuthorizationState::Pending.into(),
        expire_time: at(600 + 300),
        ..Default::default()
    };
    assert_eq!(look(&mut client, &id).await, expected);

    world.advance(seconds(10));
    let page = Browser::new().allow(&started.authorization_url).await;
    expected.set_state(proto::AuthorizationState::AwaitingConfirmation);
    expected.expire_time = at(10 + 300);
    assert_eq!(look(&mut client, &id).await, expected);

    world.advance(seconds(20));
    let granted = confirm(&mut client, "u1", page.confirmation_code().expect("a code")).await;
    let expected_grant = proto::Grant {
        key: Some(key("u1")),
        state: proto::GrantState::Active.into(),
        scopes: vec!["email".into(), "profile".into()],
        create_time: at(30),
        // The token was issued when the code was exchanged, not when the chat confirmed.
        refresh_time: at(10),
        expire_time: at(10 + 300),
        refreshable: true,
        ..Default::default()
    };
    assert_eq!(granted, expected_grant);
    expected.set_state(proto::AuthorizationState::Authorized);
    expected.expire_time = None;
    expected.grant = Some(expected_grant);
    assert_eq!(look(&mut client, &id).await, expected);
}

async fn joined_scopes() {
    let world = World::start().await;
    let mut client = world.client();
    let started = begin(&mut client, key("u1"), &[]).await;
    assert_eq!(query_of(&started.authorization_url).await["scope"], "email profile");
    let granted = grant(&mut client, key("u1"), &["calendar"]).await;
    assert_eq!(granted.scopes, ["calendar"]);

    let started = begin(&mut client, key("u1"), &["drive"]).await;
    assert_eq!(query_of(&started.authorization_url).await["scope"], "calendar drive");
    // Another account is another grant, whose scopes are its own.
    let other = begin(&mut client, key_at("acme", "u1", "work"), &["drive"]).await;
    assert_eq!(query_of(&other.authorization_url).await["scope"], "drive");

    // The old grant serves on until the new one is confirmed.
    let old = token_of(&mut client, key("u1")).await;
    let page = Browser::new().allow(&started.authorization_url).await;
    assert_eq!(token_of(&mut client, key("u1")).await, old);
    let code = page.confirmation_code().expect("a code");
    assert_eq!(confirm(&mut client, "u1", code).await.scopes, ["calendar", "drive"]);
    let new = token_of(&mut client, key("u1")).await;
    assert_ne!((&new.access_token, &new.etag), (&old.access_token, &old.etag));
    assert_eq!(new.scopes, ["calendar", "drive"]);
}

async fn denied() {
    let world = World::start().await;
    let mut client = world.client();
    let started = begin(&mut client, key("u1"), &[]).await;
    let mut browser = Browser::new();
    let redirect = browser.redirect_of(&started.authorization_url, "deny").await;
    assert_eq!(browser.get(redirect.as_str()).await.status, 200);
    let seen = look(&mut client, &started.authorization_id).await;
    assert_eq!(seen.state(), proto::AuthorizationState::Denied);
    assert_eq!((seen.error.as_str(), seen.expire_time), ("access_denied", None));
    assert!(!seen.error_description.is_empty() && seen.grant.is_none());
    assert_eq!(world.provider.ledger().token_calls, 0);
}

async fn failed() {
    let world = World::start().await;
    let mut client = world.client();
    let started = begin(&mut client, key("u1"), &[]).await;
    script_token(&world, 400, r#"{"error":"invalid_scope","error_description":"SECRET"}"#);
    let page = Browser::new().allow(&started.authorization_url).await;
    assert_eq!(page.status, 502);
    let seen = look(&mut client, &started.authorization_id).await;
    assert_eq!(seen.state(), proto::AuthorizationState::Failed);
    assert_eq!((seen.error.as_str(), seen.expire_time), ("invalid_scope", None));
    assert_eq!(seen.error_description, "Acme did not give a token.");
    assert_eq!(why(client.get_token(super::tokens::ask("u1")).await).1, "AUTHORIZATION_REQUIRED");
}

async fn watch(client: &mut Client, id: &str) -> Streaming<proto::WatchAuthorizationResponse> {
    let request = proto::WatchAuthorizationRequest { authorization_id: id.into() };
    client.watch_authorization(request).await.expect("a stream").into_inner()
}

async fn next(
    stream: &mut Streaming<proto::WatchAuthorizationResponse>,
) -> Option<proto::Authorization> {
    let message = stream.message().await.expect("no error");
    message.map(|message| message.authorization.expect("an authorization"))
}

async fn watched() {
    use proto::AuthorizationState::{Authorized, AwaitingConfirmation, Pending};

    let world = World::start().await;
    let mut client = world.client();
    let started = begin(&mut client, key("u1"), &[]).await;
    let mut stream = watch(&mut client, &started.authorization_id).await;
    let first = next(&mut stream).await.expect("now");
    assert_eq!((first.state(), first.expire_time), (Pending, at(900)));

    let page = Browser::new().allow(&started.authorization_url).await;
    let second = next(&mut stream).await.expect("a change");
    assert_eq!((second.state(), second.expire_time), (AwaitingConfirmation, at(300)));

    let granted = confirm(&mut client, "u1", page.confirmation_code().expect("a code")).await;
    let third = next(&mut stream).await.expect("a change");
    assert_eq!((third.state(), third.expire_time), (Authorized, None));
    assert_eq!(third.grant, Some(granted));
    assert_eq!(next(&mut stream).await, None);
}

async fn watched_late() {
    let world = World::start().await;
    let mut client = world.client();
    let id = begin(&mut client, key("u1"), &[]).await.authorization_id;
    let request = proto::CancelAuthorizationRequest { authorization_id: id.clone() };
    client.cancel_authorization(request).await.expect("cancelled");
    let mut stream = watch(&mut client, &id).await;
    let only = next(&mut stream).await.expect("now");
    assert_eq!(only.state(), proto::AuthorizationState::Cancelled);
    assert_eq!(next(&mut stream).await, None);
}

async fn watched_to_the_end() {
    let world = World::start().await;
    let mut client = world.client();
    let id = begin(&mut client, key("u1"), &[]).await.authorization_id;
    let mut stream = watch(&mut client, &id).await;
    next(&mut stream).await.expect("now");
    let (stopped, ended) = tokio::join!(world.stop(), stream.message());
    stopped.expect("a clean end");
    let told = refusal(&ended.expect_err("an end that sends the caller elsewhere"));
    assert_eq!((told.code, told.reason.as_str()), (Code::Unavailable, "OVERLOADED"));
}

async fn cancel(client: &mut Client, id: &str) -> proto::Authorization {
    let request = proto::CancelAuthorizationRequest { authorization_id: id.into() };
    let response = client.cancel_authorization(request).await.expect("an authorization");
    response.into_inner().authorization.expect("an authorization")
}

async fn cancelled() {
    let world = World::start().await;
    let mut client = world.client();
    let started = begin(&mut client, key("u1"), &[]).await;
    // A browser that has already left for the provider comes back too late.
    let mut browser = Browser::new();
    let redirect = browser.redirect_of(&started.authorization_url, "allow").await;
    let ended = cancel(&mut client, &started.authorization_id).await;
    let expected = proto::Authorization {
        authorization_id: started.authorization_id.clone(),
        key: Some(key("u1")),
        state: proto::AuthorizationState::Cancelled.into(),
        ..Default::default()
    };
    assert_eq!(ended, expected);
    world.advance(seconds(5));
    assert_eq!(cancel(&mut client, &started.authorization_id).await, expected);

    let page = Browser::new().get(&started.authorization_url).await;
    assert_eq!((page.status, page.heading().as_str()), (400, "This link no longer works"));
    let page = browser.get(redirect.as_str()).await;
    assert_eq!((page.status, page.heading().as_str()), (400, "This link no longer works"));
    assert_eq!(world.provider.ledger().token_calls, 0);
    assert_eq!(look(&mut client, &started.authorization_id).await, expected);
}

async fn cancelled_while_awaiting() {
    let world = World::start().await;
    let mut client = world.client();
    let (id, code) = world.consent("u1").await;
    assert_eq!(world.provider.ledger().living_refresh_tokens, 1);
    assert_eq!(cancel(&mut client, &id).await.state(), proto::AuthorizationState::Cancelled);
    let mut request =
        proto::ConfirmAuthorizationRequest { subject: "u1".into(), code, ..Default::default() };
    let told = why(client.confirm_authorization(request.clone()).await);
    assert_eq!(told, (Code::NotFound, "AUTHORIZATION_NOT_FOUND".into()));
    request.authorization_id = id;
    let told = refused(client.confirm_authorization(request).await);
    assert_eq!(told.reason, "AUTHORIZATION_NOT_AWAITING_CONFIRMATION");
    assert_eq!((told.code, told.metadata("state")), (Code::FailedPrecondition, "CANCELLED"));
    // The outbox tries what nobody has tried within the time that an attempt may take.
    world.advance(seconds(15));
    until(|| world.provider.ledger().living_refresh_tokens == 0).await;
    assert_eq!(world.provider.ledger().living_access_tokens, 0);
}

async fn cancelled_too_late() {
    let world = World::start().await;
    let mut client = world.client();
    let (id, code) = world.consent("u1").await;
    confirm(&mut client, "u1", code).await;
    let before = look(&mut client, &id).await;
    assert_eq!(before.state(), proto::AuthorizationState::Authorized);
    assert_eq!(cancel(&mut client, &id).await, before);
    assert!(world.provider.is_living(&world.token("u1").await));
    assert_eq!(world.provider.ledger().revoke_calls, 0);
}

async fn foreign() {
    let world = World::with(|setup| setup.bots.push(bot("other"))).await;
    let (id, code) = world.consent("u1").await;
    let mut other = world.client_of("other");
    // To another namespace it is as absent as one that was never there.
    let nobodys = "0".repeat(32);
    for id in [&id, &nobodys] {
        let authorization_id = id.clone();
        let get = proto::GetAuthorizationRequest { authorization_id: id.clone() };
        let watch = proto::WatchAuthorizationRequest { authorization_id: id.clone() };
        let cancel = proto::CancelAuthorizationRequest { authorization_id: id.clone() };
        let confirm = proto::ConfirmAuthorizationRequest {
            subject: "u1".into(),
            code: code.clone(),
            authorization_id,
        };
        let answers = [
            refused(other.get_authorization(get).await),
            refusal(&other.watch_authorization(watch).await.expect_err("a refusal")),
            refused(other.cancel_authorization(cancel).await),
            refused(other.confirm_authorization(confirm).await),
        ];
        for told in answers {
            assert_eq!(told.reason, "AUTHORIZATION_NOT_FOUND");
            assert_eq!((told.code, told.metadata("authorization_id")), (Code::NotFound, &**id));
            assert_eq!(told.message, format!("there is no authorization {id} for this caller"));
        }
    }
    let seen = look(&mut world.client(), &id).await;
    assert_eq!(seen.state(), proto::AuthorizationState::AwaitingConfirmation);
    // Nor has the other bot's code cost an attempt: the right code still works.
    confirm(&mut world.client(), "u1", code).await;
}

async fn malformed_ids() {
    let world = World::start().await;
    let mut client = world.client();
    client.authorize(authorize("u1")).await.expect("a link");
    for id in ["x".to_owned(), "0".repeat(31), "0".repeat(33), "g".repeat(32), "é".repeat(16)] {
        let request = proto::GetAuthorizationRequest { authorization_id: id.clone() };
        let told = refused(client.get_authorization(request).await);
        assert_eq!((told.code, told.reason.as_str()), (Code::NotFound, "AUTHORIZATION_NOT_FOUND"));
    }
}

async fn told_alike() {
    let world = World::start().await;
    let request = proto::GetAuthorizationRequest { authorization_id: "x".into() };
    let told = refused(world.client().get_authorization(request).await);
    // The message is not that of ConfirmAuthorization without an id.
    assert!(!told.message.contains("awaits a code"), "{}", told.message);
}
