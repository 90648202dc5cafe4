//! The demo's folder: keyring, credentials, database, provider state and log.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine};
use tempfile::TempDir;

use crate::crypto::keyring::Keyring;
use crate::crypto::random::Random;
use crate::domain::bot::ApiKey;

/// The folder, and the secrets that were found or made there.
pub(super) struct DataDirectory {
    path: PathBuf,
    /// Removed when dropped.
    temporary: Option<TempDir>,
    pub(super) api_key: ApiKey,
    pub(super) client_secret: String,
    encryption_key: String,
}

impl DataDirectory {
    /// Opens a folder, or makes a temporary one.
    pub(super) fn open(path: Option<PathBuf>, random: &Random) -> anyhow::Result<Self> {
        let temporary = match path {
            Some(_) => None,
            None => Some(
                tempfile::Builder::new()
                    .prefix("token-broker-demo-")
                    .tempdir()
                    .context("cannot make a temporary folder")?,
            ),
        };
        let path = match (&temporary, path) {
            (Some(temporary), _) => temporary.path().to_owned(),
            (None, path) => path.unwrap_or_default(),
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot make the folder {}", path.display()))?;
        let api_key =
            secret(&path, "api-key", || ApiKey::from_random(random.bytes()).expose().to_owned())?;
        let client_secret =
            secret(&path, "client-secret", || BASE64_URL_SAFE_NO_PAD.encode(random.bytes::<32>()))?;
        let encryption_key = secret(&path, "keyring", || {
            format!("demo:{}", BASE64_STANDARD.encode(random.bytes::<32>()))
        })?;
        Ok(Self { path, temporary, api_key: api_key.into(), client_secret, encryption_key })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn is_kept(&self) -> bool {
        self.temporary.is_none()
    }

    pub(super) fn keyring(&self) -> anyhow::Result<Keyring> {
        let damaged = || {
            let file = self.path.join("keyring");
            anyhow::anyhow!(
                "{} is not of its form; remove the folder to start afresh",
                file.display()
            )
        };
        let (id, key) = self.encryption_key.split_once(':').ok_or_else(damaged)?;
        let bytes = BASE64_STANDARD.decode(key).map_err(|_| damaged())?;
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| damaged())?;
        Keyring::new([(id, &bytes)]).ok_or_else(damaged)
    }

    pub(super) fn database_url(&self) -> String {
        format!("sqlite://{}?mode=rwc", self.path.join("token-broker.db").display())
    }

    pub(super) fn provider_state(&self) -> PathBuf {
        self.path.join("provider.json")
    }

    pub(super) fn log_file(&self) -> anyhow::Result<File> {
        let path = self.path.join("demo.log");
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Reads a secret of the folder, or makes it.
fn secret(folder: &Path, name: &str, make: impl FnOnce() -> String) -> anyhow::Result<String> {
    let path = folder.join(name);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let made = make();
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .and_then(|mut file| writeln!(file, "{made}"))
                .with_context(|| format!("cannot write {}", path.display()))?;
            Ok(made)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}
