//! How the guest is hardened: the table `[hardening]`, and the controls that it chooses from.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Check;

/// Which controls harden the guest. They are applied after the template's steps, each is then checked.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Hardening {
    /// The profile: `base`, `server` or `strict`, each with all that the ones before it have. Without one, only
    /// what `on` names is applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<HardeningProfile>,
    /// Controls of the profile that are left out, each with its reason.
    pub off: BTreeMap<String, String>,
    /// Controls beyond the profile, each with its reason.
    pub on: BTreeMap<String, String>,
    /// What controls' scripts find in their environment, instead of their own defaults.
    pub env: BTreeMap<String, String>,
}

/// How much is hardened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HardeningProfile {
    /// What no machine misses.
    Base,
    /// What a server can do without, Kubernetes nodes among them.
    Server,
    /// What may stand in somebody's way.
    Strict,
}

impl HardeningProfile {
    /// Returns the word that definitions use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Server => "server",
            Self::Strict => "strict",
        }
    }
}

/// The version of the format of controls that this forge reads.
pub const CONTROL_VERSION: u32 = 1;

/// A hardening control, `hardening/controls/<name>.toml`: what it does, why, and how that is checked.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Control {
    /// The version of this format: 1.
    pub schema: u32,
    /// What it does, in a line.
    pub title: String,
    /// Why, and what it costs.
    pub why: String,
    /// Who asks for it: a benchmark with its version and number, or a vendor's document.
    pub references: Vec<String>,
    /// The lowest profile that has it; without one it is applied only where `[hardening.on]` names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<HardeningProfile>,
    /// Why it does not apply in a container, where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_in_container: Option<String>,
    /// What its script finds in its environment, with the values that hold unless `[hardening.env]` has others.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Kernel parameters, set now and at each boot. One that begins with `-` need not exist.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctl: BTreeMap<String, String>,
    /// Kernel modules that can no longer be loaded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub modules_off: Vec<String>,
    /// Files that are written whole.
    #[serde(default, rename = "file", skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<ControlFile>,
    /// A script that runs after that, as root, by `sh -eu`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    /// What must hold besides the parameters, modules and files above, which are checked by themselves.
    #[serde(default, rename = "check", skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
}

/// A file that a control writes whole, owned by root.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ControlFile {
    /// Its absolute path.
    #[schemars(regex(pattern = r"^/"))]
    pub path: String,
    /// Its mode, such as `0644`.
    #[serde(default = "ControlFile::default_mode")]
    #[schemars(regex(pattern = r"^[0-7]{4}$"))]
    pub mode: String,
    /// Its content.
    pub content: String,
}

impl ControlFile {
    fn default_mode() -> String {
        "0644".to_owned()
    }
}
