//! Ends authorizations whose time is up, and deletes those that ended long ago.

use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};

use super::{NewRevocations, convert, in_state};
use crate::domain::authorization::{
    Authorization, Failure, MAX_CONFIRMATION_ATTEMPTS, RETENTION, State,
};
use crate::domain::name::Name;
use crate::domain::time::millis;
use crate::storage::connection::retry_conflicts;
use crate::storage::entity::{authorization_attempts, authorizations};
use crate::storage::revocations::Disposal;
use crate::storage::{Storage, StorageError, Write};

impl Storage {
    /// Ends up to `limit` authorizations whose time is up, and disposes of their tokens as `disposal`
    /// says for their provider. Deletes final ones whose retention is up. Returns how many rows it dealt
    /// with.
    ///
    /// A row that cannot be read, or whose tokens no key opens, is put off by [`RETENTION`], so that it
    /// is neither lost nor in the way of others.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; what was done before stays done.
    pub async fn sweep_authorizations<'a>(
        &self,
        limit: u64,
        disposal: impl Fn(&Name) -> Disposal<'a>,
    ) -> Result<usize, StorageError> {
        let due = authorizations::Entity::find()
            .filter(Expr::col(authorizations::Column::ExpiresAt).lte(self.now_once()))
            .order_by_asc(authorizations::Column::ExpiresAt)
            .limit(limit)
            .all(&self.db)
            .await?;
        let found = due.len();
        for model in due {
            // Another replica may be sweeping too: each statement names the state that it found.
            match self.end_overdue(&model, &disposal).await {
                Ok(()) => {}
                Err(error) if error.is_unreadable() => {
                    tracing::error!(%error, "an authorization cannot be read; it is put off");
                    self.put_off(&model).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    async fn end_overdue<'a>(
        &self,
        model: &authorizations::Model,
        disposal: &impl Fn(&Name) -> Disposal<'a>,
    ) -> Result<(), StorageError> {
        let authorization = convert::authorization(model.clone())?;
        let disposal = disposal(&authorization.key.provider);
        retry_conflicts(|| self.end_overdue_once(model, &authorization, &disposal)).await
    }

    async fn end_overdue_once(
        &self,
        model: &authorizations::Model,
        authorization: &Authorization,
        disposal: &Disposal<'_>,
    ) -> Result<(), StorageError> {
        let write = self.begin().await?;
        let overdue = in_state(authorization.id, &[&model.state])
            .add(Expr::col(authorizations::Column::ExpiresAt).lte(self.now_expr()));
        let touched = match end_of(authorization, model) {
            Some(end) => self.ending(&end).filter(overdue).exec(&*write).await?.rows_affected,
            // It is final, and locked by this until the transaction ends.
            None => {
                let again = authorizations::Entity::update_many()
                    .col_expr(
                        authorizations::Column::ExpiresAt,
                        self.now_expr().add(millis(RETENTION)),
                    )
                    .filter(overdue);
                again.exec(&*write).await?.rows_affected
            }
        };
        if touched > 0 {
            let tokens = self.purge(&write, model, &authorization.key, disposal).await?;
            let is_final = end_of(authorization, model).is_none();
            if is_final && tokens.is_some() {
                self.delete_on(&write, model).await?;
            }
            let new = NewRevocations::of(&authorization.key, tokens.unwrap_or_default());
            self.dispose(&write, new, disposal).await?;
        }
        write.commit().await
    }

    async fn delete_on(
        &self,
        write: &Write,
        model: &authorizations::Model,
    ) -> Result<(), StorageError> {
        authorization_attempts::Entity::delete_many()
            .filter(authorization_attempts::Column::AuthorizationId.eq(model.id.clone()))
            .exec(&**write)
            .await?;
        authorizations::Entity::delete_by_id(model.id.clone()).exec(&**write).await?;
        Ok(())
    }

    async fn put_off(&self, model: &authorizations::Model) -> Result<(), StorageError> {
        let _turn = self.turn().await;
        authorizations::Entity::update_many()
            .col_expr(authorizations::Column::ExpiresAt, self.now_expr().add(millis(RETENTION)))
            .filter(authorizations::Column::Id.eq(model.id.clone()))
            .exec(&self.db)
            .await?;
        Ok(())
    }
}

/// The final state of an authorization whose time is up. `None` if it has one.
fn end_of(authorization: &Authorization, model: &authorizations::Model) -> Option<State> {
    Some(match authorization.state {
        State::Pending => State::Expired,
        State::AwaitingConfirmation
            if model.confirmation_attempts >= i64::from(MAX_CONFIRMATION_ATTEMPTS) =>
        {
            State::Failed(Failure::too_many_wrong_codes())
        }
        State::AwaitingConfirmation => State::Expired,
        State::Exchanging => State::Failed(Failure::exchange_interrupted()),
        _ => return None,
    })
}
