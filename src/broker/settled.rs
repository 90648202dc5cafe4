//! Whether storage has been there for long enough to take up what others began.
//!
//! While storage is away, replicas hold answers of providers that they store once it is back. Whoever
//! took up such a refresh before that would send a refresh token that has been used.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::uptime::Uptime;

/// How long storage must have answered again: longer than whoever holds an answer takes to try once
/// more, which is a statement that is given up after 5 s, a pause of 1 s, and the commit.
const CALM: Duration = Duration::from_secs(10);

/// Since when storage is back, on this replica.
#[derive(Debug, Default)]
pub(super) struct Settled(Mutex<State>);

#[derive(Debug, Default)]
enum State {
    /// It never was away, and no other process holds anything.
    Always,
    /// It is, or it has not been asked yet.
    #[default]
    Away,
    Back(Uptime),
}

impl Settled {
    /// For a database that no other process serves: from the beginning.
    pub(super) fn alone() -> Self {
        Self(Mutex::new(State::Always))
    }

    /// Storage does not answer.
    pub(super) fn lost(&self) {
        *self.lock() = State::Away;
    }

    /// Storage answers.
    pub(super) fn answered(&self) {
        let mut state = self.lock();
        if matches!(*state, State::Away) {
            *state = State::Back(Uptime::now());
        }
    }

    /// Whether storage answered when it was last asked.
    pub(super) fn answers(&self) -> bool {
        !matches!(*self.lock(), State::Away)
    }

    pub(super) fn is_settled(&self) -> bool {
        match &*self.lock() {
            State::Always => true,
            State::Away => false,
            State::Back(since) => since.elapsed() >= CALM,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
