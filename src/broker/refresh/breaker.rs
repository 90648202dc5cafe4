//! What keeps a provider that is down, or that refuses the broker itself, from being called for every
//! grant: on this replica, and without touching any grant. It goes by the database's clock.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::super::boot_instant::BootInstant;
use crate::domain::id::Id;
use crate::domain::time::Timestamp;
use crate::provider::ProviderError;

/// How many failures in a row, of whichever grants, say that the provider is down.
const FAILURES: u32 = 3;

/// How many grants that are refused alike, or told to wait, say that it is not about one user.
const GRANTS: usize = 3;

/// How often a provider that is down is asked whether it is back.
const PROBE: Duration = Duration::from_secs(10);

/// How long after the time for a probe a breaker that nobody has asked is not called open any more.
const FORGOTTEN: Duration = Duration::from_secs(30);

/// How many refreshes of one provider are under way at once, so that a storm stays polite.
const AT_ONCE: usize = 32;

/// How many of them may be refreshes that no caller waits for.
const BACKGROUND: usize = AT_ONCE / 2;

/// How many recoveries of refreshes of unknown outcome are under way at once: places that refreshes ahead
/// of time cannot take.
const RECOVERY: usize = AT_ONCE / 4;

/// The breaker of one provider.
#[derive(Debug)]
pub(in super::super) struct Breaker {
    state: Mutex<State>,
    places: Arc<Semaphore>,
    background: Arc<Semaphore>,
    recovery: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct State {
    /// Why nothing is sent, and until when.
    open: Option<(ProviderError, Timestamp)>,
    /// When that was found out last, and for how long nothing is sent.
    opened: Option<(BootInstant, Duration)>,
    failures: u32,
    /// Who was refused with a configuration error, and with which.
    refused: HashSet<Id>,
    refusal: Option<String>,
    /// Who was told to wait.
    busy: HashSet<Id>,
}

/// Why nothing is sent now.
#[derive(Debug, Clone)]
pub(super) struct Stopped {
    /// What the provider said last.
    pub(super) error: ProviderError,
    /// When it is asked again.
    pub(super) retry_after: Duration,
}

/// The right to one call. What comes of it is to be noted.
#[derive(Debug)]
pub(super) struct Permit<'a> {
    breaker: &'a Breaker,
    /// When the breaker would have let somebody through, had this not been the probe.
    probe: Option<Timestamp>,
    noted: bool,
    _place: OwnedSemaphorePermit,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            places: Arc::new(Semaphore::new(AT_ONCE)),
            background: Arc::new(Semaphore::new(BACKGROUND)),
            recovery: Arc::new(Semaphore::new(RECOVERY)),
        }
    }
}

impl Breaker {
    /// Waits for a place, and lets the call through unless it would fail for certain. One call in
    /// ten seconds finds out whether it still would.
    ///
    /// # Errors
    ///
    /// [`Stopped`].
    pub(super) async fn admit(&self, now: impl Fn() -> Timestamp) -> Result<Permit<'_>, Stopped> {
        // Who would be stopped need not wait.
        self.check(now())?;
        let place = Arc::clone(&self.places).acquire_owned().await.expect("it is never closed");
        let probe = self.take_probe(now())?;
        Ok(Permit { breaker: self, probe, noted: false, _place: place })
    }

    /// A place for a refresh that no caller waits for, if one is free.
    pub(in super::super) fn background_place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.background).try_acquire_owned().ok()
    }

    /// A place for the recovery of a refresh, if one is free.
    pub(in super::super) fn recovery_place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.recovery).try_acquire_owned().ok()
    }

    /// Returns `true` if such a place is free.
    pub(in super::super) fn can_recover(&self) -> bool {
        self.recovery.available_permits() > 0
    }

    /// Waits for a place for a refresh that no caller waits for.
    pub(in super::super) async fn next_background_place(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.background).acquire_owned().await.expect("it is never closed")
    }

    fn check(&self, now: Timestamp) -> Result<(), Stopped> {
        stopped(&self.lock(), now).map_or(Ok(()), Err)
    }

    fn take_probe(&self, now: Timestamp) -> Result<Option<Timestamp>, Stopped> {
        let mut state = self.lock();
        if let Some(stopped) = stopped(&state, now) {
            return Err(stopped);
        }
        Ok(state.open.as_mut().map(|(_, until)| std::mem::replace(until, now + PROBE)))
    }

    /// Why calls are stopped, save those that find out whether they still need be. Where nobody has asked
    /// for a while, it is not known any more.
    pub(in super::super) fn reason(&self) -> Option<&'static str> {
        let state = self.lock();
        let (error, _) = state.open.as_ref()?;
        state.opened.filter(|(at, wait)| at.elapsed() < *wait + FORGOTTEN)?;
        Some(match kind(error) {
            Kind::Down | Kind::OfTheGrant => "down",
            Kind::Busy(_) => "busy",
            Kind::RefusesTheBroker | Kind::MayRefuseTheBroker(_) => "refuses",
        })
    }

    /// For how long nothing is sent.
    pub(in super::super) fn stopped_for(&self, now: Timestamp) -> Option<Duration> {
        stopped(&self.lock(), now).map(|stopped| stopped.retry_after)
    }

    fn note(&self, grant: Id, error: Option<&ProviderError>, now: Timestamp) {
        let mut state = self.lock();
        match error.map(kind) {
            // It works, whatever it thinks of this grant.
            None | Some(Kind::OfTheGrant) => *state = State::default(),
            Some(Kind::Down) => {
                state.failures += 1;
                if state.failures >= FAILURES || state.open.is_some() {
                    open(&mut state, error, now, PROBE);
                }
            }
            Some(Kind::Busy(wait)) => {
                state.failures = 0;
                state.busy.insert(grant);
                if state.busy.len() >= GRANTS || state.open.is_some() {
                    open(&mut state, error, now, wait);
                }
            }
            Some(Kind::RefusesTheBroker) => open(&mut state, error, now, PROBE),
            Some(Kind::MayRefuseTheBroker(code)) => {
                // The provider answers, after all.
                state.failures = 0;
                if state.refusal.as_ref() != Some(&code) {
                    state.refused.clear();
                    state.refusal = Some(code);
                }
                state.refused.insert(grant);
                if state.refused.len() >= GRANTS {
                    open(&mut state, error, now, PROBE);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stopped(state: &State, now: Timestamp) -> Option<Stopped> {
    let (error, until) = state.open.as_ref()?;
    let retry_after = until.since(now);
    (!retry_after.is_zero()).then(|| Stopped { error: error.clone(), retry_after })
}

fn open(state: &mut State, error: Option<&ProviderError>, now: Timestamp, wait: Duration) {
    let Some(error) = error else { return };
    if state.open.is_none() {
        tracing::warn!(%error, "calls to the provider are stopped");
    }
    // A longer wait that the provider asked for stays.
    let until = now + wait;
    state.opened = Some((BootInstant::now(), wait));
    let until = state.open.as_ref().map_or(until, |(_, before)| until.max(*before));
    state.open = Some((error.clone(), until));
}

/// What a failure says about the provider.
enum Kind {
    OfTheGrant,
    Down,
    Busy(Duration),
    RefusesTheBroker,
    /// With the error code.
    MayRefuseTheBroker(String),
}

fn kind(error: &ProviderError) -> Kind {
    match error {
        ProviderError::NotSent(_) | ProviderError::NoAnswer(_) => Kind::Down,
        ProviderError::Broken { retry_after: None, .. } => Kind::Down,
        ProviderError::Broken { retry_after: Some(wait), .. } => Kind::Busy((*wait).max(PROBE)),
        ProviderError::RateLimited { retry_after } => Kind::Busy(retry_after.unwrap_or(PROBE)),
        // Of the broker's own credentials there is one set; everybody would be refused.
        error if error.refuses_the_broker() => Kind::RefusesTheBroker,
        ProviderError::Refused { error, .. } if error.is_misconfiguration() => {
            Kind::MayRefuseTheBroker(error.code.clone())
        }
        ProviderError::Unauthorized => Kind::MayRefuseTheBroker("401".to_owned()),
        ProviderError::Refused { .. } | ProviderError::Odd(_) | ProviderError::TooLarge(_) => {
            Kind::OfTheGrant
        }
    }
}

impl Permit<'_> {
    /// Whether this call finds out for all others whether the provider is back.
    pub(super) fn is_probe(&self) -> bool {
        self.probe.is_some()
    }

    /// Takes note of what came of the call.
    pub(super) fn note(&mut self, grant: Id, error: Option<&ProviderError>, now: Timestamp) {
        self.noted = true;
        self.breaker.note(grant, error, now);
    }
}

/// A call that was not made leaves the probe to the next one.
impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if let (Some(before), false) = (self.probe, self.noted)
            && let Some((_, until)) = &mut self.breaker.lock().open
        {
            *until = before;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::OAuthError;

    const DOWN: ProviderError = ProviderError::Broken { status: 503, retry_after: None };

    const START: Timestamp = Timestamp::from_millis(1_000_000);

    fn grant(number: u8) -> Id {
        Id::from_bytes([number; 16])
    }

    fn refused(code: &str) -> ProviderError {
        ProviderError::Refused { status: 401, error: OAuthError::new(code) }
    }

    #[test]
    fn a_provider_that_is_down_is_asked_every_ten_seconds() {
        let (breaker, now) = (Breaker::default(), START);
        for number in 0..FAILURES {
            assert!(breaker.check(now).is_ok());
            breaker.note(grant(u8::try_from(number).expect("small")), Some(&DOWN), now);
        }
        assert_eq!(breaker.check(now).expect_err("open").retry_after, PROBE);
        let later = now + PROBE;
        assert!(breaker.take_probe(later).expect("the probe").is_some());
        assert!(breaker.take_probe(later).is_err(), "one at a time");
        breaker.note(grant(1), Some(&DOWN), later);
        assert!(breaker.check(later + PROBE - Duration::from_millis(1)).is_err());
        assert!(breaker.take_probe(later + PROBE).expect("the next one").is_some());
        breaker.note(grant(1), None, later + PROBE);
        assert!(breaker.check(later + PROBE).is_ok());
    }

    #[test]
    fn failures_that_are_not_in_a_row_are_no_outage() {
        let (breaker, now) = (Breaker::default(), START);
        for _ in 0..10 {
            breaker.note(grant(1), Some(&DOWN), now);
            breaker.note(grant(2), Some(&DOWN), now);
            breaker.note(grant(3), Some(&refused("invalid_grant")), now);
            assert!(breaker.check(now).is_ok());
        }
    }

    #[test]
    fn one_users_refusal_stops_nobody_else() {
        let (breaker, now) = (Breaker::default(), START);
        let error = refused("unauthorized_client");
        for _ in 0..10 {
            breaker.note(grant(1), Some(&error), now);
            breaker.note(grant(2), Some(&error), now);
            assert!(breaker.check(now).is_ok());
        }
        breaker.note(grant(3), Some(&error), now);
        assert_eq!(breaker.check(now).expect_err("open").error, error);
    }

    #[test]
    fn the_brokers_own_credentials_are_everybodys() {
        let (breaker, now) = (Breaker::default(), START);
        breaker.note(grant(1), Some(&refused("invalid_client")), now);
        assert!(breaker.check(now).is_err());
    }

    #[test]
    fn what_the_provider_asks_for_is_honoured() {
        let (breaker, now) = (Breaker::default(), START);
        let wait = Duration::from_secs(42);
        let busy = ProviderError::RateLimited { retry_after: Some(wait) };
        // It may be about one user, who is made to wait elsewhere.
        for number in [1, 2, 1, 2] {
            breaker.note(grant(number), Some(&busy), now);
            assert!(breaker.check(now).is_ok());
        }
        breaker.note(grant(3), Some(&busy), now);
        // One that was under way already does not shorten it.
        breaker.note(grant(2), Some(&ProviderError::RateLimited { retry_after: None }), now);
        assert_eq!(breaker.check(now).expect_err("open").retry_after, wait);
        assert!(breaker.check(now + wait).is_ok());
    }

    #[tokio::test]
    async fn a_probe_that_is_not_made_is_left_to_the_next() {
        let breaker = Breaker::default();
        breaker.note(grant(1), Some(&refused("invalid_client")), START);
        drop(breaker.admit(|| START + PROBE).await.expect("the probe"));
        let mut again = breaker.admit(|| START + PROBE).await.expect("the probe again");
        again.note(grant(1), None, START + PROBE);
        assert!(breaker.check(START + PROBE).is_ok());
    }
}
