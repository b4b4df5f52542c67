//! Turns a VM's configuration into QEMU's arguments, as qemu-server does where a guest can tell the
//! difference: devices, their PCI addresses (a NIC's name comes from them), boot order, firmware.
//!
//! Left out, because no guest of ours looks: USB with the tablet, throttle groups, hot-plug of CPUs
//! and memory, Hyper-V flags, PXE ROMs. Sources: qemu-server `PVE/QemuServer.pm`
//! (`config_to_command`), `PVE/QemuServer/{DriveDevice,PCI}.pm`, `pve-q35-4.0.cfg`.

use std::path::{Path, PathBuf};

use super::Forward;
use super::config::{AgentPort, Bus, Config, Display, Drive, Nic};
use crate::hypervisor::{Network, Spec, Volume};

/// How many ports a SATA controller has.
const SATA_PORTS: u32 = 6;

/// Where a machine's sockets and logs are.
#[derive(Debug, Clone)]
pub(super) struct Places {
    pub(super) folder: PathBuf,
}

impl Places {
    /// The socket on which the simulator listens for QEMU's QMP.
    pub(super) fn qmp(&self) -> PathBuf {
        self.folder.join("qmp")
    }
    pub(super) fn agent(&self) -> PathBuf {
        self.folder.join("qga")
    }
    pub(super) fn vnc(&self) -> PathBuf {
        self.folder.join("vnc")
    }
    pub(super) fn tpm(&self) -> PathBuf {
        self.folder.join("swtpm")
    }
    pub(super) fn serial(&self, port: u32) -> PathBuf {
        self.folder.join(format!("serial{port}"))
    }
    pub(super) fn serial_log(&self, port: u32) -> PathBuf {
        self.folder.join(format!("serial{port}.log"))
    }
    pub(super) fn qemu_log(&self) -> PathBuf {
        self.folder.join("qemu.log")
    }
    /// UEFI variables for a VM without `efidisk0`, gone at the next start.
    pub(super) fn uefi_vars(&self) -> PathBuf {
        self.folder.join("uefi-vars.fd")
    }
}

/// Returns the name of a NIC's tap on the host.
pub(super) fn tap_name(vmid: u32, nic: u32) -> String {
    format!("tap{vmid}i{nic}")
}

/// Returns QEMU's arguments, without the program. The machine starts stopped, so that no event is
/// missed before QMP is read. `vars_size` is that of the flash for UEFI's variables.
pub(super) fn machine_args(
    spec: &Spec,
    config: &Config,
    forwards: &[Forward],
    places: &Places,
    vars_size: u64,
) -> Vec<String> {
    let mut args = Args::default();
    args.add("-name", escape(&config.name));
    for flag in ["-nodefaults", "-no-user-config", "-S"] {
        args.0.push(flag.to_owned());
    }
    args.add("-chardev", format!("socket,id=qmp,path={}", path(&places.qmp())));
    args.add("-mon", "chardev=qmp,mode=control");
    base_args(&mut args, config);
    display_args(&mut args, config, places);
    bridge_args(&mut args, config);
    uefi_args(&mut args, config, places, vars_size);
    port_args(&mut args, config, places);
    small_devices_args(&mut args, config);
    drives_args(&mut args, config);
    for nic in &config.nics {
        nic_args(&mut args, spec, nic, forwards);
    }
    args.0
}

fn base_args(args: &mut Args, config: &Config) {
    let mut machine = config.machine.clone();
    if config.uefi.is_some() {
        machine += ",pflash0=pflash0,pflash1=drive-efidisk0";
    } else if config.display == Display::Serial || config.display == Display::None {
        // SeaBIOS talks on a serial display only without SMM.
        machine += ",smm=off";
    }
    if !config.acpi {
        machine += ",acpi=off";
    }
    args.add("-machine", machine);
    args.add("-accel", if config.kvm { "kvm" } else { "tcg" });
    args.add("-cpu", config.cpu.clone());
    let Config { sockets, cores, vcpus, .. } = config;
    args.add("-smp", format!("{vcpus},sockets={sockets},cores={cores},maxcpus={}", sockets * cores));
    args.add("-m", config.memory_mib.to_string());
    args.add("-boot", "menu=on,strict=on,reboot-timeout=1000");
    if config.reset_ends {
        args.0.push("-no-reboot".to_owned());
    }
    if config.local_time {
        args.add("-rtc", "base=localtime");
    }
    if !config.smbios.is_empty() {
        let field = |(key, value): &(String, String)| format!(",{key}={}", escape(value));
        args.add("-smbios", "type=1".to_owned() + &config.smbios.iter().map(field).collect::<String>());
    }
}

fn display_args(args: &mut Args, config: &Config, places: &Places) {
    match config.display {
        Display::Vga(device) => {
            let place = if config.q35 { "bus=pcie.0,addr=0x1" } else { "bus=pci.0,addr=0x2" };
            args.add("-device", format!("{device},id=vga,{place}"));
            args.add("-vnc", format!("unix:{},password=on", path(&places.vnc())));
        }
        Display::None => {
            args.add("-vga", "none");
            args.0.push("-nographic".to_owned());
        }
        Display::Serial => args.0.push("-nographic".to_owned()),
    }
}

/// Adds the PCI bridges that Proxmox gives each machine.
fn bridge_args(args: &mut Args, config: &Config) {
    if config.q35 {
        for port in 0..4 {
            let number = port + 1;
            args.add(
                "-device",
                format!(
                    "pcie-root-port,id=ich9-pcie-port-{number},multifunction=on,bus=pcie.0,\
                     addr=1c.{port},port={number},chassis={number}"
                ),
            );
        }
        args.add("-device", "i82801b11-bridge,id=pcidmi,bus=pcie.0,addr=1e.0");
        for bridge in 0..4 {
            let number = bridge + 1;
            let device = format!("pci-bridge,id=pci.{bridge},bus=pcidmi,addr={number}.0,chassis_nr={number}");
            args.add("-device", device);
        }
        return;
    }
    args.add("-device", "pci-bridge,id=pci.1,chassis_nr=1,bus=pci.0,addr=0x1e");
    args.add("-device", "pci-bridge,id=pci.2,chassis_nr=2,bus=pci.0,addr=0x1f");
    if config.scsihw == "virtio-scsi-single" {
        args.add("-device", "pci-bridge,id=pci.3,chassis_nr=3,bus=pci.0,addr=0x5");
    }
}

/// Adds the flash: code, and variables cut to their true size on a larger volume.
fn uefi_args(args: &mut Args, config: &Config, places: &Places, vars_size: u64) {
    let Some(uefi) = &config.uefi else { return };
    let code = path(&uefi.firmware.code);
    args.add("-blockdev", format!("driver=file,node-name=pflash0-file,filename={code},read-only=on"));
    args.add("-blockdev", "driver=raw,node-name=pflash0,file=pflash0-file,read-only=on");
    let temporary = Volume { path: places.uefi_vars(), format: "raw".to_owned() };
    let volume = uefi.variables.as_ref().unwrap_or(&temporary);
    args.add(
        "-blockdev",
        format!("driver=file,node-name=file-efidisk0,filename={},cache.no-flush=on", path(&volume.path)),
    );
    let size = if volume.format == "raw" { format!(",size={vars_size}") } else { String::new() };
    let driver = &volume.format;
    args.add("-blockdev", format!("driver={driver},node-name=drive-efidisk0,file=file-efidisk0{size}"));
}

fn port_args(args: &mut Args, config: &Config, places: &Places) {
    for &port in &config.serials {
        let (socket, log) = (path(&places.serial(port)), path(&places.serial_log(port)));
        args.add(
            "-chardev",
            format!("socket,id=serial{port},path={socket},server=on,wait=off,logfile={log}"),
        );
        args.add("-device", format!("isa-serial,chardev=serial{port}"));
    }
    if let Some(kind) = config.agent {
        args.add("-chardev", format!("socket,id=qga0,path={},server=on,wait=off", path(&places.agent())));
        match kind {
            AgentPort::Virtio => {
                args.add("-device", format!("virtio-serial-pci,id=qga0,{}", address("qga0")));
                args.add("-device", "virtserialport,chardev=qga0,id=agent0,name=org.qemu.guest_agent.0");
            }
            AgentPort::Isa => args.add("-device", "isa-serial,chardev=qga0"),
        }
    }
    if config.tpm.is_some() {
        args.add("-chardev", format!("socket,id=tpmchar,path={}", path(&places.tpm())));
        args.add("-tpmdev", "emulator,id=tpmdev,chardev=tpmchar");
        args.add("-device", "tpm-tis,tpmdev=tpmdev");
    }
}

fn small_devices_args(args: &mut Args, config: &Config) {
    if let Some(guid) = &config.vmgenid {
        args.add("-device", format!("vmgenid,guid={}", escape(guid)));
    }
    if let Some(rng) = &config.rng {
        args.add("-object", format!("rng-random,filename={},id=rng0", escape(&rng.source)));
        let limit = rng.limit.map(|(bytes, period)| format!(",max-bytes={bytes},period={period}"));
        args.add(
            "-device",
            format!("virtio-rng-pci,rng=rng0{},{}", limit.unwrap_or_default(), address("rng0")),
        );
    }
    if config.balloon {
        args.add(
            "-device",
            format!("virtio-balloon-pci,id=balloon0,{},free-page-reporting=on", address("balloon0")),
        );
    }
}

fn drives_args(args: &mut Args, config: &Config) {
    let mut controllers = Vec::new();
    for drive in &config.drives {
        controller_args(args, config, drive, &mut controllers);
        if let Some(volume) = &drive.volume {
            blockdev_args(args, drive, volume);
        }
        args.add("-device", device(config, drive));
    }
}

/// Adds the controller that a drive hangs on, if this is its first.
fn controller_args(args: &mut Args, config: &Config, drive: &Drive, known: &mut Vec<String>) {
    let (id, kind) = match drive.bus {
        Bus::Virtio => {
            if drive.iothread {
                args.add("-object", format!("iothread,id=iothread-{}", drive.id));
            }
            return;
        }
        Bus::Ide => return,
        Bus::Sata => (format!("ahci{}", drive.index / SATA_PORTS), "ahci".to_owned()),
        Bus::Scsi => {
            let kind = if config.scsihw == "virtio-scsi-single" { "virtio-scsi-pci" } else { &config.scsihw };
            (scsi_place(config, drive.index).0, kind.to_owned())
        }
    };
    if known.contains(&id) {
        return;
    }
    let mut controller = format!("{kind},id={id},{}", address(&id));
    if drive.bus == Bus::Sata {
        controller.push_str(",multifunction=on");
    }
    if config.scsihw == "virtio-scsi-single" && drive.bus == Bus::Scsi && drive.iothread {
        args.add("-object", format!("iothread,id=iothread-{id}"));
        controller = format!("{controller},iothread=iothread-{id}");
    }
    args.add("-device", controller);
    known.push(id);
}

/// Returns the controller of a SCSI drive and its number there.
fn scsi_place(config: &Config, index: u32) -> (String, u32) {
    let most = match config.scsihw.as_str() {
        "virtio-scsi-single" => return (format!("virtioscsi{index}"), 0),
        kind if kind.starts_with("lsi") => 7,
        _ => 256,
    };
    (format!("scsihw{}", index / most), index % most)
}

/// A simulated node's crash need not be survived: the guest's flushes stay in the host's memory,
/// which saves minutes in an installer.
fn blockdev_args(args: &mut Args, drive: &Drive, volume: &Volume) {
    let id = &drive.id;
    let mode = if drive.cdrom || drive.read_only { ",read-only=on" } else { ",cache.no-flush=on" };
    let discard = if drive.discard { ",discard=unmap" } else { "" };
    args.add(
        "-blockdev",
        format!("driver=file,node-name=file-{id},filename={}{mode}{discard}", path(&volume.path)),
    );
    let driver = &volume.format;
    args.add("-blockdev", format!("driver={driver},node-name=drive-{id},file=file-{id}{mode}{discard}"));
}

fn device(config: &Config, drive: &Drive) -> String {
    let (id, index) = (&drive.id, drive.index);
    let kind = if drive.cdrom { "cd" } else { "hd" };
    let place = match drive.bus {
        Bus::Virtio => format!("virtio-blk-pci,{}", address(id)),
        Bus::Scsi => {
            let (controller, unit) = scsi_place(config, index);
            let old = config.scsihw.starts_with("lsi") || config.scsihw == "pvscsi";
            let place =
                if old { format!("scsi-id={unit}") } else { format!("channel=0,scsi-id=0,lun={index}") };
            format!("scsi-{kind},bus={controller}.0,{place}")
        }
        // The built-in controller of q35 has one unit on each of its six buses.
        Bus::Ide if config.q35 => format!("ide-{kind},bus=ide.{},unit=0", index / 2 + 2 * (index % 2)),
        Bus::Ide => format!("ide-{kind},bus=ide.{},unit={}", index / 2, index % 2),
        Bus::Sata => format!("ide-{kind},bus=ahci{}.{}", index / SATA_PORTS, index % SATA_PORTS),
    };
    let medium = drive.volume.as_ref().map(|_| format!(",drive=drive-{id}"));
    let thread = (drive.iothread && drive.bus == Bus::Virtio).then(|| format!(",iothread=iothread-{id}"));
    let rotation = (drive.ssd && !drive.cdrom).then(|| ",rotation_rate=1".to_owned());
    let serial = drive.serial.as_ref().map(|serial| format!(",serial={}", escape(serial)));
    let options = [medium, Some(format!(",id={id}")), thread, rotation, serial];
    place + &options.into_iter().flatten().collect::<String>() + &bootindex(drive.boot)
}

fn nic_args(args: &mut Args, spec: &Spec, nic: &Nic, forwards: &[Forward]) {
    let id = &nic.id;
    let netdev = match spec.network {
        Network::Bridge => {
            let name = tap_name(spec.vmid, nic.index);
            let queues = if has_queues(nic) { format!(",queues={}", nic.queues) } else { String::new() };
            format!("tap,id={id},ifname={name},script=no,downscript=no{queues}")
        }
        Network::User => {
            let forwards = if nic.index == 0 { forwards } else { &[] };
            format!("user,id={id}") + &forwards.iter().map(forward).collect::<String>()
        }
    };
    args.add("-netdev", netdev);
    // Without a ROM nothing needs the ROMs' package; nothing boots from this network.
    // QEMU's user network has one queue; a device that has more works with it all the same.
    let queues = if has_queues(nic) {
        // One vector for each direction of each queue, one for changes and one for control.
        format!(",vectors={},mq=on,packed=on", 2 * nic.queues + 2)
    } else {
        String::new()
    };
    let device = format!(
        "{},mac={},netdev={id},{},id={id}{}{queues},romfile=",
        nic.model,
        nic.mac,
        address(id),
        bootindex(nic.boot)
    );
    args.add("-device", device);
}

fn has_queues(nic: &Nic) -> bool {
    nic.queues > 1 && nic.model == "virtio-net-pci"
}

fn forward(forward: &Forward) -> String {
    let address = forward.guest_address.map(|address| address.to_string()).unwrap_or_default();
    format!(",hostfwd=tcp:127.0.0.1:{}-{address}:{}", forward.port, forward.guest_port)
}

fn bootindex(boot: Option<u32>) -> String {
    boot.map(|index| format!(",bootindex={index}")).unwrap_or_default()
}

/// Returns the PCI address that Proxmox gives a device, the same on both chipsets; but a third SCSI
/// controller has a bridge of its own there.
fn address(id: &str) -> String {
    let (name, number) = id.split_at(id.find(|c: char| c.is_ascii_digit()).unwrap_or(id.len()));
    let number: u32 = number.parse().unwrap_or_default();
    let (bus, slot) = match (name, number) {
        ("balloon", _) => (0, 3),
        ("scsihw", 0..=1) => (0, 5 + number),
        ("ahci", _) => (0, 7),
        ("qga", _) => (0, 8),
        ("virtio", 0..=5) => (0, 10 + number),
        ("virtio", _) => (2, number - 5),
        ("net", 0..=5) => (0, 18 + number),
        ("net", _) => (1, number - 5),
        ("rng", _) => (1, 29),
        ("virtioscsi", _) => (3, 1 + number),
        ("scsihw", _) => (2, 27 + number),
        _ => unreachable!("no PCI device is called {id}"),
    };
    format!("bus=pci.{bus},addr={slot:#x}")
}

/// Doubles commas, which separate options.
fn escape(text: &str) -> String {
    text.replace(',', ",,")
}

fn path(path: &Path) -> String {
    escape(&path.to_string_lossy())
}

#[derive(Default)]
struct Args(Vec<String>);

impl Args {
    fn add(&mut self, option: &str, value: impl Into<String>) {
        self.0.push(option.to_owned());
        self.0.push(value.into());
    }
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
