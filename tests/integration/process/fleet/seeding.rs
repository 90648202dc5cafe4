//! Grants of a fleet or a site, without their flows.

use sea_orm::{ConnectionTrait, Database};

use super::Fleet;
use crate::harness::grants::{Seeder, subjects};
use crate::process::child::earlier_build;
use crate::process::premises::ENCRYPTION_KEY;
use crate::process::site::{Site, TOKEN_LIFETIME};

/// What makes grants for a site.
pub async fn seeder(site: &Site) -> Seeder {
    let provider = site.provider.clone();
    let seeder = Seeder::new(&site.database_url, ENCRYPTION_KEY, provider, TOKEN_LIFETIME).await;
    if let Some(last) = earlier_build() {
        // This version's schema, which the earlier one can use, and would refuse.
        seeder.storage.migrate().await.expect("the schema");
        let database = Database::connect(&site.database_url).await.expect("it answers");
        let forget = format!("DELETE FROM seaql_migrations WHERE version > '{last}'");
        database.execute_unprepared(&forget).await.expect("a statement");
    }
    seeder
}

/// Makes grants for `u0`, `u1` and so on, and gives the names.
pub async fn seed_grants(fleet: &Fleet, count: usize) -> Vec<String> {
    let subjects = subjects(count);
    seeder(&fleet.site).await.grants(&subjects).await;
    subjects
}
