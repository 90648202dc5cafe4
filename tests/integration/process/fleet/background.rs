//! Many refreshes that are due ahead of time, at a provider that is slow, and a caller.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use super::Fleet;
use super::seeding::seed_grants;
use crate::harness::soak::{report, size};
use crate::harness::world::get_token;
use crate::harness::{long_trial_with, tools};
use crate::process::weather::Conditions;

pub fn trials() -> Vec<Trial> {
    vec![long_trial_with(
        &[tools::POSTGRESQL],
        "process::fleet::a_caller_does_not_wait_behind_refreshes_ahead_of_time",
        callers_first,
    )]
}

/// The time that the provider takes for a call.
const SLOW: Duration = Duration::from_secs(3);

async fn callers_first() {
    let mut fleet = Fleet::start(&[]).await;
    // One replica has to do it all.
    for number in [1, 2] {
        fleet.take(number).terminate().await;
    }
    let due = size(300, 2500);
    let mut subjects = seed_grants(&fleet, due + 1).await;
    let caller = subjects.pop().expect("one more");
    fleet.site.weather.set(0, Conditions { slow: SLOW, ..Conditions::default() });
    // Used, and due for a refresh ahead of time; the caller's token has ended.
    let now = "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)";
    fleet
        .execute(&format!(
            "UPDATE grants SET next_refresh_at = {now}, last_used_at = {now}, \
             issued_at = {now} - 280000, expires_at = {now} + 20000 WHERE subject <> '{caller}'"
        ))
        .await;
    for table in ["grants", "access_tokens"] {
        let only = if table == "grants" {
            format!("subject = '{caller}'")
        } else {
            format!("grant_id IN (SELECT id FROM grants WHERE subject = '{caller}')")
        };
        fleet.execute(&format!("UPDATE {table} SET expires_at = issued_at + 1 WHERE {only}")).await;
    }
    // All places of the background are taken.
    let calls = fleet.site.provider.ledger().token_calls;
    fleet.site.provider.wait_for_token_calls(calls + 1).await;
    let began = Instant::now();
    fleet.client(0).get_token(get_token(&caller)).await.expect("a token");
    let waited = began.elapsed();
    report(
        "callers first",
        &format!("{due} due at a provider that takes {SLOW:?}: a caller waited {waited:?}"),
    );
    assert!(waited < SLOW + SLOW, "{waited:?}");
}
