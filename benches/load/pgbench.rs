//! `pgbench -S`: as fast as the same PostgreSQL answers one prepared statement that reads a row by its key.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::harness::postgres;

/// Makes pgbench's own tables: 100,000 accounts for each unit of scale.
pub async fn prepare(url: &str, scale: u64) {
    run(&["--initialize", "--quiet", "--scale", &scale.to_string(), url]).await;
}

/// Transactions a second.
pub async fn select_only(url: &str, clients: usize, duration: Duration) -> f64 {
    let (clients, seconds) = (clients.to_string(), duration.as_secs().max(1).to_string());
    let printed = run(&[
        "--select-only",
        "--protocol=prepared",
        "--no-vacuum",
        "--jobs=2",
        "--client",
        &clients,
        "--time",
        &seconds,
        url,
    ])
    .await;
    let line = printed.lines().find_map(|line| line.strip_prefix("tps = ")).expect("a figure");
    line.split(' ').next().and_then(|figure| figure.parse().ok()).expect("a number")
}

/// Returns `true` if it is installed.
pub fn is_there() -> bool {
    program().is_some()
}

/// Beside the server's programs. Those may be links to where they are installed.
fn program() -> Option<PathBuf> {
    let server = postgres::binaries()?.join("postgres").canonicalize().ok()?;
    Some(server.with_file_name("pgbench")).filter(|program| program.is_file())
}

async fn run(arguments: &[&str]) -> String {
    let program = program().expect("pgbench is installed");
    let output = Command::new(&program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
