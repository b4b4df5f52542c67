//! Where to build: the shape of `builders/<name>.toml`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
