//! Opening a database, and bringing its schema up to date.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use sea_orm::sea_query::Query;
use sea_orm::sqlx::pool::PoolConnectionMetadata;
use sea_orm::sqlx::postgres::PgConnectOptions;
use sea_orm::sqlx::sqlite::SqliteConnectOptions;
use sea_orm::sqlx::{self, PgConnection};
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DbErr, RuntimeErr};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Semaphore;

use super::clock::Clock;
use super::limited::Limited;
use super::{Storage, StorageError};
use crate::crypto::keyring::Keyring;
use crate::crypto::random::Random;
use crate::domain::time::Timestamp;

/// How long a statement on SQLite waits for another process (a command beside `serve`).
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a call waits for a connection before the database counts as out of reach.
pub(super) const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection that is given back has to answer.
const SILENT: Duration = Duration::from_secs(1);

/// After how long a connection is tried before it is used.
const RESTED: Duration = Duration::from_secs(1);

/// How to open a database.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `sqlite://…` or `postgres://…`; may hold a password.
    pub url: SecretString,
    /// Another way to the same database, for notices. Absent: the same.
    pub listen_url: Option<SecretString>,
    /// The size of the pool.
    pub max_connections: u32,
    /// Where statements take the time from.
    pub clock: Clock,
}

impl Settings {
    /// Whether the database is an SQLite one, which belongs to one process.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.url.expose_secret().starts_with("sqlite:")
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
    /// gives its other files the mode of this one. A failure is told by SQLite, which tries next.
    fn create_file(&self) {
        if let Some(missing) = self.missing_file().filter(|missing| missing.creates) {
            let _ = private_file(&missing.path);
        }
    }
}

/// An SQLite file that does not exist yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingFile {
    /// Where it would be.
    pub path: PathBuf,
    /// Whether the URL says to make it (`mode=rwc`).
    pub creates: bool,
}

fn private_file(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;

    // Not truncated: another process may have made it meanwhile.
    File::options().create(true).truncate(false).write(true).mode(0o600).open(path)
}

impl Storage {
    /// Opens a database for a command that may run beside `serve`. PostgreSQL is not called yet.
    ///
    /// # Errors
    ///
    /// [`StorageError`] where an SQLite file cannot be opened, or the URL is none.
    pub async fn connect(
        settings: &Settings,
        keyring: Arc<Keyring>,
        random: Random,
    ) -> Result<Self, StorageError> {
        let mut options = ConnectOptions::new(settings.url.expose_secret());
        options
            .max_connections(settings.max_connections)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // Statements are logged by their spans where wanted; values never.
            .sqlx_logging(false)
            .record_stmt_in_spans(false)
            .map_sqlx_sqlite_opts(|sqlite| {
                use sea_orm::sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous};
                sqlite
                    .journal_mode(SqliteJournalMode::Wal)
                    // FULL: a refresh token that was committed must outlive a power cut.
                    .synchronous(SqliteSynchronous::Full)
                    .busy_timeout(BUSY_TIMEOUT)
                    // What is deleted or replaced leaves no bytes behind in the file.
                    .pragma("secure_delete", "ON")
                    .foreign_keys(true)
            });
        let is_sqlite = settings.is_file();
        if !is_sqlite {
            options
                // A service starts without its database, and says so, instead of crashing until it
                // is there.
                .connect_lazy(true)
                // A connection that has rested may be one to a server that is gone.
                .test_before_acquire(true)
                .test_before_acquire_if_idle_for(RESTED)
                .map_sqlx_postgres_pool_opts(|pool| {
                    pool.after_connect(bound_transactions).after_release(give_up_if_silent)
                });
        }
        settings.create_file();
        let db = Limited::new(Database::connect(options).await?);
        let server = match is_sqlite {
            true => None,
            false => Some(Server::parse(settings)?),
        };
        Ok(Self {
            db,
            server,
            clock: settings.clock.clone(),
            keyring,
            random,
            writer: is_sqlite.then(|| Arc::new(Semaphore::new(1))),
            _serving: None,
        })
    }

    /// Takes note that this process serves an SQLite file, for as long as this value lives. Two
    /// processes on one file would each think themselves alone in the cache and the outbox.
    ///
    /// # Errors
    ///
    /// The reason, for the operator, where another process serves it or the lock file cannot be
    /// made.
    pub fn serve_alone(mut self, settings: &Settings) -> Result<Self, String> {
        if let Some(path) = sqlite_path(settings.url.expose_secret()) {
            // One file may have several names.
            let path = path
                .canonicalize()
                .map_err(|error| format!("cannot find {}: {error}", path.display()))?;
            let mut lock_path = path.clone().into_os_string();
            lock_path.push(".serving");
            let lock_path = PathBuf::from(lock_path);
            let lock = private_file(&lock_path)
                .map_err(|error| format!("cannot create {}: {error}", lock_path.display()))?;
            lock.try_lock()
                .map_err(|_| format!("another process serves {}: stop it first", path.display()))?;
            self._serving = Some(lock);
        }
        Ok(self)
    }

    /// Tries a connection of its own, for the reason why a server cannot be used: the pool knows no
    /// more than that none came in time.
    ///
    /// # Errors
    ///
    /// [`OutOfReach`] with the place and the reason.
    pub async fn reach(&self) -> Result<(), OutOfReach> {
        use sea_orm::sqlx::Connection as _;

        let Some(server) = &self.server else { return Ok(()) };
        let opened = PgConnection::connect_with(&server.options);
        let opened = match tokio::time::timeout(ACQUIRE_TIMEOUT, opened).await {
            Ok(Ok(connection)) => connection.close().await,
            Ok(Err(error)) => Err(error),
            Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
        };
        opened.map_err(|error| {
            let error = DbErr::Conn(RuntimeErr::SqlxError(Arc::new(error)));
            OutOfReach { place: server.place(), error: error.into() }
        })
    }

    /// The time on the database's clock; also tells whether the database answers.
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

    /// Closes the pool, so that SQLite folds its log into the database file. A connection that does
    /// not close in time is left to the end of the process.
    ///
    /// # Errors
    ///
    /// [`StorageError`] where a connection does not close.
    pub async fn close(&self) -> Result<(), StorageError> {
        let closed = self.db.unlimited().close_by_ref();
        Ok(tokio::time::timeout(ACQUIRE_TIMEOUT, closed).await.unwrap_or(Ok(()))?)
    }
}

/// Has the server end a transaction that went silent: it holds its rows' locks until then, and with
/// them whoever tries again on another connection.
fn bound_transactions(
    connection: &mut PgConnection,
    _: PoolConnectionMetadata,
) -> BoxFuture<'_, Result<(), sqlx::Error>> {
    use sea_orm::sqlx::Executor as _;

    const BOUND: &str = "SET idle_in_transaction_session_timeout = '10s'";
    Box::pin(async move { connection.execute(BOUND).await.map(|_| ()) })
}

/// Tries a connection that comes back into the pool, which would itself wait for its answer for as
/// long as the network does, with the connection's place taken.
fn give_up_if_silent(
    connection: &mut PgConnection,
    _: PoolConnectionMetadata,
) -> BoxFuture<'_, Result<bool, sqlx::Error>> {
    use sea_orm::sqlx::Connection as _;

    Box::pin(async move {
        match tokio::time::timeout(SILENT, connection.ping()).await {
            Ok(answered) => answered.map(|()| true),
            // An error closes it without a word to the other side.
            Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
        }
    })
}

/// Where PostgreSQL is.
pub(super) struct Server {
    options: PgConnectOptions,
    /// For notices, which do not pass through every pooler.
    listening: PgConnectOptions,
}

impl Server {
    fn parse(settings: &Settings) -> Result<Self, DbErr> {
        let parse = |url: &SecretString| {
            let wrong = |error| DbErr::Conn(RuntimeErr::SqlxError(Arc::new(error)));
            url.expose_secret().parse::<PgConnectOptions>().map_err(wrong)
        };
        let options = parse(&settings.url)?;
        let listening = match &settings.listen_url {
            Some(url) => parse(url)?,
            None => options.clone(),
        };
        Ok(Self { options, listening })
    }

    pub(super) fn for_listening(&self) -> PgConnectOptions {
        self.listening.clone()
    }

    /// For people; without the password.
    fn place(&self) -> String {
        let database = self.options.get_database().unwrap_or_else(|| self.options.get_username());
        match self.options.get_socket() {
            Some(socket) => format!("PostgreSQL at {}, database {database}", socket.display()),
            None => {
                let (host, port) = (self.options.get_host(), self.options.get_port());
                format!("PostgreSQL at {host}:{port}, database {database}")
            }
        }
    }
}

/// Why a database server cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {}", error.reason())]
pub struct OutOfReach {
    /// Which server and database.
    pub place: String,
    /// What it, or the network, says.
    pub error: StorageError,
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
