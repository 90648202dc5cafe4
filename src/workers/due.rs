//! Looks for due work, once for all providers. The workers sleep until there is some.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::job::{self, Job, Next};
use crate::broker::Broker;
use crate::domain::name::Name;
use crate::storage::DueWork;

/// The interval at which the database is asked while there is work; jitter of a half is added.
const BUSY: Duration = Duration::from_millis(500);

/// The same while there is none.
const IDLE: Duration = Duration::from_millis(1500);

/// Looks until the broker drains, and publishes what it finds.
pub async fn run(broker: Arc<Broker>, due: watch::Sender<DueWork>) {
    let providers = broker.providers.iter().map(|p| p.name.clone()).collect();
    job::repeat(&broker, FindDueWork { providers, due }).await;
}

struct FindDueWork {
    providers: Vec<Name>,
    due: watch::Sender<DueWork>,
}

impl Job for FindDueWork {
    async fn round(&mut self, broker: &Arc<Broker>) -> Next {
        if !broker.database.is_up() {
            return Next::About(IDLE);
        }
        match broker.refreshes.due_work(&self.providers).await {
            Ok(found) if found != DueWork::default() => {
                self.due.send_replace(found);
                return Next::About(BUSY);
            }
            Err(error) if !error.is_connection_failure() => {
                tracing::warn!(%error, "cannot look for work that is due");
            }
            Ok(_) | Err(_) => {}
        }
        Next::About(IDLE)
    }
}
