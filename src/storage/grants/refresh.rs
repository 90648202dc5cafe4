//! The statements around a refresh: the right to send, its return, and the flag of a dead grant. What an
//! answer does is in `commit.rs`.

use std::time::Duration;

use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{ColumnTrait, Condition, EntityTrait, QueryFilter};
use secrecy::SecretString;

use super::{ACTIVE, FALLBACK, REAUTHORIZATION_REQUIRED, REFRESH_TOKEN, place};
use crate::domain::grant::{Grant, Version};
use crate::domain::id::Id;
use crate::domain::time::{Timestamp, millis};
use crate::storage::entity::grants;
use crate::storage::{GrantStore, StorageError, StoreContext};

/// The time for which a replica may refresh a grant before another may claim it.
pub const LEASE: Duration = Duration::from_secs(15);

/// The right to refresh one grant, until [`LEASE`] after it was claimed.
#[derive(Debug, Clone)]
pub struct Lease {
    /// The holder of the lease.
    pub owner: Id,
    /// When it was claimed, on the database's clock: nothing that the provider issues for it is
    /// older.
    pub claimed_at: Timestamp,
    /// The refresh token to send. `None`: the grant is not refreshable.
    pub refresh_token: Option<SecretString>,
    /// The refresh token to try once if the provider refuses the first.
    pub fallback: Option<SecretString>,
    /// `true` if an earlier refresh may have been sent without its answer being stored.
    pub intent_was_open: bool,
}

/// The deviation of the database's clock from the expected time up to which a lease counts as ended: a step forward
/// makes living leases look as if they had.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(2);

/// The terms on which a refresh may be claimed whose outcome is unknown, because its holder has not
/// stored one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Takeover {
    /// The time that the database's clock should show. `None` leaves that unchecked.
    pub expected_now: Option<Timestamp>,
    /// How long after its last heartbeat a holder may still have the provider's response and be unable
    /// to store it. `None` if the provider accepts a refresh token again within its grace, so that
    /// nothing is lost by a repeat.
    pub holder_timeout: Option<Duration>,
}

impl GrantStore {
    /// Claims a refresh and records that a refresh token may be sent from now on, in one statement.
    /// Returns `None` if the grant has another version by now, is leased or is not active. Without a
    /// `takeover` also if the outcome of an earlier refresh is unknown.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; then nothing may be sent.
    pub async fn claim_refresh(
        &self,
        grant: &Grant,
        takeover: Option<Takeover>,
    ) -> Result<Option<Lease>, StorageError> {
        let owner = self.random.id();
        let now = self.now_expr();
        let _turn = self.turn().await;
        let unclaimed = Condition::any().add(grants::Column::IntentAt.is_null());
        let unclaimed = match takeover {
            None => unclaimed,
            Some(takeover) => unclaimed.add(self.abandoned(takeover)),
        };
        let claimed = grants::Entity::update_many()
            .col_expr(grants::Column::LeaseOwner, Expr::value(owner.as_bytes().to_vec()))
            .col_expr(grants::Column::LeaseUntil, now.clone().add(millis(LEASE)))
            .col_expr(grants::Column::LeaseReplica, Expr::value(self.replica.as_bytes().to_vec()))
            .col_expr(
                grants::Column::IntentAt,
                Expr::col(grants::Column::IntentAt).if_null(now.clone()),
            )
            .filter(of_version(grant.id, grant.version))
            .filter(unclaimed)
            .filter(grants::Column::State.eq(ACTIVE))
            .filter(self.lease_ended())
            .filter(
                Condition::any()
                    .add(grants::Column::NextAttemptAt.is_null())
                    .add(Expr::col(grants::Column::NextAttemptAt).lte(now)),
            )
            .exec_with_returning(&self.db)
            .await?;
        let Some(model) = claimed.into_iter().next() else { return Ok(None) };
        let claimed_at = model.lease_until.unwrap_or_default() - millis(LEASE);
        let open = |column, sealed: Option<&Vec<u8>>| {
            sealed.map(|sealed| self.open(place(grant, column), sealed)).transpose()
        };
        let opened = open(REFRESH_TOKEN, model.refresh_token.as_ref())
            .and_then(|token| Ok((token, open(FALLBACK, model.fallback_refresh_token.as_ref())?)));
        let (refresh_token, fallback) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                // Nothing will be sent for a row that this replica cannot read.
                drop(_turn);
                self.unclaim(&model).await?;
                return Err(error);
            }
        };
        Ok(Some(Lease {
            owner,
            claimed_at: Timestamp::from_millis(claimed_at),
            refresh_token,
            fallback,
            intent_was_open: model.intent_at.is_some_and(|at| at < claimed_at),
        }))
    }

    /// Gives a lease back as if it had not been claimed: what was found out says nothing about this
    /// grant.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; the lease then ends by itself.
    pub async fn undo_claim(&self, grant: &Grant, lease: &Lease) -> Result<(), StorageError> {
        let mut update = grants::Entity::update_many()
            .col_expr(grants::Column::LeaseOwner, Expr::value(Option::<Vec<u8>>::None))
            .col_expr(grants::Column::LeaseUntil, Expr::value(Option::<i64>::None))
            .col_expr(grants::Column::LeaseReplica, Expr::value(Option::<Vec<u8>>::None));
        if !lease.intent_was_open {
            update = update.col_expr(grants::Column::IntentAt, Expr::value(Option::<i64>::None));
        }
        let _turn = self.turn().await;
        update
            .filter(grants::Column::Id.eq(grant.id.as_bytes().to_vec()))
            .filter(grants::Column::LeaseOwner.eq(lease.owner.as_bytes().to_vec()))
            .exec(&self.reserved)
            .await?;
        Ok(())
    }

    /// Undoes a claim, as if it had not been made.
    async fn unclaim(&self, claimed: &grants::Model) -> Result<(), StorageError> {
        let claimed_at = claimed.lease_until.map(|until| until - millis(LEASE));
        let intent_at = claimed.intent_at.filter(|at| Some(*at) != claimed_at);
        let _turn = self.turn().await;
        grants::Entity::update_many()
            .col_expr(grants::Column::LeaseOwner, Expr::value(Option::<Vec<u8>>::None))
            .col_expr(grants::Column::LeaseUntil, Expr::value(Option::<i64>::None))
            .col_expr(grants::Column::LeaseReplica, Expr::value(Option::<Vec<u8>>::None))
            .col_expr(grants::Column::IntentAt, Expr::value(intent_at))
            .filter(grants::Column::Id.eq(claimed.id.clone()))
            .filter(grants::Column::LeaseOwner.eq(claimed.lease_owner.clone()))
            .exec(&self.reserved)
            .await?;
        Ok(())
    }

    /// Extends a lease before a deliberate second attempt. False where it has ended.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; then nothing may be sent.
    pub async fn renew_lease(&self, grant: &Grant, owner: Id) -> Result<bool, StorageError> {
        let now = self.now_expr();
        let _turn = self.turn().await;
        let renewed = grants::Entity::update_many()
            .col_expr(grants::Column::LeaseUntil, now.clone().add(millis(LEASE)))
            .filter(grants::Column::Id.eq(grant.id.as_bytes().to_vec()))
            .filter(grants::Column::LeaseOwner.eq(owner.as_bytes().to_vec()))
            .filter(Expr::col(grants::Column::LeaseUntil).gte(now))
            .exec(&self.reserved)
            .await?;
        Ok(renewed.rows_affected > 0)
    }

    /// Gives a lease back after a refresh that failed.
    ///
    /// With `intent_stays` the grant keeps the record that its refresh token may have been
    /// used. `wait` is how long no refresh is tried.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; the lease then ends by itself.
    pub async fn release(
        &self,
        grant: &Grant,
        owner: Id,
        intent_stays: bool,
        wait: Option<Duration>,
        reason: &str,
    ) -> Result<(), StorageError> {
        let next_attempt_at = match wait {
            Some(wait) => self.now_expr().add(millis(wait)),
            None => Expr::value(Option::<i64>::None),
        };
        let mut update = grants::Entity::update_many()
            .col_expr(grants::Column::LeaseOwner, Expr::value(Option::<Vec<u8>>::None))
            .col_expr(grants::Column::LeaseUntil, Expr::value(Option::<i64>::None))
            .col_expr(grants::Column::LeaseReplica, Expr::value(Option::<Vec<u8>>::None))
            .col_expr(grants::Column::Failures, Expr::col(grants::Column::Failures).add(1_i64))
            .col_expr(grants::Column::FailingSince, self.failing_since())
            .col_expr(grants::Column::NextAttemptAt, next_attempt_at)
            .col_expr(grants::Column::LastError, Expr::value(reason));
        if !intent_stays {
            update = update.col_expr(grants::Column::IntentAt, Expr::value(Option::<i64>::None));
        }
        let _turn = self.turn().await;
        update
            .filter(grants::Column::Id.eq(grant.id.as_bytes().to_vec()))
            .filter(grants::Column::LeaseOwner.eq(owner.as_bytes().to_vec()))
            .exec(&self.reserved)
            .await?;
        Ok(())
    }

    /// Flags that the provider no longer takes the refresh token. Moves no version, so that a
    /// late answer can still be committed.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn flag(&self, grant: &Grant, reason: &str) -> Result<bool, StorageError> {
        let _turn = self.turn().await;
        let flagged = grants::Entity::update_many()
            .col_expr(grants::Column::State, Expr::value(REAUTHORIZATION_REQUIRED))
            .col_expr(grants::Column::UpdatedAt, self.now_expr())
            .col_expr(grants::Column::LeaseOwner, Expr::value(Option::<Vec<u8>>::None))
            .col_expr(grants::Column::LeaseUntil, Expr::value(Option::<i64>::None))
            .col_expr(grants::Column::LeaseReplica, Expr::value(Option::<Vec<u8>>::None))
            .col_expr(grants::Column::IntentAt, Expr::value(Option::<i64>::None))
            .col_expr(grants::Column::NextRefreshAt, Expr::value(Option::<i64>::None))
            .col_expr(grants::Column::LastError, Expr::value(reason))
            .filter(of_version(grant.id, grant.version))
            .exec(&self.reserved)
            .await?;
        Ok(flagged.rows_affected > 0)
    }
}

impl StoreContext {
    /// The time of the first failure in a row, while a failure is stored. A version before the
    /// column counts failures without it, and starts again at none.
    pub(super) fn failing_since(&self) -> Expr {
        let since = Expr::col(grants::Column::FailingSince).if_null(self.now_expr());
        let is_first = Expr::col(grants::Column::Failures).eq(0_i64);
        Expr::case(is_first, self.now_expr()).finally(since).into()
    }

    /// Selects grants without a lease. A lease that ends later than a new one would was written before the clock was
    /// set back.
    pub(in crate::storage) fn lease_ended(&self) -> Condition {
        let column = || Expr::col(grants::Column::LeaseUntil);
        Condition::any()
            .add(column().is_null())
            .add(column().lt(self.now_once()))
            .add(column().gt(self.now_once().add(millis(LEASE + CLOCK_TOLERANCE))))
    }

    /// Selects grants whose holder cannot store an outcome any more, on these terms.
    pub(in crate::storage) fn abandoned(&self, takeover: Takeover) -> Condition {
        let mut terms = Condition::all();
        if let Some(expected) = takeover.expected_now {
            let tolerance = millis(CLOCK_TOLERANCE);
            terms = terms
                .add(self.now_once().gte(expected.millis() - tolerance))
                .add(self.now_once().lte(expected.millis() + tolerance));
        }
        let Some(timeout) = takeover.holder_timeout else { return terms };
        let nobody_told = Condition::all()
            .add(grants::Column::LeaseReplica.is_null())
            .add(Expr::col(grants::Column::LeaseUntil).lt(self.now_once().sub(millis(timeout))));
        let silent = Condition::all()
            .add(grants::Column::LeaseReplica.is_not_null())
            .add(Expr::not_exists(self.living_holder(timeout)));
        terms.add(
            Condition::any()
                // Given back: its holder knew that it had no response.
                .add(grants::Column::LeaseOwner.is_null())
                .add(grants::Column::LeaseReplica.eq(self.replica.as_bytes().to_vec()))
                .add(silent)
                // Claimed by a version without heartbeats.
                .add(nobody_told),
        )
    }
}

pub(super) fn of_version(id: Id, version: Version) -> Condition {
    Condition::all()
        .add(grants::Column::Id.eq(id.as_bytes().to_vec()))
        .add(grants::Column::Generation.eq(version.generation))
        .add(grants::Column::TokenVersion.eq(version.token_version))
}
