//! Two providers: the answer of one must not pass for the other's (RFC 9700 section 4.4).

use libtest_mimic::Trial;
use token_broker::demo::provider::Ledger;
use token_broker_client::proto::{self, AuthorizationState};
use url::Url;

use super::{begin, begin_with, offers, parameter, shown, state_of, two_providers, with};
use crate::harness::world::{authorize, key};
use crate::harness::{Browser, World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("redirect::each_of_two_providers_gets_its_own_codes", own_codes),
        trial("redirect::a_state_of_one_provider_is_unknown_at_the_path_of_another", other_path),
        trial("redirect::in_a_mix_up_the_evil_provider_gets_no_code", mix_up),
        trial(
            "redirect::an_error_of_one_provider_does_not_end_what_began_at_another",
            swapped_error,
        ),
    ]
}

/// Begins an authorization at the provider `other`.
async fn begin_at_other(world: &World) -> proto::AuthorizeResponse {
    let key = proto::GrantKey { provider: "other".into(), ..key("u1") };
    begin_with(world, proto::AuthorizeRequest { key: Some(key), ..authorize("u1") }).await
}

fn at_path_of(url: &Url, provider: &str) -> Url {
    let mut url = url.clone();
    url.set_path(&format!("/oauth2/callback/{provider}"));
    url
}

fn calls(ledger: &Ledger) -> (usize, usize, usize) {
    (ledger.codes_issued, ledger.token_calls, ledger.tokens_issued)
}

async fn own_codes() {
    let (world, other) = two_providers().await;
    let mut browser = Browser::new();
    shown(&browser.allow(&begin(&world, "u1").await.authorization_url).await, 200, "One more step");
    assert_eq!((calls(&world.provider.ledger()), calls(&other.ledger())), ((1, 1, 1), (0, 0, 0)));
    shown(
        &browser.allow(&begin_at_other(&world).await.authorization_url).await,
        200,
        "One more step",
    );
    assert_eq!((calls(&world.provider.ledger()), calls(&other.ledger())), ((1, 1, 1), (1, 1, 1)));
}

async fn other_path() {
    let (world, other) = two_providers().await;
    let mut browser = Browser::new();
    for (started, own, foreign) in [
        (begin(&world, "u1").await, "acme", "other"),
        (begin_at_other(&world).await, "other", "acme"),
    ] {
        let redirect = browser.redirect_of(&started.authorization_url, "allow").await;
        assert_eq!(redirect.path(), format!("/oauth2/callback/{own}"));
        let moved = at_path_of(&redirect, foreign);
        shown(&browser.get(moved.as_str()).await, 400, "This link is not known");
        let without = with(&moved, "iss", None);
        shown(&browser.get(without.as_str()).await, 400, "This link is not known");
        let id = &started.authorization_id;
        assert_eq!(state_of(&world, id).await, AuthorizationState::Pending);
    }
    assert_eq!((calls(&world.provider.ledger()), calls(&other.ledger())), ((1, 0, 0), (1, 0, 0)));
}

/// The user begins at the evil provider, which sends the browser on to the honest one with a
/// request of its own making, so that the honest one's code comes back to the evil one's redirect URI.
async fn mix_up() {
    let (world, evil) = two_providers().await;
    let started = begin_at_other(&world).await;
    let mut browser = Browser::new();
    let asked = browser.get(&started.authorization_url).await.location().expect("a redirect");
    let mut honest = world_authorize(&world).await;
    honest.set_query(asked.query());
    let page = browser.get(honest.as_str()).await;
    let redirect = browser.decide(&page, "allow").await;
    assert_eq!(redirect.path(), "/oauth2/callback/other");

    let page = browser.get(redirect.as_str()).await;
    shown(&page, 400, "The answer cannot be used");
    assert!(offers(&page, &started.authorization_url));
    // Nor where the attacker tries again, with the right issuer this time: the attempt is burnt.
    let evil_issuer = format!("{}://{}", asked.scheme(), asked.authority());
    let claimed = with(&redirect, "iss", Some(&evil_issuer));
    shown(&browser.get(claimed.as_str()).await, 400, "This page was used before");
    assert_eq!((calls(&world.provider.ledger()), calls(&evil.ledger())), ((1, 0, 0), (0, 0, 0)));
    assert_eq!(state_of(&world, &started.authorization_id).await, AuthorizationState::Pending);

    // The user's own way to that provider is still open.
    shown(&browser.allow(&started.authorization_url).await, 200, "One more step");
    assert_eq!(calls(&evil.ledger()), (1, 1, 1));
}

/// The honest provider's authorization endpoint.
async fn world_authorize(world: &World) -> Url {
    let started = begin(world, "elsewhere").await;
    let page = Browser::new().get(&started.authorization_url).await;
    page.location().expect("a redirect")
}

async fn swapped_error() {
    let (world, other) = two_providers().await;
    let mut browser = Browser::new();
    let at_other = begin_at_other(&world).await;
    let foreign = browser.redirect_of(&at_other.authorization_url, "deny").await;
    let issuer = parameter(&foreign, "iss").expect("an issuer");

    let started = begin(&world, "u1").await;
    for error in ["access_denied", "server_error"] {
        let redirect = browser.redirect_of(&started.authorization_url, "deny").await;
        let swapped = with(&with(&redirect, "iss", Some(&issuer)), "error", Some(error));
        shown(&browser.get(swapped.as_str()).await, 400, "The answer cannot be used");
        let id = &started.authorization_id;
        assert_eq!(state_of(&world, id).await, AuthorizationState::Pending);
    }
    assert_eq!((calls(&world.provider.ledger()), calls(&other.ledger())), ((0, 0, 0), (0, 0, 0)));
}
