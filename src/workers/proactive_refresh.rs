//! Refreshes grants ahead of time, so that callers need not wait for the provider, and keeps refresh
//! tokens alive that would end unused. What is due is decided elsewhere ([`crate::domain::proactive_refresh`]).
//!
//! At each provider it uses a share of the places for calls, and claims no more grants than it has
//! places for: callers come first, and no queue grows.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::job::{self, Job, Next};
use super::lanes;
use crate::broker::Broker;
use crate::domain::name::Name;
use crate::storage::DueWork;

/// The interval at which the grants that were used are recorded.
const RECORD_USE: Duration = Duration::from_secs(5);

/// The number of grants that one statement changes: each costs entries in several indexes.
const AT_ONCE: usize = 100;

/// Works until the broker drains.
pub async fn run(broker: Arc<Broker>, due: watch::Receiver<DueWork>) {
    let keeping = tokio::spawn(keep_alive(Arc::clone(&broker)));
    let refreshing = lanes::run(&broker, due, |due| due.refreshes.clone(), lane);
    tokio::join!(job::repeat(&broker, RecordUse), refreshing);
    keeping.abort();
}

struct RecordUse;

impl Job for RecordUse {
    async fn round(&mut self, broker: &Arc<Broker>) -> Next {
        if let Err(error) = broker.tokens.record_use(AT_ONCE).await
            && !error.is_connection_failure()
        {
            tracing::warn!(%error, "cannot record which grants were used");
        }
        Next::After(RECORD_USE)
    }
}

/// Makes grants due for a look that would be looked at only after their next use, at providers that are now known to
/// end idle refresh tokens: once after the start, some at a time.
async fn keep_alive(broker: Arc<Broker>) {
    let idle: Vec<Name> = broker
        .providers
        .iter()
        .filter(|provider| provider.refresh_idle.is_some())
        .map(|provider| provider.name.clone())
        .collect();
    let mut after = None;
    while !idle.is_empty() && !broker.tasks.draining().is_cancelled() {
        match broker.refreshes.look_at_all(&idle, after, AT_ONCE as u64).await {
            Ok(None) => return,
            Ok(last) => after = last,
            Err(error) => {
                if !error.is_connection_failure() {
                    tracing::warn!(%error, "cannot look for idle grants; trying again");
                }
                tokio::time::sleep(RECORD_USE).await;
            }
        }
    }
}

/// Looks at the grants of one provider that are due.
async fn lane(broker: Arc<Broker>, provider: Name) {
    while !broker.tasks.draining().is_cancelled() {
        let Some(mut places) = broker.refreshes.background_places(&provider).await else { return };
        let claimed = async {
            let now = broker.database.now().await?;
            let due = broker.refreshes.claim_due(&provider, places.len() as u64).await?;
            Ok::<_, crate::storage::StorageError>((due, now))
        };
        let (due, now) = match claimed.await {
            Ok(claimed) => claimed,
            Err(error) => {
                if !error.is_connection_failure() {
                    tracing::warn!(%error, %provider, "cannot claim grants to refresh ahead");
                }
                return;
            }
        };
        let all = due.len() < places.len();
        for grant in due {
            let place = places.pop();
            let looking = Arc::clone(&broker.refreshes);
            broker.tasks.spawn(async move {
                looking.look_ahead(&grant, now).await;
                drop(place);
            });
        }
        if all {
            return;
        }
    }
}
