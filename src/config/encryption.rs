//! `[encryption]`: the keys that seal what is stored.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret as _, SecretBox, SecretString};
use zeroize::Zeroizing;

use super::problem::Reported;
use super::section::Section;
use super::value::{filled, text};

const REMEDY: &str = "`token-broker keys new` prints a key";

/// The keyring.
#[derive(Debug)]
pub struct Encryption {
    /// At least one. The first seals, all open.
    pub keys: Vec<EncryptionKey>,
}

/// A key of the keyring.
#[derive(Debug)]
pub struct EncryptionKey {
    /// Stands beside what the key sealed: 1 to 32 bytes of `[A-Za-z0-9._-]`, unique.
    pub id: String,
    /// The key itself, unique.
    pub key: SecretBox<[u8; 32]>,
}

/// A key as it is written, and where.
struct Written {
    place: String,
    id: String,
    key: SecretString,
}

pub(super) fn read(mut section: Section<'_>) -> Result<Encryption, Reported> {
    let inline = section.sections("keys");
    let file = section.optional("keys_file", filled);
    section.finish();
    let keys = match (inline?, file?) {
        (Some(_), Some(_)) => Err(section.both_given("keys", "keys_file")),
        (Some(items), None) => ring(&section, "keys", inline_keys(items)),
        (None, Some(path)) => {
            file_keys(&section, &path).and_then(|written| ring(&section, "keys_file", written))
        }
        (None, None) => Err(section.missing("keys", REMEDY)),
    };
    Ok(Encryption { keys: keys? })
}

fn inline_keys(items: Vec<Section<'_>>) -> Vec<Result<Written, Reported>> {
    let numbered = items.into_iter().zip(1..);
    let written = numbered.map(|(mut item, number)| {
        let id = item.required("id", "name the key, for example after the month", text);
        let key = item.secret("key", "key_file");
        let key = key.and_then(|key| key.ok_or_else(|| item.missing("key", REMEDY)));
        item.finish();
        Ok(Written { place: format!("item {number}"), id: id?, key: key?.value })
    });
    written.collect()
}

/// Lines of `id:base64`. Empty ones and those that start with `#` say nothing.
fn file_keys(
    section: &Section<'_>,
    path: &str,
) -> Result<Vec<Result<Written, Reported>>, Reported> {
    let content = section.file("keys_file", path)?;
    let lines = content.lines().map(str::trim).zip(1..);
    let told = lines.filter(|(line, _)| !line.is_empty() && !line.starts_with('#'));
    let written = told.map(|(line, number)| {
        let place = format!("line {number}");
        let Some((id, key)) = line.split_once(':') else {
            let wrong = format!("has no colon in {place}; write id:base64");
            return Err(section.problem("keys_file", wrong));
        };
        Ok(Written { place, id: id.trim().to_owned(), key: key.trim().into() })
    });
    Ok(written.collect())
}

fn ring(
    section: &Section<'_>,
    from: &str,
    written: Vec<Result<Written, Reported>>,
) -> Result<Vec<EncryptionKey>, Reported> {
    if written.is_empty() {
        return Err(section.problem(from, format!("must hold a key; {REMEDY}")));
    }
    let mut keys: Vec<EncryptionKey> = Vec::new();
    let mut result = Ok(());
    for written in written {
        let added = written.and_then(|Written { place, id, key }| {
            let problem = |(part, wrong): (&str, String)| {
                section.problem(from, format!("{part} of {place} {wrong}"))
            };
            entry(&keys, id, &key).map_err(problem)
        });
        match added {
            Ok(key) => keys.push(key),
            Err(reported) => result = Err(reported),
        }
    }
    result.map(|()| keys)
}

/// Reads one entry, or returns the invalid part and its problem. A key ends in `=` and an `id` does not, so they can
/// be distinguished.
fn entry(
    keys: &[EncryptionKey],
    id: String,
    key: &SecretString,
) -> Result<EncryptionKey, (&'static str, String)> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if id.is_empty() || id.len() > 32 || !id.bytes().all(plain) {
        return Err(("id", "must be 1 to 32 letters, digits, dots, hyphens or _".to_owned()));
    }
    let bytes = STANDARD.decode(key.expose_secret()).map(Zeroizing::new).ok();
    let bytes = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes.as_slice()).ok());
    let Some(bytes) = bytes.map(Zeroizing::new) else {
        return Err(("key", format!("must be the base64 of 32 bytes; {REMEDY}")));
    };
    if bytes.iter().all(|byte| *byte == bytes[0]) {
        return Err(("key", format!("is one byte 32 times, and so no secret; {REMEDY}")));
    }
    // Of random keys, one in 10^13 is.
    if bytes.iter().all(|byte| (b' '..=b'~').contains(byte)) {
        return Err(("key", format!("is the base64 of a text, which can be guessed; {REMEDY}")));
    }
    if keys.iter().any(|earlier| earlier.id == id) {
        let wrong = format!("is {id:?} once more; give each key an id of its own");
        return Err(("id", wrong));
    }
    if let Some(earlier) = keys.iter().find(|earlier| *earlier.key.expose_secret() == *bytes) {
        let wrong = format!("is that of {:?} once more; remove one of the two", earlier.id);
        return Err(("key", wrong));
    }
    Ok(EncryptionKey { id, key: SecretBox::new(Box::new(*bytes)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing;

    fn base64(byte: u8) -> String {
        let mut bytes = [byte; 32];
        bytes[31] = 0;
        STANDARD.encode(bytes)
    }

    fn encryption(text: &str) -> Result<Encryption, String> {
        testing::read(text, |root| root.section("encryption").and_then(read))
    }

    fn from_file(content: &str) -> Result<Encryption, String> {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("keys"), content).expect("a file");
        let text = "encryption.keys_file = 'keys'";
        testing::read_in(folder.path(), text, |root| root.section("encryption").and_then(read))
    }

    fn told(ring: &Encryption) -> Vec<(&str, u8)> {
        ring.keys.iter().map(|key| (key.id.as_str(), key.key.expose_secret()[0])).collect()
    }

    #[test]
    fn the_order_is_kept() {
        let text = format!(
            "encryption.keys = [{{ id = 'b', key = '{}' }}, {{ id = 'a', key = '{}' }}]",
            base64(2),
            base64(1)
        );
        assert_eq!(told(&encryption(&text).expect("keys")), [("b", 2), ("a", 1)]);
    }

    #[test]
    fn a_file_has_a_key_on_each_line() {
        let content = format!("# newest first\n\n2026-11:{}\r\n old : {}\n", base64(1), base64(2));
        assert_eq!(told(&from_file(&content).expect("keys")), [("2026-11", 1), ("old", 2)]);
    }

    #[test]
    fn every_wrong_key_is_told_and_none_is_shown() {
        let (one, short) = (base64(1), STANDARD.encode([3; 31]));
        let unpadded = base64(4);
        let unpadded = unpadded.trim_end_matches('=');
        let content = format!(
            "a:{one}\na:{}\nb:{one}\nc d:{}\n{}\ne:{short}\nf:{unpadded}\n",
            base64(2),
            base64(5),
            base64(6)
        );
        assert_eq!(
            from_file(&content).expect_err("problems"),
            "\
encryption.keys_file: has no colon in line 5; write id:base64
encryption.keys_file: id of line 2 is \"a\" once more; give each key an id of its own
encryption.keys_file: key of line 3 is that of \"a\" once more; remove one of the two
encryption.keys_file: id of line 4 must be 1 to 32 letters, digits, dots, hyphens or _
encryption.keys_file: key of line 6 must be the base64 of 32 bytes; `token-broker keys new` prints a key
encryption.keys_file: key of line 7 must be the base64 of 32 bytes; `token-broker keys new` prints a key"
        );
    }

    #[test]
    fn a_ring_without_a_key_is_refused() {
        let remedy = "`token-broker keys new` prints a key";
        let refused = |read: Result<Encryption, String>| read.expect_err("problems");
        assert_eq!(refused(encryption("")), format!("encryption.keys: is required; {remedy}"));
        assert_eq!(
            refused(encryption("encryption.keys = []")),
            format!("encryption.keys: must hold a key; {remedy}")
        );
        assert_eq!(
            refused(from_file("# none yet\n")),
            format!("encryption.keys_file: must hold a key; {remedy}")
        );
        assert_eq!(
            refused(encryption("encryption = { keys = [], keys_file = 'keys' }")),
            "encryption.keys_file: is given beside keys; keep one of them"
        );
        assert_eq!(
            refused(encryption("encryption.keys = [{ idd = 'a' }]")),
            format!(
                "encryption.keys: id of item 1 is required; name the key, for example after the \
                 month\n\
                 encryption.keys: key of item 1 is required; {remedy}\n\
                 encryption.keys: idd of item 1 is unknown; did you mean id?"
            )
        );
    }
}
