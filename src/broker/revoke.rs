//! Revoke and RevokeAll: the grant is deleted at once, and its tokens are revoked at the provider now or later.

use std::collections::HashSet;
use std::time::Duration;

use futures::future::join_all;

use super::access::{admit, check_subject, disposal, provider_for, providers_of};
use super::{BrokerError, RevocationService};
use crate::domain::bot::Bot;
use crate::domain::grant::{GrantKey, Subject};
use crate::domain::name::Name;
use crate::provider::ProviderError;
use crate::storage::{ListFilter, Revocation, Revoked, StorageError, SubjectFilter};

/// The longest pause between two attempts of the outbox.
const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// The time that an attempt waits for the provider's endpoints: what is left of a claim must be enough
/// for the call.
const LEARNING: Duration = Duration::from_secs(4);

/// The number of grants that RevokeAll reads at a time.
const PAGE: u64 = 100;

/// The progress of a revocation at the provider. The grant is deleted in every case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RevocationState {
    /// The provider confirmed.
    Done,
    /// The broker keeps trying.
    Pending,
    /// The provider has no way to revoke.
    Unsupported,
    /// There was no grant.
    NotNeeded,
}

/// The outcome of one attempt at the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RevocationAttempt {
    /// The provider confirmed.
    Confirmed,
    /// The provider has no way to revoke: there is nothing more to be done.
    Unsupported,
    /// It is tried again later.
    Postponed,
}

impl RevocationService {
    /// Forgets a grant, and tries once to revoke its tokens at the provider.
    ///
    /// # Errors
    ///
    /// [`BrokerError`]; then the grant is still there.
    pub async fn revoke(&self, bot: &Bot, key: &GrantKey) -> Result<RevocationState, BrokerError> {
        admit(&self.providers, bot, key)?;
        self.revoke_key(key).await
    }

    async fn revoke_key(&self, key: &GrantKey) -> Result<RevocationState, BrokerError> {
        let forgotten = self.forget(key).await?;
        Ok(self.tell_provider(forgotten).await)
    }

    /// Takes the grant away here.
    async fn forget(&self, key: &GrantKey) -> Result<Option<Revoked>, BrokerError> {
        let disposal = disposal(&self.providers, &key.provider);
        let revoked = self.grants.revoke(key, &disposal).await;
        // Whether it has worked or not: nothing is served from before.
        self.cache.forget(key.hash());
        let revoked = revoked?;
        if !revoked.found {
            return Ok(None);
        }
        tracing::info!(provider = %key.provider, "grant revoked");
        Ok(Some(revoked))
    }

    /// Makes the first attempts at the provider.
    async fn tell_provider(&self, forgotten: Option<Revoked>) -> RevocationState {
        let Some(revoked) = forgotten else { return RevocationState::NotNeeded };
        if revoked.revocations.is_empty() && !revoked.intent_open && !revoked.unopened {
            return RevocationState::Unsupported;
        }
        let attempts = join_all(revoked.revocations.iter().map(|r| self.try_revocation(r))).await;
        let any = |attempt| attempts.contains(&attempt);
        // A refresh under way may yet mint another token; its commit puts it into the outbox.
        if any(RevocationAttempt::Postponed) || revoked.intent_open || revoked.unopened {
            RevocationState::Pending
        } else if any(RevocationAttempt::Unsupported) {
            RevocationState::Unsupported
        } else {
            RevocationState::Done
        }
    }

    /// Forgets every grant of a subject that the bot may use.
    ///
    /// # Errors
    ///
    /// [`BrokerError`]; what was revoked before stays so, and the call may be repeated.
    pub async fn revoke_all(
        &self,
        bot: &Bot,
        subject: &Subject,
        provider: Option<&Name>,
    ) -> Result<Vec<(GrantKey, RevocationState)>, BrokerError> {
        check_subject(bot, subject)?;
        if let Some(provider) = provider {
            provider_for(&self.providers, bot, provider)?;
        }
        let providers = providers_of(&self.providers, bot, provider);
        let mut revoked = Vec::new();
        loop {
            // Each page is the first: what was revoked is gone.
            let filter = ListFilter {
                namespace: bot.namespace.clone(),
                providers: Some(providers.clone()),
                subjects: Some(vec![SubjectFilter::Is(subject.as_str().to_owned())]),
                after: None,
                limit: PAGE,
            };
            let grants = self.grants.list_grants(&filter).await?;
            // A person who has left must not get a grant by what was begun before, either.
            let under_way =
                self.authorizations.keys_under_way(&bot.namespace, subject, &providers).await?;
            let keys: HashSet<_> =
                grants.into_iter().map(|grant| grant.key).chain(under_way).collect();
            if keys.is_empty() {
                return Ok(revoked);
            }
            // All are gone here before the first provider is called: one that hangs must not keep
            // the others alive.
            let mut forgotten = Vec::with_capacity(keys.len());
            for key in keys {
                let gone = self.forget(&key).await?;
                forgotten.push((key, gone));
            }
            let told = forgotten.into_iter().map(|(key, gone)| async {
                let state = self.tell_provider(gone).await;
                (key, state)
            });
            let told = join_all(told).await;
            revoked.extend(told.into_iter().filter(|(_, s)| *s != RevocationState::NotNeeded));
        }
    }

    /// Claims at most `limit` entries of the outbox that are due at a provider.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn claim(
        &self,
        provider: &Name,
        limit: u64,
    ) -> Result<Vec<Revocation>, StorageError> {
        self.outbox.claim_revocations(provider, limit).await
    }

    /// The number of tokens that are still to be revoked.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn count_pending(&self) -> Result<u64, StorageError> {
        self.outbox.count_revocations().await
    }

    /// Makes one attempt for an entry of the outbox that the caller has claimed.
    pub async fn try_revocation(&self, revocation: &Revocation) -> RevocationAttempt {
        let Some(provider) = self.providers.get(revocation.key.provider.as_str()) else {
            self.postpone(revocation, "the provider is not configured").await;
            return RevocationAttempt::Postponed;
        };
        let server = tokio::time::timeout(LEARNING, self.providers.server(provider)).await;
        let revoked = match server {
            Ok(Ok(server)) if server.revocation_endpoint.is_none() => {
                // Its metadata came later than the entry did.
                self.finish(revocation).await;
                return RevocationAttempt::Unsupported;
            }
            Ok(Ok(server)) => {
                let http = self.providers.http();
                http.revoke(&server, revocation.kind, &revocation.token).await
            }
            Ok(Err(error)) => Err(error),
            Err(_) => {
                Err(ProviderError::ConnectError("the issuer did not answer in time".to_owned()))
            }
        };
        match revoked {
            Ok(()) => {
                self.finish(revocation).await;
                RevocationAttempt::Confirmed
            }
            Err(error) => {
                tracing::warn!(%error, provider = %provider.name, "revocation failed");
                self.postpone_after(revocation, &error).await;
                RevocationAttempt::Postponed
            }
        }
    }

    async fn finish(&self, revocation: &Revocation) {
        // Should this fail, the entry is tried again, which does no harm.
        if let Err(error) = self.outbox.finish_revocation(revocation.id).await
            && !error.is_connection_failure()
        {
            tracing::warn!(%error, "cannot remove an entry of the outbox");
        }
    }

    async fn postpone_after(&self, revocation: &Revocation, error: &ProviderError) {
        let wait = pause(revocation.attempts).max(error.retry_after().unwrap_or_default());
        self.postpone_by(revocation, wait, &error.to_string()).await;
    }

    async fn postpone(&self, revocation: &Revocation, reason: &str) {
        self.postpone_by(revocation, LONGEST_PAUSE, reason).await;
    }

    async fn postpone_by(&self, revocation: &Revocation, wait: Duration, reason: &str) {
        if let Err(error) = self.outbox.postpone_revocation(revocation.id, wait, reason).await
            && !error.is_connection_failure()
        {
            tracing::warn!(%error, "cannot put an entry of the outbox off; its claim will end");
        }
    }
}

/// 1 s, doubled with every attempt, at most 20 s.
fn pause(attempts: u32) -> Duration {
    Duration::from_secs(1 << attempts.saturating_sub(1).min(5)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_twenty_seconds() {
        let pauses: Vec<_> = (0..8).map(|attempts| pause(attempts).as_secs()).collect();
        assert_eq!(pauses, [1, 1, 2, 4, 8, 16, 20, 20]);
    }
}
