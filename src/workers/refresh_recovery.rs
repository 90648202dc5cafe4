//! Recovers refreshes whose outcome is unknown, because their replica has ended or the provider's
//! response was lost. The sooner the refresh token is sent again, the likelier the provider still accepts
//! it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;

use tokio::time::Instant;

use super::job::{self, Job, Next};
use crate::broker::Broker;
use crate::domain::id::Id;

/// The interval at which it is looked; jitter of a half is added.
const INTERVAL: Duration = Duration::from_secs(1);

/// The time that a batch is waited for.
const BATCH_TIMEOUT: Duration = Duration::from_secs(2);

/// The number of refreshes that are recovered at a time.
const BATCH: u64 = 32;

/// For how long a grant is passed over that could not be recovered, so that those behind it get their
/// turn.
const PASS_OVER: Duration = Duration::from_secs(10);

/// Works until the broker drains.
pub async fn run(broker: Arc<Broker>) {
    job::repeat(&broker, Recovery::default()).await;
}

#[derive(Default)]
struct Recovery {
    passed_over: HashMap<Id, Instant>,
}

impl Job for Recovery {
    async fn round(&mut self, broker: &Arc<Broker>) -> Next {
        self.passed_over.retain(|_, until| Instant::now() < *until);
        if recover(broker, &mut self.passed_over).await { Next::Now } else { Next::About(INTERVAL) }
    }
}

/// Recovers one batch. Returns `true` if there may be more to do at once.
async fn recover(broker: &Arc<Broker>, passed_over: &mut HashMap<Id, Instant>) -> bool {
    if !broker.database.is_up() {
        return false;
    }
    let ids: Vec<_> = passed_over.keys().copied().collect();
    let found = async {
        // At a provider that is stopped they would be asked for in vain, and the others would wait.
        let callable = broker.refreshes.callable(broker.database.now().await?);
        broker.refreshes.open_intents(&callable, &ids, BATCH).await
    };
    let open = match found.await {
        Ok(open) => open,
        Err(error) => {
            if !error.is_connection_failure() {
                tracing::warn!(%error, "cannot look for refreshes to recover");
            }
            return false;
        }
    };
    let full = open.len() as u64 == BATCH;
    let recovering = open.iter().filter_map(|grant| {
        let place = broker.refreshes.recovery_place(&grant.key.provider)?;
        let (recovering, of) = (Arc::clone(&broker.refreshes), grant.clone());
        let task = tokio::spawn(async move {
            let recovered = recovering.recover_refresh(&of).await;
            drop(place);
            recovered
        });
        // The recovery continues; only the look at the next ones waits.
        Some(async move {
            let ended = tokio::time::timeout(BATCH_TIMEOUT, task).await;
            (grant.id, !matches!(ended, Ok(Ok(false) | Err(_))))
        })
    });
    let ended = join_all(recovering).await;
    let worked = !ended.is_empty();
    for (id, recovered) in ended {
        if !recovered {
            passed_over.insert(id, Instant::now() + PASS_OVER);
        }
    }
    full && worked
}
