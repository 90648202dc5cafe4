//! A grant: the tokens of one user at one provider.

use std::collections::BTreeMap;
use std::fmt;

use sha2::{Digest, Sha256};

use super::id::Id;
use super::identity::Identity;
use super::name::Name;
use super::scope::Scopes;
use super::time::Timestamp;

/// Names one grant. The namespace comes from the caller's credential, never from a request.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct GrantKey {
    /// The namespace of the bot.
    pub namespace: Name,
    /// The provider.
    pub provider: Name,
    /// The chat user, in the bot's terms.
    pub subject: Subject,
    /// One of the subject's accounts.
    pub account: Account,
}

/// Stands for a key where the key itself has no business: in a notice to other replicas, and in
/// their caches. 128 bits of SHA-256 over the length-prefixed parts.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash([u8; 16]);

impl KeyHash {
    /// One of the bytes, to sort keys by.
    #[must_use]
    pub const fn first_byte(self) -> u8 {
        self.0[0]
    }

    /// Parses 32 hexadecimal digits. Returns `None` if the text is anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(Self(bytes))
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl GrantKey {
    /// Returns the hash that replaces the key in notices and caches.
    #[must_use]
    pub fn hash(&self) -> KeyHash {
        let mut hasher = Sha256::new();
        for part in [
            self.namespace.as_str(),
            self.provider.as_str(),
            self.subject.as_str(),
            self.account.as_str(),
        ] {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part.as_bytes());
        }
        let digest = hasher.finalize();
        KeyHash(std::array::from_fn(|index| digest[index]))
    }
}

impl fmt::Debug for GrantKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{:?}/{:?}", self.namespace, self.provider, self.subject, self.account)
    }
}

/// A chat user, in the bot's own terms: 1 to 255 bytes, no control characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subject(String);

/// Distinguishes accounts of one subject at one provider: at most 63 bytes, no control characters. Empty for the only
/// one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Account(String);

impl Subject {
    /// The longest subject, in bytes.
    pub const MAX_BYTES: usize = 255;

    /// Parses a subject. Returns `None` if it is empty, too long or has a control character.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        (!text.is_empty() && is_label(text, Self::MAX_BYTES)).then(|| Self(text.to_owned()))
    }

    /// The subject as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Account {
    /// The longest account label, in bytes.
    pub const MAX_BYTES: usize = 63;

    /// Parses an account label. Returns `None` if it is too long or has a control character.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        is_label(text, Self::MAX_BYTES).then(|| Self(text.to_owned()))
    }

    /// The label as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_label(text: &str, max_bytes: usize) -> bool {
    text.len() <= max_bytes && !text.contains(char::is_control)
}

/// The version of a grant's tokens. A commit names the version that it read and moves it. Neither part is used twice
/// for one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version {
    /// Moves with every new authorization of the key.
    pub generation: i64,
    /// Moves with every new token.
    pub token_version: i64,
}

/// The usability of a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantState {
    /// It can.
    Active,
    /// The provider no longer takes the refresh token: the user must authorize again.
    ReauthorizationRequired,
}

/// A grant without its tokens.
#[derive(Debug, Clone)]
pub struct Grant {
    /// The row.
    pub id: Id,
    /// The key.
    pub key: GrantKey,
    /// Usable or not.
    pub state: GrantState,
    /// The version of the tokens.
    pub version: Version,
    /// The scopes that the provider reports.
    pub scopes: Scopes,
    /// The scopes that the user was asked for. `None` if a version before this one stored the grant.
    pub requested: Option<Scopes>,
    /// The user at the provider.
    pub identity: Identity,
    /// Other values of the provider's answer. Never a secret.
    pub provider_values: BTreeMap<String, String>,
    /// When the user authorized.
    pub created_at: Timestamp,
    /// When the access token was last obtained.
    pub issued_at: Timestamp,
    /// When the access token expires. `None`: the provider gave no lifetime.
    pub expires_at: Option<Timestamp>,
    /// `true` if there is a refresh token.
    pub refreshable: bool,
    /// When the refresh token expires. `None` if the provider does not say.
    pub refresh_expires_at: Option<Timestamp>,
    /// The number of refreshes that failed in a row.
    pub failures: u32,
    /// When the first of them failed.
    pub failing_since: Option<Timestamp>,
    /// Before when no refresh is tried, after failures.
    pub next_attempt_at: Option<Timestamp>,
    /// The last failure, as the provider layer records it.
    pub last_error: Option<String>,
    /// When the access token was last issued to a bot, as last recorded.
    pub last_used_at: Option<Timestamp>,
}

impl Grant {
    /// The scopes that the user was asked for, or else those that the provider reports.
    #[must_use]
    pub fn requested_scopes(&self) -> &Scopes {
        self.requested.as_ref().unwrap_or(&self.scopes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_and_accounts_are_bounded() {
        assert!(Subject::parse("acme.rocket.chat/u123").is_some());
        assert!(Subject::parse(&"ä".repeat(127)).is_some());
        assert!(Subject::parse(&"ä".repeat(128)).is_none());
        assert!(Subject::parse("").is_none());
        assert!(Subject::parse("a\nb").is_none());
        assert!(Subject::parse("a\u{85}b").is_none());
        assert!(Account::parse("").is_some());
        assert!(Account::parse(&"a".repeat(64)).is_none());
    }
}
