//! A machine as QEMU is to run it: the definition's hardware with this host's files and sockets.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use uuid::Uuid;

use super::accel::Accel;
use super::firmware::Flash;
use crate::definition::{self, Chipset, DiskBus, DiskFormat, NicModel, ScsiController};

/// A machine as QEMU is to run it.
#[derive(Debug, Clone)]
pub struct MachineSpec {
    /// QEMU's path, or its name on the search path.
    pub binary: PathBuf,
    /// The chipset.
    pub chipset: Chipset,
    /// The firmware.
    pub firmware: Firmware,
    /// How guest code is run.
    pub accel: Accel,
    /// The CPU model; see [`cpu_model`].
    pub cpu: String,
    /// How many cores, in one socket.
    pub cores: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The SCSI controller.
    pub scsi_controller: ScsiController,
    /// The disks.
    pub disks: Vec<DiskSpec>,
    /// The CDs.
    pub cdroms: Vec<PathBuf>,
    /// The network interfaces.
    pub nics: Vec<NicSpec>,
    /// The SMBIOS UUID.
    pub uuid: Uuid,
    /// The SMBIOS serial number; may hold the build's token.
    pub serial_number: Option<SerialNumber>,
    /// Whether there is a guest agent's port.
    pub agent: bool,
    /// Whether there is a serial console; it is always logged.
    pub serial: bool,
    /// Whether there is a TPM 2.0.
    pub tpm: bool,
    /// What is booted.
    pub boot: Boot,
    /// What a reset by the guest does.
    pub on_reset: OnReset,
}

/// The firmware with its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Firmware {
    /// `SeaBIOS`, which QEMU brings along.
    Bios,
    /// OVMF: its code, and this machine's own copy of its variables.
    Uefi {
        /// The code, read only.
        code: Flash,
        /// The variables, written.
        vars: Flash,
    },
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSpec {
    /// Its file.
    pub path: PathBuf,
    /// The file's format.
    pub format: DiskFormat,
    /// The bus.
    pub bus: DiskBus,
    /// Whether it has an I/O thread of its own.
    pub iothread: bool,
    /// Whether the guest's discards reach the file.
    pub discard: bool,
    /// Whether the guest sees a solid-state disk.
    pub ssd: bool,
    /// Whether the guest may only read.
    pub read_only: bool,
}

/// A network interface on a user network of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicSpec {
    /// The model.
    pub model: NicModel,
    /// The MAC address.
    pub mac: String,
    /// The network behind it.
    pub network: UserNet,
}

/// A user network: QEMU itself is the router, the DHCP server and the resolver.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserNet {
    /// Its address and prefix length, such as `10.10.10.0/24`; QEMU's `10.0.2.0/24` by default.
    pub net: Option<String>,
    /// The first address that DHCP gives out.
    pub dhcp_start: Option<Ipv4Addr>,
    /// Ports of the guest that are reachable on the host's loopback, each at a free port there:
    /// see [`super::Machine::forwarded_port`].
    pub forwards: Vec<Forward>,
    /// Whether the guest is cut off from everything but those ports.
    pub restrict: bool,
}

/// A TCP port of the guest that is reachable on the host's loopback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// The guest's address; the first one DHCP gives out by default.
    pub address: Option<Ipv4Addr>,
    /// The guest's port.
    pub port: u16,
}

/// A serial number whose `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct SerialNumber(pub String);

impl fmt::Debug for SerialNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SerialNumber(…)")
    }
}

/// What is booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boot {
    /// The first disk, and nothing else.
    Disk,
    /// The first CD, then the first disk.
    Cdrom,
}

/// What a reset by the guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnReset {
    /// The machine starts again.
    Restart,
    /// The machine ends with [`super::End::Reset`]: installers must power off, and a machine that
    /// resets there has crashed or would install twice.
    End,
}

/// What a definition does not say about a machine on this host.
#[derive(Debug, Clone)]
pub struct Host {
    /// QEMU's path, or its name on the search path.
    pub binary: PathBuf,
    /// How guest code is run.
    pub accel: Accel,
    /// The firmware's files, of the kind that the definition names.
    pub firmware: Firmware,
    /// A file for each of the definition's disks, in its order, and the format that it has here.
    pub disks: Vec<(PathBuf, DiskFormat)>,
    /// The CDs, in the order in which they are attached.
    pub cdroms: Vec<PathBuf>,
    /// The network behind each of the definition's interfaces; QEMU's own where there is none.
    pub networks: Vec<UserNet>,
    /// The SMBIOS UUID; MAC addresses that the definition leaves open follow from it.
    pub uuid: Uuid,
    /// The SMBIOS serial number.
    pub serial_number: Option<SerialNumber>,
    /// What is booted.
    pub boot: Boot,
    /// What a reset by the guest does.
    pub on_reset: OnReset,
}

impl MachineSpec {
    /// Returns the definition's machine as it runs on a host.
    #[must_use]
    pub fn new(machine: &definition::Machine, host: Host) -> Self {
        let disks = machine.disks.iter().zip(host.disks);
        let nics = machine.nics.iter().enumerate();
        let mut networks = host.networks.into_iter();
        Self {
            cpu: cpu_model(&machine.cpu, host.accel),
            chipset: machine.kind,
            cores: machine.cores,
            memory_mib: machine.memory_mib,
            scsi_controller: machine.scsi_controller,
            disks: disks.map(|(disk, (path, format))| disk_spec(disk, path, format)).collect(),
            nics: nics
                .map(|(index, nic)| NicSpec {
                    model: nic.model,
                    mac: nic.mac.clone().unwrap_or_else(|| own_mac(host.uuid, index)),
                    network: networks.next().unwrap_or_default(),
                })
                .collect(),
            agent: machine.agent,
            serial: machine.serial,
            tpm: machine.tpm,
            binary: host.binary,
            firmware: host.firmware,
            accel: host.accel,
            cdroms: host.cdroms,
            uuid: host.uuid,
            serial_number: host.serial_number,
            boot: host.boot,
            on_reset: host.on_reset,
        }
    }
}

fn disk_spec(disk: &definition::Disk, path: PathBuf, format: DiskFormat) -> DiskSpec {
    DiskSpec {
        path,
        format,
        bus: disk.bus,
        iothread: disk.iothread,
        discard: disk.discard,
        ssd: disk.ssd,
        read_only: false,
    }
}

/// Returns the CPU model that a machine gets: `host` exists under KVM only, and becomes `max`.
#[must_use]
pub fn cpu_model(wanted: &str, accel: Accel) -> String {
    match (wanted, accel) {
        ("host", Accel::Tcg) => "max".to_owned(),
        (wanted, _) => wanted.to_owned(),
    }
}

/// Returns a MAC address of QEMU's range that is this machine's own.
fn own_mac(uuid: Uuid, index: usize) -> String {
    let [.., a, b, c] = *uuid.as_bytes();
    let c = c.wrapping_add(index as u8);
    format!("52:54:00:{a:02x}:{b:02x}:{c:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_cpu_becomes_max_without_kvm() {
        assert_eq!(cpu_model("host", Accel::Tcg), "max");
        assert_eq!(cpu_model("host", Accel::Kvm), "host");
        assert_eq!(cpu_model("x86-64-v2-AES", Accel::Tcg), "x86-64-v2-AES");
    }

    #[test]
    fn interfaces_of_one_machine_differ() {
        let uuid = Uuid::from_u128(0xff);
        assert_eq!(own_mac(uuid, 0), "52:54:00:00:00:ff");
        assert_eq!(own_mac(uuid, 1), "52:54:00:00:00:00");
    }

    #[test]
    fn a_serial_number_is_never_shown() {
        let shown = format!("{:?}", SerialNumber("http://10.0.2.2/token".to_owned()));
        assert!(!shown.contains("token"), "{shown}");
    }
}
