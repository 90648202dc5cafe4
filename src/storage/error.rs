//! What can go wrong with storage. An absent row is no error.

use std::sync::Arc;

use sea_orm::{DbErr, RuntimeErr, SqlErr, sqlx};

use crate::crypto::keyring::OpenError;

/// Why storage did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StorageError {
    /// The database cannot be reached, or refused the statement.
    #[error("database: {0}")]
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
        /// What is wrong with it. Never a value.
        reason: String,
    },
}

impl From<DbErr> for StorageError {
    fn from(error: DbErr) -> Self {
        Self::Database(Arc::new(error))
    }
}

impl StorageError {
    pub(super) fn open(table: &'static str, error: OpenError) -> Self {
        match error {
            OpenError::UnknownKey(key_id) => Self::UnknownKey { table, key_id },
            OpenError::Forged => Self::damaged(table, "altered, or sealed for another place"),
        }
    }

    pub(super) fn damaged(table: &'static str, reason: impl Into<String>) -> Self {
        Self::Damaged { table, reason: reason.into() }
    }

    /// Whether another row already has the unique key.
    pub(super) fn is_unique_violation(&self) -> bool {
        matches!(self, Self::Database(error)
            if matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))))
    }

    /// Whether the database is not there, or not yet, as against one that refuses the service or a
    /// statement.
    #[must_use]
    pub fn is_out_of_reach(&self) -> bool {
        let Self::Database(error) = self else { return false };
        let error = match &**error {
            DbErr::ConnectionAcquire(_) => return true,
            DbErr::Conn(RuntimeErr::SqlxError(error))
            | DbErr::Exec(RuntimeErr::SqlxError(error))
            | DbErr::Query(RuntimeErr::SqlxError(error)) => error,
            _ => return false,
        };
        match (&**error, error.as_database_error().and_then(|error| error.code())) {
            // Class 08, connection exceptions; class 53, insufficient resources; 57P01 to 57P03,
            // the server is going or coming; 3D000, the database is still to be created.
            (_, Some(code)) => {
                ["08", "53", "57P", "3D000"].iter().any(|class| code.starts_with(class))
            }
            (sqlx::Error::Configuration(_) | sqlx::Error::Tls(_), None) => false,
            // A certificate that is not to be trusted, or one of ours that is not there.
            (sqlx::Error::Io(error), None) => {
                use std::io::ErrorKind::{InvalidData, NotFound};
                !matches!(error.kind(), InvalidData | NotFound)
            }
            (_, None) => true,
        }
    }

    /// What the database or the network says, without the driver's words around it.
    #[must_use]
    pub fn reason(&self) -> String {
        let Self::Database(error) = self else { return self.to_string() };
        let (DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error))) = &**error
        else {
            return error.to_string();
        };
        match &**error {
            sqlx::Error::Database(error) => error.message().to_owned(),
            sqlx::Error::Io(error) => error.to_string(),
            error => error.to_string(),
        }
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::Damaged { .. })
    }
}
