//! A VM's configuration: its keys, what is pending, and its digest.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::{Map, Value, json};
use sha1::{Digest, Sha1};

use crate::schema::{Kind, parse_property, print_property, vm};

/// The keys of a configuration and their stored texts.
pub(crate) type Keys = BTreeMap<String, String>;

/// A VM's configuration.
#[derive(Clone, Debug, Default)]
pub(crate) struct Config {
    pub(crate) keys: Keys,
    /// Changes that wait for the VM's next start.
    pub(crate) pending: Keys,
    /// Deletions that wait; the value says whether volumes are freed too.
    pub(crate) deleted: BTreeMap<String, bool>,
    pub(crate) snapshots: BTreeMap<String, Keys>,
}

impl Config {
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.keys.get(key).map(String::as_str)
    }

    pub(crate) fn set(&mut self, key: &str, value: impl Into<String>) {
        self.keys.insert(key.into(), value.into());
    }

    pub(crate) fn is_template(&self) -> bool {
        self.get("template") == Some("1")
    }

    /// # Errors
    /// The server's text when the configuration bears a lock.
    pub(crate) fn check_lock(&self) -> Result<(), String> {
        match self.get("lock") {
            Some(lock) => Err(format!("VM is locked ({lock})")),
            None => Ok(()),
        }
    }

    /// The keys as they will be once everything pending is done.
    pub(crate) fn merged(&self) -> Keys {
        let mut keys = self.keys.clone();
        keys.retain(|key, _| !self.deleted.contains_key(key));
        keys.extend(self.pending.clone());
        keys
    }

    /// SHA-1 of the file that this configuration would be.
    pub(crate) fn digest(&self) -> String {
        let mut text = String::new();
        let mut section = |name: &str, keys: &Keys| {
            if !name.is_empty() {
                let _ = writeln!(text, "\n[{name}]");
            }
            for (key, value) in keys {
                let _ = writeln!(text, "{key}: {value}");
            }
        };
        section("", &self.keys);
        if !self.pending.is_empty() || !self.deleted.is_empty() {
            let mut pending = self.pending.clone();
            if !self.deleted.is_empty() {
                let list: Vec<&str> = self.deleted.keys().map(String::as_str).collect();
                pending.insert("delete".into(), list.join(","));
            }
            section("PENDING", &pending);
        }
        for (name, keys) in &self.snapshots {
            section(name, keys);
        }
        hex(&Sha1::digest(text))
    }

    /// `GET …/config`.
    pub(crate) fn shown(&self, keys: &Keys) -> Value {
        let mut shown: Map<String, Value> = keys.iter().map(|(k, v)| (k.clone(), typed(k, v))).collect();
        shown.insert("digest".into(), json!(self.digest()));
        Value::Object(shown)
    }

    /// `GET …/pending`.
    pub(crate) fn pending_list(&self) -> Value {
        let mut rows = Vec::new();
        let names: BTreeSet<&String> = self.keys.keys().chain(self.pending.keys()).collect();
        for name in names {
            let mut row = json!({ "key": name });
            if let Some(value) = self.keys.get(name) {
                row["value"] = typed(name, value);
            }
            if let Some(value) = self.pending.get(name) {
                row["pending"] = typed(name, value);
            }
            if let Some(force) = self.deleted.get(name) {
                row["delete"] = json!(if *force { 2 } else { 1 });
            }
            rows.push(row);
        }
        rows.push(json!({ "key": "digest", "value": self.digest() }));
        Value::Array(rows)
    }

    /// Memory in MiB.
    pub(crate) fn memory_mib(&self) -> u64 {
        let text = self.get("memory").unwrap_or("512");
        let keys = parse_property(vm::MEMORY, text).unwrap_or_default();
        keys.get("current").and_then(|value| value.parse().ok()).unwrap_or(512)
    }

    pub(crate) fn cpus(&self) -> u64 {
        let number = |key: &str| self.get(key).and_then(|text| text.parse::<u64>().ok()).unwrap_or(1);
        number("sockets") * number("cores")
    }

    /// Whether the guest agent is switched on.
    pub(crate) fn agent_enabled(&self) -> bool {
        let keys = self.get("agent").map(|text| parse_property(vm::AGENT, text).unwrap_or_default());
        keys.is_some_and(|keys| keys.get("enabled").is_some_and(|value| value == "1"))
    }

    /// Devices that the firmware may boot, in their order.
    pub(crate) fn boot_order(&self) -> Vec<String> {
        let text = self.get("boot").unwrap_or_default();
        let keys = parse_property(vm::BOOT, text.trim()).unwrap_or_default();
        let order = keys.get("order").map_or("", String::as_str);
        order.split(';').filter(|name| !name.is_empty()).map(Into::into).collect()
    }

    /// Takes a removed device out of the boot order.
    pub(crate) fn drop_from_boot_order(&mut self, device: &str) -> bool {
        let mut order = self.boot_order();
        let before = order.len();
        order.retain(|name| name != device);
        if order.len() == before {
            return false;
        }
        self.set("boot", boot_text(&order));
        true
    }

    /// The disk that stands for the VM in lists.
    pub(crate) fn boot_disk(&self) -> Option<Drive> {
        let drives = drives(&self.keys);
        let disks: Vec<&(String, Drive)> = drives.iter().filter(|(_, drive)| !drive.is_cdrom()).collect();
        let first = self
            .boot_order()
            .into_iter()
            .find_map(|name| disks.iter().find(|(key, _)| *key == name).map(|(_, drive)| drive.clone()));
        first.or_else(|| {
            disks.first().map(|(_, drive)| drive.clone()).filter(|_| self.boot_order().is_empty())
        })
    }
}

/// `boot` for these devices; an empty order is stored as a blank.
pub(crate) fn boot_text(order: &[String]) -> String {
    if order.is_empty() { " ".into() } else { format!("order={}", order.join(";")) }
}

/// First disk, first CD-ROM, first NIC: what is booted when nobody says.
pub(crate) fn default_boot(keys: &Keys) -> String {
    let drives = drives(keys);
    let disk = drives.iter().find(|(key, drive)| !drive.is_cdrom() && is_bus(key));
    let cdrom = drives.iter().find(|(_, drive)| drive.is_cdrom());
    let net = keys.keys().find(|key| key.starts_with("net") && vm::option(key).is_some());
    let names = disk.map(|(key, _)| key).into_iter().chain(cdrom.map(|(key, _)| key)).chain(net);
    boot_text(&names.cloned().collect::<Vec<_>>())
}

fn is_bus(key: &str) -> bool {
    ["ide", "sata", "scsi", "virtio"]
        .iter()
        .any(|bus| key.strip_prefix(bus).is_some_and(|rest| rest.parse::<u8>().is_ok()))
}

/// Whether `key` is a disk, CD-ROM, EFI or TPM drive.
pub(crate) fn is_drive(key: &str) -> bool {
    is_bus(key) || key == "efidisk0" || key == "tpmstate0"
}

/// A value as the API shows it: integers and booleans as numbers, all else as text.
pub(crate) fn typed(key: &str, value: &str) -> Value {
    if key == "cipassword" {
        return json!("**********");
    }
    let kind = vm::option(key).map_or(Kind::Text, |option| option.kind);
    let number = match kind {
        Kind::Integer | Kind::Boolean => value.parse::<i64>().ok().map(|number| json!(number)),
        Kind::Number => value.parse::<f64>().ok().map(|number| json!(number)),
        Kind::Text | Kind::List => None,
    };
    number.unwrap_or_else(|| json!(value))
}

/// A drive's property string, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Drive {
    /// Volume id, `none`, `cdrom`, an allocation such as `local:32`, or a path.
    pub(crate) file: String,
    pub(crate) options: Keys,
}

impl Drive {
    pub(crate) fn parse(key: &str, text: &str) -> Option<Self> {
        let option = vm::option(key)?;
        let crate::schema::Format::Keys(keys) = option.format else {
            return None;
        };
        let mut options = parse_property(keys, text).ok()?;
        Some(Self { file: options.remove("file")?, options })
    }

    pub(crate) fn print(&self, key: &str) -> String {
        let keys = match vm::option(key).map(|option| option.format) {
            Some(crate::schema::Format::Keys(keys)) => keys,
            _ => &[],
        };
        let mut all = self.options.clone();
        all.insert("file".into(), self.file.clone());
        print_property(keys, &all)
    }

    pub(crate) fn is_cdrom(&self) -> bool {
        self.options.get("media").is_some_and(|media| media == "cdrom")
    }

    pub(crate) fn is_cloud_init(&self) -> bool {
        self.file.rsplit_once(':').is_some_and(|(_, name)| {
            let name = name.rsplit('/').next().unwrap_or(name);
            name == "cloudinit" || name.contains("-cloudinit")
        })
    }

    /// Whether it names a volume, not an empty or physical drive.
    pub(crate) fn has_volume(&self) -> bool {
        self.file != "none" && self.file != "cdrom" && !self.file.starts_with('/')
    }
}

/// All drives of a configuration, by key.
pub(crate) fn drives(keys: &Keys) -> Vec<(String, Drive)> {
    let named = keys.iter().filter(|(key, _)| is_drive(key));
    named.filter_map(|(key, text)| Some((key.clone(), Drive::parse(key, text)?))).collect()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Tags as configuration updates store them: lower case, sorted, each once.
pub(crate) fn tidy_tags(text: &str) -> String {
    let tags: BTreeSet<String> = crate::schema::split_list(text).map(str::to_lowercase).collect();
    tags.into_iter().collect::<Vec<_>>().join(";")
}

/// Bytes as Proxmox writes sizes: the largest unit that leaves no rest.
pub(crate) fn size_text(mut bytes: u64) -> String {
    for unit in ["", "K", "M", "G"] {
        if bytes == 0 || !bytes.is_multiple_of(1024) {
            return format!("{bytes}{unit}");
        }
        bytes /= 1024;
    }
    format!("{bytes}T")
}

/// `2G`, `512M`, `+0.5T`'s number: bytes.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let number: f64 = text[..split].parse().ok()?;
    let factor: u64 = match text[split..].chars().next() {
        None => 1,
        Some('K') => 1 << 10,
        Some('M') => 1 << 20,
        Some('G') => 1 << 30,
        Some('T') => 1 << 40,
        Some(_) => return None,
    };
    Some((number * factor as f64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_and_read_as_proxmox_does() {
        for (bytes, text) in [
            (540_672, "528K"),
            (18_806_784, "18366K"),
            (1 << 30, "1G"),
            (1 << 29, "512M"),
            (1001, "1001"),
            (3 << 40, "3T"),
        ] {
            assert_eq!(size_text(bytes), text);
            assert_eq!(parse_size(text), Some(bytes));
        }
    }

    #[test]
    fn a_boot_order_loses_removed_devices() {
        let mut config = Config::default();
        config.set("boot", "order=ide2;virtio0");
        config.set("virtio0", "local:1/vm-1-disk-0.raw,size=1G");
        assert!(config.drop_from_boot_order("ide2"));
        assert_eq!(config.get("boot"), Some("order=virtio0"));
        assert!(config.drop_from_boot_order("virtio0"));
        assert_eq!(config.get("boot"), Some(" "));
        assert!(!config.drop_from_boot_order("net0"));
    }

    #[test]
    fn a_digest_changes_with_pending_values() {
        let mut config = Config::default();
        config.set("cores", "2");
        let before = config.digest();
        config.pending.insert("cores".into(), "4".into());
        assert_ne!(config.digest(), before);
        assert_eq!(config.merged()["cores"], "4");
        assert_eq!(config.shown(&config.keys)["cores"], json!(2));
    }

    #[test]
    fn tags_are_tidied() {
        assert_eq!(tidy_tags("Zeta;alpha"), "alpha;zeta");
        assert_eq!(tidy_tags("a;a;A, b"), "a;b");
    }
}
