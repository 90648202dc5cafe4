//! Slow and many connections on the public listener.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use axum::Router;
use libtest_mimic::Trial;
use token_broker::domain::bot::Rate;
use token_broker::listener::{Listener, ListenerLimits, http1};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::harness::{Browser, World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("strangers::http::slow_requests_end", slow),
        trial("strangers::http::slow_connections_give_way_to_new_ones", many),
        trial("strangers::http::open_connections_do_not_delay_the_end", stopped),
        trial("strangers::http::a_head_is_limited", long_head),
        trial("strangers::http::one_peer_sends_few_requests_a_second", too_many),
    ]
}

async fn connect(url: &str) -> TcpStream {
    TcpStream::connect(url.strip_prefix("http://").expect("a URL")).await.expect("it listens")
}

/// Waits until the server closes the connection. Returns what it sent first.
async fn closed(stream: &mut TcpStream) -> String {
    let mut response = Vec::new();
    // A reset ends it as well as a FIN.
    drop(stream.read_to_end(&mut response).await);
    String::from_utf8_lossy(&response).into_owned()
}

async fn slow() {
    let world = World::start().await;
    let head = "POST /oauth2/callback/acme HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nstate";
    for (what, url, bytes, status) in [
        ("silence", &world.http_url, "", ""),
        ("half a head", &world.http_url, "GET / HTTP/1.1\r\nHost:", ""),
        ("half a body", &world.http_url, head, "408"),
        ("silence at ops", &world.ops_url, "", ""),
    ] {
        let mut stream = connect(url).await;
        stream.write_all(bytes.as_bytes()).await.expect("it reads");
        let response = closed(&mut stream).await;
        assert!(response.contains(status), "{what}: {response}");
    }
    // An idle connection ends too.
    let mut stream = connect(&world.ops_url).await;
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("it reads");
    assert!(closed(&mut stream).await.contains("200 OK"));
}

async fn many() {
    let world = World::start().await;
    let limits = ListenerLimits::default().http;
    let mut open = Vec::new();
    for _ in 0..limits.pending_per_peer + 20 {
        let mut stream = connect(&world.http_url).await;
        stream.write_all(b"GET / HTTP/1.1\r\n").await.expect("it reads");
        open.push(stream);
    }
    for stream in &mut open[..20] {
        closed(stream).await;
    }
    let page = Browser::new().get(&format!("{}/nothing", world.http_url)).await;
    assert_eq!(page.status, 404);
}

async fn stopped() {
    let world = World::start().await;
    let mut open = Vec::new();
    for url in [&world.http_url, &world.ops_url, &format!("http://{}", world.grpc_address)] {
        let mut stream = connect(url).await;
        stream.write_all(b"GET / HTTP/1.1\r\n").await.expect("it reads");
        open.push(stream);
    }
    let began = Instant::now();
    world.stop().await.expect("a clean end");
    // Strangers at the gRPC listener have 1.5 s. Without a limit the end took 12 s.
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

async fn too_many() {
    let of = |number| NonZeroU32::new(number).expect("not zero");
    let rate = Rate { per_second: of(1), burst: of(5) };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let listener = Listener::new(listener, "test", ListenerLimits::default().http);
    let router = Router::new().fallback(async || "answered");
    let stopping = CancellationToken::new();
    let serving = tokio::spawn(http1::serve(router, listener, Some(rate), stopping.clone()));
    let mut statuses = Vec::new();
    for _ in 0..20 {
        let mut stream = connect(&url).await;
        let request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.expect("it reads");
        let response = closed(&mut stream).await;
        statuses.push(response.contains(" 200 "));
        assert!(response.contains(" 200 ") || response.contains(" 429 "), "{response}");
    }
    assert_eq!(statuses[..5], [true; 5]);
    assert!(statuses.iter().filter(|answered| **answered).count() < 12, "{statuses:?}");
    stopping.cancel();
    serving.await.expect("it ends");
}

async fn long_head() {
    let world = World::start().await;
    let mut stream = connect(&world.http_url).await;
    let cookie = "x".repeat(100 * 1024);
    let request = format!("GET /nothing HTTP/1.1\r\nHost: a\r\nCookie: {cookie}\r\n\r\n");
    // The server may close before it has read everything.
    drop(stream.write_all(request.as_bytes()).await);
    let response = closed(&mut stream).await;
    assert!(response.is_empty() || response.contains("431"), "{response}");
}
