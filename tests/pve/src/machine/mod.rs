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
mod lines;
mod network;
mod process;
mod qmp;
mod tpm;

use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) use config::{is_windows, net, percent_decode};
pub use firmware::{Firmware, firmware};
use process::Process;

use crate::cloudinit::{self, Custom, Resolver};
use crate::hypervisor::{Hypervisor, Later, Machine, Spec, Volume};

/// Starts each VM as a QEMU process, or as what stands in for QEMU.
#[derive(Debug, Clone, Default)]
pub struct Qemu {
    /// Ports of this host that lead to the guest of the first NIC, where NICs are in user mode.
    pub forwards: Vec<Forward>,
    /// What cloud-init drives get from the node's `/etc/resolv.conf`.
    pub resolver: Resolver,
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

impl Hypervisor for Qemu {
    fn start(&self, spec: Spec) -> Later<'_, Result<Arc<dyn Machine>, String>> {
        Box::pin(async move {
            let machine: Arc<dyn Machine> = Arc::new(Process::start(spec, &self.forwards).await?);
            Ok(machine)
        })
    }

    fn cloud_init(&self, config: &BTreeMap<String, String>, document: &str) -> String {
        cloudinit::dump(config, vmid(config), &self.resolver, document).unwrap_or_else(|error| error)
    }

    fn write_cloud_init<'a>(
        &'a self,
        config: &'a BTreeMap<String, String>,
        volume: &'a Volume,
    ) -> Later<'a, Result<(), String>> {
        Box::pin(async move {
            let drive = cloudinit::drive(config, vmid(config), &self.resolver, Custom::default())?;
            let volume = volume.clone();
            let written = tokio::task::spawn_blocking(move || cloudinit::write_volume(&drive, &volume));
            written.await.map_err(|error| error.to_string())?
        })
    }
}

/// Returns the number of the VM that a configuration is of, as far as it says so: that of its drive.
fn vmid(config: &BTreeMap<String, String>) -> u32 {
    let of_drive = |value: &String| {
        let (before, _) = value.split_once("-cloudinit")?;
        before.rsplit("vm-").next()?.parse().ok()
    };
    config.values().find_map(of_drive).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_tells_its_vm_by_its_drive() {
        let config = |value: &str| BTreeMap::from([("ide2".to_owned(), value.to_owned())]);
        assert_eq!(vmid(&config("local:500/vm-500-cloudinit.qcow2,media=cdrom")), 500);
        assert_eq!(vmid(&config("local-zfs:vm-90001-cloudinit,media=cdrom")), 90001);
        assert_eq!(vmid(&config("none,media=cdrom")), 0);
    }
}
