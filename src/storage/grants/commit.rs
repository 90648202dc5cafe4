//! Commits the answer of a refresh.

use std::time::Duration;

use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};
use secrecy::{ExposeSecret, SecretString};

use super::refresh::of_version;
use super::{
    ACTIVE, FALLBACK, LAST_ANSWER, REAUTHORIZATION_REQUIRED, REFRESH_TOKEN, convert, place,
};
use crate::domain::grant::Grant;
use crate::domain::time::{Timestamp, millis};
use crate::domain::token::{AccessToken, DoomedToken, RawAnswer, TokenKind, TokenSet};
use crate::storage::connection::retry_conflicts;
use crate::storage::entity::{access_tokens, grants};
use crate::storage::revocations::{Disposal, NewRevocations};
use crate::storage::{GrantStore, StorageError, Write};

/// The outcome of a commit.
#[derive(Debug, Clone)]
pub enum Committed {
    /// It is the grant's new edition.
    Stored,
    /// A sibling's refresh was first: the answer's refresh token is kept as the fallback.
    LostToSibling,
    /// The grant was revoked or authorized again in between, so the answer's tokens have no grant. They were put into
    /// the outbox unless that could end a living grant.
    Orphaned,
}

impl GrantStore {
    /// Commits a refresh by compare-and-swap on the edition, not on the lease: a slow holder's
    /// late answer is the only living refresh token and must win over a lease that ran out. A
    /// grant that was flagged in between becomes active again.
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
        retry_conflicts(|| self.commit_refresh_once(grant, tokens, disposal)).await
    }

    async fn commit_refresh_once(
        &self,
        grant: &Grant,
        tokens: &TokenSet,
        disposal: &Disposal<'_>,
    ) -> Result<Committed, StorageError> {
        let access = &tokens.access_token;
        let write = self.begin_reserved().await?;
        let mut update = self
            .commit_columns(grant, tokens.refresh_token.as_ref(), false)
            .col_expr(grants::Column::State, Expr::value(ACTIVE))
            .col_expr(grants::Column::Scopes, Expr::value(access.scopes.to_string()))
            .col_expr(grants::Column::IssuedAt, Expr::value(access.issued_at.millis()))
            .col_expr(
                grants::Column::ExpiresAt,
                Expr::value(access.expires_at.map(Timestamp::millis)),
            )
            .col_expr(grants::Column::NextRefreshAt, Expr::value(self.first_look(tokens).millis()))
            .col_expr(grants::Column::LastAnswer, Expr::value(Option::<Vec<u8>>::None))
            .col_expr(grants::Column::Failures, Expr::value(0_i64))
            .col_expr(grants::Column::FailingSince, Expr::value(Option::<i64>::None))
            .col_expr(grants::Column::NextAttemptAt, Expr::value(Option::<i64>::None))
            .col_expr(grants::Column::LastError, Expr::value(Option::<String>::None));
        // It is the refresh token's: a new one without a lifetime has none.
        if tokens.refresh_token.is_some() || tokens.refresh_expires_at.is_some() {
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
            // By this commit, whose confirmation was lost.
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
        retry_conflicts(|| {
            self.commit_partial_once(grant, answer, refresh_token, wait, reason, disposal)
        })
        .await
    }

    async fn commit_partial_once(
        &self,
        grant: &Grant,
        answer: &RawAnswer,
        refresh_token: Option<&SecretString>,
        wait: Duration,
        reason: &str,
        disposal: &Disposal<'_>,
    ) -> Result<Committed, StorageError> {
        let write = self.begin_reserved().await?;
        let sealed = self.seal_answer(place(grant, LAST_ANSWER), answer);
        let stored = self
            .commit_columns(grant, refresh_token, refresh_token.is_none())
            .col_expr(grants::Column::State, Expr::value(ACTIVE))
            .col_expr(grants::Column::NextAttemptAt, self.now_expr().add(millis(wait)))
            .col_expr(grants::Column::NextRefreshAt, self.now_expr().add(millis(wait)))
            .col_expr(grants::Column::LastAnswer, Expr::value(sealed))
            .col_expr(grants::Column::Failures, Expr::col(grants::Column::Failures).add(1_i64))
            .col_expr(grants::Column::FailingSince, self.failing_since())
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

    /// Keeps an answer that must not be used (another user's), or that the database refuses as it was
    /// read: sealed, as it came. The grant is flagged. Its tokens stay, but for the refresh token where
    /// there is a new one. Returns `false` if the grant has another version by now.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; then the answer is still to be stored.
    pub async fn commit_flagged(
        &self,
        grant: &Grant,
        answer: &RawAnswer,
        refresh_token: Option<&SecretString>,
        reason: &str,
    ) -> Result<bool, StorageError> {
        let sealed = self.seal_answer(place(grant, LAST_ANSWER), answer);
        let _turn = self.turn().await;
        let stored = self
            .commit_columns(grant, refresh_token, false)
            .col_expr(grants::Column::State, Expr::value(REAUTHORIZATION_REQUIRED))
            .col_expr(grants::Column::NextRefreshAt, Expr::value(Option::<i64>::None))
            .col_expr(grants::Column::LastAnswer, Expr::value(sealed))
            .col_expr(grants::Column::Failures, Expr::col(grants::Column::Failures).add(1_i64))
            .col_expr(grants::Column::FailingSince, self.failing_since())
            .col_expr(grants::Column::LastError, Expr::value(reason))
            .exec(&self.reserved)
            .await?;
        Ok(stored.rows_affected > 0)
    }

    /// The columns that every commit of an answer sets, guarded by the version.
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
            .col_expr(grants::Column::LeaseUntil, Expr::value(Option::<i64>::None))
            .col_expr(grants::Column::LeaseReplica, Expr::value(Option::<Vec<u8>>::None));
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

    /// Returns `true` if a grant has these tokens, as far as they are given: each of them.
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

    /// Disposes of the tokens of an answer whose commit found another version.
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
}

fn same(one: &SecretString, other: &SecretString) -> bool {
    one.expose_secret() == other.expose_secret()
}
