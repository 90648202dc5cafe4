//! ID tokens at the exchange of a code (OpenID Connect Core section 3.1.3.7): one that says or lacks
//! anything it should not ends the authorization, and none of its tokens is ever lent.

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use token_broker_client::proto::{self, AuthorizationState};
use token_broker_client::{Reason, Refusal};

use super::fake::{CLIENT_ID, CLIENT_SECRET, Issuer, SigningKey};
use super::{begin, granted, key, opened, seen, world};
use crate::harness::trial;
use crate::harness::world::BEGINNING;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("issuer::id_tokens::of_every_wrong_kind_are_refused", wrong),
        trial("issuer::id_tokens::that_are_right_are_taken", right),
        trial("issuer::id_tokens::of_a_code_of_another_start_are_refused", another_start),
        trial("issuer::id_tokens::that_are_missing_are_refused_where_openid_was_granted", missing),
        trial("issuer::id_tokens::need_keys_and_the_tokens_wait_sealed_meanwhile", no_keys),
        trial("issuer::id_tokens::of_another_user_at_a_refresh_flag_the_grant", refreshed),
    ]
}

/// A change to the claims of a good ID token.
fn claims(change: fn(&mut Value)) -> impl Fn(&Issuer, Value) -> Option<String> + Send + Sync {
    move |issuer, mut claims| {
        change(&mut claims);
        Some(issuer.key().sign(&claims))
    }
}

type Forge = Box<dyn Fn(&Issuer, Value) -> Option<String> + Send + Sync>;

fn remove(claims: &mut Value, name: &str) {
    claims.as_object_mut().expect("an object").remove(name);
}

async fn wrong() {
    const NOW: i64 = BEGINNING / 1000;

    let issuer = Issuer::start().await;
    let world = world(&issuer).await;
    let impostor = SigningKey::new("first");
    let unknown = SigningKey::new("unknown");
    let unsigned = |claims: &Value| {
        let encode = |value: &Value| {
            use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
            BASE64_URL_SAFE_NO_PAD.encode(value.to_string())
        };
        format!("{}.{}.", encode(&json!({"alg": "none"})), encode(claims))
    };
    let cases: Vec<(&str, Forge)> = vec![
        ("no signature", Box::new(move |_, claims| Some(unsigned(&claims)))),
        (
            "signed with the client's secret",
            Box::new(|_, claims| {
                let key = EncodingKey::from_secret(CLIENT_SECRET.as_bytes());
                Some(
                    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key)
                        .expect("one"),
                )
            }),
        ),
        ("signed by another key of that name", Box::new(move |_, c| Some(impostor.sign(&c)))),
        ("signed by a key that is not published", Box::new(move |_, c| Some(unknown.sign(&c)))),
        (
            "changed after it was signed",
            Box::new(|issuer, claims| {
                let token = issuer.key().sign(&claims);
                let mut other = claims;
                other["sub"] = "mallory".into();
                let forged = issuer.key().sign(&other);
                let (signed, signature) = token.rsplit_once('.')?;
                let payload = forged.split('.').nth(1)?;
                Some(format!("{}.{payload}.{signature}", signed.split('.').next()?))
            }),
        ),
        ("no JWT", Box::new(|_, _| Some("garbage".to_owned()))),
        ("another issuer", Box::new(claims(|c| c["iss"] = "https://evil.example".into()))),
        (
            "the issuer with a slash",
            Box::new(claims(|c| {
                c["iss"] = format!("{}/", c["iss"].as_str().expect("text")).into();
            })),
        ),
        ("no issuer", Box::new(claims(|c| remove(c, "iss")))),
        ("another audience", Box::new(claims(|c| c["aud"] = "another".into()))),
        ("no audience", Box::new(claims(|c| remove(c, "aud")))),
        ("another azp", Box::new(claims(|c| c["azp"] = "another".into()))),
        ("expired", Box::new(claims(|c| c["exp"] = (NOW - 61).into()))),
        ("no expiry", Box::new(claims(|c| remove(c, "exp")))),
        ("an expiry that is no number", Box::new(claims(|c| c["exp"] = "tomorrow".into()))),
        ("another nonce", Box::new(claims(|c| c["nonce"] = "replayed".into()))),
        ("no nonce", Box::new(claims(|c| remove(c, "nonce")))),
        ("no sub", Box::new(claims(|c| remove(c, "sub")))),
        ("an empty sub", Box::new(claims(|c| c["sub"] = "".into()))),
        ("a sub that is no text", Box::new(claims(|c| c["sub"] = 7.into()))),
    ];
    let tokens = 2 * cases.len();
    for (case, forge) in cases {
        issuer.forge(forge);
        let started = begin(&world, "u1").await;
        let page = opened(&started).await;
        assert_eq!(page.status, 502, "{case}: {page:?}");
        let ended = seen(&world, &started).await;
        assert_eq!(ended.state(), AuthorizationState::Failed, "{case}");
        assert_eq!(ended.error, "invalid_id_token", "{case}");
        let request = proto::GetTokenRequest { key: Some(key("u1")), ..Default::default() };
        let refused = world.client().get_token(request).await.expect_err("no grant");
        let refusal = Refusal::of(&refused).expect("a refusal");
        assert_eq!(refusal.reason, Reason::AuthorizationRequired, "{case}");
    }
    // Nobody will use them, so they are revoked.
    while issuer.revoked().len() < tokens {
        tokio::task::yield_now().await;
    }
}

async fn right() {
    const NOW: i64 = BEGINNING / 1000;

    let issuer = Issuer::start().await;
    let world = world(&issuer).await;
    let cases: Vec<(&str, Forge)> = vec![
        ("as it should be", Box::new(claims(|_| {}))),
        ("a list of one audience", Box::new(claims(|c| c["aud"] = json!([CLIENT_ID])))),
        (
            "several, and azp",
            Box::new(claims(|c| {
                c["aud"] = json!(["another", CLIENT_ID]);
                c["azp"] = CLIENT_ID.into();
            })),
        ),
        // OpenID Connect Core errata 2.
        ("several, and no azp", Box::new(claims(|c| c["aud"] = json!([CLIENT_ID, "another"])))),
        ("a clock that is a little behind", Box::new(claims(|c| c["exp"] = (NOW - 59).into()))),
        ("a time with a fraction", Box::new(claims(|c| c["exp"] = (NOW as f64 + 9.5).into()))),
        (
            "no key id",
            Box::new(|issuer: &Issuer, claims| {
                Some(issuer.key().sign_as(&Header::new(Algorithm::ES256), &claims))
            }),
        ),
        (
            "an empty key id",
            Box::new(|issuer: &Issuer, claims| {
                let header = Header { kid: Some(String::new()), ..Header::new(Algorithm::ES256) };
                Some(issuer.key().sign_as(&header, &claims))
            }),
        ),
    ];
    for (case, forge) in cases {
        issuer.forge(forge);
        let grant = granted(&world, "u1").await;
        assert_eq!(grant.identity, "ada@userinfo.example", "{case}");
    }
    // Keys without an id, and one that is written with the padding of base64.
    let mut nameless = issuer.key().public();
    nameless.as_object_mut().expect("an object").remove("kid");
    let mut padded = nameless.clone();
    for number in ["x", "y"] {
        padded[number] = format!("{}=", padded[number].as_str().expect("text")).into();
    }
    for keys in [vec![nameless], vec![padded]] {
        issuer.set_keys(keys);
        issuer.forge(|issuer, claims| {
            let header =
                Header { kid: Some("unlisted".to_owned()), ..Header::new(Algorithm::ES256) };
            Some(issuer.key().sign_as(&header, &claims))
        });
        granted(&world, "u3").await;
    }
    // Keys that mean nothing here, or are cut short, do no harm.
    let short = json!({"kty": "OKP", "crv": "Ed25519", "kid": "second", "x": "AA"});
    let empty = json!({"kty": "EC", "crv": "P-256", "kid": "second", "x": "", "y": ""});
    let strange = json!({"kty": "OKP", "crv": "X448", "kid": "strange", "x": "AA"});
    let encryption = json!({"kty": "RSA", "use": "enc", "kid": "enc", "n": "AQAB", "e": "AQAB"});
    let second = SigningKey::new("second");
    issuer.set_keys(vec![short.clone(), empty, strange, encryption, json!(7), second.public()]);
    issuer.forge(move |_, claims| Some(second.sign(&claims)));
    granted(&world, "u1").await;
    // Alone, such a key makes no signature, and no crash.
    issuer.set_keys(vec![short]);
    issuer.forge(|issuer, claims| {
        let token = issuer.key().sign(&claims);
        let (_, rest) = token.split_once('.')?;
        // {"alg":"EdDSA"}
        Some(format!("eyJhbGciOiJFZERTQSJ9.{rest}"))
    });
    let started = begin(&world, "u2").await;
    assert_eq!(opened(&started).await.status, 502);
    assert_eq!(seen(&world, &started).await.error, "invalid_id_token");
}

async fn another_start() {
    let issuer = Issuer::start().await;
    let world = world(&issuer).await;
    let stolen = std::sync::Mutex::new(None);
    // Everybody gets the ID token of the first.
    issuer.forge(move |issuer, claims| {
        let mut stolen = stolen.lock().expect("no panic");
        Some(stolen.get_or_insert_with(|| issuer.key().sign(&claims)).clone())
    });
    granted(&world, "u1").await;
    let started = begin(&world, "u2").await;
    assert_eq!(opened(&started).await.status, 502);
    assert_eq!(seen(&world, &started).await.error, "invalid_id_token");
}

async fn missing() {
    let issuer = Issuer::start().await;
    let world = world(&issuer).await;
    issuer.forge(|_, _| None);
    let started = begin(&world, "u1").await;
    assert_eq!(opened(&started).await.status, 502);
    assert_eq!(seen(&world, &started).await.error, "invalid_id_token");
    // A provider that says that it did not grant it owes none.
    issuer.set_scope("email");
    assert_eq!(granted(&world, "u1").await.identity, "ada@userinfo.example");
}

async fn no_keys() {
    let issuer = Issuer::start().await;
    let world = world(&issuer).await;
    for status in [500, 404, 302] {
        issuer.break_path("/jwks", status, issuer.url());
        let started = begin(&world, "u1").await;
        let page = opened(&started).await;
        assert_eq!(page.status, 502, "{page:?}");
        let ended = seen(&world, &started).await;
        assert_eq!(ended.error, "temporarily_unavailable", "{status}");
        issuer.mend();
    }
    while issuer.revoked().len() < 6 {
        tokio::task::yield_now().await;
    }
    // A failure is told again for a moment.
    while opened(&begin(&world, "u1").await).await.status != 200 {}
}

async fn refreshed() {
    let issuer = Issuer::start().await;
    let world = world(&issuer).await;
    granted(&world, "u1").await;
    let refresh = || async {
        let request = proto::RefreshRequest { key: Some(key("u1")), ..Default::default() };
        world
            .client()
            .refresh(request)
            .await
            .map(|refreshed| refreshed.into_inner().token.expect("a token").access_token)
    };
    // Without a nonce (section 12.2), and even of a key that nobody knows: it came over TLS.
    let unknown = SigningKey::new("unknown");
    issuer.forge(move |_, mut claims| {
        remove(&mut claims, "nonce");
        Some(unknown.sign(&claims))
    });
    assert_eq!(refresh().await.expect("a token"), "access-2");
    issuer.forge(|_, _| None);
    assert_eq!(refresh().await.expect("a token"), "access-3");
    issuer.forge(|_, _| Some("garbage".to_owned()));
    assert_eq!(refresh().await.expect("a token"), "access-4");
    // Of another issuer, for another client, or of nobody: no verdict on the user.
    for odd in [
        claims(|c| c["aud"] = "another".into()),
        claims(|c| c["iss"] = "https://evil.example".into()),
        claims(|c| remove(c, "sub")),
    ] {
        issuer.forge(odd);
        let refused = refresh().await.expect_err("odd");
        assert_eq!(Refusal::of(&refused).expect("a refusal").reason, Reason::ProviderError);
        issuer.forge(|_, _| None);
        world.advance(std::time::Duration::from_secs(11));
        refresh().await.expect("its refresh token was kept");
    }
    issuer.forge(claims(|c| c["sub"] = "sub-of-mallory".into()));
    let refused = refresh().await.expect_err("somebody else's");
    let refusal = Refusal::of(&refused).expect("a refusal");
    assert_eq!(refusal.reason, Reason::ReauthorizationRequired);
    // Only the user can set that right.
    issuer.forge(claims(|_| {}));
    refresh().await.expect_err("the grant is flagged");
    let list = world.client().list_grants(proto::ListGrantsRequest::default()).await;
    let grants = list.expect("a list").into_inner().grants;
    assert_eq!(grants[0].state(), proto::GrantState::ReauthorizationRequired);
    // The user's own tokens are revoked, and nobody else's: that could end another's grant.
    let before = issuer.tokens();
    let request = proto::RevokeRequest { key: Some(key("u1")) };
    world.client().revoke(request).await.expect("revoked");
    let foreign = [format!("access-{before}"), format!("refresh-{before}")];
    assert!(
        !issuer.revoked().iter().any(|token| foreign.contains(token)),
        "{:?}",
        issuer.revoked()
    );
    assert!(issuer.revoked().contains(&format!("refresh-{}", before - 1)));
}
