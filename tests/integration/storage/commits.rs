//! What a refresh brought: stored once, and never lost.

use std::time::Duration;

use libtest_mimic::Trial;
use token_broker::domain::grant::{Grant, GrantState, Version};
use token_broker::domain::token::TokenSet;
use token_broker::storage::{Committed, LEASE};

use super::backend::{
    Backend, Store, TAKEOVER, answer, at_once, disposal, exposed, key, scopes, tokens,
};

pub fn trials<B: Backend>() -> Vec<Trial> {
    vec![
        B::trial("a_commit_is_a_new_edition", stored::<B>),
        B::trial("what_an_answer_leaves_out_stays", left_out::<B>),
        B::trial("one_of_16_commits_is_stored_and_a_loser_is_the_fallback", siblings::<B>),
        B::trial("a_newer_refresh_token_supersedes_the_fallback", superseded::<B>),
        B::trial("a_late_commit_wins_over_a_lease_that_ran_out", late::<B>),
        B::trial("a_late_commit_makes_a_flagged_grant_active", after_flag::<B>),
        B::trial("a_commit_after_a_revocation_goes_to_the_outbox", orphan::<B>),
        B::trial("a_commit_after_a_new_authorization_is_deleted", replaced::<B>),
        B::trial("an_orphan_is_deleted_while_a_new_grant_arrives", arriving::<B>),
        B::trial("a_partial_answer_keeps_the_access_token_and_its_refresh_token", partial::<B>),
        B::trial("a_partial_answer_that_comes_late_is_not_lost", partial_late::<B>),
        B::trial("another_users_answer_is_kept_and_never_sent", foreign::<B>),
    ]
}

async fn commit(store: &Store, grant: &Grant, tokens: &TokenSet) -> Committed {
    store.grants().commit_refresh(grant, tokens, &disposal()).await.expect("storage")
}

/// The refresh token and the fallback that the next refresh would send.
async fn to_send(store: &Store, subject: &str) -> (Option<String>, Option<String>) {
    let grant = store.held(&key(subject)).await.grant;
    let lease =
        store.grants().claim_refresh(&grant, TAKEOVER).await.expect("storage").expect("a lease");
    let owned = |token| exposed(token).map(str::to_owned);
    let sent = (owned(lease.refresh_token.as_ref()), owned(lease.fallback.as_ref()));
    store.grants().release(&grant, lease.owner, false, None, "only looked").await.expect("storage");
    sent
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

async fn stored<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = store.grant(&key("u1"), "1").await;
    store.grants().claim_refresh(&grant, TAKEOVER).await.expect("storage").expect("a lease");
    store.advance(Duration::from_secs(5));
    let mut new = tokens("2", store.now());
    new.access_token.scopes = scopes("email");
    new.provider_values.insert("team.id".to_owned(), "T1".to_owned());
    assert!(matches!(commit(&store, &grant, &new).await, Committed::Stored));

    let held = store.held(&key("u1")).await;
    assert_eq!(held.grant.id, grant.id);
    assert_eq!(held.grant.version, Version { generation: 1, token_version: 2 });
    assert_eq!((held.grant.scopes, held.leased), (scopes("email"), false));
    assert_eq!((held.grant.created_at, held.grant.issued_at), (grant.created_at, store.now()));
    assert_eq!(held.grant.provider_values["team.id"], "T1");
    assert_eq!(store.served(&key("u1")).await, "access-2");
    assert_eq!(to_send(&store, "u1").await, (some("refresh-2"), None));
    // The rotated tokens are of a living grant: nothing is revoked.
    assert_eq!(store.doomed().await, 0);
}

async fn left_out<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = store.grant(&key("u1"), "1").await;
    let mut first = tokens("2", store.now());
    first.provider_values.insert("instance_url".to_owned(), "https://one".to_owned());
    first.refresh_token = None;
    assert!(matches!(commit(&store, &grant, &first).await, Committed::Stored));
    let grant = store.held(&key("u1")).await.grant;
    assert!(grant.refreshable);
    let mut second = tokens("3", store.now());
    second.refresh_token = None;
    assert!(matches!(commit(&store, &grant, &second).await, Committed::Stored));
    let grant = store.held(&key("u1")).await.grant;
    assert_eq!(grant.provider_values["instance_url"], "https://one");
    assert_eq!(store.served(&key("u1")).await, "access-3");
    assert_eq!(to_send(&store, "u1").await, (some("refresh-1"), None));
}

async fn siblings<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = store.grant(&key("u1"), "0").await;
    let outcomes = at_once(16, |index| {
        let (store, grant) = (store.clone(), grant.clone());
        async move { commit(&store, &grant, &tokens(&format!("n{index}"), store.now())).await }
    })
    .await;
    let winners: Vec<_> = (0..16).filter(|i| matches!(outcomes[*i], Committed::Stored)).collect();
    let losers = outcomes.iter().filter(|o| matches!(o, Committed::LostToSibling)).count();
    assert_eq!((winners.len(), losers), (1, 15));
    let winner = format!("n{}", winners[0]);
    assert_eq!(store.served(&key("u1")).await, format!("access-{winner}"));
    assert_eq!(store.held(&key("u1")).await.grant.version.token_version, 2);

    let (refresh_token, fallback) = to_send(&store, "u1").await;
    assert_eq!(refresh_token, Some(format!("refresh-{winner}")));
    let fallback = fallback.expect("the refresh token of a loser");
    assert!(fallback.starts_with("refresh-n") && Some(&fallback) != refresh_token.as_ref());
    assert_eq!(store.doomed().await, 0);
    // It ends with the grant.
    let revoked = store.grants().revoke(&key("u1"), &disposal()).await.expect("storage");
    let values = super::backend::values(&revoked.revocations);
    assert_eq!(values.len(), 3);
    assert!(values.contains(&fallback));
}

async fn superseded<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = store.grant(&key("u1"), "1").await;
    commit(&store, &grant, &tokens("2", store.now())).await;
    let lost = commit(&store, &grant, &tokens("3", store.now())).await;
    assert!(matches!(lost, Committed::LostToSibling));
    assert_eq!(to_send(&store, "u1").await, (some("refresh-2"), some("refresh-3")));

    // An answer without a refresh token says nothing about the family.
    let grant = store.held(&key("u1")).await.grant;
    let mut without = tokens("4", store.now());
    without.refresh_token = None;
    commit(&store, &grant, &without).await;
    assert_eq!(to_send(&store, "u1").await, (some("refresh-2"), some("refresh-3")));

    let grant = store.held(&key("u1")).await.grant;
    commit(&store, &grant, &tokens("5", store.now())).await;
    assert_eq!(to_send(&store, "u1").await, (some("refresh-5"), None));
}

async fn late<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = store.grant(&key("u1"), "1").await;
    store.grants().claim_refresh(&grant, TAKEOVER).await.expect("storage").expect("a lease");
    store.advance(LEASE * 4);
    // Another replica is at it by now, and finds its edition gone when it comes to commit.
    let other =
        store.grants().claim_refresh(&grant, TAKEOVER).await.expect("storage").expect("a lease");
    assert!(matches!(commit(&store, &grant, &tokens("2", store.now())).await, Committed::Stored));
    assert_eq!(store.served(&key("u1")).await, "access-2");
    assert!(!store.held(&key("u1")).await.leased);
    assert!(!store.grants().renew_lease(&grant, other.owner).await.expect("storage"));
    assert!(!store.grants().flag(&grant, "invalid_grant").await.expect("storage"));
    assert_eq!(store.held(&key("u1")).await.grant.state, GrantState::Active);
}

async fn after_flag<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = store.grant(&key("u1"), "1").await;
    store.grants().claim_refresh(&grant, TAKEOVER).await.expect("storage").expect("a lease");
    assert!(store.grants().flag(&grant, "rotation_lost").await.expect("storage"));
    let flagged = store.held(&key("u1")).await.grant;
    assert_eq!(flagged.state, GrantState::ReauthorizationRequired);
    assert!(matches!(commit(&store, &grant, &tokens("2", store.now())).await, Committed::Stored));
    assert_eq!(store.held(&key("u1")).await.grant.state, GrantState::Active);
    assert_eq!(to_send(&store, "u1").await, (some("refresh-2"), None));
}

async fn orphan<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = store.grant(&key("u1"), "1").await;
    store.grants().claim_refresh(&grant, TAKEOVER).await.expect("storage").expect("a lease");
    let revoked = store.grants().revoke(&key("u1"), &disposal()).await.expect("storage");
    assert!(revoked.found && revoked.intent_open);
    for entry in revoked.revocations {
        store.revocations().finish_revocation(entry.id).await.expect("storage");
    }
    let orphaned = commit(&store, &grant, &tokens("2", store.now())).await;
    assert!(matches!(orphaned, Committed::Orphaned));
    assert!(store.grants().find_grant(&key("u1")).await.expect("storage").is_none());
    store.advance(LEASE);
    assert_eq!(store.due().await, ["access-2", "refresh-2"]);

    // A provider that cannot revoke leaves nothing to do.
    let grant = store.grant(&key("u2"), "3").await;
    let mut disposal = disposal();
    disposal.revocable = false;
    store.grants().revoke(&key("u2"), &disposal).await.expect("storage");
    let tokens = tokens("4", store.now());
    let orphaned = store.grants().commit_refresh(&grant, &tokens, &disposal).await;
    assert!(matches!(orphaned.expect("storage"), Committed::Orphaned));
    assert_eq!(store.doomed().await, 2);
}

async fn replaced<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = store.grant(&key("u1"), "1").await;
    store.grants().claim_refresh(&grant, TAKEOVER).await.expect("storage").expect("a lease");
    let anew = store.grant(&key("u1"), "2").await;
    let orphaned = commit(&store, &grant, &tokens("late", store.now())).await;
    assert!(matches!(orphaned, Committed::Orphaned));
    let held = store.held(&key("u1")).await;
    assert_eq!(held.grant.version, anew.version);
    assert_eq!(store.served(&key("u1")).await, "access-2");
    // Not even as a fallback: it is of another consent.
    assert_eq!(to_send(&store, "u1").await, (some("refresh-2"), None));
    assert_eq!(store.doomed().await, 0);
}

async fn arriving<B: Backend>() {
    for awaiting in [false, true] {
        let store = Store::new::<B>().await;
        let grant = store.grant(&key("u1"), "1").await;
        store.grants().revoke(&key("u1"), &disposal()).await.expect("storage");
        let before = store.doomed().await;
        let anew = store.exchanging(&key("u1")).await;
        if awaiting {
            assert!(store.quarantine(&anew, "2").await);
        }
        let orphaned = commit(&store, &grant, &tokens("late", store.now())).await;
        assert!(matches!(orphaned, Committed::Orphaned));
        // Its revocation could reach the tokens that are about to be a grant.
        assert_eq!(store.doomed().await, before);
    }
}

async fn partial<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = store.grant(&key("u1"), "1").await;
    let committed = async |grant: &Grant, refresh_token: Option<&str>| {
        let refresh_token = refresh_token.map(Into::into);
        let (answer, disposal) = (answer("odd"), disposal());
        let wait = Duration::from_secs(7);
        let token = refresh_token.as_ref();
        let committed =
            store.grants().commit_partial(grant, &answer, token, wait, "odd", &disposal);
        committed.await.expect("storage")
    };
    store.grants().claim_refresh(&grant, TAKEOVER).await.expect("storage").expect("a lease");
    assert!(matches!(committed(&grant, Some("refresh-2")).await, Committed::Stored));
    let held = store.held(&key("u1")).await;
    assert_eq!((held.grant.state, held.leased), (GrantState::Active, false));
    assert_eq!(held.grant.version, Version { generation: 1, token_version: 2 });
    assert_eq!(held.grant.next_attempt_at, Some(store.now() + Duration::from_secs(7)));
    assert_eq!(held.grant.failures, 1);
    // The access token is untouched, its expiry too.
    assert_eq!(held.grant.expires_at, grant.expires_at);
    assert_eq!(store.served(&key("u1")).await, "access-1");
    store.advance(Duration::from_secs(7));
    assert_eq!(to_send(&store, "u1").await, (some("refresh-2"), None));

    assert!(matches!(committed(&held.grant, None).await, Committed::Stored));
    store.advance(Duration::from_secs(7));
    assert_eq!(to_send(&store, "u1").await, (some("refresh-2"), None));
    // The next whole answer makes good.
    let grant = store.held(&key("u1")).await.grant;
    commit(&store, &grant, &tokens("3", store.now())).await;
    let grant = store.held(&key("u1")).await.grant;
    assert_eq!((grant.failures, grant.next_attempt_at), (0, None));
}

async fn partial_late<B: Backend>() {
    let store = Store::new::<B>().await;
    let late = async |grant: &Grant, refresh_token: &str| {
        let wait = Duration::from_secs(1);
        let token = refresh_token.into();
        let (answer, disposal) = (answer("odd"), disposal());
        let committed =
            store.grants().commit_partial(grant, &answer, Some(&token), wait, "odd", &disposal);
        committed.await.expect("storage")
    };
    let grant = store.grant(&key("u1"), "1").await;
    commit(&store, &grant, &tokens("2", store.now())).await;
    assert!(matches!(late(&grant, "refresh-late").await, Committed::LostToSibling));
    assert_eq!(to_send(&store, "u1").await, (some("refresh-2"), some("refresh-late")));

    let revoked = store.grant(&key("u2"), "3").await;
    let outbox = store.grants().revoke(&key("u2"), &disposal()).await.expect("storage").revocations;
    for entry in outbox {
        store.revocations().finish_revocation(entry.id).await.expect("storage");
    }
    assert!(matches!(late(&revoked, "refresh-orphan").await, Committed::Orphaned));
    store.advance(LEASE);
    assert_eq!(store.due().await, ["refresh-orphan"]);
}

async fn foreign<B: Backend>() {
    let store = Store::new::<B>().await;
    let grant = store.grant(&key("u1"), "1").await;
    let commit = async |grant: &Grant, label| {
        store
            .grants()
            .commit_flagged(grant, &answer(label), None, "another_user")
            .await
            .expect("storage")
    };
    // A sibling was first: the grant has nothing to do with it, and so it stays.
    assert!(matches!(
        self::commit(&store, &grant, &tokens("2", store.now())).await,
        Committed::Stored
    ));
    assert!(!commit(&grant, "mallory").await);
    assert_eq!(to_send(&store, "u1").await, (some("refresh-2"), None));

    let grant = store.held(&key("u1")).await.grant;
    assert!(commit(&grant, "mallory").await);
    let held = store.held(&key("u1")).await;
    assert_eq!(held.grant.state, GrantState::ReauthorizationRequired);
    assert_eq!(store.served(&key("u1")).await, "access-2");
    // With the grant go its own tokens, and nobody else's.
    store.grants().revoke(&key("u1"), &disposal()).await.expect("storage");
    store.advance(Duration::from_secs(60));
    assert_eq!(store.due().await, ["access-2", "refresh-2"]);
}
