//! Revocation: gone at once, with everything that belongs to it.

use std::time::Duration;

use libtest_mimic::Trial;
use token_broker::domain::authorization::State;
use token_broker::domain::token::TokenKind;
use token_broker::storage::LEASE;

use super::backend::{
    ACCESS_TOKEN, Backend, Store, TAKEOVER, at_once, disposal, identity, key, key_at, tokens,
    values,
};

pub fn trials<B: Backend>() -> Vec<Trial> {
    vec![
        B::trial("a_revocation_takes_the_grant_and_fills_the_outbox", whole::<B>),
        B::trial("a_revocation_cancels_the_authorizations_of_its_key", authorizations::<B>),
        B::trial("a_revocation_touches_no_other_key", other_keys::<B>),
        B::trial("a_revocation_tells_of_a_refresh_under_way", intent::<B>),
        B::trial("a_revocation_at_a_provider_without_one_deletes", unsupported::<B>),
        B::trial("one_of_16_revocations_finds_the_grant", once::<B>),
    ]
}

async fn whole<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = store.grant(&key("u1"), "1").await;
    for label in ["2", "3"] {
        let tokens = tokens(label, store.now());
        store.grants().commit_refresh(&grant, &tokens, &disposal()).await.expect("storage");
    }
    let revoked = store.grants().revoke(&key("u1"), &disposal()).await.expect("storage");
    assert!(revoked.found && !revoked.intent_open);
    assert_eq!(values(&revoked.revocations), ["access-2", "refresh-2", "refresh-3"]);
    for entry in &revoked.revocations {
        let refresh = entry.kind == TokenKind::Refresh;
        assert_eq!(values(std::slice::from_ref(entry))[0].starts_with("refresh"), refresh);
        assert_eq!((&entry.key, entry.attempts), (&key("u1"), 1));
    }
    assert!(store.grants().find_grant(&key("u1")).await.expect("storage").is_none());
    let left = store.tamper("DELETE FROM access_tokens", []).await;
    assert_eq!(left, 0, "its {} went with it", ACCESS_TOKEN.table);

    let again = store.grants().revoke(&key("u1"), &disposal()).await.expect("storage");
    assert!(!again.found && again.revocations.is_empty());
    assert_eq!(store.doomed().await, 3);
    // The caller has claimed them; should it end, they are due again.
    assert!(store.due().await.is_empty());
    store.advance(LEASE);
    assert_eq!(store.due().await, ["access-2", "refresh-2", "refresh-3"]);
}

async fn authorizations<B: Backend>() {
    let store = Store::new::<B>().await;
    let state = async |id| {
        let seen = store.authorizations().find_authorization(None, id).await.expect("storage");
        seen.expect("an authorization").state()
    };
    let authorized = store.awaiting(&key("u1"), "1").await;
    let stored = store
        .authorizations()
        .authorize(&authorized, &tokens("1", store.now()), &identity(), &[])
        .await;
    stored.expect("storage").expect("a grant");
    let pending = store.begin(&key("u1")).await;
    let exchanging = store.exchanging(&key("u1")).await;
    let awaiting = store.awaiting(&key("u1"), "2").await;
    let revoked = store.grants().revoke(&key("u1"), &disposal()).await.expect("storage");
    // The tokens that nobody had confirmed are revoked too.
    let expected = ["access-1", "access-2", "refresh-1", "refresh-2"];
    assert_eq!(values(&revoked.revocations), expected);
    for cancelled in [&pending, &exchanging, &awaiting] {
        assert_eq!(state(cancelled.id).await, State::Cancelled);
    }
    assert_eq!(state(authorized.id).await, State::Authorized);
    assert!(store.begin_exchange(pending.id).await.is_none());
    // The exchange that was under way brings tokens that nobody wants any more.
    assert!(!store.quarantine(&exchanging, "3").await);
    assert_eq!(store.doomed().await, 6);
    let stored = store
        .authorizations()
        .authorize(&awaiting, &tokens("2", store.now()), &identity(), &[])
        .await;
    assert!(stored.expect("storage").is_none());
    assert!(store.grants().find_grant(&key("u1")).await.expect("storage").is_none());

    // Without a grant, tokens that await their code are found all the same.
    store.awaiting(&key("u2"), "4").await;
    let revoked = store.grants().revoke(&key("u2"), &disposal()).await.expect("storage");
    assert!(revoked.found);
    assert_eq!(values(&revoked.revocations), ["access-4", "refresh-4"]);
}

async fn other_keys<B: Backend>() {
    let store = Store::new::<B>().await;
    let others = [
        key_at("other", "acme", "u1", ""),
        key_at("helper", "other", "u1", ""),
        key_at("helper", "acme", "u2", ""),
        key_at("helper", "acme", "u1", "work"),
    ];
    store.grant(&key("u1"), "1").await;
    let mut pending = Vec::new();
    for (index, other) in others.iter().enumerate() {
        store.grant(other, &format!("other-{index}")).await;
        pending.push(store.begin(other).await.id);
    }
    store.grants().revoke(&key("u1"), &disposal()).await.expect("storage");
    assert_eq!(store.doomed().await, 2);
    for (index, other) in others.iter().enumerate() {
        assert_eq!(store.served(other).await, format!("access-other-{index}"));
        let seen =
            store.authorizations().find_authorization(None, pending[index]).await.expect("storage");
        assert_eq!(seen.expect("an authorization").state(), State::Pending);
    }
}

async fn intent<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = store.grant(&key("u1"), "1").await;
    store.grants().claim_refresh(&grant, TAKEOVER).await.expect("storage").expect("a lease");
    // Whoever claimed it may be gone, but not what it may have sent.
    store.advance(LEASE * 10);
    let revoked = store.grants().revoke(&key("u1"), &disposal()).await.expect("storage");
    assert!(revoked.intent_open);

    let grant = store.grant(&key("u2"), "2").await;
    let lease =
        store.grants().claim_refresh(&grant, TAKEOVER).await.expect("storage").expect("a lease");
    store.grants().release(&grant, lease.owner, false, None, "not sent").await.expect("storage");
    let revoked = store.grants().revoke(&key("u2"), &disposal()).await.expect("storage");
    assert!(!revoked.intent_open);
}

async fn unsupported<B: Backend>() {
    let store = Store::new::<B>().await;
    store.grant(&key("u1"), "1").await;
    store.awaiting(&key("u1"), "2").await;
    let mut disposal = disposal();
    disposal.revocable = false;
    let revoked = store.grants().revoke(&key("u1"), &disposal).await.expect("storage");
    assert!(revoked.found && revoked.revocations.is_empty());
    assert_eq!(store.doomed().await, 0);
    assert!(store.grants().find_grant(&key("u1")).await.expect("storage").is_none());
}

async fn once<B: Backend>() {
    let store = Store::new::<B>().await;
    store.grant(&key("u1"), "1").await;
    let revoked = at_once(16, |_| {
        let store = store.clone();
        async move { store.grants().revoke(&key("u1"), &disposal()).await.expect("storage") }
    })
    .await;
    assert_eq!(revoked.iter().filter(|revoked| revoked.found).count(), 1);
    assert_eq!(store.doomed().await, 2);
    store.advance(Duration::from_secs(15));
    assert_eq!(store.due().await, ["access-1", "refresh-1"]);
}
