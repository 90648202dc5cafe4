//! Authorizations up to their final state.

use std::time::Duration;

use libtest_mimic::Trial;
use token_broker::domain::authorization::{
    EXCHANGE_LIMIT, Failure, MAX_REFUSED_CODES, Options, REDIRECT_GRACE, State,
};
use token_broker::domain::id::Id;
use token_broker::domain::name::Name;
use token_broker::domain::scope::Scopes;
use token_broker::storage::NewAuthorization;

use super::backend::{
    Backend, CODE_HASH, CONFIRMATION_TTL, LINK_TTL, Store, at_once, disposal, identity, key,
    scopes, tokens,
};
use crate::harness::world::name;

pub fn trials<B: Backend>() -> Vec<Trial> {
    vec![
        B::trial("an_authorization_is_found_in_its_namespace_alone", found::<B>),
        B::trial("one_that_waits_with_the_same_parameters_is_found_again", pending::<B>),
        B::trial("a_code_is_exchanged_once_among_32", exchange::<B>),
        B::trial("a_redirect_may_come_a_little_after_the_link_has_ended", grace::<B>),
        B::trial("a_refused_code_leaves_it_pending_until_the_fifth", refused::<B>),
        B::trial("an_answer_waits_for_its_code", quarantine::<B>),
        B::trial("an_answer_to_a_cancelled_authorization_goes_to_the_outbox", late_answer::<B>),
        B::trial("a_cancelled_quarantine_goes_to_the_outbox", cancelled_quarantine::<B>),
        B::trial("what_is_final_stays_as_it_is", final_states::<B>),
    ]
}

async fn state(store: &Store, id: Id) -> State {
    let seen = store.authorizations().find_authorization(None, id).await.expect("storage");
    seen.expect("an authorization").state()
}

async fn found<B: Backend>() {
    let store = Store::new::<B>().await;
    let begun = store.begin(&key("u1")).await;
    for namespace in [Some(name("helper")), None] {
        let seen = store.authorizations().find_authorization(namespace.as_ref(), begun.id).await;
        let seen = seen.expect("storage").expect("an authorization");
        assert_eq!(seen.authorization.id, begun.id);
        assert_eq!(seen.authorization.key, key("u1"));
        assert_eq!(seen.authorization.bot, name("helper"));
        assert_eq!(seen.authorization.scopes, scopes("email profile"));
        assert_eq!(seen.authorization.link_expires_at, store.now() + LINK_TTL);
        assert_eq!((seen.state(), seen.now), (State::Pending, store.now()));
        assert_eq!(seen.code_hash, None);
    }
    let other = store.authorizations().find_authorization(Some(&name("other")), begun.id).await;
    assert!(other.expect("storage").is_none());
    let unknown = store.authorizations().find_authorization(None, Id::from_bytes([0; 16])).await;
    assert!(unknown.expect("storage").is_none());
}

async fn pending<B: Backend>() {
    let store = Store::new::<B>().await;
    let helper = name("helper");
    let wanted = async |bot: &Name, scopes: &str| {
        let (key, scopes) = (key("u1"), Scopes::from_provider(scopes));
        let new = NewAuthorization {
            key: &key,
            bot,
            scopes: &scopes,
            options: &Options::default(),
            link_ttl: LINK_TTL,
        };
        store.authorizations().find_or_insert_authorization(&new).await.expect("storage").id
    };
    let first = wanted(&helper, "a").await;
    assert_eq!(wanted(&helper, "a").await, first);
    let others = [wanted(&helper, "a b").await, wanted(&name("other"), "a").await];
    assert!(!others.contains(&first));
    store.advance(LINK_TTL - Duration::from_millis(1));
    assert_eq!(wanted(&helper, "a").await, first);
    // Its link has ended, or it no longer waits: a new one.
    store.advance(Duration::from_millis(1));
    let second = wanted(&helper, "a").await;
    assert_ne!(second, first);
    assert!(store.begin_exchange(second).await.is_some());
    assert_ne!(wanted(&helper, "a").await, second);
}

async fn exchange<B: Backend>() {
    let store = Store::new::<B>().await;
    let id = store.begin(&key("u1")).await.id;
    let begun = at_once(32, |_| {
        let store = store.clone();
        async move { store.begin_exchange(id).await }
    })
    .await;
    let begun: Vec<_> = begun.into_iter().flatten().collect();
    assert_eq!(begun, [store.now()]);
    assert_eq!(state(&store, id).await, State::Exchanging);
    store.advance(EXCHANGE_LIMIT);
    assert_eq!(state(&store, id).await, State::Failed(Failure::exchange_interrupted()));
}

async fn grace<B: Backend>() {
    let store = Store::new::<B>().await;
    let (in_time, too_late) = (store.begin(&key("u1")).await.id, store.begin(&key("u2")).await.id);
    store.advance(LINK_TTL + REDIRECT_GRACE - Duration::from_millis(1));
    assert!(store.begin_exchange(in_time).await.is_some());
    store.advance(Duration::from_millis(1));
    assert!(store.begin_exchange(too_late).await.is_none());
    assert_eq!(state(&store, too_late).await, State::Expired);
}

async fn refused<B: Backend>() {
    let store = Store::new::<B>().await;
    let id = store.begin(&key("u1")).await.id;
    let failure = Failure::new("invalid_grant", "Acme did not give a token.");
    for refused in 1..=MAX_REFUSED_CODES {
        assert_eq!(state(&store, id).await, State::Pending, "after {} codes", refused - 1);
        assert!(store.begin_exchange(id).await.is_some());
        store.authorizations().refuse_code(id, &failure).await.expect("storage");
    }
    assert_eq!(state(&store, id).await, State::Failed(failure.clone()));
    assert!(store.begin_exchange(id).await.is_none());

    // One that is not being exchanged is not touched.
    let pending = store.begin(&key("u2")).await.id;
    for _ in 0..=MAX_REFUSED_CODES {
        store.authorizations().refuse_code(pending, &failure).await.expect("storage");
    }
    assert_eq!(state(&store, pending).await, State::Pending);
}

async fn quarantine<B: Backend>() {
    let store = Store::new::<B>().await;
    let authorization = store.awaiting(&key("u1"), "1").await;
    let seen =
        store.authorizations().find_authorization(None, authorization.id).await.expect("storage");
    let seen = seen.expect("an authorization");
    assert_eq!(seen.state(), State::AwaitingConfirmation);
    assert_eq!(seen.code_hash.as_deref(), Some(CODE_HASH));
    assert_eq!(seen.authorization.expires_at, store.now() + CONFIRMATION_TTL);
    assert!(store.grants().find_grant(&key("u1")).await.expect("storage").is_none());
    assert_eq!(store.doomed().await, 0);
    store.advance(CONFIRMATION_TTL);
    assert_eq!(state(&store, authorization.id).await, State::Expired);
}

async fn late_answer<B: Backend>() {
    let store = Store::new::<B>().await;
    let authorization = store.exchanging(&key("u1")).await;
    store
        .authorizations()
        .cancel_authorization(&authorization, &disposal())
        .await
        .expect("storage");
    assert!(!store.quarantine(&authorization, "1").await);
    assert_eq!(state(&store, authorization.id).await, State::Cancelled);
    store.advance(Duration::from_secs(15));
    assert_eq!(store.due().await, ["access-1", "refresh-1"]);
}

async fn cancelled_quarantine<B: Backend>() {
    let store = Store::new::<B>().await;
    let authorization = store.awaiting(&key("u1"), "1").await;
    store
        .authorizations()
        .cancel_authorization(&authorization, &disposal())
        .await
        .expect("storage");
    assert_eq!(state(&store, authorization.id).await, State::Cancelled);
    store.advance(Duration::from_secs(15));
    assert_eq!(store.due().await, ["access-1", "refresh-1"]);
    // The code that comes too late sets nothing free.
    let late = store
        .authorizations()
        .authorize(&authorization, &tokens("1", store.now()), &identity(), &[])
        .await;
    assert!(late.expect("storage").is_none());
    assert!(store.grants().find_grant(&key("u1")).await.expect("storage").is_none());
}

async fn final_states<B: Backend>() {
    let store = Store::new::<B>().await;
    let denied = State::Denied(Failure::new("access_denied", "The user refused."));
    let id = store.begin(&key("u1")).await.id;
    assert!(store.authorizations().refuse_authorization(id, &denied).await.expect("storage"));
    let failed = State::Failed(Failure::new("other", "Other."));
    assert!(!store.authorizations().refuse_authorization(id, &failed).await.expect("storage"));
    let seen = store.authorizations().find_authorization(None, id).await.expect("storage");
    let authorization = seen.expect("an authorization").authorization;
    store
        .authorizations()
        .cancel_authorization(&authorization, &disposal())
        .await
        .expect("storage");
    assert!(store.begin_exchange(id).await.is_none());
    assert_eq!(state(&store, id).await, denied);

    // Tokens that await their code are not dropped by an end that belongs to the redirect.
    let awaiting = store.awaiting(&key("u1"), "1").await;
    assert!(
        !store.authorizations().refuse_authorization(awaiting.id, &denied).await.expect("storage")
    );
    assert_eq!(state(&store, awaiting.id).await, State::AwaitingConfirmation);
}
