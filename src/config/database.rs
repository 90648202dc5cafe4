//! `[database]`: where grants are stored.

use std::num::NonZeroU32;

use secrecy::{ExposeSecret as _, SecretString};

use super::problem::Reported;
use super::section::Section;
use super::value::{boolean, count};

/// Keys of later versions.
const UNSUPPORTED: [&str; 1] = ["listen_url"];

/// Schemes of later versions.
const UNSUPPORTED_SCHEMES: [&str; 2] = ["postgres:", "postgresql:"];

const EXAMPLE: &str = "\"sqlite://token-broker.db?mode=rwc\"";

const DEFAULT_CONNECTIONS: u32 = 10;

/// The database.
#[derive(Debug)]
pub struct Database {
    /// What to connect to. A secret, for a password may be part of it.
    pub url: SecretString,
    /// The most connections that one replica holds; at least 1.
    pub max_connections: u32,
    /// Whether pending migrations are applied at start.
    pub migrate: bool,
}

pub(super) fn read(mut section: Section<'_>) -> Result<Database, Reported> {
    let url = url(&mut section);
    let max_connections = section.optional("max_connections", count);
    let migrate = section.or("migrate", true, boolean);
    section.refuse(&UNSUPPORTED);
    section.finish();
    Ok(Database {
        url: url?,
        max_connections: max_connections?.map_or(DEFAULT_CONNECTIONS, NonZeroU32::get),
        migrate: migrate?,
    })
}

fn url(section: &mut Section<'_>) -> Result<SecretString, Reported> {
    let Some(secret) = section.secret("url", "url_file")? else {
        return Err(section.missing("url", &format!("write {EXAMPLE} or name a url_file")));
    };
    let url = secret.value.expose_secret();
    let starts = |scheme: &&str| {
        url.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    };
    if UNSUPPORTED_SCHEMES.iter().any(starts) {
        return Err(section.problem(
            secret.key,
            format!("is of PostgreSQL, which a later version switches on; use {EXAMPLE}"),
        ));
    }
    if !starts(&"sqlite:") {
        return Err(section.problem(secret.key, format!("must be a URL such as {EXAMPLE}")));
    }
    Ok(secret.value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing;

    fn database(text: &str) -> Result<Database, String> {
        testing::read(text, |root| root.section("database").and_then(read))
    }

    #[test]
    fn defaults() {
        let database = database("database.url = 'sqlite://a.db'").expect("a section");
        assert_eq!(database.url.expose_secret(), "sqlite://a.db");
        assert_eq!((database.max_connections, database.migrate), (10, true));
    }

    #[test]
    fn other_databases_are_refused_without_their_password() {
        for (url, expected) in [
            (
                "postgres://broker:hunter2@db/broker",
                "database.url: is of PostgreSQL, which a later version switches on; use \
                 \"sqlite://token-broker.db?mode=rwc\"",
            ),
            (
                "mysql://broker:hunter2@db/broker",
                "database.url: must be a URL such as \"sqlite://token-broker.db?mode=rwc\"",
            ),
        ] {
            let read = database(&format!("database.url = '{url}'"));
            assert_eq!(read.expect_err("problems"), expected);
        }
    }

    #[test]
    fn the_rest_of_the_section() {
        let text = "[database]\nmax_connections = 0\nmigrate = 'yes'\nlisten_url = 'x'";
        assert_eq!(
            database(text).expect_err("problems"),
            "database.url: is required; write \"sqlite://token-broker.db?mode=rwc\" or name a \
             url_file\n\
             database.max_connections: must be a whole number from 1 to 4294967295\n\
             database.migrate: must be true or false, not a string\n\
             database.listen_url: is not supported by this version yet; remove it"
        );
    }
}
