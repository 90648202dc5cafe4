//! A limit on how long a statement may take.
//!
//! A connection can go silent without being closed (a failover, a machine that is gone, a forgotten
//! entry of a NAT), and the driver waits for as long as the network does. Whoever gives up frees the
//! connection, which is then found broken.

use std::time::Duration;

use opentelemetry::trace::Status;
use sea_orm::error::ConnAcquireErr;
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, ExecResult,
    QueryResult, Statement, TransactionOptions, TransactionTrait,
};
use tracing::Instrument;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::telemetry;

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
        limit(self, recorded("BEGIN"), self.0.begin_with_options(options)).await.map(Limited)
    }
}

impl Limited<DatabaseTransaction> {
    /// Commits. After an error it may have been committed all the same.
    pub(super) async fn commit(self) -> Result<(), DbErr> {
        let backend = self.get_database_backend();
        traced(backend, recorded("COMMIT"), within(most(backend), self.0.commit())).await
    }
}

#[sea_orm_migration::async_trait::async_trait]
impl<C: ConnectionTrait> ConnectionTrait for Limited<C> {
    fn get_database_backend(&self) -> DbBackend {
        self.0.get_database_backend()
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        let sql = recorded(&statement.sql);
        limit(self, sql, self.0.execute_raw(statement)).await
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        limit(self, recorded(sql), self.0.execute_unprepared(sql)).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        let sql = recorded(&statement.sql);
        limit(self, sql, self.0.query_one_raw(statement)).await
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let sql = recorded(&statement.sql);
        limit(self, sql, self.0.query_all_raw(statement)).await
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
    sql: Option<String>,
    statement: impl Future<Output = Result<T, DbErr>>,
) -> Result<T, DbErr> {
    let backend = connection.get_database_backend();
    traced(backend, sql, within(most(backend), statement)).await
}

/// The text of a statement, where its trace is recorded.
fn recorded(sql: &str) -> Option<String> {
    telemetry::is_recorded().then(|| sql.to_owned())
}

/// A span of a statement, where its trace is recorded: what it does to which table, and no value.
async fn traced<T>(
    backend: DbBackend,
    sql: Option<String>,
    statement: impl Future<Output = Result<T, DbErr>>,
) -> Result<T, DbErr> {
    let Some(sql) = sql else { return statement.await };
    let (operation, table) = summary(&sql);
    let name = table.map_or_else(|| operation.to_owned(), |table| format!("{operation} {table}"));
    let span = tracing::info_span!(
        "statement",
        otel.name = name,
        otel.kind = "client",
        trace_id = tracing::field::Empty,
    );
    telemetry::record_trace_id(&span);
    let system = if backend == DbBackend::Sqlite { "sqlite" } else { "postgresql" };
    span.set_attribute("db.system.name", system);
    span.set_attribute("db.operation.name", operation.to_owned());
    if let Some(table) = table {
        span.set_attribute("db.collection.name", table.to_owned());
    }
    let ended = statement.instrument(span.clone()).await;
    if ended.is_err() {
        span.set_status(Status::error("the statement failed"));
    }
    ended
}

/// The first word of a statement, and the table that it is about.
fn summary(sql: &str) -> (&str, Option<&str>) {
    let mut words = sql.split([' ', '\n', '(']).filter(|word| !word.is_empty());
    let operation = words.next().unwrap_or_default();
    let table = match operation {
        "UPDATE" => words.next(),
        "INSERT" => words.find(|word| *word == "INTO").and_then(|_| words.next()),
        _ => words.find(|word| *word == "FROM").and_then(|_| words.next()),
    };
    (operation, table.map(|table| table.trim_matches('"')))
}

async fn within<T>(
    most: Duration,
    statement: impl Future<Output = Result<T, DbErr>>,
) -> Result<T, DbErr> {
    tokio::time::timeout(most, statement)
        .await
        .unwrap_or(Err(DbErr::ConnectionAcquire(ConnAcquireErr::Timeout)))
}

#[cfg(test)]
mod tests {
    use super::summary;

    #[test]
    fn a_statement_in_two_words() {
        for (sql, operation, table) in [
            (r#"UPDATE "grants" SET "a" = $1"#, "UPDATE", Some("grants")),
            (r#"INSERT INTO "access_tokens" ("a") VALUES ($1)"#, "INSERT", Some("access_tokens")),
            (r#"SELECT "a" FROM "grants" LEFT JOIN "b""#, "SELECT", Some("grants")),
            (r#"DELETE FROM "revocations" WHERE 1 = 1"#, "DELETE", Some("revocations")),
            ("SELECT pg_notify($1, $2)", "SELECT", None),
            ("COMMIT", "COMMIT", None),
            ("", "", None),
        ] {
            assert_eq!(summary(sql), (operation, table), "{sql}");
        }
    }
}
