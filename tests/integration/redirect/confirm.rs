//! The code from the result page: only the person in the chat who has it sets the tokens free.

use std::time::Duration;

use futures::future::join_all;
use libtest_mimic::Trial;
use token_broker_client::proto::{self, AuthorizationState};
use token_broker_client::{Reason, Refusal};

use super::{
    assert_no_grant, awaiting, begin_with, confirmation, confirmed, not_confirmed, outbox_is_empty,
    seen, shown, state_of, wrong,
};
use crate::harness::world::{authorize, bot, key};
use crate::harness::{Browser, World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("redirect::the_fifth_wrong_code_fails_and_revokes", five_wrong_codes),
        trial("redirect::the_right_code_works_at_the_fifth_attempt", fifth_attempt),
        trial("redirect::a_hundred_guesses_at_once_are_five", hundred_guesses),
        trial("redirect::spaces_and_dashes_in_a_code_do_not_matter", spaces_and_dashes),
        trial("redirect::what_is_no_code_costs_no_attempt", no_code),
        trial("redirect::the_right_code_may_be_repeated_with_its_id", repeated),
        trial("redirect::the_right_code_that_comes_five_times_at_once_is_harmless", at_once),
        trial("redirect::a_code_is_for_its_own_subject_and_bot", others),
        trial("redirect::a_code_without_an_id_finds_the_one_it_fits", two_accounts),
        trial("redirect::a_wrong_code_without_an_id_counts_against_all", counts_against_all),
        trial("redirect::a_forwarded_link_does_not_bind_the_victim_to_the_attacker", attacker),
        trial("redirect::what_nobody_confirms_in_time_expires_and_is_revoked", timeout),
    ]
}

/// Asserts that a code was wrong, and how many attempts are left.
fn mismatch(refusal: &Refusal, attempts_left: u32) {
    assert_eq!(refusal.reason, Reason::ConfirmationMismatch);
    assert_eq!(refusal.metadata["attempts_left"], attempts_left.to_string());
}

/// Asserts that the authorization named by its id is past the point where a code helps.
async fn is_past(world: &World, code: &str, id: &str, state: &str) {
    let refusal = not_confirmed(world, "u1", code, id).await;
    assert_eq!(refusal.reason, Reason::AuthorizationNotAwaitingConfirmation);
    assert_eq!(refusal.metadata["state"], state);
    let refusal = not_confirmed(world, "u1", code, "").await;
    assert_eq!(refusal.reason, Reason::AuthorizationNotFound);
}

/// Asserts that the provider has ended all that it had issued.
async fn all_revoked(world: &World) {
    outbox_is_empty(world).await;
    let ledger = world.provider.ledger();
    assert_eq!((ledger.living_refresh_tokens, ledger.living_access_tokens), (0, 0));
    assert!(ledger.revocations >= 1);
}

async fn five_wrong_codes() {
    for with_id in [true, false] {
        let world = World::start().await;
        let mut awaiting = awaiting(&world, "u1").await;
        let id = if with_id { awaiting.id.as_str() } else { "" };
        for attempts_left in (0..5).rev() {
            let state = state_of(&world, &awaiting.id).await;
            assert_eq!(state, AuthorizationState::AwaitingConfirmation);
            let refusal = not_confirmed(&world, "u1", &wrong(&awaiting.code), id).await;
            mismatch(&refusal, attempts_left);
        }
        let failed = seen(&world, &awaiting.id).await;
        assert_eq!(failed.state(), AuthorizationState::Failed);
        assert_eq!(failed.error, "too_many_wrong_codes");
        is_past(&world, &awaiting.code, &awaiting.id, "FAILED").await;
        assert_no_grant(&world, "u1").await;
        let url = awaiting.page.url.clone();
        let page = awaiting.browser.get(url.as_str()).await;
        shown(&page, 400, "It did not work");
        assert!(page.body.contains("wrong too often") && page.confirmation_code().is_none());

        all_revoked(&world).await;
    }
}

async fn fifth_attempt() {
    let world = World::start().await;
    let awaiting = awaiting(&world, "u1").await;
    for attempts_left in (1..5).rev() {
        mismatch(&not_confirmed(&world, "u1", &wrong(&awaiting.code), "").await, attempts_left);
    }
    confirmed(&world, "u1", &awaiting.code, "").await;
    assert!(world.provider.is_living(&world.token("u1").await));
    assert_eq!(world.provider.ledger().revoke_calls, 0);
}

async fn hundred_guesses() {
    for with_id in [true, false] {
        let world = World::start().await;
        let awaiting = awaiting(&world, "u1").await;
        let id = if with_id { awaiting.id.as_str() } else { "" };
        let right: u32 = awaiting.code.replace(' ', "").parse().expect("digits");
        let guesses = (1..=100).map(|guess| {
            let code = format!("{:08}", (right + guess) % 100_000_000);
            let (mut client, request) = (world.client(), confirmation("u1", &code, id));
            tokio::spawn(async move { client.confirm_authorization(request).await })
        });
        let mut left = Vec::new();
        for answer in join_all(guesses).await {
            let status = answer.expect("no panic").expect_err("a wrong code");
            let refusal = Refusal::of(&status).expect("a refusal");
            match refusal.reason {
                Reason::ConfirmationMismatch => {
                    left.push(refusal.metadata["attempts_left"].clone())
                }
                Reason::AuthorizationNotAwaitingConfirmation => assert!(with_id),
                Reason::AuthorizationNotFound => assert!(!with_id),
                other => panic!("{other:?}"),
            }
        }
        left.sort();
        assert_eq!(left, ["0", "1", "2", "3", "4"]);
        assert_eq!(state_of(&world, &awaiting.id).await, AuthorizationState::Failed);
        is_past(&world, &awaiting.code, &awaiting.id, "FAILED").await;
        assert_no_grant(&world, "u1").await;
        all_revoked(&world).await;
    }
}

async fn spaces_and_dashes() {
    let world = World::start().await;
    let forms: [fn(&str, &str) -> String; 8] = [
        |a, b| format!("{a}{b}"),
        |a, b| format!("{a} {b}"),
        |a, b| format!("  {a}\t{b}\n"),
        |a, b| format!("{a}-{b}"),
        |a, b| format!("{a}–{b}"),
        |a, b| format!("{a} — {b}"),
        |a, b| format!("{a}\u{a0}{b}"),
        |a, b| [a, b].concat().chars().map(|c| format!("{c}-")).collect(),
    ];
    for (number, form) in forms.into_iter().enumerate() {
        let subject = format!("u{number}");
        let awaiting = awaiting(&world, &subject).await;
        let (first, second) = awaiting.code.split_once(' ').expect("two groups");
        assert_eq!((first.len(), second.len()), (4, 4));
        let grant = confirmed(&world, &subject, &form(first, second), "").await;
        assert_eq!(grant.key.expect("a key").subject, subject);
        assert_eq!(state_of(&world, &awaiting.id).await, AuthorizationState::Authorized);
    }
}

async fn no_code() {
    let world = World::start().await;
    let awaiting = awaiting(&world, "u1").await;
    let digits = awaiting.code.replace(' ', "");
    for text in ["", " ", "1", &digits[1..], &format!("{digits}0"), "abcdefgh", "１２３４５６７８"]
    {
        for id in ["", &awaiting.id] {
            let refusal = not_confirmed(&world, "u1", text, id).await;
            assert_eq!(refusal.reason, Reason::InvalidArgument, "{text:?}");
            assert_eq!(refusal.metadata["fields"], "code");
        }
    }
    mismatch(&not_confirmed(&world, "u1", &wrong(&awaiting.code), "").await, 4);
}

async fn repeated() {
    let world = World::start().await;
    let awaiting = awaiting(&world, "u1").await;
    let grant = confirmed(&world, "u1", &awaiting.code, &awaiting.id).await;
    let token = world.token("u1").await;
    for _ in 0..10 {
        assert_eq!(confirmed(&world, "u1", &awaiting.code, &awaiting.id).await, grant);
    }
    // Without an id there is none that awaits a code; with a wrong code it is no repetition.
    let refusal = not_confirmed(&world, "u1", &awaiting.code, "").await;
    assert_eq!(refusal.reason, Reason::AuthorizationNotFound);
    let refusal = not_confirmed(&world, "u1", &wrong(&awaiting.code), &awaiting.id).await;
    assert_eq!(refusal.reason, Reason::AuthorizationNotAwaitingConfirmation);
    assert_eq!(refusal.metadata["state"], "AUTHORIZED");
    assert_eq!(state_of(&world, &awaiting.id).await, AuthorizationState::Authorized);
    assert_eq!(world.token("u1").await, token);
    assert_eq!(world.provider.ledger().token_calls, 1);
}

/// A chat platform that delivers a message again.
async fn at_once() {
    let world = World::start().await;
    let awaiting = awaiting(&world, "u1").await;
    let calls = (0..5).map(|_| {
        let request = confirmation("u1", &awaiting.code, &awaiting.id);
        let mut client = world.client();
        tokio::spawn(async move { client.confirm_authorization(request).await })
    });
    let mut grants = Vec::new();
    for answer in join_all(calls).await {
        let response = answer.expect("no panic").expect("a grant").into_inner();
        grants.push(response.grant.expect("a grant"));
    }
    assert!(grants.iter().all(|grant| *grant == grants[0]));
    assert!(world.provider.is_living(&world.token("u1").await));
    let ledger = world.provider.ledger();
    assert_eq!((ledger.token_calls, ledger.revoke_calls), (1, 0));
}

async fn others() {
    let world = World::with(|setup| setup.bots.push(bot("other"))).await;
    let awaiting = awaiting(&world, "u1").await;
    for id in ["", awaiting.id.as_str()] {
        for code in [awaiting.code.clone(), wrong(&awaiting.code)] {
            let refusal = not_confirmed(&world, "u2", &code, id).await;
            assert_eq!(refusal.reason, Reason::AuthorizationNotFound);
            let mut other = world.client_of("other");
            let request = confirmation("u1", &code, id);
            let status = other.confirm_authorization(request).await.expect_err("not its own");
            let refusal = Refusal::of(&status).expect("a refusal");
            assert_eq!(refusal.reason, Reason::AuthorizationNotFound);
        }
    }
    for id in ["x", &"0".repeat(32)] {
        let refusal = not_confirmed(&world, "u1", &awaiting.code, id).await;
        assert_eq!(refusal.reason, Reason::AuthorizationNotFound);
    }
    // None of that has cost the owner an attempt.
    mismatch(&not_confirmed(&world, "u1", &wrong(&awaiting.code), "").await, 4);
    confirmed(&world, "u1", &awaiting.code, &awaiting.id).await;
}

/// Two authorizations of one subject that await their codes: ids and codes.
async fn two_awaiting(world: &World) -> [(String, String); 2] {
    let mut both = Vec::new();
    for account in ["home", "work"] {
        let key = proto::GrantKey { account: account.into(), ..key("u1") };
        let request = proto::AuthorizeRequest { key: Some(key), ..authorize("u1") };
        let started = begin_with(world, request).await;
        let page = Browser::new().allow(&started.authorization_url).await;
        both.push((started.authorization_id, page.confirmation_code().expect("a code")));
    }
    both.try_into().expect("two")
}

async fn two_accounts() {
    let world = World::start().await;
    let [(home, home_code), (work, work_code)] = two_awaiting(&world).await;
    let grant = confirmed(&world, "u1", &work_code, "").await;
    assert_eq!(grant.key.expect("a key").account, "work");
    assert_eq!(state_of(&world, &work).await, AuthorizationState::Authorized);
    assert_eq!(state_of(&world, &home).await, AuthorizationState::AwaitingConfirmation);
    mismatch(&not_confirmed(&world, "u1", &wrong(&home_code), &home).await, 4);
    // The code of one is not the other's.
    mismatch(&not_confirmed(&world, "u1", &work_code, &home).await, 3);
    let grant = confirmed(&world, "u1", &home_code, "").await;
    assert_eq!(grant.key.expect("a key").account, "home");
    assert_eq!(world.provider.ledger().living_refresh_tokens, 2);
}

async fn counts_against_all() {
    let world = World::start().await;
    let [(home, home_code), (work, work_code)] = two_awaiting(&world).await;
    // One of them has an attempt less.
    mismatch(&not_confirmed(&world, "u1", &work_code, &home).await, 4);
    let neither = (0..)
        .map(|n| format!("{n:08}"))
        .find(|code| ![&home_code, &work_code].iter().any(|right| right.replace(' ', "") == *code));
    let neither = neither.expect("a wrong code");
    for attempts_left in (1..5).rev() {
        mismatch(&not_confirmed(&world, "u1", &neither, "").await, attempts_left);
    }
    assert_eq!(state_of(&world, &home).await, AuthorizationState::Failed);
    assert_eq!(state_of(&world, &work).await, AuthorizationState::AwaitingConfirmation);
    confirmed(&world, "u1", &work_code, "").await;
    let refusal = not_confirmed(&world, "u1", &home_code, "").await;
    assert_eq!(refusal.reason, Reason::AuthorizationNotFound);
    outbox_is_empty(&world).await;
    let ledger = world.provider.ledger();
    assert_eq!((ledger.living_refresh_tokens, ledger.living_access_tokens), (1, 1));
}

async fn attacker() {
    let world = World::start().await;
    // The victim has a grant of their own, and follows the attacker's link in the same browser.
    let victims = world.granted("victim").await;
    let awaiting = awaiting(&world, "attacker").await;
    assert!(awaiting.page.body.contains("attacker"), "the page says whom the code would serve");
    assert_no_grant(&world, "attacker").await;
    for attempts_left in (0..5).rev() {
        mismatch(
            &not_confirmed(&world, "attacker", &wrong(&awaiting.code), "").await,
            attempts_left,
        );
        assert_no_grant(&world, "attacker").await;
    }
    // The victim types the code where they always do: in their own chat, as themselves.
    let refusal = not_confirmed(&world, "victim", &awaiting.code, "").await;
    assert_eq!(refusal.reason, Reason::AuthorizationNotFound);
    assert_eq!(state_of(&world, &awaiting.id).await, AuthorizationState::Failed);
    assert_no_grant(&world, "attacker").await;
    outbox_is_empty(&world).await;
    let ledger = world.provider.ledger();
    assert_eq!((ledger.living_refresh_tokens, ledger.living_access_tokens), (1, 1));
    assert_eq!(world.token("victim").await, victims);
    assert!(world.provider.is_living(&victims));
}

async fn timeout() {
    let world = World::start().await;
    let mut awaiting = awaiting(&world, "u1").await;
    world.advance(Duration::from_millis(299_999));
    let state = state_of(&world, &awaiting.id).await;
    assert_eq!(state, AuthorizationState::AwaitingConfirmation);
    world.advance(Duration::from_millis(1));
    // From that moment, whether or not the sweep has come by.
    assert_eq!(state_of(&world, &awaiting.id).await, AuthorizationState::Expired);
    is_past(&world, &awaiting.code, &awaiting.id, "EXPIRED").await;
    world.broker.authorizations.sweep(100).await.expect("a sweep");
    assert_eq!(
        world.broker.authorizations.sweep(100).await.expect("a sweep").rows,
        0,
        "nothing is left to end"
    );
    assert_eq!(state_of(&world, &awaiting.id).await, AuthorizationState::Expired);
    is_past(&world, &awaiting.code, &awaiting.id, "EXPIRED").await;
    let url = awaiting.page.url.clone();
    let page = awaiting.browser.get(url.as_str()).await;
    shown(&page, 400, "This link no longer works");
    assert_eq!(page.confirmation_code(), None);
    assert_no_grant(&world, "u1").await;
    all_revoked(&world).await;
    assert_eq!(world.provider.ledger().token_calls, 1);
}
