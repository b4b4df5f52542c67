//! The check of a request's parameters against a table.

use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex};

use regex::Regex;
use serde_json::{Map, Value};

use super::format::check_format;
use super::param::{Format, Kind, Param};
use super::property::parse_property;

/// One checked value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Arg {
    /// Booleans are "1" or "0".
    Text(String),
    List(Vec<String>),
    /// JSON null for an optional parameter: it passes the check and fails later.
    Undefined,
}

/// A request's checked parameters.
#[derive(Clone, Debug, Default)]
pub(crate) struct Args(pub(crate) BTreeMap<String, Arg>);

impl Args {
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        match self.0.get(key) {
            Some(Arg::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// A required parameter; the check has seen to it that it is there.
    pub(crate) fn text(&self, key: &str) -> &str {
        self.get(key).unwrap_or_default()
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    pub(crate) fn flag(&self, key: &str) -> bool {
        self.get(key) == Some("1")
    }

    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        self.get(key)?.parse().ok()
    }

    pub(crate) fn vmid(&self) -> u32 {
        self.number("vmid").map_or(0, |number| number as u32)
    }

    pub(crate) fn take(&mut self, key: &str) -> Option<String> {
        match self.0.remove(key) {
            Some(Arg::Text(text)) => Some(text),
            _ => None,
        }
    }
}

/// Checks `given` against `tables` as release `major` does.
///
/// # Errors
/// One text per wrong top-level parameter.
pub(crate) fn validate(
    tables: &[&[Param]],
    major: u8,
    given: &Map<String, Value>,
) -> Result<Args, BTreeMap<String, String>> {
    let table = || tables.iter().copied().flatten().filter(|param| param.since <= major);
    let mut errors = BTreeMap::new();
    let mut args = Args::default();
    for (key, value) in given {
        let Some(param) = table().find(|param| param.is(key)) else {
            errors.insert(key.clone(), NOT_DEFINED.into());
            continue;
        };
        match check_value(param, major, key, value) {
            Ok(Arg::Undefined) if !param.optional => {}
            Ok(arg) => drop(args.0.insert(key.clone(), arg)),
            Err(error) => drop(errors.insert(key.clone(), error)),
        }
    }
    for param in table() {
        let present = |name: &str| given.get(name).is_some_and(|value| !value.is_null());
        if !param.optional && param.last_index.is_none() && !present(param.name) {
            errors.entry(param.name.into()).or_insert_with(|| MISSING.into());
        }
        if let Some(other) = param.requires
            && given.contains_key(param.name)
            && !given.contains_key(other)
        {
            let text = format!("missing property - '{}' requires this property", param.name);
            errors.entry(other.into()).or_insert(text);
        }
    }
    if errors.is_empty() { Ok(args) } else { Err(errors) }
}

pub(crate) const NOT_DEFINED: &str =
    "property is not defined in schema and the schema does not allow additional properties";
const MISSING: &str = "property is missing and it is not optional";

fn check_value(param: &Param, major: u8, key: &str, value: &Value) -> Result<Arg, String> {
    if param.kind == Kind::List {
        return check_list(value);
    }
    let text = match value {
        Value::Null => return Ok(Arg::Undefined),
        Value::Bool(flag) => String::from(if *flag { "1" } else { "0" }),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Object(_) => return Err(wrong_type(param.kind, "HASH")),
        Value::Array(items) => match (param.format, joined(items)) {
            (Format::Name(name), Some(text)) if name.ends_with("-list") => text,
            _ => return Err(wrong_type(param.kind, "ARRAY")),
        },
    };
    check_text(param, major, key, &text)?;
    Ok(Arg::Text(text))
}

fn check_list(value: &Value) -> Result<Arg, String> {
    let item = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let items: Option<Vec<String>> = match value {
        Value::Array(items) => items.iter().map(item).collect(),
        // An empty value is false to the server, so it is not wrapped.
        Value::String(text) if text.is_empty() => None,
        lone => item(lone).map(|text| vec![text]),
    };
    items.map(Arg::List).ok_or_else(|| "type check ('array') failed".into())
}

fn joined(items: &[Value]) -> Option<String> {
    let texts: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
    Some(texts?.join(","))
}

fn wrong_type(kind: Kind, got: &str) -> String {
    let name = match kind {
        Kind::Text => "string",
        Kind::Integer => "integer",
        Kind::Number => "number",
        Kind::Boolean => "boolean",
        Kind::List => "array",
    };
    format!("type check ('{name}') failed - got {got}")
}

/// Checks one value's text; a key of a property string goes the same way.
fn check_text(param: &Param, major: u8, path: &str, text: &str) -> Result<(), String> {
    check_kind(param.kind, text)?;
    match param.format {
        Format::None => {}
        Format::Name(name) => {
            check_format(name, text, major).map_err(|error| format!("invalid format - {error}"))?;
        }
        Format::Keys(keys) => {
            check_keys(keys, major, path, text).map_err(|error| format!("invalid format - {error}"))?;
        }
    }
    if let Some(pattern) = param.pattern
        && !matches_pattern(pattern, text)
    {
        return Err("value does not match the regex pattern".into());
    }
    check_limits(param, text)
}

fn check_kind(kind: Kind, text: &str) -> Result<(), String> {
    let good = match kind {
        Kind::Text | Kind::List => true,
        Kind::Boolean => text == "0" || text == "1",
        Kind::Integer => text.parse::<i64>().is_ok(),
        Kind::Number => text.parse::<f64>().is_ok_and(f64::is_finite),
    };
    if good { Ok(()) } else { Err(wrong_type(kind, &format!("'{text}'"))) }
}

fn check_limits(param: &Param, text: &str) -> Result<(), String> {
    let length = text.chars().count();
    if let Some(longest) = param.longest.filter(|&longest| length > longest) {
        return Err(format!("value may only be {longest} characters long"));
    }
    if let Some(shortest) = param.shortest.filter(|&shortest| length < shortest) {
        return Err(format!("value must be at least {shortest} characters long"));
    }
    if let Ok(number) = text.parse::<f64>() {
        if let Some(maximum) = param.maximum.filter(|&maximum| number > maximum) {
            return Err(format!("value must have a maximum value of {maximum}"));
        }
        if let Some(minimum) = param.minimum.filter(|&minimum| number < minimum) {
            return Err(format!("value must have a minimum value of {minimum}"));
        }
    }
    if !param.choices.is_empty() && !param.choices.contains(&text) {
        let all = param.choices.join(", ");
        return Err(format!("value '{text}' does not have a value in the enumeration '{all}'"));
    }
    Ok(())
}

/// Checks a property string; the text lists every wrong key below the name of the parameter.
pub(crate) fn check_keys(keys: &[Param], major: u8, path: &str, text: &str) -> Result<(), String> {
    let values = parse_property(keys, text)?;
    let mut errors = String::new();
    let mut add = |key: &str, error: &str| {
        errors.extend([path, ".", key, ": ", error, "\n"]);
    };
    for (key, value) in &values {
        match keys.iter().find(|known| known.since <= major && known.name == key) {
            None => add(key, NOT_DEFINED),
            Some(known) => {
                if let Err(error) = check_text(known, major, &format!("{path}.{key}"), value) {
                    add(key, &error);
                }
                if let Some(other) = known.requires.filter(|other| !values.contains_key(*other)) {
                    add(other, &format!("missing property - '{path}.{key}' requires this property"));
                }
            }
        }
    }
    for known in keys.iter().filter(|known| !known.optional && !values.contains_key(known.name)) {
        add(known.name, MISSING);
    }
    if errors.is_empty() { Ok(()) } else { Err(format!("format error\n{errors}")) }
}

/// Matches as the server does: `/^PATTERN$/`, where `$` tolerates one trailing newline.
pub(crate) fn matches_pattern(pattern: &'static str, text: &str) -> bool {
    static COMPILED: LazyLock<Mutex<BTreeMap<&'static str, Regex>>> = LazyLock::new(Mutex::default);
    let mut compiled = COMPILED.lock().expect("no pattern panics");
    let regex = compiled
        .entry(pattern)
        .or_insert_with(|| Regex::new(&format!("^{pattern}\n?$")).expect("the table's patterns are correct"));
    regex.is_match(text)
}
