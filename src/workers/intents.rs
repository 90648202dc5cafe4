//! Takes up refreshes of which nobody knows whether they took place: their replica has ended, or the
//! provider's answer was lost. The sooner the refresh token is sent again, the likelier the
//! provider still takes it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;

use tokio::time::Instant;

use crate::broker::Broker;
use crate::domain::id::Id;

/// How often it is looked; jitter of a half is added.
const PAUSE: Duration = Duration::from_secs(1);

/// How long a batch is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// How many are taken up at a time.
const BATCH: u64 = 32;

/// For how long a grant is passed over that could not be taken up, so that those behind it get their turn.
const PASS_OVER: Duration = Duration::from_secs(10);

/// Works until the broker drains.
pub async fn run(broker: Arc<Broker>) {
    let mut passed_over: HashMap<Id, Instant> = HashMap::new();
    loop {
        passed_over.retain(|_, until| Instant::now() < *until);
        if round(&broker, &mut passed_over).await {
            continue;
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE + broker.random().jitter(PAUSE / 2)) => {}
            () = broker.draining().cancelled() => return,
        }
    }
}

/// One batch. True where there may be more to do at once.
async fn round(broker: &Arc<Broker>, passed_over: &mut HashMap<Id, Instant>) -> bool {
    // A replica may hold an answer that it is about to store.
    if broker.draining().is_cancelled() || !broker.is_settled() {
        return false;
    }
    let ids: Vec<_> = passed_over.keys().copied().collect();
    let found = async {
        // At one that is stopped they would be asked for in vain, and the others would wait behind.
        let callable = broker.callable(broker.storage().now().await?);
        broker.storage().open_intents(&callable, &ids, BATCH).await
    };
    let open = match found.await {
        Ok(open) => open,
        Err(error) => {
            tracing::warn!(%error, "cannot look for refreshes to take up");
            return false;
        }
    };
    let full = open.len() as u64 == BATCH;
    let taking_up = open.iter().map(|grant| async {
        // The refresh goes on; what waits here is only the look at the next ones.
        tokio::time::timeout(PATIENCE, broker.take_up(grant)).await.unwrap_or(true)
    });
    let taken_up = join_all(taking_up).await;
    for (grant, taken_up) in open.iter().zip(taken_up) {
        if !taken_up {
            passed_over.insert(grant.id, Instant::now() + PASS_OVER);
        }
    }
    full
}
