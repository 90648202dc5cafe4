//! Works on the outbox: tokens that are still to be revoked at their provider.

use std::sync::Arc;

use futures::future::join_all;
use tokio::sync::watch;

use super::lanes;
use crate::broker::Broker;
use crate::domain::name::Name;
use crate::storage::DueWork;

/// The number of entries that are claimed at a time. All are sent at once, so that each attempt has ended
/// before its claim does.
const BATCH: u64 = 16;

/// Works until the broker drains.
pub async fn run(broker: Arc<Broker>, due: watch::Receiver<DueWork>) {
    lanes::run(&broker, due, |due| due.revocations.clone(), lane).await;
}

/// Works on the entries of one provider that are due.
async fn lane(broker: Arc<Broker>, provider: Name) {
    while !broker.tasks.draining().is_cancelled() {
        let claimed = match broker.revocations.claim(&provider, BATCH).await {
            Ok(claimed) => claimed,
            Err(error) => {
                if !error.is_connection_failure() {
                    tracing::warn!(%error, %provider, "cannot claim tokens to revoke");
                }
                return;
            }
        };
        join_all(claimed.iter().map(|entry| broker.revocations.try_revocation(entry))).await;
        if (claimed.len() as u64) < BATCH {
            return;
        }
    }
}
