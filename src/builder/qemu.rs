//! The local builder: one machine after another in a local QEMU, from the installer medium to a
//! proven disk.
//!
//! ```text
//! fetch ─► seed ─► install ─────────► boot ─► steps ─► checks ─► seal ─► export ─► prove ─► artifact
//!                  medium, stub seed,  disk alone          power-off    partial   overlays   rename
//!                  ends by power-off                                    folder    on it
//! ```

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, anyhow};
use tokio::sync::mpsc::UnboundedReceiver;

use super::host::{Host, Launch};
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
use crate::fetch::{self, Expected, FetchError};
use crate::plan::{ForgeUrls, Plan, PlannedStep, SeedFile};
use crate::provision::{self, ProvisionError};
use crate::qemu::img::{self, Conversion};
use crate::qemu::spec::{Boot, Forward, OnReset, UserNet};
use crate::qemu::{End, Machine};
use crate::run::{Ending, Run, Step};
use crate::seed;
use crate::seed::server::{Content, Reach, Server, ServerEvent, Settings};

/// The name under which the installer's answers are served.
const ANSWERS: &str = "autoinstall.yaml";

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

    let media = run
        .step("fetch", "getting the installer medium", Worker::Hash, async |step| {
            fetch_media(plan, step).await
        })
        .await?;
    let mut seed = run
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
        install(plan, &host, workspace, options, &disks, media, &mut seed, step).await
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
            check_guest(plan, &host, &guest.agent, step).await
        })
        .await?;
    let facts = run
        .step("facts", "listing the guest's packages", Worker::Guest, async |_| facts(&guest.agent).await)
        .await?;
    run.step("seal", "sealing the guest and powering it off", Worker::Guest, async |step| {
        seal(plan, &host, &guest, &seed, step).await
    })
    .await?;
    run.forget_undo(guest.undo);
    drop(guest);
    seed.server.stop().await;

    let disk = run
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
                let subject = subject(plan, &host, workspace, &staging, &disk, &facts, drive)?;
                let results = proof::prove(&subject, drive, step).await?;
                proof::judge(&results, "promises of the proof")?;
                Ok(results)
            })
            .await?;
        checks.extend(results);
    }
    run.step("artifact", "writing the manifest", Worker::Forge, async |_| {
        let manifest = manifest(plan, &host, run, &media, disk, checks, facts);
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

/// The verified media: the installer's first.
#[derive(Debug)]
struct Media(Vec<fetch::Image>);

impl Media {
    fn paths(&self) -> Vec<PathBuf> {
        self.0.iter().map(|image| image.path.clone()).collect()
    }
}

async fn fetch_media(plan: &Plan, step: &Step<'_>) -> Result<Media, Failure> {
    let cache = fetch::Cache::of_user().kind(Kind::Infrastructure)?;
    let mut images = Vec::new();
    for (location, expected) in media(plan)? {
        let show = |progress: fetch::Progress| show_fetch(step, progress);
        let image =
            fetch::image(&location, &plan.root, &expected, &cache, &show).await.map_err(fetch_failure)?;
        if let Some(signer) = &image.signed_by {
            step.note(format!("its checksum is signed by {signer}"));
        }
        images.push(image);
    }
    Ok(Media(images))
}

/// Returns where each medium is and what it must be.
fn media(plan: &Plan) -> Result<Vec<(String, Expected)>, Failure> {
    let source = &plan.definition.source;
    let expected = match (&source.sha256, &source.checksums) {
        (Some(sha256), _) => Expected::Sha256(sha256.clone()),
        (None, Some(checksums)) => Expected::Signed {
            file: checksums.file.clone(),
            signature: checksums.signature.clone(),
            key: plan.root.join("templates").join(&plan.template).join(&checksums.key),
            fingerprint: checksums.fingerprint.clone(),
            name: checksums.name.clone().unwrap_or_else(|| last_part(&source.iso)),
        },
        (None, None) => {
            return Err(Failure::new(Kind::Definition, anyhow!("source has neither sha256 nor checksums")));
        }
    };
    let mut media = vec![(source.iso.clone(), expected)];
    let cdroms = plan.definition.machine.cdroms.iter();
    media.extend(cdroms.map(|cdrom| (cdrom.iso.clone(), Expected::Sha256(cdrom.sha256.clone()))));
    Ok(media)
}

fn last_part(location: &str) -> String {
    location.rsplit('/').next().unwrap_or(location).to_owned()
}

/// Tells inputs that are not what they should be from a machine or network that fails.
fn fetch_failure(error: FetchError) -> Failure {
    use FetchError as Error;
    let kind = match &error {
        Error::Location { .. } | Error::NoDigest { .. } => Kind::Definition,
        Error::Unreachable { .. }
        | Error::Tls { .. }
        | Error::Space { .. }
        | Error::Disk { .. }
        | Error::NoCache => Kind::Infrastructure,
        _ => Kind::Plan,
    };
    Failure::new(kind, error)
}

fn show_fetch(step: &Step<'_>, progress: fetch::Progress) {
    match progress {
        fetch::Progress::Downloading { done, total } => {
            step.worker(Worker::Download);
            step.progress(done, total, Unit::Bytes, Some("downloading"));
        }
        fetch::Progress::Hashing { done, total } => {
            step.worker(Worker::Hash);
            step.progress(done, Some(total), Unit::Bytes, Some("verifying"));
        }
        fetch::Progress::Waiting(what) => {
            step.worker(Worker::Download);
            step.note(what);
        }
        fetch::Progress::Retry { attempt, of, reason } => step.retry(attempt, of, reason),
        fetch::Progress::Remembered => step.note("the medium was verified before and has not changed since"),
    }
}

/// The installer's answers, on their way to it.
#[derive(Debug)]
struct Prepared {
    server: Server,
    events: UnboundedReceiver<ServerEvent>,
    volume: PathBuf,
    serial: Option<String>,
    transport: Transport,
    // Files stay on offer as long as these live.
    _offers: Vec<seed::server::Offer>,
}

async fn prepare_seed(plan: &Plan, workspace: &Workspace, step: &Step<'_>) -> Result<Prepared, Failure> {
    let http = &plan.builder.profile.http;
    let settings = Settings::new(Reach::QEMU, workspace.folder.join("installer-logs"))
        .and_then(|settings| {
            let [bind, port, advertise] = [&http.bind, &http.port, &http.advertise].map(Option::as_deref);
            settings.with_profile(Reach::QEMU, bind, port, advertise)
        })
        .kind(Kind::Definition)?;
    let (server, events) = Server::start(settings).await.kind(Kind::Infrastructure)?;
    let urls =
        ForgeUrls { url: server.url(""), report_url: server.report_url(), logs_url: server.logs_url() };
    let files = plan.render_seed(&urls)?;
    let transport = plan.definition.seed.transport;
    let answers = answers(&files)?;
    let (volume, serial) = match transport {
        Transport::Http => {
            (seed::stub_volume(), Some(seed::serial(&server.url(ANSWERS)).kind(Kind::Definition)?))
        }
        Transport::Cdrom => (seed::cdrom_volume(answers).kind(Kind::Definition)?, None),
    };
    let mut offers = Vec::new();
    for file in &files {
        let name = if file.is_autoinstall { ANSWERS } else { &file.name };
        if !(file.is_autoinstall && transport == Transport::Cdrom) {
            offers.push(server.offer(name, file.content.clone()).kind(Kind::Definition)?);
        }
    }
    let path = workspace.work("seed.iso");
    write_whole(&path, &volume).kind(Kind::Infrastructure)?;
    step.note(format!("answers are served at {}", server.advertises()));
    Ok(Prepared { server, events, volume: path, serial, transport, _offers: offers })
}

/// Returns the installer's answers, refusing what the installer would refuse or silently ignore.
fn answers(files: &[SeedFile]) -> Result<&str, Failure> {
    let file = files.iter().find(|file| file.is_autoinstall);
    let file = file.context("the plan has no autoinstall file").kind(Kind::Unexpected)?;
    let text = std::str::from_utf8(&file.content)
        .with_context(|| format!("reading {} as UTF-8", file.name))
        .kind(Kind::Definition)?;
    let show = |finding: &seed::autoinstall::Finding| format!("line {}: {}", finding.line, finding.message);
    let findings: Vec<_> = seed::autoinstall::lint(text).iter().map(show).collect();
    if findings.is_empty() {
        return Ok(text);
    }
    let error =
        anyhow!("the installer would not take {} as it is rendered: {}", file.name, findings.join("; "));
    Err(Failure::new(Kind::Definition, error))
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
    seed: &mut Prepared,
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
    let (machine, undo) = launch_machine(step.run(), options, "install", &spec, &folder).await?;
    step.worker(Worker::Guest);
    let timeouts = &plan.definition.timeouts;
    let limits = Limits {
        fetch: (seed.transport == Transport::Http).then(|| host.scaled(timeouts.fetch.duration())),
        install: host.scaled(timeouts.install.duration()),
        address: seed.server.advertises().to_owned(),
        answers: ANSWERS.to_owned(),
    };
    install::watch(step, &machine, &mut seed.events, &limits).await?;
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
    name: &'static str,
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
                    keeper.keep(machine);
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
    let (machine, undo) = launch_machine(step.run(), options, "guest", &spec, &folder).await?;
    step.worker(Worker::Guest);
    let agent = SocketAgent::new(machine.agent_socket(), machine.state());
    let started = tokio::time::Instant::now();
    let deadline = host.scaled(plan.definition.timeouts.boot.duration());
    agent.wait_until_ready(deadline).await.kind(super::silence(&machine)).map_err(|failure| {
        failure
            .hint("the installed system did not bring its guest agent up: see guest.png and the serial log")
            .hint("is qemu-guest-agent among the packages of the autoinstall file?")
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
    let bulk = OverHttp(&seed.server);
    with_context(plan, &guest.agent, Some(&bulk), step, async |cx| {
        provision::apply(&planned.step, host.scaled(own.duration()), cx).await
    })
    .await
}

/// Calls `body` with the context in which provisioners work in that step.
async fn with_context<F>(
    plan: &Plan,
    agent: &SocketAgent,
    bulk: Option<&dyn provision::Bulk>,
    step: &Step<'_>,
    body: F,
) -> Result<(), Failure>
where
    F: AsyncFnOnce(&provision::Context<'_>) -> Result<(), ProvisionError>,
{
    let secrets: Vec<String> = plan.secrets().map(Secret::expose).map(str::to_owned).collect();
    let log = super::GuestLog::open(&step.run().path("guest.log")).kind(Kind::Infrastructure)?;
    let cx = provision::Context {
        guest: agent,
        folder: provision::GUEST_FOLDER,
        bulk,
        root: &plan.root,
        output: &|line| step.output(line),
        log: &|line| log.line(line),
        retry: &|attempt, of, reason| step.retry(attempt, of, reason),
        render: &|path| render(plan, path),
        secrets: &secrets,
    };
    body(&cx).await.map_err(|error| {
        let kind = error.kind();
        Failure::new(kind, error).hint("the whole output is in guest.log in the run's folder")
    })
}

async fn check_guest(
    plan: &Plan,
    host: &Host,
    agent: &SocketAgent,
    step: &Step<'_>,
) -> Result<Vec<CheckResult>, Failure> {
    let checks = super::checks_at(plan, host, CheckAt::Build);
    let timeout = host.scaled(plan.definition.timeouts.check.duration());
    let found = check::run(&checks.iter().collect::<Vec<_>>(), agent, timeout, &|finding| {
        step.check(&finding.name, finding.passed, &finding.detail);
    })
    .await
    .kind(Kind::Guest)?;
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

async fn facts(agent: &SocketAgent) -> Result<Facts, Failure> {
    let identity = proof::identity(agent).await.kind(Kind::Guest)?;
    let os = agent.exec(&Exec::shell("uname -r; cat /etc/os-release")).await.kind(Kind::Guest)?.text();
    let (kernel, release) = os.split_once('\n').unwrap_or_default();
    let query = Exec::new(["dpkg-query", "-W", "-f", "${Package}\\t${Version}\\t${Architecture}\\n"]);
    let packages = agent.exec(&query).await.kind(Kind::Guest)?.text();
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
    let bulk = OverHttp(&seed.server);
    with_context(plan, &guest.agent, Some(&bulk), step, async |cx| {
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

async fn export(
    plan: &Plan,
    disks: &[(PathBuf, DiskFormat)],
    staging: &Staging,
    step: &Step<'_>,
) -> Result<artifact::Disk, Failure> {
    staging.create().kind(Kind::Infrastructure)?;
    let (source, from) = disks.first().context("a machine has a disk").kind(Kind::Unexpected)?;
    let to = plan.definition.template.disk_format;
    let file = format!("disk.{}", img::format_name(to));
    let target = staging.partial.join(&file);
    let how = Conversion { from: *from, to, compress: to == DiskFormat::Qcow2 };
    img::convert(source, &target, how, |percent| step.progress(percent, Some(100), Unit::Percent, None))
        .await
        .kind(Kind::Infrastructure)?;
    let info = img::info(&target).await.kind(Kind::Infrastructure)?;
    step.worker(Worker::Hash);
    let (sha256, size) = fetch::digest(&target).await.kind(Kind::Infrastructure)?;
    Ok(artifact::Disk { file, format: info.format, size, virtual_size: info.virtual_size, sha256 })
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
    disk: &artifact::Disk,
    facts: &'a Facts,
    drive: Drive,
) -> Result<Subject<'a>, Failure> {
    Ok(Subject {
        plan,
        host,
        disk: staging.partial.join(&disk.file),
        format: plan.definition.template.disk_format,
        bytes: disk.virtual_size,
        built: &facts.identity,
        logs: machine_folder(workspace, drive.at())?,
        work: workspace.work(drive.at()),
    })
}

fn manifest(
    plan: &Plan,
    host: &Host,
    run: &Run,
    media: &Media,
    disk: artifact::Disk,
    checks: Vec<CheckResult>,
    facts: Facts,
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
        revision: super::git_revision(&plan.root),
        builder: artifact::BuilderInfo {
            name: plan.builder.name.clone(),
            accelerator: host.accel().name().to_owned(),
            overrides: host.overrides(&plan.definition.machine, &plan.machine),
        },
        inputs,
        variables: super::shown_variables(plan),
        machine: plan.definition.machine.clone(),
        disk,
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
    use std::collections::BTreeMap;

    use super::*;
    use crate::definition::{Inputs, Root};
    use crate::event::{Record, Sink};
    use crate::plan::{Selection, choose_builder, resolve};
    use crate::run::Cancel;

    struct Nowhere;

    impl Sink for Nowhere {
        fn emit(&self, _: &Record) {}
    }

    /// Returns what the installer is given: the volume's bytes, the serial number, what is served.
    #[expect(clippy::used_underscore_binding, reason = "a build only keeps the offers alive")]
    async fn given(transport: Transport) -> (Vec<u8>, Option<String>, Vec<String>) {
        let root = Root::at(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
        let loaded = definition::load(&root, "ubuntu-noble", &Inputs::default()).unwrap();
        let builder = choose_builder(None, &BTreeMap::new(), &loaded.definition);
        let mut plan = resolve(&root, loaded, builder, &Selection::default()).unwrap();
        plan.definition.seed.transport = transport;
        let folder = tempfile::tempdir().unwrap();
        let workspace = Workspace::create(folder.path()).unwrap();
        let run =
            Run::new("r".into(), "t".into(), folder.path().into(), Arc::new(Nowhere), Cancel::default());
        let work = async |step: &Step<'_>| prepare_seed(&plan, &workspace, step).await;
        let seed = run.step("seed", "title", Worker::Forge, work).await.unwrap();
        let served = seed._offers.iter().map(|offer| offer.url().to_owned()).collect();
        (std::fs::read(&seed.volume).unwrap(), seed.serial.clone(), served)
    }

    #[tokio::test]
    async fn answers_are_served_or_lie_on_the_volume() {
        let (volume, serial, served) = given(Transport::Http).await;
        assert!(volume == seed::stub_volume());
        assert_eq!(serial.unwrap(), format!("forge={}", served[0]));
        assert_eq!(served.len(), 1);

        let (volume, serial, served) = given(Transport::Cdrom).await;
        let holds = |text: &str| volume.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(holds("timezone: \"Europe/Paris\"") && !holds("{{ var.timezone"));
        assert_eq!((serial, served.len()), (None, 0));
    }
}
