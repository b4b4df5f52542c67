//! Which right each key of a configuration needs.
//!
//! Source: qemu-server `PVE/API2/Qemu.pm` `check_vm_modify_config_perm`, `PVE/GuestHelpers.pm`.

use std::collections::BTreeSet;

use crate::access::Identity;
use crate::answer::Failure;
use crate::schema::{parse_property, split_list, vm};
use crate::world::World;
use crate::world::config::{Drive, is_drive};
use crate::world::storage::{content_of, owner_of};

/// Somebody who makes or changes a VM.
#[derive(Clone, Copy)]
pub(crate) struct Rights<'a> {
    pub(crate) world: &'a World,
    pub(crate) who: &'a Identity,
    pub(crate) node: &'a str,
    pub(crate) vmid: u32,
    pub(crate) pool: Option<&'a str>,
}

const CPU: &[&str] = &["cores", "cpu", "cpulimit", "cpuunits", "numa", "smp", "sockets", "vcpus"];
const MEMORY: &[&str] = &["memory", "balloon", "shares", "allow-ksm"];
const HARDWARE: &[&str] = &[
    "acpi", "hotplug", "kvm", "machine", "scsihw", "smbios1", "tablet", "vga", "watchdog", "audio0", "rng0",
];
const OPTIONS: &[&str] = &[
    "agent",
    "autostart",
    "bios",
    "description",
    "keyboard",
    "localtime",
    "migrate_downtime",
    "migrate_speed",
    "name",
    "onboot",
    "ostype",
    "protection",
    "reboot",
    "startdate",
    "startup",
    "tdf",
    "template",
];
const DISK: &[&str] = &["boot", "bootdisk", "vmstatestorage"];
const CLOUD_INIT: &[&str] =
    &["cicustom", "cipassword", "citype", "ciupgrade", "ciuser", "nameserver", "searchdomain", "sshkeys"];

impl Rights<'_> {
    fn path(&self) -> String {
        format!("/vms/{}", self.vmid)
    }

    /// One of these, on the pool if there is one, else on the VM.
    ///
    /// # Errors
    /// 403.
    pub(crate) fn check_vm(&self, wanted: &[&str]) -> Result<(), Failure> {
        if let Some(pool) = self.pool {
            let held = self.world.access.held(self.who, &format!("/pool/{pool}"));
            if wanted.iter().any(|privilege| held.contains_key(*privilege)) {
                return Ok(());
            }
        }
        self.world.access.check_any(self.who, &self.path(), wanted)
    }

    /// # Errors
    /// 403 for a missing right, 500 for what only root may set.
    pub(crate) fn check_key(&self, key: &str) -> Result<(), Failure> {
        if self.who.is_root() {
            return Ok(());
        }
        let indexed = |name: &str| {
            key.strip_prefix(name).is_some_and(|rest| !rest.is_empty() && rest.parse::<u16>().is_ok())
        };
        let elsewhere = ["unused", "serial", "usb", "hostpci"].into_iter().any(indexed);
        if is_drive(key) || key == "cdrom" || key == "tags" || elsewhere {
            return Ok(());
        }
        if CPU.contains(&key) || indexed("numa") {
            self.check_vm(&["VM.Config.CPU"])
        } else if MEMORY.contains(&key) {
            self.check_vm(&["VM.Config.Memory"])
        } else if HARDWARE.contains(&key) || indexed("virtiofs") {
            self.check_vm(&["VM.Config.HWType"])
        } else if OPTIONS.contains(&key) {
            self.check_vm(&["VM.Config.Options"])?;
            if key == "startup" { self.world.access.check(self.who, "/", &["Sys.Modify"]) } else { Ok(()) }
        } else if key == "freeze" {
            self.check_vm(&["VM.PowerMgmt"])
        } else if DISK.contains(&key) {
            self.check_vm(&["VM.Config.Disk"])
        } else if indexed("net") {
            self.check_vm(&["VM.Config.Network"])
        } else if CLOUD_INIT.contains(&key) || indexed("ipconfig") {
            self.check_vm(&["VM.Config.Cloudinit", "VM.Config.Network"])
        } else {
            Err(Failure::died(format!("only root can set '{key}' config")))
        }
    }

    /// Serial ports, USB and PCI devices of the host are root's; its CPU models and its source of
    /// randomness are for those who may use their mappings.
    ///
    /// # Errors
    /// 500 as the server words it.
    pub(crate) fn check_device(&self, key: &str, value: &str) -> Result<(), Failure> {
        if self.who.is_root() {
            return Ok(());
        }
        let real =
            |what: &str| Err(Failure::died(format!("only root can set '{key}' config for {what} devices")));
        let part = |keys, name: &str| parse_property(keys, value).unwrap_or_default().remove(name);
        if key == "cpu" {
            let model = part(vm::CPU, "cputype").unwrap_or_default();
            let custom = model.strip_prefix("custom-").map(|name| format!("/mapping/cpu/{name}"));
            return custom.map_or(Ok(()), |path| self.world.access.check(self.who, &path, &["Mapping.Use"]));
        }
        if key == "rng0" && part(vm::RNG, "source").as_deref() == Some("/dev/hwrng") {
            return self.world.access.check(self.who, "/mapping/hwrng", &["Mapping.Use"]);
        }
        if key.starts_with("serial") {
            if value != "socket" {
                return real("real");
            }
            return self.check_vm(&["VM.Config.HWType"]);
        }
        if key.starts_with("usb") {
            let keys = parse_property(vm::USB, value).unwrap_or_default();
            let spice = keys.get("host").is_some_and(|host| host.eq_ignore_ascii_case("spice"));
            if !spice && !keys.contains_key("mapping") {
                return real("real");
            }
            return self.check_vm(&["VM.Config.HWType"]);
        }
        if key.starts_with("hostpci") {
            let keys = parse_property(vm::HOSTPCI, value).unwrap_or_default();
            if !keys.contains_key("mapping") {
                return real("non-mapped");
            }
            return self.check_vm(&["VM.Config.HWType"]);
        }
        Ok(())
    }

    /// The rights on storages and volumes that a drive needs.
    ///
    /// # Errors
    /// 400, 403 or 500, all before anything is done.
    pub(crate) fn check_drive(&self, key: &str, drive: &Drive) -> Result<(), Failure> {
        let file = drive.file.as_str();
        if file == "none" {
            return Ok(());
        }
        if file == "cdrom" {
            return self.world.access.check(self.who, "/", &["Sys.Console"]);
        }
        if file.starts_with('/') {
            if self.who.is_root() {
                return Ok(());
            }
            let text =
                "Only root can pass arbitrary filesystem paths. at /usr/share/perl5/PVE/Storage.pm line 581.";
            return Err(text.into());
        }
        let (storage, rest) = file.split_once(':').unwrap_or((file, ""));
        let known = self.world.usable_storage(storage, self.node)?;
        let on = format!("/storage/{storage}");
        if allocation(rest).is_some() || rest == "cloudinit" {
            self.world.access.check(self.who, &on, &["Datastore.AllocateSpace"])?;
            if !known.holds("images") {
                return Err(format!("storage '{storage}' does not support vm images").into());
            }
            return self.check_import(key, drive, rest);
        }
        if drive.options.contains_key("import-from") {
            return self.check_import(key, drive, rest);
        }
        self.check_volume(file)?;
        let iso = content_of(known.kind, rest) == Ok("iso");
        if iso && !drive.is_cdrom() {
            return Err(Failure::parameter(key, "explicit 'media=cdrom' is required for iso images"));
        }
        Ok(())
    }

    fn check_import(&self, key: &str, drive: &Drive, size: &str) -> Result<(), Failure> {
        let Some(source) = drive.options.get("import-from") else {
            return Ok(());
        };
        if size != "0" {
            let text = "'import-from' requires special syntax - use <storage ID>:0,import-from=<source>";
            return Err(Failure::parameter(key, text));
        }
        if source.starts_with('/') {
            let root = self.who.is_root();
            let text =
                "Only root can pass arbitrary filesystem paths. at /usr/share/perl5/PVE/Storage.pm line 581.";
            return if root { Ok(()) } else { Err(text.into()) };
        }
        let (storage, name) = source.split_once(':').unwrap_or((source, ""));
        let known = self.world.usable_storage(storage, self.node)?;
        match content_of(known.kind, name)? {
            "images" => {
                let owner = owner_of(known.kind, name).unwrap_or_default();
                self.world.access.check(self.who, &format!("/vms/{owner}"), &["VM.Clone"])
            }
            "import" => self.check_volume(source),
            other => Err(Failure::parameter(key, format!("{source} - '{other}' cannot be imported"))),
        }
    }

    /// The right to use a volume that is there already.
    fn check_volume(&self, volid: &str) -> Result<(), Failure> {
        let (storage, name) = volid.split_once(':').unwrap_or((volid, ""));
        let known = self.world.usable_storage(storage, self.node)?;
        let on = format!("/storage/{storage}");
        match content_of(known.kind, name)? {
            "images" => match owner_of(known.kind, name) {
                Some(owner) if owner == self.vmid => Ok(()),
                Some(owner) => {
                    self.world.access.check(self.who, &format!("/vms/{owner}"), &["VM.Config.Disk"])
                }
                None => self.world.access.check(self.who, &on, &["Datastore.AllocateSpace"]),
            },
            "iso" | "vztmpl" | "import" | "snippets" => {
                self.world.access.check_any(self.who, &on, &["Datastore.AllocateSpace", "Datastore.Audit"])
            }
            _ => self.world.access.check(self.who, &on, &["Datastore.Allocate"]),
        }
    }

    /// The right to change a drive of an existing VM.
    ///
    /// # Errors
    /// 403.
    pub(crate) fn check_drive_change(&self, drive: &Drive) -> Result<(), Failure> {
        if drive.is_cloud_init() {
            self.check_vm(&["VM.Config.Cloudinit"])?;
            return self.check_vm(&["VM.Config.CDROM"]);
        }
        self.check_vm(&[if drive.is_cdrom() { "VM.Config.CDROM" } else { "VM.Config.Disk" }])
    }

    /// The right to use a NIC's bridge.
    ///
    /// # Errors
    /// 403, or 500 for a NIC without a bridge.
    pub(crate) fn check_bridge(&self, value: &str) -> Result<(), Failure> {
        if self.who.is_root() {
            return Ok(());
        }
        let keys = parse_property(vm::NET, value).unwrap_or_default();
        let Some(bridge) = keys.get("bridge") else {
            return Err("no sdn vnet ID specified".into());
        };
        let mut path = format!("/sdn/zones/localnetwork/{bridge}");
        if let Some(tag) = keys.get("tag") {
            path = format!("{path}/{tag}");
        }
        self.world.access.check(self.who, &path, &["SDN.Use"])
    }

    /// The right to put on or take off tags.
    ///
    /// # Errors
    /// 403 naming the tag.
    pub(crate) fn check_tags(&self, old: &str, new: &str) -> Result<(), Failure> {
        let access = &self.world.access;
        access.check(self.who, &self.path(), &["VM.Config.Options"])?;
        let Some(allowed) = &self.world.allowed_tags else {
            return Ok(());
        };
        if access.has(self.who, "/", "Sys.Modify") {
            return Ok(());
        }
        let set = |text: &str| split_list(text).map(str::to_lowercase).collect::<BTreeSet<_>>();
        let (old, new) = (set(old), set(new));
        match old.symmetric_difference(&new).find(|tag| !allowed.contains(tag)) {
            Some(tag) => Err(Failure::forbidden("/", &format!("Sys.Modify for modifying tag '{tag}'"))),
            None => Ok(()),
        }
    }
}

/// The size in GiB of `STORAGE:SIZE`; nothing for a volume's name.
pub(crate) fn allocation(rest: &str) -> Option<f64> {
    let mut dots = 0;
    let digits = rest.bytes().all(|byte| {
        dots += u8::from(byte == b'.');
        byte.is_ascii_digit() || byte == b'.'
    });
    let plain = digits && dots <= 1 && !rest.starts_with('.') && !rest.ends_with('.');
    if plain { rest.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::allocation;

    #[test]
    fn only_a_bare_number_allocates() {
        assert_eq!(allocation("0.5"), Some(0.5));
        assert_eq!(allocation("50"), Some(50.0));
        for volume in ["50G", "", "1.", "1.2.3", "vm-1-disk-0", "cloudinit"] {
            assert_eq!(allocation(volume), None, "{volume}");
        }
    }
}
