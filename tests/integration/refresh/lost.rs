//! The provider has acted, and its answer is lost. It rotates without any grace, so that the next
//! try is a reuse that ends the family: that is told, and nothing wrong is ever served.

use std::time::Duration;

use libtest_mimic::Trial;
use token_broker::demo::provider::ScriptedAnswer;
use token_broker_client::{Reason, proto};

use super::{BACKOFF, LIFETIME, get, html, json, reason, refresh, script, state};
use crate::harness::{World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("refresh::a_lost_answer_is_told_and_serves_nothing_wrong", lost),
        trial("refresh::an_answer_that_came_too_late_serves_nothing_wrong", too_late),
    ]
}

async fn flagged_and_silent(world: &World, old: &str, name: &str) {
    assert_eq!(reason(get(world, "u1").await), Reason::ReauthorizationRequired, "{name}");
    assert_eq!(reason(refresh(world, "u1", "").await), Reason::ReauthorizationRequired, "{name}");
    assert_eq!(state(world, "u1").await, proto::GrantState::ReauthorizationRequired, "{name}");
    assert!(!world.provider.is_living(old));
}

async fn lost() {
    let oauth = |status, code: &str| json(status, &format!(r#"{{"error":"{code}"}}"#));
    for (name, answer, first) in [
        // A second attempt at once finds the refresh token used.
        ("500", html(500), Reason::ReauthorizationRequired),
        ("503", json(503, "{}"), Reason::ReauthorizationRequired),
        ("429", json(429, "{}"), Reason::ProviderUnavailable),
        ("302", html(302), Reason::ProviderError),
        ("404", html(404), Reason::ProviderError),
        ("200 HTML", html(200), Reason::ProviderError),
        ("200 without a body", json(200, ""), Reason::ProviderError),
        ("temporarily_unavailable", oauth(400, "temporarily_unavailable"), Reason::ProviderError),
        ("invalid_client", oauth(401, "invalid_client"), Reason::ProviderMisconfigured),
        ("invalid_grant", oauth(400, "invalid_grant"), Reason::ReauthorizationRequired),
    ] {
        let world = World::start().await;
        let old = world.granted("u1").await;
        world.advance(LIFETIME);
        script(&world, [ScriptedAnswer { after_processing: true, ..answer }]);
        assert_eq!(reason(get(&world, "u1").await), first, "{name}");
        assert_eq!(world.provider.ledger().tokens_issued, 2, "{name}: it took effect");
        let dead = first == Reason::ReauthorizationRequired;
        let expected = if dead {
            proto::GrantState::ReauthorizationRequired
        } else {
            proto::GrantState::Active
        };
        assert_eq!(state(&world, "u1").await, expected, "{name}");

        world.advance(BACKOFF);
        flagged_and_silent(&world, &old, name).await;
        let ledger = world.provider.ledger();
        let sent = if name == "invalid_grant" { 1 } else { 2 };
        assert_eq!((ledger.refreshes, ledger.reuse_detections), (sent, sent - 1), "{name}");
        // The user comes back, and all is well.
        let new = world.granted("u1").await;
        assert!(world.provider.is_living(&new), "{name}");
    }
}

async fn too_late() {
    let world = World::with(|setup| setup.provider_timeout = Duration::from_secs(1)).await;
    let old = world.granted("u1").await;
    world.advance(LIFETIME);
    let late = ScriptedAnswer {
        after_processing: true,
        delay: Some(Duration::from_secs(60)),
        ..json(200, r#"{"access_token":"late"}"#)
    };
    script(&world, [late]);
    assert_eq!(reason(get(&world, "u1").await), Reason::ReauthorizationRequired);
    world.advance(BACKOFF);
    flagged_and_silent(&world, &old, "too late").await;
    assert_eq!(world.provider.ledger().reuse_detections, 1);
}
