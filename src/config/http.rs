//! `[http]`: where browsers come.

use std::net::{Ipv4Addr, SocketAddr};

use ::url::Url;

use super::address;
use super::bots::rated;
use super::problem::Reported;
use super::section::Section;
use super::tls::{self, ClientCertificates};
use super::value::parsed;
use crate::domain::bot::Rate;
use crate::listener::{DEFAULT_RATE, TlsFiles};

/// The public HTTP listener.
#[derive(Debug)]
pub struct Http {
    /// The address to listen on. Port 0 lets the system choose.
    pub listen: SocketAddr,
    /// The URL of the listener for browsers and providers: no query, no fragment, no user information; a path prefix
    /// with or without a final slash.
    pub public_url: Url,
    /// TLS of the listener. Usually a proxy in front has it.
    pub tls: Option<TlsFiles>,
    /// The limit on the requests of one peer.
    pub rate_per_peer: Rate,
}

pub(super) fn read(mut section: Section<'_>) -> Result<Http, Reported> {
    let default = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
    let listen = section.or("listen", default, parsed(address::listen));
    let public_url = section.required(
        "public_url",
        "write the URL by which browsers reach http.listen",
        parsed(address::base),
    );
    let tls = section
        .optional_section("tls")
        .and_then(|tls| tls.map(|tls| tls::read(tls, ClientCertificates::Refused)).transpose());
    let rate = section.optional_section("rate_per_peer");
    let rate = rate.and_then(|rate| rate.map(rated).transpose());
    section.finish();
    if let (Ok(url), Ok(Some(_))) = (&public_url, &tls)
        && url.scheme() == "http"
    {
        return Err(section.problem(
            "public_url",
            "must be an https URL, because [http.tls] makes the listener speak TLS; write https, or remove [http.tls]",
        ));
    }
    Ok(Http {
        listen: listen?,
        public_url: public_url?,
        tls: tls?,
        rate_per_peer: rate?.unwrap_or(DEFAULT_RATE),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing;

    fn http(text: &str) -> Result<Http, String> {
        testing::read(text, |root| root.section("http").and_then(read))
    }

    #[test]
    fn a_path_prefix_is_kept() {
        let http = http("http.public_url = 'https://example.com/broker'").expect("a section");
        assert_eq!(http.listen.to_string(), "127.0.0.1:8080");
        assert_eq!(http.public_url.as_str(), "https://example.com/broker");
    }

    #[test]
    fn a_listener_with_tls_has_an_https_url() {
        let tls = "tls = { certificate_file = 'a', key_file = 'b' }";
        let wrong = http(&format!("[http]\npublic_url = 'http://localhost:1'\n{tls}"));
        let wrong = wrong.expect_err("problems");
        assert!(
            wrong.starts_with("http.public_url: must be an https URL, because [http.tls]"),
            "{wrong}"
        );
        assert!(http(&format!("[http]\npublic_url = 'https://localhost:1'\n{tls}")).is_ok());
    }

    #[test]
    fn the_public_url_is_required_and_secure() {
        assert_eq!(
            http("").expect_err("problems"),
            "http.public_url: is required; write the URL by which browsers reach http.listen"
        );
        assert!(http("http.public_url = 'http://localhost:8080'").is_ok());
        assert_eq!(
            http("http.public_url = 'http://broker.example.com'").expect_err("problems"),
            "http.public_url: must be an absolute https URL; http is allowed on loopback only"
        );
        assert_eq!(
            http("http.public_url = 'https://broker.example.com/?a'").expect_err("problems"),
            "http.public_url: must have no query; remove the ? and what follows"
        );
    }
}
