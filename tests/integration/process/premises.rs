//! Where a process lives: a folder with its configuration, a database, and an address that browsers
//! find it at again after it was away.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use base64::prelude::{BASE64_STANDARD, Engine};
use tempfile::TempDir;
use tokio::process::Command;

use super::child::{Ended, Running, Serving, binary};
use crate::harness::ports::free_address;
use crate::harness::tools::root;
use crate::harness::world::{PROVIDER, api_key};

/// The first key of the keyring.
/// Not a text, which would be refused.
pub const ENCRYPTION_KEY: &[u8; 32] = b"canary-encryption-key-012345678\xff";

/// The broker's id at its provider.
pub const CLIENT_ID: &str = "token-broker";

/// The client's secret at the provider, with characters that each encoding writes differently.
pub const CLIENT_SECRET: &str = "canary client secret: +&% 5b1f";

pub struct Premises {
    pub folder: TempDir,
    pub http: SocketAddr,
    pub database_url: String,
}

impl Premises {
    /// With an SQLite file in the folder.
    pub fn on_sqlite() -> Self {
        let mut premises = Self::on(String::new());
        let url = format!("sqlite://{}?mode=rwc", premises.database().display());
        premises.database_url = url;
        premises
    }

    pub fn on(database_url: String) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self { folder, http: free_address(), database_url }
    }

    /// Where the provider sends browsers back to.
    pub fn redirect_uri(&self) -> String {
        format!("http://{}/oauth2/callback/{PROVIDER}", self.http)
    }

    /// The configuration, filled in for a provider.
    pub fn config(&self, issuer: &str) -> String {
        let template = root().join("tests/fixtures/serve.toml");
        let text = std::fs::read_to_string(template).expect("the template");
        let text = text
            .replace("@PUBLIC_URL@", &format!("http://{}", self.http))
            .replace("@DATABASE_URL@", &self.database_url)
            .replace("@ENCRYPTION_KEY@", &BASE64_STANDARD.encode(ENCRYPTION_KEY))
            .replace("@ISSUER@", issuer)
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
        // Whatever the umask: it may hold a secret.
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&path, mode).expect("a mode");
        path
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The SQLite file.
    pub fn database(&self) -> PathBuf {
        self.path("token-broker.db")
    }

    /// A command of the binary with the configuration of the folder.
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
