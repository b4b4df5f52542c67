//! The report on a terminal: finished steps as lines that stay, running ones live below them.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle, TermLike};

use crate::event::{Event, Record, Sink};

use super::state::Run;
use super::text::{self, Look};
use super::{Verbosity, summary, view};

/// How often the live view is drawn. Times in it change once a second.
const REDRAW: Duration = Duration::from_millis(200);

/// Tells a terminal to show what follows at once, and that it is whole now; terminals that do not
/// know this ignore it.
const SYNCHRONIZED: [&str; 2] = ["\x1b[?2026h", "\x1b[?2026l"];

/// A sink that shows runs live on a terminal.
pub struct Terminal {
    shared: Arc<Mutex<Shared>>,
    screen: Arc<dyn TermLike>,
    bar: ProgressBar,
}

struct Shared {
    runs: Vec<Shown>,
    /// Lines that stay and are not yet on the screen.
    pending: VecDeque<String>,
    prefix_width: usize,
    verbosity: Verbosity,
    color: bool,
}

struct Shown {
    id: String,
    run: Run,
    /// The last event's place in the run's time, and when it came.
    last: (f64, Instant),
}

impl Terminal {
    /// Returns a report on that screen for runs of those templates; it is drawn when an event
    /// leaves a line and at each [`Terminal::draw`].
    pub fn new<T: TermLike + Clone + 'static>(
        screen: &T,
        templates: &[String],
        verbosity: Verbosity,
        color: bool,
    ) -> Self {
        let widest = templates.iter().map(|name| text::columns(name)).max().unwrap_or(0);
        let prefix_width = if templates.len() > 1 { widest } else { 0 };
        let shared = Shared { runs: Vec::new(), pending: VecDeque::new(), prefix_width, verbosity, color };
        let shared = Arc::new(Mutex::new(shared));
        let frame = Frame { shared: Arc::clone(&shared), screen: Arc::new(screen.clone()) };
        let target = ProgressDrawTarget::term_like(Box::new(screen.clone()));
        let bar = ProgressBar::with_draw_target(None, target).with_style(frame.style());
        Self { shared, screen: Arc::new(screen.clone()), bar }
    }

    /// Returns the report on standard output or standard error, drawn five times a second.
    #[must_use]
    pub fn attended(stderr: bool, templates: &[String], verbosity: Verbosity, color: bool) -> Self {
        let term = if stderr { console::Term::buffered_stderr() } else { console::Term::buffered_stdout() };
        let report = Self::new(&term, templates, verbosity, color);
        report.bar.enable_steady_tick(REDRAW);
        report
    }

    /// Draws the live view.
    pub fn draw(&self) {
        self.bar.tick();
    }

    /// Takes the live view away while `work` uses the terminal, such as for a question.
    pub fn suspend<R>(&self, work: impl FnOnce() -> R) -> R {
        self.bar.suspend(work)
    }

    /// Takes the live view away for good; of several runs, says how each ended.
    pub fn finish(&self) {
        let mut shared = lock(&self.shared);
        if shared.runs.len() > 1 {
            let look = shared.look(self.screen.width());
            let lines = summary::all(shared.runs.iter().map(|shown| &shown.run), look);
            shared.pending.push_back(String::new());
            shared.pending.extend(lines);
        }
        drop(shared);
        self.print_pending();
        self.bar.disable_steady_tick();
        self.bar.finish_and_clear();
    }

    fn print_pending(&self) {
        if lock(&self.shared).pending.is_empty() {
            return;
        }
        // A screen that cannot be written to must not stop a build.
        self.screen.write_str(SYNCHRONIZED[0]).ok();
        self.bar.suspend(|| {
            let lines = std::mem::take(&mut lock(&self.shared).pending);
            for line in lines {
                self.screen.write_line(&line).ok();
            }
        });
        self.screen.write_str(SYNCHRONIZED[1]).ok();
        self.screen.flush().ok();
    }
}

impl Sink for Terminal {
    fn emit(&self, record: &Record) {
        lock(&self.shared).take(record, self.screen.width());
        self.print_pending();
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.bar.disable_steady_tick();
        self.bar.finish_and_clear();
    }
}

impl fmt::Debug for Terminal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terminal").finish_non_exhaustive()
    }
}

impl Shared {
    fn take(&mut self, record: &Record, columns: u16) {
        let look = self.look(columns);
        let prefix = self.prefix(&record.label());
        let verbosity = self.verbosity;
        let shown = self.shown(record);
        shown.run.apply(record);
        let lines = view::kept(&shown.run, record, look, verbosity);
        let closing = if let Event::RunFinished { .. } = record.event {
            let evidence = summary::evidence(&shown.run.folder);
            summary::closing(&shown.run, Look { width: columns.into(), ..look }, verbosity, &evidence)
        } else {
            Vec::new()
        };
        self.pending.extend(lines.into_iter().map(|line| format!("{prefix}{line}")));
        if !closing.is_empty() {
            self.pending.push_back(String::new());
            self.pending.extend(closing);
        }
    }

    fn shown(&mut self, record: &Record) -> &mut Shown {
        let now = (record.at, Instant::now());
        let index = self.runs.iter().position(|shown| shown.id == record.run).unwrap_or_else(|| {
            self.runs.push(Shown { id: record.run.clone(), run: Run::default(), last: now });
            self.runs.len() - 1
        });
        let shown = &mut self.runs[index];
        shown.last = now;
        shown
    }

    /// Returns the look of a run's own lines, which stand after the prefix.
    fn look(&self, columns: u16) -> Look {
        let prefix = if self.prefix_width > 0 { self.prefix_width + 2 } else { 0 };
        Look { width: usize::from(columns).saturating_sub(prefix).max(20), color: self.color }
    }

    fn prefix(&self, template: &str) -> String {
        if self.prefix_width == 0 {
            return String::new();
        }
        let pad = (self.prefix_width + 2).saturating_sub(text::columns(template));
        format!("{}{:pad$}", Look { width: 0, color: self.color }.accent(template), "")
    }

    /// Returns the live lines of all runs, fewer of each where the screen is low.
    fn live(&self, now: Instant, size: (u16, u16)) -> Vec<String> {
        if self.verbosity == Verbosity::Quiet {
            return Vec::new();
        }
        // The last column and line stay free: writing there makes some terminals scroll.
        let look = self.look(size.0.saturating_sub(1));
        let room = usize::from(size.1).saturating_sub(1);
        let with_tail = |tail: usize| -> Vec<String> {
            let lines = self.runs.iter().flat_map(|shown| {
                let at = shown.last.0 + now.saturating_duration_since(shown.last.1).as_secs_f64();
                let prefix = self.prefix(&shown.run.template);
                let lines = view::live(&shown.run, at, look, tail);
                lines.into_iter().map(move |line| format!("{prefix}{line}"))
            });
            lines.collect()
        };
        let full = with_tail(usize::MAX);
        let mut lines = if full.len() <= room { full } else { with_tail(1) };
        if lines.len() > room {
            lines = with_tail(0);
        }
        lines.truncate(room);
        lines
    }
}

#[derive(Clone)]
struct Frame {
    shared: Arc<Mutex<Shared>>,
    screen: Arc<dyn TermLike>,
}

impl Frame {
    /// Returns the style of a bar that consists of the live view.
    fn style(self) -> ProgressStyle {
        let style = ProgressStyle::with_template("{frame}").expect("the template is constant");
        style.with_key("frame", move |_: &ProgressState, to: &mut dyn fmt::Write| {
            // Writing to a string cannot fail.
            to.write_str(&self.text(Instant::now())).ok();
        })
    }

    fn text(&self, now: Instant) -> String {
        let size = (self.screen.width(), self.screen.height());
        lock(&self.shared).live(now, size).join("\n")
    }
}

/// Locks what is only ever changed by whole events; after a panic elsewhere it still makes sense.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
