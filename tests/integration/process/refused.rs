//! `serve` refuses to start where it could not do its work, and says why; `check` says the same.

use std::net::TcpListener;

use libtest_mimic::Trial;

use super::child::{Ended, Running, binary};
use super::site::{Site, files, with_line};
use crate::harness::tools::root;
use crate::harness::trial;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("process::refused::a_second_serve_on_the_same_sqlite_file", second),
        trial("process::refused::a_second_serve_by_another_name_of_the_file", second_by_link),
        trial("process::refused::every_fault_is_told_at_once_by_serve_and_check", many_faults),
        trial("process::refused::a_configuration_wrong_everywhere_shows_no_secret", wrong_fixture),
        trial("process::refused::no_bot", no_bot),
        trial("process::refused::a_key_that_is_not_enforced", unsupported),
        trial("process::refused::public_http", public_http),
        trial("process::refused::a_public_listener_without_tls", public_listener),
        trial("process::refused::a_busy_port", busy_port),
        trial("process::refused::a_configuration_that_is_not_there", no_file),
        trial("process::refused::what_is_no_toml_without_quoting_it", no_toml),
        trial("process::refused::a_database_that_cannot_be_opened", no_database),
    ]
}

async fn second() {
    let site = Site::new().await;
    let first = site.serve().await;
    let token = site.granted(&first, "u1").await;
    // Its own ports are free: only the file is shared.
    let refused = site.run_with(&["serve"], &[("TOKEN_BROKER__HTTP__LISTEN", "127.0.0.1:0")]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    let file = site.database();
    let expected = format!("token-broker: another process serves {}: ", file.display());
    assert!(refused.stderr.contains(&expected), "{}", refused.stderr);
    assert!(!refused.stderr.contains("\"serving\""), "{}", refused.stderr);
    // The first one did not notice.
    let mut client = first.client().await;
    let lent = client.get_token(crate::harness::world::get_token("u1")).await.expect("a token");
    assert_eq!(lent.into_inner().token.expect("a token").access_token, token);
    first.kill().await;
    // Nothing is left of the lock of a process that was killed.
    site.serve().await;
}

async fn second_by_link() {
    let site = Site::new().await;
    let _first = site.serve().await;
    let link = site.path("link.db");
    std::os::unix::fs::symlink(site.database(), &link).expect("a link");
    let url = format!("sqlite://{}", link.display());
    let mut command = site.command(&["serve"]);
    command
        .env("TOKEN_BROKER__DATABASE__URL", url)
        .env("TOKEN_BROKER__HTTP__LISTEN", "127.0.0.1:0");
    let mut second = Running::start(command);
    // One that serves would not end by itself.
    let first_word = second
        .stderr
        .line(|line| {
            let told = ["another process serves ", "\"serving\""].into_iter();
            told.clone().find(|words| line.contains(words))
        })
        .await;
    assert_eq!(first_word, "another process serves ");
    assert_eq!(second.ended().await.code, Some(1));
}

async fn many_faults() {
    let site = Site::new().await;
    let mut config = with_line(&site.config(), "public_url", "public_url = \"broker.example.com\"");
    config = with_line(&config, "scopes", "scopes = [\"a b\"]");
    config = with_line(&config, "providers", "providers = [\"acne\"]");
    config = with_line(&config, "client_id", "clientid = \"token-broker\"");
    config = with_line(&config, "max_age", "max_age = \"soon\"");
    config.push_str("\nconfirmation = \"never\"\n");
    let problems = refused_alike(&site, &config).await;
    let keys: Vec<_> =
        problems.iter().map(|line| line.split_once(": ").expect("a key").0).collect();
    assert_eq!(
        keys,
        [
            "http.public_url",
            "cache.max_age",
            "providers.acme.client_id",
            "providers.acme.scopes",
            "providers.acme.clientid",
            "bots.helper.providers",
            "bots.helper.confirmation",
        ]
    );
    // The environment is part of the configuration, and the variable is named.
    let variable = [("TOKEN_BROKER__GRPC__LISTEN", "everywhere")];
    let ended = site.run_with(&["serve"], &variable).await;
    let told = "\ngrpc.listen: must be an IP address and a port";
    assert!(ended.stderr.contains(told), "{}", ended.stderr);
    assert!(ended.stderr.contains("(set by TOKEN_BROKER__GRPC__LISTEN)"), "{}", ended.stderr);
    assert_eq!(ended.stderr.lines().count(), 2 + keys.len(), "{}", ended.stderr);
}

async fn wrong_fixture() {
    let fixture = root().join("tests/fixtures/config-wrong.toml");
    let mut lines = Vec::new();
    for name in ["serve", "check", "migrate"] {
        let mut command = binary([name]);
        command.arg("--config").arg(&fixture);
        let ended = Running::start(command).ended().await;
        assert_eq!(ended.code, Some(if name == "check" { 1 } else { 78 }), "{name}");
        let told = format!("{}{}", ended.stdout, ended.stderr);
        assert!(!told.contains("canary:") && !told.contains("\"canary\""), "{told}");
        lines.push(told.lines().filter(|line| !line.starts_with("token-broker: ")).count());
    }
    assert!(lines[0] > 20, "{lines:?}");
    assert_eq!(lines, [lines[0]; 3]);
}

async fn no_bot() {
    let site = Site::new().await;
    let config = site.config();
    let (without, _) = config.split_once("[bots.helper]").expect("a bot");
    let problems = refused_alike(&site, without).await;
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].starts_with("bots: no bot is configured; add "), "{problems:?}");
}

async fn unsupported() {
    let site = Site::new().await;
    let config = format!("{}device_flow = true\n[audit]\nretention = \"90d\"\n", site.config());
    let problems = refused_alike(&site, &config).await;
    assert_eq!(
        problems,
        [
            "bots.helper.device_flow: is not supported by this version yet; remove it",
            "audit: is not supported by this version yet; remove it",
        ]
    );
}

async fn public_http() {
    let site = Site::new().await;
    let line = "public_url = \"http://broker.example.com\"";
    let problems = refused_alike(&site, &with_line(&site.config(), "public_url", line)).await;
    assert_eq!(
        problems,
        ["http.public_url: must be an absolute https URL; http is allowed on loopback only"]
    );
}

async fn public_listener() {
    let site = Site::new().await;
    let ended = site.run_with(&["serve"], &[("TOKEN_BROKER__GRPC__LISTEN", "0.0.0.0:0")]).await;
    assert_eq!(ended.code, Some(78), "{}", ended.stderr);
    let told = "grpc.listen: must be a loopback address, or tokens would cross the network in the";
    assert!(ended.stderr.contains(told), "{}", ended.stderr);
    // Nothing was made before the refusal.
    assert!(!site.database().exists());
}

async fn busy_port() {
    let site = Site::new().await;
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    for listener in ["GRPC", "HTTP", "OPS"] {
        let variable = format!("TOKEN_BROKER__{listener}__LISTEN");
        let key = format!("{}.listen", listener.to_lowercase());
        let ended = site.run_with(&["serve"], &[(&variable, &address)]).await;
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        let expected =
            format!("token-broker: {key}: cannot listen on {address}: Address already in use");
        let last = ended.stderr.lines().last().expect("a line");
        assert!(last.starts_with(&expected), "{}", ended.stderr);
        assert!(!ended.stderr.contains("\"serving\""), "{}", ended.stderr);
        let checked = site.run_with(&["check"], &[(&variable, &address)]).await;
        assert_eq!(checked.code, Some(1), "{checked:?}");
        let expected =
            format!("listeners: {key}: cannot listen on {address}: Address already in use");
        assert!(checked.stdout.contains(&expected), "{checked:?}");
    }
    // Two listeners cannot have one address either.
    drop(taken);
    let twice = [
        ("TOKEN_BROKER__GRPC__LISTEN", address.as_str()),
        ("TOKEN_BROKER__OPS__LISTEN", address.as_str()),
    ];
    let checked = site.run_with(&["check"], &twice).await;
    assert_eq!(checked.code, Some(1), "{checked:?}");
    let expected =
        format!("listeners: ops.listen: cannot listen on {address}: Address already in use");
    assert!(checked.stdout.contains(&expected), "{checked:?}");
}

async fn no_file() {
    let site = Site::new().await;
    std::fs::remove_file(site.path("token-broker.toml")).expect("it was there");
    for command in ["serve", "check"] {
        let ended = site.run(&[command]).await;
        assert_eq!(ended.code, Some(if command == "check" { 1 } else { 78 }), "{ended:?}");
        let path = site.path("token-broker.toml");
        let expected = format!("{}: cannot be read: No such file or directory", path.display());
        assert!(format!("{}{}", ended.stdout, ended.stderr).contains(&expected), "{ended:?}");
    }
    assert!(files(site.folder.path()).is_empty());
}

async fn no_toml() {
    let site = Site::new().await;
    // A quote that is not closed, in the line of a secret.
    let line = "client_secret = \"canary-unclosed";
    let problems = refused_alike(&site, &with_line(&site.config(), "client_secret", line)).await;
    assert_eq!(problems.len(), 1, "{problems:?}");
    let number = 1 + site
        .config()
        .lines()
        .position(|line| line.starts_with("client_secret"))
        .expect("the line");
    let expected = format!("configuration: line {number}, column ");
    assert!(problems[0].starts_with(&expected), "{problems:?}");
    assert!(!problems[0].contains("canary-unclosed"), "{problems:?}");
}

async fn no_database() {
    let site = Site::new().await;
    let folder = site.folder.path().display();
    for (url, expected) in [
        (format!("sqlite://{folder}/missing/token-broker.db?mode=rwc"), "does not exist; make it"),
        (format!("sqlite://{folder}/missing.db"), "does not exist; add ?mode=rwc to the URL"),
    ] {
        site.write(&with_line(&site.config(), "url", &format!("url = \"{url}\"")));
        let ended = site.run(&["serve"]).await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.starts_with("token-broker: database.url: "), "{ended:?}");
        assert!(ended.stderr.contains(expected), "{ended:?}");
        // `check` is there to tell before `serve` fails.
        let ended = site.run(&["check"]).await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stdout.contains(expected), "{ended:?}");
    }
}

/// Has `serve` and `check` refuse a configuration with the same words, and gives the problems.
async fn refused_alike(site: &Site, config: &str) -> Vec<String> {
    site.write(config);
    let Ended { code, stdout, stderr } = site.run(&["serve"]).await;
    assert_eq!((code, stdout.as_str()), (Some(78), ""), "{stderr}");
    let path = site.path("token-broker.toml");
    let first = format!("token-broker: the configuration {} cannot be used:\n", path.display());
    let problems = stderr.strip_prefix(&first).unwrap_or_else(|| panic!("{stderr}"));
    let checked = site.run(&["check"]).await;
    assert_eq!((checked.code, checked.stderr.as_str()), (Some(1), ""), "{}", checked.stdout);
    assert_eq!(checked.stdout, problems);
    // Nothing was made.
    assert!(!site.database().exists());
    problems.lines().map(str::to_owned).collect()
}
