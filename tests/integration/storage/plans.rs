//! How PostgreSQL works on the rows: updates in place.

use libtest_mimic::Trial;
use sea_orm::{ConnectionTrait, Statement};

use super::backend::{Backend, Postgres, Store, TAKEOVER, disposal, key, tokens};
use crate::harness::soak::{report, size};

pub fn trials() -> Vec<Trial> {
    vec![Postgres::trial("access_tokens_are_updated_in_place", in_place)]
}

/// The updates of a table so far, and those of them that left its indexes alone.
async fn updates(store: &Store, table: &str) -> (i64, i64) {
    let db = store.raw().await;
    let sql = format!(
        "SELECT n_tup_upd AS all_of_them, n_tup_hot_upd AS in_place, n_tup_del AS deleted \
         FROM pg_stat_user_tables WHERE relname = '{table}'"
    );
    let statement = Statement::from_string(db.get_database_backend(), sql);
    let row = db.query_one_raw(statement).await.expect("a statement").expect("a row");
    db.close().await.expect("closed");
    assert_eq!(row.try_get::<i64>("", "deleted").expect("a number"), 0, "{table}");
    (
        row.try_get("", "all_of_them").expect("a number"),
        row.try_get("", "in_place").expect("a number"),
    )
}

async fn in_place() {
    let store = Store::new::<Postgres>().await;
    let refreshes = size(200, 2000);
    for number in 0..20 {
        store.grant(&key(&format!("u{number}")), "1").await;
    }
    for number in 0..refreshes {
        let key = key(&format!("u{}", number % 20));
        let grant = store.held(&key).await.grant;
        let lease = store.storage.claim_refresh(&grant, TAKEOVER).await.expect("storage");
        let lease = lease.expect("a lease");
        assert!(store.storage.renew_lease(&grant, lease.owner).await.expect("storage"));
        let tokens = tokens(&number.to_string(), store.now());
        store.storage.commit_refresh(&grant, &tokens, &disposal()).await.expect("storage");
    }
    let wanted = i64::try_from(refreshes).expect("a number");
    // The server publishes its counts now and then.
    let (mut tokens, mut grants) = ((0, 0), (0, 0));
    while tokens.0 < wanted {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        tokens = updates(&store, "access_tokens").await;
        grants = updates(&store, "grants").await;
    }
    report(
        "updates in place",
        &format!(
            "{refreshes} refreshes: access_tokens {} of {}, grants {} of {}",
            tokens.1, tokens.0, grants.1, grants.0
        ),
    );
    assert!(tokens.1 * 100 >= tokens.0 * 75, "access_tokens: {} of {}", tokens.1, tokens.0);
    // Of three updates of a grant, the renewal of the lease changes no index.
    assert!(grants.1 * 100 >= grants.0 * 25, "grants: {} of {}", grants.1, grants.0);
}
