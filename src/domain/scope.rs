//! Scopes (RFC 6749 section 3.3).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A set of scope tokens, in order of their bytes, so that equal sets are written the same.
///
/// It is one text, joined by single spaces: the cache of GetToken keeps several of these for each token.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Scopes(Box<str>);

/// A provider's own names of scopes, where its answers do not report what was requested.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScopeNames {
    /// Scopes as they are requested, with the names under which they are reported.
    pub aliases: BTreeMap<String, Scopes>,
    /// Scopes that are granted and never reported, such as `offline_access`.
    pub unreported: Scopes,
}

impl ScopeNames {
    /// The scopes of `asked` that a grant does not cover. `requested` is what the user was asked for, if that
    /// is known.
    #[must_use]
    pub fn missing(
        &self,
        asked: &Scopes,
        granted: &Scopes,
        requested: Option<&Scopes>,
    ) -> Vec<String> {
        let is_covered = |scope: &&str| {
            self.names_of(scope).any(|name| granted.contains(name))
                || self.unreported.contains(scope)
                    && requested.is_none_or(|requested| requested.contains(scope))
        };
        asked.iter().filter(|scope| !is_covered(scope)).map(str::to_owned).collect()
    }

    /// All names of a scope, itself first.
    fn names_of<'a>(&'a self, scope: &'a str) -> impl Iterator<Item = &'a str> {
        let same = self
            .aliases
            .iter()
            .filter(move |(name, aliases)| *name == scope || aliases.contains(scope))
            .flat_map(|(name, aliases)| std::iter::once(name.as_str()).chain(aliases.iter()));
        std::iter::once(scope).chain(same)
    }
}

/// The longest part of an invalid scope that is shown, in characters.
const SHOWN: usize = 64;

/// The beginning of a text that is no scope token: empty, longer than 255 bytes, or with a character outside
/// `%x21 / %x23-5B / %x5D-7E` (RFC 6749 section 3.3).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no scope: 1 to 255 printable ASCII characters without space, quote and backslash"
)]
pub struct InvalidScope(pub String);

impl Scopes {
    /// The longest scope token, in bytes.
    pub const MAX_BYTES: usize = 255;

    /// Takes scope tokens from a caller or an operator.
    ///
    /// # Errors
    ///
    /// [`InvalidScope`] with the first text that is none.
    pub fn parse<T: AsRef<str>>(tokens: impl IntoIterator<Item = T>) -> Result<Self, InvalidScope> {
        let mut scopes = BTreeSet::new();
        for token in tokens {
            let token = token.as_ref();
            let plain = token.bytes().all(|b| matches!(b, 0x21 | 0x23..=0x5b | 0x5d..=0x7e));
            if token.is_empty() || token.len() > Self::MAX_BYTES || !plain {
                return Err(InvalidScope(token.chars().take(SHOWN).collect()));
            }
            scopes.insert(token.to_owned());
        }
        Ok(Self::join(scopes.iter().map(String::as_str).collect()))
    }

    /// Reads what a provider reports: tokens separated by white space or commas. Never fails, for
    /// an odd scope must not cost a token.
    #[must_use]
    pub fn from_provider(text: &str) -> Self {
        let is_separator = |c: char| c.is_whitespace() || c == ',' || c.is_control();
        Self::join(text.split(is_separator).filter(|token| !token.is_empty()).collect())
    }

    fn join(tokens: BTreeSet<&str>) -> Self {
        let mut text = String::with_capacity(tokens.iter().map(|token| token.len() + 1).sum());
        for token in tokens {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(token);
        }
        Self(text.into())
    }

    /// The scopes of either set.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self::join(self.iter().chain(other.iter()).collect())
    }

    /// The scopes of both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self::join(self.iter().filter(|scope| other.contains(scope)).collect())
    }

    /// The scopes of this set that `granted` lacks.
    #[must_use]
    pub fn missing_from(&self, granted: &Self) -> Vec<String> {
        self.iter().filter(|scope| !granted.contains(scope)).map(str::to_owned).collect()
    }

    /// Returns `true` if this scope is among them.
    #[must_use]
    pub fn contains(&self, scope: &str) -> bool {
        self.iter().any(|own| own == scope)
    }

    /// Returns `true` if there is no scope.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The scopes in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.split(' ').filter(|scope| !scope.is_empty())
    }

    /// The scopes as a list.
    #[must_use]
    pub fn to_vec(&self) -> Vec<String> {
        self.iter().map(str::to_owned).collect()
    }
}

/// Joined by single spaces, as on the wire (RFC 6749 section 3.3).
impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_provider_reports_is_read_with_any_separator() {
        let expected = Scopes::parse(["email", "profile"]).expect("scopes");
        for text in ["email profile", "profile,email", " profile , email ", "email\nprofile"] {
            assert_eq!(Scopes::from_provider(text), expected, "{text:?}");
        }
        assert_eq!(expected.to_string(), "email profile");
    }

    #[test]
    fn a_caller_cannot_smuggle_a_separator() {
        for text in ["", "a b", "a\"b", "a\\b", "a\n", "ä"] {
            assert_eq!(Scopes::parse([text]), Err(InvalidScope(text.to_owned())), "{text:?}");
        }
    }

    #[test]
    fn missing_scopes_are_named() {
        let granted = Scopes::from_provider("a b");
        let asked = Scopes::from_provider("b c");
        assert_eq!(asked.missing_from(&granted), ["c"]);
        assert_eq!(asked.union(&granted).to_string(), "a b c");
    }

    #[test]
    fn scopes_are_covered_under_their_other_names() {
        let of = Scopes::from_provider;
        let names = ScopeNames {
            aliases: BTreeMap::from([(
                "email".to_owned(),
                of("https://www.googleapis.com/auth/userinfo.email"),
            )]),
            unreported: of("offline_access"),
        };
        let granted = of("https://www.googleapis.com/auth/userinfo.email openid");
        let missing = |asked, requested: Option<&str>| {
            names.missing(&of(asked), &granted, requested.map(of).as_ref())
        };
        assert!(missing("email openid", Some("email")).is_empty());
        assert!(missing("https://www.googleapis.com/auth/userinfo.email", None).is_empty());
        assert_eq!(missing("profile", None), ["profile"]);
        assert!(missing("offline_access", Some("email offline_access")).is_empty());
        // A grant of a version that did not record what it requested.
        assert!(missing("offline_access", None).is_empty());
        assert_eq!(missing("offline_access", Some("email")), ["offline_access"]);
        let reversed = names.missing(
            &of("https://www.googleapis.com/auth/userinfo.email"),
            &of("email"),
            None,
        );
        assert!(reversed.is_empty());
    }
}
