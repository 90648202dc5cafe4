//! What the broker keeps, in SQLite or PostgreSQL.
//!
//! Each change of state is one statement, or one transaction that names every statement in order.
//! Tokens are sealed and opened here and nowhere else.

mod authorizations;
mod changes;
mod clock;
mod connect;
mod entity;
mod error;
mod figures;
mod grants;
mod limited;
mod migrate;
mod revocations;
mod rows;
mod seal;

use std::ops::Deref;
use std::sync::Arc;

use sea_orm::sea_query::{LockBehavior, LockType, SelectStatement};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, SqliteTransactionMode,
    TransactionOptions,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use authorizations::{Answered, Awaiting, Begun, NewAuthorization, Seen};
pub use changes::{Change, Changes};
pub use clock::Clock;
pub use connect::{MissingFile, OutOfReach, Settings};
pub use error::StorageError;
pub use figures::Backlog;
pub use grants::{Committed, Held, LEASE, Lease, ListFilter, ListPosition, Revoked, SubjectFilter};
pub use migrate::MigrationStatus;
pub use revocations::{Disposal, Revocation};

use self::limited::Limited;
use crate::crypto::keyring::Keyring;
use crate::crypto::random::Random;

/// The database, with the keyring that seals what goes in.
pub struct Storage {
    db: Limited<DatabaseConnection>,
    /// Where the database is, if it is one that is called.
    server: Option<connect::Server>,
    clock: Clock,
    keyring: Arc<Keyring>,
    random: Random,
    /// SQLite has one writer. Writers queue here, in order of arrival, instead of polling for the
    /// file lock until `busy_timeout`.
    writer: Option<Arc<Semaphore>>,
    /// Tells that this process serves an SQLite file; released when dropped.
    _serving: Option<std::fs::File>,
}

/// A transaction that may write.
struct Write {
    transaction: Limited<DatabaseTransaction>,
    _turn: Option<OwnedSemaphorePermit>,
}

impl Storage {
    /// Whether other processes may serve from the same database.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.server.is_some()
    }

    /// The turn to write; PostgreSQL needs none.
    async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        match &self.writer {
            Some(writer) => Arc::clone(writer).acquire_owned().await.ok(),
            None => None,
        }
    }

    /// Begins a transaction that may write. On SQLite it takes the file lock at once (`BEGIN
    /// IMMEDIATE`), for a reader that becomes a writer half-way cannot wait and fails.
    async fn begin(&self) -> Result<Write, StorageError> {
        let turn = self.turn().await;
        let options = TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        };
        let transaction = self.db.begin(options).await?;
        Ok(Write { transaction, _turn: turn })
    }
}

impl Storage {
    /// Begins to claim the rows whose `id` a statement selects: those that nobody else claims now. Absent
    /// where there are none.
    async fn begin_claim(
        &self,
        mut ids: SelectStatement,
    ) -> Result<Option<(Write, Vec<Vec<u8>>)>, StorageError> {
        // Mostly there is nothing, and then nobody else need wait for a look.
        if self.db.query_one(&ids).await?.is_none() {
            return Ok(None);
        }
        let write = self.begin().await?;
        // On SQLite, which has one writer, the lock clause is left out. A statement of its own: as a part
        // of the one that claims it might be run more than once, and lock more than it is to.
        ids.lock_with_behavior(LockType::Update, LockBehavior::SkipLocked);
        let ids = rows::ids(write.query_all(&ids).await?)?;
        Ok(Some((write, ids)))
    }
}

impl Write {
    async fn commit(self) -> Result<(), StorageError> {
        Ok(self.transaction.commit().await?)
    }
}

impl Deref for Write {
    type Target = Limited<DatabaseTransaction>;

    fn deref(&self) -> &Limited<DatabaseTransaction> {
        &self.transaction
    }
}

impl std::fmt::Debug for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Storage").field("db", &self.db).finish_non_exhaustive()
    }
}
