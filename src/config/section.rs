//! A table of the configuration that reports every key that was not read.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::problem::{Report, Reported};
use super::value::{self, Wrong};

/// A table that is read key by key. Keys that were not read are unknown.
pub(super) struct Section<'a> {
    pub(super) report: &'a Report,
    path: String,
    /// The number of a table in a list, from 1. No key has it.
    item: Option<usize>,
    table: Table,
    known: Vec<String>,
}

/// A named table, or the report that the name has something else.
pub(super) type Named<'a> = (String, Result<Section<'a>, Reported>);

impl<'a> Section<'a> {
    /// The whole document.
    pub(super) fn root(report: &'a Report, table: Table) -> Self {
        Self { report, path: String::new(), item: None, table, known: Vec::new() }
    }

    /// Reports a problem with a key of this table.
    pub(super) fn problem(&self, key: &str, message: impl AsRef<str>) -> Reported {
        let message = message.as_ref();
        match self.item {
            Some(item) => {
                let key = join("", key);
                self.report.push(&self.path, format!("{key} of item {item} {message}"))
            }
            None => self.report.push(&join(&self.path, key), message),
        }
    }

    /// Returns `true` if a variable of the environment has set a key of this table.
    pub(super) fn is_from_environment(&self, key: &str) -> bool {
        self.report.variables.contains_key(&join(&self.path, key))
    }

    /// Records a weak setting for the posture report.
    pub(super) fn note(&self, key: &str, message: impl AsRef<str>) {
        self.report.note(&join(&self.path, key), message);
    }

    /// Reports a problem with the table itself.
    pub(super) fn problem_here(&self, message: impl AsRef<str>) -> Reported {
        self.report.push(&self.path, message)
    }

    /// A key that may be absent.
    pub(super) fn optional<T>(
        &mut self,
        key: &str,
        parse: impl FnOnce(Value) -> Result<T, Wrong>,
    ) -> Result<Option<T>, Reported> {
        self.known.push(key.to_owned());
        let value = self.table.remove(key);
        value.map(|value| parse(value).map_err(|wrong| self.problem(key, wrong))).transpose()
    }

    /// A key that has a default.
    pub(super) fn or<T>(
        &mut self,
        key: &str,
        default: T,
        parse: impl FnOnce(Value) -> Result<T, Wrong>,
    ) -> Result<T, Reported> {
        Ok(self.optional(key, parse)?.unwrap_or(default))
    }

    /// Reads a required key; `remedy` says what to write.
    pub(super) fn required<T>(
        &mut self,
        key: &str,
        remedy: &str,
        parse: impl FnOnce(Value) -> Result<T, Wrong>,
    ) -> Result<T, Reported> {
        self.optional(key, parse)?.ok_or_else(|| self.missing(key, remedy))
    }

    /// Reports that a required key is missing.
    pub(super) fn missing(&self, key: &str, remedy: &str) -> Reported {
        self.problem(key, format!("is required; {remedy}"))
    }

    /// A list of strings. Every item that `parse` refuses is reported.
    pub(super) fn list<T>(
        &mut self,
        key: &str,
        mut parse: impl FnMut(&str) -> Result<T, Wrong>,
    ) -> Result<Option<Vec<T>>, Reported> {
        let Some(texts) = self.optional(key, value::texts)? else { return Ok(None) };
        let items = texts.iter().enumerate().map(|(index, text)| {
            parse(text).map_err(|wrong| self.problem(key, format!("item {} {wrong}", index + 1)))
        });
        all(items).map(Some)
    }

    /// Reads a list that must not be empty if it is present; `remedy` says what to write.
    pub(super) fn filled_list<T>(
        &mut self,
        key: &str,
        remedy: &str,
        parse: impl FnMut(&str) -> Result<T, Wrong>,
    ) -> Result<Option<Vec<T>>, Reported> {
        match self.list(key, parse)? {
            Some(items) if items.is_empty() => {
                Err(self.problem(key, format!("must not be empty; {remedy}")))
            }
            items => Ok(items),
        }
    }

    /// Reads a required list that must not be empty; `remedy` says what to write.
    pub(super) fn required_list<T>(
        &mut self,
        key: &str,
        remedy: &str,
        parse: impl FnMut(&str) -> Result<T, Wrong>,
    ) -> Result<Vec<T>, Reported> {
        self.filled_list(key, remedy, parse)?.ok_or_else(|| self.missing(key, remedy))
    }

    /// A table that may be absent.
    pub(super) fn optional_section(&mut self, key: &str) -> Result<Option<Section<'a>>, Reported> {
        let table = self.optional(key, value::table)?;
        Ok(table.map(|table| self.inner(join(&self.path, key), None, table)))
    }

    /// Reads a table. An absent one is empty, so that its reader reports the required keys.
    pub(super) fn section(&mut self, key: &str) -> Result<Section<'a>, Reported> {
        let table = self.or(key, Table::new(), value::table)?;
        Ok(self.inner(join(&self.path, key), None, table))
    }

    /// A list of tables.
    pub(super) fn sections(&mut self, key: &str) -> Result<Option<Vec<Section<'a>>>, Reported> {
        let Some(tables) = self.optional(key, value::tables)? else { return Ok(None) };
        let path = join(&self.path, key);
        let numbered = tables.into_iter().zip(1..);
        let section = |(table, item)| self.inner(path.clone(), Some(item), table);
        Ok(Some(numbered.map(section).collect()))
    }

    /// A table of tables whose keys are names, in order of the names.
    pub(super) fn named(&mut self, key: &str) -> Result<Vec<Named<'a>>, Reported> {
        let table = self.or(key, Table::new(), value::table)?;
        let path = join(&self.path, key);
        let sorted: BTreeMap<_, _> = table.into_iter().collect();
        let named = sorted.into_iter().map(|(name, value)| {
            let path = join(&path, &name);
            let section = match value::table(value) {
                Ok(table) => Ok(self.inner(path, None, table)),
                Err(wrong) => Err(self.report.push(&path, wrong)),
            };
            (name, section)
        });
        Ok(named.collect())
    }

    fn inner(&self, path: String, item: Option<usize>, table: Table) -> Section<'a> {
        Section { report: self.report, path, item, table, known: Vec::new() }
    }

    /// The keys that were not read yet, in order.
    pub(super) fn keys(&self) -> Vec<String> {
        let mut keys: Vec<_> = self.table.keys().cloned().collect();
        keys.sort();
        keys
    }

    /// Reports keys that the contract has and this version does not enforce, because a setting without effect would be
    /// worse.
    pub(super) fn refuse(&mut self, keys: &[&str]) {
        for key in keys {
            if self.table.remove(*key).is_some() {
                self.problem(key, "is not supported by this version yet; remove it");
            }
        }
    }

    /// Reports the keys that were not read.
    pub(super) fn finish(&mut self) {
        for key in self.keys() {
            let remedy = match nearest(&key, self.known.iter().map(String::as_str)) {
                Some(known) => format!("did you mean {known}?"),
                None => format!("known here: {}", self.known.join(", ")),
            };
            self.problem(&key, format!("is unknown; {remedy}"));
        }
        self.table.clear();
    }
}

/// All items, or the report of one; unlike a plain `collect` it lets every item be looked at.
pub(super) fn all<T>(
    items: impl IntoIterator<Item = Result<T, Reported>>,
) -> Result<Vec<T>, Reported> {
    let items: Vec<_> = items.into_iter().collect();
    items.into_iter().collect()
}

/// The dotted key of `key` in the table at `path`, quoted where TOML wants it quoted.
pub(super) fn join(path: &str, key: &str) -> String {
    let bare = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let key =
        if !key.is_empty() && key.bytes().all(bare) { key.to_owned() } else { format!("{key:?}") };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

/// Returns the word that was probably meant.
pub(super) fn nearest<'w>(text: &str, words: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    let length = text.chars().count();
    // Two slips; in a short word one, or anything would be near.
    let most = if length < 4 { 1 } else { 2 };
    words
        .filter(|word| word.chars().count().abs_diff(length) <= most)
        .map(|word| (distance(text, word), word))
        .filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// The number of slips that make the one text of the other: a character put in, left out or replaced, or two
/// neighbours swapped (the optimal string alignment distance).
fn distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.chars().collect();
    let right: Vec<char> = right.chars().collect();
    let mut rows: Vec<Vec<usize>> = vec![(0..=right.len()).collect()];
    for i in 1..=left.len() {
        let mut row = vec![i];
        for j in 1..=right.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(left[i - 1] != right[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[left.len()][right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing;

    #[test]
    fn distances() {
        for (left, right, expected) in
            [("", "", 0), ("listen", "listen", 0), ("lisen", "listen", 1), ("gprc", "grpc", 1)]
        {
            assert_eq!(distance(left, right), expected, "{left} {right}");
            assert_eq!(distance(right, left), expected, "{right} {left}");
        }
        assert_eq!(distance("", "abc"), 3);
    }

    #[test]
    fn near_words_are_found() {
        let words = ["listen", "public_url"];
        assert_eq!(nearest("lisen", words.into_iter()), Some("listen"));
        assert_eq!(nearest("publicurl", words.into_iter()), Some("public_url"));
        assert_eq!(nearest("port", words.into_iter()), None);
        assert_eq!(nearest("ad", ["id"].into_iter()), Some("id"));
        assert_eq!(nearest("xx", ["id"].into_iter()), None);
    }

    #[test]
    fn keys_are_quoted_as_in_toml() {
        assert_eq!(join("", "grpc"), "grpc");
        assert_eq!(join("bots", "my-bot"), "bots.my-bot");
        assert_eq!(join("bots", "a.b"), "bots.\"a.b\"");
        assert_eq!(join("bots", ""), "bots.\"\"");
    }

    #[test]
    fn what_nobody_asked_for_is_unknown() {
        let read = testing::read("one = 1\ntow = 2\nten = 3\n'a b' = 4", |root| {
            let one = root.optional("one", value::count);
            let two = root.optional("two", value::count);
            root.finish();
            Ok((one?, two?))
        });
        assert_eq!(
            read.expect_err("problems"),
            "\"a b\": is unknown; known here: one, two\n\
             ten: is unknown; known here: one, two\n\
             tow: is unknown; did you mean two?"
        );
    }

    #[test]
    fn every_wrong_item_is_told() {
        let read = testing::read("items = ['a', 'b', 'c']", |root| {
            root.list("items", |text| if text == "b" { Ok(()) } else { Err("is wrong".to_owned()) })
        });
        assert_eq!(read.expect_err("problems"), "items: item 1 is wrong\nitems: item 3 is wrong");
    }

    #[test]
    fn a_table_in_a_list_is_numbered() {
        let read = testing::read("keys = [{ id = 'a' }, { idd = 'b' }]", |root| {
            let sections = root.sections("keys")?.unwrap_or_default();
            all(sections.into_iter().map(|mut section| {
                let id = section.required("id", "name the key", value::text);
                section.finish();
                id
            }))
        });
        assert_eq!(
            read.expect_err("problems"),
            "keys: id of item 2 is required; name the key\n\
             keys: idd of item 2 is unknown; did you mean id?"
        );
    }
}
