//! A database that is away: calls do not wait for it, and the log tells it once.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use token_broker_client::{Client, Reason, Refusal, proto};

use super::life::token;
use super::premises::Premises;
use super::site::Site;
use crate::harness::soak::report;
use crate::harness::world::{authorize, get_token, key, refresh};
use crate::harness::{Browser, postgres, tools, trial_with};

pub fn trials() -> Vec<Trial> {
    vec![trial_with(
        &[tools::POSTGRESQL],
        "process::outage::no_call_waits_for_a_database_that_is_known_to_be_away",
        no_call_waits,
    )]
}

/// The number of times that each call is made. A single one that waited for a connection took 5 s.
const TIMES: u32 = 20;

/// The time for which a token is served without a look at the database.
const MAX_AGE: Duration = Duration::from_secs(1);

async fn no_call_waits() {
    let server = postgres::Server::prepared();
    server.start();
    let site = Site::at(Premises::on(server.new_database().await)).await;
    let mut command = site.command(&["serve"]);
    command.env("TOKEN_BROKER__CACHE__MAX_AGE", format!("{}s", MAX_AGE.as_secs()));
    let mut serving = super::child::Serving::start(command).await;
    let granted = site.granted(&serving, "u1").await;
    let mut client = serving.client().await;
    let link = client.authorize(authorize("u2")).await.expect("a link").into_inner();
    let before = serving.process.stderr.so_far().len();
    server.stop();
    // The first call that meets the broken connection finds out.
    let began = Instant::now();
    let is_noticed = |log: &str| log[before..].contains("storage does not answer");
    // Until the token is older than max_age too: then it is served only because of the outage.
    while !is_noticed(&serving.process.stderr.so_far()) || began.elapsed() < MAX_AGE {
        assert_eq!(token(&serving, "u1").await, granted);
    }
    let noticed = began.elapsed();

    let began = Instant::now();
    for _ in 0..TIMES {
        assert_eq!(token(&serving, "u1").await, granted);
        for refused in all_refused(&mut client).await {
            assert_eq!(refused.reason, Reason::StorageUnavailable, "{refused:?}");
            assert!(refused.retry_after.is_some(), "{refused:?}");
        }
        let page = Browser::new().get(&link.authorization_url).await;
        assert_eq!(page.status, 503, "{page:?}");
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");

    server.start();
    while !serving.process.stderr.so_far()[before..].contains(r#""message":"storage answers""#) {
        serving.process.stderr.more().await;
    }
    client.refresh(refresh("u1")).await.expect("a token");
    let log = serving.process.stderr.so_far()[before..].to_owned();
    let loud: Vec<_> = log
        .lines()
        .filter(|line| line.contains(r#""level":"ERROR""#) || line.contains(r#""level":"WARN""#))
        // What the server itself says to each connection when it stops.
        .filter(|line| !line.contains("sqlx::postgres::notice"))
        .collect();
    assert_eq!(loud.len(), 1, "{loud:?}");
    assert_eq!(log.matches(r#""message":"storage answers""#).count(), 1, "{log}");
    report(
        "outage",
        &format!(
            "noticed after {noticed:?}; {TIMES} times 8 calls took {took:?}; one line for each change"
        ),
    );
}

/// Every call that needs the database.
async fn all_refused(client: &mut Client) -> Vec<Refusal> {
    let list = proto::ListGrantsRequest::default();
    // Of another user: a revocation that fails still empties the cache of its grant.
    let revoke = proto::RevokeRequest { key: Some(key("u3")) };
    let confirm = proto::ConfirmAuthorizationRequest {
        subject: "u2".into(),
        code: "12345678".into(),
        ..Default::default()
    };
    let refused = [
        client.get_token(get_token("u3")).await.map(drop),
        client.refresh(refresh("u1")).await.map(drop),
        client.authorize(authorize("u1")).await.map(drop),
        client.confirm_authorization(confirm).await.map(drop),
        client.revoke(revoke).await.map(drop),
        client.list_grants(list).await.map(drop),
    ];
    refused
        .into_iter()
        .map(|ended| Refusal::of(&ended.expect_err("refused")).expect("a refusal"))
        .collect()
}
