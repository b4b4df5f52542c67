//! Hardware that cannot be.

use std::collections::BTreeMap;

use super::Rules;
use crate::definition::pve_keys;
use crate::definition::tree::{Node, Value};

/// The least memory in MiB: with less the live system has no room for its own files, and freezes.
const MEMORY_MIN: i64 = 2048;

impl Rules<'_> {
    pub(super) fn machine(&mut self) {
        let Some(machine) = self.tree.get("machine") else { return };
        self.disks(machine);
        self.nics(machine);
        self.tags("machine.tags", machine);
        self.pve_keys(machine);
        self.memory(machine);
        for cdrom in machine.list("cdrom") {
            self.location(cdrom, "iso");
        }
        if machine.bool_at("tpm") == Some(true) && machine.text_at("firmware").unwrap_or("bios") == "bios" {
            let span = machine.get("tpm").map_or(machine.span, |tpm| tpm.span);
            self.refuse(span, "a TPM needs UEFI firmware", "set `firmware = \"uefi\"`, or `tpm = false`");
        }
        if machine.bool_at("agent") == Some(false) {
            let span = machine.get("agent").map_or(machine.span, |agent| agent.span);
            self.refuse(
                span,
                "without the guest agent forge cannot reach the guest",
                "steps, checks and the seal all run through it: remove `agent = false`",
            );
        }
    }

    /// Refuses less memory than the installer's live system gets by with.
    pub(super) fn memory(&mut self, machine: &Node) {
        let Some(node) = machine.get("memory_mib") else { return };
        if let Value::Integer(mib) = node.value
            // What is not even in the schema's range has been refused by that.
            && (256..MEMORY_MIN).contains(&mib)
        {
            let message = format!("the installer freezes with {mib} MiB of memory: it needs {MEMORY_MIN}");
            self.refuse(node.span, message, "set `memory_mib = 4096`; clones may have less");
        }
    }

    fn pve_keys(&mut self, machine: &Node) {
        let Some(table) = machine.get("pve") else { return };
        for entry in table.entries() {
            // What did not evaluate has been refused already.
            if matches!(entry.node.value, Value::Unknown) {
                continue;
            }
            if let Err(refusal) = pve_keys::check(&entry.key, &entry.node.to_json(false)) {
                let span = if refusal.is_value { entry.node.span } else { entry.key_span };
                self.refuse(span, refusal.message, refusal.help);
            }
        }
    }

    fn disks(&mut self, machine: &Node) {
        let Some(disks) = machine.get("disk") else { return };
        if matches!(&disks.value, Value::Array(items) if items.is_empty()) {
            self.refuse(disks.span, "a machine needs a disk to install to", "remove `disk = []`");
        }
        let single = machine.text_at("scsi_controller") == Some("virtio-scsi-single");
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for disk in disks.items() {
            let bus = disk.text_at("bus").unwrap_or("virtio");
            *counts.entry(bus).or_default() += 1;
            self.disk(disk, bus, single);
        }
        for (bus, most) in [("virtio", 16), ("scsi", 31), ("sata", 6)] {
            if counts.get(bus).is_some_and(|count| *count > most) {
                let message =
                    format!("{} disks on the bus `{bus}`, which has places for {most}", counts[bus]);
                self.refuse(disks.span, message, "");
            }
        }
    }

    fn disk(&mut self, disk: &Node, bus: &str, single: bool) {
        let span_of = |key: &str| disk.get(key).map_or(disk.span, |node| node.span);
        if disk.bool_at("iothread") == Some(true) {
            match bus {
                "sata" => self.refuse(
                    span_of("iothread"),
                    "a disk on the bus `sata` cannot have an I/O thread",
                    "set `bus = \"virtio\"`, or remove `iothread`",
                ),
                "scsi" if !single => self.refuse(
                    span_of("iothread"),
                    "a disk on the bus `scsi` has an I/O thread only on a controller of its own",
                    "set `scsi_controller = \"virtio-scsi-single\"` in `[machine]`, or remove `iothread`",
                ),
                _ => {}
            }
        }
        if disk.bool_at("ssd") == Some(true) && bus == "virtio" {
            self.refuse(
                span_of("ssd"),
                "a disk on the bus `virtio` cannot pass for a solid-state disk: Proxmox refuses it",
                "remove `ssd` (`discard` works without it), or set `bus = \"scsi\"`",
            );
        }
    }

    fn nics(&mut self, machine: &Node) {
        let Some(nics) = machine.get("nic") else { return };
        let transport = self.tree.get("seed").and_then(|seed| seed.text_at("transport")).unwrap_or("http");
        if matches!(&nics.value, Value::Array(items) if items.is_empty()) && transport == "http" {
            self.refuse(
                nics.span,
                "the installer fetches its answers over the network, and the machine has none",
                "remove `nic = []`, or set `transport = \"cdrom\"` in `[seed]`",
            );
        }
        let mut seen: Vec<String> = Vec::new();
        for mac in nics.items().iter().filter_map(|nic| nic.get("mac")) {
            let Some(text) = mac.text() else { continue };
            let address = text.to_ascii_lowercase();
            let first = address.get(..2).and_then(|byte| u8::from_str_radix(byte, 16).ok());
            if first.is_some_and(|byte| byte & 1 == 1) {
                self.refuse(
                    mac.span,
                    format!("`{text}` is a multicast address, which no interface can have"),
                    "the first byte must be even, such as `52:54:00:…`",
                );
            }
            if seen.contains(&address) {
                self.refuse(mac.span, format!("two interfaces have the address `{text}`"), "");
            }
            seen.push(address);
        }
    }
}
