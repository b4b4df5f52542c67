//! The cloud-init drive, as qemu-server writes it at each start.
//!
//! Source: qemu-server `PVE/QemuServer/Cloudinit.pm`. Not here: citype `opennebula`, and what Windows
//! gets instead.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

use sha1::{Digest as _, Sha1};

use crate::hypervisor::Volume;
use crate::machine::{is_windows, net, percent_decode};

/// The size of a cloud-init volume.
pub const VOLUME_SIZE: u64 = 4 * 1024 * 1024;

/// The most that the files of one drive may have together.
const FILES_MAX: usize = 3 * 1024 * 1024;

/// The most that a snippet may have.
const SNIPPET_MAX: usize = 1024 * 1024;

type Config = BTreeMap<String, String>;

/// What the node itself has in `/etc/resolv.conf`, for VMs without an own setting.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolver {
    /// The first three name servers.
    pub nameservers: Vec<String>,
    /// The search domains.
    pub search: Vec<String>,
}

/// Documents that replace the generated ones (`cicustom`).
#[derive(Debug, Clone, Default)]
pub struct Custom {
    /// Instead of the user data.
    pub user: Option<String>,
    /// Instead of the network configuration.
    pub network: Option<String>,
    /// Instead of the metadata.
    pub meta: Option<String>,
    /// Instead of nothing.
    pub vendor: Option<String>,
}

/// A drive's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drive {
    /// The volume's label.
    pub label: &'static str,
    /// Its files: path and content.
    pub files: Vec<(&'static str, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    NoCloud,
    ConfigDrive,
}

fn kind(config: &Config) -> Result<Kind, String> {
    let windows = config.get("ostype").is_some_and(|ostype| is_windows(ostype));
    match config.get("citype").map(String::as_str) {
        _ if windows => Err("cloud-init drives for Windows are not simulated".to_owned()),
        Some("nocloud") | None => Ok(Kind::NoCloud),
        Some("configdrive2") => Ok(Kind::ConfigDrive),
        Some(other) => Err(format!("missing cloudinit methods for format '{other}'")),
    }
}

/// Reads the documents that `cicustom` names.
///
/// # Errors
/// When one is missing or above 1 MiB.
pub fn custom(config: &Config, volumes: &BTreeMap<String, Volume>) -> Result<Custom, String> {
    let mut custom = Custom::default();
    let parts = config.get("cicustom").map(String::as_str).unwrap_or_default();
    for (name, volid) in parts.split(',').filter_map(|part| part.split_once('=')) {
        let place = match name {
            "user" => &mut custom.user,
            "network" => &mut custom.network,
            "meta" => &mut custom.meta,
            "vendor" => &mut custom.vendor,
            _ => return Err(format!("cicustom: property '{name}' is not defined in schema")),
        };
        let volume = volumes.get(volid).ok_or_else(|| format!("volume '{volid}' does not exist"))?;
        let text = fs::read_to_string(&volume.path)
            .map_err(|error| format!("can't open '{}' - {error}", volume.path.display()))?;
        if text.len() > SNIPPET_MAX {
            return Err(format!("'{}' is too long (> 1 MiB)", volume.path.display()));
        }
        *place = Some(text);
    }
    Ok(custom)
}

/// Returns what a VM's cloud-init drive holds.
///
/// # Errors
/// In Proxmox's words, when the settings make no drive.
pub fn drive(config: &Config, vmid: u32, resolver: &Resolver, custom: Custom) -> Result<Drive, String> {
    let kind = kind(config)?;
    let user = custom.user.unwrap_or_else(|| user_data(config, vmid));
    let network = match custom.network {
        Some(network) => network,
        None => network_config(config, resolver, kind)?,
    };
    let meta = custom.meta.unwrap_or_else(|| meta_data(kind, &user, &network));
    let vendor = custom.vendor.unwrap_or_default();
    if user.len() + network.len() + meta.len() + vendor.len() > FILES_MAX {
        return Err("Cloud-Init sum of snippets too big (> 3 MiB)".to_owned());
    }
    Ok(match kind {
        Kind::NoCloud => Drive {
            label: "cidata",
            files: vec![
                ("user-data", user),
                ("network-config", network),
                ("meta-data", meta),
                ("vendor-data", vendor),
            ],
        },
        Kind::ConfigDrive => Drive {
            label: "config-2",
            files: vec![
                ("openstack/latest/user_data", user),
                ("openstack/content/0000", network),
                ("openstack/latest/meta_data.json", meta),
                ("openstack/latest/vendor_data.json", vendor),
            ],
        },
    })
}

/// Returns what `cloudinit/dump` shows: `user`, `network` or `meta`, always the generated text.
///
/// # Errors
/// In Proxmox's words, when the settings make no text.
pub fn dump(config: &Config, vmid: u32, resolver: &Resolver, what: &str) -> Result<String, String> {
    let kind = kind(config)?;
    let user = user_data(config, vmid);
    if what == "user" {
        return Ok(user);
    }
    let network = network_config(config, resolver, kind)?;
    Ok(if what == "network" { network } else { meta_data(kind, &user, &network) })
}

fn user_data(config: &Config, vmid: u32) -> String {
    let get = |key: &str| config.get(key).map(String::as_str);
    let (hostname, fqdn) = names(config, vmid);
    let mut text = format!("#cloud-config\nhostname: {hostname}\nmanage_etc_hosts: true\nfqdn: {fqdn}\n");
    let mut line = |line: String| text += &(line + "\n");
    let user = get("ciuser");
    if let Some(user) = user {
        line(format!("user: {user}"));
    }
    if user == Some("root") {
        line("disable_root: False".to_owned());
    }
    if let Some(password) = get("cipassword") {
        line(format!("password: {password}"));
    }
    if let Some(keys) = get("sshkeys") {
        line("ssh_authorized_keys:".to_owned());
        let keys = percent_decode(keys);
        keys.split('\n').filter(|key| !key.trim().is_empty()).for_each(|key| line(format!("  - {key}")));
    }
    line("chpasswd:\n  expire: False".to_owned());
    if user != Some("root") {
        line("users:\n  - default".to_owned());
    }
    if get("ciupgrade") != Some("0") {
        line("package_upgrade: true".to_owned());
    }
    text
}

/// Returns the host name and the fully qualified one.
fn names(config: &Config, vmid: u32) -> (String, String) {
    let name = config.get("name").cloned().unwrap_or_else(|| format!("VM{vmid}"));
    match (name.split_once('.'), config.get("searchdomain")) {
        (Some((host, _)), _) => (host.to_owned(), name),
        (None, Some(domain)) => (name.clone(), format!("{name}.{domain}")),
        (None, None) => (name.clone(), name),
    }
}

/// Returns name servers and search domains.
fn dns(config: &Config, resolver: &Resolver) -> (Vec<String>, Vec<String>) {
    let words = |key: &str| -> Option<Vec<String>> {
        Some(config.get(key)?.split_whitespace().map(str::to_owned).collect())
    };
    (
        words("nameserver").unwrap_or_else(|| resolver.nameservers.clone()),
        words("searchdomain").unwrap_or_else(|| resolver.search.clone()),
    )
}

/// A NIC with an `ipconfigN`; one without gets nothing.
struct Nic<'a> {
    number: &'a str,
    mac: String,
    ip: Option<&'a str>,
    gateway: Option<&'a str>,
    ip6: Option<&'a str>,
    gateway6: Option<&'a str>,
}

/// Returns the NICs in Proxmox's order, which is that of their keys as text.
fn nics(config: &Config) -> Result<Vec<Nic<'_>>, String> {
    let mut nics = Vec::new();
    for (key, value) in config {
        let number = key.strip_prefix("net").filter(|number| number.parse::<u32>().is_ok());
        let Some(number) = number else { continue };
        let Some(ipconfig) = config.get(&format!("ipconfig{number}")) else { continue };
        let pairs: BTreeMap<_, _> = ipconfig.split(',').filter_map(|part| part.split_once('=')).collect();
        nics.push(Nic {
            number,
            mac: net(key, value)?.mac.to_lowercase(),
            ip: pairs.get("ip").copied(),
            gateway: pairs.get("gw").copied(),
            ip6: pairs.get("ip6").copied(),
            gateway6: pairs.get("gw6").copied(),
        });
    }
    Ok(nics)
}

/// Splits `10.0.0.5/24` into address and netmask.
fn address_and_mask(cidr: &str) -> Result<(&str, Ipv4Addr), String> {
    let (address, prefix) = cidr.split_once('/').ok_or_else(|| format!("not a CIDR: {cidr}"))?;
    let prefix: u32 =
        prefix.parse().ok().filter(|prefix| *prefix <= 32).ok_or_else(|| format!("not a CIDR: {cidr}"))?;
    Ok((address, Ipv4Addr::from(u32::MAX.checked_shl(32 - prefix).unwrap_or(0))))
}

fn network_config(config: &Config, resolver: &Resolver, kind: Kind) -> Result<String, String> {
    let (nameservers, search) = dns(config, resolver);
    match kind {
        Kind::NoCloud => nocloud_network(&nics(config)?, &nameservers, &search),
        Kind::ConfigDrive => interfaces(&nics(config)?, &nameservers, &search),
    }
}

/// cloud-init's network configuration, version 1.
fn nocloud_network(nics: &[Nic<'_>], nameservers: &[String], search: &[String]) -> Result<String, String> {
    let mut text = "version: 1\nconfig:\n".to_owned();
    for nic in nics {
        write(&mut text, format_args!("    - type: physical\n      name: eth{}\n", nic.number));
        write(&mut text, format_args!("      mac_address: '{}'\n      subnets:\n", nic.mac));
        match nic.ip {
            None => {}
            Some("dhcp") => text += "      - type: dhcp4\n",
            Some(cidr) => {
                let (address, mask) = address_and_mask(cidr)?;
                write(&mut text, format_args!("      - type: static\n        address: '{address}'\n"));
                write(&mut text, format_args!("        netmask: '{mask}'\n"));
                gateway(&mut text, nic.gateway);
            }
        }
        match nic.ip6 {
            None => {}
            Some("dhcp") => text += "      - type: dhcp6\n",
            Some("auto") => text += "      - type: ipv6_slaac\n",
            Some(cidr) => {
                write(&mut text, format_args!("      - type: static6\n        address: '{cidr}'\n"));
                gateway(&mut text, nic.gateway6);
            }
        }
    }
    text += "    - type: nameserver\n";
    for (name, entries) in [("address", nameservers), ("search", search)] {
        if !entries.is_empty() {
            write(&mut text, format_args!("      {name}:\n"));
        }
        for entry in entries {
            write(&mut text, format_args!("      - '{entry}'\n"));
        }
    }
    Ok(text)
}

fn gateway(text: &mut String, gateway: Option<&str>) {
    if let Some(gateway) = gateway {
        write(text, format_args!("        gateway: '{gateway}'\n"));
    }
}

/// The format of `/etc/network/interfaces`. The name servers stand below the loopback interface, as
/// they do in Proxmox's.
fn interfaces(nics: &[Nic<'_>], nameservers: &[String], search: &[String]) -> Result<String, String> {
    let mut text = "auto lo\niface lo inet loopback\n\n".to_owned();
    for (name, entries) in [("dns_nameservers", nameservers), ("dns_search", search)] {
        if !entries.is_empty() {
            write(&mut text, format_args!("        {name} {}\n", entries.join(" ")));
        }
    }
    for nic in nics {
        let number = nic.number;
        write(&mut text, format_args!("auto eth{number}\n"));
        match nic.ip {
            None => {}
            Some("dhcp") => write(&mut text, format_args!("iface eth{number} inet dhcp\n")),
            Some(cidr) => {
                let (address, mask) = address_and_mask(cidr)?;
                static_interface(
                    &mut text,
                    &format!("eth{number} inet"),
                    address,
                    &mask.to_string(),
                    nic.gateway,
                );
            }
        }
        match nic.ip6 {
            None => {}
            Some(word @ ("dhcp" | "auto")) => {
                write(&mut text, format_args!("iface eth{number} inet6 {word}\n"));
            }
            Some(cidr) => {
                let (address, prefix) = cidr.split_once('/').ok_or_else(|| format!("not a CIDR: {cidr}"))?;
                static_interface(&mut text, &format!("eth{number} inet6"), address, prefix, nic.gateway6);
            }
        }
    }
    Ok(text)
}

fn static_interface(text: &mut String, name: &str, address: &str, mask: &str, gateway: Option<&str>) {
    write(text, format_args!("iface {name} static\n        address {address}\n        netmask {mask}\n"));
    if let Some(gateway) = gateway {
        write(text, format_args!("        gateway {gateway}\n"));
    }
}

fn write(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("writing to a string");
}

/// The instance is a hash of what it is told: any change makes a new one.
fn meta_data(kind: Kind, user: &str, network: &str) -> String {
    let hash = Sha1::new().chain_update(user).chain_update(network).finalize();
    let instance = hash.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    match kind {
        Kind::NoCloud => format!("instance-id: {instance}\n"),
        Kind::ConfigDrive => format!(
            "{{\n     \"uuid\": \"{instance}\",\n     \
             \"network_config\": {{ \"content_path\": \"/content/0000\" }}\n}}\n"
        ),
    }
}

/// Writes a drive's content to its volume; an existing one keeps nothing. This blocks.
///
/// # Errors
/// When no program for ISO images is installed, or it fails.
pub fn write_volume(drive: &Drive, volume: &Volume) -> Result<(), String> {
    let scratch =
        Scratch::new(&volume.path).map_err(|error| format!("making a folder for cloud-init: {error}"))?;
    for (name, content) in &drive.files {
        let path = scratch.0.join("files").join(name);
        fs::create_dir_all(path.parent().unwrap_or(&scratch.0))
            .and_then(|()| fs::write(&path, content))
            .map_err(|error| format!("writing {}: {error}", path.display()))?;
    }
    let image = scratch.0.join("iso");
    make_image(drive.label, &scratch.0.join("files"), &image)?;
    let file = fs::OpenOptions::new().write(true).open(&image);
    file.and_then(|file| file.set_len(VOLUME_SIZE))
        .map_err(|error| format!("{}: {error}", image.display()))?;
    if volume.format == "raw" {
        return fs::copy(&image, &volume.path)
            .map(drop)
            .map_err(|error| format!("writing {}: {error}", volume.path.display()));
    }
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", &volume.format]).arg(&image).arg(&volume.path);
    run(&mut convert)
}

/// Makes an ISO image as Proxmox does, or by the other program that takes the same options.
fn make_image(label: &str, folder: &Path, image: &Path) -> Result<(), String> {
    let mut genisoimage = Command::new("genisoimage");
    let mut xorriso = Command::new("xorriso");
    xorriso.args(["-as", "mkisofs"]);
    for command in [&mut xorriso, &mut genisoimage] {
        command.args(["-quiet", "-iso-level", "3", "-J", "-R", "-V", label, "-o"]).arg(image).arg(folder);
    }
    match run(&mut xorriso) {
        Err(error) if error.contains("not installed") => run(&mut genisoimage),
        other => other,
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!("{name} is not installed"),
        _ => format!("starting {name}: {error}"),
    })?;
    let words = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{name}: {}: {}", output.status, words.trim())) }
}

/// A folder beside a volume, gone at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(volume: &Path) -> io::Result<Self> {
        let folder = volume.with_extension("cloudinit");
        // One of a run that was killed; mostly there is none.
        fs::remove_dir_all(&folder).ok();
        fs::create_dir_all(folder.join("files"))?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

#[cfg(test)]
mod tests;
