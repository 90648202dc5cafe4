//! What an authorization leaves: new grants, replaced ones, and none.

use libtest_mimic::Trial;
use token_broker::domain::bot::{Confirmation, ReturnUrl};
use token_broker_client::proto::{self, AuthorizationState};
use token_broker_client::{Reason, Refusal};
use tonic_types::StatusExt;

use super::{
    assert_no_grant, awaiting, begin, begin_with, confirmed, not_confirmed, offers,
    outbox_is_empty, parameter, seen, shown, state_of, wrong,
};
use crate::harness::world::{authorize, bot};
use crate::harness::{Browser, World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("redirect::a_purge_beside_a_living_grant_deletes_and_does_not_revoke", purge),
        trial(
            "redirect::a_bot_without_confirmation_is_authorized_by_the_callback",
            no_confirmation,
        ),
        trial("redirect::the_old_grant_serves_until_the_new_one_is_confirmed", reauthorization),
        trial("redirect::an_allowed_return_url_is_a_link_on_the_page", return_url),
        trial(
            "redirect::a_return_url_that_is_not_allowed_is_refused_by_authorize",
            bad_return_urls,
        ),
        trial("redirect::cancelling_while_a_code_is_awaited_revokes_the_tokens", cancel_awaiting),
        trial("redirect::cancelling_during_the_exchange_revokes_the_tokens", cancel_exchanging),
        trial(
            "redirect::cancelling_an_exchange_of_a_bot_without_confirmation_revokes_the_tokens",
            cancel_exchanging_without_confirmation,
        ),
    ]
}

async fn purge() {
    let world = World::start().await;
    let old = world.granted("u1").await;
    let awaiting = awaiting(&world, "u1").await;
    for _ in 0..5 {
        not_confirmed(&world, "u1", &wrong(&awaiting.code), &awaiting.id).await;
    }
    assert_eq!(state_of(&world, &awaiting.id).await, AuthorizationState::Failed);
    // To revoke one token of a user and client may end all of them (RFC 7009 section 2.1).
    assert_eq!(world.broker.revocations.count_pending().await.expect("the outbox"), 0);
    outbox_is_empty(&world).await;
    assert_eq!(world.provider.ledger().revoke_calls, 0);
    assert_eq!(world.token("u1").await, old);
    assert!(world.provider.is_living(&old));
}

async fn no_confirmation() {
    let world = World::with(|setup| setup.bots[0].confirmation = Confirmation::None).await;
    let started = begin(&world, "u1").await;
    let mut browser = Browser::new();
    let page = browser.allow(&started.authorization_url).await;
    shown(&page, 200, "All done");
    let authorization = seen(&world, &started.authorization_id).await;
    assert_eq!(authorization.state(), AuthorizationState::Authorized);
    assert_eq!(authorization.grant.expect("a grant").scopes, ["email", "profile"]);
    let token = world.token("u1").await;
    assert!(world.provider.is_living(&token));
    shown(&browser.get(page.url.as_str()).await, 200, "All done");
    assert_eq!(world.provider.ledger().token_calls, 1);
    assert_eq!(world.token("u1").await, token);
    let refusal = not_confirmed(&world, "u1", "12345678", &started.authorization_id).await;
    assert_eq!(refusal.reason, Reason::AuthorizationNotAwaitingConfirmation);
    assert_eq!(refusal.metadata["state"], "AUTHORIZED");
}

async fn reauthorization() {
    let world = World::start().await;
    let old = world.granted("u1").await;
    let request = proto::AuthorizeRequest { scopes: vec!["calendar".into()], ..authorize("u1") };
    let started = begin_with(&world, request).await;
    let mut browser = Browser::new();
    let departure = browser.get(&started.authorization_url).await.location().expect("a redirect");
    assert_eq!(parameter(&departure, "scope").as_deref(), Some("calendar email profile"));

    assert_eq!(world.token("u1").await, old);
    let page = browser.allow(&started.authorization_url).await;
    shown(&page, 200, "One more step");
    assert_eq!(world.token("u1").await, old, "until it is confirmed");
    let code = page.confirmation_code().expect("a code");
    not_confirmed(&world, "u1", &wrong(&code), "").await;
    assert_eq!(world.token("u1").await, old);
    let grant = confirmed(&world, "u1", &code, "").await;
    assert_eq!(grant.scopes, ["calendar", "email", "profile"]);

    let new = world.token("u1").await;
    assert_ne!(new, old);
    assert!(world.provider.is_living(&new));
    let list = proto::ListGrantsRequest::default();
    let grants = world.client().list_grants(list).await.expect("grants").into_inner().grants;
    assert_eq!(grants, [grant]);
    // The old token is deleted, not revoked: that could end the new grant.
    outbox_is_empty(&world).await;
    assert_eq!(world.provider.ledger().revoke_calls, 0);
    assert!(world.provider.is_living(&new));
}

fn returning(subject: &str, return_url: &str) -> proto::AuthorizeRequest {
    let options =
        proto::AuthorizationOptions { return_url: return_url.into(), ..Default::default() };
    proto::AuthorizeRequest { options: Some(options), ..authorize(subject) }
}

async fn world_with_return_urls() -> World {
    World::with(|setup| {
        let allowed = ["https://chat.example.com/app/", "https://chat.example.com/exact?room=1"];
        let urls = allowed.map(|url| ReturnUrl::parse(url).expect("a return URL"));
        setup.bots[0].return_urls = urls.to_vec();
        setup.bots.push(bot("other"));
    })
    .await
}

async fn return_url() {
    let world = world_with_return_urls().await;
    let mut browser = Browser::new();
    for url in [
        "https://chat.example.com/app/",
        "https://chat.example.com/app/room?x=1",
        "https://chat.example.com/exact?room=1",
    ] {
        let started = begin_with(&world, returning("u1", url)).await;
        let page = browser.allow(&started.authorization_url).await;
        shown(&page, 200, "One more step");
        assert!(offers(&page, url), "{}", page.body);
        let code = page.confirmation_code().expect("a code");
        confirmed(&world, "u1", &code, &started.authorization_id).await;
        let again = browser.get(page.url.as_str()).await;
        shown(&again, 200, "All done");
        assert!(offers(&again, url));

        let started = begin_with(&world, returning("u1", url)).await;
        let redirect = browser.redirect_of(&started.authorization_url, "deny").await;
        let page = browser.get(redirect.as_str()).await;
        shown(&page, 200, "Nothing was shared");
        assert!(offers(&page, url));
    }
    // What is shown is escaped, and never followed by itself.
    let url = "https://chat.example.com/app/?a=1&b='%22<i>";
    let started = begin_with(&world, returning("u1", url)).await;
    let page = browser.allow(&started.authorization_url).await;
    shown(&page, 200, "One more step");
    assert!(!page.body.contains("<i>") && !page.headers.contains_key("refresh"));
    // Without one there is no link.
    let started = begin(&world, "u2").await;
    assert!(!browser.allow(&started.authorization_url).await.body.contains("href="));
}

async fn bad_return_urls() {
    let world = world_with_return_urls().await;
    let bad = [
        "//evil.example/",
        "/\\evil.example",
        "/app/",
        "https:\\\\evil.example/app/",
        "https://user@chat.example.com/app/",
        "https://user:secret@chat.example.com/app/",
        "https://chat.example.com@evil.example/app/",
        "https://chat.example.com/app/\r\nSet-Cookie: a=b",
        "https://chat.example.com/app/\tx",
        "https://chat.example.com/app/ x",
        "https://chat.example.com/app/#code",
        "https://chat.example.com/app/../admin",
        "https://chat.example.com/app/%2e%2e/admin",
        "https://chat.example.com/app",
        "https://chat.example.com/exact",
        "https://chat.example.com/exact?room=2",
        "https://chat.example.com/exact?room=1&x=1",
        "https://chat.example.com:444/app/",
        "https://chat.example.com.evil.example/app/",
        "https://chat.example.com./app/",
        "https://evil.example/https://chat.example.com/app/",
        "http://chat.example.com/app/",
        "http://127.0.0.1/app/",
        "data:text/html,<script>alert(1)</script>",
        "javascript:alert(1)",
        "javascript://chat.example.com/app/%0aalert(1)",
        "blob:https://chat.example.com/app/",
        "ftp://chat.example.com/app/",
        "chat.example.com/app/",
    ];
    let long = format!("https://chat.example.com/app/{}", "x".repeat(1024));
    for url in bad.into_iter().chain([long.as_str()]) {
        let answer = world.client().authorize(returning("u1", url)).await;
        let status = answer.expect_err(url);
        let refusal = Refusal::of(&status).expect("a refusal");
        assert_eq!(refusal.reason, Reason::InvalidArgument, "{url:?}");
        assert_eq!(refusal.metadata["fields"], "options.return_url", "{url:?}");
        let details = status.get_error_details();
        let violations = &details.bad_request().expect("the field").field_violations;
        let fields: Vec<_> = violations.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(fields, ["options.return_url"], "{url:?}");
        assert!(!refusal.message.contains(url), "{url:?}");
    }
    // The list is each bot's own.
    let mut other = world.client_of("other");
    let answer = other.authorize(returning("u1", "https://chat.example.com/app/")).await;
    let refusal = Refusal::of(&answer.expect_err("not its own")).expect("a refusal");
    assert_eq!(refusal.metadata["fields"], "options.return_url");
}

async fn cancel(world: &World, id: &str) {
    let request = proto::CancelAuthorizationRequest { authorization_id: id.into() };
    let response = world.client().cancel_authorization(request).await.expect("cancelled");
    let authorization = response.into_inner().authorization.expect("an authorization");
    assert_eq!(authorization.state(), AuthorizationState::Cancelled);
}

async fn cancel_awaiting() {
    let world = World::start().await;
    let mut awaiting = awaiting(&world, "u1").await;
    cancel(&world, &awaiting.id).await;
    let refusal = not_confirmed(&world, "u1", &awaiting.code, &awaiting.id).await;
    assert_eq!(refusal.reason, Reason::AuthorizationNotAwaitingConfirmation);
    assert_eq!(refusal.metadata["state"], "CANCELLED");
    let refusal = not_confirmed(&world, "u1", &awaiting.code, "").await;
    assert_eq!(refusal.reason, Reason::AuthorizationNotFound);
    let url = awaiting.page.url.clone();
    shown(&awaiting.browser.get(url.as_str()).await, 400, "This link no longer works");
    assert_no_grant(&world, "u1").await;
    outbox_is_empty(&world).await;
    let ledger = world.provider.ledger();
    assert_eq!((ledger.living_refresh_tokens, ledger.living_access_tokens), (0, 0));
    cancel(&world, &awaiting.id).await;
    assert_eq!(world.provider.ledger().revoke_calls, ledger.revoke_calls);
}

async fn cancel_exchanging() {
    cancelled_during_the_exchange(&World::start().await).await;
}

async fn cancel_exchanging_without_confirmation() {
    let world = World::with(|setup| setup.bots[0].confirmation = Confirmation::None).await;
    cancelled_during_the_exchange(&world).await;
}

/// The provider issues tokens that nobody waits for any more.
async fn cancelled_during_the_exchange(world: &World) {
    let started = begin(world, "u1").await;
    let mut browser = Browser::new();
    let redirect = browser.redirect_of(&started.authorization_url, "allow").await;
    let pause = world.provider.pause_token_endpoint();
    let page = tokio::spawn(async move { browser.get(redirect.as_str()).await });
    world.provider.wait_for_token_calls(1).await;
    cancel(world, &started.authorization_id).await;
    drop(pause);
    shown(&page.await.expect("no panic"), 400, "This link no longer works");
    assert_eq!(state_of(world, &started.authorization_id).await, AuthorizationState::Cancelled);
    assert_eq!(world.provider.ledger().tokens_issued, 1);
    assert_no_grant(world, "u1").await;
    outbox_is_empty(world).await;
    let ledger = world.provider.ledger();
    assert_eq!((ledger.living_refresh_tokens, ledger.living_access_tokens), (0, 0));
}
