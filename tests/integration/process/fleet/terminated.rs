//! SIGTERM under load: whoever tries once more, elsewhere, sees no failure.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use libtest_mimic::Trial;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use token_broker_client::{ApiKey, Client};
use tokio::time::Instant;
use tonic::transport::channel::Change;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::seeding::seed_grants;
use super::{Directory, Fleet, REPLICAS};
use crate::harness::soak::{report, seed, size};
use crate::harness::world::{api_key, get_token, refresh};
use crate::harness::{tools, trial_with};
use crate::process::weather::Conditions;

pub fn trials() -> Vec<Trial> {
    let needs = &[tools::POSTGRESQL];
    vec![
        trial_with(
            needs,
            "process::fleet::a_replica_that_is_terminated_under_load_fails_nobody_who_tries_twice",
            terminated,
        ),
        trial_with(
            needs,
            "process::fleet::a_rolling_restart_behind_a_balancer_fails_no_call",
            rolling_restart,
        ),
    ]
}

const CALLERS: usize = 24;

/// One call in ten refreshes.
async fn call(client: &mut Client, subject: &str, refreshes: bool) -> Result<(), Status> {
    if refreshes {
        client.refresh(refresh(subject)).await.map(drop)
    } else {
        client.get_token(get_token(subject)).await.map(drop)
    }
}

async fn with_one_more_try(
    directory: &Directory,
    random: &mut StdRng,
    subject: &str,
) -> Result<(), Status> {
    let refreshes = random.random_range(0..10) == 0;
    let (first, mut client) = directory.any(random, None);
    match call(&mut client, subject, refreshes).await {
        Err(status) if status.code() == Code::Unavailable => {
            let (_, mut another) = directory.any(random, Some(first));
            call(&mut another, subject, refreshes).await
        }
        ended => ended,
    }
}

async fn terminated() {
    // With the cache that is the default: it must not fail anybody either.
    let cached = [("TOKEN_BROKER__CACHE__MAX_AGE", "5s")];
    let grace = Duration::from_secs(30);
    let mut fleet = Fleet::on(super::databases::database().await, grace, &cached).await;
    let subjects = seed_grants(&fleet, 30).await;
    fleet
        .site
        .weather
        .set(seed(), Conditions { after: Duration::from_millis(200), ..Conditions::default() });
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let ended: Arc<Vec<_>> = Arc::new((0..CALLERS).map(|_| AtomicUsize::new(0)).collect());
    let callers: Vec<_> = (0..CALLERS)
        .map(|number| {
            let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
            let mine = Arc::clone(&ended);
            let (directory, subjects) = (Arc::clone(&fleet.directory), subjects.clone());
            let seed = seed() + u64::try_from(number).expect("small");
            tokio::spawn(async move {
                let mut random = StdRng::seed_from_u64(seed);
                while !stop.load(Ordering::SeqCst) {
                    let subject = &subjects[random.random_range(0..subjects.len())];
                    let told = with_one_more_try(&directory, &mut random, subject).await;
                    told.unwrap_or_else(|status| panic!("{subject}: {status:?}"));
                    served.fetch_add(1, Ordering::SeqCst);
                    mine[number].fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let more = |count: usize| {
        let (wanted, served) = (served.load(Ordering::SeqCst) + count, Arc::clone(&served));
        async move {
            while served.load(Ordering::SeqCst) < wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    let mut longest = Duration::ZERO;
    for number in 0..size(2, 12) {
        let number = number % 3;
        more(300).await;
        // Callers go on finding it: nobody has told them.
        let serving = fleet.take(number);
        let began = Instant::now();
        let left = serving.terminate().await;
        longest = longest.max(began.elapsed());
        assert_eq!(left.code, Some(0), "{}", left.stderr);
        more(300).await;
        fleet.restart(number).await;
        // Nobody who met this one is still on the way: that call's other try must not meet the next.
        each_ended_a_call(&ended).await;
    }
    stop.store(true, Ordering::SeqCst);
    for caller in callers {
        caller.await.expect("every call was served");
    }
    assert!(longest < Duration::from_secs(15), "{longest:?}");
    fleet.settled().await;
    assert_eq!(fleet.lost(&subjects).await, 0);
    fleet.assert_no_double();
    let served = served.load(Ordering::SeqCst);
    report("terminated", &format!("{served} calls, none failed; the longest end took {longest:?}"));
}

/// Waits until every caller has ended a call.
async fn each_ended_a_call(ended: &[AtomicUsize]) {
    let before: Vec<_> = ended.iter().map(|count| count.load(Ordering::SeqCst)).collect();
    while ended.iter().zip(&before).any(|(count, before)| count.load(Ordering::SeqCst) == *before) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// As Kubernetes rolls: a replica is taken out of the balancer's list, then ended, and its successor is put
/// in once it is ready.
async fn rolling_restart() {
    let mut fleet = Fleet::with_grace(Duration::from_secs(30)).await;
    let subjects = seed_grants(&fleet, 30).await;
    let (channel, replicas) = Channel::balance_channel::<usize>(16);
    let key = ApiKey::new(api_key("helper").expose()).expect("a key");
    let client = Client::new(channel, key);
    for number in 0..REPLICAS {
        replicas.send(Change::Insert(number, endpoint(&fleet, number))).await.expect("it listens");
    }
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let ended: Arc<Vec<_>> = Arc::new((0..CALLERS).map(|_| AtomicUsize::new(0)).collect());
    let callers: Vec<_> = (0..CALLERS)
        .map(|number| {
            let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
            let mine = Arc::clone(&ended);
            let (mut client, subjects) = (client.clone(), subjects.clone());
            let seed = seed() + u64::try_from(number).expect("small");
            tokio::spawn(async move {
                let mut random = StdRng::seed_from_u64(seed);
                while !stop.load(Ordering::SeqCst) {
                    let subject = &subjects[random.random_range(0..subjects.len())];
                    let refreshes = random.random_range(0..10) == 0;
                    let told = call(&mut client, subject, refreshes).await;
                    told.unwrap_or_else(|status| panic!("{subject}: {status:?}"));
                    served.fetch_add(1, Ordering::SeqCst);
                    mine[number].fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    for number in 0..REPLICAS {
        let wanted = served.load(Ordering::SeqCst) + 300;
        while served.load(Ordering::SeqCst) < wanted {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        replicas.send(Change::Remove(number)).await.expect("it listens");
        // What `preStopSeconds` is for: callers learn of it first. Whoever had chosen it by then has its
        // answer, and so has the first call that was chosen for after.
        each_ended_a_call(&ended).await;
        each_ended_a_call(&ended).await;
        let left = fleet.take(number).terminate().await;
        assert_eq!(left.code, Some(0), "{}", left.stderr);
        fleet.restart(number).await;
        replicas.send(Change::Insert(number, endpoint(&fleet, number))).await.expect("it listens");
    }
    stop.store(true, Ordering::SeqCst);
    for caller in callers {
        caller.await.expect("no call failed");
    }
    assert_eq!(fleet.lost(&subjects).await, 0);
    fleet.assert_no_double();
    let served = served.load(Ordering::SeqCst);
    report("rolling restart", &format!("{served} calls, none failed"));
}

fn endpoint(fleet: &Fleet, number: usize) -> Endpoint {
    Client::channel(format!("http://{}", fleet.replica(number).grpc)).expect("a URL")
}
