//! `serve`: the service.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use super::{http, keyring, storage_settings};
use crate::broker::Schema;
use crate::broker::{Broker, Parts, Settings};
use crate::config::{Config, Problem};
use crate::crypto::random::Random;
use crate::listener::{LEAST_DESCRIPTORS, ListenerLimits, Protocol, Tls, TlsFiles, raise_limit};
use crate::runtime::{self, BindError, ListenerTls, Listeners};
use crate::storage::Storage;
use crate::telemetry::{self, Metrics, Output};

pub(super) async fn run(config: &Config, stop: CancellationToken) -> anyhow::Result<ExitCode> {
    let told = &config.telemetry;
    let format = told.log_format.unwrap_or_else(telemetry::Format::of_standard_error);
    let telemetry = telemetry::init(&told.log, format, Output::StandardError, told.otlp.as_ref())
        .map_err(|error| anyhow::anyhow!("telemetry: {error}"))?;
    telemetry::log_panics();
    let ended = serve(config, telemetry.metrics.clone(), stop).await;
    telemetry.end().await;
    ended
}

async fn serve(
    config: &Config,
    metrics: Metrics,
    stop: CancellationToken,
) -> anyhow::Result<ExitCode> {
    let (storage, schema) = open(config).await?;
    for Problem { key, message } in &config.posture {
        tracing::warn!(key, "{message}");
    }
    let (descriptors, mut limits) = descriptors()?;
    if limits != ListenerLimits::default() {
        tracing::warn!("{}", few_descriptors(descriptors, limits));
    }
    limits.http_rate = Some(config.http.rate_per_peer);
    let (grpc, http, ops) = (config.grpc.listen, config.http.listen, config.ops.listen);
    let listeners = Listeners::bind(grpc, http, ops, limits, tls(config)?).await.map_err(
        |BindError { key, address, error }| {
            anyhow::anyhow!("{key}: cannot listen on {address}: {error}; {LISTEN_REMEDY}")
        },
    )?;
    tracing::info!(
        grpc = %listeners.grpc.local_addr()?,
        http = %listeners.http.local_addr()?,
        ops = %listeners.ops.local_addr()?,
        public_url = %config.http.public_url,
        providers = config.providers.len(),
        bots = config.bots.len(),
        "serving"
    );
    let broker = broker(config, storage, metrics)?;
    runtime::run(broker, listeners, schema, stop).await?;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// The remedy if an address cannot be bound.
pub(super) const LISTEN_REMEDY: &str = "stop what listens there, or configure another address";

/// Describes a limit of open files that has no room for all connections.
pub(super) fn few_descriptors(descriptors: u64, limits: ListenerLimits) -> String {
    let (grpc, http) = (limits.grpc.total, limits.http.total);
    format!(
        "only {descriptors} open files are allowed, so there are only {grpc} connections for bots and {http} for \
         browsers; raise the limit (ulimit -n)"
    )
}

/// Raises the limit of open files. Returns it, and the limits of connections within it.
///
/// # Errors
///
/// An error if the limit is too low to accept connections.
pub(super) fn descriptors() -> anyhow::Result<(u64, ListenerLimits)> {
    let descriptors = raise_limit();
    anyhow::ensure!(
        descriptors >= LEAST_DESCRIPTORS,
        "only {descriptors} open files are allowed, and {LEAST_DESCRIPTORS} are needed; raise the limit (ulimit -n)"
    );
    Ok((descriptors, ListenerLimits::within(descriptors)))
}

/// The TLS of the listeners, as far as it is configured.
///
/// # Errors
///
/// An error that names the key, if a file cannot be used.
pub(super) fn tls(config: &Config) -> anyhow::Result<ListenerTls> {
    let load = |section, files: &Option<TlsFiles>, protocol| {
        let load = |files| Tls::load(section, files, protocol).map(Arc::new);
        files.clone().map(load).transpose()
    };
    Ok(ListenerTls {
        grpc: load("grpc.tls", &config.grpc.tls, Protocol::Http2)?,
        http: load("http.tls", &config.http.tls, Protocol::Http1)?,
    })
}

/// A broker as `serve` runs it.
///
/// # Errors
///
/// An error if TLS for calls to providers cannot be set up.
pub fn broker(config: &Config, storage: Storage, metrics: Metrics) -> anyhow::Result<Arc<Broker>> {
    Ok(Broker::new(Parts {
        storage,
        http: http(config, metrics.clone())?,
        keyring: keyring(config)?,
        random: Random::system(),
        providers: config.providers.clone(),
        bots: config.bots.clone(),
        settings: Settings {
            public_url: config.http.public_url.clone(),
            link_ttl: config.authorizations.link_ttl,
            confirmation_ttl: config.authorizations.confirmation_ttl,
            cache: config.cache,
            proactive_refresh: true,
            replica_timeout: config.database.replica_timeout,
            limits: config.grpc.limits,
        },
        metrics,
    }))
}

/// Opens the database. SQLite is seen to at once; PostgreSQL may come later than its service.
async fn open(config: &Config) -> anyhow::Result<(Storage, Schema)> {
    let settings = storage_settings(config);
    let storage = super::open(config).await?;
    if !settings.is_file() {
        let schema = if config.database.migrate { Schema::Apply } else { Schema::Expect };
        return Ok((storage, schema));
    }
    let storage = storage.serve_alone(&settings).map_err(anyhow::Error::msg)?;
    if config.database.migrate {
        storage.migrate().await.context("cannot apply the migrations")?;
        return Ok((storage, Schema::Ready));
    }
    let status = storage
        .migration_status()
        .await
        .context("cannot read which migrations the database has")?;
    if status.pending.is_empty() {
        return Ok((storage, Schema::Ready));
    }
    anyhow::bail!(
        "the database lacks {} migrations: run `token-broker migrate --config FILE`, or set \
         database.migrate = true",
        status.pending.len()
    )
}
