//! Builds on Proxmox VE.

pub mod journal;
pub mod marks;
pub mod process;
