//! The commands beside `serve`: what they print can be used, and they may run beside it.

use base64::prelude::{BASE64_STANDARD, Engine};
use libtest_mimic::Trial;
use sha2::{Digest, Sha256};
use token_broker_client::proto;
use token_broker_client::{Reason, Refusal};

use super::child::{Ended, Running, Serving, binary};
use super::site::{Site, with_line};
use crate::harness::trial;
use crate::harness::world::get_token;

const NO_MIGRATE: (&str, &str) = ("TOKEN_BROKER__DATABASE__MIGRATE", "false");

pub fn trials() -> Vec<Trial> {
    vec![
        trial("process::commands::keys_new_prints_an_entry_that_serve_takes", keys_new),
        trial("process::commands::keys_new_makes_another_key_each_time", keys_differ),
        trial("process::commands::api_key_new_prints_a_key_that_serve_takes", api_key_new),
        trial("process::commands::check_and_migrate_run_beside_serve", beside),
        trial("process::commands::check_says_what_serve_would_do", checked),
        trial("process::commands::migrate_makes_what_serve_needs", migrated),
        trial("process::commands::serve_without_migrations_names_the_remedy", not_migrated),
        trial("process::commands::check_fails_where_serve_would_lack_migrations", check_lacking),
        trial("process::commands::a_wrong_command_line_is_explained", usage),
    ]
}

async fn keys_new() {
    let site = Site::new().await;
    let ended = succeed(&["keys", "new", "--id", "2026-11"]).await;
    // The whole of it can be pasted: what is no TOML is a comment.
    let printed: toml::Table = ended.parse().expect("TOML");
    let keys = printed["keys"].as_array().expect("a list");
    assert_eq!((printed.len(), keys.len()), (1, 1));
    assert_eq!(keys[0]["id"].as_str(), Some("2026-11"));
    let key = keys[0]["key"].as_str().expect("a key");
    assert_eq!(BASE64_STANDARD.decode(key).expect("base64").len(), 32);

    site.write(&with_line(&site.config(), "keys", ended.trim_end()));
    let serving = site.serve().await;
    let token = site.granted(&serving, "u1").await;
    assert_eq!(serving.terminate().await.code, Some(0));

    // The other way of writing it is the same key: it opens what the first one sealed.
    let line = ended.lines().last().and_then(|line| line.strip_prefix("# ")).expect("a line");
    assert_eq!(line, format!("2026-11:{key}"));
    site.put("keyring", &format!("{line}\n"));
    site.write(&with_line(&site.config(), "keys", "keys_file = \"keyring\""));
    let serving = site.serve().await;
    let lent = serving.client().await.get_token(get_token("u1")).await.expect("a token");
    assert_eq!(lent.into_inner().token.expect("a token").access_token, token);
    assert_eq!(serving.terminate().await.code, Some(0));

    // Another key does not open it, and nobody takes the grant for dead because of that.
    let other = succeed(&["keys", "new", "--id", "2026-12"]).await;
    site.put(
        "keyring",
        other.lines().last().and_then(|line| line.strip_prefix("# ")).expect("a line"),
    );
    let serving = site.serve().await;
    let refused = serving.client().await.get_token(get_token("u1")).await.expect_err("sealed");
    assert_eq!(Refusal::of(&refused).expect("a refusal").reason, Reason::StorageUnavailable);
}

async fn keys_differ() {
    let [one, two] = [succeed(&["keys", "new"]).await, succeed(&["keys", "new"]).await];
    assert_ne!(one, two);
    for id in ["", "a:b", "a b", &"a".repeat(33)] {
        let ended = Running::start(binary(["keys", "new", "--id", id])).ended().await;
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{id:?}");
        assert!(ended.stderr.starts_with("token-broker: --id: must be 1 to 32 "), "{ended:?}");
    }
}

async fn api_key_new() {
    let site = Site::new().await;
    let printed = succeed(&["api-key", "new"]).await;
    let lines: Vec<_> = printed.lines().filter(|line| !line.starts_with('#')).collect();
    let [key, hash] = lines.as_slice() else { panic!("{printed}") };
    let expected = hex::encode(Sha256::digest(key.as_bytes()));
    assert_eq!(*hash, format!("api_keys_sha256 = [\"{expected}\"]"));

    site.write(&with_line(&site.config(), "api_keys_sha256", hash));
    let serving = site.serve().await;
    assert_eq!(providers(&serving, key).await, Ok(vec!["acme".to_owned()]));
    let other = crate::harness::world::api_key("helper");
    assert_eq!(providers(&serving, other.expose()).await, Err(Reason::Unauthenticated));
    // The hash is in the configuration, which more people see than the key.
    assert_eq!(providers(&serving, &expected).await, Err(Reason::Unauthenticated));
    assert_ne!(succeed(&["api-key", "new"]).await, printed);
}

async fn beside() {
    let site = Site::new().await;
    let serving = site.serve().await;
    let token = site.granted(&serving, "u1").await;
    let checked = site.run(&["check"]).await;
    assert_eq!((checked.code, checked.stderr.as_str()), (Some(0), ""), "{checked:?}");
    let lines: Vec<_> = checked.stdout.lines().collect();
    assert_eq!(lines[0], "configuration: in order (providers: 1, bots: 1, encryption keys: 1)");
    assert!(lines[1].starts_with("provider acme: in order ("), "{checked:?}");
    assert!(lines[2].starts_with("open files: in order (limit: "), "{checked:?}");
    assert_eq!(lines[3], "listeners: in order (a token-broker runs with them)");
    assert!(lines[4].starts_with("database: in order ("), "{checked:?}");
    assert!(lines[4].ends_with(", to be applied by serve: 0)"), "{checked:?}");
    for arguments in [&["migrate", "--status"][..], &["migrate"]] {
        let told = site.run(arguments).await;
        assert_eq!((told.code, told.stderr.as_str()), (Some(0), ""), "{told:?}");
        assert!(told.stdout.lines().count() > 0, "{told:?}");
        for line in told.stdout.lines() {
            assert!(line.starts_with("applied  ") && !line.ends_with("(now)"), "{told:?}");
        }
    }
    let lent = serving.client().await.get_token(get_token("u1")).await.expect("a token");
    assert_eq!(lent.into_inner().token.expect("a token").access_token, token);
    assert_eq!(serving.terminate().await.code, Some(0));
}

async fn checked() {
    let site = Site::new().await;
    let before = site.run(&["check"]).await;
    assert_eq!((before.code, before.stderr.as_str()), (Some(0), ""), "{before:?}");
    let expected =
        format!("database: {} does not exist yet; serve makes it", site.database().display());
    assert_eq!(before.stdout.lines().last(), Some(expected.as_str()));
    assert!(!site.database().exists(), "check makes nothing");
    site.serve().await.kill().await;
    let after = site.run(&["check"]).await;
    assert_eq!(after.code, Some(0), "{after:?}");
}

async fn migrated() {
    let site = Site::new().await;
    let before = site.run(&["migrate", "--status"]).await;
    assert_eq!(before.code, Some(0), "{before:?}");
    let steps = |ended: &Ended, word: &str, end: &str| -> Vec<String> {
        let named = ended.stdout.lines().map(|line| {
            let step = line.strip_prefix(word).and_then(|step| step.strip_suffix(end));
            step.unwrap_or_else(|| panic!("{ended:?}")).trim().to_owned()
        });
        named.collect()
    };
    let pending = steps(&before, "pending", "");
    assert!(!pending.is_empty());
    // To tell changed nothing: all is still to be done.
    let done = site.run(&["migrate"]).await;
    assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""), "{done:?}");
    assert_eq!(steps(&done, "applied", "(now)"), pending);
    let after = site.run(&["migrate", "--status"]).await;
    assert_eq!(steps(&after, "applied", ""), pending);

    let mut command = site.command(&["serve"]);
    command.env(NO_MIGRATE.0, NO_MIGRATE.1);
    let serving = Serving::start(command).await;
    let token = site.granted(&serving, "u1").await;
    assert!(site.provider.is_living(&token));
    assert_eq!(serving.terminate().await.code, Some(0));
}

async fn not_migrated() {
    let site = Site::new().await;
    let refused = site.run_with(&["serve"], &[NO_MIGRATE]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.starts_with("token-broker: the database lacks "), "{refused:?}");
    let remedy = "run `token-broker migrate --config FILE`, or set database.migrate = true";
    assert!(refused.stderr.trim_end().ends_with(remedy), "{refused:?}");
    // The remedy is one.
    assert_eq!(site.run(&["migrate"]).await.code, Some(0));
    let mut command = site.command(&["serve"]);
    command.env(NO_MIGRATE.0, NO_MIGRATE.1);
    assert_eq!(Serving::start(command).await.terminate().await.code, Some(0));
}

async fn check_lacking() {
    let site = Site::new().await;
    // No file yet: serve would find an empty database.
    let refused = site.run_with(&["check"], &[NO_MIGRATE]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stdout.contains("token-broker migrate --config FILE"), "{refused:?}");
    // The same for a file that is empty.
    std::fs::write(site.database(), "").expect("a file");
    let refused = site.run_with(&["check"], &[NO_MIGRATE]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stdout.contains("token-broker migrate --config FILE"), "{refused:?}");
}

async fn usage() {
    for arguments in [&[][..], &["serve"], &["serv"], &["keys"], &["migrate", "--stat", "x"]] {
        let ended = Running::start(binary(arguments)).ended().await;
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(ended.stderr.contains("Usage: token-broker"), "{ended:?}");
    }
    let version = succeed(&["--version"]).await;
    assert_eq!(version, format!("token-broker {}\n", env!("CARGO_PKG_VERSION")));
}

/// Runs a command that needs no configuration, and gives what it printed.
async fn succeed(arguments: &[&str]) -> String {
    let ended = Running::start(binary(arguments)).ended().await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{arguments:?}");
    ended.stdout
}

async fn providers(serving: &Serving, key: &str) -> Result<Vec<String>, Reason> {
    let mut client = serving.client_with(key).await;
    match client.list_providers(proto::ListProvidersRequest::default()).await {
        Ok(list) => Ok(list.into_inner().providers.into_iter().map(|p| p.name).collect()),
        Err(status) => Err(Refusal::of(&status).expect("a refusal").reason),
    }
}
