//! The database, as `serve` needs it.

use super::super::sqlite::path_to_make;
use super::super::{connect, storage_settings};
use crate::broker::wrong_keys;
use crate::config::Config;
use crate::storage::{MissingFile, Storage};

/// Tries what `serve` does with the database, without a change to it.
pub(super) async fn check(config: &Config) -> anyhow::Result<String> {
    if let Some(missing) = storage_settings(config).missing_file() {
        return missing_database(config, &missing);
    }
    let storage = connect(config).await?;
    let status = storage.migration_status().await?;
    if storage.is_read_only().await? {
        anyhow::bail!(
            "accepts no writes (a standby, or default_transaction_read_only); point database.url at the \
             primary"
        );
    }
    let (applied, pending) = (status.applied.len(), status.pending.len());
    if pending > 0 && !config.database.migrate {
        anyhow::bail!("{pending} migrations are missing: run `token-broker migrate --config FILE`");
    }
    check_privileges(&storage, pending > 0).await?;
    let keys = storage.keys().check_keys().await?;
    if let Err(error) = storage.invalidations().listen().await {
        let reason = error.reason();
        anyhow::bail!(
            "cannot listen for changes: {reason}; correct database.listen_url, or the role there"
        );
    }
    storage.close().await?;
    if !keys.wrong.is_empty() {
        anyhow::bail!(wrong_keys(&keys));
    }
    if !keys.missing.is_empty() {
        anyhow::bail!(
            "encryption.keys: lacks the keys {}, which have sealed rows: add them, or give them up by \
             `token-broker keys forget`",
            keys.missing.join(", ")
        );
    }
    Ok(format!("in order (migrations applied: {applied}, to be applied by serve: {pending})"))
}

fn missing_database(config: &Config, missing: &MissingFile) -> anyhow::Result<String> {
    let path = path_to_make(missing)?;
    if !config.database.migrate {
        anyhow::bail!("{path} does not exist yet: run `token-broker migrate --config FILE`");
    }
    Ok(format!("{path} does not exist yet; serve makes it"))
}

/// Finds a role that could not apply the migrations, or not work with the tables.
async fn check_privileges(storage: &Storage, migrates: bool) -> anyhow::Result<()> {
    let lacking = storage.lacking_privileges(migrates).await?;
    if lacking.is_empty() {
        return Ok(());
    }
    anyhow::bail!(
        "the role of database.url lacks {}; grant it that, or run `token-broker migrate` with a role that has it",
        lacking.join(", ")
    )
}
