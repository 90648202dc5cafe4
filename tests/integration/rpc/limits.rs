//! What callers may ask of one replica.

use std::time::Duration;

use libtest_mimic::Trial;
use token_broker_client::{ApiKey, Client, Reason, Refusal, proto};

use crate::harness::proxy::Proxy;
use crate::harness::trial;
use crate::harness::world::{World, api_key, authorize, get_token, refresh};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("rpc::one_call_too_many_is_told_to_come_back", too_many),
        trial("rpc::a_response_does_not_wait_for_an_acknowledgement", at_once),
        trial("rpc::a_connection_that_is_old_is_replaced_without_a_failure", old_connection),
    ]
}

/// Nagle's algorithm holds a response's second packet until the client has acknowledged the first, which
/// it delays by 40 ms. Without that a call takes about one.
const DELAYED_ACK: Duration = Duration::from_millis(40);

async fn at_once() {
    let world = World::start().await;
    world.granted("u1").await;
    let mut client = world.client();
    let mut took = Vec::new();
    for _ in 0..31 {
        let began = std::time::Instant::now();
        client.get_token(get_token("u1")).await.expect("a token");
        took.push(began.elapsed());
    }
    took.sort_unstable();
    assert!(took[took.len() / 2] < DELAYED_ACK / 2, "{took:?}");
}

async fn too_many() {
    let world = World::with(|setup| {
        setup.settings.limits.max_concurrent_calls = std::num::NonZeroU32::MIN;
    })
    .await;
    world.granted("u1").await;
    let started = world.client().authorize(authorize("u2")).await.expect("a link").into_inner();
    let request = proto::WatchAuthorizationRequest { authorization_id: started.authorization_id };
    let mut watching = world.client();
    let mut stream = watching.watch_authorization(request.clone()).await.expect("a stream");
    stream.get_mut().message().await.expect("a message");
    let pause = world.provider.pause_token_endpoint();
    let mut refresher = world.client();
    let calls = world.provider.ledger().token_calls;
    let refreshing = tokio::spawn(async move { refresher.refresh(refresh("u1")).await });
    world.provider.wait_for_token_calls(calls + 1).await;
    // That is the one; the stream is not counted among the calls.
    let refused = world.client().get_token(get_token("u1")).await.expect_err("too many");
    let refusal = Refusal::of(&refused).expect("a refusal");
    assert_eq!(refusal.reason, Reason::Overloaded);
    assert!(refusal.retry_after.is_some());
    drop(pause);
    refreshing.await.expect("no panic").expect("a token");
    world.client().get_token(get_token("u1")).await.expect("a token");
    let refused = world.client().watch_authorization(request).await.expect_err("too many");
    assert_eq!(Refusal::of(&refused).expect("a refusal").reason, Reason::Overloaded);
}

async fn old_connection() {
    let world = World::with(|setup| {
        setup.settings.limits.max_connection_age = Duration::from_millis(300);
    })
    .await;
    world.granted("u1").await;
    let proxy = Proxy::to(world.grpc_address).await;
    let channel = Client::channel(format!("http://{}", proxy.address)).expect("a URL");
    let key = ApiKey::new(api_key("helper").expose()).expect("a key");
    let mut client = Client::new(channel.connect().await.expect("it listens"), key);
    while proxy.connections() < 3 {
        client.get_token(get_token("u1")).await.expect("a token");
    }
}
