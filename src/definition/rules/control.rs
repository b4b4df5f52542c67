//! Hardening controls.

use super::Rules;
use crate::definition::diagnostics::Findings;
use crate::definition::tree::Node;

/// What a control can do to a guest.
const WORK: [&str; 4] = ["sysctl", "modules_off", "file", "script"];

/// Checks a control's file.
pub(crate) fn check_control(tree: &Node, findings: &mut Findings) {
    let mut rules = Rules { tree, findings };
    rules.control();
    rules.checks();
}

impl Rules<'_> {
    fn control(&mut self) {
        let whole = self.tree.span.within(&(0..0));
        for (key, help) in
            [("title", "what the control does, in a line"), ("why", "why it does that, and what it costs")]
        {
            if let Some(node) =
                self.tree.get(key).filter(|it| it.text().is_some_and(|it| it.trim().is_empty()))
            {
                self.refuse(node.span, format!("`{key}` is empty"), help);
            }
        }
        if let Some(references) = self.tree.get("references").filter(|it| it.items().is_empty()) {
            let help = "a benchmark's version and number, or a vendor's document";
            self.refuse(references.span, "nobody is named who asks for this control", help);
        }
        if !WORK.iter().any(|key| self.tree.has(key)) {
            self.refuse(
                whole,
                "the control does nothing",
                "give it `sysctl`, `modules_off`, `[[file]]` or `script`",
            );
        } else if self.tree.has("script") && self.tree.list("check").is_empty() {
            let span = self.tree.entry("script").map_or(whole, |entry| entry.key_span);
            self.refuse(span, "nothing checks what the script does", "add a `[[check]]`");
        }
        for key in ["sysctl", "modules_off"] {
            if let Some(entry) = self.tree.entry(key).filter(|_| !self.tree.has("not_in_container")) {
                let help = "a container has its host's kernel: say so in `not_in_container`";
                self.refuse(entry.key_span, format!("`{key}` cannot apply in a container"), help);
            }
        }
        if let Some(env) = self.tree.get("env") {
            self.env(env);
        }
    }
}
