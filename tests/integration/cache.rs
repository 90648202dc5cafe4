//! The cache of living tokens: what it answers, what it never answers, and for how long.

use std::time::Duration;

use libtest_mimic::Trial;
use sea_orm::{ConnectionTrait, Database};
use token_broker::broker::Bounds;
use token_broker_client::{Reason, Refusal, proto};

use crate::harness::world::{self, get_token, key};
use crate::harness::{World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("cache::answers_without_the_database", answers),
        trial("cache::is_a_bound_on_age", bound),
        trial("cache::never_tells_what_a_user_has_to_settle", settled),
        trial("cache::forgets_what_is_revoked_refreshed_or_replaced_here", forgets),
        trial("cache::serves_on_while_the_database_is_away_and_no_longer", outage),
        trial("cache::keeps_no_more_than_it_may", full),
        trial("cache::off_reads_the_database_each_time", off),
    ]
}

/// So long that no test sees its end.
const LONG: Duration = Duration::from_secs(60);

async fn world(max_age: Duration, outage_max_age: Duration) -> World {
    World::with(|setup| {
        setup.settings.cache = Bounds { max_age, outage_max_age, max_entries: 100 };
    })
    .await
}

/// InvalidationListener the database behind the broker's back.
async fn tamper(world: &World, sql: &str) {
    let file = world.folder.path().join("token-broker.db");
    let database = Database::connect(format!("sqlite://{}", file.display())).await;
    let database = database.expect("the file");
    database.execute_unprepared(sql).await.expect("a statement");
    database.close().await.expect("closed");
}

async fn reason(world: &World, subject: &str) -> Reason {
    let refused = world.client().get_token(get_token(subject)).await.expect_err("refused");
    Refusal::of(&refused).expect("a refusal").reason
}

async fn answers() {
    let world = world(LONG, LONG).await;
    let token = world.granted("u1").await;
    // Nobody reads it.
    tamper(&world, "DELETE FROM grants").await;
    for _ in 0..10 {
        assert_eq!(world.token("u1").await, token);
    }
    let counts = world.broker.tokens.cache_counts();
    assert_eq!((counts.hits, counts.misses), (10, 1));
    assert!(counts.oldest < LONG);
}

async fn bound() {
    let max_age = Duration::from_millis(300);
    let world = world(max_age, max_age).await;
    world.granted("u1").await;
    let began = std::time::Instant::now();
    tamper(&world, "DELETE FROM grants").await;
    while world.client().get_token(get_token("u1")).await.is_ok() {
        assert!(began.elapsed() < Duration::from_secs(10), "it is served for ever");
    }
    assert_eq!(reason(&world, "u1").await, Reason::AuthorizationRequired);
    assert!(world.broker.tokens.cache_counts().oldest <= max_age);
}

async fn settled() {
    let world = world(LONG, LONG).await;
    assert_eq!(reason(&world, "u1").await, Reason::AuthorizationRequired);
    let token = world.granted("u1").await;
    // At once, although the other answer was a moment ago.
    assert_eq!(world.token("u1").await, token);
    let wider =
        || proto::GetTokenRequest { scopes: vec!["calendar".to_owned()], ..get_token("u1") };
    let refused = world.client().get_token(wider()).await.expect_err("refused");
    assert_eq!(Refusal::of(&refused).expect("a refusal").reason, Reason::ScopeMissing);
    tamper(&world, "UPDATE grants SET scopes = 'calendar email profile'").await;
    world.client().get_token(wider()).await.expect("it is asked anew");
}

async fn forgets() {
    let world = world(LONG, LONG).await;
    let first = world.granted("u1").await;
    let refresh = world::refresh("u1");
    let second = world.client().refresh(refresh).await.expect("a token").into_inner();
    let second = second.token.expect("a token").access_token;
    assert_ne!(first, second);
    assert_eq!(world.token("u1").await, second);
    let third = world.granted("u1").await;
    assert_ne!(third, second);
    assert_eq!(world.token("u1").await, third);
    let revoke = proto::RevokeRequest { key: Some(key("u1")) };
    world.client().revoke(revoke).await.expect("revoked");
    assert_eq!(reason(&world, "u1").await, Reason::AuthorizationRequired);
}

async fn outage() {
    let world = world(Duration::from_millis(1), Duration::from_secs(2)).await;
    let token = world.granted("u1").await;
    tamper(&world, "ALTER TABLE grants RENAME TO away").await;
    let began = std::time::Instant::now();
    assert_eq!(world.token("u1").await, token);
    assert_eq!(reason(&world, "u2").await, Reason::StorageUnavailable);
    while world.client().get_token(get_token("u1")).await.is_ok() {
        assert!(began.elapsed() < Duration::from_secs(20), "it is served for ever");
    }
    assert_eq!(reason(&world, "u1").await, Reason::StorageUnavailable);
    assert!(world.broker.tokens.cache_counts().outage_hits > 0);
    tamper(&world, "ALTER TABLE away RENAME TO grants").await;
    assert_eq!(world.token("u1").await, token);
}

async fn full() {
    let world = World::with(|setup| {
        setup.settings.cache = Bounds { max_age: LONG, outage_max_age: LONG, max_entries: 2 };
    })
    .await;
    for number in 0..10 {
        world.granted(&format!("u{number}")).await;
    }
    tamper(&world, "DELETE FROM grants").await;
    let mut kept = 0;
    for number in 0..10 {
        let token = world.client().get_token(get_token(&format!("u{number}"))).await;
        kept += usize::from(token.is_ok());
    }
    assert!((1..=2).contains(&kept), "{kept} are kept");
}

async fn off() {
    let world = World::start().await;
    world.granted("u1").await;
    tamper(&world, "DELETE FROM grants").await;
    assert_eq!(reason(&world, "u1").await, Reason::AuthorizationRequired);
    assert_eq!(world.broker.tokens.cache_counts().hits, 0);
}
