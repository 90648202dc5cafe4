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
use crate::domain::token::{DoomedToken, TokenKind, TokenSet};
use crate::storage::entity::{access_tokens, grants, superseded_tokens};
use crate::storage::{StorageError, StoreContext, Write, rows};

pub(in crate::storage) const SUPERSEDED_TOKENS: &str = "superseded_tokens";

/// The most tokens that are kept for a grant. The oldest go first.
const MOST: u64 = 8;

impl StoreContext {
    /// Keeps the tokens of a grant that gets new ones. A token that cannot be opened is left out, because it could not
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
        let token = |kind, table, column, sealed, expires_at: Option<i64>| {
            let place = Place { table, column, row, key };
            let value = self.open(place, sealed).ok()?;
            Some(DoomedToken { kind, value, expires_at: expires_at.map(Timestamp::from_millis) })
        };
        let refresh =
            [(REFRESH_TOKEN, &grant.refresh_token), (FALLBACK, &grant.fallback_refresh_token)];
        let mut tokens: Vec<DoomedToken> = refresh
            .into_iter()
            .filter_map(|(column, sealed)| {
                let ends = grant.refresh_expires_at;
                token(TokenKind::Refresh, GRANTS, column, sealed.as_ref()?, ends)
            })
            .collect();
        let access = access_tokens::Entity::find()
            .filter(access_tokens::Column::GrantId.eq(grant.id.clone()))
            .all(&**write)
            .await?;
        tokens.extend(access.iter().filter_map(|row| {
            let sealed = &row.access_token;
            token(TokenKind::Access, ACCESS_TOKENS, "access_token", sealed, row.expires_at)
        }));
        for token in tokens {
            let has_ended = token.expires_at.is_some_and(|at| at <= now);
            if !has_ended && !is_one_of(&token.value, new) {
                self.keep_superseded(write, row, key, &token, now).await?;
            }
        }
        self.forget_oldest_superseded(write, row).await
    }

    async fn keep_superseded(
        &self,
        write: &Write,
        grant: Id,
        key: &GrantKey,
        token: &DoomedToken,
        now: Timestamp,
    ) -> Result<(), StorageError> {
        let id = self.random.id();
        let place = Place { table: SUPERSEDED_TOKENS, column: "token", row: id, key };
        let row = superseded_tokens::ActiveModel {
            id: Set(id.as_bytes().to_vec()),
            grant_id: Set(grant.as_bytes().to_vec()),
            created_at: Set(now.millis()),
            kind: Set(token.kind.as_str().to_owned()),
            token: Set(self.seal(place, &token.value)),
            expires_at: Set(token.expires_at.map(Timestamp::millis)),
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
