//! Responses that are odd as HTTP, on the way from a provider that detects the reuse of a refresh token: none may cost
//! the new one.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use libtest_mimic::Trial;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use super::raw::{forward, gzip, read_request};
use super::{BACKOFF, LIFETIME, get};
use crate::harness::{World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("refresh::odd_http::a_space_before_the_colon", row::<0>),
        trial("refresh::odd_http::a_header_without_a_colon", row::<1>),
        trial("refresh::odd_http::a_folded_header", row::<2>),
        trial("refresh::odd_http::130_headers", row::<3>),
        trial("refresh::odd_http::a_content_length_that_is_too_large", row::<4>),
        trial("refresh::odd_http::plain_json_that_is_called_gzip", row::<5>),
        trial("refresh::odd_http::gzip_without_a_label", row::<6>),
        trial("refresh::odd_http::gzip_without_its_last_eight_bytes", row::<7>),
        trial("refresh::odd_http::a_form_that_is_called_json", row::<8>),
        trial("refresh::odd_http::a_byte_order_mark", row::<9>),
        trial("refresh::odd_http::rubbish_behind_the_json", row::<10>),
    ]
}

/// Makes a response with this JSON odd.
type Odd = fn(&str) -> Vec<u8>;

const ROWS: [Odd; 11] = [
    |json| with("X-A : y\r\n", json.as_bytes()),
    |json| with("PHP Warning  something is deprecated\r\n", json.as_bytes()),
    |json| with("X-A: one\r\n  two\r\n", json.as_bytes()),
    |json| {
        let many: String = (0..130).map(|number| format!("X-{number}: y\r\n")).collect();
        with(&many, json.as_bytes())
    },
    |json| head("", json.len() + 3).into_bytes().into_iter().chain(json.bytes()).collect(),
    |json| with("Content-Encoding: gzip\r\n", json.as_bytes()),
    |json| with("", &gzip(json, 0)),
    |json| {
        let whole = gzip(json, 0);
        with("Content-Encoding: gzip\r\n", &whole[..whole.len() - 8])
    },
    |json| {
        let members: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(json).expect("JSON");
        let text = |value: &serde_json::Value| match value {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        for (name, value) in &members {
            form.append_pair(name, &text(value));
        }
        with("", form.finish().as_bytes())
    },
    |json| with("", format!("\u{feff}{json}").as_bytes()),
    |json| with("", format!("{json}\n<!-- 12 ms -->").as_bytes()),
];

fn head(headers: &str, length: usize) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{headers}Content-Length: {length}\r\n\
         Connection: close\r\n\r\n"
    )
}

fn with(headers: &str, body: &[u8]) -> Vec<u8> {
    [head(headers, body.len()).as_bytes(), body].concat()
}

async fn row<const ROW: usize>() {
    let between = Between::start(ROWS[ROW]).await;
    let (url, target) = (between.url(), Arc::clone(&between.target));
    let world = World::with(move |setup| {
        let token = setup.providers[0].endpoints.token.replace(url.parse().expect("a URL"));
        let token = token.expect("an endpoint");
        let address =
            format!("{}:{}", token.host_str().expect("a host"), token.port().expect("a port"));
        *target.lock().unwrap_or_else(PoisonError::into_inner) = address.parse().ok();
    })
    .await;
    world.granted("u1").await;
    for round in 0..3 {
        world.advance(LIFETIME + BACKOFF);
        let token = get(&world, "u1").await.unwrap_or_else(|told| panic!("{round}: {told:?}"));
        assert!(world.provider.is_living(&token.access_token), "{round}");
    }
    let ledger = world.provider.ledger();
    assert_eq!((ledger.reuse_detections, ledger.most_refreshes_of_one_token()), (0, 1));
    assert_eq!(ledger.living_refresh_tokens, 1, "the family lives");
}

/// Stands before the token endpoint, and makes the responses to refreshes odd.
struct Between {
    address: SocketAddr,
    target: Arc<Mutex<Option<SocketAddr>>>,
}

impl Between {
    async fn start(odd: Odd) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let target = Arc::new(Mutex::new(None));
        let behind = Arc::clone(&target);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let behind = behind.lock().unwrap_or_else(PoisonError::into_inner);
                tokio::spawn(pass(stream, behind.expect("it is known by then"), odd));
            }
        });
        Self { address, target }
    }

    fn url(&self) -> String {
        format!("http://{}/token", self.address)
    }
}

async fn pass(mut stream: TcpStream, target: SocketAddr, odd: Odd) {
    let request = read_request(&mut stream).await;
    let text = String::from_utf8_lossy(&request).into_owned();
    let answer = forward(&text, target).await;
    let is_refresh = text.contains("grant_type=refresh_token");
    let odd = match answer.split_once("\r\n\r\n") {
        Some((head, json)) if is_refresh && head.starts_with("HTTP/1.1 200") => odd(json),
        _ => answer.into_bytes(),
    };
    // The broker may have seen enough.
    drop(stream.write_all(&odd).await);
    drop(stream.shutdown().await);
}
