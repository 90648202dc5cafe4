//! The HTTP edges: the public listener for browsers, and the private one for probes.

mod browser;
mod callback;
mod ops;
mod page;
mod start;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderName, HeaderValue, Request, header};
use axum::middleware::Next;
use axum::response::Response;
use axum::routing::get;
use tracing::Instrument;

pub use ops::Readiness;

use crate::broker::Broker;
use crate::listener::http1::MAX_BODY;
use crate::telemetry::{self, Caller, Metrics};

/// Everything on the public listener.
pub fn public_router(broker: Arc<Broker>) -> Router {
    Router::new()
        .route("/oauth2/start/{authorization_id}", get(start::start))
        .route("/oauth2/callback/{provider}", get(callback::callback).post(callback::form_post))
        .fallback(page::not_found)
        .method_not_allowed_fallback(page::not_found)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(axum::middleware::from_fn(in_span))
        .layer(axum::middleware::map_response(strict_headers))
        .with_state(broker)
}

/// Everything on the private listener.
pub fn ops_router(readiness: Readiness, metrics: Metrics) -> Router {
    ops::router(readiness, metrics)
}

type SharedBroker = State<Arc<Broker>>;

/// One span a request. Its URL stays out: it has the code and the state.
async fn in_span(request: Request<axum::body::Body>, next: Next) -> Response {
    let span = tracing::info_span!("http", trace_id = tracing::field::Empty);
    // Requests of scanners leave no traces.
    if !request.uri().path().starts_with("/oauth2/") {
        Caller::stranger().adopt(&span);
    }
    telemetry::record_trace_id(&span);
    next.run(request).instrument(span).await
}

/// Adds the headers of every answer to a browser.
async fn strict_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let fixed: [(HeaderName, &'static str); 5] = [
        (header::CACHE_CONTROL, "no-store"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; \
             frame-ancestors 'none'",
        ),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
