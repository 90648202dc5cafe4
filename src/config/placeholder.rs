//! Values that stand for a secret in an example or in a first attempt.

use crate::domain::bot::ApiKey;

/// Words that people write for a secret, without case, spaces, hyphens and underscores.
const WORDS: [&str; 16] = [
    "apikey",
    "changeit",
    "changeme",
    "clientsecret",
    "demo",
    "dummy",
    "example",
    "fixme",
    "password",
    "placeholder",
    "replaceme",
    "secret",
    "test",
    "todo",
    "token",
    "yoursecret",
];

/// Keys whose hashes were in the documentation, or are made by `echo` of nothing.
const KEYS: [&str; 5] = ["", "\n", "tbk_", "tbk_the-key-that-the-demo-prints", "tbk_…"];

/// The hash that the documentation showed in earlier versions.
const DOCUMENTED: [u8; 32] = [
    0xfe, 0x5d, 0x1f, 0xe1, 0x0c, 0x8f, 0x8a, 0xe5, 0x2e, 0xe8, 0xfc, 0x3a, 0xa1, 0xb9, 0xb1, 0xa9,
    0xd3, 0xed, 0x1a, 0x4e, 0xd9, 0xfd, 0x5e, 0x0b, 0x2d, 0x1b, 0x8c, 0xd3, 0xe9, 0xea, 0x1a, 0x68,
];

/// Returns `true` for `<what to write>`, and for dots alone.
pub(super) fn is_blank(text: &str) -> bool {
    let text = text.trim();
    let is_in_brackets = text.starts_with('<') && text.ends_with('>');
    is_in_brackets || !text.is_empty() && text.chars().all(|c| matches!(c, '.' | '…'))
}

/// Returns `true` for a text that no provider issues as a secret.
pub(super) fn is_secret(text: &str) -> bool {
    let plain: String = text.to_lowercase().chars().filter(|c| !" -_.!".contains(*c)).collect();
    let is_repeated = text.len() >= 3 && text.chars().all(|c| matches!(c, 'x' | 'X' | '*' | '?'));
    is_blank(text) || text.contains('…') || is_repeated || WORDS.contains(&plain.as_str())
}

/// Returns `true` for the hash of a key that anyone can guess.
pub(super) fn is_hash_of_known_key(hash: &[u8; 32]) -> bool {
    let is_word = |word: &&str| {
        let variants = [(*word).to_owned(), format!("tbk_{word}"), format!("{word}\n")];
        variants.iter().any(|key| ApiKey::hash(key) == *hash)
    };
    *hash == DOCUMENTED
        || KEYS.iter().any(|key| ApiKey::hash(key) == *hash)
        || WORDS.iter().any(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_told_from_secrets() {
        for text in
            ["<from the provider>", "…", "...", "****", "changeme", "Change-Me!", "xxx", "GOCSPX-…"]
        {
            assert!(is_secret(text), "{text}");
        }
        for text in ["s", "canary-acme", "hunter2", "GOCSPX-aB3...9", "secret-of-the-demo", "<a"] {
            assert!(!is_secret(text), "{text}");
        }
        assert!(is_blank("<the URL>") && !is_blank("changeme") && !is_blank(""));
    }

    #[test]
    fn hashes_of_known_keys_are_recognized() {
        for key in ["", "\n", "changeme", "test", "tbk_secret", "tbk_the-key-that-the-demo-prints"]
        {
            assert!(is_hash_of_known_key(&ApiKey::hash(key)), "{key:?}");
        }
        assert!(!is_hash_of_known_key(&ApiKey::hash("tbk_0pBqYx8mPYKnHVuV2m0Ck1")));
    }
}
