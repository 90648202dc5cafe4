//! Calls without a credential: they are refused by their headers, and hold nothing.

use bytes::Bytes;
use h2::client::SendRequest;
use libtest_mimic::Trial;
use token_broker::listener::ListenerLimits;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::harness::world::{api_key, get_token};
use crate::harness::{World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("strangers::grpc::calls_are_refused_before_their_message", refused),
        trial("strangers::grpc::a_message_must_arrive_in_time", slow_message),
        trial("strangers::grpc::a_large_message_is_refused", large_message),
        trial("strangers::grpc::connections_give_way_to_new_ones", many),
        trial("strangers::grpc::reflection_has_few_places", reflection),
        trial("strangers::grpc::health_has_few_places", health),
    ]
}

const GET_TOKEN: &str = "/tokenbroker.v1.TokenBrokerService/GetToken";

async fn connect(world: &World) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(world.grpc_address).await.expect("it listens");
    let (requests, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    requests
}

/// A call whose message is never complete.
struct Open {
    response: h2::client::ResponseFuture,
    _message: h2::SendStream<Bytes>,
}

async fn open(
    requests: &mut SendRequest<Bytes>,
    path: &str,
    key: Option<&str>,
    bytes: &[u8],
) -> Open {
    let mut request = http::Request::post(format!("http://broker{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let request = request.body(()).expect("a request");
    let mut ready = requests.clone().ready().await.expect("a connection");
    let (response, mut message) = ready.send_request(request, false).expect("a stream");
    message.send_data(Bytes::copy_from_slice(bytes), false).expect("a window");
    Open { response, _message: message }
}

/// The status of a call, which is in its headers if there is no message.
async fn status(call: Open) -> String {
    let response = call.response.await.expect("a response");
    let in_headers = response.headers().get("grpc-status").cloned();
    let status = match in_headers {
        Some(status) => status,
        None => {
            let mut body = response.into_body();
            while let Some(data) = body.data().await {
                drop(data);
            }
            let trailers = body.trailers().await.expect("an end").expect("trailers");
            trailers.get("grpc-status").expect("a status").clone()
        }
    };
    status.to_str().expect("digits").to_owned()
}

async fn refused() {
    let world = World::start().await;
    let mut requests = connect(&world).await;
    // The head of a message of 60,000 bytes, and a few of them.
    let begun = [&[0, 0, 0, 0xea, 0x60][..], &[0; 10]].concat();
    for key in [None, Some("tb_wrong")] {
        let call = open(&mut requests, GET_TOKEN, key, &begun).await;
        assert_eq!(status(call).await, "16", "{key:?}");
    }
    let call = open(&mut requests, "/tokenbroker.v1.TokenBrokerService/Other", None, &begun).await;
    assert_eq!(status(call).await, "12");
}

async fn slow_message() {
    let world = World::start().await;
    let mut requests = connect(&world).await;
    let key = api_key("helper");
    let call = open(&mut requests, GET_TOKEN, Some(key.expose()), &[0, 0, 0, 0, 9, 1]).await;
    assert_eq!(status(call).await, "4");
    let health = open(&mut requests, "/grpc.health.v1.Health/Check", None, &[0]).await;
    assert_eq!(status(health).await, "4");
}

async fn large_message() {
    let world = World::start().await;
    let mut requests = connect(&world).await;
    let key = api_key("helper");
    let head = [0, 0, 1, 0, 1];
    let call = open(&mut requests, GET_TOKEN, Some(key.expose()), &head).await;
    assert_eq!(status(call).await, "11");
}

async fn many() {
    let world = World::start().await;
    world.granted("u1").await;
    let limits = ListenerLimits::default().grpc;
    let mut open = Vec::new();
    for _ in 0..limits.pending_per_peer + 5 {
        open.push(TcpStream::connect(world.grpc_address).await.expect("it listens"));
    }
    for stream in &mut open[..5] {
        let mut bytes = Vec::new();
        drop(stream.read_to_end(&mut bytes).await);
    }
    // The bot's connection has shown its key, and stays.
    world.client().get_token(get_token("u1")).await.expect("a token");
}

async fn hold(world: &World, path: &str, places: usize, bytes: &[u8]) {
    let mut requests = connect(world).await;
    let mut held = Vec::new();
    // One more than there are places. The server may take them in any order.
    for _ in 0..=places {
        held.push(Box::pin(status(open(&mut requests, path, None, bytes).await)));
    }
    let (first, _, rest) = futures::future::select_all(held).await;
    assert_eq!(first, "8");
    drop(rest);
}

async fn reflection() {
    let world = World::start().await;
    let path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    hold(&world, path, 16, &[]).await;
}

async fn health() {
    let world = World::start().await;
    hold(&world, "/grpc.health.v1.Health/Watch", 128, &[0, 0, 0, 0, 0]).await;
}
