//! Turning a VM into a template.

use crate::answer::{Answer, Failure};
use crate::api::{Allow, Endpoint, NODE_VM, run};
use crate::disk::Disks;
use crate::schema::Param;
use crate::sim::Call;
use crate::world::Vm;
use crate::world::config::drives;

use super::drives::owns;

pub(crate) static ENDPOINTS: &[Endpoint] = &[Endpoint::new(
    "POST",
    "/nodes/{node}/qemu/{vmid}/template",
    Allow::Has("/vms/{vmid}", &["VM.Allocate"]),
    run!(convert),
)
.takes(&[NODE_VM, &[Param::named("disk", "pve-qm-bootdisk").opt()]])
.protected()];

fn check(vm: &Vm, disk: Option<&str>) -> Result<(), Failure> {
    vm.config.check_lock()?;
    if !vm.config.snapshots.is_empty() {
        return Err("unable to create template, because VM contains snapshots".into());
    }
    if vm.config.is_template() && disk.is_none() {
        return Err("you can't convert a template to a template".into());
    }
    if vm.running().is_some() {
        return Err("you can't convert a VM to template if VM is running".into());
    }
    Ok(())
}

async fn convert(call: Call) -> Answer {
    let vmid = call.args.vmid();
    let disk = call.args.get("disk").map(String::from);
    check(call.sim.world().vm(&call.node, vmid)?, disk.as_deref())?;
    let node = call.node.clone();
    call.task("qmtemplate", &vmid.to_string(), move |worker| async move {
        let guard = worker.lock(vmid).await?;
        let keys = {
            let mut world = worker.sim.world();
            let vm = world.vm_mut(&node, vmid).map_err(|failure| failure.text())?;
            check(vm, disk.as_deref()).map_err(|failure| failure.text())?;
            // The flag is set before the first disk is renamed.
            vm.config.set("template", "1");
            vm.config.keys.clone()
        };
        let disks = Disks { sim: &worker.sim, node: &node, task: Some(&worker) };
        for (key, mut drive) in drives(&keys) {
            let wanted = disk.as_ref().is_none_or(|only| *only == key);
            if !wanted || drive.is_cdrom() || !drive.has_volume() || !owns(disks, &drive.file, vmid) {
                continue;
            }
            // A failure here leaves a template of which only some disks are bases.
            worker.fault_point().await?;
            drive.file = disks.make_base(&drive.file).await?;
            let text = drive.print(&key);
            let mut world = worker.sim.world();
            world.vm_mut(&node, vmid).map_err(|failure| failure.text())?.config.set(&key, text);
        }
        drop(guard);
        Ok(())
    })
}
