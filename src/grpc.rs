//! The gRPC edge: parse, call the broker, render.

mod call;
mod caller;
mod convert;
mod error;
mod service;
mod status;

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::server::HealthReporter;

use crate::broker::Broker;

/// The generated server. Its messages are those of the client crate.
#[expect(clippy::allow_attributes, clippy::allow_attributes_without_reason, reason = "generated")]
mod generated {
    tonic::include_proto!("tokenbroker.v1");
}

pub use generated::token_broker_service_server::SERVICE_NAME;

const CONTRACT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/contract.bin"));

/// The largest request that is read, in bytes. Every field is bounded far below.
const MAX_REQUEST: usize = 256 * 1024;

/// How often a connection is asked whether it still lives.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// The service without a connection.
#[must_use]
pub fn service(
    broker: Arc<Broker>,
) -> impl NamedService
+ tower::Service<
    http::Request<Body>,
    Response = http::Response<Body>,
    Error = Infallible,
    Future: Send + 'static,
> + Clone
+ Send
+ Sync
+ 'static {
    generated::token_broker_service_server::TokenBrokerServiceServer::new(service::Service::new(
        broker,
    ))
    .max_decoding_message_size(MAX_REQUEST)
}

/// Serves the broker, health and reflection on a listener until `shutdown`, and then until the
/// calls under way have ended.
///
/// # Errors
///
/// [`tonic::transport::Error`] where serving fails.
pub async fn serve(
    broker: Arc<Broker>,
    listener: TcpListener,
    health: HealthReporter,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(CONTRACT)
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let limits = broker.settings().limits;
    let health = tonic_health::pb::health_server::HealthServer::new(
        tonic_health::server::HealthService::from_health_reporter(health),
    );
    // `Server::tcp_nodelay` has no effect on a listener that is handed over. Without it Nagle's algorithm
    // and the client's delayed ACK add 40 ms to a response.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let mut server = Server::builder()
        // A caller whose machine is gone does not say so.
        .http2_keepalive_interval(Some(KEEPALIVE))
        // More than may be under way, so that one too many is told so, and does not wait in silence.
        .max_concurrent_streams(limits.max_concurrent_calls.get().saturating_mul(2).max(200));
    if !limits.max_connection_age.is_zero() {
        server = server.max_connection_age(limits.max_connection_age);
    }
    server
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(service(broker))
        .serve_with_incoming_shutdown(incoming, shutdown)
        .await?;
    Ok(())
}
