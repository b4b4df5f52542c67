//! Thins out progress for programs: a download tells of itself ten times a second.

use crate::event::{Event, Record};

/// The least seconds between two progress events of a step.
const GAP: f64 = 1.0;

/// Lets each step's first and last progress pass, and of the others one a second.
#[derive(Debug, Default)]
pub(super) struct Calm {
    steps: Vec<Told>,
}

#[derive(Debug)]
struct Told {
    run: String,
    step: String,
    /// When its progress was told last.
    at: f64,
    /// What has come since and was held back.
    held: Option<Record>,
}

impl Calm {
    /// Takes a record and gives `write` what is to be told now: none, it alone, or at a step's end the
    /// progress that was held back before it. That one carries the end's time, so that times never
    /// go backwards.
    pub(super) fn take(&mut self, record: &Record, mut write: impl FnMut(&Record)) {
        match &record.event {
            Event::Progress { step, .. } => match self.position(record, step) {
                Some(index) if record.at - self.steps[index].at < GAP => {
                    self.steps[index].held = Some(record.clone());
                }
                Some(index) => {
                    self.steps[index].at = record.at;
                    self.steps[index].held = None;
                    write(record);
                }
                None => {
                    let (run, step) = (record.run.clone(), step.clone());
                    self.steps.push(Told { run, step, at: record.at, held: None });
                    write(record);
                }
            },
            Event::StepFinished { step, .. } => {
                let told = self.position(record, step).map(|index| self.steps.remove(index));
                if let Some(held) = told.and_then(|told| told.held) {
                    write(&Record { at: record.at, ..held });
                }
                write(record);
            }
            _ => write(record),
        }
    }

    fn position(&self, record: &Record, step: &str) -> Option<usize> {
        self.steps.iter().position(|told| told.run == record.run && told.step == step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Outcome, Unit};

    fn record(run: &str, at: f64, event: Event) -> Record {
        Record { at, run: run.to_owned(), template: "t".to_owned(), contract: None, event }
    }

    fn progress(run: &str, at: f64, done: u64) -> Record {
        let event =
            Event::Progress { step: "f".to_owned(), done, total: Some(100), unit: Unit::Bytes, label: None };
        record(run, at, event)
    }

    fn told(records: &[Record]) -> Vec<(f64, Option<u64>)> {
        let (mut calm, mut told) = (Calm::default(), Vec::new());
        for record in records {
            calm.take(record, |record| {
                let done = match record.event {
                    Event::Progress { done, .. } => Some(done),
                    _ => None,
                };
                told.push((record.at, done));
            });
        }
        told
    }

    #[test]
    fn the_first_one_a_second_and_the_last_are_told() {
        let mut records: Vec<_> = (0..=25).map(|n| progress("r", n as f64 / 10.0, n)).collect();
        let end = Event::StepFinished { step: "f".to_owned(), outcome: Outcome::Done, seconds: 2.6 };
        records.insert(5, record("r", 0.45, Event::Note { step: None, message: "passes".to_owned() }));
        records.push(record("r", 2.6, end));
        assert_eq!(
            told(&records),
            [(0.0, Some(0)), (0.45, None), (1.0, Some(10)), (2.0, Some(20)), (2.6, Some(25)), (2.6, None)]
        );
    }

    #[test]
    fn runs_do_not_share_their_seconds() {
        let records = [progress("a", 0.0, 1), progress("b", 0.1, 2), progress("a", 0.2, 3)];
        assert_eq!(told(&records), [(0.0, Some(1)), (0.1, Some(2))]);
    }
}
