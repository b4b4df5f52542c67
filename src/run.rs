//! One execution of a build: steps one after another, with events, undo and cancel.
//!
//! ```text
//!            step ─► step ─► step ──────────────► finish ─► RunFinished
//!              │ error or cancel                     ▲
//!              └─► undo, newest first, awaited ──────┘
//! ```
//!
//! Time is accounted for without gaps: at every moment the run is in exactly one [`Span`], so the
//! spans sum to the wall time by construction.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use crate::event::{self, Event, Outcome, Record, Sink, Span, Unit, Worker};
use crate::failure::{Failure, Kind};

/// How long one undo may take that says nothing else.
const UNDO_DEADLINE: Duration = Duration::from_secs(30);

/// Asks runs to stop; clones share the request.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    token: CancellationToken,
    kind: Arc<OnceLock<Kind>>,
}

impl Cancel {
    /// Asks every run that shares this to stop, for that reason; only the first reason counts.
    pub fn request(&self, kind: Kind) {
        let _already = self.kind.set(kind);
        self.token.cancel();
    }

    /// Returns when a stop is asked for.
    pub async fn requested(&self) {
        self.token.cancelled().await;
    }

    /// Tells whether a stop is asked for.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Returns the failure that a stopped run ends with.
    #[must_use]
    pub fn failure(&self) -> Failure {
        let kind = self.kind.get().copied().unwrap_or(Kind::Interrupted);
        Failure::new(kind, anyhow::anyhow!("{}", kind.meaning()))
    }
}

/// What an undo is told about the end of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The run failed: evidence is worth taking.
    Failed,
    /// The run was stopped: be quick.
    Cancelled,
}

/// What an undo found to undo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undone {
    /// The thing was there, and is no more.
    Removed,
    /// It was never made, or it is to stay: there is nothing to tell.
    Nothing,
}

impl From<()> for Undone {
    fn from((): ()) -> Self {
        Self::Removed
    }
}

type UndoAction = Box<dyn FnOnce(Ending) -> BoxFuture<'static, anyhow::Result<Undone>> + Send>;

struct Undo {
    id: u64,
    what: String,
    /// The command that removes it by hand, for the list of leftovers.
    by_hand: String,
    limit: Duration,
    /// None while it is under way.
    action: Option<UndoAction>,
}

/// Names a registered undo, to take it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UndoId(u64);

struct Open {
    step: String,
    worker: Worker,
    start: Duration,
}

struct State {
    undo: Vec<Undo>,
    next_undo: u64,
    spans: Vec<Span>,
    open: Open,
}

/// One execution of a build.
pub struct Run {
    /// The run's id, unique and sortable by time.
    pub id: String,
    /// The template's name.
    pub template: String,
    /// The contract that the run holds the template to; a build has none.
    pub contract: Option<String>,
    /// The folder with the run's evidence.
    pub folder: PathBuf,
    sink: Arc<dyn Sink>,
    cancel: Cancel,
    started: Instant,
    state: Mutex<State>,
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run").field("id", &self.id).field("template", &self.template).finish_non_exhaustive()
    }
}

impl Run {
    /// Returns a run whose clock starts now.
    #[must_use]
    pub fn new(id: String, template: String, folder: PathBuf, sink: Arc<dyn Sink>, cancel: Cancel) -> Self {
        let open = Open { step: "start".to_owned(), worker: Worker::Forge, start: Duration::ZERO };
        let state = State { undo: Vec::new(), next_undo: 0, spans: Vec::new(), open };
        let state = Mutex::new(state);
        Self { id, template, contract: None, folder, sink, cancel, started: Instant::now(), state }
    }

    /// Says that the run holds its template to a contract.
    #[must_use]
    pub fn holding_to(mut self, contract: &str) -> Self {
        self.contract = Some(contract.to_owned());
        self
    }

    /// Emits an event of this run.
    pub fn emit(&self, event: Event) {
        let at = event::seconds(self.started.elapsed());
        let (run, template, contract) = (self.id.clone(), self.template.clone(), self.contract.clone());
        self.sink.emit(&Record { at, run, template, contract, event });
    }

    /// Returns a path in the run's folder.
    #[must_use]
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.join(name)
    }

    /// Returns what asks this run to stop.
    #[must_use]
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// Runs one step: emits its start and end, accounts for its time, and stops it at its next
    /// await when the run is cancelled.
    ///
    /// # Errors
    /// What the step returned, or the cancellation.
    pub async fn step<T, F>(&self, id: &str, title: &str, worker: Worker, body: F) -> Result<T, Failure>
    where
        F: AsyncFnOnce(&Step<'_>) -> Result<T, Failure>,
    {
        if self.cancel.is_requested() {
            return Err(self.cancel.failure());
        }
        let started = Instant::now();
        self.switch(id, worker);
        self.emit(Event::StepStarted { step: id.to_owned(), title: title.to_owned() });
        let step = Step { run: self, id, warning: Mutex::new(None) };
        let result = tokio::select! {
            biased;
            () = self.cancel.requested() => Err(self.cancel.failure()),
            result = body(&step) => result,
        };
        let outcome = match &result {
            Ok(_) => match lock(&step.warning).take() {
                Some(message) => Outcome::Warned { message },
                None => Outcome::Done,
            },
            Err(failure) => outcome_of(failure),
        };
        let seconds = event::seconds(started.elapsed());
        self.emit(Event::StepFinished { step: id.to_owned(), outcome, seconds });
        self.switch("between steps", Worker::Forge);
        result
    }

    /// Says that a step has nothing to do.
    pub fn skip(&self, id: &str, title: &str, reason: &str) {
        self.emit(Event::StepStarted { step: id.to_owned(), title: title.to_owned() });
        let outcome = Outcome::Skipped { reason: reason.to_owned() };
        self.emit(Event::StepFinished { step: id.to_owned(), outcome, seconds: 0.0 });
    }

    /// Registers how to remove something again, *before* it is made; it must accept that the
    /// thing was never made, which it may tell as [`Undone::Nothing`]. `by_hand` is the command that
    /// does the same.
    pub fn undo<F, Fut, U>(&self, what: impl Into<String>, by_hand: impl Into<String>, action: F) -> UndoId
    where
        F: FnOnce(Ending) -> Fut + Send + 'static,
        Fut: Future<Output = anyhow::Result<U>> + Send + 'static,
        U: Into<Undone>,
    {
        self.undo_within(UNDO_DEADLINE, what, by_hand, action)
    }

    /// Does the same for what takes longer to remove.
    pub fn undo_within<F, Fut, U>(
        &self,
        limit: Duration,
        what: impl Into<String>,
        by_hand: impl Into<String>,
        action: F,
    ) -> UndoId
    where
        F: FnOnce(Ending) -> Fut + Send + 'static,
        Fut: Future<Output = anyhow::Result<U>> + Send + 'static,
        U: Into<Undone>,
    {
        let mut state = self.state();
        let id = state.next_undo;
        state.next_undo += 1;
        state.undo.push(Undo {
            id,
            what: what.into(),
            by_hand: by_hand.into(),
            limit,
            action: Some(Box::new(|ending| {
                let undone = action(ending);
                Box::pin(async move { undone.await.map(Into::into) })
            })),
        });
        UndoId(id)
    }

    /// Takes an undo back: what it would remove is gone already, or is to stay.
    pub fn forget_undo(&self, id: UndoId) {
        self.state().undo.retain(|undo| undo.id != id.0);
    }

    /// Returns what is still to be undone, each with the command that removes it by hand: what a
    /// second Ctrl-C leaves behind.
    #[must_use]
    pub fn pending(&self) -> Vec<(String, String)> {
        self.state().undo.iter().rev().map(|undo| (undo.what.clone(), undo.by_hand.clone())).collect()
    }

    /// Returns where the time went until now.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        let now = self.started.elapsed();
        let state = self.state();
        let mut spans = state.spans.clone();
        let open = Open { step: state.open.step.clone(), worker: state.open.worker, start: state.open.start };
        push_span(&mut spans, open, now);
        spans
    }

    /// Ends the run: after a failure undoes what it made, newest first, then emits
    /// [`Event::RunFinished`].
    pub async fn finish(&self, result: Result<PathBuf, &Failure>) {
        if let Err(failure) = result {
            let ending = match failure.kind {
                Kind::Interrupted | Kind::Terminated => Ending::Cancelled,
                _ => Ending::Failed,
            };
            self.switch("undo", Worker::Forge);
            self.undo_all(ending).await;
        }
        let end = self.started.elapsed();
        let spans = self.close(end);
        let (outcome, artifact) = match result {
            Ok(path) => (Outcome::Done, Some(path.display().to_string())),
            Err(failure) => (outcome_of(failure), None),
        };
        self.emit(Event::RunFinished { outcome, seconds: event::seconds(end), artifact, spans });
    }

    async fn undo_all(&self, ending: Ending) {
        loop {
            let Some((action, limit)) = self.next_undo() else { return };
            let result = tokio::time::timeout(limit, action(ending)).await;
            // Only now: what is just being removed is left behind by a second Ctrl-C.
            let Some(undo) = self.state().undo.pop() else { return };
            let error = match result {
                Ok(Ok(Undone::Nothing)) => continue,
                Ok(Ok(Undone::Removed)) => None,
                Ok(Err(error)) => Some(format!("{error:#}; remove it with: {}", undo.by_hand)),
                Err(_) => Some(format!(
                    "not done after {}; remove it with: {}",
                    event::human_duration(limit),
                    undo.by_hand
                )),
            };
            self.emit(Event::Undone { what: undo.what, error });
        }
    }

    /// Returns the newest undo's action with its deadline; the undo itself stays until it is done.
    fn next_undo(&self) -> Option<(UndoAction, Duration)> {
        let mut state = self.state();
        let newest = state.undo.last_mut()?;
        Some((newest.action.take()?, newest.limit))
    }

    /// Ends the open span now and begins another.
    fn switch(&self, step: &str, worker: Worker) {
        let now = self.started.elapsed();
        let mut state = self.state();
        let next = Open { step: step.to_owned(), worker, start: now };
        let done = std::mem::replace(&mut state.open, next);
        push_span(&mut state.spans, done, now);
    }

    fn close(&self, end: Duration) -> Vec<Span> {
        let mut state = self.state();
        let next = Open { step: "end".to_owned(), worker: Worker::Forge, start: end };
        let done = std::mem::replace(&mut state.open, next);
        push_span(&mut state.spans, done, end);
        state.spans.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// One step of a run, handed to its body.
#[derive(Debug)]
pub struct Step<'a> {
    run: &'a Run,
    id: &'a str,
    warning: Mutex<Option<String>>,
}

impl Step<'_> {
    /// Returns the run.
    #[must_use]
    pub fn run(&self) -> &Run {
        self.run
    }

    /// Says who is at work from now on.
    pub fn worker(&self, worker: Worker) {
        if self.run.state().open.worker != worker {
            self.run.switch(self.id, worker);
        }
    }

    /// Shows a line that a command in the guest printed.
    pub fn output(&self, line: impl Into<String>) {
        self.run.emit(Event::Output { step: self.id.to_owned(), line: line.into() });
    }

    /// Shows how much is done.
    pub fn progress(&self, done: u64, total: Option<u64>, unit: Unit, label: Option<&str>) {
        let label = label.map(ToOwned::to_owned);
        self.run.emit(Event::Progress { step: self.id.to_owned(), done, total, unit, label });
    }

    /// Puts a fact on the timeline.
    pub fn note(&self, message: impl Into<String>) {
        self.run.emit(Event::Note { step: Some(self.id.to_owned()), message: message.into() });
    }

    /// Adds a warning; the step ends as warned, which shows it.
    pub fn warn(&self, message: &str) {
        let mut warning = lock(&self.warning);
        match &mut *warning {
            Some(earlier) => *earlier = format!("{earlier}\n{message}"),
            None => *warning = Some(message.to_owned()),
        }
    }

    /// Says that checks could not be made, so that nobody takes them for passed; the step ends as warned.
    pub fn not_proven(&self, names: &[&str], reason: &str) {
        self.warn(&format!("not proven: {}: {reason}", names.join("; ")));
        self.run.emit(Event::NotProven {
            step: self.id.to_owned(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            reason: reason.to_owned(),
        });
    }

    /// Shows that something is tried again.
    pub fn retry(&self, attempt: u32, of: u32, reason: impl Into<String>) {
        self.run.emit(Event::Retry { step: self.id.to_owned(), attempt, of, reason: reason.into() });
    }

    /// Shows a check's finding.
    pub fn check(&self, name: &str, passed: bool, detail: &str) {
        self.run.emit(Event::Check {
            step: self.id.to_owned(),
            name: name.to_owned(),
            passed,
            detail: detail.to_owned(),
        });
    }
}

fn outcome_of(failure: &Failure) -> Outcome {
    match failure.kind {
        Kind::Interrupted | Kind::Terminated => Outcome::Cancelled,
        _ => Outcome::Failed { error: failure.to_string() },
    }
}

/// Adds a span; a stretch with the same step and worker as the last one lengthens it.
fn push_span(spans: &mut Vec<Span>, open: Open, end: Duration) {
    let (start, end) = (open.start.as_secs_f64(), end.as_secs_f64());
    match spans.last_mut() {
        Some(last) if last.step == open.step && last.worker == open.worker => last.seconds = end - last.start,
        _ => spans.push(Span { step: open.step, worker: open.worker, start, seconds: end - start }),
    }
}

/// Locks a mutex whose data stay valid whatever a panicking holder did.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<String>>);

    impl Sink for Recorder {
        fn emit(&self, record: &Record) {
            let line = match &record.event {
                Event::StepStarted { step, .. } => format!("start {step}"),
                Event::StepFinished { step, outcome, .. } => format!("end {step} {}", name(outcome)),
                Event::Undone { what, error } => format!("undone {what} {}", error.is_none()),
                Event::RunFinished { outcome, .. } => format!("run {}", name(outcome)),
                _ => return,
            };
            lock(&self.0).push(line);
        }
    }

    fn name(outcome: &Outcome) -> &'static str {
        match outcome {
            Outcome::Done => "done",
            Outcome::Warned { .. } => "warned",
            Outcome::Skipped { .. } => "skipped",
            Outcome::Failed { .. } => "failed",
            Outcome::Cancelled => "cancelled",
        }
    }

    fn run() -> (Arc<Recorder>, Run) {
        let sink = Arc::new(Recorder::default());
        let run = Run::new("r".into(), "t".into(), "/nowhere".into(), sink.clone(), Cancel::default());
        (sink, run)
    }

    /// A build of three steps that makes something in each, and fails or is cancelled in `stop`.
    async fn build(run: &Run, stop: Option<(usize, bool)>) -> Result<PathBuf, Failure> {
        for number in 0..3 {
            let id = format!("s{number}");
            run.step(&id, "title", Worker::Guest, async |_| {
                run.undo(format!("u{number}"), "rm", |_| async { Ok(()) });
                match stop {
                    Some((at, true)) if at == number => {
                        run.cancel().request(Kind::Interrupted);
                        std::future::pending().await
                    }
                    Some((at, false)) if at == number => {
                        Err(Failure::new(Kind::Guest, anyhow::anyhow!("no")))
                    }
                    _ => Ok(()),
                }
            })
            .await?;
        }
        Ok(PathBuf::from("a"))
    }

    #[tokio::test]
    async fn a_stop_in_each_step_undoes_what_was_made_newest_first() {
        for cancelled in [false, true] {
            for at in 0..3 {
                let (sink, run) = run();
                let result = build(&run, Some((at, cancelled))).await;
                run.finish(result.as_ref().map(Clone::clone)).await;
                let word = if cancelled { "cancelled" } else { "failed" };
                let mut expected = Vec::new();
                for number in 0..=at {
                    expected.push(format!("start s{number}"));
                    expected.push(format!("end s{number} {}", if number == at { word } else { "done" }));
                }
                expected.extend((0..=at).rev().map(|number| format!("undone u{number} true")));
                expected.push(format!("run {word}"));
                assert_eq!(*lock(&sink.0), expected);
                assert!(run.pending().is_empty());
            }
        }
    }

    #[tokio::test]
    async fn success_undoes_nothing() {
        let (sink, run) = run();
        let result = build(&run, None).await;
        run.finish(result.as_ref().map(Clone::clone)).await;
        assert_eq!(lock(&sink.0).last().unwrap(), "run done");
        assert_eq!(run.pending().len(), 3);
    }

    #[tokio::test]
    async fn what_was_never_made_is_not_said_to_be_removed() {
        let (sink, run) = run();
        run.undo("made", "rm", |_| async { Ok(Undone::Removed) });
        run.undo("never made", "rm", |_| async { Ok(Undone::Nothing) });
        run.finish(Err(&Failure::new(Kind::Guest, anyhow::anyhow!("no")))).await;
        assert_eq!(*lock(&sink.0), ["undone made true", "run failed"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_undo_that_hangs_becomes_a_leftover_and_the_next_still_runs() {
        let (sink, run) = run();
        run.undo("first", "rm first", |_| async { Ok(()) });
        run.undo("second", "rm second", |_| std::future::pending::<anyhow::Result<()>>());
        run.finish(Err(&Failure::new(Kind::Guest, anyhow::anyhow!("no")))).await;
        assert_eq!(*lock(&sink.0), ["undone second false", "undone first true", "run failed"]);
    }

    #[tokio::test]
    async fn spans_have_no_gaps() {
        let (_, run) = run();
        for worker in [Worker::Guest, Worker::Download] {
            run.step("s", "title", worker, async |step| {
                step.worker(Worker::Hash);
                tokio::task::yield_now().await;
                Ok(())
            })
            .await
            .unwrap();
        }
        let spans = run.close(run.started.elapsed());
        let mut at = 0.0;
        for span in &spans {
            assert!((span.start - at).abs() < 1e-9, "{spans:?}");
            at += span.seconds;
        }
        assert!(spans.iter().any(|span| span.worker == Worker::Hash));
    }
}
