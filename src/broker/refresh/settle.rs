//! What a refresh's answer does to the grant.

use std::time::Duration;

use secrecy::SecretString;

use super::super::boot_instant::BootInstant;
use super::super::lend::reauthorization;
use super::flight::{LATEST_START, done_elsewhere, in_time};
use super::{Broker, BrokerError};
use crate::domain::grant::{Grant, GrantState};
use crate::domain::provider::Server;
use crate::domain::token::{RawAnswer, TokenSet};
use crate::provider::response::{self, Context, Unusable};
use crate::provider::{INVALID_RESPONSE, Mismatch, OAuthError, ProviderError, id_token};
use crate::storage::{Committed, Held, Lease};

/// The longest that failures put a refresh off.
const LONGEST_BACKOFF: Duration = Duration::from_secs(5 * 60);

/// The least that failures put a refresh off for, before jitter.
const SHORTEST_BACKOFF: Duration = Duration::from_secs(1);

/// What metrics call a refresh that found the grant dead.
const REAUTHORIZATION: &str = "reauthorization_required";

/// What is written down where an ID token was another user's.
const ANOTHER_USER: &str = "another_user";

/// What is recorded where the database refuses tokens for what they are, such as a NUL byte in a text.
const UNSTORABLE: &str = "tokens_refused_by_the_database";

/// What was sent for which grant, under which lease.
#[derive(Clone, Copy)]
pub(super) struct Attempt<'a> {
    pub(super) grant: &'a Grant,
    pub(super) server: &'a Server,
    pub(super) lease: &'a Lease,
    /// When it was sent first.
    pub(super) sent: BootInstant,
}

impl Attempt<'_> {
    /// The longest that a next attempt may wait. While it is not known whether the provider has acted,
    /// that is within the time in which it would give the same answer again.
    fn longest_wait(&self, in_doubt: bool) -> Duration {
        let grace = self.server.refresh_grace;
        if !in_doubt || grace.is_zero() {
            return LONGEST_BACKOFF;
        }
        (grace.saturating_sub(self.sent.elapsed()) / 2).clamp(SHORTEST_BACKOFF, LONGEST_BACKOFF)
    }
}

impl Broker {
    pub(super) async fn settle(
        &self,
        attempt: &Attempt<'_>,
        answer: Result<RawAnswer, ProviderError>,
    ) -> Result<Held, BrokerError> {
        match self.read_answer(attempt, answer).await? {
            Read::Tokens(tokens, answer) => {
                self.commit(attempt.grant, attempt.server, &tokens, &answer).await
            }
            Read::DeadRefreshToken => self.refused(attempt).await,
            Read::AnotherUser(answer) => {
                self.commit_flagged(attempt.grant, &answer, None, ANOTHER_USER).await
            }
        }
    }

    /// Sorts an answer. Everything that ends the refresh here is an error, with the lease given
    /// back.
    async fn read_answer(
        &self,
        attempt: &Attempt<'_>,
        answer: Result<RawAnswer, ProviderError>,
    ) -> Result<Read, BrokerError> {
        let Attempt { grant, server, lease, .. } = *attempt;
        let answer = match answer {
            Ok(answer) => answer,
            Err(ProviderError::Refused { error, .. }) if error.is_invalid_grant() => {
                return Ok(Read::DeadRefreshToken);
            }
            Err(error) => return Err(self.failed(attempt, &error).await?),
        };
        let context = Context { scopes: &grant.scopes, issued_at: lease.claimed_at };
        match response::read(&answer, context) {
            Ok(mut tokens) => {
                let before = grant.identity.sub.as_deref().zip(tokens.id_token.as_ref());
                match before.and_then(|(sub, token)| id_token::mismatch(server, token, sub)) {
                    Some(Mismatch::AnotherUser) => {
                        tracing::error!("the provider refreshed another user's tokens");
                        return Ok(Read::AnotherUser(answer));
                    }
                    Some(Mismatch::Odd(reason)) => {
                        let refresh_token = tokens.refresh_token;
                        let unusable = Unusable { error: None, reason, refresh_token };
                        return Err(self.commit_partial(attempt, &answer, unusable).await?);
                    }
                    None => {}
                }
                never_widened(&mut tokens, grant);
                Ok(Read::Tokens(tokens, answer))
            }
            Err(Unusable { error: Some(error), refresh_token: None, .. }) => {
                if error.is_invalid_grant() {
                    return Ok(Read::DeadRefreshToken);
                }
                let error = ProviderError::Refused { status: 200, error };
                Err(self.failed(attempt, &error).await?)
            }
            Err(unusable) => Err(self.commit_partial(attempt, &answer, unusable).await?),
        }
    }

    /// Stores the new tokens; whoever committed first, the caller gets what is current.
    async fn commit(
        &self,
        grant: &Grant,
        server: &Server,
        tokens: &TokenSet,
        answer: &RawAnswer,
    ) -> Result<Held, BrokerError> {
        let disposal = self.disposal(&server.name);
        let committed = self
            .until_stored("a refreshed token", || {
                self.storage.commit_refresh(grant, tokens, &disposal)
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
                "lost_to_sibling"
            }
            Committed::Orphaned => {
                tracing::warn!("the grant was revoked or replaced meanwhile");
                "orphaned"
            }
        };
        self.metrics.refresh(&server.name, outcome);
        self.held(&grant.key).await
    }

    /// Keeps what a refused answer has: its body and its new refresh token.
    async fn commit_partial(
        &self,
        attempt: &Attempt<'_>,
        answer: &RawAnswer,
        unusable: Unusable,
    ) -> Result<BrokerError, BrokerError> {
        let Attempt { grant, server, .. } = *attempt;
        tracing::warn!(reason = unusable.reason, "the provider's answer cannot be used whole");
        let disposal = self.disposal(&server.name);
        let refresh_token = unusable.refresh_token.as_ref();
        // Without one it is perhaps not the provider that has answered, and what that did is unknown.
        let wait = self.backoff(attempt, refresh_token.is_none(), None);
        let error = unusable.error.unwrap_or_else(|| OAuthError::new(INVALID_RESPONSE));
        let error = ProviderError::Refused { status: 200, error };
        let record = error.to_record();
        self.until_stored("a part of an answer", || {
            self.storage.commit_partial(grant, answer, refresh_token, wait, &record, &disposal)
        })
        .await?;
        self.metrics.refresh(&server.name, "partial");
        Ok(BrokerError::from_provider(&server.name, &error))
    }

    /// Keeps an answer sealed that is another user's (OpenID Connect Core section 12.2) or cannot be
    /// stored as it was read, and flags the grant. Where a sibling has refreshed it meanwhile, that
    /// version is the caller's.
    async fn commit_flagged(
        &self,
        grant: &Grant,
        answer: &RawAnswer,
        refresh_token: Option<&SecretString>,
        reason: &'static str,
    ) -> Result<Held, BrokerError> {
        let flagged = self
            .until_stored("a sealed answer", || {
                self.storage.commit_flagged(grant, answer, refresh_token, reason)
            })
            .await?;
        self.cache.forget(grant.key.hash());
        if flagged {
            self.metrics.refresh(&grant.key.provider, REAUTHORIZATION);
            return Err(reauthorization(&grant.key));
        }
        let held = self.held(&grant.key).await?;
        // Flagged by this very answer, where it was not heard that it was stored.
        if held.grant.state == GrantState::ReauthorizationRequired {
            return Err(reauthorization(&grant.key));
        }
        Ok(held)
    }

    /// Gives the lease back after a failure, with the time until the next try.
    async fn failed(
        &self,
        attempt: &Attempt<'_>,
        error: &ProviderError,
    ) -> Result<BrokerError, BrokerError> {
        let Attempt { grant, server, lease, .. } = *attempt;
        tracing::warn!(%error, "refresh failed");
        self.metrics.refresh(&server.name, "failed");
        if error.refuses_the_broker() {
            // The breaker keeps everybody from trying; once the operator has mended it, nobody waits.
            self.storage.undo_claim(grant, lease).await?;
            return Ok(BrokerError::from_provider(&server.name, error));
        }
        // Only what was certainly not acted on leaves no doubt about the refresh token.
        let intent_stays = error.is_ambiguous() || lease.intent_was_open;
        let wait = self.backoff(attempt, intent_stays, error.retry_after());
        self.storage
            .release(grant, lease.owner, intent_stays, Some(wait), &error.to_record())
            .await?;
        let told = BrokerError::from_provider(&server.name, error);
        Ok(match told {
            BrokerError::ProviderUnavailable { provider, .. } => {
                BrokerError::ProviderUnavailable { provider, retry_after: wait }
            }
            told => told,
        })
    }

    /// The provider says that the refresh token is dead. Perhaps another one lives.
    async fn refused(&self, attempt: &Attempt<'_>) -> Result<Held, BrokerError> {
        let Attempt { grant, server, lease, .. } = *attempt;
        let held = self.held(&grant.key).await?;
        if let Some(outcome) = done_elsewhere(grant, &held) {
            return outcome.map(|()| held);
        }
        let began = BootInstant::now();
        if let Some(fallback) = &lease.fallback
            && self.storage.renew_lease(grant, lease.owner).await?
            && began.elapsed() <= LATEST_START
        {
            tracing::warn!("the refresh token is dead; trying the fallback");
            if let Some(held) = self.try_fallback(attempt, fallback, began).await? {
                return Ok(held);
            }
        }
        let reason = if lease.intent_was_open { "rotation_lost" } else { "invalid_grant" };
        self.until_stored("a dead grant", || self.storage.flag(grant, reason)).await?;
        tracing::warn!(reason, "the grant is dead; the user must authorize again");
        self.metrics.refresh(&server.name, REAUTHORIZATION);
        let held = self.held(&grant.key).await?;
        // A late answer of another replica may have won against the flag.
        if held.grant.state == GrantState::Active && held.grant.version != grant.version {
            return Ok(held);
        }
        Err(reauthorization(&grant.key))
    }

    /// One try with the refresh token that lost to a sibling. Absent where it is dead too.
    async fn try_fallback(
        &self,
        attempt: &Attempt<'_>,
        fallback: &SecretString,
        began: BootInstant,
    ) -> Result<Option<Held>, BrokerError> {
        let Attempt { grant, server, .. } = *attempt;
        let answer = self.providers.http().refresh(server, fallback, in_time(began)).await;
        match self.read_answer(attempt, answer).await? {
            Read::Tokens(mut tokens, answer) => {
                // A provider that does not rotate returns none: then the fallback is the one.
                tokens.refresh_token.get_or_insert_with(|| fallback.clone());
                self.commit(grant, server, &tokens, &answer).await.map(Some)
            }
            Read::DeadRefreshToken => Ok(None),
            Read::AnotherUser(answer) => {
                self.commit_flagged(grant, &answer, None, ANOTHER_USER).await.map(Some)
            }
        }
    }

    /// Full jitter from 1 s, doubled with every failure; what the provider asks for comes first.
    fn backoff(
        &self,
        attempt: &Attempt<'_>,
        in_doubt: bool,
        retry_after: Option<Duration>,
    ) -> Duration {
        let doubled = Duration::from_secs(1 << attempt.grant.failures.min(9));
        let most = doubled.min(attempt.longest_wait(in_doubt));
        retry_after.unwrap_or_default().max(self.random.jitter(most))
    }
}

enum Read {
    /// With the answer as it came.
    Tokens(TokenSet, RawAnswer),
    DeadRefreshToken,
    /// With the answer as it came.
    AnotherUser(RawAnswer),
}

/// A refresh may narrow the scopes of a grant and never widens them (RFC 6749 section 6). A
/// provider that names them otherwise than before has not narrowed them.
fn never_widened(tokens: &mut TokenSet, grant: &Grant) {
    let scopes = &mut tokens.access_token.scopes;
    if !scopes.missing_from(&grant.scopes).is_empty() {
        *scopes = grant.scopes.clone();
    }
}
