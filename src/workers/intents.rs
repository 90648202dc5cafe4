//! Takes up refreshes of which nobody knows whether they took place: their replica has ended, or the
//! provider's answer was lost. The sooner the refresh token is sent again, the likelier the
//! provider still takes it.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;

use crate::broker::Broker;

/// How often it is looked; jitter of a half is added.
const PAUSE: Duration = Duration::from_secs(1);

/// How many are taken up at a time.
const BATCH: u64 = 32;

/// Works until the broker drains.
pub async fn run(broker: Arc<Broker>) {
    loop {
        if round(&broker).await {
            continue;
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE + broker.random().jitter(PAUSE / 2)) => {}
            () = broker.draining().cancelled() => return,
        }
    }
}

/// One batch. True where there may be more to do at once.
async fn round(broker: &Arc<Broker>) -> bool {
    // A replica may hold an answer that it is about to store.
    if broker.draining().is_cancelled() || !broker.is_settled() {
        return false;
    }
    let open = match broker.storage().open_intents(BATCH).await {
        Ok(open) => open,
        Err(error) => {
            tracing::warn!(%error, "cannot look for refreshes to take up");
            return false;
        }
    };
    let full = open.len() as u64 == BATCH;
    let taken_up = join_all(open.iter().map(|grant| broker.take_up(grant))).await;
    // Where none could be, the next look would find the same ones.
    full && taken_up.contains(&true)
}
