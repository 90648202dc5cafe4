//! The gRPC edge: parse, call the broker, render.

mod admission;
mod body;
mod call;
mod caller;
mod convert;
mod error;
mod service;
mod status;
mod unauthenticated;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic_health::server::HealthReporter;

use self::admission::Admission;
use self::generated::token_broker_service_server::TokenBrokerServiceServer;
use self::unauthenticated::Unauthenticated;
use crate::broker::Broker;
use crate::listener::Listener;

/// The generated server. Its messages are those of the client crate.
#[expect(clippy::allow_attributes, clippy::allow_attributes_without_reason, reason = "generated")]
mod generated {
    tonic::include_proto!("tokenbroker.v1");
}

pub use generated::token_broker_service_server::SERVICE_NAME;

const CONTRACT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/contract.bin"));

/// The largest request that is read, in bytes.
const MAX_REQUEST: usize = 64 * 1024;

/// The most calls of health at once, and as many streams: 4 on each of 1,024 connections, so that no peer keeps another
/// out. The most of each version of reflection, which has larger responses.
const MAX_HEALTH: usize = 4096;
const MAX_REFLECTION: usize = 16;

/// The largest request to health and reflection, in bytes.
const MAX_OPEN_REQUEST: usize = 4 * 1024;

/// The time that a caller of health may take to send its message, and how long reflection answers one caller.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(10);
const REFLECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// The time that connections without a credential stay open at the end, so that watchers of health see its last state.
const UNAUTHENTICATED_GRACE: Duration = Duration::from_millis(1500);

/// The interval at which connections without a call under way are closed at the end.
const CLOSE_AGAIN: Duration = Duration::from_millis(200);

/// The number of bytes that one call, and one connection, may send before they are read.
const CALL_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// The interval at which a connection is asked whether it still lives.
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
    let service = Arc::new(service::Service::new(broker));
    let server = TokenBrokerServiceServer::from_arc(Arc::clone(&service));
    Admission::new(server.max_decoding_message_size(MAX_REQUEST), service)
}

/// Serves the broker, health and reflection on a listener until `shutdown`, and then until the
/// calls under way have ended.
///
/// # Errors
///
/// [`tonic::transport::Error`] where serving fails.
pub async fn serve(
    broker: Arc<Broker>,
    listener: Listener,
    health: HealthReporter,
    stopping: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(CONTRACT)
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let limits = broker.settings.limits;
    let health = tonic_health::pb::health_server::HealthServer::new(
        tonic_health::server::HealthService::from_health_reporter(health),
    )
    .max_decoding_message_size(MAX_OPEN_REQUEST);
    let connections = listener.connections();
    let incoming = listener.incoming();
    let mut server = Server::builder()
        // A caller whose machine is gone does not say so.
        .http2_keepalive_interval(Some(KEEPALIVE))
        .initial_stream_window_size(CALL_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        // More than the limit of calls, so that a call beyond it is refused at once instead of waiting.
        .max_concurrent_streams(limits.max_concurrent_calls.get().saturating_mul(2).max(200));
    if !limits.max_connection_age.is_zero() {
        server = server.max_connection_age(limits.max_connection_age);
    }
    let v1 = reflection().build_v1()?.max_decoding_message_size(MAX_OPEN_REQUEST);
    let v1alpha = reflection().build_v1alpha()?.max_decoding_message_size(MAX_OPEN_REQUEST);
    let serving = server
        .add_service(Unauthenticated::new(health, MAX_HEALTH, HEALTH_TIMEOUT))
        .add_service(Unauthenticated::new(v1, MAX_REFLECTION, REFLECTION_TIMEOUT))
        .add_service(Unauthenticated::new(v1alpha, MAX_REFLECTION, REFLECTION_TIMEOUT))
        .add_service(service(broker))
        .serve_with_incoming_shutdown(incoming, stopping.clone().cancelled_owned());
    let closing = async {
        stopping.cancelled().await;
        tokio::time::sleep(UNAUTHENTICATED_GRACE).await;
        connections.close();
        // Those with calls under way are closed when the calls have ended.
        loop {
            connections.close_idle();
            tokio::time::sleep(CLOSE_AGAIN).await;
        }
    };
    tokio::select! {
        served = serving => Ok(served?),
        () = closing => Ok(()),
    }
}
