//! Turns a [`MachineSpec`] into QEMU's arguments: pure, and golden-tested.

use std::path::{Path, PathBuf};

use super::firmware::Flash;
use super::spec::{Boot, DiskSpec, Firmware, MachineSpec, NicSpec, OnReset};
use crate::definition::{Chipset, DiskBus, NicModel, ScsiController};

/// Where a machine's sockets and files are.
#[derive(Debug, Clone)]
pub struct Places {
    /// The socket on which forge listens for QEMU's QMP.
    pub qmp: PathBuf,
    /// The guest agent's socket.
    pub agent: PathBuf,
    /// The serial console's socket.
    pub serial: PathBuf,
    /// The serial console's log.
    pub serial_log: PathBuf,
    /// The SMBIOS system record, when the machine has a serial number.
    pub smbios: PathBuf,
    /// swtpm's socket.
    pub tpm: PathBuf,
}

/// The id of the guest agent's port.
pub const AGENT_PORT: &str = "agent0";

/// How many disks or CDs one AHCI controller takes.
const AHCI_PORTS: usize = 6;

/// Returns QEMU's arguments, without the program. None of them is a secret.
///
/// The machine starts stopped, so that no event is missed before QMP is read, and stays, stopped,
/// when the guest powers off or panics, so that its screen can still be taken.
#[must_use]
pub fn machine_args(spec: &MachineSpec, places: &Places) -> Vec<String> {
    let mut args = Args::default();
    args.flag("-nodefaults").flag("-no-user-config").flag("-S");
    args.add("-display", "none");
    base_args(&mut args, spec);
    firmware_args(&mut args, spec);
    control_args(&mut args, spec, places);
    smbios_args(&mut args, spec, places);
    disks_args(&mut args, spec);
    for (index, nic) in spec.nics.iter().enumerate() {
        nic_args(&mut args, index, nic);
    }
    args.add("-object", "rng-random,id=rng0,filename=/dev/urandom");
    args.add("-device", "virtio-rng-pci,rng=rng0");
    args.add("-device", "VGA");
    args.add("-device", "pvpanic");
    args.0
}

/// Returns the product name of the chipset as QEMU's own SMBIOS record has it.
#[must_use]
pub fn product(chipset: Chipset) -> &'static str {
    match chipset {
        Chipset::Q35 => "Standard PC (Q35 + ICH9, 2009)",
        Chipset::I440fx => "Standard PC (i440FX + PIIX, 1996)",
    }
}

fn base_args(args: &mut Args, spec: &MachineSpec) {
    let chipset = match spec.chipset {
        Chipset::Q35 => "q35",
        Chipset::I440fx => "pc",
    };
    let flash = match spec.firmware {
        Firmware::Bios => "",
        Firmware::Uefi { .. } => ",pflash0=code,pflash1=vars",
    };
    args.add("-machine", format!("{chipset}{flash}"));
    args.add("-accel", spec.accel.name());
    args.add("-cpu", cpu(&spec.cpu));
    args.add("-smp", format!("cpus={0},sockets=1,cores={0},threads=1", spec.cores));
    args.add("-m", format!("{}M", spec.memory_mib));
    args.add("-rtc", "base=utc");
    let on_reset = match spec.on_reset {
        OnReset::Restart => "reset",
        OnReset::End => "shutdown",
    };
    args.add("-action", format!("reboot={on_reset},shutdown=pause,panic=pause"));
    // Nothing but what has a boot index: no network boot, no surprise.
    args.add("-boot", "strict=on,menu=off");
}

/// Returns the CPU option: the x86-64 levels are Proxmox's own models (qemu-server,
/// `src/PVE/QemuServer/CPUConfig.pm`), told to QEMU as the features they stand for.
fn cpu(model: &str) -> String {
    let levels: &[&[&str]] = match model {
        "x86-64-v2" => &[V2],
        "x86-64-v2-AES" => &[V2, AES],
        "x86-64-v3" => &[V2, AES, V3],
        "x86-64-v4" => &[V2, AES, V3, V4],
        _ => return model.to_owned(),
    };
    let features = levels.concat().into_iter().map(|name| format!(",{name}=on"));
    "qemu64".to_owned() + &features.collect::<String>()
}

const V2: &[&str] = &["popcnt", "pni", "sse4.1", "sse4.2", "ssse3"];
const AES: &[&str] = &["aes"];
const V3: &[&str] = &["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"];
const V4: &[&str] = &["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"];

fn firmware_args(args: &mut Args, spec: &MachineSpec) {
    if let Firmware::Uefi { code, vars } = &spec.firmware {
        flash_args(args, "code", code, true);
        flash_args(args, "vars", vars, false);
    }
}

fn flash_args(args: &mut Args, node: &str, flash: &Flash, read_only: bool) {
    let mode = if read_only { ",read-only=on" } else { "" };
    args.add(
        "-blockdev",
        format!("driver=file,node-name={node}-file,filename={}{mode}", escape_path(&flash.path)),
    );
    args.add("-blockdev", format!("driver={},node-name={node},file={node}-file{mode}", flash.format.name()));
}

fn control_args(args: &mut Args, spec: &MachineSpec, places: &Places) {
    // QEMU connects to forge, which listens already: nothing to poll for.
    args.add("-chardev", format!("socket,id=qmp,path={}", escape_path(&places.qmp)));
    args.add("-mon", "chardev=qmp,mode=control");
    if spec.agent {
        args.add(
            "-chardev",
            format!("socket,id=agent,path={},server=on,wait=off", escape_path(&places.agent)),
        );
        args.add("-device", "virtio-serial-pci,id=virtio-serial0");
        args.add(
            "-device",
            format!("virtserialport,chardev=agent,id={AGENT_PORT},name=org.qemu.guest_agent.0"),
        );
    }
    if spec.serial {
        let (socket, log) = (escape_path(&places.serial), escape_path(&places.serial_log));
        args.add("-chardev", format!("socket,id=serial,path={socket},server=on,wait=off,logfile={log}"));
        args.add("-device", "isa-serial,chardev=serial");
    }
    if spec.tpm {
        args.add("-chardev", format!("socket,id=tpm,path={}", escape_path(&places.tpm)));
        args.add("-tpmdev", "emulator,id=tpm0,chardev=tpm");
        args.add("-device", "tpm-tis,tpmdev=tpm0");
    }
}

fn smbios_args(args: &mut Args, spec: &MachineSpec, places: &Places) {
    args.add("-uuid", spec.uuid.to_string());
    if spec.serial_number.is_some() {
        args.add("-smbios", format!("file={}", escape_path(&places.smbios)));
    }
}

fn disks_args(args: &mut Args, spec: &MachineSpec) {
    let mut buses = Buses { chipset: spec.chipset, ..Buses::default() };
    let first_index = match spec.boot {
        Boot::Disk => 0,
        Boot::Cdrom => 1,
    };
    for (index, disk) in spec.disks.iter().enumerate() {
        let boot = (index == 0).then_some(first_index);
        blockdev_args(args, index, disk);
        disk_args(args, &mut buses, spec.scsi_controller, index, disk, boot);
    }
    for (index, path) in spec.cdroms.iter().enumerate() {
        let boot = (index == 0 && spec.boot == Boot::Cdrom).then_some(0);
        args.add(
            "-blockdev",
            format!("driver=file,node-name=cd{index},filename={},read-only=on", escape_path(path)),
        );
        let bus = buses.next_port(args);
        args.add("-device", format!("ide-cd,bus={bus},drive=cd{index},id=cdrom{index}{}", bootindex(boot)));
    }
}

/// A build's disk matters only if the build ends well, and a host that crashes ends it badly: so the
/// guest's flushes stay in the host's memory, which saves minutes in an installer.
fn blockdev_args(args: &mut Args, index: usize, disk: &DiskSpec) {
    let discard = if disk.discard { ",discard=unmap" } else { "" };
    let read_only = if disk.read_only { ",read-only=on" } else { "" };
    let common = format!(",cache.no-flush=on{discard}{read_only}");
    args.add(
        "-blockdev",
        format!("driver=file,node-name=file{index},filename={}{common}", escape_path(&disk.path)),
    );
    let driver = super::img::format_name(disk.format);
    args.add("-blockdev", format!("driver={driver},node-name=disk{index},file=file{index}{common}"));
}

fn disk_args(
    args: &mut Args,
    buses: &mut Buses,
    controller: ScsiController,
    index: usize,
    disk: &DiskSpec,
    boot: Option<u32>,
) {
    let tail = format!("drive=disk{index},id=drive{index}{}", bootindex(boot));
    let ssd = if disk.ssd { ",rotation_rate=1" } else { "" };
    match disk.bus {
        DiskBus::Virtio => {
            let thread = iothread(args, index, disk.iothread);
            args.add("-device", format!("virtio-blk-pci,{tail}{thread}"));
        }
        DiskBus::Scsi => {
            let (bus, unit) = buses.next_scsi(args, controller, index, disk.iothread);
            args.add("-device", format!("scsi-hd,bus={bus},scsi-id={unit},{tail}{ssd}"));
        }
        DiskBus::Sata => {
            let bus = buses.next_port(args);
            args.add("-device", format!("ide-hd,bus={bus},{tail}{ssd}"));
        }
    }
}

fn iothread(args: &mut Args, index: usize, wanted: bool) -> String {
    if !wanted {
        return String::new();
    }
    args.add("-object", format!("iothread,id=iothread{index}"));
    format!(",iothread=iothread{index}")
}

fn bootindex(boot: Option<u32>) -> String {
    boot.map(|index| format!(",bootindex={index}")).unwrap_or_default()
}

/// Hands out places on the controllers, and adds controllers as they fill up.
#[derive(Default)]
struct Buses {
    chipset: Chipset,
    ports: usize,
    scsi_units: usize,
}

impl Buses {
    /// Returns the next AHCI port; Q35 has one controller built in, called `ide`.
    fn next_port(&mut self, args: &mut Args) -> String {
        let (controller, port) = (self.ports / AHCI_PORTS, self.ports % AHCI_PORTS);
        self.ports += 1;
        if self.chipset == Chipset::Q35 && controller == 0 {
            return format!("ide.{port}");
        }
        if port == 0 {
            args.add("-device", format!("ich9-ahci,id=ahci{controller}"));
        }
        format!("ahci{controller}.{port}")
    }

    /// Returns the bus and unit for the disk at `index`.
    fn next_scsi(
        &mut self,
        args: &mut Args,
        controller: ScsiController,
        index: usize,
        iothread_wanted: bool,
    ) -> (String, usize) {
        let unit = self.scsi_units;
        self.scsi_units += 1;
        match controller {
            ScsiController::VirtioScsiPci => {
                if unit == 0 {
                    args.add("-device", "virtio-scsi-pci,id=scsi0");
                }
                ("scsi0.0".to_owned(), unit)
            }
            ScsiController::VirtioScsiSingle => {
                let thread = iothread(args, index, iothread_wanted);
                args.add("-device", format!("virtio-scsi-pci,id=scsi{unit}{thread}"));
                (format!("scsi{unit}.0"), 0)
            }
        }
    }
}

fn nic_args(args: &mut Args, index: usize, nic: &NicSpec) {
    let network = &nic.network;
    let mut netdev = vec![format!("user,id=net{index}")];
    netdev.extend(network.net.as_deref().map(|net| format!("net={}", escape(net))));
    netdev.extend(network.dhcp_start.map(|start| format!("dhcpstart={start}")));
    netdev.extend(network.restrict.then(|| "restrict=on".to_owned()));
    netdev.extend(network.forwards.iter().map(|forward| {
        // Port 0 lets the kernel choose a free one: two builds cannot meet.
        let address = forward.address.map(|address| address.to_string()).unwrap_or_default();
        format!("hostfwd=tcp:127.0.0.1:0-{address}:{}", forward.port)
    }));
    args.add("-netdev", netdev.join(","));
    let model = match nic.model {
        NicModel::Virtio => "virtio-net-pci",
        NicModel::E1000e => "e1000e",
    };
    // Without a ROM nothing tries to boot from the network, and no ROM package is needed.
    args.add("-device", format!("{model},netdev=net{index},mac={},romfile=", nic.mac));
}

#[derive(Default)]
struct Args(Vec<String>);

impl Args {
    fn flag(&mut self, name: &str) -> &mut Self {
        self.0.push(name.to_owned());
        self
    }

    fn add(&mut self, name: &str, value: impl Into<String>) {
        self.0.extend([name.to_owned(), value.into()]);
    }
}

/// Returns a value in which QEMU takes no comma for the end.
fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

fn escape_path(path: &Path) -> String {
    escape(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_are_doubled() {
        assert_eq!(escape_path(Path::new("/a,b/c,,d")), "/a,,b/c,,,,d");
    }

    #[test]
    fn proxmox_levels_become_features() {
        assert_eq!(cpu("max"), "max");
        assert_eq!(cpu("x86-64-v2-AES"), "qemu64,popcnt=on,pni=on,sse4.1=on,sse4.2=on,ssse3=on,aes=on");
        assert!(
            cpu("x86-64-v4").starts_with("qemu64,popcnt=on") && cpu("x86-64-v4").ends_with("avx512vl=on")
        );
    }
}
