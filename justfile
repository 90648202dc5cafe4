# Everyday commands, for https://just.systems. Each is one line, so they also work without it.

# Lists these commands.
default:
    @just --list

# Runs the main job on loopback, with a demo provider.
demo *arguments:
    cargo run -- demo {{arguments}}

# Compiles everything without building it.
check:
    cargo check --workspace --all-targets

# Runs unit tests by name.
unit *names:
    cargo test --workspace --lib -- {{names}}

# Runs integration tests by name, such as `process::commands`.
test *names:
    cargo test --test integration -- {{names}}

# Installs what the tests need, and runs all of them.
test-all:
    scripts/test

# Formats, and runs the lints of CI that take less than a minute.
lint:
    cargo fmt --all
    python3 scripts/lib/prose.py
    python3 scripts/lib/unused.py
    cargo clippy --workspace --all-targets

# Runs what CI runs.
ci:
    .ci/run

# Measures the service beside a bare tonic service and pgbench.
bench *arguments:
    cargo bench --bench load -- {{arguments}}
