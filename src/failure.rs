//! The one failure type that reaches the command line, and the table of exit codes.

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

/// What kind of failure ended a command; each has its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Something forge did not expect: a defect, or a machine in a strange state.
    Unexpected,
    /// The command line is wrong.
    Usage,
    /// A definition, builder profile, variable or seed file is wrong.
    Definition,
    /// The plan cannot be made: an input is missing, or its digest is wrong.
    Plan,
    /// The machine, the network or the builder failed.
    Infrastructure,
    /// The guest did not install, boot or answer.
    Guest,
    /// A provisioner failed.
    Provision,
    /// A check or the proof did not hold.
    Check,
    /// A promotion was refused.
    Promotion,
    /// A stage ran past its deadline.
    Deadline,
    /// Ctrl-C.
    Interrupted,
    /// SIGTERM.
    Terminated,
}

impl Kind {
    /// Every kind, in the order of the table in the help and the README.
    pub const ALL: [Self; 12] = [
        Self::Unexpected,
        Self::Usage,
        Self::Definition,
        Self::Plan,
        Self::Infrastructure,
        Self::Guest,
        Self::Provision,
        Self::Check,
        Self::Promotion,
        Self::Deadline,
        Self::Interrupted,
        Self::Terminated,
    ];

    /// Returns the process exit code.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Unexpected => 1,
            Self::Usage => 2,
            Self::Definition => 10,
            Self::Plan => 11,
            Self::Infrastructure => 12,
            Self::Guest => 13,
            Self::Provision => 14,
            Self::Check => 15,
            Self::Promotion => 16,
            Self::Deadline => 17,
            Self::Interrupted => 130,
            Self::Terminated => 143,
        }
    }

    /// Returns the line that stands beside the code in the table.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Unexpected => "something forge did not expect",
            Self::Usage => "the command line is wrong",
            Self::Definition => "a definition, builder profile, variable or seed file is wrong",
            Self::Plan => "an input is missing or its digest is wrong",
            Self::Infrastructure => "the machine, the network or the builder failed",
            Self::Guest => "the guest did not install, boot or answer",
            Self::Provision => "a provisioner failed",
            Self::Check => "a check or the proof did not hold",
            Self::Promotion => "a promotion was refused",
            Self::Deadline => "a stage ran past its deadline",
            Self::Interrupted => "interrupted by Ctrl-C",
            Self::Terminated => "terminated by a signal",
        }
    }
}

/// A failure as the user meets it: what kind, the error with its causes, and what to do.
pub struct Failure {
    /// What kind.
    pub kind: Kind,
    /// The error and its causes.
    pub error: anyhow::Error,
    /// What the user can do, one sentence each.
    pub hints: Vec<String>,
    /// Whether the user has read the error already, in a run's report: then only the hints are new.
    pub told: bool,
}

impl Failure {
    /// Returns a failure without hints.
    #[must_use]
    pub fn new(kind: Kind, error: impl Into<anyhow::Error>) -> Self {
        Self { kind, error: error.into(), hints: Vec::new(), told: false }
    }

    /// Returns the failure with one more hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Returns the error's text and those of its causes, without what an error above has said:
    /// many errors repeat their source in their own text.
    #[must_use]
    pub fn messages(&self) -> Vec<String> {
        let mut messages: Vec<String> = Vec::new();
        for cause in self.error.chain().map(ToString::to_string) {
            if !messages.last().is_some_and(|above| above.contains(&cause)) {
                messages.push(cause);
            }
        }
        messages
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.messages().join(": "))
    }
}

impl std::error::Error for Failure {}

/// Gives an error its kind.
pub trait ResultExt<T> {
    /// Turns the error into a [`Failure`] of that kind; a failure inside keeps its own kind.
    ///
    /// # Errors
    /// The failure.
    fn kind(self, kind: Kind) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> ResultExt<T> for Result<T, E> {
    fn kind(self, kind: Kind) -> Result<T, Failure> {
        self.map_err(|error| {
            let error = error.into();
            match error.downcast::<Failure>() {
                Ok(failure) => failure,
                Err(error) => Failure::new(kind, error),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_distinct() {
        let mut codes: Vec<u8> = Kind::ALL.iter().map(|kind| kind.exit_code()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Kind::ALL.len());
    }

    #[test]
    fn a_failure_inside_keeps_its_kind() {
        let inner: Result<(), Failure> = Err(Failure::new(Kind::Check, anyhow::anyhow!("no")));
        assert_eq!(inner.kind(Kind::Guest).unwrap_err().kind, Kind::Check);
    }

    #[test]
    fn what_was_said_is_not_repeated() {
        #[derive(Debug, thiserror::Error)]
        #[error("reading {0}")]
        struct Reading(#[source] std::io::Error);
        let error = anyhow::Error::from(Reading(std::io::Error::other("disk on fire"))).context("fetching");
        let failure = Failure::new(Kind::Plan, error);
        assert_eq!(failure.messages(), ["fetching", "reading disk on fire"]);
        assert_eq!(failure.to_string(), "fetching: reading disk on fire");
    }
}
