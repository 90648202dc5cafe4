//! Measures the service in ratios to the same machine at the same time: a bare tonic service that answers the same
//! bytes, and `pgbench -S` on the same server. Prints Markdown tables.
//!
//! ```text
//! cargo bench --bench load                everything, about 15 minutes
//! cargo bench --bench load -- guard       what CI checks: one caller, with wide margins
//! cargo bench --bench load -- cached      one part: cached, database, calls, growth, outage, memory,
//!                                         strangers, sweep
//! ```
//!
//! The load generator, the service and the database share the machine's cores, so only ratios say something.
//! Each figure is the median of five rounds, in which the compared services take turns.

mod callers;
mod cpu;
mod harness;
mod parts;
mod pgbench;
mod place;
mod servers;
mod strangers;
mod table;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let part = arguments.next();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    match part.as_deref() {
        Some(servers::BARE) => {
            let response = arguments.next().expect("a response in hexadecimal");
            runtime.block_on(servers::serve_bare(&response));
        }
        part => {
            let passed = runtime.block_on(parts::run(part));
            harness::postgres::stop();
            std::process::exit(i32::from(!passed));
        }
    }
}
