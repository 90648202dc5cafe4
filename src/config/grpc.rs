//! `[grpc]`: where bots call.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::address;
use super::problem::Reported;
use super::section::Section;
use super::tls::{self, ClientCertificates};
use super::value::{choice, count, duration, parsed};
use crate::broker::CallLimits;
use crate::listener::TlsFiles;

/// Keys of later versions.
const UNSUPPORTED: [&str; 1] = ["service_accounts"];

const DEFAULT_AGE: Duration = Duration::from_secs(30 * 60);

const MOST_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// The gRPC listener.
#[derive(Debug)]
pub struct Grpc {
    /// The address to listen on. Port 0 lets the system choose.
    pub listen: SocketAddr,
    /// The addresses that take connections without TLS.
    pub plaintext: Plaintext,
    /// TLS of the listener.
    pub tls: Option<TlsFiles>,
    /// The limits of calls.
    pub limits: CallLimits,
}

/// The addresses that take connections without TLS. API keys and tokens cross them in clear text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plaintext {
    /// On loopback alone.
    Loopback,
    /// Anywhere: a mesh or a load balancer does TLS in front.
    Allow,
}

pub(super) fn read(mut section: Section<'_>) -> Result<Grpc, Reported> {
    let default = SocketAddr::from((Ipv4Addr::LOCALHOST, 50051));
    let listen = section.or("listen", default, parsed(address::listen));
    let options = [("loopback", Plaintext::Loopback), ("allow", Plaintext::Allow)];
    let plaintext = section.or("plaintext", Plaintext::Loopback, choice(&options));
    let age = section.or("max_connection_age", DEFAULT_AGE, duration(Duration::ZERO..=MOST_AGE));
    let default_calls = CallLimits::default().max_concurrent_calls;
    let calls = section.or("max_concurrent_calls", default_calls, count);
    let tls = section
        .optional_section("tls")
        .and_then(|tls| tls.map(|tls| tls::read(tls, ClientCertificates::Allowed)).transpose());
    section.refuse(&UNSUPPORTED);
    section.finish();

    let limits = CallLimits { max_connection_age: age?, max_concurrent_calls: calls? };
    let grpc = Grpc { listen: listen?, plaintext: plaintext?, tls: tls?, limits };
    // An IPv4 address may come written as IPv6.
    let loopback = grpc.listen.ip().to_canonical().is_loopback();
    if grpc.tls.is_none() && grpc.plaintext == Plaintext::Loopback && !loopback {
        return Err(section.problem(
            "listen",
            "must be a loopback address, or tokens would cross the network in the clear; configure \
             [grpc.tls], or write plaintext = \"allow\" where a mesh or a balancer does TLS in front",
        ));
    }
    Ok(grpc)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing;

    fn grpc(text: &str) -> Result<Grpc, String> {
        testing::read(text, |root| root.section("grpc").and_then(read))
    }

    #[test]
    fn defaults() {
        let grpc = grpc("").expect("a section");
        assert_eq!(grpc.listen.to_string(), "127.0.0.1:50051");
        assert_eq!(grpc.plaintext, Plaintext::Loopback);
        assert_eq!(grpc.limits.max_connection_age, Duration::from_secs(1800));
        assert_eq!(grpc.limits.max_concurrent_calls.get(), 1000);
    }

    #[test]
    fn plaintext_leaves_the_machine_only_where_it_is_allowed() {
        for listen in ["127.0.0.1:0", "127.8.8.8:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(grpc(&format!("grpc.listen = '{listen}'")).is_ok(), "{listen}");
        }
        for listen in ["0.0.0.0:1", "10.0.0.1:1", "[::]:1"] {
            let wrong = grpc(&format!("grpc.listen = '{listen}'")).expect_err("problems");
            assert_eq!(
                wrong,
                "grpc.listen: must be a loopback address, or tokens would cross the network in \
                 the clear; configure [grpc.tls], or write plaintext = \"allow\" where a mesh or a \
                 balancer does TLS in front"
            );
            let text = format!("grpc = {{ listen = '{listen}', plaintext = 'allow' }}");
            assert!(grpc(&text).is_ok(), "{listen}");
        }
    }

    #[test]
    fn what_is_not_enforced_is_refused() {
        let text = "[grpc]\nplaintext = 'never'\n[grpc.tls]\nkey_file = '/x'\n\
                    [grpc.service_accounts]";
        assert_eq!(
            grpc(text).expect_err("problems"),
            "grpc.plaintext: must be \"loopback\" or \"allow\"\n\
             grpc.tls.certificate_file: is required; name the certificate in PEM, with those between it \
             and its CA\n\
             grpc.service_accounts: is not supported by this version yet; remove it"
        );
    }
}
