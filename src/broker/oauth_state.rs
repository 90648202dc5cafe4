//! The OAuth `state`, and the values that are derived for it: they tie the link, the browser and the broker together.
//!
//! `state` is hex(authorization id, 16 bytes | salt, 8 bytes | cookie hash, 12 bytes | MAC, 16
//! bytes): 104 characters without punctuation, because some providers take no more than 128. The PKCE
//! verifier and the confirmation code are derived from the broker's key **and the cookie**, so
//! that a stolen redirect carries neither.

use secrecy::{ExposeSecret, SecretBox};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::crypto::keyring::{DerivationKey, Keyring};
use crate::crypto::random::Random;
use crate::domain::id::Id;
use crate::domain::name::Name;

pub(super) type Salt = [u8; 8];
type CookieHash = [u8; 12];
type Mac = [u8; 16];

/// The browser's own secret, kept in its cookie across starts, so that tabs do not break each
/// other: 256 random bits.
pub struct BrowserSecret(SecretBox<[u8; 32]>);

impl BrowserSecret {
    /// A new secret for a browser that has none.
    #[must_use]
    pub fn new(random: &Random) -> Self {
        Self(SecretBox::new(Box::new(random.bytes())))
    }

    /// From a cookie's value: 64 hexadecimal digits. Returns `None` if it is anything else.
    #[must_use]
    pub fn parse(value: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(value, &mut bytes).ok()?;
        Some(Self(SecretBox::new(Box::new(bytes))))
    }

    /// The cookie's value.
    #[must_use]
    pub fn cookie_value(&self) -> String {
        hex::encode(self.0.expose_secret())
    }

    fn hash(&self) -> CookieHash {
        let digest = Sha256::digest(self.0.expose_secret());
        std::array::from_fn(|index| digest[index])
    }
}

impl std::fmt::Debug for BrowserSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BrowserSecret")
    }
}

/// A `state` whose MAC was valid, with the key that it was made under.
pub(super) struct VerifiedState<'a> {
    key: DerivationKey<'a>,
    pub(super) id: Id,
    pub(super) salt: Salt,
    cookie_hash: CookieHash,
}

/// One start of the link by one browser.
pub(super) struct BrowserState<'a> {
    key: DerivationKey<'a>,
    id: Id,
    salt: Salt,
    browser: &'a BrowserSecret,
}

impl<'a> BrowserState<'a> {
    /// A fresh start.
    pub(super) fn new(
        keyring: &'a Keyring,
        random: &Random,
        id: Id,
        browser: &'a BrowserSecret,
    ) -> Self {
        Self { key: keyring.derivation_key(), id, salt: random.bytes(), browser }
    }

    /// The `state` parameter.
    pub(super) fn state(&self, provider: &Name) -> String {
        let hash = self.browser.hash();
        let mac = mac(self.key, self.id, &self.salt, &hash, provider);
        hex::encode([&self.id.as_bytes()[..], &self.salt, &hash, &mac].concat())
    }

    /// The PKCE verifier (RFC 7636 section 4.1): 43 characters.
    pub(super) fn verifier(&self) -> String {
        use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};

        BASE64_URL_SAFE_NO_PAD.encode(self.derive("pkce verifier"))
    }

    /// Ties the ID token to this start (OpenID Connect Core section 3.1.2.1).
    pub(super) fn nonce(&self) -> String {
        hex::encode(self.derive("oidc nonce"))
    }

    /// The code that goes from the browser to the chat: 8 digits.
    pub(super) fn confirmation_code(&self) -> String {
        let derived = self.derive("confirmation code");
        let number = derived.iter().take(8).fold(0_u64, |n, byte| n << 8 | u64::from(*byte));
        // 2^64 is so much more than 10^8 that no code is likelier than another by more than 10^-11.
        format!("{:08}", number % 100_000_000)
    }

    /// The hash under which the code is stored.
    pub(super) fn confirmation_code_hash(&self) -> [u8; 32] {
        code_hash(self.key, self.id, &self.confirmation_code())
    }

    fn derive(&self, label: &str) -> [u8; 32] {
        let secret = self.browser.0.expose_secret();
        self.key.derive(label, &[self.id.as_bytes(), &self.salt, secret])
    }
}

impl<'a> VerifiedState<'a> {
    /// Reads a `state` that came back from this provider. Returns `None` if its MAC is not valid under
    /// any key of the keyring.
    pub(super) fn parse(keyring: &'a Keyring, state: &str, provider: &Name) -> Option<Self> {
        let mut bytes = [0; 52];
        hex::decode_to_slice(state, &mut bytes).ok()?;
        let (id, rest) = bytes.split_first_chunk::<16>()?;
        let (salt, rest) = rest.split_first_chunk::<8>()?;
        let (cookie_hash, rest) = rest.split_first_chunk::<12>()?;
        let (given, []) = rest.split_first_chunk::<16>()? else { return None };
        let id = Id::from_bytes(*id);
        keyring
            .derivation_keys()
            .find(|key| mac(*key, id, salt, cookie_hash, provider).ct_eq(given).into())
            .map(|key| Self { key, id, salt: *salt, cookie_hash: *cookie_hash })
    }

    /// The start that this is the redirect of, where it comes from the same browser.
    pub(super) fn of_browser(&self, browser: &'a BrowserSecret) -> Option<BrowserState<'a>> {
        bool::from(browser.hash().ct_eq(&self.cookie_hash)).then_some(BrowserState {
            key: self.key,
            id: self.id,
            salt: self.salt,
            browser,
        })
    }
}

fn mac(key: DerivationKey<'_>, id: Id, salt: &Salt, cookie: &CookieHash, provider: &Name) -> Mac {
    let whole = key.derive("state", &[id.as_bytes(), salt, cookie, provider.as_str().as_bytes()]);
    std::array::from_fn(|index| whole[index])
}

fn code_hash(key: DerivationKey<'_>, id: Id, code: &str) -> [u8; 32] {
    key.derive("confirmation code hash", &[id.as_bytes(), code.as_bytes()])
}

/// Returns `true` if a code is the one that was stored, in constant time, under whichever key it was stored.
pub(super) fn code_matches(keyring: &Keyring, id: Id, code: &str, stored: &[u8]) -> bool {
    keyring
        .derivation_keys()
        .fold(false, |found, key| found | bool::from(code_hash(key, id, code).ct_eq(stored)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).expect("a name")
    }

    fn keyring(first: u8) -> Keyring {
        Keyring::new([("first", &[first; 32]), ("old", &[9; 32])]).expect("keys")
    }

    #[test]
    fn a_state_is_for_one_provider_one_browser_and_this_broker() {
        let random = Random::seeded(1);
        let (keyring, browser) = (keyring(1), BrowserSecret::new(&random));
        let start = BrowserState::new(&keyring, &random, Id::from_bytes([7; 16]), &browser);
        let state = start.state(&name("acme"));
        assert_eq!(state.len(), 104);
        assert!(state.bytes().all(|b| b.is_ascii_hexdigit()));

        let attempt = VerifiedState::parse(&keyring, &state, &name("acme")).expect("a valid state");
        assert_eq!((attempt.id, attempt.salt), (start.id, start.salt));
        let back = attempt.of_browser(&browser).expect("the same browser");
        assert_eq!(back.verifier(), start.verifier());
        assert_eq!(back.confirmation_code(), start.confirmation_code());
        assert!(attempt.of_browser(&BrowserSecret::new(&random)).is_none());

        assert!(VerifiedState::parse(&keyring, &state, &name("other")).is_none());
        let stranger = Keyring::new([("first", &[8; 32])]).expect("a key");
        assert!(VerifiedState::parse(&stranger, &state, &name("acme")).is_none());
        for position in 0..state.len() {
            let mut altered = state.clone().into_bytes();
            altered[position] = if altered[position] == b'0' { b'1' } else { b'0' };
            let altered = String::from_utf8(altered).expect("ASCII");
            assert!(
                VerifiedState::parse(&keyring, &altered, &name("acme")).is_none(),
                "{position}"
            );
        }
    }

    #[test]
    fn a_redirect_survives_a_change_of_the_first_key() {
        let random = Random::seeded(2);
        let browser = BrowserSecret::new(&random);
        let old = Keyring::new([("old", &[9; 32])]).expect("a key");
        let start = BrowserState::new(&old, &random, Id::from_bytes([7; 16]), &browser);
        let (new, state) = (keyring(1), start.state(&name("acme")));
        let attempt =
            VerifiedState::parse(&new, &state, &name("acme")).expect("the old key still opens");
        let back = attempt.of_browser(&browser).expect("the same browser");
        assert_eq!(back.verifier(), start.verifier());
        assert!(code_matches(
            &new,
            start.id,
            &start.confirmation_code(),
            &start.confirmation_code_hash()
        ));
    }

    #[test]
    fn verifiers_and_codes_have_their_forms_and_differ_by_start() {
        let random = Random::seeded(3);
        let (keyring, browser) = (keyring(1), BrowserSecret::new(&random));
        let id = Id::from_bytes([7; 16]);
        let [one, two] = [(); 2].map(|()| BrowserState::new(&keyring, &random, id, &browser));
        assert_eq!(one.verifier().len(), 43);
        assert_eq!(one.nonce().len(), 64);
        assert_ne!(one.nonce(), two.nonce());
        assert_eq!(one.confirmation_code().len(), 8);
        assert!(one.confirmation_code().bytes().all(|b| b.is_ascii_digit()));
        assert_ne!(one.verifier(), two.verifier());
        assert_ne!(one.state(&name("acme")), two.state(&name("acme")));
        let hash = one.confirmation_code_hash();
        assert!(code_matches(&keyring, id, &one.confirmation_code(), &hash));
        assert!(!code_matches(&keyring, id, "00000000", &hash));
        assert!(!code_matches(&keyring, Id::from_bytes([8; 16]), &one.confirmation_code(), &hash));
    }

    #[test]
    fn a_cookie_is_read_back_and_rubbish_is_not() {
        let browser = BrowserSecret::new(&Random::seeded(4));
        let back = BrowserSecret::parse(&browser.cookie_value()).expect("a cookie");
        assert_eq!(back.cookie_value(), browser.cookie_value());
        for text in ["", "00", "zz", &"0".repeat(63), &"0".repeat(66)] {
            assert!(BrowserSecret::parse(text).is_none(), "{text}");
        }
    }
}
