//! Variables: what a template declares, what the user gives, and which value wins.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use regex::Regex;
use serde_json::Value as Json;

use super::diagnostics::{COMMAND_LINE, ENVIRONMENT, Finding, Findings, Span, did_you_mean, one_of};
use super::model::VariableType;
use super::secret::Secret;
use super::shape::shorten;
use super::tree::{Entry, Node, Value, parse_toml};

/// What the user gives besides the definition itself.
#[derive(Clone, Default)]
pub struct Inputs {
    /// `--var NAME=VALUE`, in order.
    pub vars: Vec<(String, String)>,
    /// `--var-file FILE`, in order: TOML, or JSON when the name ends in `.json`.
    pub var_files: Vec<PathBuf>,
    /// The environment.
    pub env: BTreeMap<String, String>,
}

impl fmt::Debug for Inputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.vars.iter().map(|(name, _)| name).collect();
        f.debug_struct("Inputs").field("vars", &names).field("files", &self.var_files).finish_non_exhaustive()
    }
}

/// A variable with its value.
#[derive(Debug, Clone)]
pub struct ResolvedVariable {
    /// Its type.
    pub kind: VariableType,
    /// Its value.
    pub value: VariableValue,
    /// Where the value comes from: `default`, `--var`, the file's or environment variable's name.
    pub from: String,
}

/// A variable's value.
#[derive(Debug, Clone)]
pub enum VariableValue {
    /// A value that may be shown.
    Plain(Json),
    /// A value that may not.
    Secret(Secret),
}

impl ResolvedVariable {
    /// Returns the value for templates: as it is, or with secrets masked.
    #[must_use]
    pub(crate) fn for_templates(&self, name: &str, masked: bool) -> Json {
        match &self.value {
            VariableValue::Plain(value) => value.clone(),
            VariableValue::Secret(secret) if masked && secret.is_set() => mask(name).into(),
            VariableValue::Secret(secret) => secret.expose().into(),
        }
    }
}

/// Returns what is shown instead of a secret.
pub(crate) fn mask(name: &str) -> String {
    format!("<secret {name}>")
}

/// How the environment variables begin that give variables their values.
pub(crate) const VARIABLE_PREFIX: &str = "FORGE_VAR_";

/// Returns the environment variable that gives a variable its value.
pub(crate) fn environment_name(variable: &str) -> String {
    format!("{VARIABLE_PREFIX}{}", variable.to_uppercase())
}

/// A declared variable.
#[derive(Debug)]
pub(crate) struct Declared {
    pub(crate) name: String,
    /// Whether nothing is wrong with the declaration; else no value is judged by it, and what uses
    /// the variable is not complained about.
    sound: bool,
    kind: VariableType,
    pub(crate) secret: bool,
    required: bool,
    env: Option<String>,
    allowed: Option<Vec<Json>>,
    pattern: Option<(String, Regex)>,
    default: Option<Json>,
    span: Span,
    description: Option<String>,
}

/// Reads one variable of the table `[variables]`. `fits` tells whether it has the right shape: of one
/// that has not, little more can be said.
pub(crate) fn declare(entry: &Entry, fits: bool, findings: &mut Findings) -> Declared {
    let before = findings.count();
    let (name, node) = (entry.key.as_str(), &entry.node);
    let kind = kind_of(node);
    if !is_name(name) {
        findings.push(
            Finding::new(entry.key_span, format!("`{}` is not a variable name", shorten(name)))
                .help("lower-case letters, digits and `_`, beginning with a letter"),
        );
    }
    let secret = check_secrecy(entry, kind, findings);
    let default = node.get("default");
    let mut declared = Declared {
        name: name.to_owned(),
        sound: false,
        kind,
        secret,
        required: node.bool_at("required").unwrap_or(default.is_none() && !secret),
        env: node.text_at("env").map(str::to_owned),
        allowed: node
            .get("allowed")
            .map(|allowed| allowed.items().iter().map(|item| item.to_json(false)).collect()),
        pattern: if fits { declare_pattern(name, kind, node, findings) } else { None },
        default: default.map(|default| default.to_json(false)),
        span: entry.key_span,
        description: node.text_at("description").map(str::to_owned),
    };
    if fits {
        check_values(&declared, node, findings);
    }
    declared.sound = fits && findings.count() == before;
    declared
}

fn kind_of(node: &Node) -> VariableType {
    match node.text_at("type") {
        Some("integer") => VariableType::Integer,
        Some("bool") => VariableType::Bool,
        Some("list") => VariableType::List,
        Some("map") => VariableType::Map,
        _ => VariableType::String,
    }
}

/// Tells whether a variable is a secret, and hides the default of what is or may be one.
fn check_secrecy(entry: &Entry, kind: VariableType, findings: &mut Findings) -> bool {
    let (name, node) = (entry.key.as_str(), &entry.node);
    let secret = node.bool_at("secret").unwrap_or(false);
    if secret {
        check_secret(name, kind, node, findings);
    } else if !node.has("secret") && kind == VariableType::String && sounds_secret(name) {
        if let Some(default) = node.get("default") {
            findings.mask(default.span);
        }
        findings.push(Finding::new(entry.key_span, format!("variable `{name}` sounds like a secret")).help(
            "add `secret = true`, so that its value is never shown; or `secret = false`, if it is none",
        ));
    }
    secret
}

/// Checks that the default and the values allowed are what the declaration says.
fn check_values(declared: &Declared, node: &Node, findings: &mut Findings) {
    let (name, kind) = (&declared.name, declared.kind);
    let default = node.get("default");
    if let (Some(default), Some(true)) = (default, node.bool_at("required")) {
        findings.push(
            Finding::new(
                default.span,
                format!("variable `{name}` is required, so its default is never used"),
            )
            .help("remove one of the two"),
        );
    }
    if !declared.required && default.is_none() && matches!(kind, VariableType::Integer | VariableType::Bool) {
        findings.push(
            Finding::new(
                declared.span,
                format!("variable `{name}` needs a default: {} has no empty value", kind_words(kind)),
            )
            .help("add `default = …`, or remove `required = false`"),
        );
    }
    for item in node.list("allowed") {
        if let Err(reason) = typed(kind, item) {
            findings.push(Finding::new(item.span, format!("an allowed value of `{name}` {reason}")));
        }
    }
    if let Some(default) = default.filter(|_| !declared.secret)
        && let Err(reason) = typed(kind, default).and_then(|value| declared.accept(&value))
    {
        findings.push(Finding::new(default.span, format!("the default of `{name}` {reason}")));
    }
}

fn check_secret(name: &str, kind: VariableType, node: &Node, findings: &mut Findings) {
    if let Some(default) = node.get("default") {
        findings.mask(default.span);
        findings.push(
            Finding::new(default.span, format!("secret `{name}` must not have a default for all to read"))
                .help(format!("give it as {} or in a `--var-file`", environment_name(name))),
        );
    }
    if kind != VariableType::String {
        let span = node.get("type").map_or(node.span, |kind| kind.span);
        findings.push(Finding::new(span, format!("secret `{name}` must be a string")));
    }
}

fn declare_pattern(
    name: &str,
    kind: VariableType,
    node: &Node,
    findings: &mut Findings,
) -> Option<(String, Regex)> {
    let pattern = node.get("pattern")?;
    let text = pattern.text()?;
    if kind != VariableType::String {
        let message = format!("variable `{name}` is {}: a pattern is for strings", kind_words(kind));
        findings.push(Finding::new(pattern.span, message));
        return None;
    }
    match Regex::new(&format!("^(?:{text})$")) {
        Ok(regex) => Some((text.to_owned(), regex)),
        Err(error) => {
            findings.push(bad_regex(pattern.span, text, &error));
            None
        }
    }
}

/// Says why a regular expression does not compile.
pub(crate) fn bad_regex(span: Span, text: &str, error: &regex::Error) -> Finding {
    let all = error.to_string();
    let reason = all.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
    Finding::new(span, format!("`{}` is not a regular expression: {reason}", shorten(text)))
}

fn is_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// Tells whether a name is that of something nobody should see.
pub(crate) fn sounds_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.split(['_', '-', '.']).any(|part| {
        matches!(part, "password" | "passwd" | "passphrase" | "secret" | "token" | "apikey" | "credentials")
    })
}

fn kind_words(kind: VariableType) -> &'static str {
    match kind {
        VariableType::String => "a string",
        VariableType::Integer => "an integer",
        VariableType::Bool => "a boolean",
        VariableType::List => "a list",
        VariableType::Map => "a map",
    }
}

impl Declared {
    /// Tells whether a value of the right type is one that the variable may have.
    fn accept(&self, value: &Json) -> Result<(), String> {
        if let Some(allowed) = &self.allowed
            && !allowed.contains(value)
        {
            let words: Vec<String> = allowed.iter().map(show).collect();
            return Err(format!("must be {}, not {}", one_of(&words), self.show(value)));
        }
        if let (Some((source, regex)), Some(text)) = (&self.pattern, value.as_str())
            && !regex.is_match(text)
        {
            return Err(format!("must match `{source}`, and {} does not", self.show(value)));
        }
        if self.required && value.as_str() == Some("") {
            return Err("must not be empty".to_owned());
        }
        Ok(())
    }

    fn show(&self, value: &Json) -> String {
        if self.secret { "the value given".to_owned() } else { format!("`{}`", show(value)) }
    }

    /// Returns the value that stands for "nothing".
    fn empty(&self) -> Json {
        match self.kind {
            VariableType::List => Json::Array(Vec::new()),
            VariableType::Map => Json::Object(serde_json::Map::new()),
            _ => Json::String(String::new()),
        }
    }

    fn resolved(&self, value: Json, from: String) -> ResolvedVariable {
        let value = match (self.secret, value) {
            (true, Json::String(text)) => VariableValue::Secret(Secret::new(text)),
            (true, _) => VariableValue::Secret(Secret::new("")),
            (false, value) => VariableValue::Plain(value),
        };
        ResolvedVariable { kind: self.kind, value, from }
    }
}

fn show(value: &Json) -> String {
    shorten(&value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

/// Returns a node's value when it has the type.
fn typed(kind: VariableType, node: &Node) -> Result<Json, String> {
    let right = matches!(
        (&node.value, kind),
        (Value::Unknown, _)
            | (Value::String(_), VariableType::String)
            | (Value::Integer(_), VariableType::Integer)
            | (Value::Bool(_), VariableType::Bool)
            | (Value::Array(_), VariableType::List)
            | (Value::Table(_), VariableType::Map)
    );
    if right {
        Ok(node.to_json(false))
    } else {
        Err(format!("must be {}, not {}", kind_words(kind), node.value.kind()))
    }
}

/// Returns a text from the command line or the environment as a value of the type.
fn parse_text(kind: VariableType, text: &str) -> Result<Json, String> {
    match kind {
        VariableType::String => Ok(text.into()),
        VariableType::Integer => text
            .trim()
            .parse::<i64>()
            .map(Json::from)
            .map_err(|_| "must be an integer, such as `4096`".to_owned()),
        VariableType::Bool => {
            text.trim().parse::<bool>().map(Json::from).map_err(|_| "must be `true` or `false`".to_owned())
        }
        VariableType::List if text.trim_start().starts_with('[') => serde_json::from_str::<Vec<Json>>(text)
            .map(Json::Array)
            .map_err(|error| format!("must be a list, such as `a,b` or `[\"a\", \"b\"]`: {error}")),
        VariableType::List if text.is_empty() => Ok(Json::Array(Vec::new())),
        VariableType::List => Ok(text.split(',').map(|item| Json::from(item.trim())).collect()),
        VariableType::Map => serde_json::from_str::<serde_json::Map<String, Json>>(text)
            .map(Json::Object)
            .map_err(|error| format!("must be a map as JSON, such as `{{\"a\": 1}}`: {error}")),
    }
}

/// A value that the user gave.
struct Given {
    value: GivenValue,
    span: Span,
    from: String,
}

enum GivenValue {
    Text(String),
    Node(Node),
}

/// The variables of one template, resolved.
#[derive(Debug, Default)]
pub(crate) struct Resolved {
    pub(crate) values: BTreeMap<String, ResolvedVariable>,
    /// Declared, but with a value that is wrong or missing; why has been reported.
    pub(crate) unknown: BTreeSet<String>,
}

/// Chooses each variable's value. `elsewhere` are names that other templates of this run declare.
pub(crate) fn resolve(
    declared: &[Declared],
    inputs: &Inputs,
    elsewhere: &BTreeSet<String>,
    findings: &mut Findings,
) -> Resolved {
    let mut given = BTreeMap::new();
    take_environment(declared, inputs, &mut given, findings);
    for path in &inputs.var_files {
        take_file(path, declared, elsewhere, &mut given, findings);
    }
    take_command_line(declared, inputs, elsewhere, &mut given, findings);
    let mut resolved = Resolved::default();
    for variable in declared {
        let given = given.remove(variable.name.as_str());
        match variable.sound.then(|| choose(variable, given, findings)).flatten() {
            Some(value) => drop(resolved.values.insert(variable.name.clone(), value)),
            None => drop(resolved.unknown.insert(variable.name.clone())),
        }
    }
    resolved
}

fn choose(variable: &Declared, given: Option<Given>, findings: &mut Findings) -> Option<ResolvedVariable> {
    let Some(given) = given else {
        if let Some(default) = &variable.default {
            return Some(variable.resolved(default.clone(), "default".to_owned()));
        }
        if variable.required {
            findings.push(not_set(variable));
            return None;
        }
        return Some(variable.resolved(variable.empty(), "not set".to_owned()));
    };
    let value = match &given.value {
        GivenValue::Text(text) => parse_text(variable.kind, text),
        GivenValue::Node(node) => typed(variable.kind, node),
    };
    match value.and_then(|value| variable.accept(&value).map(|()| value)) {
        Ok(value) => Some(variable.resolved(value, given.from)),
        Err(reason) => {
            let message = format!("variable `{}` {reason}", variable.name);
            findings.push(Finding::new(given.span, message).maybe_help(variable.description.clone()));
            None
        }
    }
}

fn not_set(variable: &Declared) -> Finding {
    let name = &variable.name;
    let own = environment_name(name);
    let environment = match &variable.env {
        Some(env) => format!(", {own} or {env}"),
        None => format!(" or {own}"),
    };
    let ways = format!("set it with `--var {name}=…`, a `--var-file`{environment}");
    Finding::new(variable.span, format!("variable `{name}` is not set")).help(match &variable.description {
        Some(description) => format!("it is for: {description}; {ways}"),
        None => ways,
    })
}

fn take_environment(
    declared: &[Declared],
    inputs: &Inputs,
    given: &mut BTreeMap<String, Given>,
    findings: &mut Findings,
) {
    for variable in declared {
        let own = environment_name(&variable.name);
        for name in variable.env.iter().chain([&own]) {
            if let Some(text) = inputs.env.get(name) {
                let value = line(findings, ENVIRONMENT, &format!("{name}="), text, variable.secret);
                let value = Given { from: name.clone(), ..value };
                given.insert(variable.name.clone(), value);
            }
        }
    }
}

fn take_command_line(
    declared: &[Declared],
    inputs: &Inputs,
    elsewhere: &BTreeSet<String>,
    given: &mut BTreeMap<String, Given>,
    findings: &mut Findings,
) {
    for (name, text) in &inputs.vars {
        match declared.iter().find(|variable| variable.name == *name) {
            Some(variable) => {
                let value = line(findings, COMMAND_LINE, &format!("--var {name}="), text, variable.secret);
                given.insert(name.clone(), Given { from: "--var".to_owned(), ..value });
            }
            None if elsewhere.contains(name) => {}
            None => {
                let any_secret = declared.iter().any(|variable| variable.secret);
                let value = line(findings, COMMAND_LINE, &format!("--var {name}="), text, any_secret);
                let span = Span { start: "--var ".len(), end: "--var ".len() + name.len(), ..value.span };
                findings.push(undeclared(span, name, declared));
            }
        }
    }
}

/// Makes a text of one line, so that errors can point into it.
fn line(findings: &mut Findings, source: &str, before: &str, text: &str, secret: bool) -> Given {
    let file = findings.add_text(source, format!("{before}{text}"));
    let span = Span::new(file, before.len()..before.len() + text.len());
    if secret {
        findings.mask(span);
    }
    Given { value: GivenValue::Text(text.to_owned()), span, from: String::new() }
}

fn undeclared(span: Span, name: &str, declared: &[Declared]) -> Finding {
    let names: Vec<&str> = declared.iter().map(|variable| variable.name.as_str()).collect();
    let help = did_you_mean(name, names.iter().copied()).unwrap_or_else(|| match names.as_slice() {
        [] => "it declares no variables".to_owned(),
        names => format!("it declares {}", one_of(names).replace(" or ", " and ")),
    });
    Finding::new(span, format!("no variable `{}` is declared by this template", shorten(name))).help(help)
}

fn take_file(
    path: &std::path::Path,
    declared: &[Declared],
    elsewhere: &BTreeSet<String>,
    given: &mut BTreeMap<String, Given>,
    findings: &mut Findings,
) {
    let name = path.display().to_string();
    let text = match super::files::read_text(path) {
        Ok(text) => text,
        Err(reason) => {
            let file = findings.add_text(COMMAND_LINE, format!("--var-file {name}"));
            let span = Span::new(file, "--var-file ".len().."--var-file ".len() + name.len());
            findings.push(Finding::new(span, format!("{name}: {}", reason.message)));
            return;
        }
    };
    let file = findings.add_text(name.clone(), text.clone());
    let is = |endings: &[&str]| {
        path.extension().is_some_and(|own| endings.iter().any(|ending| own.eq_ignore_ascii_case(ending)))
    };
    if is(&["yaml", "yml"]) {
        let finding = Finding::new(Span::new(file, 0..0), "a variable file is TOML or JSON, not YAML");
        findings.push(finding.help("write `name = \"value\"` lines into a file that ends in .toml"));
        mask_values(&text, file, findings);
        return;
    }
    let is_json = is(&["json"]);
    let parsed = if is_json { parse_json(&text, file, findings) } else { parse_toml(&text, file, findings) };
    let Some(values) = parsed else {
        if declared.iter().any(|variable| variable.secret) {
            mask_values(&text, file, findings);
        }
        return;
    };
    for entry in values.entries() {
        match declared.iter().find(|variable| variable.name == entry.key) {
            Some(variable) => {
                if variable.secret {
                    findings.mask(entry.node.span);
                }
                let value = GivenValue::Node(entry.node.clone());
                given.insert(entry.key.clone(), Given { value, span: entry.node.span, from: name.clone() });
            }
            None if elsewhere.contains(&entry.key) => {}
            None => {
                // A secret's name may be misspelt: then this is its value.
                findings.mask(entry.node.span);
                findings.push(undeclared(entry.key_span, &entry.key, declared));
            }
        }
    }
}

/// Hides everything that could be a value in a file that cannot be parsed.
fn mask_values(text: &str, file: usize, findings: &mut Findings) {
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let value = line.find(['=', ':']).map_or(0, |sign| sign + 1);
        findings.mask(Span::new(file, start + value..start + line.len()));
        start += line.len();
    }
}

/// A JSON object's keys and values as they stand there: none is dropped because it comes again.
struct Pairs(Vec<(String, Json)>);

impl<'de> serde::Deserialize<'de> for Pairs {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// Parses a JSON object; the places are found by looking for the keys.
fn parse_json(text: &str, file: usize, findings: &mut Findings) -> Option<Node> {
    let whole = Span::new(file, 0..text.len());
    let values = match serde_json::from_str::<Pairs>(text) {
        Ok(Pairs(values)) => values,
        Err(error) if error.is_data() => {
            findings.push(Finding::new(whole, "a variable file is a JSON object: names with their values"));
            return None;
        }
        Err(error) => {
            let line: usize =
                text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
            let at = (line + error.column().saturating_sub(1)).min(text.len());
            let reason = error.to_string();
            let reason = reason.split(" at line ").next().unwrap_or_default().to_owned();
            findings.push(Finding::new(Span::new(file, at..at), reason).label("not valid JSON"));
            return None;
        }
    };
    let mut keys = BTreeSet::new();
    if let Some((key, _)) = values.iter().find(|(key, _)| !keys.insert(key)) {
        let quoted = Json::from(key.as_str()).to_string();
        let at = text.rfind(&quoted).map_or(0..0, |start| start..start + quoted.len());
        findings.push(Finding::new(Span::new(file, at), format!("`{key}` is there twice")).help("keep one"));
        return None;
    }
    let entries = values
        .iter()
        .map(|(key, value)| {
            let quoted = Json::from(key.as_str()).to_string();
            // Written with escapes that serde does not write: then its place is not known.
            let found = text.find(&quoted).map(|start| start..start + quoted.len());
            let key_span = Span::new(file, found.unwrap_or(0..0));
            // Written in another way than serde writes it: then up to the end, lest a secret shows.
            let written = value.to_string();
            let value_start = text[key_span.end..].find(&written).map(|at| key_span.end + at);
            let span = match value_start {
                Some(at) => Span::new(file, at..at + written.len()),
                None => Span::new(file, key_span.end..text.len()),
            };
            Entry { key: key.clone(), key_span, node: from_json(value, span) }
        })
        .collect();
    Some(Node::new(Value::Table(entries), whole))
}

/// Returns a JSON value as a node, every part of it at the same place.
pub(crate) fn from_json(value: &Json, span: Span) -> Node {
    let value = match value {
        Json::Null => Value::Unknown,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match number.as_i64() {
            Some(number) => Value::Integer(number),
            None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::String(text.clone()),
        Json::Array(items) => Value::Array(items.iter().map(|item| from_json(item, span)).collect()),
        Json::Object(entries) => Value::Table(
            entries
                .iter()
                .map(|(key, value)| Entry { key: key.clone(), key_span: span, node: from_json(value, span) })
                .collect(),
        ),
    };
    Node::new(value, span)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_become_values_of_the_type() {
        for (kind, text, expected) in [
            (VariableType::Integer, "4096", serde_json::json!(4096)),
            (VariableType::Bool, "false", serde_json::json!(false)),
            (VariableType::List, "a, b", serde_json::json!(["a", "b"])),
            (VariableType::List, "[1, \"b\"]", serde_json::json!([1, "b"])),
            (VariableType::List, "", serde_json::json!([])),
            (VariableType::Map, "{\"a\": 1}", serde_json::json!({"a": 1})),
            (VariableType::String, " 1 ", serde_json::json!(" 1 ")),
        ] {
            assert_eq!(parse_text(kind, text).unwrap(), expected);
        }
        for (kind, text) in [
            (VariableType::Integer, "4 GiB"),
            (VariableType::Bool, "yes"),
            (VariableType::List, "[1"),
            (VariableType::Map, "a=1"),
        ] {
            assert!(parse_text(kind, text).unwrap_err().starts_with("must be"), "{text}");
        }
    }

    #[test]
    fn names_that_sound_secret() {
        for name in ["password", "db_password", "api_token", "CONSOLE_PASSWORD_HASH"] {
            assert!(sounds_secret(name), "{name}");
        }
        for name in ["passwords_off", "tokenizer", "ssh_key", "secretary"] {
            assert!(!sounds_secret(name), "{name}");
        }
    }
}
