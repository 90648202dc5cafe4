//! The private listener: `/livez` and `/readyz`.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::sync::watch;

/// Whether the service takes calls.
pub type Readiness = watch::Receiver<bool>;

pub(super) fn router(readiness: Readiness) -> Router {
    Router::new()
        // Never the database: to restart the process would lose what it holds for it.
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(readiness)
}

async fn ready(State(readiness): State<Readiness>) -> (StatusCode, &'static str) {
    if *readiness.borrow() {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}
