//! What proves the template: the tables `[prove]` and `[[contract]]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What proves the template.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Prove {
    /// The port on which SSH answers.
    #[schemars(range(min = 1, max = 65_535))]
    pub ssh_port: u16,
    /// The contracts that a build holds the template to, by one clone and one boot each; the first one by default.
    pub contracts: Vec<String>,
    /// Programs that audit a clone when `forge prove` runs.
    pub audits: Vec<Audit>,
    /// What the audits must find for a promotion.
    pub thresholds: Thresholds,
}

impl Default for Prove {
    fn default() -> Self {
        Self { ssh_port: 22, contracts: Vec::new(), audits: Vec::new(), thresholds: Thresholds::default() }
    }
}

/// A program that looks at a clone with its own eyes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Audit {
    /// ssh-audit, from here: the SSH server's algorithms and keys.
    SshAudit,
    /// Lynis, in the clone: how much is hardened, as an index of 0 to 100.
    Lynis,
    /// Ansible, from here: `ansible -m ping`.
    Ansible,
}

impl Audit {
    /// Returns the program's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SshAudit => "ssh-audit",
            Self::Lynis => "lynis",
            Self::Ansible => "ansible",
        }
    }
}

/// What audits must find.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Thresholds {
    /// The lowest good index of Lynis.
    #[schemars(range(max = 100))]
    pub lynis_index: u32,
    /// The most failures that ssh-audit may find.
    pub ssh_audit_failures: u32,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { lynis_index: 70, ssh_audit_failures: 0 }
    }
}

/// A consumer of the template: the shape of its clones, and so what the template is held to.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Contract {
    /// Its name, and the clone's hostname unless `hostname` says otherwise: lower-case letters, digits and `-`.
    #[schemars(regex(pattern = r"^[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?$"))]
    pub name: String,
    /// Who that is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The clone's hostname.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// How many cores; the template's by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 512))]
    pub cores: Option<u32>,
    /// Memory in MiB; the template's by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 256, max = 4_194_304))]
    pub memory_mib: Option<u32>,
    /// The system disk's size in GiB; 4 more than the template's by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_536))]
    pub disk_gib: Option<u32>,
    /// How many packet queues its network interface has; 0 leaves it to the hypervisor.
    #[schemars(range(max = 64))]
    pub queues: u32,
    /// Its IPv4 address with its prefix length, such as `10.10.10.101/24`, or `dhcp`.
    pub address: String,
    /// The address, written the same way, of a second clone, and the one that the first is given later; the next
    /// one in the network by default. A clone with DHCP is given it only where it is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other_address: Option<String>,
    /// Its gateway, for addresses that are not from DHCP.
    pub gateway: String,
    /// Its name servers, for addresses that are not from DHCP; the gateway by default.
    pub dns: Vec<String>,
    /// How it gets its cloud-init data.
    pub drive: CloudInitDrive,
    /// Its tags in Proxmox.
    pub tags: Vec<String>,
    /// Whether it starts with its node.
    pub onboot: bool,
}

impl Default for Contract {
    fn default() -> Self {
        Self {
            name: "clone".to_owned(),
            description: None,
            hostname: None,
            cores: None,
            memory_mib: None,
            disk_gib: None,
            queues: 0,
            address: "10.10.10.50/24".to_owned(),
            other_address: None,
            gateway: "10.10.10.1".to_owned(),
            dns: Vec::new(),
            drive: CloudInitDrive::NoCloud,
            tags: Vec::new(),
            onboot: false,
        }
    }
}

/// How a clone gets its cloud-init data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CloudInitDrive {
    /// Proxmox's default for Linux guests.
    #[default]
    #[serde(rename = "nocloud")]
    NoCloud,
    /// Only user, key and hostname: Proxmox writes a network configuration there that names no interface.
    ConfigDrive,
}
