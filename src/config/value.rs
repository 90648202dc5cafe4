//! Readers of single values. Each says what to write where a value is of another type; none ever
//! quotes the value, which may be a secret under the wrong key.

use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::{Table, Value};

use super::placeholder;

/// A problem of a value, written after its key: "must be …; write …".
pub(super) type Wrong = String;

pub(super) fn wrong_type(expected: &str, value: &Value) -> Wrong {
    format!("must be {expected}, not {}", kind(value))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a string",
        Value::Integer(_) => "an integer",
        Value::Float(_) => "a float",
        Value::Boolean(_) => "a boolean",
        Value::Datetime(_) => "a date or time",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

pub(super) fn text(value: Value) -> Result<String, Wrong> {
    match value {
        // As in the example that an operator starts from.
        Value::String(text) if placeholder::is_blank(&text) => {
            Err("is a placeholder; fill it in".to_owned())
        }
        Value::String(text) => Ok(text),
        other => Err(wrong_type("a string", &other)),
    }
}

/// A text with something in it.
pub(super) fn filled(value: Value) -> Result<String, Wrong> {
    let text = text(value)?;
    if text.trim().is_empty() {
        return Err("must not be empty".to_owned());
    }
    Ok(text)
}

pub(super) fn boolean(value: Value) -> Result<bool, Wrong> {
    match value {
        Value::Boolean(truth) => Ok(truth),
        other => Err(wrong_type("true or false", &other)),
    }
}

pub(super) fn count(value: Value) -> Result<NonZeroU32, Wrong> {
    let Value::Integer(number) = value else { return Err(wrong_type("a whole number", &value)) };
    u32::try_from(number)
        .ok()
        .and_then(NonZeroU32::new)
        .ok_or_else(|| format!("must be a whole number from 1 to {}", u32::MAX))
}

pub(super) fn table(value: Value) -> Result<Table, Wrong> {
    match value {
        Value::Table(table) => Ok(table),
        other => Err(wrong_type("a table", &other)),
    }
}

pub(super) fn texts(value: Value) -> Result<Vec<String>, Wrong> {
    items(value, "a list of strings", text)
}

pub(super) fn tables(value: Value) -> Result<Vec<Table>, Wrong> {
    items(value, "a list of tables", table)
}

fn items<T>(
    value: Value,
    expected: &str,
    item: impl Fn(Value) -> Result<T, Wrong>,
) -> Result<Vec<T>, Wrong> {
    let Value::Array(values) = value else { return Err(wrong_type(expected, &value)) };
    let numbered = values.into_iter().enumerate();
    numbered
        .map(|(index, value)| item(value).map_err(|wrong| format!("item {} {wrong}", index + 1)))
        .collect()
}

/// A text that `parse` understands.
pub(super) fn parsed<T>(
    parse: impl FnOnce(&str) -> Result<T, Wrong>,
) -> impl FnOnce(Value) -> Result<T, Wrong> {
    move |value| parse(&text(value)?)
}

/// One of some words.
pub(super) fn choice<T: Copy>(options: &[(&str, T)]) -> impl FnOnce(Value) -> Result<T, Wrong> {
    move |value| {
        let text = text(value)?;
        let chosen = options.iter().find(|(word, _)| *word == text);
        chosen.map(|(_, choice)| *choice).ok_or_else(|| {
            let words: Vec<_> = options.iter().map(|(word, _)| format!("{word:?}")).collect();
            format!("must be {}", words.join(" or "))
        })
    }
}

/// A time span such as "10m".
pub(super) fn duration(
    range: RangeInclusive<Duration>,
) -> impl FnOnce(Value) -> Result<Duration, Wrong> {
    move |value| {
        let Value::String(text) = value else {
            return Err(wrong_type("a duration such as \"5m\"", &value));
        };
        let duration = humantime::parse_duration(&text).ok();
        duration.filter(|duration| range.contains(duration)).ok_or_else(|| {
            let usual = Duration::from_secs(5 * 60);
            let such = usual.clamp(*range.start(), *range.end());
            let [least, most, such] =
                [*range.start(), *range.end(), such].map(humantime::format_duration);
            format!("must be a duration from {least} to {most}, such as \"{such}\"")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Value {
        let table: Table = format!("x = {text}").parse().expect("TOML");
        table["x"].clone()
    }

    #[test]
    fn other_types_are_named_and_not_quoted() {
        assert_eq!(
            text(value("1979-05-27T07:32:00Z")),
            Err("must be a string, not a date or time".to_owned())
        );
        assert_eq!(boolean(value("1")), Err("must be true or false, not an integer".to_owned()));
        assert_eq!(count(value("'1'")), Err("must be a whole number, not a string".to_owned()));
        assert_eq!(
            texts(value("['a', 1.0]")),
            Err("item 2 must be a string, not a float".to_owned())
        );
        assert_eq!(
            tables(value("true")).err().as_deref(),
            Some("must be a list of tables, not a boolean")
        );
    }

    #[test]
    fn counts_have_bounds() {
        assert_eq!(count(value("10")).map(NonZeroU32::get), Ok(10));
        for text in ["0", "-1", "4294967296"] {
            assert!(count(value(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_have_bounds() {
        let read = |text| duration(Duration::from_secs(10)..=Duration::from_secs(86_400))(text);
        assert_eq!(read(value("'10m'")), Ok(Duration::from_secs(600)));
        assert_eq!(read(value("'24h'")), Ok(Duration::from_secs(86_400)));
        let wrong = Err("must be a duration from 10s to 1day, such as \"5m\"".to_owned());
        for text in ["'9s'", "'25h'", "'soon'", "''", "'9999999999999999999y'"] {
            assert_eq!(read(value(text)), wrong, "{text}");
        }
        assert_eq!(
            read(value("600")),
            Err("must be a duration such as \"5m\", not an integer".to_owned())
        );
    }

    #[test]
    fn a_choice_lists_its_words() {
        let read = |text| choice(&[("json", 1), ("text", 2)])(text);
        assert_eq!(read(value("'text'")), Ok(2));
        assert_eq!(read(value("'xml'")), Err("must be \"json\" or \"text\"".to_owned()));
    }
}
