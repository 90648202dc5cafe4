//! ID tokens: checked at the exchange of a code (OpenID Connect Core section 3.1.3.7), compared at a
//! refresh (section 12.2).

use std::time::Duration;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, Header, Validation};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value};
use url::Url;

use super::classify::Userinfo;
use super::directory::Directory;
use super::error::ProviderError;
use crate::domain::provider::{Provider, Server};
use crate::domain::time::Timestamp;

/// The accepted difference between the clocks of the provider and the database.
const LEEWAY: Duration = Duration::from_secs(60);

/// The number of keys that are tried where an ID token does not name its own.
const MOST_TRIED: usize = 10;

/// The accepted signatures: those of public keys. `none` is no signature, and one by the client's secret could be made
/// by every holder of it.
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// The claims of an ID token that was checked.
#[derive(Debug, Clone)]
pub struct Claims {
    /// The user, for ever (section 2).
    pub sub: String,
    /// Everything.
    pub all: Map<String, Value>,
}

/// The expected claims of an ID token.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// The nonce of the authorization request.
    pub nonce: &'a str,
    /// The time, on the database's clock.
    pub now: Timestamp,
}

/// Why an ID token is not believed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IdTokenError {
    /// It says or lacks something. Never with a value.
    #[error("{0}")]
    Invalid(String),
    /// The keys to check it with cannot be had.
    #[error("cannot read the keys: {0}")]
    Keys(ProviderError),
}

impl Directory {
    /// Checks an ID token that came with an authorization code's tokens.
    ///
    /// # Errors
    ///
    /// [`IdTokenError`].
    pub async fn check_id_token(
        &self,
        server: &Server,
        token: &SecretString,
        expected: Expected<'_>,
    ) -> Result<Claims, IdTokenError> {
        let token = token.expose_secret();
        let (header, issuer, jwks_uri) = self.verifiable(server, token)?;
        let all = self.signed_claims(server, token, &header, jwks_uri).await?;
        check_claims(server, issuer, &all)?;
        let seconds = all.get("exp").and_then(Value::as_f64).unwrap_or(f64::NEG_INFINITY);
        #[expect(clippy::cast_possible_truncation, reason = "saturates, which is right here")]
        let expires = Timestamp::from_millis((seconds * 1000.0) as i64);
        if expires + LEEWAY <= expected.now {
            return Err(invalid("has expired, or has no exp"));
        }
        if all.get("nonce").and_then(Value::as_str) != Some(expected.nonce) {
            return Err(invalid("is of another authorization request (nonce)"));
        }
        let sub = sub(&all).ok_or_else(|| invalid("has no sub"))?;
        Ok(Claims { sub, all })
    }

    /// The claims, if a key of the provider has made the signature.
    async fn signed_claims(
        &self,
        server: &Server,
        token: &str,
        header: &Header,
        jwks_uri: &Url,
    ) -> Result<Map<String, Value>, IdTokenError> {
        let entry = self
            .entry(&server.name)
            .ok_or_else(|| invalid("is of a provider that is not configured"))?;
        let fits = |key: &Jwk| fits(key, header);
        let verified = |keys: &[Jwk]| {
            let fitting = keys.iter().filter(|key| fits(key)).take(MOST_TRIED);
            fitting.into_iter().find_map(|key| verified(token, header, key))
        };
        let (http, name) = (self.http(), &server.name);
        let keys = entry.keys.with(http, name, jwks_uri, fits).await.map_err(IdTokenError::Keys)?;
        if let Some(claims) = verified(&keys) {
            return Ok(claims);
        }
        // A key without an id fits every token, also one of a newer key.
        let by_id = id(&header.kid).is_some() && keys.iter().all(|key| key.common.key_id.is_some());
        if !by_id {
            let keys = entry.keys.with(http, name, jwks_uri, |_| false).await;
            if let Some(claims) = verified(&keys.map_err(IdTokenError::Keys)?) {
                return Ok(claims);
            }
        }
        Err(invalid("has a signature that none of the provider's keys made"))
    }
}

impl Directory {
    /// Asks the provider who the user is. An answer that is a signed JWT (OpenID Connect Core section 5.3.2) is
    /// verified. Returns `None` if the provider does not say.
    ///
    /// # Errors
    ///
    /// [`IdTokenError`] if the provider cannot be asked, or its answer is not to be believed.
    pub async fn userinfo(
        &self,
        server: &Server,
        endpoint: &Url,
        access_token: &SecretString,
    ) -> Result<Option<Map<String, Value>>, IdTokenError> {
        let answer = self.http().userinfo(&server.name, endpoint, access_token).await;
        let jwt = match answer.map_err(IdTokenError::Keys)? {
            None => return Ok(None),
            Some(Userinfo::Plain(fields)) => return Ok(Some(fields)),
            Some(Userinfo::Signed(jwt)) => jwt,
        };
        let (header, issuer, jwks_uri) = self.verifiable(server, &jwt)?;
        let claims = self.signed_claims(server, &jwt, &header, jwks_uri).await?;
        // Both may be left out there.
        let fits = claims.get("iss").is_none_or(|named| *named == issuer);
        let client = server.client.id.as_str();
        let is_for_client = claims.get("aud").is_none_or(|audience| match audience {
            Value::Array(several) => several.iter().any(|one| one == client),
            one => one == client,
        });
        if fits && is_for_client {
            Ok(Some(claims))
        } else {
            Err(invalid("is of another issuer or for another client"))
        }
    }

    fn verifiable<'s>(
        &self,
        server: &'s Server,
        token: &str,
    ) -> Result<(Header, &'s str, &'s Url), IdTokenError> {
        let header = jsonwebtoken::decode_header(token)
            .map_err(|_| invalid("is no JWT, or of an algorithm that is not known here"))?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(invalid("is not signed with a public key"));
        }
        let (Some(issuer), Some(jwks_uri)) = (&server.issuer, &server.jwks_uri) else {
            return Err(invalid("cannot be checked without an issuer and its keys"));
        };
        Ok((header, issuer, jwks_uri))
    }
}

/// A mismatch between the ID token of a refresh and the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mismatch {
    /// It names another user.
    AnotherUser,
    /// Another issuer, another client or no subject: no verdict on the user.
    Odd(&'static str),
}

/// Compares the ID token of a refresh with the user of before (section 12.2). Returns `None` if it is the
/// same user's, or none that can be read. It came straight from the token endpoint, which TLS
/// vouches for (section 3.1.3.7), so its signature is not looked at: no key may have to be fetched
/// while a refresh is under way.
#[must_use]
pub fn mismatch(provider: &Provider, token: &SecretString, sub_before: &str) -> Option<Mismatch> {
    let claims: Map<String, Value> =
        jsonwebtoken::dangerous::insecure_decode_claims(token.expose_secret()).ok()?;
    let issuer = provider.issuer.as_deref()?;
    match sub(&claims) {
        Some(sub) if sub != sub_before => Some(Mismatch::AnotherUser),
        Some(_) if check_claims(provider, issuer, &claims).is_ok() => None,
        Some(_) => Some(Mismatch::Odd("an ID token of another issuer, or for another client")),
        None => Some(Mismatch::Odd("an ID token that names nobody")),
    }
}

fn invalid(what: &str) -> IdTokenError {
    IdTokenError::Invalid(format!("the ID token {what}"))
}

fn sub(claims: &Map<String, Value>) -> Option<String> {
    let sub = claims.get("sub")?.as_str()?;
    (!sub.is_empty() && sub.len() <= 255).then(|| sub.to_owned())
}

/// Checks the issuer and the audience.
fn check_claims(
    provider: &Provider,
    issuer: &str,
    claims: &Map<String, Value>,
) -> Result<(), IdTokenError> {
    if claims.get("iss").and_then(Value::as_str) != Some(issuer) {
        return Err(invalid("is of another issuer (iss)"));
    }
    let client = provider.client.id.as_str();
    let audience = match claims.get("aud") {
        Some(Value::String(one)) => one == client,
        Some(Value::Array(several)) => several.iter().any(|a| a == client),
        _ => false,
    };
    if !audience {
        return Err(invalid("is for another client (aud)"));
    }
    // Not required with several audiences (OpenID Connect Core errata 2).
    match claims.get("azp") {
        Some(party) if party != client => Err(invalid("was issued to another client (azp)")),
        _ => Ok(()),
    }
}

/// The id of a key. An empty one is none.
fn id(id: &Option<String>) -> Option<&str> {
    id.as_deref().filter(|id| !id.is_empty())
}

/// Returns `true` if a key may have made the signature.
fn fits(key: &Jwk, header: &Header) -> bool {
    let common = &key.common;
    // A key or a token without an id fits any.
    let (wanted, has) = (id(&header.kid), id(&common.key_id));
    let named = wanted.is_none() || has.is_none() || wanted == has;
    let signs = !matches!(common.public_key_use, Some(PublicKeyUse::Encryption));
    let algorithm = common.key_algorithm.is_none_or(|algorithm| {
        algorithm.to_string().parse().is_ok_and(|algorithm: Algorithm| algorithm == header.alg)
    });
    named && signs && algorithm && is_whole(key, header.alg)
}

/// Returns `true` if a key is of the algorithm's kind and has the length that it must have: the library takes
/// both for granted.
fn is_whole(key: &Jwk, algorithm: Algorithm) -> bool {
    let has = |text: &str, bytes: usize| {
        BASE64_URL_SAFE_NO_PAD.decode(text).is_ok_and(|decoded| decoded.len() == bytes)
    };
    match (&key.algorithm, algorithm.family()) {
        (AlgorithmParameters::RSA(rsa), AlgorithmFamily::Rsa) => {
            !rsa.n.is_empty() && !rsa.e.is_empty()
        }
        (AlgorithmParameters::EllipticCurve(ec), AlgorithmFamily::Ec) => {
            let (curve, bytes) = match algorithm {
                Algorithm::ES384 => (EllipticCurve::P384, 48),
                _ => (EllipticCurve::P256, 32),
            };
            ec.curve == curve && has(&ec.x, bytes) && has(&ec.y, bytes)
        }
        (AlgorithmParameters::OctetKeyPair(okp), AlgorithmFamily::Ed) => {
            okp.curve == EllipticCurve::Ed25519 && has(&okp.x, 32)
        }
        _ => false,
    }
}

/// The claims, where this key made the signature. What they say is checked elsewhere.
fn verified(token: &str, header: &Header, key: &Jwk) -> Option<Map<String, Value>> {
    let key = DecodingKey::from_jwk(key).ok()?;
    let mut validation = Validation::new(header.alg);
    // Time is the database's, and `aud` is checked together with `azp`.
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    jsonwebtoken::decode::<Map<String, Value>>(token, &key, &validation)
        .ok()
        .map(|token| token.claims)
}
