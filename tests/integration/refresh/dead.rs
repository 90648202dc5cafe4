//! Ten dead grants whose bots poll, beside one healthy user, for a minute of the tests' clock: the healthy user is never
//! refused, and the provider is not called for the dead ones again and again.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use libtest_mimic::Trial;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use super::raw::{forward, read_request};
use super::{LIFETIME, get, refresh};
use crate::harness::soak::report;
use crate::harness::{World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("refresh::dead_grants_do_not_stop_a_healthy_one::by_a_bare_401", polled::<0>),
        trial("refresh::dead_grants_do_not_stop_a_healthy_one::by_invalid_request", polled::<1>),
        trial("refresh::dead_grants_do_not_stop_a_healthy_one::by_a_500_with_a_code", polled::<2>),
        trial("refresh::dead_grants_do_not_stop_a_healthy_one::by_a_403_page", polled::<3>),
        trial("refresh::dead_grants_do_not_stop_a_healthy_one::by_invalid_grant", polled::<4>),
    ]
}

const REFUSALS: [(&str, &str); 5] = [
    ("401 Unauthorized", ""),
    ("400 Bad Request", r#"{"error":"invalid_request"}"#),
    ("500 Internal Server Error", r#"{"error":"invalid_grant"}"#),
    ("403 Forbidden", "<html>no</html>"),
    ("400 Bad Request", r#"{"error":"invalid_grant"}"#),
];

const DEAD: usize = 10;

async fn polled<const ROW: usize>() {
    let provider = Arc::new(Shared::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/token", listener.local_addr().expect("an address"));
    let shared = Arc::clone(&provider);
    let world = World::with(move |setup| {
        let token = setup.providers[0].endpoints.token.replace(url.parse().expect("a URL"));
        let token = token.expect("an endpoint");
        let port = token.port().expect("a port");
        shared.lock().target = Some(([127, 0, 0, 1], port).into());
    })
    .await;
    tokio::spawn(serve(listener, Arc::clone(&provider), REFUSALS[ROW]));
    // The first users are those whose grants die.
    for number in 0..DEAD {
        world.granted(&format!("dead{number}")).await;
    }
    provider.lock().dying = false;
    world.granted("healthy").await;
    world.advance(LIFETIME);

    let mut refused = 0;
    for _ in 0..60 {
        for number in 0..DEAD {
            drop(get(&world, &format!("dead{number}")).await);
        }
        refused += usize::from(refresh(&world, "healthy", "").await.is_err());
        world.advance(Duration::from_secs(1));
    }
    let calls = provider.lock().calls.clone();
    let most = calls.values().copied().max().unwrap_or_default();
    report(
        "dead grants",
        &format!("{}: {refused} refused, at most {most} calls a grant", REFUSALS[ROW].0),
    );
    assert_eq!(refused, 0, "the healthy user is never refused");
    assert_eq!(calls.len(), DEAD, "each was tried");
    // Twice at once where it is unknown whether the provider has acted; then with growing pauses.
    assert!(most <= 24, "{most} calls for one dead grant");
}

#[derive(Default)]
struct Shared(Mutex<State>);

struct State {
    target: Option<SocketAddr>,
    /// `true` if grants that are made now are to die.
    dying: bool,
    dead: HashSet<String>,
    calls: HashMap<String, usize>,
}

impl Default for State {
    fn default() -> Self {
        Self { target: None, dying: true, dead: HashSet::new(), calls: HashMap::new() }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>, refusal: (&'static str, &'static str)) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(pass(stream, Arc::clone(&shared), refusal));
    }
}

async fn pass(mut stream: TcpStream, shared: Arc<Shared>, (status, body): (&str, &str)) {
    let request = String::from_utf8_lossy(&read_request(&mut stream).await).into_owned();
    let form = request.split_once("\r\n\r\n").map_or("", |(_, form)| form);
    let sent = url::form_urlencoded::parse(form.as_bytes())
        .find(|(name, _)| name == "refresh_token")
        .map(|(_, value)| value.into_owned());
    if let Some(token) = &sent
        && shared.lock().dead.contains(token)
    {
        *shared.lock().calls.entry(token.clone()).or_default() += 1;
        let length = body.len();
        let response = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        drop(stream.write_all(response.as_bytes()).await);
        return;
    }
    let target = shared.lock().target.expect("it is known by then");
    let text = forward(&request, target).await;
    let json = text.split_once("\r\n\r\n").map_or("", |(_, json)| json);
    let answer: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
    if let Some(token) = answer["refresh_token"].as_str() {
        let mut shared = shared.lock();
        if shared.dying {
            shared.dead.insert(token.to_owned());
        }
    }
    drop(stream.write_all(text.as_bytes()).await);
}
