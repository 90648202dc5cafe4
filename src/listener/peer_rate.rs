//! A limit on the requests of one peer.

use std::hash::BuildHasher;
use std::hash::RandomState;
use std::net::IpAddr;

use governor::clock::DefaultClock;
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};

use super::connections::network;
use crate::domain::bot::Rate;

/// Peers are hashed into so many groups that share a limit, which bounds the memory.
const GROUPS: u64 = 4096;

/// A limit on the requests of each peer.
pub(super) struct PeerRate {
    limits: RateLimiter<u64, HashMapStateStore<u64>, DefaultClock>,
    /// Seeded, so that peers cannot choose their group.
    hasher: RandomState,
}

impl PeerRate {
    pub(super) fn new(rate: Rate) -> Self {
        let quota = Quota::per_second(rate.per_second).allow_burst(rate.burst);
        Self { limits: RateLimiter::hashmap(quota), hasher: RandomState::new() }
    }

    /// Counts a request. Returns `false` if its peer sends too many.
    pub(super) fn allows(&self, peer: IpAddr) -> bool {
        self.limits.check_key(&(self.hasher.hash_one(network(peer)) % GROUPS)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn each_peer_has_its_own() {
        let of = |number| NonZeroU32::new(number).expect("not zero");
        let rate = PeerRate::new(Rate { per_second: of(1), burst: of(5) });
        let first: IpAddr = "192.0.2.1".parse().expect("an address");
        let allowed = (0..20).filter(|_| rate.allows(first)).count();
        assert_eq!(allowed, 5);
        // Two peers in one group are rare, and not two hundred.
        let others = (2..=201_u8).filter(|last| rate.allows(IpAddr::from([192, 0, 2, *last])));
        assert!(others.count() > 190);
    }
}
