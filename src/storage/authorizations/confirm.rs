//! The confirmation code's way back: counted before it is compared.

use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};

use super::{AWAITING, EXCHANGING, NewRevocations, convert, in_state, place, without_quarantine};
use crate::domain::authorization::{Authorization, Failure, MAX_CONFIRMATION_ATTEMPTS, State};
use crate::domain::grant::{Grant, Subject};
use crate::domain::id::Id;
use crate::domain::identity::Identity;
use crate::domain::name::Name;
use crate::domain::time::Timestamp;
use crate::domain::token::{RawAnswer, TokenSet};
use crate::storage::connection::retry_conflicts;
use crate::storage::entity::authorizations;
use crate::storage::revocations::Disposal;
use crate::storage::{AuthorizationStore, StorageError};

/// An authorization against which one attempt at its code has just been counted.
#[derive(Debug)]
pub struct Awaiting {
    /// The authorization.
    pub authorization: Authorization,
    /// The keyed hash of its code.
    pub code_hash: Vec<u8>,
    /// The answer that the code sets free.
    pub answer: RawAnswer,
    /// The user who consented.
    pub identity: Identity,
    /// From when the answer's lifetimes count.
    pub exchanged_at: Timestamp,
    /// Attempts that are left after this one.
    pub attempts_left: u32,
}

impl AuthorizationStore {
    /// Counts one attempt against the subject's awaiting authorizations at these providers, or
    /// against one of them,
    /// and only then lets the caller compare: a hundred guesses at once are still five.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; then nothing may be compared.
    pub async fn count_attempt(
        &self,
        namespace: &Name,
        subject: &Subject,
        id: Option<Id>,
        providers: &[Name],
    ) -> Result<Vec<Awaiting>, StorageError> {
        let most = i64::from(MAX_CONFIRMATION_ATTEMPTS);
        let mut update = authorizations::Entity::update_many()
            .col_expr(
                authorizations::Column::ConfirmationAttempts,
                Expr::col(authorizations::Column::ConfirmationAttempts).add(1_i64),
            )
            .filter(authorizations::Column::Namespace.eq(namespace.as_str()))
            .filter(authorizations::Column::Subject.eq(subject.as_str()))
            .filter(authorizations::Column::Provider.is_in(providers.iter().map(Name::as_str)))
            .filter(authorizations::Column::State.eq(AWAITING))
            .filter(authorizations::Column::ConfirmationAttempts.lt(most))
            .filter(Expr::col(authorizations::Column::ExpiresAt).gt(self.now_expr()));
        if let Some(id) = id {
            update = update.filter(authorizations::Column::Id.eq(id.as_bytes().to_vec()));
        }
        let models = {
            let _turn = self.turn().await;
            update.exec_with_returning(&self.db).await?
        };
        models.into_iter().map(|model| self.awaiting(model)).collect()
    }

    fn awaiting(&self, mut model: authorizations::Model) -> Result<Awaiting, StorageError> {
        let missing =
            || StorageError::damaged(super::AUTHORIZATIONS, "awaits without a code or an answer");
        let code_hash = model.confirmation_code_hash.take().ok_or_else(missing)?;
        let sealed = model.quarantine.take().ok_or_else(missing)?;
        let exchanged_at = Timestamp::from_millis(model.exchanged_at.ok_or_else(missing)?);
        let identity =
            Identity { name: model.identity.take().unwrap_or_default(), sub: model.sub.take() };
        let used = u32::try_from(model.confirmation_attempts).unwrap_or(u32::MAX);
        let authorization = convert::authorization(model)?;
        let answer = self.open_answer(place(&authorization), &sealed)?;
        Ok(Awaiting {
            authorization,
            code_hash,
            answer,
            identity,
            exchanged_at,
            attempts_left: MAX_CONFIRMATION_ATTEMPTS.saturating_sub(used),
        })
    }

    /// Stores the grant of an authorization: confirmed, or exchanged for a bot that needs no
    /// confirmation. Returns `None` if its state has changed in between.
    ///
    /// The attempt that `uncount` lost to a code that was another's is given back.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; then nothing has changed.
    pub async fn authorize(
        &self,
        authorization: &Authorization,
        tokens: &TokenSet,
        identity: &Identity,
        uncount: &[Id],
    ) -> Result<Option<Grant>, StorageError> {
        let stored =
            retry_conflicts(|| self.try_authorize(authorization, tokens, identity, uncount));
        let stored = match stored.await {
            // Two first authorizations of one key: the loser finds the winner's row next time.
            Err(error) if error.is_unique_violation() => {
                retry_conflicts(|| self.try_authorize(authorization, tokens, identity, uncount))
                    .await
            }
            done => done,
        }?;
        if stored.as_ref().is_some_and(|grant| grant.version.generation > 1) {
            self.notify_change(&authorization.key).await;
        }
        Ok(stored)
    }

    async fn try_authorize(
        &self,
        authorization: &Authorization,
        tokens: &TokenSet,
        identity: &Identity,
        uncount: &[Id],
    ) -> Result<Option<Grant>, StorageError> {
        let write = self.begin().await?;
        let ended = without_quarantine(self.ending(&State::Authorized))
            .filter(in_state(authorization.id, &[AWAITING, EXCHANGING]))
            .filter(Expr::col(authorizations::Column::ExpiresAt).gt(self.now_expr()))
            .exec(&*write)
            .await?;
        if ended.rows_affected == 0 {
            return Ok(None);
        }
        self.drop_revocations(&write, &authorization.key).await?;
        let grant = self
            .install(&write, &authorization.key, &authorization.scopes, tokens, identity)
            .await?;
        if !uncount.is_empty() {
            authorizations::Entity::update_many()
                .col_expr(
                    authorizations::Column::ConfirmationAttempts,
                    Expr::col(authorizations::Column::ConfirmationAttempts).sub(1_i64),
                )
                .filter(
                    authorizations::Column::Id
                        .is_in(uncount.iter().map(|id| id.as_bytes().to_vec())),
                )
                .filter(authorizations::Column::State.eq(AWAITING))
                .exec(&*write)
                .await?;
        }
        write.commit().await?;
        Ok(Some(grant))
    }

    /// Fails an authorization whose attempts are used up, and disposes of its tokens.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; the sweep then ends it.
    pub async fn fail_confirmation(
        &self,
        awaiting: &Awaiting,
        failure: Failure,
        disposal: &Disposal<'_>,
    ) -> Result<(), StorageError> {
        retry_conflicts(|| self.fail_confirmation_once(awaiting, failure.clone(), disposal)).await
    }

    async fn fail_confirmation_once(
        &self,
        awaiting: &Awaiting,
        failure: Failure,
        disposal: &Disposal<'_>,
    ) -> Result<(), StorageError> {
        let authorization = &awaiting.authorization;
        let write = self.begin().await?;
        let ended = without_quarantine(self.ending(&State::Failed(failure)))
            .filter(in_state(authorization.id, &[AWAITING]))
            .exec(&*write)
            .await?;
        if ended.rows_affected > 0 {
            let tokens = (disposal.read)(&awaiting.answer, awaiting.exchanged_at);
            let new = NewRevocations::of(&authorization.key, tokens);
            self.dispose(&write, new, disposal).await?;
        }
        write.commit().await
    }
}
