//! Builds on Proxmox VE.

pub mod access;
#[cfg(test)]
pub(crate) mod fake;
pub mod journal;
pub mod leftovers;
pub mod marks;
pub mod process;
pub mod site;
pub mod survey;
