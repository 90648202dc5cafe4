//! Refreshes grants ahead of time, so that callers need not wait for the provider, and keeps refresh
//! tokens alive that would end unused. What is due is decided elsewhere ([`crate::domain::ahead`]).

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::Instant;

use crate::broker::Broker;
use crate::domain::id::Id;
use crate::domain::name::Name;

/// How often it is looked; jitter of a half is added.
const PAUSE: Duration = Duration::from_secs(1);

/// How long a batch is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// How many grants are claimed at a time.
const BATCH: u64 = 64;

/// How often it is written down which grants were used.
const WRITE_DOWN: Duration = Duration::from_secs(5);

/// How many are written down by one statement.
const AT_ONCE: usize = 500;

/// Works until the broker drains.
pub async fn run(broker: Arc<Broker>) {
    let mut written = Instant::now();
    let mut idle: Vec<_> = broker
        .providers()
        .iter()
        .filter(|provider| provider.refresh_idle.is_some())
        .map(|provider| provider.name.clone())
        .collect();
    loop {
        keep_alive(&broker, &mut idle).await;
        if written.elapsed() >= WRITE_DOWN {
            write_down(&broker, &broker.take_used()).await;
            written = Instant::now();
        }
        if round(&broker).await {
            continue;
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE + broker.random().jitter(PAUSE / 2)) => {}
            () = broker.draining().cancelled() => return,
        }
    }
}

/// Has grants looked at that were let go before their provider was known to end what is idle: some with
/// each call, until there are no more.
async fn keep_alive(broker: &Broker, idle: &mut Vec<Name>) {
    let Some(provider) = idle.last() else { return };
    match broker.storage().look_at_all(provider, AT_ONCE as u64).await {
        Ok(0) => {
            idle.pop();
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, %provider, "cannot look for idle grants"),
    }
}

async fn write_down(broker: &Broker, used: &[Id]) {
    for some in used.chunks(AT_ONCE) {
        // Should this fail, a grant that goes on being used is written down next time.
        if let Err(error) = broker.storage().note_used(some).await {
            tracing::warn!(%error, "cannot write down which grants were used");
            return;
        }
    }
}

/// One batch. True where there may be more to do at once.
async fn round(broker: &Arc<Broker>) -> bool {
    if broker.draining().is_cancelled() {
        return false;
    }
    let claimed = async {
        let now = broker.storage().now().await?;
        Ok::<_, crate::storage::StorageError>((broker.storage().claim_due(BATCH).await?, now))
    };
    let (due, now) = match claimed.await {
        Ok(claimed) => claimed,
        Err(error) => {
            tracing::warn!(%error, "cannot look for grants to refresh ahead");
            return false;
        }
    };
    let full = due.len() as u64 == BATCH;
    let looks = join_all(due.iter().map(|grant| broker.look_ahead(grant, now)));
    // Refreshes go on; a provider that does not answer must not keep the others waiting.
    let _ = tokio::time::timeout(PATIENCE, looks).await;
    full
}
