//! Who the user is at the provider: `sub` of a checked ID token beside the name to show, and both
//! with an authorization that still awaits its confirmation.

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
