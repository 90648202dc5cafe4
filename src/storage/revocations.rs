//! The outbox: tokens that are still to be revoked at their provider.

use std::time::Duration;

use sea_orm::sea_query::{Expr, ExprTrait, Query, SelectStatement};
use sea_orm::{ActiveModelTrait, ActiveValue::Set, ColumnTrait, EntityTrait, QueryFilter};
use secrecy::SecretString;

use super::connection::retry_conflicts;
use super::entity::{authorizations, grants, revocations};
use super::{Storage, StorageError, Write, rows};
use crate::crypto::sealed::Place;
use crate::domain::grant::GrantKey;
use crate::domain::id::Id;
use crate::domain::name::Name;
use crate::domain::provider::RevocationReach;
use crate::domain::time::{Timestamp, millis};
use crate::domain::token::{DoomedToken, RawAnswer, TokenKind};

const REVOCATIONS: &str = "revocations";

/// How long whoever claimed an entry has for one attempt before another may try.
const ATTEMPT: Duration = Duration::from_secs(15);

/// How long an entry waits that does not open.
const UNREADABLE: Duration = Duration::from_secs(60 * 60);

/// How many entries whose time is up are removed at a time.
const ENDED: u64 = 1000;

/// How long the broker goes on trying for a token whose lifetime it does not know.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How tokens of one provider are disposed of.
#[derive(Clone, Copy)]
pub struct Disposal<'a> {
    /// Whether the provider has a way to revoke. Without one they are deleted alone.
    pub revocable: bool,
    /// What a revocation ends there besides the token.
    pub reach: RevocationReach,
    /// Reads the tokens of an answer that was never confirmed.
    pub read: &'a (dyn Fn(&RawAnswer, Timestamp) -> Vec<DoomedToken> + Send + Sync),
}

/// An entry of the outbox, claimed for one attempt.
#[derive(Debug, Clone)]
pub struct Revocation {
    /// The row.
    pub id: Id,
    /// Whose token it was; tells the provider.
    pub key: GrantKey,
    /// Which of the two.
    pub kind: TokenKind,
    /// The token.
    pub token: SecretString,
    /// Attempts so far, this one included.
    pub attempts: u32,
}

/// Tokens of one key that are to be revoked.
pub(super) struct NewRevocations<'a> {
    pub(super) key: &'a GrantKey,
    pub(super) identity: &'a str,
    pub(super) tokens: Vec<DoomedToken>,
    /// Tokens that no key of this process opens, to be kept as they are until one does.
    pub(super) unopened: Vec<UnopenedToken>,
    pub(super) first_attempt: FirstAttempt,
}

impl<'a> NewRevocations<'a> {
    /// Tokens that the outbox is to work on.
    pub(super) fn of(key: &'a GrantKey, tokens: Vec<DoomedToken>) -> Self {
        let unopened = Vec::new();
        Self { key, identity: "", tokens, unopened, first_attempt: FirstAttempt::Outbox }
    }
}

/// A token that is to be revoked and does not open: its key is not here, or is another one under the
/// same id.
#[derive(Debug)]
pub(super) struct UnopenedToken {
    pub(super) kind: TokenKind,
    pub(super) sealed: Vec<u8>,
    pub(super) table: &'static str,
    pub(super) column: &'static str,
    pub(super) row: Id,
    pub(super) expires_at: Option<Timestamp>,
}

/// The places that unopened tokens come from, as [`Place`] names them.
const ORIGINS: [(&str, &str); 3] = [
    ("grants", "refresh_token"),
    ("grants", "fallback_refresh_token"),
    ("access_tokens", "access_token"),
];

/// Who makes the first attempt for a new entry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum FirstAttempt {
    /// The caller, at once: the entries are claimed for it.
    Caller,
    /// Whoever works on the outbox next.
    Outbox,
}

impl Storage {
    /// Puts tokens without a grant into the outbox.
    ///
    /// While their key has a living grant, or one that is being exchanged or confirmed, they are
    /// deleted instead: at many providers a revocation reaches every token of the user and client
    /// (RFC 7009 section 2.1), and so would end that grant.
    pub(super) async fn dispose(
        &self,
        write: &Write,
        new: NewRevocations<'_>,
        disposal: &Disposal<'_>,
    ) -> Result<Vec<Revocation>, StorageError> {
        use sea_orm::ConnectionTrait;

        if !disposal.revocable || (new.tokens.is_empty() && new.unopened.is_empty()) {
            return Ok(Vec::new());
        }
        // In this order: a key moves from arriving to living, and on PostgreSQL each statement sees
        // what was committed before it.
        let mut obstacles = match disposal.reach {
            RevocationReach::Token => Vec::new(),
            RevocationReach::Grant | RevocationReach::UserClient => {
                vec![arriving_grant_exists(new.key), living_grant_exists(new.key)]
            }
        };
        // The user's own wish reaches as far as it reaches. But of tokens that nobody confirmed it
        // is not known whose they are, so any grant there may be that person's.
        let unasked = new.first_attempt == FirstAttempt::Outbox;
        if disposal.reach == RevocationReach::UserClient && unasked {
            obstacles.push(any_grant_exists(&new.key.provider));
        }
        for obstacle in obstacles {
            if write.query_one(&obstacle).await?.is_some() {
                return Ok(Vec::new());
            }
        }
        let now = self.now_on(write).await?;
        let (attempts, next_attempt_at, claimed_until) = match new.first_attempt {
            FirstAttempt::Caller => (1, now + ATTEMPT, Some(now + ATTEMPT)),
            FirstAttempt::Outbox => (0, now, None),
        };
        let mut entries = Vec::with_capacity(new.tokens.len());
        let row = |id: Id, kind: TokenKind, sealed, expires_at: Option<Timestamp>| {
            revocations::ActiveModel {
                id: Set(id.as_bytes().to_vec()),
                created_at: Set(now.millis()),
                namespace: Set(new.key.namespace.to_string()),
                provider: Set(new.key.provider.to_string()),
                subject: Set(new.key.subject.as_str().to_owned()),
                account: Set(new.key.account.as_str().to_owned()),
                identity: Set(new.identity.to_owned()),
                kind: Set(kind.as_str().to_owned()),
                token: Set(sealed),
                attempts: Set(i64::from(attempts)),
                next_attempt_at: Set(next_attempt_at.millis()),
                claimed_until: Set(claimed_until.map(Timestamp::millis)),
                expires_at: Set(expires_at.unwrap_or(now + LONGEST).millis()),
                last_error: Set(None),
                sealed_table: Set(None),
                sealed_column: Set(None),
                sealed_row: Set(None),
            }
        };
        for token in new.unopened {
            let mut row = row(self.random.id(), token.kind, token.sealed, token.expires_at);
            row.next_attempt_at = Set(now.millis());
            row.claimed_until = Set(None);
            row.sealed_table = Set(Some(token.table.to_owned()));
            row.sealed_column = Set(Some(token.column.to_owned()));
            row.sealed_row = Set(Some(token.row.as_bytes().to_vec()));
            row.insert(&**write).await?;
        }
        for token in new.tokens {
            let id = self.random.id();
            let place = Place { table: REVOCATIONS, column: "token", row: id, key: new.key };
            let sealed = self.seal(place, &token.value);
            row(id, token.kind, sealed, token.expires_at).insert(&**write).await?;
            entries.push(Revocation {
                id,
                key: new.key.clone(),
                kind: token.kind,
                token: token.value,
                attempts,
            });
        }
        Ok(entries)
    }

    /// Claims entries of a provider that are due, each for one attempt. Entries wait while an authorization of
    /// their key is being exchanged or confirmed; those whose token has ended by itself are gone.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn claim_revocations(
        &self,
        provider: &Name,
        limit: u64,
    ) -> Result<Vec<Revocation>, StorageError> {
        let models = retry_conflicts(|| self.claim_entries(provider, limit)).await?;
        let mut entries = Vec::with_capacity(models.len());
        for model in models {
            match self.revocation(&model) {
                Ok(entry) => entries.push(entry),
                // One unreadable row must not keep the others from their turn, nor come back at once.
                Err(error) => {
                    tracing::error!(%error, "cannot read an entry of the outbox; trying in an hour");
                    let id = rows::id(&model.id)?;
                    self.postpone_revocation(id, UNREADABLE, "cannot be opened").await?;
                }
            }
        }
        Ok(entries)
    }

    async fn claim_entries(
        &self,
        provider: &Name,
        limit: u64,
    ) -> Result<Vec<revocations::Model>, StorageError> {
        let now = self.now_expr();
        let mut ids = Query::select();
        ids.column(revocations::Column::Id)
            .from(revocations::Entity)
            .and_where(Expr::col(revocations::Column::NextAttemptAt).lte(self.now_once()))
            .and_where(revocations::Column::Provider.eq(provider.as_str()))
            .and_where(Expr::col(revocations::Column::ExpiresAt).gt(self.now_once()))
            .and_where(Expr::not_exists(arriving_grant_of_row()))
            .order_by(revocations::Column::NextAttemptAt, sea_orm::Order::Asc)
            .limit(limit);
        let Some((write, ids)) = self.begin_claim(ids).await? else { return Ok(Vec::new()) };
        let models = revocations::Entity::update_many()
            .col_expr(revocations::Column::NextAttemptAt, now.clone().add(millis(ATTEMPT)))
            .col_expr(revocations::Column::ClaimedUntil, now.add(millis(ATTEMPT)))
            .col_expr(
                revocations::Column::Attempts,
                Expr::col(revocations::Column::Attempts).add(1_i64),
            )
            .filter(revocations::Column::Id.is_in(ids))
            .exec_with_returning(&*write)
            .await?;
        write.commit().await?;
        Ok(models)
    }

    /// Removes up to 1000 entries whose token has ended by itself, those of providers that are not
    /// configured any more among them. Returns how many it removed.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn forget_ended_revocations(&self) -> Result<u64, StorageError> {
        // By id: PostgreSQL takes the comparison with its clock for one that a third of the rows passes.
        let mut ids = Query::select();
        ids.column(revocations::Column::Id)
            .from(revocations::Entity)
            .and_where(Expr::col(revocations::Column::ExpiresAt).lte(self.now_once()))
            .order_by(revocations::Column::ExpiresAt, sea_orm::Order::Asc)
            .limit(ENDED);
        let _turn = self.turn().await;
        let forgotten = revocations::Entity::delete_many()
            .filter(Expr::col(revocations::Column::Id).in_subquery(ids))
            .exec(&self.db)
            .await?;
        Ok(forgotten.rows_affected)
    }

    fn revocation(&self, model: &revocations::Model) -> Result<Revocation, StorageError> {
        let key = rows::key(
            REVOCATIONS,
            &model.namespace,
            &model.provider,
            &model.subject,
            &model.account,
        )?;
        let id = rows::id(&model.id)?;
        let token = self.open(origin(model, id, &key)?, &model.token)?;
        let kind = match model.kind.as_str() {
            "access_token" => TokenKind::Access,
            "refresh_token" => TokenKind::Refresh,
            other => return Err(StorageError::damaged(REVOCATIONS, format!("kind {other:?}"))),
        };
        let attempts = u32::try_from(model.attempts).unwrap_or(u32::MAX);
        Ok(Revocation { id, key, kind, token, attempts })
    }

    /// Removes an entry that the provider has confirmed.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; the entry is then tried again.
    pub async fn finish_revocation(&self, id: Id) -> Result<(), StorageError> {
        let _turn = self.turn().await;
        revocations::Entity::delete_by_id(id.as_bytes().to_vec()).exec(&self.db).await?;
        Ok(())
    }

    /// Puts an entry off until `wait` from now.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; the entry is then tried again when its claim ends.
    pub async fn postpone_revocation(
        &self,
        id: Id,
        wait: Duration,
        reason: &str,
    ) -> Result<(), StorageError> {
        let _turn = self.turn().await;
        revocations::Entity::update_many()
            .col_expr(revocations::Column::NextAttemptAt, self.now_expr().add(millis(wait)))
            .col_expr(revocations::Column::ClaimedUntil, Expr::value(Option::<i64>::None))
            .col_expr(revocations::Column::LastError, Expr::value(reason))
            .filter(revocations::Column::Id.eq(id.as_bytes().to_vec()))
            .exec(&self.db)
            .await?;
        Ok(())
    }

    /// Whether a token of the key may be on its way to the provider at this moment.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn revoking(&self, key: &GrantKey) -> Result<bool, StorageError> {
        let claimed = revocations::Entity::find()
            .filter(revocations::Column::Namespace.eq(key.namespace.as_str()))
            .filter(revocations::Column::Provider.eq(key.provider.as_str()))
            .filter(revocations::Column::Subject.eq(key.subject.as_str()))
            .filter(revocations::Column::Account.eq(key.account.as_str()))
            .filter(Expr::col(revocations::Column::ClaimedUntil).gt(self.now_expr()))
            .one(&self.db)
            .await?;
        Ok(claimed.is_some())
    }

    /// Drops the entries of a key that has just been authorized anew, for revoking an old token
    /// could end the new grant.
    pub(super) async fn drop_revocations(
        &self,
        write: &Write,
        key: &GrantKey,
    ) -> Result<(), StorageError> {
        revocations::Entity::delete_many()
            .filter(revocations::Column::Namespace.eq(key.namespace.as_str()))
            .filter(revocations::Column::Provider.eq(key.provider.as_str()))
            .filter(revocations::Column::Subject.eq(key.subject.as_str()))
            .filter(revocations::Column::Account.eq(key.account.as_str()))
            .exec(&**write)
            .await?;
        Ok(())
    }

    /// How many entries wait.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn count_revocations(&self) -> Result<u64, StorageError> {
        use sea_orm::PaginatorTrait;

        Ok(revocations::Entity::find().count(&self.db).await?)
    }
}

/// What an entry's token is sealed for: its own row, or the row that it was taken from unopened.
fn origin<'a>(
    model: &revocations::Model,
    id: Id,
    key: &'a GrantKey,
) -> Result<Place<'a>, StorageError> {
    let (Some(table), Some(column), Some(row)) =
        (&model.sealed_table, &model.sealed_column, &model.sealed_row)
    else {
        return Ok(Place { table: REVOCATIONS, column: "token", row: id, key });
    };
    let (table, column) = ORIGINS
        .into_iter()
        .find(|origin| *origin == (table.as_str(), column.as_str()))
        .ok_or_else(|| StorageError::damaged(REVOCATIONS, "sealed for an unknown place"))?;
    Ok(Place { table, column, row: rows::id(row)?, key })
}

fn arriving() -> SelectStatement {
    let mut select = Query::select();
    select
        .expr(Expr::value(1))
        .from(authorizations::Entity)
        .and_where(authorizations::Column::State.is_in(["exchanging", "awaiting_confirmation"]));
    select
}

/// Whether an authorization of the key has tokens, or is about to.
fn arriving_grant_exists(key: &GrantKey) -> SelectStatement {
    let mut select = arriving();
    select
        .and_where(authorizations::Column::Namespace.eq(key.namespace.as_str()))
        .and_where(authorizations::Column::Provider.eq(key.provider.as_str()))
        .and_where(authorizations::Column::Subject.eq(key.subject.as_str()))
        .and_where(authorizations::Column::Account.eq(key.account.as_str()));
    select
}

/// The same for the outbox row of the statement around it.
fn arriving_grant_of_row() -> SelectStatement {
    use authorizations::Column as A;
    use revocations::Column as R;

    let mut select = arriving();
    let pairs = [
        (A::Namespace, R::Namespace),
        (A::Provider, R::Provider),
        (A::Subject, R::Subject),
        (A::Account, R::Account),
    ];
    for (theirs, ours) in pairs {
        select.and_where(
            Expr::col((authorizations::Entity, theirs)).equals((revocations::Entity, ours)),
        );
    }
    // Keeps PostgreSQL from reading the whole table once instead of a few rows by their index.
    select.limit(1).offset(0);
    select
}

/// Whether anybody has a grant at the provider.
fn any_grant_exists(provider: &Name) -> SelectStatement {
    let mut select = Query::select();
    select
        .expr(Expr::value(1))
        .from(grants::Entity)
        .and_where(grants::Column::Provider.eq(provider.as_str()))
        // By the index: it may be that only the last row of the table is one.
        .order_by(grants::Column::NextRefreshAt, sea_orm::Order::Asc)
        .limit(1);
    select
}

/// Whether the key has a grant.
fn living_grant_exists(key: &GrantKey) -> SelectStatement {
    let mut select = Query::select();
    select
        .expr(Expr::value(1))
        .from(grants::Entity)
        .and_where(grants::Column::Namespace.eq(key.namespace.as_str()))
        .and_where(grants::Column::Provider.eq(key.provider.as_str()))
        .and_where(grants::Column::Subject.eq(key.subject.as_str()))
        .and_where(grants::Column::Account.eq(key.account.as_str()));
    select
}
