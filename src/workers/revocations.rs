//! The outbox: goes on until the provider confirms.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::task::JoinSet;

use crate::broker::Broker;
use crate::domain::name::Name;

/// How often the outbox is looked at; jitter of as much again is added.
const PAUSE: Duration = Duration::from_millis(500);

/// How many entries are claimed at a time. All are sent at once, so that each attempt has ended
/// before its claim does.
const BATCH: u64 = 16;

/// Works until the broker drains: for each provider by itself, for one that does not answer must not
/// keep the others from theirs.
pub async fn run(broker: Arc<Broker>) {
    let mut lanes = JoinSet::new();
    for provider in broker.providers().iter() {
        lanes.spawn(lane(Arc::clone(&broker), provider.name.clone()));
    }
    while let Some(ended) = lanes.join_next().await {
        // A crash is one of the whole process, which then starts anew.
        if let Err(crash) = ended
            && crash.is_panic()
        {
            std::panic::resume_unwind(crash.into_panic());
        }
    }
}

async fn lane(broker: Arc<Broker>, provider: Name) {
    loop {
        if round(&broker, &provider).await {
            continue;
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE + broker.random().jitter(PAUSE)) => {}
            () = broker.draining().cancelled() => return,
        }
    }
}

/// One batch. True where there may be more to do at once.
async fn round(broker: &Broker, provider: &Name) -> bool {
    if broker.draining().is_cancelled() {
        return false;
    }
    let claimed = match broker.storage().claim_revocations(provider, BATCH).await {
        Ok(claimed) => claimed,
        Err(error) => {
            tracing::warn!(%error, "cannot look for tokens to revoke");
            return false;
        }
    };
    let full = claimed.len() as u64 == BATCH;
    join_all(claimed.iter().map(|entry| broker.try_revocation(entry))).await;
    full
}
