//! What a worker looks for: refreshes of which nobody knows whether they took place.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::ConnectionTrait;

#[derive(DeriveMigrationName)]
pub(crate) struct Step;

#[sea_orm_migration::async_trait::async_trait]
impl MigrationTrait for Step {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // Partial: a hundred million idle grants are not in it.
        let index =
            "CREATE INDEX grants_intent_at ON grants (intent_at) WHERE intent_at IS NOT NULL";
        manager.get_connection().execute_unprepared(index).await?;
        Ok(())
    }
}
