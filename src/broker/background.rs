//! Work for the workers, and the free places for it.

use tokio::sync::OwnedSemaphorePermit;

use super::{Broker, refresh};
use crate::domain::grant::Grant;
use crate::domain::id::Id;
use crate::domain::name::Name;
use crate::domain::time::Timestamp;
use crate::storage::{OpenIntents, StorageError, Swept};

impl Broker {
    /// Finds refreshes of unknown outcome that may be recovered now at these providers.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn open_intents(
        &self,
        providers: &[Name],
        passed_over: &[Id],
        limit: u64,
    ) -> Result<Vec<Grant>, StorageError> {
        if !self.database.is_stable() {
            return Ok(Vec::new());
        }
        // One whose places are all taken must not fill the batch.
        let providers = providers.iter().filter(|name| {
            self.breakers.get(*name).is_some_and(refresh::CircuitBreaker::can_recover)
        });
        let without_grace = |name: &Name| {
            self.providers.get(name.as_str()).is_none_or(|p| p.refresh_grace.is_zero())
        };
        let (without_grace, with_grace): (Vec<_>, Vec<_>) =
            providers.cloned().partition(without_grace);
        let wanted = OpenIntents {
            with_grace: &with_grace,
            without_grace: &without_grace,
            expected_now: self.database.expected_now(),
            holder_timeout: self.settings.replica_timeout,
            passed_over,
            limit,
        };
        self.storage.open_intents(&wanted).await
    }

    /// A place for the recovery of one refresh at a provider, if one is free.
    #[must_use]
    pub fn recovery_place(&self, provider: &Name) -> Option<OwnedSemaphorePermit> {
        self.breakers.get(provider)?.recovery_place()
    }

    /// Every free place for calls to a provider in the background, once there is one. `None` if the
    /// provider is not configured or the broker drains.
    pub async fn background_places(&self, provider: &Name) -> Option<Vec<OwnedSemaphorePermit>> {
        let breaker = self.breakers.get(provider)?;
        let first = tokio::select! {
            place = breaker.next_background_place() => place,
            () = self.draining.cancelled() => return None,
        };
        let more = std::iter::from_fn(|| breaker.background_place());
        Some(std::iter::once(first).chain(more).collect())
    }

    /// Ends authorizations whose time is up, about `limit` at once.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn sweep(&self, limit: u64) -> Result<Swept, StorageError> {
        self.storage.forget_ended_revocations().await?;
        let swept =
            self.storage.sweep_authorizations(limit, |provider| self.disposal(provider)).await?;
        for (provider, state) in &swept.ended {
            self.metrics.authorization(provider, state.as_str());
        }
        Ok(swept)
    }

    /// The grants that were used since the last call.
    #[must_use]
    pub fn take_used(&self) -> Vec<Id> {
        self.used.take()
    }

    /// The providers that may be called now, as far as is known here.
    #[must_use]
    pub fn callable(&self, now: Timestamp) -> Vec<Name> {
        let callable = self.breakers.iter().filter(|(_, b)| b.stopped_for(now).is_none());
        callable.map(|(name, _)| name.clone()).collect()
    }
}
