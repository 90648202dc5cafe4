//! The integration tests: one binary, so that they link once, with named skips where a tool that a
//! test needs is missing.

mod bots;
mod cache;
mod chart;
mod chromium;
mod grpcurl;
mod harness;
mod issuer;
mod lifecycle;
mod process;
mod redirect;
mod refresh;
mod rpc;
mod storage;
mod strangers;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = libtest_mimic::Arguments::from_args();
    let trials = [
        bots::trials(),
        cache::trials(),
        chart::trials(),
        chromium::trials(),
        grpcurl::trials(),
        issuer::trials(),
        lifecycle::trials(),
        process::trials(),
        redirect::trials(),
        refresh::trials(),
        rpc::trials(),
        storage::trials(),
        strangers::trials(),
    ];
    let conclusion = libtest_mimic::run(&arguments, trials.into_iter().flatten().collect());
    harness::pooler::stop();
    harness::postgres::stop();
    conclusion.exit_code()
}
