//! What the workers look for among the grants.

use std::time::Duration;

use sea_orm::sea_query::{Expr, ExprTrait, LockBehavior, LockType, Query};
use sea_orm::{ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder, QuerySelect};

use super::refresh::of_version;
use super::{ACTIVE, GRANTS, convert};
use crate::domain::grant::Grant;
use crate::domain::id::Id;
use crate::domain::time::{Timestamp, millis};
use crate::storage::entity::grants;
use crate::storage::{Storage, StorageError, rows};

/// How long whoever claimed a grant for a refresh ahead of time has for it. After that, or where the
/// refresh failed, it is looked at again.
const LOOK: Duration = Duration::from_secs(60);

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

    /// Claims up to `limit` grants that are to be looked at for a refresh ahead of time: nobody else
    /// gets them for a while.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn claim_due(&self, limit: u64) -> Result<Vec<Grant>, StorageError> {
        let due = || Expr::col(grants::Column::NextRefreshAt).lte(self.now_expr());
        let mut ids = Query::select();
        ids.column(grants::Column::Id)
            .from(grants::Entity)
            .and_where(due())
            .and_where(grants::Column::State.eq(ACTIVE))
            .order_by(grants::Column::NextRefreshAt, sea_orm::Order::Asc)
            .limit(limit)
            // On SQLite, which has one writer, the lock clause is left out.
            .lock_with_behavior(LockType::Update, LockBehavior::SkipLocked);
        let _turn = self.turn().await;
        let claimed = grants::Entity::update_many()
            .col_expr(grants::Column::NextRefreshAt, self.now_expr().add(millis(LOOK)))
            .filter(Expr::col(grants::Column::Id).in_subquery(ids))
            .filter(due())
            .exec_with_returning(&self.db)
            .await?;
        Ok(readable(claimed))
    }

    /// When a grant that was claimed is to be looked at again. Absent: not before it is used. Without
    /// effect where it has been refreshed meanwhile, which sets the time itself.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; it is then looked at when the claim ends.
    pub async fn look_again(
        &self,
        grant: &Grant,
        at: Option<Timestamp>,
    ) -> Result<(), StorageError> {
        let _turn = self.turn().await;
        grants::Entity::update_many()
            .col_expr(grants::Column::NextRefreshAt, Expr::value(at.map(Timestamp::millis)))
            .filter(of_version(grant.id, grant.version))
            // A use that was written down since the claim has made it due again.
            .filter(match grant.last_used_at {
                Some(at) => grants::Column::LastUsedAt.eq(at.millis()),
                None => grants::Column::LastUsedAt.is_null(),
            })
            .exec(&self.db)
            .await?;
        Ok(())
    }

    /// Writes down that grants were used, once for each access token of theirs, and has those looked at
    /// that were let go.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn note_used(&self, used: &[Id]) -> Result<(), StorageError> {
        let unwritten = Condition::any()
            .add(grants::Column::LastUsedAt.is_null())
            .add(Expr::col(grants::Column::LastUsedAt).lt(Expr::col(grants::Column::IssuedAt)));
        let _turn = self.turn().await;
        grants::Entity::update_many()
            .col_expr(grants::Column::LastUsedAt, self.now_expr())
            .col_expr(
                grants::Column::NextRefreshAt,
                Expr::col(grants::Column::NextRefreshAt).if_null(self.now_expr()),
            )
            .filter(grants::Column::Id.is_in(used.iter().map(|id| id.as_bytes().to_vec())))
            .filter(grants::Column::RefreshToken.is_not_null())
            .filter(grants::Column::State.eq(ACTIVE))
            .filter(unwritten)
            .exec(&self.db)
            .await?;
        Ok(())
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
