//! The outbox: each entry has one holder, waits while it could do harm, and ends.

use std::time::Duration;

use libtest_mimic::Trial;
use token_broker::domain::token::TokenSet;
use token_broker::storage::Revocation;

use super::backend::{
    Backend, CONFIRMATION_TTL, Store, TOKEN_LIFETIME, at_once, disposal, key, tokens, values,
};
use crate::harness::world::name;

/// The time that a claim lasts.
const CLAIM: Duration = Duration::from_secs(15);

pub fn trials<B: Backend>() -> Vec<Trial> {
    vec![
        B::trial("an_outbox_entry_has_one_holder_among_32", exclusive::<B>),
        B::trial("a_claim_of_the_outbox_takes_at_most_its_limit", limit::<B>),
        B::trial("a_postponed_entry_waits", postponed::<B>),
        B::trial("entries_wait_while_a_grant_of_their_key_arrives", arriving::<B>),
        B::trial("a_new_grant_ends_the_entries_of_its_key", dropped::<B>),
        B::trial("an_entry_ends_with_its_token", expired::<B>),
    ]
}

async fn claim(store: &Store) -> Vec<Revocation> {
    store.revocations().claim_revocations(&name("acme"), 100).await.expect("storage")
}

/// Fills the outbox with the tokens of a grant of this subject, due at once.
async fn doom(store: &Store, subject: &str) {
    store.grant(&key(subject), subject).await;
    store.grants().revoke(&key(subject), &disposal()).await.expect("storage");
    store.advance(CLAIM);
}

async fn exclusive<B: Backend>() {
    let store = Store::new::<B>().await;
    for subject in ["u1", "u2", "u3"] {
        doom(&store, subject).await;
    }
    let claimed = at_once(32, |_| {
        let store = store.clone();
        async move { claim(&store).await }
    })
    .await;
    let claimed: Vec<_> = claimed.into_iter().flatten().collect();
    let all = ["access-u1", "access-u2", "access-u3", "refresh-u1", "refresh-u2", "refresh-u3"];
    assert_eq!(values(&claimed), all);
    assert!(claimed.iter().all(|entry| entry.attempts == 2));

    // A holder that has ended lets another try.
    store.advance(CLAIM - Duration::from_millis(1));
    assert!(claim(&store).await.is_empty());
    store.advance(Duration::from_millis(1));
    let again = claim(&store).await;
    assert_eq!(values(&again), all);
    assert!(again.iter().all(|entry| entry.attempts == 3));
    for entry in again {
        store.revocations().finish_revocation(entry.id).await.expect("storage");
    }
    store.advance(CLAIM);
    assert!(claim(&store).await.is_empty());
    assert_eq!(store.doomed().await, 0);
}

async fn limit<B: Backend>() {
    let store = Store::new::<B>().await;
    for subject in ["u1", "u2", "u3"] {
        doom(&store, subject).await;
    }
    let mut seen = Vec::new();
    for expected in [4, 2, 0] {
        let claimed =
            store.revocations().claim_revocations(&name("acme"), 4).await.expect("storage");
        assert_eq!(claimed.len(), expected);
        seen.extend(values(&claimed));
    }
    // The longest due come first.
    let first: Vec<_> = seen[..4].iter().map(|value| value.ends_with("u3")).collect();
    assert_eq!(first, [false; 4]);
}

async fn postponed<B: Backend>() {
    let store = Store::new::<B>().await;
    doom(&store, "u1").await;
    let wait = Duration::from_secs(20);
    for entry in claim(&store).await {
        store
            .revocations()
            .postpone_revocation(entry.id, wait, "status 503")
            .await
            .expect("storage");
    }
    store.advance(wait - Duration::from_millis(1));
    assert!(claim(&store).await.is_empty());
    store.advance(Duration::from_millis(1));
    assert_eq!(values(&claim(&store).await), ["access-u1", "refresh-u1"]);
}

async fn arriving<B: Backend>() {
    let store = Store::new::<B>().await;
    doom(&store, "u1").await;
    doom(&store, "u2").await;
    // A pending one has no tokens yet that could be hurt.
    store.begin(&key("u2")).await;
    let exchanging = store.exchanging(&key("u1")).await;
    assert_eq!(values(&claim(&store).await), ["access-u2", "refresh-u2"]);
    assert!(store.quarantine(&exchanging, "new").await);
    store.advance(CLAIM);
    assert_eq!(values(&claim(&store).await), ["access-u2", "refresh-u2"]);

    store.authorizations().cancel_authorization(&exchanging, &disposal()).await.expect("storage");
    // Nobody has the new tokens either: all of them go.
    store.advance(CONFIRMATION_TTL);
    let all = ["access-new", "access-u1", "access-u2", "refresh-new", "refresh-u1", "refresh-u2"];
    assert_eq!(values(&claim(&store).await), all);
}

async fn dropped<B: Backend>() {
    let store = Store::new::<B>().await;
    doom(&store, "u1").await;
    doom(&store, "u2").await;
    store.grant(&key("u1"), "new").await;
    assert_eq!(store.doomed().await, 2);
    assert_eq!(values(&claim(&store).await), ["access-u2", "refresh-u2"]);
}

async fn expired<B: Backend>() {
    let store = Store::new::<B>().await;
    // The access token's end is known; of the refresh token nothing is, so it is tried for 30 days.
    doom(&store, "u1").await;
    let known = TokenSet {
        refresh_expires_at: Some(store.now() + TOKEN_LIFETIME * 2),
        ..tokens("2", store.now())
    };
    let grant = store.grant(&key("u2"), "1").await;
    store.grants().commit_refresh(&grant, &known, &disposal()).await.expect("storage");
    store.grants().revoke(&key("u2"), &disposal()).await.expect("storage");
    store.advance(CLAIM);
    let all = ["access-2", "access-u1", "refresh-2", "refresh-u1"];
    assert_eq!(values(&claim(&store).await), all);
    store.advance(TOKEN_LIFETIME);
    assert_eq!(values(&claim(&store).await), ["refresh-2", "refresh-u1"]);
    store.advance(TOKEN_LIFETIME);
    assert_eq!(values(&claim(&store).await), ["refresh-u1"]);
    // Of whatever provider they were.
    let forget = || store.revocations().forget_ended_revocations();
    assert_eq!(forget().await.expect("storage"), 3);
    assert_eq!(store.doomed().await, 1);
    store.advance(Duration::from_secs(30 * 24 * 60 * 60));
    assert!(claim(&store).await.is_empty());
    assert_eq!(forget().await.expect("storage"), 1);
    assert_eq!(store.doomed().await, 0);
}
