//! The integration tests: one binary, so that they link once, with named skips where a tool that a
//! test needs is missing.

mod grpcurl;
mod harness;
mod lifecycle;
mod process;
#[cfg(any())]
mod redirect;
#[cfg(any())]
mod rpc;
#[cfg(any())]
mod storage;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = libtest_mimic::Arguments::from_args();
    let trials = [
        grpcurl::trials(),
        lifecycle::trials(),
        process::trials(),
    ];
    libtest_mimic::run(&arguments, trials.into_iter().flatten().collect()).exit_code()
}
