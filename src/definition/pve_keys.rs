//! The keys of a Proxmox VM that `[machine.pve]` may set: what is forge's own to set, what only
//! root may set, and what values the rest takes.
//!
//! Source: the parameters of `POST /nodes/{node}/qemu` (PVE 8.4 and 9.1).

use serde_json::Value as Json;

use super::diagnostics::did_you_mean;

/// What a key takes.
#[derive(Debug, Clone, Copy)]
enum Takes {
    /// `true` or `false`.
    Bool,
    /// A whole number within these bounds.
    Integer(i64, i64),
    /// A number up to this.
    Number(f64),
    /// One of these words.
    Words(&'static [&'static str]),
    /// A text, such as a comma-separated property string.
    Text,
}

const BIG: i64 = i64::MAX;

const KEYBOARDS: &[&str] = &[
    "de", "de-ch", "da", "en-gb", "en-us", "es", "fi", "fr", "fr-be", "fr-ca", "fr-ch", "hu", "is", "it",
    "ja", "lt", "mk", "nl", "no", "pl", "pt", "pt-br", "sv", "sl", "tr",
];

const OS_TYPES: &[&str] = &[
    "other", "wxp", "w2k", "w2k3", "w2k8", "wvista", "win7", "win8", "win10", "win11", "l24", "l26",
    "solaris",
];

/// Keys that pass through, with the number of places of those that are numbered.
const KEYS: &[(&str, Option<u32>, Takes)] = &[
    ("acpi", None, Takes::Bool),
    ("allow-ksm", None, Takes::Bool),
    ("audio0", None, Takes::Text),
    ("autostart", None, Takes::Bool),
    ("balloon", None, Takes::Integer(0, BIG)),
    ("cicustom", None, Takes::Text),
    ("citype", None, Takes::Words(&["configdrive2", "nocloud", "opennebula"])),
    ("cpulimit", None, Takes::Number(128.0)),
    ("cpuunits", None, Takes::Integer(1, 262_144)),
    ("hostpci", Some(16), Takes::Text),
    ("hotplug", None, Takes::Text),
    ("keyboard", None, Takes::Words(KEYBOARDS)),
    ("localtime", None, Takes::Bool),
    ("migrate_downtime", None, Takes::Number(f64::MAX)),
    ("migrate_speed", None, Takes::Integer(0, BIG)),
    ("nameserver", None, Takes::Text),
    ("numa", None, Takes::Bool),
    ("numa", Some(8), Takes::Text),
    ("onboot", None, Takes::Bool),
    ("ostype", None, Takes::Words(OS_TYPES)),
    ("rng0", None, Takes::Text),
    ("searchdomain", None, Takes::Text),
    ("shares", None, Takes::Integer(0, 50_000)),
    ("sockets", None, Takes::Integer(1, BIG)),
    ("startdate", None, Takes::Text),
    ("startup", None, Takes::Text),
    ("tablet", None, Takes::Bool),
    ("tdf", None, Takes::Bool),
    ("usb", Some(14), Takes::Text),
    ("vcpus", None, Takes::Integer(1, BIG)),
    ("vga", None, Takes::Text),
    ("virtiofs", Some(10), Takes::Text),
    ("vmstatestorage", None, Takes::Text),
    ("watchdog", None, Takes::Text),
];

/// Keys that forge sets, with where they are set instead.
const OURS: &[(&str, &str)] = &[
    ("agent", "`agent` in `[machine]`"),
    ("bios", "`firmware` in `[machine]`"),
    ("boot", "forge alone: the medium first, then the disk"),
    ("bootdisk", "forge alone: the medium first, then the disk"),
    ("cdrom", "`[[machine.cdrom]]`"),
    ("cipassword", "whoever clones the template"),
    ("ciupgrade", "`upgrade` in `[template.cloud_init]`"),
    ("ciuser", "`user` in `[template.cloud_init]`"),
    ("cores", "`cores` in `[machine]`"),
    ("cpu", "`cpu` in `[machine]`"),
    ("description", "`description` in `[template]`"),
    ("efidisk0", "`firmware` in `[machine]`"),
    ("kvm", "`kvm` in `[machine]` of the builder profile"),
    ("machine", "`type` in `[machine]`"),
    ("memory", "`memory_mib` in `[machine]`"),
    ("name", "`name` in `[template]`"),
    ("pool", "`pool` in the builder profile"),
    ("protection", "whoever looks after the template: it would keep forge from removing what it made"),
    ("reboot", "forge alone, while installing"),
    ("scsihw", "`scsi_controller` in `[machine]`"),
    ("smbios1", "forge alone: it carries the seed's address"),
    ("smp", "`cores` in `[machine]`"),
    ("sshkeys", "whoever clones the template"),
    ("start", "forge alone"),
    ("storage", "`vm_storage` in the builder profile"),
    ("tags", "`tags` in `[template]`"),
    ("template", "forge alone, at the end"),
    ("tpmstate0", "`tpm` in `[machine]`"),
    ("vmid", "`vmid` in `[template]`"),
];

/// The same for keys with a number behind them.
const OURS_NUMBERED: &[(&str, &str)] = &[
    ("ide", "`[[machine.disk]]` and `[[machine.cdrom]]`"),
    ("ipconfig", "whoever clones the template"),
    ("net", "`[[machine.nic]]`, and `bridge` in the builder profile"),
    ("sata", "`[[machine.disk]]`"),
    ("scsi", "`[[machine.disk]]`"),
    ("serial", "`serial` in `[machine]`"),
    ("unused", "nobody"),
    ("virtio", "`[[machine.disk]]`"),
];

/// Keys that Proxmox takes from root@pam with a password alone, never with a token.
const ROOT: &[&str] = &[
    "affinity",
    "amd-sev",
    "arch",
    "args",
    "hookscript",
    "hugepages",
    "intel-tdx",
    "ivshmem",
    "keephugepages",
    "lock",
    "spice_enhancements",
    "vmgenid",
];

/// Why a key or its value is refused, and what to do.
pub(crate) struct Refusal {
    pub(crate) message: String,
    pub(crate) help: String,
    /// Whether it is the value that is wrong, not the key.
    pub(crate) is_value: bool,
}

/// Checks one key of `[machine.pve]` with its value.
pub(crate) fn check(key: &str, value: &Json) -> Result<(), Refusal> {
    let refuse = |message: String, help: String, is_value| Err(Refusal { message, help, is_value });
    let (stem, number) = split_number(key);
    if let Some((_, place)) = ours(key, stem, number) {
        return refuse(format!("`{key}` is not set here"), format!("it is set by {place}"), false);
    }
    if ROOT.contains(&key) || (stem == "parallel" && number.is_some()) {
        let message = format!("Proxmox lets only root@pam set `{key}`, and no token");
        return refuse(message, "set it by hand on the finished template, with `qm set`".to_owned(), false);
    }
    let Some(takes) = look_up(key, stem, number) else {
        let names = KEYS.iter().map(|(name, ..)| *name);
        let help = did_you_mean(key, names).unwrap_or_else(|| "the keys are those of qm.conf(5)".to_owned());
        return refuse(format!("a Proxmox VM has no key `{key}`"), help, false);
    };
    match takes.refuse(value) {
        None => Ok(()),
        Some(wanted) => refuse(format!("`{key}` takes {wanted}, not `{value}`"), String::new(), true),
    }
}

/// Splits `hostpci3` into `hostpci` and 3; a number with leading zeros is none.
fn split_number(key: &str) -> (&str, Option<u32>) {
    let stem = key.trim_end_matches(|c: char| c.is_ascii_digit());
    let digits = &key[stem.len()..];
    let number = if digits.len() > 1 && digits.starts_with('0') { None } else { digits.parse().ok() };
    (stem, number)
}

fn ours(key: &str, stem: &str, number: Option<u32>) -> Option<&'static (&'static str, &'static str)> {
    let plain = OURS.iter().find(|(name, _)| *name == key);
    plain.or_else(|| number.and_then(|_| OURS_NUMBERED.iter().find(|(name, _)| *name == stem)))
}

fn look_up(key: &str, stem: &str, number: Option<u32>) -> Option<Takes> {
    let found = KEYS.iter().find(|(name, places, _)| match places {
        None => *name == key,
        Some(places) => *name == stem && number.is_some_and(|number| number < *places),
    });
    found.map(|(.., takes)| *takes)
}

impl Takes {
    /// Returns what it takes, where that is not this value.
    fn refuse(self, value: &Json) -> Option<String> {
        let fits = match (self, value) {
            (Self::Bool, Json::Bool(_)) => true,
            (Self::Integer(min, max), Json::Number(number)) => {
                number.as_i64().is_some_and(|number| (min..=max).contains(&number))
            }
            (Self::Number(max), Json::Number(number)) => {
                number.as_f64().is_some_and(|number| (0.0..=max).contains(&number))
            }
            (Self::Words(words), Json::String(text)) => words.contains(&text.as_str()),
            // A line break could smuggle a second line into the VM's configuration file.
            (Self::Text, Json::String(text)) => !text.is_empty() && !text.contains(['\n', '\r']),
            _ => false,
        };
        (!fits).then(|| match self {
            Self::Bool => "true or false".to_owned(),
            Self::Integer(min, BIG) => format!("a whole number from {min}"),
            Self::Integer(min, max) => format!("a whole number from {min} to {max}"),
            Self::Number(f64::MAX) => "a number from 0".to_owned(),
            Self::Number(max) => format!("a number from 0 to {max}"),
            Self::Words(words) => format!("one of {}", words.join(", ")),
            Self::Text => "a text of one line".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    fn message(key: &str, value: &Json) -> String {
        let refusal = check(key, value).err().unwrap_or_else(|| panic!("{key} was taken"));
        format!("{}: {}", refusal.message, refusal.help)
    }

    #[test]
    fn other_keys_pass() {
        for (key, value) in [
            ("balloon", json!(0)),
            ("hostpci0", json!("0000:01:00.0,pcie=1")),
            ("numa", json!(true)),
            ("numa1", json!("cpus=0-1")),
            ("cpulimit", json!(1.5)),
            ("keyboard", json!("fr")),
        ] {
            assert!(check(key, &value).is_ok(), "{key}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!(
            message("cores", &json!(2)),
            "`cores` is not set here: it is set by `cores` in `[machine]`"
        );
        assert!(message("virtio7", &json!("x")).ends_with("it is set by `[[machine.disk]]`"));
        assert!(message("args", &json!("-x")).starts_with("Proxmox lets only root@pam set `args`"));
        assert!(message("ballon", &json!(1)).contains("did you mean `balloon`"));
        assert!(message("hostpci16", &json!("x")).starts_with("a Proxmox VM has no key `hostpci16`"));
        assert!(message("numa01", &json!("x")).starts_with("a Proxmox VM has no key"));
        assert!(
            message("shares", &json!(50_001)).starts_with("`shares` takes a whole number from 0 to 50000")
        );
        assert!(message("vga", &json!("std\nargs: -x")).starts_with("`vga` takes a text of one line"));
        assert!(message("tablet", &json!("no")).starts_with("`tablet` takes true or false"));
    }

    #[test]
    fn no_key_is_in_two_tables() {
        let mut seen = BTreeSet::new();
        let plain = KEYS.iter().filter(|(_, places, _)| places.is_none()).map(|(name, ..)| *name);
        for name in plain.chain(OURS.iter().map(|(name, _)| *name)).chain(ROOT.iter().copied()) {
            assert!(seen.insert(name), "{name}");
        }
    }
}
