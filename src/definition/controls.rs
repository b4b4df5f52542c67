//! The hardening controls of a root, `hardening/controls/*.toml`, and which of them a template applies.

use std::collections::BTreeSet;

use serde::Serialize;

use super::diagnostics::{Finding, Findings, Span, did_you_mean};
use super::model::{Control, Hardening, HardeningProfile};
use super::root::Root;
use super::tree::Node;

/// Where the controls lie, relative to the root.
pub(crate) const FOLDER: &str = "hardening/controls";

/// The name of the step that applies the controls.
pub const HARDENING_STEP: &str = "hardening";

/// A control with its name.
#[derive(Debug, Clone)]
pub struct NamedControl {
    /// The name of its file, without the ending.
    pub name: String,
    /// What it is.
    pub control: Control,
}

impl NamedControl {
    /// Returns the path of its file, relative to the root.
    #[must_use]
    pub fn path(&self) -> String {
        path(&self.name)
    }
}

pub(crate) fn path(name: &str) -> String {
    format!("{FOLDER}/{name}.toml")
}

/// Whether a control is applied, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ControlState {
    /// The template's profile has it.
    On,
    /// The template adds it to its profile.
    Added {
        /// Why.
        reason: String,
    },
    /// The template leaves it out of its profile.
    Off {
        /// Why.
        reason: String,
    },
    /// The template's profile has not got it.
    Beyond,
}

impl ControlState {
    /// Tells whether the control is applied.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        matches!(self, Self::On | Self::Added { .. })
    }
}

impl Hardening {
    /// Returns whether a control is applied, and why.
    #[must_use]
    pub fn state(&self, control: &NamedControl) -> ControlState {
        if let Some(reason) = self.off.get(&control.name) {
            return ControlState::Off { reason: reason.clone() };
        }
        let has = |profile: HardeningProfile| control.control.profile.is_some_and(|lowest| lowest <= profile);
        if self.profile.is_some_and(has) {
            return ControlState::On;
        }
        match self.on.get(&control.name) {
            Some(reason) => ControlState::Added { reason: reason.clone() },
            None => ControlState::Beyond,
        }
    }
}

/// Refuses a template's `[hardening]` that names what is not there, or gives no reason.
pub(crate) fn check_choice(tree: &Node, root: &Root, controls: &[NamedControl], findings: &mut Findings) {
    let Some(hardening) = tree.get("hardening") else { return };
    // What is wrong with a control itself has been reported.
    let known: BTreeSet<String> = root.controls().unwrap_or_default().into_iter().collect();
    for list in ["off", "on"] {
        for entry in hardening.get(list).map_or(&[][..], Node::entries) {
            if !known.contains(&entry.key) {
                findings.push(no_control(&entry.key, entry.key_span, &known));
            } else if entry.node.text().is_some_and(|reason| reason.trim().is_empty()) {
                let message = format!("`{}` needs a reason", entry.key);
                findings.push(
                    Finding::new(entry.node.span, message)
                        .help("in a few words: who reads the list of controls wants to know"),
                );
            }
        }
    }
    for entry in hardening.get("on").map_or(&[][..], Node::entries) {
        if hardening.get("off").is_some_and(|off| off.has(&entry.key)) {
            let message = format!("`{}` is both on and off", entry.key);
            findings.push(Finding::new(entry.key_span, message).help("keep one of the two"));
        }
    }
    let taken: BTreeSet<&str> =
        controls.iter().flat_map(|it| it.control.env.keys()).map(String::as_str).collect();
    for entry in hardening.get("env").map_or(&[][..], Node::entries) {
        if !taken.contains(entry.key.as_str()) && known.len() == controls.len() {
            let help = did_you_mean(&entry.key, taken.iter().copied())
                .unwrap_or_else(|| format!("controls take: {}", list(taken.iter().copied())));
            let message = format!("no control takes `{}`", entry.key);
            findings.push(Finding::new(entry.key_span, message).help(help));
        }
    }
    let own = tree.list("step").iter().filter_map(|step| step.get("name"));
    for name in own.filter(|name| name.text() == Some(HARDENING_STEP)) {
        let message = format!("the step `{HARDENING_STEP}` is the one that applies the controls");
        findings.push(Finding::new(name.span, message).help("give this step another name"));
    }
}

fn no_control(name: &str, span: Span, known: &BTreeSet<String>) -> Finding {
    let help = did_you_mean(name, known.iter().map(String::as_str))
        .unwrap_or_else(|| "`forge controls` lists them".to_owned());
    Finding::new(span, format!("there is no control `{name}` in {FOLDER}/")).help(help)
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(name: &str, profile: Option<HardeningProfile>) -> NamedControl {
        let text = "schema = 1\ntitle = \"t\"\nwhy = \"w\"\nreferences = [\"r\"]\n";
        NamedControl { name: name.to_owned(), control: Control { profile, ..toml::from_str(text).unwrap() } }
    }

    #[test]
    fn a_profile_has_what_lower_ones_have_and_reasons_win() {
        let reason = |text: &str| text.to_owned();
        let hardening = Hardening {
            profile: Some(HardeningProfile::Server),
            off: [("b".to_owned(), reason("no"))].into(),
            on: [("d".to_owned(), reason("yes"))].into(),
            ..Hardening::default()
        };
        for (name, profile, expected) in [
            ("a", Some(HardeningProfile::Base), ControlState::On),
            ("b", Some(HardeningProfile::Base), ControlState::Off { reason: reason("no") }),
            ("c", Some(HardeningProfile::Server), ControlState::On),
            ("d", Some(HardeningProfile::Strict), ControlState::Added { reason: reason("yes") }),
            ("e", Some(HardeningProfile::Strict), ControlState::Beyond),
            ("f", None, ControlState::Beyond),
        ] {
            assert_eq!(hardening.state(&control(name, profile)), expected, "{name}");
        }
        let none = Hardening::default();
        assert_eq!(none.state(&control("a", Some(HardeningProfile::Base))), ControlState::Beyond);
    }
}
