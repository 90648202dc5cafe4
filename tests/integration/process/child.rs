//! Child processes: started, listened to, and ended by their own process id.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use token_broker_client::{ApiKey, Client};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::harness::world::api_key;

/// No command takes this long, nor does any end of a process.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running process.
pub struct Running {
    child: Child,
    pub pid: u32,
    stdin: Option<ChildStdin>,
    pub stdout: Output,
    pub stderr: Output,
}

/// What a process has printed so far.
pub struct Output {
    text: watch::Receiver<Vec<u8>>,
    reading: JoinHandle<()>,
}

/// What a process left.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// The last migration that the binary under test knows, where it is of an earlier version, to see that a
/// test fails on it.
pub fn earlier_build() -> Option<String> {
    std::env::var("TOKEN_BROKER_TEST_EARLIER").ok()
}

/// The binary under test, in an environment that configures nothing.
pub fn binary<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    // Another build: of an earlier version, or as users run it.
    let other = std::env::var_os("TOKEN_BROKER_TEST_BINARY");
    let mut command =
        Command::new(other.unwrap_or_else(|| env!("CARGO_BIN_EXE_token-broker").into()));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TOKEN_BROKER__") {
            command.env_remove(name);
        }
    }
    command.args(arguments);
    command
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the binary starts");
        Self {
            pid: child.id().expect("a process id"),
            stdin: child.stdin.take(),
            stdout: Output::of(child.stdout.take().expect("a pipe")),
            stderr: Output::of(child.stderr.take().expect("a pipe")),
            child,
        }
    }

    /// Types lines.
    pub async fn type_lines(&mut self, lines: &[&str]) {
        let stdin = self.stdin.as_mut().expect("standard input is open");
        for line in lines {
            stdin.write_all(format!("{line}\n").as_bytes()).await.expect("it reads");
        }
    }

    /// Sends SIGTERM. The signal is on its way when this returns.
    pub async fn send_sigterm(&self) {
        self.send(Signal::TERM);
    }

    /// Stops the process where it stands, until [`Running::go_on`].
    pub fn hold_still(&self) {
        self.send(Signal::STOP);
    }

    pub fn go_on(&self) {
        self.send(Signal::CONT);
    }

    /// Sends SIGHUP.
    pub fn hang_up(&self) {
        self.send(Signal::HUP);
    }

    /// Sends a signal that leaves a core dump if they are on.
    pub fn crash(&self) {
        self.send(Signal::ABORT);
    }

    fn send(&self, signal: Signal) {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).expect("it runs");
    }

    /// Waits for the end, with standard input closed.
    pub async fn ended(mut self) -> Ended {
        drop(self.stdin.take());
        let status = self.ends_within(PATIENCE).await;
        Ended {
            code: status.code(),
            stdout: self.stdout.whole().await,
            stderr: self.stderr.whole().await,
        }
    }

    /// Waits for the end; standard input stays as it is.
    pub async fn ends_within(&mut self, limit: Duration) -> ExitStatus {
        match tokio::time::timeout(limit, self.child.wait()).await {
            Ok(status) => status.expect("a status"),
            Err(_) => panic!("did not end within {limit:?}:\n{}", self.stderr.so_far()),
        }
    }

    /// SIGKILL.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("it ran until now");
    }
}

impl Output {
    fn of(mut pipe: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let (sender, text) = watch::channel(Vec::new());
        let reading = tokio::spawn(async move {
            let mut chunk = vec![0; 64 * 1024];
            while let Ok(read @ 1..) = pipe.read(&mut chunk).await {
                sender.send_modify(|text| text.extend_from_slice(&chunk[..read]));
            }
        });
        Self { text, reading }
    }

    pub fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.text.borrow()).into_owned()
    }

    /// Waits for the first whole line of which `wanted` makes something.
    pub async fn line<T>(&mut self, wanted: impl Fn(&str) -> Option<T>) -> T {
        let mut found = None;
        let looking = self.text.wait_for(|text| {
            let whole = text.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
            let text = String::from_utf8_lossy(&text[..whole]);
            found = text.lines().find_map(&wanted);
            found.is_some()
        });
        let ended = match tokio::time::timeout(PATIENCE, looking).await {
            Ok(seen) => seen.is_err(),
            Err(_) => false,
        };
        found.unwrap_or_else(|| {
            let how = if ended { "ended without" } else { "does not print" };
            panic!("the process {how} the line that was waited for:\n{}", self.so_far())
        })
    }

    /// Waits until there is more than there was at the last call.
    pub async fn more(&mut self) {
        let changed = tokio::time::timeout(PATIENCE, self.text.changed()).await;
        assert!(matches!(changed, Ok(Ok(()))), "no more came:\n{}", self.so_far());
    }

    /// Waits for a log line with this message.
    pub async fn logged(&mut self, message: &str) -> serde_json::Value {
        self.line(|line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            (line["message"] == message).then_some(line)
        })
        .await
    }

    /// Waits until there are so many log lines with this message whose error starts with, or holds,
    /// `error`.
    pub async fn repeated(&mut self, message: &str, times: usize, error: &str) {
        let count = |text: &str| {
            let lines = text.lines().filter_map(|line| serde_json::from_str(line).ok());
            lines
                .filter(|line: &serde_json::Value| line["message"] == message)
                .filter(|line| line["error"].as_str().is_some_and(|text| text.contains(error)))
                .count()
        };
        let enough = self.text.wait_for(|text| count(&String::from_utf8_lossy(text)) >= times);
        let seen = tokio::time::timeout(PATIENCE, enough).await;
        let seen = seen.is_ok_and(|seen| seen.is_ok());
        assert!(seen, "not {times} times {message}, {error}:\n{}", self.so_far());
    }

    /// All of it, once the process has ended.
    async fn whole(self) -> String {
        self.reading.await.expect("the reader does not panic");
        String::from_utf8_lossy(&self.text.borrow()).into_owned()
    }
}

/// A `serve` that has bound its listeners.
pub struct Serving {
    pub process: Running,
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    pub ops: SocketAddr,
}

impl Serving {
    /// Starts it, and waits until it has reached its database.
    pub async fn start(command: Command) -> Self {
        let mut serving = Self::bound(command).await;
        serving.process.stderr.logged("storage answers").await;
        serving
    }

    /// Starts it, and waits no longer than until its listeners are bound.
    pub async fn bound(command: Command) -> Self {
        let mut process = Running::start(command);
        let line = process.stderr.logged("serving").await;
        let address = |field: &str| {
            let text = line[field].as_str().unwrap_or_else(|| panic!("no {field} in {line}"));
            text.parse().expect("an address")
        };
        let (grpc, http, ops) = (address("grpc"), address("http"), address("ops"));
        Self { process, grpc, http, ops }
    }

    /// A client of the bot `helper`, over a connection of its own.
    pub async fn client(&self) -> Client {
        self.client_with(api_key("helper").expose()).await
    }

    pub async fn client_with(&self, key: &str) -> Client {
        let url = format!("http://{}", self.grpc);
        let channel = Client::channel(url).expect("a URL").connect().await.expect("it listens");
        Client::new(channel, ApiKey::new(key).expect("a key"))
    }

    pub async fn kill(self) {
        self.process.kill().await;
    }

    /// SIGTERM, and what the process left.
    pub async fn terminate(self) -> Ended {
        self.process.send_sigterm().await;
        self.process.ended().await
    }
}
