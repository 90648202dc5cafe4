//! `keys`: the keyring.

use std::process::ExitCode;

use base64::prelude::{BASE64_STANDARD, Engine};

use super::say;
use crate::crypto::random::Random;

pub(super) fn new(id: Option<String>, line: bool) -> anyhow::Result<ExitCode> {
    let id = id.unwrap_or_else(today);
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if id.is_empty() || id.len() > 32 || !id.chars().all(plain) {
        anyhow::bail!("--id: must be 1 to 32 letters, digits, '.', '_' or '-'");
    }
    let key = BASE64_STANDARD.encode(Random::system().bytes::<32>());
    if line {
        say(&format!("{id}:{key}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    say(
        "# In the configuration, under [encryption]; the first key seals, all open, so keep the old:",
    )?;
    say(&format!("keys = [{{ id = \"{id}\", key = \"{key}\" }}]"))?;
    say("# Or as a line of the file that encryption.keys_file names:")?;
    say(&format!("# {id}:{key}"))?;
    Ok(ExitCode::SUCCESS)
}

/// A name that no earlier key has, unless it was made today.
#[expect(clippy::disallowed_methods, reason = "a name for people, which nothing goes by")]
fn today() -> String {
    let now = humantime::format_rfc3339(std::time::SystemTime::now()).to_string();
    now.chars().take("2026-11-24".len()).collect()
}
