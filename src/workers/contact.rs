//! The watch over storage: what health says of it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::broker::Broker;

/// How often storage is asked.
const PAUSE: Duration = Duration::from_secs(1);

/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Tells whether storage answers, until the broker drains.
pub async fn run(broker: Arc<Broker>, contact: watch::Sender<bool>) {
    loop {
        let answers = match tokio::time::timeout(PATIENCE, broker.storage().now()).await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => {
                tracing::debug!(%error, "storage does not answer");
                false
            }
            Err(_) => false,
        };
        let changed =
            contact.send_if_modified(|before| std::mem::replace(before, answers) != answers);
        if changed && answers {
            tracing::info!("storage answers");
        } else if changed {
            tracing::error!("storage does not answer");
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = broker.draining().cancelled() => return,
        }
    }
}
