//! Adds the holders of leases, the keys that sealed rows, and outbox entries that no present key opens.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub(crate) struct Step;

#[sea_orm_migration::async_trait::async_trait]
impl MigrationTrait for Step {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mut replicas = Table::create();
        replicas
            .table("replicas")
            .col(ColumnDef::new("id").blob().not_null().primary_key())
            // The process, if the operating system identifies it; see `storage/replicas.rs`.
            .col(ColumnDef::new("location").text().null())
            .col(ColumnDef::new("started_at").big_integer().not_null())
            .col(ColumnDef::new("heartbeat_at").big_integer().not_null());
        manager.create_table(replicas).await?;

        let mut keys = Table::create();
        keys.table("encryption_keys")
            .col(ColumnDef::new("id").text().not_null().primary_key())
            .col(ColumnDef::new("check_value").blob().not_null())
            .col(ColumnDef::new("created_at").big_integer().not_null());
        manager.create_table(keys).await?;

        let mut lease_replica = ColumnDef::new("lease_replica");
        lease_replica.blob().null();
        let mut sealed_table = ColumnDef::new("sealed_table");
        sealed_table.text().null();
        let mut sealed_column = ColumnDef::new("sealed_column");
        sealed_column.text().null();
        let mut sealed_row = ColumnDef::new("sealed_row");
        sealed_row.blob().null();
        for (table, column) in [
            ("grants", lease_replica),
            ("revocations", sealed_table),
            ("revocations", sealed_column),
            ("revocations", sealed_row),
        ] {
            // A statement each, for SQLite adds one column at a time.
            let mut alter = Table::alter();
            alter.table(table).add_column(column);
            manager.alter_table(alter).await?;
        }
        Ok(())
    }
}
