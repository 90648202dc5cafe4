//! The database schema of token-broker, one step a file.
//!
//! A step never imports the service's entities: what it did must stay as it was when the entities
//! move on. See `README.md` beside this file for how a step is written.

pub use sea_orm_migration::{MigratorTrait, SchemaManager};

mod engine;
mod m20261123_000001_tables;
mod m20261124_000002_identity;
mod m20261125_000003_work;
mod m20261126_000004_replicas;
mod m20261126_000005_indexes;
mod m20261126_000006_refusals;

/// All steps, in order.
#[derive(Debug)]
pub struct Migrator;

#[sea_orm_migration::async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn sea_orm_migration::MigrationTrait>> {
        vec![
            Box::new(m20261123_000001_tables::Step),
            Box::new(m20261124_000002_identity::Step),
            Box::new(m20261125_000003_work::Step),
            Box::new(m20261126_000004_replicas::Step),
            Box::new(m20261126_000005_indexes::Step),
            Box::new(m20261126_000006_refusals::Step),
        ]
    }
}
