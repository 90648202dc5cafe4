//! `docs/configuration.md` held against the code.

use std::collections::BTreeSet;
use std::path::Path;

use toml::{Table, Value};

use super::Config;

const DOCS: &str = include_str!("../../docs/configuration.md");
const MINIMAL: &str = include_str!("../../tests/fixtures/config-minimal.toml");

/// Placeholders for a name in the documentation, and for an item of a list in a path.
const PROVIDER: &str = "acme";
const BOT: &str = "helper";
const ITEM: &str = "[]";

/// A row of a table.
struct Row {
    /// The table of the configuration that the key is in: `bots`, `helper`, `rate`.
    table: Vec<String>,
    key: String,
    default: String,
    example: String,
}

fn rows() -> Vec<Row> {
    let mut section: Vec<String> = Vec::new();
    let mut table: Vec<String> = Vec::new();
    let mut rows = Vec::new();
    for line in DOCS.lines() {
        if let Some(heading) = line.strip_prefix("## `[") {
            let name = heading.split(']').next().expect("a name");
            let name = name.replace("providers.NAME", &format!("providers.{PROVIDER}"));
            let name = name.replace("bots.NAME", &format!("bots.{BOT}"));
            section = name.split('.').map(str::to_owned).collect();
            table.clone_from(&section);
        } else if let Some(inner) = line.strip_prefix("Each of `") {
            table = section.clone();
            table.extend([inner.trim_end_matches("`:").to_owned(), ITEM.to_owned()]);
        } else if let Some(inner) = line.strip_prefix("In `") {
            table = section.clone();
            table.push(inner.trim_end_matches("`:").to_owned());
        } else if let Some(row) = line.strip_prefix("| `") {
            let cells: Vec<_> = row.splitn(4, " | ").collect();
            let [key, default, example, meaning] = cells[..] else { panic!("{line}") };
            assert!(meaning.ends_with(" |") && meaning.len() > 4, "{line}");
            rows.push(Row {
                table: table.clone(),
                key: key.trim_end_matches('`').to_owned(),
                default: default.to_owned(),
                example: example.trim_matches('`').to_owned(),
            });
        }
    }
    rows
}

/// A value as TOML has it. Absent for words such as "required".
fn value(text: &str) -> Option<Value> {
    let quoted = text.strip_prefix('`')?.strip_suffix('`')?;
    let table: Table = format!("x = {quoted}").parse().unwrap_or_else(|e| panic!("{text}: {e}"));
    Some(table["x"].clone())
}

/// The table that a row's key is in, within a whole configuration.
fn place<'a>(config: &'a mut Table, path: &[String]) -> &'a mut Table {
    path.iter().fold(config, |table, name| {
        if name == ITEM {
            return table;
        }
        let entry = table.entry(name).or_insert_with(|| Value::Table(Table::new()));
        match entry {
            Value::Table(table) => table,
            Value::Array(items) => items[0].as_table_mut().expect("a table"),
            other => panic!("{name} is {other}"),
        }
    })
}

/// The least configuration with one key set.
fn with(row: &Row, value: Value) -> Table {
    let mut config: Table = MINIMAL.parse().expect("TOML");
    let table = place(&mut config, &row.table);
    // Of a secret, its file replaces it.
    if let Some(secret) = row.key.strip_suffix("_file") {
        table.remove(secret);
    }
    // A public client has no secret, and a rate has both of its keys.
    if row.key == "per_second" || row.key == "burst" {
        table.insert("per_second".to_owned(), Value::Integer(7));
        table.insert("burst".to_owned(), Value::Integer(7));
    }
    // A listener's TLS has both of its files.
    if row.table.last().is_some_and(|last| last == "tls") {
        for file in ["certificate_file", "key_file"] {
            table.insert(file.to_owned(), Value::String(file.to_owned()));
        }
    }
    table.insert(row.key.clone(), value);
    config
}

fn parse(config: &Table, folder: &Path) -> Result<Config, String> {
    Config::parse(&config.to_string(), folder, std::iter::empty()).map_err(|e| e.to_string())
}

#[test]
fn every_example_is_taken() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let key = "XiNvYq6hXRB9QS0pK4sIr2GjAbt5tAa3YR0IUbpO7zQ=";
    for (name, content) in [
        ("database-url", "sqlite://token-broker.db".to_owned()),
        ("listen-url", "postgres://broker@db/broker".to_owned()),
        ("keyring", format!("2026-11:{key}\n")),
        ("encryption-key", key.to_owned()),
        ("client-secret", "a secret".to_owned()),
    ] {
        std::fs::write(folder.path().join(name), content).expect("a file");
    }
    for row in rows() {
        // Real ones would be copied.
        let example = row.example.replace("<token-broker keys new>", key);
        let example = example.replace("<token-broker api-key new>", &"ab".repeat(32));
        let example = example.replace("<from the provider>", "a secret");
        let example = value(&format!("`{example}`")).expect("an example");
        let parsed = parse(&with(&row, example), folder.path());
        parsed.unwrap_or_else(|wrong| panic!("{}.{}: {wrong}", row.table.join("."), row.key));
    }
}

#[test]
fn every_default_is_the_one_that_is_used() {
    let mut least: Table = MINIMAL.parse().expect("TOML");
    let expected = format!("{:?}", parse(&least, Path::new("")).expect("a configuration"));
    for row in rows() {
        let name = format!("{}.{}", row.table.join("."), row.key);
        if let Some(default) = value(&row.default) {
            let parsed = parse(&with(&row, default), Path::new("")).expect("a configuration");
            assert_eq!(format!("{parsed:?}"), expected, "{name}");
        }
        if row.default == "required" {
            let mut config = least.clone();
            let removed = place(&mut config, &row.table).remove(&row.key);
            // A rate is present or absent as a whole.
            let wrong = parse(&config, Path::new("")).err().unwrap_or_default();
            assert!(wrong.contains("is required") || removed.is_none(), "{name}: {wrong}");
        }
    }
    // What the comparison rests on: another value would be seen.
    place(&mut least, &["ops".to_owned()]).insert("listen".to_owned(), "127.0.0.1:1".into());
    assert_ne!(format!("{:?}", parse(&least, Path::new("")).expect("one")), expected);
}

/// An unknown key is answered with those that are known.
#[test]
fn no_key_is_missing() {
    const UNKNOWN: &str = "zzzzzzzz";

    let mut config: Table = MINIMAL.parse().expect("TOML");
    let documented: BTreeSet<_> =
        rows().iter().map(|row| format!("{}.{}", row.table.join("."), row.key)).collect();
    let tables: BTreeSet<_> = rows().into_iter().map(|row| row.table).collect();
    for table in &tables {
        place(&mut config, table).insert(UNKNOWN.to_owned(), true.into());
    }
    config.insert(UNKNOWN.to_owned(), true.into());
    let told = parse(&config, Path::new("")).expect_err("problems");
    let mut known = BTreeSet::new();
    let mut sections = BTreeSet::new();
    for line in told.lines().filter(|line| line.contains(UNKNOWN)) {
        let (place, keys) = line.split_once(" is unknown; known here: ").expect("what is known");
        let place = place.replace(&format!(": {UNKNOWN} of item 1"), &format!(".{ITEM}"));
        let place = place.trim_end_matches(':').trim_end_matches(UNKNOWN).trim_end_matches('.');
        for key in keys.split(", ") {
            match place {
                "" => sections.insert(key.to_owned()),
                place => known.insert(format!("{place}.{key}")),
            };
        }
    }
    assert_eq!(known, documented);
    let headed: BTreeSet<_> = tables.into_iter().map(|table| table[0].clone()).collect();
    assert_eq!(sections, headed);
}
