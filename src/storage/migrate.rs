//! Brings the schema up to date.

use std::collections::BTreeSet;
use std::time::Duration;

use migrations::{Migrator, MigratorTrait, SchemaManager};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, DbErr, SqlxPostgresConnector,
    SqlxSqliteConnector, Statement, Value,
};
use sea_orm_migration::{MigrationName, MigrationTrait, MigratorTraitSelf};

use super::connection::Pool;
use super::{Storage, StorageError, StoreContext};
use crate::domain::time::millis;

/// The time that the lease on the right to migrate lasts after its replica was last seen.
const LEASE: Duration = Duration::from_secs(30);

/// The interval at which the lease of another replica is tried.
const LEASE_POLL: Duration = Duration::from_millis(250);

/// After how many polls the wait is logged again: 10 s.
const LOG_AFTER: u32 = 40;

/// The table in which SeaORM records the steps that were applied.
const RECORD: &str = "seaql_migrations";

/// The migrations that the database has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationStatus {
    /// Steps of this version that were applied.
    pub applied: Vec<String>,
    /// Steps of this version that were not.
    pub pending: Vec<String>,
    /// Steps that a later version applied. A step only expands the schema, so this version can work
    /// with it.
    pub later: Vec<String>,
}

/// The steps of this version, and placeholders for those of later versions: SeaORM refuses a database
/// that has steps it does not know.
struct Steps {
    later: Vec<String>,
}

impl MigratorTraitSelf for Steps {
    fn migrations(&self) -> Vec<Box<dyn MigrationTrait>> {
        let mut steps = <Migrator as MigratorTrait>::migrations();
        steps.extend(
            self.later
                .iter()
                .map(|name| Box::new(LaterStep(name.clone())) as Box<dyn MigrationTrait>),
        );
        steps
    }
}

struct LaterStep(String);

impl MigrationName for LaterStep {
    fn name(&self) -> &str {
        &self.0
    }
}

#[sea_orm_migration::async_trait::async_trait]
impl MigrationTrait for LaterStep {
    async fn up(&self, _: &sea_orm_migration::SchemaManager) -> Result<(), DbErr> {
        // SeaORM calls it only for a step that is not recorded, and this one is.
        Err(DbErr::Migration(format!("the step {} belongs to a later version", self.0)))
    }
}

impl Storage {
    /// Applies the migrations that are missing.
    ///
    /// # Errors
    ///
    /// [`StorageError`] if a step fails; the steps before it stay applied.
    pub async fn migrate(&self) -> Result<(), StorageError> {
        let status = self.migration_status().await?;
        if !status.later.is_empty() {
            tracing::info!(
                later = status.later.join(", "),
                "the database has migrations of a later version; this version works with them"
            );
        }
        if status.pending.is_empty() {
            return Ok(());
        }
        let steps = Steps { later: status.later };
        let connection = self.migration_connection();
        let migrated = if self.db.get_database_backend() == DbBackend::Postgres {
            self.migrate_under_lease(&steps, &connection).await
        } else {
            let _turn = self.turn().await;
            steps.up(&connection, None).await.map_err(StorageError::from)
        };
        if self.server.is_some() {
            // On SQLite it shares the pool of everything else.
            let _ = connection.close().await;
        }
        migrated
    }

    /// Migrates while holding a lease, so that replicas that start together migrate one after the
    /// other: SeaORM's migrator takes no lock. A row is the lease, because poolers strand session locks.
    async fn migrate_under_lease(
        &self,
        steps: &Steps,
        connection: &DatabaseConnection,
    ) -> Result<(), StorageError> {
        let owner = self.random.id().as_bytes().to_vec();
        let mut polls = 0_u32;
        while !self.claim_migration(&owner).await? {
            if polls.is_multiple_of(LOG_AFTER) {
                tracing::info!("another replica applies the migrations; waiting for it");
            }
            polls += 1;
            tokio::time::sleep(LEASE_POLL).await;
        }
        let migrated = tokio::select! {
            migrated = steps.up(connection, None) => migrated.map_err(StorageError::from),
            error = self.renew_migration(&owner) => Err(error),
        };
        self.postgres("DELETE FROM migration_lock WHERE owner = $1", [owner.into()]).await?;
        migrated
    }

    async fn claim_migration(&self, owner: &[u8]) -> Result<bool, StorageError> {
        const TABLE: &str = "CREATE TABLE IF NOT EXISTS migration_lock \
            (id INTEGER PRIMARY KEY, owner BYTEA NOT NULL, until BIGINT NOT NULL)";
        const CLAIM: &str = "INSERT INTO migration_lock (id, owner, until) \
            VALUES (1, $1, CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT) + $2) \
            ON CONFLICT (id) DO UPDATE SET owner = excluded.owner, until = excluded.until \
            WHERE migration_lock.until < \
            CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)";
        let made = self.postgres(TABLE, []).await;
        if made.as_ref().is_err_and(StorageError::is_unique_violation) {
            // Two replicas create the table at once: PostgreSQL lets one fail although it says IF
            // NOT EXISTS.
            return Ok(false);
        }
        made?;
        let claimed = self.postgres(CLAIM, [owner.to_vec().into(), millis(LEASE).into()]).await?;
        Ok(claimed > 0)
    }

    /// Renews the lease until that fails.
    async fn renew_migration(&self, owner: &[u8]) -> StorageError {
        const RENEW: &str = "UPDATE migration_lock SET until = \
            CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT) + $2 WHERE owner = $1";
        loop {
            tokio::time::sleep(LEASE / 3).await;
            match self.postgres(RENEW, [owner.to_vec().into(), millis(LEASE).into()]).await {
                Ok(0) => return StorageError::damaged("migration_lock", "the lease was lost"),
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

    /// A connection whose statements may take as long as they need.
    fn migration_connection(&self) -> DatabaseConnection {
        match &self.server {
            Some(server) => SqlxPostgresConnector::from_sqlx_postgres_pool(server.migration_pool()),
            None => self.shared_connection(),
        }
    }
}

impl StoreContext {
    /// Reads which migrations the database has. InvalidationListener nothing.
    ///
    /// # Errors
    ///
    /// [`StorageError`] if the database cannot be read.
    pub async fn migration_status(&self) -> Result<MigrationStatus, StorageError> {
        let known: Vec<String> = <Migrator as MigratorTrait>::migrations()
            .iter()
            .map(|step| step.name().to_owned())
            .collect();
        let recorded = self.recorded_migrations().await?;
        let (applied, pending) =
            known.iter().cloned().partition(|step: &String| recorded.contains(step));
        let later = recorded.into_iter().filter(|step| !known.contains(step)).collect();
        Ok(MigrationStatus { applied, pending, later })
    }

    async fn recorded_migrations(&self) -> Result<BTreeSet<String>, StorageError> {
        // SeaORM's own look would create the table.
        let connection = self.shared_connection();
        if !SchemaManager::new(&connection).has_table(RECORD).await? {
            return Ok(BTreeSet::new());
        }
        let sql = format!("SELECT version FROM {RECORD}");
        let statement = Statement::from_string(self.db.get_database_backend(), sql);
        let rows = self.db.query_all_raw(statement).await?;
        rows.iter().map(|row| row.try_get("", "version").map_err(StorageError::from)).collect()
    }

    /// SeaORM's view of the pool, for statements without limits of their own.
    fn shared_connection(&self) -> DatabaseConnection {
        match self.db.pool() {
            Pool::Sqlite(pool) => SqlxSqliteConnector::from_sqlx_sqlite_pool(pool.clone()),
            Pool::Postgres(pool) => SqlxPostgresConnector::from_sqlx_postgres_pool(pool.clone()),
        }
    }
}
