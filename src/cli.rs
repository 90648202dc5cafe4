//! The command line.

mod api_key;
mod check;
mod keys;
mod migrate;
mod serve;
mod sqlite;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use secrecy::ExposeSecret;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Problems};
use crate::crypto::keyring::Keyring;
use crate::crypto::random::Random;
use crate::demo;
use crate::provider::{Egress, Http};
use crate::storage::{Clock, Settings, Storage};
use crate::telemetry::Metrics;

pub use self::serve::broker;

/// Brokers OAuth 2.0 tokens for chat bots, over gRPC.
#[derive(Debug, Parser)]
#[command(name = "token-broker", version, arg_required_else_help = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs everything on loopback, with a demo provider and a chat prompt
    Demo(demo::Arguments),
    /// Runs the service
    Serve(WithConfig),
    /// Tries what serve needs, and prints everything that is wrong; changes nothing
    Check {
        #[command(flatten)]
        config: WithConfig,
        /// Also try each client id and secret at its provider, with a made-up refresh token
        #[arg(long)]
        online: bool,
    },
    /// Applies the migrations that the database lacks
    Migrate {
        #[command(flatten)]
        config: WithConfig,
        /// Only show which ones are applied and pending
        #[arg(long)]
        status: bool,
    },
    /// Makes encryption keys, and gives up lost ones
    Keys {
        #[command(subcommand)]
        command: KeysCommand,
    },
    /// Makes API keys for bots
    ApiKey {
        #[command(subcommand)]
        command: ApiKeyCommand,
    },
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Prints a new keyring entry
    New {
        /// The id of the key, which is stored beside what it seals [default: the day and a random part]
        #[arg(long)]
        id: Option<String>,
        /// Print nothing but the line of a file that encryption.keys_file names
        #[arg(long)]
        line: bool,
    },
    /// Gives up a key that is lost: its users have to authorize again
    Forget {
        #[command(flatten)]
        config: WithConfig,
        /// The id of the key
        id: String,
        /// Do it: what the key sealed is deleted
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
enum ApiKeyCommand {
    /// Prints a new API key, and the SHA-256 to configure
    New,
}

#[derive(Debug, Args)]
struct WithConfig {
    /// The configuration, a TOML file; the environment (`TOKEN_BROKER__…`) is laid over it
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Runs the command that the process was started with.
#[must_use]
pub fn run() -> ExitCode {
    let command = CommandLine::parse().command;
    if let Err(error) = forbid_core_dumps() {
        return fail(&anyhow::anyhow!("cannot turn off core dumps: {error}"));
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::anyhow!("cannot start: {error}")),
    };
    let ended = runtime.block_on(execute(command));
    // A thread that waits for the terminal must not hold the process back.
    runtime.shutdown_background();
    match ended {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

async fn execute(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Demo(arguments) => demo::run(arguments, stop_signals(Hangup::Ends)?).await,
        Command::Serve(config) => {
            serve::run(&load(&config.config)?, stop_signals(Hangup::Refused)?).await
        }
        Command::Check { config, online } => check::run(&config.config, online).await,
        Command::Migrate { config, status } => migrate::run(&load(&config.config)?, status).await,
        Command::Keys { command: KeysCommand::New { id, line } } => keys::new(id, line),
        Command::Keys { command: KeysCommand::Forget { config, id, yes } } => {
            keys::forget(&load(&config.config)?, &id, yes).await
        }
        Command::ApiKey { command: ApiKeyCommand::New } => api_key::new(),
    }
}

/// A core dump would hold keys and tokens. The limit alone does not hold where the system pipes dumps to a program.
fn forbid_core_dumps() -> rustix::io::Result<()> {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// The exit code for a configuration that cannot be used (`EX_CONFIG` of `sysexits.h`). A service manager that sees it
/// need not try again.
const WRONG_CONFIGURATION: u8 = 78;

/// The problems of a configuration, and its file.
#[derive(Debug, thiserror::Error)]
#[error("the configuration {file} cannot be used:\n{problems}")]
struct WrongConfiguration {
    file: String,
    problems: Problems,
}

fn fail(error: &anyhow::Error) -> ExitCode {
    // Nothing can be done where standard error is closed.
    let _ = writeln!(std::io::stderr(), "token-broker: {error:#}");
    if error.is::<WrongConfiguration>() {
        return WRONG_CONFIGURATION.into();
    }
    ExitCode::FAILURE
}

/// Writes lines to standard output.
fn say(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

fn load(path: &Path) -> anyhow::Result<Config> {
    Config::load(path, environment()).map_err(|problems| {
        WrongConfiguration { file: path.display().to_string(), problems }.into()
    })
}

/// The environment, save variables that are no text, which name no key.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

fn keyring(config: &Config) -> anyhow::Result<Arc<Keyring>> {
    let keys = config.encryption.keys.iter().map(|k| (k.id.as_str(), k.key.expose_secret()));
    Keyring::new(keys).map(Arc::new).ok_or_else(|| anyhow::anyhow!("encryption.keys: no key"))
}

fn storage_settings(config: &Config) -> Settings {
    Settings {
        url: config.database.url.clone(),
        listen_url: config.database.listen_url.clone(),
        max_connections: config.database.max_connections,
        clock: Clock::Database,
    }
}

/// The client for calls to providers.
fn http(config: &Config, metrics: Metrics) -> anyhow::Result<Http> {
    let egress = Egress::new(&config.providers, config.egress.allowed_networks.clone());
    Http::new(egress, metrics).context("cannot set up TLS for calls to providers")
}

/// Opens the database for a command, which needs it now.
async fn connect(config: &Config) -> anyhow::Result<Storage> {
    let storage = open(config).await?;
    storage.reach().await.map_err(|error| {
        anyhow::anyhow!("cannot use {error}; is it running, and is database.url right?")
    })?;
    Ok(storage)
}

/// Opens the database for a service, which may start before its database.
///
/// # Errors
///
/// An error if an SQLite file cannot be opened, or the URL or the keys are not valid.
pub async fn open(config: &Config) -> anyhow::Result<Storage> {
    let settings = storage_settings(config);
    if let Some(missing) = settings.missing_file() {
        sqlite::path_to_make(&missing)?;
    }
    Storage::connect(&settings, keyring(config)?, Random::system())
        .await
        .map_err(|error| anyhow::anyhow!("database.url: cannot open the database: {error}"))
}

/// The effect of SIGHUP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hangup {
    /// The terminal was closed, which ends an interactive program.
    Ends,
    /// Service managers send it to have a configuration read again, which the log refuses.
    Refused,
}

/// Ends with SIGTERM or SIGINT, and with SIGHUP as `hangup_effect` says. A second one ends the process at once.
fn stop_signals(hangup_effect: Hangup) -> std::io::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangup.recv() => {
                    if hangup_effect == Hangup::Refused {
                        tracing::warn!(
                            "SIGHUP is ignored: restart to apply a changed configuration; \
                             certificates are read again by themselves"
                        );
                        continue;
                    }
                }
            }
            if stopping.is_cancelled() {
                tracing::error!("stopped at once by a second signal");
                std::process::exit(1);
            }
            stopping.cancel();
        }
    });
    Ok(stop)
}
