//! From the redirect to the token answer: a code is sent once, and what comes back is sealed before
//! it is used.

use std::time::Duration;

use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{
    ActiveValue::Set, ColumnTrait, Condition, EntityTrait, QueryFilter, QuerySelect,
    TryInsertResult,
};

use super::{AWAITING, EXCHANGING, NewRevocations, PENDING, in_state, place, without_quarantine};
use crate::domain::authorization::{
    Authorization, EXCHANGE_LIMIT, Failure, MAX_ATTEMPTS, MAX_REFUSED_CODES, REDIRECT_GRACE, State,
};
use crate::domain::id::Id;
use crate::domain::identity::Identity;
use crate::domain::time::{Timestamp, millis};
use crate::domain::token::RawAnswer;
use crate::storage::connection::retry_conflicts;
use crate::storage::entity::{authorization_attempts, authorizations};
use crate::storage::revocations::Disposal;
use crate::storage::{AuthorizationStore, StorageError, Write};

/// The outcome of the start of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// It is its turn. Lifetimes in the answer count from this time.
    Now(Timestamp),
    /// It had arrived before.
    Before,
    /// The authorization no longer waits for a redirect.
    Closed,
}

/// The arrival of a redirect that is not exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// For the first time, which is recorded now.
    First,
    /// It had arrived before.
    Again,
    /// So many redirects arrived for the authorization that this one is not recorded.
    TooMany,
}

/// The answer to a code.
#[derive(Debug, Clone, Copy)]
pub struct Answered<'a> {
    /// The token answer.
    pub answer: &'a RawAnswer,
    /// The user who consented.
    pub identity: &'a Identity,
    /// When the code was sent: lifetimes in the answer count from then.
    pub exchanged_at: Timestamp,
}

impl AuthorizationStore {
    /// Records that an attempt's redirect has arrived, and that it is not used any further. At most [`MAX_ATTEMPTS`]
    /// are recorded.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; then the redirect must not be used.
    pub async fn use_attempt(&self, id: Id, salt: &[u8]) -> Result<Arrival, StorageError> {
        retry_conflicts(|| self.use_attempt_once(id, salt)).await
    }

    async fn use_attempt_once(&self, id: Id, salt: &[u8]) -> Result<Arrival, StorageError> {
        // Without a transaction: strangers must not queue for one.
        let of_authorization =
            authorization_attempts::Column::AuthorizationId.eq(id.as_bytes().to_vec());
        let recorded: Vec<Vec<u8>> = authorization_attempts::Entity::find()
            .select_only()
            .column(authorization_attempts::Column::Salt)
            .filter(of_authorization)
            .limit(MAX_ATTEMPTS)
            .into_tuple()
            .all(&self.db)
            .await?;
        if recorded.iter().any(|recorded| recorded == salt) {
            return Ok(Arrival::Again);
        }
        if recorded.len() as u64 >= MAX_ATTEMPTS {
            return Ok(Arrival::TooMany);
        }
        let write = self.begin().await?;
        if !self.insert_attempt(&write, id, salt).await? {
            return Ok(Arrival::Again);
        }
        write.commit().await?;
        Ok(Arrival::First)
    }

    /// Takes a redirect: records that its attempt has arrived, and that from here on its code may
    /// have been sent, in one transaction, so that a browser that loads the same page at the same time
    /// finds the one with the other.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; then the code must not be sent.
    pub async fn begin_exchange(&self, id: Id, salt: &[u8]) -> Result<Begun, StorageError> {
        retry_conflicts(|| self.begin_exchange_once(id, salt)).await
    }

    async fn begin_exchange_once(&self, id: Id, salt: &[u8]) -> Result<Begun, StorageError> {
        let write = self.begin().await?;
        if !self.insert_attempt(&write, id, salt).await? {
            return Ok(Begun::Before);
        }
        let now = self.now_expr();
        let pending = in_state(id, &[PENDING])
            .add(Expr::col(authorizations::Column::ExpiresAt).gt(now.clone()));
        let refused = self.refused().add(authorizations::Column::Id.eq(id.as_bytes().to_vec()));
        let begun = authorizations::Entity::update_many()
            .col_expr(authorizations::Column::State, Expr::value(EXCHANGING))
            .col_expr(authorizations::Column::Error, Expr::value(Option::<String>::None))
            .col_expr(authorizations::Column::ErrorDescription, Expr::value(Option::<String>::None))
            .col_expr(authorizations::Column::FinishedAt, Expr::value(Option::<i64>::None))
            .col_expr(authorizations::Column::ExchangedAt, now.clone())
            .col_expr(authorizations::Column::ExpiresAt, now.add(millis(EXCHANGE_LIMIT)))
            .filter(Condition::any().add(pending).add(refused))
            .exec_with_returning(&*write)
            .await?;
        if begun.is_empty() {
            // Records no attempt: a holder of the link could otherwise write unlimited rows.
            return Ok(Begun::Closed);
        }
        write.commit().await?;
        let exchanged_at = begun.into_iter().next().and_then(|model| model.exchanged_at);
        Ok(exchanged_at.map_or(Begun::Closed, |at| Begun::Now(Timestamp::from_millis(at))))
    }

    /// Returns `false` if the attempt exists already.
    async fn insert_attempt(
        &self,
        write: &Write,
        id: Id,
        salt: &[u8],
    ) -> Result<bool, StorageError> {
        let now = self.now_on(write).await?;
        let inserted =
            authorization_attempts::Entity::insert(authorization_attempts::ActiveModel {
                authorization_id: Set(id.as_bytes().to_vec()),
                salt: Set(salt.to_vec()),
                used_at: Set(now.millis()),
            })
            // Not an error, which would end the transaction.
            .on_conflict_do_nothing()
            .exec_without_returning(&**write)
            .await?;
        Ok(matches!(inserted, TryInsertResult::Inserted(1..)))
    }

    /// Disposes of an answer that cannot be used or is no longer awaited, and ends its exchange in the same
    /// transaction. Tokens of the key are left alone during the exchange.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; then the answer is still to be disposed of.
    pub async fn discard_answer(
        &self,
        authorization: &Authorization,
        answer: &RawAnswer,
        exchanged_at: Timestamp,
        end: &State,
        disposal: &Disposal<'_>,
    ) -> Result<(), StorageError> {
        retry_conflicts(|| {
            self.discard_answer_once(authorization, answer, exchanged_at, end, disposal)
        })
        .await
    }

    async fn discard_answer_once(
        &self,
        authorization: &Authorization,
        answer: &RawAnswer,
        exchanged_at: Timestamp,
        end: &State,
        disposal: &Disposal<'_>,
    ) -> Result<(), StorageError> {
        let write = self.begin_reserved().await?;
        let answered = (answer, exchanged_at);
        self.discard_on(&write, authorization, answered, end, disposal).await?;
        write.commit().await
    }

    async fn discard_on(
        &self,
        write: &Write,
        authorization: &Authorization,
        (answer, exchanged_at): (&RawAnswer, Timestamp),
        end: &State,
        disposal: &Disposal<'_>,
    ) -> Result<(), StorageError> {
        without_quarantine(self.ending(end))
            .filter(in_state(authorization.id, &[EXCHANGING]))
            .exec(&**write)
            .await?;
        let tokens = (disposal.read)(answer, exchanged_at);
        self.dispose(write, NewRevocations::of(&authorization.key, tokens), disposal).await?;
        Ok(())
    }

    /// The provider refused the code: the authorization waits again, or fails after too many.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn refuse_code(&self, id: Id, failure: &Failure) -> Result<(), StorageError> {
        retry_conflicts(|| self.refuse_code_once(id, failure)).await
    }

    async fn refuse_code_once(&self, id: Id, failure: &Failure) -> Result<(), StorageError> {
        let write = self.begin().await?;
        let refused = authorizations::Entity::update_many()
            .col_expr(authorizations::Column::State, Expr::value(PENDING))
            .col_expr(
                authorizations::Column::RefusedCodes,
                Expr::col(authorizations::Column::RefusedCodes).add(1_i64),
            )
            .col_expr(
                authorizations::Column::ExpiresAt,
                Expr::col(authorizations::Column::LinkExpiresAt).add(millis(REDIRECT_GRACE)),
            )
            // An error in a later redirect leaves the link working, as before the code.
            .col_expr(authorizations::Column::ExchangedAt, Expr::value(Option::<i64>::None))
            .filter(in_state(id, &[EXCHANGING]))
            .exec_with_returning(&*write)
            .await?;
        let too_often = refused
            .first()
            .is_some_and(|model| model.refused_codes >= i64::from(MAX_REFUSED_CODES));
        if too_often {
            let end = self.ending(&State::Failed(failure.clone()));
            let end = end.col_expr(authorizations::Column::ExchangedAt, self.now_expr());
            end.filter(in_state(id, &[PENDING])).exec(&*write).await?;
        }
        write.commit().await
    }

    /// Seals a token answer before it is understood: it may be the only copy. Where the process ends
    /// now, the sweep disposes of its tokens. Returns `false` if the authorization was cancelled in between;
    /// then nothing is stored.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; then the answer is still to be stored.
    pub async fn hold_answer(
        &self,
        authorization: &Authorization,
        answer: &RawAnswer,
    ) -> Result<bool, StorageError> {
        let sealed = self.seal_answer(place(authorization), answer);
        let _turn = self.turn().await;
        let held = authorizations::Entity::update_many()
            .col_expr(authorizations::Column::Quarantine, Expr::value(sealed))
            .filter(in_state(authorization.id, &[EXCHANGING]))
            .exec(&self.reserved)
            .await?;
        Ok(held.rows_affected > 0)
    }

    /// Stores a token answer, sealed, until the code from the result page arrives. Where the
    /// authorization was cancelled in between, its tokens are disposed of, and it returns `false`.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; then the answer is still to be stored.
    pub async fn quarantine(
        &self,
        authorization: &Authorization,
        answered: Answered<'_>,
        code_hash: &[u8],
        confirmation_ttl: Duration,
        disposal: &Disposal<'_>,
    ) -> Result<bool, StorageError> {
        retry_conflicts(|| {
            self.quarantine_once(authorization, answered, code_hash, confirmation_ttl, disposal)
        })
        .await
    }

    async fn quarantine_once(
        &self,
        authorization: &Authorization,
        answered: Answered<'_>,
        code_hash: &[u8],
        confirmation_ttl: Duration,
        disposal: &Disposal<'_>,
    ) -> Result<bool, StorageError> {
        let Answered { answer, identity, exchanged_at } = answered;
        let sealed = self.seal_answer(place(authorization), answer);
        let write = self.begin_reserved().await?;
        let stored = authorizations::Entity::update_many()
            .col_expr(authorizations::Column::State, Expr::value(AWAITING))
            .col_expr(authorizations::Column::Quarantine, Expr::value(sealed))
            .col_expr(authorizations::Column::Identity, Expr::value(identity.name.as_str()))
            .col_expr(authorizations::Column::Sub, Expr::value(identity.sub.clone()))
            .col_expr(authorizations::Column::ConfirmationCodeHash, Expr::value(code_hash.to_vec()))
            .col_expr(
                authorizations::Column::ExpiresAt,
                self.now_expr().add(millis(confirmation_ttl)),
            )
            .filter(in_state(authorization.id, &[EXCHANGING]))
            .filter(Expr::col(authorizations::Column::ExpiresAt).gt(self.now_expr()))
            .exec(&*write)
            .await?
            .rows_affected
            > 0;
        if !stored {
            // It was cancelled, or storage was away for longer than an exchange may take.
            let end = State::Failed(Failure::exchange_interrupted());
            let answered = (answer, exchanged_at);
            self.discard_on(&write, authorization, answered, &end, disposal).await?;
        }
        write.commit().await?;
        Ok(stored)
    }
}
