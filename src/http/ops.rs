//! The private listener: `/livez`, `/readyz` and `/metrics`.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::sync::watch;

use crate::telemetry::{Metrics, TEXT_FORMAT};

/// The readiness of the service for calls.
pub type Readiness = watch::Receiver<bool>;

pub(super) fn router(readiness: Readiness, metrics: Metrics) -> Router {
    Router::new()
        // Never the database: to restart the process would lose what it holds for it.
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(readiness)
        .merge(Router::new().route("/metrics", get(figures)).with_state(metrics))
}

async fn figures(State(metrics): State<Metrics>) -> impl IntoResponse {
    ([(CONTENT_TYPE, TEXT_FORMAT)], metrics.text())
}

async fn ready(State(readiness): State<Readiness>) -> (StatusCode, &'static str) {
    if *readiness.borrow() {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}
