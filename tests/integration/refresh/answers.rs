//! 2xx answers as real providers write them.

use libtest_mimic::Trial;
use token_broker::demo::provider::ScriptedAnswer;
use token_broker_client::{Reason, proto};

use super::{LIFETIME, get, get_for, grant, json, refresh, script, told};
use crate::harness::world::{BEGINNING, get_token};
use crate::harness::{World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("refresh::a_form_encoded_answer_works", form_encoded),
        trial("refresh::an_answer_without_a_refresh_token_keeps_the_old_one", no_refresh_token),
        trial("refresh::every_lifetime_is_read_and_none_keeps_the_one_before", lifetimes),
        trial("refresh::narrower_scopes_are_stored", narrower),
        trial("refresh::wider_scopes_are_not_stored", wider),
    ]
}

async fn expired() -> World {
    let world = World::start().await;
    world.granted("u1").await;
    world.advance(LIFETIME);
    world
}

async fn form_encoded() {
    let world = expired().await;
    let body = "access_token=form%2Btoken&scope=email%2Cprofile&token_type=bearer&expires_in=300\
                &refresh_token=form-rt";
    let content_type = "application/x-www-form-urlencoded".to_owned();
    script(&world, [ScriptedAnswer { content_type, ..json(200, body) }]);
    let token = get(&world, "u1").await.expect("a token");
    assert_eq!((token.access_token.as_str(), token.token_type.as_str()), ("form+token", "Bearer"));
    assert_eq!(token.scopes, ["email", "profile"]);
    world.advance(LIFETIME);
    script(&world, [json(200, r#"{"access_token":"next"}"#)]);
    assert_eq!(get(&world, "u1").await.expect("a token").access_token, "next");
    assert_eq!(world.provider.ledger().refreshes_of("form-rt"), 1);
}

async fn no_refresh_token() {
    let world = expired().await;
    script(&world, [json(200, r#"{"access_token":"first","expires_in":300}"#)]);
    assert_eq!(get(&world, "u1").await.expect("a token").access_token, "first");
    world.advance(LIFETIME);
    // The provider takes the old refresh token, which the script had never let it see.
    let next = get(&world, "u1").await.expect("a token").access_token;
    assert!(world.provider.is_living(&next));
    let ledger = world.provider.ledger();
    assert_eq!((ledger.refreshes, ledger.most_refreshes_of_one_token()), (2, 2));
}

async fn lifetimes() {
    let ten_years = 10 * 365 * 24 * 60 * 60;
    for (expires_in, seconds) in [
        ("3600", Some(3600)),
        ("\"3600\"", Some(3600)),
        ("3600.9", Some(3600)),
        ("1", Some(1)),
        ("0", Some(300)),
        ("-1", Some(300)),
        ("null", Some(300)),
        ("\"soon\"", Some(300)),
        ("1e18", Some(ten_years)),
        ("9223372036854775808", Some(ten_years)),
        ("-9223372036854775809", Some(300)),
    ] {
        let world = expired().await;
        let body = format!(r#"{{"access_token":"odd","expires_in":{expires_in}}}"#);
        script(&world, [json(200, &body)]);
        let token = get(&world, "u1").await.expect(expires_in);
        assert_eq!(token.access_token, "odd", "{expires_in}");
        let now = BEGINNING / 1000 + 301;
        let expires = token.expire_time.map(|time| time.seconds - now);
        assert_eq!(expires, seconds, "{expires_in}");
        // However short it is, a caller that asks for more does not cause a refresh each time.
        for _ in 0..3 {
            let again = get_for(&world, "u1", 3600).await.expect(expires_in);
            assert_eq!(again.access_token, "odd", "{expires_in}");
        }
        assert_eq!(world.provider.ledger().refreshes, 1, "{expires_in}");
    }
}

/// What GetToken says where the token is to have this scope.
async fn get_with(world: &World, scope: &str) -> Result<proto::Token, (Reason, String)> {
    let request = proto::GetTokenRequest { scopes: vec![scope.into()], ..get_token("u1") };
    let response = told(world.client().get_token(request).await);
    response
        .map(|response| response.into_inner().token.expect("a token"))
        .map_err(|refusal| (refusal.reason, refusal.metadata["missing"].clone()))
}

async fn narrower() {
    let world = expired().await;
    script(&world, [json(200, r#"{"access_token":"narrow","expires_in":300,"scope":"email"}"#)]);
    assert_eq!(get(&world, "u1").await.expect("a token").scopes, ["email"]);
    assert_eq!(grant(&world, "u1").await.expect("a grant").scopes, ["email"]);
    assert_eq!(get_with(&world, "email").await.expect("a token").access_token, "narrow");
    let missing = get_with(&world, "profile").await.expect_err("a refusal");
    assert_eq!(missing, (Reason::ScopeMissing, "profile".to_owned()));
    assert_eq!(world.provider.ledger().refreshes, 1);
    // The provider gives all of them with the next one; a refresh widens nothing.
    let token = refresh(&world, "u1", "").await.expect("a token");
    assert!(world.provider.is_living(&token.access_token));
    assert_eq!(token.scopes, ["email"]);
    // The user does.
    world.granted("u1").await;
    assert_eq!(grant(&world, "u1").await.expect("a grant").scopes, ["email", "profile"]);
}

async fn wider() {
    let world = expired().await;
    let body = r#"{"access_token":"wide","expires_in":300,"scope":"admin email profile"}"#;
    script(&world, [json(200, body)]);
    assert_eq!(get(&world, "u1").await.expect("a token").scopes, ["email", "profile"]);
    assert_eq!(grant(&world, "u1").await.expect("a grant").scopes, ["email", "profile"]);
    let missing = get_with(&world, "admin").await.expect_err("a refusal");
    assert_eq!(missing, (Reason::ScopeMissing, "admin".to_owned()));
}
