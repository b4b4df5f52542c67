//! Shows events: on a terminal, as plain lines, as JSON.
//!
//! [`Report`] is the sink of a whole command; it chooses among [`Terminal`], [`Lines`] and
//! [`Json`]. [`Journal`] is the sink of one run's folder, and [`Tee`] joins them. What guests and
//! other programs print is stripped of control codes before a person sees it; in JSON it is whole.

mod calm;
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
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use crate::event::{Record, Sink};

pub use error::{FailedCommand, failure_text};
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

/// The report of a command with one or more runs. A thread of its own shows what happens, so that
/// a reader that stalls (`forge build | less`, Ctrl-S) does not stall the build.
#[derive(Debug)]
pub struct Report {
    view: Arc<View>,
    /// Whether people read it where they read standard error.
    on_stderr: bool,
    queue: Sender<Message>,
}

/// How long plain lines may be silent; then they say what still runs.
const SILENCE: Duration = Duration::from_mins(1);

#[derive(Debug)]
enum Message {
    Show(Record),
    /// Answered when all before it is shown.
    Shown(Sender<()>),
}

#[derive(Debug)]
struct View {
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
        let on_stderr = output == Output::Json || same_file(&io::stdout(), &io::stderr());
        Self::start(View::open(output, verbosity, templates), on_stderr)
    }

    /// Tells whether what it shows is read where standard error is: then what it has told must not
    /// be told there again.
    #[must_use]
    pub fn is_on_stderr(&self) -> bool {
        self.on_stderr
    }

    fn start(view: View, on_stderr: bool) -> Self {
        let (queue, messages) = mpsc::channel();
        let view = Arc::new(view);
        let shown = Arc::clone(&view);
        thread::spawn(move || {
            loop {
                match messages.recv_timeout(SILENCE) {
                    Ok(Message::Show(record)) => shown.emit(&record),
                    // Whoever asked may have gone.
                    Ok(Message::Shown(done)) => done.send(()).unwrap_or_default(),
                    Err(RecvTimeoutError::Timeout) => shown.still(),
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        });
        Self { view, on_stderr, queue }
    }

    /// Takes the live view away while `work` uses the terminal, such as for a question.
    pub fn suspend<R>(&self, work: impl FnOnce() -> R) -> R {
        self.wait_for_shown();
        match &self.view.human {
            Human::Terminal(terminal) => terminal.suspend(work),
            Human::Lines(_) => work(),
        }
    }

    /// Ends the report: shows what is left to show, takes the live view away, and of several runs
    /// says how each ended.
    pub fn finish(&self) {
        self.wait_for_shown();
        match &self.view.human {
            Human::Terminal(terminal) => terminal.finish(),
            Human::Lines(lines) => lines.finish(),
        }
    }

    fn wait_for_shown(&self) {
        let (done, shown) = mpsc::channel();
        if self.queue.send(Message::Shown(done)).is_ok() {
            // An error means that the thread has gone, and with it what it could show.
            shown.recv().unwrap_or_default();
        }
    }
}

impl Sink for Report {
    fn emit(&self, record: &Record) {
        // Without its thread the report is silent; the journal still has everything.
        self.queue.send(Message::Show(record.clone())).unwrap_or_default();
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.wait_for_shown();
    }
}

impl View {
    fn open(output: Output, verbosity: Verbosity, templates: &[String]) -> Self {
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
                // A live view must not share its terminal with JSON.
                let human = if stderr && !stdout && !dumb() {
                    terminal(true)
                } else {
                    lines(Box::new(io::stderr()), Verbosity::Quiet)
                };
                Self { json: Some(Json::new(Box::new(io::stdout()))), human }
            }
        }
    }

    fn still(&self) {
        match &self.human {
            Human::Terminal(_) => {}
            Human::Lines(lines) => lines.still(),
        }
    }

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

/// One line of `--output json`. A run's `events.jsonl` holds records only.
#[derive(schemars::JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is wanted")]
enum Line {
    Record(Record),
    Failed(FailedCommand),
}

/// Returns the JSON Schema of one line of `--output json` and `events.jsonl`.
#[must_use]
pub fn events_schema() -> serde_json::Value {
    schemars::schema_for!(Line).to_value()
}

/// Returns the JSON Schema of what a query prints instead of an answer.
#[must_use]
pub fn failure_schema() -> serde_json::Value {
    schemars::schema_for!(FailedCommand).to_value()
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

/// Tells whether two streams lead to the same terminal, pipe or file.
fn same_file(one: &impl AsFd, other: &impl AsFd) -> bool {
    match (rustix::fs::fstat(one), rustix::fs::fstat(other)) {
        (Ok(one), Ok(other)) => (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino),
        _ => false,
    }
}

/// Tells whether terminals may get colour: `NO_COLOR` is unset or empty (<https://no-color.org>).
fn color_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && !dumb()
}

/// Tells whether the terminal cannot move its cursor.
fn dumb() -> bool {
    std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb")
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::Receiver;

    use super::*;
    use crate::event::Event;

    /// A reader that takes nothing before it is told to.
    struct Stalled {
        go: Receiver<()>,
        taken: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.go.recv().ok();
            self.taken.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stalled_reader_does_not_stall_the_build_and_loses_nothing() {
        let (told, go) = mpsc::channel();
        let taken = Arc::new(Mutex::new(Vec::new()));
        let stalled = Stalled { go, taken: Arc::clone(&taken) };
        let lines = Lines::new(Box::new(stalled), &[], Verbosity::Normal);
        let report = Report::start(View { json: None, human: Human::Lines(lines) }, false);
        for n in 0..100 {
            let event = Event::Note { step: None, message: format!("note {n}") };
            report.emit(&Record {
                at: 0.0,
                run: "r".to_owned(),
                template: "t".to_owned(),
                contract: None,
                event,
            });
        }
        assert!(taken.lock().unwrap().is_empty());
        drop(told);
        report.finish();
        let text = String::from_utf8(taken.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 100);
        assert!(text.ends_with("note: note 99\n"), "{text}");
    }
}
