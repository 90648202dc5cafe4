//! `migrate`: brings the schema up to date.

use std::process::ExitCode;

use anyhow::Context;

use super::{connect, say};
use crate::config::Config;

pub(super) async fn run(config: &Config, only_tell: bool) -> anyhow::Result<ExitCode> {
    let storage = connect(config).await?;
    let before = storage.migration_status().await.context("cannot read the migrations")?;
    for step in &before.applied {
        say(&format!("applied  {step}"))?;
    }
    for step in &before.later {
        say(&format!("applied  {step} (by a later version)"))?;
    }
    if only_tell {
        for step in &before.pending {
            say(&format!("pending  {step}"))?;
        }
    } else {
        storage.migrate().await.context("cannot apply the migrations")?;
        for step in &before.pending {
            say(&format!("applied  {step} (now)"))?;
        }
    }
    storage.close().await?;
    Ok(ExitCode::SUCCESS)
}
