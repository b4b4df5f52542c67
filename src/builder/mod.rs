//! The builders: each turns a plan into an artifact on its kind of machine.

pub mod clone;
pub mod host;
mod inputs;
pub mod install;
pub mod outside;
pub mod proof;
pub mod qemu;
pub mod workspace;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use tokio::process::Command;

use crate::check::{self, Finding};
use crate::definition::{Check, CheckAt, Timeout, VariableValue};
use crate::failure::Kind;
use crate::plan::Plan;
use crate::qemu::{End, Machine};
use crate::run::Run;

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
}

/// Holds the machines of failed builds, for as long as the user wants them; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Keeper {
    wanted: Arc<AtomicBool>,
    machines: Arc<Mutex<Vec<Kept>>>,
}

/// A machine that still runs, with the port on which its SSH may answer.
pub type Kept = (Arc<Machine>, u16);

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

    /// Takes a machine that still runs, with the port on which its SSH may answer.
    pub fn keep(&self, machine: Arc<Machine>, ssh_port: u16) {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner).push((machine, ssh_port));
    }

    /// Returns the machines that are kept, and keeps them no longer.
    #[must_use]
    pub fn take(&self) -> Vec<Kept> {
        std::mem::take(&mut *self.machines.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Returns the checks that are made there, with the patience that guests on this host need.
fn checks_at(plan: &Plan, host: &host::Host, place: CheckAt) -> Vec<Check> {
    let here = plan.active_checks().filter(|check| check.at.is_empty() || check.at.contains(&place));
    let mut checks: Vec<Check> = here.cloned().collect();
    for command in checks.iter_mut().filter_map(|check| check.command.as_mut()) {
        command.timeout = command.timeout.map(|limit| Timeout::from(host.scaled(limit.duration())));
    }
    checks
}

/// Returns the variables' values for the manifest; of a secret only whether it is set.
fn shown_variables(plan: &Plan) -> BTreeMap<String, serde_json::Value> {
    let show = |value: &VariableValue| match value {
        VariableValue::Plain(value) => value.clone(),
        VariableValue::Secret(secret) => serde_json::json!({"secret": true, "set": secret.is_set()}),
    };
    plan.variables.iter().map(|(name, variable)| (name.clone(), show(&variable.value))).collect()
}

/// Writes findings into the run's folder, for people (`checks-AT.txt`) and programs (`.json`).
fn write_findings(run: &Run, at: &str, findings: &[Finding]) -> anyhow::Result<()> {
    let json = serde_json::to_vec_pretty(findings).context("writing the findings")?;
    workspace::write_whole(&run.path(format!("checks-{at}.json")), &json)?;
    workspace::write_whole(&run.path(format!("checks-{at}.txt")), check::table(findings).as_bytes())
}

/// Returns what kind of failure it is that something went wrong with a guest: QEMU's own death is
/// none of the guest's doing.
fn gone(machine: &Machine, otherwise: Kind) -> Kind {
    match machine.state().borrow().end {
        Some(End::Crashed { .. }) => Kind::Infrastructure,
        _ => otherwise,
    }
}

/// Returns what kind of failure it is that a guest does not answer.
fn silence(machine: &Machine) -> Kind {
    match machine.state().borrow().end {
        None => Kind::Deadline,
        Some(End::Crashed { .. }) => Kind::Infrastructure,
        Some(_) => Kind::Guest,
    }
}

/// The file that gets each line of a guest's output whole.
#[derive(Debug)]
struct GuestLog(Mutex<BufWriter<File>>);

impl GuestLog {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| format!("opening {}", path.display()))?;
        Ok(Self(Mutex::new(BufWriter::new(file))))
    }

    /// Writes a line; a full disk must not end a build that succeeds otherwise.
    fn line(&self, line: &str) {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _written = writeln!(file, "{line}").and_then(|()| file.flush());
    }
}

/// Returns the git revision of a folder, with `-dirty` when files differ from it.
async fn git_revision(root: &Path) -> Option<String> {
    let output = Command::new("git")
        .arg("-C")
        .arg(root)
        .args(["describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

/// Copies a run's evidence, as far as it is text or archives of text, into an artifact.
fn copy_logs(from: &Path, to: &Path) -> anyhow::Result<()> {
    let entries = fs::read_dir(from).with_context(|| format!("reading {}", from.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("reading {}", from.display()))?;
        let (path, name) = (entry.path(), entry.file_name());
        let context = || format!("copying {}", path.display());
        if entry.file_type().with_context(context)?.is_dir() {
            if name != "work" {
                copy_logs(&path, &to.join(name))?;
            }
        } else if path
            .extension()
            .is_some_and(|ending| ["json", "jsonl", "log", "txt"].iter().any(|it| ending == *it))
        {
            fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
            fs::copy(&path, to.join(name)).with_context(context)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_revision_says_whether_files_differ_from_it() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(git_revision(folder.path()).await, None);
        let git = |args: &[&str]| {
            let who = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"];
            let output = std::process::Command::new("git")
                .arg("-C")
                .arg(folder.path())
                .args(who)
                .args(args)
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        fs::write(folder.path().join("a"), "1").unwrap();
        git(&["init", "--quiet"]);
        git(&["add", "a"]);
        git(&["commit", "--quiet", "--message", "x"]);
        let head = git(&["rev-parse", "HEAD"]);
        assert_eq!(git_revision(folder.path()).await, Some(head.clone()));
        fs::write(folder.path().join("a"), "2").unwrap();
        assert_eq!(git_revision(folder.path()).await, Some(head + "-dirty"));
    }
}
