//! The load generator: callers that each wait for their answer, as fast as they can or at a rate.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use hdrhistogram::Histogram;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use token_broker_client::{ApiKey, Client, proto};

/// The number of callers that share a connection: bots with many users are few processes.
const PER_CONNECTION: usize = 16;

/// The RPC of a load.
#[derive(Debug, Clone, Copy)]
pub enum Call {
    GetToken,
    Refresh,
    Authorize,
    ListGrants,
}

/// A load: which calls, how many and how fast.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub call: Call,
    pub callers: usize,
    /// The number of users that the calls are about.
    pub users: usize,
    /// Calls a second of all callers together. Without it, each caller calls again at once.
    pub rate: Option<f64>,
    pub duration: Duration,
}

/// The figures of a load.
pub struct Outcome {
    pub calls: u64,
    pub failed: u64,
    pub per_second: f64,
    /// In microseconds. At a rate it counts from when a call was due, so that waiting callers hide nothing.
    latencies: Histogram<u64>,
}

impl Outcome {
    /// In microseconds.
    pub fn percentile(&self, percentile: f64) -> f64 {
        self.latencies.value_at_percentile(percentile) as f64
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("bounds")
}

/// Runs callers against servers, which they take in turn.
pub async fn run(servers: &[SocketAddr], api_key: &str, load: Load) -> Outcome {
    let stop = Arc::new(AtomicBool::new(false));
    let key = ApiKey::new(api_key).expect("a key");
    let connections = join_all((0..load.callers.div_ceil(PER_CONNECTION)).map(|number| {
        let url = format!("http://{}", servers[number % servers.len()]);
        async move { Client::channel(url).expect("a URL").connect().await.expect("it listens") }
    }))
    .await;
    let begin = Instant::now();
    let callers: Vec<_> = (0..load.callers)
        .map(|number| {
            let client = Client::new(connections[number % connections.len()].clone(), key.clone());
            let caller = Caller {
                client,
                load,
                random: StdRng::seed_from_u64(number as u64),
                stop: Arc::clone(&stop),
                first: begin + pause(load).mul_f64(number as f64 / load.callers as f64),
            };
            tokio::spawn(caller.run())
        })
        .collect();
    tokio::time::sleep(load.duration).await;
    stop.store(true, Ordering::Relaxed);
    let mut outcome = Outcome { calls: 0, failed: 0, per_second: 0.0, latencies: histogram() };
    for caller in callers {
        let (latencies, failed) = caller.await.expect("no panic");
        outcome.calls += latencies.len();
        outcome.failed += failed;
        outcome.latencies.add(latencies).expect("the same bounds");
    }
    outcome.per_second = outcome.calls as f64 / begin.elapsed().as_secs_f64();
    outcome
}

/// Between the calls of one caller.
fn pause(load: Load) -> Duration {
    let rate = load.rate.map(|rate| rate / load.callers as f64);
    rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(1.0 / rate))
}

struct Caller {
    client: Client,
    load: Load,
    random: StdRng,
    stop: Arc<AtomicBool>,
    first: Instant,
}

impl Caller {
    async fn run(mut self) -> (Histogram<u64>, u64) {
        let (mut latencies, mut failed) = (histogram(), 0);
        let (pause, mut due) = (pause(self.load), self.first);
        while !self.stop.load(Ordering::Relaxed) {
            if self.load.rate.is_none() {
                due = Instant::now();
            } else {
                tokio::time::sleep_until(due.into()).await;
            }
            failed += u64::from(!self.call().await);
            let micros = due.elapsed().as_micros();
            latencies.saturating_record(u64::try_from(micros).unwrap_or(u64::MAX));
            due += pause;
        }
        (latencies, failed)
    }

    async fn call(&mut self) -> bool {
        let key = Some(proto::GrantKey {
            provider: "acme".to_owned(),
            subject: format!("u{}", self.random.random_range(0..self.load.users)),
            account: String::new(),
        });
        let client = &mut self.client;
        match self.load.call {
            Call::GetToken => {
                let request = proto::GetTokenRequest { key, ..Default::default() };
                client.get_token(request).await.is_ok()
            }
            Call::Refresh => {
                let request = proto::RefreshRequest { key, ..Default::default() };
                client.refresh(request).await.is_ok()
            }
            Call::Authorize => {
                let request = proto::AuthorizeRequest { key, ..Default::default() };
                client.authorize(request).await.is_ok()
            }
            Call::ListGrants => {
                let request = proto::ListGrantsRequest { page_size: 20, ..Default::default() };
                client.list_grants(request).await.is_ok()
            }
        }
    }
}
