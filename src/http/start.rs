//! `GET /oauth2/start/{authorization_id}`: gives the browser its cookie and sends it to the provider.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::{SharedBroker, browser, page};
use crate::broker::callback::CallbackError;

pub(super) async fn start(
    State(broker): SharedBroker,
    authorization_id: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Response {
    let Ok(Path(authorization_id)) = authorization_id else {
        return page::problem(&CallbackError::UnknownLink);
    };
    let public_url = &broker.settings.public_url;
    let browser = browser::secrets(&headers, public_url).into_iter().next();
    let starting = Arc::clone(&broker.callbacks);
    let started =
        broker.tasks.detached(async move { starting.start(&authorization_id, browser).await });
    match started.await.unwrap_or(Err(CallbackError::Unavailable)) {
        Ok(departure) => {
            let cookie = browser::set_cookie(&departure.browser, public_url);
            // 303, so that the browser continues with a GET (RFC 9700 section 4.12).
            let headers =
                [(header::LOCATION, departure.url.to_string()), (header::SET_COOKIE, cookie)];
            (StatusCode::SEE_OTHER, headers).into_response()
        }
        Err(problem) => page::problem(&problem),
    }
}
