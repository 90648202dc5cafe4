//! The open connections of one listener.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// The interval at which the log says that connections are closed because of the limits.
const LOGGED_EVERY: Duration = Duration::from_secs(60);

/// The number of connections that may be open beyond a limit, because others that were ended in their favour are not yet closed.
pub(super) const OVERLAP: usize = 64;

/// The number of a connection that is not pending.
const ACTIVE: u64 = 0;

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
    is_closing: bool,
    closed_since_logged: u64,
    logged_at: Option<Instant>,
}

#[derive(Debug)]
struct Pending {
    peer: IpAddr,
    end: CancellationToken,
}

/// One open connection, which is pending at first. Dropping it frees the place.
#[derive(Debug)]
pub struct Place {
    connections: Arc<Connections>,
    peer: SocketAddr,
    /// The number in [`Open::pending`], or [`ACTIVE`].
    number: AtomicU64,
    end: CancellationToken,
}

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

    fn place(self: &Arc<Self>, open: &mut Open, peer: SocketAddr) -> Place {
        open.total += 1;
        *open.total_by_peer.entry(network(peer.ip())).or_default() += 1;
        let end = CancellationToken::new();
        let number = open.insert(network(peer.ip()), &end);
        Place { connections: Arc::clone(self), peer, number: AtomicU64::new(number), end }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn insert(&mut self, peer: IpAddr, end: &CancellationToken) -> u64 {
        self.last_number += 1;
        *self.pending_by_peer.entry(peer).or_default() += 1;
        self.pending.insert(self.last_number, Pending { peer, end: end.clone() });
        self.last_number
    }

    fn remove(&mut self, number: u64) -> Option<Pending> {
        let removed = self.pending.remove(&number)?;
        decrement(&mut self.pending_by_peer, removed.peer);
        Some(removed)
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
            removed.end.cancel();
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
        self.number.load(Ordering::Relaxed) != ACTIVE
    }

    /// Keeps the connection until [`Place::set_pending`].
    pub fn set_active(&self) {
        // The usual case for gRPC, without the lock.
        if !self.is_pending() {
            return;
        }
        let mut open = self.connections.open();
        open.remove(self.number.swap(ACTIVE, Ordering::Relaxed));
    }

    /// Makes the connection pending again, as the newest one. While the listener closes it stays as it is.
    pub fn set_pending(&self) {
        let mut open = self.connections.open();
        if !open.is_closing && !self.is_pending() {
            let number = open.insert(network(self.peer.ip()), &self.end);
            self.number.store(number, Ordering::Relaxed);
        }
    }

    /// Ends when the connection must be closed at once.
    pub fn ended(&self) -> WaitForCancellationFutureOwned {
        self.end.clone().cancelled_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.connections.open();
        open.remove(self.number.load(Ordering::Relaxed));
        open.total -= 1;
        decrement(&mut open.total_by_peer, network(self.peer.ip()));
    }
}

fn decrement(counts: &mut HashMap<IpAddr, usize>, peer: IpAddr) {
    if let Some(count) = counts.get_mut(&peer) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&peer);
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
mod tests {
    use super::*;

    const LIMITS: ConnectionLimits =
        ConnectionLimits { total: 4, per_peer: 4, pending: 3, pending_per_peer: 2 };

    fn admit(connections: &Arc<Connections>, peer: &str) -> Option<Place> {
        connections.admit(SocketAddr::new(peer.parse().expect("an address"), 1))
    }

    #[test]
    fn the_oldest_pending_connection_of_a_peer_gives_way() {
        let connections = Connections::new("test", LIMITS);
        let other = admit(&connections, "192.0.2.2").expect("a place");
        let first = admit(&connections, "192.0.2.1").expect("a place");
        let second = admit(&connections, "192.0.2.1").expect("a place");
        let third = admit(&connections, "::ffff:192.0.2.1").expect("a place");
        let ended = [&other, &first, &second, &third].map(|place| place.end.is_cancelled());
        assert_eq!(ended, [false, true, false, false]);
    }

    #[test]
    fn the_peer_with_the_most_pending_connections_gives_way_to_others() {
        let connections = Connections::new("test", LIMITS);
        let single = admit(&connections, "192.0.2.2").expect("a place");
        let first = admit(&connections, "192.0.2.1").expect("a place");
        let second = admit(&connections, "192.0.2.1").expect("a place");
        let _other = admit(&connections, "192.0.2.3").expect("a place");
        let ended = [&single, &first, &second].map(|place| place.end.is_cancelled());
        assert_eq!(ended, [false, true, false]);
    }

    #[test]
    fn an_ipv6_network_is_one_peer() {
        let connections = Connections::new("test", LIMITS);
        let first = admit(&connections, "2001:db8::1").expect("a place");
        let _second = admit(&connections, "2001:db8::2").expect("a place");
        let _third = admit(&connections, "2001:db8::3").expect("a place");
        assert!(first.end.is_cancelled());
        let elsewhere = admit(&connections, "2001:db8:0:1::1").expect("a place");
        assert!(!elsewhere.end.is_cancelled());
    }

    #[test]
    fn active_connections_stay_and_count() {
        let connections = Connections::new("test", LIMITS);
        let places: Vec<_> = (1..=4)
            .map(|host| {
                let place = admit(&connections, &format!("192.0.2.{host}")).expect("a place");
                place.set_active();
                place
            })
            .collect();
        assert!(admit(&connections, "192.0.2.9").is_none(), "all are active");
        places[2].set_pending();
        let next = admit(&connections, "192.0.2.9").expect("the place of the pending one");
        assert!(places[2].end.is_cancelled());
        assert!(places.iter().filter(|place| place.end.is_cancelled()).count() == 1);
        drop((places, next));
        assert_eq!(connections.open().total, 0);
        assert!(connections.open().pending_by_peer.is_empty());
        assert!(connections.open().total_by_peer.is_empty());
    }

    #[test]
    fn one_peer_does_not_take_every_place() {
        let limits =
            ConnectionLimits { total: 400, per_peer: 2, pending: 400, pending_per_peer: 400 };
        let connections = Connections::new("test", limits);
        let mut places = Vec::new();
        while let Some(place) = admit(&connections, "192.0.2.1") {
            place.set_active();
            places.push(place);
        }
        assert_eq!(places.len(), 2);
        assert!(admit(&connections, "192.0.2.2").is_some());
    }

    #[test]
    fn closing_ends_the_pending_ones() {
        let connections = Connections::new("test", LIMITS);
        let (idle, active) = (admit(&connections, "192.0.2.1"), admit(&connections, "192.0.2.2"));
        let (idle, active) = (idle.expect("a place"), active.expect("a place"));
        active.set_active();
        connections.close();
        active.set_pending();
        assert!(idle.end.is_cancelled() && !active.end.is_cancelled());
        assert!(admit(&connections, "192.0.2.3").is_none());
    }
}
