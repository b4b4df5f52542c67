//! Why QEMU or one of its tools could not do what it was asked.

use std::io;
use std::time::Duration;

use crate::event::human_duration;

/// Why QEMU or one of its tools could not do what it was asked, by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program is missing: install it.
    #[error("{program} is not installed (on Debian and Ubuntu: apt install {package})")]
    NotInstalled {
        /// The program, as it was looked for.
        program: String,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// This host cannot do what the definition or the builder profile asks: change one of them.
    #[error("{what}: {why}; {advice}")]
    Unable {
        /// What was asked.
        what: String,
        /// Why it cannot be.
        why: String,
        /// What would change it.
        advice: String,
    },
    /// The program ended by itself.
    #[error("{program} ended with {status}{}", after_colon(.stderr))]
    Died {
        /// The program.
        program: String,
        /// Its exit code or signal.
        status: String,
        /// Its last words, possibly none.
        stderr: String,
    },
    /// QEMU refused a command.
    #[error("QMP {command}: refused: {reason}")]
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's own words.
        reason: String,
    },
    /// QEMU runs and does not answer.
    #[error("QMP {command}: no answer within {}", human_duration(*.after))]
    NoAnswer {
        /// The command.
        command: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// QEMU closed the connection, most likely because it ended.
    #[error("QMP {command}: QEMU closed the connection")]
    Closed {
        /// The command.
        command: &'static str,
    },
    /// What was waited for did not happen in time.
    #[error("{what}: not within {}", human_duration(*.after))]
    Deadline {
        /// What was waited for.
        what: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The host's file system or kernel failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// The failure.
        source: io::Error,
    },
}

impl Error {
    /// Returns a function that gives an I/O error its context, for `map_err`.
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}

fn after_colon(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}
