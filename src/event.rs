//! What happens during a run, as plain data.
//!
//! Builders emit events and reports show them; neither knows the other. Every event is also one
//! line of `--output json` and of the run's `events.jsonl` (see [`Record`]), so the names here are
//! a published format: [`FORMAT_VERSION`] changes when a field changes its meaning.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The version of the event format, carried by [`Event::RunStarted`].
pub const FORMAT_VERSION: u32 = 1;

/// One event with its place in time, as written to `events.jsonl` and by `--output json`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Record {
    /// Seconds since the run started.
    pub at: f64,
    /// The run's id.
    pub run: String,
    /// The template's name.
    pub template: String,
    /// The contract that the run holds the template to; a build has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contract: Option<String>,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

impl Record {
    /// Returns what the run works on, as a person names it.
    #[must_use]
    pub fn label(&self) -> String {
        match &self.contract {
            Some(contract) => format!("{} as {contract}", self.template),
            None => self.template.clone(),
        }
    }
}

/// Who was at work in a stretch of time; forge's own share of a build is [`Worker::Forge`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Worker {
    /// forge itself: rendering, bookkeeping, waiting for nobody.
    Forge,
    /// A guest: installing, booting, running a provisioner or a check.
    Guest,
    /// A download.
    Download,
    /// Hashing or verifying an input.
    Hash,
    /// QEMU or qemu-img outside the guest: starting, stopping, converting.
    Qemu,
    /// A Proxmox node: its tasks and its answers.
    Node,
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It did what it was for.
    Done,
    /// It did what it was for, and there is something to know.
    Warned {
        /// What to know.
        message: String,
    },
    /// It had nothing to do.
    Skipped {
        /// Why.
        reason: String,
    },
    /// It failed; the run undoes what it made and ends.
    Failed {
        /// The error, whole.
        error: String,
    },
    /// It was stopped by the user or a signal.
    Cancelled,
}

/// What a progress event counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Bytes, shown with a rate and the time left.
    Bytes,
    /// Known stages of something that reports them.
    Stages,
    /// Percent of something that reports only that.
    Percent,
}

/// Something that happened in a run. Steps are named by their id, unique within the run.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The first event of every run.
    RunStarted {
        /// The version of this format, [`FORMAT_VERSION`].
        format: u32,
        /// The builder profile's name.
        builder: String,
        /// Why that builder: `--on`, `FORGE_BUILDER`, the template, or the default.
        builder_from: String,
        /// The plan digest, `sha256:…`.
        plan: String,
        /// The folder with the run's evidence.
        folder: String,
    },
    /// A step began.
    StepStarted {
        /// The step's id, such as `install` or `step:packages`.
        step: String,
        /// What a person reads, such as "installing from the medium".
        title: String,
    },
    /// A line that a command in the guest printed.
    Output {
        /// The step.
        step: String,
        /// The line, without its end.
        line: String,
    },
    /// Something done of a known or unknown whole; in JSON about once a second, and at the step's end.
    Progress {
        /// The step.
        step: String,
        /// How much is done.
        done: u64,
        /// How much there is, if known.
        total: Option<u64>,
        /// What is counted.
        unit: Unit,
        /// What is being done, when that changes (the installer's stage, a file's name).
        label: Option<String>,
    },
    /// A fact for the timeline, such as "installer fetched user-data after 21 s".
    Note {
        /// The step in which it happened.
        step: Option<String>,
        /// The fact.
        message: String,
    },
    /// Something to know that does not stop the run.
    Warning {
        /// The step in which it happened.
        step: Option<String>,
        /// The warning.
        message: String,
    },
    /// Something is tried again.
    Retry {
        /// The step.
        step: String,
        /// Which attempt comes now, counting from 1.
        attempt: u32,
        /// How many there will be at most.
        of: u32,
        /// Why the last one failed.
        reason: String,
    },
    /// A check's finding.
    Check {
        /// The step.
        step: String,
        /// The check's name.
        name: String,
        /// Whether it holds.
        passed: bool,
        /// What was found, above all when it does not hold.
        detail: String,
    },
    /// Checks that could not be made: nobody knows whether they would have held.
    NotProven {
        /// The step.
        step: String,
        /// The checks' names.
        names: Vec<String>,
        /// Why.
        reason: String,
    },
    /// A step ended.
    StepFinished {
        /// The step.
        step: String,
        /// How.
        #[serde(flatten)]
        outcome: Outcome,
        /// Seconds it took.
        seconds: f64,
    },
    /// Something the run had made was removed again.
    Undone {
        /// What.
        what: String,
        /// Why it could not be removed, if so: then it is a leftover.
        error: Option<String>,
    },
    /// The last event of every run.
    RunFinished {
        /// How.
        #[serde(flatten)]
        outcome: Outcome,
        /// Seconds it took.
        seconds: f64,
        /// The artifact's folder, after success.
        artifact: Option<String>,
        /// Where the time went; the spans follow one another without gaps.
        spans: Vec<Span>,
    },
}

/// A stretch of a run's time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Span {
    /// The step.
    pub step: String,
    /// Who was at work.
    pub worker: Worker,
    /// Seconds since the run started.
    pub start: f64,
    /// Seconds it lasted.
    pub seconds: f64,
}

/// Takes events as they happen; must not block.
pub trait Sink: Send + Sync {
    /// Takes one event.
    fn emit(&self, record: &Record);
}

/// A sink that forgets, for callers that show nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Discard;

impl Sink for Discard {
    fn emit(&self, _record: &Record) {}
}

/// Returns a duration as seconds rounded to milliseconds, as events carry it.
#[must_use]
pub fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

/// Returns a duration as a person reads it: `0.3 s`, `42 s`, `3 min 05 s`, `1 h 02 min`.
#[must_use]
pub fn human_duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    let whole = (seconds + 0.5) as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        for (millis, text) in [
            (0, "0.0 s"),
            (340, "0.3 s"),
            (9_949, "9.9 s"),
            (9_960, "10 s"),
            (59_600, "1 min 00 s"),
            (185_000, "3 min 05 s"),
            (3_720_000, "1 h 02 min"),
        ] {
            assert_eq!(human_duration(Duration::from_millis(millis)), text);
        }
    }
}
