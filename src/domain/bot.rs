//! A calling program: an authenticated gRPC client.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use url::Url;

use super::address;
use super::name::Name;
use super::scope::Scopes;

/// A bot and what it may do. Everything unset allows everything, save `providers` and
/// `return_urls`.
#[derive(Clone)]
pub struct Bot {
    /// The bot's name, as shown on the result page.
    pub name: Name,
    /// The namespace of the grants that the bot works on.
    pub namespace: Name,
    /// SHA-256 of each API key. Keys are 256 random bits, so an unsalted hash is enough.
    pub api_keys_sha256: Vec<[u8; 32]>,
    /// The providers that the bot may use.
    pub providers: Providers,
    /// The addresses to which the browser may go from the result page.
    pub return_urls: Vec<ReturnUrl>,
    /// The proof that the person in the browser is the person in the chat.
    pub confirmation: Confirmation,
    /// The scopes that the bot may ask for, by provider; a provider that is not named: any.
    pub scopes: BTreeMap<Name, Scopes>,
    /// The subjects that the bot may act for. `None`: any.
    pub subjects: Option<Vec<SubjectPattern>>,
    /// The methods that the bot may call, as in `GetToken`. `None`: all.
    pub methods: Option<BTreeSet<String>>,
    /// The number of calls that a replica takes from the bot. `None`: no limit.
    pub rate: Option<Rate>,
}

/// A bot's credential: 256 random bits, so that an unsalted hash of it is enough.
pub struct ApiKey(SecretString);

impl ApiKey {
    /// The shortest key that is accepted, in bytes: 128 random bits in hexadecimal digits.
    pub const MIN_BYTES: usize = 32;

    /// A new key of random bytes, which the caller hands in. The prefix lets secret scanners find
    /// one that leaked.
    #[must_use]
    pub fn from_random(bytes: [u8; 32]) -> Self {
        use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};

        Self(format!("tbk_{}", BASE64_URL_SAFE_NO_PAD.encode(bytes)).into())
    }

    /// Returns the key, for the bot.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// Returns the hash that the broker stores.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        Self::hash(self.expose())
    }

    /// Hashes a key that a caller sent.
    #[must_use]
    pub fn hash(key: &str) -> [u8; 32] {
        Sha256::digest(key.as_bytes()).into()
    }
}

impl From<String> for ApiKey {
    fn from(key: String) -> Self {
        Self(key.into())
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey")
    }
}

/// The providers that a bot may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Providers {
    /// Every configured one.
    All,
    /// These.
    Only(BTreeSet<Name>),
}

/// The confirmation that a bot's users have to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirmation {
    /// The result page shows a code that the user types into the chat.
    Code,
    /// Tokens are stored as soon as the browser comes back. Only for bots whose links cannot be
    /// forwarded to another person.
    None,
}

/// A return URL that the operator allows: exact, or a prefix that ends in `/`.
#[derive(Clone, PartialEq, Eq)]
pub struct ReturnUrl(Url);

/// Why an allowed return URL is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReturnUrl {
    /// Not an absolute `https` URL (or `http` on loopback) with a host.
    #[error("must be an absolute https URL (http is allowed on loopback only)")]
    Form,
    /// User information or a fragment in the URL.
    #[error("must have no user information and no fragment")]
    Decorated,
}

/// A subject that a bot may act for: exact, or a prefix where the pattern ends in `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubjectPattern(String);

/// A rate limit of one replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Sustained calls per second.
    pub per_second: std::num::NonZeroU32,
    /// Calls that may come at once.
    pub burst: std::num::NonZeroU32,
}

impl Bot {
    /// Returns `true` if the bot may use this provider.
    #[must_use]
    pub fn may_use(&self, provider: &str) -> bool {
        match &self.providers {
            Providers::All => true,
            Providers::Only(names) => names.contains(provider),
        }
    }

    /// Returns `true` if the bot may act for this subject.
    #[must_use]
    pub fn may_act_for(&self, subject: &str) -> bool {
        self.subjects.as_ref().is_none_or(|patterns| patterns.iter().any(|p| p.matches(subject)))
    }

    /// Returns `true` if the bot may call this method.
    #[must_use]
    pub fn may_call(&self, method: &str) -> bool {
        self.methods.as_ref().is_none_or(|methods| methods.contains(method))
    }

    /// The scopes of `asked` that the bot may not have at this provider.
    #[must_use]
    pub fn scopes_beyond(&self, provider: &str, asked: &Scopes) -> Vec<String> {
        self.scopes.get(provider).map(|allowed| asked.missing_from(allowed)).unwrap_or_default()
    }

    /// Returns those of the scopes that the bot may ask for.
    #[must_use]
    pub fn scopes_within(&self, provider: &str, scopes: &Scopes) -> Scopes {
        match self.scopes.get(provider) {
            Some(allowed) => scopes.intersection(allowed),
            None => scopes.clone(),
        }
    }

    /// The URL to return to, where the operator allows it.
    #[must_use]
    pub fn allowed_return_url(&self, text: &str) -> Option<Url> {
        let url = parse_return_url(text).ok()?;
        self.return_urls.iter().any(|allowed| allowed.allows(&url)).then_some(url)
    }
}

impl ReturnUrl {
    /// Parses what an operator allows.
    ///
    /// # Errors
    ///
    /// [`InvalidReturnUrl`] where no browser should be sent there.
    pub fn parse(text: &str) -> Result<Self, InvalidReturnUrl> {
        parse_return_url(text).map(Self)
    }

    fn allows(&self, url: &Url) -> bool {
        // The URL crate has normalized both (`..`, default ports, case of the host), so comparing
        // texts compares what a browser would open. A prefix holds at a `/` of the path alone.
        let prefix = self.0.query().is_none() && self.0.path().ends_with('/');
        self.0 == *url || (prefix && url.as_str().starts_with(self.0.as_str()))
    }
}

impl fmt::Debug for ReturnUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

fn parse_return_url(text: &str) -> Result<Url, InvalidReturnUrl> {
    // Browsers and URL parsers drop or rewrite these characters, which makes them a tool for attacks (RFC 9700 section
    // 4.11.1).
    if text.contains(|c: char| c.is_control() || c.is_whitespace() || c == '\\') {
        return Err(InvalidReturnUrl::Form);
    }
    let url = Url::parse(text).map_err(|_| InvalidReturnUrl::Form)?;
    let secure = match url.scheme() {
        "https" => url.has_host(),
        "http" => address::is_loopback(&url),
        _ => false,
    };
    if !secure {
        return Err(InvalidReturnUrl::Form);
    }
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return Err(InvalidReturnUrl::Decorated);
    }
    Ok(url)
}

impl SubjectPattern {
    /// Takes a pattern: exact, or with a trailing `*`. Returns `None` if it is empty or has a `*`
    /// elsewhere.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let body = text.strip_suffix('*').unwrap_or(text);
        (!text.is_empty() && !body.contains('*')).then(|| Self(text.to_owned()))
    }

    /// The pattern as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the prefix of matching subjects, or `None` if the pattern is exact.
    #[must_use]
    pub fn prefix(&self) -> Option<&str> {
        self.0.strip_suffix('*')
    }

    fn matches(&self, subject: &str) -> bool {
        match self.prefix() {
            Some(prefix) => subject.starts_with(prefix),
            None => self.0 == subject,
        }
    }
}

impl fmt::Debug for Bot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bot")
            .field("name", &self.name)
            .field("namespace", &self.namespace)
            .field("api_keys", &self.api_keys_sha256.len())
            .field("providers", &self.providers)
            .field("return_urls", &self.return_urls)
            .field("confirmation", &self.confirmation)
            .field("scopes", &self.scopes)
            .field("subjects", &self.subjects)
            .field("methods", &self.methods)
            .field("rate", &self.rate)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(patterns: &[&str]) -> Vec<ReturnUrl> {
        patterns.iter().map(|p| ReturnUrl::parse(p).expect("a return URL")).collect()
    }

    fn allows(patterns: &[&str], text: &str) -> bool {
        parse_return_url(text)
            .is_ok_and(|url| allowed(patterns).iter().any(|pattern| pattern.allows(&url)))
    }

    #[test]
    fn a_prefix_ends_at_a_slash() {
        let prefix = ["https://chat.example.com/app/"];
        assert!(allows(&prefix, "https://chat.example.com/app/"));
        assert!(allows(&prefix, "https://chat.example.com/app/room?x=1"));
        assert!(allows(&prefix, "HTTPS://CHAT.example.com:443/app/room"));
        assert!(!allows(&prefix, "https://chat.example.com/app"));
        assert!(!allows(&prefix, "https://chat.example.com/app/../admin"));
        assert!(!allows(&prefix, "https://chat.example.com.evil.example/app/"));
        assert!(!allows(&["https://chat.example.com/a"], "https://chat.example.com/a/b"));
    }

    #[test]
    fn tricks_of_open_redirects_are_refused() {
        let any = ["https://chat.example.com/"];
        for text in [
            "//evil.example/",
            "/\\evil.example",
            "https:\\\\evil.example",
            "https://chat.example.com@evil.example/",
            "https://user@chat.example.com/",
            "https://chat.example.com/\r\nSet-Cookie: a=b",
            "https://chat.example.com/\tx",
            "http://chat.example.com/",
            "data:text/html,x",
            "javascript:alert(1)",
            "https://chat.example.com/#token",
            "",
        ] {
            assert!(!allows(&any, text), "{text:?}");
        }
    }

    #[test]
    fn subject_patterns() {
        let pattern = |text| SubjectPattern::parse(text).expect("a pattern");
        assert!(pattern("acme/*").matches("acme/u1"));
        assert!(!pattern("acme/*").matches("other/u1"));
        assert!(pattern("*").matches("anything"));
        assert!(pattern("acme/u1").matches("acme/u1"));
        assert!(!pattern("acme/u1").matches("acme/u12"));
        assert_eq!(SubjectPattern::parse("a*b"), None);
        assert_eq!(SubjectPattern::parse(""), None);
    }
}
