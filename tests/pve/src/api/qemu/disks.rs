//! Disks that grow, move to another storage, or go to another VM.

use super::change::add_unused;
use super::drives::owns;
use super::rights::Rights;
use crate::answer::{Answer, Failure};
use crate::api::{Allow, Endpoint, NODE_VM, run, vmid};
use crate::disk::Disks;
use crate::schema::{Param, vm};
use crate::sim::Call;
use crate::world::config::{Drive, is_drive, parse_size, size_text};

const DISK: Allow = Allow::Has("/vms/{vmid}", &["VM.Config.Disk"]);

pub(crate) static ENDPOINTS: &[Endpoint] = &[
    Endpoint::new("PUT", "/nodes/{node}/qemu/{vmid}/resize", DISK, run!(resize))
        .takes(&[
            NODE_VM,
            &[
                Param::text("digest").max_len(40).opt(),
                Param::named("disk", "pve-qm-bootdisk"),
                Param::text("size").matches("\\+?\\d+(\\.\\d+)?[KMGT]?"),
                Param::flag("skiplock").opt(),
            ],
        ])
        .protected(),
    Endpoint::new("POST", "/nodes/{node}/qemu/{vmid}/move_disk", DISK, run!(move_disk))
        .takes(&[
            NODE_VM,
            &[
                Param::int("bwlimit").min(0.0).opt(),
                Param::flag("delete").opt(),
                Param::text("digest").max_len(40).opt(),
                Param::text("disk"),
                Param::choice("format", &["raw", "qcow2", "vmdk"]).opt(),
                Param::named("storage", "pve-storage-id").opt(),
                Param::text("target-digest").max_len(40).opt(),
                Param::text("target-disk").opt(),
                vmid("target-vmid").opt(),
            ],
        ])
        .protected(),
];

const CHANGED: &str = "detected modified configuration - file changed by other user? Try again.";

async fn resize(call: Call) -> Answer {
    let vmid = call.args.vmid();
    if call.args.flag("skiplock") && !call.who.is_root() {
        return Err(Failure::parameter("skiplock", "Only root may use this option."));
    }
    let disk = call.args.text("disk").to_owned();
    let size = call.args.text("size").to_owned();
    let digest = call.args.get("digest").map(String::from);
    let node = call.node.clone();
    call.task("resize", &vmid.to_string(), move |worker| async move {
        let guard = worker.lock(vmid).await?;
        let (mut drive, machine) = {
            let world = worker.sim.world();
            let vm = world.vm(&node, vmid).map_err(|failure| failure.text())?;
            if digest.is_some_and(|digest| digest != vm.config.digest()) {
                return Err("checksum mismatch (file change by other user?)".into());
            }
            vm.config.check_lock()?;
            let value = vm.config.get(&disk).ok_or_else(|| format!("disk '{disk}' does not exist"))?;
            let drive =
                Drive::parse(&disk, value).ok_or_else(|| format!("unable to parse drive '{disk}'"))?;
            (drive, vm.running())
        };
        if drive.is_cdrom() {
            return Err("you can't resize a cdrom".into());
        }
        worker.fault_point().await?;
        let disks = Disks { sim: &worker.sim, node: &node, task: machine.is_none().then_some(&worker) };
        let (_, image, _) = disks.find(&drive.file)?;
        let asked = parse_size(size.trim_start_matches('+')).ok_or("unable to parse size")?;
        let bytes = if size.starts_with('+') { image.bytes + asked } else { asked };
        if bytes < image.bytes {
            return Err("shrinking disks is not supported".into());
        }
        if bytes > image.bytes {
            if let Some(machine) = &machine {
                machine.resize(&disk, bytes).await?;
                disks.note_size(&drive.file, bytes);
            } else {
                disks.grow(&drive.file, bytes).await?;
            }
        }
        drive.options.insert("size".into(), size_text(bytes));
        let mut world = worker.sim.world();
        let vm = world.vm_mut(&node, vmid).map_err(|failure| failure.text())?;
        vm.config.set(&disk, drive.print(&disk));
        drop(guard);
        Ok(())
    })
}

async fn move_disk(call: Call) -> Answer {
    let disk = call.args.text("disk");
    if !is_drive(disk) && vm::option(disk).is_none_or(|option| option.name != "unused") {
        return Err(Failure::parameter(
            "disk",
            format!("value '{disk}' does not have a value in the enumeration"),
        ));
    }
    match (call.args.get("storage"), call.args.number("target-vmid")) {
        (Some(_), Some(_)) => Err("either set 'storage' or 'target-vmid', but not both".into()),
        (None, None) => Err(Failure::parameter("storage", "property is missing and it is not optional")),
        (Some(_), None) => to_storage(&call),
        (None, Some(target)) => to_vm(&call, target as u32),
    }
}

fn drive_of(call: &Call, vmid: u32, key: &str) -> Result<Drive, Failure> {
    let world = call.sim.world();
    let vm = world.vm(&call.node, vmid)?;
    let value = vm.config.get(key).ok_or_else(|| format!("disk '{key}' does not exist"))?;
    Drive::parse(key, value).ok_or_else(|| Failure::died(format!("unable to parse drive '{key}'")))
}

fn to_storage(call: &Call) -> Answer {
    let args = &call.args;
    let vmid = args.vmid();
    let (key, storage) = (args.text("disk").to_owned(), args.text("storage").to_owned());
    let format = args.get("format").map(String::from);
    {
        let world = call.sim.world();
        world.access.check(&call.who, &format!("/storage/{storage}"), &["Datastore.AllocateSpace"])?;
        let config = &world.vm(&call.node, vmid)?.config;
        config.check_lock()?;
        if args.get("digest").is_some_and(|digest| digest != config.digest()) {
            return Err(CHANGED.into());
        }
    }
    let drive = drive_of(call, vmid, &key)?;
    if drive.is_cdrom() {
        return Err("you can't move a cdrom".into());
    }
    {
        let world = call.sim.world();
        let home = drive.file.split(':').next().unwrap_or_default();
        let image = world.image(&drive.file, &call.node);
        let same_format = format.as_deref().is_none_or(|format| image.is_some_and(|i| i.format == format));
        if home == storage && same_format {
            return Err("you can't move to the same storage with same format".into());
        }
    }
    let (delete, limit) = (args.flag("delete"), args.number("bwlimit"));
    let node = call.node.clone();
    call.task("qmmove", &vmid.to_string(), move |worker| async move {
        let guard = worker.lock(vmid).await?;
        worker.fault_point().await.map_err(|error| format!("storage migration failed: {error}"))?;
        let disks = Disks { sim: &worker.sim, node: &node, task: Some(&worker) };
        worker.log(format!("create full clone of drive {key} ({})", drive.file));
        let made = disks
            .copy(&drive.file, &storage, vmid, format.as_deref(), limit)
            .await
            .map_err(|error| format!("storage migration failed: {error}"))?;
        let mut new = drive.clone();
        new.file = made.volid;
        let keep = owns(disks, &drive.file, vmid) && !delete;
        {
            let mut world = worker.sim.world();
            let vm = world.vm_mut(&node, vmid).map_err(|failure| failure.text())?;
            vm.config.set(&key, new.print(&key));
            if keep {
                add_unused(&mut vm.config, &drive.file);
            }
        }
        if delete && let Err(error) = disks.free(&drive.file).await {
            worker.warn(&error);
        }
        drop(guard);
        Ok(())
    })
}

fn to_vm(call: &Call, target: u32) -> Answer {
    let args = &call.args;
    let vmid = args.vmid();
    let key = args.text("disk").to_owned();
    let target_key = args.get("target-disk").unwrap_or(&key).to_owned();
    {
        let world = call.sim.world();
        let rights = Rights { world: &world, who: &call.who, node: &call.node, vmid: target, pool: None };
        world.access.check(rights.who, &format!("/vms/{target}"), &["VM.Config.Disk"])?;
        let (from, to) = (world.vm(&call.node, vmid)?, world.vm(&call.node, target)?);
        let digests = [(vmid, from, "digest"), (target, to, "target-digest")];
        for (id, vm, name) in digests {
            if args.get(name).is_some_and(|digest| digest != vm.config.digest()) {
                return Err(format!("VM {id}: {CHANGED}").into());
            }
        }
        if from.config.is_template() || to.config.is_template() {
            return Err("Can't move disks from or to template VMs".into());
        }
        from.config.check_lock()?;
        to.config.check_lock()?;
        if from.running().is_some() && !key.starts_with("unused") {
            return Err(format!("Can't move disk used by VM {vmid} to another VM while it is running").into());
        }
        if to.config.get(&target_key).is_some() {
            return Err(format!("Target disk key '{target_key}' is already in use for VM '{target}'").into());
        }
    }
    let drive = drive_of(call, vmid, &key)?;
    if !call
        .sim
        .world()
        .image(&drive.file, &call.node)
        .is_some_and(|image| !image.is_base() && image.vmid == vmid)
    {
        return Err("Storage does not support moving of this disk to another VM".into());
    }
    let node = call.node.clone();
    let id = format!("{vmid}-{key}>{target}-{target_key}");
    call.task("qmmove", &id, move |worker| async move {
        let first = worker.lock(vmid).await?;
        let second = worker.lock(target).await?;
        worker.fault_point().await?;
        worker.log(format!("moving disk '{key}' from VM '{vmid}' to '{target}'"));
        let disks = Disks { sim: &worker.sim, node: &node, task: Some(&worker) };
        let volid = disks.hand_over(&drive.file, target).await?;
        let mut new = drive.clone();
        new.file = volid;
        let text = if target_key.starts_with("unused") { new.file.clone() } else { new.print(&target_key) };
        let ordered = {
            let mut world = worker.sim.world();
            let from = world.vm_mut(&node, vmid).map_err(|failure| failure.text())?;
            from.config.keys.remove(&key);
            let ordered = from.config.drop_from_boot_order(&key);
            world.vm_mut(&node, target).map_err(|failure| failure.text())?.config.set(&target_key, text);
            ordered
        };
        if ordered {
            worker.log(format!("removing disk '{key}' from boot order config"));
        }
        worker.log(format!("removing disk '{key}' from VM '{vmid}' config"));
        drop((first, second));
        Ok(())
    })
}
