//! The sweep: ends authorizations whose time is up, and with them tokens that nobody confirmed.

use std::sync::Arc;
use std::time::Duration;

use crate::broker::Broker;

/// How often the sweep comes; jitter of a half is added.
const PAUSE: Duration = Duration::from_secs(10);

/// How many rows one round deals with.
const BATCH: u64 = 100;

/// Works until the broker drains.
pub async fn run(broker: Arc<Broker>) {
    loop {
        let full = match broker.sweep(BATCH).await {
            Ok(swept) => swept as u64 == BATCH,
            Err(error) => {
                if !error.is_connection_failure() {
                    tracing::warn!(%error, "the sweep failed");
                }
                false
            }
        };
        if full && !broker.draining().is_cancelled() {
            continue;
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE + broker.random().jitter(PAUSE / 2)) => {}
            () = broker.draining().cancelled() => return,
        }
    }
}
