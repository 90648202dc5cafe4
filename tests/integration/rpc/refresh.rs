//! Refresh, and what becomes of a grant that cannot be renewed.

use libtest_mimic::Trial;
use token_broker::demo::provider::{ScriptedAnswer, ScriptedEndpoint};
use token_broker_client::{Client, proto};
use tonic::{Code, Response, Status};

use super::support::{
    at, bad_fields, confirm, grants, refused, script_token, seconds, token_of, why,
};
use crate::harness::world::{get_token, key};
use crate::harness::{World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("rpc::refresh_answers_a_new_token_whatever_the_age", anew),
        trial("rpc::fifty_callers_with_one_etag_cause_one_refresh", fifty),
        trial("rpc::a_stale_etag_gets_the_current_token", stale),
        trial("rpc::refresh_without_a_grant_requires_an_authorization", nothing_granted),
        trial("rpc::a_grant_without_a_refresh_token_is_not_refreshable", not_refreshable),
        trial("rpc::a_dead_refresh_token_requires_a_reauthorization", dead),
        trial("rpc::trouble_at_the_provider_is_told_apart", troubles),
        trial("rpc::an_overlong_etag_is_refused", overlong),
    ]
}

async fn refresh(
    client: &mut Client,
    subject: &str,
    etag: &str,
) -> Result<Response<proto::RefreshResponse>, Status> {
    let request =
        proto::RefreshRequest { key: Some(key(subject)), etag: etag.into(), ..Default::default() };
    client.refresh(request).await
}

async fn refreshed(client: &mut Client, etag: &str) -> proto::Token {
    let response = refresh(client, "u1", etag).await.expect("a token").into_inner();
    response.token.expect("a token")
}

async fn anew() {
    let world = World::start().await;
    let mut client = world.client();
    world.granted("u1").await;
    let first = token_of(&mut client, key("u1")).await;
    world.advance(seconds(7));
    let second = refreshed(&mut client, "").await;
    assert_ne!((&second.access_token, &second.etag), (&first.access_token, &first.etag));
    let expected = proto::Token {
        access_token: second.access_token.clone(),
        etag: second.etag.clone(),
        expire_time: at(7 + 300),
        ..first
    };
    assert_eq!(second, expected);
    assert_eq!(token_of(&mut client, key("u1")).await, second);
    let listed = grants(&mut client).await.remove(0);
    assert_eq!((listed.create_time, listed.refresh_time), (at(0), at(7)));
    // By the current etag as well as without any.
    let third = refreshed(&mut client, &second.etag).await;
    assert_ne!(third.etag, second.etag);
    let ledger = world.provider.ledger();
    assert_eq!((ledger.refreshes, ledger.most_refreshes_of_one_token()), (2, 1));
}

async fn fifty() {
    let world = World::start().await;
    world.granted("u1").await;
    let old = token_of(&mut world.client(), key("u1")).await;
    let pause = world.provider.pause_token_endpoint();
    let callers: Vec<_> = (0..50)
        .map(|_| {
            let (mut client, etag) = (world.client(), old.etag.clone());
            tokio::spawn(async move { refreshed(&mut client, &etag).await })
        })
        .collect();
    // The code's exchange was the first call.
    world.provider.wait_for_token_calls(2).await;
    drop(pause);
    let mut tokens = Vec::new();
    for caller in callers {
        tokens.push(caller.await.expect("a token"));
    }
    assert!(tokens.iter().all(|token| *token == tokens[0] && *token != old));
    assert_eq!(token_of(&mut world.client(), key("u1")).await, tokens[0]);
    assert_eq!(world.provider.ledger().refreshes, 1);
}

async fn stale() {
    let world = World::start().await;
    let mut client = world.client();
    world.granted("u1").await;
    let first = token_of(&mut client, key("u1")).await;
    let second = refreshed(&mut client, &first.etag).await;
    for etag in [first.etag.as_str(), "nobody's"] {
        assert_eq!(refreshed(&mut client, etag).await, second);
    }
    assert_eq!(world.provider.ledger().refreshes, 1);
    // The etag of a grant that was replaced is stale too.
    let (_, code) = world.consent("u1").await;
    confirm(&mut client, "u1", code).await;
    let third = refreshed(&mut client, &second.etag).await;
    assert_ne!(third.etag, second.etag);
    assert_eq!(world.provider.ledger().refreshes, 1);
}

async fn nothing_granted() {
    let world = World::start().await;
    let told = refused(refresh(&mut world.client(), "u1", "").await);
    assert_eq!(told.reason, "AUTHORIZATION_REQUIRED");
    assert_eq!((told.code, told.metadata("provider")), (Code::FailedPrecondition, "acme"));
}

async fn not_refreshable() {
    let world = World::start().await;
    let mut client = world.client();
    script_token(&world, 200, r#"{"access_token":"once","token_type":"Bearer","expires_in":100}"#);
    let (_, code) = world.consent("u1").await;
    let granted = confirm(&mut client, "u1", code).await;
    assert_eq!((granted.refreshable, granted.expire_time), (false, at(100)));
    let told = refused(refresh(&mut client, "u1", "").await);
    assert_eq!((told.code, told.reason.as_str()), (Code::FailedPrecondition, "NOT_REFRESHABLE"));
    // To its last moment, for nothing better can be had.
    world.advance(seconds(99));
    assert_eq!(token_of(&mut client, key("u1")).await.access_token, "once");
    world.advance(seconds(1));
    for told in [
        refused(refresh(&mut client, "u1", "").await),
        refused(client.get_token(get_token("u1")).await),
    ] {
        assert_eq!(told.reason, "REAUTHORIZATION_REQUIRED");
        assert_eq!((told.code, told.metadata("provider")), (Code::FailedPrecondition, "acme"));
    }
    assert_eq!(world.provider.ledger().token_calls, 1);
}

async fn dead() {
    let world = World::start().await;
    let mut client = world.client();
    let access_token = world.granted("u1").await;
    assert_eq!(grants(&mut client).await[0].state(), proto::GrantState::Active);
    script_token(&world, 400, r#"{"error":"invalid_grant"}"#);
    let expected = (Code::FailedPrecondition, "REAUTHORIZATION_REQUIRED".to_owned());
    assert_eq!(why(refresh(&mut client, "u1", "").await), expected);
    let listed = grants(&mut client).await.remove(0);
    assert_eq!(listed.state(), proto::GrantState::ReauthorizationRequired);
    // The access token lives on, and so it is lent, even past the moment of its usual refresh.
    world.advance(seconds(299));
    assert_eq!(world.token("u1").await, access_token);
    assert_eq!(why(refresh(&mut client, "u1", "").await), expected);
    world.advance(seconds(1));
    assert_eq!(why(client.get_token(get_token("u1")).await), expected);
    // A refresh token that is known to be dead is not sent again.
    assert_eq!(world.provider.ledger().refreshes, 1);
}

/// What the provider answers, and what the caller is told of it.
const TROUBLES: [(u16, &str, &str, &str); 7] = [
    (401, r#"{"error":"invalid_client"}"#, "PROVIDER_MISCONFIGURED", "invalid_client"),
    (401, "", "PROVIDER_MISCONFIGURED", "invalid_client"),
    (400, r#"{"error":"invalid_scope"}"#, "PROVIDER_ERROR", "invalid_scope"),
    (200, r#"{"error":"bad_verification_code"}"#, "PROVIDER_ERROR", "bad_verification_code"),
    (200, "<html>", "PROVIDER_ERROR", "invalid_response"),
    (404, "", "PROVIDER_ERROR", "invalid_response"),
    (302, "", "PROVIDER_ERROR", "invalid_response"),
];

async fn troubles() {
    let world = World::start().await;
    let mut client = world.client();
    for (index, (status, body, reason, error)) in TROUBLES.into_iter().enumerate() {
        let subject = format!("u{index}");
        // Past what a refusal of the broker itself keeps everybody away for.
        world.advance(seconds(11));
        let access_token = world.granted(&subject).await;
        script_token(&world, status, body);
        let told = refused(refresh(&mut client, &subject, "").await);
        assert_eq!((told.code, told.reason.as_str()), (Code::FailedPrecondition, reason));
        assert_eq!((told.metadata("provider"), told.metadata("error")), ("acme", error));
        assert_eq!(world.token(&subject).await, access_token);
    }
    world.advance(seconds(11));
    world.granted("late").await;
    let busy = ScriptedAnswer {
        headers: vec![("Retry-After".into(), "7".into())],
        ..ScriptedAnswer::json(429, "")
    };
    world.provider.script(ScriptedEndpoint::Token, busy);
    let told = refused(refresh(&mut client, "late", "").await);
    assert_eq!((told.code, told.reason.as_str()), (Code::Unavailable, "PROVIDER_UNAVAILABLE"));
    assert_eq!((told.metadata("provider"), told.retry_after), ("acme", Some(seconds(7))));
    // The old token is served while it is valid.
    world.token("late").await;
}

async fn overlong() {
    let world = World::start().await;
    let mut client = world.client();
    world.granted("u1").await;
    let fields = bad_fields(refresh(&mut client, "u1", &"e".repeat(1025)).await);
    assert_eq!(fields, ["etag"]);
    assert_eq!(world.provider.ledger().refreshes, 0);
}
