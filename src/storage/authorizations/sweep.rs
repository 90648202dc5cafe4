//! Ends authorizations whose time is up, and deletes those that ended long ago.

use std::time::{Duration, Instant};

use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{
    ColumnTrait, ConnectionTrait as _, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
};

use super::{NewRevocations, convert, in_state};
use crate::domain::authorization::{
    Authorization, Failure, MAX_CONFIRMATION_ATTEMPTS, RETENTION, State,
};
use crate::domain::name::Name;
use crate::domain::time::millis;
use crate::storage::connection::retry_conflicts;
use crate::storage::entity::{authorization_attempts, authorizations};
use crate::storage::revocations::Disposal;
use crate::storage::{AuthorizationStore, StorageError, Write};

/// The result of one round of the sweep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swept {
    /// The number of authorizations that the round looked at.
    pub rows: usize,
    /// The provider and the final state of each that the round ended.
    pub ended: Vec<(Name, State)>,
    /// Nothing is left to sweep now.
    pub is_done: bool,
}

/// The result of a look at one row.
enum Overdue {
    /// It has a final state now.
    Ended(Name, State),
    /// It is deleted, or another replica has dealt with it.
    Gone,
    /// The next round must continue with it.
    Unfinished,
}

/// The time for which a row that could not be dealt with is put off.
const PUT_OFF: Duration = Duration::from_secs(10 * 60);

/// The number of attempts that one statement deletes. On SQLite every other write waits while it runs, and each row is on a page
/// of its own, because salts are random.
const ATTEMPTS: u64 = 400;
const ATTEMPTS_ON_SQLITE: u64 = 50;

/// The number of such statements that one authorization gets in a round.
const ATTEMPT_ROUNDS: usize = 20;

/// The length of the pause after a statement, in times of the statement, so that other writes find the database free.
const PAUSE_FACTOR: u32 = 9;

impl AuthorizationStore {
    /// Ends authorizations whose time is up, and disposes of their tokens as `disposal` says for their provider.
    /// Deletes final ones whose retention is up. Deals with up to `limit` rows that have tokens, and as many others.
    ///
    /// Rows with unconfirmed tokens come first. A row that cannot be dealt with is put off, so that it is
    /// neither lost nor in the way of others.
    ///
    /// # Errors
    ///
    /// [`StorageError`] of a broken connection; what was done before stays done.
    pub async fn sweep_authorizations<'a>(
        &self,
        limit: u64,
        disposal: impl Fn(&Name) -> Disposal<'a>,
    ) -> Result<Swept, StorageError> {
        let with_tokens = authorizations::Column::Quarantine.is_not_null();
        let mut swept = self.sweep_some(with_tokens, limit, &disposal).await?;
        let rest = authorizations::Column::Quarantine.is_null();
        let rest = self.sweep_some(rest, limit, &disposal).await?;
        swept.rows += rest.rows;
        swept.ended.extend(rest.ended);
        swept.is_done &= rest.is_done;
        Ok(swept)
    }

    async fn sweep_some<'a>(
        &self,
        which: Expr,
        limit: u64,
        disposal: &impl Fn(&Name) -> Disposal<'a>,
    ) -> Result<Swept, StorageError> {
        let due = authorizations::Entity::find()
            .filter(Expr::col(authorizations::Column::ExpiresAt).lte(self.now_once()))
            .filter(which)
            .order_by_asc(authorizations::Column::ExpiresAt)
            .limit(limit)
            .all(&self.db)
            .await?;
        let is_done = (due.len() as u64) < limit;
        let mut swept = Swept { rows: due.len(), ended: Vec::new(), is_done };
        for model in due {
            // Another replica may be sweeping too: each statement names the state that it found.
            match self.end_overdue(&model, disposal).await {
                Ok(Overdue::Ended(provider, state)) => swept.ended.push((provider, state)),
                Ok(Overdue::Gone) => {}
                Ok(Overdue::Unfinished) => swept.is_done = false,
                Err(error) if error.is_connection_failure() => return Err(error),
                Err(error) => {
                    tracing::error!(%error, "an authorization cannot be swept; it is put off");
                    let wait = if error.is_unreadable() { RETENTION } else { PUT_OFF };
                    if let Err(error) = self.put_off(&model, wait).await {
                        tracing::error!(%error, "an authorization cannot be put off");
                    }
                }
            }
        }
        Ok(swept)
    }

    async fn end_overdue<'a>(
        &self,
        model: &authorizations::Model,
        disposal: &impl Fn(&Name) -> Disposal<'a>,
    ) -> Result<Overdue, StorageError> {
        let authorization = convert::authorization(model.clone())?;
        let disposal = disposal(&authorization.key.provider);
        let end = end_of(&authorization, model);
        if end.is_none() && !self.delete_attempts(model).await? {
            return Ok(Overdue::Unfinished);
        }
        let touched =
            retry_conflicts(|| self.end_overdue_once(model, &authorization, &disposal)).await?;
        Ok(match end {
            Some(state) if touched => Overdue::Ended(authorization.key.provider, state),
            _ => Overdue::Gone,
        })
    }

    async fn end_overdue_once(
        &self,
        model: &authorizations::Model,
        authorization: &Authorization,
        disposal: &Disposal<'_>,
    ) -> Result<bool, StorageError> {
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
        write.commit().await?;
        Ok(touched > 0)
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

    /// Deletes attempts in small statements, because anyone who had the link could make them before they were limited.
    /// Returns `false` if some are left.
    async fn delete_attempts(&self, model: &authorizations::Model) -> Result<bool, StorageError> {
        let of_authorization =
            || authorization_attempts::Column::AuthorizationId.eq(model.id.clone());
        let limit = if self.is_shared() { ATTEMPTS } else { ATTEMPTS_ON_SQLITE };
        let mut after = Vec::new();
        for _ in 0..ATTEMPT_ROUNDS {
            let salts: Vec<Vec<u8>> = authorization_attempts::Entity::find()
                .select_only()
                .column(authorization_attempts::Column::Salt)
                .filter(of_authorization())
                .filter(authorization_attempts::Column::Salt.gt(after))
                .order_by_asc(authorization_attempts::Column::Salt)
                .limit(limit)
                .into_tuple()
                .all(&self.db)
                .await?;
            let Some(last) = salts.last().cloned() else { return Ok(true) };
            let is_last = (salts.len() as u64) < limit;
            let turn = self.turn().await;
            let began = Instant::now();
            authorization_attempts::Entity::delete_many()
                .filter(of_authorization())
                .filter(authorization_attempts::Column::Salt.lte(last.clone()))
                .exec(&self.db)
                .await?;
            drop(turn);
            self.checkpoint().await?;
            if is_last {
                return Ok(true);
            }
            tokio::time::sleep(began.elapsed() * PAUSE_FACTOR).await;
            after = last;
        }
        Ok(false)
    }

    /// Copies SQLite's log into the database file, without keeping writers out. Otherwise the commit of a refresh would
    /// do it, and take long: the deleted rows are on many pages.
    async fn checkpoint(&self) -> Result<(), StorageError> {
        if !self.is_shared() {
            self.db.execute_unprepared("PRAGMA wal_checkpoint(PASSIVE)").await?;
        }
        Ok(())
    }

    async fn put_off(
        &self,
        model: &authorizations::Model,
        wait: Duration,
    ) -> Result<(), StorageError> {
        // Its link and its code must not work again: one that is not final ends now, and keeps its tokens sealed.
        let end = convert::authorization(model.clone()).ok();
        let end = end.and_then(|authorization| end_of(&authorization, model));
        let later = self.now_expr().add(millis(wait));
        let update = match end {
            Some(end) => self.ending(&end),
            None => authorizations::Entity::update_many()
                .col_expr(authorizations::Column::ExpiresAt, later),
        };
        let _turn = self.turn().await;
        update
            .filter(authorizations::Column::Id.eq(model.id.clone()))
            .filter(authorizations::Column::State.eq(model.state.clone()))
            .filter(Expr::col(authorizations::Column::ExpiresAt).lte(self.now_expr()))
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
