//! What changes the guest: the tables `[[step]]`.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Timeout;

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
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
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

/// What a definition that says nothing means.
impl Default for Shell {
    fn default() -> Self {
        Self {
            script: None,
            inline: None,
            interpreter: Self::default_interpreter(),
            env: BTreeMap::new(),
            exit_codes: Self::default_exit_codes(),
        }
    }
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
