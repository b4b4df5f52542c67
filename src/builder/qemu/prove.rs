//! Boots clones of the finished disks, as Proxmox's clones boot, for the proof.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::Context as _;

use super::host::{Host, Launch};
use super::machine::silence;
use crate::artifact::CheckResult;
use crate::builder::clone::{self, CloneSeed};
use crate::builder::outside::{self, Key};
use crate::builder::proof::{Drive, Identity, Subject, clone_seed};
use crate::builder::workspace::remove;
use crate::communicator::socket_agent::SocketAgent;
use crate::definition::DiskFormat;
use crate::event::{Worker, human_duration};
use crate::failure::{Failure, Kind, ResultExt as _};
use crate::plan::Plan;
use crate::qemu::spec::{Boot, Forward, OnReset, UserNet};
use crate::qemu::{Machine, img};
use crate::run::Step;
use crate::seed;

/// The clone's MAC address, with Proxmox's own prefix for those it makes up.
const MAC: &str = "bc:24:11:f0:f0:01";

/// The finished template, and where its clones work.
#[derive(Debug)]
pub(super) struct Template<'a> {
    /// The plan.
    pub(super) plan: &'a Plan,
    /// This host.
    pub(super) host: &'a Host,
    /// The finished disks, each with the size that a guest sees in bytes; the system's first.
    pub(super) disks: Vec<(PathBuf, u64)>,
    /// Their format.
    pub(super) format: DiskFormat,
    /// The build's guest, before it was sealed.
    pub(super) built: &'a Identity,
    /// A folder for the clone's logs.
    pub(super) logs: PathBuf,
    /// A folder for the clone's disk, seed and key; gone when the run ends.
    pub(super) work: PathBuf,
}

/// Boots a clone, looks at it and ends it. The results are returned whether or not they hold.
///
/// # Errors
/// When the clone does not come up or cannot be asked.
pub(super) async fn prove(
    template: &Template<'_>,
    drive: Drive,
    step: &Step<'_>,
) -> Result<Vec<CheckResult>, Failure> {
    std::fs::create_dir_all(&template.work)
        .context("making the clone's folder")
        .kind(Kind::Infrastructure)?;
    let key = outside::make_key().kind(Kind::Infrastructure)?;
    let seed = clone_seed(template.plan, &key, MAC, drive)?;
    step.worker(Worker::Qemu);
    let machine = launch(template, drive, &seed).await?;
    step.worker(Worker::Guest);
    let result = look(template, drive, step, &machine, &seed, &key).await;
    step.worker(Worker::Qemu);
    if !result.as_ref().is_ok_and(|results| !results.iter().any(CheckResult::has_failed)) {
        // Evidence, as far as it can be had.
        let _taken = machine.screenshot(&step.run().path(format!("{}.png", drive.at()))).await;
    }
    machine.kill().await;
    // Gigabytes: not all at once when the build is over.
    remove(&template.work).kind(Kind::Infrastructure)?;
    result
}

async fn look(
    template: &Template<'_>,
    drive: Drive,
    step: &Step<'_>,
    machine: &Machine,
    seed: &CloneSeed,
    key: &Key,
) -> Result<Vec<CheckResult>, Failure> {
    let (plan, patience) = (template.plan, template.host.patience());
    let agent = SocketAgent::new(machine.agent_socket(), machine.state());
    let started = tokio::time::Instant::now();
    let deadline = patience.scaled(plan.definition.timeouts.boot.duration());
    agent.wait_until_ready(deadline).await.kind(silence(machine))?;
    step.note(format!("the clone's agent answers after {}", human_duration(started.elapsed())));
    let ssh_port = machine.forwarded_port(plan.definition.proof.ssh_port).await.kind(Kind::Infrastructure)?;
    let subject = Subject {
        plan,
        patience,
        built: template.built,
        disk_size: template.disks.first().map_or(0, |(_, bytes)| *bytes),
        seed,
        drive,
        key,
        communicator: &agent,
        ssh: SocketAddr::from((Ipv4Addr::LOCALHOST, ssh_port)),
        is_routed: true,
    };
    subject.look(step, started).await
}

async fn launch(template: &Template<'_>, drive: Drive, seed: &CloneSeed) -> Result<Machine, Failure> {
    let proof = &template.plan.definition.proof;
    let mut disks = Vec::new();
    for (index, (disk, bytes)) in template.disks.iter().enumerate() {
        // Only the system's disk is larger, as Proxmox users have it.
        let grown = (index == 0).then(|| bytes + u64::from(proof.grow_gib) * (1 << 30));
        let overlay = template.work.join(format!("clone{index}.qcow2"));
        img::create_overlay(disk, template.format, &overlay, grown).await.kind(Kind::Infrastructure)?;
        disks.push((overlay, DiskFormat::Qcow2));
    }
    let volume = match drive {
        Drive::NoCloud => seed::nocloud_volume(&seed.user_data(), &seed.meta_data(), &seed.network_config()),
        Drive::ConfigDrive => {
            seed::config_drive_volume(&seed.user_data(), &seed.instance(), &seed.interfaces())
        }
    };
    let volume = volume.kind(Kind::Unexpected)?;
    let cdrom = template.work.join("cloudinit.iso");
    std::fs::write(&cdrom, volume)
        .context("writing the clone's cloud-init drive")
        .kind(Kind::Infrastructure)?;
    let network = UserNet {
        net: Some(clone::network(seed.address, seed.prefix)),
        // Nobody gets an address that was not asked for: it would hide a static one not taken.
        dhcp_start: None,
        forwards: vec![Forward { address: Some(seed.address), port: proof.ssh_port }],
        restrict: false,
    };
    let mut machine = template.plan.machine.clone();
    if let Some(nic) = machine.nics.first_mut() {
        nic.mac = Some(seed.mac.clone());
    }
    let spec = template
        .host
        .spec(
            &machine,
            Launch {
                folder: &template.work,
                disks,
                cdroms: vec![cdrom],
                network,
                serial: None,
                boot: Boot::Disk,
                on_reset: OnReset::Restart,
            },
        )
        .kind(Kind::Infrastructure)?;
    Machine::launch(&spec, &template.logs).await.kind(Kind::Infrastructure)
}
