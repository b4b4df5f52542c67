//! Shows events: on a terminal, as plain lines, as JSON.
//!
//! [`Report`] is the sink of a whole command; it chooses among [`Terminal`], [`Lines`] and
//! [`Json`]. [`Journal`] is the sink of one run's folder, and [`Tee`] joins them. What guests and
//! other programs print is stripped of control codes before a person sees it; in JSON it is whole.

mod error;
mod json;
mod lines;
mod state;
mod summary;
mod terminal;
mod text;
mod view;

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

use crate::event::{Record, Sink};

pub use error::failure_text;
pub use json::{JOURNAL, Journal, Json};
pub use lines::Lines;
pub use terminal::Terminal;
pub use text::{Look, clean, human_bytes};

pub(crate) use text::{columns, hang};

/// How a run's events are shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// Live on a terminal, else plain lines
    #[default]
    Human,
    /// Plain lines with their time
    Plain,
    /// One event per line as JSON on standard output; people read standard error
    Json,
}

/// How much is shown; JSON always holds everything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Verbosity {
    /// Warnings, failures and the result.
    Quiet,
    /// Steps, notes, and the last output of what runs.
    #[default]
    Normal,
    /// All output of guests and each check as well.
    Verbose,
}

/// The report of a command with one or more runs.
#[derive(Debug)]
pub struct Report {
    json: Option<Json>,
    human: Human,
}

#[derive(Debug)]
enum Human {
    Terminal(Terminal),
    Lines(Lines),
}

impl Report {
    /// Opens the report for runs of those templates, on standard output and standard error.
    #[must_use]
    pub fn open(output: Output, verbosity: Verbosity, templates: &[String]) -> Self {
        let (stdout, stderr) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        let lines = |to: Box<dyn Write + Send>, verbosity| Human::Lines(Lines::new(to, templates, verbosity));
        let terminal = |on_stderr: bool| {
            Human::Terminal(Terminal::attended(on_stderr, templates, verbosity, color_wanted()))
        };
        match output {
            Output::Human if stdout && !dumb() => Self { json: None, human: terminal(false) },
            Output::Human | Output::Plain => {
                Self { json: None, human: lines(Box::new(io::stdout()), verbosity) }
            }
            Output::Json => {
                let json = Some(Json::new(Box::new(io::stdout())));
                // A live view must not share its terminal with JSON.
                let human = if stderr && !stdout && !dumb() {
                    terminal(true)
                } else {
                    lines(Box::new(io::stderr()), Verbosity::Quiet)
                };
                Self { json, human }
            }
        }
    }

    /// Takes the live view away while `work` uses the terminal, such as for a question.
    pub fn suspend<R>(&self, work: impl FnOnce() -> R) -> R {
        match &self.human {
            Human::Terminal(terminal) => terminal.suspend(work),
            Human::Lines(_) => work(),
        }
    }

    /// Ends the report: takes the live view away, and of several runs says how each ended.
    pub fn finish(&self) {
        match &self.human {
            Human::Terminal(terminal) => terminal.finish(),
            Human::Lines(lines) => lines.finish(),
        }
    }
}

impl Sink for Report {
    fn emit(&self, record: &Record) {
        if let Some(json) = &self.json {
            json.emit(record);
        }
        match &self.human {
            Human::Terminal(terminal) => terminal.emit(record),
            Human::Lines(lines) => lines.emit(record),
        }
    }
}

/// A sink that gives each record to several.
pub struct Tee(pub Vec<Arc<dyn Sink>>);

impl Sink for Tee {
    fn emit(&self, record: &Record) {
        for sink in &self.0 {
            sink.emit(record);
        }
    }
}

impl fmt::Debug for Tee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tee").field(&self.0.len()).finish()
    }
}

/// Returns the JSON Schema of one line of `--output json` and `events.jsonl`.
#[must_use]
pub fn events_schema() -> serde_json::Value {
    schemars::schema_for!(Record).to_value()
}

/// Returns the look of text for standard output.
#[must_use]
pub fn stdout_look() -> Look {
    let color = io::stdout().is_terminal() && color_wanted();
    Look { width: usize::from(console::Term::stdout().size().1), color }
}

/// Returns the look of text for standard error.
#[must_use]
pub fn stderr_look() -> Look {
    let color = io::stderr().is_terminal() && color_wanted();
    Look { width: usize::from(console::Term::stderr().size().1), color }
}

/// Tells whether terminals may get colour: `NO_COLOR` is unset or empty (<https://no-color.org>).
fn color_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && !dumb()
}

/// Tells whether the terminal cannot move its cursor.
fn dumb() -> bool {
    std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb")
}
