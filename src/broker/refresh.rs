//! Refresh: the one place where a refresh token is sent.
//!
//! However many callers ask, one flight a grant is under way in this process, in a task of its own
//! that no caller can cancel; among processes, a lease in the database lets one through. The answer
//! is committed by compare-and-swap on the edition of the tokens that was read.

mod circuit_breaker;
mod send;
mod settle;
mod single_flight;
mod work;

use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};

pub(super) use circuit_breaker::CircuitBreaker;
pub(super) use single_flight::SingleFlight;

use super::access::{admit, check_scopes};
use super::get_token::{IssuedToken, read_grant, reauthorization};
use super::{BrokerError, RefreshService, TokenService};
use crate::crypto::sealed::length_prefixed;
use crate::domain::bot::Bot;
use crate::domain::grant::{Grant, GrantKey, GrantState};
use crate::domain::name::Name;
use crate::domain::proactive_refresh::{self, Due, Facts};
use crate::domain::scope::Scopes;
use crate::domain::time::Timestamp;
use crate::domain::token::AccessToken;
use crate::provider::ProviderError;
use crate::storage::StoredGrant;

/// A request to refresh a grant.
#[derive(Debug, Clone)]
pub struct RefreshRequest {
    /// The key of the grant.
    pub key: GrantKey,
    /// The etag of the token that did not work. Empty: any.
    pub etag: String,
}

impl TokenService {
    /// Refreshes now, unless the current token is another one than the caller's.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub async fn refresh(
        &self,
        bot: &Bot,
        request: RefreshRequest,
    ) -> Result<IssuedToken, BrokerError> {
        admit(&self.providers, bot, &request.key)?;
        let held = read_grant(&self.grants, &request.key).await?;
        let another = held
            .access_token
            .as_ref()
            .filter(|token| token.is_living(held.now))
            .is_some_and(|token| request.etag != etag(&held.grant, token));
        if another && !request.etag.is_empty() {
            return self.issue(bot, held, &Scopes::default());
        }
        if held.grant.state == GrantState::ReauthorizationRequired {
            return Err(reauthorization(&request.key));
        }
        if !held.grant.refreshable {
            let lives = held.access_token.as_ref().is_some_and(|t| t.is_living(held.now));
            let provider = request.key.provider.clone();
            return Err(if lives {
                BrokerError::NotRefreshable { provider }
            } else {
                reauthorization(&request.key)
            });
        }
        // A bot that may not have the token must not cause a call to the provider either.
        check_scopes(bot, &request.key, held.grant.requested_scopes())?;
        let refreshed = self.refreshes.refreshed(&held).await?;
        self.issue(bot, refreshed, &Scopes::default())
    }
}

impl RefreshService {
    /// Recovers a refresh in doubt: sends the refresh token again. Returns `true` on success.
    pub async fn recover_refresh(self: &Arc<Self>, grant: &Grant) -> bool {
        let Some(held) = self.still_open(grant).await else { return false };
        tracing::info!(provider = %grant.key.provider, "recovering a refresh that was left open");
        let refreshed = self.refreshed(&held).await;
        refreshed.inspect_err(BrokerError::log_storage).is_ok()
    }

    /// Proactive refresh: looks at a claimed grant, and refreshes it if that is due.
    pub async fn look_ahead(self: &Arc<Self>, grant: &Grant, now: Timestamp) {
        let Some(provider) = self.providers.get(grant.key.provider.as_str()) else {
            // It may be configured again; the next use of the grant then schedules a look.
            return self.look_again(grant, None).await;
        };
        let facts = Facts {
            issued_at: grant.issued_at,
            expires_at: grant.expires_at,
            last_used_at: grant.last_used_at,
            idle: provider.refresh_idle,
            refresh_expires_at: grant.refresh_expires_at,
        };
        let due = match (
            proactive_refresh::due(facts, now),
            self.stopped_for(&grant.key.provider, now),
        ) {
            (Due::Now, Some(wait)) => Due::At(now + wait),
            (due, _) => due,
        };
        match due {
            Due::At(at) => self.look_again(grant, Some(at)).await,
            Due::Never => self.look_again(grant, None).await,
            Due::Now => {
                if let Some(held) = self.still_open(grant).await
                    && let Err(error) = self.refreshed(&held).await
                {
                    error.log_storage();
                    tracing::debug!(%error, "not refreshed ahead of time");
                }
            }
        }
    }

    fn stopped_for(&self, provider: &Name, now: Timestamp) -> Option<Duration> {
        self.breakers.get(provider)?.stopped_for(now)
    }

    async fn look_again(&self, grant: &Grant, at: Option<Timestamp>) {
        if let Err(error) = self.grants.look_again(grant, at).await
            && !error.is_connection_failure()
        {
            tracing::warn!(%error, "cannot put a look at a grant off; its claim will end");
        }
    }

    /// Returns the grant if it has the same version still and is not being refreshed.
    async fn still_open(&self, grant: &Grant) -> Option<StoredGrant> {
        // Where it cannot be read, it has been revoked, or a worker finds it again.
        let held = read_grant(&self.grants, &grant.key).await.ok()?;
        (held.grant.version == grant.version && !held.leased).then_some(held)
    }

    /// The grant after a refresh of this edition, by this process or another.
    pub(super) async fn refreshed(
        self: &Arc<Self>,
        held: &StoredGrant,
    ) -> Result<StoredGrant, BrokerError> {
        if self.tasks.are_draining() {
            return Err(BrokerError::Overloaded);
        }
        refusal(held)?;
        self.flights.join(self, held).await
    }
}

/// Returns the reason why no refresh is tried now: the grant is dead, or waits after a failure, whose error is
/// repeated.
fn refusal(held: &StoredGrant) -> Result<(), BrokerError> {
    let grant = &held.grant;
    if grant.state == GrantState::ReauthorizationRequired {
        return Err(reauthorization(&grant.key));
    }
    let Some(at) = grant.next_attempt_at.filter(|at| held.now < *at) else { return Ok(()) };
    Err(last_failure(grant, at.since(held.now)))
}

/// Repeats the error of the last refresh.
fn last_failure(grant: &Grant, retry_after: Duration) -> BrokerError {
    let provider = &grant.key.provider;
    let last = grant.last_error.as_deref().and_then(ProviderError::from_record);
    match last.map(|error| BrokerError::from_provider(provider, &error)) {
        Some(
            told @ (BrokerError::ProviderMisconfigured { .. } | BrokerError::ProviderError { .. }),
        ) => told,
        _ => BrokerError::ProviderUnavailable { provider: provider.clone(), retry_after },
    }
}

/// The result of another refresh that has ended since a grant was read. An edition without a new access token is no
/// success for a caller that needs one.
fn done_elsewhere(before: &Grant, now: &StoredGrant) -> Option<Result<(), BrokerError>> {
    let after = &now.grant;
    if after.id == before.id && after.version == before.version {
        return None;
    }
    let authorized_anew =
        after.id != before.id || after.version.generation != before.version.generation;
    if after.state == GrantState::ReauthorizationRequired {
        return Some(Err(reauthorization(&after.key)));
    }
    // A new access token ends what failures there were.
    let renewed = after.last_error.is_none() || after.issued_at != before.issued_at;
    if authorized_anew || renewed {
        return Some(Ok(()));
    }
    Some(Err(last_failure(after, super::error::RETRY)))
}

/// Names an access token without telling it.
#[must_use]
pub fn etag(grant: &Grant, token: &AccessToken) -> String {
    let framed = length_prefixed([
        &b"token-broker etag v1"[..],
        grant.id.as_bytes(),
        &grant.version.generation.to_be_bytes(),
        token.value.expose_secret().as_bytes(),
    ]);
    hex::encode(&Sha256::digest(framed)[..16])
}
