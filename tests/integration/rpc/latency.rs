//! A single caller, beside a bare tonic service. The margin is wide, for machines are busy and this build may
//! be unoptimized; `cargo bench --bench load` measures. A response that waits for an acknowledgement takes
//! a hundred times as long.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use token_broker_client::{ApiKey, Client};
use tokio::net::TcpListener;

use crate::harness::bare;
use crate::harness::soak::report;
use crate::harness::world::{api_key, get_token};
use crate::harness::{Browser, World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("rpc::a_cached_token_takes_at_most_three_times_a_bare_call", cached),
        trial("rpc::every_connection_has_tcp_nodelay", nodelay),
    ]
}

const MOST: f64 = 3.0;
const CALLS: usize = 200;

async fn cached() {
    let world = World::with(|setup| {
        setup.settings.cache.max_age = Duration::from_secs(60);
        setup.settings.cache.max_entries = 10;
    })
    .await;
    world.granted("u1").await;
    let mut ours = world.client();
    let response = ours.get_token(get_token("u1")).await.expect("a token").into_inner();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(bare::serve(listener, response.clone()));
    let channel = Client::channel(url).expect("a URL").connect().await.expect("it listens");
    let mut bare = Client::new(channel, ApiKey::new(api_key("helper").expose()).expect("a key"));

    // By turns, so that what else the machine does meets both.
    let (mut of_ours, mut of_bare) = (Vec::new(), Vec::new());
    for _ in 0..CALLS {
        for (client, took) in [(&mut ours, &mut of_ours), (&mut bare, &mut of_bare)] {
            let began = Instant::now();
            let got = client.get_token(get_token("u1")).await.expect("a token").into_inner();
            took.push(began.elapsed());
            assert_eq!(got, response);
        }
    }
    let median = |mut took: Vec<Duration>| {
        took.sort();
        took[CALLS / 2].as_secs_f64() * 1e6
    };
    let (ours, bare) = (median(of_ours), median(of_bare));
    let ratio = ours / bare;
    report("one caller", &format!("p50 {ours:.0} µs, bare {bare:.0} µs: ratio {ratio:.2}"));
    assert!(
        ratio <= MOST,
        "p50 {ours:.0} µs is {ratio:.2} times that of a bare service, {bare:.0} µs"
    );
}

/// The option is read from the sockets themselves, for a builder's setting may have no effect.
async fn nodelay() {
    let world = World::start().await;
    world.granted("u1").await;
    // Kept alive by the browser.
    let mut browser = Browser::new();
    browser.get(&format!("{}/oauth2/start/none", world.http_url)).await;
    browser.get(&format!("{}/livez", world.ops_url)).await;
    let address = |url: &str| -> SocketAddr {
        url.strip_prefix("http://").expect("a URL").parse().expect("an address")
    };
    let acme = world.broker.providers.get("acme").expect("a provider");
    let provider = address(acme.issuer.as_deref().expect("an issuer"));
    let sockets = connected();
    for (what, listener) in [
        ("gRPC", world.grpc_address),
        ("the redirect listener", address(&world.http_url)),
        ("the ops listener", address(&world.ops_url)),
    ] {
        let accepted = sockets.iter().filter(|socket| is(socket.local_addr(), listener));
        assert!(has_nodelay(accepted), "{what}");
    }
    for (what, server) in [("the client crate", world.grpc_address), ("a provider", provider)] {
        let opened = sockets.iter().filter(|socket| is(socket.peer_addr(), server));
        assert!(has_nodelay(opened), "calls of {what}");
    }
}

fn is(address: std::io::Result<SocketAddr>, wanted: SocketAddr) -> bool {
    address.is_ok_and(|address| address == wanted)
}

/// Returns `true` if all of them have it, and there is one.
fn has_nodelay<'a>(sockets: impl Iterator<Item = &'a TcpStream>) -> bool {
    let nodelay: Vec<bool> = sockets.map(|socket| socket.nodelay().expect("an option")).collect();
    !nodelay.is_empty() && nodelay.iter().all(|nodelay| *nodelay)
}

/// Copies of the connected TCP sockets of this process, whose services run in it.
fn connected() -> Vec<TcpStream> {
    let this = pidfd_open(getpid(), PidfdFlags::empty()).expect("this process");
    let files = std::fs::read_dir("/proc/self/fd").expect("a listing of files");
    files
        .flatten()
        .filter(|file| {
            let target = std::fs::read_link(file.path()).unwrap_or_default();
            target.to_string_lossy().starts_with("socket:")
        })
        .filter_map(|file| file.file_name().to_str()?.parse().ok())
        // One that has just been closed is not there any more.
        .filter_map(|number| pidfd_getfd(&this, number, PidfdGetfdFlags::empty()).ok())
        .map(TcpStream::from)
        .filter(|socket| socket.peer_addr().is_ok())
        .collect()
}
