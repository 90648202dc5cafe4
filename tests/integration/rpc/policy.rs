//! Who may call, and what: credentials, and the bounds of a bot.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use libtest_mimic::Trial;
use token_broker::domain::bot::{Providers, Rate, ReturnUrl, SubjectPattern};
use token_broker::domain::scope::Scopes;
use token_broker_client::proto;
use token_broker_client::proto::token_broker_service_client::TokenBrokerServiceClient;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

use super::support::{
    Refused, add_providers, bad_fields, begin, grant, key_at, refusal, refused, seconds, why,
};
use crate::harness::world::{api_key, bot, get_token, key, name, refresh};
use crate::harness::{Browser, World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("rpc::only_one_known_api_key_is_a_credential", credentials),
        trial("rpc::every_method_asks_for_a_credential_first", every_method_authenticates),
        trial("rpc::every_method_can_be_forbidden", every_method_is_bounded),
        trial("rpc::unconfigured_and_forbidden_providers_get_the_same_answer", providers),
        trial("rpc::subjects_outside_the_policy_are_refused_everywhere", subjects),
        trial("rpc::scopes_outside_the_policy_are_not_asked_for", scopes),
        trial("rpc::a_narrow_bot_causes_no_call_for_a_wider_grant", shared_grant),
        trial("rpc::return_urls_outside_the_policy_are_refused", return_urls),
        trial("rpc::a_bot_over_its_rate_is_told_when_to_come_back", rate),
    ]
}

/// Every method of the contract, called with a request that has no fault.
async fn every_method(
    world: &World,
    authorization: &[&str],
) -> Vec<(&'static str, Result<(), Status>)> {
    fn with<T>(message: T, authorization: &[&str]) -> Request<T> {
        let mut request = Request::new(message);
        for text in authorization {
            let value = MetadataValue::try_from(*text).expect("ASCII");
            request.metadata_mut().append("authorization", value);
        }
        request
    }
    let mut client = TokenBrokerServiceClient::new(world.channel.clone());
    let id = "0".repeat(32);
    let (subject, key) = ("u1".to_owned(), Some(key("u1")));
    macro_rules! call {
        ($name:literal, $method:ident, $message:expr) => {
            ($name, client.$method(with($message, authorization)).await.map(drop))
        };
    }
    vec![
        call!(
            "Authorize",
            authorize,
            proto::AuthorizeRequest { key: key.clone(), ..Default::default() }
        ),
        call!(
            "GetAuthorization",
            get_authorization,
            proto::GetAuthorizationRequest { authorization_id: id.clone() }
        ),
        call!(
            "WatchAuthorization",
            watch_authorization,
            proto::WatchAuthorizationRequest { authorization_id: id.clone() }
        ),
        call!(
            "ConfirmAuthorization",
            confirm_authorization,
            proto::ConfirmAuthorizationRequest {
                subject: subject.clone(),
                code: "12345678".into(),
                ..Default::default()
            }
        ),
        call!(
            "CancelAuthorization",
            cancel_authorization,
            proto::CancelAuthorizationRequest { authorization_id: id }
        ),
        call!(
            "GetToken",
            get_token,
            proto::GetTokenRequest { key: key.clone(), ..Default::default() }
        ),
        call!("Refresh", refresh, proto::RefreshRequest { key: key.clone(), ..Default::default() }),
        call!("Revoke", revoke, proto::RevokeRequest { key }),
        call!("RevokeAll", revoke_all, proto::RevokeAllRequest { subject, ..Default::default() }),
        call!("ListGrants", list_grants, proto::ListGrantsRequest::default()),
        call!("ListProviders", list_providers, proto::ListProvidersRequest::default()),
    ]
}

/// Calls ListProviders, which a credential alone decides, with these values of `authorization`.
async fn knock(world: &World, authorization: &[&str]) -> Result<(), Status> {
    let (_, answer) = every_method(world, authorization).await.pop().expect("ListProviders");
    answer
}

fn bearer(bot: &str) -> String {
    format!("Bearer {}", api_key(bot).expose())
}

async fn credentials() {
    let world = World::with(|setup| {
        setup.bots.push(bot("other"));
        // A bot may have two keys, for the time in which one replaces the other.
        setup.bots[0].api_keys_sha256.push(api_key("second").sha256());
    })
    .await;
    let good = bearer("helper");
    let key = api_key("helper");
    let key = key.expose();
    let bearers = ["bearer", "BEARER", "Bearer"].map(|scheme| format!("{scheme} {key}"));
    for value in bearers.into_iter().chain([bearer("second"), bearer("other")]) {
        knock(&world, &[&value]).await.expect("an answer");
    }
    let shorter = &good[..good.len() - 1];
    let (longer, lower) = (format!("{good}A"), good.to_lowercase());
    let hash = format!("Bearer {}", hex::encode(api_key("helper").sha256()));
    let basic = format!("Basic {key}");
    let twice = format!("{good} {key}");
    let listed = format!("{good}, {good}");
    let other = bearer("other");
    let bad: [&[&str]; 15] = [
        &[],
        &[""],
        &["Bearer"],
        &["Bearer "],
        &[key],
        &[&basic],
        &[shorter],
        &[&longer],
        &[&lower],
        &[&hash],
        &[&twice],
        &[&listed],
        &[&good, &good],
        &[&good, &other],
        &[&good, "Bearer nobody"],
    ];
    let mut answers = Vec::new();
    for values in bad {
        let Err(status) = knock(&world, values).await else { panic!("let in with {values:?}") };
        answers.push(refusal(&status));
    }
    let first = answers[0].clone();
    assert_eq!((first.code, first.reason.as_str()), (Code::Unauthenticated, "UNAUTHENTICATED"));
    // Nothing tells what was wrong, or how near it was.
    assert!(answers.iter().all(|told| *told == first));
}

async fn every_method_authenticates() {
    let world = World::start().await;
    for (method, answer) in every_method(&world, &["Bearer nobody"]).await {
        let told = refusal(&answer.expect_err(method));
        assert_eq!((told.code, &*told.reason), (Code::Unauthenticated, "UNAUTHENTICATED"));
    }
    // The credential comes before the fields.
    let mut client = TokenBrokerServiceClient::new(world.channel.clone());
    let told = why(client.get_token(proto::GetTokenRequest::default()).await);
    assert_eq!(told.1, "UNAUTHENTICATED");
}

async fn every_method_is_bounded() {
    let world = World::with(|setup| {
        let mut few = bot("few");
        few.methods = Some(BTreeSet::from(["ListProviders".to_owned()]));
        let mut none = bot("none");
        none.methods = Some(BTreeSet::new());
        setup.bots.extend([few, none]);
    })
    .await;
    for caller in ["few", "none"] {
        for (method, answer) in every_method(&world, &[&bearer(caller)]).await {
            if (caller, method) == ("few", "ListProviders") {
                answer.expect("an answer");
                continue;
            }
            let told = refusal(&answer.expect_err(method));
            assert_eq!((told.code, &*told.reason), (Code::PermissionDenied, "METHOD_NOT_ALLOWED"));
            assert_eq!(told.metadata("method"), method);
        }
    }
}

/// Every method that names a provider and a subject, as one bot.
async fn calls_for(world: &World, caller: &str, provider: &str, subject: &str) -> Vec<Refused> {
    let mut client = world.client_of(caller);
    let key = Some(key_at(provider, subject, ""));
    let start = Some(proto::AuthorizationOptions::default());
    let authorize = proto::AuthorizeRequest { key: key.clone(), ..Default::default() };
    let token = proto::GetTokenRequest { key: key.clone(), ..Default::default() };
    let starting = proto::GetTokenRequest { start_authorization: start, ..token.clone() };
    let refresh = proto::RefreshRequest { key: key.clone(), ..Default::default() };
    let all = proto::RevokeAllRequest { subject: subject.into(), provider: provider.into() };
    let list = proto::ListGrantsRequest {
        provider: provider.into(),
        subject: subject.into(),
        ..Default::default()
    };
    vec![
        refused(client.authorize(authorize).await),
        refused(client.get_token(token).await),
        refused(client.get_token(starting).await),
        refused(client.refresh(refresh).await),
        refused(client.revoke(proto::RevokeRequest { key }).await),
        refused(client.revoke_all(all).await),
        refused(client.list_grants(list).await),
    ]
}

async fn providers() {
    let world = World::with(|setup| {
        add_providers(setup, &["secret"]);
        let mut few = bot("few");
        few.providers = Providers::Only([name("acme"), name("ghosts")].into());
        setup.bots.push(few);
    })
    .await;
    // Configured but not this bot's, this bot's but not configured, and neither: the same answer.
    let hidden = calls_for(&world, "few", "secret", "u1").await;
    for provider in ["ghosts", "nobody"] {
        let mut absent = calls_for(&world, "few", provider, "u1").await;
        for told in &mut absent {
            assert_eq!(told.reason, "PROVIDER_NOT_ALLOWED");
            assert_eq!((told.code, told.metadata("provider")), (Code::PermissionDenied, provider));
            told.message = told.message.replace(provider, "secret");
            told.metadata.insert("provider".into(), "secret".into());
        }
        assert_eq!(absent, hidden);
    }
    // Nor does it help to be in the same namespace as who may.
    assert_eq!(world.provider.ledger().token_calls, 0);
}

async fn subjects() {
    let world = World::with(|setup| {
        let mut narrow = bot("narrow");
        narrow.namespace = name("helper");
        narrow.subjects = ["team/*", "u1"].map(SubjectPattern::parse).into_iter().collect();
        setup.bots.push(narrow);
    })
    .await;
    let (_, code) = world.consent("u2").await;
    for subject in ["u2", "u10", "U1", "team", "tea", " u1"] {
        let mut answers = calls_for(&world, "narrow", "acme", subject).await;
        let request = proto::ConfirmAuthorizationRequest {
            subject: subject.into(),
            code: code.clone(),
            ..Default::default()
        };
        let mut client = world.client_of("narrow");
        answers.push(refused(client.confirm_authorization(request).await));
        for told in answers {
            assert_eq!((told.code, &*told.reason), (Code::PermissionDenied, "SUBJECT_NOT_ALLOWED"));
            assert_eq!(told.metadata("subject"), subject);
        }
    }
    for subject in ["u1", "team/", "team/u2"] {
        grant(&mut world.client_of("narrow"), key(subject), &[]).await;
    }
    // The refused confirmations have not been counted against the user.
    super::support::confirm(&mut world.client(), "u2", code).await;
}

async fn scopes() {
    let world = World::with(|setup| {
        add_providers(setup, &["beta"]);
        let allowed = |scopes: &[&str]| Scopes::parse(scopes).expect("scopes");
        let mut narrow = bot("narrow");
        narrow.scopes = BTreeMap::from([(name("acme"), allowed(&["calendar", "email"]))]);
        setup.bots.push(narrow);
    })
    .await;
    let mut client = world.client_of("narrow");
    let ask = |scopes: &[&str]| proto::AuthorizeRequest {
        key: Some(key("u1")),
        scopes: scopes.iter().map(|&scope| scope.to_owned()).collect(),
        options: None,
    };
    client.authorize(ask(&["email"])).await.expect("a link");
    // Without scopes the provider's defaults are asked for, and `profile` is one of them.
    for (scopes, beyond) in
        [(&["email", "drive", "admin"][..], "admin drive"), (&[], "profile"), (&["EMAIL"], "EMAIL")]
    {
        let told = refused(client.authorize(ask(scopes)).await);
        assert_eq!((told.code, &*told.reason), (Code::PermissionDenied, "SCOPE_NOT_ALLOWED"));
        assert_eq!(told.metadata("scopes"), beyond);
    }
    let request =
        proto::GetTokenRequest { scopes: vec!["drive".into()], ..super::tokens::ask("u1") };
    let told = refused(client.get_token(request).await);
    assert_eq!((&*told.reason, told.metadata("scopes")), ("SCOPE_NOT_ALLOWED", "drive"));
    assert_eq!(told.started, None);
    // A provider that the policy does not name is free.
    begin(&mut client, key_at("beta", "u1", ""), &["drive"]).await;
}

/// A bot that shares a namespace with one that may have more.
async fn shared_grant() {
    let world = World::with(|setup| {
        let mut narrow = bot("narrow");
        narrow.namespace = name("helper");
        let allowed = Scopes::parse(["email"]).expect("scopes");
        narrow.scopes = BTreeMap::from([(name("acme"), allowed)]);
        setup.bots.push(narrow);
    })
    .await;
    world.granted("u1").await;
    let calls = world.provider.ledger().token_calls;
    world.advance(Duration::from_secs(301));
    let mut client = world.client_of("narrow");
    for told in [
        refused(client.get_token(super::tokens::ask("u1")).await),
        refused(client.refresh(refresh("u1")).await),
    ] {
        assert_eq!((&*told.reason, told.metadata("scopes")), ("SCOPE_NOT_ALLOWED", "profile"));
    }
    assert_eq!(world.provider.ledger().token_calls, calls, "nothing was sent to the provider");

    let ask = proto::AuthorizeRequest {
        key: Some(key("u1")),
        scopes: vec!["email".to_owned()],
        options: None,
    };
    let link = client.authorize(ask).await.expect("a link").into_inner().authorization_url;
    let departure = Browser::new().get(&link).await.location().expect("a redirect");
    let scope = departure.query_pairs().find(|(name, _)| name == "scope").expect("a scope").1;
    assert_eq!(scope, "email");
}

async fn return_urls() {
    let world = World::with(|setup| {
        let allowed = ["https://chat.example.com/app/", "https://chat.example.com/exact"];
        setup.bots[0].return_urls =
            allowed.iter().map(|url| ReturnUrl::parse(url).expect("a return URL")).collect();
        setup.bots.push(bot("other"));
    })
    .await;
    let ask = |return_url: &str| {
        let options =
            proto::AuthorizationOptions { return_url: return_url.into(), ..Default::default() };
        proto::AuthorizeRequest {
            key: Some(key("u1")),
            options: Some(options),
            ..Default::default()
        }
    };
    for url in [
        "https://chat.example.com/app",
        "https://chat.example.com/app/../admin",
        "https://chat.example.com/exact/more",
        "https://chat.example.com@evil.example/app/",
        "https://user@chat.example.com/app/",
        "http://chat.example.com/app/",
        "//chat.example.com/app/",
        "/\\evil.example",
        "data:text/html,x",
    ] {
        let fields = bad_fields(world.client().authorize(ask(url)).await);
        assert_eq!(fields, ["options.return_url"], "{url}");
    }
    let allowed = "https://chat.example.com/app/room?x=1";
    let fields = bad_fields(world.client_of("other").authorize(ask(allowed)).await);
    assert_eq!(fields, ["options.return_url"]);
    let started = world.client().authorize(ask(allowed)).await.expect("a link").into_inner();
    let page = Browser::new().allow(&started.authorization_url).await;
    assert!(page.body.contains(&format!("href=\"{allowed}\"")), "{}", page.body);
}

async fn rate() {
    let world = World::with(|setup| {
        let mut slow = bot("slow");
        let once = NonZeroU32::MIN;
        slow.rate = Some(Rate { per_second: once, burst: once });
        setup.bots.push(slow);
    })
    .await;
    let list = proto::ListProvidersRequest::default;
    // All at once: some must be within the same second.
    let calls = (0..50).map(|_| {
        let mut client = world.client_of("slow");
        async move { client.list_providers(list()).await }
    });
    let answers = futures::future::join_all(calls).await;
    let (taken, over): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert!(!taken.is_empty() && over.len() >= 40, "{} taken", taken.len());
    for answer in over {
        let told = refused(answer);
        assert_eq!((told.code, &*told.reason), (Code::ResourceExhausted, "RATE_LIMITED"));
        let wait = told.retry_after.expect("a time");
        assert!(!wait.is_zero() && wait <= seconds(1), "{wait:?}");
        assert_eq!(told.metadata("retry_after_ms"), wait.as_millis().to_string());
    }
    // One bot's calls do not count against another's, and neither do calls without its key.
    for _ in 0..50 {
        world.client().list_providers(list()).await.expect("an answer");
    }
    assert_eq!(why(world.client().get_token(get_token("u1")).await).1, "AUTHORIZATION_REQUIRED");
}
