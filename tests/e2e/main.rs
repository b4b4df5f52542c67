//! The real-machine tier (`make e2e`): the real `templates/ubuntu-noble` is built from a real medium
//! in a real QEMU. Only variables differ from a user's build: the medium, its mirror, and the
//! operating system that it installs (see `tests/standin`). Hardening is tried in that medium's root file
//! system, in a folder.

#![expect(clippy::print_stdout, reason = "what was measured is part of the result")]

mod build;
mod controls;
mod full;
mod local;
mod lynis;
mod node;
mod report;
mod root;
mod seal;
mod upload;

#[path = "../proxmox/requests.rs"]
mod requests;
