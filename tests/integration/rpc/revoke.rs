//! Revoke and RevokeAll: what goes, what stays, and what the provider is told.

use libtest_mimic::Trial;
use token_broker::demo::provider::{ScriptedAnswer, ScriptedEndpoint};
use token_broker_client::{Client, proto};

use super::support::{add_providers, begin, grant, grants, key_at, look, token_of, until, why};
use crate::harness::world::{bot, get_token, key};
use crate::harness::{Browser, World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("rpc::revoke_cancels_what_is_under_way_for_the_key", under_way),
        trial("rpc::revoke_is_pending_until_the_provider_confirms", pending),
        trial("rpc::revoke_says_where_a_provider_has_no_way", unsupported),
        trial("rpc::revoke_all_ends_every_grant_of_the_subject_and_no_other", all),
        trial("rpc::revoke_all_can_be_narrowed_to_a_provider", narrowed),
        trial("rpc::revoke_all_tells_each_provider_apart", told_apart),
        trial("rpc::revoke_all_cancels_what_is_under_way_without_a_grant", all_under_way),
        trial("rpc::revoke_all_of_more_than_a_page_ends_them_all", many),
    ]
}

async fn revoke(client: &mut Client, key: proto::GrantKey) -> proto::Revocation {
    let request = proto::RevokeRequest { key: Some(key) };
    client.revoke(request).await.expect("revoked").into_inner().revocation()
}

/// What RevokeAll ended: provider, account and how far it is, in order.
async fn revoke_all(
    client: &mut Client,
    subject: &str,
    provider: &str,
) -> Vec<(String, String, proto::Revocation)> {
    let request = proto::RevokeAllRequest { subject: subject.into(), provider: provider.into() };
    let response = client.revoke_all(request).await.expect("revoked").into_inner();
    let mut ended: Vec<_> = response
        .grants
        .into_iter()
        .map(|grant| {
            let revocation = grant.revocation();
            let key = grant.key.expect("a key");
            assert_eq!(key.subject, subject);
            (key.provider, key.account, revocation)
        })
        .collect();
    ended.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
    ended
}

async fn under_way() {
    let world = World::start().await;
    let mut client = world.client();
    let pending = begin(&mut client, key("u1"), &[]).await;
    let (awaiting, _) = world.consent("u1").await;
    let others = begin(&mut client, key("u2"), &[]).await;
    let account = begin(&mut client, key_at("acme", "u1", "work"), &[]).await;
    // The token that awaited confirmation is revoked, and so there was something.
    assert_eq!(revoke(&mut client, key("u1")).await, proto::Revocation::Done);
    for id in [&pending.authorization_id, &awaiting] {
        let seen = look(&mut client, id).await;
        assert_eq!(seen.state(), proto::AuthorizationState::Cancelled);
    }
    for id in [&others.authorization_id, &account.authorization_id] {
        let seen = look(&mut client, id).await;
        assert_eq!(seen.state(), proto::AuthorizationState::Pending);
    }
    assert_eq!(Browser::new().get(&pending.authorization_url).await.status, 400);
    assert_eq!(world.provider.ledger().living_refresh_tokens, 0);
    assert_eq!(revoke(&mut client, key("u1")).await, proto::Revocation::NotNeeded);
    assert_eq!(revoke(&mut client, key("nobody")).await, proto::Revocation::NotNeeded);
}

async fn pending() {
    let world = World::start().await;
    let mut client = world.client();
    let token = world.granted("u1").await;
    // Access token and refresh token are two entries, and each is tried once in the call.
    for _ in 0..2 {
        world.provider.script(ScriptedEndpoint::Revoke, ScriptedAnswer::json(503, ""));
    }
    assert_eq!(revoke(&mut client, key("u1")).await, proto::Revocation::Pending);
    // Gone here at once, though it lives at the provider.
    let told = why(client.get_token(get_token("u1")).await);
    assert_eq!(told.1, "AUTHORIZATION_REQUIRED");
    assert!(world.provider.is_living(&token));
    assert_eq!(world.provider.ledger().living_refresh_tokens, 1);
    world.advance(super::support::seconds(20));
    until(|| world.provider.ledger().living_refresh_tokens == 0).await;
    assert!(!world.provider.is_living(&token));
}

async fn unsupported() {
    let world = World::with(|setup| setup.providers[0].endpoints.revocation = None).await;
    let mut client = world.client();
    world.granted("u1").await;
    assert_eq!(revoke(&mut client, key("u1")).await, proto::Revocation::Unsupported);
    assert_eq!(revoke(&mut client, key("u1")).await, proto::Revocation::NotNeeded);
    assert_eq!(grants(&mut client).await, []);
    assert_eq!(world.provider.ledger().revoke_calls, 0);
}

/// Two providers, two bots with namespaces of their own, and the same subjects in both.
async fn populated() -> World {
    let world = World::with(|setup| {
        add_providers(setup, &["beta"]);
        setup.bots.push(bot("other"));
    })
    .await;
    let keys = [("acme", ""), ("acme", "work"), ("beta", ""), ("beta", "work")];
    let mut client = world.client();
    for (provider, account) in keys {
        grant(&mut client, key_at(provider, "u1", account), &[]).await;
    }
    for subject in ["u10", "u2"] {
        grant(&mut client, key(subject), &[]).await;
    }
    grant(&mut world.client_of("other"), key("u1"), &[]).await;
    assert_eq!(world.provider.ledger().living_refresh_tokens, 7);
    world
}

async fn all() {
    use proto::Revocation::Done;

    let world = populated().await;
    let mut client = world.client();
    let ended = revoke_all(&mut client, "u1", "").await;
    let expected = [("acme", ""), ("acme", "work"), ("beta", ""), ("beta", "work")];
    assert_eq!(ended, expected.map(|(p, a)| (p.to_owned(), a.to_owned(), Done)));
    assert_eq!(revoke_all(&mut client, "u1", "").await, []);
    assert_eq!(revoke_all(&mut client, "nobody", "").await, []);
    for subject in ["u10", "u2"] {
        let token = token_of(&mut client, key(subject)).await;
        assert!(world.provider.is_living(&token.access_token));
    }
    let token = token_of(&mut world.client_of("other"), key("u1")).await;
    assert!(world.provider.is_living(&token.access_token));
    let ledger = world.provider.ledger();
    assert_eq!((ledger.living_refresh_tokens, ledger.living_access_tokens), (3, 3));
}

async fn narrowed() {
    use proto::Revocation::Done;

    let world = populated().await;
    let mut client = world.client();
    let ended = revoke_all(&mut client, "u1", "beta").await;
    let expected = ["", "work"].map(|account| ("beta".to_owned(), account.to_owned(), Done));
    assert_eq!(ended, expected);
    assert_eq!(grants(&mut client).await.len(), 4);
    assert_eq!(world.provider.ledger().living_refresh_tokens, 5);
}

async fn told_apart() {
    use proto::Revocation::{Done, Unsupported};

    let world = World::with(|setup| {
        add_providers(setup, &["mute"]);
        setup.providers[1].endpoints.revocation = None;
    })
    .await;
    let mut client = world.client();
    for provider in ["acme", "mute"] {
        grant(&mut client, key_at(provider, "u1", ""), &[]).await;
    }
    let ended = revoke_all(&mut client, "u1", "").await;
    let expected = [("acme", Done), ("mute", Unsupported)];
    assert_eq!(ended, expected.map(|(provider, how)| (provider.to_owned(), String::new(), how)));
    assert_eq!(world.provider.ledger().living_refresh_tokens, 1);
}

async fn all_under_way() {
    let world = World::start().await;
    let mut client = world.client();
    let pending = begin(&mut client, key("u1"), &[]).await.authorization_id;
    let (awaiting, code) = world.consent("u1").await;
    // A person who has left must not get a grant by what was begun before.
    revoke_all(&mut client, "u1", "").await;
    let request =
        proto::ConfirmAuthorizationRequest { subject: "u1".into(), code, ..Default::default() };
    assert_eq!(why(client.confirm_authorization(request).await).1, "AUTHORIZATION_NOT_FOUND");
    for id in [pending, awaiting] {
        let seen = look(&mut client, &id).await;
        assert_eq!(seen.state(), proto::AuthorizationState::Cancelled);
    }
}

async fn many() {
    // More than the broker reads at a time. The bot needs no codes, which makes it quicker.
    let world = World::with(|setup| {
        setup.bots[0].confirmation = token_broker::domain::bot::Confirmation::None;
    })
    .await;
    for index in 0..105 {
        let key = key_at("acme", "u1", &index.to_string());
        let started = begin(&mut world.client(), key, &[]).await;
        let page = Browser::new().allow(&started.authorization_url).await;
        assert_eq!((page.status, page.heading().as_str()), (200, "All done"));
    }
    let ended = revoke_all(&mut world.client(), "u1", "").await;
    assert_eq!(ended.len(), 105);
    assert!(ended.iter().all(|(_, _, how)| *how == proto::Revocation::Done));
    assert_eq!(world.provider.ledger().living_refresh_tokens, 0);
}
