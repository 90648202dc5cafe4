//! Secrets, which come from a key or from the file that a second key names.

use std::path::Path;

use secrecy::SecretString;
use url::Url;
use zeroize::Zeroizing;

use super::placeholder;
use super::problem::Reported;
use super::section::Section;
use super::value;
use crate::file_access::{Access, Content};

/// A secret, and the key that gave it, for problems of its value.
pub(super) struct Secret {
    pub(super) key: &'static str,
    pub(super) value: SecretString,
}

impl Section<'_> {
    /// A secret that `key` gives or that the file named by `file_key` holds.
    pub(super) fn secret(
        &mut self,
        key: &'static str,
        file_key: &'static str,
    ) -> Result<Option<Secret>, Reported> {
        let direct = self.optional(key, value::filled);
        let file = self.optional(file_key, value::filled);
        match (direct?, file?) {
            (Some(_), Some(_)) => Err(self.both_given(key, file_key)),
            (Some(text), None) => {
                if placeholder::is_secret(&text) {
                    return Err(self.problem(key, "is a placeholder; fill it in"));
                }
                let is_url = Url::parse(&text).is_ok_and(|url| url.password().is_none());
                if !is_url && !self.is_from_environment(key) {
                    self.report.has_secret.set(true);
                }
                Ok(Some(Secret { key, value: text.into() }))
            }
            (None, Some(file)) => {
                let text = self.file(file_key, &file)?;
                let text = without_final_newline(&text);
                if text.trim().is_empty() {
                    return Err(self.problem(file_key, "names a file that is empty; fill it"));
                }
                if placeholder::is_secret(text) {
                    return Err(
                        self.problem(file_key, "names a file with a placeholder; fill it in")
                    );
                }
                Ok(Some(Secret { key: file_key, value: text.into() }))
            }
            (None, None) => Ok(None),
        }
    }

    /// Reports that a secret is given twice, which leaves open which one is meant.
    pub(super) fn both_given(&self, key: &str, file_key: &str) -> Reported {
        self.problem(file_key, format!("is given beside {key}; keep one of them"))
    }

    /// The content of a file that a key names, relative to the configuration's folder.
    pub(super) fn file(&self, key: &str, path: &str) -> Result<Zeroizing<String>, Reported> {
        let path = self.report.folder.join(path);
        self.check_mode(key, &path, Content::Secret)?;
        std::fs::read_to_string(&path).map(Zeroizing::new).map_err(|error| {
            let path = path.display();
            let remedy = "name a text file that this process can read";
            self.problem(key, format!("names {path}, which cannot be read: {error}; {remedy}"))
        })
    }
}

impl Section<'_> {
    /// Refuses a file that every user can change, and takes note of one that too many can read or replace.
    pub(super) fn check_mode(
        &self,
        key: &str,
        path: &Path,
        content: Content,
    ) -> Result<(), Reported> {
        let shown = path.display();
        let access = Access::of(path);
        if access.all_write {
            let remedy = content.remedy();
            let wrong = format!("names {shown}, which every user can write; run {remedy} on it");
            return Err(self.problem(key, wrong));
        }
        for weakness in access.weaknesses(content) {
            self.note(key, format!("names {shown}, {weakness}"));
        }
        Ok(())
    }
}

/// Editors and `kubectl` end a file with a newline. Any other white space may be the secret's.
fn without_final_newline(text: &str) -> &str {
    text.strip_suffix('\n').map_or(text, |text| text.strip_suffix('\r').unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::config::testing;

    fn secret(section: &mut Section<'_>) -> Result<Option<Secret>, Reported> {
        let secret = section.secret("password", "password_file");
        section.finish();
        secret
    }

    #[test]
    fn one_final_newline_is_stripped() {
        for (content, expected) in [
            ("abc", "abc"),
            ("abc\n", "abc"),
            ("abc\r\n", "abc"),
            ("abc\n\n", "abc\n"),
            ("abc\r", "abc\r"),
            (" abc ", " abc "),
        ] {
            assert_eq!(without_final_newline(content), expected, "{content:?}");
        }
    }

    #[test]
    fn a_file_is_found_beside_the_configuration() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("password"), "hunter2\r\n").expect("a file");
        let read = testing::read_in(folder.path(), "password_file = 'password'", secret);
        let found = read.expect("a secret").expect("a secret");
        assert_eq!((found.key, found.value.expose_secret()), ("password_file", "hunter2"));
    }

    #[test]
    fn both_keys_in_one_layer_are_refused() {
        let read = testing::read("password = 'hunter2'\npassword_file = 'x'", secret);
        assert_eq!(
            read.err().as_deref(),
            Some("password_file: is given beside password; keep one of them")
        );
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let read = testing::read_in(folder.path(), "password_file = 'gone'", secret);
        assert_eq!(
            read.err(),
            Some(format!(
                "password_file: names {}/gone, which cannot be read: No such file or directory \
                 (os error 2); name a text file that this process can read",
                folder.path().display()
            ))
        );
    }

    #[test]
    fn an_empty_secret_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("password"), "\n").expect("a file");
        let read = testing::read_in(folder.path(), "password_file = 'password'", secret);
        assert_eq!(
            read.err().as_deref(),
            Some("password_file: names a file that is empty; fill it")
        );
        let read = testing::read("password = ''", secret);
        assert_eq!(read.err().as_deref(), Some("password: must not be empty"));
    }

    #[test]
    fn a_secret_of_another_type_is_not_quoted() {
        let read = testing::read("password = 12345", secret);
        assert_eq!(read.err().as_deref(), Some("password: must be a string, not an integer"));
    }
}
