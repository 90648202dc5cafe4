//! `demo`: the whole life of a token in one process, with lines that are piped in.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use libtest_mimic::Trial;
use tempfile::TempDir;
use token_broker_client::{ApiKey, Client, proto};

use super::child::{Ended, Running, binary};
use super::search::Needles;
use crate::harness::{Browser, trial};

const LINK: &str = "Please authorize the app by visiting: ";
const TOKEN: &str = "Access token: ";
const NO_GRANT: &str = "No access token found. Please authorize the app first.";

pub fn trials() -> Vec<Trial> {
    vec![
        trial("process::demo::shows_the_whole_life_of_a_token", whole_life),
        trial("process::demo::leaves_nothing_behind_without_a_data_dir", temporary),
        trial("process::demo::a_line_that_fails_makes_it_fail_after_the_rest", failed_lines),
        trial("process::demo::browser_without_a_link_fails", no_link),
        trial("process::demo::a_refusal_in_the_browser_leaves_no_grant", denied),
        trial("process::demo::a_wrong_code_is_refused_and_the_right_one_still_works", wrong_code),
        trial("process::demo::a_grant_survives_a_restart_with_a_data_dir", restarted),
        trial("process::demo::a_data_dir_is_private", private),
        trial("process::demo::a_data_dir_holds_no_token_in_clear", sealed),
        trial("process::demo::a_data_dir_is_used_by_one_demo_at_a_time", alone),
        trial("process::demo::a_busy_port_is_told_and_another_one_taken", busy_port),
        trial("process::demo::listens_on_loopback_alone", loopback),
        trial("process::demo::sigterm_ends_it_while_the_chat_waits", terminated),
    ]
}

/// Where a demo keeps its temporary folder.
fn place() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn start(place: &TempDir, data: Option<&Path>) -> Running {
    let mut command = binary(["demo"]);
    command.env("TMPDIR", place.path());
    if let Some(data) = data {
        command.arg("--data-dir").arg(data);
    }
    Running::start(command)
}

/// Runs lines to the end of the demo.
async fn chat(place: &TempDir, data: Option<&Path>, lines: &[&str]) -> Ended {
    let mut demo = start(place, data);
    demo.type_lines(lines).await;
    demo.ended().await
}

/// The rests of the lines that start so.
fn after<'a>(ended: &'a Ended, start: &str) -> Vec<&'a str> {
    ended.stdout.lines().filter_map(|line| line.strip_prefix(start)).collect()
}

/// Checks that texts come in this order, each after the one before.
fn in_order(ended: &Ended, texts: &[&str]) {
    let mut rest = ended.stdout.as_str();
    for text in texts {
        let at = rest.find(text);
        let at = at.unwrap_or_else(|| panic!("{text:?} is not there, or too early:\n{ended:?}"));
        rest = &rest[at + text.len()..];
    }
}

async fn whole_life() {
    let lines = [
        "/oauth",
        "/browser",
        "/oauth token",
        "/oauth refresh",
        "/oauth token",
        "/oauth list",
        "/oauth revoke",
        "/oauth token",
        "/quit",
        "/nothing is read any more",
    ];
    let ended = chat(&place(), None, &lines).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{}", ended.stdout);
    let tokens = after(&ended, TOKEN);
    assert_eq!(tokens.len(), 2, "{}", ended.stdout);
    assert_ne!(tokens[0], tokens[1]);
    assert!(tokens.iter().all(|token| token.len() >= 16), "{}", ended.stdout);
    let links = after(&ended, LINK);
    assert_eq!(links.len(), 1, "{}", ended.stdout);
    assert!(links[0].starts_with("http://127.0.0.1:"), "{}", links[0]);
    in_order(
        &ended,
        &[
            LINK,
            "/oauth confirm ",
            "Confirmed. The bot may act for you at demo, with: email profile.",
            tokens[0],
            "Access token refreshed successfully.",
            tokens[1],
            "demo: active; ",
            "scopes email profile; ",
            "; refreshable",
            "Access token revoked successfully.",
            NO_GRANT,
        ],
    );
    assert!(!ended.stdout.contains("nothing is read"), "{}", ended.stdout);
}

async fn temporary() {
    let place = place();
    let ended = chat(&place, None, &["/oauth", "/browser"]).await;
    // The end of the input is as good as /quit.
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.contains("Confirmed. "), "{ended:?}");
    assert!(super::site::files(place.path()).is_empty());
}

async fn failed_lines() {
    let ended = chat(&place(), None, &["/oauht token", "/oauth token", "/help", "/quit"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    in_order(&ended, &["Unknown command; /help lists them.", NO_GRANT, "/oauth confirm CODE"]);
    // Not to have a token is an answer, no failure.
    let ended = chat(&place(), None, &["/oauth token", "/oauth list", "/oauth revoke"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    in_order(&ended, &[NO_GRANT, "No grants.", NO_GRANT]);
    for line in ["/oauth confirm", "/oauth token nobody", "/oauth confirm 12345678", "hello"] {
        let ended = chat(&place(), None, &[line]).await;
        assert_eq!(ended.code, Some(1), "{line}: {ended:?}");
    }
}

async fn no_link() {
    let ended = chat(&place(), None, &["/browser", "/quit"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    in_order(&ended, &["/browser", "Type /oauth first."]);
}

async fn denied() {
    let lines = ["/oauth", "/browser deny", "/oauth token"];
    let ended = chat(&place(), None, &lines).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    in_order(&ended, &[LINK, "pressed Deny", "Nothing was shared", NO_GRANT]);
}

async fn wrong_code() {
    let place = place();
    let mut demo = start(&place, None);
    demo.type_lines(&["/oauth"]).await;
    let link = demo.stdout.line(|line| line.strip_prefix(LINK).map(str::to_owned)).await;
    let page = Browser::new().allow(&link).await;
    let shown = page.confirmation_code().expect("a code");
    let wrong: String = shown
        .chars()
        .map(|c| c.to_digit(10).map_or(c, |d| char::from_digit((d + 1) % 10, 10).expect("a digit")))
        .collect();
    demo.type_lines(&[&format!("/oauth confirm {wrong}"), "/oauth token"]).await;
    demo.stdout.line(|line| (line == "That is not the code; 4 attempts left.").then_some(())).await;
    demo.stdout.line(|line| (line == NO_GRANT).then_some(())).await;
    demo.type_lines(&[&format!("/oauth confirm {shown}"), "/oauth token"]).await;
    let token = demo.stdout.line(|line| line.strip_prefix(TOKEN).map(str::to_owned)).await;
    assert!(!token.is_empty());
    // One line has failed.
    assert_eq!(demo.ended().await.code, Some(1));
}

async fn restarted() {
    let place = place();
    let data = place.path().join("kept");
    let first = chat(&place, Some(&data), &["/oauth", "/browser", "/oauth token", "/quit"]).await;
    assert_eq!(first.code, Some(0), "{first:?}");
    let second =
        chat(&place, Some(&data), &["/oauth token", "/oauth refresh", "/oauth token"]).await;
    assert_eq!(second.code, Some(0), "{second:?}");
    let (before, tokens) = (after(&first, TOKEN), after(&second, TOKEN));
    assert_eq!((before.len(), tokens.len()), (1, 2));
    assert_eq!(tokens[0], before[0]);
    // The provider knows it too.
    assert_ne!(tokens[1], before[0]);
    assert!(second.stdout.contains("Access token refreshed successfully."), "{second:?}");
    // Another terminal's commands go on working.
    assert_eq!(
        banner(&first.stdout, "the bot's API key: "),
        banner(&second.stdout, "the bot's API key: ")
    );
}

/// Has a demo take a user through everything in a folder, and gives what `look` sees there while it
/// runs, for SQLite has files of its own then, and what it sees after the end.
async fn used<T>(data: &Path, place: &TempDir, look: fn(&Path) -> Vec<T>) -> (Vec<T>, Ended) {
    let mut demo = start(place, Some(data));
    demo.type_lines(&["/oauth", "/browser", "/oauth token", "/oauth refresh", "/oauth token"])
        .await;
    let tokens = |shown: &str| shown.lines().filter(|line| line.starts_with(TOKEN)).count();
    let mut seen = 0;
    while seen < 2 {
        demo.stdout.more().await;
        seen = tokens(&demo.stdout.so_far());
    }
    let mut found = look(data);
    let ended = demo.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    found.extend(look(data));
    (found, ended)
}

async fn private() {
    let place = place();
    let data = place.path().join("not/there/yet");
    let (found, _) = used(&data, &place, modes).await;
    let mode = std::fs::metadata(&data).expect("a folder").permissions().mode() & 0o777;
    assert_eq!(mode, 0o700, "{mode:o}");
    let open: BTreeSet<_> = found
        .iter()
        .filter(|(_, mode)| *mode != 0o600)
        .map(|(path, mode)| format!("{} {mode:o}", path.display()))
        .collect();
    assert!(open.is_empty(), "{open:?}");
}

async fn sealed() {
    let place = place();
    let data = place.path().join("kept");
    let (found, ended) = used(&data, &place, contents).await;
    let tokens: BTreeSet<_> = after(&ended, TOKEN).into_iter().collect();
    assert_eq!(tokens.len(), 2, "{ended:?}");
    let mut needles = Needles::default();
    for token in tokens {
        needles.add("an access token", token);
    }
    for name in ["token-broker.db", "token-broker.db-wal", "provider.json", "demo.log"] {
        assert!(found.iter().any(|(path, _)| path.ends_with(name)), "{name} was not looked at");
    }
    for (path, bytes) in found {
        needles.assert_absent(&path.display().to_string(), &bytes);
    }
}

async fn alone() {
    let place = place();
    let data = place.path().join("kept");
    let mut first = start(&place, Some(&data));
    first.stdout.line(|line| line.contains("Begin with /oauth").then_some(())).await;
    let second = chat(&place, Some(&data), &["/quit"]).await;
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.stderr.contains("another process serves "), "{second:?}");
    first.type_lines(&["/oauth", "/browser", "/quit"]).await;
    assert_eq!(first.ended().await.code, Some(0));
}

async fn busy_port() {
    // Where somebody else has it, it is as busy.
    let _held = TcpListener::bind("127.0.0.1:50051");
    let ended = chat(&place(), None, &["/oauth", "/browser", "/oauth token"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let port = banner(&ended.stdout, "Port 50051 is taken, so gRPC is on ");
    let port = port.trim_end_matches('.');
    assert_ne!(port, "50051");
    in_order(&ended, &[&format!("  gRPC 127.0.0.1:{port} "), LINK, TOKEN]);
}

async fn loopback() {
    let place = place();
    let mut demo = start(&place, None);
    demo.stdout.line(|line| line.contains("Begin with /oauth").then_some(())).await;
    let listening = listeners(demo.pid);
    assert_eq!(listening.len(), 4, "{listening:?}");
    // 127.0.0.1 as the kernel writes it.
    let elsewhere = listening.iter().filter(|address| !address.starts_with("0100007F:"));
    assert_eq!(elsewhere.count(), 0, "{listening:?}");

    // What the banner says for another terminal is so.
    let shown = demo.stdout.so_far();
    let key = ApiKey::new(banner(&shown, "the bot's API key: ")).expect("a key");
    let grpc = banner(&shown, "\n  gRPC ").split_whitespace().next().expect("an address");
    let channel = Client::channel(format!("http://{grpc}")).expect("a URL").connect().await;
    let mut client = Client::new(channel.expect("it listens"), key);
    let list = client.list_providers(proto::ListProvidersRequest::default()).await.expect("a list");
    let names: Vec<_> = list.into_inner().providers.into_iter().map(|p| p.name).collect();
    assert_eq!(names, ["demo"]);
    drop(client);
    assert_eq!(demo.ended().await.code, Some(0));
}

async fn terminated() {
    let place = place();
    let mut demo = start(&place, None);
    demo.stdout.line(|line| line.contains("Begin with /oauth").then_some(())).await;
    demo.send_sigterm().await;
    // Standard input is still open.
    let status = demo.ends_within(Duration::from_secs(10)).await;
    assert_eq!(status.code(), Some(0), "{}", demo.stderr.so_far());
    assert!(super::site::files(place.path()).is_empty());
}

/// What follows some words in the banner, to the end of the line.
fn banner<'a>(shown: &'a str, words: &str) -> &'a str {
    let rest = shown.split_once(words).unwrap_or_else(|| panic!("no {words:?} in {shown}")).1;
    rest.lines().next().expect("a line").trim()
}

/// The addresses on which a process listens for TCP, as the kernel writes them.
fn listeners(pid: u32) -> Vec<String> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the process runs");
    let sockets: BTreeSet<_> = entries
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|to| Some(to.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let mut found = Vec::new();
    for table in ["tcp", "tcp6"] {
        // Without IPv6 there is no table of it.
        let lines = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in lines.lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            // 0A: LISTEN.
            if fields[3] == "0A" && sockets.contains(fields[9]) {
                found.push(fields[1].to_owned());
            }
        }
    }
    found
}

/// Every file in a folder with its permissions.
fn modes(folder: &Path) -> Vec<(PathBuf, u32)> {
    let entries =
        std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry"));
    entries
        .map(|entry| (entry.path(), entry.metadata().expect("a file").permissions().mode() & 0o777))
        .collect()
}

fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let files = modes(folder).into_iter();
    files.map(|(path, _)| (path.clone(), std::fs::read(path).expect("a file"))).collect()
}
