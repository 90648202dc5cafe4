//! `token-broker demo`: everything on loopback, with a demo provider and a chat prompt.
//!
//! One process runs the broker as `serve` does, an authorization server whose tokens are worth
//! nothing, and a chat that is itself a gRPC client over the loopback port.

pub mod chat;
mod data;
pub mod provider;

use std::io::{IsTerminal, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use url::Url;

use self::data::DataDirectory;
use self::provider::DemoProvider;
use crate::broker::Schema;
use crate::broker::{Broker, CallLimits, NO_CACHE, Parts, Settings};
use crate::crypto::random::Random;
use crate::domain::bot::{ApiKey, Bot, Confirmation, Providers};
use crate::domain::name::Name;
use crate::domain::provider::{Client, ConfiguredAuth, Endpoints, Provider, RevocationReach};
use crate::domain::scope::Scopes;
use crate::listener::ListenerLimits;
use crate::provider::{Egress, Http};
use crate::runtime::{self, ListenerTls, Listeners};
use crate::storage::{Clock, Storage};
use crate::telemetry::{self, Format, Metrics, Output};

/// The chat user.
const SUBJECT: &str = "demo/you";

/// The demo provider's name.
const PROVIDER: &str = "demo";

/// The time for which the demo provider's access tokens live.
const TOKEN_LIFETIME: Duration = Duration::from_secs(5 * 60);

/// The number of ports that are tried from the usual one on.
const PORTS_TO_TRY: u16 = 100;

/// The time that the demo's parts may take to answer after they were started.
const START_LIMIT: Duration = Duration::from_secs(10);

/// Options of `demo`.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// Keep everything in this folder, and find it again at the next start; without it, a
    /// temporary folder that goes with the demo
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// Runs the demo until its chat ends or `stop`.
///
/// # Errors
///
/// Where a part cannot start.
pub async fn run(arguments: Arguments, stop: CancellationToken) -> anyhow::Result<ExitCode> {
    let random = Random::system();
    let data = DataDirectory::open(arguments.data_dir, &random)?;
    let telemetry = telemetry::init("info", Format::Text, Output::File(data.log_file()?), None)
        .map_err(|error| anyhow::anyhow!("telemetry: {error}"))?;

    let mut notes = Vec::new();
    let listeners = Listeners {
        grpc: bind("gRPC", 50051, &mut notes).await?,
        http: bind("redirect", 8080, &mut notes).await?,
        ops: bind("ops", 9090, &mut notes).await?,
        limits: ListenerLimits::default(),
        tls: ListenerTls::default(),
    };
    let provider_listener = bind("demo provider", 8081, &mut notes).await?;
    let addresses = Addresses {
        grpc: listeners.grpc.local_addr()?,
        http: listeners.http.local_addr()?,
        ops: listeners.ops.local_addr()?,
        provider: provider_listener.local_addr()?,
    };

    let provider = demo_provider(&addresses, &data, &random)?;
    let ending = CancellationToken::new();
    let serving = tokio::spawn(provider.serve(provider_listener, ending.clone().cancelled_owned()));
    let broker = broker(&addresses, &data, random, telemetry.metrics).await?;
    let running = tokio::spawn(runtime::run(broker, listeners, Schema::Ready, ending.clone()));

    let client = client(&addresses, &data.api_key).await?;
    say(&banner(&addresses, &data, &notes))?;
    let interactive = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let chat = chat::Settings {
        client,
        subject: SUBJECT.to_owned(),
        provider: PROVIDER.to_owned(),
        interactive,
    };
    let ended = chat::run(chat, stop).await;

    ending.cancel();
    running.await.context("the broker crashed")??;
    serving.await.context("the demo provider crashed")??;
    if data.is_kept() {
        say(&format!("Kept in {}; the next start finds it again.", data.path().display()))?;
    }
    match ended? {
        chat::Ended::Quit => Ok(ExitCode::SUCCESS),
        chat::Ended::Failed => Ok(ExitCode::FAILURE),
    }
}

struct Addresses {
    grpc: SocketAddr,
    http: SocketAddr,
    ops: SocketAddr,
    provider: SocketAddr,
}

/// Binds the usual port on loopback, or the next one that is free.
async fn bind(what: &str, usual: u16, notes: &mut Vec<String>) -> anyhow::Result<TcpListener> {
    for port in usual..usual + PORTS_TO_TRY {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
            Ok(listener) => {
                if port != usual {
                    notes.push(format!("Port {usual} is taken, so {what} is on {port}."));
                }
                return Ok(listener);
            }
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
            Err(error) => anyhow::bail!("cannot listen on 127.0.0.1:{port} for {what}: {error}"),
        }
    }
    anyhow::bail!("no port from {usual} on is free for {what}")
}

fn base(address: SocketAddr) -> anyhow::Result<Url> {
    Ok(Url::parse(&format!("http://{address}/"))?)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the demo provider is a program of its own, with a clock of its own"
)]
fn demo_provider(
    addresses: &Addresses,
    data: &DataDirectory,
    random: &Random,
) -> anyhow::Result<DemoProvider> {
    let random = random.clone();
    let epoch = std::time::SystemTime::UNIX_EPOCH;
    Ok(DemoProvider::new(provider::Settings {
        client_id: "token-broker".to_owned(),
        client_secret: data.client_secret.clone(),
        redirect_uris: vec![format!("http://{}/oauth2/callback/{PROVIDER}", addresses.http)],
        access_token_lifetime: TOKEN_LIFETIME,
        refresh_grace: Duration::ZERO,
        revocation_reach: RevocationReach::Grant,
        state_file: Some(data.provider_state()),
        issuer: format!("http://{}", addresses.provider),
        clock: Arc::new(move || {
            let since = std::time::SystemTime::now().duration_since(epoch).unwrap_or_default();
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        }),
        random: Arc::new(move |bytes| random.fill(bytes)),
    })?)
}

async fn broker(
    addresses: &Addresses,
    data: &DataDirectory,
    random: Random,
    metrics: Metrics,
) -> anyhow::Result<Arc<Broker>> {
    let keyring = Arc::new(data.keyring()?);
    let settings = crate::storage::Settings {
        url: data.database_url().into(),
        listen_url: None,
        max_connections: 10,
        clock: Clock::Database,
    };
    let storage = Storage::connect(&settings, Arc::clone(&keyring), random.clone())
        .await
        .context("cannot open the demo's database")?
        .serve_alone(&settings)
        .map_err(anyhow::Error::msg)?;
    storage.migrate().await.context("cannot set up the demo's database")?;
    let name = |text| Name::parse(text).map_err(|error| anyhow::anyhow!("{text}: {error}"));
    let provider = Provider {
        name: name(PROVIDER)?,
        display_name: "Demo Provider".to_owned(),
        issuer: Some(format!("http://{}", addresses.provider)),
        endpoints: Endpoints::default(),
        revocation_reach: RevocationReach::Grant,
        refresh_grace: Duration::ZERO,
        refresh_idle: None,
        client: Client {
            id: "token-broker".to_owned(),
            auth: ConfiguredAuth::Offered(data.client_secret.clone().into()),
        },
        default_scopes: Scopes::parse(["profile", "email"])?,
        scope_names: Default::default(),
        dead_grant_errors: Vec::new(),
        ignores_id_tokens: false,
        identity: None,
    };
    let bot = Bot {
        name: name("demo-bot")?,
        namespace: name("demo-bot")?,
        api_keys_sha256: vec![data.api_key.sha256()],
        providers: Providers::All,
        return_urls: Vec::new(),
        confirmation: Confirmation::Code,
        scopes: std::collections::BTreeMap::new(),
        subjects: None,
        methods: None,
        rate: None,
    };
    Ok(Broker::new(Parts {
        storage,
        http: Http::new(Egress::new([&provider], Vec::new()), metrics.clone())
            .context("cannot set up TLS")?,
        keyring,
        random,
        providers: vec![provider],
        bots: vec![bot],
        settings: Settings {
            public_url: base(addresses.http)?,
            link_ttl: Duration::from_secs(10 * 60),
            confirmation_ttl: Duration::from_secs(5 * 60),
            cache: NO_CACHE,
            // What happens is what the user asks for.
            proactive_refresh: false,
            replica_timeout: Duration::from_secs(60),
            limits: CallLimits::default(),
        },
        metrics,
    }))
}

/// A client that has reached the broker and found it serving.
async fn client(
    addresses: &Addresses,
    key: &ApiKey,
) -> anyhow::Result<token_broker_client::Client> {
    let url = format!("http://{}", addresses.grpc);
    let channel = token_broker_client::Client::channel(url)?.connect().await?;
    wait_until_serving(channel.clone()).await?;
    let key = token_broker_client::ApiKey::new(key.expose())?;
    Ok(token_broker_client::Client::new(channel, key))
}

async fn wait_until_serving(channel: tonic::transport::Channel) -> anyhow::Result<()> {
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

    let request = HealthCheckRequest { service: crate::grpc::SERVICE_NAME.to_owned() };
    let mut changes = HealthClient::new(channel).watch(request).await?.into_inner();
    let serving = async {
        while let Some(health) = changes.message().await? {
            if health.status() == ServingStatus::Serving {
                return Ok(());
            }
        }
        anyhow::bail!("the broker ended before it served")
    };
    tokio::time::timeout(START_LIMIT, serving).await.context("the broker does not start")?
}

fn banner(addresses: &Addresses, data: &DataDirectory, notes: &[String]) -> String {
    let Addresses { grpc, http, ops, provider } = addresses;
    let key = data.api_key.expose();
    let service = crate::grpc::SERVICE_NAME;
    let with_key = format!("grpcurl -plaintext -H 'authorization: Bearer {key}'");
    let grant = format!(r#"{{"key":{{"provider":"{PROVIDER}","subject":"{SUBJECT}"}}}}"#);
    let mut lines = vec![
        "token-broker demo: on loopback, with tokens that are worth nothing. Not for production."
            .to_owned(),
    ];
    lines.extend(notes.iter().cloned());
    lines.extend([
        String::new(),
        format!("  gRPC {grpc}   redirect http://{http}   ops http://{ops}"),
        format!("  demo provider http://{provider}   data {}", data.path().display()),
        format!("  the bot's API key: {key}"),
        String::new(),
        "  From another terminal:".to_owned(),
        format!("  grpcurl -plaintext {grpc} list"),
        format!("  {with_key} -d '{grant}' {grpc} {service}/Authorize"),
        format!("  {with_key} -d '{grant}' {grpc} {service}/GetToken"),
        String::new(),
        "You are in a chat with the bot. Begin with /oauth; /help lists the commands.".to_owned(),
        String::new(),
    ]);
    lines.join("\n")
}

fn say(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}
