//! The circuit breaker of a provider: stops refreshes while the provider is down, asks for a pause or refuses the
//! broker itself. It belongs to one replica, changes no grant, and goes by the database's clock.
//!
//! It counts distinct grants, and never one that fails while others are well: a dead grant whose bot polls must not
//! stop the others.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::super::boot_instant::BootInstant;
use crate::domain::id::Id;
use crate::domain::name::Name;
use crate::domain::time::Timestamp;
use crate::provider::{Concerns, ProviderError};

/// The number of grants that must fail, without a success between them, until the provider counts as down or busy.
const GRANTS: usize = 3;

/// The number of grants that are remembered that fail while others are well.
const MOST_FAILING: usize = 10_000;

/// The interval at which a provider that is down is asked whether it is back.
const PROBE: Duration = Duration::from_secs(10);

/// The time after which an unused open breaker is no longer reported as open.
const FORGOTTEN: Duration = Duration::from_secs(30);

/// The number of refreshes of one provider that are under way at once for one namespace, so that a storm stays polite.
const AT_ONCE: usize = 32;

/// The same for all namespaces: another bot's grants do not wait behind those of one bot, however many it has.
const ALL_AT_ONCE: usize = 48;

/// The number of them that may be background refreshes.
const BACKGROUND: usize = AT_ONCE / 2;

/// The number of recoveries of refreshes in doubt that are under way at once: places that refreshes ahead
/// of time cannot take.
const RECOVERY: usize = AT_ONCE / 4;

/// The breaker of one provider.
#[derive(Debug)]
pub(in super::super) struct CircuitBreaker {
    state: Mutex<State>,
    places: Arc<Semaphore>,
    /// By namespace of the grants.
    shares: Mutex<HashMap<Name, Arc<Semaphore>>>,
    background: Arc<Semaphore>,
    recovery: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct State {
    /// The failure for which nothing is sent.
    open: Option<Open>,
    /// Grants that failed since the last success, for which the provider may be at fault.
    failed: HashSet<Id>,
    /// Grants for which the provider has asked for a pause since then.
    busy: HashSet<Id>,
    /// Grants that failed while others succeeded. Their failures say nothing of the provider.
    failing: HashSet<Id>,
    /// The last success of a grant, by which others' failures are known to be theirs alone.
    success: Option<(Id, Timestamp)>,
}

#[derive(Debug)]
struct Open {
    error: ProviderError,
    /// When the next call may find out whether the provider is back.
    until: Timestamp,
    /// `true` if a grant was stopped that is not known to fail. It goes first.
    others_wait: bool,
    /// When this was found out last, and for how long nothing is sent.
    at: BootInstant,
    wait: Duration,
}

/// Why nothing is sent now.
#[derive(Debug, Clone)]
pub(super) struct Stopped {
    /// The provider's last error.
    pub(super) error: ProviderError,
    /// When it is asked again.
    pub(super) retry_after: Duration,
}

/// The right to one call. Its holder must note the outcome.
#[derive(Debug)]
pub(super) struct Permit<'a> {
    breaker: &'a CircuitBreaker,
    /// The time of the next probe, if this one had not been made.
    probe: Option<Timestamp>,
    noted: bool,
    _places: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

impl Default for CircuitBreaker {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            places: Arc::new(Semaphore::new(ALL_AT_ONCE)),
            shares: Mutex::default(),
            background: Arc::new(Semaphore::new(BACKGROUND)),
            recovery: Arc::new(Semaphore::new(RECOVERY)),
        }
    }
}

impl CircuitBreaker {
    /// Waits for a place, and lets the call through unless it would fail for certain. One call in
    /// ten seconds finds out whether it still would; one for a grant that is not known to fail, if there is one.
    ///
    /// # Errors
    ///
    /// [`Stopped`].
    pub(super) async fn admit(
        &self,
        grant: Id,
        namespace: &Name,
        now: impl Fn() -> Timestamp,
    ) -> Result<Permit<'_>, Stopped> {
        // A caller that would be stopped need not wait.
        self.check(grant, now())?;
        let share = self.share(namespace);
        let share = share.acquire_owned().await.expect("it is never closed");
        let place = Arc::clone(&self.places).acquire_owned().await.expect("it is never closed");
        let probe = self.take_probe(grant, now())?;
        Ok(Permit { breaker: self, probe, noted: false, _places: (share, place) })
    }

    fn share(&self, namespace: &Name) -> Arc<Semaphore> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get(namespace) {
            return Arc::clone(share);
        }
        let share = Arc::new(Semaphore::new(AT_ONCE));
        shares.insert(namespace.clone(), Arc::clone(&share));
        share
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

    fn check(&self, grant: Id, now: Timestamp) -> Result<(), Stopped> {
        self.lock().stopped(grant, now).map_or(Ok(()), Err)
    }

    fn take_probe(&self, grant: Id, now: Timestamp) -> Result<Option<Timestamp>, Stopped> {
        let mut state = self.lock();
        if let Some(stopped) = state.stopped(grant, now) {
            return Err(stopped);
        }
        Ok(state.open.as_mut().map(|open| std::mem::replace(&mut open.until, now + PROBE)))
    }

    /// The label of the reason for which calls are stopped, save those that find out whether they still need be.
    /// `None` also if no caller has asked for a while.
    pub(in super::super) fn reason(&self) -> Option<&'static str> {
        let state = self.lock();
        let open = state.open.as_ref()?;
        if open.at.elapsed() >= open.wait + FORGOTTEN {
            return None;
        }
        Some(match open.error.concerns(PROBE) {
            Concerns::Provider | Concerns::Grant => "down",
            Concerns::Pause(_) => "busy",
            Concerns::Client => "refuses",
        })
    }

    /// For how long nothing is sent.
    pub(in super::super) fn stopped_for(&self, now: Timestamp) -> Option<Duration> {
        let state = self.lock();
        let wait = state.open.as_ref()?.until.since(now);
        (!wait.is_zero()).then_some(wait)
    }

    /// Returns `true` if another grant has succeeded since a time.
    pub(super) fn others_are_well(&self, grant: Id, since: Timestamp) -> bool {
        self.lock().success.is_some_and(|(other, at)| other != grant && at > since)
    }

    /// Records that a call about another matter succeeded, such as the exchange of a code.
    pub(in super::super) fn note_success(&self, grant: Id, now: Timestamp) {
        self.note(grant, None, now);
    }

    fn note(&self, grant: Id, error: Option<&ProviderError>, now: Timestamp) {
        let mut state = self.lock();
        let Some(error) = error else { return state.succeeded(grant, now) };
        match error.concerns(PROBE) {
            Concerns::Grant => state.answered(grant),
            Concerns::Client => state.stop(error, now, PROBE),
            Concerns::Provider => {
                state.failed.insert(grant);
                if state.counted(&state.failed) >= GRANTS || state.open.is_some() {
                    state.stop(error, now, PROBE);
                }
            }
            Concerns::Pause(wait) => {
                state.failed.clear();
                state.busy.insert(grant);
                if state.counted(&state.busy) >= GRANTS || state.open.is_some() {
                    state.stop(error, now, wait);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn stopped(&mut self, grant: Id, now: Timestamp) -> Option<Stopped> {
        let is_failing = self.failing.contains(&grant) || self.failed.contains(&grant);
        let open = self.open.as_mut()?;
        let mut retry_after = open.until.since(now);
        if !is_failing {
            open.others_wait |= !retry_after.is_zero();
        } else if open.others_wait && retry_after.is_zero() {
            // A grant that failed last time is no good probe. It gets its turn if no other comes.
            retry_after = (open.until + PROBE).since(now);
        }
        let error = &open.error;
        (!retry_after.is_zero()).then(|| Stopped { error: error.clone(), retry_after })
    }

    /// The provider has answered, also if it refuses this grant.
    fn answered(&mut self, grant: Id) {
        let others = std::mem::take(&mut self.failed).into_iter().filter(|other| *other != grant);
        if self.failing.len() < MOST_FAILING {
            self.failing.extend(others);
            self.failing.insert(grant);
        }
        self.busy.clear();
        self.open = None;
    }

    fn succeeded(&mut self, grant: Id, now: Timestamp) {
        self.answered(grant);
        self.failing.remove(&grant);
        self.success = Some((grant, now));
    }

    /// The number of these grants that count.
    fn counted(&self, grants: &HashSet<Id>) -> usize {
        grants.difference(&self.failing).count()
    }

    fn stop(&mut self, error: &ProviderError, now: Timestamp, wait: Duration) {
        if self.open.is_none() {
            tracing::warn!(%error, "calls to the provider are stopped");
        }
        // A longer pause that the provider asked for stays.
        let before = self.open.as_ref();
        let until = before.map_or(now + wait, |open| open.until.max(now + wait));
        let others_wait = before.is_some_and(|open| open.others_wait);
        let (error, at) = (error.clone(), BootInstant::now());
        self.open = Some(Open { error, until, others_wait, at, wait });
    }
}

impl Permit<'_> {
    /// Returns `true` if this call finds out for all others whether the provider is back.
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
            && let Some(open) = &mut self.breaker.lock().open
        {
            open.until = before;
        }
    }
}

#[cfg(test)]
mod tests;
