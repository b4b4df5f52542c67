//! Provisioners: what changes the guest.
//!
//! Everything goes through a [`Communicator`] alone, whose output comes only after a command has
//! ended. Scripts therefore run detached in the guest and are looked at from time to time (see
//! [`script`]); bulk content is offered over HTTP where the caller has a server, and else sent in
//! pieces.

mod lines;
mod marks;
mod output;
mod packages;
mod reboot;
mod script;
mod tarball;
mod transfer;
mod upload;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use script::{Script, script};
pub(crate) use transfer::base64;
pub use transfer::{Bulk, Content, Feed, Offer};

use crate::communicator::{Communicator, CommunicatorError};
use crate::definition::{Seal, Shell, Step};
use crate::event::human_duration;
use crate::failure::{Failure, Kind};
use lines::Mask;

/// The folder in the guest in which scripts lie while they run.
pub const GUEST_FOLDER: &str = "/run/forge";

/// What a provisioner works with.
pub struct Context<'a> {
    /// The guest.
    pub guest: &'a dyn Communicator,
    /// The folder in the guest in which scripts lie while they run: [`GUEST_FOLDER`].
    pub folder: &'a str,
    /// The caller's HTTP server, for bulk content.
    pub bulk: Option<&'a dyn Bulk>,
    /// The folder that paths in the definition are relative to.
    pub root: &'a Path,
    /// Takes each line of output, cut to 4 KiB, for people.
    pub output: &'a (dyn Fn(&str) + Send + Sync),
    /// Takes each line of output whole, for the log.
    pub log: &'a (dyn Fn(&str) + Send + Sync),
    /// Takes a retry: which attempt comes now, of how many, and why.
    pub retry: &'a (dyn Fn(u32, u32, &str) + Send + Sync),
    /// Renders a `*.j2` file.
    pub render: &'a (dyn Fn(&Path) -> Result<String, Failure> + Send + Sync),
    /// What must never be seen in output, logs and errors.
    pub secrets: &'a [String],
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("root", &self.root)
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

/// Why a provisioner failed, by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// The script ended with an exit code that does not mean success.
    #[error("{name}: {}{}", exit_text(*.code), place_text(.place.as_ref()))]
    Failed {
        /// The script.
        name: String,
        /// Its exit code.
        code: i32,
        /// Where in the script, if known.
        place: Option<Place>,
        /// Its last lines.
        tail: Vec<String>,
    },
    /// The script still ran at its deadline; it was ended with all its processes.
    #[error("{name}: still running after {}, so it was ended", human_duration(*.after))]
    TimedOut {
        /// The script.
        name: String,
        /// The deadline.
        after: Duration,
        /// Its last lines.
        tail: Vec<String>,
    },
    /// The script is gone without an exit code.
    #[error("{name}: vanished without an exit code: {reason}")]
    Vanished {
        /// The script.
        name: String,
        /// What is known.
        reason: &'static str,
        /// Its last lines.
        tail: Vec<String>,
    },
    /// The step cannot be done as it is written.
    #[error("{0}")]
    Invalid(String),
    /// A local file could not be read.
    #[error("reading {}", .path.display())]
    Local {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be rendered.
    #[error(transparent)]
    Render(#[from] Failure),
    /// The guest could not be reached, or refused.
    #[error(transparent)]
    Communicator(#[from] CommunicatorError),
}

/// Where a script failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The first line that may have failed, from 1.
    pub first: usize,
    /// The last line that may have failed; mostly the same.
    pub last: usize,
    /// The first line's text, without secrets.
    pub text: String,
}

impl ProvisionError {
    /// Returns the script's last lines, at most ten, without secrets.
    #[must_use]
    pub fn tail(&self) -> &[String] {
        match self {
            Self::Failed { tail, .. } | Self::TimedOut { tail, .. } | Self::Vanished { tail, .. } => tail,
            _ => &[],
        }
    }

    /// Returns the kind of failure that this is to the user.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Failed { .. } | Self::TimedOut { .. } | Self::Vanished { .. } => Kind::Provision,
            Self::Invalid(_) | Self::Local { .. } => Kind::Definition,
            Self::Render(failure) => failure.kind,
            Self::Communicator(_) => Kind::Guest,
        }
    }

    /// Tells whether another attempt may go better.
    fn is_worth_a_retry(&self) -> bool {
        match self {
            Self::Failed { .. } | Self::TimedOut { .. } | Self::Vanished { .. } => true,
            Self::Communicator(error) => is_transient(error),
            Self::Invalid(_) | Self::Local { .. } | Self::Render(_) => false,
        }
    }
}

fn exit_text(code: i32) -> String {
    match code {
        126 => "exit code 126 (not executable)".to_owned(),
        127 => "exit code 127 (command not found)".to_owned(),
        129..=192 => format!("exit code {code} (killed by signal {})", code - 128),
        _ => format!("exit code {code}"),
    }
}

fn place_text(place: Option<&Place>) -> String {
    match place {
        None => String::new(),
        Some(Place { first, last, text }) if first == last => format!(" at line {first}: `{text}`"),
        Some(Place { first, last, text }) => format!(" in lines {first} to {last}: `{text}` …"),
    }
}

/// Tells whether the guest may well answer the next time.
fn is_transient(error: &CommunicatorError) -> bool {
    matches!(
        error,
        CommunicatorError::NotSent { .. }
            | CommunicatorError::Unknown { .. }
            | CommunicatorError::Timeout { .. }
    )
}

/// Applies a step, as often as its retries allow; `timeout` is for one attempt. Whether the step
/// is wanted at all (`when`) is the plan's to say.
///
/// # Errors
/// The last attempt's [`ProvisionError`].
pub async fn apply(step: &Step, timeout: Duration, cx: &Context<'_>) -> Result<(), ProvisionError> {
    let attempts = step.retries + 1;
    let mut pause = Duration::from_secs(1);
    for attempt in 2..=attempts {
        match attempt_once(step, timeout, cx).await {
            Err(error) if error.is_worth_a_retry() => (cx.retry)(attempt, attempts, &error.to_string()),
            result => return result,
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(30));
    }
    attempt_once(step, timeout, cx).await
}

/// Removes the guest's identity and traces; the guest must be powered off right afterwards.
///
/// Besides its own environment the script gets `FORGE_ABSENT`, the patterns that must match
/// nothing at its end, one a line, and `FORGE_TRIM`, `yes` or `no`.
///
/// # Errors
/// See [`ProvisionError`]; what is left behind stands in its tail.
pub async fn seal(seal: &Seal, timeout: Duration, cx: &Context<'_>) -> Result<(), ProvisionError> {
    let text = read_script(&seal.script, cx)?;
    let mut env = seal.env.clone();
    env.insert("FORGE_ABSENT".to_owned(), seal.absent.join("\n"));
    env.insert("FORGE_TRIM".to_owned(), if seal.trim { "yes" } else { "no" }.to_owned());
    let what = Script {
        name: &seal.script,
        text: &text,
        interpreter: &["/bin/sh".to_owned(), "-eu".to_owned()],
        env: &env,
        exit_codes: &[0],
    };
    script(&what, timeout, cx).await
}

async fn attempt_once(step: &Step, timeout: Duration, cx: &Context<'_>) -> Result<(), ProvisionError> {
    match (&step.shell, &step.upload, &step.packages, &step.reboot) {
        (Some(shell), None, None, None) => run_shell(&step.name, shell, timeout, cx).await,
        (None, Some(upload), None, None) => upload::upload(&step.name, upload, timeout, cx).await,
        (None, None, Some(packages), None) => packages::install(&step.name, packages, timeout, cx).await,
        (None, None, None, Some(_)) => reboot::reboot(timeout, cx).await,
        _ => Err(ProvisionError::Invalid(format!(
            "step `{}` must have exactly one of `shell`, `upload`, `packages` and `reboot`",
            step.name
        ))),
    }
}

async fn run_shell(
    name: &str,
    shell: &Shell,
    timeout: Duration,
    cx: &Context<'_>,
) -> Result<(), ProvisionError> {
    let (name, text) = match (&shell.inline, &shell.script) {
        (Some(inline), None) => (name, inline.clone()),
        (None, Some(path)) => (path.as_str(), read_script(path, cx)?),
        _ => {
            return Err(ProvisionError::Invalid(format!(
                "step `{name}` must have exactly one of `inline` and `script`"
            )));
        }
    };
    let what = Script {
        name,
        text: &text,
        interpreter: &shell.interpreter,
        env: &shell.env,
        exit_codes: &shell.exit_codes,
    };
    script(&what, timeout, cx).await
}

/// Returns a script's text; a `*.j2` file is rendered.
fn read_script(path: &str, cx: &Context<'_>) -> Result<String, ProvisionError> {
    let path = cx.root.join(path);
    if is_rendered(&path) {
        return Ok((cx.render)(&path)?);
    }
    std::fs::read_to_string(&path).map_err(|source| ProvisionError::Local { path, source })
}

fn is_rendered(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "j2")
}

/// Returns the mask of the context's secrets.
fn mask(cx: &Context<'_>) -> Mask {
    Mask::new(cx.secrets)
}

/// Returns text as one word of a shell.
pub(crate) fn shell_quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_where_and_why() {
        let place = |first, last| Some(Place { first, last, text: "sshd -t".to_owned() });
        for (code, place, text) in [
            (3, None, "a.sh: exit code 3"),
            (127, place(4, 4), "a.sh: exit code 127 (command not found) at line 4: `sshd -t`"),
            (137, place(4, 6), "a.sh: exit code 137 (killed by signal 9) in lines 4 to 6: `sshd -t` …"),
        ] {
            let error = ProvisionError::Failed { name: "a.sh".to_owned(), code, place, tail: Vec::new() };
            assert_eq!(error.to_string(), text);
        }
    }

    #[test]
    fn quoted_text_is_one_word() {
        assert_eq!(shell_quote("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(shell_quote(""), "''");
    }
}
