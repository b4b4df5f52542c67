//! What unit tests of several modules use: tools of this machine, and this machine as a guest.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::communicator::{Communicator, CommunicatorError, EXEC_INPUT_MAX, Exec, Output};

/// Returns a command that runs a tool of that Debian package, with no input.
///
/// # Panics
/// When the tool is not installed: the set-up installs all that tests need, and a test that cannot
/// look must not pass.
pub(crate) fn tool(name: &str, package: &str) -> Command {
    // Debian keeps the tools of administration out of a plain user's search path.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let found = path.split(':').map(|folder| Path::new(folder).join(name)).find(|file| file.is_file());
    let Some(program) = found else {
        panic!("`{name}` is not installed: run `.ci/setup`, which installs the package {package}");
    };
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}

/// Runs commands on this host, and loses the first answers.
#[derive(Debug)]
pub(crate) struct Host {
    losses: Mutex<u32>,
    /// Whether commands may complain on standard error.
    pub(crate) may_complain: bool,
    pub(crate) commands: Mutex<u32>,
}

impl Host {
    pub(crate) fn new(losses: u32) -> Self {
        Self { losses: Mutex::new(losses), may_complain: false, commands: Mutex::new(0) }
    }
}

impl Communicator for Host {
    fn exec<'a>(&'a self, command: &'a Exec) -> BoxFuture<'a, Result<Output, CommunicatorError>> {
        Box::pin(async move {
            *self.commands.lock().unwrap() += 1;
            let lost = self.losses.lock().unwrap().checked_sub(1);
            if let Some(left) = lost {
                *self.losses.lock().unwrap() = left;
                return Err(CommunicatorError::Unknown { what: "exec".into(), reason: "lost".into() });
            }
            assert!(command.stdin.len() <= EXEC_INPUT_MAX);
            let file = tempfile::tempfile().unwrap();
            std::io::Write::write_all(&mut &file, &command.stdin).unwrap();
            std::io::Seek::rewind(&mut &file).unwrap();
            let mut process = tokio::process::Command::new(&command.argv[0]);
            process.args(&command.argv[1..]).stdin(file);
            let output = process.output().await.unwrap();
            let is_well = self.may_complain || output.stderr.is_empty();
            assert!(is_well, "{}", String::from_utf8_lossy(&output.stderr));
            Ok(Output {
                code: output.status.code(),
                signal: None,
                stdout: output.stdout,
                stderr: output.stderr,
                truncated: false,
            })
        })
    }

    fn put_file<'a>(&'a self, _: &'a str, _: &'a [u8]) -> BoxFuture<'a, Result<(), CommunicatorError>> {
        unreachable!("who only looks writes nothing")
    }

    fn get_file<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Vec<u8>, CommunicatorError>> {
        unreachable!("who only looks needs no file whole")
    }

    fn wait_for_reboot<'a>(
        &'a self,
        _: &'a str,
        _: Duration,
    ) -> BoxFuture<'a, Result<(), CommunicatorError>> {
        unreachable!("who only looks reboots nothing")
    }
}

#[test]
#[should_panic(expected = "`no-such-tool` is not installed: run `.ci/setup`, which installs the package x")]
fn a_missing_tool_is_a_fault_of_the_set_up() {
    let _command = tool("no-such-tool", "x");
}
