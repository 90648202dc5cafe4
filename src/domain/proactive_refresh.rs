//! Decides when a grant is refreshed without a caller: before its access token expires if the grant is in use, and
//! before an unused refresh token expires.

use std::time::Duration;

use super::time::Timestamp;

/// The least time before an access token's end at which it is renewed, where its lifetime allows.
const LEAST_LEAD: Duration = Duration::from_secs(5 * 60);

/// The shortest time without use after which a refresh token ends. Where less is left, it has a fixed end.
const SHORTEST_IDLE: Duration = Duration::from_secs(60);

/// The facts that decide.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// When the access token was last obtained.
    pub issued_at: Timestamp,
    /// When it ends. `None`: the provider gave no lifetime.
    pub expires_at: Option<Timestamp>,
    /// When it was last issued, as last recorded.
    pub last_used_at: Option<Timestamp>,
    /// After how long without use the refresh token ends, as the configuration says. `None`: never.
    pub idle: Option<Duration>,
    /// When the refresh token ends, as the provider says. `None`: it does not say.
    pub refresh_expires_at: Option<Timestamp>,
}

/// The next action for a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Refresh.
    Now,
    /// Look again then.
    At(Timestamp),
    /// Nothing until a bot uses the grant.
    Never,
}

/// The time before its end at which an access token is renewed: a tenth of its lifetime, but at least five
/// minutes, but at most half of the lifetime. A tenth of that is the time over which renewals are
/// spread.
fn lead(issued_at: Timestamp, expires_at: Timestamp) -> Duration {
    let lifetime = expires_at.since(issued_at);
    (lifetime / 10).max(LEAST_LEAD).min(lifetime / 2)
}

/// When a grant is first looked at after a refresh; `share`, from 0 to 1, spreads those that were
/// refreshed together. Grants without a lifetime are looked at at once, for the sake of their refresh
/// tokens.
#[must_use]
pub fn first_look(
    issued_at: Timestamp,
    expires_at: Option<Timestamp>,
    refresh_expires_at: Option<Timestamp>,
    share: f64,
) -> Timestamp {
    let renewal = expires_at.map_or(issued_at, |end| {
        let lead = lead(issued_at, end);
        end - lead - (lead / 10).mul_f64(share)
    });
    // The refresh token may end before the access token.
    let keep_alive = refresh_expires_at.and_then(|ends| keep_alive(issued_at, ends));
    keep_alive.map_or(renewal, |keep_alive| keep_alive.min(renewal))
}

/// When a refresh token is used so that it does not end unused: after two thirds of its time. The rest is left
/// for outages. `None` if it ends so soon that its end is not put off by its use.
fn keep_alive(issued_at: Timestamp, ends: Timestamp) -> Option<Timestamp> {
    let lifetime = ends.since(issued_at);
    (lifetime >= SHORTEST_IDLE).then(|| issued_at + (lifetime - lifetime / 3))
}

/// Decides. An access token that was not used since it was obtained is not renewed: the next caller renews it.
#[must_use]
pub fn due(facts: Facts, now: Timestamp) -> Due {
    let used = facts.last_used_at.is_some_and(|at| at >= facts.issued_at);
    let ahead = facts
        .expires_at
        .filter(|_| used)
        .map(|end| end - lead(facts.issued_at, end) - lead(facts.issued_at, end) / 10);
    let idle = facts.idle.map(|idle| facts.issued_at + idle);
    let ends = facts.refresh_expires_at.into_iter().chain(idle).min();
    let keep_alive = ends.and_then(|ends| keep_alive(facts.issued_at, ends));
    match ahead.into_iter().chain(keep_alive).min() {
        None => Due::Never,
        Some(at) if at <= now => Due::Now,
        Some(at) => Due::At(at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const START: Timestamp = Timestamp::from_millis(1_000_000);

    fn facts(lifetime: Option<Duration>, used: bool, idle: Option<Duration>) -> Facts {
        Facts {
            issued_at: START,
            expires_at: lifetime.map(|lifetime| START + lifetime),
            last_used_at: used.then_some(START),
            idle,
            refresh_expires_at: None,
        }
    }

    #[test]
    fn the_lead_is_a_tenth_within_bounds() {
        for (lifetime, expected) in [
            (24 * HOUR, 24 * HOUR / 10),
            (HOUR, HOUR / 10),
            (HOUR / 2, LEAST_LEAD),
            (Duration::from_secs(60), Duration::from_secs(30)),
            (Duration::ZERO, Duration::ZERO),
        ] {
            assert_eq!(lead(START, START + lifetime), expected, "{lifetime:?}");
        }
    }

    #[test]
    fn a_used_grant_is_refreshed_ahead_of_its_end() {
        let facts = facts(Some(HOUR), true, None);
        // Six minutes before the end, and up to 36 s earlier.
        let opens = START + HOUR - Duration::from_secs(6 * 60 + 36);
        assert_eq!(due(facts, START), Due::At(opens));
        assert_eq!(due(facts, opens), Due::Now);
        for share in [0.0, 0.5, 1.0] {
            let look = first_look(START, facts.expires_at, None, share);
            assert_eq!(due(facts, look), Due::Now, "{share}");
            assert!(look < START + HOUR - Duration::from_secs(6 * 60 - 1));
        }
    }

    #[test]
    fn an_unused_grant_is_let_go() {
        assert_eq!(due(facts(Some(HOUR), false, None), START + HOUR), Due::Never);
        // It was used before it was refreshed, and not since.
        let mut before = facts(Some(HOUR), true, None);
        before.last_used_at = Some(START - Duration::from_millis(1));
        assert_eq!(due(before, START + HOUR), Due::Never);
        assert_eq!(due(facts(None, true, None), START + 1000 * HOUR), Due::Never);
    }

    #[test]
    fn a_refresh_token_with_an_idle_limit_is_kept_alive() {
        let idle = Some(90 * 24 * HOUR);
        let keep = START + 60 * 24 * HOUR;
        assert_eq!(due(facts(Some(HOUR), false, idle), START + HOUR), Due::At(keep));
        assert_eq!(due(facts(None, false, idle), START), Due::At(keep));
        assert_eq!(due(facts(None, false, idle), keep), Due::Now);
        // Whichever comes first.
        assert!(matches!(due(facts(Some(HOUR), true, idle), START), Due::At(at) if at < keep));
    }

    #[test]
    fn a_refresh_token_with_a_stated_end_is_kept_alive() {
        let minutes = |number: u64| Duration::from_secs(60 * number);
        // Keycloak: the access token lives for 5 minutes, the refresh token for 30.
        let mut keycloak = facts(Some(minutes(5)), false, None);
        keycloak.refresh_expires_at = Some(START + minutes(30));
        assert_eq!(due(keycloak, START), Due::At(START + minutes(20)));
        assert_eq!(due(keycloak, START + minutes(20)), Due::Now);
        // A fixed end comes nearer with each refresh, and is not put off.
        keycloak.refresh_expires_at = Some(START + Duration::from_secs(59));
        assert_eq!(due(keycloak, START), Due::Never);
        // One that ends before the access token is looked at in time.
        let look = |refresh| first_look(START, Some(START + HOUR), refresh, 0.0);
        assert_eq!(look(Some(START + minutes(1))), START + Duration::from_secs(40));
        assert_eq!(look(Some(START + 90 * HOUR)), look(None));
    }
}
