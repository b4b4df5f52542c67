//! `forge build`: makes templates.

use std::io::{self, BufRead as _, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, anyhow};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::block_in_place;

use super::common::{VarArgs, root, say, warn_of_strays};
use super::plan::StepArgs;
use super::signals;
use crate::builder::workspace::Workspace;
use crate::builder::{self, BuildOptions, Keeper, OnError};
use crate::definition;
use crate::event::{self, Event};
use crate::failure::{Failure, Kind, ResultExt as _};
use crate::plan::{self, Plan};
use crate::report::{FailedCommand, Journal, Output, Report, Tee, Verbosity, failure_text, stderr_look};
use crate::run::{Cancel, Run};

/// What to build, and how.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  forge build ubuntu-noble                       on the local QEMU
  forge build ubuntu-noble --on asgard           on the builder of builders/asgard.toml
  forge build ubuntu-noble --var memory_mib=2048 with another value of a variable
  forge build ubuntu-noble --on asgard --promote and make it the template that users clone
  forge build ubuntu-noble --on-error keep       keep the machine of a failed build")]
pub struct Args {
    /// The templates to build
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// The values of variables.
    #[command(flatten)]
    vars: VarArgs,
    /// Build on this builder: a profile in builders/, or qemu for the local one
    #[arg(long, value_name = "BUILDER")]
    on: Option<String>,
    /// Put the artifact into DIR instead of artifacts/NAME/RELEASE
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Build up to N templates at the same time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    parallel: u8,
    /// The steps to leave out.
    #[command(flatten)]
    steps: StepArgs,
    /// What becomes of the machine of a failed build
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    on_error: OnError,
    /// Keep the machine of a failed build: short for --on-error keep
    #[arg(long, conflicts_with = "on_error")]
    keep: bool,
    /// Give the proven template its own VMID too, if no template has it yet (Proxmox only)
    #[arg(long)]
    promote: bool,
    /// How the build is shown
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Builds the templates.
///
/// # Errors
/// The first failure; that of every other template is shown before.
pub fn run(args: &Args, directory: Option<&Path>, verbosity: Verbosity) -> Result<(), Failure> {
    let (plans, runtime) =
        prepare(args, directory).inspect_err(|failure| tell_programs(args.output, failure))?;
    let result = runtime.block_on(build_all(args, plans, verbosity));
    // What still runs (a name look-up, say) must not delay the end.
    runtime.shutdown_background();
    result
}

fn prepare(args: &Args, directory: Option<&Path>) -> Result<(Vec<Plan>, Runtime), Failure> {
    super::change_to(directory)?;
    let plans = resolve(args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    Ok((plans, runtime.context("starting the runtime").kind(Kind::Unexpected)?))
}

/// Prints a failure that no event tells: one before a run has begun.
fn tell_programs(output: Output, failure: &Failure) {
    if output == Output::Json {
        // Where standard output is closed, the exit code still tells.
        super::print(&format!("{}\n", FailedCommand::new(failure).to_json())).ok();
    }
}

fn resolve(args: &Args) -> Result<Vec<Plan>, Failure> {
    if args.out.is_some() && args.names.len() > 1 {
        return Err(Failure::new(Kind::Usage, anyhow!("--out takes the artifact of one template"))
            .hint("build the templates one by one, or leave --out away"));
    }
    if let Some(twice) = args.names.iter().enumerate().find(|(at, name)| args.names[..*at].contains(name)) {
        return Err(Failure::new(Kind::Usage, anyhow!("{} is named twice", twice.1)));
    }
    let root = root()?;
    let inputs = args.vars.inputs();
    warn_of_strays(&root, &inputs);
    let selection = args.steps.selection();
    let load = |name: &String| definition::load(&root, name, &inputs);
    let templates: Vec<_> = args.names.iter().map(load).collect::<Result<_, _>>()?;
    for (index, template) in templates.iter().enumerate() {
        let others: Vec<_> = templates[..index].iter().collect();
        if let Some(diagnostics) = definition::same_vmid(template, &others) {
            return Err(Failure::new(Kind::Definition, diagnostics));
        }
    }
    let mut plans = Vec::new();
    for loaded in templates {
        let builder = plan::choose_builder(args.on.as_deref(), &inputs.env, &loaded.definition);
        let plan = plan::resolve(&root, loaded, builder, &selection)?;
        if args.promote && plan.builder.profile.proxmox.is_none() {
            let error =
                anyhow!("--promote is for templates on a cluster, and {} builds here", plan.builder.name);
            return Err(Failure::new(Kind::Usage, error).hint("name the cluster's profile: --on asgard"));
        }
        plans.push(plan);
    }
    Ok(plans)
}

/// What the runs of one command share.
struct Shared {
    report: Report,
    cancel: Cancel,
    runs: Mutex<Vec<Arc<Run>>>,
    /// A run's lock is held for as long as one of its machines may be kept.
    workspaces: Mutex<Vec<Arc<Workspace>>>,
    ask: bool,
    output: Output,
}

async fn build_all(args: &Args, plans: Vec<Plan>, verbosity: Verbosity) -> Result<(), Failure> {
    let keeper = Keeper::default();
    if args.keep || args.on_error == OnError::Keep {
        keeper.want();
    }
    let asks = args.on_error == OnError::Ask && io::stdin().is_terminal() && io::stderr().is_terminal();
    let shared = Arc::new(Shared {
        report: Report::open(args.output, verbosity, &args.names),
        cancel: Cancel::default(),
        runs: Mutex::default(),
        workspaces: Mutex::default(),
        ask: asks,
        output: args.output,
    });
    let for_signal = Arc::clone(&shared);
    signals::listen(shared.cancel.clone(), move || for_signal.say_what_is_left())
        .context("listening for signals")
        .kind(Kind::Unexpected)
        .inspect_err(|failure| tell_programs(args.output, failure))?;

    let turns = Arc::new(Semaphore::new(args.parallel.into()));
    let mut builds = tokio::task::JoinSet::new();
    for plan in plans {
        let (shared, turns) = (Arc::clone(&shared), Arc::clone(&turns));
        let options = BuildOptions { out: args.out.clone(), keeper: keeper.clone(), promote: args.promote };
        builds.spawn(async move {
            let _turn = turns.acquire().await.context("waiting for a turn").kind(Kind::Unexpected)?;
            build_one(&plan, &options, &shared).await
        });
    }
    let mut failures = Vec::new();
    while let Some(ended) = builds.join_next().await {
        failures.extend(ended.context("running a build").kind(Kind::Unexpected).and_then(|it| it).err());
    }
    shared.report.finish();
    keep_machines(&keeper, &shared).await;
    let Some(last) = failures.pop() else { return Ok(()) };
    for failure in failures {
        say(&failure_text(&failure, stderr_look()));
    }
    Err(last)
}

async fn build_one(plan: &Plan, options: &BuildOptions, shared: &Arc<Shared>) -> Result<(), Failure> {
    let (workspace, journal) =
        open_folders(plan).inspect_err(|failure| tell_programs(shared.output, failure))?;
    let (workspace, journal) = (Arc::new(workspace), Arc::new(journal));
    shared.workspaces.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&workspace));
    let sink = Arc::new(Tee(vec![Arc::clone(shared) as Arc<dyn event::Sink>, journal.clone()]));
    let id = workspace.id.clone();
    let run =
        Arc::new(Run::new(id, plan.template.clone(), workspace.folder.clone(), sink, shared.cancel.clone()));
    shared.runs.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&run));
    run.emit(Event::RunStarted {
        format: event::FORMAT_VERSION,
        builder: plan.builder.name.clone(),
        builder_from: plan.builder.from.to_owned(),
        plan: plan.digest.clone(),
        folder: workspace.folder.display().to_string(),
    });
    let mut result = match sweep(&workspace, &run) {
        Ok(()) => builder::build(plan, options, &workspace, &run).await,
        Err(failure) => Err(failure),
    };
    if let Err(failure) = &mut result {
        // Of a run that was stopped, the report does not tell by what.
        failure.told = shared.report.is_on_stderr() && !shared.cancel.is_requested();
    }
    if let Err(failure) = &result
        && shared.ask
        && !shared.cancel.is_requested()
        && block_in_place(|| shared.report.suspend(|| ask(failure, &shared.cancel)))
    {
        options.keeper.want();
    }
    run.finish(result.as_ref().map(Clone::clone)).await;
    journal.finish().context("writing the run's journal").kind(Kind::Infrastructure)?;
    result.map(|_| ())
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

/// Asks whether the machine of a failed build is to be kept; a Ctrl-C says no.
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

/// Says how kept machines are reached, waits for Ctrl-C, and ends them.
async fn keep_machines(keeper: &Keeper, shared: &Shared) {
    let machines = keeper.take();
    if machines.is_empty() {
        return;
    }
    for machine in &machines {
        say(&format!("\nThe machine is kept until Ctrl-C:\n  {}\n", machine.how_to_reach.join("\n  ")));
    }
    shared.cancel.requested().await;
    for machine in machines {
        (machine.end)().await;
    }
    for run in shared.runs.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        if let Err(error) = Workspace::clear_work(&run.folder) {
            say(&format!("warning: {error:#}\n"));
        }
    }
}

impl Shared {
    fn say_what_is_left(&self) {
        for run in self.runs.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            for (what, by_hand) in run.pending() {
                say(&format!("left behind: {what}; remove it with: {by_hand}\n"));
            }
        }
    }
}

impl event::Sink for Shared {
    fn emit(&self, record: &event::Record) {
        self.report.emit(record);
    }
}
