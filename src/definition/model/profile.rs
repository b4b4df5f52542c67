//! Where to build: the shape of `builders/<name>.toml`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Timeout;

/// The version of the builder profile format that this forge reads.
pub const PROFILE_VERSION: u32 = 1;

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
    /// Builds on a Proxmox VE node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxmox: Option<ProxmoxProfile>,
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

/// A Proxmox VE node or cluster.
///
/// The credentials come from the environment (`FORGE_PVE_TOKEN`, else `FORGE_PVE_USER` and
/// `FORGE_PVE_PASSWORD`), from a file or from a command; none stands here.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProxmoxProfile {
    /// The API's addresses, such as `https://asgard.lan:8006`; of a cluster one for each node, and
    /// the first that answers is asked.
    #[schemars(length(min = 1), inner(regex(pattern = r"^https://[^/\s?#]+$")))]
    pub endpoints: Vec<String>,
    /// The node to build on, letters, digits and `-`; `auto` takes the one with the most free memory that has the storages
    /// and the bridge.
    #[schemars(regex(pattern = r"^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$"))]
    pub node: String,
    /// The storage for disks and the cloud-init drive, with the content type `images`.
    #[schemars(regex(pattern = r"^[A-Za-z][A-Za-z0-9._-]*[A-Za-z0-9]$"))]
    pub vm_storage: String,
    /// The storage for installer media, with the content type `iso`.
    #[schemars(regex(pattern = r"^[A-Za-z][A-Za-z0-9._-]*[A-Za-z0-9]$"))]
    pub iso_storage: String,
    /// The bridge that every network interface is put on.
    #[schemars(regex(pattern = r"^[A-Za-z][A-Za-z0-9_.-]{0,14}$"))]
    pub bridge: String,
    /// The VLAN on that bridge, 1 to 4094.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4094))]
    pub vlan: Option<u16>,
    /// The resource pool that build machines and templates are put into; it must exist.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9._/-]+$"))]
    pub pool: Option<String>,
    /// The VMIDs of machines that are built and proven, and of candidates, such as `9000-9099`.
    #[schemars(regex(pattern = r"^[0-9]{3,9}-[0-9]{3,9}$"))]
    pub vmids: String,
    /// IPv4 addresses that clones of proofs take instead of their contracts', as far as they are in the same network,
    /// such as `10.10.10.240-10.10.10.249`: a contract's own may be in use by its consumer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]{1,3}(\.[0-9]{1,3}){3}-[0-9]{1,3}(\.[0-9]{1,3}){3}$"))]
    pub proof_addresses: Option<String>,
    /// The SHA-256 fingerprint of the server's certificate, 32 hexadecimal pairs with colons, as
    /// `pvenode cert info` shows it. With it the certificate is pinned, and its name and issuer do not matter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^([0-9A-Fa-f]{2}:){31}[0-9A-Fa-f]{2}$"))]
    pub fingerprint: Option<String>,
    /// A PEM file with the certificate of the cluster's own authority, relative to the root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// Whether the server's certificate is verified. Without it anyone on the way can read the
    /// credentials; pin the certificate instead.
    pub verify_tls: bool,
    /// A file that holds the token, `USER@REALM!NAME=SECRET`, relative to the root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<String>,
    /// A command that prints the token, such as `["pass", "show", "proxmox/forge"]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub token_command: Option<Vec<String>>,
    /// How long one task of the node (a copy, a conversion) may take.
    pub task_timeout: Timeout,
    /// How often a picture of the installer's screen is put into the run's folder.
    pub screenshot_every: Timeout,
    /// Multiplies every deadline of a stage in which a guest runs; for nodes without KVM.
    #[schemars(range(min = 1, max = 100))]
    pub timeout_factor: u32,
}

impl Default for ProxmoxProfile {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            node: "auto".to_owned(),
            vm_storage: "local-zfs".to_owned(),
            iso_storage: "local".to_owned(),
            bridge: "vmbr0".to_owned(),
            vlan: None,
            pool: None,
            vmids: "9000-9099".to_owned(),
            proof_addresses: None,
            fingerprint: None,
            ca_file: None,
            verify_tls: true,
            token_file: None,
            token_command: None,
            task_timeout: Timeout::from(std::time::Duration::from_hours(1)),
            screenshot_every: Timeout::from(std::time::Duration::from_mins(1)),
            timeout_factor: 1,
        }
    }
}

impl ProxmoxProfile {
    /// Returns the first and the last of the addresses that proofs have for themselves.
    #[must_use]
    pub fn proof_addresses(&self) -> Option<(std::net::Ipv4Addr, std::net::Ipv4Addr)> {
        let (from, to) = self.proof_addresses.as_ref()?.split_once('-')?;
        Some((from.parse().ok()?, to.parse().ok()?)).filter(|(from, to)| from <= to)
    }
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
