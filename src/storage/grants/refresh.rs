//! The statements of a refresh: claim, send under the claim, commit.

use std::time::Duration;

use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{ColumnTrait, Condition, EntityTrait, QueryFilter};
use secrecy::{ExposeSecret, SecretString};

use super::{
    ACTIVE, FALLBACK, LAST_ANSWER, REAUTHORIZATION_REQUIRED, REFRESH_TOKEN, convert, place,
};
use crate::domain::grant::{Grant, Version};
use crate::domain::id::Id;
use crate::domain::time::{Timestamp, millis};
use crate::domain::token::{AccessToken, DoomedToken, RawAnswer, TokenKind, TokenSet};
use crate::storage::entity::{access_tokens, grants};
use crate::storage::revocations::{Disposal, NewRevocations};
use crate::storage::{Storage, StorageError, Write};

/// How long a replica may refresh a grant before another may claim it.
pub const LEASE: Duration = Duration::from_secs(15);

/// The right to refresh one grant, until [`LEASE`] after it was claimed.
#[derive(Debug, Clone)]
pub struct Lease {
    /// Who claimed it.
    pub owner: Id,
    /// When it was claimed, on the database's clock: nothing that the provider issues for it is
    /// older.
    pub claimed_at: Timestamp,
    /// What to send. Absent: the grant is not refreshable.
    pub refresh_token: Option<SecretString>,
    /// What to try once, should the provider refuse `refresh_token`.
    pub fallback: Option<SecretString>,
    /// Whether an earlier refresh may have been sent without its answer being stored.
    pub intent_was_open: bool,
}

/// What became of a refresh's answer.
#[derive(Debug, Clone)]
pub enum Committed {
    /// It is the grant's new edition.
    Stored,
    /// A sibling's refresh was first: the answer's refresh token is kept as the fallback.
    LostToSibling,
    /// The grant was revoked or authorized anew meanwhile: the answer's tokens have no grant. They
    /// were put into the outbox where that cannot hurt a living grant.
    Orphaned,
}

impl Storage {
    /// Claims a refresh, and writes down that a refresh token may be sent from now on, in one
    /// statement. Absent where the grant is another edition by now, is leased, or is not active; and,
    /// without `with_open_intent`, where an answer may still be on its way into storage.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; then nothing may be sent.
    pub async fn claim_refresh(
        &self,
        grant: &Grant,
        with_open_intent: bool,
    ) -> Result<Option<Lease>, StorageError> {
        let owner = self.random.id();
        let now = self.now_expr();
        let _turn = self.turn().await;
        let intent = match with_open_intent {
            true => Condition::all(),
            false => Condition::all().add(grants::Column::IntentAt.is_null()),
        };
        let claimed = grants::Entity::update_many()
            .col_expr(grants::Column::LeaseOwner, Expr::value(owner.as_bytes().to_vec()))
            .col_expr(grants::Column::LeaseUntil, now.clone().add(millis(LEASE)))
            .col_expr(
                grants::Column::IntentAt,
                Expr::col(grants::Column::IntentAt).if_null(now.clone()),
            )
            .filter(of_version(grant.id, grant.version))
            .filter(intent)
            .filter(grants::Column::State.eq(ACTIVE))
            .filter(
                Condition::any()
                    .add(grants::Column::LeaseUntil.is_null())
                    .add(Expr::col(grants::Column::LeaseUntil).lt(now.clone())),
            )
            .filter(
                Condition::any()
                    .add(grants::Column::NextAttemptAt.is_null())
                    .add(Expr::col(grants::Column::NextAttemptAt).lte(now)),
            )
            .exec_with_returning(&self.db)
            .await?;
        let Some(model) = claimed.into_iter().next() else { return Ok(None) };
        let claimed_at = model.lease_until.unwrap_or_default() - millis(LEASE);
        let open = |column, sealed: Option<&Vec<u8>>| {
            sealed.map(|sealed| self.open(place(grant, column), sealed)).transpose()
        };
        let opened = open(REFRESH_TOKEN, model.refresh_token.as_ref())
            .and_then(|token| Ok((token, open(FALLBACK, model.fallback_refresh_token.as_ref())?)));
        let (refresh_token, fallback) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                // Nothing will be sent for a row that this replica cannot read.
                drop(_turn);
                self.unclaim(&model).await?;
                return Err(error);
            }
        };
        Ok(Some(Lease {
            owner,
            claimed_at: Timestamp::from_millis(claimed_at),
            refresh_token,
            fallback,
            intent_was_open: model.intent_at.is_some_and(|at| at < claimed_at),
        }))
    }

    /// Gives a lease back as if it had not been claimed: what was found out says nothing about this
    /// grant.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; the lease then ends by itself.
    pub async fn undo_claim(&self, grant: &Grant, lease: &Lease) -> Result<(), StorageError> {
        let mut update = grants::Entity::update_many()
            .col_expr(grants::Column::LeaseOwner, Expr::value(Option::<Vec<u8>>::None))
            .col_expr(grants::Column::LeaseUntil, Expr::value(Option::<i64>::None));
        if !lease.intent_was_open {
            update = update.col_expr(grants::Column::IntentAt, Expr::value(Option::<i64>::None));
        }
        let _turn = self.turn().await;
        update
            .filter(grants::Column::Id.eq(grant.id.as_bytes().to_vec()))
            .filter(grants::Column::LeaseOwner.eq(lease.owner.as_bytes().to_vec()))
            .exec(&self.db)
            .await?;
        Ok(())
    }

    /// Undoes a claim, as if it had not been made.
    async fn unclaim(&self, claimed: &grants::Model) -> Result<(), StorageError> {
        let claimed_at = claimed.lease_until.map(|until| until - millis(LEASE));
        let intent_at = claimed.intent_at.filter(|at| Some(*at) != claimed_at);
        let _turn = self.turn().await;
        grants::Entity::update_many()
            .col_expr(grants::Column::LeaseOwner, Expr::value(Option::<Vec<u8>>::None))
            .col_expr(grants::Column::LeaseUntil, Expr::value(Option::<i64>::None))
            .col_expr(grants::Column::IntentAt, Expr::value(intent_at))
            .filter(grants::Column::Id.eq(claimed.id.clone()))
            .filter(grants::Column::LeaseOwner.eq(claimed.lease_owner.clone()))
            .exec(&self.db)
            .await?;
        Ok(())
    }

    /// Extends a lease before a deliberate second attempt. False where it has ended.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; then nothing may be sent.
    pub async fn renew_lease(&self, grant: &Grant, owner: Id) -> Result<bool, StorageError> {
        let now = self.now_expr();
        let _turn = self.turn().await;
        let renewed = grants::Entity::update_many()
            .col_expr(grants::Column::LeaseUntil, now.clone().add(millis(LEASE)))
            .filter(grants::Column::Id.eq(grant.id.as_bytes().to_vec()))
            .filter(grants::Column::LeaseOwner.eq(owner.as_bytes().to_vec()))
            .filter(Expr::col(grants::Column::LeaseUntil).gte(now))
            .exec(&self.db)
            .await?;
        Ok(renewed.rows_affected > 0)
    }

    /// Gives a lease back after a refresh that failed.
    ///
    /// With `intent_stays` the grant goes on remembering that its refresh token may have been
    /// used. `wait` is how long no refresh is tried.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; the lease then ends by itself.
    pub async fn release(
        &self,
        grant: &Grant,
        owner: Id,
        intent_stays: bool,
        wait: Option<Duration>,
        reason: &str,
    ) -> Result<(), StorageError> {
        let next_attempt_at = match wait {
            Some(wait) => self.now_expr().add(millis(wait)),
            None => Expr::value(Option::<i64>::None),
        };
        let mut update = grants::Entity::update_many()
            .col_expr(grants::Column::LeaseOwner, Expr::value(Option::<Vec<u8>>::None))
            .col_expr(grants::Column::LeaseUntil, Expr::value(Option::<i64>::None))
            .col_expr(grants::Column::Failures, Expr::col(grants::Column::Failures).add(1_i64))
            .col_expr(grants::Column::NextAttemptAt, next_attempt_at)
            .col_expr(grants::Column::LastError, Expr::value(reason));
        if !intent_stays {
            update = update.col_expr(grants::Column::IntentAt, Expr::value(Option::<i64>::None));
        }
        let _turn = self.turn().await;
        update
            .filter(grants::Column::Id.eq(grant.id.as_bytes().to_vec()))
            .filter(grants::Column::LeaseOwner.eq(owner.as_bytes().to_vec()))
            .exec(&self.db)
            .await?;
        Ok(())
    }

    /// Commits a refresh by compare-and-swap on the edition, not on the lease: a slow holder's
    /// late answer is the only living refresh token and must win over a lease that ran out. A
    /// grant that was flagged meanwhile becomes active again.
    ///
    /// Scopes that the answer does not name stay as they were, and so does the refresh token where
    /// none is returned (RFC 6749 section 6).
    ///
    /// # Errors
    ///
    /// [`StorageError`]; then the answer is still to be stored.
    pub async fn commit_refresh(
        &self,
        grant: &Grant,
        tokens: &TokenSet,
        disposal: &Disposal<'_>,
    ) -> Result<Committed, StorageError> {
        let access = &tokens.access_token;
        let write = self.begin().await?;
        let mut update = self
            .commit_columns(grant, tokens.refresh_token.as_ref(), false)
            .col_expr(grants::Column::State, Expr::value(ACTIVE))
            .col_expr(grants::Column::Scopes, Expr::value(access.scopes.to_string()))
            .col_expr(grants::Column::IssuedAt, Expr::value(access.issued_at.millis()))
            .col_expr(
                grants::Column::ExpiresAt,
                Expr::value(access.expires_at.map(Timestamp::millis)),
            )
            .col_expr(grants::Column::NextRefreshAt, Expr::value(self.first_look(access).millis()))
            .col_expr(grants::Column::LastAnswer, Expr::value(Option::<Vec<u8>>::None))
            .col_expr(grants::Column::Failures, Expr::value(0_i64))
            .col_expr(grants::Column::NextAttemptAt, Expr::value(Option::<i64>::None))
            .col_expr(grants::Column::LastError, Expr::value(Option::<String>::None));
        // It is the refresh token's: a new one without a lifetime has none.
        if tokens.refresh_token.is_some() {
            let at = tokens.refresh_expires_at.map(Timestamp::millis);
            update = update.col_expr(grants::Column::RefreshExpiresAt, Expr::value(at));
        }
        if !tokens.provider_values.is_empty() {
            update = update.col_expr(
                grants::Column::ProviderValues,
                Expr::value(convert::json(&tokens.provider_values)),
            );
        }
        let stored = update.exec(&*write).await?.rows_affected > 0;
        let outcome = if stored {
            self.put_access_token(&write, grant.id, &grant.key, access).await?;
            Committed::Stored
        } else if self
            .has_tokens(&write, grant, Some(access), tokens.refresh_token.as_ref())
            .await?
        {
            // By this very commit, of which it was not heard that it succeeded.
            Committed::Stored
        } else {
            let mut doomed = vec![DoomedToken {
                kind: TokenKind::Access,
                value: access.value.clone(),
                expires_at: access.expires_at,
            }];
            doomed.extend(tokens.refresh_token.clone().map(|value| DoomedToken {
                kind: TokenKind::Refresh,
                value,
                expires_at: tokens.refresh_expires_at,
            }));
            self.settle_loser(&write, grant, doomed, disposal).await?
        };
        write.commit().await?;
        Ok(outcome)
    }

    /// Commits an answer that could not be used whole: its raw body and its new refresh token are
    /// kept, the access token stays as it was. Without a new refresh token it is still not known
    /// whether the old one has been used.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; then the answer is still to be stored.
    pub async fn commit_partial(
        &self,
        grant: &Grant,
        answer: &RawAnswer,
        refresh_token: Option<&SecretString>,
        wait: Duration,
        reason: &str,
        disposal: &Disposal<'_>,
    ) -> Result<Committed, StorageError> {
        let write = self.begin().await?;
        let sealed = self.seal_answer(place(grant, LAST_ANSWER), answer);
        let stored = self
            .commit_columns(grant, refresh_token, refresh_token.is_none())
            .col_expr(grants::Column::State, Expr::value(ACTIVE))
            .col_expr(grants::Column::NextAttemptAt, self.now_expr().add(millis(wait)))
            .col_expr(grants::Column::NextRefreshAt, self.now_expr().add(millis(wait)))
            .col_expr(grants::Column::LastAnswer, Expr::value(sealed))
            .col_expr(grants::Column::Failures, Expr::col(grants::Column::Failures).add(1_i64))
            .col_expr(grants::Column::LastError, Expr::value(reason))
            .exec(&*write)
            .await?
            .rows_affected
            > 0;
        let outcome = if stored || self.has_tokens(&write, grant, None, refresh_token).await? {
            Committed::Stored
        } else {
            let doomed = refresh_token
                .map(|value| DoomedToken {
                    kind: TokenKind::Refresh,
                    value: value.clone(),
                    expires_at: None,
                })
                .into_iter()
                .collect();
            self.settle_loser(&write, grant, doomed, disposal).await?
        };
        write.commit().await?;
        Ok(outcome)
    }

    /// Keeps an answer that is another user's: sealed, as it came, never to be used or sent anywhere.
    /// The grant is flagged, and its own tokens stay. False where the grant is another edition by now,
    /// which the answer has nothing to do with.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; then the answer is still to be stored.
    pub async fn commit_foreign(
        &self,
        grant: &Grant,
        answer: &RawAnswer,
        reason: &str,
    ) -> Result<bool, StorageError> {
        let sealed = self.seal_answer(place(grant, LAST_ANSWER), answer);
        let _turn = self.turn().await;
        let stored = self
            .commit_columns(grant, None, false)
            .col_expr(grants::Column::State, Expr::value(REAUTHORIZATION_REQUIRED))
            .col_expr(grants::Column::NextRefreshAt, Expr::value(Option::<i64>::None))
            .col_expr(grants::Column::LastAnswer, Expr::value(sealed))
            .col_expr(grants::Column::Failures, Expr::col(grants::Column::Failures).add(1_i64))
            .col_expr(grants::Column::LastError, Expr::value(reason))
            .exec(&self.db)
            .await?;
        Ok(stored.rows_affected > 0)
    }

    /// What every commit of a refresh's answer does to the row, guarded by the edition.
    fn commit_columns(
        &self,
        grant: &Grant,
        refresh_token: Option<&SecretString>,
        intent_stays: bool,
    ) -> sea_orm::UpdateMany<grants::Entity> {
        let mut update = grants::Entity::update_many()
            .col_expr(
                grants::Column::TokenVersion,
                Expr::col(grants::Column::TokenVersion).add(1_i64),
            )
            .col_expr(grants::Column::UpdatedAt, self.now_expr())
            .col_expr(grants::Column::LeaseOwner, Expr::value(Option::<Vec<u8>>::None))
            .col_expr(grants::Column::LeaseUntil, Expr::value(Option::<i64>::None));
        if !intent_stays {
            update = update.col_expr(grants::Column::IntentAt, Expr::value(Option::<i64>::None));
        }
        if let Some(token) = refresh_token {
            let sealed = self.seal(place(grant, REFRESH_TOKEN), token);
            update = update
                .col_expr(grants::Column::RefreshToken, Expr::value(sealed))
                // A newer token of the family supersedes the fallback.
                .col_expr(
                    grants::Column::FallbackRefreshToken,
                    Expr::value(Option::<Vec<u8>>::None),
                );
        }
        update.filter(of_version(grant.id, grant.version))
    }

    /// Whether a grant has these tokens, as far as they are given: each of them.
    async fn has_tokens(
        &self,
        write: &Write,
        grant: &Grant,
        access: Option<&AccessToken>,
        refresh_token: Option<&SecretString>,
    ) -> Result<bool, StorageError> {
        // What does not open is not what was stored a moment ago.
        if let Some(wanted) = access {
            let found = access_tokens::Entity::find()
                .filter(access_tokens::Column::GrantId.eq(grant.id.as_bytes().to_vec()))
                .one(&**write)
                .await?;
            let opened = found.and_then(|found| self.access_token(grant, found).ok());
            let same = |found: AccessToken| same(&found.value, &wanted.value);
            if !opened.is_some_and(same) {
                return Ok(false);
            }
        }
        if let Some(wanted) = refresh_token {
            let row =
                grants::Entity::find_by_id(grant.id.as_bytes().to_vec()).one(&**write).await?;
            let found = row.and_then(|row| row.refresh_token);
            let opened =
                found.and_then(|found| self.open(place(grant, REFRESH_TOKEN), &found).ok());
            if !opened.is_some_and(|found| same(&found, wanted)) {
                return Ok(false);
            }
        }
        Ok(access.is_some() || refresh_token.is_some())
    }

    /// Where the tokens of an answer go whose commit found another edition.
    async fn settle_loser(
        &self,
        write: &Write,
        grant: &Grant,
        doomed: Vec<DoomedToken>,
        disposal: &Disposal<'_>,
    ) -> Result<Committed, StorageError> {
        // A sibling of the same generation committed first. To revoke the loser's refresh token
        // now could end the whole grant (RFC 7009 section 2.1), so it is kept for a rainy day.
        let refresh_token = doomed.iter().find(|token| token.kind == TokenKind::Refresh);
        let mut siblings = grants::Entity::update_many()
            .col_expr(grants::Column::UpdatedAt, self.now_expr())
            .filter(grants::Column::Id.eq(grant.id.as_bytes().to_vec()))
            .filter(grants::Column::Generation.eq(grant.version.generation));
        if let Some(token) = refresh_token {
            siblings = siblings.col_expr(
                grants::Column::FallbackRefreshToken,
                Expr::value(self.seal(place(grant, FALLBACK), &token.value)),
            );
        }
        if siblings.exec(&**write).await?.rows_affected > 0 {
            return Ok(Committed::LostToSibling);
        }
        self.dispose(
            write,
            NewRevocations {
                identity: &grant.identity.name,
                ..NewRevocations::of(&grant.key, doomed)
            },
            disposal,
        )
        .await?;
        Ok(Committed::Orphaned)
    }

    /// Flags that the provider no longer takes the refresh token. Moves no version, so that a
    /// late answer can still be committed.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn flag(&self, grant: &Grant, reason: &str) -> Result<bool, StorageError> {
        let _turn = self.turn().await;
        let flagged = grants::Entity::update_many()
            .col_expr(grants::Column::State, Expr::value(REAUTHORIZATION_REQUIRED))
            .col_expr(grants::Column::UpdatedAt, self.now_expr())
            .col_expr(grants::Column::LeaseOwner, Expr::value(Option::<Vec<u8>>::None))
            .col_expr(grants::Column::LeaseUntil, Expr::value(Option::<i64>::None))
            .col_expr(grants::Column::IntentAt, Expr::value(Option::<i64>::None))
            .col_expr(grants::Column::NextRefreshAt, Expr::value(Option::<i64>::None))
            .col_expr(grants::Column::LastError, Expr::value(reason))
            .filter(of_version(grant.id, grant.version))
            .exec(&self.db)
            .await?;
        Ok(flagged.rows_affected > 0)
    }
}

fn same(one: &SecretString, other: &SecretString) -> bool {
    one.expose_secret() == other.expose_secret()
}

pub(super) fn of_version(id: Id, version: Version) -> Condition {
    Condition::all()
        .add(grants::Column::Id.eq(id.as_bytes().to_vec()))
        .add(grants::Column::Generation.eq(version.generation))
        .add(grants::Column::TokenVersion.eq(version.token_version))
}
