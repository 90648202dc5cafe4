use proptest::prelude::*;

use super::*;
use crate::domain::scope::Scopes;
use crate::domain::time::Timestamp;
use crate::provider::Concerns;

const ISSUED_AT: Timestamp = Timestamp::from_millis(1_000_000);
const HOUR: Duration = Duration::from_secs(3600);

fn response(status: u16, body: &str) -> Response {
    Response {
        status: StatusCode::from_u16(status).expect("a status"),
        retry_after: None,
        is_whole: true,
        content: RawAnswer {
            content_type: "application/json".to_owned(),
            body: body.as_bytes().to_vec().into(),
        },
    }
}

fn asked(request: Request, status: u16, body: &str) -> Result<TokenAnswer, ProviderError> {
    let scopes = Scopes::from_provider("email");
    let context = Context { request, scopes: &scopes, lifetime: Some(HOUR), issued_at: ISSUED_AT };
    token_answer(response(status, body), &["token_is_gone".to_owned()], context)
}

fn refresh(status: u16, body: &str) -> Result<TokenAnswer, ProviderError> {
    asked(Request::Refresh, status, body)
}

fn label(result: Result<TokenAnswer, ProviderError>) -> String {
    match result {
        Ok(TokenAnswer { tokens: Ok(_), .. }) => "tokens".to_owned(),
        Ok(TokenAnswer { tokens: Err(unusable), .. }) => match unusable.refresh_token {
            Some(_) => "partial".to_owned(),
            None => format!("unusable, {}", if unusable.has_acted { "acted" } else { "unknown" }),
        },
        Err(ProviderError::DeadGrant { error, .. }) => format!("dead: {}", error.code),
        Err(ProviderError::RefusesBroker { error, .. }) => format!("client: {}", error.code),
        Err(ProviderError::Refused { error, .. }) => format!("refused: {}", error.code),
        Err(ProviderError::ServerError { error: Some(error), .. }) => {
            format!("server_error: {}", error.code)
        }
        Err(error) => error.label().to_owned(),
    }
}

#[test]
fn a_dead_refresh_token_has_many_names() {
    for (status, body, expected) in [
        (400, r#"{"error":"invalid_grant"}"#, "dead: invalid_grant"),
        (200, r#"{"error":"bad_refresh_token"}"#, "dead: bad_refresh_token"),
        (200, r#"{"ok":false,"error":"invalid_refresh_token"}"#, "dead: invalid_refresh_token"),
        (
            400,
            r#"{"errors":[{"errorType":"invalid_grant","message":"x"}],"success":false}"#,
            "dead: invalid_grant",
        ),
        (401, r#"{"error":{"code":"refresh_token_reused"}}"#, "dead: refresh_token_reused"),
        (
            401,
            r#"{"error":{"type":"invalid_request_error","code":"refresh_token_reused"}}"#,
            "dead: refresh_token_reused",
        ),
        (400, r#"{"status":"BAD_REFRESH_TOKEN","message":"x"}"#, "dead: BAD_REFRESH_TOKEN"),
        (
            403,
            r#"{"error":"unauthorized_client","error_description":"refresh_token is invalid"}"#,
            "dead: unauthorized_client",
        ),
        (400, r#"{"error":"token_is_gone"}"#, "dead: token_is_gone"),
        (400, "error=invalid_grant", "dead: invalid_grant"),
        // One that may be about something else.
        (400, r#"{"error":"invalid_request"}"#, "refused: invalid_request"),
        (500, r#"{"error":"invalid_grant"}"#, "server_error: invalid_grant"),
        (400, r#"{"error":{"message":"x","code":190}}"#, "refused: 190"),
        (401, "", "unauthorized"),
        (403, "<html>", "unexpected_response"),
        (302, "", "unexpected_response"),
        (503, "", "server_error"),
        (429, r#"{"error":"slow_down"}"#, "rate_limited"),
        (401, r#"{"error":"invalid_client"}"#, "client: invalid_client"),
        (200, r#"{"error":"invalid_client"}"#, "client: invalid_client"),
        (
            200,
            r#"{"error":"incorrect_client_credentials"}"#,
            "client: incorrect_client_credentials",
        ),
    ] {
        assert_eq!(label(refresh(status, body)), expected, "{status} {body}");
    }
}

#[test]
fn a_dead_code_is_not_a_dead_refresh_token() {
    let exchange = |status, body| label(asked(Request::CodeExchange, status, body));
    assert_eq!(
        exchange(200, r#"{"error":"bad_verification_code"}"#),
        "dead: bad_verification_code"
    );
    assert_eq!(exchange(200, r#"{"ok":false,"error":"invalid_code"}"#), "dead: invalid_code");
    // At an exchange it is about the client's registration.
    assert_eq!(exchange(400, r#"{"error":"unauthorized_client"}"#), "refused: unauthorized_client");
    assert_eq!(
        label(refresh(200, r#"{"error":"bad_verification_code"}"#)),
        "refused: bad_verification_code"
    );
}

#[test]
fn an_answer_that_is_odd_keeps_its_refresh_token() {
    for (status, body, expected) in [
        (200, r#"{"access_token":"a","refresh_token":"r"}"#, "tokens"),
        (200, "access_token=a&refresh_token=r", "tokens"),
        (200, r#"{"access_token":"a","refresh_token":"r","expires"#, "partial"),
        (200, r#"{"access_token":"a","refresh_token":"r"#, "unusable, acted"),
        (200, r#"{"error":"invalid_grant","refresh_token":"r"}"#, "partial"),
        (500, r#"{"access_token":"a","refresh_token":"r"}"#, "partial"),
        (401, r#"{"error":"invalid_client","refresh_token":"r"}"#, "partial"),
        (200, "<html><body class=x>sign in</body></html>", "unusable, unknown"),
        (200, "", "unusable, unknown"),
    ] {
        assert_eq!(label(refresh(status, body)), expected, "{status} {body}");
    }
}

#[test]
fn an_answer_that_was_cut_is_used_if_it_is_complete() {
    let cut = |body: &str| {
        let scopes = Scopes::default();
        let request = Request::Refresh;
        let context = Context { request, scopes: &scopes, lifetime: None, issued_at: ISSUED_AT };
        let response = Response { is_whole: false, ..response(200, body) };
        label(token_answer(response, &[], context))
    };
    assert_eq!(cut(r#"{"access_token":"a","refresh_token":"r"}"#), "tokens");
    assert_eq!(cut(r#"{"access_token":"a","refresh_token":"r","#), "partial");
    assert_eq!(cut("refresh_token=r&access_token=a"), "partial");
    assert_eq!(cut("access_token=a&refresh_token=r"), "unusable, acted");
    assert_eq!(cut(""), "unusable, acted");
    assert_eq!(cut("<html><title>Sign in"), "unusable, unknown");
}

#[test]
fn a_refresh_changes_only_what_it_names() {
    let tokens = |body| refresh(200, body).expect("an answer").tokens.expect("tokens").access_token;
    let unchanged = tokens(r#"{"access_token":"a","scope":""}"#);
    assert_eq!(unchanged.scopes.to_string(), "email");
    assert_eq!(unchanged.expires_at, Some(ISSUED_AT + HOUR));
    let changed = tokens(r#"{"access_token":"a","scope":"openid","expires_in":60}"#);
    assert_eq!(changed.scopes.to_string(), "openid");
    assert_eq!(changed.expires_at, Some(ISSUED_AT + Duration::from_secs(60)));
}

#[test]
fn final_answers_to_revocations_are_final() {
    let ended = |status, body| revocation(&response(status, body)).is_ok();
    for (status, body) in [
        (200, ""),
        (204, ""),
        (404, "<html>"),
        (405, ""),
        (410, ""),
        (400, r#"{"error":"invalid_token"}"#),
        (400, r#"{"error":"unsupported_token_type"}"#),
        (401, r#"{"error":"invalid_grant"}"#),
    ] {
        assert!(ended(status, body), "{status} {body}");
    }
    for (status, body) in [
        (302, ""),
        (401, ""),
        (401, r#"{"error":"invalid_client"}"#),
        (400, r#"{"error":"invalid_request"}"#),
        (429, ""),
        (500, r#"{"error":"invalid_token"}"#),
        (503, ""),
    ] {
        assert!(!ended(status, body), "{status} {body}");
    }
}

#[test]
fn failures_concern_a_grant_the_client_or_the_provider() {
    let pause = Duration::from_secs(10);
    let concerns = |status, body| refresh(status, body).expect_err("a failure").concerns(pause);
    for body in ["", r#"{"error":"unauthorized_client"}"#, r#"{"error":"invalid_grant"}"#] {
        assert_eq!(concerns(401, body), Concerns::Grant, "{body}");
    }
    assert_eq!(concerns(500, r#"{"error":"invalid_grant"}"#), Concerns::Grant);
    assert_eq!(concerns(401, r#"{"error":"invalid_client"}"#), Concerns::Client);
    assert_eq!(concerns(500, ""), Concerns::Provider);
    assert_eq!(concerns(429, ""), Concerns::Pause(pause));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

    #[test]
    fn no_answer_panics(
        status in 100_u16..1000,
        content_type in ".{0,20}",
        body in prop::collection::vec(any::<u8>(), 0..200),
        request in prop::sample::select(vec![Request::CodeExchange, Request::Refresh]),
    ) {
        let scopes = Scopes::default();
        let response = || Response {
            status: StatusCode::from_u16(status).expect("a status"),
            retry_after: None,
            is_whole: false,
            content: RawAnswer { content_type: content_type.clone(), body: body.clone().into() },
        };
        let context = Context { request, scopes: &scopes, lifetime: None, issued_at: ISSUED_AT };
        let _ = token_answer(response(), &[], context);
        let _ = revocation(&response());
        let _ = document(&response());
    }

    /// Under every status, and beside every other member.
    #[test]
    fn a_refresh_token_is_never_lost(
        status in 100_u16..1000,
        fields in prop::collection::btree_map(
            prop::sample::select(vec!["error", "errors", "scope", "expires_in", "token_type", "x"]),
            prop::sample::select(vec![
                r#""invalid_grant""#, r#"{"code":"x"}"#, r#"[{"errorType":"x"}]"#, "null", "-1", r#""""#,
            ]),
            0..6,
        ),
        refresh_token in "[!#-\\[\\]-~]{1,80}",
        cut in any::<bool>(),
    ) {
        let mut body = format!(r#"{{"refresh_token":"{refresh_token}""#);
        for (name, value) in fields {
            body.push_str(&format!(r#","{name}":{value}"#));
        }
        body.push_str(if cut { ",\"access_tok" } else { ",\"access_token\":\"a\"}" });
        let answer = refresh(status, &body).expect("it is kept");
        let found = match answer.tokens {
            Ok(tokens) => tokens.refresh_token,
            Err(unusable) => unusable.refresh_token,
        };
        prop_assert_eq!(found.as_ref().map(ExposeSecret::expose_secret), Some(refresh_token.as_str()));
    }
}
