//! The report where no terminal is: plain lines, each with its time, no bars, no colour.

use std::fmt;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};

use crate::event::{Event, Outcome, Record, Sink, Unit};

use super::state::{Run, Step};
use super::text::{self, Look};
use super::{Verbosity, summary, view};

/// A progress is told again after so many seconds, or when it is a tenth further.
const AGAIN: f64 = 15.0;

/// The least seconds between two lines about bytes or percent, however fast they come.
const GAP: f64 = 5.0;

/// The least seconds between two lines about known stages; each is worth its line.
const STAGE_GAP: f64 = 1.0;

/// The width of the closing table; other lines are as long as they are.
const WIDTH: usize = 100;

/// A sink that writes plain lines.
pub struct Lines {
    shared: Mutex<Shared>,
}

struct Shared {
    to: Box<dyn Write + Send>,
    clock: fn() -> Timestamp,
    verbosity: Verbosity,
    /// Whether lines name their template.
    several: bool,
    runs: Vec<Shown>,
}

struct Shown {
    id: String,
    run: Run,
    /// The wall clock at the run's start.
    start: Timestamp,
    /// The progress told last, by step.
    told: Vec<Told>,
}

struct Told {
    step: String,
    at: f64,
    done: u64,
    tenth: Option<u64>,
}

impl Lines {
    /// Returns a report that writes there, for runs of those templates.
    #[must_use]
    pub fn new(to: Box<dyn Write + Send>, templates: &[String], verbosity: Verbosity) -> Self {
        Self::with_clock(to, templates, verbosity, Timestamp::now)
    }

    /// Returns a report with another clock.
    #[must_use]
    pub fn with_clock(
        to: Box<dyn Write + Send>,
        templates: &[String],
        verbosity: Verbosity,
        clock: fn() -> Timestamp,
    ) -> Self {
        let several = templates.len() > 1;
        Self { shared: Mutex::new(Shared { to, clock, verbosity, several, runs: Vec::new() }) }
    }

    /// Says what still runs, and for how long: without that a log that stands still looks like a hang.
    pub fn still(&self) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.verbosity == Verbosity::Quiet {
            return;
        }
        let now = (shared.clock)();
        let line = |shown: &Shown, step: &Step| {
            let prefix = if shared.several { format!("{}: ", shown.run.template) } else { String::new() };
            let at = now.duration_since(shown.start).as_secs_f64();
            format!("{prefix}still: {}, for {}", step.title, text::lasted((at - step.start).max(0.0)))
        };
        let steps = shared.runs.iter().filter_map(|shown| Some((shown, shown.run.active().last()?)));
        let lines: Vec<String> = steps.map(|(shown, step)| line(shown, step)).collect();
        shared.write(now, "", &lines);
    }

    /// Of several runs, says how each ended.
    pub fn finish(&self) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.runs.len() > 1 {
            let lines = summary::all(shared.runs.iter().map(|shown| &shown.run), Look::plain(WIDTH));
            let now = (shared.clock)();
            shared.write(now, "", &lines);
        }
    }
}

impl Sink for Lines {
    fn emit(&self, record: &Record) {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).take(record);
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").finish_non_exhaustive()
    }
}

impl Shared {
    fn take(&mut self, record: &Record) {
        let verbosity = self.verbosity;
        let at = SignedDuration::try_from_secs_f64(record.at).unwrap_or_default();
        let clock = self.clock;
        let index = self.runs.iter().position(|shown| shown.id == record.run).unwrap_or_else(|| {
            let start = clock() - at;
            self.runs.push(Shown { id: record.run.clone(), run: Run::default(), start, told: Vec::new() });
            self.runs.len() - 1
        });
        let shown = &mut self.runs[index];
        shown.run.apply(record);
        let mut lines = shown.lines(record, verbosity);
        if let Event::RunFinished { .. } = record.event {
            let evidence = summary::evidence(&shown.run.folder);
            lines.extend(summary::closing(&shown.run, Look::plain(WIDTH), verbosity, &evidence));
        }
        let time = shown.start + at;
        let prefix = if self.several { format!("{}: ", record.label()) } else { String::new() };
        self.write(time, &prefix, &lines);
    }

    fn write(&mut self, time: Timestamp, prefix: &str, lines: &[String]) {
        let time = time.strftime("%H:%M:%SZ");
        let lines = lines.iter().filter(|line| !line.is_empty());
        let text: Vec<String> = lines.map(|line| format!("{time} {prefix}{line}\n")).collect();
        // A reader that has gone must not stop a build.
        self.to.write_all(text.concat().as_bytes()).and_then(|()| self.to.flush()).ok();
    }
}

impl Shown {
    fn lines(&mut self, record: &Record, verbosity: Verbosity) -> Vec<String> {
        let quiet = verbosity == Verbosity::Quiet;
        match &record.event {
            Event::RunStarted { builder, builder_from, folder, .. } if !quiet => vec![
                format!("{} {} on {builder} ({builder_from})", view::verb(record), record.label()),
                format!("run {} of {}, evidence in {folder}", record.run, self.start.strftime("%Y-%m-%d")),
            ],
            Event::StepStarted { title, .. } if !quiet => vec![format!("started: {}", text::clean(title))],
            Event::Output { step, line } if !quiet => {
                let line = text::clean(line);
                vec![format!("{} | {line}", Step::short_id(step))]
            }
            Event::Progress { step, .. } if !quiet => self.progress(step, record.at),
            Event::Note { message, .. } if !quiet => said("note", message),
            Event::Warning { message, .. } => said("warning", message),
            Event::Retry { attempt, of, reason, .. } if !quiet => {
                said("retry", &format!("{attempt} of {of}: {reason}"))
            }
            Event::Check { name, passed, detail, .. } if !passed || verbosity == Verbosity::Verbose => {
                let detail = if detail.is_empty() { String::new() } else { format!(": {detail}") };
                said(if *passed { "check holds" } else { "check does not hold" }, &format!("{name}{detail}"))
            }
            Event::StepFinished { step, outcome, seconds } => self.finished(step, outcome, *seconds, quiet),
            Event::Undone { what, error: None } if !quiet => said("removed", what),
            Event::Undone { what, error: Some(error) } => said("left over", &format!("{what}: {error}")),
            _ => Vec::new(),
        }
    }

    fn finished(&self, id: &str, outcome: &Outcome, seconds: f64, quiet: bool) -> Vec<String> {
        let title = self.run.title(id);
        let after = text::lasted(seconds);
        let held = self.run.step(id).map_or(0, |step| step.passed);
        let checks = if held > 0 { format!(", {}", view::holding(held)) } else { String::new() };
        match outcome {
            Outcome::Done if !quiet => said("done", &format!("{title}, {after}{checks}")),
            Outcome::Skipped { reason } if !quiet => said("skipped", &format!("{title}: {reason}")),
            Outcome::Warned { message } => said("warning", &format!("{title}, {after}: {message}")),
            Outcome::Failed { error } => said("failed", &format!("{title}, {after}: {error}")),
            Outcome::Cancelled => said("stopped", &format!("{title}, {after}")),
            Outcome::Done | Outcome::Skipped { .. } => Vec::new(),
        }
    }

    /// Returns the progress as a line, where it is a tenth further than the one told last, at the
    /// next of known stages, or long after.
    fn progress(&mut self, id: &str, at: f64) -> Vec<String> {
        let Some(step) = self.run.step(id) else { return Vec::new() };
        let Some(progress) = &step.progress else { return Vec::new() };
        let tenth = progress.share().map(|share| (share * 10.0) as u64);
        let last = self.told.iter().position(|told| told.step == id);
        if let Some(told) = last.map(|index| &self.told[index]) {
            let next_stage = progress.unit == Unit::Stages && told.done != progress.done;
            let same = told.tenth == tenth && told.done <= progress.done && !next_stage;
            let gap = if progress.unit == Unit::Stages { STAGE_GAP } else { GAP };
            let quick = at - told.at < gap;
            if quick || (same && at - told.at < AGAIN) {
                return Vec::new();
            }
        }
        let told = Told { step: id.to_owned(), at, done: progress.done, tenth };
        match last {
            Some(index) => self.told[index] = told,
            None => self.told.push(told),
        }
        vec![format!("{}: {}", step.title, view::progress_parts(progress, at).join(", "))]
    }
}

/// Returns the message's lines, the first after what kind it is.
fn said(kind: &str, message: &str) -> Vec<String> {
    text::hang(&format!("{kind}: "), message, usize::MAX)
}
