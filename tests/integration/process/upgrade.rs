//! Two versions beside each other: migrations of a later one, and a build of an earlier one.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use libtest_mimic::Trial;
use sea_orm::{ConnectionTrait, Database};

use super::child::Serving;
use super::fleet::seeder;
use super::life::token;
use super::premises::Premises;
use super::site::Site;
use crate::harness::soak::report;
use crate::harness::world::refresh;
use crate::harness::{long_trial_with, postgres, tools, trial, trial_with};

pub fn trials() -> Vec<Trial> {
    let mut trials = vec![
        trial("process::upgrade::a_later_migration_is_tolerated", later),
        trial_with(
            &[tools::POSTGRESQL],
            "process::upgrade::a_later_migration_is_tolerated_on_postgresql",
            later_on_postgresql,
        ),
    ];
    // `scripts/upgrade` builds the earlier version.
    if previous().is_some() {
        trials.push(long_trial_with(
            &[tools::POSTGRESQL],
            "process::upgrade::the_version_before_runs_beside_this_one_under_load",
            beside,
        ));
        trials.push(trial(
            "process::upgrade::a_file_of_the_version_before_is_taken_over",
            taken_over,
        ));
    }
    trials
}

/// The binary of an earlier version.
fn previous() -> Option<PathBuf> {
    std::env::var_os("TOKEN_BROKER_PREVIOUS").map(PathBuf::from)
}

async fn later() {
    tolerated(Site::new().await).await;
}

async fn later_on_postgresql() {
    tolerated(Site::at(Premises::on(postgres::database().await)).await).await;
}

async fn tolerated(site: Site) {
    let serving = site.serve().await;
    let first = site.granted(&serving, "u1").await;
    let database = Database::connect(site.database_url.clone()).await.expect("it answers");
    let newer = "INSERT INTO seaql_migrations (version, applied_at) VALUES ('m2099_newer', 0)";
    database.execute_unprepared(newer).await.expect("a statement");
    database.close().await.expect("closed");
    serving.terminate().await;
    let mut serving = site.serve().await;
    let message = "the database has migrations of a later version; this version works with them";
    let line = serving.process.stderr.logged(message).await;
    assert_eq!(line["later"], "m2099_newer");
    assert_eq!(token(&serving, "u1").await, first);
    serving.terminate().await;
    let status = site.run(&["migrate", "--status"]).await;
    assert!(status.stdout.contains("applied  m2099_newer (by a later version)"), "{status:?}");
    let checked = site.run(&["check"]).await;
    assert_eq!(checked.code, Some(0), "{checked:?}");
}

async fn serve_previous(site: &Site) -> Serving {
    let mut command = tokio::process::Command::new(previous().expect("it was looked for"));
    command.args(["serve", "--config"]).arg(site.path("token-broker.toml")).envs([
        ("TOKEN_BROKER__GRPC__LISTEN", "127.0.0.1:0"),
        ("TOKEN_BROKER__HTTP__LISTEN", "127.0.0.1:0"),
        ("TOKEN_BROKER__OPS__LISTEN", "127.0.0.1:0"),
    ]);
    Serving::start(command).await
}

/// The earlier version serves while this one migrates, joins and takes its share.
async fn beside() {
    let site = Site::at(Premises::on(postgres::database().await)).await;
    let old = serve_previous(&site).await;
    let subjects: Vec<_> = (0..20).map(|number| format!("u{number}")).collect();
    // Stored by this version's code, into the earlier one's schema first and its own then.
    let stop = Arc::new(AtomicBool::new(false));
    let new = site.serve().await;
    seeder(&site).await.grants(&subjects).await;
    let callers: Vec<_> = [&old, &new]
        .into_iter()
        .map(|serving| serving.client())
        .collect::<futures::future::JoinAll<_>>()
        .await
        .into_iter()
        .map(|mut client| {
            let (stop, subjects) = (Arc::clone(&stop), subjects.clone());
            tokio::spawn(async move {
                let mut calls = 0;
                while !stop.load(Ordering::SeqCst) {
                    let subject = &subjects[calls % subjects.len()];
                    client.refresh(refresh(subject)).await.expect("a token");
                    calls += 1;
                }
                calls
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(10)).await;
    stop.store(true, Ordering::SeqCst);
    let mut calls = 0;
    for caller in callers {
        calls += caller.await.expect("no call fails");
    }
    let ledger = site.provider.ledger();
    assert_eq!((ledger.reuse_detections, ledger.overlaps, ledger.sends_of_superseded), (0, 0, 0));
    old.terminate().await;
    for subject in &subjects {
        assert!(site.provider.is_living(&token(&new, subject).await));
    }
    report("two versions", &format!("{calls} refreshes, 0 failed, 0 double"));
}

async fn taken_over() {
    let site = Site::new().await;
    let old = serve_previous(&site).await;
    // Its redirect listener is elsewhere, so the grant comes from this version's code later.
    old.terminate().await;
    let serving = site.serve().await;
    let first = site.granted(&serving, "u1").await;
    assert_eq!(token(&serving, "u1").await, first);
}
