//! Processes that die with forge, even when forge is killed by `kill -9`.
//!
//! The kernel's parent-death signal does that. `setpriv` arms it in the child, because arming it from
//! here needs `unsafe`. The signal follows the *thread* that started the child, so each child
//! has a thread of its own that lives exactly as long as it does.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::{fs, io, thread};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::{oneshot, watch};

use super::Error;

/// Ends at once if forge died before the signal was armed, and becomes the program otherwise.
const ARMED: &str = r#"[ "$PPID" = "$0" ] || exit 125; exec "$@""#;

/// A running process; dropping it kills it.
#[derive(Debug)]
pub(crate) struct Guard {
    pid: u32,
    pidfd: OwnedFd,
    exit: watch::Receiver<Option<ExitStatus>>,
}

/// The ends of a process's pipes, for those that were asked for.
#[derive(Debug, Default)]
pub(crate) struct Pipes {
    pub(crate) stdout: Option<ChildStdout>,
    pub(crate) stderr: Option<ChildStderr>,
}

/// Returns a command that runs `program` armed, in a process group of its own so that a Ctrl-C on
/// the terminal does not reach it, without standard input.
///
/// # Errors
/// [`Error::NotInstalled`] when `setpriv` is missing.
pub(crate) fn armed(program: &Path) -> Result<Command, Error> {
    let setpriv = find_program(Path::new("setpriv"), "util-linux")?;
    let mut command = Command::new(setpriv);
    command.args(["--pdeathsig", "KILL", "--", "/bin/sh", "-c", ARMED]);
    command.arg(std::process::id().to_string()).arg(program);
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null());
    Ok(command)
}

impl Guard {
    /// Starts a command made by [`armed`].
    ///
    /// # Errors
    /// [`Error::Io`] when it does not start.
    pub(crate) async fn spawn(command: Command, name: &str) -> Result<(Self, Pipes), Error> {
        let (started, has_started) = oneshot::channel();
        let doing = format!("starting {name}");
        thread::Builder::new()
            .name(format!("guard {name}"))
            .stack_size(256 * 1024)
            .spawn(move || tend(command, started))
            .map_err(Error::io(&doing))?;
        has_started.await.expect("the thread answers before it ends").map_err(Error::io(doing))
    }

    /// Returns the process's id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for the process to end.
    pub(crate) async fn wait(&self) -> ExitStatus {
        let mut exit = self.exit.clone();
        let status = exit.wait_for(Option::is_some).await;
        (*status.expect("the thread lives as long as the process")).expect("just waited for")
    }

    /// Kills the process, if it still runs.
    pub(crate) fn kill(&self) {
        // It fails only when the process has ended, and that is what is wanted.
        pidfd_send_signal(&self.pidfd, Signal::KILL).ok();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.kill();
    }
}

type Started = oneshot::Sender<io::Result<(Guard, Pipes)>>;

/// Starts the process and stays until it ends.
fn tend(mut command: Command, started: Started) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            // Nobody hears it when the caller was cancelled.
            drop(started.send(Err(error)));
            return;
        }
    };
    let (ended, exit) = watch::channel(None);
    let pipes = Pipes { stdout: child.stdout.take(), stderr: child.stderr.take() };
    let pid = Pid::from_child(&child);
    let guard = pidfd_open(pid, PidfdFlags::empty())
        .map(|pidfd| Guard { pid: child.id(), pidfd, exit })
        .map_err(|error| {
            child.kill().ok();
            io::Error::from(error)
        });
    // A guard that nobody takes is dropped here, and kills the process.
    drop(started.send(guard.map(|guard| (guard, pipes))));
    let status = child.wait().expect("the process is this thread's own child");
    ended.send_replace(Some(status));
}

/// Returns a program's path: as given if it has a slash, else from the search path.
///
/// # Errors
/// [`Error::NotInstalled`] with the Debian package that has it.
pub(crate) fn find_program(program: &Path, package: &'static str) -> Result<PathBuf, Error> {
    let executable = |path: &PathBuf| {
        use std::os::unix::fs::PermissionsExt as _;
        fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    let found = if program.components().count() > 1 {
        Some(program.to_owned()).filter(executable)
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|folder| folder.join(program)).find(executable)
    };
    found.ok_or_else(|| Error::NotInstalled { program: program.display().to_string(), package })
}

/// Returns an exit status as a person reads it.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => {
            let mut text = format!("signal {signal}");
            if signal == Signal::KILL.as_raw() {
                text += " (killed)";
            }
            text
        }
        (None, None) => status.to_string(),
    }
}

/// Returns the last lines of what a program wrote, on one line.
pub(crate) fn last_words(text: &[u8]) -> String {
    const LINES: usize = 5;
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut words = String::new();
    for line in &lines[lines.len().saturating_sub(LINES)..] {
        let separator = if words.is_empty() { "" } else { "; " };
        write!(words, "{separator}{line}").expect("writing to a string");
    }
    words
}

/// Returns an argument list as a text with one argument a line, for the run's folder.
pub(crate) fn one_a_line<S: AsRef<OsStr>>(args: &[S]) -> String {
    args.iter().fold(String::new(), |text, arg| text + &arg.as_ref().to_string_lossy() + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_runs_and_its_end_is_told() {
        let mut command = armed(Path::new("/bin/sh")).unwrap();
        command.args(["-c", "exit 7"]);
        let (guard, _) = Guard::spawn(command, "sh").await.unwrap();
        assert_eq!(describe(guard.wait().await), "exit code 7");
        guard.kill();
    }

    #[tokio::test]
    async fn dropping_kills() {
        let mut command = armed(Path::new("/bin/sleep")).unwrap();
        command.arg("60");
        let (guard, _) = Guard::spawn(command, "sleep").await.unwrap();
        let mut exit = guard.exit.clone();
        drop(guard);
        let status = exit.wait_for(Option::is_some).await.unwrap().unwrap();
        assert_eq!(describe(status), "signal 9 (killed)");
    }

    #[tokio::test]
    async fn a_child_of_a_dead_forge_does_not_start() {
        let mut command = Command::new("/bin/sh");
        // A process id that is not this process's.
        command.args(["-c", ARMED, "1", "/bin/true"]);
        let (guard, _) = Guard::spawn(command, "true").await.unwrap();
        assert_eq!(describe(guard.wait().await), "exit code 125");
    }

    #[test]
    fn a_missing_program_names_its_package() {
        for name in ["no-such-program-here", "/usr/share/no-such-program"] {
            let error = find_program(Path::new(name), "qemu-system-x86").unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("apt install qemu-system-x86"), "{error}");
        }
        assert!(find_program(Path::new("sh"), "dash").unwrap().is_absolute());
    }

    #[test]
    fn last_words_are_the_last_lines() {
        assert_eq!(last_words(b"1\n2\n\n3\n4\n5\n 6 \n"), "2; 3; 4; 5; 6");
        assert_eq!(last_words(b""), "");
    }
}
