//! What a server ends by itself: statements that wait, and those whose caller has gone.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use sea_orm::{ConnectionTrait, Statement, TransactionTrait};
use token_broker::storage::ErrorKind;

use super::backend::{Backend, Postgres, Store, TAKEOVER, at_once, key};

pub fn trials() -> Vec<Trial> {
    vec![
        Postgres::trial("a_lock_that_is_held_for_long_exhausts_no_connections", lock),
        Postgres::trial("a_statement_whose_caller_has_gone_ends_at_the_server", gone),
        Postgres::trial("sessions_are_read_committed_whatever_the_default", isolation),
    ]
}

async fn sessions(store: &Store, which: &str) -> i64 {
    let db = store.raw().await;
    let sql = format!(
        "SELECT count(*) AS count FROM pg_stat_activity WHERE datname = current_database() \
         AND pid <> pg_backend_pid() AND {which}"
    );
    let statement = Statement::from_string(db.get_database_backend(), sql);
    let row = db.query_one_raw(statement).await.expect("a statement").expect("a row");
    db.close().await.expect("closed");
    row.try_get("", "count").expect("a number")
}

async fn lock() {
    let store = Store::new::<Postgres>().await;
    let grant = store.grant(&key("u1"), "1").await;
    let raw = store.raw().await;
    let holder = raw.begin().await.expect("a transaction");
    holder.execute_unprepared("SELECT 1 FROM grants FOR UPDATE").await.expect("a lock");
    let began = Instant::now();
    let claims = at_once(60, |_| {
        let (store, grant) = (store.clone(), grant.clone());
        async move { store.grants().claim_refresh(&grant, TAKEOVER).await }
    });
    let ended = claims.await;
    let waited = began.elapsed();
    for ended in ended {
        let error = ended.expect_err("the row is locked");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    }
    assert!(sessions(&store, "wait_event_type = 'Lock'").await == 0, "one waits still");
    // Ten connections of the pool, and the holder's.
    assert!(sessions(&store, "true").await <= 12);
    crate::harness::soak::report("a lock held", &format!("60 callers ended after {waited:?}"));
    holder.rollback().await.expect("a rollback");
    let lease = store.grants().claim_refresh(&grant, TAKEOVER).await.expect("storage");
    assert!(lease.is_some(), "the pool works on");
}

async fn gone() {
    let store = Store::new::<Postgres>().await;
    let grant = store.grant(&key("u1"), "1").await;
    let raw = store.raw().await;
    let holder = raw.begin().await.expect("a transaction");
    holder.execute_unprepared("SELECT 1 FROM grants FOR UPDATE").await.expect("a lock");
    let claim = {
        let (store, grant) = (store.clone(), grant.clone());
        tokio::spawn(async move { store.grants().claim_refresh(&grant, TAKEOVER).await })
    };
    while sessions(&store, "wait_event_type = 'Lock'").await == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    claim.abort();
    assert!(claim.await.is_err());
    // Well before its time limit, for the server looks after its client once a second.
    let began = Instant::now();
    while sessions(&store, "wait_event_type = 'Lock'").await > 0 {
        assert!(began.elapsed() < Duration::from_millis(3500), "it goes on for nobody");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    holder.rollback().await.expect("a rollback");
    // Had it gone on, it would have claimed the refresh by now.
    let lease = store.grants().claim_refresh(&grant, TAKEOVER).await.expect("storage");
    assert!(!lease.expect("a lease").intent_was_open);
}

async fn isolation() {
    let store = Store::new::<Postgres>().await;
    let name = store.place.url.rsplit_once('/').expect("a database").1.to_owned();
    let sql = format!("ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'");
    store.tamper(&sql, []).await;
    let other = store.beside(super::backend::keyring(&[("test", 7)])).await;
    // Two transactions that read what the other writes: both commit under READ COMMITTED alone.
    let grants = at_once(32, |number| {
        let other = other.clone();
        async move { other.grant(&key(&format!("u{number}")), "1").await }
    });
    assert_eq!(grants.await.len(), 32);
    let shown = other.storage.session_isolation().await.expect("storage");
    assert_eq!(shown, "read committed");
}
