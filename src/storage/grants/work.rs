//! What the workers look for among the grants.

use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder, QuerySelect};

use super::{ACTIVE, GRANTS, convert};
use crate::domain::grant::Grant;
use crate::storage::entity::grants;
use crate::storage::{Storage, StorageError, rows};

impl Storage {
    /// Up to `limit` grants of which a refresh token may have been sent without its answer being
    /// stored, and that nobody refreshes now: the oldest first.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn open_intents(&self, limit: u64) -> Result<Vec<Grant>, StorageError> {
        let found = grants::Entity::find()
            .filter(grants::Column::IntentAt.is_not_null())
            .filter(grants::Column::State.eq(ACTIVE))
            .filter(self.past_or_absent(grants::Column::LeaseUntil))
            .filter(self.past_or_absent(grants::Column::NextAttemptAt))
            .order_by_asc(grants::Column::IntentAt)
            .limit(limit)
            .all(&self.db)
            .await?;
        Ok(readable(found))
    }

    fn past_or_absent(&self, column: grants::Column) -> Condition {
        Condition::any().add(column.is_null()).add(Expr::col(column).lt(self.now_expr()))
    }
}

/// The grants that can be read; one that cannot must not keep the others from their turn.
fn readable(models: Vec<grants::Model>) -> Vec<Grant> {
    let read = models.into_iter().filter_map(|model| {
        let key =
            rows::key(GRANTS, &model.namespace, &model.provider, &model.subject, &model.account);
        match key.and_then(|key| convert::grant(model, key)) {
            Ok(grant) => Some(grant),
            Err(error) => {
                tracing::error!(%error, "cannot read a grant");
                None
            }
        }
    });
    read.collect()
}
