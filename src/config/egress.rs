//! `[egress]`: where the broker may connect to.

use ipnet::IpNet;

use super::problem::Reported;
use super::section::Section;
use super::value::Wrong;

/// Keys of later versions.
const UNSUPPORTED: [&str; 2] = ["proxy", "ca_file"];

/// The networks that the broker may connect to, beside public addresses and the hosts of the configuration.
#[derive(Debug, Default)]
pub struct Egress {
    /// Private networks in which discovered endpoints may lie.
    pub allowed_networks: Vec<IpNet>,
}

pub(super) fn read(mut section: Section<'_>) -> Result<Egress, Reported> {
    let allowed_networks = section.list("allowed_networks", network);
    section.refuse(&UNSUPPORTED);
    section.finish();
    Ok(Egress { allowed_networks: allowed_networks?.unwrap_or_default() })
}

fn network(text: &str) -> Result<IpNet, Wrong> {
    text.parse().map_err(|_| "must be a network such as \"10.0.0.0/8\" or \"fd00::/8\"".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing;

    fn egress(text: &str) -> Result<Egress, String> {
        testing::read(text, |root| root.section("egress").and_then(read))
    }

    #[test]
    fn networks() {
        assert_eq!(egress("").expect("a section").allowed_networks, []);
        let two = egress("egress.allowed_networks = ['10.1.0.0/16', 'fd00::/8']");
        let two = two.expect("a section").allowed_networks;
        assert_eq!(
            two.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.1.0.0/16", "fd00::/8"]
        );
        assert_eq!(
            egress("egress = { allowed_networks = ['10.0.0.1'], proxy = 'http://p' }")
                .expect_err("problems"),
            "egress.allowed_networks: item 1 must be a network such as \"10.0.0.0/8\" or \
             \"fd00::/8\"\n\
             egress.proxy: is not supported by this version yet; remove it"
        );
    }
}
