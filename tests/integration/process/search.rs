//! Looks for secrets among bytes, in every form in which careless code writes them.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD, Engine};

/// A shorter secret would be found by chance. Every form of a secret is at least as long.
const SHORTEST: usize = 8;

/// Secrets to look for, all in one pass, for a log may be long.
#[derive(Default)]
pub struct Needles {
    /// Each secret and the form of it, and its bytes, by how they start.
    by_start: HashMap<[u8; SHORTEST], Vec<(String, Vec<u8>)>>,
}

impl Needles {
    /// `what` says which secret it is, for the message of a test that fails.
    pub fn add(&mut self, what: &str, secret: &str) {
        let mut forms = forms(secret.as_bytes());
        forms.push(("form-encoded", form_encoded(secret).into_bytes()));
        forms.push(("Debug", secret.escape_debug().to_string().into_bytes()));
        // What is the text of bytes must not be there as bytes either.
        let decoded = hex::decode(secret).ok().or_else(|| {
            [&BASE64_URL_SAFE_NO_PAD, &BASE64_STANDARD_NO_PAD]
                .iter()
                .find_map(|engine| engine.decode(secret.trim_end_matches('=')).ok())
        });
        if let Some(bytes) = decoded.filter(|bytes| bytes.len() >= SHORTEST) {
            forms.extend(self::forms(&bytes));
        }
        for (form, bytes) in forms {
            let start = *bytes.first_chunk().expect("no form is shorter");
            let alike = self.by_start.entry(start).or_default();
            // Most secrets look the same in several forms.
            if alike.iter().all(|(_, other)| *other != bytes) {
                alike.push((format!("{what} ({form})"), bytes));
            }
        }
    }

    /// Which of the secrets are there, and in which form.
    pub fn found_in(&self, haystack: &[u8]) -> BTreeSet<&str> {
        let mut found = BTreeSet::new();
        for (at, start) in haystack.windows(SHORTEST).enumerate() {
            for (what, bytes) in self.by_start.get(start).into_iter().flatten() {
                if haystack[at..].starts_with(bytes) {
                    found.insert(what.as_str());
                }
            }
        }
        found
    }

    /// Panics where a secret is in the haystack, without its value.
    pub fn assert_absent(&self, place: &str, haystack: &[u8]) {
        let found = self.found_in(haystack);
        assert!(found.is_empty(), "in {place} there is: {found:?}");
    }
}

/// The bytes of every file whose name starts with `start`, by name.
pub fn read_files(folder: &Path, start: &str) -> Vec<(String, Vec<u8>)> {
    let names = super::site::files(folder).into_iter().filter(|name| name.starts_with(start));
    names
        .map(|name| {
            let bytes = std::fs::read(folder.join(&name)).expect("a file");
            (name, bytes)
        })
        .collect()
}

fn forms(secret: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    assert!(secret.len() >= SHORTEST, "{} bytes are too few to look for", secret.len());
    let lower = hex::encode(secret);
    let decimal: Vec<_> = secret.iter().map(u8::to_string).collect();
    let mut forms = vec![
        ("clear", secret.to_vec()),
        ("hex", lower.clone().into_bytes()),
        ("upper-case hex", lower.to_uppercase().into_bytes()),
        ("Debug of bytes", decimal.join(", ").into_bytes()),
        ("JSON of bytes", decimal.join(",").into_bytes()),
        ("reversed", secret.iter().rev().copied().collect()),
    ];
    // Within a longer text that was encoded, a secret begins at any of three places in a group.
    for before in 0..3 {
        for (form, engine) in
            [("base64", &BASE64_STANDARD_NO_PAD), ("base64url", &BASE64_URL_SAFE_NO_PAD)]
        {
            let text = engine.encode([&vec![0; before][..], secret].concat());
            // The characters at both ends also depend on what stands beside the secret.
            let (start, end) = ([0, 2, 3][before], (before + secret.len()) / 3 * 4);
            forms.push((form, text.as_bytes()[start..end].to_vec()));
        }
    }
    forms
}

fn form_encoded(secret: &str) -> String {
    url::form_urlencoded::byte_serialize(secret.as_bytes()).collect()
}
