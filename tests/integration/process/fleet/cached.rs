//! The cache's bounds where its helps fail: the listener is cut off, and the database.

use std::time::Duration;

use libtest_mimic::Trial;
use token_broker_client::{Client, Reason, proto};
use tokio::time::Instant;
use tonic_health::ServingStatus;

use super::seeding::seed_grants;
use super::{Fleet, get, reason_of};
use crate::harness::proxy::Proxy;
use crate::harness::soak::{is_full, report};
use crate::harness::world::{get_token, key};
use crate::harness::{tools, trial_with};
use crate::process::database::Health;

pub fn trials() -> Vec<Trial> {
    let needs = &[tools::POSTGRESQL];
    vec![
        trial_with(needs, "process::fleet::a_silent_listener_costs_no_more_than_the_age", silent),
        trial_with(needs, "process::fleet::a_lost_listener_costs_no_more_than_the_age", lost),
        trial_with(needs, "process::fleet::a_token_outlives_an_outage_as_long_as_it_may", outage),
    ]
}

/// The one replica that is cut off.
const CUT_OFF: usize = 2;

const MAX_AGE: Duration = Duration::from_secs(5);

/// How much later than it may something be noticed here, on a busy machine: calls come one after the
/// other.
const LATE: Duration = Duration::from_secs(2);

/// Calls until it is refused; gives the time of the last success, and why it was refused.
async fn served_until_refused(client: &mut Client, subject: &str) -> (Instant, Reason) {
    let mut last = Instant::now();
    loop {
        let asked = Instant::now();
        match client.get_token(get_token(subject)).await {
            Ok(_) => last = asked,
            Err(status) => return (last, reason_of(&status)),
        }
    }
}

async fn without_notices(break_off: impl Fn(&Proxy)) -> Duration {
    let server = super::databases::server();
    server.start();
    let proxy = Proxy::to(server.address).await;
    let url = server.new_database().await;
    let listen = url.replace(&server.address.to_string(), &proxy.address.to_string());
    let variables = [("TOKEN_BROKER__CACHE__MAX_AGE", "5s")];
    let mut fleet = Fleet::on(url, Duration::ZERO, &variables).await;
    fleet.take(CUT_OFF).terminate().await;
    fleet.restart_with(CUT_OFF, &[("TOKEN_BROKER__DATABASE__LISTEN_URL", &listen)]).await;
    seed_grants(&fleet, 1).await;
    let mut clients = fleet.clients().await;
    break_off(&proxy);
    get(clients[CUT_OFF].clone(), "u0".to_owned()).await;
    let revoke = proto::RevokeRequest { key: Some(key("u0")) };
    clients[0].revoke(revoke).await.expect("revoked");
    let told = Instant::now();
    let (last, reason) = served_until_refused(&mut clients[CUT_OFF], "u0").await;
    assert_eq!(reason, Reason::AuthorizationRequired);
    let stale = last.saturating_duration_since(told);
    assert!(stale > Duration::ZERO, "the notice came, or there is no cache");
    assert!(stale <= MAX_AGE, "{stale:?}");
    stale
}

async fn silent() {
    let stale = without_notices(Proxy::freeze).await;
    report("silent listener", &format!("a revoked token was served for {stale:?}"));
}

async fn lost() {
    let stale = without_notices(Proxy::cut).await;
    report("lost listener", &format!("a revoked token was served for {stale:?}"));
}

async fn outage() {
    let outage_max_age = Duration::from_secs(if is_full() { 50 } else { 15 });
    let away = Duration::from_secs(if is_full() { 60 } else { 20 });
    let server = super::databases::server();
    server.start();
    let proxy = Proxy::to(server.address).await;
    let url = server.new_database().await;
    let through = url.replace(&server.address.to_string(), &proxy.address.to_string());
    let seconds = format!("{}s", outage_max_age.as_secs());
    let variables = [
        ("TOKEN_BROKER__CACHE__MAX_AGE", "5s"),
        ("TOKEN_BROKER__CACHE__OUTAGE_MAX_AGE", seconds.as_str()),
    ];
    let mut fleet = Fleet::on(url, Duration::ZERO, &variables).await;
    fleet.take(CUT_OFF).terminate().await;
    fleet.restart_with(CUT_OFF, &[("TOKEN_BROKER__DATABASE__URL", &through)]).await;
    seed_grants(&fleet, 2).await;
    let mut clients = fleet.clients().await;
    let mut health = Health::of(fleet.replica(CUT_OFF)).await;
    health.becomes(ServingStatus::Serving).await;
    get(clients[CUT_OFF].clone(), "u0".to_owned()).await;
    let read = Instant::now();
    proxy.cut();
    let cut = Instant::now();
    // One that was never read here cannot be served, and what a user has to settle is not told.
    let refused = clients[CUT_OFF].get_token(get_token("u1")).await.expect_err("refused");
    assert_eq!(reason_of(&refused), Reason::StorageUnavailable);
    let (last, reason) = served_until_refused(&mut clients[CUT_OFF], "u0").await;
    assert_eq!(reason, Reason::StorageUnavailable);
    let served = last.saturating_duration_since(read);
    assert!(served > MAX_AGE + LATE, "no longer than without an outage: {served:?}");
    assert!(served <= outage_max_age, "{served:?}");
    assert!(served + LATE >= outage_max_age, "{served:?}");
    // The others do not notice, and so do their callers not.
    get(clients[0].clone(), "u0".to_owned()).await;
    health.becomes(ServingStatus::NotServing).await;
    let healthy = cut.elapsed();
    // It counts from when the database was found to be away, which takes up to 4 s.
    assert!(healthy + LATE >= outage_max_age, "{healthy:?}");
    assert!(healthy <= outage_max_age + 5 * LATE, "{healthy:?}");
    tokio::time::sleep_until(cut + away).await;
    proxy.mend();
    health.becomes(ServingStatus::Serving).await;
    get(clients[CUT_OFF].clone(), "u0".to_owned()).await;
    report("outage", &format!("served for {served:?}, healthy for {healthy:?}"));
}
