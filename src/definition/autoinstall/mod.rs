//! Finds in an autoinstall file what the installer would refuse, or silently do otherwise.
//!
//! The installer's own schema is loose: it drops unknown keys, ignores misspelt ones inside `ssh`,
//! `source`, `apt` and `storage`, and meets a wrong time zone or source only minutes later, in a
//! machine. Here each of these is a finding before anything starts. Facts of subiquity 24.04.3.

mod rules;
mod shape;
mod tree;

use shape::{AUTOINSTALL, Shape, did_you_mean};
use tree::{Node, Position, Value};

/// Something wrong in an autoinstall file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The line, counted from 1.
    pub line: usize,
    /// The column, counted from 1.
    pub column: usize,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl Finding {
    fn at(position: Position, message: impl Into<String>) -> Self {
        Self { line: position.line, column: position.column, message: message.into() }
    }
}

/// Returns all that is wrong in a rendered autoinstall file, in the order of the file.
#[must_use]
pub(crate) fn lint(yaml: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    check_head(yaml, &mut findings);
    match tree::parse(yaml) {
        Err((at, reason)) => findings.push(Finding::at(at, format!("this is not YAML: {reason}"))),
        Ok(root) => check_root(&root, &mut findings),
    }
    findings.sort_by_key(|finding| (finding.line, finding.column));
    findings
}

fn check_head(yaml: &str, findings: &mut Vec<Finding>) {
    if yaml.starts_with('\u{feff}') {
        findings.push(Finding::at(Position::START, "the file begins with a byte order mark: remove it"));
    } else if yaml.lines().next().map(str::trim_end) != Some("#cloud-config") {
        findings.push(Finding::at(Position::START, "the first line must be `#cloud-config`"));
    }
    if let Some((number, line)) = yaml.split('\n').enumerate().find(|(_, line)| line.ends_with('\r')) {
        let at = Position { line: number + 1, column: line.chars().count() };
        let message = "the file has Windows line ends: save it with line ends of one line feed";
        findings.push(Finding::at(at, message));
    }
}

fn check_root(root: &Node, findings: &mut Vec<Finding>) {
    if !matches!(root.value, Value::Map(_)) {
        findings.push(Finding::at(root.at, "the file must be a mapping with the one key `autoinstall`"));
        return;
    }
    for entry in root.entries().iter().filter(|entry| entry.key != "autoinstall") {
        let known = AUTOINSTALL.iter().any(|key| key.name == entry.key);
        let advice = if known {
            " it belongs under `autoinstall`: indent it".to_owned()
        } else {
            format!(
                " what is meant for the installed system belongs under `autoinstall.user-data`{}",
                did_you_mean(&entry.key, &["autoinstall"])
            )
        };
        let message = format!("the installer refuses `{}` beside `autoinstall`:{advice}", entry.key);
        findings.push(Finding::at(entry.at, message));
    }
    let Some(entry) = root.entry("autoinstall") else {
        findings.push(Finding::at(root.at, "the key `autoinstall` is missing"));
        return;
    };
    shape::check(entry.at, &entry.node, Shape::Map(AUTOINSTALL), "autoinstall", findings);
    rules::check(entry.at, &entry.node, findings);
}

#[cfg(test)]
mod tests;
