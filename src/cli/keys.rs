//! `keys`: the keyring.

use std::process::ExitCode;

use anyhow::Context;
use base64::prelude::{BASE64_STANDARD, Engine};

use super::{connect, say};
use crate::config::Config;
use crate::crypto::random::Random;
use crate::storage::Forgotten;

pub(super) fn new(id: Option<String>, line: bool) -> anyhow::Result<ExitCode> {
    let random = Random::system();
    let id = id.unwrap_or_else(|| unique_id(&random));
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if id.is_empty() || id.len() > 32 || !id.chars().all(plain) {
        anyhow::bail!("--id: must be 1 to 32 letters, digits, '.', '_' or '-'");
    }
    let key = BASE64_STANDARD.encode(random.bytes::<32>());
    if line {
        say(&format!("{id}:{key}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    say(
        "# In the configuration, under [encryption]. The first key seals, all open. Beside keys that",
    )?;
    say(
        "# are in use, put it last on every replica first, restart them, and only then put it first:",
    )?;
    say(&format!("keys = [{{ id = \"{id}\", key = \"{key}\" }}]"))?;
    say("# Or as a line of the file that encryption.keys_file names:")?;
    say(&format!("# {id}:{key}"))?;
    Ok(ExitCode::SUCCESS)
}

/// Gives up a lost key if the operator has confirmed it.
pub(super) async fn forget(config: &Config, id: &str, is_sure: bool) -> anyhow::Result<ExitCode> {
    if config.encryption.keys.iter().any(|key| key.id == id) {
        anyhow::bail!(
            "encryption.keys has the key {id}, so nothing is lost; to give it up, take it out of \
             the configuration first"
        );
    }
    if !is_sure {
        anyhow::bail!(
            "every user whose grant the key {id} sealed will have to authorize again, and what it \
             sealed is deleted; add --yes to do so"
        );
    }
    let storage = connect(config).await?;
    let missing = storage.keys().check_keys().await.context("cannot read the keys")?.missing;
    let forgotten =
        storage.keys().forget_key(id).await.context("cannot give up the key; run it again")?;
    storage.close().await?;
    if forgotten == Forgotten::default() && !missing.iter().any(|known| known == id) {
        anyhow::bail!(
            "no row was sealed with the key {id}; keys with sealed rows that are not configured: {}",
            if missing.is_empty() { "none".to_owned() } else { missing.join(", ") }
        );
    }
    say(&format!(
        "gave up the key {id}: {} grants need a new authorization, {} sign-ins under way failed, {} \
         tokens can no longer be revoked at their provider",
        forgotten.grants, forgotten.authorizations, forgotten.revocations
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// The day, for people, and a random part, so that no two keys have one name.
#[expect(clippy::disallowed_methods, reason = "the day is for people; nothing else goes by it")]
fn unique_id(random: &Random) -> String {
    let now = humantime::format_rfc3339(std::time::SystemTime::now()).to_string();
    let day: String = now.chars().take("2026-11-24".len()).collect();
    format!("{day}-{}", hex::encode(random.bytes::<4>()))
}
