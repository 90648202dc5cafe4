//! Puts tokens into the outbox, unless their revocation would end a living grant.

use std::time::Duration;

use sea_orm::sea_query::{Expr, ExprTrait, Query, SelectStatement};
use sea_orm::{ActiveModelTrait, ActiveValue::Set, ColumnTrait, ConnectionTrait};

use super::{ATTEMPT, REVOCATIONS, Revocation};
use crate::crypto::sealed::Place;
use crate::domain::grant::GrantKey;
use crate::domain::id::Id;
use crate::domain::name::Name;
use crate::domain::provider::RevocationReach;
use crate::domain::time::Timestamp;
use crate::domain::token::{DoomedToken, RawAnswer, TokenKind};
use crate::storage::entity::{authorizations, grants, revocations};
use crate::storage::{StorageError, StoreContext, Write};

/// The time for which the broker tries to revoke a token whose lifetime it does not know.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The disposal of one provider's tokens.
#[derive(Clone, Copy)]
pub struct Disposal<'a> {
    /// `true` if the provider has a way to revoke. Without one they are deleted alone.
    pub revocable: bool,
    /// The tokens that a revocation ends beside the one that it names.
    pub reach: RevocationReach,
    /// Reads the tokens of an answer that was never confirmed.
    pub read: &'a (dyn Fn(&RawAnswer, Timestamp) -> Vec<DoomedToken> + Send + Sync),
}

/// Tokens of one key for the outbox.
pub(in crate::storage) struct NewRevocations<'a> {
    pub(in crate::storage) key: &'a GrantKey,
    pub(in crate::storage) identity: &'a str,
    pub(in crate::storage) tokens: Vec<DoomedToken>,
    /// Tokens that no key of this process opens, to be kept as they are until one does.
    pub(in crate::storage) unopened: Vec<UnopenedToken>,
    pub(in crate::storage) first_attempt: FirstAttempt,
}

impl<'a> NewRevocations<'a> {
    /// Tokens that the outbox is to work on.
    pub(in crate::storage) fn of(key: &'a GrantKey, tokens: Vec<DoomedToken>) -> Self {
        let unopened = Vec::new();
        Self { key, identity: "", tokens, unopened, first_attempt: FirstAttempt::Outbox }
    }
}

/// A token for the outbox that cannot be opened: its key is missing, or is another one under the same id.
#[derive(Debug)]
pub(in crate::storage) struct UnopenedToken {
    pub(in crate::storage) kind: TokenKind,
    pub(in crate::storage) sealed: Vec<u8>,
    pub(in crate::storage) table: &'static str,
    pub(in crate::storage) column: &'static str,
    pub(in crate::storage) row: Id,
    pub(in crate::storage) expires_at: Option<Timestamp>,
}

/// The maker of the first attempt for a new entry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::storage) enum FirstAttempt {
    /// The caller, at once: the entries are claimed for it.
    Caller,
    /// The next worker on the outbox.
    Outbox,
}

impl StoreContext {
    /// Puts tokens without a grant into the outbox.
    ///
    /// While their key has a living grant, or one that is being exchanged or confirmed, they are
    /// deleted instead: at many providers a revocation reaches every token of the user and client
    /// (RFC 7009 section 2.1), and so would end that grant.
    pub(in crate::storage) async fn dispose(
        &self,
        write: &Write,
        new: NewRevocations<'_>,
        disposal: &Disposal<'_>,
    ) -> Result<Vec<Revocation>, StorageError> {
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
        // A revocation that the user asked for may end other grants of theirs. Whose tokens an unconfirmed
        // authorization has is unknown, so any grant at the provider may be that person's.
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
}

fn arriving() -> SelectStatement {
    let mut select = Query::select();
    select
        .expr(Expr::value(1))
        .from(authorizations::Entity)
        .and_where(authorizations::Column::State.is_in(["exchanging", "awaiting_confirmation"]));
    select
}

/// Selects an authorization of the key that has tokens, or is about to.
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
pub(super) fn arriving_grant_of_row() -> SelectStatement {
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

/// Selects a grant at the provider.
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

/// Selects the grant of the key.
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
