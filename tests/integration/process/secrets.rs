//! Where secrets come from: the file, files that it names, and the environment over both.

use libtest_mimic::Trial;
use token_broker_client::proto;
use tokio::process::Command;

use super::child::{Running, Serving};
use super::site::{CLIENT_SECRET, ENCRYPTION_KEY, Site, files, with_line};
use crate::harness::world::authorize;
use crate::harness::{Browser, trial};

const SECRET: &str = "TOKEN_BROKER__PROVIDERS__ACME__CLIENT_SECRET";
const SECRET_FILE: &str = "TOKEN_BROKER__PROVIDERS__ACME__CLIENT_SECRET_FILE";

pub fn trials() -> Vec<Trial> {
    vec![
        trial("process::secrets::may_all_come_from_files", from_files),
        trial("process::secrets::a_missing_file_is_named", missing_file),
        trial("process::secrets::the_environment_wins_over_the_file", environment),
        trial("process::secrets::no_core_dump_is_left", core_dump),
        trial("process::secrets::a_wrong_client_secret_is_told_without_it", wrong_secret),
    ]
}

async fn from_files() {
    use base64::prelude::{BASE64_STANDARD, Engine};

    let site = Site::new().await;
    // Beside the configuration, with the newline that editors write.
    site.put("client-secret", &format!("{CLIENT_SECRET}\n"));
    let url = format!("sqlite://{}?mode=rwc", site.path("by-file.db").display());
    site.put("url", &format!("{url}\n"));
    let key = BASE64_STANDARD.encode(ENCRYPTION_KEY);
    site.put("keyring", &format!("# The keyring.\n\nfirst:{key}\n"));
    let mut config = site.config();
    for (key, line) in [
        ("client_secret", "client_secret_file = \"client-secret\""),
        ("url", "url_file = \"url\""),
        ("keys", "keys_file = \"keyring\""),
    ] {
        config = with_line(&config, key, line);
    }
    site.write(&config);
    assert_eq!(site.run(&["check"]).await.code, Some(0));
    let serving = site.serve().await;
    let token = site.granted(&serving, "u1").await;
    assert!(site.provider.is_living(&token));
    let names = files(site.folder.path());
    assert!(names.contains("by-file.db") && !names.contains("token-broker.db"), "{names:?}");
    assert_eq!(serving.terminate().await.code, Some(0));
}

async fn missing_file() {
    let site = Site::new().await;
    let line = "client_secret_file = \"not-there\"";
    site.write(&with_line(&site.config(), "client_secret", line));
    let ended = site.run(&["serve"]).await;
    assert_eq!(ended.code, Some(78), "{ended:?}");
    let told = format!(
        "\nproviders.acme.client_secret_file: names {}, which cannot be read: No such file",
        site.path("not-there").display()
    );
    assert!(ended.stderr.contains(&told), "{ended:?}");
    // Both in one layer: nobody could tell which one holds.
    let both = site.config().replace("scopes = [", &format!("{line}\nscopes = ["));
    site.write(&both);
    let ended = site.run(&["serve"]).await;
    assert_eq!(ended.code, Some(78), "{ended:?}");
    let told = "client_secret_file: is given beside client_secret; keep one of them";
    assert!(ended.stderr.contains(told), "{ended:?}");
}

async fn environment() {
    let site = Site::new().await;
    site.write(&with_line(&site.config(), "client_secret", "client_secret = \"of the file\""));
    let mut command = site.command(&["serve"]);
    command.env(SECRET, CLIENT_SECRET);
    let serving = Serving::start(command).await;
    site.granted(&serving, "u1").await;
    assert_eq!(serving.terminate().await.code, Some(0));

    // A file that a variable names replaces the value that the file has.
    let path = site.put("client-secret", CLIENT_SECRET);
    let mut command = site.command(&["serve"]);
    command.env(SECRET_FILE, &path);
    let serving = Serving::start(command).await;
    site.granted(&serving, "u2").await;
    assert_eq!(serving.terminate().await.code, Some(0));

    // Two in the environment are one too many.
    let mut command = site.command(&["serve"]);
    command.env(SECRET, CLIENT_SECRET).env(SECRET_FILE, &path);
    let ended = Running::start(command).ended().await;
    assert_eq!(ended.code, Some(78), "{ended:?}");
    assert!(ended.stderr.contains("is given beside client_secret; keep one of them"), "{ended:?}");
}

/// Also where the shell allows core files.
async fn core_dump() {
    let site = Site::new().await;
    let command = site.command(&["serve"]);
    let command = command.as_std();
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -c unlimited && exec \"$0\" \"$@\""]);
    shell.arg(command.get_program()).args(command.get_args()).current_dir(site.folder.path());
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let serving = Serving::start(shell).await;
    site.granted(&serving, "u1").await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", serving.process.pid));
    let limits = limits.expect("the process runs");
    let core = limits.lines().find(|line| line.starts_with("Max core file size"));
    let words: Vec<_> = core.expect("a limit").split_whitespace().collect();
    assert_eq!(words[4..6], ["0", "0"], "{words:?}");
    serving.process.crash();
    assert_eq!(serving.process.ended().await.code, None, "it ends by the signal");
    let left = files(site.folder.path());
    assert!(!left.iter().any(|name| name.contains("core")), "{left:?}");
}

async fn wrong_secret() {
    let site = Site::new().await;
    let wrong = [(SECRET, "canary of the environment")];
    let checked = site.run_with(&["check", "--online"], &wrong).await;
    assert_eq!(checked.code, Some(1), "{checked:?}");
    let line = checked.stdout.lines().find_map(|line| line.strip_prefix("client at acme: "));
    let line = line.unwrap_or_else(|| panic!("{checked:?}"));
    assert!(line.starts_with("refused: \"invalid_client\""), "{line}");
    let remedy = "; correct providers.acme.client_id, client_secret and client_auth";
    assert!(line.ends_with(remedy), "{line}");
    let checked = site.run(&["check", "--online"]).await;
    assert_eq!(checked.code, Some(0), "{checked:?}");
    let expected =
        "client at acme: accepted (a made-up refresh token was refused: \"invalid_grant\"";
    assert!(checked.stdout.contains(expected), "{checked:?}");

    let mut command = site.command(&["serve"]);
    command.env(SECRET, "canary of the environment");
    let serving = Serving::start(command).await;
    let mut client = serving.client().await;
    let started = client.authorize(authorize("u1")).await.expect("a link").into_inner();
    let page = Browser::new().allow(&started.authorization_url).await;
    assert_eq!(page.status, 502, "{}", page.body);
    assert_eq!(page.heading(), "This service is not set up rightly");
    let request = proto::GetAuthorizationRequest { authorization_id: started.authorization_id };
    let ended = client.get_authorization(request).await.expect("it is known").into_inner();
    let ended = ended.authorization.expect("it is known");
    assert_eq!(ended.state(), proto::AuthorizationState::Failed);
    assert_eq!(ended.error, "invalid_client");
    let left = serving.terminate().await;
    assert_eq!(left.code, Some(0));
    let remedy = "the provider refuses the client; check client_id, client_secret and client_auth";
    assert!(left.stderr.contains(remedy), "{}", left.stderr);
    for text in [&left.stdout, &left.stderr, &page.body] {
        assert!(!text.contains("canary of the environment"), "{text}");
    }
    assert_eq!(site.provider.ledger().tokens_issued, 0);
}
