//! SIGKILL, at random moments, of replicas that refresh.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use libtest_mimic::Trial;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinHandle;

use super::seeding::seed_grants;
use super::{Fleet, REPLICAS};
use crate::harness::soak::{report, seed, size};
use crate::harness::world::{self, refresh};
use crate::harness::{long_trial_with, tools, trial_with};
use crate::process::life::token;
use crate::process::weather::Conditions;

pub fn trials() -> Vec<Trial> {
    let needs = &[tools::POSTGRESQL];
    vec![
        trial_with(
            needs,
            "process::fleet::a_killed_refresh_is_taken_up_by_another_replica",
            killed,
        ),
        long_trial_with(
            needs,
            "process::fleet::killed_replicas_lose_nothing_where_there_is_a_grace",
            with_grace,
        ),
        long_trial_with(
            needs,
            "process::fleet::without_a_grace_killed_replicas_lose_no_more_than_was_open",
            without_grace,
        ),
        long_trial_with(
            needs,
            "process::fleet::a_provider_that_fails_in_every_way_costs_no_grant",
            storm,
        ),
        trial_with(
            needs,
            "process::fleet::a_dropped_answer_is_recovered_within_the_grace",
            dropped_with_grace,
        ),
        trial_with(
            needs,
            "process::fleet::without_a_grace_a_dropped_answer_flags_its_grant",
            dropped_without_grace,
        ),
    ]
}

/// The process ends after the refresh token was sent, and before anything came back.
async fn killed() {
    let mut fleet = Fleet::start(&[]).await;
    let first = fleet.granted("u1").await;
    let pause = fleet.site.provider.pause_token_endpoint();
    let calls = fleet.site.provider.ledger().token_calls;
    let mut client = fleet.replica(2).client().await;
    let refreshing = tokio::spawn(async move { client.refresh(world::refresh("u1")).await });
    fleet.site.provider.wait_for_token_calls(calls + 1).await;
    fleet.kill(2).await;
    assert!(refreshing.await.expect("no panic").is_err());
    drop(pause);
    // Nobody asks: a worker of another replica takes it up once the lease has ended.
    fleet.site.provider.wait_for_token_calls(calls + 2).await;
    let second = loop {
        let now = token(fleet.replica(0), "u1").await;
        if now != first {
            break now;
        }
    };
    assert!(fleet.site.provider.is_living(&second));
    assert_eq!(token(fleet.replica(1), "u1").await, second);
    let ledger = fleet.site.provider.ledger();
    assert_eq!((ledger.refreshes, ledger.reuse_detections), (2, 0));
    fleet.assert_no_double();
}

/// Callers that refresh what they draw, wherever a replica lives, until they are stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    callers: Vec<JoinHandle<()>>,
}

impl Load {
    pub(super) fn on(fleet: &Fleet, subjects: &[String], random: &mut StdRng) -> Self {
        const CALLERS: usize = 12;

        let stop = Arc::new(AtomicBool::new(false));
        let callers = (0..CALLERS).map(|_| {
            let mut random = StdRng::seed_from_u64(random.random());
            let (stop, directory) = (Arc::clone(&stop), Arc::clone(&fleet.directory));
            let subjects = subjects.to_vec();
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let subject = &subjects[random.random_range(0..subjects.len())];
                    let (_, mut client) = directory.any(&mut random, None);
                    // Whatever comes of it: the ledger tells.
                    drop(client.refresh(refresh(subject)).await);
                }
            })
        });
        let callers = callers.collect();
        Self { stop, callers }
    }

    pub(super) async fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        for caller in self.callers {
            caller.await.expect("no panic");
        }
    }
}

/// What came of rounds in each of which one replica or two were killed under load.
struct Outcome {
    fleet: Fleet,
    /// The number of refreshes that were open when replicas were killed, at most.
    open: usize,
    lost: usize,
}

async fn rounds(grace: Duration) -> Outcome {
    let mut fleet = Fleet::with_grace(grace).await;
    let subjects = seed_grants(&fleet, size(30, 100)).await;
    fleet.site.weather.set(
        seed(),
        Conditions {
            before: Duration::from_millis(20),
            after: Duration::from_millis(80),
            ..Conditions::default()
        },
    );
    let mut random = StdRng::seed_from_u64(seed());
    let refreshes = size(100, 1000);
    let mut open = 0;
    let mut calls = 0;
    while calls < refreshes {
        let load = Load::on(&fleet, &subjects, &mut random);
        calls += random.random_range(20..50);
        fleet.site.provider.wait_for_token_calls(calls).await;
        let mut numbers: Vec<_> = (0..REPLICAS).collect();
        numbers.shuffle(&mut random);
        let victims = &numbers[..random.random_range(1..REPLICAS)];
        for victim in victims {
            fleet.kill(*victim).await;
        }
        open += fleet.left_open().await;
        load.stop().await;
        for victim in victims {
            fleet.restart(*victim).await;
        }
        // To lose two holders of one refresh takes longer than a grace of 30 s: two leases.
        fleet.settled().await;
        calls = fleet.site.provider.ledger().token_calls;
    }
    let lost = fleet.lost(&subjects).await;
    fleet.assert_no_double();
    let again = fleet.site.provider.ledger().repeats;
    let figures =
        format!("{calls} refreshes, {open} open at a kill, {again} repeated, {lost} lost");
    report(if grace.is_zero() { "killed without grace" } else { "killed with grace" }, &figures);
    Outcome { fleet, open, lost }
}

async fn with_grace() {
    let outcome = rounds(Duration::from_secs(30)).await;
    assert_eq!(outcome.lost, 0);
    let ledger = outcome.fleet.site.provider.ledger();
    assert_eq!(ledger.reuse_detections, 0);
    // Nothing was sent twice but what a replica had left behind.
    assert!(ledger.repeats <= outcome.open, "{} open, {ledger:?}", outcome.open);
    assert!(outcome.open > 0, "no refresh was open when its replica was killed");
}

async fn without_grace() {
    let Outcome { fleet, open, lost } = rounds(Duration::ZERO).await;
    assert!(lost <= open, "{lost} lost, {open} open");
    // Each of them was flagged, and served to nobody.
    let flagged = "SELECT count(*) FROM grants \
                   WHERE state = 'reauthorization_required' AND last_error = 'rotation_lost'";
    assert_eq!(fleet.count(flagged).await, lost);
    assert_eq!(fleet.site.provider.ledger().reuse_detections, lost);
}

/// Refreshes a few grants whose answers are dropped now and then, after the provider has done its part;
/// gives how many are lost.
async fn dropped(grace: Duration) -> (Fleet, usize) {
    let fleet = Fleet::with_grace(grace).await;
    let subjects = seed_grants(&fleet, 20).await;
    fleet.site.weather.set(seed(), Conditions { dropped: 15, ..Conditions::default() });
    let mut random = StdRng::seed_from_u64(seed());
    let calls = fleet.site.provider.ledger().token_calls;
    let load = Load::on(&fleet, &subjects, &mut random);
    if grace.is_zero() {
        // They become fewer with every one that is lost.
        while fleet.site.provider.ledger().reuse_detections < 5 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    } else {
        fleet.site.provider.wait_for_token_calls(calls + size(100, 1000)).await;
    }
    load.stop().await;
    fleet.site.weather.set(seed(), Conditions::default());
    fleet.settled().await;
    let lost = fleet.lost(&subjects).await;
    fleet.assert_no_double();
    report("dropped answers", &format!("grace {grace:?}: {lost} of 20 grants lost"));
    (fleet, lost)
}

async fn dropped_with_grace() {
    let (fleet, lost) = dropped(Duration::from_secs(30)).await;
    let ledger = fleet.site.provider.ledger();
    assert_eq!((lost, ledger.reuse_detections), (0, 0));
    assert!(ledger.repeats > 0);
}

async fn dropped_without_grace() {
    let (fleet, lost) = dropped(Duration::ZERO).await;
    assert!(lost > 0);
    assert_eq!(fleet.site.provider.ledger().reuse_detections, lost);
}

/// Every kind of failure now and then, at a provider with a grace.
async fn storm() {
    let fleet = Fleet::with_grace(Duration::from_secs(60)).await;
    let subjects = seed_grants(&fleet, size(30, 100)).await;
    let millis = Duration::from_millis;
    fleet.site.weather.set(
        seed(),
        Conditions {
            before: millis(20),
            slow: Duration::ZERO,
            after: millis(20),
            dropped: 4,
            lost: 4,
            hung: 1,
            refused: 4,
            busy: 4,
            garbage: 4,
            garbled: 4,
        },
    );
    let mut random = StdRng::seed_from_u64(seed());
    let load = Load::on(&fleet, &subjects, &mut random);
    let calls = size(300, 3000);
    fleet.site.provider.wait_for_token_calls(calls).await;
    load.stop().await;
    fleet.site.weather.set(seed(), Conditions::default());
    fleet.settled().await;
    // What was put off, and what a breaker keeps back, is tried when its time has come.
    let put_off = "SELECT count(*) FROM grants WHERE next_attempt_at > \
                   EXTRACT(EPOCH FROM clock_timestamp()) * 1000";
    while fleet.count(put_off).await > 0 {
        tokio::time::sleep(millis(200)).await;
    }
    let lost = fleet.lost(&subjects).await;
    let ledger = fleet.site.provider.ledger();
    assert_eq!((lost, ledger.reuse_detections), (0, 0));
    fleet.assert_no_double();
    report("storm", &format!("{calls} calls, {} repeated, 0 lost", ledger.repeats));
}
