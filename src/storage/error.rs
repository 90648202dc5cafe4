//! Storage errors, classified once. An absent row is no error.

use std::sync::Arc;

use sea_orm::{DbErr, RuntimeErr, SqlErr, sqlx};

use super::outage::KnownAway;
use crate::crypto::keyring::OpenError;

/// Why storage did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StorageError {
    /// The database cannot be reached, or refused the statement.
    #[error("database: {0}{remedy}", remedy = remedy(.0))]
    Database(Arc<DbErr>),
    /// A row is sealed with a key that this replica does not have. Another replica may have it, so
    /// the row stays as it is.
    #[error("a row of {table} is sealed with the key {key_id:?}, which is not in this keyring")]
    UnknownKey {
        /// The table.
        table: &'static str,
        /// The key that is missing.
        key_id: String,
    },
    /// A row does not open or is not of the form that this version writes.
    #[error("a row of {table} is damaged: {reason}")]
    Damaged {
        /// The table.
        table: &'static str,
        /// The problem. Never a value.
        reason: String,
    },
}

/// The verdict of a failed statement on a retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The database cannot be reached or cannot work now, or its operator has to change something. The
    /// same statement may succeed later.
    Unavailable,
    /// Two transactions met (SQLSTATE class 40). The whole transaction may succeed at once.
    Conflict,
    /// The server accepts no writes, for example a primary that was demoted (SQLSTATE 25006).
    ReadOnly,
    /// A constraint does not hold (SQLSTATE class 23).
    Constraint,
    /// The values or the statement can never be accepted, for example text with a NUL byte (SQLSTATE
    /// 22021).
    Permanent,
}

impl From<DbErr> for StorageError {
    fn from(error: DbErr) -> Self {
        Self::from_db(error)
    }
}

impl StorageError {
    pub(super) fn from_db(error: DbErr) -> Self {
        Self::Database(Arc::new(error))
    }

    pub(super) fn open(table: &'static str, error: OpenError) -> Self {
        match error {
            OpenError::UnknownKey(key_id) => Self::UnknownKey { table, key_id },
            OpenError::Forged => Self::damaged(table, "altered, or sealed for another place"),
        }
    }

    pub(super) fn damaged(table: &'static str, reason: impl Into<String>) -> Self {
        Self::Damaged { table, reason: reason.into() }
    }

    /// Classifies the error. Rows that cannot be read are `Unavailable` where another key would open
    /// them, and `Permanent` where nothing does.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Database(error) => match sqlx_error(error) {
                Some(error) => kind_of(error),
                None => match &**error {
                    DbErr::Type(_)
                    | DbErr::Json(_)
                    | DbErr::TryIntoErr { .. }
                    | DbErr::ConvertFromU64(_)
                    | DbErr::AttrNotSet(_) => ErrorKind::Permanent,
                    _ => ErrorKind::Unavailable,
                },
            },
            Self::UnknownKey { .. } => ErrorKind::Unavailable,
            Self::Damaged { .. } => ErrorKind::Permanent,
        }
    }

    /// Returns `true` if another row already has the unique key.
    pub(super) fn is_unique_violation(&self) -> bool {
        matches!(self, Self::Database(error)
            if matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))))
    }

    /// Returns `true` if the transaction met another one and may be repeated at once.
    pub(super) fn is_conflict(&self) -> bool {
        self.kind() == ErrorKind::Conflict
    }

    /// Returns `true` if a row cannot be opened or read, on any database.
    #[must_use]
    pub fn is_unreadable(&self) -> bool {
        matches!(self, Self::UnknownKey { .. } | Self::Damaged { .. })
    }

    /// Returns `true` if the database is absent, as opposed to one that refuses the service or a statement.
    #[must_use]
    pub fn is_out_of_reach(&self) -> bool {
        let Self::Database(error) = self else { return false };
        let Some(error) = sqlx_error(error) else {
            return matches!(**error, DbErr::ConnectionAcquire(_));
        };
        match (error, sqlstate(error)) {
            // Class 08, connection exceptions; class 53, insufficient resources; 57P01 to 57P05, the
            // server is going or coming; 3D000, the database is still to be created; 25006, it accepts
            // no writes.
            (_, Some(code)) => {
                ["08", "53", "57P", "3D000", "25006"].iter().any(|class| code.starts_with(class))
            }
            (sqlx::Error::Configuration(_) | sqlx::Error::Tls(_), None) => false,
            // A certificate that is not trusted, or a missing certificate of ours.
            (sqlx::Error::Io(error), None) => {
                use std::io::ErrorKind::{InvalidData, NotFound};
                !matches!(error.kind(), InvalidData | NotFound)
            }
            (_, None) => true,
        }
    }

    /// Returns `true` if the statement met the work of another session: it waited too long for a lock
    /// (SQLSTATE 55P03), took too long (57014), or conflicted (class 40).
    #[must_use]
    pub fn is_contended(&self) -> bool {
        let Self::Database(error) = self else { return false };
        let code = sqlx_error(error).and_then(sqlstate);
        code.is_some_and(|code| {
            ["40", "55P03", "57014"].iter().any(|class| code.starts_with(class))
        })
    }

    /// Returns `true` if the connection failed, as against a statement that the server refused. The watch over
    /// storage logs an outage, so background work does not log this for each statement.
    #[must_use]
    pub fn is_connection_failure(&self) -> bool {
        let Self::Database(error) = self else { return false };
        sqlx_error(error).is_some_and(is_connection_failure)
    }

    /// Returns `true` if nothing was tried because the database is known to be away. The watch over storage
    /// has logged the outage, so this is not logged again for each statement.
    #[must_use]
    pub fn is_known_outage(&self) -> bool {
        let Self::Database(error) = self else { return false };
        match sqlx_error(error) {
            Some(sqlx::Error::Io(error)) => {
                error.get_ref().is_some_and(|cause| cause.is::<KnownAway>())
            }
            _ => false,
        }
    }

    /// The words of the database or the network, without those of the driver.
    #[must_use]
    pub fn reason(&self) -> String {
        let Self::Database(error) = self else { return self.to_string() };
        match sqlx_error(error) {
            Some(sqlx::Error::Database(error)) => error.message().to_owned(),
            Some(sqlx::Error::Io(error)) => error.to_string(),
            Some(error) => error.to_string(),
            None => error.to_string(),
        }
    }

    /// Returns `true` if the same call may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self.kind(), ErrorKind::Unavailable | ErrorKind::Conflict | ErrorKind::ReadOnly)
    }
}

fn sqlx_error(error: &DbErr) -> Option<&sqlx::Error> {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error)) => Some(error),
        _ => None,
    }
}

/// The remedy for an error whose text has none.
fn remedy(error: &DbErr) -> &'static str {
    match sqlx_error(error).and_then(sqlstate).as_deref() {
        // A prepared statement that exists already, or that is missing.
        Some("42P05" | "26000") => {
            "; a pooler between this service and the database must work in session mode, and empty \
             sessions before it hands them on (PgBouncer: pool_mode, server_reset_query)"
        }
        _ => "",
    }
}

fn sqlstate(error: &sqlx::Error) -> Option<String> {
    error.as_database_error()?.code().map(|code| code.into_owned())
}

fn kind_of(error: &sqlx::Error) -> ErrorKind {
    use sqlx::Error;

    let Error::Database(refusal) = error else {
        return match error {
            Error::Encode(_)
            | Error::Decode(_)
            | Error::ColumnDecode { .. }
            | Error::ColumnNotFound(_)
            | Error::ColumnIndexOutOfBounds { .. }
            | Error::TypeNotFound { .. }
            | Error::InvalidArgument(_) => ErrorKind::Permanent,
            _ => ErrorKind::Unavailable,
        };
    };
    let code = refusal.code().unwrap_or_default();
    if refusal.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().is_some() {
        postgres_kind(&code)
    } else {
        sqlite_kind(code.parse().unwrap_or_default())
    }
}

/// Classifies a SQLSTATE (PostgreSQL manual, appendix A). A code that an operator can do something about
/// (privileges, a table that is missing, an exception that a trigger raises, a prepared statement that a
/// pooler has lost) is `Unavailable`.
fn postgres_kind(code: &str) -> ErrorKind {
    const PERMANENT: [&str; 7] = ["0A", "21", "22", "42", "44", "54", "HV"];
    const OPERATORS: [&str; 4] = ["42501", "42P01", "42P05", "42703"];
    match code {
        "25006" => ErrorKind::ReadOnly,
        // Not 40003, after which the transaction may have been committed.
        "40001" | "40P01" => ErrorKind::Conflict,
        code if code.starts_with("23") => ErrorKind::Constraint,
        code if OPERATORS.contains(&code) => ErrorKind::Unavailable,
        code if PERMANENT.iter().any(|class| code.starts_with(class)) => ErrorKind::Permanent,
        _ => ErrorKind::Unavailable,
    }
}

/// Classifies an extended result code (<https://sqlite.org/rescode.html>).
fn sqlite_kind(code: i32) -> ErrorKind {
    /// `SQLITE_BUSY_SNAPSHOT`: a reader that wanted to write met another writer.
    const BUSY_SNAPSHOT: i32 = 517;
    /// `SQLITE_CONSTRAINT_TRIGGER`: an exception that a trigger raises.
    const TRIGGER: i32 = 1811;
    match (code, code & 0xff) {
        (BUSY_SNAPSHOT, _) => ErrorKind::Conflict,
        (TRIGGER, _) => ErrorKind::Unavailable,
        (_, 8) => ErrorKind::ReadOnly,
        (_, 19) => ErrorKind::Constraint,
        // SQLITE_TOOBIG, MISMATCH, RANGE. SQLITE_ERROR is for the operator: a table is missing.
        (_, 18 | 20 | 25) => ErrorKind::Permanent,
        _ => ErrorKind::Unavailable,
    }
}

/// Returns `true` if the connection broke or could not be opened, or the server is going or coming.
pub(super) fn is_connection_failure(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => true,
        sqlx::Error::Database(refusal) => {
            refusal.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().is_some_and(|refusal| {
                ["08", "57P"].iter().any(|class| refusal.code().starts_with(class))
            })
        }
        _ => false,
    }
}

/// Returns `true` if a connection can be used after this error, outside a transaction or after a
/// `ROLLBACK`: PostgreSQL refused this one statement. After any other error, and after every error on
/// SQLite, which may have rolled back by itself, the connection is closed. So is one to a server that
/// accepts no writes: a new connection may lead to the new primary.
pub(super) fn leaves_session_usable(error: &sqlx::Error) -> bool {
    const USABLE: [&str; 8] = ["0A", "22", "23", "40", "42", "54", "55", "57014"];
    let Some(refusal) = error.as_database_error() else { return false };
    refusal
        .try_downcast_ref::<sqlx::postgres::PgDatabaseError>()
        .is_some_and(|refusal| USABLE.iter().any(|class| refusal.code().starts_with(class)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlstates_are_classified() {
        for (code, kind) in [
            ("40001", ErrorKind::Conflict),
            ("40P01", ErrorKind::Conflict),
            ("40003", ErrorKind::Unavailable),
            ("25006", ErrorKind::ReadOnly),
            ("23505", ErrorKind::Constraint),
            ("22021", ErrorKind::Permanent),
            ("54000", ErrorKind::Permanent),
            ("42601", ErrorKind::Permanent),
            ("42501", ErrorKind::Unavailable),
            ("42P01", ErrorKind::Unavailable),
            ("53100", ErrorKind::Unavailable),
            ("55P03", ErrorKind::Unavailable),
            ("57014", ErrorKind::Unavailable),
            ("57P01", ErrorKind::Unavailable),
            ("26000", ErrorKind::Unavailable),
            ("P0001", ErrorKind::Unavailable),
            ("XX000", ErrorKind::Unavailable),
        ] {
            assert_eq!(postgres_kind(code), kind, "{code}");
        }
    }

    #[test]
    fn sqlite_result_codes_are_classified() {
        for (code, kind) in [
            (5, ErrorKind::Unavailable),
            (517, ErrorKind::Conflict),
            (8, ErrorKind::ReadOnly),
            (1032, ErrorKind::ReadOnly),
            (13, ErrorKind::Unavailable),
            (266, ErrorKind::Unavailable),
            (2067, ErrorKind::Constraint),
            (1811, ErrorKind::Unavailable),
            (18, ErrorKind::Permanent),
        ] {
            assert_eq!(sqlite_kind(code), kind, "{code}");
        }
    }
}
