//! A PostgreSQL server: how its sessions are set up, and why it cannot be reached.

use std::sync::Arc;
use std::time::Duration;

use sea_orm::sqlx::pool::PoolConnectionMetadata;
use sea_orm::sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sea_orm::sqlx::{
    self, ConnectOptions as _, Connection as _, Executor as _, PgConnection, PgPool,
};
use sea_orm::{DbErr, RuntimeErr};
use secrecy::{ExposeSecret, SecretString};

use super::connect::{ACQUIRE_TIMEOUT, Settings};
use super::outage::Outage;
use super::statement::SERVER_TIMEOUT;
use super::{Storage, StorageError};

/// The time that a statement waits for another transaction's lock: shorter than [`SERVER_TIMEOUT`], so that
/// the error names the lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(4);
const _: () = assert!(LOCK_TIMEOUT.as_secs() < SERVER_TIMEOUT.as_secs());

/// The time for which a transaction may be idle before the server ends it, so that a replica that was held still
/// does not keep its row locks.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(10);

/// The interval at which the server looks whether the client of a running statement is still connected. A statement
/// whose client has gone ends within this time.
const CONNECTION_CHECK: Duration = Duration::from_secs(1);

/// The time for which a connection may be idle before it is tested before use.
const TESTED_AFTER: Duration = Duration::from_secs(1);

/// The time that such a test may take.
const TEST: Duration = Duration::from_secs(1);

/// The time that one step of a migration waits for a table's lock. Behind a waiting step every other
/// statement on that table waits too.
const MIGRATION_LOCK_TIMEOUT: Duration = Duration::from_secs(3);

/// The address of a PostgreSQL server, and its options.
#[derive(Debug)]
pub(super) struct Server {
    options: PgConnectOptions,
    /// For LISTEN, which does not pass through every pooler.
    listening: PgConnectOptions,
    isolation: Isolation,
}

/// The source of the isolation level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Isolation {
    /// The statements are written for READ COMMITTED, so sessions set it over the database's default.
    ReadCommitted,
    /// The URL sets `default_transaction_isolation` by its `options`.
    OfTheUrl,
}

impl Server {
    pub(super) fn parse(settings: &Settings) -> Result<Self, DbErr> {
        let parse = |url: &SecretString| {
            let wrong = |error| DbErr::Conn(RuntimeErr::SqlxError(Arc::new(error)));
            let options = url.expose_secret().parse::<PgConnectOptions>().map_err(wrong)?;
            Ok::<_, DbErr>(options.disable_statement_logging())
        };
        let options = parse(&settings.url)?;
        let listening = match &settings.listen_url {
            Some(url) => parse(url)?,
            None => options.clone(),
        };
        let isolation = match settings.url.expose_secret().contains("default_transaction_isolation")
        {
            true => Isolation::OfTheUrl,
            false => Isolation::ReadCommitted,
        };
        Ok(Self { options, listening, isolation })
    }

    /// A pool that connects when it is first used: a service starts without its database.
    pub(super) fn pool(&self, max_connections: u32, outage: &Arc<Outage>) -> PgPool {
        let setup = self.session_setup();
        let outage = Arc::clone(outage);
        PgPoolOptions::new()
            .max_connections(max_connections)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .before_acquire(move |connection, metadata| {
                let outage = Arc::clone(&outage);
                Box::pin(async move {
                    let tested = test_if_idle(connection, metadata).await;
                    // The pool then opens a connection, which takes long if the server is away.
                    if tested.is_err() {
                        outage.suspect();
                    }
                    tested.map(|()| true)
                })
            })
            .after_connect(move |connection, _| {
                let setup = setup.clone();
                Box::pin(async move { set_up(connection, setup).await })
            })
            .connect_lazy_with(self.options.clone())
    }

    /// A pool for migrations, whose statements may take as long as they need.
    pub(super) fn migration_pool(&self) -> PgPool {
        let setup = format!(
            "SET statement_timeout = 0; SET lock_timeout = {}; \
             SET default_transaction_isolation = 'read committed'",
            MIGRATION_LOCK_TIMEOUT.as_millis()
        );
        PgPoolOptions::new()
            // One, so that what a step sets for its session holds for its next statement.
            .max_connections(1)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .after_connect(move |connection, _| {
                let setup = setup.clone();
                Box::pin(async move { set_up(connection, setup).await })
            })
            .connect_lazy_with(self.options.clone())
    }

    pub(super) fn for_listening(&self) -> PgConnectOptions {
        self.listening.clone()
    }

    fn session_setup(&self) -> String {
        let mut setup = format!(
            "SET statement_timeout = {}; SET lock_timeout = {}; \
             SET idle_in_transaction_session_timeout = {}",
            SERVER_TIMEOUT.as_millis(),
            LOCK_TIMEOUT.as_millis(),
            IDLE_IN_TRANSACTION.as_millis(),
        );
        if self.isolation == Isolation::ReadCommitted {
            setup.push_str("; SET default_transaction_isolation = 'read committed'");
        }
        setup
    }

    /// Names the server for people, without the password.
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

/// Sets the limits of a new session.
async fn set_up(connection: &mut PgConnection, setup: String) -> Result<(), sqlx::Error> {
    // Only servers on Linux have it, and only PostgreSQL itself.
    let check = format!(
        "SELECT set_config(name, '{}', false) FROM pg_settings \
         WHERE name = 'client_connection_check_interval'",
        CONNECTION_CHECK.as_millis()
    );
    connection.execute(sqlx::AssertSqlSafe(setup)).await?;
    match connection.execute(sqlx::AssertSqlSafe(check)).await {
        Ok(_) | Err(sqlx::Error::Database(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Tests a connection that was idle: its server may have gone without a word.
async fn test_if_idle(
    connection: &mut PgConnection,
    metadata: PoolConnectionMetadata,
) -> Result<(), sqlx::Error> {
    if metadata.idle_for < TESTED_AFTER {
        return Ok(());
    }
    let tested = tokio::time::timeout(TEST, connection.ping()).await;
    tested.unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))
}

/// Why a database server cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {}", error.reason())]
pub struct OutOfReach {
    /// The server and the database.
    pub place: String,
    /// The words of the server or the network.
    pub error: StorageError,
}

impl Storage {
    /// Opens a connection outside the pool for the reason why a server cannot be used: the pool knows
    /// only that no connection came in time.
    ///
    /// # Errors
    ///
    /// [`OutOfReach`] with the place and the reason.
    pub async fn reach(&self) -> Result<(), OutOfReach> {
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
}
