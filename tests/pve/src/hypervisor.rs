//! What the simulator needs of the machines behind its VMs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

/// A boxed future, so that the traits below can be used as objects.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A volume's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The file on this host.
    pub path: PathBuf,
    /// Its format as QEMU calls it: `raw`, `qcow2`.
    pub format: String,
}

/// How a machine's NICs are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// User-mode networking: no rights needed, nothing comes in.
    User,
    /// A tap device in the bridge that `netN` names.
    Bridge,
}

/// Everything needed to start a VM.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The VM's number.
    pub vmid: u32,
    /// Keys and values as stored in the VM's configuration.
    pub config: BTreeMap<String, String>,
    /// Volume id to file, for every volume that the configuration names.
    pub volumes: BTreeMap<String, Volume>,
    /// Where sockets and logs go.
    pub folder: PathBuf,
    /// The QEMU program.
    pub qemu: PathBuf,
    /// How NICs are connected.
    pub network: Network,
}

/// What a machine is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Whether the process lives.
    pub running: bool,
    /// QEMU's word: `running`, `paused`, `prelaunch`, `io-error`, …
    pub qmp: String,
    /// The process, while it lives.
    pub pid: Option<u32>,
    /// Since the process was started.
    pub uptime: Duration,
}

/// Why an agent call gave nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentError {
    /// The machine is not running.
    NotRunning,
    /// No answer in time; the command may still be done.
    Timeout,
    /// The agent's own refusal.
    Error {
        /// `GenericError`, `CommandNotFound`, …
        class: String,
        /// The agent's text.
        desc: String,
    },
}

/// Starts machines.
pub trait Hypervisor: Send + Sync + std::fmt::Debug {
    /// Starts a machine.
    ///
    /// # Errors
    /// What QEMU printed before it gave up, line by line.
    fn start(&self, spec: Spec) -> Later<'_, Result<Arc<dyn Machine>, String>>;

    /// The text of a cloud-init document: `user`, `network` or `meta`.
    fn cloud_init(&self, config: &BTreeMap<String, String>, document: &str) -> String;

    /// Writes the cloud-init volume from the configuration.
    ///
    /// # Errors
    /// The text for the task's log.
    fn write_cloud_init<'a>(
        &'a self,
        config: &'a BTreeMap<String, String>,
        volume: &'a Volume,
    ) -> Later<'a, Result<(), String>>;
}

/// A started machine.
pub trait Machine: Send + Sync {
    /// What it is doing now.
    fn status(&self) -> Status;

    /// One call to the guest agent: `guest-ping`, `guest-exec`, …
    ///
    /// # Errors
    /// No machine, no answer in time, or the agent's refusal.
    fn agent<'a>(
        &'a self,
        execute: &'a str,
        arguments: Value,
        timeout: Duration,
    ) -> Later<'a, Result<Value, AgentError>>;

    /// Presses the power button.
    ///
    /// # Errors
    /// QEMU's text.
    fn powerdown(&self) -> Later<'_, Result<(), String>>;

    /// Presses the reset button.
    ///
    /// # Errors
    /// QEMU's text.
    fn reset(&self) -> Later<'_, Result<(), String>>;

    /// Ends the process: asked, then by SIGTERM, then by SIGKILL.
    fn stop(&self) -> Later<'_, ()>;

    /// Presses a chord, such as `ctrl-alt-delete`.
    ///
    /// # Errors
    /// QEMU's text, carriage returns included.
    fn send_key<'a>(&'a self, chord: &'a str) -> Later<'a, Result<(), String>>;

    /// A command to the human monitor; its text.
    ///
    /// # Errors
    /// No answer.
    fn hmp<'a>(&'a self, command: &'a str) -> Later<'a, Result<String, String>>;

    /// Puts another medium into a CD-ROM drive, or none.
    ///
    /// # Errors
    /// QEMU's text.
    fn change_medium<'a>(
        &'a self,
        drive: &'a str,
        volume: Option<&'a Volume>,
    ) -> Later<'a, Result<(), String>>;

    /// Tells the guest that a disk has grown, and grows its volume.
    ///
    /// # Errors
    /// QEMU's text.
    fn resize<'a>(&'a self, drive: &'a str, bytes: u64) -> Later<'a, Result<(), String>>;

    /// Sets the password that a VNC client must know.
    ///
    /// # Errors
    /// QEMU's text.
    fn set_vnc_password<'a>(&'a self, password: &'a str) -> Later<'a, Result<(), String>>;

    /// The VNC server's socket.
    fn vnc_socket(&self) -> &Path;

    /// The socket of `serialN`, if the machine has one.
    fn serial_socket(&self, number: u8) -> Option<PathBuf>;

    /// Ends when the process has ended.
    fn wait_for_end(&self) -> Later<'_, ()>;
}
