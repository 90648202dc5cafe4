//! One flight a grant: claim the lease, send, settle.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tracing::Instrument;

use super::super::lend::reauthorization;
use super::{Broker, BrokerError, backing_off};
use crate::domain::grant::{Grant, GrantState};
use crate::domain::id::Id;
use crate::domain::provider::Provider;
use crate::provider::http::TIMEOUT;
use crate::storage::{Held, LEASE, Lease};

/// How long a flight waits for another replica's lease before its callers are told to come back.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often the row of a grant is read whose lease is another's; jitter of as much again is added.
const POLL: Duration = Duration::from_millis(50);

/// A request may start no later than this after the time from which its lease counts: its answer
/// must be there before the lease has ended.
const LATEST_START: Duration = Duration::from_secs(LEASE.as_secs() - TIMEOUT.as_secs() - 1);

type Outcome = Result<Held, BrokerError>;
type Landing = watch::Receiver<Option<Outcome>>;

/// The refreshes that are under way in this process, by grant.
#[derive(Default)]
pub(in super::super) struct Flights(Mutex<HashMap<Id, Landing>>);

impl Flights {
    /// Joins the flight of this grant, or starts it, and waits for it to land. The flight goes on
    /// if the caller does not wait for it.
    pub(super) async fn join(&self, broker: &Arc<Broker>, grant: Grant) -> Outcome {
        let provider = grant.key.provider.clone();
        let mut landing = match self.lock().entry(grant.id) {
            Entry::Occupied(under_way) => under_way.get().clone(),
            Entry::Vacant(free) => {
                let (landed, landing) = watch::channel(None);
                free.insert(landing.clone());
                // A span of its own: callers come and go.
                let span = tracing::info_span!("refresh", %provider);
                let flight = flight(Arc::clone(broker), grant, landed);
                broker.tasks.spawn(flight.instrument(span));
                landing
            }
        };
        let outcome = landing.wait_for(Option::is_some).await.ok().and_then(|o| (*o).clone());
        outcome.unwrap_or_else(|| {
            tracing::error!(%provider, "the task of a refresh crashed");
            Err(BrokerError::Internal)
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Id, Landing>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn flight(broker: Arc<Broker>, grant: Grant, landed: watch::Sender<Option<Outcome>>) {
    let boarding = Boarding { broker: &broker, id: grant.id };
    let outcome = broker.fly(grant, boarding).await;
    landed.send_replace(Some(outcome));
}

/// While this lives, new callers join the flight. It ends before the commit starts: a caller that
/// comes later must see what was committed, not an outcome that began before it asked.
pub(super) struct Boarding<'a> {
    broker: &'a Broker,
    id: Id,
}

impl Drop for Boarding<'_> {
    fn drop(&mut self) {
        self.broker.flights.lock().remove(&self.id);
    }
}

/// A lease, or what another replica has made of the grant.
enum Claim {
    Mine(Lease),
    Done(Box<Held>),
}

impl Broker {
    async fn fly(&self, grant: Grant, boarding: Boarding<'_>) -> Outcome {
        let provider = self.providers.get(&grant.key.provider).ok_or_else(|| {
            BrokerError::ProviderNotAllowed { provider: grant.key.provider.clone() }
        })?;
        let (lease, started) = loop {
            let started = Uptime::now();
            match self.claim(&grant).await? {
                Claim::Done(held) => return Ok(*held),
                Claim::Mine(lease) if started.elapsed() <= LATEST_START => break (lease, started),
                // The process was stopped, or storage was slow: too late to send anything.
                Claim::Mine(lease) => {
                    let stays = lease.intent_was_open;
                    self.storage
                        .release(&grant, lease.owner, stays, None, "claimed too late")
                        .await?;
                }
            }
        };
        self.send(grant, provider, lease, started, boarding).await
    }

    /// Claims the lease. Where another has it, waits for the row to change.
    async fn claim(&self, grant: &Grant) -> Result<Claim, BrokerError> {
        let ends = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Some(lease) = self.storage.claim_refresh(grant).await? {
                return Ok(Claim::Mine(lease));
            }
            let held = self.held(&grant.key).await?;
            if held.grant.id != grant.id || held.grant.version != grant.version {
                return Ok(Claim::Done(Box::new(held)));
            }
            if held.grant.state == GrantState::ReauthorizationRequired {
                return Err(reauthorization(&grant.key));
            }
            let unavailable = |retry_after| BrokerError::ProviderUnavailable {
                provider: grant.key.provider.clone(),
                retry_after,
            };
            if let Some(retry_after) = backing_off(&held) {
                return Err(unavailable(retry_after));
            }
            if tokio::time::Instant::now() >= ends {
                return Err(unavailable(super::super::error::RETRY));
            }
            tokio::time::sleep(POLL + self.random.jitter(POLL)).await;
        }
    }

    /// Sends the refresh token, once, and settles what comes back.
    async fn send(
        &self,
        grant: Grant,
        provider: &Provider,
        lease: Lease,
        started: Uptime,
        boarding: Boarding<'_>,
    ) -> Outcome {
        let Some(refresh_token) = &lease.refresh_token else {
            self.storage.release(&grant, lease.owner, false, None, "no refresh token").await?;
            return Err(reauthorization(&grant.key));
        };
        if started.elapsed() > LATEST_START {
            let stays = lease.intent_was_open;
            self.storage.release(&grant, lease.owner, stays, None, "too late to send").await?;
            return Err(BrokerError::Overloaded);
        }
        let answer = self.http.refresh(provider, refresh_token).await;
        drop(boarding);
        self.settle(&grant, provider, &lease, answer).await
    }
}

/// Time since the machine started, sleep included: a process that was stopped, or a machine that
/// slept, must notice that its lease has ended.
#[derive(Clone, Copy)]
struct Uptime(Duration);

impl Uptime {
    fn now() -> Self {
        #[cfg(target_os = "linux")]
        let clock = rustix::time::ClockId::Boottime;
        #[cfg(not(target_os = "linux"))]
        let clock = rustix::time::ClockId::Monotonic;
        let now = rustix::time::clock_gettime(clock);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let nanos = u32::try_from(now.tv_nsec).unwrap_or(0);
        Self(Duration::new(seconds, nanos))
    }

    fn elapsed(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }
}
