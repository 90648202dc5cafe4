//! `check`: everything that would keep `serve` from starting, told at once.

use std::path::Path;
use std::process::ExitCode;

use url::Url;

use super::{connect, environment, http, say};
use crate::broker::redirect_uri;
use crate::config::{Config, Problem};
use crate::domain::provider::Provider;
use crate::provider::Directory;
use crate::storage::MissingFile;
use crate::telemetry::Metrics;
use crate::workers::contact::wrong_keys;

pub(super) async fn run(path: &Path) -> anyhow::Result<ExitCode> {
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
    }
    if config.grpc.tls.is_some() || config.http.tls.is_some() {
        tell("certificates", super::serve::tls(&config).map(|_| "in order".to_owned()))?;
    }
    tell("database", database(&config).await)?;
    Ok(if in_order { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is known of a provider, and what is to be registered there.
async fn known(
    directory: &Directory,
    provider: &Provider,
    public_url: &Url,
) -> anyhow::Result<String> {
    let redirect_uri = redirect_uri(public_url, &provider.name);
    // To be registered before anything else works, so it is told in any case.
    let server = directory.server(provider).await.map_err(|error| {
        let issuer = provider.issuer.as_deref().unwrap_or_default();
        anyhow::anyhow!(
            "providers.{}.issuer: {issuer}: {error} (redirect URI to register: {redirect_uri})",
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

async fn database(config: &Config) -> anyhow::Result<String> {
    if let Some(missing) = super::storage_settings(config).missing_file() {
        return missing_database(config, &missing);
    }
    let storage = connect(config).await?;
    let status = storage.migration_status().await?;
    if storage.is_read_only().await? {
        anyhow::bail!(
            "accepts no writes (a standby, or default_transaction_read_only); point database.url at the \
             primary"
        );
    }
    let keys = storage.check_keys().await?;
    if let Err(error) = storage.listen().await {
        let reason = error.reason();
        anyhow::bail!(
            "cannot listen for changes: {reason}; correct database.listen_url, or the role there"
        );
    }
    storage.close().await?;
    if !keys.wrong.is_empty() {
        anyhow::bail!(wrong_keys(&keys));
    }
    if !keys.missing.is_empty() {
        anyhow::bail!(
            "encryption.keys: lacks the keys {}, which have sealed rows: add them, or give them up by \
             `token-broker keys forget`",
            keys.missing.join(", ")
        );
    }
    let (applied, pending) = (status.applied.len(), status.pending.len());
    if pending > 0 && !config.database.migrate {
        anyhow::bail!("{pending} migrations are missing: run `token-broker migrate --config FILE`");
    }
    Ok(format!("in order (migrations applied: {applied}, to be applied by serve: {pending})"))
}

fn missing_database(config: &Config, missing: &MissingFile) -> anyhow::Result<String> {
    let path = std::path::absolute(&missing.path).unwrap_or_else(|_| missing.path.clone());
    let path = path.display();
    if !missing.creates {
        anyhow::bail!("{path} is not there; add ?mode=rwc to database.url to have it made");
    }
    let folder = missing.path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        anyhow::bail!("there is no folder {} for {path}; make it", folder.display());
    }
    if !config.database.migrate {
        anyhow::bail!("{path} is not there yet: run `token-broker migrate --config FILE`");
    }
    Ok(format!("{path} is not there yet; serve makes it"))
}
