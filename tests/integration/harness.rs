//! What the tests stand on: a broker on free ports with a demo provider beside it, a user's browser,
//! and a way to name tests and their skips.

pub mod bare;
pub mod browser;
pub mod grants;
pub mod pooler;
pub mod ports;
pub mod postgres;
pub mod proxy;
pub mod servers;
pub mod soak;
pub mod tools;
pub mod world;

use std::time::Duration;

use libtest_mimic::{Failed, Trial};

pub use browser::Browser;
pub use world::World;

/// No test takes this long; one that does hangs, and says so.
const LIMIT: Duration = Duration::from_secs(120);

/// The same for a test that must wait for what takes its time, or that does very much.
const LONG: Duration = Duration::from_secs(20 * 60);

/// A test that runs in a runtime of its own.
pub fn trial<F>(name: impl Into<String>, test: fn() -> F) -> Trial
where
    F: Future<Output = ()> + Send + 'static,
{
    trial_within(LIMIT, name, test)
}

fn trial_within<F>(limit: Duration, name: impl Into<String>, test: fn() -> F) -> Trial
where
    F: Future<Output = ()> + Send + 'static,
{
    Trial::test(name, move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|error| Failed::from(error.to_string()))?;
        let ended =
            runtime.block_on(async { tokio::time::timeout(limit, tokio::spawn(test())).await });
        runtime.shutdown_background();
        match ended {
            Ok(Ok(())) => Ok(()),
            // The panic's message has been printed where it arose.
            Ok(Err(error)) => Err(Failed::from(error.to_string())),
            Err(_) => Err(Failed::from(format!("did not end within {limit:?}"))),
        }
    })
}

/// A test that needs tools: skipped by name where one is missing, and failed in CI.
pub fn trial_with<F>(tools: &[&'static str], name: impl Into<String>, test: fn() -> F) -> Trial
where
    F: Future<Output = ()> + Send + 'static,
{
    needing(tools, name.into(), |name| trial(name, test))
}

/// The same for a test that takes long.
pub fn long_trial_with<F>(tools: &[&'static str], name: impl Into<String>, test: fn() -> F) -> Trial
where
    F: Future<Output = ()> + Send + 'static,
{
    needing(tools, name.into(), |name| trial_within(LONG, name, test))
}

fn needing(tools: &[&'static str], name: String, trial: impl FnOnce(String) -> Trial) -> Trial {
    let Some(tool) = tools.iter().copied().find(|tool| !tools::is_there(tool)) else {
        return trial(name);
    };
    if std::env::var_os("CI").is_some() {
        return Trial::test(name, move || Err(Failed::from(format!("{tool} is missing"))));
    }
    Trial::test(format!("{name} (skipped: {tool} is missing)"), || Ok(())).with_ignored_flag(true)
}
