//! Storage against a real database: one suite for every backend, and what SQLite alone has.
//!
//! Time stands still unless a test moves it, so that leases and expiry are exact.

mod ahead;
mod attempts;
mod authorizations;
mod backend;
mod claims;
mod commits;
mod crowd;
mod generations;
mod listing;
mod outbox;
mod revoking;
mod sealing;
mod sqlite;
mod sweeping;

use libtest_mimic::Trial;

use self::backend::{Backend, Postgres, Sqlite};

pub fn trials() -> Vec<Trial> {
    let mut trials = trials_on::<Sqlite>();
    trials.extend(trials_on::<Postgres>());
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
        ahead::trials::<B>(),
        commits::trials::<B>(),
        revoking::trials::<B>(),
        outbox::trials::<B>(),
        sweeping::trials::<B>(),
        listing::trials::<B>(),
        sealing::trials::<B>(),
        crowd::trials::<B>(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
