//! Tokens that a new authorization of a grant supersedes. At most providers they live on, so they are kept sealed
//! with the grant and revoked with it: to revoke them earlier could end the new authorization.

use sea_orm::sea_query::{Expr, ExprTrait, Query};
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter,
};
use secrecy::{ExposeSecret, SecretString};

use super::{ACCESS_TOKENS, FALLBACK, GRANTS, REFRESH_TOKEN};
use crate::crypto::sealed::Place;
use crate::domain::grant::GrantKey;
use crate::domain::id::Id;
use crate::domain::time::Timestamp;
use crate::domain::token::{TokenKind, TokenSet};
use crate::storage::entity::{access_tokens, grants, superseded_tokens};
use crate::storage::{Storage, StorageError, Write, rows};

pub(in crate::storage) const SUPERSEDED_TOKENS: &str = "superseded_tokens";

/// The most tokens that are kept for a grant. The oldest go first.
const MOST: u64 = 8;

impl Storage {
    /// Keeps the tokens of a grant that is about to get new ones. One that does not open is left out, for it could not
    /// be revoked either.
    pub(super) async fn supersede(
        &self,
        write: &Write,
        grant: &grants::Model,
        key: &GrantKey,
        new: &TokenSet,
        now: Timestamp,
    ) -> Result<(), StorageError> {
        let row = rows::id(&grant.id)?;
        let place = |table, column| Place { table, column, row, key };
        let refresh_expires_at = grant.refresh_expires_at;
        let mut tokens = Vec::new();
        for (column, sealed) in
            [(REFRESH_TOKEN, &grant.refresh_token), (FALLBACK, &grant.fallback_refresh_token)]
        {
            if let Some(sealed) = sealed {
                let opened = self.open(place(GRANTS, column), sealed);
                tokens.push((TokenKind::Refresh, opened, refresh_expires_at));
            }
        }
        let access = access_tokens::Entity::find()
            .filter(access_tokens::Column::GrantId.eq(grant.id.clone()))
            .all(&**write)
            .await?;
        for token in access {
            let opened = self.open(place(ACCESS_TOKENS, "access_token"), &token.access_token);
            tokens.push((TokenKind::Access, opened, token.expires_at));
        }
        for (kind, opened, expires_at) in tokens {
            let Ok(value) = opened else { continue };
            let has_ended = expires_at.is_some_and(|at| at <= now.millis());
            if !has_ended && !is_one_of(&value, new) {
                self.keep_superseded(write, row, key, kind, &value, expires_at, now).await?;
            }
        }
        self.forget_oldest_superseded(write, row).await
    }

    #[expect(clippy::too_many_arguments, reason = "the columns of a row")]
    async fn keep_superseded(
        &self,
        write: &Write,
        grant: Id,
        key: &GrantKey,
        kind: TokenKind,
        value: &SecretString,
        expires_at: Option<i64>,
        now: Timestamp,
    ) -> Result<(), StorageError> {
        let id = self.random.id();
        let place = Place { table: SUPERSEDED_TOKENS, column: "token", row: id, key };
        let row = superseded_tokens::ActiveModel {
            id: Set(id.as_bytes().to_vec()),
            grant_id: Set(grant.as_bytes().to_vec()),
            created_at: Set(now.millis()),
            kind: Set(kind.as_str().to_owned()),
            token: Set(self.seal(place, value)),
            expires_at: Set(expires_at),
        };
        row.insert(&**write).await?;
        Ok(())
    }

    async fn forget_oldest_superseded(&self, write: &Write, grant: Id) -> Result<(), StorageError> {
        let grant = grant.as_bytes().to_vec();
        let mut newest = Query::select();
        newest
            .column(superseded_tokens::Column::Id)
            .from(superseded_tokens::Entity)
            .and_where(superseded_tokens::Column::GrantId.eq(grant.clone()))
            .order_by(superseded_tokens::Column::CreatedAt, sea_orm::Order::Desc)
            .limit(MOST);
        let kept = rows::ids(write.query_all(&newest).await?)?;
        superseded_tokens::Entity::delete_many()
            .filter(superseded_tokens::Column::GrantId.eq(grant))
            .filter(Expr::col(superseded_tokens::Column::Id).is_not_in(kept))
            .exec(&**write)
            .await?;
        Ok(())
    }
}

fn is_one_of(value: &SecretString, new: &TokenSet) -> bool {
    let is = |other: &SecretString| other.expose_secret() == value.expose_secret();
    is(&new.access_token.value) || new.refresh_token.as_ref().is_some_and(is)
}
