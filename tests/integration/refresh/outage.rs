//! A provider that is down, busy, or refuses the broker itself: who is served, and who is left alone.

use std::time::Duration;

use libtest_mimic::Trial;
use token_broker_client::{Reason, proto};

use super::{LIFETIME, get, get_for, html, json, reason, script, state, with_header};
use crate::harness::soak;
use crate::harness::{World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("refresh::a_provider_that_is_down_is_asked_every_ten_seconds", down),
        trial("refresh::invalid_client_stops_everybody_and_touches_no_grant", invalid_client),
        trial("refresh::one_users_401_stops_nobody_else", one_401),
        trial("refresh::a_provider_that_is_busy_is_left_alone_for_as_long_as_it_asks", busy),
        trial("refresh::a_second_attempt_succeeds_where_the_first_was_lost", second_attempt),
    ]
}

const SECOND: Duration = Duration::from_secs(1);

/// The longest that a call to the provider takes. It counts in real time, which the tests' clock
/// does not know of: what ends some time after a call may end later by this.
const CALL: Duration = Duration::from_secs(10);

async fn granted(world: &World, count: usize) -> Vec<String> {
    let mut subjects = Vec::new();
    for number in 0..count {
        let subject = format!("u{number}");
        world.granted(&subject).await;
        subjects.push(subject);
    }
    subjects
}

async fn down() {
    const GRANTS: usize = 20;
    let seconds = soak::size(60, 600);

    let lifetime = Duration::from_secs(700);
    let world = World::with(|setup| setup.token_lifetime = lifetime).await;
    let subjects = granted(&world, GRANTS).await;
    // Half of them have expired; the others' tokens live for the whole outage.
    world.advance(lifetime + SECOND);
    let (dead, living) = subjects.split_at(GRANTS / 2);
    for subject in living {
        get(&world, subject).await.expect("a token");
    }
    let before = world.provider.ledger().refreshes;
    script(&world, vec![html(503); 1000]);
    for second in 0..seconds {
        for subject in dead {
            assert_eq!(reason(get(&world, subject).await), Reason::ProviderUnavailable);
        }
        for subject in living {
            // Even those that ask for more than is left.
            get_for(&world, subject, 3600).await.unwrap_or_else(|e| panic!("{second}: {e:?}"));
        }
        world.advance(SECOND);
    }
    let calls = world.provider.ledger().refreshes - before;
    // Two attempts for each of the three that found out, and then one call every ten seconds.
    assert!(calls <= 6 + seconds / 10, "{calls} calls");
    for subject in &subjects {
        assert_eq!(state(&world, subject).await, proto::GrantState::Active);
    }
    world.provider.clear_scripts();
    // Longer than any pause of a single grant.
    world.advance(Duration::from_secs(301));
    for subject in dead {
        get(&world, subject).await.expect("the provider is back");
    }
}

async fn invalid_client() {
    let world = World::start().await;
    let subjects = granted(&world, 5).await;
    world.advance(LIFETIME);
    script(&world, [json(401, r#"{"error":"invalid_client"}"#)]);
    for subject in &subjects {
        assert_eq!(reason(get(&world, subject).await), Reason::ProviderMisconfigured);
        assert_eq!(state(&world, subject).await, proto::GrantState::Active);
    }
    assert_eq!(world.provider.ledger().refreshes, 1, "one finds out for all");
    world.advance(10 * SECOND + CALL);
    // The operator has mended it, and nobody waits for a pause of their own.
    for subject in &subjects {
        get(&world, subject).await.expect("a token");
    }
}

async fn one_401() {
    let world = World::start().await;
    let subjects = granted(&world, 3).await;
    world.advance(LIFETIME);
    for _ in 0..5 {
        script(&world, [html(401)]);
        assert_eq!(reason(get(&world, &subjects[0]).await), Reason::ProviderMisconfigured);
        // Past its own pause, which grows.
        world.advance(Duration::from_secs(64));
    }
    for subject in &subjects[1..] {
        get(&world, subject).await.expect("a token");
    }
}

async fn busy() {
    let world = World::start().await;
    let subjects = granted(&world, 5).await;
    world.advance(LIFETIME);
    let wait = || with_header(json(429, "{}"), "retry-after", "120");
    script(&world, [wait(), wait(), wait()]);
    for subject in &subjects {
        let refusal = get(&world, subject).await.expect_err("busy");
        assert_eq!(refusal.reason, Reason::ProviderUnavailable);
        assert!(refusal.retry_after.is_some_and(|wait| wait <= 120 * SECOND + CALL), "{refusal:?}");
    }
    // Three were told to wait; then nobody asked.
    assert_eq!(world.provider.ledger().refreshes, 3);
    world.advance(119 * SECOND);
    for subject in &subjects {
        get(&world, subject).await.expect_err("still busy");
    }
    assert_eq!(world.provider.ledger().refreshes, 3);
    world.advance(SECOND + CALL);
    for subject in &subjects {
        get(&world, subject).await.expect("a token");
    }
}

async fn second_attempt() {
    let world = World::start().await;
    granted(&world, 1).await;
    world.advance(LIFETIME);
    // It never took effect, and only its answer says that something is wrong.
    script(&world, [html(502)]);
    let token = get(&world, "u0").await.expect("a token").access_token;
    assert!(world.provider.is_living(&token));
    let ledger = world.provider.ledger();
    assert_eq!((ledger.refreshes, ledger.reuse_detections), (2, 0));
}
