//! `keys`: the keyring.

use std::process::ExitCode;

use base64::prelude::{BASE64_STANDARD, Engine};

use super::say;
use crate::crypto::random::Random;

pub(super) fn new(id: &str) -> anyhow::Result<ExitCode> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if id.is_empty() || id.len() > 32 || !id.chars().all(plain) {
        anyhow::bail!("--id: must be 1 to 32 letters, digits, '.', '_' or '-'");
    }
    let key = BASE64_STANDARD.encode(Random::system().bytes::<32>());
    say("# In the configuration, under [encryption]; the first key seals, all open:")?;
    say(&format!("keys = [{{ id = \"{id}\", key = \"{key}\" }}]"))?;
    say("# Or as a line of the file that encryption.keys_file names:")?;
    say(&format!("# {id}:{key}"))?;
    Ok(ExitCode::SUCCESS)
}
