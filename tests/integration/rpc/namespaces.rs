//! Callers see only their own: the namespace comes from the credential.

use std::collections::{BTreeMap, BTreeSet};

use libtest_mimic::Trial;
use token_broker::crypto::random::Random;
use token_broker::domain::bot::{Confirmation, Providers};
use token_broker::domain::scope::Scopes;
use token_broker_client::proto;
use tonic::Code;

use super::support::{add_providers, begin, grant, grants, key_at, look, refused, token_of, why};
use crate::harness::world::{self, bot, get_token, key, name};
use crate::harness::{Browser, World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("rpc::bots_of_other_namespaces_never_see_each_others_grants", apart),
        trial("rpc::bots_of_one_namespace_share_their_grants", shared),
        trial("rpc::a_shared_grant_that_is_too_wide_is_not_lent", too_wide),
        trial("rpc::a_matrix_of_bots_subjects_and_providers_has_no_leak", matrix),
    ]
}

async fn apart() {
    let world = World::with(|setup| setup.bots.push(bot("other"))).await;
    let (mut helper, mut other) = (world.client(), world.client_of("other"));
    let mine = world.granted("u1").await;
    assert_eq!(why(other.get_token(get_token("u1")).await).1, "AUTHORIZATION_REQUIRED");
    let refresh = world::refresh("u1");
    assert_eq!(why(other.refresh(refresh.clone()).await).1, "AUTHORIZATION_REQUIRED");
    let revoke = proto::RevokeRequest { key: Some(key("u1")) };
    let revoked = other.revoke(revoke.clone()).await.expect("an answer").into_inner();
    assert_eq!(revoked.revocation(), proto::Revocation::NotNeeded);
    let all = proto::RevokeAllRequest { subject: "u1".into(), ..Default::default() };
    assert_eq!(other.revoke_all(all).await.expect("an answer").into_inner().grants, []);
    assert_eq!(grants(&mut other).await, []);
    assert!(world.provider.is_living(&mine));

    // The same key in both namespaces is two grants.
    grant(&mut other, key("u1"), &[]).await;
    let theirs = token_of(&mut other, key("u1")).await;
    assert_ne!(theirs.access_token, mine);
    let before = token_of(&mut helper, key("u1")).await;
    assert_ne!(theirs.etag, before.etag);
    other.refresh(refresh).await.expect("a token");
    assert_eq!(token_of(&mut helper, key("u1")).await, before);
    other.revoke(revoke).await.expect("revoked");
    assert_eq!(token_of(&mut helper, key("u1")).await, before);
    assert!(world.provider.is_living(&before.access_token));
}

/// A bot of the namespace `helper`.
fn mate() -> token_broker::domain::bot::Bot {
    let mut mate = bot("mate");
    mate.namespace = name("helper");
    mate
}

async fn shared() {
    let world = World::with(|setup| setup.bots.push(mate())).await;
    let mut mate = world.client_of("mate");
    let (id, code) = world.consent("u1").await;
    let seen = look(&mut mate, &id).await;
    assert_eq!(seen.state(), proto::AuthorizationState::AwaitingConfirmation);
    // The chat may answer through another bot of the namespace.
    super::support::confirm(&mut mate, "u1", code).await;
    let token = token_of(&mut mate, key("u1")).await;
    assert_eq!(token_of(&mut world.client(), key("u1")).await, token);
    assert_eq!(grants(&mut mate).await, grants(&mut world.client()).await);
    let revoke = proto::RevokeRequest { key: Some(key("u1")) };
    let revoked = mate.revoke(revoke).await.expect("revoked").into_inner();
    assert_eq!(revoked.revocation(), proto::Revocation::Done);
    let told = why(world.client().get_token(get_token("u1")).await);
    assert_eq!(told.1, "AUTHORIZATION_REQUIRED");
}

async fn too_wide() {
    let world = World::with(|setup| {
        add_providers(setup, &["beta"]);
        let mut mate = mate();
        let scopes = Scopes::parse(["email", "profile"]).expect("scopes");
        mate.scopes = BTreeMap::from([(name("acme"), scopes)]);
        setup.bots.push(mate);
    })
    .await;
    let (mut helper, mut mate) = (world.client(), world.client_of("mate"));
    let wide = ["calendar", "drive", "email"];
    grant(&mut helper, key("u1"), &wide).await;
    let narrow_request = proto::GetTokenRequest { scopes: vec!["email".into()], ..get_token("u1") };
    let refresh = world::refresh("u1");
    for told in [
        refused(mate.get_token(get_token("u1")).await),
        // Asking for less does not make the token narrower.
        refused(mate.get_token(narrow_request).await),
        refused(mate.refresh(refresh).await),
    ] {
        assert_eq!(
            (told.code, told.reason.as_str()),
            (Code::PermissionDenied, "SCOPE_NOT_ALLOWED")
        );
        assert_eq!(told.metadata("scopes"), "calendar drive");
    }
    token_of(&mut helper, key("u1")).await;
    // Within its bounds the mate is served, and a provider that its policy does not name is free.
    grant(&mut helper, key("u2"), &["email"]).await;
    assert_eq!(token_of(&mut mate, key("u2")).await.scopes, ["email"]);
    grant(&mut helper, key_at("beta", "u1", ""), &wide).await;
    assert_eq!(token_of(&mut mate, key_at("beta", "u1", "")).await.scopes, wide);
}

/// The bots of the matrix, with their namespaces and, where they are bounded, their providers.
const BOTS: [(&str, &str, &[&str]); 6] = [
    ("a1", "a", &[]),
    ("a2", "a", &["acme", "p2", "p3"]),
    ("b1", "b", &[]),
    ("b2", "b", &["p4"]),
    // A bot's name is another's namespace, and a namespace has the name of a provider.
    ("a", "acme", &[]),
    ("acme", "b1", &["acme", "p4"]),
];
const PROVIDERS: [&str; 4] = ["acme", "p2", "p3", "p4"];
/// Subjects that would collide if any part of a key were glued to the next, or folded.
const SUBJECTS: [&str; 9] = ["u", "U", "u ", "u/acme", "a/u", "acme/u", "u\u{301}", "ú", "%75"];

/// Returns `true` if a bot with these bounds may use a provider.
fn may_use(bounds: &[&str], provider: &str) -> bool {
    bounds.is_empty() || bounds.contains(&provider)
}

async fn matrix() {
    let world = World::with(|setup| {
        add_providers(setup, &PROVIDERS[1..]);
        setup.bots = BOTS
            .map(|(text, namespace, providers)| {
                let mut bot = bot(text);
                bot.namespace = name(namespace);
                bot.confirmation = Confirmation::None;
                if !providers.is_empty() {
                    bot.providers = Providers::Only(providers.iter().map(|p| name(p)).collect());
                }
                bot
            })
            .into();
    })
    .await;

    // About half of all keys get a grant, from any bot that may ask for it.
    let random = Random::seeded(20_260_101);
    let mut tokens = BTreeMap::new();
    let mut ids = Vec::new();
    for (bot, namespace, bounds) in BOTS {
        for index in 0..PROVIDERS.len() * SUBJECTS.len() {
            let (provider, subject) =
                (PROVIDERS[index % PROVIDERS.len()], SUBJECTS[index / PROVIDERS.len()]);
            let [choice] = random.bytes();
            let place = (namespace, provider, subject);
            if choice < 96 && may_use(bounds, provider) && !tokens.contains_key(&place) {
                let mut client = world.client_of(bot);
                let started = begin(&mut client, key_at(provider, subject, ""), &[]).await;
                let page = Browser::new().allow(&started.authorization_url).await;
                assert_eq!(page.heading(), "All done");
                ids.push((namespace, provider, started.authorization_id));
                let token = token_of(&mut client, key_at(provider, subject, "")).await;
                tokens.insert(place, token.access_token);
            }
        }
    }
    let distinct: BTreeSet<_> = tokens.values().collect();
    assert_eq!(distinct.len(), tokens.len());
    let possible = 4 * PROVIDERS.len() * SUBJECTS.len();
    assert!(tokens.len() > possible / 3 && tokens.len() < possible * 2 / 3, "{}", tokens.len());

    for (bot, namespace, bounds) in BOTS {
        let mut client = world.client_of(bot);
        let mut visible = BTreeSet::new();
        for provider in PROVIDERS {
            for subject in SUBJECTS {
                let request = proto::GetTokenRequest {
                    key: Some(key_at(provider, subject, "")),
                    ..Default::default()
                };
                let answer = client.get_token(request).await;
                let place = (namespace, provider, subject);
                let request = proto::RefreshRequest {
                    key: Some(key_at(provider, subject, "")),
                    ..Default::default()
                };
                let refreshed = client.refresh(request).await;
                let refusal = match tokens.get(&place) {
                    _ if !may_use(bounds, provider) => "PROVIDER_NOT_ALLOWED",
                    None => "AUTHORIZATION_REQUIRED",
                    Some(own) => {
                        let token = answer.expect("a token").into_inner().token;
                        assert_eq!(token.expect("a token").access_token, *own, "{bot} {place:?}");
                        let next = refreshed.expect("a token").into_inner().token.expect("a token");
                        assert!(!tokens.values().any(|token| *token == next.access_token));
                        tokens.insert(place, next.access_token);
                        visible.insert((provider.to_owned(), subject.to_owned()));
                        continue;
                    }
                };
                assert_eq!(why(answer).1, refusal, "{bot} {place:?}");
                assert_eq!(why(refreshed).1, refusal, "{bot} {place:?}");
            }
        }
        let listed: BTreeSet<_> = grants(&mut client)
            .await
            .into_iter()
            .map(|grant| grant.key.expect("a key"))
            .map(|key| (key.provider, key.subject))
            .collect();
        assert_eq!(listed, visible, "{bot}");
        for (owner, provider, id) in &ids {
            let authorization_id = id.clone();
            let request = proto::GetAuthorizationRequest { authorization_id };
            let answer = client.get_authorization(request).await;
            if *owner == namespace && may_use(bounds, provider) {
                answer.expect("an authorization");
                continue;
            }
            assert_eq!(why(answer).1, "AUTHORIZATION_NOT_FOUND", "{bot} {owner}");
            let authorization_id = id.clone();
            let request = proto::WatchAuthorizationRequest { authorization_id };
            let answer = client.watch_authorization(request).await;
            assert_eq!(why(answer).1, "AUTHORIZATION_NOT_FOUND", "{bot} {owner}");
            let authorization_id = id.clone();
            let request = proto::CancelAuthorizationRequest { authorization_id };
            let answer = client.cancel_authorization(request).await;
            assert_eq!(why(answer).1, "AUTHORIZATION_NOT_FOUND", "{bot} {owner}");
        }
    }
    revoke_each(&world, tokens).await;
}

/// Each bot in turn revokes every key that it can name, which ends the tokens of its namespace alone.
async fn revoke_each(world: &World, mut tokens: BTreeMap<(&str, &str, &str), String>) {
    for (bot, namespace, bounds) in BOTS {
        let mut client = world.client_of(bot);
        for provider in PROVIDERS {
            for subject in SUBJECTS {
                let request = proto::RevokeRequest { key: Some(key_at(provider, subject, "")) };
                let answer = client.revoke(request).await;
                if may_use(bounds, provider) {
                    let outcome = answer.expect("an answer").into_inner().revocation();
                    let ended = tokens.remove(&(namespace, provider, subject)).is_some();
                    let expected =
                        if ended { proto::Revocation::Done } else { proto::Revocation::NotNeeded };
                    assert_eq!(outcome, expected, "{bot} {provider} {subject}");
                } else {
                    assert_eq!(why(answer).1, "PROVIDER_NOT_ALLOWED", "{bot} {provider}");
                }
            }
        }
        for token in tokens.values() {
            assert!(world.provider.is_living(token), "{bot} has ended another namespace's token");
        }
    }
}
