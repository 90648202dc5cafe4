//! Callers that give up at random moments, beside a database that is some milliseconds away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::seeding::seed_grants;
use super::{Fleet, reason_of};
use crate::harness::proxy::Proxy;
use crate::harness::soak::{report, seed, size};
use crate::harness::world::{authorize, get_token, refresh};
use crate::harness::{long_trial_with, tools};

pub fn trials() -> Vec<Trial> {
    vec![long_trial_with(
        &[tools::POSTGRESQL],
        "process::fleet::impatient_callers_cost_nobody_a_token",
        impatient,
    )]
}

const CALLERS: usize = 20;
const USERS: usize = 12;

async fn impatient() {
    let (proxy, url) = Proxy::in_front_of(&super::databases::database().await).await;
    let fleet = Fleet::on(url, Duration::ZERO, &[]).await;
    let subjects = seed_grants(&fleet, USERS).await;
    // 10 ms for a round trip.
    proxy.delay(Duration::from_millis(5));

    let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let given_up = Arc::new(AtomicUsize::new(0));
    let mut random = StdRng::seed_from_u64(seed());
    let clients = fleet.clients().await;
    let callers: Vec<_> = (0..CALLERS)
        .map(|number| {
            let mut random = StdRng::seed_from_u64(random.random());
            let (stop, subjects) = (Arc::clone(&stop), subjects.clone());
            let (calls, given_up) = (Arc::clone(&calls), Arc::clone(&given_up));
            // Two replicas have the impatient callers; the third has none.
            let mut client = clients[number % 2].clone();
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let subject = &subjects[random.random_range(0..subjects.len())];
                    let patience = Duration::from_millis(random.random_range(1..120));
                    // Authorize is a transaction of the call's own.
                    let call = async {
                        match random.random_range(0..3) {
                            0 => client.refresh(refresh(subject)).await.map(drop),
                            1 => client.get_token(get_token(subject)).await.map(drop),
                            _ => client.authorize(authorize(subject)).await.map(drop),
                        }
                    };
                    calls.fetch_add(1, Ordering::SeqCst);
                    if tokio::time::timeout(patience, call).await.is_err() {
                        given_up.fetch_add(1, Ordering::SeqCst);
                    }
                }
            })
        })
        .collect();

    // Somebody who waits is served by the third replica all the while.
    let ends = Instant::now() + Duration::from_secs(size(10, 60) as u64);
    let mut patient = clients[2].clone();
    let mut worst = Duration::ZERO;
    while Instant::now() < ends {
        let began = Instant::now();
        let subject = &subjects[random.random_range(0..subjects.len())];
        if let Err(status) = patient.get_token(get_token(subject)).await {
            panic!("{subject}: {:?}: {status:?}", reason_of(&status));
        }
        worst = worst.max(began.elapsed());
    }
    stop.store(true, Ordering::SeqCst);
    for caller in callers {
        caller.await.expect("no panic");
    }
    proxy.delay(Duration::ZERO);
    fleet.settled().await;
    // A session is idle in a transaction for a moment between two statements of a call.
    let idle = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                AND state LIKE 'idle in transaction%' \
                AND state_change < clock_timestamp() - interval '1 second'";
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(fleet.count(idle).await, 0, "sessions are idle in a transaction");
    assert_eq!(fleet.lost(&subjects).await, 0);
    let ledger = fleet.site.provider.ledger();
    assert_eq!(ledger.reuse_detections, 0, "{ledger:?}");
    fleet.assert_no_double();
    let (calls, given_up) = (calls.load(Ordering::SeqCst), given_up.load(Ordering::SeqCst));
    assert!(given_up > 0);
    report(
        "impatient callers",
        &format!(
            "{calls} calls, {given_up} given up, {} refreshes, 0 double, 0 of {USERS} users lost, \
             0 sessions idle in transaction; a patient caller waited {worst:?} at most",
            ledger.refreshes
        ),
    );
}
