//! How a build ends: the tables `[seal]` and `[proof]`.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
