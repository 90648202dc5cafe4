//! Counts the instructions of a GetToken from the cache, from the request's bytes to those of the response, beside
//! a bare tonic service that answers the same bytes. Unlike times, counts hardly vary, so that a budget can be
//! narrow. `.ci/run` runs it and installs what it needs, valgrind and gungraun-runner:
//!
//! ```text
//! cargo bench -p token-broker-instructions
//! ```
#![expect(missing_docs, reason = "the macros make public items")]

use std::hint::black_box;

use gungraun::prelude::*;
use gungraun::{Callgrind, EventKind};
use token_broker_instructions::{Ready, bare, token_broker};

/// The number of calls that are counted together.
const CALLS: u32 = 100;

/// The most instructions that a call of the service may take.
const BUDGET: u64 = 38_000;

#[library_benchmark]
#[bench::token_broker(token_broker())]
#[bench::bare(bare())]
fn get_token(mut ready: Ready) -> Ready {
    for _ in 0..CALLS {
        black_box(ready.call());
    }
    ready
}

library_benchmark_group!(name = cached, benchmarks = get_token);

fn config() -> LibraryBenchmarkConfig {
    let mut callgrind = Callgrind::default();
    callgrind.hard_limits([(EventKind::Ir, BUDGET * u64::from(CALLS))]);
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(callgrind);
    config
}

main!(config = config(), library_benchmark_groups = cached);
