//! A limit on how long a statement may take.
//!
//! A connection can go silent without being closed (a failover, a machine that is gone, a forgotten
//! entry of a NAT), and the driver waits for as long as the network does. Whoever gives up frees the
//! connection, which is then found broken.

use std::time::Duration;

use sea_orm::error::ConnAcquireErr;
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, ExecResult,
    QueryResult, Statement, TransactionOptions, TransactionTrait,
};

/// Longer than any statement here takes.
const LIMIT: Duration = Duration::from_secs(5);

/// Longer than SQLite waits for another process.
const SQLITE_LIMIT: Duration = Duration::from_secs(12);

/// A connection or a transaction whose statements have a limit.
#[derive(Debug)]
pub(super) struct Limited<C>(C);

impl<C> Limited<C> {
    pub(super) fn new(inner: C) -> Self {
        Self(inner)
    }

    /// Without the limit, for what takes its time.
    pub(super) fn unlimited(&self) -> &C {
        &self.0
    }
}

impl Limited<DatabaseConnection> {
    pub(super) async fn begin(
        &self,
        options: TransactionOptions,
    ) -> Result<Limited<DatabaseTransaction>, DbErr> {
        limit(self, self.0.begin_with_options(options)).await.map(Limited)
    }
}

impl Limited<DatabaseTransaction> {
    /// Commits. After an error it may have been committed all the same.
    pub(super) async fn commit(self) -> Result<(), DbErr> {
        let most = most(self.get_database_backend());
        within(most, self.0.commit()).await
    }
}

#[sea_orm_migration::async_trait::async_trait]
impl<C: ConnectionTrait> ConnectionTrait for Limited<C> {
    fn get_database_backend(&self) -> DbBackend {
        self.0.get_database_backend()
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        limit(self, self.0.execute_raw(statement)).await
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        limit(self, self.0.execute_unprepared(sql)).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        limit(self, self.0.query_one_raw(statement)).await
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        limit(self, self.0.query_all_raw(statement)).await
    }

    fn support_returning(&self) -> bool {
        self.0.support_returning()
    }
}

fn most(backend: DbBackend) -> Duration {
    if backend == DbBackend::Sqlite { SQLITE_LIMIT } else { LIMIT }
}

async fn limit<C: ConnectionTrait, T>(
    connection: &Limited<C>,
    statement: impl Future<Output = Result<T, DbErr>>,
) -> Result<T, DbErr> {
    within(most(connection.get_database_backend()), statement).await
}

async fn within<T>(
    most: Duration,
    statement: impl Future<Output = Result<T, DbErr>>,
) -> Result<T, DbErr> {
    tokio::time::timeout(most, statement)
        .await
        .unwrap_or(Err(DbErr::ConnectionAcquire(ConnAcquireErr::Timeout)))
}
