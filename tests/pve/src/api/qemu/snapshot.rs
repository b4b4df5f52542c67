//! Snapshots, as far as they stand in the way of a template.

use serde_json::{Value, json};

use crate::answer::Answer;
use crate::api::{Allow, Endpoint, NODE_VM, run};
use crate::schema::Param;
use crate::sim::Call;
use crate::world::config::drives;

const NAME: Param = Param::named("snapname", "pve-configid").max_len(40);
const SNAPSHOT: Allow = Allow::Has("/vms/{vmid}", &["VM.Snapshot"]);

pub(crate) static ENDPOINTS: &[Endpoint] = &[
    Endpoint::new(
        "GET",
        "/nodes/{node}/qemu/{vmid}/snapshot",
        Allow::Has("/vms/{vmid}", &["VM.Audit"]),
        run!(list),
    )
    .takes(&[NODE_VM])
    .protected(),
    Endpoint::new("POST", "/nodes/{node}/qemu/{vmid}/snapshot", SNAPSHOT, run!(take))
        .takes(&[NODE_VM, &[NAME, Param::text("description").opt(), Param::flag("vmstate").opt()]])
        .protected(),
    Endpoint::new("DELETE", "/nodes/{node}/qemu/{vmid}/snapshot/{snapname}", SNAPSHOT, run!(remove))
        .takes(&[NODE_VM, &[NAME.path(), Param::flag("force").opt()]])
        .protected(),
];

async fn list(call: Call) -> Answer {
    let world = call.sim.world();
    let config = &world.vm(&call.node, call.args.vmid())?.config;
    let mut rows: Vec<Value> = config
        .snapshots
        .iter()
        .map(|(name, keys)| {
            let text = keys.get("description").map_or("", String::as_str);
            json!({ "name": name, "description": text, "vmstate": 0 })
        })
        .collect();
    rows.push(json!({
        "name": "current", "description": "You are here!", "digest": config.digest(),
        "running": u8::from(world.vms[&call.args.vmid()].running().is_some()),
    }));
    Ok(Value::Array(rows).into())
}

async fn take(call: Call) -> Answer {
    let vmid = call.args.vmid();
    let name = call.args.text("snapname").to_owned();
    let node = call.node.clone();
    call.task("qmsnapshot", &vmid.to_string(), move |worker| async move {
        let guard = worker.lock(vmid).await?;
        worker.fault_point().await?;
        let mut lines = Vec::new();
        {
            let mut world = worker.sim.world();
            let config = &mut world.vm_mut(&node, vmid).map_err(|failure| failure.text())?.config;
            config.check_lock()?;
            if config.snapshots.contains_key(&name) {
                return Err(format!("snapshot name '{name}' already used"));
            }
            for (key, drive) in drives(&config.keys).iter().filter(|(_, drive)| !drive.is_cdrom()) {
                lines.push(format!("snapshotting 'drive-{key}' ({})", drive.file));
            }
            let keys = config.keys.clone();
            config.snapshots.insert(name, keys);
        }
        for line in lines {
            worker.log(line);
        }
        drop(guard);
        Ok(())
    })
}

async fn remove(call: Call) -> Answer {
    let vmid = call.args.vmid();
    let name = call.args.text("snapname").to_owned();
    let node = call.node.clone();
    call.task("qmdelsnapshot", &vmid.to_string(), move |worker| async move {
        let guard = worker.lock(vmid).await?;
        worker.fault_point().await?;
        let mut world = worker.sim.world();
        let config = &mut world.vm_mut(&node, vmid).map_err(|failure| failure.text())?.config;
        let gone = config.snapshots.remove(&name);
        gone.ok_or_else(|| format!("snapshot '{name}' does not exist"))?;
        drop(guard);
        Ok(())
    })
}
