//! Looks for due work, once for all providers. The workers sleep until there is some.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::broker::Broker;
use crate::domain::name::Name;
use crate::storage::DueWork;

/// The interval at which the database is asked while there is work; jitter of as much again is added.
const BUSY: Duration = Duration::from_millis(500);

/// The same while there is none.
const IDLE: Duration = Duration::from_millis(1500);

/// Looks until the broker drains, and publishes what it finds.
pub async fn run(broker: Arc<Broker>, due: watch::Sender<DueWork>) {
    let providers: Vec<Name> = broker.providers.iter().map(|p| p.name.clone()).collect();
    loop {
        let mut pause = IDLE;
        if broker.database.is_up() {
            match broker.refreshes.due_work(&providers).await {
                Ok(found) => {
                    if found != DueWork::default() {
                        pause = BUSY;
                        due.send_replace(found);
                    }
                }
                Err(error) => {
                    if !error.is_connection_failure() {
                        tracing::warn!(%error, "cannot look for work that is due");
                    }
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause + broker.random.jitter(pause / 2)) => {}
            () = broker.tasks.draining().cancelled() => return,
        }
    }
}
