//! Authorizations, from Authorize to their final state.

mod cancel;
mod confirm;
mod convert;
mod exchange;
mod sweep;

use std::collections::HashMap;
use std::time::Duration;

use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, Condition, ConnectionTrait, EntityTrait,
    FromQueryResult, Iterable, QueryFilter, QueryOrder, QuerySelect, QueryTrait,
};

use super::entity::authorizations;
use super::revocations::NewRevocations;
use super::{AuthorizationStore, StorageError, StoreContext, Write};
use crate::crypto::sealed::Place;
use crate::domain::authorization::{Authorization, Options, REDIRECT_GRACE, RETENTION, State};
use crate::domain::grant::{GrantKey, Subject};
use crate::domain::id::Id;
use crate::domain::name::Name;
use crate::domain::scope::Scopes;
use crate::domain::time::{Timestamp, millis};
use crate::storage::connection::retry_conflicts;

pub use confirm::Awaiting;
pub use exchange::{Answered, Arrival, Begun};
pub use sweep::Swept;

const AUTHORIZATIONS: &str = "authorizations";
const PENDING: &str = "pending";
const EXCHANGING: &str = "exchanging";
const AWAITING: &str = "awaiting_confirmation";
const DENIED: &str = "denied";
const FAILED: &str = "failed";
const AUTHORIZATION_CODE: &str = "authorization_code";

/// A new authorization.
#[derive(Debug)]
pub struct NewAuthorization<'a> {
    /// The grant that it will leave.
    pub key: &'a GrantKey,
    /// The bot that called Authorize.
    pub bot: &'a Name,
    /// For what.
    pub scopes: &'a Scopes,
    /// Its options.
    pub options: &'a Options,
    /// The time for which the start link works.
    pub link_ttl: Duration,
}

/// An authorization as it was read.
#[derive(Debug, Clone)]
pub struct StoredAuthorization {
    /// The authorization.
    pub authorization: Authorization,
    /// The keyed hash of its confirmation code, once it has one. Stays after the confirmation.
    pub code_hash: Option<Vec<u8>>,
    /// When it was read, on the database's clock.
    pub now: Timestamp,
}

impl StoredAuthorization {
    /// The state when it was read.
    #[must_use]
    pub fn state(&self) -> State {
        self.authorization.state_at(self.now)
    }
}

impl AuthorizationStore {
    /// Begins an authorization.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn insert_authorization(
        &self,
        new: &NewAuthorization<'_>,
    ) -> Result<Authorization, StorageError> {
        retry_conflicts(|| self.insert_authorization_once(new)).await
    }

    async fn insert_authorization_once(
        &self,
        new: &NewAuthorization<'_>,
    ) -> Result<Authorization, StorageError> {
        let write = self.begin().await?;
        let inserted = self.insert_on(&write, new).await?;
        write.commit().await?;
        Ok(inserted)
    }

    /// The authorization that already waits with the same parameters, or else a new one.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn find_or_insert_authorization(
        &self,
        new: &NewAuthorization<'_>,
    ) -> Result<Authorization, StorageError> {
        retry_conflicts(|| self.find_or_insert_authorization_once(new)).await
    }

    async fn find_or_insert_authorization_once(
        &self,
        new: &NewAuthorization<'_>,
    ) -> Result<Authorization, StorageError> {
        let write = self.begin().await?;
        if let Some(same) = self.pending_on(&write, new).await? {
            return Ok(same);
        }
        let inserted = self.insert_on(&write, new).await?;
        write.commit().await?;
        Ok(inserted)
    }

    async fn insert_on(
        &self,
        write: &Write,
        new: &NewAuthorization<'_>,
    ) -> Result<Authorization, StorageError> {
        let now = self.now_on(write).await?;
        let link_expires_at = now + new.link_ttl;
        let model = authorizations::ActiveModel {
            id: Set(self.random.id().as_bytes().to_vec()),
            created_at: Set(now.millis()),
            namespace: Set(new.key.namespace.to_string()),
            bot: Set(new.bot.to_string()),
            provider: Set(new.key.provider.to_string()),
            subject: Set(new.key.subject.as_str().to_owned()),
            account: Set(new.key.account.as_str().to_owned()),
            scopes: Set(new.scopes.to_string()),
            flow: Set(AUTHORIZATION_CODE.to_owned()),
            options: Set(convert::options_to_json(new.options)),
            state: Set(PENDING.to_owned()),
            error: Set(None),
            error_description: Set(None),
            refused_codes: Set(0),
            confirmation_code_hash: Set(None),
            confirmation_attempts: Set(0),
            quarantine: Set(None),
            identity: Set(None),
            sub: Set(None),
            exchanged_at: Set(None),
            link_expires_at: Set(link_expires_at.millis()),
            expires_at: Set((link_expires_at + REDIRECT_GRACE).millis()),
            finished_at: Set(None),
        }
        .insert(&**write)
        .await?;
        convert::authorization(model)
    }

    /// Reads an authorization: of one namespace, or of any where the caller is the browser, which
    /// has no credential.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn find_authorization(
        &self,
        namespace: Option<&Name>,
        id: Id,
    ) -> Result<Option<StoredAuthorization>, StorageError> {
        let mut find = authorizations::Entity::find_by_id(id.as_bytes().to_vec());
        if let Some(namespace) = namespace {
            find = find.filter(authorizations::Column::Namespace.eq(namespace.as_str()));
        }
        let mut select = find.into_query();
        select.expr_as(self.now_expr(), "now");
        let Some(row) = self.db.query_one(&select).await? else { return Ok(None) };
        let model = authorizations::Model::from_query_result(&row, "")?;
        Ok(Some(StoredAuthorization {
            code_hash: model.confirmation_code_hash.clone(),
            authorization: convert::authorization(model)?,
            now: Timestamp::from_millis(row.try_get("", "now")?),
        }))
    }

    /// Reads the states of authorizations, as of now on the database's clock. One that is not there is
    /// left out.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn authorization_states(
        &self,
        ids: &[Id],
    ) -> Result<HashMap<Id, State>, StorageError> {
        // All but the token responses, which are large and not needed here.
        let columns = authorizations::Column::iter()
            .filter(|column| !matches!(column, authorizations::Column::Quarantine));
        let mut select = authorizations::Entity::find()
            .select_only()
            .columns(columns)
            .filter(authorizations::Column::Id.is_in(ids.iter().map(|id| id.as_bytes().to_vec())))
            .into_query();
        select
            .expr_as(Expr::value(Option::<Vec<u8>>::None), "quarantine")
            .expr_as(self.now_expr(), "now");
        let mut states = HashMap::with_capacity(ids.len());
        for row in self.db.query_all(&select).await? {
            let now = Timestamp::from_millis(row.try_get("", "now")?);
            let model = authorizations::Model::from_query_result(&row, "")?;
            let authorization = convert::authorization(model)?;
            states.insert(authorization.id, authorization.state_at(now));
        }
        Ok(states)
    }

    /// The newest authorization with these parameters whose link still works.
    async fn pending_on(
        &self,
        write: &Write,
        new: &NewAuthorization<'_>,
    ) -> Result<Option<Authorization>, StorageError> {
        authorizations::Entity::find()
            .filter(of_key(new.key))
            .filter(authorizations::Column::Bot.eq(new.bot.as_str()))
            .filter(authorizations::Column::Scopes.eq(new.scopes.to_string()))
            .filter(authorizations::Column::Options.eq(convert::options_to_json(new.options)))
            .filter(authorizations::Column::State.eq(PENDING))
            .filter(Expr::col(authorizations::Column::LinkExpiresAt).gt(self.now_expr()))
            .order_by_desc(authorizations::Column::LinkExpiresAt)
            .one(&**write)
            .await?
            .map(convert::authorization)
            .transpose()
    }

    /// The keys of a subject that an authorization is under way for.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn keys_under_way(
        &self,
        namespace: &Name,
        subject: &Subject,
        providers: &[Name],
    ) -> Result<Vec<GrantKey>, StorageError> {
        let open = authorizations::Entity::find()
            .filter(authorizations::Column::Namespace.eq(namespace.as_str()))
            .filter(authorizations::Column::Subject.eq(subject.as_str()))
            .filter(
                Condition::any()
                    .add(authorizations::Column::State.is_in([PENDING, EXCHANGING, AWAITING]))
                    .add(self.refused()),
            )
            .filter(authorizations::Column::Provider.is_in(providers.iter().map(Name::as_str)))
            .all(&self.db)
            .await?;
        open.into_iter().map(|model| Ok(convert::authorization(model)?.key)).collect()
    }

    /// Ends an exchange without tokens. Returns `false` if it was cancelled before.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn end_exchange(&self, id: Id, state: &State) -> Result<bool, StorageError> {
        self.end_from(id, EXCHANGING, state).await
    }

    /// Ends a pending authorization because of an error in a redirect. While its link works, another redirect can still
    /// complete it. Returns `false` if it was not pending.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn refuse_authorization(&self, id: Id, state: &State) -> Result<bool, StorageError> {
        self.end_from(id, PENDING, state).await
    }

    async fn end_from(&self, id: Id, from: &str, to: &State) -> Result<bool, StorageError> {
        let _turn = self.turn().await;
        let ended = self.ending(to).filter(in_state(id, &[from])).exec(&self.db).await?;
        Ok(ended.rows_affected > 0)
    }
}

/// Adds to an update that the token response goes, because it was dealt with.
fn without_quarantine(
    update: sea_orm::UpdateMany<authorizations::Entity>,
) -> sea_orm::UpdateMany<authorizations::Entity> {
    update.col_expr(authorizations::Column::Quarantine, Expr::value(Option::<Vec<u8>>::None))
}

fn place(authorization: &Authorization) -> Place<'_> {
    Place {
        table: AUTHORIZATIONS,
        column: "quarantine",
        row: authorization.id,
        key: &authorization.key,
    }
}

fn in_state(id: Id, states: &[&str]) -> Condition {
    Condition::all()
        .add(authorizations::Column::Id.eq(id.as_bytes().to_vec()))
        .add(authorizations::Column::State.is_in(states.iter().copied()))
}

fn of_key(key: &GrantKey) -> Condition {
    Condition::all()
        .add(authorizations::Column::Namespace.eq(key.namespace.as_str()))
        .add(authorizations::Column::Provider.eq(key.provider.as_str()))
        .add(authorizations::Column::Subject.eq(key.subject.as_str()))
        .add(authorizations::Column::Account.eq(key.account.as_str()))
}

impl StoreContext {
    /// The update that makes an authorization final; the caller adds which, and from which states.
    ///
    /// A token response that waits in it stays: see [`without_quarantine`].
    pub(super) fn ending(&self, state: &State) -> sea_orm::UpdateMany<authorizations::Entity> {
        let (error, description) = match state {
            State::Denied(failure) | State::Failed(failure) => {
                (Some(failure.error.clone()), Some(failure.description.clone()))
            }
            _ => (None, None),
        };
        authorizations::Entity::update_many()
            .col_expr(authorizations::Column::State, Expr::value(state.as_str()))
            .col_expr(authorizations::Column::Error, Expr::value(error))
            .col_expr(authorizations::Column::ErrorDescription, Expr::value(description))
            .col_expr(authorizations::Column::FinishedAt, self.now_expr())
            .col_expr(authorizations::Column::ExpiresAt, self.now_expr().add(millis(RETENTION)))
    }

    /// Authorizations that an error in a redirect ended, and that another redirect may still complete: anyone who has
    /// the link can forge an error.
    pub(super) fn refused(&self) -> Condition {
        Condition::all()
            .add(authorizations::Column::State.is_in([DENIED, FAILED]))
            .add(authorizations::Column::ExchangedAt.is_null())
            .add(
                Expr::col(authorizations::Column::LinkExpiresAt)
                    .add(millis(REDIRECT_GRACE))
                    .gt(self.now_expr()),
            )
    }
}
