//! The one clock that leases and expiry go by.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use sea_orm::DbBackend;
use sea_orm::sea_query::Expr;

use crate::domain::time::Timestamp;

/// Where statements take the time from.
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
            // The time of the statement, not of the transaction: a commit may have waited.
            Self::Database if backend == DbBackend::Postgres => {
                Expr::cust("CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)")
            }
            Self::Database => Expr::cust("CAST(unixepoch('subsec') * 1000 AS INTEGER)"),
        }
    }

    /// The same, read once for a whole statement, so that an index can be searched by it.
    pub(super) fn now_once(&self, backend: DbBackend) -> Expr {
        match self {
            Self::Database if backend == DbBackend::Postgres => {
                Expr::cust("(SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT))")
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
