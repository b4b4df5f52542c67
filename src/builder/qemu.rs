//! The local builder: one machine after another in a local QEMU, from the installer medium to a
//! proven disk.
//!
//! ```text
//! fetch ─► seed ─► install ─────────► boot ─► steps ─► checks ─► seal ─► export ─► prove ─► artifact
//!                  medium, stub seed,  disk alone          power-off    partial   overlays   rename
//!                  ends by power-off                                    folder    on it
//! ```

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, anyhow};
use tokio::sync::mpsc::UnboundedReceiver;

use super::host::{Host, Launch};
use super::inputs::{ANSWERS, Media, Prepared, fetch_media, prepare_seed};
use super::install::{self, Limits};
use super::proof::{self, Drive, Identity, Subject};
use super::workspace::{Staging, Workspace, remove, write_whole};
use super::{BuildOptions, Keeper};
use crate::artifact::{self, CheckResult, Manifest};
use crate::check;
use crate::communicator::socket_agent::SocketAgent;
use crate::communicator::{Communicator, Exec};
use crate::definition::{self, CheckAt, DiskFormat, Secret, Transport};
use crate::event::{Unit, Worker, human_duration};
use crate::failure::{Failure, Kind, ResultExt as _};
use crate::fetch;
use crate::plan::{Plan, PlannedStep};
use crate::provision::{self, ProvisionError};
use crate::qemu::img::{self, Conversion};
use crate::qemu::spec::{Boot, Forward, OnReset, UserNet};
use crate::qemu::{End, Machine};
use crate::run::{Ending, Run, Step};
use crate::seed::server::{Content, Server, ServerEvent};

/// How many lines of its console a guest that failed is quoted with.
const CONSOLE_LINES: usize = 10;

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
            if let Some(warning) = host.warning() {
                step.warn(warning);
            }
            prepare_seed(plan, workspace, step).await
        })
        .await?;
    let disks = run
        .step("disks", "creating the disks", Worker::Qemu, async |_| create_disks(plan, workspace).await)
        .await?;
    run.step("install", "installing from the medium", Worker::Qemu, async |step| {
        let media = [media.paths(), vec![seed.volume.clone()]].concat();
        install(plan, &host, workspace, options, &disks, media, &seed, step).await
    })
    .await?;

    let guest = run
        .step("boot", "booting the installed system", Worker::Qemu, async |step| {
            boot(plan, &host, workspace, options, &disks, step).await
        })
        .await?;
    for planned in &plan.steps {
        let (id, title) = (format!("step:{}", planned.step.name), title(&planned.step));
        if let Some(reason) = &planned.skipped {
            run.skip(&id, &title, reason);
            continue;
        }
        run.step(&id, &title, Worker::Guest, async |step| {
            provision(plan, &host, planned, &guest, &seed, step).await
        })
        .await?;
    }
    let mut checks = run
        .step("check", "checking the guest", Worker::Guest, async |step| {
            check_guest(plan, &host, &guest, step).await
        })
        .await?;
    let facts = run
        .step("facts", "listing the guest's packages", Worker::Guest, async |_| facts(&guest).await)
        .await?;
    run.step("seal", "sealing the guest and powering it off", Worker::Guest, async |step| {
        seal(plan, &host, &guest, &seed, step).await
    })
    .await?;
    run.forget_undo(guest.undo);
    drop(guest);
    seed.server.stop().await;

    let exported = run
        .step("export", "exporting the disk", Worker::Qemu, async |step| {
            export(plan, &disks, &staging, step).await
        })
        .await?;
    for drive in proofs(plan) {
        let title = match drive {
            Drive::NoCloud => "proving a clone",
            Drive::ConfigDrive => "proving that a ConfigDrive volume is accepted",
        };
        let results = run
            .step(drive.at(), title, Worker::Forge, async |step| {
                let subject = subject(plan, &host, workspace, &staging, &exported, &facts, drive)?;
                let results = proof::prove(&subject, drive, step).await?;
                proof::judge(&results, "promises of the proof")?;
                Ok(results)
            })
            .await?;
        checks.extend(results);
    }
    run.step("artifact", "writing the manifest", Worker::Forge, async |_| {
        let revision = super::git_revision(&plan.root).await;
        let manifest = manifest(plan, &host, run, &media, exported, checks, facts, revision);
        finish(&manifest, run, workspace, &staging)
    })
    .await?;
    Ok(staging.final_path)
}

/// Registers the removal of what a failed build must not leave.
fn register_folders(run: &Run, workspace: &Workspace, staging: &Staging, keeper: &Keeper) {
    let keeper = keeper.clone();
    let (partial, folder) = (staging.partial.clone(), workspace.folder.clone());
    run.undo("the partial artifact", format!("rm -r {}", partial.display()), move |_| async move {
        remove(&partial)
    });
    let by_hand = format!("rm -r {}", folder.join("work").display());
    run.undo("the build's disks", by_hand, move |ending| async move {
        // A kept machine still runs on them; whoever keeps it removes them.
        if ending == Ending::Failed && keeper.is_wanted() { Ok(()) } else { Workspace::clear_work(&folder) }
    });
}

async fn create_disks(plan: &Plan, workspace: &Workspace) -> Result<Vec<(PathBuf, DiskFormat)>, Failure> {
    let mut disks = Vec::new();
    for (index, disk) in plan.machine.disks.iter().enumerate() {
        let path = workspace.work(&format!("disk{index}.qcow2"));
        let bytes = u64::from(disk.size_gib) << 30;
        img::create(&path, DiskFormat::Qcow2, bytes).await.kind(Kind::Infrastructure)?;
        disks.push((path, DiskFormat::Qcow2));
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
) -> Result<(), Failure> {
    let folder = machine_folder(workspace, "install")?;
    let launch = Launch {
        folder: &folder,
        disks: disks.to_vec(),
        cdroms: media,
        network: UserNet::default(),
        serial: seed.serial.clone(),
        boot: Boot::Cdrom,
        on_reset: OnReset::End,
    };
    let spec = host.spec(&plan.machine, launch).kind(Kind::Infrastructure)?;
    let (machine, undo) =
        launch_machine(step.run(), options, ("install", plan.definition.proof.ssh_port), &spec, &folder)
            .await?;
    step.worker(Worker::Guest);
    let timeouts = &plan.definition.timeouts;
    let limits = Limits {
        fetch: (seed.transport == Transport::Http).then(|| host.scaled(timeouts.fetch.duration())),
        install: host.scaled(timeouts.install.duration()),
        address: seed.server.advertises().to_owned(),
        answers: ANSWERS.to_owned(),
    };
    let mut events = seed.events.lock().await;
    if let Err(failure) = install::watch(step, &machine, &mut events, &limits).await {
        show_console(step, &machine);
        return Err(failure);
    }
    step.worker(Worker::Qemu);
    machine.quit().await.kind(Kind::Infrastructure)?;
    step.run().forget_undo(undo);
    Ok(())
}

/// Makes a folder in the run's evidence for one machine's logs.
fn machine_folder(workspace: &Workspace, name: &str) -> Result<PathBuf, Failure> {
    let folder = workspace.folder.join(name);
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("making {}", folder.display()))
        .kind(Kind::Infrastructure)?;
    Ok(folder)
}

/// Launches a machine whose end is registered first: after a failure with its screen kept, or with
/// the machine itself kept if that was asked for.
async fn launch_machine(
    run: &Run,
    options: &BuildOptions,
    (name, ssh_port): (&'static str, u16),
    spec: &crate::qemu::MachineSpec,
    folder: &Path,
) -> Result<(Arc<Machine>, crate::run::UndoId), Failure> {
    let slot: Arc<Mutex<Option<Arc<Machine>>>> = Arc::default();
    let (for_undo, screenshot) = (Arc::clone(&slot), run.path(format!("{name}.png")));
    let keeper = options.keeper.clone();
    let undo = run.undo(
        format!("the machine of `{name}`"),
        "nothing: it ends with forge",
        move |ending| async move {
            let machine = for_undo.lock().unwrap_or_else(PoisonError::into_inner).take();
            let Some(machine) = machine else { return Ok(()) };
            if ending == Ending::Failed {
                // Evidence, as far as it can be had.
                let _taken = machine.screenshot(&screenshot).await;
                if keeper.is_wanted() {
                    keeper.keep(machine, ssh_port);
                    return Ok(());
                }
            }
            machine.kill().await;
            Ok(())
        },
    );
    let machine = Arc::new(Machine::launch(spec, folder).await.kind(Kind::Infrastructure)?);
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&machine));
    Ok((machine, undo))
}

/// Shows the last lines of the serial console, as far as it has any.
fn show_console(step: &Step<'_>, machine: &Machine) {
    let text = std::fs::read(machine.serial_log()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    for line in &lines[lines.len().saturating_sub(CONSOLE_LINES)..] {
        step.output(*line);
    }
}

/// The guest while it is provisioned.
#[derive(Debug)]
struct Guest {
    machine: Arc<Machine>,
    agent: SocketAgent,
    undo: crate::run::UndoId,
}

async fn boot(
    plan: &Plan,
    host: &Host,
    workspace: &Workspace,
    options: &BuildOptions,
    disks: &[(PathBuf, DiskFormat)],
    step: &Step<'_>,
) -> Result<Guest, Failure> {
    let folder = machine_folder(workspace, "guest")?;
    let launch = Launch {
        folder: &folder,
        disks: disks.to_vec(),
        cdroms: Vec::new(),
        // For a person who keeps the machine of a failed build; forge itself has no use for it.
        network: UserNet {
            forwards: vec![Forward { address: None, port: plan.definition.proof.ssh_port }],
            ..UserNet::default()
        },
        serial: None,
        boot: Boot::Disk,
        on_reset: OnReset::Restart,
    };
    let spec = host.spec(&plan.machine, launch).kind(Kind::Infrastructure)?;
    let (machine, undo) =
        launch_machine(step.run(), options, ("guest", plan.definition.proof.ssh_port), &spec, &folder)
            .await?;
    step.worker(Worker::Guest);
    let agent = SocketAgent::new(machine.agent_socket(), machine.state());
    let started = tokio::time::Instant::now();
    let deadline = host.scaled(plan.definition.timeouts.boot.duration());
    agent.wait_until_ready(deadline).await.kind(super::silence(&machine)).map_err(|failure| {
        show_console(step, &machine);
        match failure.kind {
            Kind::Deadline => failure
                .hint(
                    "the installed system did not bring its guest agent up: see guest.png and the serial log",
                )
                .hint("is qemu-guest-agent among the packages of the autoinstall file?")
                .hint("more time: `timeouts.boot`"),
            _ => failure,
        }
    })?;
    step.note(format!("guest agent answers after {}", human_duration(started.elapsed())));
    Ok(Guest { machine, agent, undo })
}

/// Offers bulk content to the guest over forge's HTTP server.
struct OverHttp<'a>(&'a Server);

impl provision::Bulk for OverHttp<'_> {
    fn offer(&self, content: provision::Content) -> Option<provision::Offer> {
        let name = format!("bulk/{}", uuid::Uuid::new_v4().simple());
        let content = match content {
            provision::Content::Bytes(bytes) => Content::Memory(bytes),
            provision::Content::File(path) => Content::from(path),
        };
        let offer = self.0.offer(&name, content).ok()?;
        Some(provision::Offer { url: offer.url().to_owned(), guard: Box::new(offer) })
    }
}

/// Returns what a person reads while a step runs.
fn title(step: &definition::Step) -> String {
    if let Some(packages) = &step.packages {
        return match packages.install.as_slice() {
            few if few.len() <= 4 => format!("installing {}", few.join(", ")),
            many => format!("installing {} packages", many.len()),
        };
    }
    if let Some(upload) = &step.upload {
        return format!("putting {} into the guest", upload.destination);
    }
    if let Some(reboot) = &step.reboot {
        return match &reboot.reason {
            Some(reason) => format!("rebooting: {reason}"),
            None => "rebooting".to_owned(),
        };
    }
    format!("running the step {}", step.name)
}

/// Returns a script as it is run.
fn render(plan: &Plan, path: &Path) -> Result<String, Failure> {
    let path = path.strip_prefix(&plan.root).unwrap_or(path);
    let bytes = plan.render_file(&path.to_string_lossy())?;
    String::from_utf8(bytes)
        .with_context(|| format!("reading {} as UTF-8", path.display()))
        .kind(Kind::Definition)
}

async fn provision(
    plan: &Plan,
    host: &Host,
    planned: &PlannedStep,
    guest: &Guest,
    seed: &Prepared,
    step: &Step<'_>,
) -> Result<(), Failure> {
    let own = planned.step.timeout.unwrap_or(plan.definition.timeouts.step);
    with_context(plan, guest, seed, step, async |cx| {
        provision::apply(&planned.step, host.scaled(own.duration()), cx).await
    })
    .await
}

/// Calls `body` with the context in which provisioners work in that step.
async fn with_context<F>(
    plan: &Plan,
    guest: &Guest,
    seed: &Prepared,
    step: &Step<'_>,
    body: F,
) -> Result<(), Failure>
where
    F: AsyncFnOnce(&provision::Context<'_>) -> Result<(), ProvisionError>,
{
    let secrets: Vec<String> = plan.secrets().map(Secret::expose).map(str::to_owned).collect();
    let bulk = OverHttp(&seed.server);
    let log = super::GuestLog::open(&step.run().path("guest.log")).kind(Kind::Infrastructure)?;
    let cx = provision::Context {
        guest: &guest.agent,
        folder: provision::GUEST_FOLDER,
        bulk: Some(&bulk),
        root: &plan.root,
        output: &|line| step.output(line),
        log: &|line| log.line(line),
        retry: &|attempt, of, reason| step.retry(attempt, of, reason),
        render: &|path| render(plan, path),
        secrets: &secrets,
    };
    let mut events = seed.events.lock().await;
    let result = tokio::select! {
        result = body(&cx) => result,
        never = note_fetches(&mut events, step) => match never {},
    };
    result.map_err(|error| {
        let kind = match error.kind() {
            Kind::Guest => super::gone(&guest.machine, Kind::Guest),
            other => other,
        };
        Failure::new(kind, error).hint("the whole output is in guest.log in the run's folder")
    })
}

/// Notes what the guest fetches, for as long as it is asked to.
async fn note_fetches(events: &mut UnboundedReceiver<ServerEvent>, step: &Step<'_>) -> Infallible {
    while let Some(event) = events.recv().await {
        if let ServerEvent::Fetched { name, bytes, whole, .. } = event {
            let how = if whole { "fetched" } else { "began to fetch, and gave up on," };
            step.note(format!("the guest {how} {name}, {bytes} bytes"));
        }
    }
    std::future::pending().await
}

async fn check_guest(
    plan: &Plan,
    host: &Host,
    guest: &Guest,
    step: &Step<'_>,
) -> Result<Vec<CheckResult>, Failure> {
    let checks = super::checks_at(plan, host, CheckAt::Build);
    let timeout = host.scaled(plan.definition.timeouts.check.duration());
    let found = check::run(&checks.iter().collect::<Vec<_>>(), &guest.agent, timeout, &|finding| {
        step.check(&finding.name, finding.passed, &finding.detail);
    })
    .await
    .kind(super::gone(&guest.machine, Kind::Guest))?;
    super::write_findings(step.run(), "build", &found).kind(Kind::Infrastructure)?;
    let results: Vec<_> = found
        .into_iter()
        .map(|finding| CheckResult {
            at: "build".to_owned(),
            name: finding.name,
            passed: finding.passed,
            detail: finding.detail,
        })
        .collect();
    proof::judge(&results, "checks")?;
    Ok(results)
}

/// What is known of the guest before it is sealed.
#[derive(Debug)]
struct Facts {
    identity: Identity,
    os: artifact::Os,
    packages: Vec<artifact::Package>,
}

async fn facts(guest: &Guest) -> Result<Facts, Failure> {
    let gone = || super::gone(&guest.machine, Kind::Guest);
    let identity = proof::identity(&guest.agent).await.kind(gone())?;
    let os = guest.agent.exec(&Exec::shell("uname -r; cat /etc/os-release")).await.kind(gone())?.text();
    let (kernel, release) = os.split_once('\n').unwrap_or_default();
    let query = Exec::new(["dpkg-query", "-W", "-f", "${Package}\\t${Version}\\t${Architecture}\\n"]);
    let packages = guest.agent.exec(&query).await.kind(gone())?.text();
    Ok(Facts {
        identity,
        os: artifact::parse_os_release(release, kernel),
        packages: artifact::parse_packages(&packages),
    })
}

async fn seal(
    plan: &Plan,
    host: &Host,
    guest: &Guest,
    seed: &Prepared,
    step: &Step<'_>,
) -> Result<(), Failure> {
    let deadline = host.scaled(plan.definition.timeouts.seal.duration());
    with_context(plan, guest, seed, step, async |cx| {
        provision::seal(&plan.definition.seal, deadline, cx).await
    })
    .await?;
    step.note("sealed; powering off");
    step.worker(Worker::Qemu);
    guest.machine.powerdown().await.kind(Kind::Infrastructure)?;
    let end = guest.machine.wait_for_end(deadline).await.kind(Kind::Deadline)?;
    if end != End::PowerOff {
        return Err(Failure::new(Kind::Guest, anyhow!("{end} instead of powering off after it was sealed")));
    }
    guest.machine.quit().await.kind(Kind::Infrastructure)
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

fn proofs(plan: &Plan) -> Vec<Drive> {
    let mut drives = vec![Drive::NoCloud];
    if plan.definition.proof.config_drive {
        drives.push(Drive::ConfigDrive);
    }
    drives
}

fn subject<'a>(
    plan: &'a Plan,
    host: &'a Host,
    workspace: &Workspace,
    staging: &Staging,
    disks: &[artifact::Disk],
    facts: &'a Facts,
    drive: Drive,
) -> Result<Subject<'a>, Failure> {
    Ok(Subject {
        plan,
        host,
        disks: disks.iter().map(|disk| (staging.partial.join(&disk.file), disk.virtual_size)).collect(),
        format: plan.definition.template.disk_format,
        built: &facts.identity,
        logs: machine_folder(workspace, drive.at())?,
        work: workspace.work(drive.at()),
    })
}

#[expect(clippy::too_many_arguments, reason = "one call site; a struct would only rename them")]
fn manifest(
    plan: &Plan,
    host: &Host,
    run: &Run,
    media: &Media,
    mut disks: Vec<artifact::Disk>,
    checks: Vec<CheckResult>,
    facts: Facts,
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
    inputs.extend(media.0.iter().map(|image| artifact::Input {
        name: image.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        sha256: image.sha256.clone(),
        size: image.size,
    }));
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
        builder: artifact::BuilderInfo {
            name: plan.builder.name.clone(),
            accelerator: host.accel().name().to_owned(),
            overrides: host.overrides(&plan.definition.machine, &plan.machine),
        },
        inputs,
        variables: super::shown_variables(plan),
        machine: plan.definition.machine.clone(),
        disk: disks.remove(0),
        more_disks: disks,
        os: facts.os,
        checks,
        packages: facts.packages,
        spans: run.spans(),
    }
}

/// Writes the manifest and the logs, and puts the artifact into its place.
fn finish(manifest: &Manifest, run: &Run, workspace: &Workspace, staging: &Staging) -> Result<(), Failure> {
    let logs = staging.partial.join("logs");
    super::copy_logs(&run.folder, &logs).kind(Kind::Infrastructure)?;
    let mut text =
        serde_json::to_vec_pretty(manifest).context("writing the manifest").kind(Kind::Unexpected)?;
    text.push(b'\n');
    write_whole(&staging.partial.join(artifact::MANIFEST_FILE), &text).kind(Kind::Infrastructure)?;
    staging.commit().kind(Kind::Infrastructure)?;
    Workspace::clear_work(&workspace.folder).kind(Kind::Infrastructure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, Record, Sink};
    use crate::run::Cancel;

    #[derive(Default)]
    struct Notes(Mutex<Vec<String>>);

    impl Sink for Notes {
        fn emit(&self, record: &Record) {
            if let Event::Note { message, .. } = &record.event {
                self.0.lock().unwrap().push(message.clone());
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_guest_fetches_is_noted() {
        let notes = Arc::new(Notes::default());
        let run = Run::new("r".into(), "t".into(), "/nowhere".into(), notes.clone(), Cancel::default());
        let (sender, mut events) = tokio::sync::mpsc::unbounded_channel();
        let peer = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        let (name, whole) = ("bulk/x".to_owned(), true);
        sender.send(ServerEvent::Fetched { name, bytes: 7, whole, peer }).unwrap();
        run.step("step:x", "title", Worker::Guest, async |step| {
            let noting = note_fetches(&mut events, step);
            let _never_ends = tokio::time::timeout(std::time::Duration::from_secs(1), noting).await;
            Ok(())
        })
        .await
        .unwrap();
        assert_eq!(*notes.0.lock().unwrap(), ["the guest fetched bulk/x, 7 bytes"]);
    }
}
