//! What an artifact holds besides its disks: the manifest, the software bill of materials and the logs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::Context as _;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::process::Command;

use super::guest::Facts;
use super::prove::Proven;
use super::workspace::{Staging, Workspace, write_whole};
use crate::artifact::{self, BuilderInfo, CheckResult, ContractProof, ControlChoice, Manifest};
use crate::definition::{ControlState, VariableValue};
use crate::failure::{Failure, Kind, ResultExt as _};
use crate::plan::{Plan, PlannedControl};
use crate::run::Run;
use crate::sbom;

/// What a build made.
#[derive(Debug)]
pub(super) enum Product {
    /// Files, the system's disk first.
    Disks(Vec<artifact::Disk>),
    /// A template on a cluster.
    Template(artifact::Place),
}

/// Returns what is known of a build when it is done.
#[expect(clippy::too_many_arguments, reason = "one call site; a struct would only rename them")]
pub(super) fn manifest(
    plan: &Plan,
    builder: BuilderInfo,
    run: &Run,
    media: Vec<artifact::Input>,
    product: Product,
    (checks, proofs): (Vec<CheckResult>, Vec<ContractProof>),
    facts: &Facts,
    revision: Option<String>,
) -> Manifest {
    let template = &plan.definition.template;
    let files = plan.inputs.iter().filter_map(|input| {
        Some(artifact::Input {
            name: input.location.clone(),
            sha256: input.sha256.clone()?,
            size: input.size?,
        })
    });
    let mut inputs: Vec<_> = files.collect();
    inputs.extend(media);
    let (mut disks, place) = match product {
        Product::Disks(disks) => (disks.into_iter(), None),
        Product::Template(place) => (Vec::new().into_iter(), Some(place)),
    };
    Manifest {
        format: artifact::MANIFEST_VERSION,
        template: plan.template.clone(),
        name: template.name.clone(),
        vmid: template.vmid,
        release: template.release.clone(),
        run: run.id.clone(),
        built_at: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        plan: plan.digest.clone(),
        forge: artifact::ForgeInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: crate::REVISION.map(str::to_owned),
        },
        revision,
        builder,
        inputs,
        variables: shown_variables(plan),
        machine: plan.definition.machine.clone(),
        disk: disks.next(),
        more_disks: disks.collect(),
        place,
        os: facts.os.clone(),
        checks,
        proofs,
        audits: Vec::new(),
        controls: plan.controls.iter().map(choice).collect(),
        packages: facts.packages.iter().map(|package| package.facts.clone()).collect(),
        sbom: None,
        spans: run.spans(),
    }
}

fn choice(planned: &PlannedControl) -> ControlChoice {
    let reason = match &planned.state {
        ControlState::Added { reason } | ControlState::Off { reason } => Some(reason.clone()),
        ControlState::On | ControlState::Beyond => None,
    };
    ControlChoice { name: planned.control.name.clone(), applied: planned.state.is_on(), reason }
}

/// Writes the manifest and the logs into a folder.
pub(super) fn write(manifest: &Manifest, run: &Run, folder: &Path) -> Result<(), Failure> {
    copy_logs(&run.folder, &folder.join("logs")).kind(Kind::Infrastructure)?;
    write_manifest(manifest, folder)
}

/// Writes the manifest into an artifact's folder.
pub(super) fn write_manifest(manifest: &Manifest, folder: &Path) -> Result<(), Failure> {
    let mut text =
        serde_json::to_vec_pretty(manifest).context("writing the manifest").kind(Kind::Unexpected)?;
    text.push(b'\n');
    write_whole(&folder.join(artifact::MANIFEST_FILE), &text).kind(Kind::Infrastructure)
}

/// Writes what a proof has found into an artifact's manifest, in the place of what was found before.
pub(super) fn add_proof(folder: &Path, proven: &Proven) -> Result<(), Failure> {
    // Proofs that run at the same time, here or in another forge, write one after another, each into what the
    // other has left. The manifest itself is replaced, so the folder is locked; closing it ends that.
    let _turn = fs::File::open(folder)
        .and_then(|turn| turn.lock().map(|()| turn))
        .with_context(|| format!("waiting for others to write into {}", folder.display()))
        .kind(Kind::Infrastructure)?;
    let path = folder.join(artifact::MANIFEST_FILE);
    let text =
        fs::read(&path).with_context(|| format!("reading {}", path.display())).kind(Kind::Infrastructure)?;
    let mut manifest = Manifest::parse(&text)
        .with_context(|| format!("reading {}", path.display()))
        .kind(Kind::Infrastructure)?;
    manifest.format = artifact::MANIFEST_VERSION;
    let contract = proven.proof.contract.as_str();
    manifest.checks.retain(|check| check.at.split(", ").next() != Some(contract));
    manifest.checks.extend(proven.results.iter().cloned());
    manifest.proofs.retain(|proof| proof.contract != contract);
    manifest.proofs.push(proven.proof.clone());
    for audit in &proven.audits {
        manifest.audits.retain(|old| old.audit != audit.audit);
        manifest.audits.push(audit.clone());
    }
    write_manifest(&manifest, folder)
}

/// Writes the software bill of materials into a folder, and returns what a manifest has of it.
fn write_sbom(
    manifest: &Manifest,
    packages: &[sbom::Package],
    folder: &Path,
) -> anyhow::Result<artifact::Sbom> {
    let text = sbom::render(manifest, packages).context("writing the software bill of materials")?;
    write_whole(&folder.join(sbom::FILE), &text)?;
    Ok(artifact::Sbom {
        file: sbom::FILE.to_owned(),
        sha256: format!("{:x}", Bytes::copy_from_slice(&Sha256::digest(&text))),
        size: text.len() as u64,
    })
}

/// Writes the software bill of materials, the manifest, which learns of it, and the logs, and puts the
/// artifact into its place.
pub(super) fn finish(
    manifest: &mut Manifest,
    facts: &Facts,
    run: &Run,
    workspace: &Workspace,
    staging: &Staging,
) -> Result<(), Failure> {
    let sbom = write_sbom(manifest, &facts.packages, &staging.partial).kind(Kind::Infrastructure)?;
    manifest.sbom = Some(sbom);
    write(manifest, run, &staging.partial)?;
    staging.commit().kind(Kind::Infrastructure)?;
    Workspace::clear_work(&workspace.folder).kind(Kind::Infrastructure)
}

/// Returns the variables' values for the manifest; of a secret only whether it is set.
fn shown_variables(plan: &Plan) -> BTreeMap<String, serde_json::Value> {
    let show = |value: &VariableValue| match value {
        VariableValue::Plain(value) => value.clone(),
        VariableValue::Secret(secret) => serde_json::json!({"secret": true, "set": secret.is_set()}),
    };
    plan.variables.iter().map(|(name, variable)| (name.clone(), show(&variable.value))).collect()
}

/// Returns the git revision of a folder, with `-dirty` when files differ from it.
pub(super) async fn git_revision(root: &Path) -> Option<String> {
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
