//! The builders: each turns a plan into an artifact on its kind of machine.
//!
//! What knows one kind of machine lies below its builder, [`qemu`] or [`proxmox`]. The rest knows a guest by its communicator alone: the work in it
//! (`guest`), the look for secrets (`sweep`), the proof by clones ([`mod@prove`]), what goes in (`inputs`) and what is left (`manifest`).

mod calls;
mod guest;
mod inputs;
pub mod install;
mod manifest;
pub mod prove;
pub mod proxmox;
pub mod qemu;
mod sweep;
pub mod workspace;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use futures_util::future::BoxFuture;

use self::prove::Depth;
use self::workspace::Workspace;
use crate::artifact::{CheckResult, Manifest};
use crate::check::{self, Finding};
use crate::definition::{Audit, Check, CheckAt, Contract, Timeout};
use crate::failure::{Failure, Kind, ResultExt as _};
use crate::plan::Plan;
use crate::run::{Run, Step};

/// How many lines of its console a guest that failed is quoted with, and in how many the reason is looked for.
const CONSOLE_SHOWN: usize = 10;
const CONSOLE_READ: usize = 200;

/// What becomes of a machine whose build failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum OnError {
    /// End it and remove what the build made
    #[default]
    Clean,
    /// Keep the machine running until Ctrl-C, and say how to reach it
    Keep,
    /// Ask, on a terminal; else clean
    Ask,
}

/// How a plan is built.
#[derive(Debug, Clone, Default)]
pub struct BuildOptions {
    /// The artifact's folder, instead of `artifacts/<template>/<release>`.
    pub out: Option<PathBuf>,
    /// Takes the machine of a failed build, if it is wanted.
    pub keeper: Keeper,
    /// Whether the template also gets its own VMID, if that is free; only a cluster has VMIDs.
    pub promote: bool,
}

/// Builds a plan's template on the builder of its profile and returns the artifact's folder.
///
/// # Errors
/// The first failure, with its kind; what the build made is registered to be undone.
pub async fn build(
    plan: &Plan,
    options: &BuildOptions,
    workspace: &Workspace,
    run: &Run,
) -> Result<PathBuf, Failure> {
    match &plan.builder.profile.proxmox {
        Some(profile) => proxmox::build(plan, profile, options, workspace, run).await,
        None => qemu::build(plan, options, workspace, run).await,
    }
}

/// A template that was built.
#[derive(Debug, Clone)]
pub enum Target {
    /// An artifact with its manifest, which says where the template is.
    Artifact {
        /// Its folder.
        folder: PathBuf,
        /// Its manifest.
        manifest: Box<Manifest>,
    },
    /// A template on a cluster.
    Vmid(u32),
}

/// How a template is held to a contract.
#[derive(Debug, Clone)]
pub struct ProveOptions {
    /// How much is tried.
    pub depth: Depth,
    /// The programs that audit a clone.
    pub audits: Vec<Audit>,
    /// What else a run needs to know.
    pub build: BuildOptions,
}

/// Holds a template to a contract on the builder of its plan, writes what was found into its manifest, and returns
/// the folder of that, or of the run where there is none.
///
/// # Errors
/// Kind `Check` when a promise does not hold; else the first failure.
pub async fn prove(
    plan: &Plan,
    target: &Target,
    contract: &Contract,
    options: &ProveOptions,
    workspace: &Workspace,
    run: &Run,
) -> Result<PathBuf, Failure> {
    let proven = match (&plan.builder.profile.proxmox, target) {
        (Some(profile), _) => {
            proxmox::prove(plan, profile, target, contract, options, workspace, run).await?
        }
        (None, Target::Artifact { folder, manifest }) => {
            qemu::prove(plan, folder, manifest, contract, options, workspace, run).await?
        }
        (None, Target::Vmid(vmid)) => {
            return Err(Failure::new(
                Kind::Usage,
                anyhow!("{vmid} is on a cluster, and this builder has none"),
            ));
        }
    };
    let folder = match target {
        Target::Artifact { folder, .. } => {
            manifest::add_proof(folder, &proven)?;
            folder.clone()
        }
        Target::Vmid(_) => run.folder.clone(),
    };
    prove::judge(&proven.results, &format!("promises to {}", contract.name))?;
    Ok(folder)
}

/// Holds the machines of failed builds, for as long as the user wants them; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Keeper {
    wanted: Arc<AtomicBool>,
    machines: Arc<Mutex<Vec<Kept>>>,
}

/// A machine that still runs.
pub struct Kept {
    /// How it is reached, a line for each way, such as `ssh      ssh -p 4711 USER@127.0.0.1`.
    pub how_to_reach: Vec<String>,
    /// Ends it.
    pub end: Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>,
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").field("how_to_reach", &self.how_to_reach).finish_non_exhaustive()
    }
}

impl Keeper {
    /// Says that machines of failed builds are wanted.
    pub fn want(&self) {
        self.wanted.store(true, Ordering::Relaxed);
    }

    /// Tells whether they are.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// Takes a machine that still runs.
    pub fn keep(&self, machine: Kept) {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner).push(machine);
    }

    /// Returns the machines that are kept, and keeps them no longer.
    #[must_use]
    pub fn take(&self) -> Vec<Kept> {
        std::mem::take(&mut *self.machines.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// How many times longer than planned a guest may take for everything, where it is emulated.
#[derive(Debug, Clone, Copy)]
pub struct Patience(pub u32);

impl Patience {
    /// Returns a deadline for something that a guest does.
    #[must_use]
    pub fn scaled(self, limit: Duration) -> Duration {
        limit * self.0
    }
}

/// Returns the checks that are made there, with the patience that guests on this host need.
fn checks_at(plan: &Plan, patience: Patience, place: CheckAt) -> Vec<Check> {
    let here = plan.active_checks().filter(|check| check.at.is_empty() || check.at.contains(&place));
    let mut checks: Vec<Check> = here.cloned().collect();
    for command in checks.iter_mut().filter_map(|check| check.command.as_mut()) {
        command.timeout = command.timeout.map(|limit| Timeout::from(patience.scaled(limit.duration())));
    }
    checks
}

/// Makes a folder in the run's evidence for one machine's logs.
fn machine_folder(workspace: &Workspace, name: &str) -> Result<PathBuf, Failure> {
    let folder = workspace.folder.join(name);
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("making {}", folder.display()))
        .kind(Kind::Infrastructure)?;
    Ok(folder)
}

/// Returns the last lines of a serial console's log, as far as it has any.
fn last_lines(log: &Path) -> Vec<String> {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(CONSOLE_READ)..].iter().map(|line| (*line).to_owned()).collect()
}

/// Shows the last lines of the serial console, and returns those and more before them.
fn show_console(step: &Step<'_>, log: &Path) -> Vec<String> {
    let lines = last_lines(log);
    for line in &lines[lines.len().saturating_sub(CONSOLE_SHOWN)..] {
        step.output(line);
    }
    lines
}

/// Writes findings into the run's folder, for people (`checks-AT.txt`) and programs (`.json`), and
/// returns them as an artifact has them.
fn record_findings(run: &Run, at: &str, findings: Vec<Finding>) -> anyhow::Result<Vec<CheckResult>> {
    let json = serde_json::to_vec_pretty(&findings).context("writing the findings")?;
    let name = at.replace(", ", "-").replace(' ', "-");
    workspace::write_whole(&run.path(format!("checks-{name}.json")), &json)?;
    workspace::write_whole(&run.path(format!("checks-{name}.txt")), check::table(&findings).as_bytes())?;
    let result = |Finding { name, passed, detail }| CheckResult {
        at: at.to_owned(),
        name,
        passed,
        not_proven: false,
        detail,
    };
    Ok(findings.into_iter().map(result).collect())
}
