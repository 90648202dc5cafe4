//! The servers that are measured, each a process of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant, UNIX_EPOCH};

use base64::prelude::{BASE64_STANDARD, Engine};
use prost::Message;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use token_broker::crypto::random::Random;
use token_broker::demo::provider::{DemoProvider, Settings};
use token_broker::domain::provider::RevocationReach;
use token_broker_client::proto;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStderr, ChildStdout, Command};

use crate::cpu;
use crate::harness::bare;
use crate::harness::ports::free_address;

/// The argument that makes this program the bare service.
pub const BARE: &str = "bare";

pub const API_KEY: &str = "tbk_0000000000000000000000000000000000000000000";
pub const ENCRYPTION_KEY: &[u8; 32] = b"a key of the benchmark, 32 bytes";
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// A server that runs until this is dropped.
pub struct Process {
    child: Child,
    pid: u32,
    pub address: SocketAddr,
    /// From its start until it was ready.
    pub ready_after: Duration,
}

impl Process {
    pub fn cpu(&self) -> Duration {
        cpu::time(self.pid)
    }

    pub fn resident(&self) -> u64 {
        cpu::resident(self.pid)
    }

    pub async fn stop(mut self) {
        self.child.kill().await.expect("it ran until now");
    }
}

fn spawn(mut command: Command) -> Child {
    command.stdin(Stdio::null()).kill_on_drop(true).spawn().expect("it starts")
}

/// Starts a tonic service that answers every GetToken with these bytes.
pub async fn bare(response: &proto::GetTokenResponse) -> Process {
    let began = Instant::now();
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args([BARE, &hex::encode(response.encode_to_vec())]).stdout(Stdio::piped());
    let mut child = spawn(command);
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let line: Option<String> =
        Lines::<BufReader<ChildStdout>>::next_line(&mut lines).await.expect("a line");
    let address = line.expect("its address").parse().expect("an address");
    Process { pid: child.id().expect("a process id"), child, address, ready_after: began.elapsed() }
}

pub async fn serve_bare(response: &str) {
    let bytes = hex::decode(response).expect("hexadecimal digits");
    let response = proto::GetTokenResponse::decode(&*bytes).expect("a response");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    crate::table::line(&listener.local_addr().expect("an address").to_string());
    bare::serve(listener, response).await;
}

/// A provider without any delay, in this process.
pub struct Provider {
    pub provider: DemoProvider,
    pub issuer: String,
}

impl Provider {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let issuer = format!("http://{}", listener.local_addr().expect("an address"));
        let random = Random::system();
        let provider = DemoProvider::new(Settings {
            client_id: "token-broker".to_owned(),
            client_secret: "a secret of the benchmark".to_owned(),
            redirect_uris: vec!["http://127.0.0.1/oauth2/callback/acme".to_owned()],
            access_token_lifetime: TOKEN_LIFETIME,
            refresh_grace: Duration::ZERO,
            revocation_reach: RevocationReach::Token,
            state_file: None,
            issuer: issuer.clone(),
            clock: std::sync::Arc::new(|| {
                let since = UNIX_EPOCH.elapsed().expect("after 1970");
                u64::try_from(since.as_millis()).expect("a time")
            }),
            random: std::sync::Arc::new(move |bytes| random.fill(bytes)),
        })
        .expect("a provider");
        tokio::spawn(provider.clone().serve(listener, std::future::pending()));
        Self { provider, issuer }
    }
}

/// A place of the service: its database, and its configuration.
pub struct Broker {
    folder: TempDir,
    pub database_url: String,
    issuer: String,
}

impl Broker {
    pub fn on(database_url: String, provider: &Provider) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self { folder, database_url, issuer: provider.issuer.clone() }
    }

    pub fn on_sqlite(provider: &Provider) -> Self {
        let mut broker = Self::on(String::new(), provider);
        let file = broker.folder.path().join("token-broker.db");
        broker.database_url = format!("sqlite://{}?mode=rwc", file.display());
        broker
    }

    /// Starts a replica, with more settings as environment variables, and waits until it is ready.
    pub async fn start(&self, settings: &[(&str, &str)]) -> Process {
        let file = self.folder.path().join("token-broker.toml");
        std::fs::write(&file, self.config()).expect("the folder takes files");
        let began = Instant::now();
        let mut command = Command::new(binary());
        command.args(["serve", "--config"]).arg(&file).envs(settings.iter().copied());
        let mut child = spawn_logging(command);
        let mut log = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let address = field(&mut log, "serving", "grpc").await.parse().expect("an address");
        field(&mut log, "storage answers", "message").await;
        let ready_after = began.elapsed();
        // Read on, so that it never waits for a reader.
        tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
        Process { pid: child.id().expect("a process id"), child, address, ready_after }
    }

    fn config(&self) -> String {
        format!(
            "database.url = {:?}\nencryption.keys = [{{ id = \"test\", key = \"{}\" }}]\n\
             grpc.listen = \"127.0.0.1:0\"\nops.listen = \"127.0.0.1:0\"\n\
             http = {{ listen = \"{}\", public_url = \"http://127.0.0.1\" }}\n\
             [providers.acme]\nissuer = {:?}\nclient_id = \"token-broker\"\n\
             client_secret = \"a secret of the benchmark\"\nscopes = [\"profile\", \"email\"]\n\
             [bots.helper]\napi_keys_sha256 = [\"{}\"]\nproviders = [\"acme\"]\n",
            self.database_url,
            BASE64_STANDARD.encode(ENCRYPTION_KEY),
            free_address(),
            self.issuer,
            hex::encode(Sha256::digest(API_KEY)),
        )
    }
}

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_token-broker"))
}

fn spawn_logging(mut command: Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    spawn(command)
}

/// Waits for a line of the log with this message, and gives one of its fields.
async fn field(log: &mut Lines<BufReader<ChildStderr>>, message: &str, field: &str) -> String {
    let mut seen = String::new();
    while let Some(line) = log.next_line().await.expect("a line") {
        let entry: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        if entry["message"] == message {
            return entry[field].as_str().expect("a text").to_owned();
        }
        seen.push_str(&line);
    }
    panic!("it ended without {message:?}: {seen}")
}
