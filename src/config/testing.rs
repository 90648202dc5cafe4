//! Helpers for tests of the sections.

use std::path::Path;

use super::document;
use super::problem::{Problems, Reported};
use super::section::Section;

/// Reads a text with one section's reader and renders the problems.
pub(super) fn read<T>(
    text: &str,
    read: impl FnOnce(&mut Section<'_>) -> Result<T, Reported>,
) -> Result<T, String> {
    read_in(Path::new(""), text, read)
}

/// The same, with the folder of the `_file` keys.
pub(super) fn read_in<T>(
    folder: &Path,
    text: &str,
    read: impl FnOnce(&mut Section<'_>) -> Result<T, Reported>,
) -> Result<T, String> {
    let (table, report) = document::read(text, folder, std::iter::empty()).expect("TOML");
    let value = read(&mut Section::root(&report, table));
    let problems = Problems::new(report.into_problems()).to_string();
    match value {
        Ok(value) if problems.is_empty() => Ok(value),
        _ => Err(problems),
    }
}
