//! PostgreSQL, started from its binaries on a free port, once for all tests.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use tempfile::TempDir;

/// How a skipped test names what it lacks.
pub const TOOL: &str = "postgresql";

/// What `initdb` makes us: the server trusts whoever reaches its loopback port.
const USER: &str = "broker";

static SERVER: OnceLock<Server> = OnceLock::new();
static DATABASES: AtomicU64 = AtomicU64::new(0);

struct Server {
    port: u16,
    binaries: PathBuf,
    /// Taken when the server is stopped, for a static is never dropped.
    folder: Mutex<Option<TempDir>>,
}

/// The server's binaries: on the path, or where Debian keeps each major version.
pub fn binaries() -> Option<PathBuf> {
    let debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<_> = debian.map(|entry| entry.path().join("bin")).collect();
    versions.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(versions.into_iter().rev())
        .find(|folder| folder.join("initdb").is_file() && folder.join("postgres").is_file())
}

/// The URL of a database that no other test has.
pub async fn database() -> String {
    use sea_orm::{ConnectionTrait, Database};

    // The first test that asks starts the server; the others wait for it.
    let server = tokio::task::block_in_place(|| SERVER.get_or_init(Server::start));
    let name = format!("test_{}", DATABASES.fetch_add(1, Ordering::SeqCst));
    let admin = Database::connect(server.url("postgres")).await.expect("PostgreSQL answers");
    admin.execute_unprepared(&format!("CREATE DATABASE {name}")).await.expect("a database");
    admin.close().await.expect("closed");
    server.url(&name)
}

/// Stops the server, where a test has started it.
pub fn stop() {
    let Some(server) = SERVER.get() else { return };
    let folder = server.folder.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(folder) = folder {
        server.control(folder.path(), &["stop", "--mode=immediate"]);
    }
}

impl Server {
    fn start() -> Self {
        let binaries = binaries().expect("the harness has found them");
        let folder = tempfile::Builder::new().prefix("postgres-").tempdir().expect("a folder");
        let data = folder.path().join("data");
        // The port is free now; nothing else on this machine picks ports between here and there.
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a port")
            .port();
        give_away(folder.path());
        let server = Self { port, binaries, folder: Mutex::new(None) };
        let data_text = data.to_str().expect("a plain path");
        let init = ["-D", data_text, "-U", USER, "--auth=trust", "--no-sync", "--encoding=UTF8"];
        server.run("initdb", &init);
        let options = format!(
            "-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= \
             -c fsync=off -c max_connections=500"
        );
        let log = folder.path().join("log");
        server.control(
            folder.path(),
            &["start", "-w", "-l", log.to_str().expect("a plain path"), "-o", &options],
        );
        *server.folder.lock().unwrap_or_else(PoisonError::into_inner) = Some(folder);
        server
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/{database}", self.port)
    }

    fn control(&self, folder: &Path, arguments: &[&str]) {
        let data = folder.join("data");
        let data = data.to_str().expect("a plain path");
        self.run("pg_ctl", &[&["-D", data][..], arguments].concat());
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let program = self.binaries.join(program);
        // PostgreSQL refuses to run as root, as which CI runs.
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
            command
        } else {
            Command::new(&program)
        };
        let status = command
            .args(arguments)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert!(status.is_ok_and(|status| status.success()), "{} failed", program.display());
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Lets the unprivileged user of the server write its folder.
fn give_away(folder: &Path) {
    if is_root() {
        let everyone = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(folder, everyone).expect("permissions");
    }
}
