//! Many at once: nobody is told that the database is locked, and nobody's work is lost.

use libtest_mimic::Trial;
use token_broker::domain::grant::Version;
use token_broker::domain::time::Timestamp;
use token_broker::storage::{Committed, ListFilter, SubjectFilter};

use super::backend::{Backend, Store, TAKEOVER, at_once, disposal, exposed, key, keyring, tokens};
use crate::harness::world::name;

/// The number of times that each of a crowd refreshes.
const ROUNDS: i64 = 4;

pub fn trials<B: Backend>() -> Vec<Trial> {
    vec![
        B::trial("64_writers_and_readers_at_once_lose_nothing", crowd::<B>),
        B::trial("64_writers_of_one_row_take_turns", one_row::<B>),
    ]
}

/// The whole life of one grant, on one of two replicas.
async fn live(store: Store, index: usize) {
    let subject = format!("u{index}");
    let key = key(&subject);
    let mut grant = store.grant(&key, &format!("{index}-0")).await;
    for round in 1..=ROUNDS {
        let lease = store
            .grants()
            .claim_refresh(&grant, TAKEOVER)
            .await
            .expect("storage")
            .expect("a lease");
        let sent = format!("refresh-{index}-{}", round - 1);
        assert_eq!(exposed(lease.refresh_token.as_ref()), Some(sent.as_str()));
        let new = tokens(&format!("{index}-{round}"), store.now());
        let committed = store.grants().commit_refresh(&grant, &new, &disposal()).await;
        assert!(matches!(committed.expect("storage"), Committed::Stored));
        assert_eq!(store.served(&key).await, format!("access-{index}-{round}"));
        let filter = ListFilter {
            namespace: name("helper"),
            providers: None,
            subjects: Some(vec![SubjectFilter::Is(subject.clone())]),
            after: None,
            limit: 10,
        };
        let listed = store.grants().list_grants(&filter).await.expect("storage");
        assert_eq!(listed.len(), 1);
        grant = store.held(&key).await.grant;
        assert_eq!(grant.version, Version { generation: 1, token_version: round + 1 });
    }
    if index.is_multiple_of(2) {
        let revoked = store.grants().revoke(&key, &disposal()).await.expect("storage");
        assert_eq!(revoked.revocations.len(), 2);
    }
}

async fn crowd<B: Backend>() {
    let store = Store::new::<B>().await;
    let beside = store.beside(keyring(&[("test", 7)])).await;
    at_once(64, |index| live(if index % 4 < 2 { store.clone() } else { beside.clone() }, index))
        .await;
    assert_eq!(store.doomed().await, 64);
    for index in (1..64).step_by(2) {
        let token = beside.served(&key(&format!("u{index}"))).await;
        assert_eq!(token, format!("access-{index}-{ROUNDS}"));
    }
    let entries =
        beside.storage.revocations().claim_revocations(&name("acme"), 100).await.expect("storage");
    assert!(entries.is_empty());
}

async fn one_row<B: Backend>() {
    let store = Store::new::<B>().await;
    let beside = store.beside(keyring(&[("test", 7)])).await;
    let grant = store.grant(&key("u1"), "0").await;
    let outcomes = at_once(64, |index| {
        let store = if index % 2 == 0 { store.clone() } else { beside.clone() };
        let grant = grant.clone();
        async move {
            let new = tokens(&index.to_string(), Timestamp::from_millis(0));
            let committed = store.grants().commit_refresh(&grant, &new, &disposal()).await;
            let served = store.served(&key("u1")).await;
            (matches!(committed.expect("storage"), Committed::Stored), served)
        }
    })
    .await;
    let stored: Vec<_> = (0..64).filter(|index| outcomes[*index].0).collect();
    assert_eq!(stored.len(), 1);
    // After its own commit, stored or lost, each read what the winner had stored.
    let winner = format!("access-{}", stored[0]);
    assert!(outcomes.iter().all(|(_, served)| *served == winner));
}
