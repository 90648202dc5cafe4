//! The endpoints, as axum's handlers.

use axum::body::Bytes;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};
use serde_json::json;

use super::authorize::{self, AuthorizeRequest};
use super::state::{OpenCode, digest};
use super::wire::{self, Params, Refusal};
use super::{DemoProvider, faults, page};

pub(super) async fn ask(
    State(provider): State<DemoProvider>,
    RawQuery(query): RawQuery,
) -> Response {
    let inner = &provider.inner;
    let params = Params::parse(query.unwrap_or_default().as_bytes());
    match AuthorizeRequest::parse(&params, &inner.settings) {
        Ok(request) => {
            inner.records().ledger.authorize_pages += 1;
            page::ask(&request, &inner.seal.token(&request, inner.now()))
        }
        Err(unacceptable) => unacceptable.into_response(),
    }
}

pub(super) async fn decide(
    State(provider): State<DemoProvider>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let inner = &provider.inner;
    if wire::require_form(&headers).is_err() {
        return page::problem("The answer did not come from this page's form.");
    }
    let params = Params::parse(&body);
    let request = match AuthorizeRequest::parse(&params, &inner.settings) {
        Ok(request) => request,
        Err(unacceptable) => return unacceptable.into_response(),
    };
    if !inner.seal.fits(&request, params.get("csrf").unwrap_or_default(), inner.now()) {
        return page::problem("This page is too old, or was changed. Please open the link again.");
    }
    match params.get("decision") {
        Some("allow") => {}
        Some("deny") => {
            return request.back.refuse(&Refusal::bad("access_denied", "the user said no"));
        }
        _ => return page::problem("The answer is neither Allow nor Deny."),
    }
    let Some(login) = authorize::login(params.get("user")) else {
        return page::problem("That name is too long, or has characters that no name has.");
    };
    let AuthorizeRequest { client_id, redirect_uri, back, scopes, challenge } = request;
    let open = OpenCode { client_id, redirect_uri, challenge, scopes, login };
    match provider.change(move |records, moment| records.open_code(open, moment)).await {
        Ok(code) => back.redirect(&[("code", code.as_str())]),
        Err(refusal) => back.refuse(&refusal),
    }
}

pub(super) async fn token(
    State(provider): State<DemoProvider>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let inner = &provider.inner;
    let params = Params::parse(&body);
    let (grant_type, refresh_token) = (params.get("grant_type"), params.get("refresh_token"));
    inner.records().ledger.token_call_arrived(grant_type, refresh_token);
    let send = match refresh_token {
        Some(token) => Some(inner.faults.send_arrived(digest(token)).await),
        None => None,
    };
    let scripted = inner.faults.token_call_arrived();
    inner.faults.token_endpoint_runs().await;
    let processing = async {
        provider.issue(&headers, &params).await.unwrap_or_else(IntoResponse::into_response)
    };
    let response = faults::answer(scripted, processing).await;
    if let Some(send) = send {
        send.answered();
    }
    response
}

pub(super) async fn revoke(
    State(provider): State<DemoProvider>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let inner = &provider.inner;
    let params = Params::parse(&body);
    inner.records().ledger.revoke_calls += 1;
    let scripted = inner.faults.revoke_call_arrived();
    let processing =
        async { provider.end(&headers, &params).await.unwrap_or_else(IntoResponse::into_response) };
    faults::answer(scripted, processing).await
}

pub(super) async fn userinfo(State(provider): State<DemoProvider>, headers: HeaderMap) -> Response {
    let inner = &provider.inner;
    let Some(token) = wire::bearer(&headers) else {
        return wire::bearer_challenge(false);
    };
    let login = inner.records().login_of(token, inner.now());
    match login {
        Some(login) => {
            let sub = authorize::subject(&login);
            wire::json(StatusCode::OK, &json!({ "sub": sub, "login": login }))
        }
        None => wire::bearer_challenge(true),
    }
}

pub(super) async fn metadata(State(provider): State<DemoProvider>) -> Response {
    let issuer = &provider.inner.settings.issuer;
    let base = issuer.trim_end_matches('/');
    let client_authentication = ["client_secret_basic", "client_secret_post"];
    wire::json(
        StatusCode::OK,
        &json!({
            "issuer": issuer,
            "authorization_endpoint": format!("{base}/authorize"),
            "token_endpoint": format!("{base}/token"),
            "revocation_endpoint": format!("{base}/revoke"),
            "userinfo_endpoint": format!("{base}/userinfo"),
            "response_types_supported": ["code"],
            "response_modes_supported": ["query"],
            "grant_types_supported": ["authorization_code", "refresh_token"],
            "token_endpoint_auth_methods_supported": client_authentication,
            "revocation_endpoint_auth_methods_supported": client_authentication,
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": true,
        }),
    )
}
