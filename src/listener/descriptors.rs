//! Shares the file descriptors of the process among the listeners, so that none takes another's.

use std::num::NonZeroU32;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::ConnectionLimits;
use super::connections::OVERLAP;
use crate::domain::bot::Rate;

/// As many descriptors as are ever used. More would only make tables larger.
const MOST: u64 = 65_536;

/// Descriptors for everything but connections that were accepted: databases, providers, files and the runtime.
const RESERVED: u64 = 256 + 3 * OVERLAP as u64;

/// The fewest descriptors that let a service run.
pub const LEAST_DESCRIPTORS: u64 = RESERVED + 128;

/// The limit on the requests of one peer if the configuration has none. A sign-in takes two or three requests, and all
/// browsers behind one proxy share the limit.
pub const DEFAULT_RATE: Rate = Rate {
    per_second: NonZeroU32::new(100).expect("not zero"),
    burst: NonZeroU32::new(400).expect("not zero"),
};

/// The limits of all listeners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenerLimits {
    /// For bots.
    pub grpc: ConnectionLimits,
    /// For browsers, and so for anyone.
    pub http: ConnectionLimits,
    /// For the platform.
    pub ops: ConnectionLimits,
    /// Requests of one peer at the listener for browsers.
    pub http_rate: Option<Rate>,
}

impl Default for ListenerLimits {
    fn default() -> Self {
        Self {
            grpc: ConnectionLimits {
                total: 1024,
                per_peer: 512,
                pending: 256,
                pending_per_peer: 64,
                active_per_bot: 256,
            },
            http: ConnectionLimits {
                total: 512,
                per_peer: 384,
                pending: 512,
                pending_per_peer: 128,
                // Browsers are no bots.
                active_per_bot: 512,
            },
            ops: ConnectionLimits {
                total: 64,
                per_peer: 64,
                pending: 64,
                pending_per_peer: 64,
                active_per_bot: 64,
            },
            http_rate: Some(DEFAULT_RATE),
        }
    }
}

impl ListenerLimits {
    /// Returns the limits that `descriptors` have room for, at most the default ones. The ops listener keeps its own.
    #[must_use]
    pub fn within(descriptors: u64) -> Self {
        let Self { grpc, http, ops, http_rate } = Self::default();
        let free = descriptors.saturating_sub(RESERVED + ops.total as u64);
        let wanted = (grpc.total + http.total) as u64;
        if free >= wanted {
            return Self { grpc, http, ops, http_rate };
        }
        let share = |limits: ConnectionLimits| {
            let share = |part: usize| {
                usize::try_from(part as u64 * free / wanted).unwrap_or(usize::MAX).max(1)
            };
            ConnectionLimits {
                total: share(limits.total),
                per_peer: share(limits.per_peer),
                pending: share(limits.pending),
                pending_per_peer: share(limits.pending_per_peer),
                active_per_bot: share(limits.active_per_bot),
            }
        };
        Self { grpc: share(grpc), http: share(http), ops, http_rate }
    }
}

/// Raises the limit of open files as far as the system allows. Returns the limit.
pub fn raise_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.unwrap_or(MOST).min(MOST);
    match current {
        Some(current) if current < wanted => {
            let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
            if raised.is_ok() { wanted } else { current }
        }
        Some(current) => current,
        None => MOST,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_descriptors_are_shared() {
        assert_eq!(ListenerLimits::within(65_536), ListenerLimits::default());
        let few = ListenerLimits::within(1024);
        assert_eq!((few.grpc.total, few.http.total, few.ops.total), (341, 170, 64));
        assert!(few.grpc.total + few.http.total + few.ops.total + 448 <= 1024);
        let least = ListenerLimits::within(10);
        assert_eq!((least.grpc.total, least.http.pending_per_peer), (1, 1));
    }
}
