//! Calls without a credential: they are refused by their headers, and hold nothing.

use bytes::Bytes;
use h2::client::SendRequest;
use libtest_mimic::Trial;
use token_broker::broker::CallLimits;
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
        trial("strangers::grpc::a_stranger_that_reads_nothing_is_disconnected", unread),
        trial("strangers::grpc::a_bot_that_reads_nothing_is_refused_more", unread_by_bot),
        trial("strangers::grpc::one_bot_keeps_only_a_share_of_the_connections", connections),
    ]
}

const GET_TOKEN: &str = "/tokenbroker.v1.TokenBrokerService/GetToken";

async fn connect(world: &World) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(world.grpc_address).await.expect("it listens");
    let (requests, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    requests
}

/// A connection on which the client accepts no bytes of responses.
async fn connect_unread(world: &World) -> (SendRequest<Bytes>, tokio::task::JoinHandle<()>) {
    let stream = TcpStream::connect(world.grpc_address).await.expect("it listens");
    let mut client = h2::client::Builder::new();
    client.initial_window_size(0).max_concurrent_reset_streams(0);
    let (requests, connection) = client.handshake(stream).await.expect("HTTP/2");
    let connected = tokio::spawn(async move { drop(connection.await) });
    (requests, connected)
}

/// A whole message.
fn message(message: &impl prost::Message) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    let length = u32::try_from(bytes.len()).expect("a short message").to_be_bytes();
    [&[0][..], &length, &bytes].concat()
}

async fn unread() {
    let world = World::start().await;
    let (mut requests, connected) = connect_unread(&world).await;
    let path = "/grpc.health.v1.Health/Check";
    let _call = begin(&mut requests, path, None, &message(&()), true).await;
    // Ends when the server closes the connection.
    connected.await.expect("the connection ends");
}

async fn unread_by_bot() {
    let world = World::start().await;
    world.granted("u1").await;
    let (mut requests, _connected) = connect_unread(&world).await;
    let (key, bytes) = (api_key("helper"), message(&get_token("u1")));
    let places = CallLimits::default().max_concurrent_calls.get();
    let mut calls = Vec::new();
    for _ in 0..=places {
        calls.push(call(&mut requests, key.expose(), &bytes).await);
    }
    let (mut refused, mut unread) = (Vec::new(), Vec::new());
    for Open { response, _message } in calls {
        let response = response.await.expect("a response");
        refused.extend(response.headers().get("grpc-status").cloned());
        // Dropped, it would be given up.
        unread.push(response);
    }
    assert_eq!(refused, ["14"], "of one call, in its headers");
}

async fn connections() {
    let world = World::start().await;
    let limits = ListenerLimits::default().grpc;
    let (key, bytes) = (api_key("helper"), message(&get_token("u1")));
    let mut open_connections = Vec::new();
    let excess = 10;
    for _ in 0..limits.active_per_bot + limits.pending_per_peer + excess {
        let stream = TcpStream::connect(world.grpc_address).await.expect("it listens");
        let (mut requests, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        let connected = tokio::spawn(async move { drop(connection.await) });
        let call = call(&mut requests, key.expose(), &bytes).await;
        assert_eq!(status(call).await, "9", "no grant");
        open_connections.push((requests, connected));
    }
    // Those beyond its share are pending, and give way to newer ones.
    let beyond = &mut open_connections[limits.active_per_bot..][..excess];
    for (_, connected) in beyond {
        connected.await.expect("the connection ends");
    }
    let ended = open_connections.iter().filter(|(_, connected)| connected.is_finished()).count();
    assert_eq!(ended, excess);
}

/// A call, whose message is open for as long as this lives.
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
    begin(requests, path, key, bytes, false).await
}

/// A call whose message is complete.
async fn call(requests: &mut SendRequest<Bytes>, key: &str, bytes: &[u8]) -> Open {
    begin(requests, GET_TOKEN, Some(key), bytes, true).await
}

async fn begin(
    requests: &mut SendRequest<Bytes>,
    path: &str,
    key: Option<&str>,
    bytes: &[u8],
    ends: bool,
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
    message.send_data(Bytes::copy_from_slice(bytes), ends).expect("a window");
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
