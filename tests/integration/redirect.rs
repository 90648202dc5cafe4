//! The browser's side: the start link, the redirect that comes back, the result page, and the code
//! that goes from there to the chat.

mod answers;
mod callback;
mod confirm;
mod grants;
mod pages;
mod payloads;
mod providers;
mod start;

use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::Trial;
use reqwest::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderMap, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use token_broker::crypto::random::Random;
use token_broker::demo::provider::{self, DemoProvider};
use token_broker_client::proto::{self, AuthorizationState};
use token_broker_client::{Reason, Refusal};
use tokio::net::TcpListener;
use url::Url;

use crate::harness::browser::Page;
use crate::harness::world::{BEGINNING, authorize, get_token, provider_at};
use crate::harness::{Browser, World};

pub fn trials() -> Vec<Trial> {
    [
        start::trials(),
        callback::trials(),
        providers::trials(),
        answers::trials(),
        payloads::trials(),
        confirm::trials(),
        grants::trials(),
        pages::trials(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Begins an authorization of a subject.
async fn begin(world: &World, subject: &str) -> proto::AuthorizeResponse {
    begin_with(world, authorize(subject)).await
}

async fn begin_with(world: &World, request: proto::AuthorizeRequest) -> proto::AuthorizeResponse {
    world.client().authorize(request).await.expect("an authorization").into_inner()
}

/// Begins an authorization, and has a browser of its own allow it: the result page stays open.
async fn awaiting(world: &World, subject: &str) -> Awaiting {
    let started = begin(world, subject).await;
    let mut browser = Browser::new();
    let page = browser.allow(&started.authorization_url).await;
    shown(&page, 200, "One more step");
    let code = page.confirmation_code().expect("a code");
    Awaiting { id: started.authorization_id, code, page, browser }
}

struct Awaiting {
    id: String,
    code: String,
    page: Page,
    browser: Browser,
}

/// The authorization as the bot sees it.
async fn seen(world: &World, id: &str) -> proto::Authorization {
    let request = proto::GetAuthorizationRequest { authorization_id: id.into() };
    let response = world.client().get_authorization(request).await.expect("an authorization");
    response.into_inner().authorization.expect("an authorization")
}

async fn state_of(world: &World, id: &str) -> AuthorizationState {
    seen(world, id).await.state()
}

fn confirmation(subject: &str, code: &str, id: &str) -> proto::ConfirmAuthorizationRequest {
    proto::ConfirmAuthorizationRequest {
        subject: subject.into(),
        code: code.into(),
        authorization_id: id.into(),
    }
}

/// Confirms with the right code.
async fn confirmed(world: &World, subject: &str, code: &str, id: &str) -> proto::Grant {
    let request = confirmation(subject, code, id);
    let response = world.client().confirm_authorization(request).await.expect("a grant");
    response.into_inner().grant.expect("a grant")
}

/// Confirms with what must not be taken.
async fn not_confirmed(world: &World, subject: &str, code: &str, id: &str) -> Refusal {
    let request = confirmation(subject, code, id);
    let status = world.client().confirm_authorization(request).await.expect_err("a refusal");
    Refusal::of(&status).expect("the broker's own")
}

/// Asserts that a subject has no token, for there never was a grant.
async fn assert_no_grant(world: &World, subject: &str) {
    let status = world.client().get_token(get_token(subject)).await.expect_err("no grant");
    assert_eq!(Refusal::of(&status).expect("a refusal").reason, Reason::AuthorizationRequired);
}

/// Another code of the same form.
fn wrong(code: &str) -> String {
    let first = if code.starts_with('0') { "1" } else { "0" };
    format!("{first}{}", &code[1..])
}

/// A URL whose query has this value for a name, or no such name.
fn with(url: &Url, name: &str, value: Option<&str>) -> Url {
    let others: Vec<_> =
        url.query_pairs().into_owned().filter(|(known, _)| known != name).collect();
    let mut url = url.clone();
    url.query_pairs_mut().clear().extend_pairs(others).extend_pairs(value.map(|v| (name, v)));
    url
}

/// A URL whose query has one more pair.
fn also(url: &Url, name: &str, value: &str) -> Url {
    let mut url = url.clone();
    url.query_pairs_mut().append_pair(name, value);
    url
}

fn parameter(url: &Url, name: &str) -> Option<String> {
    url.query_pairs().find(|(known, _)| known == name).map(|(_, value)| value.into_owned())
}

/// Another tab, or another request at the same time: a browser with the same cookies.
fn twin(browser: &Browser) -> Browser {
    let mut twin = Browser::new();
    twin.cookies = browser.cookies.clone();
    twin
}

/// Waits until the provider has been told of every token that was purged.
async fn outbox_is_empty(world: &World) {
    // The entries of a purge are due when the claim for their first attempt has run out.
    world.advance(Duration::from_secs(20));
    while world.broker.revocations.count_pending().await.expect("the outbox") > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Asserts which page is shown, and what holds for every page of the broker.
fn shown(page: &Page, status: u16, heading: &str) {
    assert_eq!((page.status, page.heading().as_str()), (status, heading), "{}", page.body);
    assert_strict(&page.headers);
    assert_eq!(page.body.matches("<h1").count(), 1);
    for never in ["<script", "javascript:", "demo-at-", "demo-rt-", "demo-code-", "code=", "state="]
    {
        assert!(!page.body.contains(never), "{never} in {}", page.body);
    }
    for (name, value) in page.url.query_pairs() {
        // A shorter one could be part of a word.
        if ["code", "state", "sealed"].contains(&name.as_ref()) && value.len() >= 8 {
            assert!(!page.body.contains(value.as_ref()), "{name} in {}", page.body);
        }
    }
    let failed = status >= 400 && status != 404;
    assert_eq!(trace_id(&page.body).is_some(), failed, "{}", page.body);
    assert!(failed || page.confirmation_code().is_some() == (heading == "One more step"));
}

fn assert_strict(headers: &HeaderMap) {
    let value = |name| headers.get(name).and_then(|value| value.to_str().ok());
    assert_eq!(value(CACHE_CONTROL), Some("no-store"));
    assert_eq!(value(REFERRER_POLICY), Some("no-referrer"));
    assert_eq!(value(X_CONTENT_TYPE_OPTIONS), Some("nosniff"));
    assert_eq!(value(X_FRAME_OPTIONS), Some("DENY"));
    let policy = value(CONTENT_SECURITY_POLICY).expect("a policy");
    assert!(policy.starts_with("default-src 'none';"), "{policy}");
    assert!(
        policy.contains("frame-ancestors 'none'") && !policy.contains("script-src"),
        "{policy}"
    );
}

/// The trace id on a page of failure.
fn trace_id(body: &str) -> Option<&str> {
    let id = body.split_once("trace id ")?.1.split('<').next()?;
    (id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())).then_some(id)
}

/// Returns `true` if the page offers a link.
fn offers(page: &Page, link: &str) -> bool {
    page.body.contains(&format!("href=\"{link}\""))
}

/// A world with a second provider, `other`, whose server is another one.
async fn two_providers() -> (World, DemoProvider) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let mut other = None;
    let world = World::with(|setup| {
        let random = Random::system();
        let public_url = setup.settings.public_url.as_str().trim_end_matches('/');
        let redirect_uri = |name: &str| format!("{public_url}/oauth2/callback/{name}");
        let provider = DemoProvider::new(provider::Settings {
            client_id: "token-broker".to_owned(),
            client_secret: "client secret: +&%".to_owned(),
            redirect_uris: vec![redirect_uri("other"), redirect_uri("acme")],
            access_token_lifetime: setup.token_lifetime,
            refresh_grace: Duration::ZERO,
            revocation_reach: token_broker::domain::provider::RevocationReach::Grant,
            state_file: None,
            issuer: url.clone(),
            clock: Arc::new(|| BEGINNING.unsigned_abs()),
            random: Arc::new(move |bytes| random.fill(bytes)),
        });
        setup.providers.push(provider_at("other", &url));
        other = Some(provider.expect("a provider"));
    })
    .await;
    let other = other.expect("a provider");
    // Ends with the test's runtime.
    tokio::spawn(other.clone().serve(listener, std::future::pending()));
    (world, other)
}
