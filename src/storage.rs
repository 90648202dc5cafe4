//! Grants, authorizations and the outbox in SQLite or PostgreSQL.
//!
//! Each change of state is one statement, or one transaction that names every statement in order.
//! Tokens are sealed and opened here and nowhere else.

mod authorizations;
mod backlog;
mod clock;
mod connect;
mod connection;
mod entity;
mod error;
mod grants;
mod invalidations;
mod keys;
mod migrate;
mod outage;
mod privileges;
mod replicas;
mod revocations;
mod rows;
mod seal;
mod server;
mod statement;

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use sea_orm::sea_query::{LockBehavior, LockType, SelectStatement};
use sea_orm::{ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter, UpdateMany};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use authorizations::{
    Answered, Arrival, Awaiting, Begun, NewAuthorization, StoredAuthorization, Swept,
};
pub use backlog::Backlog;
pub use clock::Clock;
pub use connect::{MissingFile, Settings};
pub use error::{ErrorKind, StorageError};
pub use grants::{
    CLOCK_TOLERANCE, Committed, DueWork, LEASE, Lease, ListFilter, ListPosition, OpenIntents,
    Revoked, StoredGrant, SubjectFilter, Takeover,
};
pub use invalidations::{Change, InvalidationListener};
pub use keys::{Forgotten, KeyReport};
pub use migrate::MigrationStatus;
pub use revocations::{Disposal, Revocation};
pub use seal::UnreadableCounts;
pub use server::OutOfReach;

use self::connection::{Database, Transaction, retry_conflicts};
use self::outage::Outage;
use self::seal::Unreadable;
use crate::crypto::keyring::Keyring;
use crate::crypto::random::Random;
use crate::domain::id::Id;

/// The database, with the keyring that seals what goes in.
///
/// Each store has the statements of one kind of row. `Storage` itself has what concerns the database as a whole.
pub struct Storage {
    context: Arc<StoreContext>,
    stores: Stores,
    /// The lock that marks an SQLite file as served; released when dropped.
    _serving: Option<std::fs::File>,
}

/// The parts that all stores share.
pub struct StoreContext {
    db: Database,
    /// Connections that calls cannot exhaust: for heartbeats, and for what providers have answered.
    reserved: Database,
    outage: Arc<Outage>,
    /// The address of the database server. `None` for SQLite.
    server: Option<server::Server>,
    clock: Clock,
    keyring: Arc<Keyring>,
    random: Random,
    /// Names this process among those that share the database.
    replica: Id,
    grant_reader: Arc<grants::GrantReader>,
    /// Notifications of other replicas that could not be sent.
    unnotified: AtomicU64,
    unreadable: Unreadable,
    /// SQLite has one writer. Writers queue here, in order of arrival, instead of polling for the
    /// file lock until `busy_timeout`.
    writer: Option<Arc<Semaphore>>,
}

/// Defines stores, each with the shared context.
macro_rules! stores {
    ($($(#[$doc:meta])* $name:ident of $accessor:ident;)*) => {
        $(
            $(#[$doc])*
            #[derive(Clone)]
            pub struct $name(Arc<StoreContext>);

            impl Deref for $name {
                type Target = StoreContext;

                fn deref(&self) -> &StoreContext {
                    &self.0
                }
            }

            impl std::fmt::Debug for $name {
                fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.debug_tuple(stringify!($name)).field(&self.0.db).finish()
                }
            }
        )*

        /// One of each.
        struct Stores {
            $($accessor: $name,)*
        }

        impl Stores {
            fn of(context: &Arc<StoreContext>) -> Self {
                Self { $($accessor: $name(Arc::clone(context)),)* }
            }
        }

        impl Storage {
            $(
                $(#[$doc])*
                #[must_use]
                pub fn $accessor(&self) -> &$name {
                    &self.stores.$accessor
                }
            )*
        }
    };
}

stores! {
    /// Grants with their tokens, and the leases of their refreshes.
    GrantStore of grants;
    /// Authorizations, and the tokens that await confirmation.
    AuthorizationStore of authorizations;
    /// Tokens that are still to be revoked at their providers.
    RevocationOutbox of revocations;
    /// The processes that share the database.
    ReplicaRegistry of replicas;
    /// The encryption keys that rows are sealed with.
    KeyRegistry of keys;
    /// Cache invalidations between replicas.
    Invalidations of invalidations;
}

/// A transaction that may write.
struct Write(Transaction);

impl Storage {
    /// Records that the database is away: from now on statements of calls fail at once instead of waiting
    /// for a connection. Heartbeats and responses of providers still try.
    pub fn outage_began(&self) {
        self.outage.set(true);
    }

    /// Records that the database can be reached.
    pub fn outage_ended(&self) {
        self.outage.set(false);
    }

    /// Waits until a connection fails, or waiting for one takes long.
    pub async fn outage_suspected(&self) {
        self.outage.suspected().await;
    }

    /// Returns `true` if the clock that statements go by moves by itself, and not by a test.
    #[must_use]
    pub fn clock_runs(&self) -> bool {
        self.clock.runs()
    }
}

impl StoreContext {
    /// The turn to write; PostgreSQL needs none.
    async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        match &self.writer {
            Some(writer) => Arc::clone(writer).acquire_owned().await.ok(),
            None => None,
        }
    }

    /// Begins a transaction that may write, in turn on SQLite.
    async fn begin(&self) -> Result<Write, StorageError> {
        let turn = self.turn().await;
        Ok(Write(self.db.begin(turn).await?))
    }

    /// The same for what must be stored however busy this replica is.
    async fn begin_reserved(&self) -> Result<Write, StorageError> {
        let turn = self.turn().await;
        Ok(Write(self.reserved.begin(turn).await?))
    }

    /// Claims rows whose `id` a statement selects, those that no other replica is claiming now, in one
    /// transaction with the update that marks them as claimed.
    async fn claim<E>(
        &self,
        ids: &SelectStatement,
        id: E::Column,
        update: &UpdateMany<E>,
    ) -> Result<Vec<E::Model>, StorageError>
    where
        E: EntityTrait,
    {
        // Usually there is nothing, and then no writer need wait for a look.
        if self.db.query_one(ids).await?.is_none() {
            return Ok(Vec::new());
        }
        let mut ids = ids.clone();
        // On SQLite, which has one writer, the lock clause is left out. A statement of its own: as a part
        // of the one that claims it might be run more than once, and lock more than it is to.
        ids.lock_with_behavior(LockType::Update, LockBehavior::SkipLocked);
        retry_conflicts(|| async {
            let write = self.begin().await?;
            let ids = rows::ids(write.query_all(&ids).await?)?;
            let claimed = update.clone().filter(id.is_in(ids)).exec_with_returning(&*write).await?;
            write.commit().await?;
            Ok(claimed)
        })
        .await
    }

    /// Returns `true` if other processes may serve from the same database.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.server.is_some()
    }
}

impl Write {
    async fn commit(self) -> Result<(), StorageError> {
        Ok(self.0.commit().await?)
    }
}

impl Deref for Write {
    type Target = Transaction;

    fn deref(&self) -> &Transaction {
        &self.0
    }
}

impl Deref for Storage {
    type Target = StoreContext;

    fn deref(&self) -> &StoreContext {
        &self.context
    }
}

impl std::fmt::Debug for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Storage").field("db", &self.db).finish_non_exhaustive()
    }
}
