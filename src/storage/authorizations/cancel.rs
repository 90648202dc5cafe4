//! Ends authorizations for the user, the bot or a revocation, and disposes of their unconfirmed tokens.

use sea_orm::sea_query::{Expr, ExprTrait, IntoCondition};
use sea_orm::{ColumnTrait, Condition, EntityTrait, QueryFilter};

use super::{AUTHORIZATIONS, AWAITING, EXCHANGING, NewRevocations, PENDING, in_state, of_key};
use crate::crypto::sealed::Place;
use crate::domain::authorization::{Authorization, REDIRECT_GRACE, RETENTION, State};
use crate::domain::grant::GrantKey;
use crate::domain::time::{Timestamp, millis};
use crate::domain::token::DoomedToken;
use crate::storage::connection::retry_conflicts;
use crate::storage::entity::authorizations;
use crate::storage::revocations::Disposal;
use crate::storage::{AuthorizationStore, StorageError, StoreContext, Write, rows};

impl AuthorizationStore {
    /// Cancels an authorization that is not final; a final one stays as it is.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; then nothing has changed.
    pub async fn cancel_authorization(
        &self,
        authorization: &Authorization,
        disposal: &Disposal<'_>,
    ) -> Result<(), StorageError> {
        retry_conflicts(|| self.cancel_authorization_once(authorization, disposal)).await
    }

    async fn cancel_authorization_once(
        &self,
        authorization: &Authorization,
        disposal: &Disposal<'_>,
    ) -> Result<(), StorageError> {
        let write = self.begin().await?;
        let id = authorization.id;
        let by_id = authorizations::Column::Id.eq(id.as_bytes().to_vec());
        self.lock(&write, by_id.clone()).await?;
        let only = in_state(id, &[PENDING, EXCHANGING, AWAITING]);
        let cancelled = self.cancel_where(&write, only, &authorization.key, disposal).await?;
        self.close_refused(&write, by_id).await?;
        let new = NewRevocations::of(&authorization.key, cancelled.tokens);
        self.dispose(&write, new, disposal).await?;
        write.commit().await
    }
}

/// The unconfirmed tokens of cancelled authorizations.
pub(in crate::storage) struct Cancelled {
    pub(in crate::storage) tokens: Vec<DoomedToken>,
    /// `true` if there was a token response that does not open.
    pub(in crate::storage) unopened: bool,
}

impl StoreContext {
    /// Cancels every authorization of a key that is not final, and returns the tokens that awaited
    /// confirmation.
    pub(in crate::storage) async fn cancel_all(
        &self,
        write: &Write,
        key: &GrantKey,
        disposal: &Disposal<'_>,
    ) -> Result<Cancelled, StorageError> {
        self.lock(write, of_key(key)).await?;
        let open =
            of_key(key).add(authorizations::Column::State.is_in([PENDING, EXCHANGING, AWAITING]));
        self.close_refused(write, of_key(key)).await?;
        self.cancel_where(write, open, key, disposal).await
    }

    /// Locks rows until the transaction ends. Otherwise a redirect could move one between two statements that look for
    /// different states, and neither would find it.
    async fn lock(&self, write: &Write, which: impl IntoCondition) -> Result<(), StorageError> {
        authorizations::Entity::update_many()
            .col_expr(
                authorizations::Column::LinkExpiresAt,
                Expr::col(authorizations::Column::LinkExpiresAt),
            )
            .filter(which.into_condition())
            .exec(&**write)
            .await?;
        Ok(())
    }

    async fn cancel_where(
        &self,
        write: &Write,
        which: Condition,
        key: &GrantKey,
        disposal: &Disposal<'_>,
    ) -> Result<Cancelled, StorageError> {
        // The quarantine stays for the statement that returns it, and goes with the next.
        let ended = authorizations::Entity::update_many()
            .col_expr(authorizations::Column::State, Expr::value(State::Cancelled.as_str()))
            .col_expr(authorizations::Column::FinishedAt, self.now_expr())
            .col_expr(authorizations::Column::ExpiresAt, self.now_expr().add(millis(RETENTION)))
            .filter(which)
            .exec_with_returning(&**write)
            .await?;
        let mut cancelled = Cancelled { tokens: Vec::new(), unopened: false };
        for model in ended {
            match self.purge(write, &model, key, disposal).await? {
                Some(tokens) => cancelled.tokens.extend(tokens),
                None => cancelled.unopened = true,
            }
        }
        Ok(cancelled)
    }

    /// Takes the token response out of an authorization that has ended, and returns its tokens. Returns
    /// `None` and leaves the response in its row if it does not open: the sweep tries again before it
    /// deletes the row.
    pub(super) async fn purge(
        &self,
        write: &Write,
        model: &authorizations::Model,
        key: &GrantKey,
        disposal: &Disposal<'_>,
    ) -> Result<Option<Vec<DoomedToken>>, StorageError> {
        let Some(sealed) = &model.quarantine else { return Ok(Some(Vec::new())) };
        let row = rows::id(&model.id)?;
        let place = Place { table: AUTHORIZATIONS, column: "quarantine", row, key };
        let answer = match self.open_answer(place, sealed) {
            Ok(answer) => answer,
            Err(error) => {
                tracing::error!(%error, "a token response cannot be opened; its tokens stay sealed");
                return Ok(None);
            }
        };
        authorizations::Entity::update_many()
            .col_expr(authorizations::Column::Quarantine, Expr::value(Option::<Vec<u8>>::None))
            .filter(authorizations::Column::Id.eq(model.id.clone()))
            .exec(&**write)
            .await?;
        let exchanged_at = Timestamp::from_millis(model.exchanged_at.unwrap_or_default());
        Ok(Some((disposal.read)(&answer, exchanged_at)))
    }

    /// Ends the links of authorizations that an error in a redirect ended, and the time for redirects after it.
    async fn close_refused(
        &self,
        write: &Write,
        which: impl IntoCondition,
    ) -> Result<(), StorageError> {
        authorizations::Entity::update_many()
            .col_expr(
                authorizations::Column::LinkExpiresAt,
                self.now_expr().sub(millis(REDIRECT_GRACE)),
            )
            .filter(self.refused())
            .filter(which.into_condition())
            .exec(&**write)
            .await?;
        Ok(())
    }
}
