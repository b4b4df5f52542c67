//! The hardware: the table `[machine]`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The machine, while building and in the template.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Machine {
    /// The chipset.
    #[serde(rename = "type")]
    pub kind: Chipset,
    /// The firmware.
    pub firmware: Firmware,
    /// The CPU model, such as `host` or `x86-64-v2-AES`: letters, digits, `.`, `_`, `+` and `-`.
    #[schemars(regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._+-]*$"))]
    pub cpu: String,
    /// How many cores.
    #[schemars(range(min = 1, max = 512))]
    pub cores: u32,
    /// Memory in MiB.
    #[schemars(range(min = 256, max = 4_194_304))]
    pub memory_mib: u32,
    /// The disks; the first is the one that is installed to.
    #[serde(rename = "disk")]
    pub disks: Vec<Disk>,
    /// The network interfaces; the first is the one that is installed over.
    #[serde(rename = "nic")]
    pub nics: Vec<Nic>,
    /// More CDs, attached while building only.
    #[serde(rename = "cdrom")]
    pub cdroms: Vec<Cdrom>,
    /// The SCSI controller.
    pub scsi_controller: ScsiController,
    /// Whether the machine has the guest agent's port.
    pub agent: bool,
    /// Whether the machine has a serial console.
    pub serial: bool,
    /// Whether the machine has a TPM 2.0.
    pub tpm: bool,
    /// Tags of the machine while building.
    pub tags: Vec<String>,
    /// Other keys of the Proxmox VM, as in qm.conf(5); a local build does without them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub pve: BTreeMap<String, serde_json::Value>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            kind: Chipset::Q35,
            firmware: Firmware::Bios,
            cpu: "host".to_owned(),
            cores: 2,
            memory_mib: 4096,
            disks: vec![Disk::default()],
            nics: vec![Nic::default()],
            cdroms: Vec::new(),
            scsi_controller: ScsiController::VirtioScsiPci,
            agent: true,
            serial: true,
            tpm: false,
            tags: Vec::new(),
            pve: BTreeMap::new(),
        }
    }
}

/// The chipset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Chipset {
    /// Intel Q35: PCI Express, AHCI.
    #[default]
    Q35,
    /// Intel 440FX, Proxmox's own default.
    I440fx,
}

/// The firmware.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Firmware {
    /// `SeaBIOS`.
    #[default]
    Bios,
    /// OVMF.
    Uefi,
}

/// A SCSI controller.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ScsiController {
    /// One controller for all disks.
    #[default]
    VirtioScsiPci,
    /// One controller a disk, which `iothread` on the SCSI bus needs.
    VirtioScsiSingle,
}

/// A disk.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Disk {
    /// The bus.
    pub bus: DiskBus,
    /// Its size in GiB.
    #[schemars(range(min = 1, max = 65_536))]
    pub size_gib: u32,
    /// Its format on the storage.
    pub format: DiskFormat,
    /// Whether it has an I/O thread of its own; by default it has where the bus can.
    pub iothread: bool,
    /// Whether it passes the guest's discards on.
    pub discard: bool,
    /// Whether the guest sees a solid-state disk; not for the virtio bus.
    pub ssd: bool,
}

impl Default for Disk {
    fn default() -> Self {
        Self {
            bus: DiskBus::Virtio,
            size_gib: 20,
            format: DiskFormat::Raw,
            iothread: true,
            discard: true,
            ssd: false,
        }
    }
}

/// A disk's bus.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiskBus {
    /// virtio-blk.
    #[default]
    Virtio,
    /// virtio-scsi.
    Scsi,
    /// AHCI.
    Sata,
}

/// A disk's format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiskFormat {
    /// Raw blocks.
    Raw,
    /// QEMU's copy-on-write format; compressed in an artifact.
    #[default]
    Qcow2,
}

/// A network interface.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Nic {
    /// The model.
    pub model: NicModel,
    /// A fixed MAC address, such as `52:54:00:12:34:56`; one of the run's own by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}$"))]
    pub mac: Option<String>,
    /// How many packet queues; 0 leaves it to the hypervisor.
    #[schemars(range(max = 64))]
    pub queues: u32,
}

/// A network interface's model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NicModel {
    /// virtio-net.
    #[default]
    Virtio,
    /// Intel E1000E.
    E1000e,
}

/// One more CD, attached while building only.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cdrom {
    /// Where the ISO is: a URL, or a path, relative to the root.
    pub iso: String,
    /// Its SHA-256, 64 hexadecimal digits.
    #[schemars(regex(pattern = r"^[0-9a-fA-F]{64}$"))]
    pub sha256: String,
}
