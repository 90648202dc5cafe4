//! Authorization servers that are none of ours, each in a process of its own.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::browser::client;
use super::tools::{self, find, root};

/// The time that a server may take to start.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// npm's `oidc-provider`, certified by the OpenID Foundation.
    OidcProvider,
    /// PyPI's Canaille, which is built on Authlib.
    Canaille,
}

/// The broker's registration at a server.
#[derive(Debug, Clone, Copy)]
pub struct Registration<'a> {
    pub client_id: &'a str,
    pub client_secret: &'a str,
    pub redirect_uri: &'a str,
    /// `client_secret_basic` or `client_secret_post`.
    pub auth_method: &'a str,
}

/// A server that runs until this is dropped.
pub struct AuthorizationServer {
    pub issuer: String,
    control: String,
    client: reqwest::Client,
    /// Its standard input is closed with it, upon which it ends.
    _process: Child,
}

impl Kind {
    /// The tool that it needs.
    pub fn tool(self) -> &'static str {
        match self {
            Self::OidcProvider => tools::NODE,
            Self::Canaille => tools::PYTHON,
        }
    }

    /// Starts the server, with its one user (see `Browser::sign_in`).
    pub async fn start(self, registration: Registration<'_>) -> AuthorizationServer {
        let mut command = match self {
            Self::OidcProvider => {
                let mut command = Command::new(find("node").expect("the harness has found it"));
                command.arg(root().join("tests/servers/oidc-provider.mjs"));
                command
            }
            Self::Canaille => {
                let python = tools::python().expect("the harness has found it");
                let mut command = Command::new(python);
                command.arg(root().join("tests/servers/canaille_server.py"));
                command
            }
        };
        let argument = json!({
            "client_id": registration.client_id,
            "client_secret": registration.client_secret,
            "redirect_uris": [registration.redirect_uri],
            "access_token_ttl": 300,
            "token_endpoint_auth_method": registration.auth_method,
        });
        let mut process = command
            .arg(argument.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the server starts");
        let stdout = BufReader::new(process.stdout.take().expect("a pipe"));
        let line = tokio::time::timeout(PATIENCE, stdout.lines().next_line()).await;
        let line = line.expect("it starts in time").expect("a line").expect("it does not end");
        let told: Value = serde_json::from_str(&line).expect("JSON");
        let text = |name: &str| told[name].as_str().expect("a URL").to_owned();
        AuthorizationServer {
            issuer: text("issuer"),
            control: text("control"),
            client: client(),
            _process: process,
        }
    }
}

impl AuthorizationServer {
    /// What it has counted.
    pub async fn ledger(&self, name: &str) -> u64 {
        let answer = self.client.get(format!("{}/ledger", self.control)).send().await;
        let ledger: Value =
            serde_json::from_slice(&answer.expect("an answer").bytes().await.expect("a body"))
                .expect("JSON");
        ledger[name].as_u64().unwrap_or_else(|| panic!("no {name} in {ledger}"))
    }

    /// Has it do something that no client could ask for.
    pub async fn command(&self, name: &str, argument: &Value) {
        let request = self
            .client
            .post(format!("{}/{name}", self.control))
            .header("content-type", "application/json")
            .body(argument.to_string());
        let answer = request.send().await.expect("an answer");
        assert!(answer.status().is_success(), "{name}: {}", answer.status());
    }

    /// The status that the userinfo endpoint answers an access token with.
    pub async fn userinfo_status(&self, access_token: &str) -> u16 {
        let metadata = format!("{}/.well-known/openid-configuration", self.issuer);
        let metadata = self.client.get(metadata).send().await.expect("an answer");
        let metadata: Value =
            serde_json::from_slice(&metadata.bytes().await.expect("a body")).expect("JSON");
        let endpoint = metadata["userinfo_endpoint"].as_str().expect("an endpoint");
        let request = self.client.get(endpoint).bearer_auth(access_token);
        request.send().await.expect("an answer").status().as_u16()
    }
}
