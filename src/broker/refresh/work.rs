//! Work for the workers, and the free places for it.

use tokio::sync::OwnedSemaphorePermit;

use super::{CircuitBreaker, RefreshService};
use crate::domain::grant::Grant;
use crate::domain::id::Id;
use crate::domain::name::Name;
use crate::domain::time::Timestamp;
use crate::storage::{DueWork, OpenIntents, StorageError};

impl RefreshService {
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
        if !self.health.is_stable() {
            return Ok(Vec::new());
        }
        // One whose places are all taken must not fill the batch.
        let providers = providers
            .iter()
            .filter(|name| self.breakers.get(*name).is_some_and(CircuitBreaker::can_recover));
        let without_grace = |name: &Name| {
            self.providers.get(name.as_str()).is_none_or(|p| p.refresh_grace.is_zero())
        };
        let (without_grace, with_grace): (Vec<_>, Vec<_>) =
            providers.cloned().partition(without_grace);
        let wanted = OpenIntents {
            with_grace: &with_grace,
            without_grace: &without_grace,
            expected_now: self.health.expected_now(),
            holder_timeout: self.replica_timeout,
            passed_over,
            limit,
        };
        self.grants.open_intents(&wanted).await
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
            () = self.tasks.draining().cancelled() => return None,
        };
        let more = std::iter::from_fn(|| breaker.background_place());
        Some(std::iter::once(first).chain(more).collect())
    }

    /// The providers that may be called now, as far as is known here.
    #[must_use]
    pub fn callable(&self, now: Timestamp) -> Vec<Name> {
        let callable = self.breakers.iter().filter(|(_, b)| b.stopped_for(now).is_none());
        callable.map(|(name, _)| name.clone()).collect()
    }

    /// Finds the providers that have grants to refresh ahead of time, or tokens to revoke.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn due_work(&self, providers: &[Name]) -> Result<DueWork, StorageError> {
        self.grants.due_work(providers).await
    }

    /// Claims at most `limit` grants of a provider that are due for a look.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn claim_due(&self, provider: &Name, limit: u64) -> Result<Vec<Grant>, StorageError> {
        self.grants.claim_due(provider, limit).await
    }

    /// Makes grants due for a look that would be looked at only after their next use. Returns the last one of at most
    /// `limit`, or `None` at the end.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn look_at_all(
        &self,
        providers: &[Name],
        after: Option<Id>,
        limit: u64,
    ) -> Result<Option<Id>, StorageError> {
        self.grants.look_at_all(providers, after, limit).await
    }

    /// The providers, and why calls to them are stopped here, where they are.
    #[must_use]
    pub fn breakers(&self) -> Vec<(Name, Option<&'static str>)> {
        self.breakers.iter().map(|(name, breaker)| (name.clone(), breaker.reason())).collect()
    }
}
