//! Living tokens that were read a moment ago, so that GetToken need not ask the database each time.
//!
//! The age of an entry is a bound, and not a hope: it counts from before the read, and an entry that
//! is older than `max_age` is served only while the database cannot be reached, and then no longer
//! than `outage_max_age`. Notice of revocations and replacements makes it only faster.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use quick_cache::sync::Cache;

use super::boot_instant::BootInstant;
use super::refresh::etag;
use crate::domain::grant::{Grant, GrantKey, KeyHash};
use crate::domain::id::Id;
use crate::domain::time::Timestamp;
use crate::domain::token::AccessToken;
use crate::storage::StoredGrant;

/// Into how many parts keys are sorted, each with a count of its invalidations.
const PARTS: usize = 256;

/// The time for which a token that was read may be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// As long as the database can be reached. Zero: not at all, so that Revoke is linearizable.
    pub max_age: Duration,
    /// While the database cannot be reached.
    pub outage_max_age: Duration,
    /// The number of tokens that are kept.
    pub max_entries: usize,
}

/// No cache: every GetToken reads the database.
pub const NO_CACHE: Bounds =
    Bounds { max_age: Duration::ZERO, outage_max_age: Duration::ZERO, max_entries: 1 };

/// The tokens of one replica.
pub(super) struct TokenCache {
    bounds: Bounds,
    entries: Cache<KeyHash, Arc<Entry>>,
    parts: Box<[AtomicU64; PARTS]>,
    counts: Counts,
}

struct Entry {
    grant: Grant,
    token: AccessToken,
    /// Of the token; worked out once.
    etag: String,
    /// The database's time when it was read.
    read_on: Timestamp,
    /// From before it was read.
    read_at: BootInstant,
    /// `true` if it is known already that the grant was used.
    used: AtomicBool,
}

/// The counts of look-ups.
#[derive(Debug, Default)]
struct Counts {
    hits: AtomicU64,
    misses: AtomicU64,
    outage_hits: AtomicU64,
    invalidations: AtomicU64,
    oldest_millis: AtomicU64,
}

/// The cache's counts since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheCounts {
    /// Look-ups that were answered.
    pub hits: u64,
    /// Of these, while the database could not be reached.
    pub outage_hits: u64,
    /// Look-ups that were not.
    pub misses: u64,
    /// Entries that were forgotten because of a change.
    pub invalidations: u64,
    /// The age of the oldest entry that was served.
    pub oldest: Duration,
}

/// From before a read. What was read is kept only if nothing was invalidated since.
#[derive(Clone, Copy)]
pub(super) struct Ticket {
    hash: KeyHash,
    invalidations: u64,
    begun: BootInstant,
}

/// A grant with its token from the cache, as of now. It shares the cached entry instead of copying it.
pub struct CachedToken {
    entry: Arc<Entry>,
    /// The time on the database's clock, no earlier than it is.
    pub(super) now: Timestamp,
    /// The grant, where this is its first use since it was read.
    pub(super) first_use: Option<Id>,
}

impl CachedToken {
    /// The grant.
    #[must_use]
    pub fn grant(&self) -> &Grant {
        &self.entry.grant
    }

    /// Its access token.
    #[must_use]
    pub fn token(&self) -> &AccessToken {
        &self.entry.token
    }

    /// The token's etag.
    #[must_use]
    pub fn etag(&self) -> &str {
        &self.entry.etag
    }

    /// The same as a read of the database would give it.
    pub(super) fn into_held(self) -> StoredGrant {
        StoredGrant {
            grant: self.entry.grant.clone(),
            access_token: Some(self.entry.token.clone()),
            leased: false,
            now: self.now,
        }
    }
}

impl TokenCache {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            entries: Cache::new(bounds.max_entries.max(1)),
            bounds,
            parts: Box::new(std::array::from_fn(|_| AtomicU64::new(0))),
            counts: Counts::default(),
        }
    }

    fn is_off(&self) -> bool {
        self.bounds.max_age.is_zero()
    }

    /// A grant that was read no longer ago than `max_age`, or, in an outage, than
    /// `outage_max_age`.
    pub(super) fn get(&self, key: &GrantKey, outage: bool) -> Option<CachedToken> {
        if self.is_off() {
            return None;
        }
        let most = if outage { self.bounds.outage_max_age } else { self.bounds.max_age };
        let found = self.entries.get(&key.hash()).filter(|entry| entry.read_at.elapsed() <= most);
        let Some(entry) = found else {
            self.counts.misses.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        let age = entry.read_at.elapsed();
        self.counts.hits.fetch_add(1, Ordering::Relaxed);
        if outage {
            self.counts.outage_hits.fetch_add(1, Ordering::Relaxed);
        }
        let millis = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        self.counts.oldest_millis.fetch_max(millis, Ordering::Relaxed);
        // The database's clock has advanced since; a token never counts as younger than it is.
        let now = entry.read_on + age;
        // Read first, so that callers on several cores share the entry without writing to it.
        let is_first =
            !entry.used.load(Ordering::Relaxed) && !entry.used.swap(true, Ordering::Relaxed);
        let first_use = is_first.then_some(entry.grant.id);
        Some(CachedToken { entry, now, first_use })
    }

    /// To be taken before a read.
    pub(super) fn ticket(&self, key: &GrantKey) -> Ticket {
        let hash = key.hash();
        Ticket {
            hash,
            invalidations: self.part(hash).load(Ordering::SeqCst),
            begun: BootInstant::now(),
        }
    }

    /// Keeps what was read, unless it may have changed since the read began.
    pub(super) fn put(&self, ticket: Ticket, held: &StoredGrant) {
        let current = || self.part(ticket.hash).load(Ordering::SeqCst) == ticket.invalidations;
        let Some(token) = held.access_token.as_ref().filter(|_| !self.is_off() && current()) else {
            return;
        };
        let entry = Entry {
            grant: held.grant.clone(),
            token: token.clone(),
            etag: etag(&held.grant, token),
            read_on: held.now,
            read_at: ticket.begun,
            used: AtomicBool::new(false),
        };
        self.entries.insert(ticket.hash, Arc::new(entry));
        // It may have been invalidated between the look and the insertion.
        if !current() {
            self.entries.remove(&ticket.hash);
        }
    }

    /// Forgets a grant that was revoked, replaced or refreshed.
    pub(super) fn forget(&self, hash: KeyHash) {
        self.part(hash).fetch_add(1, Ordering::SeqCst);
        if self.entries.remove(&hash).is_some() {
            self.counts.invalidations.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn counts(&self) -> CacheCounts {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        CacheCounts {
            hits: read(&self.counts.hits),
            outage_hits: read(&self.counts.outage_hits),
            misses: read(&self.counts.misses),
            invalidations: read(&self.counts.invalidations),
            oldest: Duration::from_millis(read(&self.counts.oldest_millis)),
        }
    }

    fn part(&self, hash: KeyHash) -> &AtomicU64 {
        &self.parts[usize::from(hash.first_byte())]
    }
}
