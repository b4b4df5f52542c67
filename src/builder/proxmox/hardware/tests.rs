//! Golden parameters: `tests/golden/proxmox/NAME.toml` holds what differs from the template `ubuntu-noble`
//! and from the profile; `NAME.txt` the parameters that create the VM, then those of the template.
//! `FORGE_UPDATE_GOLDEN=1` writes the latter anew.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::*;
use crate::builder::proxmox::site::{DiskStorage, MediaStorage};
use crate::definition::{self, Inputs, MachineOverride, Root};
use crate::plan::{Selection, resolve};
use crate::pve::Version;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Golden {
    machine: Machine,
    overrides: MachineOverride,
    storage: Option<String>,
    vlan: Option<u16>,
    pool: Option<String>,
    media: Vec<String>,
}

fn plan() -> Plan {
    let root = Root::at(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
    let loaded = definition::load(&root, "ubuntu-noble", &Inputs::default()).unwrap();
    resolve(&root, loaded, ("asgard".to_owned(), "--on"), &Selection::default()).unwrap()
}

fn site(golden: &Golden) -> Site {
    let kind = golden.storage.clone().unwrap_or_else(|| "zfspool".to_owned());
    Site {
        node: "asgard".parse().unwrap(),
        version: Version { version: "9.1.9".to_owned(), release: "9.1".to_owned() },
        disks: DiskStorage {
            id: "local-zfs".parse().unwrap(),
            takes_format: kind == "dir",
            kind,
            linked_clones: true,
            free: 0,
        },
        media: MediaStorage { id: "local".parse().unwrap(), free: 0 },
        bridge: "vmbr0".to_owned(),
        vlan: golden.vlan,
        pool: golden.pool.clone(),
        vmids: 9000..=9099,
        taken: std::collections::BTreeSet::new(),
        can_download: true,
        tags_on_create: true,
        address: None,
        warnings: Vec::new(),
    }
}

fn rendered(name: &str) -> String {
    let text = std::fs::read_to_string(folder().join(format!("{name}.toml"))).unwrap();
    let golden: Golden = toml::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut plan = plan();
    plan.definition.machine = golden.machine.clone();
    plan.machine = golden.machine.clone();
    let overrides = &golden.overrides;
    plan.machine.cpu = overrides.cpu.clone().unwrap_or(plan.machine.cpu);
    plan.machine.memory_mib = overrides.memory_mib.unwrap_or(plan.machine.memory_mib);
    plan.builder.profile.machine = overrides.clone();
    let site = site(&golden);
    let installing = Installing {
        name: "forge-r1",
        description: "text",
        uuid: "1b4e28ba-2fa1-41d2-883f-0016d3cca427",
        serial: Some("forge=http://10.0.0.5:8000/t/autoinstall.yaml"),
        media: &golden.media,
    };
    let mut text = String::new();
    for (title, params) in [
        ("create", create_params(&plan, &site, &installing)),
        ("template", template_params(&plan, &site, "pkr-ubuntu-noble-1-24.04.3")),
    ] {
        writeln!(text, "# {title}").unwrap();
        for (key, value) in params {
            writeln!(text, "{key}={value}").unwrap();
        }
    }
    text
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/proxmox")
}

#[test]
fn parameters_are_the_golden_ones() {
    for name in ["default", "everything", "emulated"] {
        let (text, path) = (rendered(name), folder().join(format!("{name}.txt")));
        if std::env::var_os("FORGE_UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(&path).unwrap_or_default(), "{}", path.display());
    }
}

fn config(pairs: &[(&str, &str)]) -> VmConfig {
    let values: BTreeMap<_, _> =
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    VmConfig { values, ..VmConfig::default() }
}

const READ_BACK: [(&str, &str); 8] = [
    ("agent", "1"),
    ("boot", "order=virtio0"),
    ("ide2", "local-zfs:vm-9000-cloudinit,media=cdrom"),
    ("net0", "virtio=BC:24:11:27:58:D1,bridge=vmbr0"),
    ("smbios1", "uuid=1b4e28ba-2fa1-41d2-883f-0016d3cca427"),
    ("template", "1"),
    ("virtio0", "local-zfs:base-9000-disk-0,discard=on,iothread=1,size=20480M"),
    ("vmgenid", "f22922f3-4dba-40c5-9484-8c175097ae43"),
];

fn meant() -> Params {
    [
        ("agent", "enabled=1"),
        ("boot", "order=virtio0"),
        ("ide2", "local-zfs:cloudinit"),
        ("net0", "virtio,bridge=vmbr0"),
        ("virtio0", "local-zfs:20,iothread=1,discard=on,format=raw"),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}

#[test]
fn a_template_is_compared_by_what_its_fields_mean() {
    assert_eq!(differences(&config(&READ_BACK), &meant(), true), Vec::<String>::new());
    for (key, value, expected) in [
        ("agent", "0", "agent: enabled is 0 instead of 1"),
        ("boot", "order=ide2", "boot: it is order=ide2 instead of order=virtio0"),
        ("ide2", "local:iso/x.iso,media=cdrom", "ide2: its volume is local:iso/x.iso instead of"),
        ("net0", "virtio=BC:24:11:27:58:D1,bridge=vmbr1", "net0: bridge is vmbr1 instead of vmbr0"),
        ("virtio0", "local-zfs:base-9000-disk-0,discard=on,iothread=1,size=2G", "virtio0: size is 2G"),
        ("virtio0", "local-zfs:base-9000-disk-0,iothread=1,size=20G", "virtio0: discard=on is missing"),
        ("virtio0", "other:base-9000-disk-0,discard=on,iothread=1,size=20G", "virtio0: its volume is other:"),
        (
            "virtio0",
            "local-zfs:vm-9000-disk-0,discard=on,iothread=1,size=20G",
            "virtio0: its volume local-zfs:vm-",
        ),
        ("kvm", "0", "kvm: 0 is there, and nothing should be"),
        ("smbios1", "uuid=1b4e,serial=Zm9yZ2U9,base64=1", "smbios1: the serial number"),
        ("unused0", "local-zfs:vm-9000-disk-1", "unused0: local-zfs:vm-9000-disk-1 is there"),
    ] {
        let mut changed = config(&READ_BACK);
        changed.values.insert(key.to_owned(), value.to_owned());
        let found = differences(&changed, &meant(), true);
        assert!(found.len() == 1 && found[0].starts_with(expected), "{key}={value}: {found:?}");
    }
    let mut thick = config(&READ_BACK);
    let volume = "local-zfs:vm-9000-disk-0,discard=on,iothread=1,size=20G";
    thick.values.insert("virtio0".to_owned(), volume.to_owned());
    assert_eq!(differences(&thick, &meant(), false), Vec::<String>::new(), "a storage that has no bases");
    let mut without = config(&READ_BACK);
    without.values.remove("virtio0");
    assert_eq!(
        differences(&without, &meant(), true),
        ["virtio0: local-zfs:20,iothread=1,discard=on,format=raw is missing"]
    );
}

#[test]
fn overrides_are_shown_as_the_definition_names_them() {
    let mut plan = plan();
    assert!(overrides(&plan).is_empty());
    plan.machine.cpu = "max".to_owned();
    plan.machine.memory_mib = 2048;
    plan.builder.profile.machine.kvm = Some(false);
    let shown = serde_json::to_value(shown_overrides(&plan)).unwrap();
    assert_eq!(shown, serde_json::json!({"cpu": "max", "kvm": false, "memory_mib": 2048}));
}
