//! Processes that die with the simulator, even when it is killed.
//!
//! The kernel's parent-death signal does that; `setpriv` arms it in the child, because arming it from
//! here needs `unsafe`. The signal follows the *thread* that started the child, so each child has a
//! thread of its own that lives exactly as long as it does.

use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::{fs, io, thread};

use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::{oneshot, watch};

/// Ends at once if the simulator died before the signal was armed; becomes the program otherwise.
const ARMED: &str = r#"[ "$PPID" = "$0" ] || exit 125; exec "$@""#;

/// A running process; dropping it kills it.
#[derive(Debug)]
pub(super) struct Guard {
    pid: u32,
    exit: watch::Receiver<Option<ExitStatus>>,
}

/// Returns a command that runs `program` armed, in a process group of its own so that a Ctrl-C on the
/// terminal does not reach it, with its errors in `log`.
pub(super) fn armed(program: &Path, log: &Path) -> Result<Command, String> {
    use std::os::unix::process::CommandExt as _;
    let errors = fs::File::create(log).map_err(|error| format!("creating {}: {error}", log.display()))?;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "/bin/sh", "-c", ARMED]);
    command.arg(std::process::id().to_string()).arg(program);
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
    Ok(command)
}

impl Guard {
    /// Starts a command made by [`armed`].
    pub(super) async fn spawn(command: Command) -> io::Result<Self> {
        let (started, has_started) = oneshot::channel();
        thread::Builder::new().stack_size(256 * 1024).spawn(move || tend(command, started))?;
        has_started.await.expect("the thread answers before it ends")
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for the process to end.
    pub(super) async fn wait(&self) -> ExitStatus {
        let mut exit = self.exit.clone();
        let status = exit.wait_for(Option::is_some).await;
        (*status.expect("the thread lives as long as the process")).expect("just waited for")
    }

    pub(super) fn ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Sends the process a signal, if it still runs.
    pub(super) fn signal(&self, signal: Signal) {
        // Until the thread has said that it ended nobody else can have its id.
        if let Some(pid) = Pid::from_raw(self.pid.cast_signed()).filter(|_| !self.ended()) {
            kill_process(pid, signal).ok();
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Starts the process and stays until it ends.
fn tend(mut command: Command, started: oneshot::Sender<io::Result<Guard>>) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            // Nobody hears it when the caller was cancelled.
            drop(started.send(Err(error)));
            return;
        }
    };
    let (ended, exit) = watch::channel(None);
    // A guard that nobody takes is dropped here, and kills the process.
    drop(started.send(Ok(Guard { pid: child.id(), exit })));
    let status = child.wait().expect("the process is this thread's own child");
    ended.send_replace(Some(status));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_runs_is_signalled_and_its_end_is_told() {
        use std::os::unix::process::ExitStatusExt as _;
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut command = armed(Path::new("/bin/sh"), &log).unwrap();
        command.args(["-c", "echo hello >&2; exec sleep 60"]);
        let guard = Guard::spawn(command).await.unwrap();
        assert!(!guard.ended());
        guard.signal(Signal::TERM);
        assert_eq!(guard.wait().await.signal(), Some(15));
        assert!(guard.ended());
    }

    #[tokio::test]
    async fn a_child_of_a_dead_parent_does_not_start() {
        let mut command = Command::new("/bin/sh");
        // A process id that is not this process's.
        command.args(["-c", ARMED, "1", "/bin/true"]);
        assert_eq!(Guard::spawn(command).await.unwrap().wait().await.code(), Some(125));
    }

    #[tokio::test]
    async fn a_dropped_guard_kills() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = armed(Path::new("/bin/sleep"), &folder.path().join("log")).unwrap();
        command.arg("60");
        let guard = Guard::spawn(command).await.unwrap();
        let mut exit = guard.exit.clone();
        drop(guard);
        assert!(exit.wait_for(Option::is_some).await.unwrap().unwrap().code().is_none());
    }
}
