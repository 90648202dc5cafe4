//! What the listeners serve besides the contract: health, reflection, probes, and nothing else.

use libtest_mimic::Trial;
use prost::Message;
use prost_types::FileDescriptorProto;
use token_broker_client::proto;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_reflection::pb::{v1, v1alpha};

use crate::harness::{Browser, World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("rpc::health_serves_without_a_credential", health),
        trial("rpc::health_tells_watchers_that_the_broker_drains", draining),
        trial("rpc::reflection_v1_lists_and_resolves", reflection_v1),
        trial("rpc::reflection_v1alpha_lists_and_resolves", reflection_v1alpha),
        trial("rpc::the_ops_listener_answers_probes_alone", ops),
        trial("rpc::the_public_listener_answers_404_for_all_else", public),
        trial("rpc::a_stopped_broker_refuses_new_calls", stopped),
    ]
}

const SERVICE: &str = "tokenbroker.v1.TokenBrokerService";

fn of(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.into() }
}

/// Watches the service until it serves, and gives the stream back.
async fn serving(world: &World) -> tonic::Streaming<HealthCheckResponse> {
    let mut client = HealthClient::new(world.channel.clone());
    let mut stream = client.watch(of(SERVICE)).await.expect("a stream").into_inner();
    loop {
        let told = stream.message().await.expect("no error").expect("a status");
        match told.status() {
            ServingStatus::Serving => return stream,
            // Until storage has answered for the first time.
            other => assert_eq!(other, ServingStatus::NotServing),
        }
    }
}

async fn health() {
    let world = World::start().await;
    serving(&world).await;
    let mut client = HealthClient::new(world.channel.clone());
    for service in ["", SERVICE] {
        let told = client.check(of(service)).await.expect("a status").into_inner();
        assert_eq!(told.status(), ServingStatus::Serving, "{service:?}");
    }
    let unknown = client.check(of("tokenbroker.v1.Other")).await.expect_err("no such service");
    assert_eq!(unknown.code(), Code::NotFound);
}

async fn draining() {
    let world = World::start().await;
    let mut service = serving(&world).await;
    let mut client = HealthClient::new(world.channel.clone());
    let mut process = client.watch(of("")).await.expect("a stream").into_inner();
    let told = process.message().await.expect("no error").expect("a status");
    assert_eq!(told.status(), ServingStatus::Serving);
    let (stopped, ()) = tokio::join!(world.stop(), async {
        let told = service.message().await.expect("no error").expect("a status");
        assert_eq!(told.status(), ServingStatus::NotServing);
        // The streams end, for whoever watches would keep the process from ending. Nothing but
        // the end is told before.
        assert_eq!(service.message().await.expect("no error").map(|told| told.status()), None);
        assert_eq!(process.message().await.expect("no error").map(|told| told.status()), None);
    });
    stopped.expect("a clean end");
}

/// What reflection must know: a service, a message of the contract, and the error details.
const SYMBOLS: [(&str, &str); 6] = [
    (SERVICE, "tokenbroker.v1"),
    ("tokenbroker.v1.AuthorizeResponse", "tokenbroker.v1"),
    ("google.rpc.ErrorInfo", "google.rpc"),
    ("google.rpc.BadRequest", "google.rpc"),
    ("google.rpc.RetryInfo", "google.rpc"),
    ("google.rpc.Help", "google.rpc"),
];

/// Checks that one of the files defines a symbol.
fn assert_defines(files: &[Vec<u8>], package: &str, symbol: &str) {
    let name = symbol.strip_prefix(package).and_then(|rest| rest.strip_prefix('.'));
    let name = name.expect("a symbol of its package");
    let defines = files.iter().any(|bytes| {
        let file = FileDescriptorProto::decode(bytes.as_slice()).expect("a file");
        file.package() == package
            && (file.message_type.iter().any(|message| message.name() == name)
                || file.service.iter().any(|service| service.name() == name))
    });
    assert!(defines, "{symbol}");
}

/// One test a version: their types are different, and alike.
macro_rules! reflection {
    ($test:ident, $version:ident) => {
        async fn $test() {
            use $version::server_reflection_client::ServerReflectionClient;
            use $version::server_reflection_request::MessageRequest;
            use $version::server_reflection_response::MessageResponse;

            let world = World::start().await;
            let mut client = ServerReflectionClient::new(world.channel.clone());
            let mut requests = vec![MessageRequest::ListServices(String::new())];
            requests.extend(
                SYMBOLS.map(|(symbol, _)| MessageRequest::FileContainingSymbol(symbol.to_owned())),
            );
            let requests = requests.into_iter().map(|message| $version::ServerReflectionRequest {
                host: String::new(),
                message_request: Some(message),
            });
            let answers = client.server_reflection_info(tokio_stream::iter(requests)).await;
            let mut answers = answers.expect("a stream, without a credential").into_inner();
            let first = answers.message().await.expect("no error").expect("an answer");
            let Some(MessageResponse::ListServicesResponse(list)) = first.message_response else {
                panic!("no list: {first:?}");
            };
            let mut names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
            names.sort_unstable();
            let own = concat!("grpc.reflection.", stringify!($version), ".ServerReflection");
            assert_eq!(names, ["grpc.health.v1.Health", own, SERVICE]);
            for (symbol, package) in SYMBOLS {
                let answer = answers.message().await.expect("no error").expect("an answer");
                let Some(MessageResponse::FileDescriptorResponse(files)) = answer.message_response
                else {
                    panic!("{symbol}: {answer:?}");
                };
                assert_defines(&files.file_descriptor_proto, package, symbol);
            }
        }
    };
}

reflection!(reflection_v1, v1);
reflection!(reflection_v1alpha, v1alpha);

async fn ops() {
    let world = World::start().await;
    let mut browser = Browser::new();
    let live = browser.get(&format!("{}/livez", world.ops_url)).await;
    assert_eq!((live.status, live.body.as_str()), (200, "ok\n"));
    // Readiness follows health.
    serving(&world).await;
    let ready = loop {
        let ready = browser.get(&format!("{}/readyz", world.ops_url)).await;
        if ready.status != 503 {
            break ready;
        }
        assert_eq!(ready.body, "not ready\n");
    };
    assert_eq!((ready.status, ready.body.as_str()), (200, "ok\n"));
    for path in ["/", "/livez/", "/oauth2/start/x", "/oauth2/callback/acme"] {
        let page = browser.get(&format!("{}{path}", world.ops_url)).await;
        assert_eq!(page.status, 404, "{path}");
    }
}

async fn public() {
    let world = World::start().await;
    let mut browser = Browser::new();
    for path in [
        "/",
        "/livez",
        "/readyz",
        "/metrics",
        "/favicon.ico",
        "/oauth2",
        "/oauth2/start",
        "/oauth2/start/",
        "/oauth2/callback",
        "/oauth2/start/x/y",
        "/tokenbroker.v1.TokenBrokerService/GetToken",
        "//",
        "/../livez",
    ] {
        let page = browser.get(&format!("{}{path}", world.http_url)).await;
        assert_eq!(
            (page.status, page.heading().as_str()),
            (404, "There is nothing here"),
            "{path}"
        );
        assert_eq!(page.headers["cache-control"], "no-store");
        assert_eq!(page.headers["referrer-policy"], "no-referrer");
        let policy = page.headers["content-security-policy"].to_str().expect("text");
        assert!(policy.starts_with("default-src 'none'"), "{policy}");
    }
    let started = world.client().authorize(crate::harness::world::authorize("u1")).await;
    let link = started.expect("a link").into_inner().authorization_url;
    // Another method on a link that works is nothing either.
    assert_eq!(browser.post(&link, &[]).await.status, 404);
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    for method in [reqwest::Method::PUT, reqwest::Method::DELETE, reqwest::Method::OPTIONS] {
        let answer = client.request(method.clone(), &link).send().await.expect("an answer");
        assert_eq!(answer.status(), 404, "{method}");
    }
    assert_eq!(browser.get(&link).await.status, 303);
}

async fn stopped() {
    let world = World::start().await;
    let mut client = world.client();
    world.granted("u1").await;
    world.stop().await.expect("a clean end");
    let status = client.list_providers(proto::ListProvidersRequest::default()).await;
    assert_eq!(status.expect_err("nobody listens").code(), Code::Unavailable);
}
