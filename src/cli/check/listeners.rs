//! The addresses that `serve` listens on.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpListener;

use super::super::serve::LISTEN_REMEDY;
use super::super::storage_settings;
use crate::config::Config;

const TIMEOUT: Duration = Duration::from_secs(2);

/// Binds each address for a moment. One that a running token-broker with this configuration has is in order.
pub(super) async fn check(config: &Config) -> anyhow::Result<String> {
    let mut in_use = false;
    // Kept until all are bound, so that no two of them have one address.
    let mut bound = Vec::new();
    for (key, address) in [
        ("grpc.listen", config.grpc.listen),
        ("http.listen", config.http.listen),
        ("ops.listen", config.ops.listen),
    ] {
        match TcpListener::bind(address).await {
            Ok(listener) => bound.push(listener),
            Err(error) if error.kind() == ErrorKind::AddrInUse && is_served(config).await => {
                in_use = true;
            }
            Err(error) => {
                anyhow::bail!("{key}: cannot listen on {address}: {error}; {LISTEN_REMEDY}")
            }
        }
    }
    Ok(if in_use { "in order (a token-broker runs with them)" } else { "in order" }.to_owned())
}

async fn is_served(config: &Config) -> bool {
    storage_settings(config).is_served() || has_metrics(config.ops.listen).await
}

/// Returns `true` if a token-broker answers on this ops address.
async fn has_metrics(address: SocketAddr) -> bool {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let url = format!("http://{}/metrics", SocketAddr::new(ip, address.port()));
    let answer = async {
        let client = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build()?;
        client.get(url).send().await?.text().await
    };
    answer.await.is_ok_and(|text| text.contains("token_broker_storage_up"))
}
