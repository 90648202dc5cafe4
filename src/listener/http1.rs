//! Serves HTTP/1.1 with time limits for every part of a request.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::peer_rate::PeerRate;
use super::{Listener, MaybeTls, Place, tls};
use crate::domain::bot::Rate;

/// The time that a client may take to send the head of a request. An idle connection is closed after the same time.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// The time that a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The time for which a connection is used. Longer ones end after the request under way.
const MAX_AGE: Duration = Duration::from_secs(5 * 60);

/// The time that a connection of that age may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(60);

/// The largest head of a request, in bytes. A cookie and an authorization code may have some KiB each.
const MAX_HEAD: usize = 32 * 1024;

/// The largest body, in bytes. A form that a provider has the browser post may carry an ID token.
pub const MAX_BODY: usize = 64 * 1024;

/// Serves a router until `stopping`. Then it ends pending connections at once, and waits for requests under way.
/// Beyond `rate`, requests of one peer are answered with 429.
pub async fn serve(
    router: Router,
    mut listener: Listener,
    rate: Option<Rate>,
    stopping: CancellationToken,
) {
    let tracker = TaskTracker::new();
    let rate = rate.map(|rate| Arc::new(PeerRate::new(rate)));
    let router = router.layer(axum::middleware::from_fn_with_state(rate, active));
    loop {
        let (stream, place) = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopping.cancelled() => break,
        };
        let (tls, router, stopping) = (listener.tls.clone(), router.clone(), stopping.clone());
        tracker.spawn(async move {
            if let Some(stream) = tls::secure(tls.as_deref(), stream, &place).await {
                connection(stream, Arc::new(place), router, stopping).await;
            }
        });
    }
    let connections = listener.connections();
    drop(listener);
    connections.close();
    tracker.close();
    tracker.wait().await;
}

async fn connection(
    stream: MaybeTls,
    place: Arc<Place>,
    router: Router,
    stopping: CancellationToken,
) {
    let mut ended = std::pin::pin!(place.ended());
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(Arc::clone(&place));
        let router = router.clone();
        async move { Ok::<_, Infallible>(router.oneshot(request.map(Body::new)).await.into_response()) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => return log(result),
        () = ended.as_mut() => return,
        () = stopping.cancelled() => {}
        () = tokio::time::sleep(MAX_AGE) => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        result = connection => log(result),
        () = ended => {}
        () = tokio::time::sleep(END_TIMEOUT) => {}
    }
}

fn log(result: Result<(), hyper::Error>) {
    if let Err(error) = result {
        tracing::debug!(%error, "an HTTP connection failed");
    }
}

/// Keeps the connection while its request is answered, as soon as the whole request has arrived.
async fn active(
    State(rate): State<Option<Arc<PeerRate>>>,
    request: Request,
    next: Next,
) -> Response {
    let place = request.extensions().get::<Arc<Place>>().cloned();
    if let (Some(rate), Some(place)) = (&rate, &place)
        && !rate.allows(place.peer().ip())
    {
        let headers = [(header::RETRY_AFTER, "1"), (header::CONNECTION, "close")];
        return (StatusCode::TOO_MANY_REQUESTS, headers, "Too many requests.\n").into_response();
    }
    let request = match whole(request).await {
        Ok(request) => request,
        Err(status) => return (status, [(header::CONNECTION, "close")]).into_response(),
    };
    if let Some(place) = &place {
        place.set_active(None);
    }
    let response = next.run(request).await;
    if let Some(place) = &place {
        place.set_pending();
    }
    response
}

/// Reads the body of a POST. Other methods have none that matters.
async fn whole(request: Request) -> Result<Request, StatusCode> {
    let (parts, body) = request.into_parts();
    if parts.method != Method::POST {
        return Ok(Request::from_parts(parts, Body::empty()));
    }
    let body = axum::body::to_bytes(body, MAX_BODY);
    match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => Ok(Request::from_parts(parts, Body::from(body))),
        Ok(Err(_)) => Err(StatusCode::PAYLOAD_TOO_LARGE),
        Err(_) => Err(StatusCode::REQUEST_TIMEOUT),
    }
}
