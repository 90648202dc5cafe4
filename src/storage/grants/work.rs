//! What the workers look for among the grants.

use std::time::Duration;

use sea_orm::sea_query::{Expr, ExprTrait, Query};
use sea_orm::{ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder, QuerySelect};

use super::refresh::of_version;
use super::{ACTIVE, GRANTS, convert};
use crate::domain::grant::Grant;
use crate::domain::id::Id;
use crate::domain::name::Name;
use crate::domain::time::{Timestamp, millis};
use crate::storage::entity::grants;
use crate::storage::{Storage, StorageError, rows};

/// How long whoever claimed a grant for a refresh ahead of time has for it. After that, or where the
/// refresh failed, it is looked at again.
const LOOK: Duration = Duration::from_secs(60);

impl Storage {
    /// Up to `limit` grants at these providers of which a refresh token may have been sent without its
    /// answer being stored, and that nobody refreshes now: the oldest first, without those to be
    /// passed over.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn open_intents(
        &self,
        providers: &[Name],
        passed_over: &[Id],
        limit: u64,
    ) -> Result<Vec<Grant>, StorageError> {
        let found = grants::Entity::find()
            .filter(grants::Column::IntentAt.is_not_null())
            .filter(grants::Column::Provider.is_in(providers.iter().map(Name::as_str)))
            .filter(
                grants::Column::Id.is_not_in(passed_over.iter().map(|id| id.as_bytes().to_vec())),
            )
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
        let mut ids = Query::select();
        ids.column(grants::Column::Id)
            .from(grants::Entity)
            .and_where(Expr::col(grants::Column::NextRefreshAt).lte(self.now_once()))
            .and_where(grants::Column::State.eq(ACTIVE))
            .order_by(grants::Column::NextRefreshAt, sea_orm::Order::Asc)
            .limit(limit);
        let Some((write, ids)) = self.begin_claim(ids).await? else { return Ok(Vec::new()) };
        let claimed = grants::Entity::update_many()
            .col_expr(grants::Column::NextRefreshAt, self.now_expr().add(millis(LOOK)))
            .filter(grants::Column::Id.is_in(ids))
            .exec_with_returning(&*write)
            .await?;
        write.commit().await?;
        Ok(readable(claimed))
    }

    /// Has up to `limit` grants of a provider looked at that nobody was to look at before their next
    /// use. Gives how many there were.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn look_at_all(&self, provider: &Name, limit: u64) -> Result<u64, StorageError> {
        let mut ids = Query::select();
        ids.column(grants::Column::Id)
            .from(grants::Entity)
            .and_where(grants::Column::Provider.eq(provider.as_str()))
            .and_where(grants::Column::NextRefreshAt.is_null())
            .and_where(grants::Column::RefreshToken.is_not_null())
            .and_where(grants::Column::State.eq(ACTIVE))
            .limit(limit);
        let _turn = self.turn().await;
        let stamped = grants::Entity::update_many()
            .col_expr(grants::Column::NextRefreshAt, self.now_expr())
            .filter(Expr::col(grants::Column::Id).in_subquery(ids))
            .filter(grants::Column::NextRefreshAt.is_null())
            .exec(&self.db)
            .await?;
        Ok(stamped.rows_affected)
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

    pub(in crate::storage) fn past_or_absent(&self, column: grants::Column) -> Condition {
        Condition::any().add(column.is_null()).add(Expr::col(column).lt(self.now_once()))
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
