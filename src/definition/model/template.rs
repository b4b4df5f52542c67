//! What the build makes: the table `[template]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::DiskFormat;

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
