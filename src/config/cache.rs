//! `[cache]`, of which this version takes only that there is none.

use super::problem::Reported;
use super::section::Section;
use super::value::parsed;

/// Keys of later versions.
const UNSUPPORTED: [&str; 2] = ["outage_max_age", "max_entries"];

pub(super) fn read(mut section: Section<'_>) -> Result<(), Reported> {
    let max_age = section.optional(
        "max_age",
        parsed(|text| {
            if humantime::parse_duration(text).is_ok_and(|age| age.is_zero()) {
                return Ok(());
            }
            Err("must be \"0s\", since this version has no cache and reads the database each \
                 time; write max_age = \"0s\" or remove it"
                .to_owned())
        }),
    );
    section.refuse(&UNSUPPORTED);
    section.finish();
    max_age.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing;

    fn cache(text: &str) -> Result<(), String> {
        testing::read(text, |root| root.section("cache").and_then(read))
    }

    #[test]
    fn there_is_none() {
        assert_eq!(cache(""), Ok(()));
        assert_eq!(cache("cache.max_age = '0s'"), Ok(()));
        assert_eq!(
            cache("cache = { max_age = '5s', outage_max_age = '5m', max_entries = 1 }"),
            Err("cache.max_age: must be \"0s\", since this version has no cache and reads the \
                 database each time; write max_age = \"0s\" or remove it\n\
                 cache.outage_max_age: is not supported by this version yet; remove it\n\
                 cache.max_entries: is not supported by this version yet; remove it"
                .to_owned())
        );
    }
}
