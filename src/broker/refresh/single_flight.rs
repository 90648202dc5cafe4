//! Single flight: one refresh per grant, which callers join.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tracing::Instrument;

use super::super::boot_instant::BootInstant;
use super::super::caller;
use super::super::get_token::read_grant;
use super::circuit_breaker::Stopped;
use super::{BrokerError, RefreshService, done_elsewhere, refusal};
use crate::domain::grant::Grant;
use crate::domain::id::Id;
use crate::domain::name::Name;
use crate::domain::provider::Provider;
use crate::domain::time::Timestamp;
use crate::provider::ProviderError;
use crate::provider::http::TIMEOUT;
use crate::storage::{LEASE, Lease, StoredGrant, Takeover};
use crate::telemetry;

/// The time that callers wait for a refresh, and a refresh for another replica's lease, before callers get an error.
const PATIENCE: Duration = Duration::from_secs(30);
const _: () = assert!(PATIENCE.as_secs() > LEASE.as_secs() + TIMEOUT.as_secs());

/// The time that a refresh waits for the provider's endpoints to be learnt.
const LEARNING: Duration = Duration::from_secs(4);

/// The interval at which the row of a grant is read whose lease is another's; jitter of as much again is added.
const POLL: Duration = Duration::from_millis(50);

type Outcome = Result<StoredGrant, BrokerError>;
type OutcomeReceiver = watch::Receiver<Option<Outcome>>;
type OutcomeSender = watch::Sender<Option<Outcome>>;

/// The refreshes that are under way in this process, by grant.
#[derive(Default)]
pub(in super::super) struct SingleFlight(Mutex<HashMap<Id, InFlight>>);

struct InFlight {
    outcome: Arc<OutcomeSender>,
    /// `true` if new callers may still join. Once the answer has arrived they may not: a later caller must see the
    /// committed result, not an outcome that began before it asked.
    is_open: bool,
}

impl SingleFlight {
    /// Joins the refresh of this grant in progress, or starts one, and waits for its result. The refresh continues
    /// without its callers.
    pub(super) async fn join(
        &self,
        refreshes: &Arc<RefreshService>,
        held: &StoredGrant,
    ) -> Outcome {
        let (grant, key) = (&held.grant, &held.grant.key);
        let joined = async {
            loop {
                let (receiver, mine) = self.join_or_start(refreshes, grant, held.now);
                caller::waits();
                let outcome = outcome_of(receiver).await;
                if mine {
                    return outcome;
                }
                // That refresh was answered before this caller came. If its answer is not stored, sending the same
                // refresh token again could cost the grant.
                let held = read_grant(&refreshes.grants, key).await?;
                if let Some(outcome) = done_elsewhere(grant, &held) {
                    return outcome.map(|()| held);
                }
                refusal(&held)?;
            }
        };
        let joined = async {
            tokio::select! {
                outcome = joined => outcome,
                () = caller::gone() => Err(BrokerError::Overloaded),
            }
        };
        tokio::time::timeout(PATIENCE, joined).await.unwrap_or_else(|_| {
            tracing::warn!(provider = %key.provider, "a refresh has not ended yet");
            if !refreshes.health.is_up() {
                return Err(BrokerError::StorageUnavailable);
            }
            let (provider, retry_after) = (key.provider.clone(), super::super::error::RETRY);
            Err(BrokerError::ProviderUnavailable { provider, retry_after })
        })
    }

    /// Returns the refresh of this grant in progress or a new one, and whether its outcome is also this caller's.
    fn join_or_start(
        &self,
        refreshes: &Arc<RefreshService>,
        grant: &Grant,
        now: Timestamp,
    ) -> (OutcomeReceiver, bool) {
        match self.lock().entry(grant.id) {
            Entry::Occupied(entry) => (entry.get().outcome.subscribe(), entry.get().is_open),
            Entry::Vacant(free) => {
                let (sender, receiver) = watch::channel(None);
                let sender = Arc::new(sender);
                free.insert(InFlight { outcome: Arc::clone(&sender), is_open: true });
                // A span of its own: callers come and go.
                let span = tracing::info_span!(
                    "refresh",
                    provider = %grant.key.provider,
                    trace_id = tracing::field::Empty,
                );
                telemetry::record_trace_id(&span);
                let flight = flight(Arc::clone(refreshes), grant.clone(), now, sender);
                refreshes.tasks.spawn(flight.instrument(span));
                (receiver, true)
            }
        }
    }

    pub(super) fn close(&self, id: Id) {
        if let Some(flight) = self.lock().get_mut(&id) {
            flight.is_open = false;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Id, InFlight>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn outcome_of(mut receiver: OutcomeReceiver) -> Outcome {
    let outcome =
        receiver.wait_for(Option::is_some).await.ok().and_then(|outcome| (*outcome).clone());
    outcome.unwrap_or_else(|| {
        tracing::error!("the task of a refresh crashed");
        Err(BrokerError::Internal)
    })
}

async fn flight(
    refreshes: Arc<RefreshService>,
    grant: Grant,
    now: Timestamp,
    sender: Arc<OutcomeSender>,
) {
    let under_way = Flying { refreshes: &refreshes, id: grant.id };
    let outcome = refreshes.fly(grant, now, &sender).await;
    drop(under_way);
    sender.send_replace(Some(outcome));
}

/// Takes the flight off the list when it has ended, however it ended.
struct Flying<'a> {
    refreshes: &'a RefreshService,
    id: Id,
}

impl Drop for Flying<'_> {
    fn drop(&mut self) {
        self.refreshes.flights.lock().remove(&self.id);
    }
}

/// A lease, or what another replica has made of the grant.
enum Claim {
    /// With the time from before it was claimed.
    Mine(Lease, BootInstant),
    Done(Box<StoredGrant>),
    /// Another replica has the lease.
    Anothers,
}

impl RefreshService {
    async fn fly(&self, grant: Grant, now: Timestamp, callers: &OutcomeSender) -> Outcome {
        let name = &grant.key.provider;
        let provider = self
            .providers
            .get(name.as_str())
            .ok_or_else(|| BrokerError::ProviderNotAllowed { provider: name.clone() })?;
        // Before the claim: nothing is under way yet that could be lost.
        let server = tokio::time::timeout(LEARNING, self.providers.server(provider))
            .await
            .unwrap_or_else(|_| Err(ProviderError::ConnectError("the issuer is slow".to_owned())))
            .map_err(|error| BrokerError::from_provider(name, &error))?;
        let breaker = self.breakers.get(name).ok_or(BrokerError::Internal)?;
        let began = BootInstant::now();
        let ends = tokio::time::Instant::now() + PATIENCE;
        loop {
            // A refresh that waits for its turn and that no caller waits for any more is not begun.
            let admitted = tokio::select! {
                admitted = breaker.admit(grant.id, &grant.key.namespace, || now + began.elapsed()) => admitted,
                () = callers.closed() => return Err(BrokerError::Overloaded),
            };
            let mut permit = admitted.map_err(|stopped| {
                self.metrics.refresh(name, "circuit_open");
                told(name, &stopped)
            })?;
            // A refresh that has not begun must not begin any more.
            if self.tasks.are_draining() {
                return Err(BrokerError::Overloaded);
            }
            // Others would take this replica for gone while it holds the response, and repeat the refresh.
            if provider.refresh_grace.is_zero()
                && !self.health.is_known_to_live(self.replica_timeout)
            {
                return Err(BrokerError::StorageUnavailable);
            }
            match self.claim(&grant, provider).await? {
                Claim::Mine(lease, claimed) => {
                    self.metrics.lease_wait(name, began.elapsed());
                    return self.send(grant, &server, lease, claimed, &mut permit).await;
                }
                Claim::Done(held) => {
                    self.metrics.lease_wait(name, began.elapsed());
                    return Ok(*held);
                }
                Claim::Anothers => {}
            }
            if tokio::time::Instant::now() >= ends {
                let retry_after = super::super::error::RETRY;
                return Err(BrokerError::ProviderUnavailable {
                    provider: name.clone(),
                    retry_after,
                });
            }
            // The place is free for a refresh that has something to send.
            drop(permit);
            tokio::time::sleep(POLL + self.random.jitter(POLL)).await;
        }
    }

    /// The terms on which refreshes of unknown outcome may be taken over at a provider. `None` while
    /// this replica's view of the database is not stable.
    fn takeover(&self, provider: &Provider) -> Option<Takeover> {
        let holder_timeout = provider.refresh_grace.is_zero().then_some(self.replica_timeout);
        self.health
            .is_stable()
            .then(|| Takeover { expected_now: self.health.expected_now(), holder_timeout })
    }

    /// Claims the lease, or reports what another replica does or has done.
    async fn claim(&self, grant: &Grant, provider: &Provider) -> Result<Claim, BrokerError> {
        let began = BootInstant::now();
        if let Some(lease) = self.grants.claim_refresh(grant, self.takeover(provider)).await? {
            return Ok(Claim::Mine(lease, began));
        }
        let held = read_grant(&self.grants, &grant.key).await?;
        if let Some(outcome) = done_elsewhere(grant, &held) {
            return outcome.map(|()| Claim::Done(Box::new(held)));
        }
        refusal(&held)?;
        Ok(Claim::Anothers)
    }
}

/// The error of a stopped caller: the provider's last error, and the time of the next call.
fn told(provider: &Name, stopped: &Stopped) -> BrokerError {
    match BrokerError::from_provider(provider, &stopped.error) {
        BrokerError::ProviderUnavailable { provider, .. } => {
            BrokerError::ProviderUnavailable { provider, retry_after: stopped.retry_after }
        }
        told => told,
    }
}
