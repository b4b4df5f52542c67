//! Which process this is, in words that another forge on this machine can check.

use std::fs;

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

/// A process on some machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// `NAME/ID`: the machine's name, and what tells this start of it and this container from others
    /// of that name.
    pub host: String,
    /// Its id.
    pub pid: u32,
    /// When it began, in clock ticks since the machine's start: ids are used again.
    pub start: u64,
}

impl Process {
    /// Returns the running process.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn this() -> anyhow::Result<Self> {
        let pid = std::process::id();
        let start = start_of(pid).with_context(|| format!("reading /proc/{pid}/stat"))?;
        Ok(Self { host: host(), pid, start })
    }
}

/// Returns this machine as [`Process::host`] has it.
///
/// Equal names do not make one machine: containers of one image share theirs, and a process id means
/// something in one container and one start of the machine only.
#[must_use]
pub fn host() -> String {
    let uname = rustix::system::uname();
    let name: String = uname.nodename().to_string_lossy().chars().map(plain).collect();
    let boot = fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let container = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    let hash = Sha256::new().chain_update(boot).chain_update(container.as_os_str().as_encoded_bytes());
    let hash = hash.finalize();
    format!("{name}/{:08x}", u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]))
}

fn plain(c: char) -> char {
    if c.is_ascii_alphanumeric() || ".-_".contains(c) { c } else { '_' }
}

/// Tells whether a process of this machine still runs; another one with its id is not it.
#[must_use]
pub fn is_alive(pid: u32, start: u64) -> bool {
    start_of(pid) == Some(start)
}

fn start_of(pid: u32) -> Option<u64> {
    parse_start(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Returns field 22 of `/proc/PID/stat`; field 2, the name, may hold blanks and brackets (`proc(5)`).
fn parse_start(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_read_past_a_strange_name() {
        let rest = (3..=30).map(|number| number.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(parse_start(&format!("7 (a) b (c)) {rest}")), Some(22));
        assert_eq!(parse_start("7 (a) S 1"), None);
    }

    #[test]
    fn this_process_lives_and_another_with_its_id_would_not() {
        let this = Process::this().unwrap();
        assert!(is_alive(this.pid, this.start));
        assert!(!is_alive(this.pid, this.start + 1));
        assert!(this.host.contains('/') && !this.host.contains(' '), "{}", this.host);
    }
}
