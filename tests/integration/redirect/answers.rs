//! What the provider answers: refusals, errors, codes that are none, and posted forms.

use libtest_mimic::Trial;
use reqwest::header::SET_COOKIE;
use token_broker::demo::provider::{ScriptedAnswer, ScriptedEndpoint};
use token_broker_client::Reason;
use token_broker_client::proto::AuthorizationState;
use url::Url;

use super::{
    also, assert_no_grant, assert_strict, begin, confirmed, not_confirmed, offers, parameter, seen,
    shown, state_of, two_providers, with,
};
use crate::harness::{Browser, World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("redirect::deny_ends_the_authorization_as_denied", denied),
        trial("redirect::any_other_error_of_the_provider_fails_the_authorization", errors),
        trial("redirect::a_garbage_code_leaves_the_authorization_waiting", garbage_code),
        trial("redirect::five_refused_codes_fail_the_authorization", five_garbage_codes),
        trial(
            "redirect::a_dead_code_under_another_name_lets_the_user_start_again",
            refused_codes_elsewhere,
        ),
        trial("redirect::an_exchange_without_a_token_fails_and_is_not_repeated", no_token),
        trial("redirect::a_posted_form_comes_back_sealed_and_works", form_post),
        trial("redirect::a_sealed_form_is_for_one_provider_and_cannot_be_altered", sealed_form),
    ]
}

async fn denied() {
    let world = World::start().await;
    let started = begin(&world, "u1").await;
    let id = &started.authorization_id;
    let mut browser = Browser::new();
    let allowed = browser.redirect_of(&started.authorization_url, "allow").await;
    let redirect = browser.redirect_of(&started.authorization_url, "deny").await;
    let page = browser.get(redirect.as_str()).await;
    shown(&page, 200, "Nothing was shared");
    assert!(!page.body.contains("access_denied"));
    let authorization = seen(&world, id).await;
    assert_eq!(authorization.state(), AuthorizationState::Denied);
    assert_eq!(authorization.error, "access_denied");
    assert_eq!(authorization.error_description, "The user refused.");
    assert_eq!((authorization.expire_time, authorization.grant), (None, None));

    assert_eq!(browser.get(redirect.as_str()).await.body, page.body);
    assert_eq!(world.provider.ledger().token_calls, 0);
    assert_no_grant(&world, "u1").await;
    let refusal = not_confirmed(&world, "u1", "12345678", id).await;
    assert_eq!(refusal.reason, Reason::AuthorizationNotAwaitingConfirmation);
    assert_eq!(refusal.metadata["state"], "DENIED");

    // A user who changes their mind can still consent while the link works.
    shown(&browser.get(allowed.as_str()).await, 200, "One more step");
    assert_eq!(state_of(&world, id).await, AuthorizationState::AwaitingConfirmation);
    shown(&browser.get(redirect.as_str()).await, 400, "This page was used before");
}

async fn errors() {
    let world = World::start().await;
    let mut browser = Browser::new();
    // The error, what is kept of it, and whether the page says it.
    let cases = [
        ("invalid_request", "invalid_request", true),
        ("unauthorized_client", "unauthorized_client", true),
        ("unsupported_response_type", "unsupported_response_type", true),
        ("invalid_scope", "invalid_scope", true),
        ("server_error", "server_error", true),
        ("temporarily_unavailable", "temporarily_unavailable", true),
        ("interaction_required", "interaction_required", false),
        ("ACCESS_DENIED", "ACCESS_DENIED", false),
        ("<b>invalid_scope</b>", "binvalid_scopeb", false),
    ];
    for (error, kept, told) in cases {
        let started = begin(&world, "u1").await;
        let redirect = browser.redirect_of(&started.authorization_url, "deny").await;
        let page = browser.get(with(&redirect, "error", Some(error)).as_str()).await;
        shown(&page, 502, "The provider did not play along");
        assert_eq!(page.body.contains(kept), told, "{error}: {}", page.body);
        let authorization = seen(&world, &started.authorization_id).await;
        assert_eq!(authorization.state(), AuthorizationState::Failed, "{error}");
        assert_eq!(authorization.error, kept);
        assert_eq!(authorization.error_description, "Acme answered with an error.");
        let again = browser.get(with(&redirect, "error", Some(error)).as_str()).await;
        assert_eq!((again.status, again.body), (502, page.body));
    }
    assert_eq!(world.provider.ledger().token_calls, 0);
}

async fn garbage_code() {
    let world = World::start().await;
    let started = begin(&world, "u1").await;
    let mut browser = Browser::new();
    let redirect = browser.redirect_of(&started.authorization_url, "allow").await;
    let garbage = with(&redirect, "code", Some("garbage"));
    let page = browser.get(garbage.as_str()).await;
    shown(&page, 502, "The provider did not take it");
    assert!(offers(&page, &started.authorization_url));
    let ledger = world.provider.ledger();
    assert_eq!((ledger.code_exchanges, ledger.tokens_issued), (1, 0));
    assert_eq!(state_of(&world, &started.authorization_id).await, AuthorizationState::Pending);

    // The attempt was used, so not even the right code goes with it.
    for url in [&garbage, &redirect] {
        let page = browser.get(url.as_str()).await;
        shown(&page, 400, "This page was used before");
        assert!(offers(&page, &started.authorization_url));
    }
    assert_eq!(world.provider.ledger().code_exchanges, 1);
    let page = browser.allow(&started.authorization_url).await;
    shown(&page, 200, "One more step");
    confirmed(&world, "u1", &page.confirmation_code().expect("a code"), "").await;
    assert!(world.provider.is_living(&world.token("u1").await));
    assert_eq!(world.provider.ledger().code_exchanges, 2);
}

/// GitHub's and Slack's names for a dead code.
async fn refused_codes_elsewhere() {
    let world = World::start().await;
    for body in [r#"{"error":"bad_verification_code"}"#, r#"{"ok":false,"error":"invalid_code"}"#] {
        world.provider.script(ScriptedEndpoint::Token, ScriptedAnswer::json(200, body));
        let started = begin(&world, "u1").await;
        let page = Browser::new().allow(&started.authorization_url).await;
        shown(&page, 502, "The provider did not take it");
        assert_eq!(state_of(&world, &started.authorization_id).await, AuthorizationState::Pending);
    }
}

async fn five_garbage_codes() {
    let world = World::start().await;
    let started = begin(&world, "u1").await;
    let id = &started.authorization_id;
    let mut browser = Browser::new();
    let mut last = None;
    for attempt in 1..=5 {
        assert_eq!(state_of(&world, id).await, AuthorizationState::Pending);
        let redirect = browser.redirect_of(&started.authorization_url, "allow").await;
        let garbage = with(&redirect, "code", Some(&format!("garbage-{attempt}")));
        let page = browser.get(garbage.as_str()).await;
        if attempt < 5 {
            shown(&page, 502, "The provider did not take it");
        } else {
            shown(&page, 502, "The provider did not play along");
            assert!(page.body.contains("(invalid_grant)") && !page.body.contains("href="));
        }
        assert_eq!(world.provider.ledger().code_exchanges, attempt);
        last = Some(garbage);
    }
    let authorization = seen(&world, id).await;
    assert_eq!(authorization.state(), AuthorizationState::Failed);
    assert_eq!(authorization.error, "invalid_grant");
    assert_eq!(authorization.error_description, "Acme did not give a token.");
    let again = browser.get(last.expect("a URL").as_str()).await;
    shown(&again, 502, "The provider did not play along");
    shown(&browser.get(&started.authorization_url).await, 400, "This link no longer works");
    assert_eq!(world.provider.ledger().code_exchanges, 5);
}

async fn no_token() {
    let world = World::start().await;
    let mut browser = Browser::new();
    let json = ScriptedAnswer::json;
    let cases = [
        (json(500, "{}"), "temporarily_unavailable"),
        (json(429, "{}"), "temporarily_unavailable"),
        (json(400, r#"{"error":"invalid_client"}"#), "invalid_client"),
        (json(401, ""), "invalid_client"),
        (json(200, r#"{"error":"odd"}"#), "odd"),
        (json(200, r#"{"access_token":""}"#), "invalid_response"),
        (json(200, "<html>"), "invalid_response"),
    ];
    for (number, (answer, error)) in cases.into_iter().enumerate() {
        world.provider.script(ScriptedEndpoint::Token, answer.clone());
        let started = begin(&world, "u1").await;
        let page = browser.allow(&started.authorization_url).await;
        let heading = match error {
            "invalid_client" => "This service is not set up rightly",
            _ => "The provider did not play along",
        };
        shown(&page, 502, heading);
        let authorization = seen(&world, &started.authorization_id).await;
        assert_eq!(authorization.state(), AuthorizationState::Failed, "{answer:?}");
        assert_eq!(authorization.error, error, "{answer:?}");
        assert_eq!(authorization.error_description, "Acme did not give a token.");
        // Whether the code was spent is not known, so it is never sent again.
        shown(&browser.get(page.url.as_str()).await, 502, heading);
        assert_eq!(world.provider.ledger().code_exchanges, number + 1);
    }
    assert_no_grant(&world, "u1").await;
}

/// Posts a redirect's parameters to the callback, as the provider's page does: from another site,
/// so the Lax cookie does not come with it. Gives where the broker sends the browser.
async fn posted(redirect: &Url) -> Url {
    let form: Vec<_> = redirect.query_pairs().into_owned().collect();
    let mut target = redirect.clone();
    target.set_query(None);
    let answer = Browser::new().post(target.as_str(), &form).await;
    assert_eq!((answer.status, answer.body.as_str()), (303, ""));
    assert_strict(&answer.headers);
    assert!(!answer.headers.contains_key(SET_COOKIE));
    answer.location().expect("a redirect")
}

async fn form_post() {
    let world = World::start().await;
    let started = begin(&world, "u1").await;
    let mut browser = Browser::new();
    let redirect = browser.redirect_of(&started.authorization_url, "allow").await;
    let own = posted(&redirect).await;
    assert_eq!((own.origin(), own.path()), (redirect.origin(), redirect.path()));
    let names: Vec<_> = own.query_pairs().map(|(name, _)| name.into_owned()).collect();
    assert_eq!(names, ["sealed"]);
    for name in ["code", "state"] {
        assert!(!own.as_str().contains(&parameter(&redirect, name).expect("a value")));
    }
    assert_ne!(posted(&redirect).await, own, "sealed anew each time");
    assert_eq!(world.provider.ledger().token_calls, 0);

    let page = browser.get(own.as_str()).await;
    shown(&page, 200, "One more step");
    assert_eq!(browser.get(own.as_str()).await.body, page.body);
    confirmed(&world, "u1", &page.confirmation_code().expect("a code"), "").await;
    assert_eq!(world.provider.ledger().token_calls, 1);

    // An error comes the same way.
    let started = begin(&world, "u2").await;
    let redirect = browser.redirect_of(&started.authorization_url, "deny").await;
    let own = posted(&redirect).await;
    shown(&browser.get(own.as_str()).await, 200, "Nothing was shared");
    assert_eq!(state_of(&world, &started.authorization_id).await, AuthorizationState::Denied);

    // And it takes the cookie as ever.
    let started = begin(&world, "u3").await;
    let redirect = browser.redirect_of(&started.authorization_url, "allow").await;
    let own = posted(&redirect).await;
    shown(&Browser::new().get(own.as_str()).await, 400, "Another browser, or no cookie");
    assert_eq!(state_of(&world, &started.authorization_id).await, AuthorizationState::Pending);
    assert_eq!(world.provider.ledger().token_calls, 1);
}

async fn sealed_form() {
    let (world, other) = two_providers().await;
    let started = begin(&world, "u1").await;
    let mut browser = Browser::new();
    let redirect = browser.redirect_of(&started.authorization_url, "allow").await;
    let own = posted(&redirect).await;
    let sealed = parameter(&own, "sealed").expect("a sealed form");

    let mut urls = Vec::new();
    let mut moved = own.clone();
    moved.set_path("/oauth2/callback/other");
    urls.push(moved);
    let mut at_other = redirect.clone();
    at_other.set_path("/oauth2/callback/other");
    let mut moved = posted(&at_other).await;
    moved.set_path("/oauth2/callback/acme");
    urls.push(moved);
    for position in (0..sealed.len()).step_by(7) {
        let mut bytes = sealed.clone().into_bytes();
        bytes[position] = if bytes[position] == b'A' { b'B' } else { b'A' };
        let text = String::from_utf8(bytes).expect("ASCII");
        urls.push(with(&own, "sealed", Some(&text)));
    }
    for text in ["", "A", "AAAA", "%", &sealed[..sealed.len() / 2], &format!("{sealed}AAAA")] {
        urls.push(with(&own, "sealed", Some(text)));
    }
    // Parameters beside it could contradict what was sealed.
    urls.push(also(&own, "x", "1"));
    urls.push(also(&own, "sealed", &sealed));
    for url in urls {
        shown(&browser.get(url.as_str()).await, 400, "This link is not known");
    }
    assert_eq!((world.provider.ledger().token_calls, other.ledger().token_calls), (0, 0));
    shown(&browser.get(own.as_str()).await, 200, "One more step");
    assert_eq!((world.provider.ledger().token_calls, other.ledger().token_calls), (1, 0));
}
