//! The state of an outage: while the database is known to be away, calls fail at once instead of waiting for
//! a connection.
//!
//! The driver's pool retries a refused connection for some seconds. During an outage only the watch over
//! storage tries to connect, and the statements on reserved connections.

use std::time::Duration;

use sea_orm::sqlx;
use tokio::sync::{Notify, watch};

/// The time that a statement waits for a connection before an outage is suspected.
const SUSPICIOUS_WAIT: Duration = Duration::from_millis(200);

/// Shared by all statements of a process and its watch over storage.
#[derive(Debug)]
pub(super) struct Outage {
    is_away: watch::Sender<bool>,
    suspected: Notify,
}

/// The cause of a statement's failure during a known outage.
#[derive(Debug, thiserror::Error)]
#[error("the database is known to be away")]
pub(super) struct KnownAway;

impl Default for Outage {
    fn default() -> Self {
        Self { is_away: watch::Sender::new(false), suspected: Notify::new() }
    }
}

impl Outage {
    pub(super) fn set(&self, is_away: bool) {
        self.is_away.send_if_modified(|before| std::mem::replace(before, is_away) != is_away);
    }

    /// Records a failure that an outage would explain.
    pub(super) fn suspect(&self) {
        if !*self.is_away.borrow() {
            self.suspected.notify_one();
        }
    }

    /// Waits until an outage is suspected.
    pub(super) async fn suspected(&self) {
        self.suspected.notified().await;
    }

    /// Waits for a connection. A long wait raises suspicion.
    pub(super) async fn watched<T>(
        &self,
        wait: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        let mut wait = std::pin::pin!(wait);
        if let Ok(ended) = tokio::time::timeout(SUSPICIOUS_WAIT, &mut wait).await {
            return ended;
        }
        self.suspect();
        wait.await
    }

    /// The same, but fails as soon as the database is known to be away.
    pub(super) async fn unless_away<T>(
        &self,
        wait: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        let mut is_away = self.is_away.subscribe();
        if *is_away.borrow_and_update() {
            return Err(known_away());
        }
        tokio::select! {
            biased;
            ended = self.watched(wait) => ended,
            _ = is_away.wait_for(|is_away| *is_away) => Err(known_away()),
        }
    }
}

fn known_away() -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::other(KnownAway))
}
