//! The number of statements that a replica runs when there is nothing to do.

use std::time::Duration;

use libtest_mimic::Trial;
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement};
use token_broker_client::proto;

use super::child::Serving;
use super::premises::Premises;
use super::site::Site;
use crate::harness::soak::{report, size};
use crate::harness::world::authorize;
use crate::harness::{long_trial_with, postgres, tools};

pub fn trials() -> Vec<Trial> {
    vec![long_trial_with(
        &[tools::POSTGRESQL],
        "process::idle::statements_do_not_grow_with_providers_nor_watchers",
        idle,
    )]
}

/// The number of statements that the broker has run in this database.
async fn statements(database: &DatabaseConnection) -> i64 {
    let sql = "SELECT COALESCE(sum(calls), 0)::BIGINT AS calls FROM pg_stat_statements \
               JOIN pg_database ON pg_database.oid = dbid WHERE datname = current_database() \
               AND query NOT LIKE '%pg_stat_statements%'";
    let statement = Statement::from_string(DbBackend::Postgres, sql);
    let row = database.query_one_raw(statement).await.expect("a statement").expect("a row");
    row.try_get("", "calls").expect("a number")
}

async fn a_second(database: &DatabaseConnection) -> f64 {
    let seconds = size(8, 30) as u64;
    let before = statements(database).await;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let rate = (statements(database).await - before) as f64 / seconds as f64;
    rate
}

async fn serving(site: &Site, providers: usize) -> Serving {
    let mut config = site.config();
    for number in 1..providers {
        config.push_str(&format!(
            "\n[providers.other{number}]\ndisplay_name = \"Other {number}\"\nclient_id = \"x\"\n\
             client_secret = \"y\"\nscopes = [\"email\"]\n\
             authorization_endpoint = \"http://127.0.0.1:9/authorize\"\n\
             token_endpoint = \"http://127.0.0.1:9/token\"\n"
        ));
    }
    site.write(&config);
    site.serve().await
}

async fn idle() {
    let server = postgres::Server::prepared();
    server.start_with("-c shared_preload_libraries=pg_stat_statements");
    let mut figures = Vec::new();
    for providers in [1, 20, 200, 1000] {
        let url = server.new_database().await;
        let database = Database::connect(&url).await.expect("it answers");
        database.execute_unprepared("CREATE EXTENSION pg_stat_statements").await.expect("contrib");
        let site = Site::at(Premises::on(url)).await;
        let serving = serving(&site, providers).await;
        // What is done once at the start is over.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let rate = a_second(&database).await;
        figures.push(format!("{rate:.1} at {providers} providers"));
        assert!(rate < 6.0, "{rate} statements a second at {providers} providers");
        if providers == 1 {
            let mut client = serving.client().await;
            let mut watching = Vec::new();
            for number in 0..100 {
                let subject = format!("u{number}");
                let started = client.authorize(authorize(&subject)).await.expect("a link");
                let request = proto::WatchAuthorizationRequest {
                    authorization_id: started.into_inner().authorization_id,
                };
                let watch = client.watch_authorization(request).await.expect("a stream");
                let mut watch = watch.into_inner();
                watch.message().await.expect("a message").expect("the state now");
                watching.push(watch);
            }
            let rate = a_second(&database).await;
            figures.push(format!("{rate:.1} with 100 watchers"));
            assert!(rate < 12.0, "{rate} statements a second with 100 watchers");
            drop(watching);
        }
        serving.terminate().await;
        database.close().await.expect("closed");
    }
    report("idle statements a second", &figures.join(", "));
}
