//! Premises with a demo provider beside them, which runs in the test and remembers every secret that
//! passes by.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use token_broker::crypto::random::Random;
use token_broker::demo::provider::{DemoProvider, Settings};
use token_broker::domain::provider::RevocationReach;
use token_broker_client::proto;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::child::Serving;
pub use super::premises::{CLIENT_ID, CLIENT_SECRET, ENCRYPTION_KEY, Premises, files, with_line};
use super::weather::Weather;
use crate::harness::Browser;
use crate::harness::world::{authorize, get_token};

/// The time for which an access token of the provider lives.
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(300);

pub struct Site {
    premises: Premises,
    pub provider: DemoProvider,
    issuer: String,
    passed: Arc<Passed>,
    pub weather: Arc<Weather>,
    _serving: DropGuard,
}

impl Deref for Site {
    type Target = Premises;

    fn deref(&self) -> &Premises {
        &self.premises
    }
}

/// The secrets that the provider has received and given out.
#[derive(Default)]
pub struct Passed(Mutex<BTreeSet<String>>, Mutex<BTreeSet<String>>);

impl Site {
    pub async fn new() -> Self {
        Self::at(Premises::on_sqlite()).await
    }

    pub async fn at(premises: Premises) -> Self {
        Self::with_grace(premises, Duration::ZERO).await
    }

    /// The same with a provider that takes a refresh token again for a while.
    pub async fn with_grace(premises: Premises, refresh_grace: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let issuer = format!("http://{}", listener.local_addr().expect("an address"));
        let random = Random::system();
        let provider = DemoProvider::new(Settings {
            client_id: CLIENT_ID.to_owned(),
            client_secret: CLIENT_SECRET.to_owned(),
            redirect_uris: vec![premises.redirect_uri()],
            access_token_lifetime: TOKEN_LIFETIME,
            refresh_grace,
            revocation_reach: RevocationReach::Grant,
            state_file: None,
            issuer: issuer.clone(),
            // The process goes by the real clock, and so does its provider.
            clock: Arc::new(|| {
                let since = UNIX_EPOCH.elapsed().expect("after 1970");
                u64::try_from(since.as_millis()).expect("a time")
            }),
            random: Arc::new(move |bytes| random.fill(bytes)),
        })
        .expect("a provider");
        let passed = Arc::new(Passed::default());
        let weather = Arc::new(Weather::default());
        let (above, stop) = (Arc::clone(&weather), CancellationToken::new());
        let watching = Arc::clone(&passed);
        let router = provider.router().layer(from_fn(move |request: Request, next: Next| {
            let watching = Arc::clone(&watching);
            async move { watching.pass(request, next).await }
        }));
        let router = router.layer(from_fn(move |request: Request, next: Next| {
            let above = Arc::clone(&above);
            async move { above.pass(request, next).await }
        }));
        let serving =
            axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
        tokio::spawn(serving.into_future());
        let _serving = stop.drop_guard();
        let site = Self { premises, provider, issuer, passed, weather, _serving };
        site.write(&site.config());
        site
    }

    /// The configuration, filled in.
    pub fn config(&self) -> String {
        self.premises.config(&self.issuer)
    }

    /// Takes a user through the whole flow, and gives the access token.
    pub async fn granted(&self, serving: &Serving, subject: &str) -> String {
        let mut client = serving.client().await;
        let started = client.authorize(authorize(subject)).await.expect("a link").into_inner();
        let page = Browser::new().allow(&started.authorization_url).await;
        let code = page.confirmation_code().unwrap_or_else(|| panic!("no code: {page:?}"));
        let request = proto::ConfirmAuthorizationRequest {
            subject: subject.into(),
            code,
            ..Default::default()
        };
        client.confirm_authorization(request).await.expect("a grant");
        let response = client.get_token(get_token(subject)).await.expect("a token");
        response.into_inner().token.expect("a token").access_token
    }

    /// Every `traceparent` that the provider was sent.
    pub fn traceparents(&self) -> BTreeSet<String> {
        self.passed.1.lock().expect("no panic").clone()
    }

    /// Every code, verifier, token and client credential that the provider has seen or given.
    pub fn passed(&self) -> BTreeSet<String> {
        self.passed.0.lock().expect("no panic").clone()
    }
}

impl Passed {
    async fn pass(&self, request: Request, next: Next) -> Response {
        let (parts, body) = request.into_parts();
        let form = to_bytes(body, usize::MAX).await.expect("a body");
        self.note_request(&parts.headers, &form);
        let response = next.run(Request::from_parts(parts, Body::from(form))).await;
        let (parts, body) = response.into_parts();
        let answer = to_bytes(body, usize::MAX).await.expect("a body");
        self.note_answer(&answer);
        Response::from_parts(parts, Body::from(answer))
    }

    fn note_request(&self, headers: &HeaderMap, form: &Bytes) {
        if let Some(traceparent) = headers.get("traceparent").and_then(|value| value.to_str().ok())
        {
            self.1.lock().expect("no panic").insert(traceparent.to_owned());
        }
        let credentials = headers.get("authorization").and_then(|value| value.to_str().ok());
        if let Some((_, credentials)) = credentials.and_then(|text| text.split_once(' ')) {
            self.note(credentials);
        }
        for (name, value) in url::form_urlencoded::parse(form) {
            if matches!(&*name, "code" | "code_verifier" | "refresh_token" | "token") {
                self.note(&value);
            }
        }
    }

    fn note_answer(&self, answer: &Bytes) {
        let Ok(answer) = serde_json::from_slice::<serde_json::Value>(answer) else { return };
        for name in ["access_token", "refresh_token"] {
            if let Some(value) = answer[name].as_str() {
                self.note(value);
            }
        }
    }

    fn note(&self, value: &str) {
        self.0.lock().expect("no panic").insert(value.to_owned());
    }
}
