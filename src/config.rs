//! The configuration: a TOML file with the environment over it, checked as a whole.
//!
//! Every section is a table that its reader takes apart key by key (`section`), so that a key that
//! is not enforced is a [`Problem`] and never ignored. All problems are reported together.

mod address;
mod authorizations;
mod bots;
mod cache;
mod database;
#[cfg(test)]
mod docs;
mod document;
mod egress;
mod encryption;
mod grpc;
mod http;
mod ops;
mod placeholder;
mod posture;
mod problem;
mod providers;
mod secret;
mod section;
mod telemetry;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tls;
mod value;

use std::path::Path;

pub use self::authorizations::Authorizations;
pub use self::bots::METHODS;
pub use self::database::Database;
pub use self::egress::Egress;
pub use self::encryption::{Encryption, EncryptionKey};
pub use self::grpc::{Grpc, Plaintext};
pub use self::http::Http;
pub use self::ops::Ops;
pub use self::problem::{Problem, Problems};
pub use self::telemetry::{LogFormat, Telemetry};

use self::problem::{Report, Reported};
use self::section::Section;
use crate::broker::Bounds;
use crate::domain::bot::Bot;
use crate::domain::provider::Provider;
use crate::file_access::{Access, Content};

/// Sections of later versions.
const UNSUPPORTED: [&str; 1] = ["audit"];

/// A configuration that was found in order. Secrets are in types whose `Debug` says nothing.
#[derive(Debug)]
pub struct Config {
    /// The listener for bots.
    pub grpc: Grpc,
    /// The listener for browsers.
    pub http: Http,
    /// The listener for health and metrics.
    pub ops: Ops,
    /// The database.
    pub database: Database,
    /// The keys that seal what is stored.
    pub encryption: Encryption,
    /// The time that a person has.
    pub authorizations: Authorizations,
    /// The time for which a token that was read may be served.
    pub cache: Bounds,
    /// The networks that the broker may connect to.
    pub egress: Egress,
    /// The authorization servers, in order of their names; at least one.
    pub providers: Vec<Provider>,
    /// The calling programs, in order of their names; at least one.
    pub bots: Vec<Bot>,
    /// Logs, traces and metrics.
    pub telemetry: Telemetry,
    /// Valid but weak settings.
    pub posture: Vec<Problem>,
}

impl Config {
    /// Reads the file at `path` and lays over it the variables that start with `TOKEN_BROKER__`.
    ///
    /// # Errors
    ///
    /// Everything that is wrong, or that the file cannot be read or is no TOML.
    pub fn load(
        path: &Path,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, Problems> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            let wrong = format!("cannot be read: {error}; name a text file with --config");
            Problems::new(vec![Problem::new(path.display().to_string(), wrong)])
        })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::parse_file(Some(path), &text, folder, environment)
    }

    /// The same for a text. Relative paths of `_file` keys, in the environment too, are resolved
    /// against `folder`.
    ///
    /// # Errors
    ///
    /// Everything that is wrong, or that the text is no TOML.
    pub fn parse(
        text: &str,
        folder: &Path,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, Problems> {
        Self::parse_file(None, text, folder, environment)
    }

    fn parse_file(
        file: Option<&Path>,
        text: &str,
        folder: &Path,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, Problems> {
        let (table, report) = document::read(text, folder, environment)
            .map_err(|problem| Problems::new(vec![problem]))?;
        let mut config = read(&mut Section::root(&report, table));
        if let Some(file) = file {
            check_file(file, &report);
        }
        if let Ok(config) = &mut config {
            config.posture = posture::of(config, &report);
        }
        let problems = report.into_problems();
        match config {
            Ok(config) if problems.is_empty() => Ok(config),
            _ => Err(Problems::new(problems)),
        }
    }
}

/// Refuses a configuration that anyone can change, and takes note of secrets in one that anyone can read.
fn check_file(file: &Path, report: &Report) {
    let name = file.display().to_string();
    let content = if report.has_secret.get() { Content::Secret } else { Content::Public };
    let access = Access::of(file);
    if access.all_write {
        let remedy = content.remedy();
        report.push(&name, format!("is a file that every user can write; run {remedy} on it"));
        return;
    }
    for weakness in access.weaknesses(content) {
        let holds = if content == Content::Secret { "a file with secrets" } else { "a file" };
        report.note(&name, format!("is {holds} {weakness}"));
    }
}

/// Reads every section before the first `?`, so that no problem hides another.
fn read(root: &mut Section<'_>) -> Result<Config, Reported> {
    let grpc = root.section("grpc").and_then(self::grpc::read);
    let http = root.section("http").and_then(self::http::read);
    let ops = root.section("ops").and_then(self::ops::read);
    let database = root.section("database").and_then(self::database::read);
    let encryption = root.section("encryption").and_then(self::encryption::read);
    let authorizations = root.section("authorizations").and_then(self::authorizations::read);
    let cache = root.section("cache").and_then(self::cache::read);
    let egress = root.section("egress").and_then(self::egress::read);
    let found = self::providers::read(root);
    let bots = self::bots::read(root, &found.names);
    let telemetry = root.section("telemetry").and_then(self::telemetry::read);
    root.refuse(&UNSUPPORTED);
    root.finish();

    Ok(Config {
        grpc: grpc?,
        http: http?,
        ops: ops?,
        database: database?,
        encryption: encryption?,
        authorizations: authorizations?,
        cache: cache?,
        egress: egress?,
        providers: found.providers?,
        bots: bots?,
        telemetry: telemetry?,
        posture: Vec::new(),
    })
}
