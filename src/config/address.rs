//! Addresses to listen on, and URLs.

use std::net::SocketAddr;

use super::value::Wrong;
pub(super) use crate::domain::address::{base, endpoint};

/// An address to listen on. Port 0 lets the system choose.
pub(super) fn listen(text: &str) -> Result<SocketAddr, Wrong> {
    text.parse().map_err(|_| "must be an IP address and a port, such as \"127.0.0.1:8080\"".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_to_listen_on() {
        for text in ["127.0.0.1:0", "0.0.0.0:8080", "[::1]:50051"] {
            assert_eq!(listen(text).map(|address| address.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "8080", ":8080", "localhost:8080", "127.0.0.1", "127.0.0.1:65536"] {
            assert!(listen(text).is_err(), "{text:?}");
        }
    }
}
