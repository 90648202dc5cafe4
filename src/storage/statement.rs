//! The time limit and the span of every statement.

use std::time::Duration;

use opentelemetry::trace::Status;
use sea_orm::{DbBackend, sqlx};
use tracing::Instrument;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::telemetry;

/// The time that PostgreSQL works on a statement (`statement_timeout`). No statement here takes that long.
pub(super) const SERVER_TIMEOUT: Duration = Duration::from_secs(5);

/// The time that this side waits for PostgreSQL's answer: longer than [`SERVER_TIMEOUT`], so that the server
/// ends a slow statement itself. Only a connection that has gone silent without being closed (a
/// failover, a lost machine, a forgotten NAT entry) reaches this limit.
const POSTGRES_TIMEOUT: Duration = Duration::from_secs(6);
const _: () = assert!(SERVER_TIMEOUT.as_secs() < POSTGRES_TIMEOUT.as_secs());

/// Longer than SQLite waits for another process.
const SQLITE_TIMEOUT: Duration = Duration::from_secs(12);

/// The time limit of statements on one kind of database.
#[derive(Debug, Clone, Copy)]
pub(super) struct StatementTimeout {
    backend: DbBackend,
    limit: Duration,
}

impl StatementTimeout {
    pub(super) fn of(backend: DbBackend) -> Self {
        let limit = if backend == DbBackend::Sqlite { SQLITE_TIMEOUT } else { POSTGRES_TIMEOUT };
        Self { backend, limit }
    }

    /// Runs a statement within the limit. `sql` names its span.
    ///
    /// # Errors
    ///
    /// The statement's error, or an I/O error of the kind `TimedOut`.
    pub(super) async fn run<T>(
        self,
        sql: &str,
        statement: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        let limited = async {
            tokio::time::timeout(self.limit, statement)
                .await
                .unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))
        };
        if telemetry::is_recorded() {
            return traced(self.backend, sql, limited).await;
        }
        limited.await
    }
}

/// Records a span that names the operation and the table, and no value.
async fn traced<T>(
    backend: DbBackend,
    sql: &str,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let (operation, table) = summary(sql);
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

/// The first word of a statement, and its table.
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
