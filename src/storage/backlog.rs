//! Reads the counts for metrics.

use std::time::Duration;

use sea_orm::sea_query::{Expr, ExprTrait, Func, Query};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QuerySelect, QueryTrait};

use super::entity::{grants, revocations};
use super::{Storage, StorageError};
use crate::domain::name::Name;
use crate::domain::time::Timestamp;

/// The number of outbox entries that are counted at most: a larger number needs no exact figure.
const MOST: u64 = 100_000;

/// The backlog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    /// Refreshes in doubt whose lease has ended.
    pub open_intents: u64,
    /// Tokens that are still to be revoked; counted up to 100,000.
    pub revocations: u64,
    /// The time that the oldest of them has waited; zero where there is none.
    pub oldest_revocation: Duration,
}

impl Storage {
    /// Counts what is still to be done at these providers, by partial indexes and a table that is small.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn backlog(&self, providers: &[Name]) -> Result<Backlog, StorageError> {
        use sea_orm::ConnectionTrait;

        let all = || Expr::val(1).count();
        let open = grants::Entity::find()
            .select_only()
            .expr_as(all(), "count")
            .filter(grants::Column::IntentAt.is_not_null())
            .filter(grants::Column::Provider.is_in(providers.iter().map(Name::as_str)))
            .filter(self.past_or_absent(grants::Column::LeaseUntil))
            .into_query();
        let mut some = Query::select();
        some.column(revocations::Column::CreatedAt)
            .from(revocations::Entity)
            .and_where(revocations::Column::Provider.is_in(providers.iter().map(Name::as_str)))
            .limit(MOST);
        let mut waiting = Query::select();
        waiting
            .expr_as(all(), "count")
            .expr_as(Func::min(Expr::col(("some", "created_at"))), "oldest")
            .expr_as(self.now_expr(), "now")
            .from_subquery(some, "some");
        let missing = || StorageError::damaged("none", "SELECT gave no row");
        let open = self.db.query_one(&open).await?.ok_or_else(missing)?;
        let waiting = self.db.query_one(&waiting).await?.ok_or_else(missing)?;
        let now = Timestamp::from_millis(waiting.try_get("", "now")?);
        let oldest: Option<i64> = waiting.try_get("", "oldest")?;
        let count = |row: &sea_orm::QueryResult| -> Result<u64, StorageError> {
            Ok(u64::try_from(row.try_get::<i64>("", "count")?).unwrap_or(0))
        };
        Ok(Backlog {
            open_intents: count(&open)?,
            revocations: count(&waiting)?,
            oldest_revocation: oldest
                .map_or(Duration::ZERO, |at| now.since(Timestamp::from_millis(at))),
        })
    }

    /// The number of grants that there are, by provider and state. It reads the whole table.
    ///
    /// # Errors
    ///
    /// [`StorageError`], also where that takes longer than a statement may.
    pub async fn count_grants(&self) -> Result<Vec<(String, String, u64)>, StorageError> {
        let counted: Vec<(String, String, i64)> = grants::Entity::find()
            .select_only()
            .column(grants::Column::Provider)
            .column(grants::Column::State)
            .expr_as(Expr::val(1).count(), "count")
            .group_by(grants::Column::Provider)
            .group_by(grants::Column::State)
            .into_tuple()
            .all(&self.db)
            .await?;
        let counted = counted.into_iter();
        Ok(counted.map(|(p, s, count)| (p, s, u64::try_from(count).unwrap_or(0))).collect())
    }
}
