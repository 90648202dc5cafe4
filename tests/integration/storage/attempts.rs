//! Attempts: each redirect is used once, and a confirmation code is guessed five times at most.

use std::sync::Arc;

use libtest_mimic::Trial;
use token_broker::domain::authorization::{
    Failure, MAX_ATTEMPTS, MAX_CONFIRMATION_ATTEMPTS, State,
};
use token_broker::domain::grant::Subject;
use token_broker::domain::id::Id;
use token_broker::storage::{Arrival, Awaiting};

use super::backend::{
    Backend, CODE_HASH, CONFIRMATION_TTL, Store, at_once, disposal, identity, key, key_at, tokens,
};
use crate::harness::world::name;

pub fn trials<B: Backend>() -> Vec<Trial> {
    vec![
        B::trial("a_redirect_is_used_once_among_50", redirect::<B>),
        B::trial("100_guesses_at_once_are_still_five", guesses::<B>),
        B::trial("a_guess_counts_against_what_it_is_aimed_at", aimed::<B>),
        B::trial("too_many_guesses_send_the_tokens_to_the_outbox", too_many::<B>),
        B::trial("a_code_that_was_anothers_is_given_back", given_back::<B>),
        B::trial("one_of_16_confirmations_stores_the_grant", one_confirmation::<B>),
    ]
}

async fn guess(store: &Store, subject: &str, id: Option<Id>) -> Vec<Awaiting> {
    let subject = Subject::parse(subject).expect("a subject");
    store
        .authorizations()
        .count_attempt(&name("helper"), &subject, id, &[name("acme")])
        .await
        .expect("storage")
}

fn left(awaiting: &[Awaiting]) -> Vec<u32> {
    awaiting.iter().map(|awaiting| awaiting.attempts_left).collect()
}

async fn redirect<B: Backend>() {
    let store = Store::new::<B>().await;
    let id = store.begin(&key("u1")).await.id;
    let used = at_once(50, |_| {
        let storage = Arc::clone(&store.storage);
        async move { storage.authorizations().use_attempt(id, b"salt").await.expect("storage") }
    })
    .await;
    assert_eq!(used.into_iter().filter(|arrival| *arrival == Arrival::First).count(), 1);
    // Another start of the link, and another authorization, have a redirect of their own.
    let arrival = async |id, salt: &[u8]| {
        store.authorizations().use_attempt(id, salt).await.expect("storage")
    };
    assert_eq!(arrival(id, b"other").await, Arrival::First);
    let other = store.begin(&key("u1")).await.id;
    assert_eq!(arrival(other, b"salt").await, Arrival::First);
    assert_eq!(arrival(id, b"salt").await, Arrival::Again);
    // Anyone who has the link can make more redirects, and writes no row for them.
    for number in 2..MAX_ATTEMPTS {
        assert_eq!(arrival(id, &number.to_be_bytes()).await, Arrival::First);
    }
    assert_eq!(arrival(id, b"one more").await, Arrival::TooMany);
    assert_eq!(arrival(id, b"salt").await, Arrival::Again);
    assert!(store.begin_exchange(id).await.is_some(), "the user's own still completes");
    let rows = store.tamper("DELETE FROM authorization_attempts", []).await;
    assert_eq!(rows, MAX_ATTEMPTS + 2);
}

async fn guesses<B: Backend>() {
    let store = Store::new::<B>().await;
    let authorization = store.awaiting(&key("u1"), "1").await;
    let counted = at_once(100, |_| {
        let store = store.clone();
        async move { guess(&store, "u1", None).await }
    })
    .await;
    let counted: Vec<_> = counted.into_iter().flatten().collect();
    let mut attempts = left(&counted);
    attempts.sort_unstable();
    assert_eq!(attempts, [0, 1, 2, 3, 4]);
    for awaiting in &counted {
        assert_eq!(awaiting.authorization.id, authorization.id);
        assert_eq!(awaiting.code_hash, CODE_HASH);
        assert_eq!(awaiting.exchanged_at, store.now());
    }
    assert!(guess(&store, "u1", Some(authorization.id)).await.is_empty());
}

async fn aimed<B: Backend>() {
    let store = Store::new::<B>().await;
    let first = store.awaiting(&key("u1"), "1").await.id;
    let second = store.awaiting(&key_at("helper", "acme", "u1", "work"), "2").await.id;
    store.awaiting(&key("u2"), "3").await;
    store.awaiting(&key_at("other", "acme", "u1", ""), "4").await;
    store.begin(&key("u1")).await;

    assert_eq!(left(&guess(&store, "u1", Some(first)).await), [4]);
    let mut both = guess(&store, "u1", None).await;
    both.sort_by_key(|awaiting| awaiting.attempts_left);
    assert_eq!(left(&both), [3, 4]);
    assert_eq!([both[0].authorization.id, both[1].authorization.id], [first, second]);
    // Somebody else's authorization cannot be guessed at, even by its id.
    assert!(guess(&store, "u2", Some(first)).await.is_empty());
    assert_eq!(left(&guess(&store, "u2", None).await), [4]);
    store.advance(CONFIRMATION_TTL);
    assert!(guess(&store, "u1", None).await.is_empty());
}

async fn too_many<B: Backend>() {
    let store = Store::new::<B>().await;
    let id = store.awaiting(&key("u1"), "1").await.id;
    let mut last = Vec::new();
    for _ in 0..MAX_CONFIRMATION_ATTEMPTS {
        last = guess(&store, "u1", None).await;
    }
    assert_eq!(left(&last), [0]);
    for _ in 0..2 {
        let failure = Failure::too_many_wrong_codes();
        let ended = store.authorizations().fail_confirmation(&last[0], failure, &disposal()).await;
        ended.expect("storage");
    }
    let seen = store.authorizations().find_authorization(None, id).await.expect("storage");
    let state = seen.expect("an authorization").state();
    assert_eq!(state, State::Failed(Failure::too_many_wrong_codes()));
    // Once each, though it was ended twice.
    store.advance(std::time::Duration::from_secs(15));
    assert_eq!(store.due().await, ["access-1", "refresh-1"]);
    assert_eq!(store.doomed().await, 2);
}

async fn given_back<B: Backend>() {
    let store = Store::new::<B>().await;
    let first = store.awaiting(&key("u1"), "1").await;
    let other = store.awaiting(&key_at("helper", "acme", "u1", "work"), "2").await;
    assert_eq!(left(&guess(&store, "u1", None).await), [4, 4]);
    let stored = store
        .authorizations()
        .authorize(&first, &tokens("1", store.now()), &identity(), &[other.id])
        .await;
    assert_eq!(stored.expect("storage").expect("a grant").key, key("u1"));
    // Only this very guess is counted.
    let again = guess(&store, "u1", None).await;
    assert_eq!((left(&again), again[0].authorization.id), (vec![4], other.id));
}

async fn one_confirmation<B: Backend>() {
    let store = Store::new::<B>().await;
    let authorization = store.awaiting(&key("u1"), "1").await;
    let stored = at_once(16, |_| {
        let (store, authorization) = (store.clone(), authorization.clone());
        async move {
            let tokens = tokens("1", store.now());
            store
                .authorizations()
                .authorize(&authorization, &tokens, &identity(), &[])
                .await
                .expect("storage")
        }
    })
    .await;
    assert_eq!(stored.into_iter().flatten().count(), 1);
    assert_eq!(store.held(&key("u1")).await.grant.version.generation, 1);
    let seen =
        store.authorizations().find_authorization(None, authorization.id).await.expect("storage");
    let seen = seen.expect("an authorization");
    // The hash stays, so that the right code may be repeated.
    assert_eq!((seen.state(), seen.code_hash.as_deref()), (State::Authorized, Some(CODE_HASH)));
}
