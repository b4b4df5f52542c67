//! VMs: what is there, how it is configured, what it is doing.

mod agent;
mod change;
mod clone;
mod cloudinit;
mod console;
mod create;
mod delete;
mod disks;
mod drives;
mod power;
mod rights;
mod snapshot;
mod template;

use serde_json::{Value, json};

use super::{Allow, Endpoint, NODE, NODE_VM, run};
use crate::answer::{Answer, Failure};
use crate::schema::Param;
use crate::sim::Call;
use crate::world::config::parse_size;
use crate::world::{Vm, World};

pub(crate) static ENDPOINTS: &[&[Endpoint]] = &[
    READ,
    agent::ENDPOINTS,
    change::ENDPOINTS,
    clone::ENDPOINTS,
    cloudinit::ENDPOINTS,
    console::ENDPOINTS,
    create::ENDPOINTS,
    delete::ENDPOINTS,
    disks::ENDPOINTS,
    power::ENDPOINTS,
    snapshot::ENDPOINTS,
    template::ENDPOINTS,
];

const AUDIT: Allow = Allow::Has("/vms/{vmid}", &["VM.Audit"]);

static READ: &[Endpoint] = &[
    Endpoint::new("GET", "/nodes/{node}/qemu", Allow::All, run!(list))
        .takes(&[NODE, &[Param::flag("full").opt()]])
        .protected(),
    Endpoint::new("GET", "/nodes/{node}/qemu/{vmid}", Allow::All, run!(index)).takes(&[NODE_VM]),
    Endpoint::new("GET", "/nodes/{node}/qemu/{vmid}/status", Allow::All, run!(status_index))
        .takes(&[NODE_VM]),
    Endpoint::new("GET", "/nodes/{node}/qemu/{vmid}/config", AUDIT, run!(config)).takes(&[
        NODE_VM,
        &[Param::flag("current").opt(), Param::named("snapshot", "pve-configid").max_len(40).opt()],
    ]),
    Endpoint::new("GET", "/nodes/{node}/qemu/{vmid}/pending", AUDIT, run!(pending)).takes(&[NODE_VM]),
    Endpoint::new("GET", "/nodes/{node}/qemu/{vmid}/status/current", AUDIT, run!(status))
        .takes(&[NODE_VM])
        .protected(),
];

/// What lists and states have in common.
pub(crate) fn figures(world: &World, vmid: u32, vm: &Vm) -> Value {
    let config = &vm.config;
    let status = vm.running().map(|machine| machine.status());
    let memory = config.memory_mib() << 20;
    let disk = config.boot_disk().map_or(0, |drive| {
        let told = drive.options.get("size").and_then(|size| parse_size(size));
        told.or_else(|| world.drive_image(&drive, &vm.node).map(|image| image.bytes)).unwrap_or(0)
    });
    let mut row = json!({
        "vmid": vmid,
        "name": config.get("name").map_or_else(|| format!("VM {vmid}"), String::from),
        "status": if status.is_some() { "running" } else { "stopped" },
        "cpus": config.cpus(),
        "cpu": 0,
        "maxmem": memory,
        "mem": if status.is_some() { memory / 8 } else { 0 },
        "maxdisk": disk,
        "disk": 0,
        "netin": 0,
        "netout": 0,
        "uptime": status.as_ref().map_or(0, |status| status.uptime.as_secs()),
    });
    if let Some(pid) = status.and_then(|status| status.pid) {
        row["pid"] = json!(pid);
    }
    for key in ["lock", "tags"] {
        if let Some(value) = config.get(key) {
            row[key] = json!(value);
        }
    }
    if config.is_template() {
        row["template"] = json!(1);
    }
    if config.get("serial0").is_some() {
        row["serial"] = json!(1);
    }
    row
}

async fn list(call: Call) -> Answer {
    let world = call.sim.world();
    let seen = world
        .vms
        .iter()
        .filter(|(_, vm)| vm.node == call.node)
        .filter(|(vmid, _)| world.access.has(&call.who, &format!("/vms/{vmid}"), "VM.Audit"));
    let rows = seen.map(|(vmid, vm)| {
        let mut row = figures(&world, *vmid, vm);
        if call.args.flag("full") {
            row["qmpstatus"] = json!(qmp_status(vm));
        }
        row
    });
    Ok(rows.collect::<Value>().into())
}

fn qmp_status(vm: &Vm) -> String {
    vm.running().map_or_else(|| "stopped".into(), |machine| machine.status().qmp)
}

async fn index(_: Call) -> Answer {
    let names = [
        "config",
        "pending",
        "cloudinit",
        "status",
        "unlink",
        "vncproxy",
        "termproxy",
        "migrate",
        "resize",
        "move",
        "rrd",
        "rrddata",
        "monitor",
        "agent",
        "snapshot",
        "firewall",
    ];
    Ok(names.iter().map(|name| json!({ "subdir": name })).collect::<Value>().into())
}

async fn status_index(_: Call) -> Answer {
    let names = ["current", "start", "stop", "reset", "shutdown", "suspend", "reboot"];
    Ok(names.iter().map(|name| json!({ "subdir": name })).collect::<Value>().into())
}

async fn config(call: Call) -> Answer {
    let world = call.sim.world();
    let config = &world.vm(&call.node, call.args.vmid())?.config;
    if let Some(name) = call.args.get("snapshot") {
        let keys = config.snapshots.get(name);
        let keys = keys.ok_or_else(|| format!("snapshot '{name}' does not exist"))?;
        return Ok(config.shown(keys).into());
    }
    let merged = if call.args.flag("current") { config.keys.clone() } else { config.merged() };
    Ok(config.shown(&merged).into())
}

async fn pending(call: Call) -> Answer {
    let world = call.sim.world();
    Ok(world.vm(&call.node, call.args.vmid())?.config.pending_list().into())
}

async fn status(call: Call) -> Answer {
    let world = call.sim.world();
    let vmid = call.args.vmid();
    let vm = world.vm(&call.node, vmid)?;
    let mut row = figures(&world, vmid, vm);
    row["qmpstatus"] = json!(qmp_status(vm));
    row["ha"] = json!({ "managed": 0 });
    if vm.config.agent_enabled() {
        row["agent"] = json!(1);
    }
    if vm.config.get("vga").is_some() {
        row["clipboard"] = Value::Null;
    }
    if vm.running().is_some() {
        let nics = vm.config.keys.keys().filter_map(|key| key.strip_prefix("net")?.parse::<u8>().ok());
        let nics: serde_json::Map<String, Value> =
            nics.map(|nic| (format!("tap{vmid}i{nic}"), json!({ "netin": 0, "netout": 0 }))).collect();
        row["nics"] = Value::Object(nics);
    }
    Ok(row.into())
}

/// The text of a call on a VM that does not run.
fn not_running(vmid: u32) -> Failure {
    Failure::died(format!("VM {vmid} not running"))
}
