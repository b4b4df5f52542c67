//! The shape of `templates/<name>/template.toml` and `builders/<name>.toml`.
//!
//! These structs are the one description of both files: `forge schema` prints them as JSON Schema,
//! and the checker in [`super`] walks a file's TOML tree along that same schema.

mod check;
mod hardening;
mod machine;
mod profile;
mod prove;
mod seal;
mod source;
mod step;
mod template;
mod timeouts;
mod variable;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use check::*;
pub use hardening::*;
pub use machine::*;
pub use profile::*;
pub use prove::*;
pub use seal::*;
pub use source::*;
pub use step::*;
pub use template::*;
pub use timeouts::*;
pub use variable::*;

/// The version of the definition format that this forge reads.
pub const DEFINITION_VERSION: u32 = 1;

/// A template's definition, `templates/<name>/template.toml`.
///
/// Every string but those of `schema`, `abstract`, `extends` and `variables` may hold expressions
/// over `var`, such as `"{{ var.release }}"`; a string that is one lone expression takes its type.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// The version of this format: 1.
    pub schema: u32,
    /// Whether this template only serves to be extended: it may be incomplete and is not built.
    #[serde(default, rename = "abstract", skip_serializing_if = "is_false")]
    pub is_abstract: bool,
    /// The name of a template to take over from: tables merge, steps, checks and contracts are appended,
    /// everything else is replaced (of `source.sha256` and `source.checksums`, one by the other).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extends: Option<String>,
    /// The builder profile to use when neither `--on` nor `FORGE_BUILDER` names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builder: Option<String>,
    /// What a user may set, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub variables: BTreeMap<String, Variable>,
    /// The template that the build makes.
    pub template: Template,
    /// The installer medium.
    pub source: Source,
    /// What the installer is told.
    #[serde(default)]
    pub seed: Seed,
    /// The machine, while building and in the template.
    #[serde(default)]
    pub machine: Machine,
    /// What changes the guest, in order.
    #[serde(default, rename = "step")]
    pub steps: Vec<Step>,
    /// What must hold in the guest, in the build and again in the proof's clone.
    #[serde(default, rename = "check")]
    pub checks: Vec<Check>,
    /// Which controls harden the guest.
    #[serde(default)]
    pub hardening: Hardening,
    /// What removes the guest's identity.
    #[serde(default)]
    pub seal: Seal,
    /// What proves the template.
    #[serde(default)]
    pub prove: Prove,
    /// Who clones the template, and how; the proof's clones are made so. By default there is one, called `clone`.
    #[serde(default, rename = "contract")]
    pub contracts: Vec<Contract>,
    /// How long each stage may take.
    #[serde(default)]
    pub timeouts: Timeouts,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde wants")]
const fn is_false(value: &bool) -> bool {
    !*value
}
