//! Notice of revocations and replacements from one replica to the others, on PostgreSQL.
//!
//! It is an optimization: a replica that misses a notice serves old tokens no longer than its cache allows. Only
//! changes that take a token away are sent, because notices make commits queue.

use std::sync::atomic::Ordering;

use sea_orm::sqlx::postgres::{PgListener, PgPoolOptions};
use sea_orm::{ConnectionTrait, DbBackend, Statement};

use super::{Invalidations, StorageError, StoreContext};
use crate::domain::grant::{GrantKey, KeyHash};

/// PostgreSQL's channel.
const CHANNEL: &str = "token_broker_changes";

/// The notices of other replicas, and of this one. They are lost across a reconnect.
pub struct InvalidationListener(PgListener);

/// A message of the channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A grant was revoked or replaced.
    Of(KeyHash),
    /// The connection was lost: there may have been any number of changes.
    Unknown,
}

impl Invalidations {
    /// Begins to listen, over a connection of its own. Absent on SQLite, which has one process.
    ///
    /// # Errors
    ///
    /// [`StorageError`] where the server cannot be reached.
    pub async fn listen(&self) -> Result<Option<InvalidationListener>, StorageError> {
        let Some(server) = &self.server else { return Ok(None) };
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(super::connect::ACQUIRE_TIMEOUT)
            .connect_lazy_with(server.for_listening());
        let mut listener = PgListener::connect_with(&pool).await.map_err(from_driver)?;
        listener.listen(CHANNEL).await.map_err(from_driver)?;
        Ok(Some(InvalidationListener(listener)))
    }

    /// Sends an empty notification, which no replica acts on, to see whether notifications work.
    ///
    /// # Errors
    ///
    /// [`StorageError`] if they do not.
    pub async fn try_notify(&self) -> Result<(), StorageError> {
        self.notify("").await
    }

    /// The number of notifications that could not be sent since the start.
    #[must_use]
    pub fn unnotified(&self) -> u64 {
        self.unnotified.load(Ordering::Relaxed)
    }
}

impl InvalidationListener {
    /// Waits for the next one.
    ///
    /// # Errors
    ///
    /// [`StorageError`] where the connection is lost and cannot be had again.
    pub async fn next(&mut self) -> Result<Change, StorageError> {
        loop {
            let Some(notice) = self.0.try_recv().await.map_err(from_driver)? else {
                return Ok(Change::Unknown);
            };
            // Sent by a replica that starts, to see whether notifications work.
            if notice.payload().is_empty() {
                continue;
            }
            return Ok(KeyHash::parse(notice.payload()).map_or(Change::Unknown, Change::Of));
        }
    }
}

impl std::fmt::Debug for InvalidationListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InvalidationListener")
    }
}

fn from_driver(error: sea_orm::sqlx::Error) -> StorageError {
    sea_orm::DbErr::Conn(sea_orm::RuntimeErr::SqlxError(std::sync::Arc::new(error))).into()
}

impl StoreContext {
    /// Notifies the other replicas that a grant was revoked or replaced, after that was committed. A
    /// failure is counted and tolerated: engines exist where `pg_notify` may not run, and then the
    /// other replicas notice within the age of their cache.
    pub(super) async fn notify_change(&self, key: &GrantKey) {
        let Err(error) = self.notify(&key.hash().to_string()).await else { return };
        if self.unnotified.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(
                %error,
                "cannot notify other replicas of a revocation; they notice within cache.max_age. \
                 Logged once; later failures are counted"
            );
        }
    }

    async fn notify(&self, payload: &str) -> Result<(), StorageError> {
        if self.db.get_database_backend() != DbBackend::Postgres {
            return Ok(());
        }
        let notify = Statement::from_sql_and_values(
            DbBackend::Postgres,
            "SELECT pg_notify($1, $2)",
            [CHANNEL.into(), payload.into()],
        );
        self.db.query_one_raw(notify).await?;
        Ok(())
    }
}
