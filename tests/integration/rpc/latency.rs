//! A single caller, beside a bare tonic service. The margin is wide, for machines are busy and this build may
//! be unoptimized; `cargo bench --bench load` measures. A response that waits for an acknowledgement takes
//! a hundred times as long.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use token_broker_client::{ApiKey, Client};
use tokio::net::TcpListener;

use crate::harness::bare;
use crate::harness::soak::report;
use crate::harness::world::{api_key, get_token};
use crate::harness::{World, trial};

pub fn trials() -> Vec<Trial> {
    vec![trial("rpc::a_cached_token_takes_at_most_three_times_a_bare_call", cached)]
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
