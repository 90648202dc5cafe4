//! Tools that are not Rust: where `scripts/test` puts them, and on the path.

use std::path::{Path, PathBuf};

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Finds a program in the project's own tools, and then on the path.
pub fn find(tool: &str) -> Option<PathBuf> {
    let own = [root().join(".tools/bin"), root().join("node_modules/.bin")];
    let path = std::env::var_os("PATH").unwrap_or_default();
    own.into_iter()
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join(tool))
        .find(|candidate| candidate.is_file())
}
