//! Runs commands and moves files in a guest.
//!
//! The contract is that of the narrowest communicator, the guest agent behind the Proxmox API
//! (qemu-server, `src/PVE/API2/Qemu/Agent.pm`): input of at most 64 KiB a command, files of at
//! most 60 KiB a call, output only after the command has ended. What needs more (live output,
//! bulk content) is built on top of it, in [`crate::provision`].

pub mod chroot;
pub mod pve_agent;
pub mod socket_agent;

#[cfg(test)]
mod contract;

use std::fmt;
use std::time::Duration;

use futures_util::future::BoxFuture;

/// The most bytes that [`Exec::stdin`] may hold.
pub const EXEC_INPUT_MAX: usize = 64 * 1024;

/// The most bytes that one [`Communicator::put_file`] may write.
pub const PUT_FILE_MAX: usize = 60 * 1024;

/// The most bytes that [`Communicator::get_file`] returns.
pub const GET_FILE_MAX: usize = 16 * 1024 * 1024;

/// What every command finds in its environment, unless it is given another value.
const ENVIRONMENT: [(&str, &str); 2] =
    [("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ("LC_ALL", "C.UTF-8")];

/// Where Linux tells which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A command in the guest, run as root without a shell.
#[derive(Clone)]
pub struct Exec {
    /// The program and its arguments. Never a secret: argv is visible to every guest process.
    pub argv: Vec<String>,
    /// What its standard input gets; the place for secrets.
    pub stdin: Vec<u8>,
    /// Its whole environment besides `PATH` and `LC_ALL=C.UTF-8`, as `(name, value)`.
    pub env: Vec<(String, String)>,
    /// How long it may take.
    pub timeout: Duration,
}

impl Exec {
    /// Returns a command with no input that may take a minute.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            stdin: Vec::new(),
            env: Vec::new(),
            timeout: Duration::from_mins(1),
        }
    }

    /// Returns `sh -c SCRIPT`, for a line of shell of forge's own.
    pub fn shell(script: impl Into<String>) -> Self {
        Self::new(["/bin/sh".to_owned(), "-c".to_owned(), script.into()])
    }

    /// Returns the command with another deadline.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Returns the command with that standard input.
    #[must_use]
    pub fn stdin(mut self, stdin: impl Into<Vec<u8>>) -> Self {
        self.stdin = stdin.into();
        self
    }
}

impl fmt::Debug for Exec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.env.iter().map(|(name, _)| name).collect();
        f.debug_struct("Exec").field("argv", &self.argv).field("env", &names).finish_non_exhaustive()
    }
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
    /// Whether the communicator cut the output short.
    pub truncated: bool,
}

impl Output {
    /// Tells whether the command exited with 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    /// Returns standard output as text without surrounding white space.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }
}

/// Why a communicator could not do what it was asked, by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum CommunicatorError {
    /// The command certainly did not start: it may be tried again.
    #[error("{what}: the guest was not reached: {reason}")]
    NotSent {
        /// What was asked.
        what: String,
        /// Why.
        reason: String,
    },
    /// The command may have run, and its result is lost: do not repeat it blindly.
    #[error("{what}: the guest did not answer: {reason}")]
    Unknown {
        /// What was asked.
        what: String,
        /// Why.
        reason: String,
    },
    /// The guest refused (no such program, no such file, not permitted).
    #[error("{what}: refused by the guest: {reason}")]
    Refused {
        /// What was asked.
        what: String,
        /// The guest's own words.
        reason: String,
    },
    /// The command still ran at its deadline.
    #[error("{what}: still running after {}", crate::event::human_duration(*.after))]
    Timeout {
        /// What was asked.
        what: String,
        /// The deadline.
        after: Duration,
    },
    /// The machine is gone: it powered off, crashed or was killed.
    #[error("{what}: the machine is gone: {reason}")]
    Gone {
        /// What was asked.
        what: String,
        /// What is known of its end.
        reason: String,
    },
    /// The request is larger than the communicator carries.
    #[error("{what}: {size} bytes are more than the {limit} that one call carries")]
    TooLarge {
        /// What was asked.
        what: String,
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
}

/// Why a request to an agent has no result; see [`CommunicatorError`].
#[derive(Debug)]
enum Failure {
    NotSent(String),
    Lost(String),
    Refused(String),
    Gone(String),
}

impl Failure {
    /// Returns the error of what was asked.
    fn of(self, what: impl Into<String>) -> CommunicatorError {
        let what = what.into();
        match self {
            Self::NotSent(reason) => CommunicatorError::NotSent { what, reason },
            Self::Lost(reason) => CommunicatorError::Unknown { what, reason },
            Self::Refused(reason) => CommunicatorError::Refused { what, reason },
            Self::Gone(reason) => CommunicatorError::Gone { what, reason },
        }
    }

    /// Returns the failure of a request that belongs to a command which has started.
    fn lost(self) -> Self {
        match self {
            Self::NotSent(reason) => Self::Lost(reason),
            other => other,
        }
    }
}

/// Runs commands and moves files in one guest, as root.
pub trait Communicator: Send + Sync {
    /// Runs a command and returns its result, whatever its exit code.
    ///
    /// # Errors
    /// See [`CommunicatorError`]; a non-zero exit code is not an error here.
    fn exec<'a>(&'a self, command: &'a Exec) -> BoxFuture<'a, Result<Output, CommunicatorError>>;

    /// Writes a file of at most [`PUT_FILE_MAX`] bytes, replacing what was there.
    ///
    /// # Errors
    /// See [`CommunicatorError`].
    fn put_file<'a>(
        &'a self,
        path: &'a str,
        content: &'a [u8],
    ) -> BoxFuture<'a, Result<(), CommunicatorError>>;

    /// Returns a file's content, at most [`GET_FILE_MAX`] bytes.
    ///
    /// # Errors
    /// See [`CommunicatorError`].
    fn get_file<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Vec<u8>, CommunicatorError>>;

    /// Waits, until the deadline, for the guest to answer after `reboot` was asked of it: the agent
    /// of the *new* boot, told from the old one by the kernel's boot id.
    ///
    /// # Errors
    /// See [`CommunicatorError`].
    fn wait_for_reboot<'a>(
        &'a self,
        previous_boot_id: &'a str,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<(), CommunicatorError>>;
}

/// What a guest agent does besides running commands and moving files.
pub trait GuestAgent: Communicator {
    /// Freezes the file systems and returns how many; until they are thawed, nothing else can be asked.
    ///
    /// # Errors
    /// See [`CommunicatorError`].
    fn freeze(&self) -> BoxFuture<'_, Result<i64, CommunicatorError>>;

    /// Thaws the file systems and returns how many.
    ///
    /// # Errors
    /// See [`CommunicatorError`].
    fn thaw(&self) -> BoxFuture<'_, Result<i64, CommunicatorError>>;

    /// Sets a user's password.
    ///
    /// # Errors
    /// See [`CommunicatorError`]; the password is in none.
    fn set_user_password<'a>(
        &'a self,
        user: &'a str,
        password: &'a str,
    ) -> BoxFuture<'a, Result<(), CommunicatorError>>;
}

/// Returns the error of a guest that is not back from a reboot in time: `answers` says whether it is the old
/// boot that answered last.
fn no_other_boot(answers: bool, limit: Duration) -> CommunicatorError {
    if answers {
        return CommunicatorError::Timeout { what: "the boot that was to end".to_owned(), after: limit };
    }
    let reason = format!("not within {}", crate::event::human_duration(limit));
    Failure::NotSent(reason).of("waiting for the guest to be back")
}

/// Returns a command as errors name it: its arguments, which are no secrets, cut to a readable length.
fn describe(command: &Exec) -> String {
    const LENGTH: usize = 80;
    let text = command.argv.join(" ").replace('\n', " ");
    match text.char_indices().nth(LENGTH) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Returns a command's whole environment as lines of shell.
fn environment(command: &Exec) -> Result<String, String> {
    let given = |name: &str| command.env.iter().any(|(key, _)| key == name);
    let fixed = ENVIRONMENT.into_iter().filter(|(name, _)| !given(name));
    let env = fixed.chain(command.env.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let mut lines = Vec::new();
    for (name, value) in env {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if !name.chars().all(plain) || name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(format!("`{name}` is no name for an environment variable"));
        }
        lines.push(format!("export {name}={}", quote(value)?));
    }
    Ok(lines.join("\n"))
}

/// Returns a text as one word of a shell.
fn quote(text: &str) -> Result<String, String> {
    if text.contains('\0') {
        return Err("an argument or variable has a NUL in it".to_owned());
    }
    Ok(format!("'{}'", text.replace('\'', r"'\''")))
}
