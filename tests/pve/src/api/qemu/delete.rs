//! Destroying a VM.

use crate::answer::{Answer, Failure};
use crate::api::{Allow, Endpoint, NODE_VM, run};
use crate::disk::Disks;
use crate::schema::Param;
use crate::sim::Call;
use crate::worker::Worker;
use crate::world::Vm;
use crate::world::config::drives;
use crate::world::storage::StorageKind;

use super::drives::owns;

pub(crate) static ENDPOINTS: &[Endpoint] = &[Endpoint::new(
    "DELETE",
    "/nodes/{node}/qemu/{vmid}",
    Allow::Has("/vms/{vmid}", &["VM.Allocate"]),
    run!(destroy),
)
.takes(&[
    NODE_VM,
    &[
        Param::flag("destroy-unreferenced-disks").opt(),
        Param::flag("purge").opt(),
        Param::flag("skiplock").opt(),
    ],
])
.protected()];

async fn destroy(call: Call) -> Answer {
    let vmid = call.args.vmid();
    if call.args.flag("skiplock") && !call.who.is_root() {
        return Err(Failure::parameter("skiplock", "Only root may use this option."));
    }
    {
        let world = call.sim.world();
        let vm = world.vm(&call.node, vmid)?;
        if vm.config.get("protection") == Some("1") {
            return Err(format!("can't remove VM {vmid} - protection mode enabled").into());
        }
        check_stopped(vm, vmid)?;
    }
    let node = call.node.clone();
    let purge = call.args.flag("purge");
    let unreferenced = call.args.flag("destroy-unreferenced-disks");
    let skip_lock = call.args.flag("skiplock");
    call.task("qmdestroy", &vmid.to_string(), move |worker| async move {
        let guard = worker.lock(vmid).await?;
        let disks = Disks { sim: &worker.sim, node: &node, task: Some(&worker) };
        let volumes = volumes(disks, vmid, skip_lock)?;
        worker.fault_point().await?;
        for volid in volumes {
            if let Err(error) = disks.free(&volid).await {
                worker.warn(&format!("Could not remove disk '{volid}', check manually: {error}"));
            }
        }
        if unreferenced {
            free_unreferenced(disks, vmid, &worker).await;
        }
        if purge {
            worker.log(format!("purging VM {vmid} from related configurations.."));
        }
        let mut world = worker.sim.world();
        world.vms.remove(&vmid);
        world.told.remove(&vmid);
        world.access.forget_guest(vmid);
        drop(guard);
        Ok(())
    })
}

/// Looked at before the task and, as others may have been faster, in it.
fn check_stopped(vm: &Vm, vmid: u32) -> Result<(), String> {
    if vm.running().is_some() { Err(format!("VM {vmid} is running - destroy failed")) } else { Ok(()) }
}

/// The volumes that go with a VM.
///
/// # Errors
/// It runs by now, a lock, or a base volume that linked clones hang on; LVM-thin does not notice those.
fn volumes(disks: Disks<'_>, vmid: u32, skip_lock: bool) -> Result<Vec<String>, String> {
    let keys = {
        let world = disks.sim.world();
        let vm = world.vm(disks.node, vmid).map_err(|failure| failure.text())?;
        check_stopped(vm, vmid)?;
        if !skip_lock {
            vm.config.check_lock()?;
        }
        vm.config.keys.clone()
    };
    let attached = drives(&keys).into_iter().map(|(_, drive)| drive);
    let own = attached.filter(|drive| drive.has_volume() && (!drive.is_cdrom() || drive.is_cloud_init()));
    let mut volumes: Vec<String> = own.map(|drive| drive.file).collect();
    volumes.extend(keys.iter().filter(|(key, _)| key.starts_with("unused")).map(|(_, volid)| volid.clone()));
    volumes.retain(|volid| owns(disks, volid, vmid));
    let world = disks.sim.world();
    for volid in &volumes {
        let Some((scope, image)) = world
            .image_key(volid, disks.node)
            .and_then(|key| world.images.get(&key).map(|image| (key.0.clone(), image)))
        else {
            continue;
        };
        let notices = world.storage(&image.storage).is_ok_and(|s| s.kind != StorageKind::LvmThin);
        if notices && world.has_children(image, &scope) {
            return Err(format!("base volume '{volid}' is still in use by linked cloned"));
        }
    }
    volumes.retain(|volid| world.image(volid, disks.node).is_some());
    Ok(volumes)
}

async fn free_unreferenced(disks: Disks<'_>, vmid: u32, worker: &Worker) {
    let left: Vec<String> = {
        let world = disks.sim.world();
        let images = world.images.values().filter(|image| image.vmid == vmid);
        let named = images.filter_map(|image| {
            let storage = world.storage(&image.storage).ok()?;
            let volid = image.volid(storage.kind);
            world.image(&volid, disks.node).is_some().then_some(volid)
        });
        named.collect()
    };
    for volid in left {
        if let Err(error) = disks.free(&volid).await {
            worker.warn(&error);
        }
    }
}
