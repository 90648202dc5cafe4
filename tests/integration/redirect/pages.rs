//! The pages as they are read. That each is strict is asserted wherever one is shown.

use std::sync::Arc;

use libtest_mimic::Trial;
use token_broker::http;
use token_broker::listener::{Listener, ListenerLimits, http1};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{awaiting, begin, shown, trace_id, with};
use crate::harness::browser::Page;
use crate::harness::{Browser, World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("redirect::the_page_with_the_code_says_for_whom_it_is", confirm_page),
        trial("redirect::pages_of_failure_say_what_to_do_next", failure_pages),
        trial("redirect::there_is_nothing_else_on_the_public_listener", nothing_else),
        trial("redirect::a_draining_broker_asks_to_come_again_and_burns_nothing", draining),
    ]
}

/// What the page says, without what differs from run to run.
fn said(page: &Page, link: &str) -> String {
    let main = page.body.split_once("<main>\n").expect("a page").1;
    let main = main.split_once("\n</main>").expect("a page").0;
    let trace = trace_id(main).unwrap_or("no trace id");
    let main = main.replace(trace, "[trace id]").replace(link, "[start link]");
    match page.confirmation_code() {
        Some(code) => main.replace(&code, "[code]"),
        None => main,
    }
}

async fn confirm_page() {
    let world = World::start().await;
    // A subject is whatever the chat calls its users.
    let awaiting = awaiting(&world, "acme.chat/<b>jo & \"co\"</b>").await;
    shown(&awaiting.page, 200, "One more step");
    assert!(!awaiting.page.body.contains("<b>"));
    insta::assert_snapshot!(said(&awaiting.page, "no link"), @r##"
    <h1>One more step</h1>
    <p>Acme has answered. Is it you who asked for this?</p>
    <p class="code" id="confirmation-code">[code]</p>
    <p>Type this into the chat, to the bot <strong>helper</strong>, as <strong>acme.chat/&#60;b&#62;jo &#38; &#34;co&#34;&#60;/b&#62;</strong>:<br>
    <code>/oauth confirm [code]</code></p>
    <p>It works for 5 minutes.</p>
    <p class="warning">If you did not ask that bot for it, close this page, and give the code to nobody: it would let somebody else use your account.</p>
    "##);
}

async fn failure_pages() {
    let world = World::start().await;
    let started = begin(&world, "u1").await;
    let link = &started.authorization_url;
    let mut browser = Browser::new();
    let redirect = browser.redirect_of(link, "allow").await;
    let page = Browser::new().get(redirect.as_str()).await;
    shown(&page, 400, "Another browser, or no cookie");
    insta::assert_snapshot!(said(&page, link), @r##"
    <h1>Another browser, or no cookie</h1>
    <p>The sign-in has to end in the browser in which it began, and that browser has to keep this site&#39;s cookie.</p>
    <p>Start again here, if it was you who asked the bot for this.</p>
    <p><a rel="noreferrer" href="[start link]">Start again</a></p>
    <p class="trace">For the operator: trace id [trace id]</p>
    "##);

    let redirect = browser.redirect_of(link, "deny").await;
    let redirect = with(&redirect, "error", Some("invalid_scope"));
    let page = browser.get(redirect.as_str()).await;
    shown(&page, 502, "The provider did not play along");
    insta::assert_snapshot!(said(&page, link), @r##"
    <h1>The provider did not play along</h1>
    <p>Acme answered with an error (invalid_scope).</p>
    <p>Ask the bot in your chat for a new link and try again later.</p>
    <p class="trace">For the operator: trace id [trace id]</p>
    "##);
}

async fn nothing_else() {
    let world = World::start().await;
    let mut browser = Browser::new();
    let paths = [
        "/",
        "/oauth2",
        "/oauth2/start",
        "/oauth2/start/",
        "/oauth2/start/a/b",
        "/oauth2/callback",
        "/oauth2/callback/",
        "/livez",
        "/readyz",
        "/metrics",
        "/favicon.ico",
        "/tokenbroker.v1.TokenBrokerService/GetToken",
    ];
    for path in paths {
        shown(
            &browser.get(&format!("{}{path}", world.http_url)).await,
            404,
            "There is nothing here",
        );
    }
    let started = begin(&world, "u1").await;
    let page = browser.post(&started.authorization_url, &[]).await;
    shown(&page, 404, "There is nothing here");
    assert!(browser.cookies.is_empty());
}

/// A second replica that takes no work any more, beside one that does: both have the database and
/// the keys.
async fn draining() {
    let world = World::start().await;
    let started = begin(&world, "u1").await;
    let mut browser = Browser::new();
    let redirect = browser.redirect_of(&started.authorization_url, "allow").await;

    let twin = World::with(|setup| setup.folder = Some(Arc::clone(&world.folder))).await;
    let broker = Arc::clone(&twin.broker);
    twin.stop().await.expect("a clean end");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let listener = Listener::new(listener, "redirect", ListenerLimits::default().http);
    let router = http::public_router(broker);
    tokio::spawn(http1::serve(router, listener, None, CancellationToken::new()));
    let mut at_twin = redirect.clone();
    at_twin.set_port(Some(address.port())).expect("a URL with a port");
    let cookies = browser.cookies[&world.http_url].clone();
    browser.cookies.insert(format!("http://{address}"), cookies);
    shown(&browser.get(at_twin.as_str()).await, 503, "Not now");
    assert_eq!(world.provider.ledger().token_calls, 0);

    // The reload comes to the replica that works, where nothing is known of the first load.
    shown(&browser.get(redirect.as_str()).await, 200, "One more step");
}
