//! Connections to the database and the rule by which one returns to the pool: its last statement ended
//! without an error that could leave it in an unknown state, and no transaction is open on it. Any other
//! connection is closed.
//!
//! The driver's own pool trusts more than that. It returns a connection whose `BEGIN` was cancelled to
//! the pool with the transaction open (sqlx issue 4394), and it keeps counting a transaction that SQLite
//! has rolled back by itself, for example on a full disk. Either way later callers would work inside a
//! transaction that is never committed. So `BEGIN`, `COMMIT` and `ROLLBACK` are plain statements here.

mod transaction;

use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use futures::future::BoxFuture;
use sea_orm::sqlx::pool::PoolConnection;
use sea_orm::sqlx::{self, AssertSqlSafe, PgPool, Postgres, Sqlite, SqlitePool};
use sea_orm::{ConnectionTrait, DbBackend, DbErr, ExecResult, QueryResult, RuntimeErr, Statement};
use sea_query_sqlx::SqlxValues;
use tokio::sync::OwnedSemaphorePermit;

pub(super) use self::transaction::Transaction;
use super::error::{StorageError, is_connection_failure, leaves_session_usable};
use super::outage::Outage;
use super::statement::StatementTimeout;

/// A pool of connections.
#[derive(Debug, Clone)]
pub(super) enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// The database outside a transaction: each statement runs on a connection of its own, commits by
/// itself and is repeated after a serialization failure.
#[derive(Debug, Clone)]
pub(super) struct Database {
    pool: Pool,
    timeout: StatementTimeout,
    outage: Arc<Outage>,
    waits: Waits,
}

/// When statements wait for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waits {
    /// Also during an outage.
    Always,
    /// Except while the database is known to be away.
    UnlessAway,
}

/// A connection for several statements. Each commits by itself and is not repeated.
#[derive(Debug)]
pub(super) struct Connection(Session);

/// A connection that was taken from the pool.
#[derive(Debug)]
struct Session {
    driver: Driver,
    state: SessionState,
    timeout: StatementTimeout,
    outage: Arc<Outage>,
    waits: Waits,
}

#[derive(Debug)]
enum Driver {
    Sqlite(PoolConnection<Sqlite>),
    Postgres(PoolConnection<Postgres>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SessionState {
    /// No transaction is open.
    Idle,
    /// A transaction is open and every statement in it succeeded.
    InTransaction,
    /// A statement of the open transaction failed; only `ROLLBACK` may follow.
    Aborted,
    /// A statement is running, was cancelled or timed out, or the connection failed.
    Unknown,
}

/// The repetitions of work that met another transaction (SQLSTATE class 40): at most
/// fifteen times within about five seconds.
fn conflict_retries() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(5))
        .with_max_delay(Duration::from_millis(400))
        .with_factor(2.0)
        .with_max_times(15)
        .with_jitter()
}

/// Repeats a whole unit of work, such as a transaction, after a serialization failure or a deadlock.
///
/// # Errors
///
/// The last error, if the work failed otherwise or too often.
pub(super) async fn retry_conflicts<T, F>(mut work: impl FnMut() -> F) -> Result<T, StorageError>
where
    F: Future<Output = Result<T, StorageError>> + Send,
{
    // Boxed, because the futures of a use case nest deeply, and the compiler limits that.
    let boxed = || Box::pin(work()) as BoxFuture<'_, _>;
    boxed.retry(conflict_retries()).when(StorageError::is_conflict).await
}

impl Pool {
    pub(super) fn backend(&self) -> DbBackend {
        match self {
            Self::Sqlite(_) => DbBackend::Sqlite,
            Self::Postgres(_) => DbBackend::Postgres,
        }
    }

    pub(super) async fn close(&self) {
        match self {
            Self::Sqlite(pool) => pool.close().await,
            Self::Postgres(pool) => pool.close().await,
        }
    }

    async fn acquire(&self) -> Result<Driver, sqlx::Error> {
        match self {
            Self::Sqlite(pool) => pool.acquire().await.map(Driver::Sqlite),
            Self::Postgres(pool) => pool.acquire().await.map(Driver::Postgres),
        }
    }
}

impl Database {
    pub(super) fn new(pool: Pool, outage: Arc<Outage>, waits: Waits) -> Self {
        let timeout = StatementTimeout::of(pool.backend());
        Self { pool, timeout, outage, waits }
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    async fn session(&self) -> Result<Session, DbErr> {
        let acquiring = self.pool.acquire();
        let acquired = match self.waits {
            Waits::Always => self.outage.watched(acquiring).await,
            Waits::UnlessAway => self.outage.unless_away(acquiring).await,
        };
        let driver = acquired.map_err(|error| {
            if is_connection_failure(&error) {
                self.outage.suspect();
            }
            connection_error(error)
        })?;
        let outage = Arc::clone(&self.outage);
        let (timeout, waits) = (self.timeout, self.waits);
        Ok(Session { driver, state: SessionState::Idle, timeout, outage, waits })
    }

    /// The size of the pool.
    pub(super) fn max_connections(&self) -> usize {
        let most = match &self.pool {
            Pool::Sqlite(pool) => pool.options().get_max_connections(),
            Pool::Postgres(pool) => pool.options().get_max_connections(),
        };
        usize::try_from(most).unwrap_or(usize::MAX)
    }

    /// Waits for the result of another statement as for a connection: a long wait raises suspicion, and the wait ends
    /// once the database is known to be away.
    ///
    /// # Errors
    ///
    /// An error if the database is known to be away.
    pub(super) async fn unless_away<T>(&self, wait: impl Future<Output = T>) -> Result<T, DbErr> {
        let wait = self.outage.unless_away(async { Ok(wait.await) });
        wait.await.map_err(connection_error)
    }

    /// Takes a connection from the pool.
    ///
    /// # Errors
    ///
    /// An error if none can be had.
    pub(super) async fn connection(&self) -> Result<Connection, DbErr> {
        self.session().await.map(Connection)
    }

    /// Begins a transaction that may write. On SQLite it takes the write lock at once (`BEGIN
    /// IMMEDIATE`), because a reader that becomes a writer cannot wait for the lock and fails.
    ///
    /// # Errors
    ///
    /// An error if no connection can be had or `BEGIN` fails.
    pub(super) async fn begin(
        &self,
        turn: Option<OwnedSemaphorePermit>,
    ) -> Result<Transaction, DbErr> {
        let backend = self.get_database_backend();
        let begin = if backend == DbBackend::Sqlite { "BEGIN IMMEDIATE" } else { "BEGIN" };
        let mut session = self.session().await?;
        session.command(begin).await?;
        session.state = SessionState::InTransaction;
        Ok(Transaction::new(session, backend, turn))
    }

    async fn autocommit<T, F>(
        &self,
        statement: Statement,
        run: impl Fn(Session, Statement) -> F,
    ) -> Result<T, DbErr>
    where
        F: Future<Output = Result<T, DbErr>>,
    {
        let attempt = || async {
            let session = self.session().await?;
            run(session, statement.clone()).await
        };
        let is_conflict = |error: &DbErr| StorageError::from_db(error.clone()).is_conflict();
        attempt.retry(conflict_retries()).when(is_conflict).await
    }
}

#[sea_orm_migration::async_trait::async_trait]
impl ConnectionTrait for Database {
    fn get_database_backend(&self) -> DbBackend {
        self.pool.backend()
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        self.autocommit(statement, |mut session, statement| async move {
            session.execute(statement).await
        })
        .await
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        self.session().await?.command(sql).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        Ok(self.query_all_raw(statement).await?.into_iter().next())
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        self.autocommit(statement, |mut session, statement| async move {
            session.query_all(statement).await
        })
        .await
    }
}

impl Connection {
    /// Runs a statement.
    ///
    /// # Errors
    ///
    /// The statement's error. Drop the connection after one.
    pub(super) async fn query_all(
        &mut self,
        statement: Statement,
    ) -> Result<Vec<QueryResult>, DbErr> {
        self.0.query_all(statement).await
    }
}

/// Runs the same code on either kind of connection.
macro_rules! on {
    ($session:ident, $connection:ident => $run:expr) => {
        match &mut $session.driver {
            Driver::Sqlite($connection) => $run,
            Driver::Postgres($connection) => $run,
        }
    };
}

impl Session {
    async fn execute(&mut self, statement: Statement) -> Result<ExecResult, DbErr> {
        let (sql, arguments) = parts(statement);
        let before = self.begin_statement()?;
        let ended = self.timeout.run(&sql, async {
            let sql = AssertSqlSafe(sql.as_str());
            on!(self, connection => {
                let query = sqlx::query_with(sql, arguments);
                query.execute(&mut **connection).await.map(ExecResult::from)
            })
        });
        let ended = ended.await;
        self.end_statement(before, ended, DbErr::Exec)
    }

    async fn query_all(&mut self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let (sql, arguments) = parts(statement);
        let before = self.begin_statement()?;
        let ended = self.timeout.run(&sql, async {
            let sql = AssertSqlSafe(sql.as_str());
            on!(self, connection => {
                let rows = sqlx::query_with(sql, arguments).fetch_all(&mut **connection).await?;
                Ok(rows.into_iter().map(QueryResult::from).collect())
            })
        });
        let ended = ended.await;
        self.end_statement(before, ended, DbErr::Query)
    }

    /// Runs a statement without arguments and without preparing it.
    async fn command(&mut self, sql: &str) -> Result<ExecResult, DbErr> {
        let query = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        // ROLLBACK is what ends an aborted transaction.
        let before = std::mem::replace(&mut self.state, SessionState::Unknown);
        let ended = self.timeout.run(sql, async {
            on!(self, connection => query.execute(&mut **connection).await.map(ExecResult::from))
        });
        let ended = ended.await;
        self.end_statement(before, ended, DbErr::Exec)
    }

    /// Marks the connection as unusable until the statement has ended: its future may be dropped.
    fn begin_statement(&mut self) -> Result<SessionState, DbErr> {
        match self.state {
            before @ (SessionState::Idle | SessionState::InTransaction) => {
                self.state = SessionState::Unknown;
                Ok(before)
            }
            SessionState::Aborted | SessionState::Unknown => Err(ended()),
        }
    }

    fn end_statement<T>(
        &mut self,
        before: SessionState,
        ended: Result<T, sqlx::Error>,
        wrap: fn(RuntimeErr) -> DbErr,
    ) -> Result<T, DbErr> {
        match ended {
            Ok(done) => {
                self.state = before;
                // Calls need not wait until the watch over storage sees it too.
                if self.waits == Waits::Always {
                    self.outage.set(false);
                }
                Ok(done)
            }
            Err(error) => {
                if is_connection_failure(&error) {
                    self.outage.suspect();
                }
                self.state = match before {
                    _ if !leaves_session_usable(&error) => SessionState::Unknown,
                    SessionState::InTransaction => SessionState::Aborted,
                    before => before,
                };
                Err(wrap(RuntimeErr::SqlxError(error.into())))
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.state == SessionState::Idle {
            return;
        }
        match &mut self.driver {
            Driver::Sqlite(connection) => connection.close_on_drop(),
            Driver::Postgres(connection) => connection.close_on_drop(),
        }
    }
}

fn parts(statement: Statement) -> (String, SqlxValues) {
    (statement.sql, SqlxValues(statement.values.unwrap_or_else(|| sea_orm::Values(Vec::new()))))
}

fn connection_error(error: sqlx::Error) -> DbErr {
    DbErr::Conn(RuntimeErr::SqlxError(error.into()))
}

fn ended() -> DbErr {
    DbErr::Custom("the transaction has ended".to_owned())
}
