//! Authorizations, from Authorize to their final state.

mod confirm;
mod convert;
mod sweep;

use std::time::Duration;

use super::entity::{authorization_attempts, authorizations};
use super::revocations::{Disposal, NewRevocations};
use super::{Storage, StorageError, Write};
use crate::crypto::sealed::Place;
use crate::domain::authorization::{
    Authorization, EXCHANGE_LIMIT, Failure, MAX_REFUSED_CODES, Options, REDIRECT_GRACE, RETENTION,
    State,
};
use crate::domain::grant::{GrantKey, Subject};
use crate::domain::id::Id;
use crate::domain::identity::Identity;
use crate::domain::name::Name;
use crate::domain::scope::Scopes;
use crate::domain::time::{Timestamp, millis};
use crate::domain::token::{DoomedToken, RawAnswer};
use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, Condition, ConnectionTrait, EntityTrait,
    FromQueryResult, QueryFilter, QueryOrder, QueryTrait,
};

pub use confirm::Awaiting;

const AUTHORIZATIONS: &str = "authorizations";
const PENDING: &str = "pending";
const EXCHANGING: &str = "exchanging";
const AWAITING: &str = "awaiting_confirmation";
const AUTHORIZATION_CODE: &str = "authorization_code";

/// What Authorize asks for.
#[derive(Debug)]
pub struct NewAuthorization<'a> {
    /// The grant that it will leave.
    pub key: &'a GrantKey,
    /// Who asks.
    pub bot: &'a Name,
    /// For what.
    pub scopes: &'a Scopes,
    /// How.
    pub options: &'a Options,
    /// How long the start link works.
    pub link_ttl: Duration,
}

/// An authorization as it was read.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The authorization.
    pub authorization: Authorization,
    /// The keyed hash of its confirmation code, once it has one. Stays after the confirmation.
    pub code_hash: Option<Vec<u8>>,
    /// When it was read, on the database's clock.
    pub now: Timestamp,
}

/// What came back for a code.
#[derive(Debug, Clone, Copy)]
pub struct Answered<'a> {
    /// The token answer.
    pub answer: &'a RawAnswer,
    /// Who consented.
    pub identity: &'a Identity,
    /// When the code was sent: lifetimes in the answer count from then.
    pub exchanged_at: Timestamp,
}

/// What became of a redirect that was to be exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// It is its turn. Lifetimes in the answer count from this time.
    Now(Timestamp),
    /// It had arrived before.
    Before,
    /// The authorization no longer waits for a redirect.
    Closed,
}

impl Seen {
    /// The state when it was read.
    #[must_use]
    pub fn state(&self) -> State {
        self.authorization.state_at(self.now)
    }
}

impl Storage {
    /// Begins an authorization.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn insert_authorization(
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
        let write = self.begin().await?;
        let pending = self.pending_on(&write, new.key, new.bot).await?;
        let same = pending
            .into_iter()
            .find(|pending| pending.scopes == *new.scopes && pending.options == *new.options);
        if let Some(same) = same {
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
    ) -> Result<Option<Seen>, StorageError> {
        let mut find = authorizations::Entity::find_by_id(id.as_bytes().to_vec());
        if let Some(namespace) = namespace {
            find = find.filter(authorizations::Column::Namespace.eq(namespace.as_str()));
        }
        let mut select = find.into_query();
        select.expr_as(self.now_expr(), "now");
        let Some(row) = self.db.query_one(&select).await? else { return Ok(None) };
        let model = authorizations::Model::from_query_result(&row, "")?;
        Ok(Some(Seen {
            code_hash: model.confirmation_code_hash.clone(),
            authorization: convert::authorization(model)?,
            now: Timestamp::from_millis(row.try_get("", "now")?),
        }))
    }

    /// The authorizations of a key and bot whose link still works, the newest first.
    async fn pending_on(
        &self,
        write: &Write,
        key: &GrantKey,
        bot: &Name,
    ) -> Result<Vec<Authorization>, StorageError> {
        authorizations::Entity::find()
            .filter(of_key(key))
            .filter(authorizations::Column::Bot.eq(bot.as_str()))
            .filter(authorizations::Column::State.eq(PENDING))
            .filter(Expr::col(authorizations::Column::LinkExpiresAt).gt(self.now_expr()))
            .order_by_desc(authorizations::Column::LinkExpiresAt)
            .all(&**write)
            .await?
            .into_iter()
            .map(convert::authorization)
            .collect()
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
            .filter(authorizations::Column::State.is_in([PENDING, EXCHANGING, AWAITING]))
            .filter(authorizations::Column::Provider.is_in(providers.iter().map(Name::as_str)))
            .all(&self.db)
            .await?;
        open.into_iter().map(|model| Ok(convert::authorization(model)?.key)).collect()
    }

    /// Records that an attempt's redirect has arrived, and that it is not used any further. False
    /// where it had arrived before.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; then the redirect must not be used.
    pub async fn use_attempt(&self, id: Id, salt: &[u8]) -> Result<bool, StorageError> {
        let write = self.begin().await?;
        let first = self.insert_attempt(&write, id, salt).await?;
        if first {
            write.commit().await?;
        }
        Ok(first)
    }

    /// Takes a redirect: records that its attempt has arrived, and that from here on its code may
    /// have been sent, in one transaction, so that whoever loads the same page at the same time
    /// finds the one with the other.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; then the code must not be sent.
    pub async fn begin_exchange(&self, id: Id, salt: &[u8]) -> Result<Begun, StorageError> {
        let write = self.begin().await?;
        if !self.insert_attempt(&write, id, salt).await? {
            return Ok(Begun::Before);
        }
        let now = self.now_expr();
        let begun = authorizations::Entity::update_many()
            .col_expr(authorizations::Column::State, Expr::value(EXCHANGING))
            .col_expr(authorizations::Column::ExchangedAt, now.clone())
            .col_expr(authorizations::Column::ExpiresAt, now.clone().add(millis(EXCHANGE_LIMIT)))
            .filter(in_state(id, &[PENDING]))
            .filter(Expr::col(authorizations::Column::ExpiresAt).gt(now))
            .exec_with_returning(&*write)
            .await?;
        write.commit().await?;
        let exchanged_at = begun.into_iter().next().and_then(|model| model.exchanged_at);
        Ok(exchanged_at.map_or(Begun::Closed, |at| Begun::Now(Timestamp::from_millis(at))))
    }

    /// False where the attempt is there already; the transaction is then of no more use.
    async fn insert_attempt(
        &self,
        write: &Write,
        id: Id,
        salt: &[u8],
    ) -> Result<bool, StorageError> {
        let now = self.now_on(write).await?;
        let inserted = authorization_attempts::ActiveModel {
            authorization_id: Set(id.as_bytes().to_vec()),
            salt: Set(salt.to_vec()),
            used_at: Set(now.millis()),
        }
        .insert(&**write)
        .await
        .map_err(StorageError::from);
        match inserted {
            Ok(_) => Ok(true),
            Err(error) if error.is_unique_violation() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Disposes of an answer that cannot be used, or that nobody waits for any more.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; then the answer is still to be disposed of.
    pub async fn discard_answer(
        &self,
        authorization: &Authorization,
        answer: &RawAnswer,
        exchanged_at: Timestamp,
        disposal: &Disposal<'_>,
    ) -> Result<(), StorageError> {
        let tokens = (disposal.read)(answer, exchanged_at);
        let write = self.begin().await?;
        let new = NewRevocations::of(&authorization.key, tokens);
        self.dispose(&write, new, disposal).await?;
        write.commit().await
    }

    /// The provider refused the code: the authorization waits again, or fails after too many.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn refuse_code(&self, id: Id, failure: &Failure) -> Result<(), StorageError> {
        let write = self.begin().await?;
        let refused = authorizations::Entity::update_many()
            .col_expr(authorizations::Column::State, Expr::value(PENDING))
            .col_expr(
                authorizations::Column::RefusedCodes,
                Expr::col(authorizations::Column::RefusedCodes).add(1_i64),
            )
            .col_expr(
                authorizations::Column::ExpiresAt,
                Expr::col(authorizations::Column::LinkExpiresAt).add(millis(REDIRECT_GRACE)),
            )
            .filter(in_state(id, &[EXCHANGING]))
            .exec_with_returning(&*write)
            .await?;
        let too_often = refused
            .first()
            .is_some_and(|model| model.refused_codes >= i64::from(MAX_REFUSED_CODES));
        if too_often {
            let end = self.ending(&State::Failed(failure.clone()));
            end.filter(in_state(id, &[PENDING])).exec(&*write).await?;
        }
        write.commit().await
    }

    /// Ends an exchange or a pending authorization without tokens. False where it has gone another
    /// way meanwhile.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn end_authorization(&self, id: Id, state: &State) -> Result<bool, StorageError> {
        let _turn = self.turn().await;
        let ended =
            self.ending(state).filter(in_state(id, &[PENDING, EXCHANGING])).exec(&self.db).await?;
        Ok(ended.rows_affected > 0)
    }

    /// Seals a token answer before it is understood: it may be the only copy. Where the process ends
    /// now, the sweep disposes of its tokens. False where the authorization was cancelled meanwhile;
    /// then nothing is stored.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; then the answer is still to be stored.
    pub async fn hold_answer(
        &self,
        authorization: &Authorization,
        answer: &RawAnswer,
    ) -> Result<bool, StorageError> {
        let sealed = self.seal_answer(place(authorization), answer);
        let _turn = self.turn().await;
        let held = authorizations::Entity::update_many()
            .col_expr(authorizations::Column::Quarantine, Expr::value(sealed))
            .filter(in_state(authorization.id, &[EXCHANGING]))
            .exec(&self.db)
            .await?;
        Ok(held.rows_affected > 0)
    }

    /// Stores a token answer, sealed, until the code from the result page arrives. Where the
    /// authorization was cancelled meanwhile, its tokens are disposed of and this is false.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; then the answer is still to be stored.
    pub async fn quarantine(
        &self,
        authorization: &Authorization,
        answered: Answered<'_>,
        code_hash: &[u8],
        confirmation_ttl: Duration,
        disposal: &Disposal<'_>,
    ) -> Result<bool, StorageError> {
        let Answered { answer, identity, exchanged_at } = answered;
        let sealed = self.seal_answer(place(authorization), answer);
        let write = self.begin().await?;
        let stored = authorizations::Entity::update_many()
            .col_expr(authorizations::Column::State, Expr::value(AWAITING))
            .col_expr(authorizations::Column::Quarantine, Expr::value(sealed))
            .col_expr(authorizations::Column::Identity, Expr::value(identity.name.as_str()))
            .col_expr(authorizations::Column::Sub, Expr::value(identity.sub.clone()))
            .col_expr(authorizations::Column::ConfirmationCodeHash, Expr::value(code_hash.to_vec()))
            .col_expr(
                authorizations::Column::ExpiresAt,
                self.now_expr().add(millis(confirmation_ttl)),
            )
            .filter(in_state(authorization.id, &[EXCHANGING]))
            .filter(Expr::col(authorizations::Column::ExpiresAt).gt(self.now_expr()))
            .exec(&*write)
            .await?
            .rows_affected
            > 0;
        if !stored {
            let tokens = (disposal.read)(answer, exchanged_at);
            let new = NewRevocations::of(&authorization.key, tokens);
            self.dispose(&write, new, disposal).await?;
        }
        write.commit().await?;
        Ok(stored)
    }

    /// Cancels an authorization that is not final. Absent where there is none; otherwise as it
    /// stands afterwards.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; then nothing has changed.
    pub async fn cancel_authorization(
        &self,
        authorization: &Authorization,
        disposal: &Disposal<'_>,
    ) -> Result<(), StorageError> {
        let write = self.begin().await?;
        let only = in_state(authorization.id, &[PENDING, EXCHANGING, AWAITING]);
        let tokens = self.cancel_where(&write, only, &authorization.key, disposal).await?;
        let new = NewRevocations::of(&authorization.key, tokens);
        self.dispose(&write, new, disposal).await?;
        write.commit().await
    }

    /// Cancels every authorization of a key that is not final, and gives the tokens that awaited
    /// confirmation.
    pub(super) async fn cancel_all(
        &self,
        write: &Write,
        key: &GrantKey,
        disposal: &Disposal<'_>,
    ) -> Result<Vec<DoomedToken>, StorageError> {
        let open =
            of_key(key).add(authorizations::Column::State.is_in([PENDING, EXCHANGING, AWAITING]));
        self.cancel_where(write, open, key, disposal).await
    }

    async fn cancel_where(
        &self,
        write: &Write,
        which: Condition,
        key: &GrantKey,
        disposal: &Disposal<'_>,
    ) -> Result<Vec<DoomedToken>, StorageError> {
        // The quarantine stays for the statement that returns it, and goes with the next.
        let cancelled = authorizations::Entity::update_many()
            .col_expr(authorizations::Column::State, Expr::value(State::Cancelled.as_str()))
            .col_expr(authorizations::Column::FinishedAt, self.now_expr())
            .col_expr(authorizations::Column::ExpiresAt, self.now_expr().add(millis(RETENTION)))
            .filter(which)
            .exec_with_returning(&**write)
            .await?;
        let mut doomed = Vec::new();
        for model in cancelled {
            doomed.extend(self.purge(write, &model, key, disposal).await?);
        }
        Ok(doomed)
    }

    /// Takes the token answer out of an authorization that has ended, and gives its tokens.
    async fn purge(
        &self,
        write: &Write,
        model: &authorizations::Model,
        key: &GrantKey,
        disposal: &Disposal<'_>,
    ) -> Result<Vec<DoomedToken>, StorageError> {
        let Some(sealed) = &model.quarantine else { return Ok(Vec::new()) };
        let row = super::rows::id(&model.id)?;
        let place = Place { table: AUTHORIZATIONS, column: "quarantine", row, key };
        let answer = super::revocations::unless_damaged(self.open_answer(place, sealed))?;
        authorizations::Entity::update_many()
            .col_expr(authorizations::Column::Quarantine, Expr::value(Option::<Vec<u8>>::None))
            .filter(authorizations::Column::Id.eq(model.id.clone()))
            .exec(&**write)
            .await?;
        let exchanged_at = Timestamp::from_millis(model.exchanged_at.unwrap_or_default());
        Ok(answer.map(|answer| (disposal.read)(&answer, exchanged_at)).unwrap_or_default())
    }

    /// The update that makes an authorization final; the caller adds which, and from which states.
    fn ending(&self, state: &State) -> sea_orm::UpdateMany<authorizations::Entity> {
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
            .col_expr(authorizations::Column::Quarantine, Expr::value(Option::<Vec<u8>>::None))
            .col_expr(authorizations::Column::FinishedAt, self.now_expr())
            .col_expr(authorizations::Column::ExpiresAt, self.now_expr().add(millis(RETENTION)))
    }
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
