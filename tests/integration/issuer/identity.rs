//! Who the user is, as ListGrants tells it.

use libtest_mimic::Trial;
use serde_json::json;
use token_broker_client::proto::AuthorizationState;

use super::fake::{Issuer, SUB, SigningKey};
use super::{begin, granted, opened, seen, world};
use crate::harness::{Browser, World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("issuer::identity::of_the_id_token_needs_no_further_call", of_the_id_token),
        trial("issuer::identity::of_somebody_else_at_userinfo_is_not_taken", of_somebody_else),
        trial("issuer::identity::of_a_signed_userinfo_response_is_verified", signed),
        trial("issuer::identity::is_no_reason_to_fail", unknown),
        trial("issuer::identity::of_a_provider_without_id_tokens", without_id_tokens),
        trial("issuer::identity::is_not_asked_for_without_openid", without_openid),
    ]
}

async fn of_the_id_token() {
    let issuer = Issuer::start().await;
    let world = world(&issuer).await;
    issuer.forge(|issuer, mut claims| {
        claims["email"] = "ada@idtoken.example".into();
        Some(issuer.key().sign(&claims))
    });
    assert_eq!(granted(&world, "u1").await.identity, "ada@idtoken.example");
    assert_eq!(issuer.hits("/userinfo"), 0);
}

async fn of_somebody_else() {
    let issuer = Issuer::start().await;
    let world = world(&issuer).await;
    for other in [
        json!({"sub": "sub-of-mallory", "email": "mallory@example.com"}),
        json!({"email": "mallory@example.com"}),
    ] {
        issuer.set_userinfo(other);
        // What is certain remains.
        assert_eq!(granted(&world, "u1").await.identity, SUB);
    }
}

/// OpenID Connect Core section 5.3.2.
async fn signed() {
    let issuer = Issuer::start().await;
    let world = world(&issuer).await;
    let claims = json!({"sub": SUB, "email": "ada@signed.example", "iss": issuer.url()});
    issuer.set_userinfo(issuer.key().sign(&claims).into());
    assert_eq!(granted(&world, "u1").await.identity, "ada@signed.example");
    let impostor = SigningKey::new("first");
    let other_issuer = json!({"sub": SUB, "email": "x@y.example", "iss": "https://evil.example"});
    for refused in [impostor.sign(&claims), issuer.key().sign(&other_issuer)] {
        issuer.set_userinfo(refused.into());
        assert_eq!(granted(&world, "u2").await.identity, SUB);
    }
}

async fn unknown() {
    let issuer = Issuer::start().await;
    let world = world(&issuer).await;
    for status in [500, 403, 302] {
        issuer.break_path("/userinfo", status, issuer.url());
        assert_eq!(granted(&world, "u1").await.identity, SUB, "{status}");
    }
    issuer.mend();
    issuer.set_userinfo(json!(["no", "object"]));
    assert_eq!(granted(&world, "u1").await.identity, SUB);
}

async fn without_id_tokens() {
    let issuer = Issuer::start().await;
    let mut provider = issuer.provider();
    let at = |path: &str| Some(format!("{}/{path}", issuer.url()).parse().expect("a URL"));
    provider.issuer = None;
    provider.ignores_id_tokens = true;
    provider.endpoints.authorization = at("authorize");
    provider.endpoints.token = at("token");
    provider.endpoints.userinfo = at("userinfo");
    provider.identity = Some("/data/handle".to_owned());
    let world = World::with(|setup| setup.providers.push(provider)).await;
    issuer.set_userinfo(json!({"email": "not@this.one", "data": {"handle": "@ada"}}));
    assert_eq!(granted(&world, "u1").await.identity, "@ada");
    // It is nobody's proof, and nobody's fault.
    issuer.set_userinfo(json!({}));
    assert_eq!(granted(&world, "u2").await.identity, "");
    assert_eq!((issuer.hits("/jwks"), issuer.hits("/userinfo")), (0, 2));
}

async fn without_openid() {
    let issuer = Issuer::start().await;
    let mut provider = issuer.provider();
    provider.default_scopes = Default::default();
    let world = World::with(|setup| setup.providers.push(provider)).await;
    let started = begin(&world, "u1").await;
    let page = opened(&started).await;
    assert_eq!(page.status, 200, "{page:?}");
    assert_eq!(seen(&world, &started).await.state(), AuthorizationState::AwaitingConfirmation);
    assert_eq!((issuer.hits("/jwks"), issuer.hits("/userinfo")), (0, 0));
    // Nor is a nonce sent that nobody would check.
    let started = begin(&world, "u2").await;
    let departure = Browser::new().get(&started.authorization_url).await;
    let departure = departure.location().expect("a redirect");
    assert!(!departure.query_pairs().any(|(name, _)| name == "nonce"), "{departure}");
}
