//! Clones, linked and full.

use super::create::with_mac;
use super::rights::Rights;
use crate::access::{Access, Identity};
use crate::answer::{Answer, Failure};
use crate::api::{Allow, Endpoint, NODE_VM, fill, run, vmid};
use crate::disk::Disks;
use crate::random;
use crate::schema::{Param, parse_property, print_property, vm};
use crate::sim::Call;
use crate::worker::Worker;
use crate::world::config::{Drive, Keys, drives, size_text};
use crate::world::{Vm, World};

pub(crate) static ENDPOINTS: &[Endpoint] =
    &[Endpoint::new("POST", "/nodes/{node}/qemu/{vmid}/clone", Allow::Special(may_clone), run!(clone))
        .takes(&[
            NODE_VM,
            &[
                vmid("newid"),
                Param::int("bwlimit").min(0.0).opt(),
                Param::text("description").opt(),
                Param::choice("format", &["raw", "qcow2", "vmdk"]).opt(),
                Param::flag("full").opt(),
                Param::named("name", "dns-name").opt(),
                Param::named("pool", "pve-poolid").opt(),
                Param::named("snapname", "pve-configid").max_len(40).opt(),
                Param::named("storage", "pve-storage-id").opt(),
                Param::named("target", "pve-node").opt(),
            ],
        ])
        .protected()];

fn may_clone(
    access: &Access,
    who: &Identity,
    given: &serde_json::Map<String, serde_json::Value>,
) -> Result<(), Failure> {
    access.check(who, &fill("/vms/{vmid}", given), &["VM.Clone"])?;
    let new = access.has(who, &fill("/vms/{newid}", given), "VM.Allocate");
    let pool = given.contains_key("pool") && access.has(who, &fill("/pool/{pool}", given), "VM.Allocate");
    if new || pool { Ok(()) } else { Err(Failure::forbidden_bare()) }
}

/// What a clone's first configuration says beside its lock.
const TEMPORARY: &str = " qmclone temporary file";

/// A clone that has passed its checks.
struct Plan {
    from: u32,
    to: u32,
    node: String,
    target: String,
    full: bool,
    storage: Option<String>,
    format: Option<String>,
    limit: Option<u64>,
    name: Option<String>,
    description: Option<String>,
    pool: Option<String>,
    snapshot: Option<String>,
}

async fn clone(call: Call) -> Answer {
    let plan = plan(&call)?;
    {
        let world = call.sim.world();
        check(&world, &call, &plan)?;
    }
    call.task("qmclone", &plan.from.to_string(), move |worker| async move { work(worker, plan).await })
}

fn plan(call: &Call) -> Result<Plan, Failure> {
    let args = &call.args;
    let text = |key: &str| args.get(key).map(String::from);
    let from = args.vmid();
    let world = call.sim.world();
    let source = world.vm(&call.node, from).map_err(|_| {
        Failure::died(format!("unable to find configuration file for VM {from} on node '{}'", call.node))
    })?;
    let full = args.get("full").map_or(!source.config.is_template(), |full| full == "1");
    Ok(Plan {
        from,
        to: args.number("newid").map_or(0, |number| number as u32),
        node: call.node.clone(),
        target: text("target").unwrap_or_else(|| call.node.clone()),
        full,
        storage: text("storage"),
        format: text("format"),
        limit: args.number("bwlimit"),
        name: text("name"),
        description: text("description"),
        pool: text("pool"),
        snapshot: text("snapname"),
    })
}

fn source_keys<'a>(source: &'a Vm, plan: &Plan) -> Result<&'a Keys, String> {
    match &plan.snapshot {
        Some(name) => source.config.snapshots.get(name).ok_or(format!("snapshot '{name}' does not exist")),
        None => Ok(&source.config.keys),
    }
}

fn check(world: &World, call: &Call, plan: &Plan) -> Result<(), Failure> {
    if !world.has_node(&plan.target) {
        return Err(format!("no such cluster node '{}'", plan.target).into());
    }
    if let Some(pool) = &plan.pool
        && !world.pools.contains_key(pool)
    {
        return Err(Failure::new(403, format!("Permission check failed (pool '{pool}' does not exist)\n")));
    }
    if let Some(storage) = &plan.storage {
        world.usable_storage(storage, &plan.target)?;
    }
    let source = world.vm(&plan.node, plan.from)?;
    source.config.check_lock()?;
    let keys = source_keys(source, plan)?;
    let forbidden = [("storage", plan.storage.is_some()), ("format", plan.format.is_some())];
    if let Some((name, _)) = forbidden.iter().find(|(_, given)| *given && !plan.full) {
        return Err(format!("parameter '{name}' not allowed for linked clones").into());
    }
    check_free(world, plan)?;
    let rights = Rights { world, who: &call.who, node: &call.node, vmid: plan.to, pool: None };
    for (key, drive) in drives(keys) {
        if !drive.has_volume() {
            continue;
        }
        let home = drive.file.split(':').next().unwrap_or_default();
        let copied = !drive.is_cdrom() || drive.is_cloud_init();
        let target = plan.storage.as_deref().filter(|_| copied).unwrap_or(home);
        let shared = world.storage(home).is_ok_and(|storage| storage.shared);
        if plan.target != plan.node && !shared {
            return Err(format!("can't clone VM to node '{}' (VM uses local storage)", plan.target).into());
        }
        if copied {
            world.access.check(&call.who, &format!("/storage/{target}"), &["Datastore.AllocateSpace"])?;
        }
        let image = world.drive_image(&drive, &plan.node);
        if copied && !plan.full && !drive.is_cloud_init() && image.is_none_or(|image| !image.is_base()) {
            return Err(format!("Linked clone feature is not supported for '{}' ({key})", drive.file).into());
        }
    }
    for (_, value) in keys.iter().filter(|(key, _)| key.starts_with("net")) {
        rights.check_bridge(value)?;
    }
    Ok(())
}

/// Only this node's VMs are looked at: the rest of the cluster shows in the task.
fn check_free(world: &World, plan: &Plan) -> Result<(), String> {
    match world.vm(&plan.node, plan.to) {
        Ok(_) => Err(format!("unable to create VM {}: config file already exists", plan.to)),
        Err(_) => Ok(()),
    }
}

/// Takes the VMID, which the call has not done: somebody else may have been faster.
fn reserve(worker: &Worker, plan: &Plan) -> Result<(), String> {
    worker.taken_point(plan.to);
    let Plan { node, to, .. } = plan;
    let mut world = worker.sim.world();
    check_free(&world, plan)?;
    if world.owner_of(*to).is_some() {
        let file = format!("/etc/pve/nodes/{node}/qemu-server/{to}.conf");
        return Err(format!("close (rename) atomic file '{file}' failed: File exists"));
    }
    world.reserve(*to, node, "clone");
    world.vm_mut(node, *to).map_err(|failure| failure.text())?.config.set("description", TEMPORARY);
    Ok(())
}

async fn work(worker: Worker, plan: Plan) -> Result<(), String> {
    let source_lock = worker.lock_shared(plan.from).await?;
    let target_lock = worker.lock(plan.to).await?;
    let keys = {
        let world = worker.sim.world();
        let source = world.vm(&plan.node, plan.from).map_err(|failure| failure.text())?;
        source.config.check_lock()?;
        source_keys(source, &plan)?.clone()
    };
    reserve(&worker, &plan)?;
    let mut made = Vec::new();
    let result = copy(&worker, &plan, keys, &mut made).await;
    drop((target_lock, source_lock));
    if let Err(error) = result {
        let disks = Disks { sim: &worker.sim, node: &plan.target, task: None };
        for volid in made {
            if let Err(error) = disks.free(&volid).await {
                worker.warn(&error);
            }
        }
        worker.sim.world().vms.remove(&plan.to);
        return Err(format!("clone failed: {error}"));
    }
    Ok(())
}

async fn copy(worker: &Worker, plan: &Plan, mut keys: Keys, made: &mut Vec<String>) -> Result<(), String> {
    worker.fault_point().await?;
    let disks = Disks { sim: &worker.sim, node: &plan.target, task: Some(worker) };
    for (key, drive) in drives(&keys) {
        if !drive.has_volume() || drive.is_cdrom() && !drive.is_cloud_init() {
            continue;
        }
        let new = copy_drive(disks, plan, &key, &drive).await?;
        made.push(new.file.clone());
        keys.insert(key.clone(), new.print(&key));
    }
    keys.retain(|key, _| {
        !key.starts_with("unused") && !["lock", "template", "parent", "snaptime"].contains(&key.as_str())
    });
    rename(&mut keys, plan);
    let mut world = worker.sim.world();
    let vm = world.vms.get_mut(&plan.to).ok_or("the configuration is gone")?;
    vm.node.clone_from(&plan.target);
    vm.config.keys = keys;
    if let Some(pool) = &plan.pool {
        world.access.pools.entry(pool.clone()).or_default().insert(plan.to);
    }
    Ok(())
}

async fn copy_drive(disks: Disks<'_>, plan: &Plan, key: &str, drive: &Drive) -> Result<Drive, String> {
    let mut new = drive.clone();
    let home = drive.file.split(':').next().unwrap_or_default();
    let storage = plan.storage.as_deref().unwrap_or(home);
    if drive.is_cloud_init() {
        disks.log(&format!("create full clone of drive {key} ({})", drive.file));
        new.file = disks.allocate_cloud_init(storage, plan.to).await?.volid;
        return Ok(new);
    }
    let made = if plan.full || key == "tpmstate0" {
        disks.log(&format!("create full clone of drive {key} ({})", drive.file));
        disks.copy(&drive.file, storage, plan.to, plan.format.as_deref(), plan.limit).await?
    } else {
        disks.log(&format!("create linked clone of drive {key} ({})", drive.file));
        disks.link(&drive.file, plan.to).await?
    };
    new.file = made.volid;
    new.options.insert("size".into(), size_text(made.bytes));
    Ok(new)
}

/// Gives the copy its own identity.
fn rename(keys: &mut Keys, plan: &Plan) {
    for (key, value) in keys.iter_mut().filter(|(key, _)| key.starts_with("net")) {
        let mut parts = parse_property(vm::NET, value).unwrap_or_default();
        parts.remove("macaddr");
        *value = with_mac(key, &print_property(vm::NET, &parts));
    }
    let mut smbios =
        keys.get("smbios1").and_then(|text| parse_property(vm::SMBIOS, text).ok()).unwrap_or_default();
    smbios.insert("uuid".into(), random::uuid());
    keys.insert("smbios1".into(), print_property(vm::SMBIOS, &smbios));
    if keys.contains_key("vmgenid") {
        keys.insert("vmgenid".into(), random::uuid());
    }
    let name = plan.name.clone().unwrap_or_else(|| match keys.get("name") {
        Some(name) => format!("Copy-of-VM-{name}"),
        None => format!("Copy-of-VM-{}", plan.from),
    });
    keys.insert("name".into(), name);
    if let Some(description) = &plan.description {
        keys.insert("description".into(), description.clone());
    }
}
