//! A provider that refuses: each refusal has its reason, and none costs a token.

use std::time::Duration;

use libtest_mimic::Trial;
use token_broker::demo::provider::ScriptedAnswer;
use token_broker_client::{Reason, Refusal, proto};

use super::raw::Raw;
use super::{
    BACKOFF, HALF, LATE, LIFETIME, get, get_for, html, json, reason, refresh, script,
    script_refresh, state, with_header,
};
use crate::harness::{World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("refresh::every_refusal_has_its_reason_and_costs_no_token", refusals),
        trial("refresh::the_old_token_is_served_while_it_lives_whatever_fails", old_token),
        trial("refresh::retry_after_is_told_and_honoured", retry_after),
        trial("refresh::an_absurd_retry_after_is_an_hour_at_most", absurd_retry_after),
        trial("refresh::invalid_grant_flags_the_grant_and_the_old_token_serves_on", invalid_grant),
        trial("refresh::invalid_grant_in_a_2xx_answer_flags_the_grant_too", invalid_grant_in_2xx),
        trial("refresh::a_redirect_is_never_followed", redirects),
        trial("refresh::a_timeout_is_unavailable_and_costs_no_token", timeout),
        trial("refresh::one_users_refusal_stops_nobody_else", one_user),
    ]
}

/// What a provider may answer instead of a token, and what the caller is told.
fn table() -> Vec<(&'static str, ScriptedAnswer, Reason, Option<&'static str>)> {
    use Reason::{ProviderError, ProviderMisconfigured, ProviderUnavailable};

    let oauth = |status, code: &str| json(status, &format!(r#"{{"error":"{code}"}}"#));
    vec![
        ("500", html(500), ProviderUnavailable, None),
        ("502", html(502), ProviderUnavailable, None),
        ("503", json(503, "{}"), ProviderUnavailable, None),
        // A 5xx says nothing certain, whatever its body says.
        ("500 invalid_grant", oauth(500, "invalid_grant"), ProviderUnavailable, None),
        ("429", json(429, "{}"), ProviderUnavailable, None),
        (
            "invalid_client",
            oauth(401, "invalid_client"),
            ProviderMisconfigured,
            Some("invalid_client"),
        ),
        ("401", html(401), ProviderMisconfigured, Some("invalid_client")),
        ("invalid_request", oauth(400, "invalid_request"), ProviderError, Some("invalid_request")),
        ("invalid_scope", oauth(400, "invalid_scope"), ProviderError, Some("invalid_scope")),
        ("their own", oauth(403, "org_suspended"), ProviderError, Some("org_suspended")),
        ("404", html(404), ProviderError, Some("invalid_response")),
        ("403 without a word", json(403, ""), ProviderError, Some("invalid_response")),
    ]
}

async fn refusals() {
    for (name, answer, expected, error) in table() {
        let world = World::start().await;
        let old = world.granted("u1").await;
        world.advance(LIFETIME);
        let unavailable = expected == Reason::ProviderUnavailable;
        let attempts = 1 + usize::from(answer.status >= 500);
        script_refresh(&world, answer);
        let refusal = get(&world, "u1").await.expect_err(name);
        assert_eq!(refusal.reason, expected, "{name}");
        assert_eq!(refusal.metadata["provider"], "acme", "{name}");
        assert_eq!(refusal.metadata.get("error").map(String::as_str), error, "{name}");
        assert_eq!(refusal.retry_after.is_some(), unavailable, "{name}");
        assert_eq!(state(&world, "u1").await, proto::GrantState::Active, "{name}");

        world.advance(BACKOFF);
        let new = get(&world, "u1").await.expect(name).access_token;
        assert!(new != old && world.provider.is_living(&new), "{name}");
        let ledger = world.provider.ledger();
        // The same refresh token, for the first call never took effect.
        let sent = attempts + 1;
        assert_eq!(
            (ledger.refreshes, ledger.most_refreshes_of_one_token()),
            (sent, sent),
            "{name}"
        );
        assert_eq!(ledger.reuse_detections, 0, "{name}");
    }
}

async fn old_token() {
    let faults = table().into_iter().map(|(name, answer, ..)| (name, answer));
    let odd = [("HTML", html(200)), ("empty", json(200, "")), ("302", html(302))];
    for (name, answer) in faults.chain(odd) {
        let world = World::start().await;
        let old = world.granted("u1").await;
        world.advance(LATE);
        let attempts = 1 + usize::from(answer.status >= 500);
        script_refresh(&world, answer);
        let token = get_for(&world, "u1", HALF).await.expect(name);
        assert_eq!(token.access_token, old, "{name}");
        assert_eq!(world.provider.ledger().refreshes, attempts, "{name}");
        assert!(world.provider.is_living(&old), "{name}");

        world.advance(BACKOFF);
        let new = get_for(&world, "u1", HALF).await.expect(name).access_token;
        assert!(new != old && world.provider.is_living(&new), "{name}");
    }
}

async fn retry_after() {
    for status in [429, 503] {
        let world = World::start().await;
        let old = world.granted("u1").await;
        world.advance(LATE);
        let busy = || with_header(json(status, "{}"), "retry-after", "120");
        script(&world, [busy()]);
        // Where a token lives, nobody is kept waiting.
        assert_eq!(get_for(&world, "u1", HALF).await.expect("the old one").access_token, old);
        let wait = |result: Result<proto::Token, Refusal>| {
            let refusal = result.expect_err("a refusal");
            assert_eq!(refusal.reason, Reason::ProviderUnavailable);
            refusal.retry_after.expect("when to come back")
        };
        assert_eq!(wait(refresh(&world, "u1", "").await), Duration::from_secs(120));
        world.advance(LIFETIME - LATE);
        assert_eq!(wait(get(&world, "u1").await), Duration::from_secs(19));
        world.advance(Duration::from_millis(18_999));
        assert_eq!(wait(get(&world, "u1").await), Duration::from_millis(1));
        assert_eq!(wait(refresh(&world, "u1", "").await), Duration::from_millis(1));
        assert_eq!(world.provider.ledger().refreshes, 1, "nobody called before the time");

        // The whole of it again, told to whoever made the call.
        world.advance(Duration::from_millis(1));
        script(&world, [busy()]);
        assert_eq!(wait(get(&world, "u1").await), Duration::from_secs(120));
        world.advance(Duration::from_secs(120));
        let new = get(&world, "u1").await.expect("a token").access_token;
        assert!(world.provider.is_living(&new));
        assert_eq!(world.provider.ledger().refreshes, 3);
    }
}

async fn absurd_retry_after() {
    let world = World::start().await;
    world.granted("u1").await;
    world.advance(LIFETIME);
    script(&world, [with_header(json(429, "{}"), "retry-after", "99999999999")]);
    let refusal = get(&world, "u1").await.expect_err("a refusal");
    assert_eq!(refusal.retry_after, Some(Duration::from_secs(3600)));
    world.advance(Duration::from_secs(3600));
    get(&world, "u1").await.expect("a token");
}

async fn invalid_grant() {
    let world = World::start().await;
    let old = world.granted("u1").await;
    world.advance(LATE);
    script(&world, [json(400, r#"{"error":"invalid_grant"}"#)]);
    assert_eq!(reason(refresh(&world, "u1", "").await), Reason::ReauthorizationRequired);
    assert_eq!(state(&world, "u1").await, proto::GrantState::ReauthorizationRequired);
    assert_eq!(get_for(&world, "u1", HALF).await.expect("the old one").access_token, old);
    assert_eq!(reason(refresh(&world, "u1", "").await), Reason::ReauthorizationRequired);
    world.advance(LIFETIME - LATE);
    assert_eq!(reason(get(&world, "u1").await), Reason::ReauthorizationRequired);
    // A dead token is sent once, and never again.
    assert_eq!(world.provider.ledger().refreshes, 1);

    let new = world.granted("u1").await;
    assert_ne!(new, old);
    assert_eq!(state(&world, "u1").await, proto::GrantState::Active);
    world.advance(LIFETIME);
    get(&world, "u1").await.expect("a token");
}

async fn invalid_grant_in_2xx() {
    let world = World::start().await;
    world.granted("u1").await;
    world.advance(LIFETIME);
    script(&world, [json(200, r#"{"error":"invalid_grant"}"#)]);
    assert_eq!(reason(get(&world, "u1").await), Reason::ReauthorizationRequired);
    assert_eq!(state(&world, "u1").await, proto::GrantState::ReauthorizationRequired);
    assert_eq!(reason(get(&world, "u1").await), Reason::ReauthorizationRequired);
    assert_eq!(world.provider.ledger().refreshes, 1);
}

async fn redirects() {
    let target =
        Raw::answering(|_| b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".to_vec()).await;
    for status in [301, 302, 303, 307, 308] {
        let world = World::start().await;
        world.granted("u1").await;
        world.advance(LIFETIME);
        script(&world, [with_header(html(status), "location", &target.url)]);
        let refusal = get(&world, "u1").await.expect_err("a refusal");
        assert_eq!(refusal.reason, Reason::ProviderError, "{status}");
        assert_eq!(refusal.metadata["error"], "invalid_response", "{status}");
        world.advance(BACKOFF);
        let new = get(&world, "u1").await.expect("a token").access_token;
        assert!(world.provider.is_living(&new), "{status}");
        assert_eq!(world.provider.ledger().refreshes, 2, "{status}");
    }
    assert_eq!(target.connections(), 0);
}

async fn timeout() {
    let world = World::with(|setup| setup.provider_timeout = Duration::from_secs(1)).await;
    world.granted("u1").await;
    world.advance(LIFETIME);
    let held = world.provider.pause_token_endpoint();
    let refusal = get(&world, "u1").await.expect_err("a refusal");
    assert_eq!(refusal.reason, Reason::ProviderUnavailable);
    assert!(refusal.retry_after.is_some());
    assert_eq!(state(&world, "u1").await, proto::GrantState::Active);
    drop(held);
    world.advance(BACKOFF);
    let new = get(&world, "u1").await.expect("a token").access_token;
    assert!(world.provider.is_living(&new));
    assert_eq!(world.provider.ledger().reuse_detections, 0);
}

async fn one_user() {
    let world = World::start().await;
    world.granted("u1").await;
    world.granted("u2").await;
    world.advance(LIFETIME);
    let busy = with_header(json(429, "{}"), "retry-after", "60");
    script(&world, [busy, json(401, r#"{"error":"invalid_client"}"#)]);
    assert_eq!(reason(get(&world, "u1").await), Reason::ProviderUnavailable);
    // One user's 401 is no verdict on the client either.
    assert_eq!(reason(get(&world, "u2").await), Reason::ProviderMisconfigured);
    let new = world.granted("u3").await;
    assert!(world.provider.is_living(&new));
    world.advance(BACKOFF);
    get(&world, "u2").await.expect("a token");
    assert_eq!(reason(get(&world, "u1").await), Reason::ProviderUnavailable);
    assert_eq!(world.provider.ledger().refreshes, 3);
}
