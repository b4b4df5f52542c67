//! The cloud-init drive.

use serde_json::{Value, json};

use crate::answer::{Answer, Failure, nothing};
use crate::api::{Allow, Endpoint, NODE_VM, run};
use crate::disk::Disks;
use crate::schema::Param;
use crate::sim::Call;
use crate::world::config::{Drive, drives, typed};

const AUDIT: Allow = Allow::Has("/vms/{vmid}", &["VM.Audit"]);

pub(crate) static ENDPOINTS: &[Endpoint] = &[
    Endpoint::new("GET", "/nodes/{node}/qemu/{vmid}/cloudinit", AUDIT, run!(list)).takes(&[NODE_VM]),
    Endpoint::new(
        "PUT",
        "/nodes/{node}/qemu/{vmid}/cloudinit",
        Allow::Has("/vms/{vmid}", &["VM.Config.Cloudinit"]),
        run!(regenerate),
    )
    .takes(&[NODE_VM])
    .protected(),
    Endpoint::new("GET", "/nodes/{node}/qemu/{vmid}/cloudinit/dump", AUDIT, run!(dump))
        .takes(&[NODE_VM, &[Param::choice("type", &["user", "network", "meta"])]]),
];

async fn list(call: Call) -> Answer {
    let world = call.sim.world();
    let config = &world.vm(&call.node, call.args.vmid())?.config;
    let names =
        ["cicustom", "cipassword", "citype", "ciupgrade", "ciuser", "nameserver", "searchdomain", "sshkeys"];
    let known = |key: &String| names.contains(&key.as_str()) || key.starts_with("ipconfig");
    let merged = config.merged();
    let rows = merged
        .iter()
        .filter(|(key, _)| known(key))
        .map(|(key, value)| json!({ "key": key, "value": typed(key, value) }));
    Ok(rows.collect::<Value>().into())
}

async fn dump(call: Call) -> Answer {
    let keys = {
        let world = call.sim.world();
        world.vm(&call.node, call.args.vmid())?.config.merged()
    };
    Ok(json!(call.sim.hypervisor.cloud_init(&keys, call.args.text("type"))).into())
}

async fn regenerate(call: Call) -> Answer {
    let vmid = call.args.vmid();
    let guard = call.sim.locks.exclusive(vmid, 10.0).await?;
    let drive = {
        let world = call.sim.world();
        let config = &world.vm(&call.node, vmid)?.config;
        config.check_lock()?;
        drives(&config.keys).into_iter().find(|(_, drive)| drive.is_cloud_init())
    };
    if let Some((_, drive)) = drive {
        write(Disks { sim: &call.sim, node: &call.node, task: None }, vmid, &drive).await?;
    }
    drop(guard);
    nothing()
}

/// Writes a VM's documents to its cloud-init volume.
///
/// # Errors
/// The text for the task's log.
pub(super) async fn write(disks: Disks<'_>, vmid: u32, drive: &Drive) -> Result<(), Failure> {
    let (keys, volume) = {
        let world = disks.sim.world();
        let config = &world.vm(disks.node, vmid)?.config;
        let volume = world.volume(&drive.file, disks.node);
        (config.merged(), volume.ok_or_else(|| format!("volume '{}' does not exist", drive.file))?.0)
    };
    disks.sim.hypervisor.write_cloud_init(&keys, &volume).await.map_err(Failure::from)
}
