//! Keys that do not fit the database, and keys that are lost.

use libtest_mimic::Trial;
use token_broker::domain::authorization::State;
use token_broker::domain::grant::GrantState;
use token_broker::storage::{Forgotten, KeyReport};

use super::backend::{Backend, Store, disposal, key, keyring};

pub fn trials<B: Backend>() -> Vec<Trial> {
    vec![
        B::trial("a_wrong_key_under_a_known_id_is_noticed", wrong::<B>),
        B::trial(
            "a_wrong_key_is_noticed_by_the_rows_of_a_version_without_check_values",
            unrecorded::<B>,
        ),
        B::trial("a_key_that_is_missing_is_named", missing::<B>),
        B::trial("a_lost_key_is_given_up", forgotten::<B>),
        B::trial("without_its_key_a_user_can_authorize_again", again::<B>),
    ]
}

async fn report(store: &Store) -> KeyReport {
    store.keys().check_keys().await.expect("storage")
}

fn names(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

async fn wrong<B: Backend>() {
    let store = Store::new::<B>().await;
    let first = report(&store).await;
    assert_eq!(first, KeyReport { new: names(&["test"]), ..KeyReport::default() });
    store.keys().record_keys(&first).await.expect("storage");
    assert_eq!(report(&store).await, KeyReport::default());
    let other = store.beside(keyring(&[("test", 8)])).await;
    assert_eq!(report(&other).await.wrong, names(&["test"]));
    // Recording again changes nothing.
    store.keys().record_keys(&first).await.expect("storage");
    assert_eq!(report(&other).await.wrong, names(&["test"]));
}

async fn unrecorded<B: Backend>() {
    let store = Store::new::<B>().await;
    store.grant(&key("u1"), "1").await;
    let other = store.beside(keyring(&[("test", 8)])).await;
    assert_eq!(report(&other).await.wrong, names(&["test"]));
    let right = store.beside(keyring(&[("other", 9), ("test", 7)])).await;
    assert_eq!(report(&right).await.new, names(&["other", "test"]));
}

async fn missing<B: Backend>() {
    let store = Store::new::<B>().await;
    store.keys().record_keys(&report(&store).await).await.expect("storage");
    let other = store.beside(keyring(&[("other", 9)])).await;
    let found = report(&other).await;
    assert_eq!((found.missing, found.new), (names(&["test"]), names(&["other"])));
}

async fn forgotten<B: Backend>() {
    let store = Store::new::<B>().await;
    store.keys().record_keys(&report(&store).await).await.expect("storage");
    let lost = store.grant(&key("u1"), "1").await;
    let awaiting = store.awaiting(&key("u2"), "2").await;
    store.grant(&key("u3"), "3").await;
    store.grants().revoke(&key("u3"), &disposal()).await.expect("storage");
    let other = store.beside(keyring(&[("other", 9)])).await;
    let kept = other.grant(&key("u4"), "4").await;

    let expected = Forgotten { grants: 1, authorizations: 1, revocations: 2 };
    assert_eq!(other.storage.keys().forget_key("test").await.expect("storage"), expected);
    let held = other.held(&key("u1")).await;
    assert_eq!((held.grant.id, held.grant.state), (lost.id, GrantState::ReauthorizationRequired));
    assert!(held.access_token.is_none() && !held.grant.refreshable);
    let seen = other
        .storage
        .authorizations()
        .find_authorization(None, awaiting.id)
        .await
        .expect("storage");
    assert!(matches!(seen.expect("it is there").authorization.state, State::Failed(_)));
    assert_eq!(other.doomed().await, 0);
    assert_eq!(other.held(&key("u4")).await.grant.version, kept.version);
    assert_eq!(other.served(&key("u4")).await, "access-4");
    assert!(report(&other).await.missing.is_empty());
    let again = other.storage.keys().forget_key("test").await.expect("storage");
    assert_eq!(again, Forgotten::default(), "it may be repeated");
    // Whoever was locked out authorizes again.
    other.grant(&key("u1"), "5").await;
    assert_eq!(other.served(&key("u1")).await, "access-5");
}

async fn again<B: Backend>() {
    let store = Store::new::<B>().await;
    store.grant(&key("u1"), "1").await;
    let other = store.beside(keyring(&[("other", 9)])).await;
    assert!(other.storage.grants().find_grant(&key("u1")).await.is_err());
    let grant = other.storage.grants().find_grant_without_token(&key("u1")).await.expect("storage");
    assert!(grant.is_some(), "its scopes can be read");
    let replaced = other.grant(&key("u1"), "2").await;
    assert_eq!(replaced.version.generation, 2);
    assert_eq!(other.served(&key("u1")).await, "access-2");
}
