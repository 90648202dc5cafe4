//! No secret is in clear in the database or in what the process prints, whatever happens.

use std::collections::BTreeMap;

use libtest_mimic::Trial;
use token_broker::demo::provider::{ScriptedAnswer, ScriptedEndpoint};
use token_broker_client::proto::{self, Revocation};
use token_broker_client::{Client, Reason, Refusal};
use tonic::Status;

use super::child::Serving;
use super::search::{Needles, read_files};
use super::site::{CLIENT_SECRET, ENCRYPTION_KEY, Site};
use crate::harness::world::{api_key, authorize, get_token, key};
use crate::harness::{Browser, trial};

/// The most that can be logged: libraries log warnings unless they are named.
const EVERYTHING: &str = "trace,h2=trace,hyper=trace,hyper_util=trace,reqwest=trace,rustls=trace,sea_orm=trace,\
     sea_orm_migration=trace,sqlx=trace,tokio_util=trace,tonic=trace,tower=trace,want=trace";

pub fn trials() -> Vec<Trial> {
    vec![
        trial("process::canary::the_search_finds_what_is_there", search_works),
        trial("process::canary::no_secret_is_stored_or_printed_in_clear", nowhere),
    ]
}

/// A test that finds nothing has to be able to find something.
async fn search_works() {
    let secret = "canary-0123456789?&";
    let mut needles = Needles::default();
    needles.add("it", secret);
    needles.add("bytes", &hex::encode(b"sixteen raw byte"));
    let url_safe = base64::prelude::BASE64_URL_SAFE;
    let encode = |text: &str| base64::Engine::encode(&url_safe, text);
    for hidden in [
        format!("before {secret} after"),
        format!(
            "code={}&x",
            url::form_urlencoded::byte_serialize(secret.as_bytes()).collect::<String>()
        ),
        hex::encode(format!("x{secret}y")),
        hex::encode_upper(format!("xyz{secret}")),
        format!("{:?}", secret.as_bytes()),
        encode(secret),
        encode(&format!("x{secret}y")),
        encode(&format!("xy{secret}")),
        encode(&format!("xyz{secret}xyz")),
    ] {
        assert_eq!(needles.found_in(hidden.as_bytes()).len(), 1, "{hidden}");
    }
    assert!(needles.found_in(b"before canary-0123456789 after").is_empty());
    let found: Vec<_> = needles.found_in(b"\0sixteen raw byte\0").into_iter().collect();
    assert_eq!(found, ["bytes (clear)"]);
}

/// What the test itself makes up or sees, by what it is.
#[derive(Default)]
struct Secrets(BTreeMap<String, String>);

/// What callers and browsers are told when something fails.
#[derive(Default)]
struct Told(String);

impl Secrets {
    fn note(&mut self, what: impl Into<String>, secret: impl Into<String>) {
        self.0.insert(what.into(), secret.into());
    }

    /// Makes up a secret.
    fn canary(&mut self, what: &str) -> String {
        let canary = format!("canary-{}-{:06}", what.replace(' ', "-"), self.0.len() * 7919);
        self.note(what, &canary);
        canary
    }
}

impl Told {
    fn status(&mut self, status: &Status) {
        let details = String::from_utf8_lossy(status.details());
        self.0.push_str(&format!("{status:?}\n{details}\n"));
    }
}

async fn nowhere() {
    let site = Site::new().await;
    let mut command = site.command(&["serve"]);
    command.env("TOKEN_BROKER__TELEMETRY__LOG", EVERYTHING);
    let serving = Serving::start(command).await;
    let (mut secrets, mut told) = (Secrets::default(), Told::default());
    secrets.note("the bot's API key", api_key("helper").expose());
    secrets.note("the client secret", CLIENT_SECRET);
    secrets.note("the key of the keyring", String::from_utf8_lossy(ENCRYPTION_KEY));

    let id = life(&site, &serving, &mut secrets, &mut told).await;
    wrong_credentials(&serving, &mut secrets, &mut told).await;
    odd_redirects(&site, &serving, &mut secrets, &mut told).await;
    failed_exchanges(&site, &serving, &mut secrets, &mut told).await;
    failed_refreshes(&site, &serving, &mut secrets, &mut told).await;
    failed_revocation(&site, &serving, &mut secrets).await;

    let mut needles = Needles::default();
    for (what, secret) in &secrets.0 {
        needles.add(what, secret);
    }
    let passed = site.passed();
    // 10 exchanges, each with a code and a verifier; tokens; and the client's Basic credentials.
    assert!(passed.len() > 30, "{}", passed.len());
    for secret in &passed {
        let start: String = secret.chars().take(6).collect();
        needles.add(&format!("what the provider saw, {start}…"), secret);
    }

    let running = read_files(site.folder.path(), "token-broker.db");
    let names: Vec<_> = running.iter().map(|(name, _)| name.as_str()).collect();
    for name in ["token-broker.db", "token-broker.db-shm", "token-broker.db-wal"] {
        assert!(names.contains(&name), "{names:?}");
    }
    let ended = serving.terminate().await;
    assert_eq!(ended.code, Some(0));
    let stopped = read_files(site.folder.path(), "token-broker.db");
    // The search looks at the right things: what is no secret is there.
    let mut plain = Needles::default();
    plain.add("the subject", "canary-user");
    let holds =
        |files: &[(String, Vec<u8>)]| files.iter().any(|(_, b)| !plain.found_in(b).is_empty());
    assert!(holds(&running) && holds(&stopped));
    assert!(ended.stderr.contains(&id));
    // Libraries that see every header and body had their say too.
    for target in ["h2::", "hyper"] {
        let lines = ended.stderr.lines().filter(|line| line.contains("\"TRACE\""));
        let of_target = lines.filter(|line| line.contains(&format!("\"target\":\"{target}")));
        assert!(of_target.count() > 0, "no trace of {target}");
    }

    for (name, bytes) in running.iter().chain(&stopped) {
        needles.assert_absent(name, bytes);
    }
    needles.assert_absent("standard output", ended.stdout.as_bytes());
    needles.assert_absent("what callers were told", told.0.as_bytes());
    needles.assert_absent("standard error", ended.stderr.as_bytes());
}

/// A grant from its beginning to its end. Gives the id of its authorization.
async fn life(site: &Site, serving: &Serving, secrets: &mut Secrets, told: &mut Told) -> String {
    let mut client = serving.client().await;
    let started = client.authorize(authorize("canary-user")).await.expect("a link").into_inner();
    let mut browser = Browser::new();
    let redirect = browser.redirect_of(&started.authorization_url, "allow").await;
    for (name, value) in redirect.query_pairs() {
        if matches!(&*name, "code" | "state") {
            secrets.note(format!("the redirect's {name}"), value);
        }
    }
    for cookie in browser.cookies.values().flat_map(|jar| jar.values()) {
        secrets.note("the cookie", cookie);
    }
    let page = browser.get(redirect.as_str()).await;
    let shown = page.confirmation_code().expect("a code");
    let code: String = shown.chars().filter(char::is_ascii_digit).collect();
    secrets.note("the confirmation code", &code);
    secrets.note("the confirmation code as it is shown", &shown);

    // Each digit another one.
    let wrong: String =
        code.bytes().map(|digit| char::from(b'0' + (digit - b'0' + 1) % 10)).collect();
    secrets.note("the wrong code", &wrong);
    let confirm = |code: &str| proto::ConfirmAuthorizationRequest {
        subject: "canary-user".into(),
        code: code.into(),
        ..Default::default()
    };
    let refused = client.confirm_authorization(confirm(&wrong)).await.expect_err("a wrong code");
    assert_eq!(Refusal::of(&refused).expect("a refusal").reason, Reason::ConfirmationMismatch);
    told.status(&refused);
    client.confirm_authorization(confirm(&code)).await.expect("a grant");
    let first = client.get_token(get_token("canary-user")).await.expect("a token");
    let first = first.into_inner().token.expect("a token").access_token;
    let refresh = proto::RefreshRequest { key: Some(key("canary-user")), ..Default::default() };
    let second = client.refresh(refresh).await.expect("a token");
    let second = second.into_inner().token.expect("a token").access_token;
    // They are looked for because the provider gave them out.
    assert!([&first, &second].iter().all(|token| site.passed().contains(*token)));
    let revoke = proto::RevokeRequest { key: Some(key("canary-user")) };
    let revoked = client.revoke(revoke).await.expect("revoked").into_inner();
    assert_eq!(revoked.revocation(), Revocation::Done);
    started.authorization_id
}

async fn wrong_credentials(serving: &Serving, secrets: &mut Secrets, told: &mut Told) {
    for what in ["wrong API key", "tbk wrong API key"] {
        let key = secrets.canary(what);
        let mut client = serving.client_with(&key).await;
        let refused = client.get_token(get_token("u1")).await.expect_err("a wrong key");
        assert_eq!(Refusal::of(&refused).expect("a refusal").reason, Reason::Unauthenticated);
        told.status(&refused);
    }
}

/// Redirects that are not what the broker began, or not what a provider should send.
async fn odd_redirects(site: &Site, serving: &Serving, secrets: &mut Secrets, told: &mut Told) {
    let mut client = serving.client().await;
    let base = format!("http://{}/oauth2", site.http);
    let canary = secrets.canary("foreign redirect");
    for path in ["callback/acme", "callback/nobody", "start", "nothing"] {
        let mut browser = Browser::new();
        let page = browser.get(&format!("{base}/{path}?code={canary}&state={canary}")).await;
        assert!((400..500).contains(&page.status), "{path}: {}", page.status);
        told.0.push_str(&page.body);
    }
    let canary = secrets.canary("foreign cookie");
    let started = client.authorize(authorize("foreign")).await.expect("a link").into_inner();
    let mut browser = Browser::new();
    let origin = format!("http://{}", site.http);
    let jar = [("token-broker".to_owned(), canary)].into();
    browser.cookies.insert(origin, jar);
    browser.open(&started.authorization_url).await;

    // The provider's error comes with words that may be anything.
    let canary = secrets.canary("description in a redirect");
    let mut redirect = browser.redirect_of(&started.authorization_url, "deny").await;
    let sent = |wanted: &str| redirect.query_pairs().find(|(name, _)| name == wanted);
    let (state, iss) = (sent("state").expect("a state").1, sent("iss").expect("an iss").1);
    let query = format!("error=server_error&error_description={canary}&error_uri={canary}");
    let query = format!("{query}&access_token={canary}&state={state}&iss={iss}");
    redirect.set_query(Some(&query));
    let page = browser.get(redirect.as_str()).await;
    assert_eq!(page.status, 502);
    told.0.push_str(&page.body);

    // As form_post sends it.
    let canary = secrets.canary("code in a form");
    let form = [("code".to_owned(), canary.clone()), ("state".to_owned(), canary)];
    let page = browser.post(&format!("{base}/callback/acme"), &form).await;
    let location = page.location().expect("a redirect");
    told.0.push_str(location.as_str());
    let page = browser.follow(page).await;
    assert_eq!(page.status, 400);
    told.0.push_str(&page.body);
}

/// Answers to a code that carry a canary wherever a provider may put one.
async fn failed_exchanges(site: &Site, serving: &Serving, secrets: &mut Secrets, told: &mut Told) {
    let mut client = serving.client().await;
    for (number, answer) in failures("exchange", secrets).into_iter().enumerate() {
        let subject = format!("exchange-{number}");
        let started = client.authorize(authorize(&subject)).await.expect("a link").into_inner();
        site.provider.script(ScriptedEndpoint::Token, answer);
        let page = Browser::new().allow(&started.authorization_url).await;
        assert_eq!(page.status, 502, "{number}: {}", page.body);
        told.0.push_str(&page.body);
        let request = proto::GetAuthorizationRequest { authorization_id: started.authorization_id };
        let ended = client.get_authorization(request).await.expect("it is known").into_inner();
        told.0.push_str(&format!("{ended:?}"));
    }
}

async fn failed_refreshes(site: &Site, serving: &Serving, secrets: &mut Secrets, told: &mut Told) {
    for (number, answer) in failures("refresh", secrets).into_iter().enumerate() {
        // One grant each, for after a failure the broker lets a provider rest.
        let subject = format!("refresh-{number}");
        site.granted(serving, &subject).await;
        if answer.status >= 500 {
            // There are two attempts where the first tells nothing.
            site.provider.script(ScriptedEndpoint::Token, answer.clone());
        }
        site.provider.script(ScriptedEndpoint::Token, answer);
        let mut client = serving.client().await;
        told.status(&refresh(&mut client, &subject).await);
        // Where it is not known what became of it, a worker would try again, and meet the next one's
        // answer.
        let revoke = proto::RevokeRequest { key: Some(key(&subject)) };
        client.revoke(revoke).await.expect("revoked");
    }
}

async fn refresh(client: &mut Client, subject: &str) -> Status {
    let request = proto::RefreshRequest { key: Some(key(subject)), ..Default::default() };
    client.refresh(request).await.expect_err("a refusal")
}

/// Answers that give no usable token.
fn failures(of: &str, secrets: &mut Secrets) -> Vec<ScriptedAnswer> {
    let mut canary = |what: &str| secrets.canary(&format!("{of} {what}"));
    let described = |error: &str, canary: &str| {
        format!(
            r#"{{"error":"{error}","error_description":"{canary}","error_uri":"http://{canary}/"}}"#
        )
    };
    let elsewhere = canary("location");
    let redirect = ScriptedAnswer {
        headers: vec![("location".into(), format!("https://{elsewhere}.example.com/"))],
        ..ScriptedAnswer::json(302, elsewhere)
    };
    let typed = canary("token of another type");
    let renewed = canary("refresh token of another type");
    let partial = canary("refresh token alone");
    let form = ScriptedAnswer {
        content_type: "application/x-www-form-urlencoded".into(),
        ..ScriptedAnswer::json(200, format!("error=bad_code&error_description={}", canary("form")))
    };
    vec![
        ScriptedAnswer::json(400, described("invalid_scope", &canary("description"))),
        ScriptedAnswer::json(400, described("invalid_grant", &canary("dead"))),
        ScriptedAnswer::json(403, canary("body that is no JSON")),
        ScriptedAnswer::json(500, described("server_error", &canary("server error"))),
        ScriptedAnswer::json(503, canary("server error that is no JSON")),
        ScriptedAnswer::json(429, canary("rate limit")),
        ScriptedAnswer::json(200, described("invalid_request", &canary("error in 200"))),
        ScriptedAnswer::json(200, canary("200 that is no JSON")),
        ScriptedAnswer::json(200, format!(r#"{{"access_token":["{}"]}}"#, canary("list"))),
        ScriptedAnswer::json(200, format!(r#"{{"refresh_token":"{partial}"}}"#)),
        ScriptedAnswer::json(
            200,
            format!(
                r#"{{"access_token":"{typed}","token_type":"mac","refresh_token":"{renewed}"}}"#
            ),
        ),
        redirect,
        form,
        // Last, for it keeps everybody away for a while.
        ScriptedAnswer::json(401, described("invalid_client", &canary("client"))),
    ]
}

/// A revocation that has to be put off, so that its token lies in the outbox.
async fn failed_revocation(site: &Site, serving: &Serving, secrets: &mut Secrets) {
    let mut client = serving.client().await;
    for (number, status) in [(0, 503), (1, 400)] {
        let subject = format!("revoke-{number}");
        site.granted(serving, &subject).await;
        let canary = secrets.canary(&format!("revocation {number}"));
        let body = format!(r#"{{"error":"invalid_request","error_description":"{canary}"}}"#);
        for _ in 0..2 {
            let mut answer = ScriptedAnswer::json(status, body.clone());
            // The worker does not come back while the test runs.
            answer.headers.push(("retry-after".into(), "3600".into()));
            site.provider.script(ScriptedEndpoint::Revoke, answer);
        }
        let revoke = proto::RevokeRequest { key: Some(key(&subject)) };
        let revoked = client.revoke(revoke).await.expect("revoked").into_inner();
        assert_eq!(revoked.revocation(), Revocation::Pending);
    }
}
