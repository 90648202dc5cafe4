//! The one clock that leases and expiry go by.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use sea_orm::sea_query::Expr;
use sea_orm::{DbBackend, Value};

use crate::domain::time::Timestamp;

/// The time of the statement, not of the transaction: a commit may have waited.
const POSTGRES_NOW: &str = "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)";

const SQLITE_NOW: &str = "CAST(unixepoch('subsec') * 1000 AS INTEGER)";

/// The source of the time of statements.
#[derive(Debug, Clone, Default)]
pub enum Clock {
    /// The database's own clock: replicas whose clocks are wrong still agree.
    #[default]
    Database,
    /// A value that a test moves, in milliseconds since the epoch.
    Fixed(Arc<AtomicI64>),
}

impl Clock {
    /// Returns `true` if the clock moves by itself.
    pub(super) fn runs(&self) -> bool {
        matches!(self, Self::Database)
    }

    /// The time as an expression of a statement: BIGINT milliseconds since the epoch.
    pub(super) fn now(&self, backend: DbBackend) -> Expr {
        match self {
            Self::Fixed(millis) => Expr::value(millis.load(Ordering::SeqCst)),
            Self::Database if backend == DbBackend::Postgres => Expr::cust(POSTGRES_NOW),
            Self::Database => Expr::cust(SQLITE_NOW),
        }
    }

    /// The time as text of a statement; a value stands at the place of a parameter, see [`Clock::value`].
    pub(super) fn now_sql(&self, backend: DbBackend, parameter: u8) -> String {
        match self {
            Self::Fixed(_) => format!("CAST(${parameter} AS BIGINT)"),
            Self::Database if backend == DbBackend::Postgres => POSTGRES_NOW.to_owned(),
            Self::Database => SQLITE_NOW.to_owned(),
        }
    }

    /// The value of the parameter of [`Clock::now_sql`], if it has one.
    pub(super) fn value(&self) -> Option<Value> {
        match self {
            Self::Fixed(millis) => Some(millis.load(Ordering::SeqCst).into()),
            Self::Database => None,
        }
    }

    /// The same, read once for a whole statement, so that an index can be searched by it.
    pub(super) fn now_once(&self, backend: DbBackend) -> Expr {
        match self {
            Self::Database if backend == DbBackend::Postgres => {
                Expr::cust(format!("(SELECT {POSTGRES_NOW})"))
            }
            _ => self.now(backend),
        }
    }

    /// A clock that a test moves.
    #[must_use]
    pub fn fixed(start: Timestamp) -> Self {
        Self::Fixed(Arc::new(AtomicI64::new(start.millis())))
    }
}
