//! How a build ends: the table `[seal]`.

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
