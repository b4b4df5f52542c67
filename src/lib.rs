//! forge builds, tests and promotes machine templates for Proxmox VE.
//!
//! Data flows one way:
//!
//! ```text
//! templates/<name>/template.toml   what to build           ┐
//! builders/<name>.toml             where to build it       ├─► definition ─► plan (resolved, hashed)
//! http/                            seed files for guests   ┘                  │
//!                                                                             ▼
//!       fetch ─► launch ─► install ─► connect ─► provision ─► check ─► seal ─► sweep ─► prove ─► artifact
//!       └───────────────── run: one step after another, with undo and cancel ────────────────┘
//!                                   └─► events ─► report (terminal | lines | JSON)
//! ```
//!
//! Core modules ([`definition`], [`plan`], [`event`], [`artifact`], [`sbom`], [`failure`], [`diagnosis`]) are
//! plain data and rules. Edges ([`qemu`], [`pve`], [`communicator`], [`fetch`], [`seed`]) each talk to one thing outside.
//! Work ([`builder`], [`provision`], [`check`], [`sweep`], [`run`], [`report`]) uses both.

pub mod artifact;
pub mod builder;
pub mod check;
pub mod cli;
pub mod communicator;
pub mod definition;
pub mod diagnosis;
pub mod event;
pub mod failure;
pub mod fetch;
pub mod plan;
pub mod provision;
pub mod pve;
pub mod qemu;
pub mod report;
pub mod run;
pub mod sbom;
pub mod seed;
pub mod sweep;
#[cfg(test)]
mod testing;

/// forge's version, with the git revision it was built from where that is known.
pub const VERSION: &str = env!("FORGE_VERSION");

/// The git revision forge was built from, where it is known.
pub const REVISION: Option<&str> = option_env!("FORGE_REVISION");
