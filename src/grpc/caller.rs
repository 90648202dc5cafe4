//! Who calls: the bot behind a credential, and what it may call.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::Clock;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use tonic::metadata::MetadataMap;

use super::error::CallError;
use crate::domain::bot::{ApiKey, Bot};
use crate::domain::name::Name;

/// The bots that may call, by their credentials.
pub(super) struct Callers {
    keys: Vec<([u8; 32], Arc<Bot>)>,
    limits: HashMap<Name, DefaultDirectRateLimiter>,
}

impl Callers {
    pub(super) fn new<'a>(bots: impl Iterator<Item = &'a Arc<Bot>>) -> Self {
        let mut keys = Vec::new();
        let mut limits = HashMap::new();
        for bot in bots {
            keys.extend(bot.api_keys_sha256.iter().map(|hash| (*hash, Arc::clone(bot))));
            if let Some(rate) = bot.rate {
                let quota = Quota::per_second(rate.per_second).allow_burst(rate.burst);
                limits.insert(bot.name.clone(), RateLimiter::direct(quota));
            }
        }
        Self { keys, limits }
    }

    /// The bot that a call comes from, where it may call this method now.
    pub(super) fn admit(
        &self,
        metadata: &MetadataMap,
        method: &'static str,
    ) -> Result<Arc<Bot>, CallError> {
        let bot = self.authenticate(metadata)?;
        if !bot.may_call(method) {
            return Err(CallError::MethodNotAllowed { method });
        }
        if let Some(limit) = self.limits.get(&bot.name)
            && let Err(denied) = limit.check()
        {
            let wait = denied.wait_time_from(governor::clock::DefaultClock::default().now());
            return Err(CallError::RateLimited { retry_after: wait.max(Duration::from_millis(1)) });
        }
        Ok(bot)
    }

    fn authenticate(&self, metadata: &MetadataMap) -> Result<Arc<Bot>, CallError> {
        let mut values = metadata.get_all("authorization").iter();
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
            .map(|(_, bot)| Arc::clone(bot))
            .ok_or(CallError::Unauthenticated)
    }
}

impl std::fmt::Debug for Callers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Callers({} keys)", self.keys.len())
    }
}
