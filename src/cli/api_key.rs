//! `api-key`: credentials of bots.

use std::process::ExitCode;

use super::say;
use crate::crypto::random::Random;
use crate::domain::bot::ApiKey;

pub(super) fn new() -> anyhow::Result<ExitCode> {
    let key = ApiKey::from_random(Random::system().bytes());
    say("# For the bot, as the metadata `authorization: Bearer <API key>`; it is shown only now:")?;
    say(key.expose())?;
    say("# For the configuration of the broker, under [bots.<name>]:")?;
    say(&format!("api_keys_sha256 = [\"{}\"]", hex::encode(key.sha256())))?;
    Ok(ExitCode::SUCCESS)
}
