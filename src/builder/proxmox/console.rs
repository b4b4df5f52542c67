//! What is seen of a VM from outside while nothing in it answers: its status, its screen, its serial port.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::site::failed;
use crate::builder::install::End;
use crate::failure::Failure;
use crate::pve::{Error, Vm, VmStatus};

/// How long a picture of the screen may take.
const PICTURE: Duration = Duration::from_secs(20);

/// How long after the serial port was closed it is opened again: a guest's restart closes it.
const REOPEN: Duration = Duration::from_secs(2);

/// The file that says why there is no picture or no log, beside where it would be.
const TROUBLE: &str = "console.txt";

/// Waits for a VM's end. Questions without an answer say nothing about the VM: whoever waits has a
/// deadline.
pub(super) async fn end_of(vm: &Vm) -> Result<End, Failure> {
    loop {
        match vm.status().await {
            Ok(status) => {
                if let Some(end) = end_in(&status) {
                    return Ok(end);
                }
            }
            Err(error) if error.is_not_found() => {
                return Ok(End::Died(format!(
                    "VM {} on {} is gone: somebody removed it",
                    vm.vmid(),
                    vm.node()
                )));
            }
            Err(error) if error.is_passing() || error.is_unknown() => {}
            Err(error) => return Err(failed(error)),
        }
        sleep(vm.client().pace().agent_silent).await;
    }
}

/// Returns what a status says of the VM's end.
fn end_in(status: &VmStatus) -> Option<End> {
    if !status.is_running() {
        return Some(End::PoweredOff);
    }
    match status.qmpstatus.as_deref() {
        Some("guest-panicked") => Some(End::Panicked),
        Some("io-error") => Some(End::Died(
            "the node paused the VM because its disk could not be written to (io-error): is the storage full?"
                .to_owned(),
        )),
        Some("internal-error") => Some(End::Died("QEMU failed inside (internal-error)".to_owned())),
        _ => None,
    }
}

/// Presses Enter.
pub(super) async fn press_enter(vm: &Vm) -> Result<(), String> {
    match vm.send_key("ret").await {
        Err(error @ (Error::Forbidden { .. } | Error::Refused { .. })) => Err(error.to_string()),
        _ => Ok(()),
    }
}

/// Takes pictures and the serial port's output of a VM until it is dropped.
#[derive(Debug)]
pub(super) struct Recorder {
    tasks: [JoinHandle<()>; 2],
}

impl Recorder {
    /// Begins, writing into that folder of the run's evidence: `screen-0001.png`, …, and `serial.log`.
    pub(super) fn begin(vm: &Vm, folder: PathBuf, every: Duration, has_serial: bool) -> Self {
        let screen = tokio::spawn(record_screen(vm.clone(), folder.clone(), every));
        let serial = tokio::spawn(record_serial(vm.clone(), folder, has_serial));
        Self { tasks: [screen, serial] }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn record_screen(vm: Vm, folder: PathBuf, every: Duration) {
    let mut last = Vec::new();
    let mut number = 0;
    loop {
        sleep(every).await;
        match vm.screenshot(PICTURE).await {
            Ok(picture) if picture.pixels == last => {}
            Ok(picture) => {
                number += 1;
                let _written = fs::write(folder.join(format!("screen-{number:04}.png")), picture.png());
                last = picture.pixels;
            }
            Err(error @ (Error::Forbidden { .. } | Error::Refused { .. } | Error::NotFound { .. })) => {
                return note_trouble(&folder, "no pictures of the screen", &error);
            }
            // A console that breaks, or a VM that is off for a moment: the next picture may be had.
            Err(_) => {}
        }
    }
}

async fn record_serial(vm: Vm, folder: PathBuf, has_serial: bool) {
    let file = fs::OpenOptions::new().create(true).append(true).open(folder.join("serial.log"));
    let Ok(mut file) = file else { return };
    if !has_serial {
        return;
    }
    loop {
        match vm.serial(0).await {
            Ok(mut log) => {
                while let Ok(Some(bytes)) = log.read().await {
                    if file.write_all(&bytes).is_err() {
                        return;
                    }
                }
            }
            Err(error @ Error::NotRunning { .. }) => drop(error),
            Err(error) => return note_trouble(&folder, "no log of the serial port", &error),
        }
        sleep(REOPEN).await;
    }
}

/// Says why evidence is missing: it must not end a build that succeeds without it.
fn note_trouble(folder: &std::path::Path, what: &str, error: &Error) {
    let file = fs::OpenOptions::new().create(true).append(true).open(folder.join(TROUBLE));
    if let Ok(mut file) = file {
        let _written = writeln!(file, "{what}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_tells_of_the_end() {
        let end = |text: &str| end_in(&serde_json::from_str(text).unwrap());
        assert_eq!(
            end(r#"{"vmid": 9000, "status": "stopped", "qmpstatus": "stopped"}"#),
            Some(End::PoweredOff)
        );
        assert_eq!(end(r#"{"vmid": 9000, "status": "running", "qmpstatus": "running"}"#), None);
        assert_eq!(end(r#"{"vmid": 9000, "status": "running"}"#), None);
        assert_eq!(
            end(r#"{"vmid": 9000, "status": "running", "qmpstatus": "guest-panicked"}"#),
            Some(End::Panicked)
        );
        let full =
            end(r#"{"vmid": 9000, "status": "running", "qmpstatus": "io-error"}"#).unwrap().to_string();
        assert!(full.contains("is the storage full?"), "{full}");
    }
}
