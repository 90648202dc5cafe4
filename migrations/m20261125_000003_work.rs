//! Adds indexes for the workers: grants in use that are due for a proactive refresh, and refreshes in doubt.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::ConnectionTrait;

#[derive(DeriveMigrationName)]
pub(crate) struct Step;

#[sea_orm_migration::async_trait::async_trait]
impl MigrationTrait for Step {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for column in ["last_used_at", "next_refresh_at"] {
            // A statement each, for SQLite adds one column at a time.
            let mut alter = Table::alter();
            alter.table("grants").add_column(ColumnDef::new(column).big_integer().null());
            manager.alter_table(alter).await?;
        }
        // Partial: a hundred million idle grants are in neither.
        for column in ["next_refresh_at", "intent_at"] {
            let index = format!(
                "CREATE INDEX grants_{column} ON grants ({column}) WHERE {column} IS NOT NULL"
            );
            manager.get_connection().execute_unprepared(&index).await?;
        }
        Ok(())
    }
}
