//! What is known of a run from its events so far: all that the human reports show.

use std::collections::VecDeque;

use crate::event::{Event, Outcome, Record, Span, Unit};

use super::text;

/// How many of a step's last output lines are kept: what a failure shows.
pub(super) const TAIL: usize = 10;

/// Seconds over which a rate is measured.
const RATE_WINDOW: f64 = 10.0;

/// One run.
#[derive(Debug, Default)]
pub(super) struct Run {
    /// The template's name, and the contract's.
    pub(super) template: String,
    /// Whether it is a proof's and not a build's.
    pub(super) is_proof: bool,
    pub(super) folder: String,
    pub(super) plan: String,
    pub(super) steps: Vec<Step>,
    pub(super) warnings: usize,
    /// The checks that could not be made.
    pub(super) not_proven: Vec<String>,
    /// What could not be removed, with the reason.
    pub(super) leftovers: Vec<(String, String)>,
    pub(super) end: Option<End>,
}

/// One step.
#[derive(Debug, Default)]
pub(super) struct Step {
    pub(super) id: String,
    pub(super) title: String,
    /// Seconds from the run's start to the step's.
    pub(super) start: f64,
    pub(super) outcome: Option<Outcome>,
    pub(super) tail: VecDeque<String>,
    pub(super) progress: Option<Progress>,
    pub(super) passed: usize,
    pub(super) failed: usize,
}

/// How far a step has come.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) done: u64,
    pub(super) total: Option<u64>,
    pub(super) unit: Unit,
    pub(super) label: Option<String>,
    /// `(at, done)` within the last [`RATE_WINDOW`].
    samples: VecDeque<(f64, u64)>,
}

/// How a run ended.
#[derive(Debug)]
pub(super) struct End {
    pub(super) outcome: Outcome,
    pub(super) seconds: f64,
    pub(super) artifact: Option<String>,
    pub(super) spans: Vec<Span>,
}

impl Run {
    pub(super) fn apply(&mut self, record: &Record) {
        match &record.event {
            Event::RunStarted { plan, folder, .. } => {
                self.template = record.label();
                self.is_proof = record.contract.is_some();
                self.plan.clone_from(plan);
                self.folder.clone_from(folder);
            }
            Event::StepStarted { step, title } => self.steps.push(Step {
                id: step.clone(),
                title: text::clean(title),
                start: record.at,
                ..Step::default()
            }),
            Event::Output { step, line } => self.with_step(step, |step| step.push_line(line)),
            Event::Progress { step, done, total, unit, label } => self.with_step(step, |step| {
                let label = label.as_deref().map(text::clean);
                step.advance(record.at, *done, *total, *unit, label);
            }),
            Event::Check { step, passed, .. } => self.with_step(step, |step| {
                *(if *passed { &mut step.passed } else { &mut step.failed }) += 1;
            }),
            Event::StepFinished { step, outcome, .. } => {
                self.warnings += usize::from(matches!(outcome, Outcome::Warned { .. }));
                self.with_step(step, |step| step.outcome = Some(outcome.clone()));
            }
            Event::Warning { .. } => self.warnings += 1,
            Event::NotProven { names, .. } => {
                self.not_proven.extend(names.iter().map(|name| text::clean(name)));
            }
            Event::Undone { what, error: Some(error) } => self.leftovers.push((what.clone(), error.clone())),
            Event::RunFinished { outcome, seconds, artifact, spans } => {
                self.end = Some(End {
                    outcome: outcome.clone(),
                    seconds: *seconds,
                    artifact: artifact.clone(),
                    spans: spans.clone(),
                });
            }
            Event::Note { .. } | Event::Retry { .. } | Event::Undone { error: None, .. } => {}
        }
    }

    /// Returns the step of that id; of several, the last.
    pub(super) fn step(&self, id: &str) -> Option<&Step> {
        self.steps.iter().rev().find(|step| step.id == id)
    }

    /// Returns a step's title, or its id where it never started.
    pub(super) fn title<'a>(&'a self, id: &'a str) -> &'a str {
        self.step(id).map_or(id, |step| &step.title)
    }

    /// Returns the step in which the run failed or was stopped: the last to end so, else the one
    /// that still runs.
    pub(super) fn fatal_step(&self) -> Option<&Step> {
        let ended = |step: &&Step| matches!(step.outcome, Some(Outcome::Failed { .. } | Outcome::Cancelled));
        self.steps.iter().rev().find(ended).or_else(|| self.active().last())
    }

    /// Returns the steps that run now, oldest first.
    pub(super) fn active(&self) -> impl Iterator<Item = &Step> {
        let running = self.end.is_none();
        self.steps.iter().filter(move |step| running && step.outcome.is_none())
    }

    fn with_step(&mut self, id: &str, change: impl FnOnce(&mut Step)) {
        if let Some(step) = self.steps.iter_mut().rev().find(|step| step.id == id) {
            change(step);
        }
    }
}

impl Step {
    /// Returns the name to put before the step's output: its id without the kind.
    pub(super) fn short_id(id: &str) -> &str {
        id.rsplit_once(':').map_or(id, |(_, name)| name)
    }

    fn push_line(&mut self, line: &str) {
        let line = text::clean(line);
        if line.is_empty() {
            return;
        }
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    fn advance(&mut self, at: f64, done: u64, total: Option<u64>, unit: Unit, label: Option<String>) {
        let fresh = match &self.progress {
            // Another file or another kind of count begins anew.
            Some(progress) => progress.unit != unit || done < progress.done,
            None => true,
        };
        if fresh {
            self.progress = Some(Progress { done, total, unit, label: None, samples: VecDeque::new() });
        }
        if let Some(progress) = &mut self.progress {
            progress.done = done;
            progress.total = total;
            progress.label = label.or(progress.label.take());
            progress.sample(at, done);
        }
    }
}

impl Progress {
    fn sample(&mut self, at: f64, done: u64) {
        self.samples.push_back((at, done));
        while self.samples.len() > 2 && self.samples[0].0 < at - RATE_WINDOW {
            self.samples.pop_front();
        }
        // Enough for a window; a download that reports each read would fill memory otherwise.
        let length = self.samples.len();
        if length > 3 && self.samples[length - 2].0 - self.samples[length - 3].0 < 0.1 {
            self.samples.remove(length - 2);
        }
    }

    /// Returns units per second over the last seconds, once half a second of them is known.
    pub(super) fn rate(&self) -> Option<f64> {
        let (first, last) = (self.samples.front()?, self.samples.back()?);
        let seconds = last.0 - first.0;
        (seconds >= 0.5).then(|| last.1.saturating_sub(first.1) as f64 / seconds)
    }

    /// Returns the seconds since there was more, where they are many.
    pub(super) fn stalled(&self, now: f64) -> Option<f64> {
        let last = self.samples.back()?;
        let since = self.samples.iter().find(|sample| sample.1 == last.1).unwrap_or(last).0;
        let whole = self.total == Some(self.done);
        (now - since >= RATE_WINDOW && !whole).then_some(now - since)
    }

    /// Returns the seconds left at the present rate.
    pub(super) fn left(&self) -> Option<f64> {
        let rate = self.rate().filter(|rate| *rate > 0.0)?;
        let left = self.total?.checked_sub(self.done).filter(|left| *left > 0)?;
        Some(left as f64 / rate)
    }

    /// Returns the share that is done, 0 to 1.
    pub(super) fn share(&self) -> Option<f64> {
        let total = match self.unit {
            Unit::Percent => self.total.unwrap_or(100),
            Unit::Bytes | Unit::Stages => self.total?,
        };
        (total > 0).then(|| (self.done as f64 / total as f64).min(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(samples: &[(f64, u64)], total: u64) -> Progress {
        let mut step = Step::default();
        for (at, done) in samples {
            step.advance(*at, *done, Some(total), Unit::Bytes, None);
        }
        step.progress.unwrap()
    }

    #[test]
    fn a_rate_follows_the_last_seconds() {
        let steady: Vec<_> = (0..=20).map(|second| (f64::from(second), 1000 * second as u64)).collect();
        assert_eq!(progress(&steady, 30_000).rate(), Some(1000.0));
        assert_eq!(progress(&steady, 30_000).left(), Some(10.0));
        assert_eq!(progress(&steady[..1], 30_000).rate(), None, "one sample is no rate");
        let stalled = progress(&[(0.0, 500), (20.0, 500), (40.0, 500)], 1000);
        assert_eq!((stalled.rate(), stalled.left()), (Some(0.0), None), "a stall has no end in sight");
        assert_eq!(progress(&steady, 30_000).stalled(25.0), None);
        assert_eq!(progress(&steady, 30_000).stalled(32.0), Some(12.0), "no events are a stall as well");
        assert_eq!(progress(&steady, 20_000).stalled(99.0), None, "what is whole waits for nothing");
    }

    #[test]
    fn many_samples_do_not_fill_memory() {
        let fast: Vec<_> = (0..100_000_u64).map(|n| (n as f64 / 10_000.0, n)).collect();
        let progress = progress(&fast, 100_000);
        assert!(progress.samples.len() < 150, "{}", progress.samples.len());
        assert!((progress.rate().unwrap() - 10_000.0).abs() < 1.0);
    }

    #[test]
    fn the_next_file_begins_anew() {
        let second = progress(&[(0.0, 0), (9.0, 900), (10.0, 0), (11.0, 50)], 900);
        assert_eq!(second.rate(), Some(50.0));
    }

    #[test]
    fn output_keeps_its_last_lines_only() {
        let mut step = Step::default();
        for n in 0..100 {
            step.push_line(&format!("line {n}"));
            step.push_line("");
        }
        assert_eq!((step.tail.len(), step.tail[0].as_str()), (TAIL, "line 90"));
    }
}
