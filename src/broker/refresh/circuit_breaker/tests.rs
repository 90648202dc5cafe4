use super::*;
use crate::provider::OAuthError;

const DOWN: ProviderError =
    ProviderError::ServerError { status: 503, retry_after: None, error: None };

const START: Timestamp = Timestamp::from_millis(1_000_000);

const HEALTHY: u8 = 100;

fn grant(number: u8) -> Id {
    Id::from_bytes([number; 16])
}

fn namespace(name: &str) -> Name {
    Name::parse(name).expect("a name")
}

fn refused_client() -> ProviderError {
    ProviderError::RefusesBroker { status: 401, error: OAuthError::new("invalid_client") }
}

fn fails(breaker: &CircuitBreaker, number: u8, error: &ProviderError, now: Timestamp) {
    breaker.note(grant(number), Some(error), now);
}

#[test]
fn a_provider_that_is_down_is_asked_every_ten_seconds() {
    let (breaker, now) = (CircuitBreaker::default(), START);
    for number in [1, 2, 3] {
        assert!(breaker.check(grant(HEALTHY), now).is_ok());
        fails(&breaker, number, &DOWN, now);
    }
    let stopped = breaker.check(grant(HEALTHY), now).expect_err("open");
    assert_eq!(stopped.retry_after, PROBE);
    let later = now + PROBE;
    assert!(breaker.take_probe(grant(HEALTHY), later).expect("the probe").is_some());
    assert!(breaker.take_probe(grant(HEALTHY), later).is_err(), "one at a time");
    fails(&breaker, HEALTHY, &DOWN, later);
    let soon = later + PROBE - Duration::from_millis(1);
    assert!(breaker.check(grant(HEALTHY), soon).is_err());
    assert!(breaker.take_probe(grant(4), later + PROBE).expect("the next one").is_some());
    breaker.note(grant(4), None, later + PROBE);
    assert!(breaker.check(grant(HEALTHY), later + PROBE).is_ok());
}

#[test]
fn one_grant_never_stops_the_others() {
    let (breaker, now) = (CircuitBreaker::default(), START);
    let no_answer = ProviderError::NoResponse("timed out".to_owned());
    let busy = ProviderError::RateLimited { retry_after: None };
    for error in [&DOWN, &no_answer, &busy] {
        for _ in 0..10 {
            fails(&breaker, 1, error, now);
            fails(&breaker, 2, error, now);
            assert!(breaker.check(grant(HEALTHY), now).is_ok(), "{error}");
        }
    }
}

#[test]
fn refusals_of_grants_never_stop_the_others() {
    let (breaker, now) = (CircuitBreaker::default(), START);
    let error = OAuthError::new("x");
    for refusal in [
        ProviderError::Unauthorized,
        ProviderError::UnexpectedResponse("status 403".to_owned()),
        ProviderError::Refused { status: 400, error: error.clone() },
        ProviderError::DeadGrant { status: 400, error: error.clone() },
        ProviderError::ServerError { status: 500, retry_after: None, error: Some(error) },
    ] {
        for number in 0..10 {
            fails(&breaker, number, &refusal, now);
            assert!(breaker.check(grant(HEALTHY), now).is_ok(), "{refusal}");
        }
    }
}

#[test]
fn grants_that_fail_while_others_are_well_do_not_count() {
    let (breaker, now) = (CircuitBreaker::default(), START);
    for round in 0..10 {
        for number in [1, 2] {
            fails(&breaker, number, &DOWN, now);
        }
        breaker.note(grant(HEALTHY), None, now);
        // Known by now, so that they and a third one are too few.
        if round > 0 {
            fails(&breaker, 1, &DOWN, now);
            fails(&breaker, 2, &DOWN, now);
            fails(&breaker, 3, &DOWN, now);
            assert!(breaker.check(grant(HEALTHY), now).is_ok(), "{round}");
        }
    }
    assert!(breaker.others_are_well(grant(1), now + Duration::ZERO - Duration::from_secs(1)));
    assert!(!breaker.others_are_well(grant(HEALTHY), START));
}

#[test]
fn a_grant_that_failed_is_no_probe_while_another_waits() {
    let (breaker, now) = (CircuitBreaker::default(), START);
    for number in [1, 2, 3] {
        fails(&breaker, number, &DOWN, now);
    }
    assert!(breaker.check(grant(HEALTHY), now).is_err());
    let later = now + PROBE;
    assert!(breaker.take_probe(grant(1), later).is_err(), "another one waits");
    assert!(breaker.take_probe(grant(HEALTHY), later).expect("the probe").is_some());
    fails(&breaker, HEALTHY, &DOWN, later);
    // The other one does not come back.
    let last = later + PROBE + PROBE;
    assert!(breaker.take_probe(grant(1), last).expect("the probe").is_some());
}

#[test]
fn the_brokers_own_credentials_are_everybodys() {
    let (breaker, now) = (CircuitBreaker::default(), START);
    fails(&breaker, 1, &refused_client(), now);
    assert!(breaker.check(grant(HEALTHY), now).is_err());
}

#[test]
fn a_pause_that_the_provider_asks_for_is_honoured() {
    let (breaker, now) = (CircuitBreaker::default(), START);
    let wait = Duration::from_secs(42);
    let busy = ProviderError::RateLimited { retry_after: Some(wait) };
    // It may be about one user, who is made to wait elsewhere.
    for number in [1, 2, 1, 2] {
        fails(&breaker, number, &busy, now);
        assert!(breaker.check(grant(HEALTHY), now).is_ok());
    }
    fails(&breaker, 3, &busy, now);
    // One that was under way already does not shorten it.
    fails(&breaker, 2, &ProviderError::RateLimited { retry_after: None }, now);
    let stopped = breaker.check(grant(HEALTHY), now).expect_err("open");
    assert_eq!(stopped.retry_after, wait);
    assert!(breaker.check(grant(HEALTHY), now + wait).is_ok());
}

#[tokio::test]
async fn a_probe_that_is_not_made_is_left_to_the_next() {
    let breaker = CircuitBreaker::default();
    fails(&breaker, 1, &refused_client(), START);
    let at = START + PROBE;
    drop(breaker.admit(grant(2), &namespace("a"), || at).await.expect("the probe"));
    let mut again = breaker.admit(grant(2), &namespace("a"), || at).await.expect("the probe again");
    again.note(grant(2), None, at);
    assert!(breaker.check(grant(3), at).is_ok());
}

#[tokio::test]
async fn one_namespace_leaves_places_to_others() {
    let breaker = CircuitBreaker::default();
    let (greedy, modest) = (namespace("greedy"), namespace("modest"));
    let mut permits = Vec::new();
    for _ in 0..AT_ONCE {
        permits.push(breaker.admit(grant(1), &greedy, || START).await.expect("a permit"));
    }
    let waiting = (0..100).map(|_| breaker.admit(grant(1), &greedy, || START));
    let mut waiting = Box::pin(futures::future::join_all(waiting));
    assert!(futures::poll!(&mut waiting).is_pending());
    let mut other = Box::pin(breaker.admit(grant(2), &modest, || START));
    assert!(futures::poll!(&mut other).is_ready(), "it does not wait behind the others");
}
