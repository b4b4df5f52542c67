//! The tools of this machine that unit tests compare forge with.

use std::path::Path;
use std::process::{Command, Stdio};

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

#[test]
#[should_panic(expected = "`no-such-tool` is not installed: run `.ci/setup`, which installs the package x")]
fn a_missing_tool_is_a_fault_of_the_set_up() {
    let _command = tool("no-such-tool", "x");
}
