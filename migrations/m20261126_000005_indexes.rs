//! One index for each way in which rows are looked for, and room for updates in place.
//!
//! An index that an earlier version searched is dropped only where a new one serves that search too.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend, Statement};

use crate::engine::Engine;

#[derive(DeriveMigrationName)]
pub(crate) struct Step;

/// Indexes by name: unique or not, table, columns in order.
const INDEXES: [(&str, bool, &str, &str); 4] = [
    // A grant by its key; a subject's grants in the order in which they are listed.
    ("grants_key", true, "grants", "namespace, subject, provider, account"),
    // What is due at one provider; whether a provider has grants at all.
    ("grants_provider_next_refresh_at", false, "grants", "provider, next_refresh_at"),
    // What is due at one provider, and how much waits since when.
    (
        "revocations_provider_next_attempt_at",
        false,
        "revocations",
        "provider, next_attempt_at, created_at",
    ),
    ("revocations_expires_at", false, "revocations", "expires_at"),
];

/// Indexes whose searches the new ones serve.
const SUPERSEDED: [&str; 4] = [
    "grants_namespace_provider_subject_account",
    "grants_namespace_subject",
    "grants_next_refresh_at",
    "revocations_next_attempt_at",
];

/// Room in each page, so that an update finds place beside the old version of its row, and vacuum
/// before a hundredth of a large table is dead instead of a fifth.
const STORAGE: [(&str, &str); 4] = [
    (
        "grants",
        "fillfactor = 80, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000, autovacuum_analyze_scale_factor = 0.02",
    ),
    (
        "access_tokens",
        "fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000",
    ),
    (
        "revocations",
        "fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000",
    ),
    (
        "replicas",
        "fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200",
    ),
];

#[sea_orm_migration::async_trait::async_trait]
impl MigrationTrait for Step {
    /// PostgreSQL builds an index beside running statements only outside a transaction. Each statement
    /// can be repeated, should the step be interrupted.
    fn use_transaction(&self) -> Option<bool> {
        Some(false)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        let engine = Engine::of(db).await?;
        if engine != Engine::Sqlite {
            // To build an index beside running statements waits for those that began before, such as a
            // backup, and holds up nobody.
            db.execute_unprepared("SET lock_timeout = 0").await?;
        }
        let concurrently = if engine == Engine::Sqlite { "" } else { "CONCURRENTLY" };
        for (name, unique, table, columns) in INDEXES {
            let unique = if unique { "UNIQUE" } else { "" };
            // An interrupted build leaves an index that is not valid. A valid one stays: by now it may be
            // the only one that keeps a key unique.
            if engine == Engine::Postgres && is_invalid(db, name).await? {
                let drop = format!("DROP INDEX CONCURRENTLY IF EXISTS {name}");
                db.execute_unprepared(&drop).await?;
            }
            let create = format!(
                "CREATE {unique} INDEX {concurrently} IF NOT EXISTS {name} ON {table} ({columns})"
            );
            db.execute_unprepared(&create).await?;
        }
        for name in SUPERSEDED {
            let cascade = if engine == Engine::Cockroach { "CASCADE" } else { "" };
            let drop = format!("DROP INDEX {concurrently} IF EXISTS {name} {cascade}");
            db.execute_unprepared(&drop).await?;
        }
        if engine == Engine::Postgres {
            // Behind a change of a table that waits, every statement on it would wait.
            db.execute_unprepared("SET lock_timeout = '3s'").await?;
            for (table, parameters) in STORAGE {
                db.execute_unprepared(&format!("ALTER TABLE {table} SET ({parameters})")).await?;
            }
        }
        Ok(())
    }
}

async fn is_invalid(db: &SchemaManagerConnection<'_>, name: &str) -> Result<bool, DbErr> {
    let sql = "SELECT 1 FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid \
               WHERE relname = $1 AND pg_table_is_visible(indexrelid) AND NOT indisvalid";
    let select = Statement::from_sql_and_values(DbBackend::Postgres, sql, [name.into()]);
    Ok(db.query_one_raw(select).await?.is_some())
}
