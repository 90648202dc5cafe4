//! The addresses that the broker may connect to.
//!
//! A provider's metadata names endpoints, and whoever writes it could name some of the operator's
//! own network (RFC 9700 section 4.17, RFC 8414 section 7.3). So a host that the configuration does
//! not name itself must have a public address, and it is the address that is connected to that is
//! checked, after the name has been resolved.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use crate::domain::name::Name as ProviderName;
use crate::domain::provider::Provider;

/// The networks and hosts that the broker may connect to beside public addresses.
#[derive(Debug, Clone, Default)]
pub struct Egress {
    /// The hosts and ports that the configuration of each provider names. One provider's metadata must not lead to
    /// another's host or port.
    named: HashSet<(ProviderName, String, u16)>,
    networks: Vec<IpNet>,
}

/// The host is not to be connected to.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "{0} has no public address: name it with its port in the configuration of this provider, or its network in \
     egress.allowed_networks"
)]
pub struct Forbidden(String);

impl Egress {
    /// Allows the hosts that the configuration of these providers names, and these networks.
    #[must_use]
    pub fn new<'a>(
        providers: impl IntoIterator<Item = &'a Provider>,
        networks: Vec<IpNet>,
    ) -> Self {
        let named = providers.into_iter().flat_map(|provider| {
            let at = &provider.endpoints;
            let issuer = provider.issuer.as_deref().and_then(|issuer| Url::parse(issuer).ok());
            [&at.authorization, &at.token, &at.revocation, &at.userinfo, &at.jwks]
                .into_iter()
                .flatten()
                .cloned()
                .chain(issuer)
                .filter_map(|url| place(&provider.name, &url))
        });
        Self { named: named.collect(), networks }
    }

    /// Returns `true` if the configuration of the provider itself names the URL's host and port.
    pub(super) fn names(&self, provider: &ProviderName, url: &Url) -> bool {
        place(provider, url).is_some_and(|place| self.named.contains(&place))
    }

    /// Checks a URL whose host is an address. Names are checked when they are resolved.
    ///
    /// # Errors
    ///
    /// [`Forbidden`].
    pub fn check(&self, provider: &ProviderName, url: &Url) -> Result<(), Forbidden> {
        let address = match url.host() {
            Some(Host::Ipv4(address)) => IpAddr::V4(address),
            Some(Host::Ipv6(address)) => IpAddr::V6(address),
            Some(Host::Domain(_)) | None => return Ok(()),
        };
        if self.names(provider, url) || self.allows(address) {
            return Ok(());
        }
        Err(Forbidden(url.host_str().unwrap_or_default().to_owned()))
    }

    fn allows(&self, address: IpAddr) -> bool {
        is_public(address)
            || self.networks.iter().any(|network| network.contains(&address.to_canonical()))
    }

    /// The resolver of the system, of whose answers only the allowed addresses are left. For hosts that the
    /// configuration does not name.
    pub(super) fn resolver(self: &Arc<Self>) -> Resolver {
        Resolver(Arc::clone(self))
    }
}

fn place(provider: &ProviderName, url: &Url) -> Option<(ProviderName, String, u16)> {
    let host = url.host_str()?.trim_end_matches('.').to_ascii_lowercase();
    Some((provider.clone(), host, url.port_or_known_default()?))
}

pub(super) struct Resolver(Arc<Egress>);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let egress = Arc::clone(&self.0);
        Box::pin(async move {
            let host = name.as_str();
            // The port is the URL's, whichever stands here.
            let found = tokio::net::lookup_host((host, 0)).await?;
            let allowed: Vec<SocketAddr> =
                found.filter(|address| egress.allows(address.ip())).collect();
            if allowed.is_empty() {
                return Err(Forbidden(host.to_owned()).into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// Networks of IPv4 that are not the public internet (IANA's special-purpose registry, multicast,
/// and what is reserved).
const NOT_PUBLIC_V4: [(Ipv4Addr, u8); 15] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// The public addresses of IPv6.
const PUBLIC_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// Networks within them that are not: protocols' own (Teredo and others), documentation, 6to4.
const NOT_PUBLIC_V6: [(Ipv6Addr, u8); 4] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

/// The prefix under which networks without IPv4 see it (RFC 6052).
const NAT64: (Ipv6Addr, u8) = (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);

fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => !NOT_PUBLIC_V4.iter().any(|network| within_v4(*network, address)),
        IpAddr::V6(address) if within_v6(NAT64, address) => {
            let [.., a, b, c, d] = address.octets();
            is_public(Ipv4Addr::new(a, b, c, d).into())
        }
        IpAddr::V6(address) => {
            within_v6(PUBLIC_V6, address)
                && !NOT_PUBLIC_V6.iter().any(|network| within_v6(*network, address))
        }
    }
}

fn within_v4((network, length): (Ipv4Addr, u8), address: Ipv4Addr) -> bool {
    Ipv4Net::new_assert(network, length).contains(&address)
}

fn within_v6((network, length): (Ipv6Addr, u8), address: Ipv6Addr) -> bool {
    Ipv6Net::new_assert(network, length).contains(&address)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ways to write an address of the operator's own network, and of what else is no public host.
    const PRIVATE: [&str; 62] = [
        "http://127.0.0.1/",
        "http://127.1/",
        "http://127.0.1/",
        "http://127.255.255.254/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.0.0.1/",
        "http://0x7F.1/",
        "http://017700000001/",
        "http://0177.0.0.1/",
        "http://0177.1/",
        "http://%31%32%37.0.0.1/",
        "http://①②⑦.⓪.⓪.①/",
        "http://127。0。0。1/",
        "http://127.0.0.1./",
        "http://0.0.0.0/",
        "http://0/",
        "http://0.1.2.3/",
        "http://10.0.0.1/",
        "http://10.255.255.255/",
        "http://0xa000001/",
        "http://167772161/",
        "http://012.0.0.1/",
        "http://172.16.0.1/",
        "http://172.31.255.255/",
        "http://0xac100001/",
        "http://192.168.0.1/",
        "http://192.168.255.255/",
        "http://3232235521/",
        "http://0300.0250.0.1/",
        "http://169.254.169.254/",
        "http://2852039166/",
        "http://0xa9fea9fe/",
        "http://0xa9.0xfe.0xa9.0xfe/",
        "http://100.64.0.1/",
        "http://100.127.255.255/",
        "http://192.0.0.1/",
        "http://192.0.2.1/",
        "http://192.88.99.1/",
        "http://198.18.0.1/",
        "http://198.51.100.1/",
        "http://203.0.113.1/",
        "http://224.0.0.1/",
        "http://240.0.0.1/",
        "http://255.255.255.255/",
        "http://[::]/",
        "http://[::1]/",
        "http://[0:0:0:0:0:0:0:1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[::ffff:10.0.0.1]/",
        "http://[::ffff:169.254.169.254]/",
        "http://[::127.0.0.1]/",
        "http://[64:ff9b::10.0.0.1]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://[2002:7f00:1::]/",
        "http://[2002:a00:1::1]/",
        "http://[2001:0:7f00:1::]/",
        "http://[fc00::1]/",
        "http://[fd12:3456:789a::1]/",
        "http://[fe80::1]/",
        "http://[ff02::1]/",
    ];

    fn acme() -> ProviderName {
        ProviderName::parse("acme").expect("a name")
    }

    #[test]
    fn private_addresses_are_forbidden_however_they_are_written() {
        let egress = Egress::default();
        for text in PRIVATE {
            let url = Url::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert!(egress.check(&acme(), &url).is_err(), "{text} is read as {url}");
        }
    }

    #[test]
    fn public_addresses_are_allowed() {
        let egress = Egress::default();
        for text in [
            "https://1.1.1.1/",
            "https://172.32.0.1/",
            "https://[2606:4700::1111]/",
            "https://[64:ff9b::1.1.1.1]/",
            "https://login.acme.example/",
        ] {
            assert!(egress.check(&acme(), &Url::parse(text).expect("a URL")).is_ok(), "{text}");
        }
    }

    #[test]
    fn networks_that_are_configured_are_allowed() {
        let networks = ["10.1.0.0/16", "fd00::/8"].map(|text| text.parse().expect("a network"));
        let egress = Egress { networks: networks.to_vec(), ..Egress::default() };
        let allowed = |text: &str| egress.check(&acme(), &Url::parse(text).expect("a URL")).is_ok();
        assert!(allowed("https://10.1.2.3/") && allowed("https://[fd00::1]/"));
        assert!(allowed("https://[::ffff:10.1.2.3]/"));
        assert!(!allowed("https://10.2.0.1/") && !allowed("https://127.0.0.1/"));
    }

    #[tokio::test]
    async fn names_are_resolved_first_and_then_checked() {
        let resolve = |egress: Egress, name: &str| {
            let resolver = Arc::new(egress).resolver();
            let name: Name = name.parse().expect("a name");
            async move { resolver.resolve(name).await.map(|found| found.count()) }
        };
        let refused = resolve(Egress::default(), "localhost").await.expect_err("private");
        assert!(refused.to_string().contains("localhost has no public address"), "{refused}");
        let networks = ["127.0.0.0/8", "::1/128"].map(|text| text.parse().expect("a network"));
        let allowed = Egress { networks: networks.to_vec(), ..Egress::default() };
        assert!(resolve(allowed, "LocalHost").await.expect("allowed") > 0);
    }

    #[test]
    fn a_name_counts_for_one_provider_and_port() {
        let url = |text: &str| Url::parse(text).expect("a URL");
        let at = place(&acme(), &url("https://Inner.example./token")).expect("a host");
        let egress = Egress { named: HashSet::from([at]), networks: Vec::new() };
        assert!(egress.names(&acme(), &url("https://inner.example/keys")));
        assert!(egress.names(&acme(), &url("https://inner.example:443/keys")));
        assert!(!egress.names(&acme(), &url("https://inner.example:8443/keys")));
        assert!(!egress.names(&acme(), &url("http://inner.example/keys")));
        let other = ProviderName::parse("other").expect("a name");
        assert!(!egress.names(&other, &url("https://inner.example/keys")));
    }
}
