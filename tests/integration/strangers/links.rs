//! What the holder of a link can do, who is not the user.

use std::time::Duration;

use libtest_mimic::Trial;
use token_broker_client::proto::{self, AuthorizationState};

use crate::harness::world::authorize;
use crate::harness::{Browser, World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("strangers::links::a_forged_error_does_not_end_an_authorization", forged_error),
        trial("strangers::links::a_forged_error_after_the_link_does_not_end_it", late_error),
        trial("strangers::links::many_attempts_do_not_keep_the_user_from_refusing", user_refuses),
        trial(
            "strangers::links::an_error_during_an_exchange_is_without_effect",
            error_when_awaiting,
        ),
        trial("strangers::links::a_cancelled_authorization_is_not_reopened", cancelled),
        trial("strangers::links::redirects_of_one_link_write_few_rows", rows),
        trial("strangers::links::a_form_for_an_unknown_provider_is_not_sealed", unknown_provider),
    ]
}

async fn state_of(world: &World, started: &proto::AuthorizeResponse) -> AuthorizationState {
    let authorization_id = started.authorization_id.clone();
    let request = proto::GetAuthorizationRequest { authorization_id };
    let response = world.client().get_authorization(request).await.expect("an authorization");
    response.into_inner().authorization.expect("an authorization").state()
}

/// Opens the link in another browser, and sends it back with an error that no provider wrote.
async fn forge_error(world: &World, started: &proto::AuthorizeResponse, error: &str) -> u16 {
    let mut attacker = Browser::new();
    let back = forged(world, started, &mut attacker, error).await;
    attacker.get(&back).await.status
}

/// Opens the link in a browser. Returns a redirect to it with an error that no provider wrote.
async fn forged(
    world: &World,
    started: &proto::AuthorizeResponse,
    attacker: &mut Browser,
    error: &str,
) -> String {
    let departure = attacker.get(&started.authorization_url).await.location().expect("a redirect");
    let state = departure.query_pairs().find(|(name, _)| name == "state").expect("a state").1;
    let back = format!("{}/oauth2/callback/acme?state={state}&error={error}", world.http_url);
    let iss = world.broker.providers.get("acme").expect("a provider").issuer.clone();
    format!("{back}&iss={}", iss.expect("an issuer"))
}

async fn forged_error() {
    for error in ["access_denied", "server_error"] {
        let world = World::start().await;
        let started = world.client().authorize(authorize("u1")).await.expect("a link").into_inner();
        let mut user = Browser::new();
        let redirect = user.redirect_of(&started.authorization_url, "allow").await;
        forge_error(&world, &started, error).await;
        // The user completes, both from the page that is open and from the link.
        let page = user.get(redirect.as_str()).await;
        assert_eq!(page.heading(), "One more step", "{error}");
        assert_eq!(state_of(&world, &started).await, AuthorizationState::AwaitingConfirmation);
        let code = page.confirmation_code().expect("a code");
        let confirm =
            proto::ConfirmAuthorizationRequest { subject: "u1".into(), code, ..Default::default() };
        world.client().confirm_authorization(confirm).await.expect("a grant");

        let started = world.client().authorize(authorize("u2")).await.expect("a link").into_inner();
        forge_error(&world, &started, error).await;
        let page = Browser::new().allow(&started.authorization_url).await;
        assert_eq!(page.heading(), "One more step", "{error}");
    }
}

/// Also when the link has ended and only a redirect that is on its way may still come.
async fn late_error() {
    let world = World::start().await;
    let started = world.client().authorize(authorize("u1")).await.expect("a link").into_inner();
    world.advance(Duration::from_secs(9 * 60 + 30));
    let mut user = Browser::new();
    let consent = user.open(&started.authorization_url).await;
    let mut attacker = Browser::new();
    let forged = forged(&world, &started, &mut attacker, "access_denied").await;
    world.advance(Duration::from_secs(60));
    attacker.get(&forged).await;
    let redirect = user.decide(&consent, "allow").await;
    assert_eq!(user.get(redirect.as_str()).await.heading(), "One more step");
}

/// However many attempts of strangers are recorded, the user can refuse.
async fn user_refuses() {
    let world = World::start().await;
    let started = world.client().authorize(authorize("u1")).await.expect("a link").into_inner();
    for _ in 0..33 {
        let mut stranger = Browser::new();
        let forged = forged(&world, &started, &mut stranger, "x").await;
        Browser::new().get(&forged).await;
    }
    let mut user = Browser::new();
    let redirect = user.redirect_of(&started.authorization_url, "deny").await;
    user.get(redirect.as_str()).await;
    assert_eq!(state_of(&world, &started).await, AuthorizationState::Denied);
}

async fn error_when_awaiting() {
    let world = World::start().await;
    let started = world.client().authorize(authorize("u1")).await.expect("a link").into_inner();
    let mut attacker = Browser::new();
    let redirect = attacker.redirect_of(&started.authorization_url, "deny").await;
    Browser::new().allow(&started.authorization_url).await;
    attacker.get(redirect.as_str()).await;
    assert_eq!(state_of(&world, &started).await, AuthorizationState::AwaitingConfirmation);
}

async fn cancelled() {
    let world = World::start().await;
    let started = world.client().authorize(authorize("u1")).await.expect("a link").into_inner();
    let mut user = Browser::new();
    let redirect = user.redirect_of(&started.authorization_url, "allow").await;
    forge_error(&world, &started, "access_denied").await;
    let authorization_id = started.authorization_id.clone();
    let cancel = proto::CancelAuthorizationRequest { authorization_id };
    world.client().cancel_authorization(cancel).await.expect("it is known");
    assert_ne!(user.get(redirect.as_str()).await.heading(), "One more step");
    let page = Browser::new().get(&started.authorization_url).await;
    assert_eq!(page.heading(), "This link no longer works");
    assert_eq!(world.provider.ledger().token_calls, 0);
}

async fn rows() {
    let world = World::start().await;
    let started = world.client().authorize(authorize("u1")).await.expect("a link").into_inner();
    for _ in 0..50 {
        forge_error(&world, &started, "x").await;
    }
    let page = Browser::new().allow(&started.authorization_url).await;
    assert_eq!(page.heading(), "One more step");
}

async fn unknown_provider() {
    let world = World::start().await;
    let post = async |provider: &str| {
        let url = format!("{}/oauth2/callback/{provider}", world.http_url);
        let form = [("state", "x"), ("code", "y")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        Browser::new().post(&url, &form).await
    };
    let page = post("nobody").await;
    assert!(page.location().is_none(), "{page:?}");
    assert_eq!(page.status, 400);
    assert!(post("acme").await.location().is_some());
}
