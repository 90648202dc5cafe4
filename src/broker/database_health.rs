//! The database as this replica sees it: whether it answers, for how long it has, and what its clock
//! shows.
//!
//! While the database is down, replicas hold responses of providers that they store once it is back.
//! While its clock has just been set, living leases look ended. A replica that took over a refresh of
//! another one then would send a refresh token that has been used. So it does that only while its view
//! of the database is stable.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::boot_instant::BootInstant;
use crate::domain::time::{Timestamp, millis};
use crate::storage::{CLOCK_TOLERANCE, LEASE, StorageError};

/// The time that a result that cannot be stored waits before the next try.
const STORE_AGAIN: Duration = Duration::from_secs(1);

/// The time that the database must have answered again: longer than a replica that holds a response takes to
/// store it, which is a statement that is given up after 6 s, a pause of 1 s, and the commit.
const CALM: Duration = Duration::from_secs(10);

/// The time after a step of the database's clock in which no lease is taken over: every lease from before the step has
/// ended by then.
const AFTER_STEP: Duration = LEASE.saturating_add(CLOCK_TOLERANCE);

/// The health of the database, as this process sees it.
#[derive(Debug)]
pub(super) struct DatabaseHealth {
    sharing: Sharing,
    state: Mutex<State>,
}

/// Other users of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sharing {
    /// Other replicas may. Their leases count.
    Shared,
    /// No other process does, so that there is nothing to wait for.
    Alone,
}

#[derive(Debug, Default)]
struct State {
    /// Since when the database answers. `None` if it does not, or has not been asked yet.
    up_since: Option<BootInstant>,
    /// When it last answered.
    answered_at: Option<BootInstant>,
    /// `true` if it failed since the start.
    was_down: bool,
    clock: Option<ClockReading>,
    /// When the last step of its clock was noticed.
    stepped_at: Option<BootInstant>,
}

/// A reading of the database's clock.
#[derive(Debug, Clone, Copy)]
struct ClockReading {
    /// The database's time less the time since this machine started, in milliseconds.
    offset: i64,
    /// The uncertainty of the reading: half of the round trip.
    uncertainty: Duration,
}

impl DatabaseHealth {
    pub(super) fn new(sharing: Sharing) -> Self {
        Self { sharing, state: Mutex::default() }
    }

    /// Records that the database does not answer.
    pub(super) fn mark_down(&self) {
        let mut state = self.lock();
        state.up_since = None;
        state.was_down = true;
    }

    /// Records that something could not be stored: other replicas may hold responses too, even if the
    /// database answers again before its watch has looked.
    pub(super) fn restart_calm(&self) {
        let mut state = self.lock();
        state.up_since = state.up_since.map(|_| BootInstant::now());
    }

    /// Stores something that must not be lost, however long the database is away.
    pub(super) async fn until_stored<T, F>(
        &self,
        what: &'static str,
        mut store: impl FnMut() -> F,
    ) -> Result<T, StorageError>
    where
        F: Future<Output = Result<T, StorageError>>,
    {
        let mut is_logged = false;
        loop {
            match store().await {
                Err(error) if error.is_transient() => {
                    // A lock that is held, for example, says nothing about the database as a whole.
                    if error.is_out_of_reach() {
                        self.restart_calm();
                    }
                    if !std::mem::replace(&mut is_logged, true) {
                        tracing::error!(%error, what, "cannot store; held until storage is back");
                    }
                    tokio::time::sleep(STORE_AGAIN).await;
                }
                done => return done,
            }
        }
    }

    /// Records that the database answers.
    pub(super) fn mark_up(&self) {
        let mut state = self.lock();
        state.up_since.get_or_insert_with(BootInstant::now);
        state.answered_at = Some(BootInstant::now());
    }

    /// Records what the database's clock showed between two times. Returns by how many milliseconds it
    /// was set since the last reading, if it was set by more than [`CLOCK_TOLERANCE`].
    pub(super) fn read_clock(
        &self,
        shown: Timestamp,
        asked: BootInstant,
        answered: BootInstant,
    ) -> Option<i64> {
        let uncertainty = answered.since(asked) / 2;
        let offset = shown.millis() - asked.millis() - millis(uncertainty);
        let mut state = self.lock();
        let before = state.clock.replace(ClockReading { offset, uncertainty })?;
        let step = offset - before.offset;
        let tolerance = CLOCK_TOLERANCE + uncertainty + before.uncertainty;
        if step.unsigned_abs() <= millis(tolerance).unsigned_abs() {
            return None;
        }
        state.stepped_at = Some(BootInstant::now());
        Some(step)
    }

    /// The time that the database's clock should show now. `None` before the first reading.
    pub(super) fn expected_now(&self) -> Option<Timestamp> {
        let offset = self.lock().clock?.offset;
        Some(Timestamp::from_millis(BootInstant::now().millis() + offset))
    }

    /// Returns `true` if the database answered when it was last asked.
    pub(super) fn is_up(&self) -> bool {
        let state = self.lock();
        state.up_since.is_some() || (self.sharing == Sharing::Alone && !state.was_down)
    }

    /// Returns `true` if other replicas do not yet take this one for gone, which they do when its last
    /// heartbeat is older than `timeout`.
    pub(super) fn is_known_to_live(&self, timeout: Duration) -> bool {
        let answered_at = self.lock().answered_at;
        self.sharing == Sharing::Alone || answered_at.is_some_and(|at| at.elapsed() < timeout / 2)
    }

    /// Returns `true` if leases of other replicas may be judged by what the database shows.
    pub(super) fn is_stable(&self) -> bool {
        if self.sharing == Sharing::Alone {
            return self.is_up();
        }
        let state = self.lock();
        let calm = state.up_since.is_some_and(|since| since.elapsed() >= CALM);
        let stepped = state.stepped_at.is_some_and(|at| at.elapsed() < AFTER_STEP);
        calm && !stepped
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(health: &DatabaseHealth, step: i64) -> Option<i64> {
        let now = BootInstant::now();
        let shown = Timestamp::from_millis(1_000_000_000_000 + now.millis() + step);
        health.read_clock(shown, now, now)
    }

    #[test]
    fn a_step_of_the_clock_is_noticed_in_both_directions() {
        let health = DatabaseHealth::new(Sharing::Shared);
        assert_eq!(read(&health, 0), None);
        assert_eq!(read(&health, 1_500), None, "within the tolerance");
        let step = read(&health, 21_500).expect("a step");
        assert!((19_990..=20_010).contains(&step), "{step}");
        assert_eq!(read(&health, 21_500), None, "noticed once");
        let step = read(&health, -278_500).expect("a step");
        assert!((-300_010..=-299_990).contains(&step), "{step}");
    }

    #[test]
    fn a_replica_alone_is_stable_from_the_start_until_its_database_fails() {
        let health = DatabaseHealth::new(Sharing::Alone);
        assert!(health.is_up() && health.is_stable());
        health.mark_down();
        assert!(!health.is_up() && !health.is_stable());
        health.mark_up();
        assert!(health.is_up() && health.is_stable());
    }

    #[test]
    fn a_replica_among_others_is_not_stable_at_once() {
        let health = DatabaseHealth::new(Sharing::Shared);
        assert!(!health.is_up());
        health.mark_up();
        assert!(health.is_up() && !health.is_stable());
    }
}
