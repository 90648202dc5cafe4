//! The integration tests: one binary, so that they link once, with named skips where a tool that a
//! test needs is missing.

mod harness;
mod lifecycle;
#[cfg(any())]
mod process;
#[cfg(any())]
mod redirect;
#[cfg(any())]
mod refresh;
#[cfg(any())]
mod rpc;
#[cfg(any())]
mod storage;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = libtest_mimic::Arguments::from_args();
    let trials = [lifecycle::trials()].into_iter().flatten().collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
