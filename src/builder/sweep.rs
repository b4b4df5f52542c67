//! What a build looks for before its template is one: secrets, in the sealed guest and on the exported disks.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context as _;

use super::guest::Guest;
use super::prove;
use super::workspace::Workspace;
use crate::artifact::{self, CheckResult};
use crate::definition::{DiskFormat, VariableValue};
use crate::event::{Unit, Worker};
use crate::failure::{Failure, Kind, ResultExt as _};
use crate::plan::Plan;
use crate::qemu::img;
use crate::run::Step;
use crate::seed::server::Server;
use crate::sweep::guest::SweepError;
use crate::sweep::{self, Finding, VALUE_MIN, Value, describe};

const IN_GUEST: &str = "no secret is left in the guest";
const IN_GUEST_HINT: &str = "what left it there has to remove it again, or the template's seal script has to";

const ON_DISK: &str = "no secret is left on the disk";
const ON_DISK_HINT: &str = "deleted files stay on a disk that is not trimmed: that takes `seal.trim`, and \
                            `discard` of the disk";

/// What only this build should know.
#[derive(Debug, Clone)]
pub(super) struct Secrets {
    values: Vec<Value>,
    /// The secret variables that are too short to be told from anything else.
    too_short: Vec<String>,
}

impl Secrets {
    /// Returns a build's own: what its guest was told of this server, and the secret variables that are set.
    pub(super) fn of(plan: &Plan, server: &Server) -> Self {
        let url = server.url("");
        let url = url.trim_end_matches('/');
        let token = url.rsplit('/').next().unwrap_or_default();
        let mut values = Value::of("the token of forge's server", token);
        values.extend(Value::of("the URL of forge's server", url));
        values.extend(Value::of("the address of forge's server", server.advertises()));
        let mut too_short = Vec::new();
        for (name, variable) in &plan.variables {
            let VariableValue::Secret(secret) = &variable.value else { continue };
            let found = Value::of(&format!("the secret variable {name}"), secret.expose());
            if secret.is_set() && found.is_empty() {
                too_short.push(name.clone());
            }
            values.extend(found);
        }
        Self { values, too_short }
    }
}

/// What is known of a guest in which no secret was found.
#[derive(Debug)]
pub(super) struct Clean {
    pub(super) check: CheckResult,
    /// The digests of what packages deliver that looks like a secret.
    public: BTreeSet<String>,
}

impl Guest<'_> {
    /// Makes sure that nothing secret is in the sealed guest, and changes nothing there.
    pub(super) async fn sweep(&self, secrets: &Secrets, step: &Step<'_>) -> Result<Clean, Failure> {
        if !secrets.too_short.is_empty() {
            let names = secrets.too_short.join(", ");
            step.warn(&format!("not looked for, being shorter than {VALUE_MIN} characters: {names}"));
        }
        let timeout = self.patience.scaled(self.plan.definition.timeouts.seal.duration());
        let report =
            sweep::guest::look(&secrets.values, "", self.communicator, timeout).await.map_err(|error| {
                let kind = match error {
                    SweepError::TooMuch { .. } => Kind::Plan,
                    SweepError::Incomplete(_) | SweepError::Communicator(_) => (self.fault)(),
                };
                Failure::new(kind, error)
            })?;
        let looked =
            "looked at all files but those in /dev, /proc, /run, /snap and /sys, and compressed ones";
        let check = judge((IN_GUEST, IN_GUEST_HINT), looked, &report.findings, step)?;
        Ok(Clean { check, public: report.public })
    }
}

/// Makes sure that nothing secret is on the exported disks, where deleted files may have left it.
pub(super) async fn sweep_disks(
    disks: &[artifact::Disk],
    folder: &Path,
    workspace: &Workspace,
    secrets: &Secrets,
    clean: &Clean,
    step: &Step<'_>,
) -> Result<CheckResult, Failure> {
    let mut findings = Vec::new();
    for disk in disks {
        let path = folder.join(&disk.file);
        let progress = |percent| step.progress(percent, Some(100), Unit::Percent, Some(&disk.file));
        // What is compressed cannot be looked at; the file is gone as soon as it has been.
        let raw = if disk.format == img::format_name(DiskFormat::Raw) {
            None
        } else {
            step.worker(Worker::Qemu);
            let target = workspace.work(&format!("{}.raw", disk.file));
            let raw = img::unpack(&path, DiskFormat::Qcow2, target, |percent| progress(percent / 2));
            Some(raw.await.kind(Kind::Infrastructure)?)
        };
        step.worker(Worker::Hash);
        let image = raw.as_ref().map_or(path.as_path(), |raw| raw.path());
        let found = sweep::disk::scan(image, &secrets.values, &clean.public, |done, total| {
            let percent = done * 100 / total.max(1);
            progress(if raw.is_some() { 50 + percent / 2 } else { percent });
        })
        .await
        .with_context(|| format!("reading {}", image.display()))
        .kind(Kind::Infrastructure)?;
        let on_disk = |it: Finding| Finding { place: format!("{}, {}", disk.file, it.place), ..it };
        findings.extend(found.into_iter().map(on_disk));
    }
    judge((ON_DISK, ON_DISK_HINT), "looked at all that is no hole", &findings, step)
}

/// Tells what was found, and fails with the hint if that is anything.
fn judge(
    (name, hint): (&str, &str),
    looked: &str,
    findings: &[Finding],
    step: &Step<'_>,
) -> Result<CheckResult, Failure> {
    let passed = findings.is_empty();
    let detail = if passed { looked.to_owned() } else { describe(findings) };
    step.check(name, passed, &detail);
    let result =
        CheckResult { at: "build".to_owned(), name: name.to_owned(), passed, not_proven: false, detail };
    prove::judge(std::slice::from_ref(&result), "promises of the sealed template")
        .map_err(|failure| failure.hint(hint))?;
    Ok(result)
}
