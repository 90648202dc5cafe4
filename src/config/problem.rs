//! Problems of a configuration, which are reported all at once.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// One fault of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The full dotted key, such as `bots.helper.providers`.
    pub key: String,
    /// The problem and the remedy, on one line. Holds no secret.
    pub message: String,
}

/// Every fault that was found, in the order in which the sections are read. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

/// Says that a problem is in the [`Report`], so that a value which cannot be had is never passed
/// over in silence.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reported(());

/// The problems that the readers of all sections report.
pub(super) struct Report {
    problems: RefCell<Vec<Problem>>,
    /// Valid but weak settings.
    notes: RefCell<Vec<Problem>>,
    /// `true` if the configuration file itself holds a secret.
    pub(super) has_secret: Cell<bool>,
    /// The environment variable that set a key, by dotted key.
    pub(super) variables: BTreeMap<String, String>,
    /// The folder of relative paths.
    pub(super) folder: PathBuf,
}

impl Problem {
    /// Makes a problem on one line: file names and messages of parsers may have several.
    pub(super) fn new(key: impl Into<String>, message: impl AsRef<str>) -> Self {
        let message = message.as_ref().replace(char::is_control, " ");
        Self { key: key.into(), message }
    }
}

impl Problems {
    pub(super) fn new(problems: Vec<Problem>) -> Self {
        Self(problems)
    }

    /// The problems in order.
    #[must_use]
    pub fn as_slice(&self) -> &[Problem] {
        &self.0
    }
}

impl Report {
    pub(super) fn new(folder: &Path) -> Self {
        Self {
            problems: RefCell::default(),
            notes: RefCell::default(),
            has_secret: Cell::new(false),
            variables: BTreeMap::new(),
            folder: folder.to_owned(),
        }
    }

    /// Records a weak setting for the posture report.
    pub(super) fn note(&self, key: &str, message: impl AsRef<str>) {
        self.notes.borrow_mut().push(Problem::new(key, message));
    }

    pub(super) fn take_notes(&self) -> Vec<Problem> {
        self.notes.take()
    }

    /// Takes a problem. Where the environment set the key, the variable is named, because the
    /// operator would look for the fault in the file.
    pub(super) fn push(&self, key: &str, message: impl AsRef<str>) -> Reported {
        let message = message.as_ref();
        let problem = match self.variables.get(key) {
            Some(variable) => Problem::new(key, format!("{message} (set by {variable})")),
            None => Problem::new(key, message),
        };
        self.problems.borrow_mut().push(problem);
        Reported(())
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems.into_inner()
    }
}

/// `key: message`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}

/// One line for each problem, without a final newline.
impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            fmt::Display::fmt(problem, f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_takes_one_line_and_names_its_variable() {
        let mut report = Report::new(Path::new(""));
        report.variables.insert("a.b".to_owned(), "TOKEN_BROKER__A__B".to_owned());
        report.push("a.b", "is\nwrong");
        report.push("a.c", "is wrong; mend it");
        assert_eq!(
            Problems::new(report.into_problems()).to_string(),
            "a.b: is wrong (set by TOKEN_BROKER__A__B)\na.c: is wrong; mend it"
        );
    }
}
