//! The right to refresh: one holder, for as long as the lease lasts.

use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::Trial;
use token_broker::domain::grant::Grant;
use token_broker::storage::{LEASE, Lease};

use super::backend::{Backend, Store, TAKEOVER, at_once, disposal, exposed, key, tokens};

pub fn trials<B: Backend>() -> Vec<Trial> {
    vec![
        B::trial("one_of_32_claims_wins", exclusive::<B>),
        B::trial("a_lease_that_ran_out_lets_another_claim", expiry::<B>),
        B::trial("a_renewed_lease_lasts_anew", renewed::<B>),
        B::trial("a_released_lease_blocks_claims_until_its_wait_is_over", backoff::<B>),
        B::trial("a_release_tells_whether_doubt_stays", doubt::<B>),
        B::trial("only_the_owner_releases_a_lease", owner::<B>),
        B::trial("another_edition_cannot_be_claimed", editions::<B>),
        B::trial("a_flagged_grant_cannot_be_claimed", flagged::<B>),
    ]
}

async fn claim(store: &Store, grant: &Grant) -> Option<Lease> {
    store.grants().claim_refresh(grant, TAKEOVER).await.expect("storage")
}

async fn exclusive<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = store.grant(&key("u1"), "1").await;
    let other = store.grant(&key("u2"), "2").await;
    let leases = at_once(32, |_| {
        let (store, grant) = (store.clone(), grant.clone());
        async move { claim(&store, &grant).await }
    })
    .await;
    let leases: Vec<_> = leases.into_iter().flatten().collect();
    assert_eq!(leases.len(), 1);
    assert_eq!(leases[0].claimed_at, store.now());
    assert_eq!(exposed(leases[0].refresh_token.as_ref()), Some("refresh-1"));
    assert!(leases[0].fallback.is_none());
    assert!(!leases[0].intent_was_open);
    assert!(store.held(&key("u1")).await.leased);
    assert!(!store.held(&key("u2")).await.leased);
    assert!(claim(&store, &other).await.is_some());
}

async fn expiry<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = store.grant(&key("u1"), "1").await;
    let first = claim(&store, &grant).await.expect("a lease");
    store.advance(LEASE);
    // To the last millisecond.
    assert!(claim(&store, &grant).await.is_none());
    assert!(store.held(&key("u1")).await.leased);
    store.advance(Duration::from_millis(1));
    assert!(!store.held(&key("u1")).await.leased);
    assert!(!store.grants().renew_lease(&grant, first.owner).await.expect("storage"));

    let leases = at_once(32, |_| {
        let (store, grant) = (store.clone(), grant.clone());
        async move { claim(&store, &grant).await }
    })
    .await;
    let leases: Vec<_> = leases.into_iter().flatten().collect();
    assert_eq!(leases.len(), 1);
    assert_ne!(leases[0].owner, first.owner);
    // The first holder may have sent the token.
    assert!(leases[0].intent_was_open);
    assert_eq!(leases[0].claimed_at, store.now());
}

async fn renewed<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = store.grant(&key("u1"), "1").await;
    let lease = claim(&store, &grant).await.expect("a lease");
    store.advance(LEASE);
    assert!(store.grants().renew_lease(&grant, lease.owner).await.expect("storage"));
    store.advance(LEASE);
    assert!(claim(&store, &grant).await.is_none());
    let other = store.grants().claim_refresh(&store.grant(&key("u2"), "2").await, TAKEOVER).await;
    let stranger = other.expect("storage").expect("a lease").owner;
    assert!(!store.grants().renew_lease(&grant, stranger).await.expect("storage"));
    store.advance(Duration::from_millis(1));
    assert!(claim(&store, &grant).await.is_some());
}

async fn backoff<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = store.grant(&key("u1"), "1").await;
    for failures in 1..=3 {
        let owner = claim(&store, &grant).await.expect("a lease").owner;
        let wait = Duration::from_secs(20);
        let released = store.grants().release(&grant, owner, false, Some(wait), "status 503").await;
        released.expect("storage");
        let held = store.held(&key("u1")).await;
        assert_eq!((held.leased, held.grant.failures), (false, failures));
        assert_eq!(held.grant.next_attempt_at, Some(store.now() + wait));
        // A failure is no new edition.
        assert_eq!(held.grant.version, grant.version);
        store.advance(wait - Duration::from_millis(1));
        assert!(claim(&store, &grant).await.is_none());
        store.advance(Duration::from_millis(1));
    }
    let owner = claim(&store, &grant).await.expect("a lease").owner;
    store.grants().release(&grant, owner, false, None, "too late").await.expect("storage");
    assert!(claim(&store, &grant).await.is_some());
}

async fn doubt<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = store.grant(&key("u1"), "1").await;
    for stays in [true, false] {
        let owner = claim(&store, &grant).await.expect("a lease").owner;
        // An intent counts as open once it is older than the claim that finds it.
        store.advance(Duration::from_millis(1));
        store.grants().release(&grant, owner, stays, None, "status 503").await.expect("storage");
        let lease = claim(&store, &grant).await.expect("a lease");
        assert_eq!(lease.intent_was_open, stays);
        store.grants().release(&grant, lease.owner, false, None, "done").await.expect("storage");
    }
}

async fn owner<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = store.grant(&key("u1"), "1").await;
    let first = claim(&store, &grant).await.expect("a lease");
    store.advance(LEASE + Duration::from_millis(1));
    let second = claim(&store, &grant).await.expect("a lease");
    // The first holder comes back late: it must not end what is the second's.
    let wait = Some(Duration::from_secs(60));
    let released = store.grants().release(&grant, first.owner, false, wait, "late").await;
    released.expect("storage");
    let held = store.held(&key("u1")).await;
    assert!(held.leased);
    assert_eq!((held.grant.failures, held.grant.next_attempt_at), (0, None));
    assert!(store.grants().renew_lease(&grant, second.owner).await.expect("storage"));
}

async fn editions<B: Backend>() {
    let store = Store::new::<B>().await;
    let old = store.grant(&key("u1"), "1").await;
    let tokens = tokens("2", store.now());
    store.grants().commit_refresh(&old, &tokens, &disposal()).await.expect("storage");
    assert!(claim(&store, &old).await.is_none());
    let refreshed = store.held(&key("u1")).await.grant;
    let anew = store.grant(&key("u1"), "3").await;
    assert!(claim(&store, &refreshed).await.is_none());
    assert!(claim(&store, &anew).await.is_some());
}

async fn flagged<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = store.grant(&key("u1"), "1").await;
    claim(&store, &grant).await.expect("a lease");
    let storage = Arc::clone(&store.storage);
    assert!(storage.grants().flag(&grant, "invalid_grant").await.expect("storage"));
    let held = store.held(&key("u1")).await;
    assert!(!held.leased);
    // Its edition is the same, so that a late answer can still be committed.
    assert_eq!(held.grant.version, grant.version);
    assert_eq!(store.served(&key("u1")).await, "access-1");
    assert!(claim(&store, &grant).await.is_none());
    let old = store.grant(&key("u2"), "2").await;
    store.grant(&key("u2"), "3").await;
    // A verdict on an old edition is none on the new one.
    assert!(!storage.grants().flag(&old, "invalid_grant").await.expect("storage"));
}
