//! Many callers at once, one refresh each.

use futures::future::join_all;
use libtest_mimic::Trial;
use token_broker::demo::provider::{ScriptedAnswer, ScriptedEndpoint};
use token_broker_client::{Reason, proto};

use super::seeding::seed_grants;
use super::{Fleet, get, reason};
use crate::harness::soak::size;
use crate::harness::world::{get_token, key};
use crate::harness::{long_trial_with, tools, trial_with};

pub fn trials() -> Vec<Trial> {
    let needs = &[tools::POSTGRESQL];
    vec![
        trial_with(needs, "process::fleet::a_herd_on_one_grant_causes_one_refresh", herd_on_one),
        long_trial_with(
            needs,
            "process::fleet::a_herd_on_many_grants_causes_one_each",
            herd_on_many,
        ),
        trial_with(
            needs,
            "process::fleet::an_answer_without_a_token_is_no_success_anywhere",
            without_a_token,
        ),
        trial_with(needs, "process::fleet::fifty_stale_etags_cause_one_refresh", stale_etags),
    ]
}

async fn herd_on_one() {
    const CALLERS: usize = 500;

    let fleet = Fleet::start(&[]).await;
    let old = fleet.granted("u1").await;
    fleet.expire().await;
    let clients = fleet.clients().await;
    let calls = (0..CALLERS).map(|call| get(clients[call % 3].clone(), "u1".to_owned()));
    let tokens = join_all(calls).await;
    assert!(tokens.iter().all(|token| *token == tokens[0] && *token != old));
    let ledger = fleet.site.provider.ledger();
    assert_eq!((ledger.refreshes, ledger.reuse_detections), (1, 0));
}

async fn herd_on_many() {
    const CALLS_A_GRANT: usize = 6;

    let grants = size(100, 1000);
    // They all come at once, and none is to be sent away.
    let fleet = Fleet::start(&[("TOKEN_BROKER__GRPC__MAX_CONCURRENT_CALLS", "10000")]).await;
    let subjects = seed_grants(&fleet, grants).await;
    fleet.expire().await;
    let clients = fleet.clients().await;
    // Each of them from every replica, twice.
    let calls = (0..grants * CALLS_A_GRANT)
        .map(|call| get(clients[call % 3].clone(), subjects[call / CALLS_A_GRANT].clone()));
    let tokens = join_all(calls).await;
    for of_one in tokens.chunks(CALLS_A_GRANT) {
        assert!(of_one.iter().all(|token| *token == of_one[0]), "{of_one:?}");
    }
    let ledger = fleet.site.provider.ledger();
    assert_eq!((ledger.refreshes, ledger.reuse_detections), (grants, 0));
    assert_eq!(ledger.most_refreshes_of_one_token(), 1);
}

async fn stale_etags() {
    const CALLERS: usize = 50;

    let fleet = Fleet::start(&[]).await;
    fleet.granted("u1").await;
    let mut clients = fleet.clients().await;
    let lent = clients[0].get_token(get_token("u1")).await.expect("a token").into_inner();
    let etag = lent.token.expect("a token").etag;
    let calls = (0..CALLERS).map(|call| {
        let (mut client, etag) = (clients[call % 3].clone(), etag.clone());
        async move {
            let refresh =
                proto::RefreshRequest { key: Some(key("u1")), etag, ..Default::default() };
            let refreshed = client.refresh(refresh).await.expect("a token").into_inner();
            refreshed.token.expect("a token").access_token
        }
    });
    let tokens = join_all(calls).await;
    assert!(tokens.iter().all(|token| *token == tokens[0]));
    assert_eq!(fleet.site.provider.ledger().refreshes, 1);
}

/// One replica gets an answer that has a new refresh token alone, while the others wait for it.
async fn without_a_token() {
    let fleet = Fleet::start(&[]).await;
    seed_grants(&fleet, 1).await;
    fleet.expire().await;
    let provider = &fleet.site.provider;
    let answer = ScriptedAnswer::json(200, r#"{"refresh_token":"new-rt"}"#);
    provider.script(ScriptedEndpoint::Token, answer);
    let pause = provider.pause_token_endpoint();
    let calls = provider.ledger().token_calls;
    let callers: Vec<_> = (0..3 * 5)
        .map(|number| {
            let mut client = fleet.client(number % 3);
            tokio::spawn(async move { client.get_token(get_token("u0")).await })
        })
        .collect();
    provider.wait_for_token_calls(calls + 1).await;
    drop(pause);
    // Never a token that has ended. Whoever comes late may find the next refresh refused, too.
    let told = join_all(callers).await;
    let told: Vec<_> = told.into_iter().map(|told| reason(told.expect("no panic"))).collect();
    assert!(told.contains(&Reason::ProviderError), "{told:?}");
    let expected = [Reason::ProviderError, Reason::ReauthorizationRequired];
    assert!(told.iter().all(|reason| expected.contains(reason)), "{told:?}");
}
