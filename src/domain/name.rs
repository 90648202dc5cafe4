//! Names of providers, bots and namespaces.

use std::fmt;
use std::sync::Arc;

/// Words that the chat bots take as commands, so that `/oauth token` is never a provider's name.
pub const COMMAND_WORDS: [&str; 6] = ["confirm", "help", "list", "refresh", "revoke", "token"];

/// A name of the form `[a-z][a-z0-9]*(-[a-z0-9]+)*` of at most 63 bytes, and no command word.
///
/// The form is the same in configuration keys, environment variables, redirect URIs and metric
/// labels, so that none of them needs escaping. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

/// Why a text is no [`Name`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// The text is not of the form.
    #[error("must be of the form [a-z][a-z0-9]*(-[a-z0-9]+)*, at most 63 bytes")]
    Form,
    /// The text is a command of the bots.
    #[error("is a command word of the bots; choose another name")]
    CommandWord,
}

impl Name {
    /// The longest name, in bytes.
    pub const MAX_BYTES: usize = 63;

    /// Parses a name.
    ///
    /// # Errors
    ///
    /// [`InvalidName`] where the text is not of the form or is a command word.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        let starts_with_letter = text.starts_with(|c: char| c.is_ascii_lowercase());
        let parts_are_plain = text.split('-').all(|part| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        });
        if !starts_with_letter || !parts_are_plain || text.len() > Self::MAX_BYTES {
            return Err(InvalidName::Form);
        }
        if COMMAND_WORDS.contains(&text) {
            return Err(InvalidName::CommandWord);
        }
        Ok(Self(text.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_are_taken() {
        for text in ["a", "google", "microsoft-entra", "x2-3-y"] {
            assert_eq!(Name::parse(text).map(|name| name.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn other_texts_are_refused() {
        let long = "a".repeat(64);
        for text in ["", "-a", "a-", "a--b", "1a", "A", "a_b", "a.b", "ä", " a", long.as_str()] {
            assert_eq!(Name::parse(text), Err(InvalidName::Form), "{text:?}");
        }
        assert_eq!(Name::parse("token"), Err(InvalidName::CommandWord));
    }
}
