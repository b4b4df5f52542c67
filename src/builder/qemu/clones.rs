//! Boots clones of the finished disks, as Proxmox's clones boot, for the proof.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use futures_util::future::BoxFuture;
use qapi::qga::GuestShutdownMode;
use tokio::time::Instant;

use super::host::{Host, Launch};
use super::machine::silence;
use crate::builder::calls::explain_silence;
use crate::builder::prove::seed::{Addressing, CloneSeed, network};
use crate::builder::prove::{Limits, Prover, Reached, Running, Shape};
use crate::builder::workspace::{Workspace, remove};
use crate::builder::{Patience, machine_folder};
use crate::communicator::GuestAgent;
use crate::communicator::socket_agent::SocketAgent;
use crate::definition::{CloudInitDrive, Contract, DiskFormat, Machine as Hardware};
use crate::diagnosis::Guest;
use crate::failure::{Failure, Kind, ResultExt as _};
use crate::plan::Plan;
use crate::qemu::spec::{Boot, Forward, OnReset, UserNet};
use crate::qemu::{End, Machine, img};
use crate::run::{Step, UndoId};
use crate::seed;

/// How much of the memory that is free here clones may have, in percent: two may run at once.
const MEMORY_SHARE: u64 = 40;

/// The least memory that a clone is given, in MiB, however little is free.
const MEMORY_MIN: u32 = 1024;

/// The port that an SSH server has which nobody moved.
const SSH_PORT: u16 = 22;

/// The finished template, and where its clones work.
#[derive(Debug)]
pub(super) struct Template<'a> {
    plan: &'a Plan,
    host: &'a Host,
    workspace: &'a Workspace,
    /// The finished disks, each with the size that a guest sees in bytes; the system's first.
    disks: Vec<(PathBuf, u64)>,
    /// Their format.
    format: DiskFormat,
    /// How many clones there have been.
    clones: Mutex<u8>,
}

impl<'a> Template<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        host: &'a Host,
        workspace: &'a Workspace,
        disks: Vec<(PathBuf, u64)>,
        format: DiskFormat,
    ) -> Self {
        Self { plan, host, workspace, disks, format, clones: Mutex::default() }
    }

    /// Returns a MAC address of a clone's own, with Proxmox's prefix for those it makes up.
    fn mac(&self) -> String {
        let mut clones = self.clones.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *clones = clones.wrapping_add(1);
        format!("bc:24:11:f0:f0:{:02x}", *clones)
    }

    fn limits(&self) -> Limits {
        let plan = self.plan;
        let cores = match self.host.cores(&plan.machine) {
            1 if plan.machine.cores > 1 => (1, "an emulated guest has one".to_owned()),
            _ => {
                let here = std::thread::available_parallelism().map_or(1, |it| it.get() as u32);
                (here, "this machine has no more".to_owned())
            }
        };
        let free = free_memory_mib().map(|free| {
            let share = u32::try_from(free * MEMORY_SHARE / 100).unwrap_or(u32::MAX);
            (share.max(MEMORY_MIN), format!("{free} MiB are free here"))
        });
        Limits { cores: Some(cores), memory_mib: free }
    }

    async fn start(
        &self,
        name: &str,
        shape: &Shape,
        clone_seed: &mut CloneSeed,
    ) -> Result<Clone<'_>, Failure> {
        let logs = machine_folder(self.workspace, name)?;
        let work = self.workspace.work(name);
        std::fs::create_dir_all(&work).context("making the clone's folder").kind(Kind::Infrastructure)?;
        clone_seed.mac = self.mac();
        let mut disks = Vec::new();
        for (index, (disk, _)) in self.disks.iter().enumerate() {
            // Only the system's disk is larger, as Proxmox users have it.
            let grown = (index == 0).then_some(shape.disk_bytes);
            let overlay = work.join(format!("clone{index}.qcow2"));
            img::create_overlay(disk, self.format, &overlay, grown).await.kind(Kind::Infrastructure)?;
            disks.push((overlay, DiskFormat::Qcow2));
        }
        let mut hardware = self.plan.machine.clone();
        (hardware.cores, hardware.memory_mib) = (shape.cores, shape.memory_mib);
        if let Some(nic) = hardware.nics.first_mut() {
            nic.mac = Some(clone_seed.mac.clone());
        }
        let placed = Placed { host: self.host, hardware, disks, drive: shape.contract.drive, logs, work };
        let networks = [clone_seed.addressing.clone()].into_iter().chain(shape.other.clone());
        let (ssh_port, network) = (self.plan.definition.prove.ssh_port, dhcp_network(networks));
        let machine = placed.launch(clone_seed, ssh_port, network.clone()).await?;
        let agent = SocketAgent::new(machine.agent_socket(), machine.state());
        Ok(Clone { placed, machine, agent, ssh_port, network })
    }
}

/// Returns the network in which a clone with DHCP is given its address: the one where it moves later.
fn dhcp_network(addresses: impl Iterator<Item = Addressing>) -> Option<String> {
    let mut addresses = addresses;
    addresses.find_map(|addressing| match addressing {
        Addressing::Dhcp => None,
        Addressing::Static { address, prefix, .. } => Some(network(address, prefix)),
    })
}

/// Returns how much memory is free here, in MiB.
fn free_memory_mib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib >> 10)
}

impl Prover for Template<'_> {
    fn patience(&self) -> Patience {
        self.host.patience()
    }

    fn shape<'a>(&'a self, contract: &'a Contract) -> BoxFuture<'a, Result<Shape, Failure>> {
        let bytes = self.disks.first().map_or(0, |(_, bytes)| *bytes);
        Box::pin(async move { Shape::of(contract, &self.plan.machine, bytes, &self.limits()) })
    }

    /// Each clone has a network of its own.
    fn claim<'a>(
        &'a self,
        _addresses: Vec<Ipv4Addr>,
        _step: &'a Step<'a>,
    ) -> BoxFuture<'a, Result<Vec<UndoId>, Failure>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn start<'a: 'b, 'b>(
        &'a self,
        name: &'b str,
        shape: &'b Shape,
        seed: &'b mut CloneSeed,
        _step: &'b Step<'b>,
    ) -> BoxFuture<'b, Result<Box<dyn Running + 'a>, Failure>> {
        Box::pin(async move {
            let clone = self.start(name, shape, seed).await?;
            Ok(Box::new(clone) as Box<dyn Running>)
        })
    }
}

/// What stays of a clone when it is off.
#[derive(Debug)]
struct Placed<'a> {
    host: &'a Host,
    hardware: Hardware,
    disks: Vec<(PathBuf, DiskFormat)>,
    drive: CloudInitDrive,
    /// A folder for its logs.
    logs: PathBuf,
    /// A folder for its disks and seed.
    work: PathBuf,
}

impl Placed<'_> {
    async fn launch(
        &self,
        clone_seed: &CloneSeed,
        ssh_port: u16,
        dhcp_network: Option<String>,
    ) -> Result<Machine, Failure> {
        let volume = match self.drive {
            CloudInitDrive::NoCloud => seed::nocloud_volume(
                &clone_seed.user_data(),
                &clone_seed.meta_data(),
                &clone_seed.network_config(),
            ),
            CloudInitDrive::ConfigDrive => seed::config_drive_volume(
                &clone_seed.user_data(),
                &clone_seed.instance(),
                &clone_seed.interfaces(),
            ),
        };
        let cdrom = self.work.join("cloudinit.iso");
        std::fs::write(&cdrom, volume.kind(Kind::Unexpected)?)
            .context("writing the clone's cloud-init drive")
            .kind(Kind::Infrastructure)?;
        let address = clone_seed.addressing.address();
        let forward = |port| Forward { address, port };
        let mut forwards = vec![forward(ssh_port)];
        forwards.extend((ssh_port != SSH_PORT).then(|| forward(SSH_PORT)));
        let net = match &clone_seed.addressing {
            Addressing::Dhcp => dhcp_network,
            Addressing::Static { address, prefix, .. } => Some(network(*address, *prefix)),
        };
        let launch = Launch {
            folder: &self.work,
            disks: self.disks.clone(),
            cdroms: vec![cdrom],
            // Nobody gets an address by DHCP beside a static one: QEMU's first is another.
            network: UserNet { net, dhcp_start: None, forwards, restrict: false },
            serial: None,
            boot: Boot::Disk,
            on_reset: OnReset::Restart,
        };
        let spec = self.host.spec(&self.hardware, launch).kind(Kind::Infrastructure)?;
        Machine::launch(&spec, &self.logs).await.kind(Kind::Infrastructure)
    }
}

/// A clone that runs, or did until just now.
struct Clone<'a> {
    placed: Placed<'a>,
    machine: Machine,
    agent: SocketAgent,
    ssh_port: u16,
    network: Option<String>,
}

impl Running for Clone<'_> {
    fn agent(&self) -> &dyn GuestAgent {
        &self.agent
    }

    fn has_queues(&self) -> bool {
        false
    }

    fn wait_until_ready<'a>(
        &'a self,
        limit: Duration,
        step: &'a Step<'a>,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let ready = self.agent.wait_until_ready(limit).await.kind(silence(&self.machine));
            ready.map_err(|failure| {
                explain_silence(failure, Guest::Clone, None, step, self.machine.serial_log())
            })
        })
    }

    fn reach<'a>(&'a self, port: u16, _seed: &'a CloneSeed) -> BoxFuture<'a, Result<Reached, Failure>> {
        Box::pin(async move {
            let forwarded = self.machine.forwarded_port(port).await.kind(Kind::Infrastructure)?;
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, forwarded));
            Ok(Reached { address, is_routed: true })
        })
    }

    fn reboot(&self) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async { self.agent.shut_down(GuestShutdownMode::Reboot).await.kind(Kind::Guest) })
    }

    fn power_off(&mut self, limit: Duration) -> BoxFuture<'_, Result<Duration, Failure>> {
        Box::pin(async move {
            let started = Instant::now();
            self.agent.shut_down(GuestShutdownMode::Powerdown).await.kind(Kind::Guest)?;
            let end = self.machine.wait_for_end(limit).await.kind(Kind::Deadline)?;
            if end != End::PowerOff {
                let error = anyhow!("{end} instead of powering off when its agent was asked to");
                return Err(Failure::new(Kind::Guest, error));
            }
            let took = started.elapsed();
            self.machine.quit().await.kind(Kind::Infrastructure)?;
            Ok(took)
        })
    }

    fn start_again<'a>(&'a mut self, seed: &'a CloneSeed) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            self.machine = self.placed.launch(seed, self.ssh_port, self.network.clone()).await?;
            self.agent = SocketAgent::new(self.machine.agent_socket(), self.machine.state());
            Ok(())
        })
    }

    fn end<'a>(self: Box<Self>, holds: bool, step: &'a Step<'a>) -> BoxFuture<'a, Result<(), Failure>>
    where
        Self: 'a,
    {
        Box::pin(async move {
            if !holds {
                // Evidence, as far as it can be had.
                let name = self.placed.logs.file_name().unwrap_or_default().to_string_lossy();
                let _taken = self.machine.screenshot(&step.run().path(format!("{name}.png"))).await;
            }
            self.machine.kill().await;
            // Gigabytes: not all at once when the run is over.
            remove(&self.placed.work).kind(Kind::Infrastructure)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_with_dhcp_is_given_an_address_where_it_moves_later() {
        let later = Addressing::Static {
            address: [192, 168, 1, 50].into(),
            prefix: 24,
            gateway: [192, 168, 1, 1].into(),
            dns: Vec::new(),
        };
        let both = [Addressing::Dhcp, later].into_iter();
        assert_eq!(dhcp_network(both), Some("192.168.1.0/24".to_owned()));
        assert_eq!(dhcp_network([Addressing::Dhcp].into_iter()), None);
    }
}
