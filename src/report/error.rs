//! The text of a failure: the error, its causes, and what to do.

use schemars::JsonSchema;
use serde::Serialize;

use crate::definition::{self, Diagnostic};
use crate::failure::{Failure, Kind};

use super::text::{self, Look};

/// The version of [`FailedCommand`].
const FORMAT_VERSION: u32 = 1;

/// What `--output json` and `--format json` print on standard output when a command fails before it
/// has anything else to say there: before a run has begun, or without an answer. A command line that
/// cannot be parsed asks for no JSON that forge could know of: it fails on standard error alone.
#[derive(Debug, Serialize, JsonSchema)]
pub struct FailedCommand {
    /// The version of this format.
    format: u32,
    /// The failure.
    failure: FailureFacts,
}

/// A failure, for programs.
#[derive(Debug, Serialize, JsonSchema)]
struct FailureFacts {
    /// What kind, as in the table of exit codes.
    kind: Kind,
    /// The exit code of that kind.
    exit_code: u8,
    /// The error.
    message: String,
    /// Its causes, each that of the one before.
    causes: Vec<String>,
    /// What the user can do, one sentence each.
    hints: Vec<String>,
    /// What is wrong in which file, where that is the error.
    diagnostics: Vec<Diagnostic>,
}

impl FailedCommand {
    /// Returns a failure as programs read it.
    #[must_use]
    pub fn new(failure: &Failure) -> Self {
        let found = definition::diagnostics(failure);
        let mut messages = match found {
            // They draw themselves over many lines, which are for people.
            Some(diagnostics) => vec![diagnostics.summary()],
            None => failure.messages(),
        }
        .into_iter();
        let failure = FailureFacts {
            kind: failure.kind,
            exit_code: failure.kind.exit_code(),
            message: messages.next().unwrap_or_default(),
            causes: messages.collect(),
            hints: failure.hints.clone(),
            diagnostics: found.map(|it| it.list().to_vec()).unwrap_or_default(),
        };
        Self { format: FORMAT_VERSION, failure }
    }

    /// Returns it as JSON.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}

/// Returns the text of a failure: `error:`, `caused by:` and `hint:` lines. An error that renders
/// itself over several lines (a diagnostic with its source) stands as it is, and one that a run's
/// report has told is left out.
#[must_use]
pub fn failure_text(failure: &Failure, look: Look) -> String {
    let mut lines = if failure.told { Vec::new() } else { error_lines(failure, look) };
    lines.extend(failure.hints.iter().map(|hint| format!("{} {hint}", look.accent("hint:"))));
    lines.into_iter().map(|line| line + "\n").collect()
}

fn error_lines(failure: &Failure, look: Look) -> Vec<String> {
    let mut messages = failure.messages().into_iter();
    let error = messages.next().unwrap_or_default();
    let mut lines = Vec::new();
    let draws_itself = failure.kind == Kind::Definition || definition::diagnostics(failure).is_some();
    if draws_itself && error.trim_end().contains('\n') {
        lines.push(error.trim_end().to_owned());
    } else {
        lines.push(format!("{} {}", look.bad("error:"), text::clean_lines(error.trim_end()).join("\n")));
    }
    for cause in messages {
        lines.push(format!("{} {}", look.bad("caused by:"), text::clean_lines(&cause).join("\n  ")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    fn shown(failure: &Failure) -> String {
        failure_text(failure, Look::plain(80))
    }

    #[test]
    fn causes_and_hints_have_a_line_each() {
        let error =
            anyhow!("connection refused").context("opening /run/qmp.sock").context("starting the machine");
        let failure = Failure::new(Kind::Infrastructure, error).hint("run `forge doctor`");
        assert_eq!(
            shown(&failure),
            "error: starting the machine\ncaused by: opening /run/qmp.sock\ncaused by: connection refused\n\
             hint: run `forge doctor`\n"
        );
    }

    #[test]
    fn of_what_a_report_has_told_the_hints_are_left() {
        let mut failure = Failure::new(Kind::Plan, anyhow!("there is no file a.iso")).hint("name it");
        failure.told = true;
        assert_eq!(shown(&failure), "hint: name it\n");
    }

    #[test]
    fn a_cause_that_was_already_said_is_not_repeated() {
        #[derive(Debug, thiserror::Error)]
        #[error("reading a.toml: {0}")]
        struct Outer(#[source] std::io::Error);
        let failure = Failure::new(Kind::Definition, Outer(std::io::Error::other("disk on fire")));
        assert_eq!(shown(&failure), "error: reading a.toml: disk on fire\n");
    }

    #[test]
    fn a_diagnostic_stands_as_it_is() {
        let failure = Failure::new(Kind::Definition, anyhow!("  × unknown key\n   ╭─[a.toml:1:1]\n   ╰─\n"));
        assert_eq!(shown(&failure), "  × unknown key\n   ╭─[a.toml:1:1]\n   ╰─\n");
    }

    #[test]
    fn what_else_has_several_lines_begins_as_every_error() {
        let failure = Failure::new(Kind::Infrastructure, anyhow!("the task failed: no space\n    its log\n"));
        assert_eq!(shown(&failure), "error: the task failed: no space\n    its log\n");
    }

    #[test]
    fn control_codes_from_a_guest_do_not_reach_the_terminal() {
        let failure = Failure::new(Kind::Provision, anyhow!("said \x1b[31mno").context("running x\x07"));
        assert_eq!(shown(&failure), "error: running x\ncaused by: said no\n");
    }
}
