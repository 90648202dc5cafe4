//! Grants and their access tokens.

mod commit;
mod convert;
mod list;
mod read;
mod refresh;
mod revoke;
mod superseded;
mod work;

use sea_orm::sea_query::{Expr, LockType, OnConflict, Query};
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, Condition, ConnectionTrait, EntityTrait,
    QueryFilter, QuerySelect,
};

use super::entity::{access_tokens, grants};
use super::{GrantStore, StorageError, StoreContext, Write, rows};
use crate::crypto::sealed::Place;
use crate::domain::grant::{Grant, GrantKey};
use crate::domain::id::Id;
use crate::domain::identity::Identity;
use crate::domain::proactive_refresh;
use crate::domain::scope::Scopes;
use crate::domain::time::Timestamp;
use crate::domain::token::{AccessToken, TokenSet};

pub use commit::Committed;
pub use list::{ListFilter, ListPosition, SubjectFilter};
pub(super) use read::GrantReader;
pub use refresh::{CLOCK_TOLERANCE, LEASE, Lease, Takeover};
pub use revoke::Revoked;
pub(super) use superseded::SUPERSEDED_TOKENS;
pub use work::{DueWork, OpenIntents};

const GRANTS: &str = "grants";
const ACCESS_TOKENS: &str = "access_tokens";
const REFRESH_TOKEN: &str = "refresh_token";
const FALLBACK: &str = "fallback_refresh_token";
const LAST_ANSWER: &str = "last_answer";
const ACTIVE: &str = "active";
pub(super) const REAUTHORIZATION_REQUIRED: &str = "reauthorization_required";

/// A grant as it was read.
#[derive(Debug, Clone)]
pub struct StoredGrant {
    /// The grant.
    pub grant: Grant,
    /// Its access token. `None` if the provider's last answer had none that could be used.
    pub access_token: Option<AccessToken>,
    /// `true` if a replica is refreshing it, or was when it ended.
    pub leased: bool,
    /// When it was read, on the database's clock.
    pub now: Timestamp,
}

impl GrantStore {
    /// Reads a grant without its tokens, also if no key opens those.
    ///
    /// # Errors
    ///
    /// [`StorageError`] if the database cannot be read.
    pub async fn find_grant_without_token(
        &self,
        key: &GrantKey,
    ) -> Result<Option<Grant>, StorageError> {
        let model = grants::Entity::find().filter(of_key(key)).one(&self.db).await?;
        model.map(|model| convert::grant(model, key.clone())).transpose()
    }
}

fn place<'a>(grant: &'a Grant, column: &'static str) -> Place<'a> {
    Place { table: GRANTS, column, row: grant.id, key: &grant.key }
}

fn of_key(key: &GrantKey) -> Condition {
    Condition::all()
        .add(grants::Column::Namespace.eq(key.namespace.as_str()))
        .add(grants::Column::Provider.eq(key.provider.as_str()))
        .add(grants::Column::Subject.eq(key.subject.as_str()))
        .add(grants::Column::Account.eq(key.account.as_str()))
}

impl StoreContext {
    /// Stores the tokens of a finished authorization: a new grant, or a new generation of the one
    /// that the key has. The tokens that a new generation supersedes are kept, to be revoked with the grant, for
    /// at most providers a revocation reaches the new ones too.
    pub(super) async fn install(
        &self,
        write: &Write,
        key: &GrantKey,
        requested: &Scopes,
        tokens: &TokenSet,
        identity: &Identity,
    ) -> Result<Grant, StorageError> {
        let mut find = grants::Entity::find().filter(of_key(key));
        QuerySelect::query(&mut find).lock(LockType::Update);
        let existing = find.one(&**write).await?;
        let now = self.now_on(write).await?;
        let access = &tokens.access_token;
        if let Some(existing) = &existing {
            self.supersede(write, existing, key, tokens, now).await?;
        }
        let id = match &existing {
            Some(model) => rows::id(&model.id)?,
            None => self.random.id(),
        };
        let seal = |column, value| self.seal(Place { table: GRANTS, column, row: id, key }, value);
        let (generation, token_version) =
            existing.as_ref().map_or((1, 1), |g| (g.generation + 1, g.token_version + 1));
        let row = grants::ActiveModel {
            id: Set(id.as_bytes().to_vec()),
            created_at: Set(now.millis()),
            updated_at: Set(now.millis()),
            namespace: Set(key.namespace.to_string()),
            provider: Set(key.provider.to_string()),
            subject: Set(key.subject.as_str().to_owned()),
            account: Set(key.account.as_str().to_owned()),
            state: Set(ACTIVE.to_owned()),
            generation: Set(generation),
            token_version: Set(token_version),
            scopes: Set(access.scopes.to_string()),
            requested_scopes: Set(Some(requested.to_string())),
            identity: Set(identity.name.clone()),
            sub: Set(identity.sub.clone()),
            provider_values: Set(convert::json(&tokens.provider_values)),
            issued_at: Set(access.issued_at.millis()),
            expires_at: Set(access.expires_at.map(Timestamp::millis)),
            refresh_token: Set(tokens
                .refresh_token
                .as_ref()
                .map(|token| seal(REFRESH_TOKEN, token))),
            fallback_refresh_token: Set(None),
            last_answer: Set(None),
            refresh_expires_at: Set(tokens.refresh_expires_at.map(Timestamp::millis)),
            lease_owner: Set(None),
            lease_until: Set(None),
            lease_replica: Set(None),
            intent_at: Set(None),
            failures: Set(0),
            failing_since: Set(None),
            next_attempt_at: Set(None),
            last_error: Set(None),
            last_used_at: Set(existing.as_ref().and_then(|model| model.last_used_at)),
            next_refresh_at: Set(tokens
                .refresh_token
                .as_ref()
                .map(|_| self.first_look(tokens).millis())),
        };
        let model = match existing {
            Some(_) => row.update(&**write).await?,
            None => row.insert(&**write).await?,
        };
        self.put_access_token(write, id, key, access).await?;
        convert::grant(model, key.clone())
    }

    /// When the worker that refreshes ahead first looks at a grant with a new access token.
    fn first_look(&self, tokens: &TokenSet) -> Timestamp {
        let access = &tokens.access_token;
        let refresh_expires_at = tokens.refresh_expires_at;
        proactive_refresh::first_look(
            access.issued_at,
            access.expires_at,
            refresh_expires_at,
            self.random.share(),
        )
    }

    async fn put_access_token(
        &self,
        write: &Write,
        grant_id: Id,
        key: &GrantKey,
        token: &AccessToken,
    ) -> Result<(), StorageError> {
        let place = Place { table: ACCESS_TOKENS, column: "access_token", row: grant_id, key };
        let row = access_tokens::ActiveModel {
            grant_id: Set(grant_id.as_bytes().to_vec()),
            token_set: Set(String::new()),
            resources_hash: Set(Vec::new()),
            access_token: Set(self.seal(place, &token.value)),
            token_type: Set(token.token_type.clone()),
            scopes: Set(token.scopes.to_string()),
            issued_at: Set(token.issued_at.millis()),
            expires_at: Set(token.expires_at.map(Timestamp::millis)),
        };
        // Updated in place, which leaves the index alone on PostgreSQL.
        let in_place = OnConflict::columns([
            access_tokens::Column::GrantId,
            access_tokens::Column::TokenSet,
            access_tokens::Column::ResourcesHash,
        ])
        .update_columns([
            access_tokens::Column::AccessToken,
            access_tokens::Column::TokenType,
            access_tokens::Column::Scopes,
            access_tokens::Column::IssuedAt,
            access_tokens::Column::ExpiresAt,
        ])
        .to_owned();
        access_tokens::Entity::insert(row)
            .on_conflict(in_place)
            .exec_without_returning(&**write)
            .await?;
        Ok(())
    }

    pub(super) fn now_expr(&self) -> Expr {
        self.clock.now(self.db.get_database_backend())
    }

    pub(super) fn now_once(&self) -> Expr {
        self.clock.now_once(self.db.get_database_backend())
    }

    pub(super) async fn now_on(&self, write: &Write) -> Result<Timestamp, StorageError> {
        let mut select = Query::select();
        select.expr_as(self.now_expr(), "now");
        let row = write
            .query_one(&select)
            .await?
            .ok_or_else(|| StorageError::damaged("none", "SELECT gave no row"))?;
        Ok(Timestamp::from_millis(row.try_get("", "now")?))
    }
}
