//! Forgetting a grant.

use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};

use super::{ACCESS_TOKENS, FALLBACK, GRANTS, REFRESH_TOKEN, of_key};
use crate::crypto::sealed::Place;
use crate::domain::grant::GrantKey;
use crate::domain::time::Timestamp;
use crate::domain::token::{DoomedToken, TokenKind};
use crate::storage::entity::{access_tokens, grants};
use crate::storage::revocations::{
    Disposal, FirstAttempt, NewRevocations, Revocation, unless_damaged,
};
use crate::storage::{Storage, StorageError, Write, rows};

/// What a revocation took away.
#[derive(Debug)]
pub struct Revoked {
    /// Whether there was a grant or a token awaiting confirmation.
    pub found: bool,
    /// Whether a refresh may be under way, which may yet mint another token.
    pub intent_open: bool,
    /// The outbox entries, claimed for the caller to try at once.
    pub revocations: Vec<Revocation>,
}

impl Storage {
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
        let write = self.begin().await?;
        // The authorizations first: a confirmation under way holds its row until it has stored its
        // grant, which the next statement then sees.
        let mut doomed = self.cancel_all(&write, key, disposal).await?;
        let mut found = !doomed.is_empty();
        let mut identity = String::new();
        let mut intent_open = false;
        let deleted =
            grants::Entity::delete_many().filter(of_key(key)).exec_with_returning(&*write).await?;
        for model in deleted {
            found = true;
            intent_open |= model.intent_at.is_some();
            identity.clone_from(&model.identity);
            doomed.extend(self.doomed_of(&write, &model, key).await?);
        }
        let revocations = self
            .dispose(
                &write,
                NewRevocations {
                    key,
                    identity: &identity,
                    tokens: doomed,
                    first_attempt: FirstAttempt::Caller,
                },
                disposal,
            )
            .await?;
        if found {
            self.tell_change(&write, key).await?;
        }
        write.commit().await?;
        Ok(Revoked { found, intent_open, revocations })
    }

    /// The tokens of a grant that has just been deleted; its access tokens go with it.
    async fn doomed_of(
        &self,
        write: &Write,
        model: &grants::Model,
        key: &GrantKey,
    ) -> Result<Vec<DoomedToken>, StorageError> {
        let row = rows::id(&model.id)?;
        let mut doomed = Vec::new();
        let refresh_expires_at = model.refresh_expires_at.map(Timestamp::from_millis);
        let refresh_tokens =
            [(REFRESH_TOKEN, &model.refresh_token), (FALLBACK, &model.fallback_refresh_token)];
        for (column, sealed) in refresh_tokens {
            let Some(sealed) = sealed else { continue };
            let place = Place { table: GRANTS, column, row, key };
            doomed.extend(unless_damaged(self.open(place, sealed))?.map(|value| DoomedToken {
                kind: TokenKind::Refresh,
                value,
                expires_at: refresh_expires_at,
            }));
        }
        let access = access_tokens::Entity::delete_many()
            .filter(access_tokens::Column::GrantId.eq(model.id.clone()))
            .exec_with_returning(&**write)
            .await?;
        for token in access {
            let place = Place { table: ACCESS_TOKENS, column: "access_token", row, key };
            doomed.extend(unless_damaged(self.open(place, &token.access_token))?.map(|value| {
                DoomedToken {
                    kind: TokenKind::Access,
                    value,
                    expires_at: token.expires_at.map(Timestamp::from_millis),
                }
            }));
        }
        Ok(doomed)
    }
}
