//! Boots clones of the finished template, as its users do, for the proof.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use futures_util::future::BoxFuture;
use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;

use super::console::Recorder;
use super::hardware::{CLOUD_INIT, cloud_init_drive, emulation, system_disk};
use super::marks::State;
use super::site::{failed, server_now};
use super::vm::{OwnVm, Purpose};
use super::{Cluster, silence, text};
use crate::builder::calls::explain_silence;
use crate::builder::prove::outside;
use crate::builder::prove::seed::{Addressing, CloneSeed};
use crate::builder::prove::{Limits, Prover, Reached, Running, Shape};
use crate::builder::workspace::Workspace;
use crate::builder::{Patience, machine_folder};
use crate::communicator::GuestAgent;
use crate::communicator::pve_agent::PveAgent;
use crate::definition::{CloudInitDrive, Contract};
use crate::diagnosis::Guest;
use crate::event::Worker;
use crate::failure::{Failure, Kind};
use crate::pve::property::{Properties, parse_size};
use crate::pve::{CloneOptions, ConfigChange, Error, Params, Seen, Vm, VmConfig};
use crate::run::{Step, UndoId, Undone};

/// The first network interface.
const NIC: &str = "net0";

/// How much of a node's free memory clones may have, in percent: two may run at once.
const MEMORY_SHARE: u64 = 40;

/// The least memory that a clone is given, in MiB, however little is free.
const MEMORY_MIN: u32 = 1024;

/// A template on the node, whose clones prove it.
pub(super) struct Original<'a> {
    cluster: &'a Cluster<'a>,
    vm: Vm,
    workspace: &'a Workspace,
    /// The VM of the build that made it, while that is its own: its lease is renewed.
    own: Option<&'a OwnVm>,
    /// One copy is made at a time: each holds the template until it is made.
    copying: Mutex<()>,
}

impl<'a> Original<'a> {
    pub(super) fn new(
        cluster: &'a Cluster<'a>,
        vm: Vm,
        workspace: &'a Workspace,
        own: Option<&'a OwnVm>,
    ) -> Self {
        Self { cluster, vm, workspace, own, copying: Mutex::default() }
    }
}

impl Original<'_> {
    async fn shape(&self, contract: &Contract) -> Result<Shape, Failure> {
        let plan = self.cluster.plan;
        let config = self.vm.config().await.map_err(failed)?;
        let size = disk_size(&config, &system_disk(&plan.definition.machine))?;
        self.cluster.shape_of(contract, size, &self.limits().await)
    }

    /// What the profile says of machines while building holds for clones, too.
    async fn limits(&self) -> Limits {
        let (cluster, machine) = (self.cluster, &self.cluster.plan.builder.profile.machine);
        let says = || format!("the builder profile {} says so", cluster.plan.builder.name);
        let status = cluster.client.node_status(&cluster.site.node).await.ok();
        let number = |pointer: &str| status.as_ref().and_then(|status| status.pointer(pointer)?.as_u64());
        let node = &cluster.site.node;
        let cores = machine.cores.map(|cores| (cores, says())).or_else(|| {
            let there = u32::try_from(number("/cpuinfo/cpus")?).ok()?;
            Some((there, format!("{node} has no more")))
        });
        let memory_mib = machine.memory_mib.map(|memory| (memory, says())).or_else(|| {
            let free = number("/memory/free")? >> 20;
            let share = u32::try_from(free * MEMORY_SHARE / 100).unwrap_or(u32::MAX);
            Some((share.max(MEMORY_MIN), format!("{free} MiB are free on {node}")))
        });
        Limits { cores, memory_mib }
    }

    async fn start_clone(
        &self,
        name: &str,
        shape: &Shape,
        seed: &mut CloneSeed,
        step: &Step<'_>,
    ) -> Result<Clone<'_>, Failure> {
        let cluster = self.cluster;
        if let Some(own) = self.own {
            own.renew();
        }
        let mut own = self.make_clone(name, seed, step).await?;
        let config = self.prepare(&mut own, shape, seed, step).await?;
        self.grow(&own, &config, shape).await?;
        let folder = machine_folder(self.workspace, name)?;
        cluster.start(&own.vm).await?;
        let recorder = cluster.record(&own.vm, folder.clone());
        let agent = PveAgent::new(&own.vm, Arc::new(Notify::new()));
        Ok(Clone { cluster, own, agent, recorder, folder, drive: shape.contract.drive })
    }

    /// Makes the clone, linked where the storage can.
    async fn make_clone(&self, name: &str, seed: &CloneSeed, step: &Step<'_>) -> Result<OwnVm, Failure> {
        let cluster = self.cluster;
        let _turn = self.copying.lock().await;
        let purpose = Purpose { name: name.to_owned(), state: State::Proving };
        let heading = format!("forge proves the template {} with this clone of it.", self.vm.vmid());
        let clone = cluster
            .make_vm(step.run(), purpose, "", &|vm, marks| {
                let options = CloneOptions {
                    newid: vm.vmid(),
                    name: Some(seed.hostname.clone()),
                    full: !cluster.site.disks.linked_clones,
                    storage: None,
                    pool: cluster.site.pool.clone(),
                    description: Some(marks.in_description(&heading)),
                };
                let original = self.vm.clone();
                Box::pin(async move { original.clone_to(&options).await })
            })
            .await?;
        let vmid = clone.vm.vmid();
        step.note(format!("{name} is VM {vmid}: {}", cluster.console(vmid)));
        Ok(clone)
    }

    /// Gives the clone its shape, its seed and what the node needs to run it, and returns its configuration.
    async fn prepare(
        &self,
        clone: &mut OwnVm,
        shape: &Shape,
        seed: &mut CloneSeed,
        step: &Step<'_>,
    ) -> Result<VmConfig, Failure> {
        let cluster = self.cluster;
        let config = clone.made.clone();
        clone.marks.uuid = config.uuid().unwrap_or_default();
        let net = Properties::parse_net(config.get(NIC).unwrap_or_default());
        net.get("macaddr").unwrap_or_default().clone_into(&mut seed.mac);
        if config.get(CLOUD_INIT).is_none() {
            cluster.attach_cloud_init(&clone.vm, &cloud_init_drive(&cluster.site)).await?;
        }
        let plan = cluster.plan;
        let mut set = seed_params(seed, &plan.definition.template.cloud_init.user, shape.contract.drive);
        set.extend(shape_params(shape, &config));
        set.extend(emulation(plan));
        if plan.machine.cpu != plan.definition.machine.cpu {
            set.insert("cpu".to_owned(), plan.machine.cpu.clone());
        }
        let described = clone.marks.renewed(server_now(&cluster.client));
        let text = config.get("description").unwrap_or_default();
        set.insert("description".to_owned(), described.in_description(text));
        cluster.set(&clone.vm, &ConfigChange::set(set)).await?;
        self.tag(clone, shape, &config, step).await?;
        Ok(config)
    }

    /// Gives the clone its contract's tags, as far as that is allowed.
    async fn tag(
        &self,
        clone: &OwnVm,
        shape: &Shape,
        config: &VmConfig,
        step: &Step<'_>,
    ) -> Result<(), Failure> {
        if shape.contract.tags.is_empty() {
            return Ok(());
        }
        let mut tags = config.tags();
        tags.extend(shape.contract.tags.iter().map(|tag| tag.to_lowercase()));
        let tags = tags.into_iter().collect::<Vec<_>>().join(";");
        match super::vm::set(&clone.vm, &ConfigChange::set([("tags", tags)])).await {
            Err(error @ Error::Forbidden { .. }) => {
                let tags = shape.contract.tags.join(", ");
                step.note(format!("the tags {tags} are not allowed on {}: {error}", clone.vm.vmid()));
                Ok(())
            }
            result => result.map_err(failed),
        }
    }

    /// Makes the clone's system disk as large as its contract says.
    async fn grow(&self, clone: &OwnVm, config: &VmConfig, shape: &Shape) -> Result<(), Failure> {
        let cluster = self.cluster;
        let key = system_disk(&cluster.plan.definition.machine);
        // In whole GiB and absolute: repeated after a lost answer it does nothing more.
        let wanted = shape.disk_bytes >> 30;
        if disk_size(config, &key)? >> 30 >= wanted {
            return Ok(());
        }
        let wanted = format!("{wanted}G");
        let limit = cluster.profile.task_timeout.duration();
        let resize = async || {
            let upid = clone.vm.resize(&key, &wanted).await?;
            cluster.client.wait(&upid, limit, None).await.map(drop)
        };
        let again = || -> BoxFuture<'_, _> { Box::pin(async { Ok(Seen::NotDone) }) };
        cluster.client.settle(&|| Box::pin(resize()), &again).await.map_err(failed)
    }
}

impl Cluster<'_> {
    fn shape_of(&self, contract: &Contract, disk_bytes: u64, limits: &Limits) -> Result<Shape, Failure> {
        let mut shape = Shape::of(contract, &self.plan.definition.machine, disk_bytes, limits)?;
        if let Some(addresses) = self.profile.proof_addresses() {
            shape.take_addresses(addresses);
        }
        Ok(shape)
    }

    /// Refuses addresses that a build's proof is going to need, and somebody has: now, not after an hour.
    pub(super) async fn refuse_taken_addresses(&self) -> Result<(), Failure> {
        for contract in self.plan.build_contracts() {
            let shape = self.shape_of(&contract, 0, &Limits::default())?;
            if let Some(address) = shape.first.address() {
                refuse_taken(address, self.plan.definition.prove.ssh_port).await?;
            }
        }
        Ok(())
    }

    /// Waits until no other proof on this machine has a clone with that address: each would be taken for
    /// the other. The turn lasts until the returned undo is forgotten, or has come after the clone's.
    async fn turn_to_prove(&self, address: Ipv4Addr, step: &Step<'_>) -> Result<UndoId, Failure> {
        let builder = &self.plan.builder.name;
        let waiting = format!("another proof has a clone at {address}");
        let turn = self.turn(&format!("proof-{builder}-{address}"), &waiting, step).await?;
        Ok(step.run().undo("the turn to prove", "", move |_| async move {
            drop(turn);
            Ok(Undone::Nothing)
        }))
    }
}

/// Refuses an address at which a machine answers: a contract's may be one that its consumer has in earnest.
async fn refuse_taken(address: Ipv4Addr, ssh_port: u16) -> Result<(), Failure> {
    for port in [ssh_port, 22] {
        if outside::is_anybody(SocketAddr::from((address, port))).await {
            let error = anyhow!("a machine answers at {address} already: a clone there would be in its way");
            return Err(Failure::new(Kind::Infrastructure, error)
                .hint("let proofs have addresses of their own: `proof_addresses` in the builder profile")
                .hint("or set another `address` in the template's `[[contract]]`"));
        }
    }
    Ok(())
}

/// Returns the size of a disk in bytes.
fn disk_size(config: &VmConfig, key: &str) -> Result<u64, Failure> {
    let disk = Properties::parse(config.get(key).unwrap_or_default(), "file");
    disk.get("size").and_then(parse_size).ok_or_else(|| {
        Failure::new(Kind::Infrastructure, anyhow!("the template has no disk {key} whose size is known"))
    })
}

/// Returns what the clone's users would set, too.
fn seed_params(seed: &CloneSeed, user: &str, drive: CloudInitDrive) -> Params {
    let mut params = Params::from([
        ("ciuser".to_owned(), user.to_owned()),
        ("sshkeys".to_owned(), text::encoded_keys(&seed.public_key)),
        ("ciupgrade".to_owned(), "0".to_owned()),
    ]);
    params.extend(address_params(seed));
    if drive == CloudInitDrive::ConfigDrive {
        params.insert("citype".to_owned(), "configdrive2".to_owned());
    }
    params
}

fn address_params(seed: &CloneSeed) -> Params {
    let mut params = Params::from([("ipconfig0".to_owned(), seed.addressing.ipconfig())]);
    if let Addressing::Static { dns, .. } = &seed.addressing {
        let servers: Vec<String> = dns.iter().map(ToString::to_string).collect();
        params.insert("nameserver".to_owned(), servers.join(" "));
    }
    params
}

/// Returns the hardware that the contract asks for.
fn shape_params(shape: &Shape, config: &VmConfig) -> Params {
    let mut params = Params::from([
        ("cores".to_owned(), shape.cores.to_string()),
        ("memory".to_owned(), shape.memory_mib.to_string()),
    ]);
    if shape.contract.onboot {
        params.insert("onboot".to_owned(), "1".to_owned());
    }
    if shape.contract.queues > 0 {
        let net = Properties::parse_net(config.get(NIC).unwrap_or_default());
        let net = net.without("queues").with("queues", shape.contract.queues.to_string());
        params.insert(NIC.to_owned(), net.to_string());
    }
    params
}

impl Prover for Original<'_> {
    fn patience(&self) -> Patience {
        self.cluster.patience
    }

    fn shape<'a>(&'a self, contract: &'a Contract) -> BoxFuture<'a, Result<Shape, Failure>> {
        Box::pin(self.shape(contract))
    }

    fn claim<'a>(
        &'a self,
        addresses: Vec<Ipv4Addr>,
        step: &'a Step<'a>,
    ) -> BoxFuture<'a, Result<Vec<UndoId>, Failure>> {
        Box::pin(async move {
            let mut turns = Vec::new();
            for address in addresses {
                turns.push(self.cluster.turn_to_prove(address, step).await?);
                refuse_taken(address, self.cluster.plan.definition.prove.ssh_port).await?;
            }
            Ok(turns)
        })
    }

    fn start<'a: 'b, 'b>(
        &'a self,
        name: &'b str,
        shape: &'b Shape,
        seed: &'b mut CloneSeed,
        step: &'b Step<'b>,
    ) -> BoxFuture<'b, Result<Box<dyn Running + 'a>, Failure>> {
        Box::pin(async move {
            let clone = self.start_clone(name, shape, seed, step).await?;
            Ok(Box::new(clone) as Box<dyn Running>)
        })
    }
}

/// A clone on the node.
struct Clone<'a> {
    cluster: &'a Cluster<'a>,
    own: OwnVm,
    agent: PveAgent,
    recorder: Recorder,
    folder: PathBuf,
    drive: CloudInitDrive,
}

impl Running for Clone<'_> {
    fn agent(&self) -> &dyn GuestAgent {
        &self.agent
    }

    fn has_queues(&self) -> bool {
        true
    }

    fn wait_until_ready<'a>(
        &'a self,
        limit: Duration,
        step: &'a Step<'a>,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let ready = self.agent.wait_until_ready(limit).await;
            ready.map_err(|error| {
                explain_silence(silence(error), Guest::Clone, None, step, &self.folder.join("serial.log"))
            })
        })
    }

    fn reach<'a>(&'a self, port: u16, seed: &'a CloneSeed) -> BoxFuture<'a, Result<Reached, Failure>> {
        Box::pin(async move {
            let address = match seed.addressing.address() {
                Some(address) => address,
                None => self.told_address().await?,
            };
            Ok(Reached { address: SocketAddr::from((address, port)), is_routed: false })
        })
    }

    fn reboot(&self) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async {
            let limit = self.cluster.profile.task_timeout.duration();
            let upid = self.own.vm.reboot(limit).await.map_err(failed)?;
            self.cluster.client.wait(&upid, limit, None).await.map(drop).map_err(failed)
        })
    }

    fn power_off(&mut self, limit: Duration) -> BoxFuture<'_, Result<Duration, Failure>> {
        Box::pin(async move {
            let started = Instant::now();
            super::shut_down(&self.cluster.client, &self.own.vm, limit).await?;
            Ok(started.elapsed())
        })
    }

    fn start_again<'a>(&'a mut self, seed: &'a CloneSeed) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let user = &self.cluster.plan.definition.template.cloud_init.user;
            let change = ConfigChange::set(seed_params(seed, user, self.drive));
            self.cluster.set(&self.own.vm, &change).await?;
            self.cluster.start(&self.own.vm).await
        })
    }

    fn end<'a>(self: Box<Self>, holds: bool, step: &'a Step<'a>) -> BoxFuture<'a, Result<(), Failure>>
    where
        Self: 'a,
    {
        Box::pin(async move {
            let Self { cluster, own, recorder, .. } = *self;
            drop(recorder);
            step.worker(Worker::Node);
            if !holds {
                // Its undo takes a picture of it first, and keeps it if that was asked for.
                return Ok(());
            }
            own.destroy(cluster, step.run()).await?;
            step.worker(Worker::Guest);
            Ok(())
        })
    }
}

impl Clone<'_> {
    /// Asks the guest which address its network gave it.
    async fn told_address(&self) -> Result<Ipv4Addr, Failure> {
        use crate::communicator::{Communicator as _, Exec};
        use crate::failure::ResultExt as _;
        let script =
            "ip -4 -o addr show scope global | head -n 1 | tr -s ' ' | cut -d ' ' -f 4 | cut -d / -f 1";
        let text = self.agent.exec(&Exec::shell(script)).await.kind(Kind::Guest)?.text();
        text.parse().map_err(|_| {
            let error = anyhow!("the clone {} has no address by DHCP", self.own.vm.vmid());
            Failure::new(Kind::Guest, error).hint("is there a DHCP server on the bridge?")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::Machine;

    fn seed(addressing: Addressing) -> CloneSeed {
        CloneSeed {
            hostname: "proof".into(),
            public_key: "ssh-ed25519 AA+/ forge-proof".into(),
            mac: String::new(),
            addressing,
        }
    }

    #[test]
    fn a_clone_gets_its_seed_as_its_users_give_it() {
        let fixed = seed(Addressing::Static {
            address: [10, 10, 10, 50].into(),
            prefix: 24,
            gateway: [10, 10, 10, 1].into(),
            dns: vec![[10, 10, 10, 1].into(), [9, 9, 9, 9].into()],
        });
        let params = seed_params(&fixed, "odin", CloudInitDrive::NoCloud);
        assert_eq!(params["ipconfig0"], "ip=10.10.10.50/24,gw=10.10.10.1");
        assert_eq!(params["nameserver"], "10.10.10.1 9.9.9.9");
        assert_eq!(params["sshkeys"], "ssh%2Ded25519%20AA%2B%2F%20forge%2Dproof");
        assert_eq!((params["ciupgrade"].as_str(), params.get("citype")), ("0", None));
        assert_eq!(seed_params(&fixed, "odin", CloudInitDrive::ConfigDrive)["citype"], "configdrive2");
        let dhcp = seed_params(&seed(Addressing::Dhcp), "odin", CloudInitDrive::NoCloud);
        assert_eq!((dhcp["ipconfig0"].as_str(), dhcp.get("nameserver")), ("ip=dhcp", None));
    }

    #[test]
    fn a_clone_gets_the_hardware_of_its_contract() {
        let contract =
            Contract { cores: Some(3), queues: 3, onboot: true, disk_gib: Some(50), ..Contract::default() };
        let shape = Shape::of(&contract, &Machine::default(), 20 << 30, &Limits::default()).unwrap();
        let values = [("net0".to_owned(), "virtio=BC:24:11:00:00:01,bridge=vmbr0,tag=10".to_owned())];
        let config = VmConfig { values: values.into(), ..VmConfig::default() };
        let params = shape_params(&shape, &config);
        assert_eq!((params["cores"].as_str(), params["memory"].as_str()), ("3", "4096"));
        assert_eq!(params["onboot"], "1");
        assert_eq!(params["net0"], "virtio,macaddr=BC:24:11:00:00:01,bridge=vmbr0,tag=10,queues=3");
    }
}
