//! A build on a node: the whole way to template 90001, with only Proxmox's management layer simulated.
//!
//! forge, the node and its VMs have a network of their own (`tests/pve/homelab`), so that logging in
//! to clones is no matter of luck there.

use std::fs;
use std::path::Path;
use std::process::Command;

use forge::artifact::Manifest;
use forge::event::{Outcome, Worker};
use pve_sim::Request;
use serde_json::{Map, Value};

use crate::build::{MEMORY_MAX_KIB, folder, forge, root, run, simulator};
use crate::requests::assert_requests_are_well;

/// The token's secret in `tests/pve/homelab.toml`.
const SECRET: &str = "5f0c6b1e-1d3c-4f5a-9a57-1d2f3c4b5a69";

/// What template 90001 is, by the homelab's document. Where a value is unlike on each build, its
/// beginning and its end stand around `…`.
const DOCUMENT: [(&str, &str); 20] = [
    ("agent", "enabled=1"),
    ("bios", "seabios"),
    ("boot", "order=virtio0"),
    ("ciupgrade", "0"),
    ("ciuser", "odin"),
    ("cores", "2"),
    ("cpu", "host"),
    ("description", "Ubuntu Server standin, user odin, SSH on port 2222 with keys only\n…```"),
    ("ide2", "local-zfs:vm-90001-cloudinit,media=cdrom"),
    ("machine", "q35"),
    ("memory", "4096"),
    ("meta", "creation-qemu=…"),
    ("name", "pkr-ubuntu-noble-1"),
    ("net0", "virtio=…,bridge=vmbr0"),
    ("ostype", "l26"),
    ("scsihw", "virtio-scsi-pci"),
    ("serial0", "socket"),
    ("smbios1", "uuid=…"),
    ("tags", "forge;forge-stable;noble;ubuntu"),
    ("virtio0", "local-zfs:base-90001-disk-0,…size=20G"),
];

#[test]
fn an_empty_node_gets_its_template() {
    let record = folder("node");
    let out = record.join("artifact");
    let _none_yet = fs::remove_dir_all(&out);
    let mut command = Command::new(root().join("tests/pve/homelab"));
    command.env("FORGE_HOMELAB_RECORD", &record).arg(simulator()).arg(forge());
    command
        .args(["build", "ubuntu-noble", "--on", "sim", "--promote", "--output", "json", "--out"])
        .arg(&out);
    let build = run(command);
    assert_eq!(build.exit_code, Some(0), "{}", build.stderr);
    let (outcome, seconds, spans) = build.finished();
    assert!(matches!(outcome, Outcome::Done));
    let own: f64 = spans.iter().filter(|span| span.worker == Worker::Forge).map(|span| span.seconds).sum();
    println!("built in {seconds:.0} s, {own:.2} s of that forge's own, {} KiB", build.memory_kib);
    assert!(build.memory_kib > 0 && build.memory_kib < MEMORY_MAX_KIB, "{} KiB", build.memory_kib);

    assert_node(&record);
    for text in [build.stderr, format!("{:?}", build.records)] {
        assert!(!text.contains(SECRET), "the token is shown");
    }
}

/// Makes sure that the node has the template and its candidate, and was asked for nothing amiss.
fn assert_node(record: &Path) {
    let world: Value = read(&record.join("world.json"));
    let vms = world["vms"].as_object().expect("VMs");
    let numbers: Vec<_> = vms.keys().map(String::as_str).collect();
    assert_eq!(numbers.len(), 2, "the template and its candidate: {numbers:?}");
    assert_is_document(vms["90001"]["config"].as_object().expect("a config"));
    for (vmid, vm) in vms {
        let what = format!("{vmid}: {vm:#}");
        assert!(
            vm["config"]["template"] == "1"
                && vm["running"] == false
                && vm["pending"] == Value::Object(Map::new()),
            "{what}"
        );
    }

    let manifest: Manifest = read(&record.join("artifact/manifest.json"));
    let failed: Vec<_> = manifest.checks.iter().filter(|check| !check.passed).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    let by_key = "odin logs in by key on port 2222 and has sudo";
    assert!(manifest.checks.iter().any(|check| check.at == "valaskjalf-master" && check.name == by_key));

    let requests: Vec<Request> = read(&record.join("requests.json"));
    println!("{} requests to the API", requests.len());
    assert_requests_are_well(&requests);
    let text = fs::read_to_string(record.join("requests.json")).expect("requests");
    assert!(!text.contains(SECRET), "the token is in a request");
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn assert_is_document(config: &Map<String, Value>) {
    for (key, value) in config {
        let value = value.as_str().expect("a string");
        println!("    {key}: {}", value.lines().next().unwrap_or_default());
    }
    let expected =
        DOCUMENT.iter().map(|(key, _)| *key).chain(["template"]).collect::<std::collections::BTreeSet<_>>();
    let own = |key: &&str| !["digest", "vmgenid"].contains(key);
    assert_eq!(
        config.keys().map(String::as_str).filter(own).collect::<std::collections::BTreeSet<_>>(),
        expected
    );
    for (key, value) in DOCUMENT {
        let found = config[key].as_str().unwrap_or_default();
        let fits = match value.split_once('…') {
            Some((start, end)) => {
                found.len() >= start.len() + end.len() && found.starts_with(start) && found.ends_with(end)
            }
            None => found == value,
        };
        assert!(fits, "{key} is `{found}`, not `{value}`");
    }
    assert_eq!(config["template"], "1");
    assert!(!config["smbios1"].as_str().expect("a string").contains(','), "{}", config["smbios1"]);
}
