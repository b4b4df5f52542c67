//! What must hold in the guest: the tables `[[check]]`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Timeout;

/// What must hold in the guest. Exactly one key besides `name`, `when` and `at` says what.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Its name, unique in the template: the promise in a few words.
    pub name: String,
    /// Whether it is made at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<bool>,
    /// Where it is made: in the build's guest, in the proof's clones, or (by default) in both.
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
    /// In the proof's clones.
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

const fn yes() -> bool {
    true
}
