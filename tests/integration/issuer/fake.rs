//! An issuer that says what a test has it say.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Form, Router};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};
use token_broker::domain::provider::{
    Client, ConfiguredAuth, Endpoints, Provider, RevocationReach,
};
use token_broker::domain::scope::Scopes;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::FAKE;
use crate::harness::world::{BEGINNING, name};

pub const CLIENT_ID: &str = "broker";
pub const CLIENT_SECRET: &str = "secret";

/// Who every user is.
pub const SUB: &str = "sub-of-ada";

/// Makes an ID token of the claims that a good one has.
type Forge = Arc<dyn Fn(&Issuer, Value) -> Option<String> + Send + Sync>;

#[derive(Clone)]
pub struct Issuer(Arc<Inner>);

struct Inner {
    url: String,
    key: SigningKey,
    said: Mutex<Said>,
    /// Requests wait while this is `true`.
    held: watch::Sender<bool>,
}

struct Said {
    metadata: Value,
    keys: Vec<Value>,
    /// A text is sent as it is.
    userinfo: Value,
    at_oauth: bool,
    scope: Option<String>,
    forge: Forge,
    /// Statuses that paths are answered with instead.
    broken: BTreeMap<&'static str, (u16, String)>,
    hits: BTreeMap<String, usize>,
    nonces: BTreeMap<String, Option<String>>,
    tokens: usize,
    revoked: Vec<String>,
}

/// A key on P-256.
pub struct SigningKey {
    pub kid: &'static str,
    key: EncodingKey,
}

impl SigningKey {
    pub fn new(kid: &'static str) -> Self {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random);
        Self { kid, key: EncodingKey::from_ec_der(key.expect("a key").as_ref()) }
    }

    pub fn public(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.key, Algorithm::ES256).expect("a key");
        jwk.common.key_id = Some(self.kid.to_owned());
        serde_json::to_value(jwk).expect("JSON")
    }

    pub fn sign(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.kid.to_owned()), ..Header::new(Algorithm::ES256) };
        self.sign_as(&header, claims)
    }

    pub fn sign_as(&self, header: &Header, claims: &Value) -> String {
        jsonwebtoken::encode(header, claims, &self.key).expect("a token")
    }
}

impl Issuer {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let at = |path: &str| format!("{url}/{path}");
        let metadata = json!({
            "issuer": url,
            "authorization_endpoint": at("authorize"),
            "token_endpoint": at("token"),
            "revocation_endpoint": at("revoke"),
            "userinfo_endpoint": at("userinfo"),
            "jwks_uri": at("jwks"),
            "authorization_response_iss_parameter_supported": true,
        });
        let key = SigningKey::new("first");
        let said = Said {
            metadata,
            keys: vec![key.public()],
            userinfo: json!({"sub": SUB, "email": "ada@userinfo.example"}),
            at_oauth: false,
            scope: None,
            forge: Arc::new(|issuer, claims| Some(issuer.key().sign(&claims))),
            broken: BTreeMap::new(),
            hits: BTreeMap::new(),
            nonces: BTreeMap::new(),
            tokens: 0,
            revoked: Vec::new(),
        };
        let issuer = Self(Arc::new(Inner {
            url,
            key,
            said: Mutex::new(said),
            held: watch::Sender::new(false),
        }));
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(metadata_of))
            .route("/.well-known/oauth-authorization-server", get(metadata_of_oauth))
            .route("/authorize", get(authorize))
            .route("/token", post(token))
            .route("/revoke", post(revoke))
            .route("/userinfo", get(userinfo))
            .route("/jwks", get(keys))
            .layer(from_fn_with_state(issuer.clone(), counted))
            .with_state(issuer.clone());
        tokio::spawn(axum::serve(listener, router).into_future());
        issuer
    }

    pub fn url(&self) -> &str {
        &self.0.url
    }

    pub fn key(&self) -> &SigningKey {
        &self.0.key
    }

    /// How a broker is told of it: by its issuer alone.
    pub fn provider(&self) -> Provider {
        Provider {
            name: name(FAKE),
            display_name: "Fake".to_owned(),
            issuer: Some(self.0.url.clone()),
            endpoints: Endpoints::default(),
            revocation_reach: RevocationReach::Token,
            refresh_grace: std::time::Duration::ZERO,
            refresh_idle: None,
            client: Client {
                id: CLIENT_ID.to_owned(),
                auth: ConfiguredAuth::Offered(CLIENT_SECRET.into()),
            },
            default_scopes: Scopes::parse(["openid", "email"]).expect("scopes"),
            scope_names: Default::default(),
            dead_grant_errors: Vec::new(),
            ignores_id_tokens: false,
            identity: None,
        }
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.0.said.lock().expect("no panic")
    }

    pub fn set_metadata(&self, member: &str, value: Value) {
        self.said().metadata[member] = value;
    }

    /// Has the metadata at the place of RFC 8414 too.
    pub fn also_at_oauth(&self) {
        self.said().at_oauth = true;
    }

    pub fn set_keys(&self, keys: Vec<Value>) {
        self.said().keys = keys;
    }

    pub fn set_userinfo(&self, userinfo: Value) {
        self.said().userinfo = userinfo;
    }

    /// What token answers name as granted.
    pub fn set_scope(&self, scope: &str) {
        self.said().scope = Some(scope.to_owned());
    }

    /// Makes ID tokens so from here on.
    pub fn forge(&self, forge: impl Fn(&Self, Value) -> Option<String> + Send + Sync + 'static) {
        self.said().forge = Arc::new(forge);
    }

    /// Has a path answer with a status, and a `Location`.
    pub fn break_path(&self, path: &'static str, status: u16, location: &str) {
        self.said().broken.insert(path, (status, location.to_owned()));
    }

    pub fn mend(&self) {
        self.said().broken.clear();
    }

    /// Has all requests wait until [`Issuer::release`].
    pub fn hold(&self) {
        self.0.held.send_replace(true);
    }

    pub fn release(&self) {
        self.0.held.send_replace(false);
    }

    /// The number of times that a path was called.
    pub fn hits(&self, path: &str) -> usize {
        self.said().hits.get(path).copied().unwrap_or_default()
    }

    /// The number of pairs of tokens that were issued.
    pub fn tokens(&self) -> usize {
        self.said().tokens
    }

    /// The tokens that were revoked here.
    pub fn revoked(&self) -> Vec<String> {
        self.said().revoked.clone()
    }

    fn answer(&self, nonce: Option<&str>) -> Response {
        let now = BEGINNING / 1000;
        let claims = json!({
            "iss": self.0.url, "sub": SUB, "aud": CLIENT_ID, "iat": now, "exp": now + 3600,
            "nonce": nonce,
        });
        let forge = Arc::clone(&self.said().forge);
        let id_token = forge(self, claims);
        let mut said = self.said();
        said.tokens += 1;
        let number = said.tokens;
        let mut answer = json!({
            "access_token": format!("access-{number}"),
            "refresh_token": format!("refresh-{number}"),
            "token_type": "Bearer",
            "expires_in": 300,
        });
        if let Some(id_token) = id_token {
            answer["id_token"] = id_token.into();
        }
        if let Some(scope) = &said.scope {
            answer["scope"] = scope.as_str().into();
        }
        in_json(&answer)
    }
}

fn in_json(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

async fn counted(State(issuer): State<Issuer>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let broken = {
        let mut said = issuer.said();
        *said.hits.entry(path.clone()).or_default() += 1;
        said.broken.get(path.as_str()).cloned()
    };
    issuer.0.held.subscribe().wait_for(|held| !held).await.expect("it lives as long as this");
    match broken {
        Some((status, location)) => {
            let status = StatusCode::from_u16(status).expect("a status");
            (status, [(header::LOCATION, location)]).into_response()
        }
        None => next.run(request).await,
    }
}

async fn metadata_of(State(issuer): State<Issuer>) -> Response {
    in_json(&issuer.said().metadata)
}

async fn metadata_of_oauth(State(issuer): State<Issuer>) -> Response {
    let said = issuer.said();
    if said.at_oauth { in_json(&said.metadata) } else { StatusCode::NOT_FOUND.into_response() }
}

async fn keys(State(issuer): State<Issuer>) -> Response {
    in_json(&json!({"keys": issuer.said().keys}))
}

async fn authorize(
    State(issuer): State<Issuer>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Response {
    let code = {
        let mut said = issuer.said();
        let code = format!("code-{}", said.nonces.len());
        said.nonces.insert(code.clone(), query.get("nonce").cloned());
        code
    };
    let mut back: url::Url = query["redirect_uri"].parse().expect("a URL");
    back.query_pairs_mut()
        .append_pair("code", &code)
        .append_pair("state", &query["state"])
        .append_pair("iss", issuer.url());
    (StatusCode::SEE_OTHER, [(header::LOCATION, back.to_string())]).into_response()
}

async fn token(
    State(issuer): State<Issuer>,
    Form(form): Form<BTreeMap<String, String>>,
) -> Response {
    let nonce = form.get("code").and_then(|code| issuer.said().nonces.get(code).cloned());
    issuer.answer(nonce.flatten().as_deref())
}

async fn revoke(State(issuer): State<Issuer>, Form(form): Form<BTreeMap<String, String>>) {
    issuer.said().revoked.push(form["token"].clone());
}

async fn userinfo(State(issuer): State<Issuer>, headers: HeaderMap) -> Response {
    let bearer = headers.get("authorization").and_then(|value| value.to_str().ok());
    if !bearer.is_some_and(|value| value.starts_with("Bearer access-")) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    match &issuer.said().userinfo {
        Value::String(jwt) => {
            ([(header::CONTENT_TYPE, "application/jwt")], jwt.clone()).into_response()
        }
        plain => in_json(plain),
    }
}
