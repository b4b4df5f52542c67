//! What the installer is given: the tables `[source]` and `[seed]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
