//! The Proxmox builder: a VM on a node, from the installer medium to a proven template.
//!
//! ```text
//! preflight ─► seed ─► media ─► create ─► install ──────► boot ─► steps ─► checks ─► seal ─► sweep ─► template ─► prove ─► artifact ─► promotion
//!                               VMID by    ends by         media                         power-off  cloud-init,  a clone   manifest
//!                               trying     power-off       detached                                 converted    of it
//! ```
//!
//! Everything that is made on the node is written into the run's journal first, bears the run's marks,
//! and is removed only if it bears them.

pub mod access;
mod clones;
mod console;
mod destroy;
#[cfg(test)]
pub(crate) mod fake;
mod finish;
mod hardware;
pub mod journal;
pub mod leftovers;
pub mod marks;
mod media;
pub mod process;
pub mod site;
pub mod survey;
mod text;
mod vm;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedReceiver;

use self::clones::Original;
use self::console::{Recorder, end_of, press_enter};
use self::finish::Draft;
use self::hardware::Installing;
use self::journal::Journal;
use self::marks::State;
use self::media::{Medium, SeedVolume};
use self::process::Process;
use self::site::{Site, failed};
use self::survey::Wish;
use self::vm::{OwnVm, Purpose};
use super::calls::{Calls, explain_silence};
use super::guest::{Facts, Guest, title};
use super::inputs::{Prepared, prepare_seed};
use super::install::{self, Limits, Watched};
use super::manifest::{Product, finish, git_revision, manifest, write};
use super::prove::{self, Proven};
use super::sweep::Secrets;
use super::workspace::{Staging, Workspace, remove};
use super::{BuildOptions, Keeper, Patience, ProveOptions, Target, machine_folder};
use crate::artifact::{self, CheckResult};
use crate::communicator::pve_agent::PveAgent;
use crate::definition::{Contract, ProxmoxProfile, Transport};
use crate::diagnosis;
use crate::event::{Event, Worker, human_duration};
use crate::failure::{Failure, Kind, ResultExt as _};
use crate::plan::Plan;
use crate::pve::property::smbios;
use crate::pve::{self, Client, ConfigChange, Ending, Seen, Upid, Vmid};
use crate::run::{Run, Step};
use crate::seed::server::{Reach, ServerEvent};

/// The cluster, as one build uses it.
struct Cluster<'a> {
    plan: &'a Plan,
    profile: &'a ProxmoxProfile,
    client: Client,
    site: Site,
    patience: Patience,
    journal: Arc<Journal>,
    process: Process,
    keeper: Keeper,
}

/// Builds a plan's template on a node and returns the folder of the artifact, which has its manifest.
///
/// # Errors
/// The first failure, with its kind; what the build made is registered to be undone.
pub async fn build(
    plan: &Plan,
    profile: &ProxmoxProfile,
    options: &BuildOptions,
    workspace: &Workspace,
    run: &Run,
) -> Result<PathBuf, Failure> {
    let staging =
        workspace.artifact(options.out.as_deref(), &plan.template, &plan.definition.template.release);
    register_folders(run, workspace, &staging);
    // Now, not after an hour: a place that cannot be written to fails before anything starts.
    staging.create().kind(Kind::Infrastructure)?;

    let cluster = run
        .step("preflight", "seeing whether the node has what it takes", Worker::Node, async |step| {
            let cluster = reach_cluster(plan, profile, options, workspace, step).await?;
            cluster.refuse_taken_addresses().await?;
            Ok(cluster)
        })
        .await?;
    let seed = run
        .step("seed", "preparing the installer's answers", Worker::Forge, async |step| {
            prepare_seed(plan, workspace, cluster.reach()?, step).await
        })
        .await?;
    let (media, seed_volume) = run
        .step("media", "bringing the media to the node's storage", Worker::Node, async |step| {
            let media = cluster.bring_media(step).await?;
            Ok((media, cluster.bring_seed(&seed, step).await?))
        })
        .await?;
    let own = run
        .step("create", "creating the VM", Worker::Node, async |step| {
            create(&cluster, &media, &seed, &seed_volume, step).await
        })
        .await?;
    let is_reported = run
        .step("install", "installing from the medium", Worker::Node, async |step| {
            let is_reported = install(&cluster, workspace, &own, &seed, step).await?;
            detach_media(&cluster, &own, media.len()).await?;
            cluster.remove_seed(&seed_volume, step).await?;
            Ok(is_reported)
        })
        .await?;

    let (mut checks, facts) = work(&cluster, workspace, &own, &seed, is_reported, run).await?;

    own.renew();
    let draft = Draft::new(&cluster, &staging, facts.packages.len());
    run.step("template", "turning the VM into a template", Worker::Node, async |step| {
        cluster.finish_template(&own, &draft, step).await
    })
    .await?;
    cluster.mark_as_proving(&own).await?;
    let original = Original::new(&cluster, own.vm.clone(), workspace, Some(&own));
    let (results, proofs) = prove::build(&original, plan, &facts.identity, Worker::Guest, run).await?;
    checks.extend(results);
    let place = run
        .step("candidate", "marking the template as proven", Worker::Node, async |step| {
            seed.refuse_calls(diagnosis::Guest::Clone)?;
            // Not before: a clone that asks for the installer's answers is heard.
            seed.server.stop().await;
            cluster.mark_as_proven(&own, &draft, &checks, step).await
        })
        .await?;
    let mut manifest = run
        .step("artifact", "writing the manifest", Worker::Forge, async |step| {
            let builder = artifact::BuilderInfo {
                name: plan.builder.name.clone(),
                accelerator: if plan.builder.profile.machine.kvm == Some(false) { "tcg" } else { "kvm" }
                    .to_owned(),
                overrides: hardware::shown_overrides(plan),
            };
            cluster.tell_requests(step)?;
            let inputs = media.into_iter().map(|medium| medium.input).collect();
            let revision = git_revision(&plan.root).await;
            let product = Product::Template(place.clone());
            let found = (checks, proofs);
            let mut manifest = manifest(plan, builder, run, inputs, product, found, &facts, revision);
            finish(&mut manifest, &facts, run, workspace, &staging)?;
            // Not before: what stays on the node names a manifest, which has to be there.
            own.hand_over(&cluster, run)?;
            Ok(manifest)
        })
        .await?;
    if options.promote {
        run.step("promote", "making it the template that users clone", Worker::Node, async |step| {
            let place = cluster.promote(&place, &draft, &manifest.checks, step).await?;
            cluster.tell_requests(step)?;
            (manifest.place, manifest.spans) = (Some(place), run.spans());
            write(&manifest, run, &staging.final_path)
        })
        .await?;
    }
    Ok(staging.final_path)
}

/// Holds a template on the cluster to a contract by clones there.
///
/// # Errors
/// The first failure, with its kind; that a promise does not hold is none.
pub(super) async fn prove(
    plan: &Plan,
    profile: &ProxmoxProfile,
    target: &Target,
    contract: &Contract,
    options: &ProveOptions,
    workspace: &Workspace,
    run: &Run,
) -> Result<Proven, Failure> {
    let work = workspace.folder.join("work");
    run.undo("the proof's work folder", format!("rm -r {}", work.display()), move |_| async move {
        remove(&work)?;
        Ok(crate::run::Undone::Nothing)
    });
    let cluster = run
        .step("preflight", "seeing whether the node has what it takes", Worker::Node, async |step| {
            let mut cluster = reach_cluster(plan, profile, &options.build, workspace, step).await?;
            let vm = find_template(&mut cluster, target).await?;
            Ok((cluster, vm))
        })
        .await?;
    let (cluster, vm) = cluster;
    let original = Original::new(&cluster, vm, workspace, None);
    let id = format!("prove:{}", contract.name);
    run.step(&id, &prove::title(contract), Worker::Guest, async |step| {
        let proven =
            prove::prove(&original, plan, contract, options.depth, &options.audits, None, step).await?;
        cluster.tell_requests(step)?;
        Ok(proven)
    })
    .await
}

/// Finds the template to prove, and works on the node that has it.
async fn find_template(cluster: &mut Cluster<'_>, target: &Target) -> Result<pve::Vm, Failure> {
    let (number, uuid) = match target {
        Target::Vmid(vmid) => (*vmid, None),
        Target::Artifact { manifest, .. } => {
            let place =
                manifest.place.as_ref().context("the artifact is not on a cluster").kind(Kind::Usage)?;
            (place.vmid, Some(place.uuid.as_str()))
        }
    };
    let vmid = Vmid::new(number).with_context(|| format!("{number} is no VMID")).kind(Kind::Usage)?;
    let guests = cluster.client.guests().await.map_err(failed)?;
    let guest = guests.iter().find(|guest| guest.vmid == vmid);
    let guest = guest
        .with_context(|| format!("there is no VM {vmid}, or none that may be seen"))
        .kind(Kind::Usage)?;
    cluster.site.node =
        guest.node.parse().with_context(|| format!("the node of VM {vmid}")).kind(Kind::Infrastructure)?;
    let vm = cluster.client.vm(&cluster.site.node, vmid);
    let config = vm.config().await.map_err(failed)?;
    if !config.is_template() {
        let what = what_is_there(&cluster.client, guest).await.map_err(failed)?;
        return Err(Failure::new(Kind::Usage, anyhow!("{vmid} is no template: {what} is there")));
    }
    if let Some(uuid) = uuid.filter(|uuid| config.uuid().as_deref() != Some(*uuid)) {
        let error = anyhow!("template {vmid} is not the one of the manifest: its UUID is not {uuid}");
        return Err(Failure::new(Kind::Usage, error)
            .hint("to prove it all the same, name it: --vmid, which leaves the manifest alone"));
    }
    Ok(vm)
}

/// Does everything that is done in the installed system, and powers it off; returns what was found there.
async fn work(
    cluster: &Cluster<'_>,
    workspace: &Workspace,
    own: &OwnVm,
    seed: &Prepared,
    is_reported: bool,
    run: &Run,
) -> Result<(Vec<CheckResult>, Facts), Failure> {
    let (agent, recorder) = run
        .step("boot", "booting the installed system", Worker::Node, async |step| {
            let (agent, recorder) = boot(cluster, workspace, own, seed, step).await?;
            install::check_marker(is_reported, &agent, step).await?;
            Ok((agent, recorder))
        })
        .await?;
    let guest = Guest {
        plan: cluster.plan,
        patience: cluster.patience,
        communicator: &agent,
        seed,
        fault: &|| Kind::Guest,
    };
    for planned in &cluster.plan.steps {
        let (id, title) = (format!("step:{}", planned.step.name), title(planned));
        if let Some(reason) = &planned.skipped {
            run.skip(&id, &title, reason);
            continue;
        }
        own.renew();
        run.step(&id, &title, Worker::Guest, async |step| guest.provision(planned, step).await).await?;
    }
    own.renew();
    let mut checks =
        run.step("check", "checking the guest", Worker::Guest, async |step| guest.check(step).await).await?;
    let facts = run
        .step("facts", "listing the guest's packages", Worker::Guest, async |_| guest.facts().await)
        .await?;
    own.renew();
    run.step("seal", "sealing the guest", Worker::Guest, async |step| guest.seal(step).await).await?;
    own.renew();
    let secrets = Secrets::of(cluster.plan, &seed.server);
    let clean = run
        .step("sweep", "looking for secrets in the sealed guest", Worker::Guest, async |step| {
            guest.sweep(&secrets, step).await
        })
        .await?;
    checks.push(clean.check);
    run.step("power-off", "powering the guest off", Worker::Node, async |_| power_off(cluster, own).await)
        .await?;
    drop(recorder);
    Ok((checks, facts))
}

/// Registers the removal of what a failed build must not leave here.
fn register_folders(run: &Run, workspace: &Workspace, staging: &Staging) {
    for (what, folder) in [
        ("the partial artifact", staging.partial.clone()),
        ("the build's work folder", workspace.folder.join("work")),
    ] {
        run.undo(what, format!("rm -r {}", folder.display()), move |_| async move {
            remove(&folder)?;
            // They are empty until the build has all but succeeded: that is not worth telling.
            Ok(crate::run::Undone::Nothing)
        });
    }
}

/// Finds the cluster, and says why nothing can be built there before anything is made.
async fn reach_cluster<'a>(
    plan: &'a Plan,
    profile: &'a ProxmoxProfile,
    options: &BuildOptions,
    workspace: &Workspace,
    step: &Step<'_>,
) -> Result<Cluster<'a>, Failure> {
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let settings = site::settings(profile, &plan.root, &environment).await?;
    if !profile.verify_tls {
        step.run().emit(Event::Warning { step: None, message: site::UNVERIFIED.to_owned() });
    }
    let client = Client::new(settings).map_err(failed)?;
    let template = plan.definition.template.vmid;
    let wish = Wish {
        templates: vec![template],
        disk_bytes: plan.machine.disks.iter().map(|disk| u64::from(disk.size_gib) << 30).sum(),
        promotes: options.promote,
        uploads_answers: plan.definition.seed.transport == Transport::Cdrom,
    };
    let site = site::preflight(&client, &plan.builder.profile, &wish).await?;
    for warning in &site.warnings {
        step.run().emit(Event::Warning { step: None, message: warning.clone() });
    }
    if options.promote {
        refuse_taken(&client, template).await?;
    }
    step.note(format!(
        "building on {} (Proxmox VE {}), disks on {}, media on {}",
        site.node, site.version.version, site.disks.id, site.media.id
    ));
    let journal = Arc::new(Journal::new(&workspace.folder, &workspace.id, &profile.endpoints));
    Ok(Cluster {
        plan,
        profile,
        client,
        site,
        patience: Patience(profile.timeout_factor),
        journal,
        process: Process::this().kind(Kind::Unexpected)?,
        keeper: options.keeper.clone(),
    })
}

/// Refuses a promotion to a VMID that is somebody's.
async fn refuse_taken(client: &Client, vmid: u32) -> Result<(), Failure> {
    let number = Vmid::new(vmid).context("the template's VMID is none").kind(Kind::Definition)?;
    let guests = client.guests().await.map_err(failed)?;
    let there = guests.iter().find(|guest| guest.vmid == number);
    if there.is_none() && client.is_free(number).await.map_err(failed)? {
        return Ok(());
    }
    let what = match there {
        None => "something that this user may not see".to_owned(),
        Some(guest) => what_is_there(client, guest).await.map_err(failed)?,
    };
    Err(Failure::new(Kind::Promotion, anyhow!("{vmid} is taken already: {what} is there"))
        .hint("without --promote the build leaves a proven candidate beside it, and touches nothing else")
        .hint(format!("to have {vmid} made anew, remove what is there first, which Proxmox refuses while linked clones need it: qm destroy {vmid} --purge")))
}

/// Says what somebody else's guest is. The cluster's list may not know it yet: nodes tell it their guests'
/// names every 10 s.
async fn what_is_there(client: &Client, guest: &pve::Guest) -> Result<String, pve::Error> {
    if guest.kind == "lxc" {
        let name = guest.name.as_deref().unwrap_or("without a name");
        return Ok(format!("the container {name} on {}", guest.node));
    }
    let node = guest.node.parse().map_err(|error: pve::BadName| pve::Error::Answer {
        what: format!("the node of guest {}", guest.vmid),
        reason: error.to_string(),
    })?;
    let config = client.vm(&node, guest.vmid).config().await?;
    let kind = if config.is_template() { "the template" } else { "the VM" };
    Ok(format!("{kind} {} on {}", config.get("name").unwrap_or("without a name"), guest.node))
}

impl Cluster<'_> {
    /// Returns how guests on the node reach this machine.
    fn reach(&self) -> Result<Reach, Failure> {
        let address = self.site.address.with_context(|| {
            format!("finding the address of {}: its name has none here", self.client.endpoint().host())
        });
        address.map(Reach::Towards).kind(Kind::Infrastructure)
    }

    /// Waits for a task.
    async fn wait(&self, upid: &Upid) -> Result<Ending, Failure> {
        let limit = self.profile.task_timeout.duration();
        self.client.wait(upid, limit, None).await.map_err(failed)
    }

    /// Begins to take pictures and the serial port's output of a VM.
    fn record(&self, vm: &crate::pve::Vm, folder: PathBuf) -> Recorder {
        let has_serial = self.plan.definition.machine.serial;
        Recorder::begin(vm, folder, self.profile.screenshot_every.duration(), has_serial)
    }

    /// Says how often the API was asked; the whole table goes into the run's folder.
    fn tell_requests(&self, step: &Step<'_>) -> Result<(), Failure> {
        let counts = self.client.counts();
        let table = format!("{counts}\n");
        super::workspace::write_whole(&step.run().path("requests.txt"), table.as_bytes())
            .kind(Kind::Infrastructure)?;
        step.note(format!("{} requests to the Proxmox API; requests.txt lists them", counts.total()));
        Ok(())
    }
}

/// Creates the VM that installs, with the media in its drives.
async fn create(
    cluster: &Cluster<'_>,
    media: &[Medium],
    seed: &Prepared,
    seed_volume: &SeedVolume,
    step: &Step<'_>,
) -> Result<OwnVm, Failure> {
    let run = step.run();
    let volids = media.iter().map(|medium| medium.volid.clone());
    let volids: Vec<_> = volids.chain([seed_volume.volid.clone()]).collect();
    let uuid = uuid::Uuid::new_v4().to_string();
    let name = text::build_name(&run.id);
    let heading = format!("forge builds `{}` here.", cluster.plan.template);
    let purpose = Purpose { name: "machine".to_owned(), state: State::Building };
    let own = cluster
        .make_vm(run, purpose, &uuid, &|vm, marks| {
            let installing = Installing {
                name: &name,
                description: &marks.in_description(&heading),
                uuid: &marks.uuid,
                serial: seed.serial.as_deref(),
                media: &volids,
            };
            let params = hardware::create_params(cluster.plan, &cluster.site, &installing);
            Box::pin(async move { vm.create(&params).await })
        })
        .await?;
    step.note(format!("VM {} on {}: {}", own.vm.vmid(), own.vm.node(), cluster.console(own.vm.vmid())));
    cluster.tag(&own.vm, &own.marks, &cluster.plan.machine.tags, step).await?;
    Ok(own)
}

/// Starts the VM and watches the installation to its end; returns whether the installer reported that.
async fn install(
    cluster: &Cluster<'_>,
    workspace: &Workspace,
    own: &OwnVm,
    seed: &Prepared,
    step: &Step<'_>,
) -> Result<bool, Failure> {
    let (plan, vm) = (cluster.plan, &own.vm);
    let folder = machine_folder(workspace, "install")?;
    cluster.start(vm).await?;
    let recorder = cluster.record(vm, folder.clone());
    step.worker(Worker::Guest);
    let limits = Limits::of(plan, cluster.patience, seed);
    let watched = Watched {
        end: Box::pin(end_of(vm)),
        press_enter: &|| Box::pin(press_enter(vm)),
        console: folder.join("serial.log"),
    };
    let mut events = seed.events.lock().await;
    let result = install::watch(step, watched, &mut events, &limits).await;
    drop(recorder);
    step.worker(Worker::Node);
    result
}

/// Takes the media out and the address of the answers away.
async fn detach_media(cluster: &Cluster<'_>, own: &OwnVm, media: usize) -> Result<(), Failure> {
    let order = format!("order={}", hardware::system_disk(&cluster.plan.machine));
    let delete = hardware::cd_keys(media + 1).chain(["reboot".to_owned()]).collect();
    let change = ConfigChange {
        delete,
        ..ConfigChange::set([("smbios1", smbios(&own.marks.uuid, &[])), ("boot", order)])
    };
    cluster.set(&own.vm, &change).await
}

/// Boots the installed system and waits for its guest agent.
async fn boot(
    cluster: &Cluster<'_>,
    workspace: &Workspace,
    own: &OwnVm,
    seed: &Prepared,
    step: &Step<'_>,
) -> Result<(PveAgent, Recorder), Failure> {
    let folder = machine_folder(workspace, "guest")?;
    cluster.start(&own.vm).await?;
    let recorder = cluster.record(&own.vm, folder.clone());
    step.worker(Worker::Guest);
    let agent = PveAgent::new(&own.vm, Arc::clone(&seed.wake));
    let started = tokio::time::Instant::now();
    let deadline = cluster.patience.scaled(cluster.plan.definition.timeouts.boot.duration());
    let mut events = seed.events.lock().await;
    let ready = tokio::select! {
        ready = agent.wait_until_ready(deadline) => ready,
        never = wake_when_ready(&mut events, &seed.calls, agent.wake(), step) => match never {},
    };
    drop(events);
    ready.map_err(|error| {
        let console = folder.join("serial.log");
        explain_silence(silence(error), diagnosis::Guest::Installed, Some(seed), step, &console)
    })?;
    step.note(format!("guest agent answers after {}", human_duration(started.elapsed())));
    seed.refuse_calls(diagnosis::Guest::Installed)?;
    Ok((agent, recorder))
}

/// Returns the failure of a guest whose agent does not answer.
fn silence(error: crate::communicator::CommunicatorError) -> Failure {
    use crate::communicator::CommunicatorError as Error;
    let kind = match error {
        Error::NotSent { .. } | Error::Timeout { .. } => Kind::Deadline,
        Error::Gone { .. } => Kind::Guest,
        _ => Kind::Infrastructure,
    };
    Failure::new(kind, error)
}

/// Has the agent asked as soon as the guest says that it runs.
async fn wake_when_ready(
    events: &mut UnboundedReceiver<ServerEvent>,
    calls: &Calls,
    wake: &Notify,
    step: &Step<'_>,
) -> std::convert::Infallible {
    while let Some(event) = events.recv().await {
        calls.take(&event);
        if matches!(event, ServerEvent::Ready { .. }) {
            step.note("the guest says that its agent runs");
            wake.notify_waiters();
        }
    }
    std::future::pending().await
}

/// Powers the sealed guest off.
async fn power_off(cluster: &Cluster<'_>, own: &OwnVm) -> Result<(), Failure> {
    let limit = cluster.patience.scaled(cluster.plan.definition.timeouts.seal.duration());
    shut_down(&cluster.client, &own.vm, limit).await.map_err(|failure| {
        failure.hint("the sealed guest did not power off in time: more of it is `timeouts.seal`")
    })
}

/// Has a guest power off, by its agent where that answers.
async fn shut_down(client: &Client, vm: &pve::Vm, limit: Duration) -> Result<(), Failure> {
    let shutdown = async || {
        let upid = vm.shutdown(limit, false).await?;
        client.wait(&upid, limit * 2, None).await.map(drop)
    };
    let look = async || Ok(if vm.status().await?.is_running() { Seen::NotDone } else { Seen::Done(()) });
    let ended = client.settle(&|| Box::pin(shutdown()), &|| Box::pin(look())).await;
    ended.map_err(|error| {
        let kind = if matches!(error, crate::pve::Error::TaskFailed { .. }) {
            Kind::Guest
        } else {
            Kind::Infrastructure
        };
        Failure::new(kind, error)
    })
}
