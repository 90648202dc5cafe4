//! The identity of a user at a provider.

use serde_json::{Map, Value};

/// The identity of a user at a provider. The parts that the provider does not give are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// The name to show. Empty where it is not known. Not proof of anything: providers let users
    /// choose their names, and some do not check the email.
    pub name: String,
    /// `sub` of a checked ID token, which the provider never gives to another user (OpenID Connect
    /// Core section 2).
    pub sub: Option<String>,
}

/// The usual places of a name: OpenID Connect Core section 5.1, and the user API of GitHub and its like.
const USUAL: [&str; 5] = ["/email", "/preferred_username", "/login", "/name", "/username"];

/// The longest name that is kept, in bytes.
const MAX_NAME: usize = 255;

/// The name to show for the user that a provider describes so: where `pointer` says, or wherever
/// it is usual. Returns `None` if there is none.
#[must_use]
pub fn name_in(claims: &Map<String, Value>, pointer: Option<&str>) -> Option<String> {
    let at = |pointer: &str| {
        let mut steps = pointer.strip_prefix('/')?.split('/').map(|step| {
            // In this order (RFC 6901 section 4).
            step.replace("~1", "/").replace("~0", "~")
        });
        let first = claims.get(&steps.next()?)?;
        let found = steps.try_fold(first, |value, step| match value {
            Value::Object(fields) => fields.get(&step),
            Value::Array(items) => items.get(step.parse::<usize>().ok()?),
            _ => None,
        })?;
        let text = match found {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => return None,
        };
        clean(&text)
    };
    match pointer {
        Some(pointer) => at(pointer),
        None => USUAL.into_iter().find_map(at),
    }
}

/// Without control characters, at most [`MAX_NAME`] bytes. Returns `None` if nothing is left.
fn clean(text: &str) -> Option<String> {
    let mut name: String = text.chars().filter(|c| !c.is_control()).collect();
    let end = (0..=MAX_NAME.min(name.len())).rev().find(|end| name.is_char_boundary(*end));
    name.truncate(end.unwrap_or(0));
    let name = name.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(json: &str, pointer: Option<&str>) -> Option<String> {
        name_in(&serde_json::from_str(json).expect("an object"), pointer)
    }

    #[test]
    fn the_usual_places() {
        let both = r#"{"sub":"1","name":"Ada","email":"ada@example.com"}"#;
        assert_eq!(name(both, None).as_deref(), Some("ada@example.com"));
        assert_eq!(name(r#"{"id":1,"login":"ada"}"#, None).as_deref(), Some("ada"));
        assert_eq!(name(r#"{"sub":"1","email":"","name":null}"#, None), None);
    }

    #[test]
    fn a_place_of_its_own() {
        let nested = r#"{"email":"x","data":{"users":[{"a/b":"Ada\n"}],"id":7}}"#;
        assert_eq!(name(nested, Some("/data/users/0/a~1b")).as_deref(), Some("Ada"));
        assert_eq!(name(nested, Some("/data/id")).as_deref(), Some("7"));
        // Not another one instead.
        for pointer in ["/nobody", "/data", "/data/users/x", "", "/"] {
            assert_eq!(name(nested, Some(pointer)), None, "{pointer}");
        }
    }

    #[test]
    fn a_long_name_is_cut_between_characters() {
        let long = format!(r#"{{"name":"{}"}}"#, "ä".repeat(200));
        assert_eq!(name(&long, None).map(|name| name.len()), Some(254));
    }
}
