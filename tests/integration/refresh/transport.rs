//! What goes wrong below the protocol: size, speed, compression, connections.

use std::sync::atomic::Ordering;
use std::time::Duration;

use libtest_mimic::Trial;
use token_broker_client::{Reason, proto};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::raw::{Raw, gzip, response};
use super::{BACKOFF, LIFETIME, get, json, reason, script, state};
use crate::harness::{World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("refresh::a_body_of_two_mebibytes_is_refused", two_mebibytes),
        trial("refresh::a_body_just_below_the_limit_is_read", one_mebibyte),
        trial("refresh::a_gzipped_answer_is_read", gzipped),
        trial("refresh::a_gzip_bomb_is_refused_before_it_is_read", bomb),
        trial("refresh::a_body_byte_by_byte_ends_with_the_timeout", byte_by_byte),
        trial("refresh::a_refused_connection_is_unavailable_and_no_verdict", refused),
        trial("refresh::a_connection_that_breaks_is_unavailable_and_no_verdict", broken),
    ]
}

const JSON: &str = "content-type: application/json\r\n";

/// A world with an expired grant, whose provider's token endpoint is at `url` by now.
async fn moved_to(url: &str, timeout: Duration) -> World {
    let before = World::start().await;
    before.granted("u1").await;
    let folder = before.folder.clone();
    before.stop().await.expect("a clean end");
    let world = World::with(|setup| {
        setup.folder = Some(folder);
        setup.provider_timeout = timeout;
        setup.providers[0].endpoints.token = Some(url.parse().expect("a URL"));
    })
    .await;
    world.advance(LIFETIME);
    world
}

fn padded(bytes: usize) -> String {
    format!(r#"{{"access_token":"padded","expires_in":300,"pad":"{}"}}"#, "x".repeat(bytes))
}

async fn two_mebibytes() {
    let world = World::start().await;
    world.granted("u1").await;
    world.advance(LIFETIME);
    script(&world, [json(200, &padded(2 * 1024 * 1024))]);
    // The provider has acted, and a refresh token may have stood in the rest.
    assert_eq!(reason(get(&world, "u1").await), Reason::ReauthorizationRequired);
    world.advance(BACKOFF);
    assert_eq!(reason(get(&world, "u1").await), Reason::ReauthorizationRequired);
    assert_eq!(world.provider.ledger().refreshes, 1);
}

async fn one_mebibyte() {
    let world = World::start().await;
    world.granted("u1").await;
    world.advance(LIFETIME);
    script(&world, [json(200, &padded(1024 * 1024 - 200))]);
    assert_eq!(get(&world, "u1").await.expect("a token").access_token, "padded");
}

async fn gzipped() {
    let body = gzip(r#"{"access_token":"unpacked","expires_in":300}"#, 3);
    let raw =
        Raw::answering(move |_| response(&format!("{JSON}content-encoding: gzip\r\n"), &body))
            .await;
    let world = moved_to(&raw.url, Duration::from_secs(10)).await;
    assert_eq!(get(&world, "u1").await.expect("a token").access_token, "unpacked");
    assert_eq!(raw.connections(), 1);
}

async fn bomb() {
    // 4 MiB of spaces in 26 KiB, 1600 times over.
    let body = gzip(r#"{"access_token":"bomb","expires_in":300,"pad":""#, 16 * 1024).repeat(1600);
    let sent = body.len();
    let raw =
        Raw::answering(move |_| response(&format!("{JSON}content-encoding: gzip\r\n"), &body))
            .await;
    let world = moved_to(&raw.url, Duration::from_secs(30)).await;
    // Too much, not too slow: it was given up at the limit of what it unpacks to.
    assert_eq!(reason(get(&world, "u1").await), Reason::ReauthorizationRequired);
    // Nor was the rest taken in: what the sockets hold is all that has gone.
    assert!(raw.taken() < sent / 2, "{} of {sent} bytes", raw.taken());
    assert_eq!(raw.connections(), 1);
}

async fn byte_by_byte() {
    let raw = Raw::serving(|mut stream, _, taken| async move {
        let whole = response(JSON, padded(10_000).as_bytes());
        let body = whole.windows(4).position(|window| window == b"\r\n\r\n").expect("a body") + 4;
        drop(stream.write_all(&whole[..body]).await);
        for byte in &whole[body..] {
            if stream.write_all(&[*byte]).await.is_err() {
                return;
            }
            taken.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let world = moved_to(&raw.url, Duration::from_secs(1)).await;
    let began = tokio::time::Instant::now();
    assert_eq!(reason(get(&world, "u1").await), Reason::ReauthorizationRequired);
    // Each byte came in time, the whole did not; it would have taken a quarter of an hour.
    assert!(began.elapsed() < Duration::from_secs(20));
    assert!(raw.taken() >= 2, "the body had begun");
}

async fn refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    drop(listener);
    let world = moved_to(&url, Duration::from_secs(10)).await;
    for _ in 0..3 {
        let refusal = get(&world, "u1").await.expect_err("a refusal");
        assert_eq!(refusal.reason, Reason::ProviderUnavailable);
        assert!(refusal.retry_after.is_some());
        assert_eq!(state(&world, "u1").await, proto::GrantState::Active);
        world.advance(BACKOFF);
    }
}

async fn broken() {
    let half = response(JSON, padded(100).as_bytes());
    let raw = Raw::answering(move |before| match before {
        // Before the answer, and in its head.
        0 | 1 => Vec::new(),
        2 | 3 => half[..20].to_vec(),
        _ => half.clone(),
    })
    .await;
    let world = moved_to(&raw.url, Duration::from_secs(10)).await;
    for broken in 1..=2 {
        assert_eq!(reason(get(&world, "u1").await), Reason::ProviderUnavailable, "{broken}");
        assert_eq!(state(&world, "u1").await, proto::GrantState::Active, "{broken}");
        // Sent twice a call: nothing below the broker tries again by itself.
        assert_eq!(raw.connections(), 2 * broken);
        world.advance(BACKOFF * 2);
    }
    assert_eq!(get(&world, "u1").await.expect("a token").access_token, "padded");
}
