//! Who calls: the bot behind a credential, and what it may call.

use std::sync::Arc;
use std::time::Duration;

use governor::clock::Clock;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use tokio::sync::Semaphore;

use super::error::CallError;
use crate::domain::bot::{ApiKey, Bot};

/// The bots that may call, by their credentials.
pub(super) struct Callers {
    keys: Vec<([u8; 32], Arc<BotCaller>)>,
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
    /// Places of streams. They last long, and must not keep calls out.
    pub(super) streams: Arc<Semaphore>,
}

impl Callers {
    /// `places` is the limit of each kind and bot.
    pub(super) fn new<'a>(bots: impl Iterator<Item = &'a Arc<Bot>>, places: usize) -> Self {
        let semaphore = || Arc::new(Semaphore::new(places));
        let mut keys = Vec::new();
        for bot in bots {
            let rate = bot.rate.map(|rate| {
                RateLimiter::direct(Quota::per_second(rate.per_second).allow_burst(rate.burst))
            });
            let caller = Arc::new(BotCaller {
                bot: Arc::clone(bot),
                rate,
                reading: semaphore(),
                calls: semaphore(),
                streams: semaphore(),
            });
            keys.extend(bot.api_keys_sha256.iter().map(|hash| (*hash, Arc::clone(&caller))));
        }
        Self { keys }
    }

    /// Returns the bot that a call comes from, if it may call this method now.
    pub(super) fn admit(
        &self,
        headers: &HeaderMap,
        method: &'static str,
    ) -> Result<&Arc<BotCaller>, CallError> {
        let caller = self.authenticate(headers)?;
        if !caller.bot.may_call(method) {
            return Err(CallError::MethodNotAllowed { method });
        }
        if let Some(rate) = &caller.rate
            && let Err(denied) = rate.check()
        {
            let wait = denied.wait_time_from(governor::clock::DefaultClock::default().now());
            return Err(CallError::RateLimited { retry_after: wait.max(Duration::from_millis(1)) });
        }
        Ok(caller)
    }

    fn authenticate(&self, headers: &HeaderMap) -> Result<&Arc<BotCaller>, CallError> {
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
            .ok_or(CallError::Unauthenticated)?;
        let hash = ApiKey::hash(key);
        // Every key is compared, whole: the time tells neither which one is near nor how near.
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

impl std::fmt::Debug for Callers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Callers({} keys)", self.keys.len())
    }
}
