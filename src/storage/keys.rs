//! Checks the keyring against the database, and gives up lost keys.

use sea_orm::sea_query::{Expr, ExprTrait, Func, Query};
use sea_orm::{
    ActiveValue::Set, ColumnTrait, Condition, ConnectionTrait, EntityTrait, FromQueryResult,
    QueryFilter, QuerySelect,
};

use super::connection::retry_conflicts;
use super::entity::{
    access_tokens, authorizations, encryption_keys, grants, revocations, superseded_tokens,
};
use super::grants::REAUTHORIZATION_REQUIRED;
use super::{KeyRegistry, StorageError, rows};
use crate::crypto::keyring::{Keyring, OpenError};
use crate::crypto::sealed::Place;
use crate::domain::authorization::{Failure, State};

/// The number of rows of a key that are opened to see whether the key is the right one.
const SAMPLE: u64 = 5;

/// Among how many rows, from a random one on, such rows are looked for.
const SAMPLED: u64 = 2000;

/// The number of rows that one statement looks at when a key is given up.
const BATCH: u64 = 200;

/// The result of comparing the keyring with the database.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyReport {
    /// Ids under which rows were sealed with another key than the one configured.
    pub wrong: Vec<String>,
    /// Ids of keys that have sealed rows and are not configured.
    pub missing: Vec<String>,
    /// Ids that are configured and were not used on this database before.
    pub new: Vec<String>,
}

/// The columns that opening a grant's refresh token needs, in every version of the schema.
#[derive(Debug, FromQueryResult)]
struct SealedGrant {
    id: Vec<u8>,
    namespace: String,
    provider: String,
    subject: String,
    account: String,
    refresh_token: Option<Vec<u8>>,
}

/// The rows that were given up with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Forgotten {
    /// Grants that need a new authorization.
    pub grants: u64,
    /// Authorizations that failed.
    pub authorizations: u64,
    /// Tokens that cannot be revoked at their provider.
    pub revocations: u64,
}

impl KeyRegistry {
    /// Compares the keyring with the keys that have sealed rows. InvalidationListener nothing.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn check_keys(&self) -> Result<KeyReport, StorageError> {
        let status = self.migration_status().await?;
        if status.applied.is_empty() {
            return Ok(KeyReport::default());
        }
        let recorded = match status.pending.is_empty() {
            true => encryption_keys::Entity::find().all(&self.db).await?,
            // Its table may be among what is missing.
            false => Vec::new(),
        };
        let mut report = KeyReport::default();
        for model in &recorded {
            match self.keyring.check_value(&model.id) {
                Some(value) if value[..] == model.check_value[..] => {}
                Some(_) => report.wrong.push(model.id.clone()),
                None => report.missing.push(model.id.clone()),
            }
        }
        for id in self.keyring.ids() {
            if recorded.iter().any(|model| model.id == id) {
                continue;
            }
            // Rows of a version that recorded no keys may be sealed under this id.
            match self.opens_rows_of(id).await? {
                false => report.wrong.push(id.to_owned()),
                true => report.new.push(id.to_owned()),
            }
        }
        Ok(report)
    }

    /// Records the keys of a report that are new, so that another key under the same id is noticed.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn record_keys(&self, report: &KeyReport) -> Result<(), StorageError> {
        let now = self.now().await?;
        for id in &report.new {
            let Some(value) = self.keyring.check_value(id) else { continue };
            let _turn = self.turn().await;
            encryption_keys::Entity::insert(encryption_keys::ActiveModel {
                id: Set(id.clone()),
                check_value: Set(value.to_vec()),
                created_at: Set(now.millis()),
            })
            .on_conflict_do_nothing()
            .exec_without_returning(&self.db)
            .await?;
        }
        Ok(())
    }

    /// Returns `false` if there are rows sealed under this id and none of a sample opens.
    ///
    /// A part of the table is looked at, for all of it would take long.
    async fn opens_rows_of(&self, id: &str) -> Result<bool, StorageError> {
        let start = self.random.id().as_bytes().to_vec();
        for from in [start, Vec::new()] {
            if let Some(opens) = self.sample_opens(id, from).await? {
                return Ok(opens);
            }
        }
        Ok(true)
    }

    /// Returns `None` if there are no such rows among those from an id on.
    async fn sample_opens(&self, id: &str, from: Vec<u8>) -> Result<Option<bool>, StorageError> {
        let mut part = Query::select();
        part.column(grants::Column::Id)
            .from(grants::Entity)
            .and_where(grants::Column::Id.gte(from))
            .order_by(grants::Column::Id, sea_orm::Order::Asc)
            .limit(SAMPLED);
        let sample: Vec<SealedGrant> = grants::Entity::find()
            .select_only()
            .columns([
                grants::Column::Id,
                grants::Column::Namespace,
                grants::Column::Provider,
                grants::Column::Subject,
                grants::Column::Account,
                grants::Column::RefreshToken,
            ])
            .filter(Expr::col(grants::Column::Id).in_subquery(part))
            .filter(sealed_under(grants::Column::RefreshToken, id))
            .limit(SAMPLE)
            .into_model()
            .all(&self.db)
            .await?;
        let opens = |model: &SealedGrant| {
            let key = rows::key(
                "grants",
                &model.namespace,
                &model.provider,
                &model.subject,
                &model.account,
            )
            .ok()?;
            let row = rows::id(&model.id).ok()?;
            let place = Place { table: "grants", column: "refresh_token", row, key: &key };
            let sealed = model.refresh_token.as_deref()?;
            Some(self.keyring.open(sealed, &place.aad()) != Err(OpenError::Forged))
        };
        if sample.is_empty() {
            return Ok(None);
        }
        Ok(Some(sample.iter().any(|model| opens(model) == Some(true))))
    }

    /// Gives up a key that is lost. Grants that it sealed need a new authorization; what it sealed is
    /// deleted. May be interrupted and repeated, and may run beside `serve`.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; what was done before stays done.
    pub async fn forget_key(&self, id: &str) -> Result<Forgotten, StorageError> {
        let mut forgotten = Forgotten::default();
        let mut after = Vec::new();
        while let Some(batch) = self.ids_after(grants::Column::Id, after).await? {
            forgotten.grants += retry_conflicts(|| self.forget_grants(&batch, id)).await?;
            after = batch.into_iter().next_back().unwrap_or_default();
        }
        let mut after = Vec::new();
        while let Some(batch) = self.ids_after(authorizations::Column::Id, after).await? {
            let failed = Failure::new("key_lost", "The sign-in has to be started again.");
            let _turn = self.turn().await;
            let failed = self
                .ending(&State::Failed(failed))
                .col_expr(authorizations::Column::Quarantine, Expr::value(Option::<Vec<u8>>::None))
                .filter(authorizations::Column::Id.is_in(batch.clone()))
                .filter(sealed_under(authorizations::Column::Quarantine, id))
                .exec(&self.db)
                .await?;
            forgotten.authorizations += failed.rows_affected;
            after = batch.into_iter().next_back().unwrap_or_default();
        }
        forgotten.revocations = self
            .delete_sealed::<revocations::Entity>(
                revocations::Column::Id,
                revocations::Column::Token,
                id,
            )
            .await?
            + self
                .delete_sealed::<superseded_tokens::Entity>(
                    superseded_tokens::Column::Id,
                    superseded_tokens::Column::Token,
                    id,
                )
                .await?;
        let _turn = self.turn().await;
        encryption_keys::Entity::delete_by_id(id).exec(&self.db).await?;
        Ok(forgotten)
    }

    /// Deletes rows whose token is sealed under a key. Returns their number.
    async fn delete_sealed<E: EntityTrait>(
        &self,
        id: E::Column,
        token: E::Column,
        key_id: &str,
    ) -> Result<u64, StorageError> {
        let mut deleted = 0;
        let mut after = Vec::new();
        while let Some(batch) = self.ids_after(id, after).await? {
            let _turn = self.turn().await;
            let delete = E::delete_many()
                .filter(id.is_in(batch.clone()))
                .filter(sealed_under(token, key_id));
            deleted += delete.exec(&self.db).await?.rows_affected;
            after = batch.into_iter().next_back().unwrap_or_default();
        }
        Ok(deleted)
    }

    /// The next ids of a table in their order. `None` at the end.
    async fn ids_after<C: ColumnTrait>(
        &self,
        id: C,
        after: Vec<u8>,
    ) -> Result<Option<Vec<Vec<u8>>>, StorageError> {
        let mut page = Query::select();
        page.expr_as(Expr::col(id), "id")
            .from(id.entity_name())
            .and_where(id.gt(after))
            .order_by(id, sea_orm::Order::Asc)
            .limit(BATCH);
        let ids = rows::ids(self.db.query_all(&page).await?)?;
        Ok((!ids.is_empty()).then_some(ids))
    }

    async fn forget_grants(&self, batch: &[Vec<u8>], id: &str) -> Result<u64, StorageError> {
        let write = self.begin().await?;
        let in_batch = || grants::Column::Id.is_in(batch.to_vec());
        let tokens = access_tokens::Entity::delete_many()
            .filter(access_tokens::Column::GrantId.is_in(batch.to_vec()))
            .filter(sealed_under(access_tokens::Column::AccessToken, id))
            .exec_with_returning(&*write)
            .await?;
        let none = || Expr::value(Option::<Vec<u8>>::None);
        let lost = Condition::any()
            .add(sealed_under(grants::Column::RefreshToken, id))
            // A grant without a refresh token ends with its access token.
            .add(
                Condition::all()
                    .add(grants::Column::RefreshToken.is_null())
                    .add(grants::Column::Id.is_in(tokens.into_iter().map(|token| token.grant_id))),
            );
        let changed = grants::Entity::update_many()
            .col_expr(grants::Column::State, Expr::value(REAUTHORIZATION_REQUIRED))
            .col_expr(grants::Column::LastError, Expr::value("key_lost"))
            .col_expr(grants::Column::RefreshToken, none())
            .col_expr(grants::Column::NextRefreshAt, Expr::value(Option::<i64>::None))
            .col_expr(grants::Column::IntentAt, Expr::value(Option::<i64>::None))
            .filter(in_batch())
            .filter(lost)
            .exec(&*write)
            .await?;
        for column in [grants::Column::FallbackRefreshToken, grants::Column::LastAnswer] {
            grants::Entity::update_many()
                .col_expr(column, none())
                .filter(in_batch())
                .filter(sealed_under(column, id))
                .exec(&*write)
                .await?;
        }
        write.commit().await?;
        Ok(changed.rows_affected)
    }
}

/// Compares the part of a sealed column that names its key.
fn sealed_under(column: impl ColumnTrait, id: &str) -> Expr {
    let header = Keyring::header(id);
    let length = i32::try_from(header.len()).unwrap_or(i32::MAX);
    Expr::expr(Func::cust("SUBSTR").args([Expr::col(column), Expr::value(1), Expr::value(length)]))
        .eq(header)
}
