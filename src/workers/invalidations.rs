//! Hears from other replicas what was revoked or replaced there, so that it leaves the cache before
//! its age does.

use std::sync::Arc;
use std::time::Duration;

use crate::broker::Broker;
use crate::storage::{Change, InvalidationListener};

/// The pause after a failure to listen.
const PAUSE: Duration = Duration::from_secs(1);

/// Listens until the broker drains.
pub async fn run(broker: Arc<Broker>) {
    let mut is_logged = false;
    loop {
        let ended = tokio::select! {
            ended = listen(&broker, &mut is_logged) => ended,
            () = broker.tasks.draining().cancelled() => return,
        };
        match ended {
            Ended::ThereIsNothing => {
                broker.tasks.draining().cancelled().await;
                return;
            }
            Ended::Quiet => continue,
            Ended::Lost => {}
        }
        // What is in the cache is served on, no longer than its age allows.
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = broker.tasks.draining().cancelled() => return,
        }
    }
}

/// The time without a notice after which the connection is replaced.
const QUIET: Duration = Duration::from_secs(60);

enum Ended {
    /// One process, which needs no notice.
    ThereIsNothing,
    Lost,
    Quiet,
}

/// Listens until the connection is lost. `is_logged` is set once a failure to connect has been logged.
async fn listen(broker: &Broker, is_logged: &mut bool) -> Ended {
    let answered = broker.database.is_up();
    let mut changes: InvalidationListener = match broker.tokens.listen().await {
        Ok(Some(changes)) => changes,
        Ok(None) => return Ended::ThereIsNothing,
        Err(error) => {
            // Where the database itself is away, its watch has logged it.
            if answered && broker.database.is_up() && !std::mem::replace(is_logged, true) {
                tracing::warn!(
                    error = error.reason(),
                    "cannot listen for changes (database.listen_url, or else database.url); revocations of \
                     other replicas are noticed within cache.max_age"
                );
            }
            return Ended::Lost;
        }
    };
    *is_logged = false;
    loop {
        let Ok(next) = tokio::time::timeout(QUIET, changes.next()).await else {
            // Nothing happened, or the connection is dead and does not show it.
            tracing::debug!("no notice for a while; listening anew");
            return Ended::Quiet;
        };
        match next {
            Ok(Change::Of(key)) => broker.tokens.invalidate(key),
            Ok(Change::Unknown) => tracing::info!("notices of changes may have been missed"),
            Err(error) => {
                // A lost connection is opened again, and logged if that fails.
                if broker.database.is_up() && !error.is_connection_failure() {
                    tracing::warn!(%error, "notices of changes are missed");
                }
                return Ended::Lost;
            }
        }
    }
}
