//! The tool that people debug the broker with, the real one.

use std::process::Output;

use libtest_mimic::Trial;
use tokio::process::Command;

use crate::harness::world::{PROVIDER, api_key};
use crate::harness::{World, tools, trial_with};

const SERVICE: &str = "tokenbroker.v1.TokenBrokerService";

pub fn trials() -> Vec<Trial> {
    vec![
        trial_with(
            &[tools::GRPCURL],
            "grpcurl::lists_and_describes_without_a_credential",
            describes,
        ),
        trial_with(&[tools::GRPCURL], "grpcurl::calls_and_prints_the_details_of_errors", calls),
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
