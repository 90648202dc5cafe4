//! `check`: everything that would keep `serve` from starting, reported at once.

mod database;
mod listeners;
mod online;

use std::path::Path;
use std::process::ExitCode;

use url::Url;

use super::{environment, http, say};
use crate::broker::redirect_uri;
use crate::config::{Config, Problem};
use crate::domain::provider::Provider;
use crate::listener::{ListenerLimits, machine_time};
use crate::provider::Directory;
use crate::telemetry::Metrics;

/// `online`: also tries each client at its provider.
pub(super) async fn run(path: &Path, online: bool) -> anyhow::Result<ExitCode> {
    let config = match Config::load(path, environment()) {
        Ok(config) => config,
        Err(problems) => {
            say(&problems.to_string())?;
            return Ok(ExitCode::FAILURE);
        }
    };
    say(&format!(
        "configuration: in order (providers: {}, bots: {}, encryption keys: {})",
        config.providers.len(),
        config.bots.len(),
        config.encryption.keys.len()
    ))?;
    for Problem { key, message } in &config.posture {
        say(&format!("posture: {key}: {message}"))?;
    }
    let mut in_order = true;
    let mut tell = |what: &str, told: anyhow::Result<String>| {
        in_order &= told.is_ok();
        match told {
            Ok(told) => say(&format!("{what}: {told}")),
            Err(error) => say(&format!("{what}: {error:#}")),
        }
    };
    let directory = Directory::new(http(&config, Metrics::new(None)?)?, config.providers.clone());
    for provider in directory.iter() {
        let what = format!("provider {}", provider.name);
        tell(&what, known(&directory, provider, &config.http.public_url).await)?;
        if online {
            tell(
                &format!("client at {}", provider.name),
                online::client(&directory, provider).await,
            )?;
        }
    }
    if config.grpc.tls.is_some() || config.http.tls.is_some() {
        tell("certificates", certificates(&config))?;
    }
    tell("open files", open_files())?;
    tell("listeners", listeners::check(&config).await)?;
    tell("database", database::check(&config).await)?;
    Ok(if in_order { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Describes the certificates of the listeners.
fn certificates(config: &Config) -> anyhow::Result<String> {
    let tls = super::serve::tls(config)?;
    let now = machine_time();
    let mut told = Vec::new();
    for (section, tls) in [("grpc.tls", tls.grpc), ("http.tls", tls.http)] {
        let Some(tls) = tls else { continue };
        let validity = tls.validity();
        if let Some(wrong) = validity.wrong(now) {
            anyhow::bail!("{section}.certificate_file: {wrong}");
        }
        told.push(match validity.warning(now) {
            Some(warning) => format!("{section} {warning}"),
            None => format!("{section} until {}", validity.not_after()),
        });
    }
    Ok(format!("in order ({})", told.join(", ")))
}

fn open_files() -> anyhow::Result<String> {
    let (descriptors, limits) = super::serve::descriptors()?;
    if limits == ListenerLimits::default() {
        return Ok(format!("in order (limit: {descriptors})"));
    }
    Ok(super::serve::few_descriptors(descriptors, limits))
}

/// Describes a provider, and the redirect URI to register at it.
async fn known(
    directory: &Directory,
    provider: &Provider,
    public_url: &Url,
) -> anyhow::Result<String> {
    let redirect_uri = redirect_uri(public_url, &provider.name);
    // The redirect URI is needed before anything else works, so every outcome shows it.
    let server = directory.server(provider).await.map_err(|error| {
        let issuer = provider.issuer.as_deref().unwrap_or_default();
        anyhow::anyhow!(
            "providers.{}.issuer: {issuer}: {error}; correct the issuer, or let this machine reach it (redirect URI to register: {redirect_uri})",
            provider.name
        )
    })?;
    let told = |known, yes, no| if known { yes } else { no };
    Ok(format!(
        "in order (redirect URI to register: {}, endpoints: {}, revocation: {}, ID tokens: {}, \
         client authentication: {:?})",
        redirect_uri,
        told(provider.is_discovered(), "of the issuer", "as configured"),
        told(server.revocation_endpoint.is_some(), "yes", "no"),
        told(server.checks_id_tokens(), "checked", "not checked"),
        server.client_auth,
    ))
}
