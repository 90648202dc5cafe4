//! Tests of the configuration as a whole.

use std::fmt::Write as _;

use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};
use secrecy::ExposeSecret as _;

use super::*;
use crate::domain::bot::Providers;
use crate::domain::provider::{ClientAuth, ConfiguredAuth};

const FULL: &str = include_str!("../../tests/fixtures/config-full.toml");
const MINIMAL: &str = include_str!("../../tests/fixtures/config-minimal.toml");
const WRONG: &str = include_str!("../../tests/fixtures/config-wrong.toml");

fn parse(text: &str, variables: &[(&str, &str)]) -> Result<Config, Problems> {
    let variables = variables.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Config::parse(text, Path::new("/nowhere"), variables)
}

fn problems(text: &str, variables: &[(&str, &str)]) -> String {
    parse(text, variables).expect_err("problems").to_string()
}

#[test]
fn every_supported_key_is_taken() {
    let config = parse(FULL, &[]).expect("a configuration");
    assert_eq!(config.grpc.listen.to_string(), "0.0.0.0:50051");
    assert_eq!(config.grpc.plaintext, Plaintext::Allow);
    assert_eq!(config.http.public_url.as_str(), "https://broker.example.com/oauth");
    assert_eq!(config.ops.listen.to_string(), "[::1]:9090");
    assert_eq!((config.database.max_connections, config.database.migrate), (4, false));
    let ids: Vec<_> = config.encryption.keys.iter().map(|key| key.id.as_str()).collect();
    assert_eq!(ids, ["2026-11", "2026-05"]);
    assert_eq!(config.authorizations.link_ttl.as_secs(), 900);
    assert_eq!(config.authorizations.confirmation_ttl.as_secs(), 120);
    let providers: Vec<_> = config.providers.iter().map(|each| each.name.as_str()).collect();
    assert_eq!(providers, ["acme", "google"]);
    let bots: Vec<_> = config.bots.iter().map(|each| each.name.as_str()).collect();
    assert_eq!(bots, ["calendar", "helper"]);
    assert_eq!(config.telemetry.log, "info,token_broker=debug");
    assert_eq!(config.telemetry.log_format, Some(LogFormat::Text));
}

#[test]
fn the_least_configuration_has_defaults() {
    let config = parse(MINIMAL, &[]).expect("a configuration");
    assert_eq!(config.grpc.listen.to_string(), "127.0.0.1:50051");
    assert_eq!(config.http.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.ops.listen.to_string(), "127.0.0.1:9090");
    assert_eq!(config.telemetry.log_format, None);
}

#[test]
fn all_problems_are_told_together() {
    assert_eq!(
        problems(WRONG, &[("TOKEN_BROKER__OPS__PORT", "9090")]),
        "\
grpc.tls.key_file: is required; name the key of the certificate in PEM
grpc.lisen: is unknown; did you mean listen?
http.listen: must be a string, not an integer
http.public_url: must be an absolute https URL; http is allowed on loopback only
ops.listen: must be an IP address and a port, such as \"127.0.0.1:8080\"
ops.port: is unknown; known here: listen (set by TOKEN_BROKER__OPS__PORT)
database.url: must be a URL such as \"sqlite://token-broker.db?mode=rwc\" or \"postgres://USER:PASSWORD@HOST/DATABASE\"
database.listen_url: must be a URL such as \"postgres://USER:PASSWORD@HOST/DATABASE\"
database.max_connections: must be a whole number, not a date or time
encryption.keys_file: is given beside keys; keep one of them
authorizations.link_ttl: must be a duration from 10s to 1day, such as \"5m\"
cache.max_age: must be a duration from 0s to 1m, such as \"1m\"
egress.allowed_networks: item 1 must be a network such as \"10.0.0.0/8\" or \"fd00::/8\"
providers.acme.client_secret: must be a string, not an integer
providers.acme.preset: is not supported by this version yet; remove it
providers.token: is a command word of the bots; choose another name
providers.token.token_endpoint: must have no user information; remove what stands before the @
providers.token.client_secret: has no use with client_auth = \"none\"; remove it
bots.helper.api_keys_sha256: item 1 must be 64 hex digits; write the SHA-256 that `token-broker api-key new` prints
bots.helper.providers: item 2 \"gogle\" is no configured provider; there are: acme, token
bots.helper.device_flow: is not supported by this version yet; remove it
telemetry.log_format: must be \"json\" or \"text\"
audit: is not supported by this version yet; remove it
telemetri: is unknown; did you mean telemetry?"
    );
}

#[test]
fn an_empty_configuration_says_what_to_write() {
    let told = parse("", &[]).expect_err("problems");
    let keys: Vec<_> = told.as_slice().iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["http.public_url", "database.url", "encryption.keys", "providers", "bots"]);
}

#[test]
fn a_section_of_another_type_is_told_once() {
    let text = MINIMAL.replace("[http]", "[x.http]").replace("[providers.", "[x.providers.");
    let text = format!("http = true\nproviders = 'acme'\n{text}");
    assert_eq!(
        problems(&text, &[]),
        "http: must be a table, not a boolean\n\
         providers: must be a table, not a string\n\
         x: is unknown; known here: grpc, http, ops, database, encryption, authorizations, cache, \
         egress, providers, bots, telemetry"
    );
}

#[test]
fn the_environment_lies_over_the_file() {
    let config = parse(
        MINIMAL,
        &[
            ("TOKEN_BROKER__GRPC__LISTEN", "127.0.0.1:0"),
            ("TOKEN_BROKER__DATABASE__MAX_CONNECTIONS", "3"),
            ("TOKEN_BROKER__DATABASE__MIGRATE", "false"),
            ("TOKEN_BROKER__PROVIDERS__ACME__CLIENT_SECRET", "12345"),
            ("TOKEN_BROKER__BOTS__HELPER__RATE__PER_SECOND", "5"),
            ("TOKEN_BROKER__BOTS__HELPER__RATE__BURST", "6"),
            ("TOKEN_BROKER_PORT", "tcp://10.0.0.1:50051"),
        ],
    )
    .expect("a configuration");
    assert_eq!(config.grpc.listen.port(), 0);
    assert_eq!((config.database.max_connections, config.database.migrate), (3, false));
    // A secret of digits alone is still a text.
    let ConfiguredAuth::Fixed(ClientAuth::Basic(secret)) = &config.providers[0].client.auth else {
        panic!("another client authentication")
    };
    assert_eq!(secret.expose_secret(), "12345");
    let rate = config.bots[0].rate.expect("a rate");
    assert_eq!((rate.per_second.get(), rate.burst.get()), (5, 6));
}

#[test]
fn what_the_environment_gets_wrong_names_the_variable() {
    assert_eq!(
        problems(
            MINIMAL,
            &[
                ("TOKEN_BROKER__GPRC__LISTEN", "127.0.0.1:0"),
                ("TOKEN_BROKER__GRPC__PLAINTEXT", "no"),
                ("TOKEN_BROKER__PROVIDERS__ACME__CLIENT_SECRET", "canary"),
                ("TOKEN_BROKER__PROVIDERS__ACME__CLIENT_SECRET_FILE", "canary"),
            ]
        ),
        "grpc.plaintext: must be \"loopback\" or \"allow\" (set by TOKEN_BROKER__GRPC__PLAINTEXT)\n\
         providers.acme.client_secret_file: is given beside client_secret; keep one of them (set \
         by TOKEN_BROKER__PROVIDERS__ACME__CLIENT_SECRET_FILE)\n\
         gprc: is unknown; did you mean grpc? (set by TOKEN_BROKER__GPRC__LISTEN)"
    );
}

#[test]
fn load_finds_secrets_beside_the_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let inline = "url = \"sqlite://token-broker.db?mode=rwc\"";
    let text = MINIMAL.replace(inline, "url_file = \"url\"");
    let path = folder.path().join("broker.toml");
    std::fs::write(&path, text).expect("a file");
    std::fs::write(folder.path().join("url"), "sqlite://other.db\n").expect("a file");
    let config = Config::load(&path, std::iter::empty()).expect("a configuration");
    assert_eq!(config.database.url.expose_secret(), "sqlite://other.db");
    assert!(matches!(&config.bots[0].providers, Providers::Only(names) if names.len() == 1));
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let told = Config::load(Path::new("/nowhere/broker.toml"), std::iter::empty());
    assert_eq!(
        told.expect_err("problems").to_string(),
        "/nowhere/broker.toml: cannot be read: No such file or directory (os error 2); name a \
         text file with --config"
    );
}

#[test]
fn nothing_shows_a_secret() {
    let config =
        parse(&FULL.replace("token-broker.db", "canary.db"), &[]).expect("a configuration");
    let shown = format!("{config:?} {config:#?}");
    for secret in ["canary", "XiNvYq", "1, 1, 1"] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
    let told = parse(WRONG, &[]).expect_err("problems");
    assert!(!format!("{told} {told:?}").contains("canary"), "{told}");
}

/// Keys of every type, and some that are none.
const KEYS: [&str; 24] = [
    "grpc",
    "grpc.listen",
    "grpc.plaintext",
    "http.public_url",
    "database.url",
    "database.max_connections",
    "database.migrate",
    "encryption.keys",
    "authorizations.link_ttl",
    "cache.max_age",
    "providers",
    "providers.acme",
    "providers.acme.client_id",
    "providers.acme.client_secret",
    "providers.acme.token_endpoint",
    "providers.acme.scopes",
    "bots",
    "bots.helper.api_keys_sha256",
    "bots.helper.providers",
    "bots.helper.scopes",
    "bots.helper.rate",
    "telemetry.log",
    "x.y",
    "''",
];

fn value() -> impl Strategy<Value = String> {
    let text = any::<String>().prop_map(|text| toml::Value::String(text).to_string());
    let known = prop::sample::select(vec![
        "true",
        "-1",
        "1.5",
        "1979-05-27",
        "[]",
        "[1]",
        "['*']",
        "{}",
        "{ a = {} }",
        "{ acme = ['x'] }",
        "{ burst = 1 }",
        "[{ id = 'a', key = 'canary' }]",
        "'https://canary:canary@login.acme.example/'",
        "'canary'",
        "'10m'",
        "'0.0.0.0:1'",
    ]);
    prop_oneof![text, known.prop_map(str::to_owned)]
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in any::<String>()) {
        if let Err(told) = parse(&text, &[]) {
            prop_assert!(!told.as_slice().is_empty());
        }
    }

    #[test]
    fn no_values_make_it_panic_or_show_a_secret(
        values in prop::collection::btree_map(prop::sample::select(KEYS.to_vec()), value(), 0..9),
        variables in prop::collection::btree_map("[A-Za-z_]{0,20}", any::<String>(), 0..4),
    ) {
        let text = values.iter().fold(String::new(), |mut text, (key, value)| {
            let _ = writeln!(text, "{key} = {value}");
            text
        });
        let variables =
            variables.into_iter().map(|(name, value)| (format!("TOKEN_BROKER__{name}"), value));
        let told = Config::parse(&text, Path::new("/nowhere"), variables);
        // Bots are never complete here, so every configuration has a problem.
        let told = told.expect_err("problems");
        let rendered = told.to_string();
        prop_assert_eq!(rendered.lines().count(), told.as_slice().len());
        prop_assert!(!rendered.contains("canary"), "{rendered}");
    }
}

/// The example as an operator would fill it in.
fn filled_example() -> String {
    include_str!("../../token-broker.example.toml")
        .replace("<token-broker keys new>", "XiNvYq6hXRB9QS0pK4sIr2GjAbt5tAa3YR0IUbpO7zQ=")
        .replace("<token-broker api-key new>", &"ab".repeat(32))
        .replace("<from the provider>", "client-id")
        .replace("<the https URL by which browsers reach it>", "https://broker.example.com")
}

#[test]
fn the_example_is_in_order_and_its_comments_are_the_defaults() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("google-client-secret"), "secret\n").expect("a file");
    let parse = |text: &str| Config::parse(text, folder.path(), std::iter::empty());
    let example = filled_example();
    let plain = parse(&example).expect("the example");

    let uncommented: String = example
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            // A default, and not a sentence nor a choice that the operator has to fill in.
            Some(rest) if rest.contains(" = ") && !rest.contains('…') && !rest.contains(". ") => {
                rest
            }
            _ => line,
        })
        .flat_map(|line| [line, "\n"])
        .collect();
    assert_ne!(uncommented, example);
    let spelled_out = parse(&uncommented).expect("the example with every default spelled out");
    assert_eq!(spelled_out.grpc.listen, plain.grpc.listen);
    assert_eq!(spelled_out.grpc.plaintext, plain.grpc.plaintext);
    assert_eq!(spelled_out.http.listen, plain.http.listen);
    assert_eq!(spelled_out.ops.listen, plain.ops.listen);
    assert_eq!(spelled_out.database.max_connections, plain.database.max_connections);
    assert_eq!(spelled_out.database.migrate, plain.database.migrate);
    assert_eq!(spelled_out.authorizations.link_ttl, plain.authorizations.link_ttl);
    assert_eq!(spelled_out.authorizations.confirmation_ttl, plain.authorizations.confirmation_ttl);
    assert_eq!(spelled_out.bots[0].confirmation, plain.bots[0].confirmation);
    assert_eq!(spelled_out.bots[0].namespace, plain.bots[0].namespace);
    assert_eq!(spelled_out.telemetry.log, plain.telemetry.log);
}
