//! What a user may set: the table `[variables]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A variable: what a user may set.
///
/// The last of these that is there wins: `default`, the environment variable that `env` names,
/// `FORGE_VAR_<NAME>` (upper case), each `--var-file` in order, each `--var` in order.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Variable {
    /// The type of its value.
    #[serde(default, rename = "type")]
    pub kind: VariableType,
    /// Its value when nothing sets it; without a default it must be set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<serde_json::Value>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// An environment variable to read besides `FORGE_VAR_<NAME>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<String>,
    /// Whether its value must never be shown. A secret is a string without a default, may be unset
    /// (it is then empty), and goes where it is needed as `env` of a step or in a `*.j2` file.
    #[serde(default)]
    pub secret: bool,
    /// Whether it must be set to something; without a default it must, unless it is a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required: Option<bool>,
    /// The values it may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed: Option<Vec<serde_json::Value>>,
    /// A regular expression that the whole of a string value must match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
}

/// The type of a variable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VariableType {
    /// Text.
    #[default]
    String,
    /// A whole number.
    Integer,
    /// `true` or `false`.
    Bool,
    /// A list; from the command line as JSON or as `a,b,c`.
    List,
    /// A map; from the command line as JSON.
    Map,
}
