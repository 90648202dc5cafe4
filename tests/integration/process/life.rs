//! `serve`: the life of a token across processes that are killed or told to end.

use std::time::Duration;

use libtest_mimic::Trial;
use token_broker_client::proto::{self, AuthorizationState, GrantState, Revocation};
use token_broker_client::{Reason, Refusal};
use tokio::net::TcpStream;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::child::Serving;
use super::site::Site;
use crate::harness::world::{self, api_key, authorize, get_token, key};
use crate::harness::{Browser, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("process::life::nothing_is_lost_by_sigkill_between_any_two_steps", killed),
        trial("process::life::nothing_is_lost_by_sigterm_between_any_two_steps", terminated),
        trial("process::life::sigterm_lets_calls_under_way_end_and_exits_0", drained),
        trial("process::life::a_redirect_under_way_at_sigterm_is_stored", exchange_drained),
        trial("process::life::a_second_sigterm_ends_the_process_at_once", impatient),
        trial("process::life::a_client_that_falls_silent_does_not_delay_the_end", silent_client),
        trial("process::life::sighup_does_not_end_it", hung_up),
        trial("process::life::health_and_readiness_follow_storage", healthy),
    ]
}

#[derive(Clone, Copy)]
enum End {
    Kill,
    Terminate,
}

async fn killed() {
    life(End::Kill).await;
}

async fn terminated() {
    life(End::Terminate).await;
}

/// Ends the process, and starts another one on the same database.
async fn again(site: &Site, serving: Serving, end: End) -> Serving {
    match end {
        End::Kill => serving.kill().await,
        End::Terminate => {
            let ended = serving.terminate().await;
            assert_eq!(ended.code, Some(0), "{}", ended.stderr);
            assert_eq!(ended.stdout, "");
        }
    }
    site.serve().await
}

async fn life(end: End) {
    let site = Site::new().await;
    let serving = site.serve().await;
    let mut client = serving.client().await;
    let started = client.authorize(authorize("u1")).await.expect("a link").into_inner();
    let id = started.authorization_id;
    assert_eq!(
        started.authorization_url,
        format!("http://{}/oauth2/start/{id}", site.http),
        "the link is of the public URL"
    );

    let serving = again(&site, serving, end).await;
    assert_eq!(state(&serving, &id).await, AuthorizationState::Pending);
    let mut browser = Browser::new();
    let redirect = browser.redirect_of(&started.authorization_url, "allow").await;

    // The browser is on its way back while nobody listens.
    let serving = again(&site, serving, end).await;
    let page = browser.get(redirect.as_str()).await;
    assert_eq!((page.status, page.heading().as_str()), (200, "One more step"));
    let code = page.confirmation_code().expect("a code");

    let serving = again(&site, serving, end).await;
    assert_eq!(state(&serving, &id).await, AuthorizationState::AwaitingConfirmation);
    let reloaded = browser.get(redirect.as_str()).await;
    assert_eq!((reloaded.status, reloaded.confirmation_code()), (200, Some(code.clone())));
    let mut client = serving.client().await;
    let refused = client.get_token(get_token("u1")).await.expect_err("not confirmed");
    assert_eq!(Refusal::of(&refused).expect("a refusal").reason, Reason::AuthorizationRequired);
    let confirm = proto::ConfirmAuthorizationRequest {
        subject: "u1".into(),
        code,
        authorization_id: id.clone(),
    };
    let grant = client.confirm_authorization(confirm.clone()).await.expect("a grant");

    let serving = again(&site, serving, end).await;
    assert_eq!(state(&serving, &id).await, AuthorizationState::Authorized);
    let mut client = serving.client().await;
    // The bot may not have had the answer: it asks again.
    let repeated = client.confirm_authorization(confirm).await.expect("the same grant");
    assert_eq!(repeated.into_inner(), grant.into_inner());
    let first = token(&serving, "u1").await;
    assert!(site.provider.is_living(&first));

    let serving = again(&site, serving, end).await;
    assert_eq!(token(&serving, "u1").await, first);
    let mut client = serving.client().await;
    let refresh = world::refresh("u1");
    let second = client.refresh(refresh).await.expect("a token").into_inner().token;
    let second = second.expect("a token").access_token;
    assert_ne!(first, second);

    let serving = again(&site, serving, end).await;
    assert_eq!(token(&serving, "u1").await, second);
    let mut client = serving.client().await;
    let grants = client.list_grants(proto::ListGrantsRequest::default()).await.expect("a list");
    let grants = grants.into_inner().grants;
    assert_eq!(grants.len(), 1);
    assert_eq!((grants[0].state(), grants[0].refreshable), (GrantState::Active, true));
    let revoke = proto::RevokeRequest { key: Some(key("u1")) };
    let revoked = client.revoke(revoke.clone()).await.expect("revoked").into_inner();
    assert_eq!(revoked.revocation(), Revocation::Done);

    let serving = again(&site, serving, end).await;
    let mut client = serving.client().await;
    let again = client.revoke(revoke).await.expect("revoked").into_inner();
    assert_eq!(again.revocation(), Revocation::NotNeeded);
    let refused = client.get_token(get_token("u1")).await.expect_err("no grant");
    assert_eq!(Refusal::of(&refused).expect("a refusal").reason, Reason::AuthorizationRequired);

    let ledger = site.provider.ledger();
    assert_eq!((ledger.codes_issued, ledger.code_exchanges, ledger.code_replays), (1, 1, 0));
    assert_eq!((ledger.refreshes, ledger.reuse_detections), (1, 0));
    assert_eq!((ledger.token_calls, ledger.tokens_issued), (2, 2));
    assert_eq!((ledger.living_access_tokens, ledger.living_refresh_tokens), (0, 0));
}

async fn hung_up() {
    let site = Site::new().await;
    let mut serving = site.serve().await;
    serving.process.hang_up();
    let refused = "SIGHUP is ignored: restart to apply a changed configuration; certificates are read again by themselves";
    serving.process.stderr.logged(refused).await;
    site.granted(&serving, "u1").await;
    assert_eq!(serving.terminate().await.code, Some(0));
}

/// A client whose machine has died says nothing, and must not delay the end.
async fn silent_client() {
    let site = Site::new().await;
    let serving = site.serve().await;
    let stream = TcpStream::connect(serving.grpc).await.expect("it listens");
    let (requests, mut connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    let call = async {
        let mut ready = requests.ready().await.expect("a connection");
        let request =
            http::Request::post("http://broker/tokenbroker.v1.TokenBrokerService/ListProviders")
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .header("authorization", format!("Bearer {}", api_key("helper").expose()));
        let request = request.body(()).expect("a request");
        let (response, mut message) = ready.send_request(request, false).expect("a stream");
        message.send_data(bytes::Bytes::from_static(&[0; 5]), true).expect("a window");
        response.await.expect("a response").status()
    };
    tokio::select! {
        status = call => assert_eq!(status, 200),
        ended = &mut connection => panic!("{ended:?}"),
    }
    // From here on nothing drives the client's side of the connection.
    let ended = serving.terminate().await;
    assert_eq!(ended.code, Some(0));
    assert!(!ended.stderr.contains("calls under way did not end in time"), "{}", ended.stderr);
    drop(connection);
}

async fn drained() {
    let site = Site::new().await;
    let mut serving = site.serve().await;
    let first = site.granted(&serving, "u1").await;
    let mut client = serving.client().await;
    let started = client.authorize(authorize("u2")).await.expect("a link").into_inner();
    let watch =
        proto::WatchAuthorizationRequest { authorization_id: started.authorization_id.clone() };
    let mut watched = client.watch_authorization(watch).await.expect("a stream").into_inner();
    let seen = watched.message().await.expect("a message").expect("a message");
    assert_eq!(seen.authorization.expect("it").state(), AuthorizationState::Pending);

    let pause = site.provider.pause_token_endpoint();
    let calls = site.provider.ledger().token_calls;
    let refreshing = tokio::spawn(async move {
        let refresh = world::refresh("u1");
        client.refresh(refresh).await
    });
    site.provider.wait_for_token_calls(calls + 1).await;
    serving.process.send_sigterm().await;
    serving.process.stderr.logged("stopping").await;
    drop(pause);
    let refreshed = refreshing.await.expect("no panic").expect("the call ends as it should");
    let second = refreshed.into_inner().token.expect("a token").access_token;
    assert_ne!(first, second);
    let status = serving.process.ends_within(Duration::from_secs(10)).await;
    assert_eq!(status.code(), Some(0), "{}", serving.process.stderr.so_far());
    // No message says that the authorization has ended, for it has not.
    while let Ok(Some(message)) = watched.message().await {
        let state = message.authorization.expect("it").state();
        assert_eq!(state, AuthorizationState::Pending);
    }

    let serving = site.serve().await;
    assert_eq!(token(&serving, "u1").await, second);
    assert_eq!(state(&serving, &started.authorization_id).await, AuthorizationState::Pending);
    assert_eq!(site.provider.ledger().refreshes, 1);
}

async fn exchange_drained() {
    let site = Site::new().await;
    let mut serving = site.serve().await;
    let mut client = serving.client().await;
    let started = client.authorize(authorize("u1")).await.expect("a link").into_inner();
    let mut browser = Browser::new();
    let redirect = browser.redirect_of(&started.authorization_url, "allow").await;
    let pause = site.provider.pause_token_endpoint();
    let opening = redirect.clone();
    let opened = tokio::spawn(async move {
        let page = browser.get(opening.as_str()).await;
        (browser, page)
    });
    site.provider.wait_for_token_calls(1).await;
    serving.process.send_sigterm().await;
    serving.process.stderr.logged("stopping").await;
    drop(pause);
    let (mut browser, page) = opened.await.expect("the page is answered");
    let code = page.confirmation_code().expect("a code");
    let ended = serving.process.ended().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);

    let serving = site.serve().await;
    let reloaded = browser.get(redirect.as_str()).await;
    assert_eq!(reloaded.confirmation_code().as_deref(), Some(code.as_str()));
    let confirm =
        proto::ConfirmAuthorizationRequest { subject: "u1".into(), code, ..Default::default() };
    serving.client().await.confirm_authorization(confirm).await.expect("a grant");
    assert!(site.provider.is_living(&token(&serving, "u1").await));
    assert_eq!(site.provider.ledger().code_exchanges, 1);
}

async fn impatient() {
    let site = Site::new().await;
    let mut serving = site.serve().await;
    site.granted(&serving, "u1").await;
    let _pause = site.provider.pause_token_endpoint();
    let calls = site.provider.ledger().token_calls;
    let mut client = serving.client().await;
    let refreshing = tokio::spawn(async move {
        let refresh = world::refresh("u1");
        client.refresh(refresh).await
    });
    site.provider.wait_for_token_calls(calls + 1).await;
    serving.process.send_sigterm().await;
    serving.process.stderr.logged("stopping").await;
    serving.process.send_sigterm().await;
    // Far below what the call at the provider would take.
    let status = serving.process.ends_within(Duration::from_secs(3)).await;
    assert_eq!(status.code(), Some(1));
    assert!(refreshing.await.expect("no panic").is_err());
}

async fn healthy() {
    let site = Site::new().await;
    let serving = site.serve().await;
    let url = format!("http://{}", serving.grpc);
    let channel = token_broker_client::Client::channel(url).expect("a URL").connect().await;
    let channel = channel.expect("it listens");
    let service = "tokenbroker.v1.TokenBrokerService".to_owned();
    let request = HealthCheckRequest { service };
    let mut health = HealthClient::new(channel).watch(request).await.expect("a watch").into_inner();
    let mut browser = Browser::new();
    while health.message().await.expect("a message").expect("a message").status()
        != ServingStatus::Serving
    {}
    let (live, ready) =
        (format!("http://{}/livez", serving.ops), format!("http://{}/readyz", serving.ops));
    assert_eq!(browser.get(&live).await.status, 200);
    // Health and readiness come from the same news, one a moment after the other.
    while browser.get(&ready).await.status != 200 {}
    // Probes are on the private listener alone.
    assert_eq!(browser.get(&format!("http://{}/readyz", serving.http)).await.status, 404);

    serving.process.send_sigterm().await;
    let told = health.message().await.expect("a message").expect("a message");
    assert_eq!(told.status(), ServingStatus::NotServing);
    // Whoever watches health does not hold the process.
    let ended = serving.process.ended().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

pub async fn state(serving: &Serving, id: &str) -> AuthorizationState {
    let request = proto::GetAuthorizationRequest { authorization_id: id.to_owned() };
    let answer = serving.client().await.get_authorization(request).await.expect("it is known");
    answer.into_inner().authorization.expect("it is known").state()
}

pub async fn token(serving: &Serving, subject: &str) -> String {
    let answer = serving.client().await.get_token(get_token(subject)).await.expect("a token");
    answer.into_inner().token.expect("a token").access_token
}
