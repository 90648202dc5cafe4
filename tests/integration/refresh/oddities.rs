//! Answers of real providers that are odd, each reduced to the smallest: dead refresh tokens under other names, failures
//! of one grant beside healthy ones, scopes under other names.

use std::time::Duration;

use libtest_mimic::Trial;
use token_broker::demo::provider::ScriptedAnswer;
use token_broker::domain::scope::{ScopeNames, Scopes};
use token_broker_client::{Reason, proto};

use super::{BACKOFF, LIFETIME, get, html, json, reason, refresh, script, state, told};
use crate::harness::world::{authorize, get_token, name};
use crate::harness::{World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("refresh::unauthorized_client_of_three_grants_stops_no_other", three_dead::<0>),
        trial("refresh::a_bare_401_of_three_grants_stops_no_other", three_dead::<1>),
        trial("refresh::one_grant_with_500s_stops_no_other", one_broken),
        trial("refresh::a_grant_that_is_refused_for_a_minute_needs_the_user", refused_for_good),
        trial("refresh::refusals_alone_do_not_end_a_grant", refused_alone),
        trial("refresh::dead_at_github", dead::<0>),
        trial("refresh::dead_at_slack", dead::<1>),
        trial("refresh::dead_at_fitbit", dead::<2>),
        trial("refresh::dead_at_openai", dead::<3>),
        trial("refresh::dead_by_the_providers_own_code", dead::<4>),
        trial("refresh::a_500_that_says_invalid_grant_ends_a_grant_after_a_while", dead_500),
        trial("refresh::an_answer_that_was_cut_is_not_asked_for_again", cut::<0>),
        trial("refresh::within_the_grace_it_is", cut::<1>),
        trial("refresh::scopes_under_other_names_are_covered", aliases),
        trial("refresh::a_scope_that_is_never_reported_is_covered", unreported),
        trial("refresh::only_requested_scopes_are_requested_again", requested),
        trial("refresh::an_empty_scope_changes_nothing", empty_scope),
        trial("refresh::a_refresh_without_a_lifetime_keeps_the_one_before", lifetime),
    ]
}

async fn with_users(users: &[&str]) -> World {
    let world = World::start().await;
    for user in users {
        world.granted(user).await;
    }
    world.advance(LIFETIME);
    world
}

/// One attempt to refresh `user`, which gets this answer.
async fn attempt(world: &World, user: &str, answer: &ScriptedAnswer) -> Reason {
    world.provider.clear_scripts();
    // As often as one refresh sends.
    script(world, [answer.clone(), answer.clone()]);
    let told = reason(get(world, user).await);
    world.provider.clear_scripts();
    told
}

async fn three_dead<const ROW: usize>() {
    let text = r#"{"error":"unauthorized_client","error_description":"refresh_token is invalid"}"#;
    let (answer, at_once) = [(json(403, text), true), (json(401, ""), false)][ROW].clone();
    let world = with_users(&["u1", "u2", "u3", "u4"]).await;
    for dead in ["u1", "u2", "u3"] {
        let expected = match at_once {
            true => Reason::ReauthorizationRequired,
            false => Reason::ProviderMisconfigured,
        };
        assert_eq!(attempt(&world, dead, &answer).await, expected, "{dead}");
    }
    get(&world, "u4").await.expect("the fourth is well");
    // Those that have not been found dead at once are so after a while.
    for _ in 0..12 {
        world.advance(Duration::from_secs(20));
        for dead in ["u1", "u2", "u3"] {
            attempt(&world, dead, &answer).await;
        }
        refresh(&world, "u4", "").await.expect("the fourth is well");
    }
    for dead in ["u1", "u2", "u3"] {
        assert_eq!(state(&world, dead).await, proto::GrantState::ReauthorizationRequired, "{dead}");
    }
}

async fn one_broken() {
    let world = with_users(&["u1", "u2"]).await;
    for _ in 0..10 {
        attempt(&world, "u1", &html(500)).await;
        world.advance(BACKOFF * 2);
        refresh(&world, "u2", "").await.expect("the other one is well");
    }
}

/// As Dex refuses a refresh token that it has replaced.
async fn refused_for_good() {
    let answer = json(400, r#"{"error":"invalid_request"}"#);
    let world = with_users(&["u1", "u2"]).await;
    let mut refusals = 0;
    while state(&world, "u1").await == proto::GrantState::Active {
        attempt(&world, "u1", &answer).await;
        refusals += 1;
        world.advance(Duration::from_secs(20));
        refresh(&world, "u2", "").await.expect("the other one is well");
        assert!(refusals < 20, "it never ends");
    }
    assert!(refusals > 3, "{refusals}");
    assert_offers_link(&world).await;
}

/// The grant of u1 needs a new authorization, and the refusal brings the link along.
async fn assert_offers_link(world: &World) {
    let link = proto::GetTokenRequest {
        start_authorization: Some(proto::AuthorizationOptions::default()),
        ..get_token("u1")
    };
    let refusal = told(world.client().get_token(link).await).expect_err("a refusal");
    assert_eq!(refusal.reason, Reason::ReauthorizationRequired);
    assert!(refusal.authorization.is_some(), "a link is offered");
}

async fn refused_alone() {
    let answer = json(400, r#"{"error":"invalid_request"}"#);
    let world = with_users(&["u1"]).await;
    for _ in 0..20 {
        assert_eq!(attempt(&world, "u1", &answer).await, Reason::ProviderError);
        world.advance(Duration::from_secs(600));
    }
    assert_eq!(state(&world, "u1").await, proto::GrantState::Active);
}

async fn dead<const ROW: usize>() {
    let (status, body) = [
        (200, r#"{"error":"bad_refresh_token"}"#),
        (200, r#"{"ok":false,"error":"invalid_refresh_token"}"#),
        (400, r#"{"errors":[{"errorType":"invalid_grant"}],"success":false}"#),
        (401, r#"{"error":{"code":"refresh_token_reused"}}"#),
        (400, r#"{"error":"invalid_request"}"#),
    ][ROW];
    let world = World::with(|setup| {
        if ROW == 4 {
            setup.providers[0].dead_grant_errors = vec!["invalid_request".to_owned()];
        }
    })
    .await;
    world.granted("u1").await;
    world.advance(LIFETIME);
    script(&world, [json(status, body)]);
    assert_offers_link(&world).await;
    assert_eq!(state(&world, "u1").await, proto::GrantState::ReauthorizationRequired);
    // It is not sent again.
    world.advance(BACKOFF);
    assert_eq!(reason(get(&world, "u1").await), Reason::ReauthorizationRequired);
    assert_eq!(world.provider.ledger().refreshes, 1);
}

async fn dead_500() {
    let answer = json(500, r#"{"error":"invalid_grant"}"#);
    let world = with_users(&["u1", "u2"]).await;
    assert_eq!(attempt(&world, "u1", &answer).await, Reason::ProviderUnavailable);
    for _ in 0..12 {
        world.advance(Duration::from_secs(20));
        attempt(&world, "u1", &answer).await;
        refresh(&world, "u2", "").await.expect("the other one is well");
    }
    assert_eq!(state(&world, "u1").await, proto::GrantState::ReauthorizationRequired);
}

/// The provider has issued tokens, and may take the old refresh token for a stolen one by now.
async fn cut<const GRACE: usize>() {
    let world = World::with(|setup| {
        setup.providers[0].refresh_grace = Duration::from_secs(30) * GRACE as u32;
        setup.provider_grace = Duration::from_secs(30);
    })
    .await;
    world.granted("u1").await;
    world.advance(LIFETIME);
    let cut = json(200, r#"{"access_token":"a","refresh_tok"#);
    script(&world, [ScriptedAnswer { after_processing: true, ..cut }]);
    let first = reason(get(&world, "u1").await);
    world.advance(BACKOFF);
    if GRACE == 0 {
        assert_eq!(first, Reason::ReauthorizationRequired);
        assert_eq!(reason(get(&world, "u1").await), Reason::ReauthorizationRequired);
    } else {
        assert_eq!(first, Reason::ProviderError);
        get(&world, "u1").await.expect("the same refresh token still works");
    }
    assert_eq!(world.provider.ledger().refreshes, 1 + GRACE);
}

/// As Google reports `email`.
const GOOGLE_EMAIL: &str = "https://www.googleapis.com/auth/userinfo.email";

async fn reporting(scope: &str, names: ScopeNames) -> World {
    let world = World::with(|setup| {
        let policy = Scopes::from_provider("email offline_access");
        setup.bots[0].scopes.insert(name("acme"), policy);
        setup.providers[0].scope_names = names;
        setup.providers[0].default_scopes = Scopes::from_provider("email offline_access");
    })
    .await;
    let body =
        format!(r#"{{"access_token":"a","refresh_token":"r","expires_in":300,"scope":"{scope}"}}"#);
    script(&world, [json(200, &body)]);
    world
}

async fn with_scopes(world: &World, scopes: &[&str]) -> Result<proto::Token, Reason> {
    let scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect();
    let request = proto::GetTokenRequest { scopes, ..get_token("u1") };
    let response = told(world.client().get_token(request).await);
    response.map(|response| response.into_inner().token.expect("a token")).map_err(|r| r.reason)
}

async fn sign_in(world: &World) {
    let (_, code) = world.consent("u1").await;
    let request =
        proto::ConfirmAuthorizationRequest { subject: "u1".to_owned(), code, ..Default::default() };
    world.client().confirm_authorization(request).await.expect("a grant");
}

async fn aliases() {
    let names = ScopeNames {
        aliases: [("email".to_owned(), Scopes::from_provider(GOOGLE_EMAIL))].into(),
        unreported: Scopes::default(),
    };
    let world = reporting(&format!("{GOOGLE_EMAIL} openid"), names).await;
    for _ in 0..4 {
        sign_in(&world).await;
        with_scopes(&world, &["email"]).await.expect("it is covered");
        let body = format!(
            r#"{{"access_token":"a","refresh_token":"r","expires_in":300,"scope":"{GOOGLE_EMAIL} openid"}}"#
        );
        script(&world, [json(200, &body)]);
    }
    assert_eq!(with_scopes(&world, &["profile"]).await, Err(Reason::ScopeNotAllowed));
}

async fn unreported() {
    let names = ScopeNames {
        aliases: Default::default(),
        unreported: Scopes::from_provider("offline_access"),
    };
    let world = reporting("email", names).await;
    sign_in(&world).await;
    with_scopes(&world, &["offline_access", "email"]).await.expect("it is covered");
}

async fn requested() {
    let world = reporting("email openid admin", ScopeNames::default()).await;
    sign_in(&world).await;
    let started = world.client().authorize(authorize("u1")).await.expect("a link").into_inner();
    let client = crate::harness::browser::client();
    let start = client.get(started.authorization_url).send().await.expect("an answer");
    let location = start.headers()["location"].to_str().expect("a URL");
    let url: url::Url = location.parse().expect("a URL");
    let scope = url.query_pairs().find(|(name, _)| name == "scope").expect("a scope").1;
    assert_eq!(scope, "email offline_access");
}

async fn empty_scope() {
    let world = with_users(&["u1"]).await;
    script(&world, [json(200, r#"{"access_token":"a","expires_in":300,"scope":""}"#)]);
    assert_eq!(get(&world, "u1").await.expect("a token").scopes, ["email", "profile"]);
    with_scopes(&world, &["email"]).await.expect("it is covered");
}

async fn lifetime() {
    let world = with_users(&["u1"]).await;
    script(&world, [json(200, r#"{"access_token":"a"}"#)]);
    let token = get(&world, "u1").await.expect("a token");
    assert_eq!(token.access_token, "a");
    assert!(token.expire_time.is_some(), "it is not for ever");
    world.advance(LIFETIME);
    assert_ne!(get(&world, "u1").await.expect("a token").access_token, "a");
}
