//! Reports settings that are valid but weaker than they could be. `check` prints them, and `serve` logs them once at its
//! start.

use std::net::IpAddr;

use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use super::Config;
use super::grpc::Plaintext;
use super::problem::{Problem, Report};
use crate::domain::bot::Confirmation;

/// Finds what deserves a second look, in the order of the sections.
pub(super) fn of(config: &Config, report: &Report) -> Vec<Problem> {
    let mut found = report.take_notes();
    let is_plain = config.grpc.tls.is_none();
    if is_plain
        && config.grpc.plaintext == Plaintext::Allow
        && !is_loopback(config.grpc.listen.ip())
    {
        found.push(Problem::new(
            "grpc.plaintext",
            "API keys and tokens cross the network in clear text, unless a mesh or a load balancer does TLS in front; \
             else configure [grpc.tls]",
        ));
    }
    if config.http.tls.is_none() && !is_loopback(config.http.listen.ip()) {
        found.push(Problem::new(
            "http.listen",
            "cookies and authorization codes cross the network in clear text, unless a proxy does TLS in front; else \
             configure [http.tls]",
        ));
    }
    if !is_loopback(config.ops.listen.ip()) {
        found.push(Problem::new(
            "ops.listen",
            "metrics name the bots and providers; let only the platform and the monitoring reach this address",
        ));
    }
    found.extend(unverified_tls("database.url", &config.database.url));
    let listen_url = config.database.listen_url.as_ref();
    found.extend(listen_url.and_then(|url| unverified_tls("database.listen_url", url)));
    for provider in config.providers.iter().filter(|provider| provider.ignores_id_tokens) {
        found.push(Problem::new(
            format!("providers.{}.id_token", provider.name),
            "ID tokens are not checked, so a reconnect by another account of the provider is not noticed; write \
             \"check\" and the issuer if this provider has one",
        ));
    }
    for bot in config.bots.iter().filter(|bot| bot.confirmation == Confirmation::None) {
        found.push(Problem::new(
            format!("bots.{}.confirmation", bot.name),
            "without a code, a person who opens a forwarded link gives their account to the chat user who asked for \
             it; write \"code\" unless this bot's links cannot be forwarded",
        ));
    }
    found
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// A connection over a network on which anyone could pose as the database.
fn unverified_tls(key: &str, url: &SecretString) -> Option<Problem> {
    let url = Url::parse(url.expose_secret()).ok()?;
    let last = |names: &[&str]| {
        let values = url.query_pairs().filter(|(name, _)| names.contains(&name.as_ref()));
        values.last().map(|(_, value)| value.into_owned())
    };
    // The driver connects to the parameter rather than to the URL's host.
    let host = last(&["hostaddr", "host"]).or_else(|| url.host_str().map(str::to_owned));
    let is_local = host.is_none_or(|host| {
        let address = host.trim_start_matches('[').trim_end_matches(']').parse();
        let is_socket = host.starts_with('/') || host.to_ascii_lowercase().starts_with("%2f");
        host.is_empty() || host == "localhost" || is_socket || address.is_ok_and(is_loopback)
    });
    let mode = last(&["sslmode", "ssl-mode"]).unwrap_or_default().to_ascii_lowercase();
    if url.scheme() == "sqlite" || is_local || mode == "verify-full" || mode == "verify-ca" {
        return None;
    }
    Some(Problem::new(
        key,
        "the server's certificate is not verified, so anyone on the way can pose as the database; \
         add sslmode=verify-full, and sslrootcert if its CA is not the system's",
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use super::*;

    const MINIMAL: &str = include_str!("../../tests/fixtures/config-minimal.toml");

    fn parse(text: &str, folder: &Path, variables: &[(&str, &str)]) -> Result<Config, String> {
        let variables = variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
        Config::parse(text, folder, variables).map_err(|problems| problems.to_string())
    }

    fn notes(variables: &[(&str, &str)]) -> Vec<String> {
        let config = parse(MINIMAL, Path::new(""), variables).expect("a configuration");
        config.posture.into_iter().map(|note| note.key).collect()
    }

    #[test]
    fn each_weakness_is_noted() {
        assert_eq!(notes(&[]), [""; 0]);
        let url = "TOKEN_BROKER__DATABASE__URL";
        for (variables, key) in [
            (
                &[
                    ("TOKEN_BROKER__GRPC__PLAINTEXT", "allow"),
                    ("TOKEN_BROKER__GRPC__LISTEN", "0.0.0.0:50051"),
                ][..],
                "grpc.plaintext",
            ),
            (&[("TOKEN_BROKER__HTTP__LISTEN", "0.0.0.0:8080")], "http.listen"),
            (&[("TOKEN_BROKER__OPS__LISTEN", "[::]:9090")], "ops.listen"),
            (&[(url, "postgres://u:p@db.example/broker")], "database.url"),
            (&[(url, "postgres://u:p@10.0.0.1/broker?sslmode=require")], "database.url"),
            (&[(url, "postgres://u:p@localhost/broker?host=db.example")], "database.url"),
            (
                &[(url, "postgres://db.example/b?sslmode=verify-full&sslmode=disable")],
                "database.url",
            ),
            (
                &[("TOKEN_BROKER__DATABASE__LISTEN_URL", "postgres://u:p@db.example/broker")],
                "database.listen_url",
            ),
            (&[("TOKEN_BROKER__BOTS__HELPER__CONFIRMATION", "none")], "bots.helper.confirmation"),
            (&[("TOKEN_BROKER__PROVIDERS__ACME__ID_TOKEN", "ignore")], "providers.acme.id_token"),
        ] {
            assert_eq!(notes(variables), [key], "{variables:?}");
        }
        for verified in [
            "postgres://u:p@db.example/broker?sslmode=verify-full",
            "postgres://u:p@localhost/broker",
            "postgres://u:p@[::1]/broker",
            "postgres:///broker?host=/run/postgresql",
            "postgres://u:p@127.0.0.1/broker",
            "postgres://%2Frun%2Fpostgresql/broker",
            "postgres://u:p@db.example/broker?sslmode=VERIFY-FULL",
        ] {
            assert_eq!(notes(&[(url, verified)]), [""; 0], "{verified}");
        }
    }

    #[test]
    fn files_of_secrets_belong_to_one_user() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("url");
        std::fs::write(&file, "sqlite://token-broker.db").expect("a file");
        let with_mode = |mode| {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("a mode");
            let variables = [("TOKEN_BROKER__DATABASE__URL_FILE", "url")];
            parse(MINIMAL, folder.path(), &variables).map(|config| config.posture)
        };
        assert_eq!(with_mode(0o640).expect("a configuration"), []);
        let readable = with_mode(0o644).expect("a configuration");
        assert_eq!(readable[0].key, "database.url_file");
        assert!(
            readable[0].message.ends_with("which every user can read; run chmod 600 on it"),
            "{readable:?}"
        );
        let of_group = with_mode(0o620).expect("a configuration");
        assert!(
            of_group[0].message.ends_with("which its group can write; run chmod g-w on it"),
            "{of_group:?}"
        );
        assert_eq!(with_mode(0o664).expect("a configuration").len(), 2);
        let folder_mode = |mode| {
            std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(mode))
                .expect("a mode");
        };
        folder_mode(0o777);
        let replaceable = with_mode(0o600).expect("a configuration");
        assert!(
            replaceable[0]
                .message
                .ends_with("whose folder every user can write; run chmod go-w on the folder"),
            "{replaceable:?}"
        );
        folder_mode(0o1777);
        assert_eq!(with_mode(0o600).expect("a configuration"), []);
        let wrong = with_mode(0o666).expect_err("a problem");
        assert!(wrong.contains("which every user can write; run chmod 600"), "{wrong}");
    }

    #[test]
    fn a_configuration_file_with_secrets_belongs_to_one_user() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("token-broker.toml");
        let with_mode = |text: &str, mode| {
            std::fs::write(&file, text).expect("a file");
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("a mode");
            let loaded = Config::load(&file, std::iter::empty());
            let messages =
                |problems: Vec<Problem>| problems.into_iter().map(|p| p.message).collect();
            loaded.map(|config| messages(config.posture)).map_err(|wrong| wrong.to_string())
        };
        let notes: Vec<String> = with_mode(MINIMAL, 0o600).expect("a configuration");
        assert_eq!(notes, [""; 0]);
        let notes = with_mode(MINIMAL, 0o644).expect("a configuration");
        assert_eq!(
            notes,
            ["is a file with secrets which every user can read; run chmod 600 on it"]
        );
        let wrong = with_mode(MINIMAL, 0o622).expect_err("a problem");
        assert!(
            wrong.ends_with("is a file that every user can write; run chmod 600 on it"),
            "{wrong}"
        );

        for (name, text) in
            [("key", "XiNvYq6hXRB9QS0pK4sIr2GjAbt5tAa3YR0IUbpO7zQ="), ("secret", "x")]
        {
            let file = folder.path().join(name);
            std::fs::write(&file, text).expect("a file");
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))
                .expect("a mode");
        }
        let without = MINIMAL
            .replace("key = \"XiNvYq6hXRB9QS0pK4sIr2GjAbt5tAa3YR0IUbpO7zQ=\"", "key_file = \"key\"")
            .replace("client_secret = \"canary-acme\"", "client_secret_file = \"secret\"");
        assert_eq!(with_mode(&without, 0o644).expect("a configuration"), [""; 0]);
    }

    #[test]
    fn what_is_never_right_is_refused() {
        let wrong = |text: &str| parse(text, Path::new(""), &[]).expect_err("a problem");
        let with = |line: &str| format!("{MINIMAL}\n{line}");
        let empty = hex::encode(crate::domain::bot::ApiKey::hash(""));
        let other = "ab".repeat(32);
        for (text, expected) in [
            (
                with(&format!("[bots.b]\nproviders = ['*']\napi_keys_sha256 = ['{empty}']")),
                "api-key new",
            ),
            (
                with(&format!(
                    "[bots.b]\nproviders = ['*']\nnamespace = 'helper'\nconfirmation = 'none'\n\
                     api_keys_sha256 = ['{other}']"
                )),
                "bots.helper.confirmation: differs from that of bots.b",
            ),
            (
                with(
                    "[providers.b]\nauthorization_endpoint = 'https://b.example/a'\n\
                     token_endpoint = 'https://b.example/t'\nclient_id = 'x'\nclient_secret = 'y'\n\
                     scopes = ['openid']",
                ),
                "providers.b.issuer: is required; write the issuer, whose ID tokens can be checked",
            ),
        ] {
            let wrong = wrong(&text);
            assert!(wrong.contains(expected), "{wrong}");
        }
        for url in [
            "postgres://u:pa#ss@db.example/broker",
            "postgres://u:pa@ss@db.example/broker",
            "postgres://u:pa/ss@db.example/broker",
            "postgres://u:pa?ss@db.example/broker",
            "postgres://u:pa%ss@db.example/broker",
        ] {
            let wrong = parse(MINIMAL, Path::new(""), &[("TOKEN_BROKER__DATABASE__URL", url)]);
            let wrong = wrong.expect_err(url);
            assert!(wrong.contains("? is %3F"), "{url}: {wrong}");
            assert!(!wrong.contains("ss@"), "{url}: {wrong}");
        }
    }
}
