//! PgBouncer in session mode, one for all tests, in front of the server that they share.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use tempfile::TempDir;

use super::ports::free_address;
use super::postgres::NOBODY;
use super::proxy::{address_of, at_address};
use super::tools;

static POOLER: OnceLock<Pooler> = OnceLock::new();

struct Pooler {
    address: SocketAddr,
    process: std::sync::Mutex<Option<(Child, TempDir)>>,
}

/// The URL of the same database through the pooler, which is started if it does not run.
pub async fn in_front_of(url: &str) -> String {
    let target = address_of(url);
    let pooler = tokio::task::block_in_place(|| POOLER.get_or_init(|| Pooler::start(target)));
    while tokio::net::TcpStream::connect(pooler.address).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    at_address(url, pooler.address)
}

/// Stops the pooler, where a test has started it.
pub fn stop() {
    let running = POOLER.get().and_then(|pooler| pooler.process.lock().expect("no panic").take());
    if let Some((mut process, folder)) = running {
        process.kill().expect("it ran until now");
        process.wait().expect("a status");
        drop(folder);
    }
}

impl Pooler {
    fn start(target: SocketAddr) -> Self {
        let folder = tempfile::Builder::new().prefix("pgbouncer-").tempdir().expect("a folder");
        let (host, port) = (target.ip(), target.port());
        let address = free_address();
        let configuration = format!(
            "[databases]\n* = host={host} port={port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {}\nauth_type = trust\nauth_file = {}\npool_mode = session\n\
             ignore_startup_parameters = extra_float_digits,options\nmax_client_conn = 2000\n\
             default_pool_size = 80\nserver_idle_timeout = 2\nlogfile = {}\nunix_socket_dir =\n",
            address.port(),
            folder.path().join("users").display(),
            folder.path().join("log").display(),
        );
        let file = folder.path().join("pgbouncer.ini");
        std::fs::write(&file, configuration).expect("a file");
        std::fs::write(folder.path().join("users"), "\"broker\" \"\"\n").expect("a file");
        super::postgres::give_away(folder.path());
        let mut command = Command::new(tools::pgbouncer().expect("the harness has found it"));
        if super::postgres::is_root() {
            use std::os::unix::process::CommandExt;
            command.uid(NOBODY).gid(NOBODY);
        }
        let process = command
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        Self { address, process: std::sync::Mutex::new(Some((process, folder))) }
    }
}
