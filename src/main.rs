//! The `token-broker` command.

/// Faster than the system's where many threads allocate; docs/performance.md has the figures.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    token_broker::cli::run()
}
