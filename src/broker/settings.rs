//! Settings of the operator for the use cases.

use std::num::NonZeroU32;
use std::time::Duration;

use url::Url;

use super::cache::Bounds;

/// Settings of the operator.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The URL of the listener for browsers.
    pub public_url: Url,
    /// The time for which a start link works.
    pub link_ttl: Duration,
    /// The time for which a confirmation code works.
    pub confirmation_ttl: Duration,
    /// The time for which a token that was read may be served.
    pub cache: Bounds,
    /// `true` if grants are refreshed ahead of time, without a caller.
    pub proactive_refresh: bool,
    /// The time for which a replica that writes no heartbeat may still hold the response to a refresh.
    pub replica_timeout: Duration,
    /// The limits of calls.
    pub limits: CallLimits,
}

/// The limits of the calls of one replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallLimits {
    /// The time for which a connection is used. Zero: for ever.
    pub max_connection_age: Duration,
    /// The most calls under way at once, and the most open streams, which are counted apart.
    pub max_concurrent_calls: NonZeroU32,
}

const MANY_CALLS: NonZeroU32 = NonZeroU32::new(1000).expect("not zero");

impl Default for CallLimits {
    fn default() -> Self {
        Self { max_connection_age: Duration::ZERO, max_concurrent_calls: MANY_CALLS }
    }
}
