//! Seed files: on a small volume, and over HTTP.
//!
//! An installer learns its answers without anything being typed:
//!
//! ```text
//!   CIDATA volume ──► early commands of the stub ──► answers: on the volume, or from the URL in
//!   (stub, constant)    stop sshd, confirm              the machine's serial number
//!                                                         │
//!   /autoinstall.yaml ◄───────────────────────────────────┘  the installer reads it again
//! ```
//!
//! [`volumes`] makes the volumes, [`server`] serves the answers and takes the installer's reports
//! and logs, [`installer`] turns the reports into a stage and a share.

pub mod installer;
pub mod iso9660;
pub mod server;
pub mod volumes;

pub use volumes::{cdrom_volume, config_drive_volume, nocloud_volume, serial, stub_volume};
