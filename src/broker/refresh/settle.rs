//! Settles a refresh: the effect of the provider's answer on the grant.

use std::time::Duration;

use secrecy::SecretString;

use super::super::access::disposal;
use super::super::boot_instant::BootInstant;
use super::super::get_token::{read_grant, reauthorization};
use super::{BrokerError, RefreshService};
use crate::domain::grant::{Grant, GrantState};
use crate::domain::provider::Server;
use crate::domain::token::{RawAnswer, TokenSet};
use crate::provider::response::Unusable;
use crate::provider::{
    INVALID_RESPONSE, Mismatch, OAuthError, ProviderError, TokenAnswer, id_token,
};
use crate::storage::{Committed, Lease, StorageError, StoredGrant};

/// The longest that failures put a refresh off.
const LONGEST_BACKOFF: Duration = Duration::from_secs(5 * 60);

/// The least that failures put a refresh off for, before jitter.
const SHORTEST_BACKOFF: Duration = Duration::from_secs(1);

/// The label of a refresh that found the grant dead.
const REAUTHORIZATION: &str = "reauthorization_required";

/// Why a grant is dead whose refresh token may have been replaced by an answer that was lost.
const ROTATION_LOST: &str = "rotation_lost";

/// The number of refusals that must have come before the one that ends a grant.
const REFUSALS: u32 = 3;

/// The time for which a grant must have been refused.
const REFUSED_FOR: Duration = Duration::from_secs(60);

/// The same for refusals without an error code.
const REFUSED_WITHOUT_A_CODE_FOR: Duration = Duration::from_secs(60 * 60);

/// The record of an ID token of another user.
const ANOTHER_USER: &str = "another_user";

/// The record of tokens that the database refuses, such as a NUL byte in a text.
const UNSTORABLE: &str = "tokens_refused_by_the_database";

/// One refresh request: the grant, the lease and the token.
#[derive(Clone, Copy)]
pub(super) struct SentRefresh<'a> {
    pub(super) grant: &'a Grant,
    pub(super) server: &'a Server,
    pub(super) lease: &'a Lease,
    /// When it was sent first.
    pub(super) at: BootInstant,
    /// The fallback, if that was sent last.
    pub(super) fallback: Option<&'a SecretString>,
}

impl SentRefresh<'_> {
    /// The longest that the next attempt may wait. While it is not known whether the provider has acted,
    /// that is within the time in which it would give the same answer again.
    fn longest_wait(&self, in_doubt: bool) -> Duration {
        let grace = self.server.refresh_grace;
        if !in_doubt || grace.is_zero() {
            return LONGEST_BACKOFF;
        }
        (grace.saturating_sub(self.at.elapsed()) / 2).clamp(SHORTEST_BACKOFF, LONGEST_BACKOFF)
    }
}

impl RefreshService {
    /// Stores the result of a refresh, and returns the grant as it is then.
    pub(super) async fn settle(
        &self,
        sent: &SentRefresh<'_>,
        answer: Result<TokenAnswer, ProviderError>,
    ) -> Result<StoredGrant, BrokerError> {
        let SentRefresh { grant, server, fallback, .. } = *sent;
        let (raw, mut tokens) = match answer {
            Ok(TokenAnswer { raw, tokens: Ok(tokens) }) => (raw, tokens),
            Ok(TokenAnswer { raw, tokens: Err(unusable) }) => {
                return self.keep_unusable(sent, &raw, unusable).await;
            }
            Err(ProviderError::DeadGrant { error, .. }) => {
                tracing::warn!(%error, "the provider refuses the refresh token");
                return self.end_grant(sent).await;
            }
            Err(error) => return Err(self.failed(sent, &error).await?),
        };
        let before = grant.identity.sub.as_deref().zip(tokens.id_token.as_ref());
        match before.and_then(|(sub, token)| id_token::mismatch(server, token, sub)) {
            Some(Mismatch::AnotherUser) => {
                tracing::error!("the provider refreshed another user's tokens");
                return self.commit_flagged(grant, &raw, None, ANOTHER_USER).await;
            }
            Some(Mismatch::Odd(reason)) => {
                let refresh_token = tokens.refresh_token;
                let unusable = Unusable { error: None, reason, refresh_token, has_acted: false };
                return self.keep_unusable(sent, &raw, unusable).await;
            }
            None => {}
        }
        never_widened(&mut tokens, grant);
        // A provider that does not rotate returns none: then the fallback is the one.
        if let Some(fallback) = fallback {
            tokens.refresh_token.get_or_insert_with(|| fallback.clone());
        }
        let tokens = tokens.ending_when_idle(server.refresh_idle);
        self.commit(grant, server, &tokens, &raw).await
    }

    /// Stores the new tokens. Returns the current ones, also if another refresh has committed first.
    async fn commit(
        &self,
        grant: &Grant,
        server: &Server,
        tokens: &TokenSet,
        answer: &RawAnswer,
    ) -> Result<StoredGrant, BrokerError> {
        let disposal = disposal(&self.providers, &server.name);
        let committed = self
            .health
            .until_stored("a refreshed token", || {
                self.grants.commit_refresh(grant, tokens, &disposal)
            })
            .await;
        let committed = match committed {
            Ok(committed) => committed,
            Err(error) => {
                tracing::error!(%error, "the database refuses the tokens; kept sealed, and flagged");
                let token = tokens.refresh_token.as_ref();
                return self.commit_flagged(grant, answer, token, UNSTORABLE).await;
            }
        };
        self.cache.forget(grant.key.hash());
        let outcome = match committed {
            Committed::Stored => {
                tracing::info!("refreshed");
                "stored"
            }
            Committed::LostToSibling => {
                tracing::warn!("another refresh was committed first");
                "lost_race"
            }
            Committed::Orphaned => {
                tracing::warn!("the grant was revoked or replaced meanwhile");
                "grant_gone"
            }
        };
        self.metrics.refresh(&server.name, outcome);
        read_grant(&self.grants, &grant.key).await
    }

    /// Keeps an answer that cannot be used whole: its body and its new refresh token.
    async fn keep_unusable(
        &self,
        sent: &SentRefresh<'_>,
        answer: &RawAnswer,
        unusable: Unusable,
    ) -> Result<StoredGrant, BrokerError> {
        let SentRefresh { grant, server, .. } = *sent;
        tracing::warn!(reason = unusable.reason, "the provider's answer cannot be used whole");
        let refresh_token = unusable.refresh_token.as_ref();
        let is_lost = unusable.has_acted && refresh_token.is_none();
        if is_lost && server.refresh_grace.is_zero() {
            // To send the old one again would look like theft to a provider that detects reuse.
            return self.commit_flagged(grant, answer, None, ROTATION_LOST).await;
        }
        let disposal = disposal(&self.providers, &server.name);
        // Without a refresh token it is perhaps not the provider that has answered, and its action is unknown.
        let wait = self.backoff(sent, refresh_token.is_none(), None);
        let error = unusable.error.unwrap_or_else(|| OAuthError::new(INVALID_RESPONSE));
        let error = ProviderError::Refused { status: 200, error };
        let record = error.to_record();
        self.health
            .until_stored("a part of an answer", || {
                self.grants.commit_partial(grant, answer, refresh_token, wait, &record, &disposal)
            })
            .await?;
        self.metrics.refresh(&server.name, "partial");
        Err(BrokerError::from_provider(&server.name, &error))
    }

    /// Keeps an answer sealed that is another user's (OpenID Connect Core section 12.2) or cannot be
    /// stored as it was read, and flags the grant. If another refresh was committed in between, that
    /// version is the caller's.
    async fn commit_flagged(
        &self,
        grant: &Grant,
        answer: &RawAnswer,
        refresh_token: Option<&SecretString>,
        reason: &'static str,
    ) -> Result<StoredGrant, BrokerError> {
        let flagged = self
            .health
            .until_stored("a sealed answer", || {
                self.grants.commit_flagged(grant, answer, refresh_token, reason)
            })
            .await?;
        self.cache.forget(grant.key.hash());
        if flagged {
            self.metrics.refresh(&grant.key.provider, REAUTHORIZATION);
            return Err(reauthorization(&grant.key));
        }
        let held = read_grant(&self.grants, &grant.key).await?;
        // Flagged by this very answer, where it was not heard that it was stored.
        if held.grant.state == GrantState::ReauthorizationRequired {
            return Err(reauthorization(&grant.key));
        }
        Ok(held)
    }

    /// Releases the lease after a failure, with the time until the next attempt. Returns the caller's error.
    async fn failed(
        &self,
        sent: &SentRefresh<'_>,
        error: &ProviderError,
    ) -> Result<BrokerError, StorageError> {
        let SentRefresh { grant, server, lease, .. } = *sent;
        tracing::warn!(%error, "refresh failed");
        let told = BrokerError::from_provider(&server.name, error);
        if matches!(error, ProviderError::RefusesBroker { .. }) {
            self.metrics.refresh(&server.name, "failed");
            // The breaker keeps everybody from trying; once the operator has mended it, no grant waits.
            self.grants.undo_claim(grant, lease).await?;
            return Ok(told);
        }
        if self.is_refused_for_good(sent, error) {
            tracing::warn!("refused again and again while other grants are well");
            self.flag(grant, &error.to_record()).await?;
            return Ok(reauthorization(&grant.key));
        }
        self.metrics.refresh(&server.name, "failed");
        // Only what was certainly not acted on leaves no doubt about the refresh token.
        let intent_stays = error.is_ambiguous() || lease.intent_was_open;
        let wait = self.backoff(sent, intent_stays, error.retry_after());
        self.grants
            .release(grant, lease.owner, intent_stays, Some(wait), &error.to_record())
            .await?;
        Ok(match told {
            BrokerError::ProviderUnavailable { provider, .. } => {
                BrokerError::ProviderUnavailable { provider, retry_after: wait }
            }
            told => told,
        })
    }

    /// Returns `true` if the provider has refused this grant several times over some time, and has refreshed
    /// another one since the first: then the grant is dead under any error code.
    fn is_refused_for_good(&self, sent: &SentRefresh<'_>, error: &ProviderError) -> bool {
        let SentRefresh { grant, server, lease, .. } = *sent;
        let Some(since) = grant.failing_since else { return false };
        let least = match error.oauth_error() {
            Some(_) => REFUSED_FOR,
            None if *error == ProviderError::Unauthorized => REFUSED_FOR,
            // It may be something between the provider and the broker, or an outage for some users.
            None => REFUSED_WITHOUT_A_CODE_FOR,
        };
        error.refuses_grant()
            && grant.failures >= REFUSALS
            && lease.claimed_at.since(since) >= least
            && self
                .breakers
                .get(&server.name)
                .is_some_and(|breaker| breaker.others_are_well(grant.id, since))
    }

    /// The provider says that the refresh token is dead, and so is the fallback.
    async fn end_grant(&self, sent: &SentRefresh<'_>) -> Result<StoredGrant, BrokerError> {
        let SentRefresh { grant, lease, .. } = *sent;
        let reason = if lease.intent_was_open { ROTATION_LOST } else { "invalid_grant" };
        self.flag(grant, reason).await?;
        let held = read_grant(&self.grants, &grant.key).await?;
        // A late answer of another replica may have won against the flag.
        if held.grant.state == GrantState::Active && held.grant.version != grant.version {
            return Ok(held);
        }
        Err(reauthorization(&grant.key))
    }

    async fn flag(&self, grant: &Grant, reason: &str) -> Result<(), StorageError> {
        self.health.until_stored("a dead grant", || self.grants.flag(grant, reason)).await?;
        tracing::warn!(reason, "the grant is dead; the user must authorize again");
        self.metrics.refresh(&grant.key.provider, REAUTHORIZATION);
        Ok(())
    }

    /// Full jitter from 1 s, doubled with every failure; what the provider asks for comes first.
    fn backoff(
        &self,
        sent: &SentRefresh<'_>,
        in_doubt: bool,
        retry_after: Option<Duration>,
    ) -> Duration {
        let doubled = Duration::from_secs(1 << sent.grant.failures.min(9));
        let most = doubled.min(sent.longest_wait(in_doubt));
        retry_after.unwrap_or_default().max(self.random.jitter(most))
    }
}

/// A refresh may narrow the scopes of a grant and never widens them (RFC 6749 section 6). A
/// provider that names them otherwise than before has not narrowed them.
fn never_widened(tokens: &mut TokenSet, grant: &Grant) {
    let scopes = &mut tokens.access_token.scopes;
    if !scopes.missing_from(&grant.scopes).is_empty() {
        *scopes = grant.scopes.clone();
    }
}
