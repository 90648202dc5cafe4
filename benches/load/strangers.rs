//! Measures the effect of strangers and one bot on others: slow sockets, unfinished messages, a flood of redirects
//! of one link, and one bot whose calls wait for a provider that does not answer. `TOKEN_BROKER_BENCH_ATTACKS` names
//! some of them (`sockets,messages,redirects,bot`) instead of all.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use sea_orm::{ConnectionTrait, Database, DbBackend, Statement};
use token_broker::listener::raise_limit;
use token_broker_client::{ApiKey, Client, proto};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::callers::{self, Call, Load, Outcome};
use crate::harness::postgres;
use crate::parts::{seeded, warm};
use crate::place::{API_KEY, GREEDY_API_KEY};
use crate::servers::{Broker, Process, Provider};
use crate::table::{Table, figure, line};

const USERS: usize = 2000;
const SLOW_SOCKETS: usize = 5000;
const MESSAGES: usize = 2000;
const MESSAGES_PER_CONNECTION: usize = 100;
const REDIRECTS: u64 = 100_000;
/// The number of clients that send redirects at once.
const REDIRECTING: u32 = 8;
/// When a stranger opens a connection again that was closed.
const AGAIN: Duration = Duration::from_secs(10);
/// When the greedy bot repeats a call that failed, on average.
const GREEDY_AGAIN: Duration = Duration::from_secs(3);
const DURATION: Duration = Duration::from_secs(20);
const MIB: f64 = 1024.0 * 1024.0;

/// Measures a quiet service, and the same one under attack.
pub async fn strangers() {
    raise_limit();
    // Fails if a provider is installed already, which then serves.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let provider = Provider::start().await;
    let broker = Broker::on_sqlite(&provider);
    seeded(&broker, &provider, USERS, 0).await;

    let server = broker.start(&[]).await;
    warm(server.address, USERS).await;
    let quiet = figures(&server).await;
    let quiet_end = end(server).await;
    let before = attempts(&broker.database_url).await;

    let server = broker.start(&[]).await;
    warm(server.address, USERS).await;
    let hanging = provider.provider.pause_token_endpoint();
    let mut attack = JoinSet::new();
    let redirects = Arc::new(AtomicU64::new(0));
    begin(&server, &mut attack, &redirects).await;
    // Until every stranger has begun.
    tokio::time::sleep(AGAIN).await;
    let attacked = figures(&server).await;
    while is_chosen("redirects") && redirects.load(Ordering::Relaxed) < REDIRECTS {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(hanging);
    let attacked_end = end(server).await;
    attack.shutdown().await;

    let table =
        Table::new("Strangers and a greedy bot, on SQLite", &["figure", "quiet", "attacked"]);
    for (name, of) in [
        ("GetToken of another bot at 500 calls/s: p50, µs", (|f| f.tokens.percentile(50.0)) as Get),
        ("p99, µs", |f| f.tokens.percentile(99.0)),
        ("failed calls", |f| f.tokens.failed as f64),
        ("/livez on a new connection: p99, ms", |f| f.livez_p99),
        ("resident memory at most, MiB", |f| f.resident),
    ] {
        table.row(&[name.to_owned(), figure(of(&quiet)), figure(of(&attacked))]);
    }
    table.row(&["SIGTERM to the end, s".to_owned(), figure(quiet_end), figure(attacked_end)]);
    let sent = redirects.load(Ordering::Relaxed).to_string();
    table.row(&["redirects of one link".to_owned(), "0".to_owned(), sent]);
    let rows = attempts(&broker.database_url).await - before;
    table.row(&["rows that they wrote".to_owned(), "0".to_owned(), rows.to_string()]);
}

type Get = fn(&Figures) -> f64;

struct Figures {
    tokens: Outcome,
    /// In milliseconds.
    livez_p99: f64,
    /// In MiB.
    resident: f64,
}

async fn figures(server: &Process) -> Figures {
    let load = Load {
        call: Call::GetToken,
        callers: 8,
        users: USERS,
        rate: Some(500.0),
        duration: DURATION,
    };
    let watching = async {
        let (mut took, mut resident) = (Vec::new(), 0);
        let ends = Instant::now() + DURATION;
        while Instant::now() < ends {
            let began = Instant::now();
            livez(server.ops).await;
            took.push(began.elapsed().as_secs_f64() * 1000.0);
            resident = resident.max(server.resident());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        took.sort_by(f64::total_cmp);
        (took[took.len() * 99 / 100], resident as f64 / MIB)
    };
    let servers = [server.address];
    let (tokens, (livez_p99, resident)) =
        tokio::join!(callers::run(&servers, API_KEY, load), watching);
    Figures { tokens, livez_p99, resident }
}

async fn livez(ops: SocketAddr) {
    let mut stream = TcpStream::connect(ops).await.expect("it listens");
    let request = b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.expect("it reads");
    let mut response = String::new();
    stream.read_to_string(&mut response).await.expect("it answers");
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
}

/// The seconds from SIGTERM to the end.
async fn end(server: Process) -> f64 {
    let began = Instant::now();
    server.terminate().await;
    began.elapsed().as_secs_f64()
}

fn is_chosen(attack: &str) -> bool {
    let chosen = std::env::var("TOKEN_BROKER_BENCH_ATTACKS");
    chosen.is_err() || chosen.is_ok_and(|names| names.split(',').any(|name| name == attack))
}

async fn begin(server: &Process, attack: &mut JoinSet<()>, redirects: &Arc<AtomicU64>) {
    if is_chosen("sockets") {
        for socket in 0..SLOW_SOCKETS {
            // Spread, or the generator's own bursts would delay the calls that it measures.
            let first = AGAIN.mul_f64(socket as f64 / SLOW_SOCKETS as f64);
            attack.spawn(slow_socket(server.http, first));
        }
    }
    if is_chosen("messages") {
        for _ in 0..MESSAGES / MESSAGES_PER_CONNECTION {
            attack.spawn(unfinished_messages(server.address));
        }
    }
    if is_chosen("redirects") {
        let callback = callback(server).await;
        for _ in 0..REDIRECTING {
            attack.spawn(redirect(server.http, callback.clone(), Arc::clone(redirects)));
        }
    }
    if !is_chosen("bot") {
        return;
    }
    let key = ApiKey::new(GREEDY_API_KEY).expect("a key");
    let url = format!("http://{}", server.address);
    let channel = Client::channel(url).expect("a URL").connect().await.expect("it listens");
    for user in 0..USERS {
        let mut client = Client::new(channel.clone(), key.clone());
        // Spread, or the bursts would measure the generator's own timer.
        let phase = user as f64 / USERS as f64;
        let first = GREEDY_AGAIN.mul_f64(phase);
        attack.spawn(async move {
            tokio::time::sleep(first).await;
            let key = proto::GrantKey {
                provider: "acme".to_owned(),
                subject: format!("u{user}"),
                account: String::new(),
            };
            loop {
                let request =
                    proto::RefreshRequest { key: Some(key.clone()), ..Default::default() };
                drop(client.refresh(request).await);
                // All fail at the same moment when the circuit breaker opens. Clients repeat with jitter.
                tokio::time::sleep(GREEDY_AGAIN.mul_f64(0.5 + phase)).await;
            }
        });
    }
}

async fn slow_socket(http: SocketAddr, first: Duration) {
    tokio::time::sleep(first).await;
    loop {
        if let Ok(mut stream) = TcpStream::connect(http).await {
            drop(stream.write_all(b"GET /oauth2/start/x HTTP/1.1\r\nHost: a\r\nX-Slow: ").await);
            drop(stream.read_to_end(&mut Vec::new()).await);
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn unfinished_messages(grpc: SocketAddr) {
    loop {
        if let Ok(stream) = TcpStream::connect(grpc).await
            && let Ok((requests, connection)) = h2::client::handshake(stream).await
        {
            let connection = tokio::spawn(connection);
            let calls = (0..MESSAGES_PER_CONNECTION).map(|_| {
                let requests = requests.clone();
                async move {
                    let request = http::Request::post(
                        "http://broker/tokenbroker.v1.TokenBrokerService/GetToken",
                    )
                    .header("content-type", "application/grpc")
                    .body(())
                    .expect("a request");
                    let mut requests = requests.ready().await.ok()?;
                    let (response, mut message) = requests.send_request(request, false).ok()?;
                    let bytes = Bytes::from_static(&[0; 16 * 1024]);
                    drop(message.send_data(bytes, false));
                    response.await.ok()
                }
            });
            join_all(calls).await;
            connection.abort();
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// The address that a provider would send the browser back to, as anyone gets it who opens the link.
async fn callback(server: &Process) -> String {
    let url = format!("http://{}", server.address);
    let channel = Client::channel(url).expect("a URL").connect().await.expect("it listens");
    let mut client = Client::new(channel, ApiKey::new(API_KEY).expect("a key"));
    let key =
        proto::GrantKey { provider: "acme".into(), subject: "new".into(), account: "".into() };
    let request = proto::AuthorizeRequest { key: Some(key), ..Default::default() };
    let link = client.authorize(request).await.expect("a link").into_inner().authorization_url;
    link.split_once("/oauth2/").expect("a path").1.to_owned()
}

/// Opens the link and comes back without its cookie, again and again.
async fn redirect(http: SocketAddr, link: String, count: Arc<AtomicU64>) {
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
    let client = client.no_proxy().build().expect("a client");
    // As fast as it can, the generator would take the cores from the measured calls.
    let mut pace =
        tokio::time::interval(DURATION * REDIRECTING / u32::try_from(REDIRECTS).expect("few"));
    loop {
        let Ok(response) = client.get(format!("http://{http}/oauth2/{link}")).send().await else {
            continue;
        };
        let location = response.headers().get("location").and_then(|url| url.to_str().ok());
        let state = location.and_then(|url| url.split_once("&state=")).map(|(_, rest)| rest);
        let state = state.and_then(|rest| rest.split('&').next()).unwrap_or_default();
        let back = format!("http://{http}/oauth2/callback/acme?code=x&state={state}");
        // The start is the stranger's own work; a state can be used any number of times.
        for _ in 0..10 {
            pace.tick().await;
            if client.get(&back).send().await.is_ok() {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

async fn attempts(url: &str) -> i64 {
    count(url, "authorization_attempts").await
}

async fn count(url: &str, of: &str) -> i64 {
    let database = Database::connect(url).await.expect("the database");
    let count = format!("SELECT count(*) AS rows FROM {of}");
    let count = Statement::from_string(database.get_database_backend(), count);
    let row = database.query_one_raw(count).await.expect("a statement").expect("a row");
    row.try_get("", "rows").expect("a number")
}

/// Measures Refresh while the sweep deletes the redirects of one authorization, as versions without a limit left them.
pub async fn sweep() {
    const ATTEMPTS: u64 = 10_000_000;

    let attempts = std::env::var("TOKEN_BROKER_BENCH_ATTEMPTS").ok();
    let attempts = attempts.map_or(ATTEMPTS, |attempts| attempts.parse().expect("a number"));
    let provider = Provider::start().await;
    let mut brokers = vec![("SQLite", Broker::on_sqlite(&provider))];
    let server = postgres::binaries().map(|_| postgres::Server::prepared());
    match &server {
        Some(server) => {
            server.start();
            brokers.push(("PostgreSQL", Broker::on(server.new_database().await, &provider)));
        }
        None => line("skipped: the sweep on PostgreSQL, which is not here"),
    }
    let columns = ["database", "quiet p99, µs", "swept p99, µs", "failed", "deleted per s"];
    let table = Table::new(&format!("Refresh while {attempts} redirects are swept"), &columns);
    for (name, broker) in brokers {
        seeded(&broker, &provider, USERS, 0).await;
        let server = broker.start(&[]).await;
        let quiet = refreshes(&server, DURATION).await;
        server.terminate().await;
        fill(&broker.database_url, attempts).await;
        let before = self::attempts(&broker.database_url).await;
        let server = broker.start(&[]).await;
        let began = Instant::now();
        let swept = refreshes(&server, 2 * DURATION).await;
        let took = began.elapsed().as_secs_f64();
        let deleted = before - self::attempts(&broker.database_url).await;
        assert!(before > 0 && deleted > 0, "{deleted} of {before}");
        table.row(&[
            name.to_owned(),
            figure(quiet.percentile(99.0)),
            figure(swept.percentile(99.0)),
            (quiet.failed + swept.failed).to_string(),
            figure(deleted as f64 / took),
        ]);
        server.terminate().await;
    }
}

async fn refreshes(server: &Process, duration: Duration) -> Outcome {
    let load = Load { call: Call::Refresh, callers: 8, users: USERS, rate: Some(50.0), duration };
    callers::run(&[server.address], API_KEY, load).await
}

/// Gives one expired authorization so many redirects.
async fn fill(url: &str, count: u64) {
    let database = Database::connect(url).await.expect("the database");
    let (numbers, salt) = match database.get_database_backend() {
        DbBackend::Sqlite => (
            format!(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {count})"
            ),
            "randomblob(8), 0 FROM n",
        ),
        _ => (
            format!("WITH n AS (SELECT i FROM generate_series(1, {count}) AS i)"),
            "decode(lpad(to_hex(i), 16, '0'), 'hex'), 0 FROM n",
        ),
    };
    let one = "(SELECT id FROM authorizations ORDER BY id LIMIT 1)";
    for statement in [
        format!("UPDATE authorizations SET expires_at = 0 WHERE id = {one}"),
        format!(
            "{numbers} INSERT INTO authorization_attempts (authorization_id, salt, used_at) SELECT {one}, {salt}"
        ),
    ] {
        database.execute_unprepared(&statement).await.expect("a statement");
    }
}
