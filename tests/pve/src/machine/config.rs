//! Reads a VM's stored configuration, as far as QEMU's arguments come from it.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::firmware::{Firmware, firmware};
use crate::hypervisor::{Spec, Volume};

type Pairs = BTreeMap<String, String>;

/// A VM's configuration, parsed.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) name: String,
    /// QEMU's name of the machine type.
    pub(super) machine: String,
    pub(super) q35: bool,
    pub(super) uefi: Option<Uefi>,
    pub(super) tpm: Option<Tpm>,
    /// QEMU's CPU model with its flags.
    pub(super) cpu: String,
    pub(super) kvm: bool,
    pub(super) sockets: u32,
    pub(super) cores: u32,
    pub(super) vcpus: u32,
    pub(super) memory_mib: u32,
    pub(super) balloon: bool,
    pub(super) acpi: bool,
    pub(super) local_time: bool,
    pub(super) scsihw: String,
    /// In the order in which Proxmox hands them to QEMU.
    pub(super) drives: Vec<Drive>,
    pub(super) nics: Vec<Nic>,
    pub(super) agent: Option<AgentPort>,
    /// The numbers of the serial ports that are sockets.
    pub(super) serials: Vec<u32>,
    pub(super) display: Display,
    /// Fields of the SMBIOS system record, decoded.
    pub(super) smbios: Vec<(String, String)>,
    pub(super) vmgenid: Option<String>,
    pub(super) rng: Option<Rng>,
    /// Whether a reset of the guest ends the machine.
    pub(super) reset_ends: bool,
}

/// Firmware, and the volume for its variables.
#[derive(Debug)]
pub(super) struct Uefi {
    pub(super) firmware: Firmware,
    pub(super) variables: Option<Volume>,
}

#[derive(Debug)]
pub(super) struct Tpm {
    pub(super) state: Volume,
    pub(super) version_2: bool,
}

#[derive(Debug)]
pub(super) struct Drive {
    pub(super) id: String,
    pub(super) bus: Bus,
    pub(super) index: u32,
    /// None: a CD-ROM drive without a medium.
    pub(super) volume: Option<Volume>,
    pub(super) cdrom: bool,
    pub(super) iothread: bool,
    pub(super) discard: bool,
    pub(super) ssd: bool,
    pub(super) read_only: bool,
    pub(super) serial: Option<String>,
    pub(super) boot: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bus {
    Ide,
    Scsi,
    Virtio,
    Sata,
}

#[derive(Debug)]
pub(super) struct Nic {
    pub(super) id: String,
    pub(super) index: u32,
    pub(super) model: String,
    pub(super) mac: String,
    pub(super) bridge: Option<String>,
    pub(super) tag: Option<u16>,
    /// How many packet queues; one and none are the same.
    pub(super) queues: u32,
    pub(super) boot: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AgentPort {
    Virtio,
    Isa,
}

/// What the guest draws on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Display {
    /// A device of QEMU's, seen over VNC.
    Vga(&'static str),
    /// A serial port is the console: no graphics, no VNC.
    Serial,
    None,
}

#[derive(Debug)]
pub(super) struct Rng {
    pub(super) source: String,
    /// Bytes per period in milliseconds; none: no limit.
    pub(super) limit: Option<(u32, u32)>,
}

impl Config {
    /// # Errors
    /// In Proxmox's words where it refuses such a VM too.
    pub(super) fn parse(spec: &Spec) -> Result<Self, String> {
        let get = |key: &str| spec.config.get(key).map(String::as_str);
        let machine = properties(get("machine").unwrap_or("pc"), "type");
        let machine = machine.get("type").map_or("pc", String::as_str);
        let machine = machine.split("+pve").next().unwrap_or(machine).to_owned();
        let q35 = machine.contains("q35");
        let kvm = !matches!(get("kvm"), Some(value) if !truth(value));
        let sockets = number(&spec.config, "sockets", 1)?;
        let cores = number(&spec.config, "cores", 1)?;
        let boot = boot_indices(&spec.config);
        let windows = get("ostype").is_some_and(is_windows);
        Ok(Self {
            name: get("name").map_or_else(|| format!("vm{}", spec.vmid), str::to_owned),
            q35,
            uefi: uefi(spec, q35)?,
            tpm: tpm(spec)?,
            cpu: cpu(get("cpu"), kvm)?,
            kvm,
            sockets,
            cores,
            vcpus: number(&spec.config, "vcpus", sockets * cores)?,
            memory_mib: memory(get("memory").unwrap_or("512"))?,
            balloon: get("balloon") != Some("0"),
            acpi: get("acpi").is_none_or(truth),
            local_time: get("localtime").map_or(windows, truth),
            scsihw: get("scsihw").unwrap_or("lsi").to_owned(),
            drives: drives(spec, &boot)?,
            nics: nics(&spec.config, &boot)?,
            agent: agent(get("agent")),
            serials: serials(&spec.config)?,
            display: display(get("vga"))?,
            smbios: get("smbios1").map_or(Ok(Vec::new()), smbios)?,
            vmgenid: get("vmgenid").filter(|value| *value != "0").map(str::to_owned),
            rng: get("rng0").map(rng).transpose()?,
            reset_ends: get("reboot").is_some_and(|value| !truth(value)),
            machine,
        })
    }
}

/// Splits `value,key=value,…`; a part without a key gets the key `default`.
fn properties(text: &str, default: &str) -> Pairs {
    let pair = |part: &str| match part.split_once('=') {
        Some((key, value)) => (key.trim().to_owned(), value.trim().to_owned()),
        None => (default.to_owned(), part.trim().to_owned()),
    };
    text.split(',').filter(|part| !part.trim().is_empty()).map(pair).collect()
}

/// Returns whether a boolean of a property string is set.
fn truth(value: &str) -> bool {
    ["1", "on", "yes", "true"].iter().any(|yes| yes.eq_ignore_ascii_case(value))
}

fn flag(pairs: &Pairs, key: &str) -> bool {
    pairs.get(key).is_some_and(|value| truth(value))
}

fn number(config: &Pairs, key: &str, default: u32) -> Result<u32, String> {
    let Some(value) = config.get(key) else { return Ok(default) };
    value.parse().map_err(|_| format!("unable to parse value of '{key}' - '{value}' is no number"))
}

fn memory(value: &str) -> Result<u32, String> {
    let pairs = properties(value, "current");
    number(&pairs, "current", 512)
}

pub(crate) fn is_windows(ostype: &str) -> bool {
    ["wxp", "w2k", "wvista", "win"].iter().any(|name| ostype.starts_with(name))
}

fn volume(spec: &Spec, volid: &str) -> Result<Volume, String> {
    spec.volumes.get(volid).cloned().ok_or_else(|| format!("volume '{volid}' does not exist"))
}

fn uefi(spec: &Spec, q35: bool) -> Result<Option<Uefi>, String> {
    if spec.config.get("bios").is_none_or(|bios| bios != "ovmf") {
        return Ok(None);
    }
    let disk = spec.config.get("efidisk0").map(|value| properties(value, "file"));
    let variables = disk.as_ref().and_then(|disk| disk.get("file"));
    let variables = variables.map(|volid| volume(spec, volid)).transpose()?;
    let firmware = firmware(spec.config.get("efidisk0").map_or("", String::as_str), q35);
    for (file, what) in [(&firmware.code, "base"), (&firmware.vars, "vars")] {
        if !file.is_file() {
            return Err(format!("EFI {what} image '{}' not found", file.display()));
        }
    }
    Ok(Some(Uefi { firmware, variables }))
}

/// Returns the properties of `efidisk0` that choose the firmware: 4 MB images, keys enrolled.
pub(super) fn efi_properties(efidisk: &str) -> (bool, bool) {
    let pairs = properties(efidisk, "file");
    (pairs.get("efitype").is_some_and(|kind| kind == "4m"), flag(&pairs, "pre-enrolled-keys"))
}

fn tpm(spec: &Spec) -> Result<Option<Tpm>, String> {
    let Some(value) = spec.config.get("tpmstate0") else { return Ok(None) };
    let pairs = properties(value, "file");
    let state = volume(spec, pairs.get("file").map_or("", String::as_str))?;
    let version_2 = pairs.get("version").is_some_and(|version| version.starts_with("v2"));
    Ok(Some(Tpm { state, version_2 }))
}

/// Returns QEMU's `-cpu`: the x86-64 levels are Proxmox's own models over `qemu64` (qemu-server,
/// `PVE/QemuServer/CPUConfig.pm`). Without KVM nothing is enforced.
fn cpu(value: Option<&str>, kvm: bool) -> Result<String, String> {
    let pairs = properties(value.unwrap_or_default(), "cputype");
    let model = pairs.get("cputype").map_or(if kvm { "kvm64" } else { "qemu64" }, String::as_str);
    if let Some(name) = model.strip_prefix("custom-") {
        return Err(format!("custom cpu model '{name}' not found"));
    }
    let level = level_flags(model);
    let mut cpu = if level.is_some() { "qemu64" } else { model }.to_owned();
    let mut add = |flag: &str| {
        cpu.push(',');
        cpu.push_str(flag);
    };
    if kvm && model != "host" {
        add("enforce");
    }
    if model == "kvm64" {
        add("+lahf_lm");
    }
    if model == "kvm64" || model == "kvm32" {
        add("+sep");
    }
    level.into_iter().flatten().for_each(|flag| add(&format!("+{flag}")));
    pairs.get("flags").into_iter().flat_map(|flags| flags.split(';')).for_each(add);
    if flag(&pairs, "hidden") {
        cpu += ",kvm=off";
    }
    Ok(cpu)
}

fn level_flags(model: &str) -> Option<Vec<&'static str>> {
    const V2: &[&str] = &["popcnt", "pni", "sse4.1", "sse4.2", "ssse3"];
    const AES: &[&str] = &["aes"];
    const V3: &[&str] = &["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"];
    const V4: &[&str] = &["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"];
    let levels: &[&[&str]] = match model {
        "x86-64-v2" => &[V2],
        "x86-64-v2-AES" => &[V2, AES],
        "x86-64-v3" => &[V2, AES, V3],
        "x86-64-v4" => &[V2, AES, V3, V4],
        _ => return None,
    };
    Some(levels.concat())
}

/// Splits `virtio0` into its bus and index; other keys are no drives.
fn bus_of(key: &str) -> Option<(Bus, u32)> {
    let digits = key.find(|c: char| c.is_ascii_digit())?;
    let index = key[digits..].parse().ok()?;
    let (bus, count) = match &key[..digits] {
        "ide" => (Bus::Ide, 4),
        "scsi" => (Bus::Scsi, 31),
        "virtio" => (Bus::Virtio, 16),
        "sata" => (Bus::Sata, 6),
        _ => return None,
    };
    (index < count).then_some((bus, index))
}

/// Returns the configuration's drive keys in Proxmox's order: ide, scsi, virtio, sata.
fn drive_keys(config: &Pairs) -> Vec<(&str, Bus, u32)> {
    let mut keys: Vec<_> =
        config.keys().filter_map(|key| bus_of(key).map(|(bus, index)| (key.as_str(), bus, index))).collect();
    keys.sort_by_key(|&(_, bus, index)| (bus as u8, index));
    keys
}

fn drives(spec: &Spec, boot: &BTreeMap<String, u32>) -> Result<Vec<Drive>, String> {
    let drive = |(key, bus, index): (&str, Bus, u32)| {
        let pairs = properties(&spec.config[key], "file");
        let volid = pairs.get("file").map_or("", String::as_str);
        let volume = match volid {
            "none" => None,
            "cdrom" => return Err(format!("{key}: no physical CD-ROM drive on this node")),
            _ => Some(volume(spec, volid)?),
        };
        Ok(Drive {
            id: key.to_owned(),
            bus,
            index,
            volume,
            cdrom: pairs.get("media").is_some_and(|media| media == "cdrom"),
            iothread: flag(&pairs, "iothread"),
            discard: pairs.get("discard").is_some_and(|value| value == "on"),
            ssd: flag(&pairs, "ssd"),
            read_only: flag(&pairs, "ro"),
            serial: pairs.get("serial").map(|serial| percent_decode(serial)),
            boot: boot.get(key).copied(),
        })
    };
    drive_keys(&spec.config).into_iter().map(drive).collect()
}

/// Returns a text without its percent-encoding.
pub(crate) fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
        if let Some(byte) = after.get(..2).filter(|_| first == b'%').and_then(hex) {
            bytes.push(byte);
            rest = &after[2..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn nics(config: &Pairs, boot: &BTreeMap<String, u32>) -> Result<Vec<Nic>, String> {
    let nic = |(key, index): (&str, u32)| {
        let Net { model, mac, pairs } = net(key, &config[key])?;
        let tag = pairs.get("tag").map(|tag| tag.parse().map_err(|_| format!("{key}: bad VLAN tag '{tag}'")));
        Ok(Nic {
            id: key.to_owned(),
            index,
            model: if model == "virtio" { "virtio-net-pci".to_owned() } else { model },
            mac,
            bridge: pairs.get("bridge").cloned(),
            tag: tag.transpose()?,
            queues: pairs.get("queues").and_then(|queues| queues.parse().ok()).unwrap_or(0),
            boot: boot.get(key).copied(),
        })
    };
    net_keys(config).into_iter().map(nic).collect()
}

/// Returns the configuration's `netN` keys by number.
pub(crate) fn net_keys(config: &Pairs) -> Vec<(&str, u32)> {
    let number = |key: &str| key.strip_prefix("net")?.parse::<u32>().ok().filter(|index| *index < 32);
    let mut keys: Vec<_> =
        config.keys().filter_map(|key| number(key).map(|index| (key.as_str(), index))).collect();
    keys.sort_by_key(|&(_, index)| index);
    keys
}

/// A NIC's value, split.
pub(crate) struct Net {
    pub(crate) model: String,
    pub(crate) mac: String,
    pub(crate) pairs: Pairs,
}

/// Splits a NIC's value: `virtio=MAC,bridge=…`, or `model=virtio,macaddr=MAC,…`.
pub(crate) fn net(key: &str, value: &str) -> Result<Net, String> {
    const OTHERS: &[&str] = &[
        "model",
        "macaddr",
        "bridge",
        "tag",
        "firewall",
        "link_down",
        "mtu",
        "queues",
        "rate",
        "trunks",
        "host-tunnel",
    ];
    let pairs = properties(value, "model");
    let short = pairs.iter().find(|(name, _)| !OTHERS.contains(&name.as_str()));
    let (model, mac) = match short {
        Some((model, mac)) => (Some(model), Some(mac)),
        None => (pairs.get("model"), pairs.get("macaddr")),
    };
    let model = model.ok_or_else(|| format!("unable to parse network options of '{key}'"))?.clone();
    let mac = mac.ok_or_else(|| format!("network interface '{key}' has no mac address"))?.clone();
    Ok(Net { model, mac, pairs })
}

/// Returns the boot index of each device in the boot order: 100 and up as listed, or for the old
/// letters the boot disk from 100, the CD-ROMs from 200, the NICs from 300 (`cdn`, the default).
fn boot_indices(config: &Pairs) -> BTreeMap<String, u32> {
    let boot = config.get("boot").map_or("cdn", |value| value.trim());
    if let Some(order) = boot.strip_prefix("order=") {
        let devices = order.split([';', ',', ' ']).filter(|device| !device.is_empty());
        return devices.zip(100..).map(|(device, index)| (device.to_owned(), index)).collect();
    }
    let letters = boot.strip_prefix("legacy=").unwrap_or(boot);
    let mut indices = BTreeMap::new();
    for (letter, first) in letters.chars().zip((100..).step_by(100)) {
        let devices: Vec<&str> = match letter {
            'c' => config.get("bootdisk").map(String::as_str).into_iter().collect(),
            'd' => drive_keys(config)
                .into_iter()
                .map(|(key, ..)| key)
                .filter(|key| is_cdrom(config, key))
                .collect(),
            'n' => net_keys(config).into_iter().map(|(key, _)| key).collect(),
            _ => Vec::new(),
        };
        indices.extend(devices.into_iter().zip(first..).map(|(device, index)| (device.to_owned(), index)));
    }
    indices
}

/// Returns whether a drive is a CD-ROM that may be booted: a cloud-init drive is not.
fn is_cdrom(config: &Pairs, key: &str) -> bool {
    let value = &config[key];
    value.contains("media=cdrom") && !value.contains("cloudinit")
}

fn agent(value: Option<&str>) -> Option<AgentPort> {
    let pairs = properties(value?, "enabled");
    let kind = pairs.get("type").map_or("virtio", String::as_str);
    let port = if kind == "isa" { AgentPort::Isa } else { AgentPort::Virtio };
    flag(&pairs, "enabled").then_some(port)
}

fn serials(config: &Pairs) -> Result<Vec<u32>, String> {
    let mut ports = Vec::new();
    for port in 0..4 {
        match config.get(&format!("serial{port}")).map(String::as_str) {
            None => {}
            Some("socket") => ports.push(port),
            Some(_) => return Err("no such serial device".to_owned()),
        }
    }
    Ok(ports)
}

fn display(value: Option<&str>) -> Result<Display, String> {
    let pairs = properties(value.unwrap_or("std"), "type");
    Ok(match pairs.get("type").map_or("std", String::as_str) {
        "std" => Display::Vga("VGA"),
        "cirrus" => Display::Vga("cirrus-vga"),
        "vmware" => Display::Vga("vmware-svga"),
        "virtio" => Display::Vga("virtio-vga"),
        "none" => Display::None,
        kind if kind.starts_with("serial") => Display::Serial,
        kind => return Err(format!("no display of type '{kind}' on this node")),
    })
}

/// Returns the fields of `smbios1`; with `base64=1` all but the UUID are encoded.
fn smbios(value: &str) -> Result<Vec<(String, String)>, String> {
    let pairs = properties(value, "uuid");
    let encoded = flag(&pairs, "base64");
    let decode = |(key, value): (String, String)| {
        if !encoded || key == "uuid" {
            return Ok((key, value));
        }
        let bytes = BASE64_STANDARD.decode(&value).map_err(|error| format!("smbios1: {key}: {error}"))?;
        Ok((key, String::from_utf8_lossy(&bytes).into_owned()))
    };
    pairs.into_iter().filter(|(key, value)| key != "base64" && !value.is_empty()).map(decode).collect()
}

fn rng(value: &str) -> Result<Rng, String> {
    let pairs = properties(value, "source");
    let source = pairs.get("source").map_or("/dev/urandom", String::as_str).to_owned();
    let bytes = number(&pairs, "max_bytes", 1024)?;
    let period = number(&pairs, "period", 1000)?;
    Ok(Rng { source, limit: (bytes > 0).then_some((bytes, period)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Pairs {
        let pair = |line: &str| line.split_once(": ").map(|(key, value)| (key.to_owned(), value.to_owned()));
        text.lines().filter_map(pair).collect()
    }

    #[test]
    fn the_boot_order_is_the_list_or_the_old_letters() {
        let machine =
            "ide0: local:9/vm-9-cloudinit.raw,media=cdrom\nide2: none,media=cdrom\nvirtio0: x:y\nnet0: z\n";
        let indices = |boot: &str| -> Vec<(String, u32)> {
            boot_indices(&pairs(&format!("{machine}{boot}"))).into_iter().collect()
        };
        let named = |list: &[(&str, u32)]| -> Vec<(String, u32)> {
            list.iter().map(|(name, index)| ((*name).to_owned(), *index)).collect()
        };
        assert_eq!(indices("boot: order=virtio0;ide2"), named(&[("ide2", 101), ("virtio0", 100)]));
        assert_eq!(indices(""), named(&[("ide2", 200), ("net0", 300)]));
        assert_eq!(indices("boot: cd\nbootdisk: virtio0"), named(&[("ide2", 200), ("virtio0", 100)]));
        assert_eq!(indices("boot:  "), named(&[]));
    }

    #[test]
    fn nics_are_written_in_two_ways() {
        for value in
            ["virtio=BC:24:11:00:00:01,bridge=vmbr0", "model=virtio,macaddr=BC:24:11:00:00:01,bridge=vmbr0"]
        {
            let net = net("net0", value).unwrap();
            assert_eq!((net.model.as_str(), net.mac.as_str()), ("virtio", "BC:24:11:00:00:01"));
            assert_eq!(net.pairs["bridge"], "vmbr0");
        }
        let error = net("net3", "virtio,bridge=vmbr0").err().unwrap();
        assert_eq!(error, "network interface 'net3' has no mac address");
    }

    #[test]
    fn the_agent_is_on_only_when_enabled() {
        assert_eq!(agent(None), None);
        assert_eq!(agent(Some("0")), None);
        assert_eq!(agent(Some("enabled=0,fstrim_cloned_disks=1")), None);
        assert_eq!(agent(Some("1")), Some(AgentPort::Virtio));
        assert_eq!(agent(Some("enabled=1,type=isa")), Some(AgentPort::Isa));
    }

    #[test]
    fn cpus_are_qemus_models_with_flags() {
        assert_eq!(cpu(None, false).unwrap(), "qemu64");
        assert_eq!(cpu(None, true).unwrap(), "kvm64,enforce,+lahf_lm,+sep");
        assert_eq!(cpu(Some("host"), true).unwrap(), "host");
        assert_eq!(cpu(Some("max"), false).unwrap(), "max");
        assert_eq!(
            cpu(Some("cputype=x86-64-v2-AES,flags=+pcid;-avx"), false).unwrap(),
            "qemu64,+popcnt,+pni,+sse4.1,+sse4.2,+ssse3,+aes,+pcid,-avx"
        );
        assert_eq!(cpu(Some("custom-mine"), false).unwrap_err(), "custom cpu model 'mine' not found");
    }

    #[test]
    fn smbios_fields_are_decoded_when_they_say_so() {
        let fields = |value: &str| smbios(value).unwrap();
        let owned = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(
            fields("uuid=7b10d7af-b932-4c66-b2c3-3996152ec465,serial=a"),
            [owned("serial", "a"), owned("uuid", "7b10d7af-b932-4c66-b2c3-3996152ec465")]
        );
        assert_eq!(
            fields("base64=1,serial=Zm9yZ2U9aHR0cDovL3gvYSxi,uuid=u"),
            [owned("serial", "forge=http://x/a,b"), owned("uuid", "u")]
        );
        assert!(smbios("base64=1,serial=%%").is_err());
    }

    #[test]
    fn percent_encoding_is_undone_where_it_is_one() {
        assert_eq!(percent_decode("ssh-ed25519%20AAAA%2Bb%0A"), "ssh-ed25519 AAAA+b\n");
        assert_eq!(percent_decode("100%zz%4"), "100%zz%4");
    }
}
