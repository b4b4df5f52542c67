//! These machines as the simulator's core sees them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::{AgentError, Format, Forward, Host, Machine, Network, Spec, Volume};
use crate::cloudinit::{self, Custom, Resolver};
use crate::hypervisor::{self as core, Hypervisor, Later};

/// Starts each VM as a process of its own.
#[derive(Debug, Clone, Default)]
pub struct Qemu {
    /// Ports of this host that lead to the guest of the first NIC, where NICs are in user mode.
    pub forwards: Vec<Forward>,
    /// What cloud-init drives get from the node's `/etc/resolv.conf`.
    pub resolver: Resolver,
}

fn volume(volume: &core::Volume) -> Volume {
    let format = if volume.format == "qcow2" { Format::Qcow2 } else { Format::Raw };
    Volume { path: volume.path.clone(), format }
}

fn spec(spec: core::Spec) -> Spec {
    Spec {
        vmid: spec.vmid,
        volumes: spec.volumes.iter().map(|(volid, file)| (volid.clone(), volume(file))).collect(),
        config: spec.config,
        folder: spec.folder,
        qemu: spec.qemu,
        network: match spec.network {
            core::Network::User => Network::User,
            core::Network::Bridge => Network::Bridge,
        },
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

impl Hypervisor for Qemu {
    fn start(&self, given: core::Spec) -> Later<'_, Result<Arc<dyn core::Machine>, String>> {
        Box::pin(async move {
            // The core has looked whether its node can do what the VM's `kvm` says.
            let host = Host { kvm: true, forwards: self.forwards.clone() };
            let machine = Machine::start(spec(given), &host).await;
            let machine: Arc<dyn core::Machine> = Arc::new(machine.map_err(|text| log_lines(&text))?);
            Ok(machine)
        })
    }

    fn cloud_init(&self, config: &BTreeMap<String, String>, document: &str) -> String {
        cloudinit::dump(config, vmid(config), &self.resolver, document).unwrap_or_else(|error| error)
    }

    fn write_cloud_init<'a>(
        &'a self,
        config: &'a BTreeMap<String, String>,
        file: &'a core::Volume,
    ) -> Later<'a, Result<(), String>> {
        Box::pin(async move {
            let drive = cloudinit::drive(config, vmid(config), &self.resolver, Custom::default())?;
            let volume = volume(file);
            let written = tokio::task::spawn_blocking(move || cloudinit::write_volume(&drive, &volume));
            written.await.map_err(|error| error.to_string())?
        })
    }
}

/// Returns what goes to the task's log; the core ends the task itself.
fn log_lines(text: &str) -> String {
    let lines: Vec<&str> =
        text.lines().filter(|line| !line.starts_with("start failed: QEMU exited")).collect();
    lines.join("\n")
}

impl core::Machine for Machine {
    fn status(&self) -> core::Status {
        let status = Machine::status(self);
        core::Status { running: status.running, qmp: status.qmp, pid: status.pid, uptime: status.uptime }
    }

    fn agent<'a>(
        &'a self,
        execute: &'a str,
        arguments: Value,
        timeout: Duration,
    ) -> Later<'a, Result<Value, core::AgentError>> {
        Box::pin(async move {
            Machine::agent(self, execute, arguments, timeout).await.map_err(|error| match error {
                AgentError::NotRunning => core::AgentError::NotRunning,
                AgentError::Timeout | AgentError::Busy { .. } => core::AgentError::Timeout,
                AgentError::Error { class, desc } => core::AgentError::Error { class, desc },
            })
        })
    }

    fn powerdown(&self) -> Later<'_, Result<(), String>> {
        Box::pin(self.press_power_button())
    }

    fn reset(&self) -> Later<'_, Result<(), String>> {
        Box::pin(Machine::reset(self))
    }

    fn stop(&self) -> Later<'_, ()> {
        Box::pin(Machine::stop(self))
    }

    fn send_key<'a>(&'a self, chord: &'a str) -> Later<'a, Result<(), String>> {
        Box::pin(Machine::send_key(self, chord))
    }

    fn hmp<'a>(&'a self, command: &'a str) -> Later<'a, Result<String, String>> {
        Box::pin(Machine::hmp(self, command))
    }

    fn set_vnc_password<'a>(&'a self, password: &'a str) -> Later<'a, Result<(), String>> {
        Box::pin(Machine::set_vnc_password(self, password))
    }

    fn vnc_socket(&self) -> &Path {
        Machine::vnc_socket(self)
    }

    fn serial_socket(&self, number: u8) -> Option<PathBuf> {
        Machine::serial_socket(self, number.into())
    }

    fn wait_for_end(&self) -> Later<'_, ()> {
        Box::pin(async move {
            Machine::wait_for_end(self).await;
        })
    }
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

    #[test]
    fn the_log_leaves_out_what_the_task_ends_with() {
        assert_eq!(log_lines("a\nb\nstart failed: QEMU exited with code 1"), "a\nb");
    }
}
