//! What a build leaves: the artifact's folder and its manifest.
//!
//! ```text
//! artifacts/<template>/<release>/
//!   disk.qcow2      the template's disk; others are disk1.qcow2, disk2.qcow2, …; none when the
//!                   template is on a cluster
//!   manifest.json   its facts, below
//!   sbom.cdx.json   its packages as other tools read them, see [`crate::sbom`]
//!   logs/           the run's events and what the guests said
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::definition::Machine;
use crate::event::Span;

/// The version of the manifest's format.
pub const MANIFEST_VERSION: u32 = 3;

/// The manifest's file name in the artifact's folder.
pub const MANIFEST_FILE: &str = "manifest.json";

/// The facts about an artifact, `manifest.json`. It holds no secret and no absolute path.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    /// [`MANIFEST_VERSION`].
    pub format: u32,
    /// The template's folder in `templates/`.
    pub template: String,
    /// The template's name on the cluster.
    pub name: String,
    /// Its VMID on the cluster.
    pub vmid: u32,
    /// The release it is made of.
    pub release: String,
    /// The run that made it.
    pub run: String,
    /// When it was made, in UTC, RFC 3339.
    pub built_at: String,
    /// The plan digest, `sha256:…`.
    pub plan: String,
    /// What made it.
    pub forge: ForgeInfo,
    /// The git revision of the definitions, `-dirty` appended when files differ from it.
    pub revision: Option<String>,
    /// Where it was made.
    pub builder: BuilderInfo,
    /// What it was made of.
    pub inputs: Vec<Input>,
    /// The variables' values; of a secret only whether it was set.
    pub variables: BTreeMap<String, serde_json::Value>,
    /// The template's hardware, as the definition has it.
    pub machine: Machine,
    /// The disk that was installed to, where the artifact has it as a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Disk>,
    /// The machine's other disks, in the definition's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_disks: Vec<Disk>,
    /// Where the template is, where it was made on a cluster. New in version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// The guest's `ID` and `VERSION_ID` from os-release(5).
    pub os: Os,
    /// Every check, with its finding.
    pub checks: Vec<CheckResult>,
    /// The contracts that it was held to. New in version 3.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub proofs: Vec<ContractProof>,
    /// What programs have found that audit it. New in version 3.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub audits: Vec<AuditResult>,
    /// The hardening controls, and which of them it has. New in version 3.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub controls: Vec<ControlChoice>,
    /// The guest's packages.
    pub packages: Vec<Package>,
    /// The file that lists them for other tools. New in version 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sbom: Option<Sbom>,
    /// Where the time went, until the manifest was written.
    pub spans: Vec<Span>,
}

impl Manifest {
    /// Reads a manifest of this version or an earlier one.
    ///
    /// # Errors
    /// When it is no manifest, or one of a later version.
    pub fn parse(text: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let Format { format } = serde_json::from_slice(text)?;
        if !(1..=MANIFEST_VERSION).contains(&format) {
            return Err(ManifestError::Version { format });
        }
        Ok(serde_json::from_slice(text)?)
    }
}

/// Why a manifest cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is no manifest.
    #[error("it is no manifest: {0}")]
    Shape(#[from] serde_json::Error),
    /// A later forge wrote it.
    #[error(
        "it has the format {format}, and this forge reads 1 to {MANIFEST_VERSION}; a newer forge is needed"
    )]
    Version {
        /// Its format.
        format: u32,
    },
}

/// What made an artifact.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ForgeInfo {
    /// forge's version.
    pub version: String,
    /// forge's own git revision, when it was built from a checkout.
    pub revision: Option<String>,
}

/// Where an artifact was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BuilderInfo {
    /// The builder profile's name.
    pub name: String,
    /// How guest code was run: `kvm` or `tcg`.
    pub accelerator: String,
    /// Machine keys that differed from the definition while building.
    pub overrides: BTreeMap<String, serde_json::Value>,
}

/// Something an artifact was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// Its name: a path in the repository, or the ISO's file name.
    pub name: String,
    /// Its SHA-256, hexadecimal.
    pub sha256: String,
    /// Its size in bytes.
    pub size: u64,
}

/// An artifact's software bill of materials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sbom {
    /// Its file in the artifact's folder.
    pub file: String,
    /// The file's SHA-256, hexadecimal.
    pub sha256: String,
    /// The file's size in bytes.
    pub size: u64,
}

/// An artifact's disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Its file in the artifact's folder.
    pub file: String,
    /// `qcow2` or `raw`.
    pub format: String,
    /// The file's size in bytes.
    pub size: u64,
    /// The size a guest sees, in bytes.
    pub virtual_size: u64,
    /// The file's SHA-256, hexadecimal.
    pub sha256: String,
}

/// A template's place on a Proxmox VE cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The node.
    pub node: String,
    /// Its VMID there.
    pub vmid: u32,
    /// Its name there.
    pub name: String,
    /// The UUID of its SMBIOS, by which it is told from another VM of that VMID.
    pub uuid: String,
    /// Its disks.
    pub volumes: Vec<Volume>,
}

/// A disk of a template on a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The key of the VM's configuration, such as `virtio0`.
    pub key: String,
    /// The volume's name, such as `local-zfs:base-9001-disk-0`.
    pub volid: String,
    /// The size that a guest sees, in bytes; unknown for what has none in the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

/// A guest's operating system.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Os {
    /// `ID`, such as `ubuntu`.
    pub id: String,
    /// `VERSION_ID`, such as `24.04`.
    pub version: String,
    /// The kernel's release.
    pub kernel: String,
}

/// How a contract was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContractProof {
    /// The contract's name; its findings are among the checks, at that name and what came after a comma.
    pub contract: String,
    /// Whether two clones were made, and the first one rebooted and moved; else it is one clone's first boot.
    pub full: bool,
    /// The run that did it.
    pub run: String,
    /// When, in UTC, RFC 3339.
    pub proven_at: String,
    /// How many cores the clone had.
    pub cores: u32,
    /// Its memory in MiB.
    pub memory_mib: u32,
    /// The size of its system disk in GiB.
    pub disk_gib: u64,
    /// What was other than the contract says, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scaled: Vec<String>,
}

/// What a program has found that audits a clone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditResult {
    /// The program: `ssh-audit`, `lynis` or `ansible`.
    pub audit: String,
    /// The contract whose clone it was.
    pub contract: String,
    /// The program's version.
    pub version: String,
    /// What it counts: failures, or Lynis' index.
    pub figure: u32,
    /// Whether that meets the definition's threshold.
    pub passed: bool,
    /// What it remarks, a line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
}

/// Whether a template has a hardening control.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlChoice {
    /// The control's name.
    pub name: String,
    /// Whether it is applied.
    pub applied: bool,
    /// Why, where the definition gives a reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A check's finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckResult {
    /// Where it was made: `build`, or a contract's name, and after a comma what its clone went through then.
    pub at: String,
    /// The check's name.
    pub name: String,
    /// Whether it held.
    pub passed: bool,
    /// Whether it could not be made, so that nobody knows whether it would have held.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub not_proven: bool,
    /// What was found.
    pub detail: String,
}

impl CheckResult {
    /// Tells whether it was made and did not hold.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        !self.passed && !self.not_proven
    }
}

/// A package in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its architecture.
    pub arch: String,
}

/// Reads `ID`, `VERSION_ID` from os-release(5).
#[must_use]
pub fn parse_os_release(text: &str, kernel: &str) -> Os {
    let value = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .map(|value| value.trim().trim_matches('"').to_owned())
            .unwrap_or_default()
    };
    Os { id: value("ID"), version: value("VERSION_ID"), kernel: kernel.trim().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_of_each_version_loads_and_a_later_one_is_refused() {
        let first = Manifest::parse(include_bytes!("../tests/golden/manifest/1.json")).unwrap();
        assert_eq!((first.format, first.disk.unwrap().file.as_str()), (1, "disk.qcow2"));
        assert!(first.place.is_none() && !first.checks[0].not_proven);
        let second = Manifest::parse(include_bytes!("../tests/golden/manifest/2.json")).unwrap();
        let place = second.place.unwrap();
        assert_eq!((place.vmid, place.volumes[0].size), (90001, Some(20 << 30)));
        assert!(second.disk.is_none() && second.checks[1].not_proven);
        let third = Manifest::parse(include_bytes!("../tests/golden/manifest/3.json")).unwrap();
        assert_eq!(
            (third.proofs[0].full, third.audits[0].figure, third.controls[1].applied),
            (true, 75, false)
        );
        assert_eq!(second.sbom, None);
        let sbom = third.sbom.unwrap();
        assert_eq!((third.format, sbom.file.as_str(), sbom.size), (3, crate::sbom::FILE, 1905));
        let later = Manifest::parse(br#"{"format": 4}"#).unwrap_err().to_string();
        assert!(later.starts_with("it has the format 4, and this forge reads 1 to 3"), "{later}");
        assert!(matches!(Manifest::parse(b"{}"), Err(ManifestError::Shape(_))));
    }

    #[test]
    fn os_release_is_read_with_and_without_quotes() {
        let os = parse_os_release("VERSION_ID=\"24.04\"\nID=ubuntu\nID_LIKE=debian\n", "6.8.0\n");
        assert_eq!(os, Os { id: "ubuntu".into(), version: "24.04".into(), kernel: "6.8.0".into() });
    }
}
