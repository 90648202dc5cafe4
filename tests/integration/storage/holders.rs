//! Who may take over a refresh whose outcome is unknown.

use std::time::Duration;

use libtest_mimic::Trial;
use token_broker::domain::grant::Grant;
use token_broker::domain::time::Timestamp;
use token_broker::storage::{LEASE, Takeover};

use super::backend::{Backend, Store, key, keyring};

pub fn trials<B: Backend>() -> Vec<Trial> {
    vec![
        B::trial("a_refresh_is_not_taken_from_a_holder_that_lives", living::<B>),
        B::trial("a_silent_holder_is_waited_for", silent::<B>),
        B::trial("a_holder_that_has_left_is_not_waited_for", left::<B>),
        B::trial("a_holder_whose_place_was_taken_is_not_waited_for", replaced::<B>),
        B::trial("a_holder_without_heartbeats_is_waited_for_after_its_lease", older_version::<B>),
        B::trial("with_a_grace_no_holder_is_waited_for", grace::<B>),
        B::trial("a_clock_that_was_set_forward_ends_no_lease", forward::<B>),
        B::trial("a_clock_that_was_set_back_keeps_no_lease", back::<B>),
    ]
}

const TIMEOUT: Duration = Duration::from_secs(60);

/// A replica that holds a refresh whose lease has ended, and another one.
struct Two {
    holder: Store,
    other: Store,
    grant: Grant,
}

impl Two {
    async fn new<B: Backend>() -> Self {
        let holder = Store::new::<B>().await;
        let other = holder.beside(keyring(&[("test", 7)])).await;
        let grant = holder.grant(&key("u1"), "1").await;
        // On SQLite every other process is gone when one registers.
        if holder.storage.is_shared() {
            other.storage.replicas().register_replica(Some("there")).await.expect("storage");
        }
        holder.storage.replicas().register_replica(Some("here")).await.expect("storage");
        let lease = holder.storage.grants().claim_refresh(&grant, None).await.expect("storage");
        assert!(lease.is_some());
        holder.advance(LEASE + Duration::from_millis(1));
        Self { holder, other, grant }
    }

    async fn claims(&self, store: &Store, holder_timeout: Option<Duration>) -> bool {
        let takeover = Takeover { expected_now: None, holder_timeout };
        let lease = store.grants().claim_refresh(&self.grant, Some(takeover)).await;
        lease.expect("storage").is_some()
    }
}

async fn living<B: Backend>() {
    let two = Two::new::<B>().await;
    two.holder.storage.replicas().heartbeat().await.expect("storage");
    assert!(!two.claims(&two.other, Some(TIMEOUT)).await);
    assert!(two.claims(&two.holder, Some(TIMEOUT)).await, "its own is the holder's to repeat");
}

async fn silent<B: Backend>() {
    let two = Two::new::<B>().await;
    two.holder.advance(TIMEOUT - LEASE - Duration::from_millis(2));
    assert!(!two.claims(&two.other, Some(TIMEOUT)).await, "it may only be cut off");
    two.holder.advance(Duration::from_millis(2));
    assert!(two.claims(&two.other, Some(TIMEOUT)).await);
}

async fn left<B: Backend>() {
    let two = Two::new::<B>().await;
    two.holder.storage.replicas().deregister_replica().await.expect("storage");
    assert!(two.claims(&two.other, Some(TIMEOUT)).await);
}

async fn replaced<B: Backend>() {
    let two = Two::new::<B>().await;
    let again = two.holder.beside(keyring(&[("test", 7)])).await;
    again.storage.replicas().register_replica(Some("elsewhere")).await.expect("storage");
    if two.holder.storage.is_shared() {
        assert!(!two.claims(&two.other, Some(TIMEOUT)).await, "it lives in another place");
    }
    again.storage.replicas().register_replica(Some("here")).await.expect("storage");
    assert!(two.claims(&two.other, Some(TIMEOUT)).await);
}

async fn older_version<B: Backend>() {
    let two = Two::new::<B>().await;
    two.holder.tamper("UPDATE grants SET lease_replica = NULL", []).await;
    two.holder.advance(TIMEOUT - Duration::from_millis(1));
    assert!(!two.claims(&two.other, Some(TIMEOUT)).await);
    two.holder.advance(Duration::from_millis(1));
    assert!(two.claims(&two.other, Some(TIMEOUT)).await);
}

async fn grace<B: Backend>() {
    let two = Two::new::<B>().await;
    two.holder.storage.replicas().heartbeat().await.expect("storage");
    assert!(two.claims(&two.other, None).await);
}

async fn claims_at(two: &Two, expected: Timestamp) -> bool {
    let takeover = Takeover { expected_now: Some(expected), holder_timeout: None };
    let lease = two.other.storage.grants().claim_refresh(&two.grant, Some(takeover)).await;
    lease.expect("storage").is_some()
}

async fn forward<B: Backend>() {
    let two = Two::new::<B>().await;
    let before = two.holder.now();
    two.holder.advance(Duration::from_secs(20));
    assert!(!claims_at(&two, before).await, "the lease has not ended, the clock was set");
    assert!(claims_at(&two, two.holder.now()).await);
}

async fn back<B: Backend>() {
    let two = Two::new::<B>().await;
    let claimed = two.claims(&two.holder, None).await;
    assert!(claimed, "a new lease");
    let five_minutes = 300_000;
    two.holder.clock.fetch_sub(five_minutes, std::sync::atomic::Ordering::SeqCst);
    // Five minutes and more until it would end by that clock.
    assert!(claims_at(&two, two.holder.now()).await);
}
