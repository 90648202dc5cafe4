//! `[database]`: where grants are stored.

use std::num::NonZeroU32;
use std::time::Duration;

use ::url::Url;
use secrecy::{ExposeSecret as _, SecretString};

use super::problem::Reported;
use super::section::{Section, nearest};
use super::value::{boolean, count, duration};

/// The known URL schemes.
const SCHEMES: [&str; 3] = [SQLITE, "postgres:", "postgresql:"];
const SQLITE: &str = "sqlite:";

/// The parameters that a PostgreSQL URL may have.
const PARAMETERS: [&str; 18] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

/// Parameters that name files, relative to the folder that the process is started in.
const FILES: [&str; 7] =
    ["sslrootcert", "ssl-root-cert", "ssl-ca", "sslcert", "ssl-cert", "sslkey", "ssl-key"];

const EXAMPLE: &str =
    "\"sqlite://token-broker.db?mode=rwc\" or \"postgres://USER:PASSWORD@HOST/DATABASE\"";

const DEFAULT_CONNECTIONS: u32 = 10;

/// Longer than most partitions of a network and the restart of a machine's container take.
const REPLICA_TIMEOUT: Duration = Duration::from_secs(60);
/// A few heartbeats.
const LEAST: Duration = Duration::from_secs(5);
const MOST: Duration = Duration::from_secs(60 * 60);

/// The database.
#[derive(Debug)]
pub struct Database {
    /// The URL of the database. A secret, because it may hold a password.
    pub url: SecretString,
    /// Another way to the same database, for notices from replica to replica.
    pub listen_url: Option<SecretString>,
    /// The most connections that one replica holds; at least 1.
    pub max_connections: u32,
    /// `true` if pending migrations are applied at start.
    pub migrate: bool,
    /// The time for which a replica that writes no heartbeat may still hold the response to a refresh.
    pub replica_timeout: Duration,
}

pub(super) fn read(mut section: Section<'_>) -> Result<Database, Reported> {
    let url = url(&mut section);
    let listen_url = listen_url(&mut section);
    let max_connections = section.optional("max_connections", count);
    let migrate = section.or("migrate", true, boolean);
    let replica_timeout = section.or("replica_timeout", REPLICA_TIMEOUT, duration(LEAST..=MOST));
    section.finish();
    Ok(Database {
        url: url?,
        listen_url: listen_url?,
        max_connections: max_connections?.map_or(DEFAULT_CONNECTIONS, NonZeroU32::get),
        migrate: migrate?,
        replica_timeout: replica_timeout?,
    })
}

/// Only PostgreSQL has notices.
fn listen_url(section: &mut Section<'_>) -> Result<Option<SecretString>, Reported> {
    let Some(secret) = section.secret("listen_url", "listen_url_file")? else { return Ok(None) };
    let text = secret.value.expose_secret();
    let is_postgres = SCHEMES.iter().any(|scheme| *scheme != SQLITE && text.starts_with(scheme));
    if !is_postgres {
        return Err(section.problem(
            secret.key,
            "must be a URL such as \"postgres://USER:PASSWORD@HOST/DATABASE\"",
        ));
    }
    postgres(section, secret.key, text)?;
    Ok(Some(secret.value))
}

/// Checks a PostgreSQL URL. Never with the parser's own words, which might quote a part of a password.
fn postgres(section: &Section<'_>, key: &'static str, text: &str) -> Result<(), Reported> {
    encoded(section, key, text)?;
    if Url::parse(text).is_err() {
        let wrong = "must be a URL such as \"postgres://USER:PASSWORD@HOST/DATABASE\"; a port is a number, and an IPv6 \
                     address stands in brackets";
        return Err(section.problem(key, wrong));
    }
    parameters(section, key, text)?;
    files(section, key, text)
}

/// Refuses a password with characters that end the part of a URL that it is in: what follows them would be taken for
/// the host or the database, and logged as such.
fn encoded(section: &Section<'_>, key: &'static str, text: &str) -> Result<(), Reported> {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let at_signs = rest.matches('@').count();
    let is_within = at_signs == authority.matches('@').count() && at_signs <= 1;
    let user = authority.split_once('@').map_or("", |(user, _)| user);
    let mut escapes = user.split('%').skip(1);
    let is_hex = |text: &str| text.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2;
    if is_within && !text.contains('#') && escapes.all(is_hex) {
        return Ok(());
    }
    Err(section.problem(
        key,
        "must have at most one @, before the host, and no #; percent-encode all but letters and digits in a user name, \
         password or parameter (@ is %40, # is %23, / is %2F, ? is %3F, : is %3A, % is %25)",
    ))
}

/// Refuses files that the driver would not find when it connects.
fn files(section: &Section<'_>, key: &'static str, text: &str) -> Result<(), Reported> {
    let Ok(url) = Url::parse(text) else { return Ok(()) };
    for (name, value) in url.query_pairs().filter(|(name, _)| FILES.contains(&name.as_ref())) {
        // A certificate may also be given as it is.
        if value.starts_with("-----BEGIN") {
            continue;
        }
        if let Err(error) = std::fs::File::open(value.as_ref()) {
            let wrong = format!(
                "has the parameter {name}, which names {value}: {error}; name a file that this process can read"
            );
            return Err(section.problem(key, wrong));
        }
    }
    Ok(())
}

/// Refuses what the driver would pass over: a mistyped `sslmode` must not turn verification off.
fn parameters(section: &Section<'_>, key: &'static str, text: &str) -> Result<(), Reported> {
    let Ok(url) = Url::parse(text) else { return Ok(()) };
    let unknown = |name: &str| !PARAMETERS.contains(&name) && !name.starts_with("options[");
    let found = url.query_pairs().map(|(name, _)| name.into_owned()).find(|name| unknown(name));
    // The driver then names a new prepared statement for every call and closes none: the server's
    // memory grows without end, and PgBouncer before 1.21 loses them.
    let uncached = url.query_pairs().any(|(name, value)| {
        name == "statement-cache-capacity" && value.trim_matches('0').is_empty()
    });
    if uncached {
        return Err(section.problem(
            key,
            "must not have statement-cache-capacity=0; behind PgBouncer use its session mode",
        ));
    }
    found.map_or(Ok(()), |name| {
        // Not the name itself: it may be a part of a password with an & in it.
        let remedy = match nearest(&name, PARAMETERS.into_iter()) {
            Some(known) => format!("did you mean {known}?"),
            None => format!("known are {}; in a password write %26 for &", PARAMETERS.join(", ")),
        };
        Err(section.problem(key, format!("has an unknown parameter; {remedy}")))
    })
}

fn url(section: &mut Section<'_>) -> Result<SecretString, Reported> {
    let Some(secret) = section.secret("url", "url_file")? else {
        return Err(section.missing("url", &format!("write {EXAMPLE} or name a url_file")));
    };
    let text = secret.value.expose_secret();
    // Drivers recognize only lower-case schemes.
    if !SCHEMES.iter().any(|scheme| text.starts_with(scheme)) {
        return Err(section.problem(secret.key, format!("must be a URL such as {EXAMPLE}")));
    }
    if !text.starts_with(SQLITE) {
        postgres(section, secret.key, text)?;
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
        let expected = format!("database.url: must be a URL such as {EXAMPLE}");
        let read = database("database.url = 'mysql://broker:hunter2@db/broker'");
        assert_eq!(read.expect_err("problems"), expected);
        for url in ["postgres://broker:hunter2/@db/broker", "postgres://broker:hunter2@db:pg/b"] {
            let wrong = database(&format!("database.url = '{url}'")).expect_err("problems");
            assert!(!wrong.contains("hunter2"), "{wrong}");
        }
        for url in ["postgres://broker:hunter2@db:6432/broker", "postgresql:///broker?host=/run"] {
            let read = database(&format!("database.url = '{url}'"));
            assert_eq!(read.expect("a section").url.expose_secret(), url);
        }
    }

    #[test]
    fn a_mistyped_parameter_is_refused() {
        let wrong = database("database.url = 'postgres://b:hunter2@db/b?sslmod=verify-full'");
        let wrong = wrong.expect_err("problems");
        let expected = "database.url: has an unknown parameter; did you mean sslmode?";
        assert!(wrong.starts_with(expected) && !wrong.contains("hunter2"), "{wrong}");
        for known in ["sslmode=verify-full&sslrootcert=/dev/null", "options[search_path]=x"] {
            assert!(database(&format!("database.url = 'postgres://db/b?{known}'")).is_ok());
        }
        let wrong = database("database.url = 'postgres://db/b?sslrootcert=/gone/ca.pem'");
        let wrong = wrong.expect_err("problems");
        assert!(
            wrong.starts_with("database.url: has the parameter sslrootcert, which names /gone/ca.pem: No such file"),
            "{wrong}"
        );
    }

    #[test]
    fn a_statement_cache_of_no_size_is_refused() {
        let url = "database.url = 'postgres://b@db/b?statement-cache-capacity=0'";
        assert_eq!(
            database(url).expect_err("problems"),
            "database.url: must not have statement-cache-capacity=0; behind PgBouncer use its \
             session mode"
        );
        assert!(database("database.url = 'postgres://b@db/b?statement-cache-capacity=10'").is_ok());
    }

    #[test]
    fn the_rest_of_the_section() {
        let text = "[database]\nmax_connections = 0\nmigrate = 'yes'\nlisten_url = 'x'";
        assert_eq!(
            database(text).expect_err("problems"),
            format!(
                "database.url: is required; write {EXAMPLE} or name a url_file\n\
             database.listen_url: must be a URL such as \"postgres://USER:PASSWORD@HOST/DATABASE\"\n\
             database.max_connections: must be a whole number from 1 to 4294967295\n\
             database.migrate: must be true or false, not a string"
            )
        );
    }
}
