//! The two pages: one that asks, one that says what is wrong.

use askama::Template;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};

use super::DEFAULT_USER;
use super::authorize::AuthorizeRequest;

#[derive(Template)]
#[template(path = "demo_authorize.html")]
struct AuthorizePage {
    client_id: String,
    scopes: Vec<String>,
    /// The hidden fields, by name and value.
    fields: Vec<(&'static str, String)>,
    csrf: String,
    default_user: &'static str,
}

#[derive(Template)]
#[template(path = "demo_problem.html")]
struct ProblemPage {
    text: &'static str,
}

/// Asks the user.
pub(super) fn ask(request: &AuthorizeRequest, csrf: &str) -> Response {
    let page = AuthorizePage {
        client_id: request.client_id.clone(),
        scopes: request.scopes.iter().cloned().collect(),
        fields: request.fields(),
        csrf: csrf.to_owned(),
        default_user: DEFAULT_USER,
    };
    html(StatusCode::OK, &format!("'self' {}", request.back.form_action()), &page)
}

/// Shows why there is no form to answer.
pub(super) fn problem(text: &'static str) -> Response {
    html(StatusCode::BAD_REQUEST, "'none'", &ProblemPage { text })
}

fn html(status: StatusCode, form_action: &str, page: &impl Template) -> Response {
    let policy = format!(
        "default-src 'none'; style-src 'unsafe-inline'; form-action {form_action}; \
         frame-ancestors 'none'; base-uri 'none'"
    );
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CACHE_CONTROL, "no-store"),
        (CONTENT_SECURITY_POLICY, policy.as_str()),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
    ];
    match page.render() {
        Ok(body) => (status, headers, body).into_response(),
        Err(error) => {
            tracing::error!(error.message = %error, "a page of the demo provider does not render");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
