//! The servers that are measured, each a process of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use prost::Message;
use tempfile::TempDir;
use token_broker::demo::provider::DemoProvider;
use token_broker_client::proto;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStderr, ChildStdout, Command};

use crate::cpu;
use crate::harness::bare;
use crate::harness::ports::free_address;
use crate::place;

/// The argument that makes this program the bare service.
pub const BARE: &str = "bare";

/// A server that runs until this is dropped.
pub struct Process {
    child: Child,
    pid: u32,
    pub address: SocketAddr,
    /// The redirect and the ops listener of the service. The bare one has none, and repeats its address.
    pub http: SocketAddr,
    pub ops: SocketAddr,
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

    /// Sends SIGTERM and waits for the end.
    pub async fn terminate(mut self) {
        let pid = rustix::process::Pid::from_raw(self.pid.cast_signed()).expect("a process id");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
        self.child.wait().await.expect("it ends");
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
    let ready_after = began.elapsed();
    let pid = child.id().expect("a process id");
    Process { pid, child, address, http: address, ops: address, ready_after }
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
        let provider = place::provider(&issuer);
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
        let config = place::config(&self.database_url, &self.issuer, free_address());
        std::fs::write(&file, config).expect("the folder takes files");
        let began = Instant::now();
        let mut command = Command::new(binary());
        command.args(["serve", "--config"]).arg(&file).envs(settings.iter().copied());
        let mut child = spawn_logging(command);
        let mut log = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let serving = entry(&mut log, "serving").await;
        let at =
            |field: &str| serving[field].as_str().expect("a text").parse().expect("an address");
        let (address, http, ops) = (at("grpc"), at("http"), at("ops"));
        entry(&mut log, "storage answers").await;
        let ready_after = began.elapsed();
        // Read on, so that it never waits for a reader.
        tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
        let pid = child.id().expect("a process id");
        Process { pid, child, address, http, ops, ready_after }
    }
}

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_token-broker"))
}

fn spawn_logging(mut command: Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    spawn(command)
}

/// Waits for a line of the log with this message.
async fn entry(log: &mut Lines<BufReader<ChildStderr>>, message: &str) -> serde_json::Value {
    let mut seen = String::new();
    while let Some(line) = log.next_line().await.expect("a line") {
        let entry: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        if entry["message"] == message {
            return entry;
        }
        seen.push_str(&line);
    }
    panic!("it ended without {message:?}: {seen}")
}
