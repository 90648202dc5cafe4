//! SQLite on a disk that is full, and free again.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use libtest_mimic::Trial;

use super::fleet::seeder;
use super::premises::Premises;
use super::site::Site;
use crate::harness::long_trial_with;
use crate::harness::soak::{report, size};
use crate::harness::tools;
use crate::harness::world::{authorize, get_token, refresh};

pub fn trials() -> Vec<Trial> {
    vec![long_trial_with(
        &[tools::SMALL_DISK],
        "process::full_disk::loses_no_write_that_was_acknowledged",
        full,
    )]
}

/// A file system of 16 MiB, for as long as this lives: SQLite's log alone takes four.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn on(folder: &'a Path) -> Self {
        let mount = ["-t", "tmpfs", "-o", "size=16m", "tmpfs"];
        let status = Command::new("mount").args(mount).arg(folder).status();
        assert!(status.is_ok_and(|status| status.success()), "the harness has tried it");
        Self(folder)
    }

    /// Leaves no byte free, until the file is gone.
    fn fill(&self) {
        use std::io::Write;

        let mut file = std::fs::File::create(self.0.join("filler")).expect("a file");
        while file.write_all(&[7; 4096]).is_ok() {}
        while file.write_all(&[7]).is_ok() {}
    }

    fn free(&self) {
        std::fs::remove_file(self.0.join("filler")).expect("it is there");
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.0).status());
    }
}

const USERS: usize = 10;

async fn full() {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = SmallDisk::on(folder.path());
    let file = folder.path().join("token-broker.db");
    let url = format!("sqlite://{}?mode=rwc", file.display());
    let grace = Duration::from_secs(600);
    let site = Site::with_grace(Premises::on(url), grace).await;
    site.write(&super::premises::with_line(
        &site.config(),
        "display_name",
        "display_name = \"Acme\"\nrefresh_grace = \"600s\"",
    ));
    let mut serving = site.serve().await;
    let subjects: Vec<_> = (0..USERS).map(|number| format!("u{number}")).collect();
    seeder(&site).await.grants(&subjects).await;

    let (rounds, mut refused) = (size(3, 10), 0);
    for round in 0..rounds {
        // The disk is full when the provider's responses are to be stored.
        let pause = site.provider.pause_token_endpoint();
        let calls = site.provider.ledger().token_calls;
        let client = serving.client().await;
        let refreshes: Vec<_> = subjects
            .iter()
            .map(|subject| {
                let (mut client, request) = (client.clone(), refresh(subject));
                tokio::spawn(async move { client.refresh(request).await })
            })
            .collect();
        site.provider.wait_for_token_calls(calls + USERS).await;
        disk.fill();
        drop(pause);
        // Nor can a refresh begin.
        let mut client = serving.client().await;
        let until = tokio::time::Instant::now() + Duration::from_millis(1500);
        while tokio::time::Instant::now() < until {
            let call = client.authorize(authorize("u0"));
            let ended = tokio::time::timeout(Duration::from_millis(300), call).await;
            refused += usize::from(!matches!(ended, Ok(Ok(_))));
        }
        disk.free();
        // What is acknowledged must outlive the process: what was stored late, and what comes after it.
        for refreshing in refreshes {
            drop(refreshing.await.expect("no panic"));
        }
        let mut acknowledged = Vec::new();
        for subject in &subjects {
            let token = loop {
                match client.refresh(refresh(subject)).await {
                    Ok(response) => break response.into_inner().token.expect("a token"),
                    Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
                }
            };
            acknowledged.push(token.access_token);
        }
        serving.kill().await;
        serving = site.serve().await;
        let mut client = serving.client().await;
        for (subject, token) in subjects.iter().zip(&acknowledged) {
            let served = client.get_token(get_token(subject)).await.expect("a token").into_inner();
            let served = served.token.expect("a token").access_token;
            assert_eq!(&served, token, "{subject} has lost a write in round {round}");
        }
    }
    assert!(refused > 0, "the disk was never full");
    assert_eq!(site.provider.ledger().reuse_detections, 0);
    report("a full disk", &format!("{rounds} rounds, {refused} calls refused, 0 writes lost"));
    serving.terminate().await;
}
