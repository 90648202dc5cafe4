//! What surrounds a process: a folder with its configuration and database, and a demo provider that
//! runs in the test and remembers every secret that passes by.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use base64::prelude::{BASE64_STANDARD, Engine};
use tempfile::TempDir;
use token_broker::crypto::random::Random;
use token_broker::demo::provider::{DemoProvider, Settings};
use token_broker_client::proto;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::child::{Ended, Running, Serving, binary};
use crate::harness::Browser;
use crate::harness::tools::root;
use crate::harness::world::{api_key, authorize, get_token};

/// The client's secret at the provider, with characters that each encoding writes differently.
pub const CLIENT_SECRET: &str = "canary client secret: +&% 5b1f";

/// The first key of the keyring.
pub const ENCRYPTION_KEY: &[u8; 32] = b"canary-encryption-key-0123456789";

pub struct Site {
    pub folder: TempDir,
    pub provider: DemoProvider,
    pub http: SocketAddr,
    provider_url: String,
    passed: Arc<Passed>,
    _serving: DropGuard,
}

/// The secrets that the provider has received and given out.
#[derive(Default)]
pub struct Passed(Mutex<BTreeSet<String>>);

impl Site {
    pub async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let provider_url = format!("http://{}", listener.local_addr().expect("an address"));
        let http = free_address();
        let random = Random::system();
        let provider = DemoProvider::new(Settings {
            client_id: "token-broker".to_owned(),
            client_secret: CLIENT_SECRET.to_owned(),
            redirect_uris: vec![format!("http://{http}/oauth2/callback/acme")],
            access_token_lifetime: Duration::from_secs(300),
            state_file: None,
            issuer: provider_url.clone(),
            // The process goes by the real clock, and so does its provider.
            clock: Arc::new(|| {
                let since = UNIX_EPOCH.elapsed().expect("after 1970");
                u64::try_from(since.as_millis()).expect("a time")
            }),
            random: Arc::new(move |bytes| random.fill(bytes)),
        })
        .expect("a provider");
        let passed = Arc::new(Passed::default());
        let stop = CancellationToken::new();
        let watching = Arc::clone(&passed);
        let router = provider.router().layer(from_fn(move |request: Request, next: Next| {
            let watching = Arc::clone(&watching);
            async move { watching.pass(request, next).await }
        }));
        let serving =
            axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
        tokio::spawn(serving.into_future());
        let folder = tempfile::tempdir().expect("a temporary folder");
        let site =
            Self { folder, provider, http, provider_url, passed, _serving: stop.drop_guard() };
        site.write(&site.config());
        site
    }

    /// The configuration, filled in.
    pub fn config(&self) -> String {
        let template = root().join("tests/fixtures/serve.toml");
        let text = std::fs::read_to_string(template).expect("the template");
        let text = text
            .replace("@PUBLIC_URL@", &format!("http://{}", self.http))
            .replace("@FOLDER@", &self.folder.path().display().to_string())
            .replace("@ENCRYPTION_KEY@", &BASE64_STANDARD.encode(ENCRYPTION_KEY))
            .replace("@PROVIDER_URL@", &self.provider_url)
            .replace("@CLIENT_SECRET@", CLIENT_SECRET)
            .replace("@API_KEY_SHA256@", &hex::encode(api_key("helper").sha256()));
        assert!(!text.split_once('\n').expect("lines").1.contains("= \"@"), "{text}");
        text
    }

    /// Puts a configuration into the folder.
    pub fn write(&self, config: &str) {
        self.put("token-broker.toml", config);
    }

    /// Puts another file there.
    pub fn put(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).expect("the folder takes files");
        path
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn database(&self) -> PathBuf {
        self.path("token-broker.db")
    }

    /// A command of the binary with the site's configuration.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = binary(arguments);
        command
            .arg("--config")
            .arg(self.path("token-broker.toml"))
            .env("TOKEN_BROKER__GRPC__LISTEN", "127.0.0.1:0")
            .env("TOKEN_BROKER__HTTP__LISTEN", self.http.to_string())
            .env("TOKEN_BROKER__OPS__LISTEN", "127.0.0.1:0");
        command
    }

    pub async fn serve(&self) -> Serving {
        Serving::start(self.command(&["serve"])).await
    }

    /// Runs a command to its end.
    pub async fn run(&self, arguments: &[&str]) -> Ended {
        Running::start(self.command(arguments)).ended().await
    }

    /// The same with variables of the environment over it.
    pub async fn run_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Ended {
        let mut command = self.command(arguments);
        command.envs(variables.iter().copied());
        Running::start(command).ended().await
    }

    /// Takes a user through the whole flow, and gives the access token.
    pub async fn granted(&self, serving: &Serving, subject: &str) -> String {
        let mut client = serving.client().await;
        let started = client.authorize(authorize(subject)).await.expect("a link").into_inner();
        let page = Browser::new().allow(&started.authorization_url).await;
        let code = page.confirmation_code().unwrap_or_else(|| panic!("no code: {page:?}"));
        let request = proto::ConfirmAuthorizationRequest {
            subject: subject.into(),
            code,
            ..Default::default()
        };
        client.confirm_authorization(request).await.expect("a grant");
        let response = client.get_token(get_token(subject)).await.expect("a token");
        response.into_inner().token.expect("a token").access_token
    }

    /// Every code, verifier, token and client credential that the provider has seen or given.
    pub fn passed(&self) -> BTreeSet<String> {
        self.passed.0.lock().expect("no panic").clone()
    }
}

impl Passed {
    async fn pass(&self, request: Request, next: Next) -> Response {
        let (parts, body) = request.into_parts();
        let form = to_bytes(body, usize::MAX).await.expect("a body");
        self.note_request(&parts.headers, &form);
        let response = next.run(Request::from_parts(parts, Body::from(form))).await;
        let (parts, body) = response.into_parts();
        let answer = to_bytes(body, usize::MAX).await.expect("a body");
        self.note_answer(&answer);
        Response::from_parts(parts, Body::from(answer))
    }

    fn note_request(&self, headers: &HeaderMap, form: &Bytes) {
        let credentials = headers.get("authorization").and_then(|value| value.to_str().ok());
        if let Some((_, credentials)) = credentials.and_then(|text| text.split_once(' ')) {
            self.note(credentials);
        }
        for (name, value) in url::form_urlencoded::parse(form) {
            if matches!(&*name, "code" | "code_verifier" | "refresh_token" | "token") {
                self.note(&value);
            }
        }
    }

    fn note_answer(&self, answer: &Bytes) {
        let Ok(answer) = serde_json::from_slice::<serde_json::Value>(answer) else { return };
        for name in ["access_token", "refresh_token"] {
            if let Some(value) = answer[name].as_str() {
                self.note(value);
            }
        }
    }

    fn note(&self, value: &str) {
        self.0.lock().expect("no panic").insert(value.to_owned());
    }
}

/// Puts another line in the place of the one that starts with `key`.
pub fn with_line(config: &str, key: &str, line: &str) -> String {
    let start = format!("{key} = ");
    let mut replaced = 0;
    let lines: Vec<_> = config
        .lines()
        .map(|old| {
            let hit = old.starts_with(&start);
            replaced += usize::from(hit);
            if hit { line } else { old }
        })
        .collect();
    assert_eq!(replaced, 1, "{key} in:\n{config}");
    lines.join("\n")
}

/// The names of the files in a folder.
pub fn files(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

/// An address that nothing listens on, for a URL that must be known before the process runs. The
/// port is below those that the system hands out, so that nothing takes it while a process is away.
fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Another run of the tests at the same time begins elsewhere.
    let first = u16::try_from(std::process::id() % 1000).expect("below 1000") * 20;
    loop {
        let port = 11_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if std::net::TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}
