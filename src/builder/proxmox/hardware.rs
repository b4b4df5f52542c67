//! A VM's keys, as a plan and a site want them, and how a VM differs from that.
//!
//! Source: the parameters of `POST /nodes/{node}/qemu` (qemu-server, `src/PVE/API2/Qemu.pm`).

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::site::Site;
use crate::definition::{
    Chipset, Disk, DiskBus, DiskFormat, Firmware, Machine, Nic, NicModel, ScsiController,
};
use crate::plan::Plan;
use crate::pve::property::{Properties, parse_boot_order, parse_tags, smbios};
use crate::pve::{Params, VmConfig};

/// Where CDs go, in this order: the cloud-init drive takes the first place when the media are gone.
const CD_PLACES: [&str; 4] = ["ide2", "ide3", "ide0", "ide1"];

/// The key of the cloud-init drive.
pub(super) const CLOUD_INIT: &str = CD_PLACES[0];

/// Keys that Proxmox adds by itself, or that are compared elsewhere.
const NOT_COMPARED: [&str; 5] = ["description", "meta", "smbios1", "tags", "vmgenid"];

/// What a machine that installs gets besides its hardware.
#[derive(Debug)]
pub(super) struct Installing<'a> {
    /// Its name.
    pub(super) name: &'a str,
    /// Its description, with the block that says whose it is.
    pub(super) description: &'a str,
    /// Its SMBIOS UUID.
    pub(super) uuid: &'a str,
    /// Its SMBIOS serial number, which says where the answers are.
    pub(super) serial: Option<&'a str>,
    /// The volumes of the media, the installer's first.
    pub(super) media: &'a [String],
}

/// Returns the parameters that create the machine that installs.
pub(super) fn create_params(plan: &Plan, site: &Site, installing: &Installing<'_>) -> Params {
    let mut params = hardware(&plan.machine, site);
    params.extend(emulation(plan));
    let serial: Vec<_> = installing.serial.map(|serial| ("serial", serial)).into_iter().collect();
    let order = std::iter::once(system_disk(&plan.machine)).chain(cd_keys(installing.media.len()));
    let order: Vec<String> = order.collect();
    let cds = cd_keys(installing.media.len()).zip(installing.media);
    params.extend(cds.map(|(key, volid)| (key, format!("{volid},media=cdrom"))));
    for (key, value) in [
        ("name", installing.name.to_owned()),
        ("description", installing.description.to_owned()),
        ("smbios1", smbios(installing.uuid, &serial)),
        ("boot", format!("order={}", order.join(";"))),
        // A reset by the guest ends QEMU, so the end of the installation cannot be missed.
        ("reboot", "0".to_owned()),
    ] {
        params.insert(key.to_owned(), value);
    }
    params.extend(site.pool.clone().map(|pool| ("pool".to_owned(), pool)));
    params
}

/// Returns the keys that the finished template has, besides its description and tags.
pub(super) fn template_params(plan: &Plan, site: &Site, name: &str) -> Params {
    let machine = &plan.definition.machine;
    let cloud_init = &plan.definition.template.cloud_init;
    let mut params = hardware(machine, site);
    params.insert("name".to_owned(), name.to_owned());
    params.insert("boot".to_owned(), format!("order={}", system_disk(machine)));
    params.insert("ciuser".to_owned(), cloud_init.user.clone());
    params.insert("ciupgrade".to_owned(), u8::from(cloud_init.upgrade).to_string());
    if cloud_init.drive {
        params.insert(CLOUD_INIT.to_owned(), cloud_init_drive(site));
    }
    params
}

/// Returns the value that makes a new cloud-init drive.
pub(super) fn cloud_init_drive(site: &Site) -> String {
    format!("{}:cloudinit", site.disks.id)
}

/// Returns the keys whose values the profile overrides while building, with the overriding ones.
pub(super) fn overrides(plan: &Plan) -> Params {
    let machine = &plan.machine;
    let mut params = emulation(plan);
    let definition = &plan.definition.machine;
    if machine.cpu != definition.cpu {
        params.insert("cpu".to_owned(), machine.cpu.clone());
    }
    if machine.cores != definition.cores {
        params.insert("cores".to_owned(), machine.cores.to_string());
    }
    if machine.memory_mib != definition.memory_mib {
        params.insert("memory".to_owned(), machine.memory_mib.to_string());
    }
    params
}

/// Returns the same as a manifest names it.
pub(super) fn shown_overrides(plan: &Plan) -> BTreeMap<String, Json> {
    let shown = |(key, value): (String, String)| match key.as_str() {
        "kvm" => (key, Json::Bool(value == "1")),
        "cores" => (key, plan.machine.cores.into()),
        "memory" => ("memory_mib".to_owned(), plan.machine.memory_mib.into()),
        _ => (key, value.into()),
    };
    overrides(plan).into_iter().map(shown).collect()
}

/// Returns what a node without hardware virtualisation needs.
pub(super) fn emulation(plan: &Plan) -> Params {
    let kvm = plan.builder.profile.machine.kvm;
    kvm.map(|kvm| ("kvm".to_owned(), u8::from(kvm).to_string())).into_iter().collect()
}

/// Returns the key of the disk that is installed to.
pub(super) fn system_disk(machine: &Machine) -> String {
    machine.disks.first().map_or_else(|| "virtio0".to_owned(), |disk| format!("{}0", bus(disk.bus)))
}

/// Returns the keys of the CDs of a machine that has so many.
pub(super) fn cd_keys(count: usize) -> impl Iterator<Item = String> {
    CD_PLACES.iter().take(count).map(|key| (*key).to_owned())
}

/// Returns how many CDs a machine can have.
pub(super) const fn cds_max() -> usize {
    CD_PLACES.len()
}

fn hardware(machine: &Machine, site: &Site) -> Params {
    let mut params = Params::new();
    let mut set = |key: &str, value: String| params.insert(key.to_owned(), value);
    set("ostype", "l26".to_owned());
    set("machine", if machine.kind == Chipset::Q35 { "q35" } else { "pc" }.to_owned());
    set("bios", if machine.firmware == Firmware::Uefi { "ovmf" } else { "seabios" }.to_owned());
    set("cpu", machine.cpu.clone());
    set("cores", machine.cores.to_string());
    set("memory", machine.memory_mib.to_string());
    let scsi = match machine.scsi_controller {
        ScsiController::VirtioScsiPci => "virtio-scsi-pci",
        ScsiController::VirtioScsiSingle => "virtio-scsi-single",
    };
    set("scsihw", scsi.to_owned());
    set("agent", format!("enabled={}", u8::from(machine.agent)));
    if machine.serial {
        set("serial0", "socket".to_owned());
    }
    if machine.firmware == Firmware::Uefi {
        // The sizes of both are Proxmox's own; what stands here is not looked at.
        set("efidisk0", format!("{}:1,efitype=4m,pre-enrolled-keys=0", site.disks.id));
    }
    if machine.tpm {
        set("tpmstate0", format!("{}:1,version=v2.0", site.disks.id));
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for disk in &machine.disks {
        let number = counts.entry(bus(disk.bus)).or_default();
        set(&format!("{}{number}", bus(disk.bus)), disk_value(disk, machine, site));
        *number += 1;
    }
    for (number, nic) in machine.nics.iter().enumerate() {
        set(&format!("net{number}"), nic_value(nic, site));
    }
    for (key, value) in &machine.pve {
        set(key, plain_value(value));
    }
    params
}

const fn bus(bus: DiskBus) -> &'static str {
    match bus {
        DiskBus::Virtio => "virtio",
        DiskBus::Scsi => "scsi",
        DiskBus::Sata => "sata",
    }
}

fn disk_value(disk: &Disk, machine: &Machine, site: &Site) -> String {
    let can_have_thread = match disk.bus {
        DiskBus::Virtio => true,
        DiskBus::Scsi => machine.scsi_controller == ScsiController::VirtioScsiSingle,
        DiskBus::Sata => false,
    };
    let format = match disk.format {
        DiskFormat::Raw => ",format=raw",
        DiskFormat::Qcow2 => ",format=qcow2",
    };
    let mut value = format!("{}:{}", site.disks.id, disk.size_gib);
    for (is_on, text) in [
        (disk.iothread && can_have_thread, ",iothread=1"),
        (disk.discard, ",discard=on"),
        (disk.ssd, ",ssd=1"),
        (site.disks.takes_format, format),
    ] {
        value.push_str(if is_on { text } else { "" });
    }
    value
}

fn nic_value(nic: &Nic, site: &Site) -> String {
    let model = match nic.model {
        NicModel::Virtio => "virtio",
        NicModel::E1000e => "e1000e",
    };
    let mac = nic.mac.as_ref().map(|mac| format!("={mac}")).unwrap_or_default();
    let tag = site.vlan.map(|vlan| format!(",tag={vlan}")).unwrap_or_default();
    let queues = if nic.queues > 0 { format!(",queues={}", nic.queues) } else { String::new() };
    format!("{model}{mac},bridge={}{tag}{queues}", site.bridge)
}

fn plain_value(value: &Json) -> String {
    match value {
        Json::Bool(is_on) => u8::from(*is_on).to_string(),
        Json::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Returns how a template differs from what was meant: what is missing, what is other, what is too much.
/// `bases` tells whether its disks can be bases, which clones share.
pub(super) fn differences(config: &VmConfig, meant: &Params, bases: bool) -> Vec<String> {
    let mut found: Vec<String> =
        meant.iter().flat_map(|(key, value)| key_differences(config, key, value, bases)).collect();
    let is_known = |key: &str| meant.contains_key(key) || NOT_COMPARED.contains(&key) || key == "template";
    let too_much = config.values.iter().filter(|(key, _)| !is_known(key));
    found.extend(too_much.map(|(key, value)| format!("{key}: {value} is there, and nothing should be")));
    let smbios = config.get("smbios1").unwrap_or_default();
    if Properties::parse(smbios, "uuid").get("serial").is_some() {
        found.push("smbios1: the serial number of the installation is still there".to_owned());
    }
    found
}

fn key_differences(config: &VmConfig, key: &str, meant: &str, bases: bool) -> Vec<String> {
    let Some(have) = config.get(key) else { return vec![format!("{key}: {meant} is missing")] };
    let told = |differences: Vec<String>| differences.into_iter().map(|it| format!("{key}: {it}")).collect();
    if is_volume(key) {
        return told(volume_differences(key, have, meant, bases));
    }
    let same = match key {
        "boot" => parse_boot_order(have) == parse_boot_order(meant),
        "tags" => parse_tags(have) == parse_tags(meant),
        _ if is_numbered(key, "net") => {
            return told(Properties::parse_net(have).differences(&Properties::parse_net(meant)));
        }
        _ => {
            let default = default_key(key);
            return told(Properties::parse(have, default).differences(&Properties::parse(meant, default)));
        }
    };
    if same { Vec::new() } else { vec![format!("{key}: it is {have} instead of {meant}")] }
}

fn volume_differences(key: &str, have: &str, meant: &str, bases: bool) -> Vec<String> {
    let (have, meant) = (Properties::parse(have, "file"), Properties::parse(meant, "file"));
    let (volid, wanted) = (have.get("file").unwrap_or_default(), meant.get("file").unwrap_or_default());
    let (storage, what) = wanted.split_once(':').unwrap_or((wanted, ""));
    let mut rest = meant.clone().without("file").without("format");
    let is_disk = what.parse::<u32>().is_ok();
    if is_disk && !is_numbered(key, "efidisk") && !is_numbered(key, "tpmstate") {
        rest = rest.with("size", format!("{what}G"));
    }
    let mut found = have.differences(&rest);
    let is_there = volid.strip_prefix(storage).is_some_and(|rest| rest.starts_with(':'));
    if !is_there || (what == "cloudinit" && !volid.contains("cloudinit")) {
        found.push(format!("its volume is {volid} instead of one of {wanted}"));
    }
    // A conversion that was broken off leaves a template with other volumes.
    if bases && is_disk && !volid.rsplit(['/', ':']).next().is_some_and(|name| name.starts_with("base-")) {
        found.push(format!("its volume {volid} is no template's"));
    }
    found
}

/// Returns the key of a property string's bare value.
fn default_key(key: &str) -> &'static str {
    match key {
        "agent" => "enabled",
        "cpu" => "cputype",
        "machine" | "vga" => "type",
        _ => "value",
    }
}

/// Tells whether a key holds a volume.
pub(super) fn is_volume(key: &str) -> bool {
    ["virtio", "scsi", "sata", "ide", "efidisk", "tpmstate"].iter().any(|stem| is_numbered(key, stem))
}

fn is_numbered(key: &str, stem: &str) -> bool {
    key.strip_prefix(stem)
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests;
