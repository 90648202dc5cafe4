//! `[cache]`: how long a token that was read may be served.

use std::num::NonZeroU32;
use std::time::Duration;

use super::problem::Reported;
use super::section::Section;
use super::value::{count, duration};
use crate::broker::Bounds;

const DEFAULT_MAX_AGE: Duration = Duration::from_secs(5);
const DEFAULT_OUTAGE_MAX_AGE: Duration = Duration::from_secs(5 * 60);
const DEFAULT_MAX_ENTRIES: usize = 100_000;

/// The longest times: a revocation must take effect within a minute, and an outage end within an hour.
const MOST: Duration = Duration::from_secs(60);
const MOST_OUTAGE: Duration = Duration::from_secs(60 * 60);

pub(super) fn read(mut section: Section<'_>) -> Result<Bounds, Reported> {
    let max_age = section.or("max_age", DEFAULT_MAX_AGE, duration(Duration::ZERO..=MOST));
    let outage = section.optional("outage_max_age", duration(Duration::ZERO..=MOST_OUTAGE));
    let max_entries = section.optional("max_entries", count);
    section.finish();
    let (max_age, outage) = (max_age?, outage?);
    if max_age.is_zero() && outage.is_some_and(|outage| !outage.is_zero()) {
        return Err(section.problem(
            "outage_max_age",
            "has no use without a cache; write \"0s\", remove it, or give max_age a time",
        ));
    }
    let outage_max_age = match outage {
        Some(outage) => outage,
        None if max_age.is_zero() => Duration::ZERO,
        None => DEFAULT_OUTAGE_MAX_AGE,
    };
    if !outage_max_age.is_zero() && outage_max_age < max_age {
        return Err(section.problem(
            "outage_max_age",
            "must not be less than max_age; give it more time, or max_age less",
        ));
    }
    let max_entries = max_entries?.map_or(DEFAULT_MAX_ENTRIES, |count: NonZeroU32| {
        usize::try_from(count.get()).unwrap_or(usize::MAX)
    });
    Ok(Bounds { max_age, outage_max_age, max_entries })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing;

    fn cache(text: &str) -> Result<Bounds, String> {
        testing::read(text, |root| root.section("cache").and_then(read))
    }

    #[test]
    fn ages() {
        let seconds = Duration::from_secs;
        let bounds = |max_age, outage_max_age, max_entries| Bounds {
            max_age: seconds(max_age),
            outage_max_age: seconds(outage_max_age),
            max_entries,
        };
        assert_eq!(cache(""), Ok(bounds(5, 300, 100_000)));
        assert_eq!(cache("cache.max_age = '0s'"), Ok(bounds(0, 0, 100_000)));
        assert_eq!(
            cache("cache = { max_age = '1s', outage_max_age = '1m', max_entries = 7 }"),
            Ok(bounds(1, 60, 7))
        );
        assert_eq!(cache("cache.outage_max_age = '0s'"), Ok(bounds(5, 0, 100_000)));
        for (text, expected) in [
            (
                "cache = { max_age = '0s', outage_max_age = '1m' }",
                "cache.outage_max_age: has no use without a cache; write \"0s\", remove it, or give \
                 max_age a time",
            ),
            (
                "cache = { max_age = '10s', outage_max_age = '9s' }",
                "cache.outage_max_age: must not be less than max_age; give it more time, or max_age less",
            ),
            (
                "cache.max_age = '61s'",
                "cache.max_age: must be a duration from 0s to 1m, such as \"1m\"",
            ),
        ] {
            assert_eq!(cache(text), Err(expected.to_owned()));
        }
    }
}
