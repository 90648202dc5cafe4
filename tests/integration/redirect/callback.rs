//! The redirect that comes back: from this browser, once, and whole.

use futures::future::join_all;
use libtest_mimic::Trial;
use token_broker_client::proto::AuthorizationState;
use url::Url;

use super::{also, awaiting, begin, confirmed, offers, parameter, shown, state_of, twin, with};
use crate::harness::browser::Page;
use crate::harness::{Browser, World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("redirect::a_callback_of_another_browser_is_refused_and_burnt", other_browser),
        trial("redirect::fifty_callbacks_during_an_exchange_show_its_one_code", during_exchange),
        trial("redirect::fifty_callbacks_at_once_cause_one_token_call", at_once),
        trial("redirect::fifty_callbacks_at_once_all_show_the_code", all_show_it),
        trial("redirect::a_reload_shows_the_same_code_to_the_same_browser_alone", reload),
        trial("redirect::a_forged_state_is_refused_and_burns_nothing", forged),
        trial("redirect::a_redirect_that_is_not_whole_is_refused_and_burnt", not_whole),
        trial("redirect::an_empty_parameter_counts_as_missing", empty),
        trial("redirect::a_parameter_that_is_too_long_is_not_overlooked", too_long),
        trial("redirect::a_redirect_without_iss_is_taken_where_nothing_promises_one", no_iss),
    ]
}

async fn other_browser() {
    for case in ["no cookie", "foreign cookie", "rubbish"] {
        let world = World::start().await;
        let started = begin(&world, "u1").await;
        let (id, link) = (&started.authorization_id, &started.authorization_url);
        let mut own = Browser::new();
        let redirect = own.redirect_of(link, "allow").await;

        let mut other = Browser::new();
        match case {
            "foreign cookie" => {
                // Of this broker, and of a start of this very link.
                other.get(link).await;
                let [one, two] =
                    [&own, &other].map(|b| &b.cookies[&world.http_url]["token-broker"]);
                assert_ne!(one, two);
            }
            "rubbish" => {
                let jar = other.cookies.entry(world.http_url.clone()).or_default();
                jar.insert("token-broker".into(), "x".into());
            }
            _ => {}
        }
        let page = other.get(redirect.as_str()).await;
        shown(&page, 400, "Another browser, or no cookie");
        assert!(offers(&page, link), "{case}");
        assert_eq!(world.provider.ledger().token_calls, 0, "{case}");
        assert_eq!(state_of(&world, id).await, AuthorizationState::Pending);

        // Whoever has seen the URL could have tried cookies, so it is of no use any more.
        let page = own.get(redirect.as_str()).await;
        shown(&page, 400, "This page was used before");
        assert!(offers(&page, link), "{case}");
        assert_eq!(world.provider.ledger().token_calls, 0, "{case}");
        assert_eq!(state_of(&world, id).await, AuthorizationState::Pending);

        let page = own.allow(link).await;
        shown(&page, 200, "One more step");
        confirmed(&world, "u1", &page.confirmation_code().expect("a code"), id).await;
        assert_eq!(world.provider.ledger().token_calls, 1, "{case}");
    }
}

/// Fifty tabs of one browser, each with a connection that is open already, so that nothing but the
/// requests themselves is between them.
async fn fifty(browser: &Browser, link: &str) -> Vec<Browser> {
    let mut tabs: Vec<_> = (0..50).map(|_| twin(browser)).collect();
    let opened = join_all(tabs.iter_mut().map(|tab| tab.get(link))).await;
    assert!(opened.iter().all(|page| page.status == 303));
    tabs
}

/// Opens the same URL in all tabs at once.
async fn all_get(tabs: Vec<Browser>, url: &Url) -> Vec<Page> {
    let loading = tabs.into_iter().map(|mut tab| {
        let url = url.clone();
        tokio::spawn(async move { tab.get(url.as_str()).await })
    });
    join_all(loading).await.into_iter().map(|page| page.expect("no panic")).collect()
}

async fn during_exchange() {
    let world = World::start().await;
    let started = begin(&world, "u1").await;
    let mut browser = Browser::new();
    let redirect = browser.redirect_of(&started.authorization_url, "allow").await;

    let pause = world.provider.pause_token_endpoint();
    let (mut first, url) = (twin(&browser), redirect.clone());
    let first = tokio::spawn(async move { first.get(url.as_str()).await });
    world.provider.wait_for_token_calls(1).await;
    let mut stranger = Browser::new();
    shown(&stranger.get(redirect.as_str()).await, 400, "Another browser, or no cookie");
    let (tabs, url) = (fifty(&browser, &started.authorization_url).await, redirect.clone());
    let others = tokio::spawn(async move { all_get(tabs, &url).await });
    // To the bot an exchange is still pending.
    assert_eq!(state_of(&world, &started.authorization_id).await, AuthorizationState::Pending);
    drop(pause);

    let first = first.await.expect("no panic");
    shown(&first, 200, "One more step");
    for page in others.await.expect("no panic") {
        shown(&page, 200, "One more step");
        assert_eq!(page.body, first.body);
    }
    let ledger = world.provider.ledger();
    assert_eq!((ledger.token_calls, ledger.tokens_issued, ledger.code_replays), (1, 1, 0));
}

/// Loads the same redirect in fifty tabs at once. Gives the browser, what they show, and the id.
async fn loaded_at_once(world: &World) -> (Browser, Vec<Page>, String) {
    let started = begin(world, "u1").await;
    let mut browser = Browser::new();
    let redirect = browser.redirect_of(&started.authorization_url, "allow").await;
    let tabs = fifty(&browser, &started.authorization_url).await;
    let pages = all_get(tabs, &redirect).await;
    (browser, pages, started.authorization_id)
}

async fn at_once() {
    let world = World::start().await;
    let (mut browser, pages, id) = loaded_at_once(&world).await;
    let state = state_of(&world, &id).await;
    assert_eq!(state, AuthorizationState::AwaitingConfirmation);
    let again = browser.get(pages[0].url.as_str()).await;
    shown(&again, 200, "One more step");
    // Whoever shows a code shows that one.
    let codes: Vec<_> = pages.iter().filter_map(Page::confirmation_code).collect();
    let code = again.confirmation_code().expect("a code");
    assert!(!codes.is_empty() && codes.iter().all(|shown| *shown == code));
    confirmed(&world, "u1", &code, &id).await;
    let ledger = world.provider.ledger();
    assert_eq!((ledger.token_calls, ledger.tokens_issued, ledger.code_replays), (1, 1, 0));
}

async fn all_show_it() {
    let world = World::start().await;
    let (_, pages, _) = loaded_at_once(&world).await;
    let headings: Vec<_> = pages.iter().map(Page::heading).collect();
    assert_eq!(headings, ["One more step"; 50]);
    assert!(pages.iter().all(|page| page.body == pages[0].body));
}

async fn reload() {
    let world = World::start().await;
    let mut awaiting = awaiting(&world, "u1").await;
    let url = awaiting.page.url.clone();
    for _ in 0..3 {
        let again = awaiting.browser.get(url.as_str()).await;
        shown(&again, 200, "One more step");
        assert_eq!(again.body, awaiting.page.body);
    }
    let mut other = Browser::new();
    other.get(&begin(&world, "u2").await.authorization_url).await;
    for mut stranger in [Browser::new(), other] {
        let page = stranger.get(url.as_str()).await;
        shown(&page, 400, "Another browser, or no cookie");
        assert_eq!(page.confirmation_code(), None);
        assert!(!page.body.contains("u1"));
    }
    // The code is derived, so neither link nor cookie has it.
    assert!(!url.as_str().contains(&awaiting.code.replace(' ', "")));
    confirmed(&world, "u1", &awaiting.code, &awaiting.id).await;
    shown(&awaiting.browser.get(url.as_str()).await, 200, "All done");
    assert_eq!(world.provider.ledger().token_calls, 1);
}

async fn forged() {
    let world = World::start().await;
    let started = begin(&world, "u1").await;
    let mut browser = Browser::new();
    let redirect = browser.redirect_of(&started.authorization_url, "allow").await;
    let state = parameter(&redirect, "state").expect("a state");

    let flipped = (0..state.len()).map(|position| {
        let mut bytes = state.clone().into_bytes();
        bytes[position] = if bytes[position] == b'0' { b'1' } else { b'0' };
        with(&redirect, "state", Some(&String::from_utf8(bytes).expect("ASCII")))
    });
    let mut urls: Vec<_> = flipped.collect();
    let ends =
        [&state[1..], &state[..103], &state[..102], "", "0", &"0".repeat(104)].map(str::to_owned);
    let longer = [format!("{state}0"), format!("{state}00"), format!(" {state}"), "é".repeat(52)];
    urls.extend(ends.iter().chain(&longer).map(|state| with(&redirect, "state", Some(state))));
    urls.push(with(&redirect, "state", None));
    urls.push(also(&redirect, "state", &state));
    urls.push(also(&redirect, "state", "other"));
    let mut denied = with(&with(&redirect, "state", Some("0")), "code", None);
    denied.query_pairs_mut().append_pair("error", "access_denied");
    urls.push(denied);
    for provider in ["other", "ACME", "acme%20", "..", "%00"] {
        let mut url = redirect.clone();
        url.set_path(&format!("/oauth2/callback/{provider}"));
        if url.path().starts_with("/oauth2/callback/") && !url.path().ends_with('/') {
            urls.push(url);
        }
    }
    for url in urls {
        let page = browser.get(url.as_str()).await;
        shown(&page, 400, "This link is not known");
        assert_eq!(page.headers.get_all("set-cookie").iter().count(), 0);
    }
    assert_eq!(world.provider.ledger().token_calls, 0);
    let id = &started.authorization_id;
    assert_eq!(state_of(&world, id).await, AuthorizationState::Pending);

    // Nobody without a state that the broker made can take this one away.
    shown(&browser.get(redirect.as_str()).await, 200, "One more step");
    assert_eq!(world.provider.ledger().token_calls, 1);
}

/// What is done to a redirect, in words and in deed.
type Change = (&'static str, fn(&Url) -> Url);

/// Makes a redirect of its own with each change, and checks that it is refused, that its attempt is
/// burnt, that the provider hears nothing of it, and that the authorization goes on waiting.
async fn refused_and_burnt(world: &World, changes: &[Change]) {
    let started = begin(world, "u1").await;
    let mut browser = Browser::new();
    for (case, change) in changes {
        let redirect = browser.redirect_of(&started.authorization_url, "allow").await;
        let changed = change(&redirect);
        let page = browser.get(changed.as_str()).await;
        assert_eq!(
            (page.status, page.heading().as_str()),
            (400, "The answer cannot be used"),
            "{case}"
        );
        shown(&page, 400, "The answer cannot be used");
        assert!(offers(&page, &started.authorization_url), "{case}");
        shown(&browser.get(redirect.as_str()).await, 400, "This page was used before");
        assert_eq!(world.provider.ledger().token_calls, 0, "{case}");
        let state = state_of(world, &started.authorization_id).await;
        assert_eq!(state, AuthorizationState::Pending, "{case}");
    }
    shown(&browser.allow(&started.authorization_url).await, 200, "One more step");
    assert_eq!(world.provider.ledger().token_calls, 1);
}

/// What the provider sends where it refuses.
fn refused(url: &Url, error: &str) -> Url {
    with(&with(url, "code", None), "error", Some(error))
}

const OTHER: Option<&str> = Some("https://evil.example");

async fn not_whole() {
    let world = World::start().await;
    let changes: [Change; 13] = [
        ("no code", |url| with(url, "code", None)),
        ("two codes", |url| also(url, "code", "other")),
        ("the same code twice", |url| also(url, "code", &parameter(url, "code").expect("a code"))),
        ("iss twice", |url| also(url, "iss", &parameter(url, "iss").expect("an issuer"))),
        ("two issuers", |url| also(url, "iss", "https://evil.example")),
        ("two errors", |url| also(&refused(url, "access_denied"), "error", "server_error")),
        ("another issuer", |url| with(url, "iss", OTHER)),
        ("an issuer that is longer", |url| {
            let longer = parameter(url, "iss").expect("an issuer") + "/";
            with(url, "iss", Some(&longer))
        }),
        ("another issuer refuses", |url| with(&refused(url, "access_denied"), "iss", OTHER)),
        ("another issuer fails", |url| with(&refused(url, "server_error"), "iss", OTHER)),
        ("two issuers refuse", |url| also(&refused(url, "access_denied"), "iss", "x")),
        ("a code beside an error of another issuer", |url| {
            with(&with(url, "error", Some("access_denied")), "iss", OTHER)
        }),
        ("nothing but the state", |url| with(&with(url, "code", None), "iss", None)),
    ];
    refused_and_burnt(&world, &changes).await;
}

/// RFC 6749 section 3.1: a parameter without a value counts as omitted.
async fn empty() {
    let changes: [Change; 2] = [
        ("an empty code", |url| with(url, "code", Some(""))),
        ("an empty error", |url| refused(url, "")),
    ];
    refused_and_burnt(&World::start().await, &changes).await;
}

async fn too_long() {
    let changes: [Change; 3] = [
        ("a long issuer", |url| with(url, "iss", Some(&"x".repeat(9000)))),
        ("a long second issuer", |url| also(url, "iss", &"x".repeat(9000))),
        ("a long second code", |url| also(url, "code", &"x".repeat(9000))),
    ];
    refused_and_burnt(&World::start().await, &changes).await;
}

async fn no_iss() {
    let world = World::start().await;
    let started = begin(&world, "u1").await;
    let mut browser = Browser::new();
    let redirect = browser.redirect_of(&started.authorization_url, "allow").await;
    let page = browser.get(with(&redirect, "iss", None).as_str()).await;
    shown(&page, 200, "One more step");
    confirmed(&world, "u1", &page.confirmation_code().expect("a code"), "").await;
}
