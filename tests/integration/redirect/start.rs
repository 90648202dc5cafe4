//! The start link.

use std::collections::BTreeMap;
use std::time::Duration;

use libtest_mimic::Trial;
use reqwest::header::{LOCATION, SET_COOKIE};
use token_broker_client::proto::{self, AuthorizationState};

use super::{assert_strict, awaiting, begin, begin_with, confirmed, shown, state_of};
use crate::harness::world::authorize;
use crate::harness::{Browser, World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("redirect::previews_neither_use_up_nor_break_a_link", previews),
        trial("redirect::a_start_sends_the_browser_to_the_provider_with_all_it_needs", request),
        trial("redirect::the_cookie_is_kept_across_starts", cookie),
        trial("redirect::of_two_tabs_either_completes_and_exactly_one_does", two_tabs),
        trial("redirect::a_link_that_names_nothing_shows_a_page", unknown),
        trial("redirect::a_link_that_is_no_text_shows_a_page_too", no_text),
        trial("redirect::a_link_that_has_ended_shows_a_page", ended),
        trial("redirect::who_left_before_the_link_ended_may_come_back_after_it", grace),
    ]
}

async fn previews() {
    let world = World::start().await;
    let started = begin(&world, "u1").await;
    let link = &started.authorization_url;
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
        .expect("a client");
    for _ in 0..20 {
        let head = client.head(link).send().await.expect("an answer");
        assert_eq!(head.status(), 303);
        assert!(head.headers().contains_key(LOCATION));
        // Some previews go on to where the link leads.
        let page = Browser::new().open(link).await;
        assert_eq!((page.status, page.url.path()), (200, "/authorize"));
    }
    assert_eq!(world.provider.ledger().authorize_pages, 20);
    assert_eq!(state_of(&world, &started.authorization_id).await, AuthorizationState::Pending);

    let page = Browser::new().allow(link).await;
    shown(&page, 200, "One more step");
    confirmed(&world, "u1", &page.confirmation_code().expect("a code"), "").await;
    assert!(world.provider.is_living(&world.token("u1").await));
    assert_eq!(world.provider.ledger().token_calls, 1);
}

async fn request() {
    let world = World::start().await;
    let options =
        proto::AuthorizationOptions { login_hint: "jo+x@example.com".into(), ..Default::default() };
    let request = proto::AuthorizeRequest { options: Some(options), ..authorize("u1") };
    let started = begin_with(&world, request).await;
    let expected = format!("{}/oauth2/start/{}", world.http_url, started.authorization_id);
    assert_eq!(started.authorization_url, expected);

    let mut browser = Browser::new();
    let page = browser.get(&started.authorization_url).await;
    assert_eq!((page.status, page.body.as_str()), (303, ""));
    assert_strict(&page.headers);
    let location = page.location().expect("a redirect");
    assert_eq!(location.path(), "/authorize");
    let pairs: Vec<_> = location.query_pairs().into_owned().collect();
    let query: BTreeMap<_, _> = pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(query.len(), pairs.len(), "a parameter is there twice");
    let fixed: Vec<_> = query
        .iter()
        .filter(|(name, _)| !["state", "code_challenge"].contains(name))
        .map(|(name, value)| (*name, *value))
        .collect();
    let redirect_uri = format!("{}/oauth2/callback/acme", world.http_url);
    assert_eq!(
        fixed,
        [
            ("client_id", "token-broker"),
            ("code_challenge_method", "S256"),
            ("login_hint", "jo+x@example.com"),
            ("redirect_uri", redirect_uri.as_str()),
            ("response_type", "code"),
            ("scope", "email profile"),
        ]
    );
    assert_eq!(query["state"].len(), 104);
    assert!(query["state"].bytes().all(|b| b.is_ascii_hexdigit()));
    let base64url = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    assert_eq!(query["code_challenge"].len(), 43);
    assert!(query["code_challenge"].bytes().all(base64url));

    let cookies: Vec<_> = page.headers.get_all(SET_COOKIE).iter().collect();
    let [cookie] = cookies[..] else { panic!("{cookies:?}") };
    let cookie = cookie.to_str().expect("text");
    // On loopback http a plain name, for Safari refuses Secure there.
    assert!(cookie.starts_with("token-broker="), "{cookie}");
    for part in ["; HttpOnly", "; SameSite=Lax", "; Path=/", "; Max-Age="] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert!(!cookie.contains("Domain"), "{cookie}");
    // Neither the link nor what is sent to the provider has anything of the cookie in it.
    let secret = &browser.cookies[&world.http_url]["token-broker"];
    assert_eq!(secret.len(), 64);
    assert!(!location.as_str().contains(secret.as_str()));
}

async fn cookie() {
    let world = World::start().await;
    let mut browser = Browser::new();
    let mut values = Vec::new();
    let mut states = Vec::new();
    for subject in ["u1", "u1", "u2"] {
        let started = begin(&world, subject).await;
        for _ in 0..2 {
            let page = browser.get(&started.authorization_url).await;
            let location = page.location().expect("a redirect");
            states.push(super::parameter(&location, "state").expect("a state"));
            values.push(browser.cookies[&world.http_url]["token-broker"].clone());
        }
    }
    values.dedup();
    assert_eq!(values.len(), 1);
    states.sort();
    states.dedup();
    assert_eq!(states.len(), 6, "each start has a state of its own");
    // What is no secret of the broker's form is replaced.
    for rubbish in ["", "zz", "00", &"g".repeat(64)] {
        let jar = browser.cookies.get_mut(&world.http_url).expect("cookies");
        jar.insert("token-broker".into(), rubbish.into());
        browser.get(&begin(&world, "u1").await.authorization_url).await;
        let value = &browser.cookies[&world.http_url]["token-broker"];
        assert!(value.len() == 64 && value != rubbish, "{value}");
    }
}

async fn two_tabs() {
    for first_wins in [true, false] {
        let world = World::start().await;
        let started = begin(&world, "u1").await;
        let mut browser = Browser::new();
        let one = browser.redirect_of(&started.authorization_url, "allow").await;
        let two = browser.redirect_of(&started.authorization_url, "allow").await;
        let (winner, loser) = if first_wins { (one, two) } else { (two, one) };

        let won = browser.get(winner.as_str()).await;
        shown(&won, 200, "One more step");
        let lost = browser.get(loser.as_str()).await;
        shown(&lost, 400, "This page was used before");
        assert_eq!(lost.confirmation_code(), None);
        assert!(lost.body.contains("in another tab"));
        let ledger = world.provider.ledger();
        assert_eq!((ledger.codes_issued, ledger.token_calls, ledger.tokens_issued), (2, 1, 1));
        // A reload of either shows the same again.
        shown(&browser.get(loser.as_str()).await, 400, "This page was used before");
        assert_eq!(browser.get(winner.as_str()).await.body, won.body);
        confirmed(&world, "u1", &won.confirmation_code().expect("a code"), "").await;
        assert_eq!(world.provider.ledger().token_calls, 1);
    }
}

async fn unknown() {
    let world = World::start().await;
    let zeros = "0".repeat(32);
    let ids = [zeros.as_str(), "x", "0", &zeros[1..], "%00", "..%2F..", "%3Cscript%3E", "%C3%A9"];
    for id in ids {
        let page = Browser::new().get(&format!("{}/oauth2/start/{id}", world.http_url)).await;
        assert_eq!(page.status, 400, "{id}");
        shown(&page, 400, "This link is not known");
        assert!(!page.headers.contains_key(SET_COOKIE) && page.location().is_none());
    }
}

async fn no_text() {
    let world = World::start().await;
    let redirect_of_none = format!("{}/oauth2/callback/%FF?code=x&state=y", world.http_url);
    for url in [format!("{}/oauth2/start/%FF", world.http_url), redirect_of_none] {
        shown(&Browser::new().get(&url).await, 400, "This link is not known");
    }
}

async fn ended() {
    let world = World::start().await;
    let mut links = Vec::new();

    let confirmed_one = awaiting(&world, "u1").await;
    links.push((confirmed_one.id.clone(), "awaiting"));
    let cancelled = begin(&world, "u2").await;
    let request =
        proto::CancelAuthorizationRequest { authorization_id: cancelled.authorization_id.clone() };
    let response = world.client().cancel_authorization(request).await.expect("cancelled");
    let authorization = response.into_inner().authorization.expect("an authorization");
    assert_eq!(authorization.state(), AuthorizationState::Cancelled);
    links.push((cancelled.authorization_id, "cancelled"));
    let denied = begin(&world, "u3").await;
    let mut browser = Browser::new();
    let redirect = browser.redirect_of(&denied.authorization_url, "deny").await;
    browser.get(redirect.as_str()).await;
    links.push((denied.authorization_id, "denied"));
    let old = begin(&world, "u4").await;
    let mut browser = Browser::new();
    world.advance(Duration::from_millis(599_999));
    assert_eq!(browser.get(&old.authorization_url).await.status, 303);
    world.advance(Duration::from_millis(1));
    links.push((old.authorization_id, "expired"));

    for (id, why) in links {
        let page = browser.get(&format!("{}/oauth2/start/{id}", world.http_url)).await;
        assert_eq!(page.status, 400, "{why}");
        shown(&page, 400, "This link no longer works");
        assert!(!page.headers.contains_key(SET_COOKIE) && page.location().is_none());
        assert!(!page.body.contains("href="), "nothing to start again");
    }
}

async fn grace() {
    let world = World::start().await;
    let started = begin(&world, "u1").await;
    world.advance(Duration::from_secs(590));
    let mut browser = Browser::new();
    let page = browser.open(&started.authorization_url).await;
    world.advance(Duration::from_secs(20));
    shown(&browser.get(&started.authorization_url).await, 400, "This link no longer works");
    let redirect = browser.decide(&page, "allow").await;
    shown(&browser.get(redirect.as_str()).await, 200, "One more step");

    // Five minutes later it is too late for that too, and no code is sent.
    let started = begin(&world, "u2").await;
    world.advance(Duration::from_secs(590));
    let page = browser.open(&started.authorization_url).await;
    world.advance(Duration::from_secs(309));
    let redirect = browser.decide(&page, "allow").await;
    world.advance(Duration::from_secs(1));
    shown(&browser.get(redirect.as_str()).await, 400, "This link no longer works");
    assert_eq!(state_of(&world, &started.authorization_id).await, AuthorizationState::Expired);
    assert_eq!(world.provider.ledger().token_calls, 1);
}
