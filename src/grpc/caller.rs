//! The bot behind a credential, and its limits.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use governor::clock::Clock;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::call::{METHODS, Method};
use super::error::CallError;
use crate::domain::bot::{ApiKey, Bot};

/// The number of calls of one bot that use the database at once.
const WORK: usize = 64;

/// The number of places that a response of a list takes among the unread ones: it may have 100 KiB.
const LARGE: u32 = 16;

/// The reason of a call that succeeded, in metrics.
const OK: &str = "OK";

/// The bots that may call, by their credentials.
pub(super) struct Callers {
    keys: Vec<([u8; 32], Arc<BotCaller>)>,
    counts: Arc<CallCounts>,
}

/// A bot with what it uses of this replica. Each bot has limits of its own, so that none takes another's places.
#[derive(Debug)]
pub(super) struct BotCaller {
    pub(super) bot: Arc<Bot>,
    rate: Option<DefaultDirectRateLimiter>,
    /// Places of calls whose message is still being read.
    pub(super) reading: Arc<Semaphore>,
    /// Places of calls under way.
    pub(super) calls: Arc<Semaphore>,
    /// Shares of the work: calls that use the database, and do not just wait for a refresh. Others queue for one, so
    /// that the database's connections are not taken by one bot.
    pub(super) work: Arc<Semaphore>,
    /// Places of responses that the bot has yet to read.
    unread: Arc<Semaphore>,
    /// Places of streams. They last long, and must not keep calls out.
    pub(super) streams: Arc<Semaphore>,
    counts: BotCounts,
}

/// Calls since the start, by bot, method and result.
#[derive(Debug)]
pub(super) struct CallCounts {
    bots: Vec<Arc<BotCaller>>,
    /// Of calls without a valid credential.
    strangers: BotCounts,
}

/// Calls of one bot. Successful ones are counted without a lock.
#[derive(Debug, Default)]
struct BotCounts {
    successes: [AtomicU64; METHODS.len()],
    /// By method and reason: as many as the contract has.
    refusals: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
}

impl BotCounts {
    fn refused(&self, method: Method, reason: &'static str) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        *refusals.entry((method.name, reason)).or_default() += 1;
    }

    fn visit(&self, mut visit: impl FnMut(&'static str, &'static str, u64)) {
        for (method, count) in METHODS.iter().zip(&self.successes) {
            visit(method.name, OK, count.load(Ordering::Relaxed));
        }
        let refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        for ((method, reason), count) in refusals.iter() {
            visit(method, reason, *count);
        }
    }
}

impl BotCaller {
    /// A place for a response that the bot is to read, if one is free.
    pub(super) fn unread_place(&self, method: Method) -> Option<OwnedSemaphorePermit> {
        let is_large = matches!(method.name, "ListGrants" | "ListProviders" | "RevokeAll");
        let weight = if is_large { LARGE } else { 1 };
        Arc::clone(&self.unread).try_acquire_many_owned(weight).ok()
    }

    /// Counts a call that was answered.
    pub(super) fn count(&self, method: Method, refusal: Option<&'static str>) {
        match refusal {
            None => {
                self.counts.successes[method.index].fetch_add(1, Ordering::Relaxed);
            }
            Some(reason) => self.counts.refused(method, reason),
        }
    }
}

impl CallCounts {
    /// Reads all counts: bot, method, reason and number. Calls without a valid credential have no bot.
    pub(super) fn visit(&self, mut visit: impl FnMut(&str, &'static str, &'static str, u64)) {
        for caller in &self.bots {
            let bot = caller.bot.name.as_str();
            caller.counts.visit(|method, reason, count| visit(bot, method, reason, count));
        }
        let refusals = self.strangers.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        for ((method, reason), count) in refusals.iter() {
            visit("", method, reason, *count);
        }
    }
}

impl Callers {
    /// `places` is the limit of each kind and bot.
    pub(super) fn new<'a>(bots: impl Iterator<Item = &'a Arc<Bot>>, places: usize) -> Self {
        let semaphore = || Arc::new(Semaphore::new(places));
        let (mut keys, mut callers) = (Vec::new(), Vec::new());
        for bot in bots {
            let rate = bot.rate.map(|rate| {
                RateLimiter::direct(Quota::per_second(rate.per_second).allow_burst(rate.burst))
            });
            let caller = Arc::new(BotCaller {
                bot: Arc::clone(bot),
                rate,
                reading: semaphore(),
                calls: semaphore(),
                work: Arc::new(Semaphore::new(WORK)),
                streams: semaphore(),
                unread: Arc::new(Semaphore::new(places.max(LARGE as usize))),
                counts: BotCounts::default(),
            });
            callers.push(Arc::clone(&caller));
            keys.extend(bot.api_keys_sha256.iter().map(|hash| (*hash, Arc::clone(&caller))));
        }
        let counts = Arc::new(CallCounts { bots: callers, strangers: BotCounts::default() });
        Self { keys, counts }
    }

    pub(super) fn counts(&self) -> &Arc<CallCounts> {
        &self.counts
    }

    /// Counts a call without a valid credential.
    pub(super) fn count_stranger(&self, method: Method, reason: &'static str) {
        self.counts.strangers.refused(method, reason);
    }

    /// Returns the bot that a call comes from.
    pub(super) fn authenticate(&self, headers: &HeaderMap) -> Result<&Arc<BotCaller>, CallError> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return Err(CallError::Unauthenticated);
        };
        let key = value
            .to_str()
            .ok()
            .and_then(|text| text.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, key)| key.trim())
            // A short key can be guessed, even if its hash is configured.
            .filter(|key| key.len() >= ApiKey::MIN_BYTES)
            .ok_or(CallError::Unauthenticated)?;
        let hash = ApiKey::hash(key);
        // Every key is compared whole, so the time reveals neither a match nor its length.
        let mut found = u64::MAX;
        for (index, (known, _)) in self.keys.iter().enumerate() {
            let equal: Choice = known.ct_eq(&hash);
            found = u64::conditional_select(&found, &(index as u64), equal);
        }
        usize::try_from(found)
            .ok()
            .and_then(|index| self.keys.get(index))
            .map(|(_, caller)| caller)
            .ok_or(CallError::Unauthenticated)
    }
}

impl BotCaller {
    /// Checks that the bot may call this method now.
    pub(super) fn check(&self, method: Method) -> Result<(), CallError> {
        if !self.bot.may_call(method.name) {
            return Err(CallError::MethodNotAllowed { method: method.name });
        }
        let Some(rate) = &self.rate else { return Ok(()) };
        rate.check().map_err(|denied| {
            let wait = denied.wait_time_from(governor::clock::DefaultClock::default().now());
            CallError::RateLimited { retry_after: wait.max(Duration::from_millis(1)) }
        })
    }
}

impl std::fmt::Debug for Callers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Callers({} keys)", self.keys.len())
    }
}
