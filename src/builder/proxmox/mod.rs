//! Builds on Proxmox VE.

pub mod access;
pub mod journal;
pub mod leftovers;
pub mod marks;
pub mod process;
pub mod site;
pub mod survey;
