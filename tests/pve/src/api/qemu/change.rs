//! Changing a VM's configuration: pending values, hot-plug, and volumes that come and go.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::create::{options, with_mac};
use super::drives::{owns, ready};
use super::rights::Rights;
use crate::answer::{Answer, Failure, nothing};
use crate::api::{Allow, Endpoint, NODE_VM, run};
use crate::disk::Disks;
use crate::schema::{Args, Param, parse_property, split_list, vm};
use crate::sim::Call;
use crate::worker::Worker;
use crate::world::config::{Config, Drive, drives, is_drive, tidy_tags};

const CONTROL: &[Param] = &[
    Param::text("delete").format("pve-configid-list").opt(),
    Param::text("digest").max_len(40).opt(),
    Param::flag("force").needs("delete").opt(),
    Param::text("revert").format("pve-configid-list").opt(),
    Param::flag("skiplock").opt(),
];
const SOME: Allow = Allow::Any(
    "/vms/{vmid}",
    &[
        "VM.Config.Disk",
        "VM.Config.CDROM",
        "VM.Config.CPU",
        "VM.Config.Memory",
        "VM.Config.Network",
        "VM.Config.HWType",
        "VM.Config.Options",
        "VM.Config.Cloudinit",
    ],
);

pub(crate) static ENDPOINTS: &[Endpoint] = &[
    Endpoint::new("PUT", "/nodes/{node}/qemu/{vmid}/config", SOME, run!(put))
        .takes(&[NODE_VM, vm::OPTIONS, CONTROL])
        .protected(),
    Endpoint::new("POST", "/nodes/{node}/qemu/{vmid}/config", SOME, run!(post))
        .takes(&[
            NODE_VM,
            vm::OPTIONS,
            CONTROL,
            &[
                Param::int("background_delay").min(1.0).max(30.0).opt(),
                Param::named("import-working-storage", "pve-storage-id").opt(),
            ],
        ])
        .protected(),
];

/// A change that has passed its checks.
struct Plan {
    vmid: u32,
    node: String,
    set: BTreeMap<String, String>,
    delete: Vec<String>,
    revert: Vec<String>,
    force: bool,
    /// As the task's first line shows it.
    shown: String,
}

async fn put(call: Call) -> Answer {
    let plan = plan(&call)?;
    let guard = call.sim.locks.exclusive(plan.vmid, 10.0).await?;
    check_state(&call, &plan)?;
    let disks = Disks { sim: &call.sim, node: &call.node, task: None };
    apply(disks, &plan).await?;
    drop(guard);
    nothing()
}

async fn post(call: Call) -> Answer {
    let plan = plan(&call)?;
    let guard = call.sim.locks.exclusive(plan.vmid, 10.0).await?;
    check_state(&call, &plan)?;
    let id = plan.vmid.to_string();
    let upid = call.fork("qmconfig", &id, move |worker: Worker| async move {
        log_change(&worker, &format!("update VM {}: {}", plan.vmid, plan.shown));
        worker.fault_point().await?;
        let disks = Disks { sim: &worker.sim, node: &plan.node, task: Some(&worker) };
        let result = apply(disks, &plan).await.map_err(|failure| failure.text());
        drop(guard);
        result
    });
    let Some(delay) = call.args.number("background_delay") else {
        return Ok(json!(upid).into());
    };
    let mut waited = 0.0;
    while waited < delay as f64 {
        let end = call.sim.world().task(&upid).and_then(|task| task.end.clone());
        match end {
            Some((status, _)) if status == "OK" => return nothing(),
            Some((status, _)) => return Err(status.into()),
            None => call.sim.clock.sleep(0.1).await,
        }
        waited += 0.1;
    }
    Ok(json!(upid).into())
}

/// Perl prints wide characters with a warning, and the log shows their bytes.
fn log_change(worker: &Worker, line: &str) {
    if line.chars().any(|c| c > '\u{ff}') {
        worker.log("Wide character in print at /usr/share/perl5/PVE/API2/Qemu.pm line 2160.");
        worker.log(line.bytes().map(char::from).collect::<String>());
    } else {
        worker.log(line);
    }
}

fn plan(call: &Call) -> Result<Plan, Failure> {
    let args = &call.args;
    if args.flag("skiplock") && !call.who.is_root() {
        return Err(Failure::parameter("skiplock", "Only root may use this option."));
    }
    let names = |key: &str| split_list(args.text(key)).map(String::from).collect::<Vec<_>>();
    let (delete, revert) = (names("delete"), names("revert"));
    let mut set = options(args);
    if let Some(cdrom) = set.remove("cdrom") {
        set.insert("ide2".into(), cdrom);
    }
    if set.is_empty() && delete.is_empty() && revert.is_empty() {
        return Err("no options specified".into());
    }
    for name in &delete {
        if set.contains_key(name) {
            let text = format!("you can't use '-{name}' and -delete {name}' at the same time");
            return Err(Failure::parameter("delete", text));
        }
        if vm::option(name).is_none() {
            return Err(Failure::parameter("delete", format!("unknown option '{name}'")));
        }
    }
    check_keys(&mut set)?;
    let vmid = args.vmid();
    let shown = shown(args, &set, &delete);
    check_rights(call, vmid, &set, &delete)?;
    Ok(Plan { vmid, node: call.node.clone(), set, delete, revert, force: args.flag("force"), shown })
}

/// An SSH key must look like one; an empty value changes nothing.
fn check_keys(set: &mut BTreeMap<String, String>) -> Result<(), Failure> {
    let Some(keys) = set.get("sshkeys") else {
        return Ok(());
    };
    if keys.is_empty() {
        set.remove("sshkeys");
        return Ok(());
    }
    let text = crate::http::form::percent_decode(keys, false);
    let looks_right = |line: &str| {
        let mut words = line.split_whitespace();
        let kind = words.next().unwrap_or_default();
        let known = ["ssh-rsa", "ssh-dss", "ssh-ed25519", "sk-ssh-ed25519@openssh.com"].contains(&kind)
            || kind.starts_with("ecdsa-sha2-nistp")
            || kind.starts_with("sk-ecdsa-sha2");
        known && words.next().is_some_and(|body| body.len() > 16)
    };
    if text.lines().filter(|line| !line.trim().is_empty()).all(looks_right) {
        return Ok(());
    }
    Err("SSH public key validation error".into())
}

fn shown(args: &Args, set: &BTreeMap<String, String>, delete: &[String]) -> String {
    let mut words: Vec<String> = set
        .iter()
        .map(|(key, value)| match key.as_str() {
            "cipassword" => "-cipassword <hidden>".into(),
            _ => format!("-{key} {value}"),
        })
        .collect();
    if !delete.is_empty() {
        words.push(format!("-delete {}", args.text("delete")));
    }
    words.join(" ")
}

fn check_rights(
    call: &Call,
    vmid: u32,
    set: &BTreeMap<String, String>,
    delete: &[String],
) -> Result<(), Failure> {
    let world = call.sim.world();
    let rights = Rights { world: &world, who: &call.who, node: &call.node, vmid, pool: None };
    let keys = || delete.iter().chain(set.keys());
    keys().try_for_each(|key| rights.check_key(key))?;
    for (key, value) in set {
        rights.check_device(key, value)?;
        if key.starts_with("net") {
            rights.check_bridge(value)?;
        }
        if is_drive(key) {
            let drive = Drive::parse(key, value).ok_or_else(|| format!("unable to parse drive '{key}'"))?;
            rights.check_drive(key, &drive)?;
            rights.check_drive_change(&drive)?;
        }
    }
    let Ok(vm) = world.vm(&call.node, vmid) else {
        return Ok(());
    };
    for key in delete {
        if let Some(drive) = vm.config.get(key).and_then(|value| Drive::parse(key, value)) {
            rights.check_drive_change(&drive)?;
        }
    }
    let old = vm.config.get("tags").unwrap_or_default();
    match set.get("tags") {
        Some(new) => rights.check_tags(old, new),
        None if delete.iter().any(|key| key == "tags") => rights.check_tags(old, ""),
        None => Ok(()),
    }
}

/// What is looked at under the lock, before anything is done.
fn check_state(call: &Call, plan: &Plan) -> Result<(), Failure> {
    let world = call.sim.world();
    let config = &world.vm(&call.node, plan.vmid)?.config;
    if call.args.get("digest").is_some_and(|digest| digest != config.digest()) {
        return Err("checksum mismatch (file change by other user?)".into());
    }
    if !call.args.flag("skiplock") {
        config.check_lock()?;
    }
    Ok(())
}

/// Takes a value out of the world for a moment.
fn with_config<T>(disks: Disks<'_>, vmid: u32, change: impl FnOnce(&mut Config) -> T) -> Result<T, Failure> {
    let mut world = disks.sim.world();
    Ok(change(&mut world.vm_mut(disks.node, vmid)?.config))
}

async fn apply(disks: Disks<'_>, plan: &Plan) -> Result<(), Failure> {
    let vmid = plan.vmid;
    with_config(disks, vmid, |config| {
        for key in &plan.revert {
            config.pending.remove(key);
            config.deleted.remove(key);
        }
    })?;
    for key in &plan.delete {
        delete_key(disks, plan, key).await?;
    }
    for (key, value) in &plan.set {
        set_key(disks, plan, key, value).await?;
    }
    let running = disks.sim.world().vm(disks.node, vmid)?.running().is_some();
    if running { hot_plug(disks, vmid, plan).await } else { settle(disks, vmid).await }
}

async fn delete_key(disks: Disks<'_>, plan: &Plan, key: &str) -> Result<(), Failure> {
    let vmid = plan.vmid;
    let (value, protected) = with_config(disks, vmid, |config| {
        config.pending.remove(key);
        (config.get(key).map(String::from), config.get("protection") == Some("1"))
    })?;
    let Some(value) = value else {
        return Ok(());
    };
    if key.starts_with("unused") {
        let volid = value.split(',').next().unwrap_or(&value).to_owned();
        if protected {
            return Err(format!("can't remove unused disk '{volid}' - protection mode enabled").into());
        }
        if owns(disks, &volid, vmid) {
            disks.free(&volid).await?;
        }
        return with_config(disks, vmid, |config| drop(config.keys.remove(key)));
    }
    let cdrom = Drive::parse(key, &value).is_some_and(|drive| drive.is_cdrom());
    if is_drive(key) && protected && !cdrom {
        return Err(format!("can't remove drive '{key}' - protection mode enabled").into());
    }
    with_config(disks, vmid, |config| {
        config.deleted.insert(key.into(), plan.force);
        if config.boot_order().iter().any(|device| device == key) {
            let mut later = config.clone();
            later.keys = config.merged();
            later.drop_from_boot_order(key);
            let order = later.get("boot").unwrap_or(" ").to_owned();
            config.pending.insert("boot".into(), order);
        }
    })
}

async fn set_key(disks: Disks<'_>, plan: &Plan, key: &str, value: &str) -> Result<(), Failure> {
    let vmid = plan.vmid;
    let mut stored = value.to_owned();
    if is_drive(key) {
        let wanted = Drive::parse(key, value).ok_or_else(|| format!("unable to parse drive '{key}'"))?;
        let (others, template) = with_config(disks, vmid, |config| (config.merged(), config.is_template()))?;
        let done = ready(disks, vmid, key, &wanted, &others, template).await?;
        stored = done.drive.print(key);
    } else if key == "tags" {
        stored = tidy_tags(value);
        if stored.is_empty() {
            stored = " ".into();
        }
    } else if key == "cipassword" && !value.starts_with('$') {
        stored = format!("$5${}${}", crate::random::hex(4), crate::random::hex(21));
    } else if key.starts_with("net") {
        stored = with_mac(key, value);
    } else if key == "vmgenid" && value == "1" {
        stored = crate::random::uuid();
    } else if key == "boot" {
        check_boot_order(disks, plan, value)?;
    }
    with_config(disks, vmid, |config| {
        config.deleted.remove(key);
        if key == "description" && stored.is_empty() {
            // It is kept as comment lines, of which there are none then.
            config.pending.remove(key);
            config.keys.remove(key);
        } else if config.get(key) == Some(stored.as_str()) {
            config.pending.remove(key);
        } else {
            config.pending.insert(key.into(), stored);
        }
    })
}

/// # Errors
/// The order names a device that is not there, or that the same change deletes.
fn check_boot_order(disks: Disks<'_>, plan: &Plan, value: &str) -> Result<(), Failure> {
    let parts = parse_property(vm::BOOT, value.trim()).unwrap_or_default();
    let order = parts.get("order").map_or("", String::as_str);
    let known = with_config(disks, plan.vmid, |config| {
        let all = config.keys.keys().chain(config.pending.keys()).chain(plan.set.keys());
        all.cloned().collect::<BTreeSet<_>>()
    })?;
    let bad = split_list(order)
        .find(|device| !known.contains(*device) || plan.delete.iter().any(|deleted| deleted == device));
    match bad {
        // The stray quote is Proxmox's.
        Some(device) => Err(format!("invalid bootorder: device '{device}' does not exist'").into()),
        None => Ok(()),
    }
}

/// Keys that a running VM takes over at once.
const FAST: &[&str] = &[
    "description",
    "hookscript",
    "lock",
    "migrate_downtime",
    "migrate_speed",
    "name",
    "onboot",
    "protection",
    "shares",
    "startup",
    "tags",
    "vmstatestorage",
    "cicustom",
    "cipassword",
    "citype",
    "ciupgrade",
    "ciuser",
    "nameserver",
    "searchdomain",
    "sshkeys",
];

fn is_fast(key: &str) -> bool {
    FAST.contains(&key) || key.starts_with("ipconfig")
}

/// Applies to a running VM what it can take; the rest stays pending.
async fn hot_plug(disks: Disks<'_>, vmid: u32, plan: &Plan) -> Result<(), Failure> {
    let mut errors = BTreeMap::new();
    for key in &plan.delete {
        let value = with_config(disks, vmid, |config| config.get(key).map(String::from))?;
        let disk = value.and_then(|value| Drive::parse(key, &value)).filter(|drive| !drive.is_cdrom());
        if is_fast(key) {
            with_config(disks, vmid, |config| {
                config.deleted.remove(key);
                config.keys.remove(key);
            })?;
        } else if disk.is_some() && (key.starts_with("virtio") || key.starts_with("scsi")) {
            // No simulated guest lets go of a disk in time.
            disks.sim.clock.sleep(5.0).await;
            let text = format!("hotplug problem - error on hot-unplugging device '{key}'\n");
            errors.insert(key.clone(), text);
        }
    }
    for key in plan.set.keys() {
        let pending = with_config(disks, vmid, |config| config.pending.get(key).cloned())?;
        let Some(value) = pending else {
            continue;
        };
        match plug(disks, vmid, key, &value).await {
            Ok(true) => with_config(disks, vmid, |config| {
                config.pending.remove(key);
                config.keys.insert(key.clone(), value);
            })?,
            Ok(false) => {}
            Err(text) => drop(errors.insert(key.clone(), format!("hotplug problem - {text}\n"))),
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(Failure::parameters(errors)) }
}

/// Whether a running VM has taken over a key's new value.
async fn plug(disks: Disks<'_>, vmid: u32, key: &str, value: &str) -> Result<bool, String> {
    if is_fast(key) {
        return Ok(true);
    }
    if key.starts_with("net") {
        let parts = parse_property(vm::NET, value).unwrap_or_default();
        let bridge = parts.get("bridge").map_or("", String::as_str);
        if disks.sim.world().bridges.iter().any(|known| known.name == bridge) {
            return Ok(true);
        }
        let program = "/usr/libexec/qemu-server/pve-bridge-hotplug";
        return Err(format!(
            "VM {vmid} qmp command 'netdev_add' failed - network script {program} failed with status 512"
        ));
    }
    let Some(drive) = Drive::parse(key, value).filter(|_| is_drive(key)) else {
        return Ok(false);
    };
    let old = with_config(disks, vmid, |config| config.get(key).map(String::from));
    let old = old.map_err(|failure| failure.text())?.and_then(|old| Drive::parse(key, &old));
    match old {
        None => Ok(key.starts_with("virtio") || key.starts_with("scsi")),
        Some(old) if old.is_cdrom() && drive.is_cdrom() => change_medium(disks, vmid, key, &drive).await,
        Some(_) => Ok(false),
    }
}

async fn change_medium(disks: Disks<'_>, vmid: u32, key: &str, drive: &Drive) -> Result<bool, String> {
    let (machine, volume) = {
        let world = disks.sim.world();
        let machine = world.vms.get(&vmid).and_then(crate::world::Vm::running);
        (machine, world.volume(&drive.file, disks.node).map(|(volume, _)| volume))
    };
    let Some(machine) = machine else {
        return Ok(false);
    };
    machine.change_medium(key, volume.as_ref()).await?;
    Ok(true)
}

/// Applies everything pending to a VM that does not run.
pub(super) async fn settle(disks: Disks<'_>, vmid: u32) -> Result<(), Failure> {
    let (deleted, pending) = with_config(disks, vmid, |config| {
        (std::mem::take(&mut config.deleted), std::mem::take(&mut config.pending))
    })?;
    for (key, force) in deleted {
        let old = with_config(disks, vmid, |config| {
            config.drop_from_boot_order(&key);
            config.keys.remove(&key)
        })?;
        if let Some(drive) = old.and_then(|old| Drive::parse(&key, &old)).filter(|_| is_drive(&key)) {
            release(disks, vmid, &drive, force).await?;
        }
    }
    let mut new_cloud_init = None;
    for (key, value) in pending {
        let old = with_config(disks, vmid, |config| config.keys.insert(key.clone(), value.clone()))?;
        let Some(drive) = Drive::parse(&key, &value).filter(|_| is_drive(&key)) else {
            continue;
        };
        with_config(disks, vmid, |config| {
            config.keys.retain(|name, volid| !(name.starts_with("unused") && *volid == drive.file));
        })?;
        if let Some(old) = old.and_then(|old| Drive::parse(&key, &old)).filter(|old| old.file != drive.file) {
            release(disks, vmid, &old, false).await?;
        }
        if drive.is_cloud_init() {
            new_cloud_init = Some(drive);
        }
    }
    if let Some(drive) = new_cloud_init {
        disks.log("generating cloud-init ISO");
        super::cloudinit::write(disks, vmid, &drive).await?;
    }
    Ok(())
}

/// Frees or keeps the volume that a drive had: cloud-init goes, own disks become unused.
async fn release(disks: Disks<'_>, vmid: u32, drive: &Drive, force: bool) -> Result<(), Failure> {
    if !drive.has_volume() || !owns(disks, &drive.file, vmid) {
        return Ok(());
    }
    let used = with_config(disks, vmid, |config| {
        drives(&config.keys).iter().any(|(_, other)| other.file == drive.file)
    })?;
    if used || drive.is_cdrom() && !drive.is_cloud_init() {
        return Ok(());
    }
    if drive.is_cloud_init() || force {
        return disks.free(&drive.file).await.map_err(Failure::from);
    }
    with_config(disks, vmid, |config| add_unused(config, &drive.file))
}

/// Notes a volume under the first free `unusedN`.
pub(super) fn add_unused(config: &mut Config, volid: &str) {
    let free = (0..256).map(|number| format!("unused{number}")).find(|key| config.get(key).is_none());
    if let Some(key) = free {
        config.set(&key, volid);
    }
}
