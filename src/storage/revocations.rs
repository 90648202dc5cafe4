//! The outbox: tokens that are still to be revoked at their provider.

mod dispose;

use std::time::Duration;

use sea_orm::sea_query::{Expr, ExprTrait, Query};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};
use secrecy::SecretString;

pub use self::dispose::Disposal;
use self::dispose::arriving_grant_of_row;
pub(super) use self::dispose::{FirstAttempt, NewRevocations, UnopenedToken};
use super::entity::revocations;
use super::grants::SUPERSEDED_TOKENS;
use super::{RevocationOutbox, StorageError, StoreContext, Write, rows};
use crate::crypto::sealed::Place;
use crate::domain::grant::GrantKey;
use crate::domain::id::Id;
use crate::domain::name::Name;
use crate::domain::time::millis;
use crate::domain::token::TokenKind;

const REVOCATIONS: &str = "revocations";

/// The time that the holder of a claim has for one attempt before another replica may try.
const ATTEMPT: Duration = Duration::from_secs(15);

/// The time that an entry waits if it cannot be opened.
const UNREADABLE: Duration = Duration::from_secs(60 * 60);

/// The number of expired entries that are removed at a time.
const ENDED: u64 = 1000;

/// An entry of the outbox, claimed for one attempt.
#[derive(Debug, Clone)]
pub struct Revocation {
    /// The row.
    pub id: Id,
    /// The key of the token's grant; names the provider.
    pub key: GrantKey,
    /// The kind of the token.
    pub kind: TokenKind,
    /// The token.
    pub token: SecretString,
    /// Attempts so far, this one included.
    pub attempts: u32,
}

/// The places that unopened tokens come from, as [`Place`] names them.
const ORIGINS: [(&str, &str); 4] = [
    ("grants", "refresh_token"),
    ("grants", "fallback_refresh_token"),
    ("access_tokens", "access_token"),
    (SUPERSEDED_TOKENS, "token"),
];

impl RevocationOutbox {
    /// Claims entries of a provider that are due, each for one attempt. Entries wait while an authorization of
    /// their key is being exchanged or confirmed; those whose token has ended by itself are gone.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn claim_revocations(
        &self,
        provider: &Name,
        limit: u64,
    ) -> Result<Vec<Revocation>, StorageError> {
        let models = self.claim_entries(provider, limit).await?;
        let mut entries = Vec::with_capacity(models.len());
        for model in models {
            match self.revocation(&model) {
                Ok(entry) => entries.push(entry),
                // One unreadable row must not keep the others from their turn, nor come back at once.
                Err(error) => {
                    tracing::error!(%error, "cannot read an entry of the outbox; trying in an hour");
                    let id = rows::id(&model.id)?;
                    self.postpone_revocation(id, UNREADABLE, "cannot be opened").await?;
                }
            }
        }
        Ok(entries)
    }

    async fn claim_entries(
        &self,
        provider: &Name,
        limit: u64,
    ) -> Result<Vec<revocations::Model>, StorageError> {
        let now = self.now_expr();
        let mut ids = Query::select();
        ids.column(revocations::Column::Id)
            .from(revocations::Entity)
            .and_where(Expr::col(revocations::Column::NextAttemptAt).lte(self.now_once()))
            .and_where(revocations::Column::Provider.eq(provider.as_str()))
            .and_where(Expr::col(revocations::Column::ExpiresAt).gt(self.now_once()))
            .and_where(Expr::not_exists(arriving_grant_of_row()))
            .order_by(revocations::Column::NextAttemptAt, sea_orm::Order::Asc)
            .limit(limit);
        let update = revocations::Entity::update_many()
            .col_expr(revocations::Column::NextAttemptAt, now.clone().add(millis(ATTEMPT)))
            .col_expr(revocations::Column::ClaimedUntil, now.add(millis(ATTEMPT)))
            .col_expr(
                revocations::Column::Attempts,
                Expr::col(revocations::Column::Attempts).add(1_i64),
            );
        self.claim(&ids, revocations::Column::Id, &update).await
    }

    /// Removes up to 1000 entries whose token has ended by itself, those of providers that are not
    /// configured any more among them. Returns how many it removed.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn forget_ended_revocations(&self) -> Result<u64, StorageError> {
        // By id: PostgreSQL takes the comparison with its clock for one that a third of the rows passes.
        let mut ids = Query::select();
        ids.column(revocations::Column::Id)
            .from(revocations::Entity)
            .and_where(Expr::col(revocations::Column::ExpiresAt).lte(self.now_once()))
            .order_by(revocations::Column::ExpiresAt, sea_orm::Order::Asc)
            .limit(ENDED);
        let _turn = self.turn().await;
        let forgotten = revocations::Entity::delete_many()
            .filter(Expr::col(revocations::Column::Id).in_subquery(ids))
            .exec(&self.db)
            .await?;
        Ok(forgotten.rows_affected)
    }

    fn revocation(&self, model: &revocations::Model) -> Result<Revocation, StorageError> {
        let key = rows::key(
            REVOCATIONS,
            &model.namespace,
            &model.provider,
            &model.subject,
            &model.account,
        )?;
        let id = rows::id(&model.id)?;
        let token = self.open(origin(model, id, &key)?, &model.token)?;
        let kind = TokenKind::parse(&model.kind)
            .ok_or_else(|| StorageError::damaged(REVOCATIONS, format!("kind {:?}", model.kind)))?;
        let attempts = u32::try_from(model.attempts).unwrap_or(u32::MAX);
        Ok(Revocation { id, key, kind, token, attempts })
    }

    /// Removes an entry that the provider has confirmed.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; the entry is then tried again.
    pub async fn finish_revocation(&self, id: Id) -> Result<(), StorageError> {
        let _turn = self.turn().await;
        revocations::Entity::delete_by_id(id.as_bytes().to_vec()).exec(&self.db).await?;
        Ok(())
    }

    /// Puts an entry off until `wait` from now.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; the entry is then tried again when its claim ends.
    pub async fn postpone_revocation(
        &self,
        id: Id,
        wait: Duration,
        reason: &str,
    ) -> Result<(), StorageError> {
        let _turn = self.turn().await;
        revocations::Entity::update_many()
            .col_expr(revocations::Column::NextAttemptAt, self.now_expr().add(millis(wait)))
            .col_expr(revocations::Column::ClaimedUntil, Expr::value(Option::<i64>::None))
            .col_expr(revocations::Column::LastError, Expr::value(reason))
            .filter(revocations::Column::Id.eq(id.as_bytes().to_vec()))
            .exec(&self.db)
            .await?;
        Ok(())
    }

    /// Returns `true` if a token of the key may be on its way to the provider at this moment.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn revoking(&self, key: &GrantKey) -> Result<bool, StorageError> {
        let claimed = revocations::Entity::find()
            .filter(revocations::Column::Namespace.eq(key.namespace.as_str()))
            .filter(revocations::Column::Provider.eq(key.provider.as_str()))
            .filter(revocations::Column::Subject.eq(key.subject.as_str()))
            .filter(revocations::Column::Account.eq(key.account.as_str()))
            .filter(Expr::col(revocations::Column::ClaimedUntil).gt(self.now_expr()))
            .one(&self.db)
            .await?;
        Ok(claimed.is_some())
    }

    /// The number of entries that wait.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn count_revocations(&self) -> Result<u64, StorageError> {
        use sea_orm::PaginatorTrait;

        Ok(revocations::Entity::find().count(&self.db).await?)
    }
}

/// The row for which an entry's token is sealed: its own, or the one that it was taken from unopened.
fn origin<'a>(
    model: &revocations::Model,
    id: Id,
    key: &'a GrantKey,
) -> Result<Place<'a>, StorageError> {
    let (Some(table), Some(column), Some(row)) =
        (&model.sealed_table, &model.sealed_column, &model.sealed_row)
    else {
        return Ok(Place { table: REVOCATIONS, column: "token", row: id, key });
    };
    let (table, column) = ORIGINS
        .into_iter()
        .find(|origin| *origin == (table.as_str(), column.as_str()))
        .ok_or_else(|| StorageError::damaged(REVOCATIONS, "sealed for an unknown place"))?;
    Ok(Place { table, column, row: rows::id(row)?, key })
}

impl StoreContext {
    /// Drops the entries of a key that was just authorized again, because revoking an old token could end the new
    /// grant.
    pub(super) async fn drop_revocations(
        &self,
        write: &Write,
        key: &GrantKey,
    ) -> Result<(), StorageError> {
        revocations::Entity::delete_many()
            .filter(revocations::Column::Namespace.eq(key.namespace.as_str()))
            .filter(revocations::Column::Provider.eq(key.provider.as_str()))
            .filter(revocations::Column::Subject.eq(key.subject.as_str()))
            .filter(revocations::Column::Account.eq(key.account.as_str()))
            .exec(&**write)
            .await?;
        Ok(())
    }
}
