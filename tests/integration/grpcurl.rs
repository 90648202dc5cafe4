//! The tool that people debug the broker with, the real one.

use std::process::Output;

use libtest_mimic::Trial;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::harness::world::{PROVIDER, api_key, authorize};
use crate::harness::{Browser, World, tools, trial_with};

const SERVICE: &str = "tokenbroker.v1.TokenBrokerService";

pub fn trials() -> Vec<Trial> {
    vec![
        trial_with(
            &[tools::GRPCURL],
            "grpcurl::lists_and_describes_without_a_credential",
            describes,
        ),
        trial_with(&[tools::GRPCURL], "grpcurl::calls_and_prints_the_details_of_errors", calls),
        trial_with(&[tools::GRPCURL], "grpcurl::calls_every_method", every_method),
        trial_with(&[tools::GRPCURL], "grpcurl::answers_as_the_documentation_shows", documented),
        trial_with(&[tools::GRPCURL], "grpcurl::takes_reflection_or_the_proto", reflects),
    ]
}

async fn grpcurl(arguments: &[&str]) -> Output {
    let tool = tools::find("grpcurl").expect("the harness has found it");
    Command::new(tool).args(arguments).kill_on_drop(true).output().await.expect("grpcurl runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

async fn describes() {
    let world = World::start().await;
    let address = world.grpc_address.to_string();
    let list = grpcurl(&["-plaintext", &address, "list"]).await;
    assert!(list.status.success(), "{}", text(&list.stderr));
    let listed = text(&list.stdout);
    for service in [SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"] {
        assert!(listed.lines().any(|line| line == service), "{listed}");
    }
    let described = grpcurl(&["-plaintext", &address, "describe", SERVICE]).await;
    assert_eq!(text(&described.stdout).matches("rpc ").count(), 11);
    let health = grpcurl(&[
        "-plaintext",
        "-d",
        &format!("{{\"service\":\"{SERVICE}\"}}"),
        &address,
        "grpc.health.v1.Health/Check",
    ])
    .await;
    assert!(text(&health.stdout).contains("SERVING"), "{}", text(&health.stderr));
}

/// One call with the key of `helper`; gives what is printed where it succeeds, or else the error.
async fn call(world: &World, method: &str, request: &Value) -> Result<Value, String> {
    let header = format!("authorization: Bearer {}", api_key("helper").expose());
    let address = world.grpc_address.to_string();
    let method = format!("{SERVICE}/{method}");
    let request = request.to_string();
    let call = ["-plaintext", "-H", &header, "-d", &request, &address, &method];
    let called = grpcurl(&call).await;
    if called.status.success() {
        Ok(serde_json::from_slice(&called.stdout).expect("JSON"))
    } else {
        Err(text(&called.stderr))
    }
}

async fn every_method() {
    let world = World::start().await;
    let key = json!({"provider": PROVIDER, "subject": "u1"});
    let run = async |method: &str, request: Value| {
        call(&world, method, &request).await.unwrap_or_else(|error| panic!("{method}: {error}"))
    };
    let listed = run("ListProviders", json!({})).await;
    assert_eq!(listed["providers"][0]["name"], PROVIDER);
    let started = run("Authorize", json!({"key": key})).await;
    let id = &started["authorizationId"];
    let seen = run("GetAuthorization", json!({"authorization_id": id})).await;
    assert_eq!(seen["authorization"]["state"], "AUTHORIZATION_STATE_PENDING");
    let other = run("Authorize", json!({"key": key})).await;
    let cancel = json!({"authorization_id": other["authorizationId"]});
    let cancelled = run("CancelAuthorization", cancel.clone()).await;
    assert_eq!(cancelled["authorization"]["state"], "AUTHORIZATION_STATE_CANCELLED");
    // It ends after the final state.
    let watched = run("WatchAuthorization", cancel).await;
    assert_eq!(watched["authorization"]["state"], "AUTHORIZATION_STATE_CANCELLED");

    let link = started["authorizationUrl"].as_str().expect("a link");
    let code = Browser::new().allow(link).await.confirmation_code().expect("a code");
    let confirmed = run("ConfirmAuthorization", json!({"subject": "u1", "code": code})).await;
    assert_eq!(confirmed["grant"]["key"]["subject"], "u1");
    let lent = run("GetToken", json!({"key": key})).await;
    let first = lent["token"]["accessToken"].as_str().expect("a token");
    let etag = &lent["token"]["etag"];
    let refreshed = run("Refresh", json!({"key": key, "etag": etag})).await;
    let second = refreshed["token"]["accessToken"].as_str().expect("a token");
    assert_ne!(first, second);
    let grants = run("ListGrants", json!({"subject": "u1"})).await;
    assert_eq!(grants["grants"].as_array().expect("a list").len(), 1);
    assert_eq!(grants["grants"][0]["state"], "GRANT_STATE_ACTIVE");
    let revoked = run("Revoke", json!({"key": key})).await;
    assert_eq!(revoked["revocation"], "REVOCATION_DONE");
    let revoked = run("RevokeAll", json!({"subject": "u1"})).await;
    assert_eq!(revoked, json!({}));
    let refused = call(&world, "GetToken", &json!({"key": key})).await.expect_err("no grant");
    assert!(refused.contains(r#""reason": "AUTHORIZATION_REQUIRED""#), "{refused}");

    // Every method of the contract was called.
    let address = world.grpc_address.to_string();
    let listed = text(&grpcurl(&["-plaintext", &address, "list", SERVICE]).await.stdout);
    let called = [
        "Authorize",
        "CancelAuthorization",
        "ConfirmAuthorization",
        "GetAuthorization",
        "GetToken",
        "ListGrants",
        "ListProviders",
        "Refresh",
        "Revoke",
        "RevokeAll",
        "WatchAuthorization",
    ];
    let called: Vec<_> = called.iter().map(|method| format!("{SERVICE}.{method}")).collect();
    assert_eq!(listed.lines().collect::<Vec<_>>(), called);
}

async fn reflects() {
    let world = World::start().await;
    let address = world.grpc_address.to_string();
    let method = "grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let request = format!(r#"{{"file_containing_symbol":"{SERVICE}"}}"#);
    let asked = grpcurl(&["-plaintext", "-d", &request, &address, method]).await;
    assert!(text(&asked.stdout).contains("fileDescriptorProto"), "{}", text(&asked.stderr));
    // The details of errors are known too.
    let detail = grpcurl(&["-plaintext", &address, "describe", "google.rpc.ErrorInfo"]).await;
    assert!(text(&detail.stdout).contains("string reason"), "{}", text(&detail.stderr));
    // Without reflection, the contract's file does as well.
    let proto = tools::root().join("proto");
    let header = format!("authorization: Bearer {}", api_key("helper").expose());
    let called = grpcurl(&[
        "-plaintext",
        "-use-reflection=false",
        "-import-path",
        proto.to_str().expect("a plain path"),
        "-proto",
        "tokenbroker/v1/token_broker.proto",
        "-H",
        &header,
        &address,
        &format!("{SERVICE}/ListProviders"),
    ])
    .await;
    assert!(text(&called.stdout).contains(PROVIDER), "{}", text(&called.stderr));
}

async fn calls() {
    let world = World::start().await;
    let address = world.grpc_address.to_string();
    let method = format!("{SERVICE}/GetToken");
    let request = format!(
        r#"{{"key":{{"provider":"{PROVIDER}","subject":"u1"}},"start_authorization":{{}}}}"#
    );
    let refused = grpcurl(&["-plaintext", "-d", &request, &address, &method]).await;
    assert!(!refused.status.success());
    let told = text(&refused.stderr);
    assert!(told.contains("Code: Unauthenticated") && told.contains("UNAUTHENTICATED"), "{told}");

    let header = format!("authorization: Bearer {}", api_key("helper").expose());
    let call = ["-plaintext", "-H", &header, "-d", &request, &address, &method];
    let told = text(&grpcurl(&call).await.stderr);
    for part in [
        "Code: FailedPrecondition",
        r#""@type": "type.googleapis.com/google.rpc.ErrorInfo""#,
        r#""reason": "AUTHORIZATION_REQUIRED""#,
        r#""domain": "tokenbroker.v1""#,
        r#""@type": "type.googleapis.com/google.rpc.Help""#,
        r#""@type": "type.googleapis.com/tokenbroker.v1.AuthorizeResponse""#,
        &format!("{}/oauth2/start/", world.http_url),
    ] {
        assert!(told.contains(part), "{part} is missing in:\n{told}");
    }

    let token = world.granted("u1").await;
    let lent = grpcurl(&call).await;
    assert!(lent.status.success(), "{}", text(&lent.stderr));
    assert!(text(&lent.stdout).contains(&format!("\"accessToken\": \"{token}\"")));
}

/// The session of the documentation: what its lines are answered with is what stands below them.
async fn documented() {
    let world = World::start().await;
    let text = std::fs::read_to_string(tools::root().join("docs/grpcurl.md")).expect("the text");
    let mut code = None;
    // What one line defines, the later ones use.
    let mut defined = String::new();
    let mut run = 0;
    for (command, expected) in lines_of(&text) {
        if command.contains("$CODE") && code.is_none() {
            let request = authorize("u1");
            let started = world.client().authorize(request).await.expect("a link").into_inner();
            let page = Browser::new().allow(&started.authorization_url).await;
            code = Some(page.confirmation_code().expect("a code"));
        }
        let grpcurl = tools::find("grpcurl").expect("the harness has found it");
        let script =
            format!("grpcurl() {{ {grpcurl:?} \"$@\"; }}\n{defined}\n{{ {command}; }} 2>&1");
        let printed = Command::new("bash")
            .args(["-c", &script])
            .env("ADDRESS", world.grpc_address.to_string())
            .env("KEY", api_key("helper").expose())
            .env("CODE", code.as_deref().unwrap_or_default())
            .output()
            .await;
        let printed = self::text(&printed.expect("bash runs").stdout);
        assert!(fits(printed.trim(), expected.trim()), "{command}\n{printed}\n--\n{expected}");
        if command.starts_with("call()") {
            defined = command;
        }
        run += 1;
    }
    assert_eq!(run, 14);
}

/// The commands of a text's `console` blocks, each with what should follow.
fn lines_of(text: &str) -> Vec<(String, String)> {
    let mut commands: Vec<(String, String)> = Vec::new();
    for block in text.split("```console\n").skip(1) {
        for line in block.split("```").next().unwrap_or_default().lines() {
            match (line.strip_prefix("$ "), commands.last_mut()) {
                (Some(command), _) => commands.push((command.to_owned(), String::new())),
                (None, Some((_, expected))) => {
                    expected.push_str(line);
                    expected.push('\n');
                }
                (None, None) => panic!("an answer without a command: {line}"),
            }
        }
    }
    commands
}

/// Returns `true` if a text is the expected one, in which `…` stands for anything.
fn fits(text: &str, expected: &str) -> bool {
    let mut parts = expected.split('…').map(str::trim);
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut open = false;
    for part in parts {
        open = part.is_empty();
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    open || rest.trim().is_empty()
}
