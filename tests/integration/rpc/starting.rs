//! GetToken with `start_authorization`: the refusal brings the link along.

use std::collections::HashSet;

use libtest_mimic::Trial;
use token_broker_client::{Client, Reason, Refusal, proto};
use tonic::Code;

use super::support::{
    Refused, at, bad_fields, confirm, grant, look, query_of, refused, script_token, seconds, why,
};
use super::tokens::ask;
use crate::harness::world::{bot, get_token, key, name};
use crate::harness::{Browser, World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("rpc::a_refusal_brings_the_link_along", link_in_the_refusal),
        trial("rpc::polling_get_token_gives_the_same_authorization", same_while_pending),
        trial("rpc::other_parameters_start_another_authorization", other_parameters),
        trial("rpc::an_ended_link_is_not_given_again", ended_links),
        trial("rpc::scope_missing_starts_an_authorization_for_all_scopes", wider),
        trial("rpc::reauthorization_required_starts_an_authorization", reauthorized),
        trial("rpc::callers_at_once_get_one_authorization", at_once),
        trial("rpc::bad_start_options_are_named_by_their_path", bad_options),
        trial("rpc::a_living_token_starts_nothing", nothing_started),
    ]
}

async fn started(client: &mut Client, request: proto::GetTokenRequest) -> (Refused, String) {
    let told = refused(client.get_token(request).await);
    let id = told.started.clone().expect("an authorization").authorization_id;
    (told, id)
}

async fn link_in_the_refusal() {
    let world = World::start().await;
    let mut client = world.client();
    let status = client.get_token(ask("u1")).await.expect_err("no grant");
    let told = super::support::refusal(&status);
    assert_eq!(told.code, Code::FailedPrecondition);
    assert_eq!(told.reason, "AUTHORIZATION_REQUIRED");
    let started = told.started.expect("an authorization");
    let id = &started.authorization_id;
    let expected = proto::AuthorizeResponse {
        authorization_url: format!("{}/oauth2/start/{id}", world.http_url),
        authorization_id: id.clone(),
        expire_time: at(600),
        ..Default::default()
    };
    assert_eq!(started, expected);
    assert_eq!(told.links, [started.authorization_url.as_str()]);
    assert_eq!(query_of(&started.authorization_url).await["scope"], "email profile");
    // The client crate reads the same.
    let read = Refusal::of(&status).expect("a refusal");
    assert_eq!(read.reason, Reason::AuthorizationRequired);
    assert_eq!(read.authorization, Some(started.clone()));

    let page = Browser::new().allow(&started.authorization_url).await;
    confirm(&mut client, "u1", page.confirmation_code().expect("a code")).await;
    client.get_token(ask("u1")).await.expect("a token");
}

async fn same_while_pending() {
    let world = World::start().await;
    let mut client = world.client();
    let (first, id) = started(&mut client, ask("u1")).await;
    world.advance(seconds(599));
    for _ in 0..5 {
        let (again, _) = started(&mut client, ask("u1")).await;
        assert_eq!(again.started, first.started);
    }
    // The provider's defaults by name are the same parameters, in any order.
    let mut named = ask("u1");
    named.scopes = vec!["profile".into(), "email".into()];
    assert_eq!(started(&mut client, named).await.1, id);
    // Plain Authorize always starts anew.
    let other = super::support::begin(&mut client, key("u1"), &[]).await;
    assert_ne!(other.authorization_id, id);
}

async fn other_parameters() {
    let world = World::with(|setup| {
        let mut mate = bot("mate");
        mate.namespace = name("helper");
        setup.bots.push(mate);
    })
    .await;
    let mut client = world.client();
    let scopes = proto::GetTokenRequest { scopes: vec!["drive".into()], ..ask("u1") };
    let mut hint = ask("u1");
    hint.start_authorization =
        Some(proto::AuthorizationOptions { login_hint: "a@b.c".into(), ..Default::default() });
    let mut account = ask("u1");
    account.key = Some(super::support::key_at("acme", "u1", "work"));
    let mut ids = HashSet::new();
    for request in [ask("u1"), scopes, hint, account, ask("u2")] {
        let (_, id) = started(&mut client, request.clone()).await;
        assert!(ids.insert(id.clone()), "{request:?}");
        assert_eq!(started(&mut client, request).await.1, id);
    }
    // The page names the bot that asked, so another bot gets a link of its own.
    assert!(ids.insert(started(&mut world.client_of("mate"), ask("u1")).await.1));
}

async fn ended_links() {
    let world = World::start().await;
    let mut client = world.client();
    let (_, first) = started(&mut client, ask("u1")).await;
    let cancel = proto::CancelAuthorizationRequest { authorization_id: first.clone() };
    client.cancel_authorization(cancel).await.expect("cancelled");
    let (_, second) = started(&mut client, ask("u1")).await;
    assert_ne!(first, second);
    // Past its time the link is dead although its authorization still pends.
    world.advance(seconds(600));
    let (told, third) = started(&mut client, ask("u1")).await;
    assert_ne!(second, third);
    assert_eq!(told.started.expect("an authorization").expire_time, at(600 + 600));
    assert_eq!(look(&mut client, &second).await.state(), proto::AuthorizationState::Pending);
}

async fn wider() {
    let world = World::start().await;
    let mut client = world.client();
    grant(&mut client, key("u1"), &["email"]).await;
    let request = proto::GetTokenRequest { scopes: vec!["drive".into()], ..ask("u1") };
    let (told, id) = started(&mut client, request.clone()).await;
    assert_eq!((told.reason.as_str(), told.metadata("missing")), ("SCOPE_MISSING", "drive"));
    let link = &told.links[0];
    assert_eq!(query_of(link).await["scope"], "drive email");
    assert_eq!(started(&mut client, request.clone()).await.1, id);
    // What the grant covers is still served.
    client.get_token(ask("u1")).await.expect("a token");
    let page = Browser::new().allow(link).await;
    confirm(&mut client, "u1", page.confirmation_code().expect("a code")).await;
    let token = client.get_token(request).await.expect("a token").into_inner().token;
    assert_eq!(token.expect("a token").scopes, ["drive", "email"]);
}

async fn reauthorized() {
    let world = World::start().await;
    let mut client = world.client();
    world.granted("u1").await;
    world.advance(seconds(300));
    script_token(&world, 400, r#"{"error":"invalid_grant"}"#);
    let (told, id) = started(&mut client, ask("u1")).await;
    assert_eq!(told.reason, "REAUTHORIZATION_REQUIRED");
    let (again, same) = started(&mut client, ask("u1")).await;
    assert_eq!((again.reason.as_str(), same), ("REAUTHORIZATION_REQUIRED", id));
    // A dead grant is not asked for again.
    assert_eq!(world.provider.ledger().refreshes, 1);
    let page = Browser::new().allow(&told.links[0]).await;
    let granted = confirm(&mut client, "u1", page.confirmation_code().expect("a code")).await;
    assert_eq!(granted.state(), proto::GrantState::Active);
    assert!(world.provider.is_living(&world.token("u1").await));
}

async fn at_once() {
    let world = World::start().await;
    let callers = (0..20).map(|_| {
        let mut client = world.client();
        async move { started(&mut client, ask("u1")).await.1 }
    });
    let ids: HashSet<_> = futures::future::join_all(callers).await.into_iter().collect();
    // A bot that polls from many workers must not pile up links.
    assert_eq!(ids.len(), 1);
}

async fn bad_options() {
    let world = World::start().await;
    let mut client = world.client();
    let mut request = ask("u1");
    request.start_authorization = Some(proto::AuthorizationOptions {
        login_hint: "a\nb".into(),
        resources: vec!["https://api.example.com".into()],
        ..Default::default()
    });
    // A field's path begins at the request that was sent (AIP-193).
    let fields = bad_fields(client.get_token(request.clone()).await);
    assert_eq!(fields, ["start_authorization.login_hint", "start_authorization.resources"]);
    request.start_authorization = Some(proto::AuthorizationOptions {
        return_url: "https://elsewhere.example/".into(),
        ..Default::default()
    });
    let fields = bad_fields(client.get_token(request).await);
    assert_eq!(fields, ["start_authorization.return_url"]);
}

async fn nothing_started() {
    let world = World::start().await;
    let mut client = world.client();
    let (id, code) = world.consent("u1").await;
    // An authorization that awaits its code is past its link: the next one is another.
    let (_, pending) = started(&mut client, ask("u1")).await;
    assert_ne!(pending, id);
    confirm(&mut client, "u1", code).await;
    client.get_token(ask("u1")).await.expect("a token");
    assert_eq!(why(client.get_token(get_token("u2")).await).1, "AUTHORIZATION_REQUIRED");
    assert_eq!(refused(client.get_token(get_token("u2")).await).started, None);
}
