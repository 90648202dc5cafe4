//! Adds the user at the provider: `sub` of a checked ID token beside the displayed name, in grants and in
//! authorizations that await confirmation.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(crate) struct Step;

#[sea_orm_migration::async_trait::async_trait]
impl MigrationTrait for Step {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for (table, column) in
            [("grants", "sub"), ("authorizations", "sub"), ("authorizations", "identity")]
        {
            // A statement each, for SQLite adds one column at a time.
            let mut alter = Table::alter();
            alter.table(table).add_column(ColumnDef::new(column).text().null());
            manager.alter_table(alter).await?;
        }
        Ok(())
    }
}
