//! Refreshes that nobody waits for.

use std::time::Duration;

use libtest_mimic::Trial;
use token_broker_client::proto;

use super::{LIFETIME, get, state};
use crate::harness::trial;
use crate::harness::world::{World, refresh};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("refresh::a_used_grant_is_refreshed_ahead_and_an_unused_one_is_not", used),
        trial("refresh::a_refresh_token_with_an_idle_limit_is_kept_alive", kept_alive),
        trial("refresh::a_grant_that_cannot_be_refreshed_ahead_is_tried_again", tried_again),
    ]
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A grant whose token was never lent.
async fn unused(world: &World, subject: &str) {
    let (_, code) = world.consent(subject).await;
    let request =
        proto::ConfirmAuthorizationRequest { subject: subject.into(), code, ..Default::default() };
    world.client().confirm_authorization(request).await.expect("a grant");
}

async fn ahead() -> World {
    World::with(|setup| setup.settings.proactive_refresh = true).await
}

/// Half of a token of five minutes, and the time over which refreshes are spread.
const LATE: Duration = Duration::from_secs(151);

async fn used() {
    let world = ahead().await;
    for number in 0..5 {
        unused(&world, &format!("unused-{number}")).await;
    }
    let first = world.granted("used").await;
    let calls = world.provider.ledger().token_calls;
    world.advance(LATE);
    world.provider.wait_for_token_calls(calls + 1).await;
    // Nobody waits for the new token, and nobody needs to: it is stored when the old one is not lent
    // any more.
    let mut second = first.clone();
    while second == first {
        second = get(&world, "used").await.expect("a token").access_token;
    }
    assert!(world.provider.is_living(&second));
    // The others were looked at before it, and let go.
    assert_eq!(world.provider.ledger().refreshes, 1);
    assert_eq!(world.provider.ledger().sends_of_superseded, 0);
}

async fn kept_alive() {
    let world = World::with(|setup| {
        setup.settings.proactive_refresh = true;
        setup.providers[0].refresh_idle = Some(3 * DAY);
    })
    .await;
    unused(&world, "u1").await;
    let calls = world.provider.ledger().token_calls;
    world.advance(LIFETIME);
    // A look that finds nothing to do; after it another grant is refreshed, which is the sign.
    unused(&world, "u2").await;
    world.client().refresh(refresh("u2")).await.expect("a token");
    assert_eq!(world.provider.ledger().token_calls, calls + 2);
    world.advance(2 * DAY);
    world.provider.wait_for_token_calls(calls + 4).await;
    for subject in ["u1", "u2"] {
        assert_eq!(state(&world, subject).await, proto::GrantState::Active);
    }
    assert_eq!(world.provider.ledger().reuse_detections, 0);
}

async fn tried_again() {
    let world = ahead().await;
    world.granted("u1").await;
    let calls = world.provider.ledger().token_calls;
    super::script(&world, vec![super::html(503); 2]);
    world.advance(LATE);
    // Two attempts fail; the grant's own token lives on.
    world.provider.wait_for_token_calls(calls + 2).await;
    get(&world, "u1").await.expect("the old token");
    world.advance(Duration::from_secs(61));
    world.provider.wait_for_token_calls(calls + 3).await;
    assert_eq!(world.provider.ledger().reuse_detections, 0);
}
