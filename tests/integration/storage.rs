//! Storage against a real database: one suite for every backend, and what SQLite alone has.
//!
//! Time stands still unless a test moves it, so that leases and expiry are exact.

mod attempts;
mod authorizations;
pub mod backend;
mod cancelled;
mod claims;
mod commits;
mod crowd;
mod generations;
mod holders;
mod keys;
mod limits;
mod listing;
mod outbox;
mod plans;
mod proactive;
mod reading;
mod refused;
mod revoking;
mod sealing;
mod sqlite;
mod sweeping;

use libtest_mimic::Trial;

use self::backend::{Backend, Pooled, Postgres, Postgres18, Serializable, Sqlite, WithoutNotify};

pub fn trials() -> Vec<Trial> {
    let mut trials = trials_on::<Sqlite>();
    trials.extend(trials_on::<Postgres>());
    trials.extend(trials_on::<Postgres18>());
    trials.extend(trials_on::<Serializable>());
    trials.extend(trials_on::<WithoutNotify>());
    trials.extend(trials_on::<Pooled>());
    trials.extend(cancelled::trials());
    trials.extend(limits::trials());
    trials.extend(plans::trials());
    trials.extend(reading::trials());
    trials.extend(sqlite::trials());
    trials
}

/// What must hold on every backend.
fn trials_on<B: Backend>() -> Vec<Trial> {
    [
        authorizations::trials::<B>(),
        attempts::trials::<B>(),
        generations::trials::<B>(),
        claims::trials::<B>(),
        proactive::trials::<B>(),
        commits::trials::<B>(),
        revoking::trials::<B>(),
        outbox::trials::<B>(),
        sweeping::trials::<B>(),
        listing::trials::<B>(),
        sealing::trials::<B>(),
        crowd::trials::<B>(),
        holders::trials::<B>(),
        keys::trials::<B>(),
        refused::trials::<B>(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
