//! A broker on free ports, with a demo provider and a clock that the test moves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use token_broker::broker::Schema;
use token_broker::broker::{Broker, CallLimits, NO_CACHE, Parts, Settings};
use token_broker::crypto::keyring::Keyring;
use token_broker::crypto::random::Random;
use token_broker::demo::provider::{self, DemoProvider};
use token_broker::domain::bot::{ApiKey, Bot, Confirmation, Providers};
use token_broker::domain::name::Name;
use token_broker::domain::provider::{
    Client as Registration, ClientAuth, ConfiguredAuth, Endpoints, Provider, RevocationReach,
};
use token_broker::domain::scope::Scopes;
use token_broker::listener::ListenerLimits;
use token_broker::provider::{Egress, Http};
use token_broker::runtime::{self, ListenerTls, Listeners, RunError};
use token_broker::storage::{self, Clock, Storage};
use token_broker::telemetry::Metrics;
use token_broker_client::{Client, proto};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::Browser;

/// The time at which every world begins: 2026-01-01T00:00:00Z.
pub const BEGINNING: i64 = 1_767_225_600_000;

/// The one provider of a world, unless the test adds others.
pub const PROVIDER: &str = "acme";

/// The client's secret there, with characters that each encoding writes differently.
const CLIENT_SECRET: &str = "client secret: +&%";

/// What a test may change before its world begins.
pub struct Setup {
    pub bots: Vec<Bot>,
    pub providers: Vec<Provider>,
    pub settings: Settings,
    pub provider_timeout: Duration,
    pub token_lifetime: Duration,
    /// For how long the provider takes a refresh token again.
    pub provider_grace: Duration,
    /// Keep the database of an earlier world.
    pub folder: Option<Arc<TempDir>>,
}

/// A running broker and what surrounds it.
pub struct World {
    pub provider: DemoProvider,
    pub broker: Arc<Broker>,
    /// Milliseconds; broker and provider go by it.
    pub clock: Arc<AtomicI64>,
    pub folder: Arc<TempDir>,
    pub channel: Channel,
    pub http_url: String,
    pub ops_url: String,
    pub grpc_address: std::net::SocketAddr,
    stop: CancellationToken,
    running: Option<JoinHandle<Result<(), RunError>>>,
}

pub fn name(text: &str) -> Name {
    Name::parse(text).expect("a name")
}

/// The API key of a bot of this name.
pub fn api_key(bot: &str) -> ApiKey {
    let mut bytes = [0; 32];
    bytes[..bot.len()].copy_from_slice(bot.as_bytes());
    ApiKey::from_random(bytes)
}

/// A bot that may do everything, with [`api_key`] of its name.
pub fn bot(text: &str) -> Bot {
    Bot {
        name: name(text),
        namespace: name(text),
        api_keys_sha256: vec![api_key(text).sha256()],
        providers: Providers::All,
        return_urls: Vec::new(),
        confirmation: Confirmation::Code,
        scopes: BTreeMap::new(),
        subjects: None,
        methods: None,
        rate: None,
    }
}

/// The key of a grant at the world's provider.
pub fn key(subject: &str) -> proto::GrantKey {
    proto::GrantKey { provider: PROVIDER.into(), subject: subject.into(), account: String::new() }
}

pub fn get_token(subject: &str) -> proto::GetTokenRequest {
    proto::GetTokenRequest { key: Some(key(subject)), ..Default::default() }
}

pub fn refresh(subject: &str) -> proto::RefreshRequest {
    proto::RefreshRequest { key: Some(key(subject)), ..Default::default() }
}

pub fn authorize(subject: &str) -> proto::AuthorizeRequest {
    proto::AuthorizeRequest { key: Some(key(subject)), ..Default::default() }
}

impl World {
    /// A world with one bot, `helper`, and one provider.
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// A world that the test has changed first. The provider's listener is bound by then, and the
    /// broker's public URL is known.
    pub async fn with(change: impl FnOnce(&mut Setup)) -> Self {
        let bind = || TcpListener::bind("127.0.0.1:0");
        let provider_listener = bind().await.expect("a port");
        let listeners = Listeners {
            grpc: bind().await.expect("a port"),
            http: bind().await.expect("a port"),
            ops: bind().await.expect("a port"),
            limits: ListenerLimits { http_rate: None, ..ListenerLimits::default() },
            tls: ListenerTls::default(),
        };
        let url = |listener: &TcpListener| {
            format!("http://{}", listener.local_addr().expect("an address"))
        };
        let (provider_url, http_url) = (url(&provider_listener), url(&listeners.http));
        let ops_url = url(&listeners.ops);
        let grpc_address = listeners.grpc.local_addr().expect("an address");
        let mut setup = Setup {
            bots: vec![bot("helper")],
            providers: vec![provider_at(PROVIDER, &provider_url)],
            settings: Settings {
                public_url: http_url.parse().expect("a URL"),
                link_ttl: Duration::from_secs(600),
                confirmation_ttl: Duration::from_secs(300),
                // Time stands still here, and an age does not.
                cache: NO_CACHE,
                // Nor may a refresh come that the test does not ask for.
                proactive_refresh: false,
                replica_timeout: Duration::from_secs(60),
                limits: CallLimits::default(),
            },
            provider_timeout: Duration::from_secs(10),
            token_lifetime: Duration::from_secs(300),
            provider_grace: Duration::ZERO,
            folder: None,
        };
        change(&mut setup);

        let clock = Arc::new(AtomicI64::new(BEGINNING));
        let redirect_uris = setup
            .providers
            .iter()
            .map(|provider| format!("{http_url}/oauth2/callback/{}", provider.name))
            .collect();
        let provider = demo_provider(&provider_url, redirect_uris, &setup, &clock);
        let stop = CancellationToken::new();
        tokio::spawn(provider.clone().serve(provider_listener, stop.clone().cancelled_owned()));

        let folder = setup
            .folder
            .unwrap_or_else(|| Arc::new(tempfile::tempdir().expect("a temporary folder")));
        let keyring = Arc::new(Keyring::new([("test", &[7; 32])]).expect("a key"));
        let storage = open_storage(&folder, Clock::Fixed(Arc::clone(&clock)), &keyring).await;
        let egress = Egress::new(&setup.providers, Vec::new());
        let metrics = Metrics::new(None).expect("metrics");
        let http = Http::with_timeout(egress, metrics.clone(), setup.provider_timeout);
        let broker = Broker::new(Parts {
            storage,
            http: http.expect("TLS"),
            keyring,
            random: Random::system(),
            providers: setup.providers,
            bots: setup.bots,
            settings: setup.settings,
            metrics,
        });
        let running =
            tokio::spawn(runtime::run(Arc::clone(&broker), listeners, Schema::Ready, stop.clone()));
        let channel = Client::channel(format!("http://{grpc_address}"))
            .expect("a URL")
            .connect()
            .await
            .expect("the broker listens");
        Self {
            provider,
            broker,
            clock,
            folder,
            channel,
            http_url,
            ops_url,
            grpc_address,
            stop,
            running: Some(running),
        }
    }

    /// A client of the bot `helper`.
    pub fn client(&self) -> Client {
        self.client_of("helper")
    }

    /// A client of another bot.
    pub fn client_of(&self, bot: &str) -> Client {
        let key = token_broker_client::ApiKey::new(api_key(bot).expose()).expect("a key");
        Client::new(self.channel.clone(), key)
    }

    /// Moves the clock of broker and provider.
    pub fn advance(&self, by: Duration) {
        let millis = i64::try_from(by.as_millis()).expect("a short time");
        self.clock.fetch_add(millis, Ordering::SeqCst);
    }

    /// Begins an authorization, and has a user allow it. Gives the authorization's id and the code
    /// that the result page showed.
    pub async fn consent(&self, subject: &str) -> (String, String) {
        let started = self
            .client()
            .authorize(authorize(subject))
            .await
            .expect("an authorization")
            .into_inner();
        let page = Browser::new().allow(&started.authorization_url).await;
        (started.authorization_id, page.confirmation_code().expect("a code"))
    }

    /// Goes through the whole flow, and gives the access token.
    pub async fn granted(&self, subject: &str) -> String {
        let (_, code) = self.consent(subject).await;
        let request = proto::ConfirmAuthorizationRequest {
            subject: subject.into(),
            code,
            ..Default::default()
        };
        self.client().confirm_authorization(request).await.expect("a grant");
        self.token(subject).await
    }

    /// The access token of a subject.
    pub async fn token(&self, subject: &str) -> String {
        let response = self.client().get_token(get_token(subject)).await.expect("a token");
        response.into_inner().token.expect("a token").access_token
    }

    /// Stops as SIGTERM does.
    pub async fn stop(mut self) -> Result<(), RunError> {
        self.stop.cancel();
        let running = self.running.take().expect("a world stops once");
        running.await.expect("the broker does not panic")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A provider of the demo provider's endpoints.
pub fn provider_at(provider: &str, url: &str) -> Provider {
    let at = |path: &str| format!("{url}/{path}").parse().expect("a URL");
    Provider {
        name: name(provider),
        display_name: "Acme".to_owned(),
        issuer: Some(url.to_owned()),
        endpoints: Endpoints {
            authorization: Some(at("authorize")),
            token: Some(at("token")),
            revocation: Some(at("revoke")),
            ..Endpoints::default()
        },
        revocation_reach: RevocationReach::Grant,
        refresh_grace: Duration::ZERO,
        refresh_idle: None,
        client: Registration {
            id: "token-broker".to_owned(),
            auth: ConfiguredAuth::Fixed(ClientAuth::Basic(CLIENT_SECRET.into())),
        },
        default_scopes: Scopes::parse(["profile", "email"]).expect("scopes"),
        scope_names: Default::default(),
        dead_grant_errors: Vec::new(),
        ignores_id_tokens: false,
        identity: None,
    }
}

fn demo_provider(
    url: &str,
    redirect_uris: Vec<String>,
    setup: &Setup,
    clock: &Arc<AtomicI64>,
) -> DemoProvider {
    let clock = Arc::clone(clock);
    let random = Random::system();
    DemoProvider::new(provider::Settings {
        client_id: "token-broker".to_owned(),
        client_secret: CLIENT_SECRET.to_owned(),
        redirect_uris,
        access_token_lifetime: setup.token_lifetime,
        refresh_grace: setup.provider_grace,
        revocation_reach: setup.providers[0].revocation_reach,
        state_file: None,
        issuer: url.to_owned(),
        clock: Arc::new(move || u64::try_from(clock.load(Ordering::SeqCst)).unwrap_or(0)),
        random: Arc::new(move |bytes| random.fill(bytes)),
    })
    .expect("a provider")
}

/// Opens the database in a folder, and brings its schema up to date.
pub async fn open_storage(folder: &TempDir, clock: Clock, keyring: &Arc<Keyring>) -> Storage {
    let file = folder.path().join("token-broker.db");
    let settings = storage::Settings {
        url: format!("sqlite://{}?mode=rwc", file.display()).into(),
        listen_url: None,
        max_connections: 10,
        clock,
    };
    let storage = Storage::connect(&settings, Arc::clone(keyring), Random::system())
        .await
        .expect("a database");
    storage.migrate().await.expect("the schema");
    storage
}
