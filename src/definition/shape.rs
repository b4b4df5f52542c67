//! The shape of a file: the JSON Schema of [`super::model`]'s structs, made fit for checking a
//! spanned tree, and the check itself.

use std::sync::{LazyLock, OnceLock};

use regex::Regex;
use serde_json::Value as Json;

use super::diagnostics::{Finding, Findings, did_you_mean, one_of};
use super::model::{Control, Definition, Profile, Timeout};
use super::tree::{Entry, Node, Value};

/// What a value must look like.
#[derive(Debug)]
pub(crate) enum Shape {
    Any,
    Bool,
    Integer { min: i64, max: i64 },
    Text(Option<Pattern>),
    Timeout,
    OneOf(Vec<String>),
    List(Box<Shape>),
    Map(Box<Shape>),
    Table(Vec<Field>),
}

/// What the name of a key has that somebody takes for the place of a secret.
const SECRET: [&str; 4] = ["token", "password", "secret", "passphrase"];

/// The keys whose text is a script.
const MAY_HAVE_LINES: [&str; 3] = ["inline", "run", "script"];

/// A regular expression, compiled when it is first needed.
#[derive(Debug)]
pub(crate) struct Pattern {
    source: String,
    compiled: OnceLock<Regex>,
}

impl Pattern {
    fn matches(&self, text: &str) -> bool {
        self.compiled
            .get_or_init(|| Regex::new(&self.source).expect("the model's patterns compile"))
            .is_match(text)
    }
}

/// A key of a table.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) shape: Shape,
    required: bool,
    /// What it is, in the words of the struct's documentation.
    doc: String,
}

/// The shape of `template.toml`.
pub(crate) static DEFINITION: LazyLock<Shape> =
    LazyLock::new(|| Shape::of(&schemars::schema_for!(Definition).to_value()));

/// The shape of a builder profile.
pub(crate) static PROFILE: LazyLock<Shape> =
    LazyLock::new(|| Shape::of(&schemars::schema_for!(Profile).to_value()));

/// The shape of a hardening control.
pub(crate) static CONTROL: LazyLock<Shape> =
    LazyLock::new(|| Shape::of(&schemars::schema_for!(Control).to_value()));

impl Shape {
    fn of(schema: &Json) -> Self {
        Self::convert(schema, &schema["$defs"])
    }

    fn convert(schema: &Json, definitions: &Json) -> Self {
        if let Some(reference) = schema["$ref"].as_str() {
            let name = reference.rsplit('/').next().unwrap_or_default();
            return match name {
                "Timeout" => Self::Timeout,
                _ => Self::convert(&definitions[name], definitions),
            };
        }
        if let Some(options) = schema["anyOf"].as_array() {
            let option = options.iter().find(|option| option["type"] != "null");
            return option.map_or(Self::Any, |option| Self::convert(option, definitions));
        }
        if let Some(words) = words(schema) {
            return Self::OneOf(words);
        }
        let kind = match &schema["type"] {
            Json::Array(kinds) => kinds.iter().find_map(|kind| kind.as_str().filter(|kind| *kind != "null")),
            kind => kind.as_str(),
        };
        match kind {
            Some("boolean") => Self::Bool,
            Some("integer") => Self::integer(schema),
            Some("string") => Self::Text(
                schema["pattern"]
                    .as_str()
                    .map(|source| Pattern { source: source.to_owned(), compiled: OnceLock::new() }),
            ),
            Some("array") => Self::List(Box::new(Self::convert(&schema["items"], definitions))),
            Some("object") => match schema["properties"].as_object() {
                Some(properties) => Self::table(schema, properties, definitions),
                None => Self::Map(Box::new(Self::convert(&schema["additionalProperties"], definitions))),
            },
            _ => Self::Any,
        }
    }

    fn integer(schema: &Json) -> Self {
        let (min, max) = match schema["format"].as_str() {
            Some("uint8") => (0, i64::from(u8::MAX)),
            Some("uint16") => (0, i64::from(u16::MAX)),
            Some("uint32") => (0, i64::from(u32::MAX)),
            Some("int32") => (i64::from(i32::MIN), i64::from(i32::MAX)),
            _ => (i64::MIN, i64::MAX),
        };
        Self::Integer {
            min: schema["minimum"].as_i64().map_or(min, |given| given.max(min)),
            max: schema["maximum"].as_i64().map_or(max, |given| given.min(max)),
        }
    }

    fn table(schema: &Json, properties: &serde_json::Map<String, Json>, definitions: &Json) -> Self {
        let required = schema["required"].as_array().map_or(&[][..], Vec::as_slice);
        let fields = properties
            .iter()
            .map(|(name, property)| Field {
                name: name.clone(),
                shape: Self::convert(property, definitions),
                required: required.iter().any(|key| key == name),
                doc: one_line(property["description"].as_str().unwrap_or_default()),
            })
            .collect();
        Self::Table(fields)
    }

    pub(crate) fn field(&self, name: &str) -> Option<&Field> {
        match self {
            Self::Table(fields) => fields.iter().find(|field| field.name == name),
            _ => None,
        }
    }
}

/// Returns the words of an enum.
fn words(schema: &Json) -> Option<Vec<String>> {
    let text = |value: &Json| value.as_str().map(str::to_owned);
    if let Some(words) = schema["enum"].as_array() {
        return Some(words.iter().filter_map(text).collect());
    }
    let options = schema["oneOf"].as_array()?;
    let words = options.iter().flat_map(|option| match option["enum"].as_array() {
        Some(words) => words.iter().filter_map(text).collect(),
        None => text(&option["const"]).into_iter().collect::<Vec<_>>(),
    });
    Some(words.collect())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Walks a tree along a shape and reports what does not fit.
pub(crate) struct Checker<'a> {
    root: &'a Shape,
    /// Whether required keys must be there.
    complete: bool,
    path: Vec<String>,
    findings: &'a mut Findings,
}

impl<'a> Checker<'a> {
    pub(crate) fn new(root: &'a Shape, complete: bool, findings: &'a mut Findings) -> Self {
        Self { root, complete, path: Vec::new(), findings }
    }

    /// Checks a whole file, or with a path of keys the value that stands there.
    pub(crate) fn check_at(mut self, node: &mut Node, path: &[&str]) {
        let (mut shape, mut doc) = (self.root, "");
        for key in path {
            if let Shape::Map(inner) = shape {
                shape = inner;
            } else {
                let field = shape.field(key).expect("callers name a key of the model");
                (shape, doc) = (&field.shape, field.doc.as_str());
            }
            self.path.push((*key).to_owned());
        }
        self.value(node, shape, doc);
    }

    fn value(&mut self, node: &mut Node, shape: &Shape, doc: &str) {
        write_out_scalars(node, shape);
        match (&mut node.value, shape) {
            (Value::Unknown, _) | (_, Shape::Any) | (Value::Bool(_), Shape::Bool) => {}
            (Value::Integer(number), Shape::Integer { min, max }) => {
                if *number < *min || *number > *max {
                    let range = range_words(*min, *max);
                    let message = format!("{} must be {range}, not {number}", self.name());
                    self.report(node, message, None);
                }
            }
            (Value::String(text), Shape::Text(pattern)) => {
                if pattern.as_ref().is_some_and(|pattern| !pattern.matches(text)) {
                    let message = format!("`{}` is not valid for {}", shorten(text), self.name());
                    let help = format_words(doc, text);
                    self.report(node, message, Some(help));
                }
            }
            (Value::String(text), Shape::Timeout) => {
                if let Err(message) = Timeout::parse(text) {
                    self.report(node, message, None);
                }
            }
            (Value::String(text), Shape::OneOf(words)) => {
                if !words.contains(text) {
                    let message =
                        format!("{} must be {}, not `{}`", self.name(), one_of(words), shorten(text));
                    let help = did_you_mean(text, words.iter().map(String::as_str));
                    self.report(node, message, help);
                }
            }
            (Value::Array(items), Shape::List(shape)) => {
                for item in items {
                    self.value(item, shape, doc);
                }
            }
            (Value::Table(entries), Shape::Map(shape)) => {
                for entry in entries {
                    self.path.push(entry.key.clone());
                    self.value(&mut entry.node, shape, doc);
                    self.path.pop();
                }
            }
            (Value::Table(_), Shape::Table(fields)) => self.table(node, fields),
            _ => self.wrong_type(node, shape),
        }
    }

    fn table(&mut self, node: &mut Node, fields: &[Field]) {
        let Value::Table(entries) = &mut node.value else { return };
        for entry in entries.iter_mut() {
            match fields.iter().find(|field| field.name == entry.key) {
                None => self.unknown_key(entry, fields),
                Some(field) => {
                    self.path.push(entry.key.clone());
                    self.value(&mut entry.node, &field.shape, &field.doc);
                    self.path.pop();
                }
            }
        }
        if !self.complete {
            return;
        }
        for field in fields.iter().filter(|field| field.required && !node.has(&field.name)) {
            let what = if matches!(field.shape, Shape::Table(_)) {
                format!("missing table `[{}]`", self.joined(&field.name))
            } else {
                format!("missing key `{}` {}", field.name, self.place())
            };
            let span = if self.path.is_empty() { node.span.within(&(0..0)) } else { node.span };
            self.findings.push(Finding::new(span, what).help(lower_first(&field.doc)));
        }
    }

    fn unknown_key(&mut self, entry: &Entry, fields: &[Field]) {
        let key = entry.key.as_str();
        // Whoever puts a secret where none belongs must not find it in a log.
        if SECRET.iter().any(|word| key.to_lowercase().contains(word)) {
            self.findings.mask(entry.node.span);
        }
        let help = self
            .belongs_elsewhere(key)
            .or_else(|| did_you_mean(key, fields.iter().map(|field| field.name.as_str())));
        let help = help.unwrap_or_else(|| {
            let names: Vec<&str> = fields.iter().map(|field| field.name.as_str()).collect();
            format!("known here: {}", names.join(", "))
        });
        let message = format!("unknown key `{key}` {}", self.place());
        self.findings.push(Finding::new(entry.key_span, message).help(help));
    }

    /// Returns where a key stands that is right in itself but in the wrong table.
    fn belongs_elsewhere(&self, key: &str) -> Option<String> {
        let Shape::Table(top) = self.root else { return None };
        if !self.path.is_empty() && top.iter().any(|field| field.name == key) {
            return Some(format!("`{key}` stands at the top of the file, before the first `[table]`"));
        }
        let here = self.path.first().map_or("", String::as_str);
        let tables: Vec<String> = top
            .iter()
            .filter(|table| table.name != here && table.shape.field(key).is_some())
            .map(|table| format!("[{}]", table.name))
            .collect();
        match tables.as_slice() {
            [table] => Some(format!("`{key}` belongs in `{table}`")),
            _ => None,
        }
    }

    fn wrong_type(&mut self, node: &Node, shape: &Shape) {
        let kind = node.value.kind();
        let message = format!("{} must be {}, not {kind}", self.name(), shape_words(shape));
        let help = match (&node.value, shape) {
            (Value::Table(_), Shape::List(_)) if self.path.len() == 1 || !node.entries().is_empty() => {
                Some(format!("write `[[{}]]`, with two brackets, for each of them", self.path.join(".")))
            }
            (Value::Array(_), Shape::Table(_)) => {
                Some(format!("write `[{}]`, with one bracket: there is one", self.path.join(".")))
            }
            (Value::String(text), Shape::Integer { .. })
                if node.rendered.is_none() && text.parse::<i64>().is_ok() =>
            {
                Some(format!("write it without quotes: {text}"))
            }
            (Value::String(text), Shape::Bool)
                if node.rendered.is_none() && matches!(text.as_str(), "true" | "false") =>
            {
                Some(format!("write it without quotes: {text}"))
            }
            (Value::String(_), Shape::List(_)) if node.rendered.is_none() => {
                Some("put it in brackets: [\"…\"]".to_owned())
            }
            (Value::String(_), _) if node.rendered.is_some() => conversion_words(shape),
            (Value::Integer(_), Shape::Text(_)) => Some("put it in quotes".to_owned()),
            (Value::Array(_), Shape::Text(_))
                if self.path.last().is_some_and(|key| MAY_HAVE_LINES.contains(&key.as_str())) =>
            {
                Some("write one string; \"\"\" … \"\"\" holds several lines".to_owned())
            }
            (Value::Array(_), Shape::Text(_)) => Some("write one string, without brackets".to_owned()),
            (Value::Integer(_), Shape::Timeout) => {
                Some("write it with its unit, such as \"90s\" or \"10m\"".to_owned())
            }
            _ => None,
        };
        self.report(node, message, help);
    }

    fn report(&mut self, node: &Node, message: String, help: Option<String>) {
        let mut finding = Finding::new(node.span, message).maybe_help(help);
        if node.rendered.is_some() {
            finding = finding.label(match &node.value {
                Value::String(text) => format!("gives the string `{}`", shorten(text)),
                Value::Integer(number) => format!("gives {number}"),
                other => format!("gives {}", other.kind()),
            });
        }
        self.findings.push(finding);
    }

    /// Returns the value's full name.
    fn name(&self) -> String {
        if self.path.is_empty() { "this".to_owned() } else { format!("`{}`", self.path.join(".")) }
    }

    fn joined(&self, key: &str) -> String {
        self.path.iter().map(String::as_str).chain([key]).collect::<Vec<_>>().join(".")
    }

    /// Returns where a table's keys stand.
    fn place(&self) -> String {
        match self.path.as_slice() {
            [] => "at the top level".to_owned(),
            [list] if ["step", "check", "contract"].contains(&list.as_str()) => format!("in `[[{list}]]`"),
            path => format!("in `[{}]`", path.join(".")),
        }
    }
}

/// Where text is wanted, an expression may give a number or a boolean: it is written out.
fn write_out_scalars(node: &mut Node, shape: &Shape) {
    if node.rendered.is_none() || !matches!(shape, Shape::Text(_)) {
        return;
    }
    let text = match node.value {
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Bool(value) => value.to_string(),
        _ => return,
    };
    node.value = Value::String(text);
}

fn shape_words(shape: &Shape) -> &'static str {
    match shape {
        Shape::Any => "a value",
        Shape::Bool => "`true` or `false`",
        Shape::Integer { .. } => "an integer",
        Shape::Text(_) | Shape::OneOf(_) => "a string",
        Shape::Timeout => "a length of time",
        Shape::List(_) => "a list",
        Shape::Map(_) | Shape::Table(_) => "a table",
    }
}

/// Returns how an expression comes to give what is wanted.
fn conversion_words(shape: &Shape) -> Option<String> {
    let words = match shape {
        Shape::Integer { .. } => "declare the variable with `type = \"integer\"`, or convert it with `| int`",
        Shape::Bool => "declare the variable with `type = \"bool\"`, or convert it with `| bool`",
        Shape::List(_) => "declare the variable with `type = \"list\"`, or split it with `| split(',')`",
        Shape::Map(_) | Shape::Table(_) => "declare the variable with `type = \"map\"`",
        _ => return None,
    };
    Some(words.to_owned())
}

/// Returns what a text must look like, from the documentation of its key.
fn format_words(doc: &str, text: &str) -> String {
    let words = lower_first(doc);
    if words.contains("hexadecimal digits") {
        return format!("{words}; this has {} characters", text.chars().count());
    }
    words
}

fn range_words(min: i64, max: i64) -> String {
    match (min, max) {
        (0, max) if max >= i64::from(u32::MAX) => "0 or more".to_owned(),
        (min, max) => format!("{min} to {max}"),
    }
}

/// Returns a text cut to what a message can hold.
pub(crate) fn shorten(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let cut: String = line.chars().take(60).collect();
    if cut.len() < text.trim_end_matches('\n').len() { format!("{cut}…") } else { cut }
}

fn lower_first(text: &str) -> String {
    let text = text.trim_end_matches('.');
    let mut characters = text.chars();
    match characters.next() {
        Some(first) if text.chars().nth(1).is_some_and(|second| second.is_lowercase() || second == ' ') => {
            first.to_lowercase().chain(characters).collect()
        }
        _ => text.to_owned(),
    }
}
