//! `[authorizations]`: how long a person has.

use std::time::Duration;

use super::problem::Reported;
use super::section::Section;
use super::value::duration;

const LEAST: Duration = Duration::from_secs(10);
const MOST_LINK: Duration = Duration::from_secs(24 * 60 * 60);
const MOST_CONFIRMATION: Duration = Duration::from_secs(60 * 60);

/// The time that the steps of an authorization may take.
#[derive(Debug)]
pub struct Authorizations {
    /// From the link to the provider's answer: 10 seconds to 24 hours.
    pub link_ttl: Duration,
    /// From the provider's answer to the confirmation code: 10 seconds to 1 hour.
    pub confirmation_ttl: Duration,
}

pub(super) fn read(mut section: Section<'_>) -> Result<Authorizations, Reported> {
    let link_ttl =
        section.or("link_ttl", Duration::from_secs(10 * 60), duration(LEAST..=MOST_LINK));
    let confirmation_ttl = section.or(
        "confirmation_ttl",
        Duration::from_secs(5 * 60),
        duration(LEAST..=MOST_CONFIRMATION),
    );
    section.finish();
    Ok(Authorizations { link_ttl: link_ttl?, confirmation_ttl: confirmation_ttl? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing;

    fn authorizations(text: &str) -> Result<Authorizations, String> {
        testing::read(text, |root| root.section("authorizations").and_then(read))
    }

    #[test]
    fn times() {
        let times = authorizations("").expect("a section");
        assert_eq!(times.link_ttl, Duration::from_secs(600));
        assert_eq!(times.confirmation_ttl, Duration::from_secs(300));
        let text = "authorizations = { link_ttl = '24h', confirmation_ttl = '10s' }";
        assert!(authorizations(text).is_ok());
        let text = "authorizations = { link_ttl = '2days', confirmation_ttl = '61m' }";
        assert_eq!(
            authorizations(text).expect_err("problems"),
            "authorizations.link_ttl: must be a duration from 10s to 1day, such as \"5m\"\n\
             authorizations.confirmation_ttl: must be a duration from 10s to 1h, such as \"5m\""
        );
    }
}
