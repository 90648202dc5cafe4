//! Grants as authorizations leave them.

use std::time::Duration;

use libtest_mimic::Trial;
use token_broker::domain::grant::{GrantState, Version};
use token_broker::domain::time::Timestamp;

use super::backend::{
    Backend, Store, TAKEOVER, TOKEN_LIFETIME, at_once, disposal, exposed, identity, key, key_at,
    scopes, tokens,
};

pub fn trials<B: Backend>() -> Vec<Trial> {
    vec![
        B::trial("a_grant_is_found_by_its_whole_key", found::<B>),
        B::trial("a_new_authorization_is_a_new_generation_of_the_same_row", generations::<B>),
        B::trial("a_new_generation_has_no_lease_no_fault_and_no_fallback", fresh::<B>),
        B::trial("a_new_generation_without_a_refresh_token_has_none", no_refresh_token::<B>),
        B::trial("of_two_first_authorizations_the_later_replaces_the_earlier", two_first::<B>),
        B::trial("a_revoked_key_that_comes_back_is_another_row", another_row::<B>),
    ]
}

async fn found<B: Backend>() {
    let store = Store::new::<B>().await;
    let granted = store.grant(&key("u1"), "1").await;
    let held = store.held(&key("u1")).await;
    assert_eq!((held.grant.id, held.now, held.leased), (granted.id, store.now(), false));
    assert_eq!((held.grant.state, held.grant.refreshable), (GrantState::Active, true));
    assert_eq!(held.grant.scopes, scopes("email profile"));
    assert_eq!(held.grant.created_at, store.now());
    assert_eq!(held.grant.expires_at, Some(store.now() + TOKEN_LIFETIME));
    let token = held.access_token.expect("an access token");
    assert_eq!(exposed(Some(&token.value)), Some("access-1"));
    assert_eq!((token.token_type.as_str(), token.issued_at), ("Bearer", store.now()));
    assert_eq!(token.expires_at, Some(store.now() + TOKEN_LIFETIME));
    for other in [
        key_at("other", "acme", "u1", ""),
        key_at("helper", "other", "u1", ""),
        key_at("helper", "acme", "U1", ""),
        key_at("helper", "acme", "u1", "work"),
    ] {
        let other_held = store.grants().find_grant(&other).await.expect("storage");
        assert!(other_held.is_none(), "{other:?}");
    }
}

async fn generations<B: Backend>() {
    let store = Store::new::<B>().await;
    let first = store.grant(&key("u1"), "1").await;
    assert_eq!(first.version, Version { generation: 1, token_version: 1 });
    store.advance(Duration::from_secs(60));
    let second = store.grant(&key("u1"), "2").await;
    assert_eq!(second.id, first.id);
    assert_eq!(second.version, Version { generation: 2, token_version: 2 });
    // When the user authorized, which was now.
    assert_eq!(second.created_at, store.now());
    assert_eq!(store.served(&key("u1")).await, "access-2");
    let lease =
        store.grants().claim_refresh(&second, TAKEOVER).await.expect("storage").expect("a lease");
    assert_eq!(exposed(lease.refresh_token.as_ref()), Some("refresh-2"));
    // What was superseded is deleted, not revoked: that could end the new grant.
    assert_eq!(store.doomed().await, 0);
}

async fn fresh<B: Backend>() {
    let store = Store::new::<B>().await;
    let old = store.grant(&key("u1"), "1").await;
    // A sibling's loss leaves a fallback, a failure a wait and an intent, a flag a dead state.
    let loser = tokens("loser", store.now());
    let late = tokens("late", store.now());
    store.grants().commit_refresh(&old, &loser, &disposal()).await.expect("storage");
    store.grants().commit_refresh(&old, &late, &disposal()).await.expect("storage");
    let old = store.held(&key("u1")).await.grant;
    let lease =
        store.grants().claim_refresh(&old, TAKEOVER).await.expect("storage").expect("a lease");
    assert_eq!(exposed(lease.fallback.as_ref()), Some("refresh-late"));
    let wait = Some(Duration::from_secs(300));
    store.grants().release(&old, lease.owner, true, wait, "status 500").await.expect("storage");
    assert!(store.grants().flag(&old, "invalid_grant").await.expect("storage"));

    let new = store.grant(&key("u1"), "2").await;
    assert_eq!((new.state, new.failures, new.next_attempt_at), (GrantState::Active, 0, None));
    let lease =
        store.grants().claim_refresh(&new, TAKEOVER).await.expect("storage").expect("a lease");
    assert_eq!(exposed(lease.refresh_token.as_ref()), Some("refresh-2"));
    assert!(lease.fallback.is_none());
    assert!(!lease.intent_was_open);
}

async fn no_refresh_token<B: Backend>() {
    let store = Store::new::<B>().await;
    store.grant(&key("u1"), "1").await;
    let authorization = store.awaiting(&key("u1"), "2").await;
    let mut tokens = tokens("2", store.now());
    tokens.refresh_token = None;
    tokens.access_token.expires_at = None;
    let stored = store
        .authorizations()
        .authorize(&authorization, &tokens, &identity(), &[])
        .await
        .expect("storage");
    let grant = stored.expect("a grant");
    // The old generation's refresh token belongs to another consent.
    assert!(!grant.refreshable);
    let lease =
        store.grants().claim_refresh(&grant, TAKEOVER).await.expect("storage").expect("a lease");
    assert!(lease.refresh_token.is_none());
    let held = store.held(&key("u1")).await;
    assert_eq!(held.grant.expires_at, None);
    let token = held.access_token.expect("an access token");
    assert!(token.is_living(Timestamp::from_millis(i64::MAX)));
}

async fn two_first<B: Backend>() {
    for round in 0..8 {
        let store = Store::new::<B>().await;
        let both = [store.awaiting(&key("u1"), "1").await, store.awaiting(&key("u1"), "2").await];
        let stored = at_once(2, |index| {
            let (store, authorization) = (store.clone(), both[index].clone());
            async move {
                let tokens = tokens(&(index + 1).to_string(), store.now());
                let stored = store
                    .authorizations()
                    .authorize(&authorization, &tokens, &identity(), &[])
                    .await;
                stored.expect("storage").expect("a grant")
            }
        })
        .await;
        assert_eq!(stored[0].id, stored[1].id, "round {round}");
        let later = usize::from(stored[1].version.generation == 2);
        assert_eq!(stored[later].version, Version { generation: 2, token_version: 2 });
        assert_eq!(stored[1 - later].version, Version { generation: 1, token_version: 1 });
        assert_eq!(store.served(&key("u1")).await, format!("access-{}", later + 1));
    }
}

async fn another_row<B: Backend>() {
    let store = Store::new::<B>().await;
    let first = store.grant(&key("u1"), "1").await;
    store.grants().revoke(&key("u1"), &disposal()).await.expect("storage");
    let second = store.grant(&key("u1"), "2").await;
    // So that no commit or etag of the first can fit the second, though the numbers are the same.
    assert_ne!(second.id, first.id);
    assert_eq!(second.version, first.version);
    let late = tokens("late", store.now());
    store.grants().commit_refresh(&first, &late, &disposal()).await.expect("storage");
    assert_eq!(store.served(&key("u1")).await, "access-2");
    assert_eq!(store.doomed().await, 0);
}
