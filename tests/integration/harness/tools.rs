//! Tools that are not Rust: where `scripts/test` puts them, and on the path.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::postgres;

pub const POSTGRESQL: &str = "postgresql";
pub const GRPCURL: &str = "grpcurl";
/// Chromium with its WebDriver.
pub const CHROMIUM: &str = "chromium";
/// Node with the packages of `package.json`.
pub const NODE: &str = "node";
/// Python with the packages of `tests/servers/requirements.txt`.
pub const PYTHON: &str = "python";

/// The library that gives one process another clock.
pub const FAKETIME: &str = "faketime";

/// A connection pooler in front of PostgreSQL.
pub const PGBOUNCER: &str = "pgbouncer";

/// PostgreSQL 18 beside the system's version.
pub const POSTGRESQL_18: &str = "postgresql-18";

/// The right to mount a small file system, which root has.
pub const SMALL_DISK: &str = "the right to mount a file system";

/// What runs a PostgreSQL cluster that fails over; for `scripts/soak`.
pub const PATRONI: &str = "patroni";

/// What Prometheus checks metrics and rules with.
pub const PROMTOOL: &str = "promtool";

/// What checks the chart: helm, helm-unittest and helm-docs.
pub const HELM: &str = "helm";

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns `true` if tests that need a tool can run.
pub fn is_there(tool: &str) -> bool {
    match tool {
        POSTGRESQL => postgres::binaries().is_some(),
        PATRONI => root().join(".tools/patroni/bin/patroni").is_file(),
        SMALL_DISK => can_mount(),
        POSTGRESQL_18 => postgres::binaries_18().is_some(),
        PGBOUNCER => pgbouncer().is_some(),
        CHROMIUM => find("chromium").is_some() && find("chromedriver").is_some(),
        // `scripts/test` installs the packages only where Node is new enough for them.
        NODE => find("node").is_some() && root().join("node_modules/oidc-provider").is_dir(),
        PYTHON => python().is_some(),
        HELM => ["helm", "helm-unittest", "helm-docs"].iter().all(|tool| find(tool).is_some()),
        FAKETIME => faketime().is_some(),
        tool => find(tool).is_some(),
    }
}

fn can_mount() -> bool {
    let Ok(folder) = tempfile::tempdir() else { return false };
    let run = |program: &str, arguments: &[&str]| {
        let mut command = std::process::Command::new(program);
        let status = command.args(arguments).arg(folder.path()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    run("mount", &["-t", "tmpfs", "-o", "size=1m", "tmpfs"]) && run("umount", &[])
}

/// Finds a program in the project's own tools, and then on the path.
pub fn find(tool: &str) -> Option<PathBuf> {
    let own = [root().join(".tools/bin"), root().join("node_modules/.bin")];
    let path = std::env::var_os("PATH").unwrap_or_default();
    own.into_iter()
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join(tool))
        .find(|candidate| candidate.is_file())
}

/// libfaketime, where Debian puts it.
pub fn faketime() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    folders
        .map(|folder| folder.path().join("faketime/libfaketime.so.1"))
        .find(|library| library.is_file())
}

/// The pooler, which Debian keeps off the path of users.
pub fn pgbouncer() -> Option<PathBuf> {
    find("pgbouncer").or_else(|| Some(PathBuf::from("/usr/sbin/pgbouncer")).filter(|p| p.is_file()))
}

/// The interpreter of the virtual environment, once its packages are all there.
pub fn python() -> Option<PathBuf> {
    let environment = root().join(".tools/python");
    let complete = environment.join(".installed-requirements.txt").is_file();
    complete.then(|| environment.join("bin/python"))
}
