//! The sweep: ends authorizations whose time is up, and disposes of their unconfirmed tokens.

use std::sync::Arc;
use std::time::Duration;

use super::job::{self, Job, Next};
use crate::broker::Broker;
use crate::storage::Swept;

/// The interval at which the sweep comes; jitter of a half is added.
const INTERVAL: Duration = Duration::from_secs(10);

/// The pause between rounds while something is left to sweep, so that others can use the database.
const SHORT_PAUSE: Duration = Duration::from_millis(50);

/// The number of rows that one round deals with.
const BATCH: u64 = 100;

/// Works until the broker drains.
pub async fn run(broker: Arc<Broker>) {
    job::repeat(&broker, Sweep).await;
}

struct Sweep;

impl Job for Sweep {
    async fn round(&mut self, broker: &Arc<Broker>) -> Next {
        match broker.authorizations.sweep(BATCH).await {
            Ok(Swept { is_done: false, .. }) => Next::After(SHORT_PAUSE),
            Ok(_) => Next::About(INTERVAL),
            Err(error) => {
                if !error.is_connection_failure() {
                    tracing::warn!(%error, "the sweep failed");
                }
                Next::About(INTERVAL)
            }
        }
    }
}
