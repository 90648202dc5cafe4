//! PostgreSQL, started from its binaries on a free port, once for all tests.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use tempfile::TempDir;

use super::ports::free_address;

/// What `initdb` makes us: the server trusts whoever reaches its loopback port.
const USER: &str = "broker";

/// Whom it runs as where the tests run as root, which it refuses.
pub const NOBODY: u32 = 65534;

/// The server that tests share.
static SERVER: OnceLock<Server> = OnceLock::new();
static SERVER_18: OnceLock<Server> = OnceLock::new();
static DATABASES: AtomicU64 = AtomicU64::new(0);

/// A server of one's own, on a port that it keeps while it is away.
pub struct Server {
    pub address: SocketAddr,
    binaries: PathBuf,
    /// Taken when the server ends, for a static is never dropped.
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
    // The first test that asks starts the server; the others wait for it.
    let server = tokio::task::block_in_place(|| SERVER.get_or_init(Server::running));
    server.new_database().await
}

/// Stops the servers that tests have started.
pub fn stop() {
    for server in [&SERVER, &SERVER_18].into_iter().filter_map(OnceLock::get) {
        server.end();
    }
}

/// The binaries of PostgreSQL 18, where `scripts/test` puts them.
pub fn binaries_18() -> Option<PathBuf> {
    let binaries = super::tools::root().join(".tools/postgresql-18/bin");
    binaries.join("initdb").is_file().then_some(binaries)
}

/// The URL of a database on PostgreSQL 18 that no other test has.
pub async fn database_18() -> String {
    let start = || {
        let server = Server::prepared_from(binaries_18().expect("the harness has found them"));
        server.start();
        server
    };
    let server = tokio::task::block_in_place(|| SERVER_18.get_or_init(start));
    server.new_database().await
}

impl Server {
    /// A server that has its data and does not run yet.
    pub fn prepared() -> Self {
        Self::prepared_from(binaries().expect("the harness has found them"))
    }

    /// The same of another version.
    pub fn prepared_from(binaries: PathBuf) -> Self {
        let folder = tempfile::Builder::new().prefix("postgres-").tempdir().expect("a folder");
        give_away(folder.path());
        let server = Self { address: free_address(), binaries, folder: Mutex::default() };
        let data = folder.path().join("data");
        let data = data.to_str().expect("a plain path");
        let init = ["-D", data, "-U", USER, "--auth=trust", "--no-sync", "--encoding=UTF8"];
        server.run("initdb", &init);
        *server.folder() = Some(folder);
        server
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path().join("log")).unwrap_or_default()
    }

    fn running() -> Self {
        let server = Self::prepared();
        server.start();
        server
    }

    /// Starts the server, and waits until it takes connections.
    pub fn start(&self) {
        self.start_with("");
    }

    /// The same with TLS, by a certificate of its own for `localhost`. Gives the certificate's file.
    pub fn start_with_tls(&self) -> PathBuf {
        let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()]);
        let rcgen::CertifiedKey { cert, signing_key } = signed.expect("a certificate");
        let (cert_file, key_file) = (self.path().join("cert.pem"), self.path().join("key.pem"));
        std::fs::write(&cert_file, cert.pem()).expect("a file");
        std::fs::write(&key_file, signing_key.serialize_pem()).expect("a file");
        // PostgreSQL refuses a key that others can read.
        let owner_only = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&key_file, owner_only).expect("permissions");
        if is_root() {
            std::os::unix::fs::chown(&key_file, Some(NOBODY), None).expect("an owner");
        }
        let (cert, key) = (cert_file.display(), key_file.display());
        self.start_with(&format!("-c ssl=on -c ssl_cert_file={cert} -c ssl_key_file={key}"));
        cert_file
    }

    /// The same with more settings, as `-c name=value`.
    pub fn start_with(&self, more: &str) {
        let options = format!(
            "-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off \
             -c max_connections=500 {more}",
            self.address.port()
        );
        let log = self.path().join("log");
        self.control(&["start", "-w", "-l", log.to_str().expect("a plain path"), "-o", &options]);
    }

    /// Stops the server as a crash would: connections break, and nothing is tidied up.
    pub fn stop(&self) {
        self.control(&["stop", "-w", "--mode=immediate"]);
    }

    fn end(&self) {
        self.stop();
        drop(self.folder().take());
    }

    /// The URL of a new database.
    pub async fn new_database(&self) -> String {
        use sea_orm::{ConnectionTrait, Database};

        let name = format!("test_{}", DATABASES.fetch_add(1, Ordering::SeqCst));
        let admin = Database::connect(self.url("postgres")).await.expect("PostgreSQL answers");
        admin.execute_unprepared(&format!("CREATE DATABASE {name}")).await.expect("a database");
        admin.close().await.expect("closed");
        self.url(&name)
    }

    /// The URL of a database, whether it is there or not.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}@{}/{database}", self.address)
    }

    fn folder(&self) -> MutexGuard<'_, Option<TempDir>> {
        self.folder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self) -> PathBuf {
        self.folder().as_ref().expect("it has not ended").path().to_owned()
    }

    fn control(&self, arguments: &[&str]) {
        let data = self.path().join("data");
        let data = data.to_str().expect("a plain path");
        self.run("pg_ctl", &[&["-D", data][..], arguments].concat());
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let program = self.binaries.join(program);
        // PostgreSQL refuses to run as root, as which CI runs.
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            let (user, group) = (format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"));
            command.args([&user, &group, "--clear-groups"]).arg(&program);
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

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(folder) = self.folder().as_ref()
            && folder.path().join("data/postmaster.pid").exists()
        {
            let data = folder.path().join("data");
            self.run(
                "pg_ctl",
                &["-D", data.to_str().expect("a plain path"), "stop", "-m", "immediate"],
            );
        }
    }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Lets the unprivileged user of the server write its folder.
pub fn give_away(folder: &Path) {
    if is_root() {
        let everyone = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(folder, everyone).expect("permissions");
    }
}
