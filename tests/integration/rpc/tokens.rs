//! GetToken: what it answers, and when it asks the provider for a new token.

use std::time::Duration;

use libtest_mimic::Trial;
use token_broker_client::{Client, proto};
use tonic::Code;

use super::support::{
    at, bad_fields, confirm, grant, key_at, refused, script_token, seconds, token_of,
};
use crate::harness::world::{get_token, key};
use crate::harness::{World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("rpc::get_token_answers_every_field", fields),
        trial("rpc::get_token_without_a_grant_requires_an_authorization", nothing_granted),
        trial("rpc::get_token_keeps_a_token_that_is_good_for_60_s_by_default", default_min_ttl),
        trial("rpc::get_token_heeds_min_ttl_to_the_millisecond", asked_min_ttl),
        trial("rpc::min_ttl_counts_at_most_half_the_lifetime", capped_min_ttl),
        trial("rpc::short_lived_tokens_cause_no_refresh_loop", short_lived),
        trial("rpc::a_negative_min_ttl_is_refused", negative_min_ttl),
        trial("rpc::the_least_min_ttl_of_all_is_refused", least_min_ttl),
        trial("rpc::a_token_without_a_lifetime_is_never_refreshed", endless),
        trial("rpc::scope_missing_names_what_is_missing", scope_missing),
        trial("rpc::a_token_that_came_back_narrower_misses_scopes", narrowed),
        trial("rpc::token_sets_and_resources_are_refused_by_name", unsupported),
        trial("rpc::accounts_are_grants_of_their_own", accounts),
    ]
}

/// A GetToken that starts an authorization where the user has to act.
pub(super) fn ask(subject: &str) -> proto::GetTokenRequest {
    proto::GetTokenRequest { start_authorization: Some(Default::default()), ..get_token(subject) }
}

async fn with_ttl(client: &mut Client, ttl: Option<Duration>) -> proto::Token {
    let min_ttl = ttl.map(|ttl| ttl.try_into().expect("a short time"));
    let request = proto::GetTokenRequest { min_ttl, ..get_token("u1") };
    client.get_token(request).await.expect("a token").into_inner().token.expect("a token")
}

async fn fields() {
    let world = World::start().await;
    let mut client = world.client();
    grant(&mut client, key("u1"), &[]).await;
    let token = token_of(&mut client, key("u1")).await;
    assert!(world.provider.is_living(&token.access_token));
    assert!(!token.etag.is_empty() && !token.access_token.contains(&token.etag));
    let expected = proto::Token {
        access_token: token.access_token.clone(),
        token_type: "Bearer".into(),
        expire_time: at(300),
        scopes: vec!["email".into(), "profile".into()],
        etag: token.etag.clone(),
        ..Default::default()
    };
    assert_eq!(token, expected);
    assert_eq!(token_of(&mut client, key("u1")).await, expected);
    assert_eq!(world.provider.ledger().token_calls, 1);
}

async fn nothing_granted() {
    let world = World::start().await;
    let told = refused(world.client().get_token(get_token("u1")).await);
    assert_eq!(told.reason, "AUTHORIZATION_REQUIRED");
    assert_eq!((told.code, told.metadata("provider")), (Code::FailedPrecondition, "acme"));
    assert_eq!((told.started, told.links.len()), (None, 0));
}

async fn default_min_ttl() {
    let world = World::start().await;
    let mut client = world.client();
    world.granted("u1").await;
    let first = with_ttl(&mut client, None).await;
    world.advance(Duration::from_millis(239_999));
    assert_eq!(with_ttl(&mut client, None).await, first);
    assert_eq!(world.provider.ledger().refreshes, 0);
    world.advance(Duration::from_millis(1));
    let second = with_ttl(&mut client, None).await;
    assert_ne!((&second.access_token, &second.etag), (&first.access_token, &first.etag));
    assert_eq!((second.expire_time, &second.scopes), (at(240 + 300), &first.scopes));
    assert_eq!(with_ttl(&mut client, None).await, second);
    assert_eq!(world.provider.ledger().refreshes, 1);
    let listed = super::support::grants(&mut client).await.remove(0);
    assert_eq!((listed.create_time, listed.refresh_time), (at(0), at(240)));
    assert_eq!(listed.expire_time, at(540));
}

async fn asked_min_ttl() {
    let world = World::start().await;
    let mut client = world.client();
    world.granted("u1").await;
    let first = with_ttl(&mut client, None).await;
    world.advance(Duration::from_millis(199_999));
    assert_eq!(with_ttl(&mut client, Some(seconds(100))).await, first);
    world.advance(Duration::from_millis(1));
    assert_eq!(with_ttl(&mut client, Some(Duration::from_millis(99_999))).await, first);
    let second = with_ttl(&mut client, Some(seconds(100))).await;
    assert_ne!(second, first);
    // Zero takes a token to its very end.
    world.advance(Duration::from_millis(299_999));
    assert_eq!(with_ttl(&mut client, Some(Duration::ZERO)).await, second);
    world.advance(Duration::from_millis(1));
    assert_ne!(with_ttl(&mut client, Some(Duration::ZERO)).await, second);
    assert_eq!(world.provider.ledger().refreshes, 2);
}

async fn capped_min_ttl() {
    let world = World::start().await;
    let mut client = world.client();
    world.granted("u1").await;
    let day = Some(seconds(24 * 60 * 60));
    let first = with_ttl(&mut client, day).await;
    world.advance(Duration::from_millis(149_999));
    assert_eq!(with_ttl(&mut client, day).await, first);
    world.advance(Duration::from_millis(1));
    let second = with_ttl(&mut client, day).await;
    assert_ne!(second, first);
    for _ in 0..10 {
        assert_eq!(with_ttl(&mut client, day).await, second);
    }
    // The longest duration that the contract's type can say does no harm either.
    let longest = prost_types::Duration { seconds: i64::MAX, nanos: 999_999_999 };
    let request = proto::GetTokenRequest { min_ttl: Some(longest), ..get_token("u1") };
    let third = client.get_token(request).await.expect("a token").into_inner().token;
    assert_eq!(third, Some(second));
    assert_eq!(world.provider.ledger().refreshes, 1);
}

async fn short_lived() {
    let world = World::with(|setup| setup.token_lifetime = seconds(10)).await;
    let mut client = world.client();
    world.granted("u1").await;
    let mut tokens = std::collections::HashSet::new();
    // Half a second at a time for 20 s: one refresh at most in each half of a lifetime.
    for _ in 0..40 {
        tokens.insert(with_ttl(&mut client, None).await.access_token);
        world.advance(Duration::from_millis(500));
    }
    assert_eq!((world.provider.ledger().refreshes, tokens.len()), (3, 4));
}

async fn negative_min_ttl() {
    let world = World::start().await;
    let mut client = world.client();
    world.granted("u1").await;
    for (seconds, nanos) in [(-1, 0), (0, -1), (-1, -999_999_999), (i64::MIN + 1, 0)] {
        let min_ttl = Some(prost_types::Duration { seconds, nanos });
        let request = proto::GetTokenRequest { min_ttl, ..get_token("u1") };
        assert_eq!(bad_fields(client.get_token(request).await), ["min_ttl"]);
    }
    assert_eq!(world.provider.ledger().refreshes, 0);
}

async fn least_min_ttl() {
    let world = World::start().await;
    let mut client = world.client();
    // It has no positive counterpart: who negates it on the way panics.
    let min_ttl = Some(prost_types::Duration { seconds: i64::MIN, nanos: 0 });
    let request = proto::GetTokenRequest { min_ttl, ..get_token("u1") };
    assert_eq!(bad_fields(client.get_token(request).await), ["min_ttl"]);
}

async fn endless() {
    let world = World::start().await;
    let mut client = world.client();
    let body = r#"{"access_token":"endless","refresh_token":"r","token_type":"bearer"}"#;
    script_token(&world, 200, body);
    let (_, code) = world.consent("u1").await;
    let granted = confirm(&mut client, "u1", code).await;
    assert_eq!((granted.expire_time, granted.refreshable), (None, true));
    // The answer names no scopes: they are as asked (RFC 6749 section 5.1).
    assert_eq!(granted.scopes, ["email", "profile"]);
    world.advance(seconds(10 * 365 * 24 * 60 * 60));
    let token = with_ttl(&mut client, Some(seconds(3600))).await;
    assert_eq!((token.access_token.as_str(), token.expire_time), ("endless", None));
    assert_eq!(token.token_type, "Bearer");
    assert_eq!(world.provider.ledger().refreshes, 0);
}

async fn scope_missing() {
    let world = World::start().await;
    let mut client = world.client();
    grant(&mut client, key("u1"), &["email", "profile"]).await;
    let scopes = |scopes: &[&str]| proto::GetTokenRequest {
        scopes: scopes.iter().map(|&scope| scope.to_owned()).collect(),
        ..get_token("u1")
    };
    for covered in [&["email"][..], &["profile", "email"], &["email", "email"]] {
        client.get_token(scopes(covered)).await.expect("a token");
    }
    let told = refused(client.get_token(scopes(&["profile", "drive", "calendar"])).await);
    assert_eq!((told.code, told.reason.as_str()), (Code::FailedPrecondition, "SCOPE_MISSING"));
    assert_eq!(told.metadata("missing"), "calendar drive");
    assert_eq!((told.metadata("provider"), &told.started), ("acme", &None));
    // Scopes are compared as they are.
    let told = refused(client.get_token(scopes(&["Email"])).await);
    assert_eq!(told.metadata("missing"), "Email");
    assert_eq!(world.provider.ledger().refreshes, 0);
}

async fn narrowed() {
    let world = World::start().await;
    let mut client = world.client();
    world.granted("u1").await;
    world.advance(seconds(300));
    let body = r#"{"access_token":"narrow","refresh_token":"r","token_type":"Bearer",
        "expires_in":300,"scope":"email"}"#;
    script_token(&world, 200, body);
    let both = proto::GetTokenRequest {
        scopes: vec!["email".into(), "profile".into()],
        ..get_token("u1")
    };
    // The grant covered both before the refresh that this very call caused.
    let told = refused(client.get_token(both.clone()).await);
    assert_eq!((told.reason.as_str(), told.metadata("missing")), ("SCOPE_MISSING", "profile"));
    let token = token_of(&mut client, key("u1")).await;
    assert_eq!((token.access_token.as_str(), &token.scopes[..]), ("narrow", &["email".into()][..]));
    assert_eq!(refused(client.get_token(both).await).reason, "SCOPE_MISSING");
    assert_eq!(super::support::grants(&mut client).await[0].scopes, ["email"]);
    assert_eq!(world.provider.ledger().refreshes, 1);
}

async fn unsupported() {
    let world = World::start().await;
    let mut client = world.client();
    world.granted("u1").await;
    let request = proto::GetTokenRequest {
        token_set: "user".into(),
        resources: vec!["https://api.example.com".into()],
        ..get_token("u1")
    };
    assert_eq!(bad_fields(client.get_token(request).await), ["token_set", "resources"]);
    let request = proto::RefreshRequest {
        key: Some(key("u1")),
        token_set: "user".into(),
        ..Default::default()
    };
    assert_eq!(bad_fields(client.refresh(request).await), ["token_set"]);
    assert_eq!(world.provider.ledger().refreshes, 0);
}

async fn accounts() {
    let world = World::start().await;
    let mut client = world.client();
    grant(&mut client, key("u1"), &[]).await;
    let work = key_at("acme", "u1", "work");
    let request = proto::GetTokenRequest { key: Some(work.clone()), ..Default::default() };
    assert_eq!(refused(client.get_token(request).await).reason, "AUTHORIZATION_REQUIRED");
    grant(&mut client, work.clone(), &[]).await;
    let (plain, other) =
        (token_of(&mut client, key("u1")).await, token_of(&mut client, work.clone()).await);
    assert_ne!((&plain.access_token, &plain.etag), (&other.access_token, &other.etag));
    let revoke = proto::RevokeRequest { key: Some(work) };
    let revoked = client.revoke(revoke).await.expect("revoked").into_inner();
    assert_eq!(revoked.revocation(), proto::Revocation::Done);
    assert_eq!(token_of(&mut client, key("u1")).await, plain);
    assert!(world.provider.is_living(&plain.access_token));
    assert!(!world.provider.is_living(&other.access_token));
}
