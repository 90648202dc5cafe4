use proptest::prelude::*;

use super::*;

const ISSUED_AT: Timestamp = Timestamp::from_millis(1_000_000);

fn answer(content_type: &str, body: &str) -> RawAnswer {
    RawAnswer { content_type: content_type.to_owned(), body: body.as_bytes().to_vec().into() }
}

fn read_as(content_type: &str, body: &str) -> Result<TokenSet, Unusable> {
    let scopes = Scopes::from_provider("asked");
    read(&answer(content_type, body), context(&scopes))
}

fn context(scopes: &Scopes) -> Context<'_> {
    Context { request: Request::CodeExchange, scopes, lifetime: None, issued_at: ISSUED_AT }
}

fn read_json(body: &str) -> Result<TokenSet, Unusable> {
    read_as("application/json", body)
}

fn exposed(token: Option<&SecretString>) -> Option<&str> {
    token.map(ExposeSecret::expose_secret)
}

/// The lifetime in seconds that the broker makes of an `expires_in`.
fn lifetime_of(expires_in: &str) -> Option<u64> {
    let tokens = read_json(&format!(r#"{{"access_token":"a","expires_in":{expires_in}}}"#))
        .expect("the token is usable whatever its lifetime");
    tokens.access_token.expires_at.map(|at| at.since(ISSUED_AT).as_secs())
}

#[test]
fn the_answer_of_the_rfc() {
    let tokens = read_json(
        r#"{"access_token":"2YotnFZFEjr1zCsicMWpAA","token_type":"bearer","expires_in":3600,
            "refresh_token":"tGzv3JOkF0XG5Qx2TlKWIA","scope":"a b","example_parameter":"x"}"#,
    )
    .expect("usable");
    assert_eq!(tokens.access_token.value.expose_secret(), "2YotnFZFEjr1zCsicMWpAA");
    assert_eq!(tokens.access_token.token_type, "Bearer");
    assert_eq!(tokens.access_token.scopes.to_string(), "a b");
    assert_eq!(tokens.access_token.expires_at, Some(ISSUED_AT + Duration::from_secs(3600)));
    assert_eq!(exposed(tokens.refresh_token.as_ref()), Some("tGzv3JOkF0XG5Qx2TlKWIA"));
}

#[test]
fn lifetimes_are_read_leniently() {
    let longest = LONGEST_LIFETIME.as_secs();
    for (text, seconds) in [
        ("3600", Some(3600)),
        ("\"3600\"", Some(3600)),
        ("\" 3600 \"", Some(3600)),
        ("3600.9", Some(3600)),
        ("\"3600.5\"", Some(3600)),
        ("3.6e3", Some(3600)),
        ("1", Some(1)),
        ("0", None),
        ("\"0\"", None),
        ("0.5", None),
        ("-1", None),
        ("\"-3600\"", None),
        ("null", None),
        ("true", None),
        ("\"\"", None),
        ("\"soon\"", None),
        ("\"NaN\"", None),
        ("\"inf\"", Some(longest)),
        ("\"-inf\"", None),
        ("[]", None),
        ("{}", None),
        ("1e18", Some(longest)),
        ("1e300", Some(longest)),
        ("18446744073709551615", Some(longest)),
        ("9223372036854775808", Some(longest)),
        ("-9223372036854775808", None),
    ] {
        assert_eq!(lifetime_of(text), seconds, "{text}");
    }
}

#[test]
fn scopes_are_read_in_every_form() {
    let scopes = |scope: &str| {
        read_json(&format!(r#"{{"access_token":"a"{scope}}}"#))
            .map(|tokens| tokens.access_token.scopes.to_string())
            .ok()
    };
    assert_eq!(scopes(r#","scope":"b a""#).as_deref(), Some("a b"));
    assert_eq!(scopes(r#","scope":"a,b""#).as_deref(), Some("a b"));
    assert_eq!(scopes(r#","scope":["a","b"]"#).as_deref(), Some("a b"));
    assert_eq!(scopes(r#","scope":null"#).as_deref(), Some("asked"));
    assert_eq!(scopes("").as_deref(), Some("asked"));
    // An empty text is an answer: nothing was granted.
    assert_eq!(scopes(r#","scope":"""#).as_deref(), Some(""));
}

#[test]
fn other_formats_and_wrong_content_types() {
    for (content_type, body) in [
        ("application/x-www-form-urlencoded", "access_token=a&refresh_token=r&expires_in=60"),
        ("text/plain; charset=utf-8", "access_token=a&refresh_token=r\n"),
        ("text/plain", r#"{"access_token":"a","refresh_token":"r"}"#),
        ("text/html", r#"{"access_token":"a","refresh_token":"r"}"#),
        ("", r#"{"access_token":"a","refresh_token":"r"}"#),
        ("application/json", "\u{feff}  {\"access_token\":\"a\",\"refresh_token\":\"r\"} rubbish"),
    ] {
        let tokens = read_as(content_type, body).expect(body);
        assert_eq!(tokens.access_token.value.expose_secret(), "a", "{body}");
        assert_eq!(exposed(tokens.refresh_token.as_ref()), Some("r"), "{body}");
    }
}

#[test]
fn the_refresh_token_survives_whatever_else_is_odd() {
    for body in [
        r#"{"refresh_token":"r"}"#,
        r#"{"access_token":"","refresh_token":"r"}"#,
        r#"{"access_token":7,"refresh_token":"r"}"#,
        r#"{"access_token":"a\nb","refresh_token":"r"}"#,
        r#"{"access_token":"a","token_type":"mac","refresh_token":"r"}"#,
        r#"{"access_token":"a","error":"temporarily_unavailable","refresh_token":"r"}"#,
    ] {
        let unusable = read_json(body).expect_err(body);
        assert_eq!(exposed(unusable.refresh_token.as_ref()), Some("r"), "{body}");
    }
}

#[test]
fn an_error_in_a_2xx_answer_is_a_failure() {
    for (body, code) in [
        (r#"{"error":"bad_verification_code"}"#, "bad_verification_code"),
        (r#"{"ok":false,"error":"invalid_code"}"#, "invalid_code"),
        (r#"{"error":{"type":"OAuthException","code":190}}"#, "OAuthException"),
        (r#"{"access_token":"a","error":true}"#, "error"),
    ] {
        let error = read_json(body).expect_err(body).error.expect(body);
        assert_eq!(error.code, code);
    }
    // Present and void is no error.
    assert!(read_json(r#"{"access_token":"a","error":null}"#).is_ok());
    assert!(read_json(r#"{"access_token":"a","error":""}"#).is_ok());
    assert!(read_json(r#"{"access_token":"a","error":false}"#).is_ok());
}

#[test]
fn rubbish_is_unusable() {
    for body in ["", "null", "[]", "\"a\"", "<html>", "{", "{\"access_token\":\"a\"", "\0\0"] {
        assert!(read_json(body).is_err(), "{body}");
    }
}

#[test]
fn all_tokens_are_found_for_disposal() {
    let found = tokens_in(
        &answer(
            "application/json",
            r#"{"access_token":"a","token_type":"mac","refresh_token":"r","expires_in":5}"#,
        ),
        ISSUED_AT,
    );
    let kinds: Vec<_> = found.iter().map(|token| token.kind).collect();
    assert_eq!(kinds, [TokenKind::Refresh, TokenKind::Access]);
    assert_eq!(found[1].expires_at, Some(ISSUED_AT + Duration::from_secs(5)));
}

proptest! {
    #[test]
    fn no_answer_panics(content_type in ".{0,40}", body in prop::collection::vec(any::<u8>(), 0..300)) {
        let answer = RawAnswer { content_type, body: body.into() };
        let scopes = Scopes::default();
        let _ = read(&answer, context(&scopes));
        let _ = tokens_in(&answer, ISSUED_AT);
    }

    #[test]
    fn a_refresh_token_is_found_among_any_other_fields(
        fields in prop::collection::btree_map("[a-z_]{1,12}", "[ -~]{0,20}", 0..8),
        refresh_token in "[!-~]{1,80}",
    ) {
        let mut object: serde_json::Map<String, Value> =
            fields.into_iter().map(|(name, value)| (name, Value::String(value))).collect();
        object.insert("refresh_token".to_owned(), Value::String(refresh_token.clone()));
        let found = match read_json(&Value::Object(object).to_string()) {
            Ok(tokens) => tokens.refresh_token,
            Err(unusable) => unusable.refresh_token,
        };
        prop_assert_eq!(exposed(found.as_ref()), Some(refresh_token.as_str()));
    }
}
