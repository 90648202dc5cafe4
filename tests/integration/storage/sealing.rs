//! Tokens at rest: nothing that was altered, moved or copied is ever served.

use std::time::Duration;

use libtest_mimic::Trial;
use secrecy::ExposeSecret;
use token_broker::domain::grant::{Grant, GrantState, Subject};
use token_broker::domain::id::Id;
use token_broker::storage::{Lease, StorageError};

use super::backend::{
    ACCESS_TOKEN, Backend, Column, DOOMED, FALLBACK, QUARANTINE, REFRESH_TOKEN, Store, TAKEOVER,
    answer, at_once, disposal, exposed, key, keyring, tokens,
};
use crate::harness::world::name;

pub fn trials<B: Backend>() -> Vec<Trial> {
    vec![
        B::trial("a_flipped_bit_anywhere_is_damage", flipped::<B>),
        B::trial("every_sealed_column_notices_a_flipped_bit", every_column::<B>),
        B::trial("tokens_swapped_between_grants_are_damage", swapped::<B>),
        B::trial("tokens_swapped_between_columns_are_damage", columns::<B>),
        B::trial("a_row_given_to_another_user_is_damage", given_away::<B>),
        B::trial("a_damaged_grant_can_be_revoked_and_replaced", way_out::<B>),
        B::trial("an_unknown_key_leaves_the_row_untouched", unknown_key::<B>),
        B::trial("an_unknown_key_does_not_forget_an_open_intent", unknown_key_intent::<B>),
        B::trial("an_unknown_key_stops_a_revocation_whole", unknown_key_revocation::<B>),
        B::trial("a_new_first_key_still_opens_old_rows", rotation::<B>),
    ]
}

async fn token(store: &Store, subject: &str) -> Result<String, StorageError> {
    let held = store.grants().find_grant(&key(subject)).await?.expect("a grant");
    let token = held.access_token.expect("an access token");
    Ok(exposed(Some(&token.value)).unwrap_or_default().to_owned())
}

async fn claim(store: &Store, grant: &Grant) -> Result<Option<Lease>, StorageError> {
    store.grants().claim_refresh(grant, TAKEOVER).await
}

fn is_damaged<T>(result: Result<T, StorageError>, table: &str) -> bool {
    matches!(result, Err(StorageError::Damaged { table: of, .. }) if of == table)
}

fn misses_key<T>(result: Result<T, StorageError>, table: &str, key: &str) -> bool {
    matches!(result, Err(StorageError::UnknownKey { table: of, key_id }) if of == table && key_id == key)
}

/// Flips the last bit of one sealed column.
async fn flip(store: &Store, column: Column, id: Id) {
    let mut sealed = store.column(column, id).await;
    *sealed.last_mut().expect("bytes") ^= 1;
    store.set_column(column, id, sealed).await;
}

/// A grant that has both a refresh token and a fallback.
async fn with_fallback(store: &Store, subject: &str) -> Grant {
    let grant = store.grant(&key(subject), subject).await;
    for label in ["new", "lost"] {
        let tokens = tokens(&format!("{label}-{subject}"), store.now());
        store.grants().commit_refresh(&grant, &tokens, &disposal()).await.expect("storage");
    }
    store.held(&key(subject)).await.grant
}

async fn flipped<B: Backend>() {
    let store = Store::new::<B>().await;
    let id = store.grant(&key("u1"), "1").await.id;
    let whole = store.column(ACCESS_TOKEN, id).await;
    // Format, length, the key's id "test", nonce, ciphertext and tag.
    let named = 1..6;
    for position in 0..whole.len() {
        let mut altered = whole.clone();
        altered[position] ^= 1 << (position % 8);
        store.set_column(ACCESS_TOKEN, id, altered).await;
        let read = token(&store, "u1").await;
        let told = match &read {
            Err(StorageError::Damaged { table, .. }) => *table == "access_tokens",
            // Where the bit is in the key's name, the key has another name.
            Err(StorageError::UnknownKey { .. }) => named.contains(&position),
            _ => false,
        };
        assert!(told, "byte {position}: {read:?}");
    }
    for length in 0..whole.len() {
        store.set_column(ACCESS_TOKEN, id, whole[..length].to_vec()).await;
        assert!(is_damaged(token(&store, "u1").await, "access_tokens"), "{length} bytes");
    }
    store.set_column(ACCESS_TOKEN, id, whole).await;
    assert_eq!(token(&store, "u1").await.expect("whole again"), "access-1");
}

async fn every_column<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = with_fallback(&store, "u1").await;
    flip(&store, FALLBACK, grant.id).await;
    assert!(is_damaged(claim(&store, &grant).await, "grants"));
    // Nothing was sent, so nobody has to wait for a lease.
    assert!(!store.held(&key("u1")).await.leased);
    let grant = store.grant(&key("u2"), "2").await;
    flip(&store, REFRESH_TOKEN, grant.id).await;
    assert!(is_damaged(claim(&store, &grant).await, "grants"));
    assert!(!store.held(&key("u2")).await.leased);
    // The access token of the same grant still lives, and is served.
    assert_eq!(token(&store, "u2").await.expect("a token"), "access-2");
    assert_eq!(store.held(&key("u2")).await.grant.state, GrantState::Active);

    let awaiting = store.awaiting(&key("u3"), "3").await;
    flip(&store, QUARANTINE, awaiting.id).await;
    let subject = Subject::parse("u3").expect("a subject");
    let counted = store
        .authorizations()
        .count_attempt(&name("helper"), &subject, None, &[name("acme")])
        .await;
    assert!(is_damaged(counted, "authorizations"));

    store.grant(&key("u4"), "4").await;
    let outbox = store.grants().revoke(&key("u4"), &disposal()).await.expect("storage").revocations;
    for entry in &outbox {
        flip(&store, DOOMED, entry.id).await;
    }
    store.advance(Duration::from_secs(15));
    assert!(store.due().await.is_empty());
}

async fn swapped<B: Backend>() {
    let store = Store::new::<B>().await;
    let grants = [with_fallback(&store, "u1").await, with_fallback(&store, "u2").await];
    let swap = async |column| {
        let both =
            [store.column(column, grants[0].id).await, store.column(column, grants[1].id).await];
        let [first, second] = both;
        store.set_column(column, grants[0].id, second).await;
        store.set_column(column, grants[1].id, first).await;
    };
    for column in [REFRESH_TOKEN, FALLBACK] {
        swap(column).await;
        for grant in &grants {
            assert!(is_damaged(claim(&store, grant).await, "grants"), "{}", column.column);
        }
        swap(column).await;
    }
    swap(ACCESS_TOKEN).await;
    for subject in ["u1", "u2"] {
        assert!(is_damaged(token(&store, subject).await, "access_tokens"));
    }
    swap(ACCESS_TOKEN).await;
    // Back in their places they open again: it was the place that counted.
    for (subject, grant) in ["u1", "u2"].into_iter().zip(&grants) {
        assert_eq!(token(&store, subject).await.expect("a token"), format!("access-new-{subject}"));
        let lease = claim(&store, grant).await.expect("storage").expect("a lease");
        let sent = [exposed(lease.refresh_token.as_ref()), exposed(lease.fallback.as_ref())];
        let expected = [format!("refresh-new-{subject}"), format!("refresh-lost-{subject}")];
        assert_eq!(sent, [Some(expected[0].as_str()), Some(expected[1].as_str())]);
    }
}

async fn columns<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = with_fallback(&store, "u1").await;
    let sealed = store.column(FALLBACK, grant.id).await;
    store.set_column(REFRESH_TOKEN, grant.id, sealed).await;
    assert!(is_damaged(claim(&store, &grant).await, "grants"));
    // A refresh token must not be lent as an access token.
    let grant = store.grant(&key("u2"), "2").await;
    let sealed = store.column(REFRESH_TOKEN, grant.id).await;
    store.set_column(ACCESS_TOKEN, grant.id, sealed).await;
    assert!(is_damaged(token(&store, "u2").await, "access_tokens"));

    // An answer that nobody confirmed must not be confirmed elsewhere.
    let victim = store.awaiting(&key("u3"), "3").await;
    let thief = store.awaiting(&key("u4"), "4").await;
    let sealed = store.column(QUARANTINE, victim.id).await;
    store.set_column(QUARANTINE, thief.id, sealed).await;
    let subject = Subject::parse("u4").expect("a subject");
    let counted = store
        .authorizations()
        .count_attempt(&name("helper"), &subject, None, &[name("acme")])
        .await;
    assert!(is_damaged(counted, "authorizations"));
}

async fn given_away<B: Backend>() {
    for (column, to) in [("subject", "u2"), ("namespace", "other"), ("account", "work")] {
        let store = Store::new::<B>().await;
        store.grant(&key("u1"), "1").await;
        let sql = format!("UPDATE grants SET {column} = $1");
        assert_eq!(store.tamper(&sql, [to.into()]).await, 1);
        let mut thief = key("u1");
        match column {
            "subject" => thief = key(to),
            "namespace" => thief.namespace = name(to),
            _ => thief = super::backend::key_at("helper", "acme", "u1", to),
        }
        let found = store.grants().find_grant(&thief).await;
        assert!(is_damaged(found, "access_tokens"), "{column}");
    }
}

async fn way_out<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = store.grant(&key("u1"), "1").await;
    flip(&store, ACCESS_TOKEN, grant.id).await;
    flip(&store, REFRESH_TOKEN, grant.id).await;
    let revoked = store.grants().revoke(&key("u1"), &disposal()).await.expect("storage");
    // A user can always be forgotten, even if nothing can be told to the provider now. What cannot be
    // opened is kept until its time is up.
    assert!(revoked.found && revoked.unopened && revoked.revocations.is_empty());
    assert_eq!(store.doomed().await, 2);
    assert!(store.grants().find_grant(&key("u1")).await.expect("storage").is_none());

    let grant = store.grant(&key("u2"), "2").await;
    flip(&store, ACCESS_TOKEN, grant.id).await;
    assert!(is_damaged(token(&store, "u2").await, "access_tokens"));
    store.grant(&key("u2"), "3").await;
    assert_eq!(token(&store, "u2").await.expect("a token"), "access-3");
}

async fn unknown_key<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = store.grant(&key("u1"), "1").await;
    let other = store.beside(keyring(&[("other", 8)])).await;
    let rows = async || {
        (store.column(ACCESS_TOKEN, grant.id).await, store.column(REFRESH_TOKEN, grant.id).await)
    };
    let before = rows().await;
    for _ in 0..2 {
        assert!(misses_key(token(&other, "u1").await, "access_tokens", "test"));
        assert!(misses_key(claim(&other, &grant).await, "grants", "test"));
    }
    let error = token(&other, "u1").await.expect_err("the key is missing");
    assert!(error.is_transient(), "another replica has the key");
    assert_eq!(rows().await, before);
    let held = store.held(&key("u1")).await;
    assert_eq!((held.grant.state, held.grant.version), (GrantState::Active, grant.version));
    assert_eq!((held.leased, held.grant.next_attempt_at), (false, None));
    // Whoever has the key goes on as if nothing had been.
    let lease = claim(&store, &grant).await.expect("storage").expect("a lease");
    assert_eq!(exposed(lease.refresh_token.as_ref()), Some("refresh-1"));
}

async fn unknown_key_intent<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = store.grant(&key("u1"), "1").await;
    let lease = claim(&store, &grant).await.expect("storage").expect("a lease");
    store.advance(Duration::from_secs(1));
    // It may have been sent: Revoke has to know, and whoever flags the grant too.
    store.grants().release(&grant, lease.owner, true, None, "status 502").await.expect("storage");
    let other = store.beside(keyring(&[("other", 8)])).await;
    assert!(misses_key(claim(&other, &grant).await, "grants", "test"));
    let lease = claim(&store, &grant).await.expect("storage").expect("a lease");
    assert!(lease.intent_was_open);
    let failures = store.held(&key("u1")).await.grant.failures;
    assert_eq!(failures, 1, "a replica without the key has not failed at the provider");
}

async fn unknown_key_revocation<B: Backend>() {
    let store = Store::new::<B>().await;
    store.grant(&key("u1"), "1").await;
    let pending = store.begin(&key("u1")).await;
    let other = store.beside(keyring(&[("other", 8)])).await;
    let revoked = other.storage.grants().revoke(&key("u1"), &disposal()).await.expect("storage");
    // The user's wish holds at once; the tokens wait, sealed, for a replica that has the key.
    assert!(revoked.found && revoked.unopened && revoked.revocations.is_empty());
    assert!(store.grants().find_grant(&key("u1")).await.expect("storage").is_none());
    assert!(store.begin_exchange(pending.id).await.is_none());
    assert_eq!(store.doomed().await, 2);
    assert!(other.due().await.is_empty(), "it cannot open them");
    assert_eq!(store.doomed().await, 2, "and deletes none");
    assert_eq!(other.storage.unreadable_counts().unknown_key, 4);
    store.advance(Duration::from_secs(60 * 60));
    assert_eq!(store.due().await, ["refresh-1"], "the access token has ended by itself");
}

async fn rotation<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = with_fallback(&store, "u1").await;
    let awaiting = store.awaiting(&key("u2"), "2").await;
    store.grant(&key("u3"), "3").await;
    store.grants().revoke(&key("u3"), &disposal()).await.expect("storage");

    let rotated = store.beside(keyring(&[("new", 9), ("test", 7)])).await;
    assert_eq!(token(&rotated, "u1").await.expect("a token"), "access-new-u1");
    let lease = claim(&rotated, &grant).await.expect("storage").expect("a lease");
    assert_eq!(exposed(lease.refresh_token.as_ref()), Some("refresh-new-u1"));
    assert_eq!(exposed(lease.fallback.as_ref()), Some("refresh-lost-u1"));
    let subject = Subject::parse("u2").expect("a subject");
    let counted = rotated
        .storage
        .authorizations()
        .count_attempt(&name("helper"), &subject, None, &[name("acme")])
        .await;
    let counted = counted.expect("storage");
    assert_eq!(counted[0].authorization.id, awaiting.id);
    assert_eq!(counted[0].answer.body.expose_secret(), answer("2").body.expose_secret());
    rotated.advance(Duration::from_secs(15));
    assert_eq!(rotated.due().await, ["access-3", "refresh-3"]);

    // What is written from now on is of the new key, which the old keyring does not have.
    let tokens = tokens("rotated", rotated.now());
    rotated.storage.grants().commit_refresh(&grant, &tokens, &disposal()).await.expect("storage");
    assert_eq!(token(&rotated, "u1").await.expect("a token"), "access-rotated");
    assert!(misses_key(token(&store, "u1").await, "access_tokens", "new"));
    let only_new = rotated.beside(keyring(&[("new", 9)])).await;
    assert_eq!(token(&only_new, "u1").await.expect("a token"), "access-rotated");
    // A key of the same name that is another opens nothing.
    let impostor = rotated.beside(keyring(&[("new", 10)])).await;
    let reads = at_once(4, |_| {
        let impostor = impostor.clone();
        async move { is_damaged(token(&impostor, "u1").await, "access_tokens") }
    })
    .await;
    assert_eq!(reads, [true; 4]);
}
