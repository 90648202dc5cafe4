//! Finds grants with work for the workers.

use std::time::Duration;

use sea_orm::sea_query::{Expr, ExprTrait, Query};
use sea_orm::{ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder, QuerySelect};

use super::refresh::{Takeover, of_version};
use super::{ACTIVE, GRANTS, convert};
use crate::domain::grant::Grant;
use crate::domain::id::Id;
use crate::domain::name::Name;
use crate::domain::time::{Timestamp, millis};
use crate::storage::entity::{grants, revocations};
use crate::storage::{GrantStore, StorageError, StoreContext, rows};

/// The time that the holder of a claim for a proactive refresh has. After it, or after a failure, the grant is looked
/// at again.
const LOOK: Duration = Duration::from_secs(60);

/// The providers at which there is work that is due.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DueWork {
    /// Grants to look at for a refresh ahead of time.
    pub refreshes: Vec<Name>,
    /// Tokens to revoke.
    pub revocations: Vec<Name>,
}

/// The refreshes in doubt to find.
#[derive(Debug, Clone, Copy)]
pub struct OpenIntents<'a> {
    /// Providers that accept a refresh token again for a while.
    pub with_grace: &'a [Name],
    /// Providers that do not.
    pub without_grace: &'a [Name],
    /// See [`Takeover::expected_now`].
    pub expected_now: Option<Timestamp>,
    /// See [`Takeover::holder_timeout`].
    pub holder_timeout: Duration,
    /// Grants to leave out.
    pub passed_over: &'a [Id],
    /// At most this many.
    pub limit: u64,
}

impl GrantStore {
    /// Finds refreshes in doubt whose lease has ended, and whose holder can no longer store an outcome: the oldest
    /// first.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn open_intents(&self, wanted: &OpenIntents<'_>) -> Result<Vec<Grant>, StorageError> {
        let at = |providers: &[Name], holder_timeout| {
            let takeover = Takeover { expected_now: wanted.expected_now, holder_timeout };
            Condition::all()
                .add(grants::Column::Provider.is_in(providers.iter().map(Name::as_str)))
                .add(self.abandoned(takeover))
        };
        let mut providers = Condition::any();
        if !wanted.with_grace.is_empty() {
            providers = providers.add(at(wanted.with_grace, None));
        }
        if !wanted.without_grace.is_empty() {
            providers = providers.add(at(wanted.without_grace, Some(wanted.holder_timeout)));
        }
        if providers.is_empty() {
            return Ok(Vec::new());
        }
        let passed_over = wanted.passed_over.iter().map(|id| id.as_bytes().to_vec());
        let found = grants::Entity::find()
            .filter(grants::Column::IntentAt.is_not_null())
            .filter(providers)
            .filter(grants::Column::Id.is_not_in(passed_over))
            .filter(grants::Column::State.eq(ACTIVE))
            .filter(self.lease_ended())
            .filter(self.past_or_absent(grants::Column::NextAttemptAt))
            .order_by_asc(grants::Column::IntentAt)
            .limit(wanted.limit)
            .all(&self.db)
            .await?;
        Ok(readable(found))
    }

    /// Finds out at which of these providers there is work that is due, in one statement.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn due_work(&self, providers: &[Name]) -> Result<DueWork, StorageError> {
        use sea_orm::ConnectionTrait;

        let mut due = DueWork::default();
        if providers.is_empty() {
            return Ok(due);
        }
        let provider = || Expr::col(("configured", "column1"));
        let mut refreshes = Query::select();
        refreshes
            .expr(Expr::value(1))
            .from(grants::Entity)
            .and_where(Expr::col((grants::Entity, grants::Column::Provider)).eq(provider()))
            .and_where(Expr::col(grants::Column::NextRefreshAt).lte(self.now_once()))
            // In the order of the index and with an OFFSET, or PostgreSQL may read the whole table.
            .order_by(grants::Column::NextRefreshAt, sea_orm::Order::Asc)
            .limit(1)
            .offset(0);
        let mut entries = Query::select();
        entries
            .expr(Expr::value(1))
            .from(revocations::Entity)
            .and_where(
                Expr::col((revocations::Entity, revocations::Column::Provider)).eq(provider()),
            )
            .and_where(Expr::col(revocations::Column::NextAttemptAt).lte(self.now_once()))
            .order_by(revocations::Column::NextAttemptAt, sea_orm::Order::Asc)
            .limit(1)
            .offset(0);
        let mut select = Query::select();
        select
            .expr_as(provider(), "provider")
            .expr_as(Expr::exists(refreshes.clone()), "refreshes")
            .expr_as(Expr::exists(entries.clone()), "revocations")
            .from_values(providers.iter().map(Name::as_str), "configured")
            .cond_where(Condition::any().add(Expr::exists(refreshes)).add(Expr::exists(entries)));
        for row in self.db.query_all(&select).await? {
            let provider: String = row.try_get("", "provider")?;
            let Ok(provider) = Name::parse(&provider) else { continue };
            if row.try_get("", "refreshes")? {
                due.refreshes.push(provider.clone());
            }
            if row.try_get("", "revocations")? {
                due.revocations.push(provider);
            }
        }
        Ok(due)
    }

    /// Claims up to `limit` grants of a provider that are due for a look, so that no other replica gets
    /// them for 60 s.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn claim_due(&self, provider: &Name, limit: u64) -> Result<Vec<Grant>, StorageError> {
        let mut ids = Query::select();
        ids.column(grants::Column::Id)
            .from(grants::Entity)
            .and_where(grants::Column::Provider.eq(provider.as_str()))
            .and_where(Expr::col(grants::Column::NextRefreshAt).lte(self.now_once()))
            .and_where(grants::Column::State.eq(ACTIVE))
            .order_by(grants::Column::NextRefreshAt, sea_orm::Order::Asc)
            .limit(limit);
        let update = grants::Entity::update_many()
            .col_expr(grants::Column::NextRefreshAt, self.now_expr().add(millis(LOOK)));
        Ok(readable(self.claim(&ids, grants::Column::Id, &update).await?))
    }

    /// Makes grants at these providers due for a look that were to be looked at only after their next
    /// use, among `limit` grants of any provider after the one named. Returns the last of those, or
    /// `None` at the end.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn look_at_all(
        &self,
        providers: &[Name],
        after: Option<Id>,
        limit: u64,
    ) -> Result<Option<Id>, StorageError> {
        let mut page = grants::Entity::find().order_by_asc(grants::Column::Id).limit(limit);
        if let Some(after) = after {
            page = page.filter(grants::Column::Id.gt(after.as_bytes().to_vec()));
        }
        let page: Vec<(Vec<u8>, String, Option<i64>, String)> = page
            .select_only()
            .columns([
                grants::Column::Id,
                grants::Column::Provider,
                grants::Column::NextRefreshAt,
                grants::Column::State,
            ])
            .into_tuple()
            .all(&self.db)
            .await?;
        let last = page.last().map(|(id, ..)| rows::id(id)).transpose()?;
        let of = |provider: &str| providers.iter().any(|name| name.as_str() == provider);
        let unlooked: Vec<_> = page
            .into_iter()
            .filter(|(_, provider, at, state)| of(provider) && at.is_none() && state == ACTIVE)
            .map(|(id, ..)| id)
            .collect();
        if unlooked.is_empty() {
            return Ok(last);
        }
        let _turn = self.turn().await;
        grants::Entity::update_many()
            .col_expr(grants::Column::NextRefreshAt, self.now_expr())
            .filter(grants::Column::Id.is_in(unlooked))
            .filter(grants::Column::NextRefreshAt.is_null())
            .filter(grants::Column::RefreshToken.is_not_null())
            .filter(grants::Column::State.eq(ACTIVE))
            .exec(&self.db)
            .await?;
        Ok(last)
    }

    /// Sets the time of the next look at a claimed grant. `None`: not before its next use. Has no effect if the grant
    /// was refreshed in between, which sets the time itself.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; it is then looked at when the claim ends.
    pub async fn look_again(
        &self,
        grant: &Grant,
        at: Option<Timestamp>,
    ) -> Result<(), StorageError> {
        let _turn = self.turn().await;
        grants::Entity::update_many()
            .col_expr(grants::Column::NextRefreshAt, Expr::value(at.map(Timestamp::millis)))
            .filter(of_version(grant.id, grant.version))
            // A use that was written down since the claim has made it due again.
            .filter(match grant.last_used_at {
                Some(at) => grants::Column::LastUsedAt.eq(at.millis()),
                None => grants::Column::LastUsedAt.is_null(),
            })
            .exec(&self.db)
            .await?;
        Ok(())
    }

    /// Writes down that grants were used, once for each access token of theirs, and has those looked at
    /// that were let go.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn note_used(&self, used: &[Id]) -> Result<(), StorageError> {
        let unwritten = Condition::any()
            .add(grants::Column::LastUsedAt.is_null())
            .add(Expr::col(grants::Column::LastUsedAt).lt(Expr::col(grants::Column::IssuedAt)));
        let _turn = self.turn().await;
        grants::Entity::update_many()
            .col_expr(grants::Column::LastUsedAt, self.now_expr())
            .col_expr(
                grants::Column::NextRefreshAt,
                Expr::col(grants::Column::NextRefreshAt).if_null(self.now_expr()),
            )
            .filter(grants::Column::Id.is_in(used.iter().map(|id| id.as_bytes().to_vec())))
            .filter(grants::Column::RefreshToken.is_not_null())
            .filter(grants::Column::State.eq(ACTIVE))
            .filter(unwritten)
            .exec(&self.db)
            .await?;
        Ok(())
    }
}

/// The grants that can be read; one that cannot must not keep the others from their turn.
fn readable(models: Vec<grants::Model>) -> Vec<Grant> {
    let read = models.into_iter().filter_map(|model| {
        let key =
            rows::key(GRANTS, &model.namespace, &model.provider, &model.subject, &model.account);
        match key.and_then(|key| convert::grant(model, key)) {
            Ok(grant) => Some(grant),
            Err(error) => {
                tracing::error!(%error, "cannot read a grant");
                None
            }
        }
    });
    read.collect()
}

impl StoreContext {
    pub(in crate::storage) fn past_or_absent(&self, column: grants::Column) -> Condition {
        Condition::any().add(column.is_null()).add(Expr::col(column).lt(self.now_once()))
    }
}
