//! Starting, stopping and what lies between.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::change::settle;
use super::not_running;
use crate::answer::{Answer, Failure, Reply};
use crate::api::{Allow, Endpoint, NODE_VM, run};
use crate::disk::Disks;
use crate::hypervisor::{Machine, Spec, Volume};
use crate::schema::{Param, parse_property, vm};
use crate::sim::{Call, Sim};
use crate::worker::Worker;
use crate::world::config::{Keys, drives};
use crate::world::{Vm, World};

const POWER: Allow = Allow::Has("/vms/{vmid}", &["VM.PowerMgmt"]);
const SKIP: Param = Param::flag("skiplock").opt();
const TIMEOUT: Param = Param::int("timeout").min(0.0).opt();
const KEEP: Param = Param::flag("keepActive").opt();

pub(crate) static ENDPOINTS: &[Endpoint] = &[
    Endpoint::new("POST", "/nodes/{node}/qemu/{vmid}/status/start", POWER, run!(start))
        .takes(&[
            NODE_VM,
            &[
                SKIP,
                TIMEOUT,
                Param::text("force-cpu").opt(),
                Param::text("machine").max_len(40).opt(),
                Param::named("migratedfrom", "pve-node").opt(),
                Param::named("migration_network", "CIDR").opt(),
                Param::choice("migration_type", &["secure", "insecure"]).opt(),
                Param::text("nets-host-mtu").matches("net\\d+=\\d+(,net\\d+=\\d+)*").opt().since(9),
                Param::text("stateuri").max_len(128).opt(),
                Param::named("targetstorage", "storage-pair-list").opt(),
                Param::flag("with-conntrack-state").opt().since(9),
            ],
        ])
        .protected(),
    Endpoint::new("POST", "/nodes/{node}/qemu/{vmid}/status/stop", POWER, run!(stop))
        .takes(&[
            NODE_VM,
            &[
                SKIP,
                TIMEOUT,
                KEEP,
                Param::named("migratedfrom", "pve-node").opt(),
                Param::flag("overrule-shutdown").opt(),
            ],
        ])
        .protected(),
    Endpoint::new("POST", "/nodes/{node}/qemu/{vmid}/status/shutdown", POWER, run!(shutdown))
        .takes(&[NODE_VM, &[SKIP, TIMEOUT, KEEP, Param::flag("forceStop").opt()]])
        .protected(),
    Endpoint::new("POST", "/nodes/{node}/qemu/{vmid}/status/reboot", POWER, run!(reboot))
        .takes(&[NODE_VM, &[TIMEOUT]])
        .protected(),
    Endpoint::new("POST", "/nodes/{node}/qemu/{vmid}/status/reset", POWER, run!(reset))
        .takes(&[NODE_VM, &[SKIP]])
        .protected(),
    Endpoint::new("POST", "/nodes/{node}/qemu/{vmid}/status/suspend", POWER, run!(suspend))
        .takes(&[
            NODE_VM,
            &[
                SKIP,
                Param::named("statestorage", "pve-storage-id").needs("todisk").opt(),
                Param::flag("todisk").opt(),
            ],
        ])
        .protected(),
    Endpoint::new("POST", "/nodes/{node}/qemu/{vmid}/status/resume", POWER, run!(resume))
        .takes(&[NODE_VM, &[SKIP, Param::flag("nocheck").opt()]])
        .protected(),
];

fn check_skip(call: &Call) -> Result<(), Failure> {
    if call.args.flag("skiplock") && !call.who.is_root() {
        return Err(Failure::parameter("skiplock", "Only root may use this option."));
    }
    Ok(())
}

/// The machine of a VM that must run.
pub(super) fn machine(call: &Call, vmid: u32) -> Result<Arc<dyn Machine>, Failure> {
    let world = call.sim.world();
    world.vm(&call.node, vmid)?.running().ok_or_else(|| not_running(vmid))
}

async fn start(call: Call) -> Answer {
    check_skip(&call)?;
    let skip = call.args.flag("skiplock");
    Ok(Reply::Data(Value::String(start_task(&call, call.args.vmid(), Some(skip)))))
}

/// Starts the task that starts a VM.
pub(super) fn start_task(call: &Call, vmid: u32, skip_lock: Option<bool>) -> String {
    let node = call.node.clone();
    call.fork("qmstart", &vmid.to_string(), move |worker| async move {
        let guard = worker.lock(vmid).await?;
        check_start(&worker.sim.world(), &node, vmid, skip_lock.unwrap_or(false))?;
        worker.fault_point().await?;
        let result = launch(&worker, &node, vmid).await;
        drop(guard);
        result
    })
}

fn check_start(world: &World, node: &str, vmid: u32, skip_lock: bool) -> Result<(), String> {
    let vm = world.vm(node, vmid).map_err(|failure| failure.text())?;
    if vm.config.is_template() {
        return Err("you can't start a vm if it's a template".into());
    }
    if !skip_lock {
        vm.config.check_lock()?;
    }
    if vm.running().is_some() {
        return Err(format!("VM {vmid} already running"));
    }
    Ok(())
}

/// Starts the machine; the caller holds the lock.
async fn launch(worker: &Worker, node: &str, vmid: u32) -> Result<(), String> {
    let sim = &worker.sim;
    let disks = Disks { sim, node, task: Some(worker) };
    settle(Disks { task: None, ..disks }, vmid).await.map_err(|failure| failure.text())?;
    let keys = sim.world().vm(node, vmid).map_err(|failure| failure.text())?.config.keys.clone();
    check_hardware(worker, &keys, vmid)?;
    for (_, drive) in drives(&keys).iter().filter(|(_, drive)| drive.is_cloud_init()) {
        worker.log("generating cloud-init ISO");
        super::cloudinit::write(disks, vmid, drive).await.map_err(|failure| failure.text())?;
    }
    let spec = spec(sim, node, vmid, &keys)?;
    let started = sim.hypervisor.start(spec).await;
    let machine = started.map_err(|text| {
        text.lines().for_each(|line| worker.log(line));
        String::from("start failed: QEMU exited with code 1")
    })?;
    {
        let mut world = sim.world();
        let vm = world.vm_mut(node, vmid).map_err(|failure| failure.text())?;
        vm.machine = Some(Arc::clone(&machine));
        vm.started_with = keys;
        vm.agent_hangs = false;
    }
    tokio::spawn(watch(Arc::clone(sim), node.to_owned(), vmid, machine));
    Ok(())
}

/// What a host must have for a configuration.
fn check_hardware(worker: &Worker, keys: &Keys, vmid: u32) -> Result<(), String> {
    const FAILED: &str = "start failed: QEMU exited with code 1";
    let world = worker.sim.world();
    let (has_kvm, bridges) = (world.has_kvm, world.bridges.clone());
    drop(world);
    let kvm = keys.get("kvm").is_none_or(|kvm| kvm == "1");
    if kvm && !has_kvm {
        let text = "KVM virtualisation configured, but not available. Either disable in VM configuration or \
                    enable in BIOS.";
        return Err(text.into());
    }
    let model = keys.get("cpu").map(|cpu| cpu.split(',').next().unwrap_or(cpu));
    if !kvm && model.is_some_and(|model| model == "host" || model == "cputype=host") {
        worker.log("kvm: CPU model 'host' requires KVM or HVF");
        return Err(FAILED.into());
    }
    for (key, value) in keys.iter().filter(|(key, _)| key.starts_with("net")) {
        let parts = parse_property(vm::NET, value).unwrap_or_default();
        let Some(bridge) = parts.get("bridge") else {
            continue;
        };
        if !bridges.iter().any(|known| known.name == *bridge) {
            let number = key.trim_start_matches("net");
            let program = "/usr/libexec/qemu-server/pve-bridge";
            worker.log(format!("bridge '{bridge}' does not exist"));
            worker.log(format!(
                "kvm: -netdev type=tap,id={key},ifname=tap{vmid}i{number},script={program},\
                 downscript={program}down: network script {program} failed with status 512"
            ));
            return Err(FAILED.into());
        }
    }
    Ok(())
}

fn spec(sim: &Sim, node: &str, vmid: u32, keys: &Keys) -> Result<Spec, String> {
    let world = sim.world();
    let mut volumes: BTreeMap<String, Volume> = BTreeMap::new();
    for (_, drive) in drives(keys).into_iter().filter(|(_, drive)| drive.has_volume()) {
        let found = world.volume(&drive.file, node);
        let (volume, _) = found.ok_or_else(|| format!("volume '{}' does not exist", drive.file))?;
        volumes.insert(drive.file, volume);
    }
    Ok(Spec {
        vmid,
        config: keys.clone(),
        volumes,
        folder: world.state().join("run").join(vmid.to_string()),
        qemu: sim.qemu.clone(),
        network: sim.network,
    })
}

/// Notices the machine's end and applies what waited for it.
async fn watch(sim: Arc<Sim>, node: String, vmid: u32, machine: Arc<dyn Machine>) {
    machine.wait_for_end().await;
    // A stop task holds the lock meanwhile; what waits is applied by the next start at the latest.
    let Ok(guard) = sim.locks.exclusive(vmid, 60.0).await else {
        return;
    };
    let over = sim.world().vms.get(&vmid).is_some_and(|vm| vm.running().is_none());
    if over {
        drop(settle(Disks { sim: &sim, node: &node, task: None }, vmid).await);
    }
    drop(guard);
}

async fn stop(call: Call) -> Answer {
    check_skip(&call)?;
    let vmid = call.args.vmid();
    let (skip, node) = (call.args.flag("skiplock"), call.node.clone());
    call.task("qmstop", &vmid.to_string(), move |worker| async move {
        let guard = worker.lock(vmid).await?;
        let machine = locked_machine(&worker.sim, &node, vmid, skip)?;
        worker.fault_point().await?;
        if let Some(machine) = machine {
            machine.stop().await;
        }
        after_stop(&worker, &node, vmid).await?;
        drop(guard);
        Ok(())
    })
}

fn locked_machine(sim: &Sim, node: &str, vmid: u32, skip: bool) -> Result<Option<Arc<dyn Machine>>, String> {
    let world = sim.world();
    let vm = world.vm(node, vmid).map_err(|failure| failure.text())?;
    if !skip {
        vm.config.check_lock()?;
    }
    Ok(vm.running())
}

async fn after_stop(worker: &Worker, node: &str, vmid: u32) -> Result<(), String> {
    let disks = Disks { sim: &worker.sim, node, task: None };
    settle(disks, vmid).await.map_err(|failure| failure.text())
}

async fn shutdown(call: Call) -> Answer {
    check_skip(&call)?;
    let vmid = call.args.vmid();
    {
        let world = call.sim.world();
        let machine = world.vm(&call.node, vmid)?.running();
        if machine.is_some_and(|machine| machine.status().qmp == "paused") {
            return Err("VM is paused - cannot shutdown".into());
        }
    }
    let plan = Down::new(&call);
    let node = call.node.clone();
    call.task("qmshutdown", &vmid.to_string(), move |worker| async move {
        let guard = worker.lock(vmid).await?;
        let result = plan.run(&worker, &node, vmid).await;
        drop(guard);
        result
    })
}

/// How a guest is asked to go down.
#[derive(Clone, Copy)]
struct Down {
    seconds: f64,
    force: bool,
    skip: bool,
}

impl Down {
    fn new(call: &Call) -> Self {
        let seconds = call.args.number("timeout").map_or(60.0, |seconds| seconds as f64);
        Self { seconds, force: call.args.flag("forceStop"), skip: call.args.flag("skiplock") }
    }

    async fn run(self, worker: &Worker, node: &str, vmid: u32) -> Result<(), String> {
        let sim = &worker.sim;
        let Some(machine) = locked_machine(sim, node, vmid, self.skip)? else {
            return Ok(());
        };
        worker.fault_point().await?;
        self.ask(worker, &machine, node, vmid).await;
        let over = tokio::select! {
            () = machine.wait_for_end() => true,
            () = sim.clock.sleep(self.seconds) => false,
            () = worker.cancelled() => return Err("received interrupt".into()),
        };
        if !over && !self.force {
            return Err("VM quit/powerdown failed - got timeout".into());
        }
        if !over {
            worker.log("VM quit/powerdown failed - terminating now with SIGTERM");
            machine.stop().await;
        }
        after_stop(worker, node, vmid).await
    }

    /// The agent if there is one that answers, else the power button.
    async fn ask(self, worker: &Worker, machine: &Arc<dyn Machine>, node: &str, vmid: u32) {
        let sim = &worker.sim;
        let (agent, hangs, socket) = {
            let world = sim.world();
            let vm = world.vm(node, vmid).ok();
            let socket = if world.release.major() < 9 { "qmp" } else { "qga" };
            (vm.is_some_and(|vm| vm.config.agent_enabled()), vm.is_some_and(|vm| vm.agent_hangs), socket)
        };
        if agent {
            let ping = async {
                if hangs {
                    sim.clock.sleep(3.0).await;
                    return false;
                }
                machine.agent("guest-ping", json!({}), sim.clock.span(3.0)).await.is_ok()
            };
            if ping.await {
                // The socket may close before the answer: that is a shutdown too.
                drop(machine.agent("guest-shutdown", json!({}), sim.clock.span(self.seconds)).await);
                return;
            }
            worker.log(format!(
                "QEMU Guest Agent is not running - VM {vmid} {socket} command 'guest-ping' failed - got timeout"
            ));
        }
        if let Err(error) = machine.powerdown().await {
            worker.log(error);
        }
    }
}

async fn reboot(call: Call) -> Answer {
    let vmid = call.args.vmid();
    machine(&call, vmid)?;
    let plan = Down::new(&call);
    let node = call.node.clone();
    call.task("qmreboot", &vmid.to_string(), move |worker| async move {
        let guard = worker.lock(vmid).await?;
        plan.run(&worker, &node, vmid).await?;
        let result = launch(&worker, &node, vmid).await;
        drop(guard);
        result
    })
}

async fn reset(call: Call) -> Answer {
    check_skip(&call)?;
    let vmid = call.args.vmid();
    let machine = machine(&call, vmid)?;
    call.task("qmreset", &vmid.to_string(), move |worker| async move {
        let guard = worker.lock(vmid).await?;
        worker.fault_point().await?;
        let result = machine.reset().await;
        drop(guard);
        result
    })
}

async fn suspend(call: Call) -> Answer {
    check_skip(&call)?;
    let vmid = call.args.vmid();
    let machine = machine(&call, vmid)?;
    if call.args.flag("todisk") {
        return Err("suspending to disk is not simulated".into());
    }
    hmp_task(&call, "qmpause", vmid, machine, "stop")
}

async fn resume(call: Call) -> Answer {
    check_skip(&call)?;
    let vmid = call.args.vmid();
    let machine = machine(&call, vmid)?;
    hmp_task(&call, "qmresume", vmid, machine, "cont")
}

fn hmp_task(call: &Call, kind: &str, vmid: u32, machine: Arc<dyn Machine>, command: &'static str) -> Answer {
    call.task(kind, &vmid.to_string(), move |worker| async move {
        let guard = worker.lock(vmid).await?;
        worker.fault_point().await?;
        let result = machine.hmp(command).await.map(drop);
        drop(guard);
        result
    })
}

/// Whether the VM's machine was started with the agent's port.
pub(super) fn has_agent_port(vm: &Vm) -> bool {
    vm.started_with.get("agent").is_some_and(|text| {
        parse_property(vm::AGENT, text).is_ok_and(|keys| keys.get("enabled").is_some_and(|on| on == "1"))
    })
}
