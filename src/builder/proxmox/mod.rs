//! Builds on Proxmox VE.

pub mod access;
#[cfg(test)]
mod fake;
pub mod journal;
pub mod leftovers;
pub mod marks;
pub mod process;
pub mod site;
pub mod survey;
