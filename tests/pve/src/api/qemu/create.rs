//! Making a VM.

use super::drives::ready;
use super::rights::Rights;
use crate::access::Identity;
use crate::answer::{Answer, Failure};
use crate::api::{Allow, Endpoint, NODE, run, vmid};
use crate::disk::Disks;
use crate::random;
use crate::schema::{Arg, Args, Param, parse_property, print_property, vm};
use crate::sim::Call;
use crate::worker::Worker;
use crate::world::World;
use crate::world::config::{Drive, Keys, default_boot, is_drive};
use crate::world::lock::Guard;

pub(crate) static ENDPOINTS: &[Endpoint] = &[Endpoint::new(
    "POST",
    "/nodes/{node}/qemu",
    // Every right of a create is checked in code, after the parameters.
    Allow::All,
    run!(create),
)
.takes(&[
    NODE,
    vm::OPTIONS,
    &[
        vmid("vmid"),
        Param::text("archive").max_len(255).opt(),
        Param::int("bwlimit").min(0.0).opt(),
        Param::flag("force").needs("archive").opt(),
        Param::flag("ha-managed").opt().since(9),
        Param::named("import-working-storage", "pve-storage-id").opt(),
        Param::flag("live-restore").opt(),
        Param::named("pool", "pve-poolid").opt(),
        Param::flag("start").opt(),
        Param::named("storage", "pve-storage-id").opt(),
        Param::flag("unique").needs("archive").opt(),
    ],
])
.protected()];

async fn create(mut call: Call) -> Answer {
    let vmid = call.args.vmid();
    let pool = call.args.take("pool");
    let start = call.args.flag("start");
    if call.args.has("archive") {
        return Err("restoring backups is not simulated".into());
    }
    if let Some(cdrom) = call.args.take("cdrom") {
        call.args.0.insert("ide2".into(), Arg::Text(cdrom));
    }
    {
        let world = call.sim.world();
        let rights = Rights { world: &world, who: &call.who, node: &call.node, vmid, pool: pool.as_deref() };
        check_rights(&world, rights, &call.args)?;
        // Release 8 does not look (transcript 04, line 136).
        if start && world.release.major() >= 9 {
            rights.check_vm(&["VM.PowerMgmt"])?;
        }
    }
    let failed = |text: String| Failure::died(format!("unable to create VM {vmid} - {text}"));
    let guard = call.sim.locks.exclusive(vmid, 5.0).await.map_err(failed)?;
    reserve(&call, vmid).map_err(failed)?;
    let plan = Plan {
        vmid,
        node: call.node.clone(),
        who: call.who.clone(),
        pool,
        start,
        args: std::mem::take(&mut call.args),
    };
    let starter = call.clone();
    call.task(
        "qmcreate",
        &vmid.to_string(),
        move |worker| async move { work(worker, plan, guard, starter).await },
    )
}

/// The configuration file that keeps the VMID, seen by everybody at once.
///
/// # Errors
/// Somebody has it already.
fn reserve(call: &Call, vmid: u32) -> Result<(), String> {
    let mut world = call.sim.world();
    if let Some((kind, node)) = world.owner_of(vmid) {
        return Err(format!("{kind} {vmid} already exists on node '{node}'"));
    }
    world.reserve(vmid, &call.node, "create");
    Ok(())
}

fn check_rights(world: &World, rights: Rights<'_>, args: &Args) -> Result<(), Failure> {
    if let Some(pool) = rights.pool
        && !world.pools.contains_key(pool)
    {
        return Err(Failure::new(403, format!("Permission check failed (pool '{pool}' does not exist)\n")));
    }
    let access = &world.access;
    if let Some(storage) = args.get("storage") {
        access.check(rights.who, &format!("/storage/{storage}"), &["Datastore.AllocateSpace"])?;
    }
    let on_pool = |pool: &str| access.has(rights.who, &format!("/pool/{pool}"), "VM.Allocate");
    let on_vm = access.has(rights.who, &format!("/vms/{}", rights.vmid), "VM.Allocate");
    if !on_vm && !rights.pool.is_some_and(on_pool) {
        return Err(Failure::forbidden_bare());
    }
    for (key, value) in options(args) {
        if is_drive(&key) {
            let drive = Drive::parse(&key, &value);
            let drive = drive.ok_or_else(|| format!("unable to parse drive '{key}'"))?;
            rights.check_drive(&key, &drive)?;
        }
    }
    for (key, value) in options(args) {
        rights.check_key(&key)?;
        rights.check_device(&key, &value)?;
        if key.starts_with("net") {
            rights.check_bridge(&value)?;
        }
    }
    Ok(())
}

/// The parameters that are keys of a configuration.
pub(super) fn options(args: &Args) -> Keys {
    let known = args.0.iter().filter(|(key, _)| vm::option(key).is_some());
    known.filter_map(|(key, _)| Some((key.clone(), args.get(key)?.to_owned()))).collect()
}

struct Plan {
    vmid: u32,
    node: String,
    who: Identity,
    pool: Option<String>,
    start: bool,
    args: Args,
}

async fn work(worker: Worker, plan: Plan, guard: Guard, starter: Call) -> Result<(), String> {
    let vmid = plan.vmid;
    let mut made = Vec::new();
    let result = build(&worker, &plan, &mut made).await;
    if let Err(error) = result {
        let disks = Disks { sim: &worker.sim, node: &plan.node, task: None };
        for volid in made {
            if let Err(error) = disks.free(&volid).await {
                worker.warn(&error);
            }
        }
        worker.sim.world().vms.remove(&vmid);
        return Err(format!("unable to create VM {vmid} - {error}"));
    }
    drop(guard);
    if plan.start {
        worker.log("Execute autostart");
        // The start is a task of its own, whose end nobody waits for.
        super::power::start_task(&starter, vmid, None);
    }
    Ok(())
}

async fn build(worker: &Worker, plan: &Plan, made: &mut Vec<String>) -> Result<(), String> {
    let disks = Disks { sim: &worker.sim, node: &plan.node, task: Some(worker) };
    let mut keys = options(&plan.args);
    if let Some(tags) = keys.get("tags") {
        let world = worker.sim.world();
        let rights = Rights { world: &world, who: &plan.who, node: &plan.node, vmid: plan.vmid, pool: None };
        rights.check_tags("", tags).map_err(|failure| failure.text())?;
    }
    worker.fault_point().await?;
    let wanted: Vec<(String, String)> =
        keys.iter().filter(|(key, _)| is_drive(key)).map(|(k, v)| (k.clone(), v.clone())).collect();
    for (key, value) in wanted {
        let drive = Drive::parse(&key, &value).ok_or_else(|| format!("unable to parse drive '{key}'"))?;
        let others = keys.clone();
        let done = ready(disks, plan.vmid, &key, &drive, &others, false).await?;
        made.extend(done.made);
        keys.insert(key.clone(), done.drive.print(&key));
    }
    complete(&mut keys, worker.sim.clock.now());
    if let Some((name, _)) = plan.args.0.iter().find(|(_, arg)| **arg == Arg::Undefined) {
        return Err(format!("unable to parse value of '{name}' - got undefined value"));
    }
    keys.retain(|key, value| {
        if value.is_empty() && key == "tags" {
            *value = " ".into();
        }
        !value.is_empty()
    });
    let mut world = worker.sim.world();
    let vm = world.vms.get_mut(&plan.vmid).ok_or("the configuration is gone")?;
    vm.config.keys = keys;
    if let Some(pool) = &plan.pool {
        world.access.pools.entry(pool.clone()).or_default().insert(plan.vmid);
    }
    Ok(())
}

/// What the server adds to a new configuration.
fn complete(keys: &mut Keys, now: i64) {
    for (key, value) in keys.iter_mut().filter(|(key, _)| key.starts_with("net")) {
        *value = with_mac(key, value);
    }
    keys.entry("smbios1".into()).or_insert_with(|| format!("uuid={}", random::uuid()));
    match keys.get("vmgenid").map(String::as_str) {
        None | Some("1") => drop(keys.insert("vmgenid".into(), random::uuid())),
        Some("0") => drop(keys.remove("vmgenid")),
        Some(_) => {}
    }
    keys.insert("meta".into(), format!("creation-qemu=9.2.0,ctime={now}"));
    if !keys.contains_key("boot") {
        let order = default_boot(keys);
        keys.insert("boot".into(), order);
    }
}

/// A NIC as it is stored: with an address of its own.
pub(super) fn with_mac(key: &str, value: &str) -> String {
    if key.strip_prefix("net").is_none_or(|rest| rest.parse::<u8>().is_err()) {
        return value.into();
    }
    let Ok(mut parts) = parse_property(vm::NET, value) else {
        return value.into();
    };
    parts.entry("macaddr".into()).or_insert_with(random::mac);
    print_property(vm::NET, &parts)
}
