//! The volumes that guests find their seeds on.

use super::iso9660::{VolumeError, volume};

/// The script that confirms the installation in place of a person.
const CONFIRM: &str = concat!(include_str!("tell.py"), include_str!("confirm.py"));

/// The script that puts the answers where the installer reads them again.
const ANSWERS: &str = concat!(include_str!("tell.py"), include_str!("answers.py"));

/// What the serial number of a machine begins with when the answers' URL follows.
///
/// cloud-init takes serial numbers that begin with `ds=` (or `ec2`, or end in `.brightbox.com`) for
/// itself; this form it leaves alone.
pub const SERIAL_PREFIX: &str = "forge=";

/// The longest serial number: Proxmox takes 512 characters for `smbios1` as a whole, in which the
/// serial number stands in base64 beside a UUID.
pub const SERIAL_MAX: usize = 256;

/// Why a URL cannot be a machine's serial number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SerialError {
    /// It is too long.
    #[error(
        "the answers' URL makes a serial number of {length} characters, more than {SERIAL_MAX}; shorten the advertised address"
    )]
    Long {
        /// The serial number's length.
        length: usize,
    },
    /// It has a character that firmware, hypervisor or kernel would change.
    #[error("the answers' URL has a `{character}`, which cannot stand in a serial number")]
    Character {
        /// The first such character.
        character: char,
    },
}

/// Returns the SMBIOS serial number that tells the stub where a build's answers are.
///
/// # Errors
/// When the URL is too long, or has characters besides visible ASCII, or a comma (QEMU's separator).
pub fn serial(url: &str) -> Result<String, SerialError> {
    if let Some(character) = url.chars().find(|c| !c.is_ascii_graphic() || *c == ',') {
        return Err(SerialError::Character { character });
    }
    let serial = format!("{SERIAL_PREFIX}{url}");
    if serial.len() > SERIAL_MAX {
        return Err(SerialError::Long { length: serial.len() });
    }
    Ok(serial)
}

/// Returns the stub seed: a `CIDATA` volume, the same bytes for every build.
///
/// Its early commands stop the live system's SSH, start the job that confirms the installation and
/// fetch the build's answers from the URL in the machine's [`serial`] number.
///
/// # Panics
/// Never: its files are forge's own.
#[must_use]
pub fn stub_volume() -> Vec<u8> {
    volume("CIDATA", &[("meta-data", META_DATA), ("user-data", stub_user_data().as_bytes())])
        .expect("the stub's files are forge's own and fit")
}

/// Returns the volume for guests that cannot reach forge: the stub, with the answers beside it.
///
/// The answers are not edited: the same early commands find them on the volume before they look
/// for a serial number, so both transports go one way.
///
/// # Errors
/// When the answers are too large for a seed volume.
pub fn cdrom_volume(autoinstall: &str) -> Result<Vec<u8>, VolumeError> {
    volume(
        "CIDATA",
        &[
            ("autoinstall.yaml", autoinstall.as_bytes()),
            ("meta-data", META_DATA),
            ("user-data", stub_user_data().as_bytes()),
        ],
    )
}

/// The instance of the live system; the installed system gets another one.
const META_DATA: &[u8] = b"instance-id: forge-installer\n";

/// Returns the stub's user-data: scripts stand in it as YAML literal blocks, to be read as they are.
pub(super) fn stub_user_data() -> String {
    format!(
        "#cloud-config\n\
         # forge's stub seed: the build's own answers replace it before the installer uses any.\n\
         autoinstall:\n  \
           version: 1\n  \
           user-data: {{}}\n  \
           shutdown: poweroff\n  \
           early-commands:\n    \
             - systemctl stop ssh.socket ssh.service || true\n    \
             - - python3\n      - -c\n      - |\n{}    \
             - - python3\n      - -c\n      - |\n{}",
        literal_block(CONFIRM, 8),
        literal_block(ANSWERS, 8),
    )
}

/// Returns a script's lines indented by that much; empty lines stay empty.
fn literal_block(script: &str, indent: usize) -> String {
    let line = |line: &str| if line.is_empty() { "\n".to_owned() } else { format!("{:indent$}{line}\n", "") };
    script.lines().map(line).collect()
}

/// Returns the `cidata` volume that Proxmox gives a clone by default (citype `nocloud`).
///
/// `network_config` is in cloud-init's format, version 1. Source: qemu-server
/// `PVE/QemuServer/Cloudinit.pm`, `generate_nocloud`.
///
/// # Errors
/// When the files are too large for a seed volume.
pub fn nocloud_volume(
    user_data: &str,
    meta_data: &str,
    network_config: &str,
) -> Result<Vec<u8>, VolumeError> {
    volume(
        "cidata",
        &[
            ("meta-data", meta_data.as_bytes()),
            ("network-config", network_config.as_bytes()),
            ("user-data", user_data.as_bytes()),
            ("vendor-data", b""),
        ],
    )
}

/// Returns the `config-2` volume that Proxmox gives a clone with citype `configdrive2`, but for one
/// file: Proxmox leaves `vendor_data.json` empty unless `cicustom` names one, and cloud-init (22.4
/// and 25.1) refuses the whole volume for that. Here it is an empty JSON object.
///
/// `interfaces` is the network in the format of `/etc/network/interfaces`; `instance` becomes the
/// `uuid` of the metadata, which Proxmox makes from a hash. Source: qemu-server
/// `PVE/QemuServer/Cloudinit.pm`, `generate_configdrive2`.
///
/// # Errors
/// When the files are too large for a seed volume.
pub fn config_drive_volume(
    user_data: &str,
    instance: &str,
    interfaces: &str,
) -> Result<Vec<u8>, VolumeError> {
    let meta_data = serde_json::json!({
        "uuid": instance,
        "network_config": { "content_path": "/content/0000" },
    });
    volume(
        "config-2",
        &[
            ("openstack/content/0000", interfaces.as_bytes()),
            ("openstack/latest/meta_data.json", format!("{meta_data:#}\n").as_bytes()),
            ("openstack/latest/user_data", user_data.as_bytes()),
            ("openstack/latest/vendor_data.json", b"{}"),
        ],
    )
}

#[cfg(test)]
mod tests;
