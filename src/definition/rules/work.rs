//! Steps, checks and the seal.

use regex::Regex;

use super::Rules;
use crate::definition::diagnostics::one_of;
use crate::definition::tree::{Entry, Node, Value};
use crate::definition::variables::{bad_regex, sounds_secret};

/// The ways a step can work.
const ACTIONS: [&str; 4] = ["shell", "upload", "packages", "reboot"];

/// The ways a check can look.
const KINDS: [&str; 11] = [
    "file",
    "package",
    "service",
    "user",
    "group",
    "sshd",
    "listening",
    "timezone",
    "locale",
    "sysctl",
    "command",
];

impl Rules<'_> {
    pub(super) fn steps(&mut self) {
        self.names("step");
        for step in self.tree.list("step") {
            self.exactly_one(step, &ACTIONS, "step", "does");
            if let Some(shell) = step.get("shell") {
                self.shell(shell);
            }
            if let Some(upload) = step.get("upload") {
                self.upload(upload);
            }
            if let Some(packages) = step.get("packages") {
                self.packages(packages);
            }
        }
    }

    pub(super) fn checks(&mut self) {
        self.names("check");
        for check in self.tree.list("check") {
            self.exactly_one(check, &KINDS, "check", "looks at");
            self.patterns(check);
            self.check_contents(check);
        }
    }

    /// Names must be unique: events, reports, `--only` and `--skip` go by them.
    pub(super) fn names(&mut self, list: &str) {
        let mut seen: Vec<&str> = Vec::new();
        for node in self.tree.list(list).iter().filter_map(|item| item.get("name")) {
            let Some(name) = node.text() else { continue };
            if name.trim().is_empty() {
                self.refuse(node.span, format!("a {list} needs a name"), "");
            } else if seen.contains(&name) {
                let message = format!("there is already a {list} named `{name}`");
                self.refuse(node.span, message, "names are unique in a template and those it extends");
            }
            seen.push(name);
        }
    }

    fn exactly_one(&mut self, item: &Node, kinds: &[&str], list: &str, verb: &str) {
        if !matches!(item.value, Value::Table(_)) {
            return;
        }
        let name = item.text_at("name").unwrap_or_default();
        let there: Vec<_> =
            item.entries().iter().filter(|entry| kinds.contains(&entry.key.as_str())).collect();
        match there.as_slice() {
            [_] => {}
            [] => {
                let known = |entry: &Entry| {
                    !matches!(entry.key.as_str(), "name" | "when" | "timeout" | "retries" | "at")
                };
                // An unknown key may be the misspelt one, and has been reported.
                if !item.entries().iter().any(known) {
                    let message = format!("{list} `{name}` does not say what it {verb}");
                    self.refuse(item.span, message, format!("add one of {}", one_of(kinds)));
                }
            }
            [first, second, ..] => {
                let message = format!("{list} `{name}` has both `{}` and `{}`", first.key, second.key);
                self.refuse(
                    second.key_span,
                    message,
                    format!("make two {list}s of it: each has exactly one"),
                );
            }
        }
    }

    fn shell(&mut self, shell: &Node) {
        match (shell.entry("script"), shell.entry("inline")) {
            (Some(script), Some(inline)) => {
                let later = script.key_span.max(inline.key_span);
                self.refuse(later, "`script` and `inline` both say what runs", "keep one of the two");
            }
            (None, None) if matches!(shell.value, Value::Table(_)) => {
                self.refuse(
                    shell.span,
                    "`shell` does not say what runs",
                    "add `script = \"…\"` or `inline = \"…\"`",
                );
            }
            _ => {}
        }
        if let Some(inline) = shell.get("inline")
            && inline.text().is_some_and(|text| text.trim().is_empty())
        {
            self.refuse(inline.span, "`inline` is empty", "");
        }
        if let Some(interpreter) = shell.get("interpreter") {
            match interpreter.items().first().map(|program| (program, program.text())) {
                None if matches!(interpreter.value, Value::Array(_)) => {
                    self.refuse(
                        interpreter.span,
                        "`interpreter` is empty",
                        "a program with its options, such as [\"/bin/bash\", \"-eu\"]",
                    );
                }
                Some((program, Some(""))) => self.refuse(program.span, "`interpreter` names no program", ""),
                _ => {}
            }
        }
        if let Some(codes) = shell.get("exit_codes")
            && matches!(&codes.value, Value::Array(items) if items.is_empty())
        {
            self.refuse(codes.span, "no exit code would mean success", "remove `exit_codes`, or name one");
        }
        if let Some(env) = shell.get("env") {
            self.env(env);
        }
    }

    pub(super) fn env(&mut self, env: &Node) {
        for entry in env.entries() {
            let name = entry.key.as_str();
            let start = |c: char| c.is_ascii_alphabetic() || c == '_';
            if !name.starts_with(start) || !name.chars().all(|c| start(c) || c.is_ascii_digit()) {
                self.refuse(
                    entry.key_span,
                    format!("`{name}` is not a name that an environment variable can have"),
                    "letters, digits and `_`, not beginning with a digit",
                );
            }
            let Some(text) = entry.node.text() else { continue };
            if text.contains('\0') {
                self.refuse(entry.node.span, format!("the value of `{name}` holds a NUL"), "");
            }
            if entry.node.rendered.is_none() && !text.is_empty() && sounds_secret(name) {
                self.findings.mask(entry.node.span);
                self.refuse(
                    entry.node.span,
                    format!("`{name}` sounds like a secret and stands in the file for all to read"),
                    "declare a variable with `secret = true` and write \"{{ var.… }}\" here",
                );
            }
        }
    }

    fn upload(&mut self, upload: &Node) {
        if let Some(destination) = upload.get("destination")
            && destination.text().is_some_and(|path| path.split('/').any(|part| part == ".."))
        {
            self.refuse(
                destination.span,
                "`destination` must not go through `..`",
                "write the path it leads to",
            );
        }
        self.owner(upload);
    }

    fn owner(&mut self, table: &Node) {
        let Some(owner) = table.get("owner") else { return };
        let Some(text) = owner.text() else { return };
        let part = |name: &str| {
            !name.is_empty()
                && !name.starts_with('-')
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-$".contains(&byte))
        };
        if !text.split_once(':').is_some_and(|(user, group)| part(user) && part(group)) {
            self.refuse(
                owner.span,
                format!("`{text}` is not an owner"),
                "a user and a group, such as `root:root`",
            );
        }
    }

    fn packages(&mut self, packages: &Node) {
        let Some(install) = packages.get("install") else { return };
        if matches!(&install.value, Value::Array(items) if items.is_empty())
            && packages.bool_at("upgrade") != Some(true)
        {
            self.refuse(install.span, "no package is named", "name some, or set `upgrade = true`");
        }
        for package in install.items() {
            let Some(name) = package.text() else { continue };
            let good = name.starts_with(|first: char| first.is_ascii_alphanumeric())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+.-:=~_/".contains(&byte));
            if !good {
                let help = if name.contains(' ') { "one string for each package" } else { "" };
                self.refuse(package.span, format!("`{name}` is not a package's name"), help);
            }
        }
    }

    fn patterns(&mut self, check: &Node) {
        for (kind, key) in [("file", "contains"), ("file", "lacks"), ("command", "stdout")] {
            let Some(node) = check.get(kind).and_then(|table| table.get(key)) else { continue };
            if let Some(text) = node.text()
                && let Err(error) = Regex::new(text)
            {
                self.findings.push(bad_regex(node.span, text, &error));
            }
        }
    }

    fn check_contents(&mut self, check: &Node) {
        for kind in ["file", "user"] {
            let Some(table) = check.get(kind) else { continue };
            if table.bool_at("exists") == Some(false)
                && let Some(other) = table
                    .entries()
                    .iter()
                    .find(|entry| !matches!(entry.key.as_str(), "exists" | "path" | "name"))
            {
                let message = format!("what does not exist has no `{}`", other.key);
                self.refuse(other.key_span, message, "remove it, or `exists = false`");
            }
            if kind == "file" {
                self.owner(table);
            }
        }
        if let Some(service) = check.get("service")
            && matches!(service.value, Value::Table(_))
            && !service.has("active")
            && !service.has("enabled")
        {
            self.refuse(
                service.span,
                "`service` says nothing to check",
                "add `active = true` or `enabled = \"enabled\"`",
            );
        }
        for kind in ["sshd", "sysctl"] {
            let Some(settings) = check.get(kind) else { continue };
            if matches!(&settings.value, Value::Table(entries) if entries.is_empty()) {
                self.refuse(settings.span, format!("`{kind}` says nothing to check"), "");
            }
        }
        for setting in check.get("sshd").map_or(&[][..], Node::entries) {
            if setting.key.bytes().any(|byte| byte.is_ascii_uppercase()) {
                let message = format!("`sshd -T` prints `{}` in lower case", setting.key);
                self.refuse(setting.key_span, message, format!("write `{}`", setting.key.to_lowercase()));
            }
        }
        if let Some(command) = check.get("command").and_then(|command| command.get("run"))
            && command.text().is_some_and(|text| text.trim().is_empty())
        {
            self.refuse(command.span, "`run` is empty", "");
        }
    }

    pub(super) fn seal(&mut self) {
        let Some(seal) = self.tree.get("seal") else { return };
        if let Some(env) = seal.get("env") {
            self.env(env);
        }
        for path in seal.list("absent") {
            if path.text().is_some_and(|text| !text.starts_with('/')) {
                self.refuse(path.span, "paths in `absent` are absolute", "begin it with `/`");
            }
        }
    }
}
