//! The whole life of a token, over gRPC and HTTP.

use std::time::Duration;

use libtest_mimic::Trial;
use token_broker_client::{Reason, Refusal, proto};

use crate::harness::world::{self, authorize, get_token, key};
use crate::harness::{Browser, World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("lifecycle::authorize_confirm_get_refresh_revoke", whole_life),
        trial("lifecycle::a_hundred_callers_cause_one_refresh", herd),
    ]
}

async fn whole_life() {
    let world = World::start().await;
    let mut client = world.client();

    let refused = client.get_token(get_token("u1")).await.expect_err("no grant yet");
    assert_eq!(Refusal::of(&refused).expect("a refusal").reason, Reason::AuthorizationRequired);

    let started = client.authorize(authorize("u1")).await.expect("a link").into_inner();
    assert!(started.authorization_url.starts_with(&world.http_url));
    let page = Browser::new().allow(&started.authorization_url).await;
    assert_eq!((page.status, page.heading().as_str()), (200, "One more step"));
    let code = page.confirmation_code().expect("a code");
    let request =
        proto::ConfirmAuthorizationRequest { subject: "u1".into(), code, ..Default::default() };
    let grant = client.confirm_authorization(request).await.expect("a grant").into_inner().grant;
    assert_eq!(grant.expect("a grant").scopes, ["email", "profile"]);

    let first = world.token("u1").await;
    assert!(world.provider.is_living(&first));
    let refresh = world::refresh("u1");
    let second = client.refresh(refresh).await.expect("a token").into_inner().token;
    let second = second.expect("a token").access_token;
    assert_ne!(first, second);
    assert_eq!(world.token("u1").await, second);

    let revoke = proto::RevokeRequest { key: Some(key("u1")) };
    let revoked = client.revoke(revoke.clone()).await.expect("revoked").into_inner();
    assert_eq!(revoked.revocation(), proto::Revocation::Done);
    assert!(!world.provider.is_living(&second));
    let again = client.revoke(revoke).await.expect("revoked").into_inner();
    assert_eq!(again.revocation(), proto::Revocation::NotNeeded);
    assert!(client.get_token(get_token("u1")).await.is_err());
    assert_eq!(world.provider.ledger().living_refresh_tokens, 0);
    world.stop().await.expect("a clean end");
}

async fn herd() {
    let world = World::start().await;
    let old = world.granted("u1").await;
    world.advance(Duration::from_secs(301));
    assert!(!world.provider.is_living(&old));
    let callers = (0..100).map(|_| {
        let mut client = world.client();
        tokio::spawn(async move { client.get_token(get_token("u1")).await })
    });
    let mut tokens = std::collections::HashSet::new();
    for caller in futures::future::join_all(callers).await {
        let response = caller.expect("no panic").expect("a token").into_inner();
        tokens.insert(response.token.expect("a token").access_token);
    }
    assert_eq!(tokens.len(), 1);
    assert!(tokens.iter().all(|token| world.provider.is_living(token)));
    assert_eq!(world.provider.ledger().refreshes, 1);
}
