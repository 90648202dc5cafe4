//! 2xx answers that cannot be used whole: what they bring is kept, and nothing else is touched.

use libtest_mimic::Trial;
use token_broker_client::{Reason, proto};

use super::{
    BACKOFF, HALF, LATE, LIFETIME, get, get_for, html, json, reason, refresh, script, state,
};
use crate::harness::{World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("refresh::the_refresh_token_of_a_refused_answer_is_the_next_one_sent", rotated),
        trial("refresh::an_answer_without_any_token_costs_no_token", nothing),
        trial("refresh::a_partial_answer_leaves_the_living_token_in_place", living),
        trial("refresh::a_partial_answer_does_not_pass_the_old_token_off_as_new", old_as_new),
    ]
}

async fn rotated() {
    for (name, body, error) in [
        ("no access token", r#"{"refresh_token":"new-rt","expires_in":300}"#, "invalid_response"),
        ("an empty one", r#"{"access_token":"","refresh_token":"new-rt"}"#, "invalid_response"),
        (
            "a type that nobody can use",
            r#"{"access_token":"mac-at","token_type":"mac","refresh_token":"new-rt"}"#,
            "invalid_response",
        ),
        ("an error besides", r#"{"error":"odd","refresh_token":"new-rt"}"#, "odd"),
        // A fresh refresh token says more than the word does.
        (
            "a death besides",
            r#"{"error":"invalid_grant","refresh_token":"new-rt"}"#,
            "invalid_grant",
        ),
    ] {
        let world = World::start().await;
        world.granted("u1").await;
        world.advance(LIFETIME);
        script(&world, [json(200, body)]);
        let refusal = get(&world, "u1").await.expect_err(name);
        assert_eq!(refusal.reason, Reason::ProviderError, "{name}");
        assert_eq!(refusal.metadata["error"], error, "{name}");
        assert_eq!(state(&world, "u1").await, proto::GrantState::Active, "{name}");

        world.advance(BACKOFF);
        script(&world, [json(200, r#"{"access_token":"good","expires_in":300}"#)]);
        assert_eq!(get(&world, "u1").await.expect(name).access_token, "good");
        let ledger = world.provider.ledger();
        assert_eq!((ledger.refreshes, ledger.refreshes_of("new-rt")), (2, 1), "{name}");
    }
}

async fn nothing() {
    for (name, answer) in [
        ("HTML", html(200)),
        ("empty", json(200, "")),
        ("an empty object", json(200, "{}")),
        ("a list", json(200, r#"["access_token"]"#)),
        ("no content", json(204, "")),
    ] {
        let world = World::start().await;
        world.granted("u1").await;
        world.advance(LIFETIME);
        script(&world, [answer]);
        let refusal = get(&world, "u1").await.expect_err(name);
        assert_eq!(refusal.reason, Reason::ProviderError, "{name}");
        assert_eq!(refusal.metadata["error"], "invalid_response", "{name}");
        world.advance(BACKOFF);
        let new = get(&world, "u1").await.expect(name).access_token;
        assert!(world.provider.is_living(&new), "{name}");
        assert_eq!(world.provider.ledger().most_refreshes_of_one_token(), 2, "{name}");
    }
}

async fn living() {
    let world = World::start().await;
    let old = world.granted("u1").await;
    world.advance(LATE);
    let mac = r#"{"access_token":"mac-at","token_type":"mac","refresh_token":"new-rt"}"#;
    script(&world, [json(200, mac)]);
    let token = get_for(&world, "u1", HALF).await.expect("the old one");
    assert_eq!(token.access_token, old);
    assert_eq!(get(&world, "u1").await.expect("the old one").access_token, old);
    world.advance(LIFETIME - LATE);
    // It has ended by now, and what replaced it is none.
    script(&world, [json(400, r#"{"error":"invalid_grant"}"#)]);
    assert_eq!(reason(get(&world, "u1").await), Reason::ReauthorizationRequired);
    assert_eq!(world.provider.ledger().refreshes_of("new-rt"), 1);
}

/// An etag names one very token. A bot that met a 401 and hands in its etag must never be given the
/// token that did not work as if it were another.
async fn old_as_new() {
    let world = World::start().await;
    world.granted("u1").await;
    let old = get(&world, "u1").await.expect("a token");
    script(&world, [json(200, r#"{"refresh_token":"new-rt"}"#)]);
    assert_eq!(reason(refresh(&world, "u1", &old.etag).await), Reason::ProviderError);
    // The same token is still served.
    let again = get(&world, "u1").await.expect("a token");
    assert_eq!(again.access_token, old.access_token);

    world.advance(BACKOFF);
    script(&world, [json(200, r#"{"access_token":"good","expires_in":300}"#)]);
    let new = refresh(&world, "u1", &old.etag).await.expect("a token");
    assert_eq!(new.access_token, "good", "the token that did not work came back");
    assert_eq!(again.etag, old.etag, "one token has one etag");
    assert_eq!(world.provider.ledger().refreshes_of("new-rt"), 1);
}
