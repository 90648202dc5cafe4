//! The sweep: what waited for too long ends, and what ended long ago is forgotten.

use std::time::Duration;

use libtest_mimic::Trial;
use token_broker::domain::authorization::{
    EXCHANGE_LIMIT, Failure, MAX_CONFIRMATION_ATTEMPTS, REDIRECT_GRACE, RETENTION, State,
};
use token_broker::domain::grant::Subject;
use token_broker::domain::provider::RevocationReach;
use token_broker::storage::{Arrival, Disposal};

use super::backend::{
    Backend, CONFIRMATION_TTL, DOOMED, LINK_TTL, QUARANTINE, Store, answer, at_once, disposal,
    identity, key, tokens,
};
use crate::harness::world::name;

pub fn trials<B: Backend>() -> Vec<Trial> {
    vec![
        B::trial("a_far_reaching_revocation_hurts_no_other_grant", far_reaching::<B>),
        B::trial("the_sweep_ends_what_waited_for_too_long", overdue::<B>),
        B::trial("an_answer_that_is_held_is_disposed_of_with_its_exchange", held::<B>),
        B::trial("an_answer_that_is_too_late_is_disposed_of", late_answer::<B>),
        B::trial("the_sweep_forgets_what_ended_long_ago", forgotten::<B>),
        B::trial("the_sweep_deals_with_as_many_as_it_is_told", limit::<B>),
        B::trial("eight_sweeps_at_once_dispose_once", at_once_once::<B>),
        B::trial("the_sweep_goes_on_past_a_damaged_row", damaged::<B>),
    ]
}

async fn sweep(store: &Store, limit: u64) -> usize {
    store.authorizations().sweep_authorizations(limit, |_| disposal()).await.expect("storage").rows
}

async fn overdue<B: Backend>() {
    let store = Store::new::<B>().await;
    let stored = async |id| {
        let seen = store.authorizations().find_authorization(None, id).await.expect("storage");
        seen.expect("an authorization").authorization.state
    };
    let pending = store.begin(&key("u1")).await.id;
    let exchanging = store.exchanging(&key("u2")).await.id;
    let awaiting = store.awaiting(&key("u3"), "3").await.id;
    let guessed = store.awaiting(&key("u4"), "4").await.id;
    for _ in 0..MAX_CONFIRMATION_ATTEMPTS {
        let subject = Subject::parse("u4").expect("a subject");
        let counted = store
            .authorizations()
            .count_attempt(&name("helper"), &subject, None, &[name("acme")])
            .await;
        assert_eq!(counted.expect("storage").len(), 1);
    }
    assert_eq!(sweep(&store, 100).await, 0);

    store.advance(EXCHANGE_LIMIT);
    assert_eq!(sweep(&store, 100).await, 1);
    assert_eq!(stored(exchanging).await, State::Failed(Failure::exchange_interrupted()));
    store.advance(CONFIRMATION_TTL - EXCHANGE_LIMIT);
    assert_eq!(sweep(&store, 100).await, 2);
    assert_eq!(stored(awaiting).await, State::Expired);
    assert_eq!(stored(guessed).await, State::Failed(Failure::too_many_wrong_codes()));
    assert_eq!(stored(pending).await, State::Pending);
    store.advance(LINK_TTL + REDIRECT_GRACE - CONFIRMATION_TTL);
    assert_eq!(sweep(&store, 100).await, 1);
    assert_eq!(stored(pending).await, State::Expired);
    assert_eq!(sweep(&store, 100).await, 0);
    // Tokens that nobody confirmed.
    assert_eq!(store.due().await, ["access-3", "access-4", "refresh-3", "refresh-4"]);
}

/// A process that ended while the provider was asked who the user is, and a user who cancelled.
async fn held<B: Backend>() {
    let store = Store::new::<B>().await;
    let hold = async |authorization: &_, label| {
        store.authorizations().hold_answer(authorization, &answer(label)).await.expect("storage")
    };
    let lost = store.exchanging(&key("u1")).await;
    assert!(hold(&lost, "lost").await);
    let cancelled = store.exchanging(&key("u2")).await;
    assert!(hold(&cancelled, "cancelled").await);
    store.authorizations().cancel_authorization(&cancelled, &disposal()).await.expect("storage");
    assert_eq!(store.due().await, ["access-cancelled", "refresh-cancelled"]);
    // One that was cancelled before has no place for it.
    assert!(!hold(&cancelled, "late").await);
    // One that goes on is not disturbed: what is stored is what it says in the end.
    let done = store.exchanging(&key("u3")).await;
    assert!(hold(&done, "done").await);
    assert!(store.quarantine(&done, "done").await);

    store.advance(EXCHANGE_LIMIT);
    assert_eq!(sweep(&store, 100).await, 1);
    let due = store.due().await;
    assert!(due.contains(&"access-lost".to_owned()), "{due:?}");
    assert!(due.contains(&"refresh-lost".to_owned()), "{due:?}");
    let tokens = tokens("done", store.now());
    let stored = store.authorizations().authorize(&done, &tokens, &identity(), &[]).await;
    assert_eq!(stored.expect("storage").expect("a grant").identity, identity());
}

/// Storage was away for longer than an exchange may take.
async fn late_answer<B: Backend>() {
    let store = Store::new::<B>().await;
    let authorization = store.exchanging(&key("u1")).await;
    store.advance(EXCHANGE_LIMIT);
    assert!(!store.quarantine(&authorization, "late").await);
    // Nobody else knows of these tokens.
    assert_eq!(store.due().await, ["access-late", "refresh-late"]);
    let seen =
        store.authorizations().find_authorization(None, authorization.id).await.expect("storage");
    let state = seen.expect("an authorization").authorization.state;
    assert_eq!(state, State::Failed(Failure::exchange_interrupted()));
}

async fn forgotten<B: Backend>() {
    let store = Store::new::<B>().await;
    let id = store.begin(&key("u1")).await.id;
    let grant = store.grant(&key("u2"), "2").await;
    let arrival = store.authorizations().use_attempt(id, b"salt").await.expect("storage");
    assert_eq!(arrival, Arrival::First);
    let denied = State::Denied(Failure::new("access_denied", "The user refused."));
    assert!(store.authorizations().refuse_authorization(id, &denied).await.expect("storage"));
    store.advance(RETENTION - Duration::from_millis(1));
    assert_eq!(sweep(&store, 100).await, 0);
    let seen = store.authorizations().find_authorization(None, id).await.expect("storage");
    assert_eq!(seen.expect("an authorization").state(), denied);

    store.advance(Duration::from_millis(1));
    assert_eq!(sweep(&store, 100).await, 2);
    assert!(store.authorizations().find_authorization(None, id).await.expect("storage").is_none());
    assert_eq!(store.tamper("DELETE FROM authorization_attempts", []).await, 0);
    // The grant that an authorization left is none of the sweep's business.
    assert_eq!(store.held(&key("u2")).await.grant.version, grant.version);
    assert_eq!(store.doomed().await, 0);
}

async fn limit<B: Backend>() {
    let store = Store::new::<B>().await;
    for _ in 0..5 {
        store.begin(&key("u1")).await;
    }
    store.advance(LINK_TTL + REDIRECT_GRACE);
    for expected in [2, 2, 1, 0] {
        assert_eq!(sweep(&store, 2).await, expected);
    }
}

async fn at_once_once<B: Backend>() {
    let store = Store::new::<B>().await;
    for index in 0..10 {
        store.awaiting(&key(&format!("u{index}")), &index.to_string()).await;
    }
    store.advance(CONFIRMATION_TTL);
    at_once(8, |_| {
        let store = store.clone();
        async move { sweep(&store, 100).await }
    })
    .await;
    assert_eq!(store.doomed().await, 20);
}

async fn far_reaching<B: Backend>() {
    // At a provider where a revocation ends all that a user has given the client, tokens of nobody
    // knows whom are not revoked while anybody has a grant there.
    let far = Disposal { reach: RevocationReach::UserClient, ..disposal() };
    let store = Store::new::<B>().await;
    store.grant(&key("victim"), "1").await;
    store.awaiting(&key("attacker"), "2").await;
    store.advance(CONFIRMATION_TTL);
    store.authorizations().sweep_authorizations(100, |_| far).await.expect("storage");
    assert_eq!(store.doomed().await, 0);
    // What a user asks for is done, and without a grant there is nobody to hurt.
    store.grants().revoke(&key("victim"), &far).await.expect("storage");
    assert_eq!(store.doomed().await, 2);
    store.awaiting(&key("attacker"), "3").await;
    store.advance(CONFIRMATION_TTL);
    store.authorizations().sweep_authorizations(100, |_| far).await.expect("storage");
    assert_eq!(store.doomed().await, 4);
}

async fn damaged<B: Backend>() {
    let store = Store::new::<B>().await;
    let broken = store.awaiting(&key("u1"), "1").await.id;
    store.advance(Duration::from_millis(1));
    let whole = store.awaiting(&key("u2"), "2").await.id;
    let mut sealed = store.column(QUARANTINE, broken).await;
    *sealed.last_mut().expect("bytes") ^= 1;
    store.set_column(QUARANTINE, broken, sealed).await;
    store.advance(CONFIRMATION_TTL);
    assert_eq!(sweep(&store, 100).await, 2);
    for id in [broken, whole] {
        let seen = store.authorizations().find_authorization(None, id).await.expect("storage");
        assert_eq!(seen.expect("an authorization").authorization.state, State::Expired);
    }
    let entries = store.revocations().claim_revocations(&name("acme"), 100).await.expect("storage");
    assert_eq!(super::backend::values(&entries), ["access-2", "refresh-2"]);

    // One unreadable entry of the outbox does not keep the other from its turn.
    let mut sealed = store.column(DOOMED, entries[0].id).await;
    sealed.truncate(8);
    store.set_column(DOOMED, entries[0].id, sealed).await;
    store.advance(Duration::from_secs(15));
    let left = store.revocations().claim_revocations(&name("acme"), 100).await.expect("storage");
    assert_eq!(left.iter().map(|entry| entry.id).collect::<Vec<_>>(), [entries[1].id]);
}
