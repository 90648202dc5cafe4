//! Reads of grants that share statements: each caller gets its own grant, and none waits for another's connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use rustix::process::{Pid, Signal, kill_process};
use sea_orm::{ConnectionTrait, Statement};
use secrecy::ExposeSecret;

use super::backend::{Backend, Postgres, Serializable, Store, at_once, key};
use crate::harness::soak::report;

pub fn trials() -> Vec<Trial> {
    vec![
        Postgres::trial("concurrent_reads_get_their_own_grants", own::<Postgres>),
        Serializable::trial("concurrent_reads_get_their_own_grants", own::<Serializable>),
        Postgres::trial("reads_whose_callers_go_leave_no_other_waiting", cancelled),
        Postgres::trial("two_connections_that_hang_stop_no_other_read", hung),
        Postgres::trial("reads_leave_a_small_pool_to_writers", small_pool),
    ]
}

const GRANTS: usize = 40;

/// A store with grants `u0` and so on, whose access tokens have the same numbers.
async fn filled<B: Backend>() -> Store {
    let store = Store::new::<B>().await;
    for number in 0..GRANTS {
        store.grant(&key(&format!("u{number}")), &number.to_string()).await;
    }
    store
}

/// Reads a user's access token.
async fn token(store: &Store, number: usize) -> Option<String> {
    let found = store.grants().find_grant(&key(&format!("u{number}"))).await.expect("storage");
    let token = found.and_then(|found| found.access_token);
    token.map(|token| token.value.expose_secret().to_owned())
}

fn expected(number: usize) -> Option<String> {
    (number < GRANTS).then(|| format!("access-{number}"))
}

async fn own<B: Backend>() {
    let store = filled::<B>().await;
    // Several callers ask for the same grant, and some for one that does not exist.
    at_once(300, |index| {
        let (store, number) = (store.clone(), index * 7 % (GRANTS + 10));
        async move {
            for _ in 0..5 {
                assert_eq!(token(&store, number).await, expected(number), "{number}");
            }
        }
    })
    .await;
}

async fn cancelled() {
    let store = filled::<Postgres>().await;
    at_once(200, |index| {
        let (store, number) = (store.clone(), index % GRANTS);
        async move {
            for round in 0..10_u64 {
                let limit = Duration::from_micros(50 * ((index as u64 + round) % 40));
                let reading = token(&store, number);
                if let Ok(found) = tokio::time::timeout(limit, reading).await {
                    assert_eq!(found, expected(number), "{number}");
                }
            }
        }
    })
    .await;
    for number in 0..GRANTS {
        assert_eq!(token(&store, number).await, expected(number), "{number}");
    }
}

/// The processes of the server that work for the store.
async fn backends(store: &Store) -> Vec<Pid> {
    let db = store.raw().await;
    let sql = "SELECT pid FROM pg_stat_activity \
               WHERE datname = current_database() AND pid <> pg_backend_pid()";
    let statement = Statement::from_string(db.get_database_backend(), sql);
    let rows = db.query_all_raw(statement).await.expect("a statement");
    db.close().await.expect("closed");
    let pid = |row: &sea_orm::QueryResult| row.try_get::<i32>("", "pid").expect("a number");
    rows.iter().map(|row| Pid::from_raw(pid(row)).expect("not zero")).collect()
}

/// Continues them when the test ends, however it ends.
struct Stopped(Vec<Pid>);

impl Drop for Stopped {
    fn drop(&mut self) {
        for pid in &self.0 {
            // It may have ended.
            let _ = kill_process(*pid, Signal::CONT);
        }
    }
}

async fn hung() {
    let writer = filled::<Postgres>().await;
    let store = writer.beside(super::backend::keyring(&[("test", 7)])).await;
    let before = backends(&store).await;
    // Two connections, which are idle for less than the time after which the pool tests them.
    at_once(2, |number| {
        let store = store.clone();
        async move { token(&store, number).await }
    })
    .await;
    let opened: Vec<_> =
        backends(&store).await.into_iter().filter(|pid| !before.contains(pid)).collect();
    assert!(!opened.is_empty() && opened.len() <= 2, "{opened:?}");
    let _stopped = Stopped(opened.clone());
    for pid in &opened {
        kill_process(*pid, Signal::STOP).expect("it runs");
    }
    let began = Instant::now();
    let in_time = at_once(30, |number| {
        let store = store.clone();
        async move {
            let reading = token(&store, number);
            tokio::time::timeout(Duration::from_secs(4), reading).await.is_ok()
        }
    })
    .await;
    let answered = in_time.into_iter().filter(|in_time| *in_time).count();
    report("hung connections", &format!("{answered} of 30 reads after {:?}", began.elapsed()));
    assert!(answered >= 28, "{answered} of 30 reads");
}

/// One connection for calls, which a reader and a writer want by turns.
async fn small_pool() {
    const WRITES: usize = 20;

    let full = filled::<Postgres>().await;
    let store = full.with_connections(3).await;
    let reads = Arc::new(AtomicUsize::new(0));
    let reading = tokio::spawn({
        let (store, reads) = (store.clone(), Arc::clone(&reads));
        async move {
            loop {
                token(&store, 1).await;
                reads.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let mut beside = Vec::new();
    for number in 0..WRITES {
        let before = reads.load(Ordering::SeqCst);
        store.grant(&key(&format!("new-{number}")), "new").await;
        beside.push(reads.load(Ordering::SeqCst) - before);
    }
    reading.abort();
    beside.sort();
    let (median, most) = (beside[WRITES / 2], beside[WRITES - 1]);
    report("a small pool", &format!("reads beside one grant: median {median}, at most {most}"));
    // A grant takes a connection a few times. Each time up to a hundred reads went first.
    assert!(median < 100, "{beside:?}");
}
