//! What the database refuses for what it is, and rows that nobody can read: neither stops the others.

use std::time::Duration;

use libtest_mimic::Trial;
use token_broker::domain::authorization::{RETENTION, State};
use token_broker::domain::grant::GrantState;
use token_broker::domain::identity::Identity;
use token_broker::storage::{Answered, ErrorKind};

use super::backend::{
    Backend, CODE_HASH, CONFIRMATION_TTL, QUARANTINE, Store, TAKEOVER, answer, disposal, key,
    keyring, tokens,
};

pub fn trials<B: Backend>() -> Vec<Trial> {
    vec![
        B::trial("a_value_that_is_never_accepted_is_no_outage", never_accepted::<B>),
        B::trial("an_answer_that_cannot_be_stored_is_kept_sealed_and_flagged", kept::<B>),
        B::trial("the_sweep_goes_on_past_rows_that_it_cannot_open", sweep::<B>),
    ]
}

async fn never_accepted<B: Backend>() {
    let store = Store::new::<B>().await;
    let authorization = store.exchanging(&key("u1")).await;
    let identity = Identity { name: "ada".to_owned(), sub: Some("a\0b".to_owned()) };
    let answer = answer("1");
    let answered = Answered { answer: &answer, identity: &identity, exchanged_at: store.now() };
    let stored = store
        .authorizations()
        .quarantine(&authorization, answered, CODE_HASH, CONFIRMATION_TTL, &disposal())
        .await;
    // SQLite stores what PostgreSQL refuses (SQLSTATE 22021).
    if let Err(error) = stored {
        assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
        assert!(!error.is_transient());
    } else {
        assert!(!store.storage.is_shared());
    }
    // The next one is stored by the same connections.
    assert_eq!(store.grant(&key("u2"), "2").await.version.generation, 1);
}

async fn kept<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = store.grant(&key("u1"), "1").await;
    store.grants().claim_refresh(&grant, TAKEOVER).await.expect("storage").expect("a lease");
    let token = "refresh-2".into();
    let flagged =
        store.grants().commit_flagged(&grant, &answer("2"), Some(&token), "refused").await;
    assert!(flagged.expect("storage"));
    let held = store.held(&key("u1")).await;
    assert_eq!(held.grant.state, GrantState::ReauthorizationRequired);
    assert_eq!(held.grant.last_error.as_deref(), Some("refused"));
    assert!(!held.leased);
    // The provider's newest refresh token is the one that a revocation sends.
    store.grants().revoke(&key("u1"), &disposal()).await.expect("storage");
    store.advance(Duration::from_secs(15));
    assert_eq!(store.due().await, ["access-1", "refresh-2"]);
    drop(tokens("2", store.now()));
}

async fn sweep<B: Backend>() {
    const UNREADABLE: usize = 101;

    let store = Store::new::<B>().await;
    let mut rows = Vec::new();
    for number in 0..UNREADABLE {
        rows.push(store.awaiting(&key(&format!("u{number}")), "1").await.id);
    }
    store.advance(Duration::from_secs(1));
    let readable = store.beside(keyring(&[("other", 9)])).await.awaiting(&key("v"), "2").await.id;
    let sweeper = store.beside(keyring(&[("other", 9)])).await;
    sweeper.advance(CONFIRMATION_TTL);
    let swept = |sweeper: Store| async move {
        sweeper
            .storage
            .authorizations()
            .sweep_authorizations(100, |_| disposal())
            .await
            .expect("storage")
            .rows
    };
    assert_eq!(swept(sweeper.clone()).await, 100);
    assert_eq!(swept(sweeper.clone()).await, 2);
    assert_eq!(swept(sweeper.clone()).await, 0, "all have ended");
    for id in [rows[0], rows[UNREADABLE - 1], readable] {
        let seen =
            sweeper.storage.authorizations().find_authorization(None, id).await.expect("storage");
        assert_eq!(seen.expect("an authorization").authorization.state, State::Expired);
    }
    assert_eq!(sweeper.due().await, ["access-2", "refresh-2"]);
    // What nobody can open is kept, and tried again when its row is about to be deleted.
    assert!(!sweeper.column(QUARANTINE, rows[0]).await.is_empty());
    sweeper.advance(RETENTION);
    // As many with tokens, and the one without.
    assert_eq!(swept(sweeper.clone()).await, 101);
    assert_eq!(swept(sweeper.clone()).await, 1);
    assert!(!sweeper.column(QUARANTINE, rows[0]).await.is_empty());
    // A replica that has the key finishes the work.
    store.advance(RETENTION);
    assert_eq!(swept(store.clone()).await, 100);
    assert_eq!(swept(store.clone()).await, 1);
    let gone = store.authorizations().find_authorization(None, rows[0]).await.expect("storage");
    assert!(gone.is_none());
    assert_eq!(store.doomed().await, 2 * u64::try_from(UNREADABLE).expect("a number") + 2);
}
