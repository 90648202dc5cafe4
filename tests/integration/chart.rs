//! The Helm chart, by the tools that know it, and against what the broker tells.

use libtest_mimic::Trial;
use tokio::process::Command;

use crate::harness::tools::root;
use crate::harness::{long_trial_with, tools};

pub fn trials() -> Vec<Trial> {
    let needs = &[tools::HELM, tools::PROMTOOL, tools::PYTHON];
    vec![long_trial_with(needs, "chart::is_in_order", in_order)]
}

async fn in_order() {
    let mut command = Command::new(root().join("scripts/check-chart"));
    let told = command.current_dir(root()).output().await.expect("a shell");
    let lines = String::from_utf8_lossy(&told.stdout);
    assert!(told.status.success(), "{lines}");
    // One that finds nothing to check would be content.
    let passed = lines.lines().filter(|line| line.ends_with(": ok")).count();
    assert!(passed > 30, "{lines}");
    assert!(!lines.contains("skipped"), "{lines}");
}
