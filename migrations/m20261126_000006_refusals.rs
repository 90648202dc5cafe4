//! Requested scopes, the time of the first of several failures, and the tokens of earlier authorizations of a grant.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(crate) struct Step;

#[sea_orm_migration::async_trait::async_trait]
impl MigrationTrait for Step {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mut superseded = Table::create();
        superseded
            .table("superseded_tokens")
            .col(ColumnDef::new("id").blob().not_null().primary_key())
            .col(ColumnDef::new("grant_id").blob().not_null())
            .col(ColumnDef::new("created_at").big_integer().not_null())
            .col(ColumnDef::new("kind").text().not_null())
            // Sealed.
            .col(ColumnDef::new("token").blob().not_null())
            .col(ColumnDef::new("expires_at").big_integer().null());
        manager.create_table(superseded).await?;
        // By the grant, the oldest first. The table is new, so that no row waits for it.
        let mut index = Index::create();
        index.name("superseded_tokens_grant_id_created_at").table("superseded_tokens");
        index.col("grant_id").col("created_at");
        manager.create_index(index).await?;

        let mut requested_scopes = ColumnDef::new("requested_scopes");
        requested_scopes.text().null();
        let mut failing_since = ColumnDef::new("failing_since");
        failing_since.big_integer().null();
        for column in [requested_scopes, failing_since] {
            // A statement each, for SQLite adds one column at a time.
            let mut alter = Table::alter();
            alter.table("grants").add_column(column);
            manager.alter_table(alter).await?;
        }
        Ok(())
    }
}
