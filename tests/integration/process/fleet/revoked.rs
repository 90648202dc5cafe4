//! Revocation on one replica, felt on the others; and a redirect that lands elsewhere.

use std::time::Duration;

use futures::future::join_all;
use libtest_mimic::Trial;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use token_broker_client::Reason;
use token_broker_client::proto::{self, AuthorizationState};
use tokio::time::Instant;

use super::databases;
use super::seeding::seeder;
use super::{Fleet, reason};
use crate::harness::soak::{report, seed, size};
use crate::harness::world::{authorize, get_token, key, refresh};
use crate::harness::{Browser, long_trial_with, tools, trial_with};
use crate::process::life::token;
use crate::process::weather::Conditions;

pub fn trials() -> Vec<Trial> {
    let needs = &[tools::POSTGRESQL];
    let mut trials = vec![
        trial_with(needs, "process::fleet::a_revocation_is_felt_at_once_without_a_cache", revoked),
        trial_with(
            needs,
            "process::fleet::a_watcher_sees_the_redirect_of_another_replica",
            watched,
        ),
        long_trial_with(
            needs,
            "process::fleet::after_a_revocation_nothing_is_served_and_nothing_lives",
            against_refresh,
        ),
    ];
    // It is about the notifications; `isolation.rs` tests what holds without them.
    if databases::notifies() {
        let name = "process::fleet::a_revocation_is_felt_within_the_caches_age";
        trials.push(trial_with(needs, name, noticed));
    }
    trials
}

async fn revoked() {
    let fleet = Fleet::start(&[]).await;
    let mut clients = fleet.clients().await;
    for round in 0..20 {
        let subject = format!("u{round}");
        let granted = fleet.granted(&subject).await;
        for replica in fleet.replicas.iter().flatten() {
            assert_eq!(token(replica, &subject).await, granted);
        }
        let revoke = proto::RevokeRequest { key: Some(key(&subject)) };
        clients[round % 3].revoke(revoke).await.expect("revoked");
        for client in &mut clients {
            let refused = client.get_token(get_token(&subject)).await;
            assert_eq!(reason(refused), Reason::AuthorizationRequired);
        }
    }
}

/// The time for which a replica may go on serving what was revoked on another.
const MAX_AGE: Duration = Duration::from_secs(20);

async fn noticed() {
    let fleet = Fleet::start(&[("TOKEN_BROKER__CACHE__MAX_AGE", "20s")]).await;
    let mut clients = fleet.clients().await;
    let mut longest = Duration::ZERO;
    for round in 0..10 {
        let subject = format!("u{round}");
        let granted = fleet.granted(&subject).await;
        for replica in fleet.replicas.iter().flatten() {
            assert_eq!(token(replica, &subject).await, granted);
        }
        let revoke = proto::RevokeRequest { key: Some(key(&subject)) };
        clients[0].revoke(revoke).await.expect("revoked");
        let told = Instant::now();
        // On the replica itself at once.
        let refused = clients[0].get_token(get_token(&subject)).await;
        assert_eq!(reason(refused), Reason::AuthorizationRequired);
        for client in &mut clients[1..] {
            while client.get_token(get_token(&subject)).await.is_ok() {}
        }
        longest = longest.max(told.elapsed());
    }
    report("noticed", &format!("the longest of 10 rounds took {longest:?}"));
    // A notice makes it much faster than the age that bounds it.
    assert!(longest < MAX_AGE / 4, "{longest:?}");
}

async fn watched() {
    let fleet = Fleet::start(&[]).await;
    let mut clients = fleet.clients().await;
    let started = clients[1].authorize(authorize("u1")).await.expect("a link").into_inner();
    let watch =
        proto::WatchAuthorizationRequest { authorization_id: started.authorization_id.clone() };
    let mut seen = clients[2].watch_authorization(watch).await.expect("a stream").into_inner();
    // The link's host is the first replica.
    let page = Browser::new().allow(&started.authorization_url).await;
    let code = page.confirmation_code().expect("a code");
    let mut states = Vec::new();
    while let Some(message) = seen.message().await.expect("a message") {
        let state = message.authorization.expect("it").state();
        if states.last() != Some(&state) {
            states.push(state);
        }
        if state == AuthorizationState::AwaitingConfirmation {
            let request = proto::ConfirmAuthorizationRequest {
                subject: "u1".into(),
                code: code.clone(),
                ..Default::default()
            };
            clients[1].confirm_authorization(request).await.expect("a grant");
        }
    }
    assert_eq!(states.last(), Some(&AuthorizationState::Authorized));
}

/// The time that an answer takes from a replica to its caller here, on a busy machine.
const ON_ITS_WAY: Duration = Duration::from_secs(2);

/// Refreshes and a revocation of the same grant, on different replicas, at about the same moment.
async fn against_refresh() {
    let rounds = size(500, 10_000);
    let fleet = Fleet::start(&[]).await;
    let seeder = seeder(&fleet.site).await;
    fleet.site.weather.set(
        seed(),
        Conditions {
            before: Duration::from_millis(5),
            after: Duration::from_millis(5),
            ..Conditions::default()
        },
    );
    let clients = fleet.clients().await;
    let mut random = StdRng::seed_from_u64(seed());
    let (mut pending, at_once) = (0, 8);
    for first in (0..rounds).step_by(at_once) {
        let some = first..rounds.min(first + at_once);
        let ended = some.map(|round| {
            let wait = Duration::from_micros(random.random_range(0..15_000));
            let (mut refresher, mut revoker) =
                (clients[round % 3].clone(), clients[(round + 1) % 3].clone());
            let (seeder, clients) = (&seeder, &clients);
            async move {
                let subject = format!("u{round}");
                seeder.grant(&subject).await;
                let of = refresh(&subject);
                let refreshing = tokio::spawn(async move {
                    let ended = refresher.refresh(of).await;
                    (ended.is_ok(), Instant::now())
                });
                tokio::time::sleep(wait).await;
                let revoke = proto::RevokeRequest { key: Some(key(&subject)) };
                let told = revoker.revoke(revoke).await.expect("revoked").into_inner();
                let returned = Instant::now();
                for client in clients {
                    let refused = client.clone().get_token(get_token(&subject)).await;
                    assert_eq!(reason(refused), Reason::AuthorizationRequired, "{subject}");
                }
                // It may have won, or be too late; it must not be served after, save for the time in which
                // its answer was on its way.
                let (served, ended) = refreshing.await.expect("no panic");
                let late = ended.saturating_duration_since(returned);
                assert!(!served || late < ON_ITS_WAY, "{subject} was served {late:?} after");
                told.revocation() == proto::Revocation::Pending
            }
        });
        pending += join_all(ended).await.into_iter().filter(|pending| *pending).count();
    }
    // Some of them met in the middle, or the rounds have shown nothing.
    assert!(pending > 0 && pending < rounds, "{pending} of {rounds} were pending");
    while fleet.count("SELECT count(*) FROM revocations").await > 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let ledger = fleet.site.provider.ledger();
    assert_eq!((ledger.living_refresh_tokens, ledger.living_access_tokens), (0, 0), "{ledger:?}");
    fleet.assert_no_double();
    report("against_refresh", &format!("{rounds} rounds, {pending} of them met a refresh"));
}
