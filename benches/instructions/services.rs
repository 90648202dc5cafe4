//! Services that are called without a connection.

mod harness;
#[path = "../load/place.rs"]
mod place;

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use prost::Message;
use tempfile::TempDir;
use token_broker::broker::Broker;
use token_broker::cli;
use token_broker::config::Config;
use token_broker::grpc;
use token_broker::telemetry::Metrics;
use token_broker_client::proto;
use tokio::runtime::Runtime;
use tonic::body::Body;
use tower::Service;
use tower::util::BoxCloneSyncService;

use crate::harness::bare::Bare;
use crate::harness::grants::Seeder;
use crate::place::{API_KEY, ENCRYPTION_KEY, TOKEN_LIFETIME};

/// Nothing listens there.
const ISSUER: &str = "http://127.0.0.1";

type Grpc = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, Infallible>;

/// A service that has answered the request before.
pub struct Ready {
    runtime: Runtime,
    service: Grpc,
    request: Bytes,
    authorization: http::HeaderValue,
    _database: TempDir,
}

impl Ready {
    /// Calls, and reads the response to its end.
    pub fn call(&mut self) -> Bytes {
        let Self { runtime, service, request, authorization, .. } = self;
        let request = http::Request::post("/tokenbroker.v1.TokenBrokerService/GetToken")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("authorization", authorization.clone())
            .body(Body::new(Full::new(request.clone())))
            .expect("a request");
        runtime.block_on(async {
            let response = service.call(request).await.expect("infallible");
            let body = response.into_body().collect().await.expect("in memory");
            let status = body.trailers().and_then(|trailers| trailers.get("grpc-status"));
            assert_eq!(status.map(|status| status.as_bytes()), Some(&b"0"[..]));
            body.to_bytes()
        })
    }
}

/// A broker with the token in its cache.
pub fn token_broker() -> Ready {
    prepare(|broker, _| Grpc::new(grpc::service(broker)))
}

/// A tonic service with the broker's response.
pub fn bare() -> Ready {
    prepare(|_, response| Grpc::new(Bare(response)))
}

fn prepare(service: impl FnOnce(Arc<Broker>, proto::GetTokenResponse) -> Grpc) -> Ready {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let database = tempfile::tempdir().expect("a folder");
    let broker = runtime.block_on(broker(database.path()));
    let mut ready = Ready {
        service: Grpc::new(grpc::service(Arc::clone(&broker))),
        runtime,
        request: framed(&request()),
        authorization: format!("Bearer {API_KEY}").parse().expect("a value"),
        _database: database,
    };
    let response = ready.call();
    let response = proto::GetTokenResponse::decode(&response[5..]).expect("a response");
    ready.service = service(broker, response);
    ready.call();
    ready
}

async fn broker(folder: &Path) -> Arc<Broker> {
    let url = format!("sqlite://{}?mode=rwc", folder.join("token-broker.db").display());
    let provider = place::provider(ISSUER);
    let seeder = Seeder::new(&url, ENCRYPTION_KEY, provider, TOKEN_LIFETIME).await;
    seeder.storage.migrate().await.expect("the schema");
    seeder.grant("u1").await;
    seeder.storage.close().await.expect("closed");
    let text = place::config(&url, ISSUER, ([127, 0, 0, 1], 0).into());
    // As long as it may be.
    let max_age = ("TOKEN_BROKER__CACHE__MAX_AGE".to_owned(), "60s".to_owned());
    let config = Config::parse(&text, folder, std::iter::once(max_age)).expect("a configuration");
    let storage = cli::open(&config).await.expect("a database");
    cli::broker(&config, storage, Metrics::new(None).expect("metrics")).expect("a broker")
}

fn request() -> proto::GetTokenRequest {
    let key = proto::GrantKey {
        provider: "acme".to_owned(),
        subject: "u1".to_owned(),
        account: String::new(),
    };
    proto::GetTokenRequest { key: Some(key), ..Default::default() }
}

/// A message as gRPC sends it: not compressed, after its length.
fn framed(message: &impl Message) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.encoded_len()).expect("a small message"));
    message.encode(&mut frame).expect("room");
    frame.freeze()
}
