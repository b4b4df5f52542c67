//! The local builder: one machine after another in a local QEMU, from the installer medium to a
//! proven disk.
//!
//! ```text
//! fetch ─► seed ─► install ─────────► boot ─► steps ─► checks ─► seal ─► sweep ─► export ─► sweep ─► prove ─► artifact
//!                  medium, stub seed,  disk alone                        guest,   partial   disk    overlays   rename
//!                  ends by power-off                                     power-off folder           on it
//! ```

mod clones;
pub mod host;
mod machine;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};

use self::clones::Template;
use self::host::{Host, Launch};
use self::machine::{boot, end_of, gone, launch_machine, power_off, press_enter};
use super::guest::{Facts, Guest, title};
use super::inputs::{Prepared, fetch_media, prepare_seed};
use super::install::{self, Limits, Watched};
use super::manifest::{Product, finish, git_revision, manifest};
use super::prove::{self, Proven};
use super::sweep::{Clean, Secrets, sweep_disks};
use super::workspace::{Staging, Workspace, remove};
use super::{BuildOptions, Keeper, ProveOptions, machine_folder};
use crate::artifact::{self, CheckResult};
use crate::definition::{Contract, DiskFormat};
use crate::event::{Event, Unit, Worker};
use crate::failure::{Failure, Kind, ResultExt as _};
use crate::fetch;
use crate::plan::Plan;
use crate::qemu::img::{self, Conversion};
use crate::qemu::spec::{Boot, OnReset, UserNet};
use crate::run::{Ending, Run, Step, Undone};
use crate::seed::server::Reach;

/// Builds a plan's template and returns the artifact's folder.
///
/// # Errors
/// The first failure, with its kind; what the build made is registered to be undone.
pub async fn build(
    plan: &Plan,
    options: &BuildOptions,
    workspace: &Workspace,
    run: &Run,
) -> Result<PathBuf, Failure> {
    let host = Host::find(&plan.builder.profile, &plan.machine)?;
    if let Some(warning) = host.warning() {
        run.emit(Event::Warning { step: None, message: warning.to_owned() });
    }
    let staging =
        workspace.artifact(options.out.as_deref(), &plan.template, &plan.definition.template.release);
    register_folders(run, workspace, &staging, &options.keeper);
    // Now, not after an hour: a place that cannot be written to fails before anything starts.
    staging.create().kind(Kind::Infrastructure)?;

    let media = run
        .step("fetch", "getting the installer medium", Worker::Hash, async |step| {
            fetch_media(plan, step).await
        })
        .await?;
    let seed = run
        .step("seed", "preparing the installer's answers", Worker::Forge, async |step| {
            prepare_seed(plan, workspace, Reach::QEMU, step).await
        })
        .await?;
    let disks = run
        .step("disks", "creating the disks", Worker::Qemu, async |_| create_disks(plan, workspace).await)
        .await?;
    let is_reported = run
        .step("install", "installing from the medium", Worker::Qemu, async |step| {
            let media = [media.paths(), vec![seed.volume.clone()]].concat();
            install(plan, &host, workspace, options, &disks, media, &seed, step).await
        })
        .await?;

    let secrets = Secrets::of(plan, &seed.server);
    let (mut checks, facts, clean) =
        work(plan, &host, workspace, options, &disks, &seed, &secrets, is_reported, run).await?;
    seed.server.stop().await;

    let exported = run
        .step("export", "exporting the disk", Worker::Qemu, async |step| {
            export(plan, &disks, &staging, step).await
        })
        .await?;
    let is_clean = run
        .step("sweep-disk", "looking for secrets on the disk", Worker::Qemu, async |step| {
            sweep_disks(&exported, &staging.partial, workspace, &secrets, &clean, step).await
        })
        .await?;
    checks.extend([clean.check, is_clean]);
    let disks = exported.iter().map(|disk| (staging.partial.join(&disk.file), disk.virtual_size)).collect();
    let template = Template::new(plan, &host, workspace, disks, plan.definition.template.disk_format);
    let (results, proofs) = prove::build(&template, plan, &facts.identity, Worker::Guest, run).await?;
    checks.extend(results);
    run.step("artifact", "writing the manifest", Worker::Forge, async |_| {
        let builder = artifact::BuilderInfo {
            name: plan.builder.name.clone(),
            accelerator: host.accel().name().to_owned(),
            overrides: host.overrides(&plan.definition.machine, &plan.machine),
        };
        let revision = git_revision(&plan.root).await;
        let (media, found) = (media.inputs(), (checks, proofs));
        let mut manifest =
            manifest(plan, builder, run, media, Product::Disks(exported), found, &facts, revision);
        finish(&mut manifest, &facts, run, workspace, &staging)
    })
    .await?;
    Ok(staging.final_path)
}

/// Holds an artifact to a contract by clones on this machine.
///
/// # Errors
/// The first failure, with its kind; that a promise does not hold is none.
pub(super) async fn prove(
    plan: &Plan,
    folder: &Path,
    manifest: &artifact::Manifest,
    contract: &Contract,
    options: &ProveOptions,
    workspace: &Workspace,
    run: &Run,
) -> Result<Proven, Failure> {
    let host = Host::find(&plan.builder.profile, &plan.machine)?;
    if let Some(warning) = host.warning() {
        run.emit(Event::Warning { step: None, message: warning.to_owned() });
    }
    let work = workspace.folder.join("work");
    run.undo(
        "the clones' disks",
        format!("rm -r {}", work.display()),
        move |_| async move { remove_used(&work) },
    );
    let disks: Vec<_> = manifest.disk.iter().chain(&manifest.more_disks).collect();
    run.step("artifact", "verifying the artifact", Worker::Hash, async |_| verify(folder, &disks).await)
        .await?;
    let format = match manifest.disk.as_ref().map(|disk| disk.format.as_str()) {
        Some("raw") => DiskFormat::Raw,
        _ => DiskFormat::Qcow2,
    };
    let disks = disks.iter().map(|disk| (folder.join(&disk.file), disk.virtual_size)).collect();
    let template = Template::new(plan, &host, workspace, disks, format);
    let id = format!("prove:{}", contract.name);
    let proven = run
        .step(&id, &prove::title(contract), Worker::Guest, async |step| {
            prove::prove(&template, plan, contract, options.depth, &options.audits, None, step).await
        })
        .await?;
    Workspace::clear_work(&workspace.folder).kind(Kind::Infrastructure)?;
    Ok(proven)
}

/// An artifact's disks must be those that were built.
async fn verify(folder: &Path, disks: &[&artifact::Disk]) -> Result<(), Failure> {
    for disk in disks {
        let path = folder.join(&disk.file);
        let (sha256, _) = fetch::digest(&path)
            .await
            .with_context(|| format!("reading {}", path.display()))
            .kind(Kind::Infrastructure)?;
        if sha256 != disk.sha256 {
            let error = anyhow!("{} is not the disk that was built: its SHA-256 is {sha256}", path.display());
            return Err(Failure::new(Kind::Infrastructure, error)
                .hint(format!("the manifest beside it says {}; build it again", disk.sha256)));
        }
    }
    Ok(())
}

/// Does everything that is done in the installed system, and powers it off; returns what was found there.
#[expect(clippy::too_many_arguments, reason = "one call site; a struct would only rename them")]
async fn work(
    plan: &Plan,
    host: &Host,
    workspace: &Workspace,
    options: &BuildOptions,
    disks: &[(PathBuf, DiskFormat)],
    seed: &Prepared,
    secrets: &Secrets,
    is_reported: bool,
    run: &Run,
) -> Result<(Vec<CheckResult>, Facts, Clean), Failure> {
    let running = run
        .step("boot", "booting the installed system", Worker::Qemu, async |step| {
            let running = boot(plan, host, workspace, options, disks, seed, step).await?;
            install::check_marker(is_reported, &running.agent, step).await?;
            Ok(running)
        })
        .await?;
    let guest = Guest {
        plan,
        patience: host.patience(),
        communicator: &running.agent,
        seed,
        fault: &|| gone(&running.machine, Kind::Guest),
    };
    for planned in &plan.steps {
        let (id, title) = (format!("step:{}", planned.step.name), title(planned));
        if let Some(reason) = &planned.skipped {
            run.skip(&id, &title, reason);
            continue;
        }
        run.step(&id, &title, Worker::Guest, async |step| guest.provision(planned, step).await).await?;
    }
    let checks =
        run.step("check", "checking the guest", Worker::Guest, async |step| guest.check(step).await).await?;
    let facts = run
        .step("facts", "listing the guest's packages", Worker::Guest, async |_| guest.facts().await)
        .await?;
    run.step("seal", "sealing the guest", Worker::Guest, async |step| guest.seal(step).await).await?;
    let clean = run
        .step("sweep", "looking for secrets in the sealed guest", Worker::Guest, async |step| {
            guest.sweep(secrets, step).await
        })
        .await?;
    run.step("power-off", "powering the guest off", Worker::Qemu, async |_| {
        let deadline = host.patience().scaled(plan.definition.timeouts.seal.duration());
        power_off(&running.machine, deadline).await
    })
    .await?;
    run.forget_undo(running.undo);
    Ok((checks, facts, clean))
}

/// Registers the removal of what a failed build must not leave.
fn register_folders(run: &Run, workspace: &Workspace, staging: &Staging, keeper: &Keeper) {
    let keeper = keeper.clone();
    let (partial, folder) = (staging.partial.clone(), workspace.folder.clone());
    run.undo("the partial artifact", format!("rm -r {}", partial.display()), move |_| async move {
        remove_used(&partial)
    });
    let by_hand = format!("rm -r {}", folder.join("work").display());
    run.undo("the build's disks", by_hand, move |ending| async move {
        // A kept machine still runs on them; whoever keeps it removes them.
        if ending == Ending::Failed && keeper.is_wanted() {
            return Ok(Undone::Nothing);
        }
        remove_used(&folder.join("work"))
    });
}

/// Removes a folder that was made ahead of what goes into it: an empty one is not worth telling.
fn remove_used(folder: &Path) -> anyhow::Result<Undone> {
    let used = folder.read_dir().is_ok_and(|mut entries| entries.next().is_some());
    remove(folder)?;
    Ok(if used { Undone::Removed } else { Undone::Nothing })
}

/// Creates the disks that are installed to. They are raw, as holes in a file take back each block that the
/// sealed guest trims; a qcow2 image only takes whole clusters of 64 KiB back, and keeps the deleted files
/// that share one with something that is still there.
async fn create_disks(plan: &Plan, workspace: &Workspace) -> Result<Vec<(PathBuf, DiskFormat)>, Failure> {
    let mut disks = Vec::new();
    for (index, disk) in plan.machine.disks.iter().enumerate() {
        let path = workspace.work(&format!("disk{index}.raw"));
        let bytes = u64::from(disk.size_gib) << 30;
        img::create(&path, DiskFormat::Raw, bytes).await.kind(Kind::Infrastructure)?;
        disks.push((path, DiskFormat::Raw));
    }
    Ok(disks)
}

#[expect(clippy::too_many_arguments, reason = "one call site; a struct would only rename them")]
async fn install(
    plan: &Plan,
    host: &Host,
    workspace: &Workspace,
    options: &BuildOptions,
    disks: &[(PathBuf, DiskFormat)],
    media: Vec<PathBuf>,
    seed: &Prepared,
    step: &Step<'_>,
) -> Result<bool, Failure> {
    let folder = machine_folder(workspace, "install")?;
    let launch = Launch {
        folder: &workspace.work("install"),
        disks: disks.to_vec(),
        cdroms: media,
        network: UserNet::default(),
        serial: seed.serial.clone(),
        boot: Boot::Cdrom,
        on_reset: OnReset::End,
    };
    let spec = host.spec(&plan.machine, launch).kind(Kind::Infrastructure)?;
    let (machine, undo) =
        launch_machine(step.run(), options, ("install", plan.definition.prove.ssh_port), &spec, &folder)
            .await?;
    step.worker(Worker::Guest);
    let limits = Limits::of(plan, host.patience(), seed);
    let mut events = seed.events.lock().await;
    let watched = Watched {
        end: Box::pin(async { Ok(end_of(&machine).await) }),
        press_enter: &|| Box::pin(press_enter(&machine)),
        console: machine.serial_log().to_owned(),
    };
    let is_reported = install::watch(step, watched, &mut events, &limits).await?;
    step.worker(Worker::Qemu);
    machine.quit().await.kind(Kind::Infrastructure)?;
    step.run().forget_undo(undo);
    Ok(is_reported)
}

/// Exports all disks, the one that was installed to first.
async fn export(
    plan: &Plan,
    disks: &[(PathBuf, DiskFormat)],
    staging: &Staging,
    step: &Step<'_>,
) -> Result<Vec<artifact::Disk>, Failure> {
    let to = plan.definition.template.disk_format;
    let mut exported = Vec::new();
    for (index, (source, from)) in disks.iter().enumerate() {
        let number = if index == 0 { String::new() } else { index.to_string() };
        let file = format!("disk{number}.{}", img::format_name(to));
        let target = staging.partial.join(&file);
        let how = Conversion { from: *from, to, compress: to == DiskFormat::Qcow2 };
        step.worker(Worker::Qemu);
        img::convert(source, &target, how, |percent| {
            step.progress(percent, Some(100), Unit::Percent, Some(&file));
        })
        .await
        .kind(Kind::Infrastructure)?;
        let info = img::info(&target).await.kind(Kind::Infrastructure)?;
        // The proof uses what was exported; there may not be room for both and its clones.
        fs::remove_file(source)
            .with_context(|| format!("removing {}", source.display()))
            .kind(Kind::Infrastructure)?;
        step.worker(Worker::Hash);
        let (sha256, size) = fetch::digest(&target).await.kind(Kind::Infrastructure)?;
        exported.push(artifact::Disk {
            file,
            format: info.format,
            size,
            virtual_size: info.virtual_size,
            sha256,
        });
    }
    Ok(exported)
}
