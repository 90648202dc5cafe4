//! Forgetting a grant.

use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};

use super::{ACCESS_TOKENS, FALLBACK, GRANTS, REFRESH_TOKEN, SUPERSEDED_TOKENS, of_key};
use crate::crypto::sealed::Place;
use crate::domain::grant::GrantKey;
use crate::domain::time::Timestamp;
use crate::domain::token::{DoomedToken, TokenKind};
use crate::storage::connection::retry_conflicts;
use crate::storage::entity::{access_tokens, grants, superseded_tokens};
use crate::storage::revocations::{
    Disposal, FirstAttempt, NewRevocations, Revocation, UnopenedToken,
};
use crate::storage::{GrantStore, StorageError, Write, rows};

/// The grant and tokens that a revocation has removed.
#[derive(Debug)]
pub struct Revoked {
    /// `true` if there was a grant or a token awaiting confirmation.
    pub found: bool,
    /// `true` if a refresh may be under way, which may yet mint another token.
    pub intent_open: bool,
    /// `true` if tokens wait in the database for a key that opens them.
    pub unopened: bool,
    /// The outbox entries, claimed for the caller to try at once.
    pub revocations: Vec<Revocation>,
}

impl GrantStore {
    /// Forgets a grant: its authorizations are cancelled, the grant is gone, and its tokens are in
    /// the outbox, in one transaction.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; then nothing has changed.
    pub async fn revoke(
        &self,
        key: &GrantKey,
        disposal: &Disposal<'_>,
    ) -> Result<Revoked, StorageError> {
        let revoked = retry_conflicts(|| self.revoke_once(key, disposal)).await?;
        if revoked.found {
            self.notify_change(key).await;
        }
        Ok(revoked)
    }

    async fn revoke_once(
        &self,
        key: &GrantKey,
        disposal: &Disposal<'_>,
    ) -> Result<Revoked, StorageError> {
        let write = self.begin().await?;
        // The authorizations first: a confirmation under way holds its row until it has stored its
        // grant, which the next statement then sees.
        let cancelled = self.cancel_all(&write, key, disposal).await?;
        let mut found = !cancelled.tokens.is_empty() || cancelled.unopened;
        let mut identity = String::new();
        let mut intent_open = false;
        let mut doomed = Doomed { opened: cancelled.tokens, unopened: Vec::new() };
        let deleted =
            grants::Entity::delete_many().filter(of_key(key)).exec_with_returning(&*write).await?;
        for model in deleted {
            found = true;
            intent_open |= model.intent_at.is_some();
            identity.clone_from(&model.identity);
            self.doomed_of(&write, &model, key, &mut doomed).await?;
        }
        let unopened = disposal.revocable && (cancelled.unopened || !doomed.unopened.is_empty());
        let revocations = self
            .dispose(
                &write,
                NewRevocations {
                    key,
                    identity: &identity,
                    tokens: doomed.opened,
                    unopened: doomed.unopened,
                    first_attempt: FirstAttempt::Caller,
                },
                disposal,
            )
            .await?;
        write.commit().await?;
        Ok(Revoked { found, intent_open, unopened, revocations })
    }

    /// Adds the tokens of a grant that has just been deleted; its access tokens go with it.
    async fn doomed_of(
        &self,
        write: &Write,
        model: &grants::Model,
        key: &GrantKey,
        doomed: &mut Doomed,
    ) -> Result<(), StorageError> {
        let row = rows::id(&model.id)?;
        let refresh_expires_at = model.refresh_expires_at.map(Timestamp::from_millis);
        let refresh_tokens =
            [(REFRESH_TOKEN, &model.refresh_token), (FALLBACK, &model.fallback_refresh_token)];
        for (column, sealed) in refresh_tokens {
            let Some(sealed) = sealed else { continue };
            let place = Place { table: GRANTS, column, row, key };
            self.doom(doomed, TokenKind::Refresh, place, sealed, refresh_expires_at);
        }
        let access = access_tokens::Entity::delete_many()
            .filter(access_tokens::Column::GrantId.eq(model.id.clone()))
            .exec_with_returning(&**write)
            .await?;
        for token in access {
            let place = Place { table: ACCESS_TOKENS, column: "access_token", row, key };
            let expires_at = token.expires_at.map(Timestamp::from_millis);
            self.doom(doomed, TokenKind::Access, place, &token.access_token, expires_at);
        }
        let superseded = superseded_tokens::Entity::delete_many()
            .filter(superseded_tokens::Column::GrantId.eq(model.id.clone()))
            .exec_with_returning(&**write)
            .await?;
        for token in superseded {
            let row = rows::id(&token.id)?;
            let place = Place { table: SUPERSEDED_TOKENS, column: "token", row, key };
            let kind = TokenKind::parse(&token.kind).ok_or_else(|| {
                StorageError::damaged(SUPERSEDED_TOKENS, format!("kind {:?}", token.kind))
            })?;
            let expires_at = token.expires_at.map(Timestamp::from_millis);
            self.doom(doomed, kind, place, &token.token, expires_at);
        }
        Ok(())
    }

    /// Opens a token for its revocation, or keeps it sealed until a key opens it.
    fn doom(
        &self,
        doomed: &mut Doomed,
        kind: TokenKind,
        place: Place<'_>,
        sealed: &[u8],
        expires_at: Option<Timestamp>,
    ) {
        match self.open(place, sealed) {
            Ok(value) => doomed.opened.push(DoomedToken { kind, value, expires_at }),
            Err(error) => {
                tracing::error!(%error, "a token cannot be opened; its revocation waits for the key");
                doomed.unopened.push(UnopenedToken {
                    kind,
                    sealed: sealed.to_vec(),
                    table: place.table,
                    column: place.column,
                    row: place.row,
                    expires_at,
                });
            }
        }
    }
}

/// The tokens of a revoked grant.
struct Doomed {
    opened: Vec<DoomedToken>,
    unopened: Vec<UnopenedToken>,
}
