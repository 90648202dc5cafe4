//! Opening a database.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use sea_orm::sea_query::Query;
use sea_orm::sqlx::ConnectOptions as _;
use sea_orm::sqlx::SqlitePool;
use sea_orm::sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
};
use sea_orm::{ConnectionTrait, DbErr, RuntimeErr};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Semaphore;

use super::clock::Clock;
use super::connection::{Database, Pool, Waits};
use super::grants::GrantReader;
use super::outage::Outage;
use super::seal::Unreadable;
use super::server::Server;
use super::{Storage, StorageError, StoreContext, Stores};
use crate::crypto::keyring::Keyring;
use crate::crypto::random::Random;
use crate::domain::time::Timestamp;

/// The time that a statement on SQLite waits for another process (a command beside `serve`).
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// The time that a call waits for a connection before the database counts as out of reach.
pub(super) const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// The number of connections of the pool that calls cannot have.
const RESERVED: u32 = 2;

/// The settings of a database.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `sqlite://…` or `postgres://…`; may hold a password.
    pub url: SecretString,
    /// Another way to the same database, for notices. `None`: the same.
    pub listen_url: Option<SecretString>,
    /// The size of the pool.
    pub max_connections: u32,
    /// The source of the time of statements.
    pub clock: Clock,
}

impl Settings {
    /// Returns `true` if the database is an SQLite one, which belongs to one process.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.url.expose_secret().starts_with("sqlite:")
    }

    /// Returns `true` if a process serves the SQLite file. Always `false` for PostgreSQL. Not to be called while this process may
    /// begin to serve the file, because the look itself locks it for a moment.
    #[must_use]
    pub fn is_served(&self) -> bool {
        let path = sqlite_path(self.url.expose_secret()).and_then(|path| path.canonicalize().ok());
        let lock = path.and_then(|path| File::open(lock_path(&path)).ok());
        lock.is_some_and(|lock| lock.try_lock_shared().is_err())
    }

    /// The SQLite file, where it does not exist yet.
    #[must_use]
    pub fn missing_file(&self) -> Option<MissingFile> {
        let url = self.url.expose_secret();
        let path = sqlite_path(url).filter(|path| !path.exists())?;
        let query = url.split_once('?').map_or("", |(_, query)| query);
        let creates = query.split('&').any(|pair| pair == "mode=rwc");
        Some(MissingFile { path, creates })
    }

    /// Makes the file for this user alone, where SQLite would leave that to the umask. SQLite
    /// gives its other files the mode of this one. SQLite, which tries next, reports a failure.
    fn create_file(&self) {
        if let Some(missing) = self.missing_file().filter(|missing| missing.creates) {
            let _ = private_file(&missing.path);
        }
    }
}

/// An SQLite file that does not exist yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingFile {
    /// Its path.
    pub path: PathBuf,
    /// `true` if the URL says to make it (`mode=rwc`).
    pub creates: bool,
}

/// The file that the process which serves an SQLite file holds locked.
fn lock_path(database: &Path) -> PathBuf {
    let mut path = database.to_owned().into_os_string();
    path.push(".serving");
    path.into()
}

fn private_file(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;

    // Not truncated: another process may have made it in between.
    File::options().create(true).truncate(false).write(true).mode(0o600).open(path)
}

impl Storage {
    /// Opens a database for a command that may run beside `serve`. PostgreSQL is not called yet.
    ///
    /// # Errors
    ///
    /// [`StorageError`] if an SQLite file cannot be opened or the URL is not valid.
    pub async fn connect(
        settings: &Settings,
        keyring: Arc<Keyring>,
        random: Random,
    ) -> Result<Self, StorageError> {
        let is_sqlite = settings.is_file();
        let outage = Arc::new(Outage::default());
        let server = if is_sqlite { None } else { Some(Server::parse(settings)?) };
        let (pool, reserved) = match &server {
            Some(server) => {
                let shared = settings.max_connections.saturating_sub(RESERVED).max(1);
                let reserved = RESERVED.min(settings.max_connections);
                let pool = |size| Pool::Postgres(server.pool(size, &outage));
                (pool(shared), pool(reserved))
            }
            // On SQLite writers queue, so more pools have no use.
            None => {
                let pool = sqlite_pool(settings).await?;
                (Pool::Sqlite(pool.clone()), Pool::Sqlite(pool))
            }
        };
        let db = Database::new(pool, Arc::clone(&outage), Waits::UnlessAway);
        let context = StoreContext {
            grant_reader: GrantReader::new(db.clone(), settings.clock.clone()),
            db,
            reserved: Database::new(reserved, Arc::clone(&outage), Waits::Always),
            outage,
            server,
            clock: settings.clock.clone(),
            keyring,
            replica: random.id(),
            unnotified: AtomicU64::new(0),
            unreadable: Unreadable::default(),
            random,
            writer: is_sqlite.then(|| Arc::new(Semaphore::new(1))),
        };
        let context = Arc::new(context);
        Ok(Self { stores: Stores::of(&context), context, _serving: None })
    }

    /// Takes note that this process serves an SQLite file, for as long as this value lives. Two
    /// processes on one file would each think themselves alone in the cache and the outbox.
    ///
    /// # Errors
    ///
    /// Returns the reason if another process serves it or the lock file cannot be made.
    pub fn serve_alone(mut self, settings: &Settings) -> Result<Self, String> {
        if let Some(path) = sqlite_path(settings.url.expose_secret()) {
            // One file may have several names.
            let path = path
                .canonicalize()
                .map_err(|error| format!("cannot find {}: {error}", path.display()))?;
            let lock_path = lock_path(&path);
            let lock = private_file(&lock_path)
                .map_err(|error| format!("cannot create {}: {error}", lock_path.display()))?;
            lock.try_lock()
                .map_err(|_| format!("another process serves {}: stop it first", path.display()))?;
            self._serving = Some(lock);
        }
        Ok(self)
    }

    /// Closes the pool, so that SQLite folds its log into the database file. A connection that does
    /// not close in time is left to the end of the process.
    ///
    /// # Errors
    ///
    /// [`StorageError`] where a connection does not close.
    pub async fn close(&self) -> Result<(), StorageError> {
        let closed = futures::future::join(self.db.pool().close(), self.reserved.pool().close());
        // A connection that is still in use is closed by the end of the process.
        let _ = tokio::time::timeout(ACQUIRE_TIMEOUT, closed).await;
        Ok(())
    }
}

/// Opens the pool of an SQLite file, which is created if its URL says so.
async fn sqlite_pool(settings: &Settings) -> Result<SqlitePool, DbErr> {
    let wrong = |error| DbErr::Conn(RuntimeErr::SqlxError(Arc::new(error)));
    settings.create_file();
    let options = settings
        .url
        .expose_secret()
        .parse::<SqliteConnectOptions>()
        .map_err(wrong)?
        .journal_mode(SqliteJournalMode::Wal)
        // FULL: a refresh token that was committed must outlive a power cut.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT)
        // What is deleted or replaced leaves no bytes behind in the file.
        .pragma("secure_delete", "ON")
        .foreign_keys(true)
        .disable_statement_logging();
    SqlitePoolOptions::new()
        .max_connections(settings.max_connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(false)
        .connect_with(options)
        .await
        .map_err(wrong)
}

/// The file of an SQLite URL, as the driver reads it. Absent for a database in memory, and for
/// PostgreSQL.
fn sqlite_path(url: &str) -> Option<PathBuf> {
    let in_memory = url.contains(":memory:") || url.contains("mode=memory");
    if !url.starts_with("sqlite:") || in_memory {
        return None;
    }
    let options: SqliteConnectOptions = url.parse().ok()?;
    Some(options.get_filename().to_owned())
}

impl StoreContext {
    /// Reads the database's clock, and so also tests whether the database answers.
    ///
    /// # Errors
    ///
    /// [`StorageError`] where it does not.
    pub async fn now(&self) -> Result<Timestamp, StorageError> {
        let mut select = Query::select();
        select.expr_as(self.clock.now(self.db.get_database_backend()), "now");
        let row = self
            .db
            .query_one(&select)
            .await?
            .ok_or_else(|| StorageError::damaged("none", "SELECT gave no row"))?;
        Ok(Timestamp::from_millis(row.try_get("", "now")?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_an_sqlite_url() {
        let path = |url| sqlite_path(url).map(|path| path.display().to_string());
        assert_eq!(path("sqlite://broker.db?mode=rwc").as_deref(), Some("broker.db"));
        assert_eq!(path("sqlite:///var/lib/broker.db").as_deref(), Some("/var/lib/broker.db"));
        assert_eq!(path("sqlite://a%20b.db?mode=rwc").as_deref(), Some("a b.db"));
        assert_eq!(path("sqlite::memory:"), None);
        assert_eq!(path("postgres://localhost/broker"), None);
    }
}
