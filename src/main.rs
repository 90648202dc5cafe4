//! The `token-broker` command.

fn main() -> std::process::ExitCode {
    token_broker::cli::run()
}
