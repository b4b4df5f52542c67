//! What the verbs have in common that run something and show it: a report, signals, folders, undo.

use std::io::{self, BufRead as _, IsTerminal as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::Context as _;
use futures_util::future::BoxFuture;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::{JoinSet, block_in_place};

use super::common::say;
use super::signals;
use crate::builder::workspace::Workspace;
use crate::builder::{Keeper, OnError};
use crate::event::{self, Event};
use crate::failure::{Failure, Kind, ResultExt as _};
use crate::plan::Plan;
use crate::report::{FailedCommand, Journal, Output, Report, Tee, Verbosity, failure_text, stderr_look};
use crate::run::{Cancel, Run};

/// What becomes of the machines of runs that fail.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(super) struct OnErrorArgs {
    /// What becomes of the machine of a run that fails
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    pub(super) on_error: OnError,
    /// Keep the machine of a run that fails: short for --on-error keep
    #[arg(long, conflicts_with = "on_error")]
    pub(super) keep: bool,
}

/// What one run does: it returns the folder with what it made or looked at.
pub(super) type Body =
    Box<dyn FnOnce(Arc<Workspace>, Arc<Run>) -> BoxFuture<'static, Result<PathBuf, Failure>> + Send>;

/// One of the runs of a command.
pub(super) struct Work {
    pub(super) plan: Plan,
    /// The contract that it holds the template to; a build has none.
    pub(super) contract: Option<String>,
    pub(super) body: Body,
}

/// What the runs of one command share.
pub(super) struct Runs {
    report: Report,
    cancel: Cancel,
    begun: Mutex<Vec<Arc<Run>>>,
    /// A run's lock is held for as long as one of its machines may be kept.
    workspaces: Mutex<Vec<Arc<Workspace>>>,
    ask: bool,
    output: Output,
    keeper: Keeper,
}

/// Starts the runtime in which runs live.
pub(super) fn runtime() -> Result<Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.context("starting the runtime").kind(Kind::Unexpected)
}

/// Prints a failure that no event tells: one before a run has begun.
pub(super) fn tell_programs(output: Output, failure: &Failure) {
    if output == Output::Json {
        // Where standard output is closed, the exit code still tells.
        super::print(&format!("{}\n", FailedCommand::new(failure).to_json())).ok();
    }
}

impl Runs {
    /// Opens the report for runs of these labels and begins to listen for signals.
    ///
    /// # Errors
    /// Kind `Unexpected` when there are no signals to be had.
    pub(super) fn open(
        labels: &[String],
        output: Output,
        verbosity: Verbosity,
        on_error: OnErrorArgs,
    ) -> Result<Arc<Self>, Failure> {
        let keeper = Keeper::default();
        if on_error.keep || on_error.on_error == OnError::Keep {
            keeper.want();
        }
        let attended = io::stdin().is_terminal() && io::stderr().is_terminal();
        let runs = Arc::new(Self {
            report: Report::open(output, verbosity, labels),
            cancel: Cancel::default(),
            begun: Mutex::default(),
            workspaces: Mutex::default(),
            ask: on_error.on_error == OnError::Ask && attended,
            output,
            keeper,
        });
        let for_signal = Arc::clone(&runs);
        signals::listen(runs.cancel.clone(), move || for_signal.say_what_is_left())
            .context("listening for signals")
            .kind(Kind::Unexpected)
            .inspect_err(|failure| tell_programs(output, failure))?;
        Ok(runs)
    }

    /// Returns what takes the machines of runs that fail.
    pub(super) fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    /// Does the work, so much of it at the same time.
    ///
    /// # Errors
    /// The last failure; every other one is shown before.
    pub(super) async fn all(self: &Arc<Self>, work: Vec<Work>, parallel: u8) -> Result<(), Failure> {
        let turns = Arc::new(Semaphore::new(parallel.into()));
        let mut tasks = JoinSet::new();
        for work in work {
            let (runs, turns) = (Arc::clone(self), Arc::clone(&turns));
            tasks.spawn(async move {
                let _turn = turns.acquire().await.context("waiting for a turn").kind(Kind::Unexpected)?;
                runs.one(work).await
            });
        }
        let mut failures = Vec::new();
        while let Some(ended) = tasks.join_next().await {
            failures
                .extend(ended.context("waiting for a run").kind(Kind::Unexpected).and_then(|it| it).err());
        }
        self.report.finish();
        self.keep_machines().await;
        let Some(last) = failures.pop() else { return Ok(()) };
        for failure in failures {
            say(&failure_text(&failure, stderr_look()));
        }
        Err(last)
    }

    async fn one(self: &Arc<Self>, work: Work) -> Result<(), Failure> {
        let Work { plan, contract, body } = work;
        let (workspace, journal) =
            open_folders(&plan).inspect_err(|failure| tell_programs(self.output, failure))?;
        let (workspace, journal) = (Arc::new(workspace), Arc::new(journal));
        self.workspaces.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&workspace));
        let sink = Arc::new(Tee(vec![Arc::clone(self) as Arc<dyn event::Sink>, journal.clone()]));
        let (id, folder) = (workspace.id.clone(), workspace.folder.clone());
        let mut run = Run::new(id, plan.template.clone(), folder, sink, self.cancel.clone());
        if let Some(contract) = contract {
            run = run.holding_to(&contract);
        }
        let run = Arc::new(run);
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&run));
        run.emit(Event::RunStarted {
            format: event::FORMAT_VERSION,
            builder: plan.builder.name.clone(),
            builder_from: plan.builder.from.to_owned(),
            plan: plan.digest.clone(),
            folder: workspace.folder.display().to_string(),
        });
        let mut result = match sweep(&workspace, &run) {
            Ok(()) => body(Arc::clone(&workspace), Arc::clone(&run)).await,
            Err(failure) => Err(failure),
        };
        if let Err(failure) = &mut result {
            // Of a run that was stopped, the report does not tell by what.
            failure.told = self.report.is_on_stderr() && !self.cancel.is_requested();
        }
        if let Err(failure) = &result
            && self.ask
            && !self.cancel.is_requested()
            && block_in_place(|| self.report.suspend(|| ask(failure, &self.cancel)))
        {
            self.keeper.want();
        }
        run.finish(result.as_ref().map(Clone::clone)).await;
        journal.finish().context("writing the run's journal").kind(Kind::Infrastructure)?;
        result.map(|_| ())
    }

    /// Says how kept machines are reached, waits for Ctrl-C, and ends them.
    async fn keep_machines(&self) {
        let machines = self.keeper.take();
        if machines.is_empty() {
            return;
        }
        for machine in &machines {
            say(&format!("\nThe machine is kept until Ctrl-C:\n  {}\n", machine.how_to_reach.join("\n  ")));
        }
        self.cancel.requested().await;
        for machine in machines {
            (machine.end)().await;
        }
        for run in self.begun.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if let Err(error) = Workspace::clear_work(&run.folder) {
                say(&format!("warning: {error:#}\n"));
            }
        }
    }

    fn say_what_is_left(&self) {
        for run in self.begun.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            for (what, by_hand) in run.pending() {
                say(&format!("left behind: {what}; remove it with: {by_hand}\n"));
            }
        }
    }
}

impl event::Sink for Runs {
    fn emit(&self, record: &event::Record) {
        self.report.emit(record);
    }
}

fn open_folders(plan: &Plan) -> Result<(Workspace, Journal), Failure> {
    let workspace = Workspace::create(&plan.root).kind(Kind::Infrastructure)?;
    let journal = Journal::open(&workspace.folder).context("opening the run's journal");
    Ok((workspace, journal.kind(Kind::Infrastructure)?))
}

/// Removes what dead runs left, and says so.
fn sweep(workspace: &Workspace, run: &Run) -> Result<(), Failure> {
    for path in workspace.sweep().kind(Kind::Infrastructure)? {
        let message = format!("removed {}, which a killed build had left", path.display());
        run.emit(Event::Note { step: None, message });
    }
    Ok(())
}

/// Asks whether the machine of a failed run is to be kept; a Ctrl-C says no.
fn ask(failure: &Failure, cancel: &Cancel) -> bool {
    if !failure.told {
        say(&failure_text(failure, stderr_look()));
    }
    say("keep the machine to look at it? [y/N] ");
    let (answers, answer) = oneshot::channel();
    // A thread of its own, because nothing can end its reading: it stays behind after a Ctrl-C.
    thread::spawn(move || {
        let mut line = String::new();
        let read = io::stdin().lock().read_line(&mut line).is_ok();
        // Nobody hears it after a Ctrl-C.
        answers.send(read && line.trim().eq_ignore_ascii_case("y")).ok();
    });
    Handle::current().block_on(async {
        tokio::select! {
            () = cancel.requested() => false,
            keep = answer => keep.unwrap_or(false),
        }
    })
}
