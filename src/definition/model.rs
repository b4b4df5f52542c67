//! The shape of `templates/<name>/template.toml` and `builders/<name>.toml`.
//!
//! These structs are the one description of both files: `forge schema` prints them as JSON Schema,
//! and the checker in [`super`] walks a file's TOML tree along that same schema.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The version of the definition format that this forge reads.
pub const DEFINITION_VERSION: u32 = 1;

/// The version of the builder profile format that this forge reads.
pub const PROFILE_VERSION: u32 = 1;

/// A template's definition, `templates/<name>/template.toml`.
///
/// Every string but those of `schema`, `abstract`, `extends` and `variables` may hold expressions
/// over `var`, such as `"{{ var.release }}"`; a string that is one lone expression takes its type.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// The version of this format: 1.
    pub schema: u32,
    /// Whether this template only serves to be extended: it may be incomplete and is not built.
    #[serde(default, rename = "abstract", skip_serializing_if = "is_false")]
    pub is_abstract: bool,
    /// The name of a template to take over from: tables merge, steps and checks are appended,
    /// everything else is replaced (of `source.sha256` and `source.checksums`, one by the other).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extends: Option<String>,
    /// The builder profile to use when neither `--on` nor `FORGE_BUILDER` names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builder: Option<String>,
    /// What a user may set, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub variables: BTreeMap<String, Variable>,
    /// The template that the build makes.
    pub template: Template,
    /// The installer medium.
    pub source: Source,
    /// What the installer is told.
    #[serde(default)]
    pub seed: Seed,
    /// The machine, while building and in the template.
    #[serde(default)]
    pub machine: Machine,
    /// What changes the guest, in order.
    #[serde(default, rename = "step")]
    pub steps: Vec<Step>,
    /// What must hold in the guest, in the build and again in the proof's clone.
    #[serde(default, rename = "check")]
    pub checks: Vec<Check>,
    /// What removes the guest's identity.
    #[serde(default)]
    pub seal: Seal,
    /// The clone that proves the template.
    #[serde(default)]
    pub proof: Proof,
    /// How long each stage may take.
    #[serde(default)]
    pub timeouts: Timeouts,
}

/// A variable: what a user may set.
///
/// The last of these that is there wins: `default`, the environment variable that `env` names,
/// `FORGE_VAR_<NAME>` (upper case), each `--var-file` in order, each `--var` in order.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Variable {
    /// The type of its value.
    #[serde(default, rename = "type")]
    pub kind: VariableType,
    /// Its value when nothing sets it; without a default it must be set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<serde_json::Value>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// An environment variable to read besides `FORGE_VAR_<NAME>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<String>,
    /// Whether its value must never be shown. A secret is a string without a default, may be unset
    /// (it is then empty), and goes where it is needed as `env` of a step or in a `*.j2` file.
    #[serde(default)]
    pub secret: bool,
    /// Whether it must be set to something; without a default it must, unless it is a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required: Option<bool>,
    /// The values it may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed: Option<Vec<serde_json::Value>>,
    /// A regular expression that the whole of a string value must match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
}

/// The type of a variable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VariableType {
    /// Text.
    #[default]
    String,
    /// A whole number.
    Integer,
    /// `true` or `false`.
    Bool,
    /// A list; from the command line as JSON or as `a,b,c`.
    List,
    /// A map; from the command line as JSON.
    Map,
}

/// The template that the build makes.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// Its name on the cluster; a DNS name, as Proxmox demands.
    #[schemars(regex(pattern = r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?$"))]
    pub name: String,
    /// Its VMID, 100 to 999999999.
    #[schemars(range(min = 100, max = 999_999_999))]
    pub vmid: u32,
    /// The release it is made of, such as `24.04.3`: letters, digits, `.`, `_` and `-`; names the
    /// artifact's folder.
    #[schemars(regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"))]
    pub release: String,
    /// Notes shown in Proxmox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Its tags in Proxmox.
    #[serde(default)]
    pub tags: Vec<String>,
    /// What its clones take from cloud-init.
    #[serde(default)]
    pub cloud_init: CloudInit,
    /// The format of the artifact's disk.
    #[serde(default)]
    pub disk_format: DiskFormat,
}

/// What clones take from cloud-init.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CloudInit {
    /// Whether the template carries a cloud-init drive.
    pub drive: bool,
    /// The user that clones get their keys for: lower-case letters, digits, `_` and `-`.
    #[schemars(regex(pattern = r"^[a-z_][a-z0-9_-]{0,31}$"))]
    pub user: String,
    /// Whether clones upgrade packages at their first boot (Proxmox: `ciupgrade`).
    pub upgrade: bool,
}

impl Default for CloudInit {
    fn default() -> Self {
        Self { drive: true, user: "odin".to_owned(), upgrade: false }
    }
}

/// The installer medium. Exactly one of `sha256` and `checksums` says what it must be.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Where the ISO is: a URL, or a path, relative to the root.
    pub iso: String,
    /// Its SHA-256, 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9a-fA-F]{64}$"))]
    pub sha256: Option<String>,
    /// The signed list of checksums that names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksums: Option<Checksums>,
}

/// A `SHA256SUMS` file with its OpenPGP signature.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Checksums {
    /// URL or path of the `SHA256SUMS` file.
    pub file: String,
    /// URL or path of its detached OpenPGP signature.
    pub signature: String,
    /// Path of the OpenPGP public key, relative to the folder of the definition that names it; kept
    /// in the repository. In a loaded definition it is relative to the root.
    pub key: String,
    /// The key's fingerprint, 40 or 64 hexadecimal digits.
    #[schemars(regex(pattern = r"^([0-9a-fA-F]{40}|[0-9a-fA-F]{64})$"))]
    pub fingerprint: String,
    /// The ISO's name in the file; the last part of `iso` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// What the installer is told.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Seed {
    /// How the answers reach the installer.
    pub transport: Transport,
    /// The installer's answers: a file in `http/<template>/`, or in that of the nearest template
    /// it extends.
    pub autoinstall: String,
    /// More such files to serve, by name; `*.j2` files are rendered and served without that ending.
    pub files: Vec<String>,
}

impl Default for Seed {
    fn default() -> Self {
        Self { transport: Transport::Http, autoinstall: "autoinstall.yaml.j2".to_owned(), files: Vec::new() }
    }
}

/// How the answers reach the installer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// A constant stub on a small volume fetches them from forge's HTTP server.
    #[default]
    Http,
    /// The small volume carries them whole, for guests that cannot reach forge.
    Cdrom,
}

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

/// What changes the guest. Exactly one of `shell`, `upload`, `packages` and `reboot` says how.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Its name, unique in the template: lower-case letters, digits and `-`; `--only` and `--skip`
    /// take it.
    #[schemars(regex(pattern = r"^[a-z0-9][a-z0-9-]{0,62}$"))]
    pub name: String,
    /// Whether it runs at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<bool>,
    /// How long one attempt may take; the `step` timeout by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Timeout>,
    /// How many more times it is tried after a failure.
    #[serde(default)]
    #[schemars(range(max = 10))]
    pub retries: u32,
    /// Runs a script.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<Shell>,
    /// Puts a file or a folder into the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<Upload>,
    /// Installs packages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packages: Option<Packages>,
    /// Reboots the guest and waits for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reboot: Option<Reboot>,
}

/// Runs a script in the guest as root. Exactly one of `script` and `inline` says which.
#[derive(Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Shell {
    /// A script's path, relative to the root; a `*.j2` file is rendered first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    /// The script itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inline: Option<String>,
    /// What runs it: a program with its options.
    #[serde(default = "Shell::default_interpreter")]
    pub interpreter: Vec<String>,
    /// Its environment, besides `PATH` and `LC_ALL`.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Exit codes that mean success.
    #[serde(default = "Shell::default_exit_codes")]
    pub exit_codes: Vec<i32>,
}

impl fmt::Debug for Shell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shell")
            .field("script", &self.script)
            .field("inline", &self.inline)
            .field("interpreter", &self.interpreter)
            .field("env", &self.env.keys())
            .field("exit_codes", &self.exit_codes)
            .finish()
    }
}

impl Shell {
    fn default_interpreter() -> Vec<String> {
        vec!["/bin/sh".to_owned(), "-eu".to_owned()]
    }

    fn default_exit_codes() -> Vec<i32> {
        vec![0]
    }
}

/// Puts a file or a folder into the guest.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Upload {
    /// A file's or folder's path, relative to the root; a `*.j2` file is rendered first.
    pub source: String,
    /// Where it goes: an absolute path.
    #[schemars(regex(pattern = r"^/"))]
    pub destination: String,
    /// The mode of the file, or of each file in the folder, such as `0644`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-7]{3,4}$"))]
    pub mode: Option<String>,
    /// The owner as `user:group`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// Installs packages with the guest's package manager.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Packages {
    /// The packages' names.
    pub install: Vec<String>,
    /// Whether everything else is brought up to date as well.
    #[serde(default)]
    pub upgrade: bool,
}

/// Reboots the guest and waits until its agent answers again.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Reboot {
    /// Why, shown in the timeline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What must hold in the guest. Exactly one key besides `name`, `when` and `at` says what.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Its name, unique in the template: the promise in a few words.
    pub name: String,
    /// Whether it is made at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<bool>,
    /// Where it is made: in the build's guest, in the proof's clone, or (by default) in both.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub at: Vec<CheckAt>,
    /// A file, folder or link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileCheck>,
    /// A package.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<PackageCheck>,
    /// A systemd unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceCheck>,
    /// A user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserCheck>,
    /// A group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupCheck>,
    /// `sshd`'s effective settings, as `sshd -T` prints them, in lower case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sshd: Option<BTreeMap<String, String>>,
    /// TCP ports on which something listens beyond loopback: these and no others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listening: Option<Vec<u16>>,
    /// The time zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// The system's locale, such as `fr_FR.UTF-8`: set, and generated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locale: Option<String>,
    /// Kernel parameters, as `sysctl` prints them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sysctl: Option<BTreeMap<String, String>>,
    /// A command's result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandCheck>,
}

/// Where a check is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckAt {
    /// In the build's guest, before it is sealed.
    Build,
    /// In the proof's clone.
    Proof,
}

/// What a file, folder or link must be.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileCheck {
    /// Its absolute path.
    #[schemars(regex(pattern = r"^/"))]
    pub path: String,
    /// Whether it is there; the other keys imply that it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exists: Option<bool>,
    /// Its mode, such as `0644`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-7]{3,4}$"))]
    pub mode: Option<String>,
    /// Its owner as `user:group`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// A regular expression that some line matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contains: Option<String>,
    /// A regular expression that no line matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacks: Option<String>,
    /// Its SHA-256, 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9a-fA-F]{64}$"))]
    pub sha256: Option<String>,
}

/// What a package must be.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PackageCheck {
    /// Its name.
    pub name: String,
    /// Whether it is installed.
    #[serde(default = "yes")]
    pub installed: bool,
}

/// What a systemd unit must be.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceCheck {
    /// The unit's name, such as `ssh.socket`; without an ending, a service.
    pub name: String,
    /// Whether it is active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<bool>,
    /// Its state as `systemctl is-enabled` prints it, such as `enabled`, `static` or `masked`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<String>,
}

/// What a user must be.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UserCheck {
    /// The user's name.
    pub name: String,
    /// Whether the user is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exists: Option<bool>,
    /// Groups the user is a member of, perhaps among others.
    #[serde(default)]
    pub groups: Vec<String>,
    /// The login shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<String>,
    /// The password: `locked` (no password logs in) or `sha512` (a `$6$` hash).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<PasswordState>,
    /// What `sudo` lets the user do without a password: everything, or nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sudo_nopasswd: Option<bool>,
    /// Whether the user has SSH keys of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorized_keys: Option<bool>,
}

/// A user's password in the shadow file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PasswordState {
    /// No password logs in; an empty password is not locked.
    Locked,
    /// A `$6$` hash.
    Sha512,
}

/// What a group must be.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupCheck {
    /// The group's name.
    pub name: String,
    /// Its number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

/// What a command must do; it runs in `sh -c`, as root, and must change nothing.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CommandCheck {
    /// The command.
    pub run: String,
    /// Its exit code.
    #[serde(default)]
    pub exit_code: i32,
    /// A regular expression that its standard output matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<String>,
    /// How long it may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Timeout>,
}

/// What removes the guest's identity and traces.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Seal {
    /// The script that does it, relative to the root.
    pub script: String,
    /// Its environment, besides `PATH` and `LC_ALL`.
    pub env: BTreeMap<String, String>,
    /// Paths that must be gone or empty afterwards; shell patterns.
    pub absent: Vec<String>,
    /// Whether free blocks are given back before power-off.
    pub trim: bool,
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seal")
            .field("script", &self.script)
            .field("env", &self.env.keys())
            .field("absent", &self.absent)
            .field("trim", &self.trim)
            .finish()
    }
}

impl Default for Seal {
    fn default() -> Self {
        Self { script: "hardening/seal.sh".to_owned(), env: BTreeMap::new(), absent: Vec::new(), trim: true }
    }
}

/// The clone that proves the template.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Proof {
    /// The clone's hostname.
    pub hostname: String,
    /// The clone's static IPv4 address with its prefix length.
    pub address: String,
    /// The gateway and name server.
    pub gateway: String,
    /// How many GiB larger than the template's the clone's disk is.
    #[schemars(range(min = 1, max = 1024))]
    pub grow_gib: u32,
    /// The port on which SSH answers.
    #[schemars(range(min = 1, max = 65_535))]
    pub ssh_port: u16,
    /// Whether a second, short proof shows that a `ConfigDrive` volume is accepted as well.
    pub config_drive: bool,
}

impl Default for Proof {
    fn default() -> Self {
        Self {
            hostname: "forge-proof".to_owned(),
            address: "10.10.10.50/24".to_owned(),
            gateway: "10.10.10.1".to_owned(),
            grow_gib: 4,
            ssh_port: 22,
            config_drive: true,
        }
    }
}

/// How long each stage may take.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// From power-on until the installer fetches its answers.
    pub fetch: Timeout,
    /// From power-on until the installer has powered the machine off.
    pub install: Timeout,
    /// From booting the disk until the guest agent answers and cloud-init has ended.
    pub boot: Timeout,
    /// One attempt of one step.
    pub step: Timeout,
    /// One check.
    pub check: Timeout,
    /// Sealing and powering off.
    pub seal: Timeout,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            fetch: Timeout::minutes(10),
            install: Timeout::minutes(60),
            boot: Timeout::minutes(10),
            step: Timeout::minutes(15),
            check: Timeout::minutes(1),
            seal: Timeout::minutes(10),
        }
    }
}

/// A length of time, written `90s`, `10m` or `1h30m`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timeout(Duration);

impl Timeout {
    /// Returns that many minutes.
    #[must_use]
    pub const fn minutes(minutes: u64) -> Self {
        Self(Duration::from_mins(minutes))
    }

    /// Returns the length of time.
    #[must_use]
    pub const fn duration(self) -> Duration {
        self.0
    }

    /// Parses `90s`, `10m`, `1h30m`: whole numbers with units, largest first, not zero.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a length of time such as `90s`, `10m` or `1h30m`");
        let (mut total, mut number, mut last) = (0_u64, String::new(), u64::MAX);
        for character in text.chars() {
            if character.is_ascii_digit() {
                number.push(character);
                continue;
            }
            let unit = match character {
                'h' => 3600,
                'm' => 60,
                's' => 1,
                _ => return Err(wrong()),
            };
            let count: u64 = number.parse().map_err(|_| wrong())?;
            if unit >= last {
                return Err(wrong());
            }
            last = unit;
            total = count.checked_mul(unit).and_then(|more| total.checked_add(more)).ok_or_else(wrong)?;
            number.clear();
        }
        if !number.is_empty() || total == 0 || total > 7 * 24 * 3600 {
            return Err(wrong());
        }
        Ok(Self(Duration::from_secs(total)))
    }
}

impl From<Duration> for Timeout {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        for (count, unit) in [(seconds / 3600, 'h'), (seconds / 60 % 60, 'm'), (seconds % 60, 's')] {
            if count > 0 {
                write!(f, "{count}{unit}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Timeout {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timeout {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Timeout {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Timeout".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "A length of time, written `90s`, `10m` or `1h30m`.",
            "type": "string",
            "pattern": r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?$",
            "minLength": 2
        })
    }
}

/// A builder profile, `builders/<name>.toml`: where to build. It holds no secret.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The version of this format: 1.
    pub schema: u32,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Builds in a local QEMU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu: Option<QemuProfile>,
    /// Machine keys that differ here while building; the template keeps the definition's.
    #[serde(default)]
    pub machine: MachineOverride,
    /// forge's HTTP server.
    #[serde(default)]
    pub http: HttpProfile,
}

/// A local QEMU.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct QemuProfile {
    /// How guest code is run.
    pub accelerator: Accelerator,
    /// QEMU's path; `qemu-system-x86_64` on the search path by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binary: Option<String>,
    /// Multiplies every deadline of a stage in which a guest runs; for machines without KVM.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub timeout_factor: Option<u32>,
}

/// How guest code is run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Accelerator {
    /// KVM where it can really run guests, else TCG with a warning.
    #[default]
    Auto,
    /// KVM, or fail.
    Kvm,
    /// QEMU's emulation.
    Tcg,
}

/// Machine keys that differ while building.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MachineOverride {
    /// The CPU model, such as `max`: letters, digits, `.`, `_`, `+` and `-`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._+-]*$"))]
    pub cpu: Option<String>,
    /// How many cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 512))]
    pub cores: Option<u32>,
    /// Memory in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 256, max = 4_194_304))]
    pub memory_mib: Option<u32>,
    /// Whether KVM is used; `false` is for nodes that are virtual machines themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kvm: Option<bool>,
}

/// forge's HTTP server.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HttpProfile {
    /// The address to listen on; found by itself by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind: Option<String>,
    /// The port, or a range such as `8000-8099`; any free port by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]{1,5}(-[0-9]{1,5})?$"))]
    pub port: Option<String>,
    /// The address that guests are told, with or without a port; found by itself by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise: Option<String>,
}

const fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde wants")]
const fn is_false(value: &bool) -> bool {
    !*value
}

#[cfg(test)]
mod tests {
    use super::Timeout;

    #[test]
    fn timeouts_read_back_as_written() {
        for text in ["90s", "10m", "1h30m", "2h", "1h1m1s"] {
            let shown = Timeout::parse(text).unwrap().to_string();
            assert_eq!(Timeout::parse(&shown), Timeout::parse(text), "{text}");
        }
        assert_eq!(Timeout::parse("90s").unwrap().to_string(), "1m30s");
    }

    #[test]
    fn wrong_timeouts_are_refused() {
        for text in ["", "10", "0s", "5d", "m", "1m1h", "1s1s", "-1s", "99999999999999999999s", "8000h"] {
            assert!(Timeout::parse(text).unwrap_err().contains("such as `90s`"), "{text}");
        }
    }
}
