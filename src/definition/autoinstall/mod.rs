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

/// Tells whether a rendered autoinstall file has a package installed, by the installer, by the first boot or by a
/// command. What is no YAML installs nothing.
#[must_use]
pub(crate) fn installs(yaml: &str, package: &str) -> bool {
    let Ok(root) = tree::parse(yaml) else { return false };
    let Some(autoinstall) = root.get("autoinstall") else { return false };
    let user_data = autoinstall.get("user-data");
    let lists = [autoinstall.get("packages"), user_data.and_then(|it| it.get("packages"))];
    let is_listed = lists.into_iter().flatten().flat_map(Node::items).any(|it| it.text() == Some(package));
    let commands = [autoinstall.get("late-commands"), user_data.and_then(|it| it.get("runcmd"))];
    let is_installed = |command: &Node| {
        let words = std::iter::once(command).chain(command.items()).filter_map(Node::text);
        let words: Vec<_> = words.flat_map(str::split_whitespace).collect();
        words.contains(&"install") && words.contains(&package)
    };
    is_listed || commands.into_iter().flatten().flat_map(Node::items).any(is_installed)
}

/// Tells whether the installer gives up where no mirror is usable, instead of going on without one.
#[must_use]
pub(crate) fn wants_mirror(yaml: &str) -> bool {
    let root = tree::parse(yaml).ok();
    let apt = root.as_ref().and_then(|root| root.get("autoinstall")?.get("apt"));
    apt.and_then(|apt| apt.get("fallback")).and_then(Node::text) == Some("abort")
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
