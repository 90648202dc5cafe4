//! A replica that is cut off from the database while it holds a provider's response, at a provider that
//! accepts a refresh token once.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use super::{Fleet, REPLICA_TIMEOUT};
use crate::harness::proxy::Proxy;
use crate::harness::soak::report;
use crate::harness::world::{get_token, refresh};
use crate::harness::{long_trial_with, tools};

pub fn trials() -> Vec<Trial> {
    let needs = &[tools::POSTGRESQL];
    vec![
        long_trial_with(
            needs,
            "process::fleet::a_replica_cut_off_for_20_s_with_a_response_loses_no_token",
            cut_off,
        ),
        long_trial_with(
            needs,
            "process::fleet::a_replica_restarted_in_its_place_recovers_at_once",
            restarted,
        ),
    ]
}

/// Longer than a lease and the calm after it.
const CUT: Duration = Duration::from_secs(20);

async fn cut_off() {
    let url = super::databases::database().await;
    let (proxy, through) = Proxy::in_front_of(&url).await;
    let mut fleet = Fleet::on(url.clone(), Duration::ZERO, &[(REPLICA_TIMEOUT, "60s")]).await;
    let first = fleet.granted("u1").await;
    fleet.take(1).terminate().await;
    fleet.restart_with(1, &[("TOKEN_BROKER__DATABASE__URL", &through)]).await;

    let calls = fleet.site.provider.ledger().token_calls;
    let pause = fleet.site.provider.pause_token_endpoint();
    let mut client = fleet.client(1);
    let holding = tokio::spawn(async move { client.refresh(refresh("u1")).await });
    fleet.site.provider.wait_for_token_calls(calls + 1).await;
    proxy.cut();
    drop(pause);
    fleet.expire().await;
    // Callers at the other replicas and their workers leave it alone.
    let until = Instant::now() + CUT;
    while Instant::now() < until {
        drop(fleet.client(0).get_token(get_token("u1")).await);
        assert_eq!(fleet.site.provider.ledger().token_calls, calls + 1, "another replica sent it");
    }
    proxy.mend();
    let began = Instant::now();
    let second = loop {
        if let Ok(response) = fleet.client(0).get_token(get_token("u1")).await {
            break response.into_inner().token.expect("a token").access_token;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_ne!(second, first);
    assert!(fleet.site.provider.is_living(&second));
    drop(holding.await.expect("no panic"));
    fleet.settled().await;
    let ledger = fleet.site.provider.ledger();
    assert_eq!((ledger.token_calls, ledger.reuse_detections), (calls + 1, 0), "{ledger:?}");
    fleet.assert_no_double();
    let back = began.elapsed();
    report("cut off with a response", &format!("{CUT:?}: 0 lost, served again after {back:?}"));
}

async fn restarted() {
    let mut fleet = Fleet::start(&[(REPLICA_TIMEOUT, "1h")]).await;
    fleet.granted("u1").await;
    let address = fleet.replica(2).grpc.to_string();
    let pause = fleet.site.provider.pause_token_endpoint();
    let calls = fleet.site.provider.ledger().token_calls;
    let mut client = fleet.client(2);
    let refreshing = tokio::spawn(async move { client.refresh(refresh("u1")).await });
    fleet.site.provider.wait_for_token_calls(calls + 1).await;
    fleet.kill(2).await;
    assert!(refreshing.await.expect("no panic").is_err());
    drop(pause);
    // Its place is taken by the next process at the same address.
    fleet.restart_with(2, &[("TOKEN_BROKER__GRPC__LISTEN", &address)]).await;
    let began = Instant::now();
    fleet.site.provider.wait_for_token_calls(calls + 2).await;
    fleet.settled().await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(60), "{took:?}");
    fleet.assert_no_double();
    report("restarted in its place", &format!("recovered after {took:?}"));
}
