//! What the operator chose, as far as the use cases go by it.

use std::num::NonZeroU32;
use std::time::Duration;

use url::Url;

use super::cache::Bounds;

/// What the operator chose.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How browsers reach the redirect listener.
    pub public_url: Url,
    /// How long a start link works.
    pub link_ttl: Duration,
    /// How long a confirmation code works.
    pub confirmation_ttl: Duration,
    /// How long a token that was read may be served.
    pub cache: Bounds,
    /// Whether grants are refreshed ahead of time, without a caller.
    pub refresh_ahead: bool,
    /// How long a replica that writes no heartbeat may still hold the response to a refresh.
    pub replica_timeout: Duration,
    /// How much callers may ask for.
    pub limits: CallLimits,
}

/// How much callers may ask of one replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallLimits {
    /// How long a connection is used. Zero: for ever.
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
