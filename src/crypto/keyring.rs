//! The encryption keys, by id: the first seals, all open.

use std::fmt;

use aes_gcm_siv::aead::{Aead, KeyInit, Payload};
use aes_gcm_siv::{Aes256GcmSiv, Nonce};
use hmac::{Hmac, Mac};
use secrecy::{ExposeSecret, SecretBox};
use sha2::Sha256;

use super::random::Random;

/// Keys by id. The first seals; all open.
pub struct Keyring {
    keys: Vec<Key>,
}

struct Key {
    id: String,
    cipher: Aes256GcmSiv,
    /// Keys the derivations of redirects. Derived from the encryption key under a label of its
    /// own, so that no key serves two purposes.
    derivation: SecretBox<[u8; 32]>,
}

/// The first byte of everything sealed, so that the form can change one day.
const FORMAT: u8 = 1;
const NONCE_BYTES: usize = 12;

/// Why something sealed does not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The key is not in this keyring: another replica may have it.
    #[error("sealed with the key {0:?}, which is not in this keyring")]
    UnknownKey(String),
    /// Not of the form, altered, or sealed for another place.
    #[error("altered, or sealed for another row or column")]
    Forged,
}

impl Keyring {
    /// A keyring of `(id, key)` pairs. The first one seals. Returns `None` if there is none.
    ///
    /// # Panics
    ///
    /// Where an id is longer than 255 bytes, which configuration does not let through.
    #[must_use]
    pub fn new<'a>(keys: impl IntoIterator<Item = (&'a str, &'a [u8; 32])>) -> Option<Self> {
        let keys: Vec<Key> = keys
            .into_iter()
            .map(|(id, key)| {
                assert!(id.len() <= usize::from(u8::MAX), "a key id has at most 255 bytes");
                Key::new(id, key)
            })
            .collect();
        (!keys.is_empty()).then_some(Self { keys })
    }

    /// Seals `plaintext` for the place that `aad` names:
    /// `format | key id length | key id | nonce | ciphertext`.
    ///
    /// AES-256-GCM-SIV (RFC 8452): should a nonce ever repeat, only the equality of two
    /// plaintexts of the same place is told, not the key stream.
    ///
    /// # Panics
    ///
    /// Never in practice: encryption fails only on inputs of more than 64 GiB.
    #[must_use]
    pub fn seal(&self, plaintext: &[u8], aad: &[u8], random: &Random) -> Vec<u8> {
        let key = &self.keys[0];
        let nonce: [u8; NONCE_BYTES] = random.bytes();
        let ciphertext = key
            .cipher
            .encrypt(&Nonce::from(nonce), Payload { msg: plaintext, aad })
            .expect("a plaintext of less than 64 GiB");
        let id_length = u8::try_from(key.id.len()).expect("checked when the keyring was made");
        let mut sealed = Vec::with_capacity(2 + key.id.len() + NONCE_BYTES + ciphertext.len());
        sealed.extend([FORMAT, id_length]);
        sealed.extend(key.id.as_bytes());
        sealed.extend(nonce);
        sealed.extend(ciphertext);
        sealed
    }

    /// Opens what was sealed for the same place.
    ///
    /// # Errors
    ///
    /// [`OpenError`] where the key is missing or anything was altered.
    pub fn open(&self, sealed: &[u8], aad: &[u8]) -> Result<Vec<u8>, OpenError> {
        let [FORMAT, id_length, rest @ ..] = sealed else { return Err(OpenError::Forged) };
        let (id, rest) = rest.split_at_checked(usize::from(*id_length)).ok_or(OpenError::Forged)?;
        let (nonce, ciphertext) = rest.split_at_checked(NONCE_BYTES).ok_or(OpenError::Forged)?;
        let id = std::str::from_utf8(id).map_err(|_| OpenError::Forged)?;
        let key = self
            .keys
            .iter()
            .find(|key| key.id == id)
            .ok_or_else(|| OpenError::UnknownKey(id.to_owned()))?;
        let nonce: [u8; NONCE_BYTES] = nonce.try_into().map_err(|_| OpenError::Forged)?;
        key.cipher
            .decrypt(&Nonce::from(nonce), Payload { msg: ciphertext, aad })
            .map_err(|_| OpenError::Forged)
    }

    /// The ids of the keys, the sealing one first.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|key| key.id.as_str())
    }

    /// Returns a value that is the same only for the same key under the same id, and reveals nothing else of the
    /// key. Returns `None` if no key has this id.
    #[must_use]
    pub fn check_value(&self, id: &str) -> Option<[u8; 32]> {
        let key = self.keys.iter().find(|key| key.id == id)?;
        let derivation = DerivationKey(key.derivation.expose_secret());
        Some(derivation.derive("token-broker key check v1", &[id.as_bytes()]))
    }

    /// Returns the first bytes of everything that the key of this id has sealed.
    #[must_use]
    pub fn header(id: &str) -> Vec<u8> {
        let length = u8::try_from(id.len()).unwrap_or(u8::MAX);
        [&[FORMAT, length], id.as_bytes()].concat()
    }

    /// The derivation keys, the sealing one first: what another replica derived under its first
    /// key is found by trying all.
    pub fn derivation_keys(&self) -> impl Iterator<Item = DerivationKey<'_>> {
        self.keys.iter().map(|key| DerivationKey(key.derivation.expose_secret()))
    }

    /// Returns a keyring for another purpose, with keys that are derived from these under a label.
    #[must_use]
    pub fn derived(&self, label: &str) -> Self {
        let keys = self.keys.iter().zip(self.derivation_keys());
        let key = |(key, derivation): (&Key, DerivationKey<'_>)| {
            Key::new(&key.id, &derivation.derive(label, &[]))
        };
        Self { keys: keys.map(key).collect() }
    }

    /// The derivation key of the sealing key.
    #[must_use]
    pub fn derivation_key(&self) -> DerivationKey<'_> {
        DerivationKey(self.keys[0].derivation.expose_secret())
    }
}

impl Key {
    fn new(id: &str, key: &[u8; 32]) -> Self {
        let derivation = hmac(key, &[b"token-broker derivation key v1"]);
        Self {
            id: id.to_owned(),
            cipher: Aes256GcmSiv::new(key.into()),
            derivation: SecretBox::new(Box::new(derivation)),
        }
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|key| &key.id)).finish()
    }
}

/// A key for derivations: HMAC-SHA256 under a label.
#[derive(Clone, Copy)]
pub struct DerivationKey<'a>(&'a [u8; 32]);

impl DerivationKey<'_> {
    /// HMAC-SHA256 over the label and the parts, each with its length, so that no two lists of
    /// parts are the same input.
    #[must_use]
    pub fn derive(&self, label: &str, parts: &[&[u8]]) -> [u8; 32] {
        let framed = super::sealed::length_prefixed(
            std::iter::once(label.as_bytes()).chain(parts.iter().copied()),
        );
        hmac(self.0, &[&framed])
    }
}

impl fmt::Debug for DerivationKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DerivationKey")
    }
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key)
        .expect("HMAC takes keys of any length (RFC 2104)");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keyring(ids: &[&str]) -> Keyring {
        let keys: Vec<(&str, [u8; 32])> =
            ids.iter().map(|id| (*id, [id.as_bytes().first().copied().unwrap_or(0); 32])).collect();
        Keyring::new(keys.iter().map(|(id, key)| (*id, key))).expect("keys")
    }

    #[test]
    fn the_first_key_seals_and_all_open() {
        let random = Random::seeded(1);
        let old = keyring(&["a"]).seal(b"token", b"here", &random);
        let both = keyring(&["b", "a"]);
        assert_eq!(both.open(&old, b"here"), Ok(b"token".to_vec()));
        let new = both.seal(b"token", b"here", &random);
        assert_eq!(keyring(&["a"]).open(&new, b"here"), Err(OpenError::UnknownKey("b".into())));
    }

    #[test]
    fn the_same_id_with_another_key_does_not_open() {
        let random = Random::seeded(1);
        let sealed = keyring(&["a"]).seal(b"token", b"here", &random);
        let other = Keyring::new([("a", &[9; 32])]).expect("a key");
        assert_eq!(other.open(&sealed, b"here"), Err(OpenError::Forged));
    }

    #[test]
    fn derivations_differ_by_label_key_and_framing() {
        let keyring = keyring(&["a", "b"]);
        let [first, second] = keyring.derivation_keys().collect::<Vec<_>>()[..] else {
            panic!("two keys")
        };
        let base = first.derive("x", &[b"ab", b"c"]);
        assert_eq!(base, keyring.derivation_key().derive("x", &[b"ab", b"c"]));
        assert_ne!(base, first.derive("x", &[b"a", b"bc"]));
        assert_ne!(base, first.derive("y", &[b"ab", b"c"]));
        assert_ne!(base, second.derive("x", &[b"ab", b"c"]));
    }

    proptest! {
        #[test]
        fn a_flipped_bit_anywhere_is_refused(
            plaintext in prop::collection::vec(any::<u8>(), 0..64),
            position in any::<prop::sample::Index>(),
            bit in 0_u8..8,
        ) {
            let keyring = keyring(&["a", "b"]);
            let mut sealed = keyring.seal(&plaintext, b"here", &Random::seeded(1));
            prop_assert_eq!(keyring.open(&sealed, b"here"), Ok(plaintext));
            prop_assert!(keyring.open(&sealed, b"there").is_err());
            let position = position.index(sealed.len());
            sealed[position] ^= 1 << bit;
            prop_assert!(keyring.open(&sealed, b"here").is_err());
        }

        #[test]
        fn garbage_never_opens_nor_panics(garbage in prop::collection::vec(any::<u8>(), 0..128)) {
            prop_assert!(keyring(&["a"]).open(&garbage, b"").is_err());
        }
    }
}
