//! The one loop that sends a refresh token: a first attempt, a second one if the first may not have arrived, and the
//! fallback if the refresh token is dead.

use std::sync::Arc;
use std::time::Duration;

use super::super::boot_instant::BootInstant;
use super::super::get_token::{read_grant, reauthorization};
use super::circuit_breaker::Permit;
use super::settle::SentRefresh;
use super::{BrokerError, RefreshService, done_elsewhere};
use crate::domain::grant::Grant;
use crate::domain::provider::Server;
use crate::provider::ProviderError;
use crate::provider::http::{InTime, TIMEOUT};
use crate::provider::response::{Context, Request};
use crate::storage::{LEASE, Lease, StoredGrant};

/// A request may start no later than this after the time from which its lease counts: its answer
/// must be there before the lease has ended.
const LATEST_START: Duration = Duration::from_secs(LEASE.as_secs() - TIMEOUT.as_secs() - 1);
const _: () = assert!(LATEST_START.as_secs() + TIMEOUT.as_secs() < LEASE.as_secs());

/// The time that a connection may take, which is a part of the time for an answer.
const CONNECTING: Duration = Duration::from_secs(4);

/// The refresh token that is sent, and the attempt that sends it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    First,
    Second,
    /// The refresh token of a refresh that lost to a sibling.
    Fallback,
}

impl RefreshService {
    /// Sends the refresh token, and stores the result. `claimed` is from before the lease was claimed.
    pub(super) async fn send(
        &self,
        grant: Grant,
        server: &Server,
        mut lease: Lease,
        claimed: BootInstant,
        permit: &mut Permit<'_>,
    ) -> Result<StoredGrant, BrokerError> {
        let stays = lease.intent_was_open;
        let Some(mut refresh_token) = lease.refresh_token.clone() else {
            self.grants.release(&grant, lease.owner, stays, None, "no refresh token").await?;
            return Err(reauthorization(&grant.key));
        };
        // The process was stopped, or storage was slow: an answer might come after the lease.
        if claimed.elapsed() > LATEST_START {
            self.grants.release(&grant, lease.owner, stays, None, "too late to send").await?;
            return Err(BrokerError::Overloaded);
        }
        let lifetime = grant.expires_at.map(|at| at.since(grant.issued_at));
        let request = Request::Refresh;
        let scopes = &grant.scopes;
        let context = Context { request, scopes, lifetime, issued_at: lease.claimed_at };
        let (sent, mut began, mut turn) = (BootInstant::now(), claimed, Turn::First);
        loop {
            let http = self.providers.http();
            let answer = http.refresh(server, &refresh_token, in_time(began), context).await;
            if turn == Turn::First
                && !permit.is_probe()
                && let Err(error) = &answer
                && error.deserves_retry()
            {
                // Within the provider's grace the same refresh token still works, also if the first attempt
                // arrived. Without a grace a second attempt loses nothing more.
                tracing::warn!(%error, "refresh failed; trying once more");
                lease.intent_was_open |= error.is_ambiguous();
                // Where the lease cannot be renewed, the first attempt's result stands.
                if let Ok(Some(renewed)) = self.renewed(&grant, &lease).await {
                    (began, turn) = (renewed, Turn::Second);
                    continue;
                }
            }
            if turn != Turn::Fallback {
                let now = lease.claimed_at + sent.elapsed();
                permit.note(grant.id, answer.as_ref().err(), now);
                self.flights.close(grant.id);
            }
            if turn != Turn::Fallback && matches!(answer, Err(ProviderError::DeadGrant { .. })) {
                // Perhaps another refresh has replaced it.
                let held = read_grant(&self.grants, &grant.key).await?;
                if let Some(outcome) = done_elsewhere(&grant, &held) {
                    return outcome.map(|()| held);
                }
                if let Some(fallback) = lease.fallback.clone()
                    && let Some(renewed) = self.renewed(&grant, &lease).await?
                {
                    tracing::warn!("the refresh token is dead; trying the fallback");
                    (refresh_token, began, turn) = (fallback, renewed, Turn::Fallback);
                    continue;
                }
            }
            let fallback = (turn == Turn::Fallback).then_some(&refresh_token);
            let sent = SentRefresh { grant: &grant, server, lease: &lease, at: sent, fallback };
            return self.settle(&sent, answer).await;
        }
    }

    /// Extends the lease for another attempt. Returns the time from which it counts, or `None` if it has ended or
    /// leaves no time.
    async fn renewed(
        &self,
        grant: &Grant,
        lease: &Lease,
    ) -> Result<Option<BootInstant>, BrokerError> {
        let began = BootInstant::now();
        let renewed = self.grants.renew_lease(grant, lease.owner).await?;
        Ok((renewed && began.elapsed() <= LATEST_START).then_some(began))
    }
}

/// Returns `true` if a lease that counts from `began` leaves the time for an answer. Asked when the connection is
/// established.
fn in_time(began: BootInstant) -> InTime {
    Arc::new(move || began.elapsed() <= LATEST_START + CONNECTING)
}
