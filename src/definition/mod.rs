//! Reads definitions and builder profiles: TOML text to checked values.
//!
//! ```text
//! text ─► spanned tree ─► extends merged ─► variables chosen ─► strings rendered ─► shape checked
//!                                          ─► rules checked ─► files found and parsed ─► structs
//! ```
//!
//! Each stage adds what it finds wrong and hands on the rest, so that one run reports everything;
//! a value that could not be found out is `Unknown` and is not complained about again.
//!
//! # Names in expressions
//! - In a definition's strings: `var.<name>`.
//! - In `*.j2` files of steps also `template.name`, `template.vmid`, `template.release`, and
//!   `machine.*` with the keys of the table `[machine]`.
//! - In `*.j2` files of seeds also `forge.url` (this build's base URL on forge's server, ends with
//!   `/`), `forge.report_url` (takes the installer's reports), `forge.logs_url` (takes a log archive
//!   by PUT or POST) and `forge.ready_url` (takes a POST when the installed system's agent has started).
//!
//! The filters are minijinja's, `toyaml` (a value as YAML) and `shquote` (a text as one shell
//! word, a list as many).

pub(crate) mod autoinstall;
mod controls;
pub(crate) mod diagnostics;
pub(crate) mod expression;
pub(crate) mod files;
mod load;
pub mod model;
mod pve_keys;
pub(crate) mod render;
mod root;
mod rules;
pub mod schema;
mod secret;
mod shape;
mod tree;
mod variables;

pub use controls::{ControlState, HARDENING_STEP, NamedControl};
pub use diagnostics::{Diagnostic, Diagnostics, Style};
pub use files::{FileReference, FileRole};
pub use load::{
    Checked, LOCAL_PROFILE, Loaded, check, diagnostics, load, load_controls, load_profile, same_vmid,
    stray_variables, variable_names,
};
pub use model::*;
pub use root::Root;
pub use secret::Secret;
pub use variables::{Inputs, ResolvedVariable, VariableValue};
