//! A root file system in a folder, as a guest: its commands run in namespaces of their own.
//!
//! ```text
//! forge ──(pipe)──► stage.sh   mounts the root, by systemd-nspawn or by itself       host
//!   │                  └─► inside.sh ─► wait.sh   first process, ends with the pipe  ┐ the root's
//!   └──► setsid nsenter ─► enter.sh ─► COMMAND    a session for each                 ┘ namespaces
//! ```
//!
//! The guest's processes see processes, mounts, a host name and System V objects of their own; the network
//! is the host's. They are in a user namespace in which every number stands for itself: root over the files
//! of the root, and nobody to the kernel. So what is mounted read-only (`/sys`, and of `/proc` what is not a
//! process) stays so, and no device can be made. `/run`, `/tmp` and `/dev` are empty when a root is opened,
//! and forgotten. Nothing is mounted where the host sees it, so nothing mounted can be left behind there.

mod command;
mod namespaces;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tempfile::TempDir;
use tokio::process::ChildStdin;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use self::namespaces::{Namespaces, Tools};
use super::{
    Communicator, CommunicatorError, EXEC_INPUT_MAX, Exec, Failure, GET_FILE_MAX, Output, PUT_FILE_MAX,
    describe,
};

/// How long the first process may take to start.
const START: Duration = Duration::from_secs(30);

/// How long all processes may take to end.
const END: Duration = Duration::from_secs(10);

/// How long after a command's end the end of the whole root may become known.
const GRACE: Duration = Duration::from_millis(300);

/// What becomes of changes to a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// They are made in its folder.
    Kept,
    /// They are made in memory, and forgotten when the root is closed: the folder stays as it is.
    Forgotten,
}

/// Who makes the namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `systemd-nspawn`.
    Nspawn,
    /// `unshare`, with mounts of forge's own.
    Unshare,
}

impl Way {
    /// Returns the program's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nspawn => "systemd-nspawn",
            Self::Unshare => "unshare",
        }
    }
}

/// Why nothing can be done in a root.
#[derive(Debug, thiserror::Error)]
pub enum ChrootError {
    /// Somebody other than root runs forge.
    #[error("working in a root file system takes root")]
    NotRoot,
    /// The folder is not what it should be.
    #[error("{} is not a root file system: {reason}", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A program is missing.
    #[error("`{program}` is not installed (apt install {package})")]
    NotInstalled {
        /// The program.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// The namespaces could not be made.
    #[error("making namespaces with {}: {reason}", .way.as_str())]
    Namespaces {
        /// Who was to make them.
        way: Way,
        /// Why they could not.
        reason: String,
    },
}

/// An open root. All that runs there ends when it is closed or dropped, and when forge dies, of whatever.
#[derive(Debug)]
pub struct Chroot {
    way: Way,
    tools: Tools,
    namespaces: Namespaces,
    /// The end of the pipe that the first process waits for.
    pipe: Option<ChildStdin>,
    /// How the first process ended, once it has.
    end: watch::Receiver<Option<String>>,
    /// Kills the first process when it is dropped, and that ends all others.
    _keeper: AbortOnDropHandle<()>,
    /// The empty folder in the place of which the namespaces see the root.
    _work: TempDir,
}

impl Chroot {
    /// Opens a root with `systemd-nspawn` where that works, else with `unshare`.
    ///
    /// # Errors
    /// See [`ChrootError`].
    pub async fn open(root: &Path, writes: Writes) -> Result<Self, ChrootError> {
        match Self::open_by(Way::Nspawn, root, writes).await {
            Err(ChrootError::Namespaces { .. } | ChrootError::NotInstalled { .. }) => {
                Self::open_by(Way::Unshare, root, writes).await
            }
            result => result,
        }
    }

    /// Opens a root in that way and no other.
    ///
    /// # Errors
    /// See [`ChrootError`].
    pub async fn open_by(way: Way, root: &Path, writes: Writes) -> Result<Self, ChrootError> {
        if !rustix::process::geteuid().is_root() {
            return Err(ChrootError::NotRoot);
        }
        let root = namespaces::checked(root)?;
        let tools = Tools::find(way)?;
        let failed = |reason: String| ChrootError::Namespaces { way, reason };
        let work = tempfile::Builder::new().prefix("forge-root-").tempdir();
        let work = work.map_err(|error| failed(format!("creating a folder: {error}")))?;
        let mut keeper = tools.stage(way, &root, writes, work.path());
        let mut keeper = keeper.spawn().map_err(|error| failed(error.to_string()))?;
        let pipe = keeper.stdin.take();
        let namespaces = match timeout(START, namespaces::first_process(&mut keeper)).await {
            Ok(found) => found.map_err(failed)?,
            Err(_) => return Err(failed(format!("nothing runs after {} s", START.as_secs()))),
        };
        let (ended, end) = watch::channel(None);
        let watching = tokio::spawn(async move {
            let status = keeper.wait().await.map_or_else(|error| error.to_string(), |it| it.to_string());
            ended.send_replace(Some(format!("its first process has ended: {status}")));
        });
        let keeper = AbortOnDropHandle::new(watching);
        Ok(Self { way, tools, namespaces, pipe, end, _keeper: keeper, _work: work })
    }

    /// Returns who made the namespaces.
    #[must_use]
    pub const fn way(&self) -> Way {
        self.way
    }

    /// Ends all that runs there, and waits until it has: nothing writes to the root any more.
    pub async fn close(mut self) {
        self.pipe = None;
        // Whoever does not end by then is killed.
        let _late = self.ended(END).await;
    }

    /// Returns how the root ended, if it has or does within that time.
    async fn ended(&self, within: Duration) -> Option<String> {
        let mut end = self.end.clone();
        let ended = timeout(within, end.wait_for(Option::is_some)).await;
        ended.ok()?.ok()?.clone()
    }

    async fn run(&self, command: &Exec) -> Result<Output, CommunicatorError> {
        let what = describe(command);
        let size = command.stdin.len();
        if size > EXEC_INPUT_MAX {
            return Err(CommunicatorError::TooLarge { what, size, limit: EXEC_INPUT_MAX });
        }
        let result = command::run(&self.tools, &self.namespaces, command).await;
        // Commands die with the first process.
        let may_be_gone = result.as_ref().map_or(true, |it| it.as_ref().is_some_and(command::was_killed));
        if may_be_gone && let Some(end) = self.ended(GRACE).await {
            return Err(Failure::Gone(end).of(what));
        }
        match result {
            Ok(Some(output)) => Ok(output),
            Ok(None) => Err(CommunicatorError::Timeout { what, after: command.timeout }),
            Err(failure) => Err(failure.of(what)),
        }
    }

    /// Runs a line of shell with a path as its argument.
    async fn with_path(&self, line: &str, path: &str, stdin: &[u8]) -> Result<Output, CommunicatorError> {
        self.run(&Exec::new(["/bin/sh", "-c", line, "forge", path]).stdin(stdin)).await
    }
}

impl Communicator for Chroot {
    fn exec<'a>(&'a self, command: &'a Exec) -> BoxFuture<'a, Result<Output, CommunicatorError>> {
        Box::pin(self.run(command))
    }

    fn put_file<'a>(
        &'a self,
        path: &'a str,
        content: &'a [u8],
    ) -> BoxFuture<'a, Result<(), CommunicatorError>> {
        Box::pin(async move {
            let what = format!("writing {path}");
            if content.len() > PUT_FILE_MAX {
                return Err(CommunicatorError::TooLarge { what, size: content.len(), limit: PUT_FILE_MAX });
            }
            succeeded(self.with_path("cat >\"$1\"", path, content).await?, what).map(drop)
        })
    }

    fn get_file<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Vec<u8>, CommunicatorError>> {
        Box::pin(async move {
            let what = format!("reading {path}");
            let output = self.with_path("exec cat <\"$1\"", path, &[]).await?;
            if output.truncated {
                let (size, limit) = (GET_FILE_MAX + 1, GET_FILE_MAX);
                return Err(CommunicatorError::TooLarge { what, size, limit });
            }
            succeeded(output, what).map(|output| output.stdout)
        })
    }

    fn wait_for_reboot<'a>(
        &'a self,
        _: &'a str,
        _: Duration,
    ) -> BoxFuture<'a, Result<(), CommunicatorError>> {
        let reason = "a root file system in a folder does not boot".to_owned();
        Box::pin(async { Err(Failure::Refused(reason).of("restarting the guest")) })
    }
}

/// Returns the output of a command of forge's own, or what it said if it failed.
fn succeeded(output: Output, what: String) -> Result<Output, CommunicatorError> {
    if output.success() {
        return Ok(output);
    }
    Err(Failure::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()).of(what))
}
