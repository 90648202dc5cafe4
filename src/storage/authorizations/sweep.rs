//! Ending what waited for too long, and forgetting what ended long ago.

use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};

use super::{NewRevocations, convert, in_state};
use crate::domain::authorization::{Failure, MAX_CONFIRMATION_ATTEMPTS, State};
use crate::domain::name::Name;
use crate::storage::entity::{authorization_attempts, authorizations};
use crate::storage::revocations::Disposal;
use crate::storage::{Storage, StorageError};

impl Storage {
    /// Ends up to `limit` authorizations whose time is up: their tokens are disposed of as
    /// `disposal` says for their provider. Final ones whose retention is up are deleted. Gives how
    /// many rows it dealt with.
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
        let mut ended = 0;
        for model in due {
            // Another replica may be sweeping too: each statement names the state that it found.
            match self.end_overdue(&model, &disposal).await {
                Ok(()) => ended += 1,
                Err(error @ StorageError::Database(_)) => return Err(error),
                // One unreadable row must not keep the others from their end.
                Err(error) => {
                    tracing::error!(%error, "cannot end an authorization whose time is up");
                }
            }
        }
        Ok(ended)
    }

    async fn end_overdue<'a>(
        &self,
        model: &authorizations::Model,
        disposal: &impl Fn(&Name) -> Disposal<'a>,
    ) -> Result<(), StorageError> {
        let authorization = convert::authorization(model.clone())?;
        let end = match authorization.state {
            State::Pending => State::Expired,
            State::AwaitingConfirmation
                if model.confirmation_attempts >= i64::from(MAX_CONFIRMATION_ATTEMPTS) =>
            {
                State::Failed(Failure::too_many_wrong_codes())
            }
            State::AwaitingConfirmation => State::Expired,
            State::Exchanging => State::Failed(Failure::exchange_interrupted()),
            _ => return self.delete_authorization(model).await,
        };
        let write = self.begin().await?;
        let ended = self
            .ending(&end)
            .filter(in_state(authorization.id, &[&model.state]))
            .filter(Expr::col(authorizations::Column::ExpiresAt).lte(self.now_expr()))
            .exec(&*write)
            .await?;
        if ended.rows_affected > 0 {
            let disposal = disposal(&authorization.key.provider);
            let tokens = self.purge(&write, model, &authorization.key, &disposal).await?;
            let new = NewRevocations::of(&authorization.key, tokens);
            self.dispose(&write, new, &disposal).await?;
        }
        write.commit().await
    }

    async fn delete_authorization(
        &self,
        model: &authorizations::Model,
    ) -> Result<(), StorageError> {
        let write = self.begin().await?;
        authorization_attempts::Entity::delete_many()
            .filter(authorization_attempts::Column::AuthorizationId.eq(model.id.clone()))
            .exec(&*write)
            .await?;
        authorizations::Entity::delete_by_id(model.id.clone()).exec(&*write).await?;
        write.commit().await
    }
}
