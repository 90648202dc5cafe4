//! A caller that gives up at any moment leaves no open transaction behind, and nothing half done.

use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use libtest_mimic::Trial;
use sea_orm::{ConnectionTrait, Statement};

use super::backend::{
    Backend, Postgres, Sqlite, Store, TAKEOVER, answer, disposal, identity, key, keyring,
    open_with, tokens,
};
use crate::harness::proxy::Proxy;

pub fn trials() -> Vec<Trial> {
    vec![
        Postgres::trial(
            "a_call_cancelled_at_any_await_leaves_no_transaction_open",
            any_await_of_postgres,
        ),
        Sqlite::trial(
            "a_call_cancelled_at_any_await_leaves_no_transaction_open",
            any_await_of_sqlite,
        ),
    ]
}

/// A future that is dropped after it was polled a number of times.
struct Polled<'a, F> {
    future: Pin<&'a mut F>,
    left: usize,
}

impl<F: Future> Future for Polled<'_, F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.left -= 1;
        match self.future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            // With the last poll it is cancelled at the await that it has come to.
            Poll::Pending if self.left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}

async fn any_await_of_sqlite() {
    any_await(Store::new::<Sqlite>().await).await;
}

async fn any_await_of_postgres() {
    let mut place = Postgres::place().await;
    // No answer comes before it is waited for.
    let (proxy, url) = Proxy::in_front_of(&place.url).await;
    proxy.delay(Duration::from_millis(1));
    place.url = url;
    any_await(open_with(&place, keyring(&[("test", 7)])).await).await;
}

async fn any_await(store: Store) {
    let observer = store.beside(keyring(&[("test", 7)])).await;
    let of = |what: &str, polls: usize| key(&format!("{what}-{polls}"));

    // Cancelled at its first await, at its second, and so on, until it ends by itself. SQLite's answer
    // may have come before it is waited for, so that counts only the third time.
    for what in ["claim", "commit", "revoke", "authorize", "quarantine", "begin"] {
        let (mut polls, mut ended) = (1, 0);
        while ended < 3 {
            let key = of(what, 10 * polls + ended);
            let prepared = prepare(&store, what, &key).await;
            let mut work = pin!(prepared.run(&store, &key));
            if (Polled { future: work.as_mut(), left: polls }).await.is_some() {
                ended += 1;
            } else {
                (polls, ended) = (polls + 1, 0);
            }
        }
        assert!(polls > 1, "{what} was never cancelled");
    }

    // What has an effect in this replica's view has it in another's, and nothing is open.
    observer.storage.now().await.expect("storage");
    no_open_transaction(&store).await;
    for what in ["claim", "commit", "revoke", "authorize"] {
        let last = of(what, 10);
        let (here, there) = (
            store.grants().find_grant_without_token(&last).await.expect("storage"),
            observer.storage.grants().find_grant_without_token(&last).await.expect("storage"),
        );
        assert_eq!(here.map(|grant| grant.version), there.map(|grant| grant.version), "{what}");
    }
    // Nor does one of the pool's connections still work inside one: what is stored now is seen.
    for number in 0..40 {
        let of = key(&format!("after-{number}"));
        store.grant(&of, "1").await;
        let seen = observer.storage.grants().find_grant_without_token(&of).await.expect("storage");
        assert!(seen.is_some(), "u{number} was stored inside somebody's transaction");
    }
}

enum Prepared {
    Claim(token_broker::domain::grant::Grant),
    Commit(token_broker::domain::grant::Grant),
    Revoke,
    Authorize(token_broker::domain::authorization::Authorization),
    Quarantine(token_broker::domain::authorization::Authorization),
    Begin,
}

async fn prepare(
    store: &Store,
    what: &str,
    key: &token_broker::domain::grant::GrantKey,
) -> Prepared {
    match what {
        "claim" => Prepared::Claim(store.grant(key, "1").await),
        "commit" => {
            let grant = store.grant(key, "1").await;
            store.grants().claim_refresh(&grant, TAKEOVER).await.expect("storage");
            Prepared::Commit(grant)
        }
        "revoke" => {
            store.grant(key, "1").await;
            Prepared::Revoke
        }
        "authorize" => Prepared::Authorize(store.awaiting(key, "1").await),
        "quarantine" => Prepared::Quarantine(store.exchanging(key).await),
        _ => Prepared::Begin,
    }
}

impl Prepared {
    async fn run(self, store: &Store, key: &token_broker::domain::grant::GrantKey) {
        let now = store.now();
        match self {
            Self::Claim(grant) => {
                store.grants().claim_refresh(&grant, TAKEOVER).await.expect("storage");
            }
            Self::Commit(grant) => {
                let tokens = tokens("2", now);
                store.grants().commit_refresh(&grant, &tokens, &disposal()).await.expect("storage");
            }
            Self::Revoke => {
                store.grants().revoke(key, &disposal()).await.expect("storage");
            }
            Self::Authorize(authorization) => {
                let (tokens, identity) = (tokens("1", now), identity());
                let stored =
                    store.authorizations().authorize(&authorization, &tokens, &identity, &[]).await;
                stored.expect("storage");
            }
            Self::Quarantine(authorization) => {
                assert!(store.quarantine(&authorization, "1").await);
                drop(answer("1"));
            }
            Self::Begin => {
                store.begin(key).await;
            }
        }
    }
}

/// Waits until no session of this database is inside a transaction.
async fn no_open_transaction(store: &Store) {
    let db = store.raw().await;
    if db.get_database_backend() == sea_orm::DbBackend::Sqlite {
        // A writer that waits for nobody.
        db.execute_unprepared("BEGIN IMMEDIATE").await.expect("no writer is left");
        return;
    }
    let open = "SELECT count(*) AS count FROM pg_stat_activity WHERE datname = current_database() \
                AND state LIKE 'idle in transaction%'";
    for _ in 0..100 {
        let statement = Statement::from_string(db.get_database_backend(), open);
        let row = db.query_one_raw(statement).await.expect("a statement").expect("a row");
        if row.try_get::<i64>("", "count").expect("a number") == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("a session stays inside a transaction");
}
