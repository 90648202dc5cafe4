//! The sweep: ends authorizations whose time is up, and disposes of their unconfirmed tokens.

use std::sync::Arc;
use std::time::Duration;

use crate::broker::Broker;
use crate::storage::Swept;

/// The interval at which the sweep comes; jitter of a half is added.
const PAUSE: Duration = Duration::from_secs(10);

/// The pause between rounds while something is left to sweep, so that others can use the database.
const SHORT_PAUSE: Duration = Duration::from_millis(50);

/// The number of rows that one round deals with.
const BATCH: u64 = 100;

/// Works until the broker drains.
pub async fn run(broker: Arc<Broker>) {
    loop {
        let pause = match broker.authorizations.sweep(BATCH).await {
            Ok(Swept { is_done: false, .. }) => SHORT_PAUSE,
            Ok(_) => PAUSE + broker.random.jitter(PAUSE / 2),
            Err(error) => {
                if !error.is_connection_failure() {
                    tracing::warn!(%error, "the sweep failed");
                }
                PAUSE + broker.random.jitter(PAUSE / 2)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = broker.tasks.draining().cancelled() => return,
        }
    }
}
