//! Bringing the schema up to date.

use std::time::Duration;

use migrations::{Migrator, MigratorTrait, SchemaManager};
use sea_orm::{ConnectionTrait, DbBackend, Statement, Value};

use super::{Storage, StorageError};
use crate::domain::time::millis;

/// How long the lock of a replica that ended in the middle holds the others back.
const LOCK: Duration = Duration::from_secs(30);

/// How often a lock that is another's is tried.
const LOCK_POLL: Duration = Duration::from_millis(250);

/// After how many polls it is said again that the lock is another's: 10 s.
const SAY_AGAIN: u32 = 40;

/// Where SeaORM records what was applied.
const RECORD: &str = "seaql_migrations";

/// Which migrations have been applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationStatus {
    /// Steps that the database has.
    pub applied: Vec<String>,
    /// Steps that it lacks.
    pub pending: Vec<String>,
}

impl Storage {
    /// Applies the migrations that are missing.
    ///
    /// # Errors
    ///
    /// [`StorageError`] where a step fails; what came before it stays applied.
    pub async fn migrate(&self) -> Result<(), StorageError> {
        if self.db.get_database_backend() == DbBackend::Postgres {
            return self.migrate_alone().await;
        }
        let _turn = self.turn().await;
        Ok(Migrator::up(self.db.unlimited(), None).await?)
    }

    /// Replicas that start together migrate one after the other: SeaORM's migrator takes no lock.
    /// A row is the lock, for session locks are stranded by poolers.
    async fn migrate_alone(&self) -> Result<(), StorageError> {
        if self.migration_status().await?.pending.is_empty() {
            return Ok(());
        }
        let owner = self.random.id().as_bytes().to_vec();
        let mut polls = 0_u32;
        while !self.take_lock(&owner).await? {
            if polls.is_multiple_of(SAY_AGAIN) {
                tracing::info!("another replica applies the migrations; waiting for it");
            }
            polls += 1;
            tokio::time::sleep(LOCK_POLL).await;
        }
        let migrated = tokio::select! {
            migrated = Migrator::up(self.db.unlimited(), None) => migrated.map_err(StorageError::from),
            error = self.keep_lock(&owner) => Err(error),
        };
        self.postgres("DELETE FROM migration_lock WHERE owner = $1", [owner.into()]).await?;
        migrated
    }

    async fn take_lock(&self, owner: &[u8]) -> Result<bool, StorageError> {
        const TABLE: &str = "CREATE TABLE IF NOT EXISTS migration_lock \
            (id INTEGER PRIMARY KEY, owner BYTEA NOT NULL, until BIGINT NOT NULL)";
        const TAKE: &str = "INSERT INTO migration_lock (id, owner, until) \
            VALUES (1, $1, CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT) + $2) \
            ON CONFLICT (id) DO UPDATE SET owner = excluded.owner, until = excluded.until \
            WHERE migration_lock.until < \
            CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)";
        let made = self.postgres(TABLE, []).await;
        if made.as_ref().is_err_and(StorageError::is_unique_violation) {
            // Two make the table at once; PostgreSQL lets one fail although it says IF NOT EXISTS.
            return Ok(false);
        }
        made?;
        let taken = self.postgres(TAKE, [owner.to_vec().into(), millis(LOCK).into()]).await?;
        Ok(taken > 0)
    }

    /// Renews the lock until it fails.
    async fn keep_lock(&self, owner: &[u8]) -> StorageError {
        const RENEW: &str = "UPDATE migration_lock SET until = \
            CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT) + $2 WHERE owner = $1";
        loop {
            tokio::time::sleep(LOCK / 3).await;
            match self.postgres(RENEW, [owner.to_vec().into(), millis(LOCK).into()]).await {
                Ok(0) => return StorageError::damaged("migration_lock", "the lock was lost"),
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    }

    async fn postgres<const N: usize>(
        &self,
        sql: &str,
        values: [Value; N],
    ) -> Result<u64, StorageError> {
        let statement = Statement::from_sql_and_values(DbBackend::Postgres, sql, values);
        Ok(self.db.execute_raw(statement).await?.rows_affected())
    }

    /// Tells which migrations have been applied. Changes nothing.
    ///
    /// # Errors
    ///
    /// [`StorageError`] where the database cannot be read.
    pub async fn migration_status(&self) -> Result<MigrationStatus, StorageError> {
        // SeaORM would make the table that records them.
        let there = SchemaManager::new(self.db.unlimited()).has_table(RECORD).await?;
        if !there {
            let all = Migrator::migrations();
            let pending = all.iter().map(|step| step.name().to_owned()).collect();
            return Ok(MigrationStatus { applied: Vec::new(), pending });
        }
        let names = |steps: Vec<_>| {
            steps.iter().map(|step: &sea_orm_migration::Migration| step.name().to_owned()).collect()
        };
        Ok(MigrationStatus {
            applied: names(Migrator::get_applied_migrations(self.db.unlimited()).await?),
            pending: names(Migrator::get_pending_migrations(self.db.unlimited()).await?),
        })
    }
}
