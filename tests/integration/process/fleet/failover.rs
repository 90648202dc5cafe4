//! The leader of a PostgreSQL cluster is lost while replicas refresh. `scripts/soak` alone does this, with
//! Patroni, etcd and HAProxy.

use std::path::Path;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::process::Command;

use super::Fleet;
use super::killed::Load;
use super::seeding::seed_grants;
use crate::harness::long_trial_with;
use crate::harness::soak::{is_full, report, seed};
use crate::harness::tools::{self, root};
use crate::harness::world::refresh;

pub fn trials() -> Vec<Trial> {
    if !is_full() {
        return Vec::new();
    }
    vec![long_trial_with(
        &[tools::POSTGRESQL, tools::PATRONI],
        "process::fleet::a_leader_that_is_lost_in_a_storm_costs_no_token",
        lost_leader,
    )]
}

/// A cluster of two servers, for as long as this lives.
struct Cluster<'a>(&'a Path);

impl Cluster<'_> {
    async fn run(&self, command: &str) -> String {
        let mut script = Command::new("python3");
        script.arg(root().join("scripts/lib/patroni_cluster.py")).arg(command).arg(self.0);
        if command == "up" {
            script.arg("--venv").arg(root().join(".tools/patroni"));
        }
        let output = script.output().await.expect("python3");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {told}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

/// The provider accepts a refresh token again for this long.
const GRACE: Duration = Duration::from_secs(30);

async fn lost_leader() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = Cluster(folder.path());
    let up: serde_json::Value = serde_json::from_str(&cluster.run("up").await).expect("JSON");
    let url = up["url"].as_str().expect("a URL").to_owned();
    let fleet = Fleet::on(url, GRACE, &[]).await;
    let subjects = seed_grants(&fleet, 100).await;
    let mut random = StdRng::seed_from_u64(seed());
    let mut figures = Vec::new();
    for command in ["kill-leader", "switchover"] {
        let load = Load::on(&fleet, &subjects, &mut random);
        let calls = fleet.site.provider.ledger().token_calls;
        fleet.site.provider.wait_for_token_calls(calls + 200).await;
        let began = Instant::now();
        cluster.run(command).await;
        // Until a refresh has been stored again.
        let mut client = fleet.client(0);
        let served = loop {
            match client.refresh(refresh(&subjects[0])).await {
                Ok(_) if began.elapsed() > Duration::from_millis(500) => break began.elapsed(),
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        };
        tokio::time::sleep(Duration::from_secs(5)).await;
        load.stop().await;
        fleet.settled().await;
        let lost = fleet.lost(&subjects).await;
        figures.push(format!("{command}: {lost} lost, served again after {served:?}"));
        assert_eq!(lost, 0, "{command}");
        fleet.assert_no_double();
        if command == "kill-leader" {
            cluster.run("restart-dead").await;
        }
    }
    assert_eq!(fleet.site.provider.ledger().reuse_detections, 0);
    report("failover", &figures.join(", "));
    drop(fleet);
    cluster.run("down").await;
}
