//! An SQLite file that does not exist yet.

use std::path::Path;

use crate::storage::MissingFile;

/// Returns the path of the file, which can be made.
///
/// # Errors
///
/// An error with the remedy, if the URL does not say to make it, or its folder does not exist or cannot be written.
pub(super) fn path_to_make(missing: &MissingFile) -> anyhow::Result<String> {
    let path = std::path::absolute(&missing.path).unwrap_or_else(|_| missing.path.clone());
    let path = path.display();
    if !missing.creates {
        anyhow::bail!(
            "database.url: {path} does not exist; add ?mode=rwc to the URL to have it made"
        );
    }
    let folder = missing.path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        anyhow::bail!(
            "database.url: the folder {} of {path} does not exist; make it",
            folder.display()
        );
    }
    // The file has no name, and so leaves no trace.
    if let Err(error) = tempfile::tempfile_in(folder.unwrap_or(Path::new("."))) {
        anyhow::bail!(
            "database.url: cannot make {path}: {error}; let the user of this process write in its folder"
        );
    }
    Ok(path.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path_of(path: &Path, creates: bool) -> Result<String, String> {
        let missing = MissingFile { path: path.to_owned(), creates };
        path_to_make(&missing).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_that_cannot_be_made_is_reported() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("a.db");
        let shown = file.display().to_string();
        assert_eq!(path_of(&file, true), Ok(shown.clone()));
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0, "a trace");
        assert_eq!(
            path_of(&file, false),
            Err(format!(
                "database.url: {shown} does not exist; add ?mode=rwc to the URL to have it made"
            ))
        );
        let wrong = path_of(&folder.path().join("gone/a.db"), true).expect_err("no folder");
        assert!(
            wrong.contains("/gone of ") && wrong.ends_with("does not exist; make it"),
            "{wrong}"
        );
        // No user can make a file there, not even root.
        let wrong = path_of(Path::new("/proc/self/a.db"), true).expect_err("no file");
        assert!(
            wrong.contains("cannot make /proc/self/a.db") && wrong.contains("write in its folder"),
            "{wrong}"
        );
    }
}
