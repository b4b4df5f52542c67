//! A file's values with the places they stand at: what errors point at.

use toml::de::{DeTable, DeValue};

use super::diagnostics::{Finding, Findings, Span};

/// A value and its place.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) span: Span,
    /// What an expression made of it, for values that came from one.
    pub(crate) rendered: Option<Rendered>,
}

/// How an expression's value came about.
#[derive(Debug, Clone)]
pub(crate) struct Rendered {
    /// What may be shown instead of the value, when a secret is in it.
    pub(crate) masked: Option<String>,
}

/// A value.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    String(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    Array(Vec<Node>),
    Table(Vec<Entry>),
    /// A value that could not be found out; why has been reported.
    Unknown,
}

/// A key with its value.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_span: Span,
    pub(crate) node: Node,
}

impl Node {
    pub(crate) fn new(value: Value, span: Span) -> Self {
        Self { value, span, rendered: None }
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Table(entries) => entries,
            _ => &[],
        }
    }

    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.node)
    }

    pub(crate) fn items(&self) -> &[Node] {
        match &self.value {
            Value::Array(items) => items,
            _ => &[],
        }
    }

    /// Returns the elements of the array at a key, none when there is no array.
    pub(crate) fn list(&self, key: &str) -> &[Node] {
        self.get(key).map_or(&[], Node::items)
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn text_at(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Node::text)
    }

    pub(crate) fn bool_at(&self, key: &str) -> Option<bool> {
        match self.get(key)?.value {
            Value::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// Tells whether the key is there, with a value that is known.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub(crate) fn remove(&mut self, key: &str) -> Option<Entry> {
        match &mut self.value {
            Value::Table(entries) => {
                let at = entries.iter().position(|entry| entry.key == key)?;
                Some(entries.remove(at))
            }
            _ => None,
        }
    }

    /// Returns the value as JSON: as it is, or as it may be shown.
    pub(crate) fn to_json(&self, masked: bool) -> serde_json::Value {
        if masked && let Some(text) = self.rendered.as_ref().and_then(|rendered| rendered.masked.as_ref()) {
            return text.clone().into();
        }
        match &self.value {
            Value::String(text) => text.clone().into(),
            Value::Integer(number) => (*number).into(),
            Value::Float(number) => (*number).into(),
            Value::Bool(value) => (*value).into(),
            Value::Array(items) => items.iter().map(|item| item.to_json(masked)).collect(),
            Value::Table(entries) => {
                entries.iter().map(|entry| (entry.key.clone(), entry.node.to_json(masked))).collect()
            }
            Value::Unknown => serde_json::Value::Null,
        }
    }
}

impl Value {
    /// Returns the value's type as a person names it.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::String(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a fraction",
            Self::Bool(_) => "a boolean",
            Self::Array(_) => "a list",
            Self::Table(_) => "a table",
            Self::Unknown => "unknown",
        }
    }
}

/// Parses TOML, reporting every syntax error; `None` when there is one.
pub(crate) fn parse_toml(text: &str, file: usize, findings: &mut Findings) -> Option<Node> {
    let before = findings.count();
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        findings.push(syntax_finding(text, file, error));
    }
    if findings.count() > before {
        return None;
    }
    let whole = Span::new(file, 0..text.len());
    let node = Node::new(convert_table(table.get_ref(), file, findings), whole);
    (findings.count() == before).then_some(node)
}

/// Says a syntax error in the words of someone who does not know the grammar.
fn syntax_finding(text: &str, file: usize, error: &toml::de::Error) -> Finding {
    let range = error.span().unwrap_or(0..0);
    let span = Span::new(file, range.clone());
    let rest = text.get(range.start..).unwrap_or_default();
    let (message, help) = match error.message() {
        "duplicate key" => {
            let key = text.get(range).unwrap_or_default();
            (format!("`{key}` is set twice"), Some("keep one of the two".to_owned()))
        }
        "string values must be quoted, expected literal string" if rest.starts_with(['\n', '\r']) => {
            ("a value is missing after `=`".to_owned(), None)
        }
        "string values must be quoted, expected literal string" => {
            ("text must stand in quotes".to_owned(), Some("write it as \"text\"".to_owned()))
        }
        other if other.starts_with("invalid") && other.contains("string, expected") => {
            let quote = other.rsplit(' ').next().unwrap_or_default();
            let help = "begin and end text with the same quotes, on one line; \"\"\" … \"\"\" may span lines";
            (format!("text does not end: {quote} is missing"), Some(help.to_owned()))
        }
        other => (other.to_owned(), None),
    };
    Finding::new(span, message).label("not valid TOML").maybe_help(help)
}

fn convert_table(table: &DeTable<'_>, file: usize, findings: &mut Findings) -> Value {
    let entries = table
        .iter()
        .map(|(key, value)| Entry {
            key: key.get_ref().clone().into_owned(),
            key_span: Span::new(file, key.span()),
            node: convert(value, file, findings),
        })
        .collect();
    Value::Table(entries)
}

fn convert(value: &toml::Spanned<DeValue<'_>>, file: usize, findings: &mut Findings) -> Node {
    let span = Span::new(file, value.span());
    let value = match value.get_ref() {
        DeValue::String(text) => Value::String(text.clone().into_owned()),
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Integer(number) => {
            if let Ok(number) = i64::from_str_radix(number.as_str(), number.radix()) {
                Value::Integer(number)
            } else {
                findings.push(Finding::new(span, format!("`{number}` is too large a number")));
                Value::Unknown
            }
        }
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Datetime(_) => {
            findings.push(
                Finding::new(span, "dates have no place here")
                    .help("put it in quotes, if text is what you mean"),
            );
            Value::Unknown
        }
        DeValue::Array(items) => {
            Value::Array(items.iter().map(|item| convert(item, file, findings)).collect())
        }
        DeValue::Table(table) => convert_table(table, file, findings),
    };
    Node::new(value, span)
}

/// Lays a definition over the one it extends.
///
/// Tables merge, `step` and `check` are appended, everything else is replaced. A variable's
/// default is a value, so it is replaced whole. What excludes one another in `[source]` replaces
/// one another.
pub(crate) fn merge(parent: Node, mut child: Node) -> Node {
    let mut parent = parent;
    parent.remove("abstract");
    if let Some(source) = child.get("source") {
        let other = match (source.has("sha256"), source.has("checksums")) {
            (true, false) => Some("checksums"),
            (false, true) => Some("sha256"),
            _ => None,
        };
        if let (Some(other), Some(inherited)) = (other, entry_mut(&mut parent, "source")) {
            inherited.remove(other);
        }
    }
    for list in ["step", "check", "contract"] {
        // What the child says nothing of stays the parent's.
        let Some(own) = entry_mut(&mut child, list) else { continue };
        let Some(inherited) = parent.remove(list) else { continue };
        match (inherited.node.value, &mut own.value) {
            (Value::Array(inherited), Value::Array(own)) => {
                own.splice(0..0, inherited);
            }
            (value, _) => {
                let Value::Table(entries) = &mut parent.value else { continue };
                entries.push(Entry { node: Node::new(value, inherited.node.span), ..inherited });
            }
        }
    }
    merge_tables(parent, child, &mut Vec::new())
}

fn entry_mut<'a>(node: &'a mut Node, key: &str) -> Option<&'a mut Node> {
    match &mut node.value {
        Value::Table(entries) => {
            entries.iter_mut().find(|entry| entry.key == key).map(|entry| &mut entry.node)
        }
        _ => None,
    }
}

fn merge_tables(parent: Node, child: Node, path: &mut Vec<String>) -> Node {
    let is_default = path.len() == 3 && path[0] == "variables" && path[2] == "default";
    let (Value::Table(_), Value::Table(_), false) = (&parent.value, &child.value, is_default) else {
        return child;
    };
    let (Value::Table(mut merged), Value::Table(own)) = (parent.value, child.value) else {
        unreachable!("both are tables");
    };
    for entry in own {
        match merged.iter_mut().find(|inherited| inherited.key == entry.key) {
            None => merged.push(entry),
            Some(inherited) => {
                path.push(entry.key);
                let old = std::mem::replace(&mut inherited.node, Node::new(Value::Unknown, entry.key_span));
                inherited.node = merge_tables(old, entry.node, path);
                inherited.key_span = entry.key_span;
                path.pop();
            }
        }
    }
    Node::new(Value::Table(merged), child.span)
}

/// Returns where in a TOML string's source a byte of its content stands.
///
/// `source` is the string with its quotes. Escapes make the two differ.
pub(crate) fn source_offset(source: &str, at: usize) -> usize {
    let (open, multi_line, literal) = match source {
        _ if source.starts_with("\"\"\"") => (3, true, false),
        _ if source.starts_with("'''") => (3, true, true),
        _ if source.starts_with('"') => (1, false, false),
        _ if source.starts_with('\'') => (1, false, true),
        _ => (0, false, true),
    };
    let mut raw = open;
    if multi_line {
        raw += ["\r\n", "\n"].iter().find(|end| source[raw..].starts_with(**end)).map_or(0, |end| end.len());
    }
    let mut decoded = 0;
    while raw < source.len() {
        let (taken, made) = next_character(&source[raw..], multi_line, literal);
        if decoded >= at && made > 0 {
            break;
        }
        raw += taken;
        decoded += made;
    }
    raw.min(source.len())
}

/// Returns how many bytes of source the next character takes, and how many of content it makes.
fn next_character(source: &str, multi_line: bool, literal: bool) -> (usize, usize) {
    let mut characters = source.chars();
    let first = characters.next().map_or(1, char::len_utf8);
    if literal || !source.starts_with('\\') {
        return (first, first);
    }
    let digits = match characters.next() {
        Some('x') => 2,
        Some('u') => 4,
        Some('U') => 8,
        Some('\n' | '\r' | ' ' | '\t') if multi_line => {
            let rest = source[1..].trim_start_matches(['\n', '\r', ' ', '\t']);
            return (source.len() - rest.len(), 0);
        }
        _ => return (2, 1),
    };
    let made = source
        .get(2..2 + digits)
        .and_then(|hex| u32::from_str_radix(hex, 16).ok())
        .and_then(char::from_u32)
        .map_or(1, char::len_utf8);
    (2 + digits, made)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Node {
        let mut findings = Findings::default();
        let file = findings.add_text("a.toml", text);
        parse_toml(text, file, &mut findings).expect("valid TOML")
    }

    #[test]
    fn children_win_and_lists_of_work_are_appended() {
        let parent = parse(
            "abstract = true\n[machine]\ncores = 2\ncpu = \"host\"\n[[machine.disk]]\nsize_gib = 1\n\
             [[step]]\nname = \"a\"\n[variables.v]\ntype = \"map\"\ndefault = { a = 1 }\n\
             [source]\niso = \"x\"\nsha256 = \"y\"\n[[check]]\nname = \"c\"\n[[contract]]\nname = \"d\"\n",
        );
        let child = parse(
            "[machine]\ncores = 4\n[[machine.disk]]\nsize_gib = 9\n[[step]]\nname = \"b\"\n\
             [variables.v]\ndefault = { b = 2 }\n[source.checksums]\nfile = \"f\"\n",
        );
        let merged = merge(parent, child).to_json(false);
        let expected = serde_json::json!({
            "machine": {"cores": 4, "cpu": "host", "disk": [{"size_gib": 9}]},
            "variables": {"v": {"type": "map", "default": {"b": 2}}},
            "source": {"iso": "x", "checksums": {"file": "f"}},
            "step": [{"name": "a"}, {"name": "b"}],
            "check": [{"name": "c"}],
            "contract": [{"name": "d"}],
        });
        assert_eq!(merged, expected);
    }

    #[test]
    fn places_in_strings_are_found_through_escapes() {
        for (source, content) in [
            (r#""plain x""#, "plain x"),
            (r"'raw \n x'", r"raw \n x"),
            ("\"\"\"\nline\\\n   x\"\"\"", "linex"),
            (r#""tab\t é\u00e9 \x41 x""#, "tab\t éé A x"),
            ("'''\r\na x'''", "a x"),
        ] {
            let node = parse(&format!("k = {source}"));
            assert_eq!(node.text_at("k"), Some(content));
            let at = source_offset(source, content.find('x').unwrap());
            assert_eq!(at, source.rfind('x').unwrap(), "{source}");
        }
    }
}
