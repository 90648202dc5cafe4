//! `[ops]`: where the platform asks for health and metrics.

use std::net::{Ipv4Addr, SocketAddr};

use super::address;
use super::problem::Reported;
use super::section::Section;
use super::value::parsed;

/// The private HTTP listener.
#[derive(Debug)]
pub struct Ops {
    /// The address to listen on. Port 0 lets the system choose.
    pub listen: SocketAddr,
}

pub(super) fn read(mut section: Section<'_>) -> Result<Ops, Reported> {
    let default = SocketAddr::from((Ipv4Addr::LOCALHOST, 9090));
    let listen = section.or("listen", default, parsed(address::listen));
    section.finish();
    Ok(Ops { listen: listen? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing;

    fn ops(text: &str) -> Result<Ops, String> {
        testing::read(text, |root| root.section("ops").and_then(read))
    }

    #[test]
    fn the_address() {
        assert_eq!(ops("").expect("a section").listen.to_string(), "127.0.0.1:9090");
        assert_eq!(
            ops("ops.listen = 9090").expect_err("problems"),
            "ops.listen: must be a string, not an integer"
        );
    }
}
