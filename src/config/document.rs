//! The TOML tree and the environment that lies over it.

use std::collections::BTreeMap;
use std::path::Path;

use toml::{Table, Value};

use super::problem::{Problem, Report};
use super::section::join;
use super::value::Wrong;

/// The prefix of the configuration's variables. Kubernetes sets `TOKEN_BROKER_PORT` and the like for a service of that
/// name, which the second underscore keeps out.
const PREFIX: &str = "TOKEN_BROKER__";

/// The most levels that a key has: `bots.helper.rate.burst`.
const DEEPEST: usize = 4;

/// Keys whose variable is read as a boolean.
const BOOLEANS: [&str; 2] = ["bots.*.device_flow", "database.migrate"];

/// Keys whose variable is read as an integer.
const INTEGERS: [&str; 5] = [
    "bots.*.rate.burst",
    "bots.*.rate.per_second",
    "cache.max_entries",
    "database.max_connections",
    "grpc.max_concurrent_calls",
];

/// Keys that only the file can set.
const LISTS: [&str; 10] = [
    "bots.*.api_keys_sha256",
    "bots.*.methods",
    "bots.*.providers",
    "bots.*.return_urls",
    "bots.*.scopes.*",
    "bots.*.subjects",
    "egress.allowed_networks",
    "encryption.keys",
    "providers.*.flows",
    "providers.*.scopes",
];

/// Secrets and the last part of the other key that gives the same one.
const SECRETS: [(&str, &str); 8] = [
    ("database.url", "url_file"),
    ("database.url_file", "url"),
    ("database.listen_url", "listen_url_file"),
    ("database.listen_url_file", "listen_url"),
    ("encryption.keys", "keys_file"),
    ("encryption.keys_file", "keys"),
    ("providers.*.client_secret", "client_secret_file"),
    ("providers.*.client_secret_file", "client_secret"),
];

/// Tables whose keys are names rather than words of the configuration.
const NAMED: [&str; 2] = ["bots", "providers"];

struct Overlay {
    table: Table,
    report: Report,
}

/// Parses the text and lays the environment over it. Faults of single variables are in the report.
///
/// # Errors
///
/// The place where the text is no TOML.
pub(super) fn read(
    text: &str,
    folder: &Path,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<(Table, Report), Problem> {
    let table = text.parse().map_err(|error| syntax(text, &error))?;
    let mut overlay = Overlay { table, report: Report::new(folder) };
    // Sorted, so that problems are reported in the same order each time.
    let variables: BTreeMap<_, _> =
        environment.filter(|(variable, _)| variable.starts_with(PREFIX)).collect();
    for (variable, text) in variables {
        overlay.lay(&variable, text);
    }
    Ok((overlay.table, overlay.report))
}

/// The error's own text quotes the line of the file, where a secret may stand. Its message alone
/// speaks of the grammar and of keys.
fn syntax(text: &str, error: &toml::de::Error) -> Problem {
    let place = error.span().map_or_else(
        || "the text".to_owned(),
        |span| {
            let before = &text.as_bytes()[..span.start.min(text.len())];
            let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
            let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            let column = String::from_utf8_lossy(&before[start..]).chars().count() + 1;
            format!("line {line}, column {column}")
        },
    );
    Problem::new("configuration", format!("{place} is no valid TOML; {}", error.message()))
}

impl Overlay {
    fn lay(&mut self, variable: &str, text: String) {
        let levels: Vec<&str> = variable[PREFIX.len()..].split("__").collect();
        let plain = |level: &&str| {
            let mut bytes = level.bytes();
            !level.is_empty() && bytes.all(|b| matches!(b, b'A'..=b'Z' | b'0'..=b'9' | b'_'))
        };
        if levels.len() > DEEPEST || !levels.iter().all(plain) {
            let remedy = "write the key in upper case with __ between levels and _ for -";
            self.report.push(&join("", variable), format!("names no key; {remedy}"));
            return;
        }
        let path = self.resolve(&levels);
        if let Err(wrong) = scalar(&path, text).and_then(|value| self.set(&path, value, variable)) {
            self.report.push(&dotted(&path), format!("{wrong} (set by {variable})"));
        }
    }

    /// The key that the levels of a variable mean: the file's own spelling where it has the key.
    fn resolve(&self, levels: &[&str]) -> Vec<String> {
        let mut table = Some(&self.table);
        let mut path: Vec<String> = Vec::new();
        for level in levels {
            let spelled = table.and_then(|table| table.keys().find(|key| spelling(key) == *level));
            let name = match spelled {
                Some(key) => key.clone(),
                None if path.len() == 1 && NAMED.contains(&path[0].as_str()) => {
                    level.to_ascii_lowercase().replace('_', "-")
                }
                None => level.to_ascii_lowercase(),
            };
            table = table.and_then(|table| table.get(&name)).and_then(Value::as_table);
            path.push(name);
        }
        path
    }

    fn set(&mut self, path: &[String], value: Value, variable: &str) -> Result<(), Wrong> {
        let Some((last, parents)) = path.split_last() else { return Ok(()) };
        let mut table = &mut self.table;
        for (depth, name) in parents.iter().enumerate() {
            if !table.contains_key(name) {
                // An unknown table is reported like an unknown key, with the variable that made it.
                self.report.variables.insert(dotted(&path[..=depth]), variable.to_owned());
            }
            let inner = table.entry(name.as_str()).or_insert_with(|| Value::Table(Table::new()));
            let Value::Table(inner) = inner else {
                let parent = dotted(&path[..=depth]);
                return Err(format!("is no key, since {parent} is no table; unset the variable"));
            };
            table = inner;
        }
        if table.get(last).is_some_and(Value::is_table) {
            return Err("is a table; name one of its keys in the variable".to_owned());
        }
        let other = SECRETS.iter().find(|(pattern, _)| matches(pattern, path));
        if let Some((_, other)) = other {
            let key = join(&dotted(parents), other);
            // If the environment has both, both stay, and the reader reports them.
            if !self.report.variables.contains_key(&key) {
                table.remove(*other);
            }
        }
        table.insert(last.clone(), value);
        self.report.variables.insert(dotted(path), variable.to_owned());
        Ok(())
    }
}

fn scalar(path: &[String], text: String) -> Result<Value, Wrong> {
    let any = |patterns: &[&str]| patterns.iter().any(|pattern| matches(pattern, path));
    if any(&LISTS) {
        return Err("is a list, which no variable can set; write it in the file".to_owned());
    }
    if any(&BOOLEANS) {
        let value = text.parse().map(Value::Boolean);
        return value.map_err(|_| "must be true or false".to_owned());
    }
    if any(&INTEGERS) {
        let value = text.parse().map(Value::Integer);
        return value.map_err(|_| "must be a whole number".to_owned());
    }
    Ok(Value::String(text))
}

fn matches(pattern: &str, path: &[String]) -> bool {
    let mut parts = pattern.split('.');
    path.iter().all(|name| parts.next().is_some_and(|part| part == "*" || part == name))
        && parts.next().is_none()
}

fn spelling(key: &str) -> String {
    key.to_ascii_uppercase().replace('-', "_")
}

fn dotted(path: &[String]) -> String {
    path.iter().fold(String::new(), |path, key| join(&path, key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::problem::Problems;

    fn overlaid(text: &str, variables: &[(&str, &str)]) -> (Table, String) {
        let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let (table, report) = read(text, Path::new(""), variables).expect("TOML");
        (table, Problems::new(report.into_problems()).to_string())
    }

    fn expect(text: &str, variables: &[(&str, &str)], expected: &str) {
        let expected: Table = expected.parse().expect("TOML");
        assert_eq!(overlaid(text, variables), (expected, String::new()));
    }

    fn complaint(text: &str, variable: &str, value: &str) -> String {
        overlaid(text, &[(variable, value)]).1
    }

    #[test]
    fn a_name_is_matched_as_the_file_spells_it() {
        expect(
            "[providers.microsoft-entra]\nclient_id = 'a'",
            &[("TOKEN_BROKER__PROVIDERS__MICROSOFT_ENTRA__CLIENT_SECRET", "s")],
            "[providers.microsoft-entra]\nclient_id = 'a'\nclient_secret = 's'",
        );
    }

    #[test]
    fn what_the_file_lacks_is_made() {
        expect(
            "",
            &[
                ("TOKEN_BROKER__BOTS__MY_BOT__NAMESPACE", "shared"),
                ("TOKEN_BROKER__BOTS__MY_BOT__RATE__BURST", "3"),
                ("TOKEN_BROKER__DATABASE__MAX_CONNECTIONS", "7"),
                ("TOKEN_BROKER__DATABASE__MIGRATE", "false"),
                ("TOKEN_BROKER__HTTP__PUBLIC_URL", "https://a.example"),
            ],
            "bots.my-bot = { namespace = 'shared', rate.burst = 3 }\n\
             database = { max_connections = 7, migrate = false }\n\
             http.public_url = 'https://a.example'",
        );
    }

    #[test]
    fn other_variables_are_left_alone() {
        expect("", &[("TOKEN_BROKER_PORT", "tcp://10.0.0.1"), ("RUST_LOG", "debug")], "");
    }

    #[test]
    fn either_key_of_a_secret_replaces_both_of_the_file() {
        expect(
            "database.url_file = '/run/url'",
            &[("TOKEN_BROKER__DATABASE__URL", "sqlite://a.db")],
            "database.url = 'sqlite://a.db'",
        );
        expect(
            "encryption.keys = []",
            &[("TOKEN_BROKER__ENCRYPTION__KEYS_FILE", "/run/keys")],
            "encryption.keys_file = '/run/keys'",
        );
        expect(
            "providers.a = { client_secret = 'x', client_secret_file = 'y' }",
            &[("TOKEN_BROKER__PROVIDERS__A__CLIENT_SECRET_FILE", "z")],
            "providers.a.client_secret_file = 'z'",
        );
        // Two in the environment stay two.
        expect(
            "database.url = 'sqlite://a.db'",
            &[("TOKEN_BROKER__DATABASE__URL", "u"), ("TOKEN_BROKER__DATABASE__URL_FILE", "f")],
            "database = { url = 'u', url_file = 'f' }",
        );
    }

    #[test]
    fn variables_that_cannot_be_laid_over_are_told() {
        assert_eq!(
            complaint("", "TOKEN_BROKER__DATABASE__MIGRATE", "yes"),
            "database.migrate: must be true or false (set by TOKEN_BROKER__DATABASE__MIGRATE)"
        );
        assert_eq!(
            complaint("", "TOKEN_BROKER__DATABASE__MAX_CONNECTIONS", "ten"),
            "database.max_connections: must be a whole number \
             (set by TOKEN_BROKER__DATABASE__MAX_CONNECTIONS)"
        );
        assert_eq!(
            complaint("", "TOKEN_BROKER__BOTS__A__PROVIDERS", "[]"),
            "bots.a.providers: is a list, which no variable can set; write it in the file \
             (set by TOKEN_BROKER__BOTS__A__PROVIDERS)"
        );
        assert_eq!(
            complaint("[grpc]", "TOKEN_BROKER__GRPC", "x"),
            "grpc: is a table; name one of its keys in the variable (set by TOKEN_BROKER__GRPC)"
        );
        assert_eq!(
            complaint("grpc.listen = 'x'", "TOKEN_BROKER__GRPC__LISTEN__PORT", "1"),
            "grpc.listen.port: is no key, since grpc.listen is no table; unset the variable \
             (set by TOKEN_BROKER__GRPC__LISTEN__PORT)"
        );
        for variable in [
            "TOKEN_BROKER__",
            "TOKEN_BROKER__GRPC____LISTEN",
            "TOKEN_BROKER__grpc__listen",
            "TOKEN_BROKER__A__B__C__D__E",
        ] {
            assert_eq!(
                complaint("", variable, "x"),
                format!(
                    "{variable}: names no key; write the key in upper case with __ between \
                     levels and _ for -"
                )
            );
        }
    }

    #[test]
    fn a_syntax_error_tells_the_place_but_not_the_line() {
        let text = "[providers.acme]\nclient_secret = hunter2";
        let problem = read(text, Path::new(""), std::iter::empty()).err().expect("no TOML");
        let text = problem.to_string();
        assert!(text.starts_with("configuration: line 2, column 17 is no valid TOML; "), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}
