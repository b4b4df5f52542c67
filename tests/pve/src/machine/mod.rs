//! The machines behind the simulated VMs: QEMU processes made from a VM's stored configuration.
//!
//! ```text
//! Spec ─► config (parsed) ─► args (argv) ─► process: QEMU, swtpm, taps ─► Machine
//!                                                     ├─ qmp    status, keys, monitor, media
//!                                                     ├─ agent  one call at a time
//!                                                     └─ sockets for VNC and serial consoles
//! ```
//! Error texts are those of qemu-server where it has one, so that a task can end with them.

mod agent;
mod args;
mod config;
mod firmware;
mod guard;
mod hypervisor;
mod lines;
mod network;
mod process;
mod qmp;
mod tpm;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use agent::AgentError;
pub(crate) use config::{is_windows, net, percent_decode};
pub use firmware::{Firmware, firmware};
pub use hypervisor::Qemu;
pub use process::{End, Machine, Powerdown, Status};

/// What a machine is started from.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The VM's id.
    pub vmid: u32,
    /// Keys and values as they stand in the VM's configuration file, without pending ones.
    pub config: BTreeMap<String, String>,
    /// The volumes that the configuration names, by volume id.
    pub volumes: BTreeMap<String, Volume>,
    /// The machine's own folder: sockets and logs. Its path must leave room for a socket's name.
    pub folder: PathBuf,
    /// QEMU, or what stands in for it.
    pub qemu: PathBuf,
    /// Where the NICs lead.
    pub network: Network,
}

/// The host of the machines, as far as they depend on it.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// Whether the simulated node has hardware virtualisation; without it a VM needs `kvm: 0`.
    pub kvm: bool,
    /// Ports of this host that lead to the guest of the first NIC, where NICs are [`Network::User`].
    pub forwards: Vec<Forward>,
}

/// A volume on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its file.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
}

/// A volume's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// As the guest sees it; ISO images too.
    Raw,
    /// QEMU's own.
    Qcow2,
}

/// Where a machine's NICs lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Each NIC into a network of its own, inside QEMU, in which 10.0.2.2 is this host's loopback.
    User,
    /// Each NIC into a tap on the bridge that it names; needs root and iproute2.
    Bridge,
}

/// A TCP port of this host's loopback that leads to the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// The port on 127.0.0.1.
    pub port: u16,
    /// The guest's address; without one, what QEMU's DHCP gives first.
    pub guest_address: Option<std::net::Ipv4Addr>,
    /// The guest's port.
    pub guest_port: u16,
}
