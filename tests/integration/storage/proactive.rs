//! What the worker that refreshes ahead finds: each grant once, and only those that are due.

use std::time::Duration;

use libtest_mimic::Trial;
use token_broker::domain::grant::Grant;
use token_broker::domain::id::Id;
use token_broker::domain::time::Timestamp;
use token_broker::storage::{LEASE, OpenIntents};

use super::backend::{
    Backend, Store, TAKEOVER, TOKEN_LIFETIME, at_once, disposal, key, key_at, tokens,
};
use crate::harness::world::name;

pub fn trials<B: Backend>() -> Vec<Trial> {
    vec![
        B::trial("a_grant_is_due_ahead_of_its_end_and_claimed_once", due::<B>),
        B::trial("sixteen_claims_share_what_is_due", shared::<B>),
        B::trial("a_use_is_written_down_once_for_a_token", used::<B>),
        B::trial("a_grant_that_was_let_go_is_looked_at_when_it_is_used", let_go::<B>),
        B::trial("a_look_is_not_put_off_past_a_refresh", put_off::<B>),
        B::trial("a_flagged_grant_is_not_due", flagged::<B>),
        B::trial("what_was_let_go_can_be_looked_at_anew", anew::<B>),
        B::trial("open_refreshes_of_others_are_found_past_those_that_cannot_be_had", open::<B>),
    ]
}

/// Six minutes before the end at the latest.
const LEAD: Duration = Duration::from_secs(6 * 60);

async fn claimed(store: &Store) -> Vec<Grant> {
    store.grants().claim_due(&name("acme"), 100).await.expect("storage")
}

async fn note_used(store: &Store, grant: &Grant) {
    store.grants().note_used(&[grant.id]).await.expect("storage");
}

async fn due<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = store.grant(&key("u1"), "1").await;
    store.advance(TOKEN_LIFETIME - 2 * LEAD);
    assert!(claimed(&store).await.is_empty());
    store.advance(LEAD);
    let found = claimed(&store).await;
    assert_eq!(found.iter().map(|grant| grant.id).collect::<Vec<_>>(), [grant.id]);
    assert!(claimed(&store).await.is_empty(), "it is claimed");
    // Whoever claimed it has ended.
    store.advance(Duration::from_secs(60));
    assert_eq!(claimed(&store).await.len(), 1);
    store.grants().look_again(&grant, None).await.expect("storage");
    store.advance(TOKEN_LIFETIME);
    assert!(claimed(&store).await.is_empty(), "it was let go");
}

async fn shared<B: Backend>() {
    const GRANTS: usize = 50;

    let store = Store::new::<B>().await;
    for number in 0..GRANTS {
        store.grant(&key(&format!("u{number}")), &number.to_string()).await;
    }
    store.advance(TOKEN_LIFETIME);
    let found = at_once(16, |_| {
        let store = store.clone();
        async move { store.grants().claim_due(&name("acme"), 10).await.expect("storage") }
    })
    .await;
    let mut ids: Vec<_> = found.into_iter().flatten().map(|grant| grant.id).collect();
    // What a claim passed over, because another held it, is there for the next.
    ids.extend(claimed(&store).await.iter().map(|grant| grant.id));
    assert_eq!(ids.len(), GRANTS);
    ids.sort_by_key(|id| *id.as_bytes());
    ids.dedup();
    assert_eq!(ids.len(), GRANTS, "one was claimed twice");
}

async fn used<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = store.grant(&key("u1"), "1").await;
    let last_used = || async { store.held(&key("u1")).await.grant.last_used_at };
    assert_eq!(last_used().await, None);
    let first = store.now();
    note_used(&store, &grant).await;
    assert_eq!(last_used().await, Some(first));
    store.advance(Duration::from_secs(60));
    note_used(&store, &grant).await;
    assert_eq!(last_used().await, Some(first), "once is enough");
    refresh(&store, &grant).await;
    note_used(&store, &grant).await;
    assert_eq!(last_used().await, Some(store.now()));
}

async fn refresh(store: &Store, grant: &Grant) -> Grant {
    store.grants().claim_refresh(grant, TAKEOVER).await.expect("storage").expect("a lease");
    let tokens = tokens("2", store.now());
    store.grants().commit_refresh(grant, &tokens, &disposal()).await.expect("storage");
    store.held(&grant.key).await.grant
}

async fn let_go<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = store.grant(&key("u1"), "1").await;
    store.grants().look_again(&grant, None).await.expect("storage");
    note_used(&store, &grant).await;
    let found = claimed(&store).await;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].last_used_at, Some(store.now()));
    // Put off by somebody who had read it before it was used.
    store.grants().look_again(&grant, None).await.expect("storage");
    store.advance(Duration::from_secs(60));
    assert_eq!(claimed(&store).await.len(), 1);
}

async fn put_off<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = store.grant(&key("u1"), "1").await;
    let refreshed = refresh(&store, &grant).await;
    let far = Timestamp::from_millis(store.now().millis() * 2);
    store.grants().look_again(&grant, Some(far)).await.expect("storage");
    store.advance(TOKEN_LIFETIME);
    assert_eq!(claimed(&store).await.len(), 1, "the refresh has set its own time");
    store.grants().look_again(&refreshed, Some(far)).await.expect("storage");
    store.advance(TOKEN_LIFETIME);
    assert!(claimed(&store).await.is_empty());
}

async fn flagged<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = store.grant(&key("u1"), "1").await;
    store.grants().flag(&grant, "invalid_grant").await.expect("storage");
    note_used(&store, &grant).await;
    store.advance(TOKEN_LIFETIME);
    assert!(claimed(&store).await.is_empty());
}

async fn anew<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = store.grant(&key("u1"), "1").await;
    store.grant(&key_at("helper", "other", "u1", ""), "2").await;
    store.grants().look_again(&grant, None).await.expect("storage");
    let providers = [grant.key.provider.clone()];
    let look = |after| store.grants().look_at_all(&providers, after, 1);
    let first = look(None).await.expect("storage");
    let second = look(first).await.expect("storage");
    assert!(first.is_some() && second.is_some() && first != second);
    assert_eq!(look(second).await.expect("storage"), None);
    assert_eq!(claimed(&store).await.iter().map(|g| g.id).collect::<Vec<_>>(), [grant.id]);
}

async fn open<B: Backend>() {
    let store = Store::new::<B>().await;
    let mut grants = Vec::new();
    for (provider, number) in [("down", 1), ("down", 2), ("acme", 3), ("acme", 4)] {
        let key = key_at("helper", provider, &format!("u{number}"), "");
        let grant = store.grant(&key, &number.to_string()).await;
        store.grants().claim_refresh(&grant, TAKEOVER).await.expect("storage").expect("a lease");
        grants.push(grant);
        // The oldest is found first.
        store.advance(Duration::from_millis(1));
    }
    store.advance(LEASE + Duration::from_millis(1));
    let open = |providers: &'static [&'static str], over: Vec<Id>| {
        let store = store.clone();
        async move {
            let names: Vec<_> = providers.iter().map(|provider| name(provider)).collect();
            let wanted = OpenIntents {
                with_grace: &names,
                without_grace: &[],
                expected_now: None,
                holder_timeout: Duration::ZERO,
                passed_over: &over,
                limit: 1,
            };
            let open = store.grants().open_intents(&wanted).await.expect("storage");
            open.into_iter().map(|grant| grant.id).collect::<Vec<_>>()
        }
    };
    assert_eq!(open(&["down", "acme"], Vec::new()).await, [grants[0].id]);
    assert_eq!(open(&["acme"], Vec::new()).await, [grants[2].id]);
    assert_eq!(open(&["acme"], vec![grants[2].id]).await, [grants[3].id]);
    assert!(open(&[], Vec::new()).await.is_empty());
}
