//! The open connections of one listener.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::domain::name::Name;

/// The interval at which the log says that connections are closed because of the limits.
const LOGGED_EVERY: Duration = Duration::from_secs(60);

/// The time after which a peer that reads nothing is given no further responses.
const STALLED: Duration = Duration::from_secs(1);

/// The number of connections that may be open beyond a limit, because others that were ended in their favour are not yet closed.
pub(super) const OVERLAP: usize = 64;

/// The number of connections that a listener keeps open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// All connections.
    pub total: usize,
    /// All connections of one peer.
    pub per_peer: usize,
    /// Pending connections.
    pub pending: usize,
    /// Pending connections of one peer: of an IPv4 address, or of an IPv6 network of 64 bits.
    pub pending_per_peer: usize,
    /// Active connections of one bot. Further ones stay pending.
    pub active_per_bot: usize,
}

/// The open connections of one listener.
#[derive(Debug)]
pub struct Connections {
    listener: &'static str,
    limits: ConnectionLimits,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    total_by_peer: HashMap<IpAddr, usize>,
    last_number: u64,
    /// By their numbers, so that the first one has been pending longest.
    pending: BTreeMap<u64, Pending>,
    pending_by_peer: HashMap<IpAddr, usize>,
    active: HashMap<u64, Active>,
    active_by_bot: HashMap<Name, usize>,
    is_closing: bool,
    closed_since_logged: u64,
    logged_at: Option<Instant>,
}

#[derive(Debug)]
struct Pending {
    peer: IpAddr,
    end: End,
}

#[derive(Debug)]
struct Active {
    bot: Option<Name>,
    end: End,
    running: Arc<AtomicUsize>,
}

/// Ends a connection. The flag is for the usual case, in which nothing waits for the token.
#[derive(Debug, Clone, Default)]
struct End {
    token: CancellationToken,
    is_ended: Arc<AtomicBool>,
}

impl End {
    fn end(&self) {
        self.is_ended.store(true, Ordering::Relaxed);
        self.token.cancel();
    }
}

/// One open connection, which is pending at first. Dropping it frees the place.
#[derive(Debug)]
pub struct Place {
    connections: Arc<Connections>,
    peer: SocketAddr,
    /// In [`Open::pending`] or [`Open::active`].
    number: Mutex<u64>,
    is_pending: AtomicBool,
    /// A valid credential was shown.
    has_credential: AtomicBool,
    end: End,
    /// The calls under way. At the end, a connection without one is closed.
    running: Arc<AtomicUsize>,
    sending: Mutex<Sending>,
    /// When the system began to take no bytes for the peer.
    blocked_since: Mutex<Option<Instant>>,
    is_blocked: AtomicBool,
}

/// The responses that the peer has yet to read.
#[derive(Debug, Default)]
struct Sending {
    count: usize,
    /// When the first of them began, or the peer last had room for a part of one.
    since: Option<Instant>,
}

/// A call of a connection that is under way. Dropping it ends the call.
#[derive(Debug)]
pub struct RunningCall(Arc<AtomicUsize>);

/// A response that its peer has yet to read. Dropping it says that the peer has read it, or that it is given up.
#[derive(Debug)]
pub struct UnreadResponse(Arc<Place>);

impl Connections {
    pub(super) fn new(listener: &'static str, limits: ConnectionLimits) -> Arc<Self> {
        Arc::new(Self { listener, limits, open: Mutex::default() })
    }

    /// Gives a new connection a place. Returns `None` if the limits leave none, even without a pending connection.
    pub(super) fn admit(self: &Arc<Self>, peer: SocketAddr) -> Option<Place> {
        let mut open = self.open();
        if open.is_closing {
            return None;
        }
        let network = network(peer.ip());
        let of_peer = open.pending_by_peer.get(&network).copied().unwrap_or_default();
        let all_of_peer = open.total_by_peer.get(&network).copied().unwrap_or_default();
        // Connections that were ended a moment ago are still open.
        let is_full = open.total >= self.limits.total + OVERLAP
            || all_of_peer >= self.limits.per_peer + OVERLAP;
        let has_room = if is_full {
            false
        } else if all_of_peer >= self.limits.per_peer || of_peer >= self.limits.pending_per_peer {
            open.end_oldest(Some(network))
        } else if open.pending.len() >= self.limits.pending || open.total >= self.limits.total {
            let greediest = open.greediest();
            open.end_oldest(greediest)
        } else {
            return Some(self.place(&mut open, peer));
        };
        open.closed_since_logged += 1;
        if open.logged_at.is_none_or(|at| at.elapsed() >= LOGGED_EVERY) {
            open.logged_at = Some(Instant::now());
            let closed = std::mem::take(&mut open.closed_since_logged);
            let (listener, open) = (self.listener, open.total);
            tracing::warn!(listener, open, closed, "too many connections; closing pending ones");
        }
        has_room.then(|| self.place(&mut open, peer))
    }

    /// Ends all pending connections, and admits no more.
    pub fn close(&self) {
        let mut open = self.open();
        open.is_closing = true;
        while open.end_oldest(None) {}
    }

    /// Ends all active connections without a call under way: their peers are idle, dead, or do not read.
    pub fn close_idle(&self) {
        for active in self.open().active.values() {
            if active.running.load(Ordering::Relaxed) == 0 {
                active.end.end();
            }
        }
    }

    fn place(self: &Arc<Self>, open: &mut Open, peer: SocketAddr) -> Place {
        open.total += 1;
        *open.total_by_peer.entry(network(peer.ip())).or_default() += 1;
        let end = End::default();
        let number = open.insert(network(peer.ip()), &end);
        Place {
            connections: Arc::clone(self),
            peer,
            number: Mutex::new(number),
            is_pending: AtomicBool::new(true),
            has_credential: AtomicBool::new(false),
            end,
            running: Arc::default(),
            sending: Mutex::default(),
            blocked_since: Mutex::default(),
            is_blocked: AtomicBool::new(false),
        }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn insert(&mut self, peer: IpAddr, end: &End) -> u64 {
        self.last_number += 1;
        *self.pending_by_peer.entry(peer).or_default() += 1;
        self.pending.insert(self.last_number, Pending { peer, end: end.clone() });
        self.last_number
    }

    fn remove(&mut self, number: u64) -> Option<Pending> {
        let removed = self.pending.remove(&number)?;
        decrement(&mut self.pending_by_peer, &removed.peer);
        Some(removed)
    }

    fn remove_active(&mut self, number: u64) {
        if let Some(Active { bot: Some(bot), .. }) = self.active.remove(&number) {
            decrement(&mut self.active_by_bot, &bot);
        }
    }

    /// The peer with the most pending connections, so that a few peers cannot push out all others.
    fn greediest(&self) -> Option<IpAddr> {
        self.pending_by_peer.iter().max_by_key(|(_, count)| **count).map(|(peer, _)| *peer)
    }

    /// Ends the connection that has been pending longest, of one peer or of all. Returns `false` if none is pending.
    fn end_oldest(&mut self, of: Option<IpAddr>) -> bool {
        let mut numbers = self.pending.iter();
        let oldest = numbers.find(|(_, pending)| of.is_none_or(|peer| pending.peer == peer));
        let Some(number) = oldest.map(|(number, _)| *number) else { return false };
        if let Some(removed) = self.remove(number) {
            removed.end.end();
        }
        true
    }
}

impl Place {
    /// Returns the peer's address.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Returns `true` if the connection may be ended in favour of a new one.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.is_pending.load(Ordering::Relaxed)
    }

    /// Keeps the connection until [`Place::set_pending`]. A bot that has too many keeps no more: then this one stays
    /// pending.
    pub fn set_active(&self, bot: Option<&Name>) {
        // The usual case for gRPC, without the lock.
        if !self.is_pending() {
            return;
        }
        let mut open = self.connections.open();
        if let Some(bot) = bot {
            self.has_credential.store(true, Ordering::Relaxed);
            let count = open.active_by_bot.get(bot).copied().unwrap_or_default();
            if count >= self.connections.limits.active_per_bot {
                return;
            }
            open.active_by_bot.insert(bot.clone(), count + 1);
        }
        self.is_pending.store(false, Ordering::Relaxed);
        let number = *self.number();
        open.remove(number);
        let running = Arc::clone(&self.running);
        open.active.insert(number, Active { bot: bot.cloned(), end: self.end.clone(), running });
    }

    /// Makes the connection pending again, as the newest one. While the listener closes it stays as it is.
    pub fn set_pending(&self) {
        let mut open = self.connections.open();
        if !open.is_closing && !self.is_pending() {
            let mut number = self.number();
            open.remove_active(*number);
            *number = open.insert(network(self.peer.ip()), &self.end);
            self.is_pending.store(true, Ordering::Relaxed);
        }
    }

    /// Ends when the connection must be closed at once.
    pub fn ended(&self) -> WaitForCancellationFutureOwned {
        self.end.token.clone().cancelled_owned()
    }

    /// Returns `true` if the connection must be closed at once.
    pub(super) fn is_ended(&self) -> bool {
        self.end.is_ended.load(Ordering::Relaxed)
    }

    /// Returns `true` if a valid credential was shown, also if the connection stays pending.
    pub(super) fn has_credential(&self) -> bool {
        self.has_credential.load(Ordering::Relaxed)
    }

    /// Takes note that the system took bytes for the peer, or that it took none.
    pub(super) fn wrote(&self, is_blocked: bool) {
        // The usual case, without the lock.
        if self.is_blocked.load(Ordering::Relaxed) == is_blocked {
            return;
        }
        self.is_blocked.store(is_blocked, Ordering::Relaxed);
        *self.blocked_since() = is_blocked.then(Instant::now);
    }

    /// Returns `true` if the peer has not read what was sent to it for a while. More responses would stay in memory.
    pub(super) fn is_stalled(&self) -> bool {
        self.is_blocked.load(Ordering::Relaxed)
            && self.blocked_since().is_some_and(|since| since.elapsed() >= STALLED)
    }

    fn blocked_since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.blocked_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note that a call is under way.
    pub(super) fn run(&self) -> RunningCall {
        self.running.fetch_add(1, Ordering::Relaxed);
        RunningCall(Arc::clone(&self.running))
    }

    /// Takes note that a response is being sent.
    pub(super) fn send(self: &Arc<Self>) -> UnreadResponse {
        let mut sending = self.sending();
        sending.count += 1;
        sending.since.get_or_insert_with(Instant::now);
        drop(sending);
        UnreadResponse(Arc::clone(self))
    }

    /// The time for which the peer has read none of the responses that it has yet to read. `None` if there is none.
    pub(super) fn unread_for(&self) -> Option<Duration> {
        self.sending().since.map(|since| since.elapsed())
    }

    fn number(&self) -> MutexGuard<'_, u64> {
        self.number.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sending(&self) -> MutexGuard<'_, Sending> {
        self.sending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RunningCall {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl UnreadResponse {
    /// Takes note that the peer had room for a part of the response.
    pub fn progress(&self) {
        let mut sending = self.0.sending();
        if let Some(since) = &mut sending.since {
            *since = Instant::now();
        }
    }
}

impl Drop for UnreadResponse {
    fn drop(&mut self) {
        let mut sending = self.0.sending();
        sending.count -= 1;
        sending.since = (sending.count > 0).then(Instant::now);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.connections.open();
        let number = *self.number();
        if self.is_pending() {
            open.remove(number);
        } else {
            open.remove_active(number);
        }
        open.total -= 1;
        decrement(&mut open.total_by_peer, &network(self.peer.ip()));
    }
}

fn decrement<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// One customer of an IPv6 provider has at least 64 bits of addresses.
pub(super) fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)))
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests;
