//! This host as a guest, a place for one test with what is reported there, and steps to apply.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use forge::communicator::{Communicator, CommunicatorError, EXEC_INPUT_MAX, Exec, Output, PUT_FILE_MAX};
use forge::definition::{Packages, Shell, Step, Upload};
use forge::failure::Failure;
use forge::provision::{Bulk, Context, ProvisionError, apply};
use futures_util::future::BoxFuture;
use tokio::io::AsyncWriteExt;

use crate::files::FileServer;
use crate::output::Sink;

/// Runs commands as local processes. The `fault` befalls the call with that number, after (or,
/// for `NotSent`, instead of) doing what it asks.
pub(crate) struct Host {
    pub(crate) path: String,
    pub(crate) calls: AtomicUsize,
    pub(crate) fault: Option<(usize, Fault)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    NotSent,
    Unknown,
    Timeout,
    Refused,
    Gone,
}

impl Host {
    fn new() -> Self {
        Self { path: "/usr/sbin:/usr/bin:/sbin:/bin".to_owned(), calls: AtomicUsize::new(0), fault: None }
    }

    /// Counts a call and returns the fault that befalls it.
    fn fault(&self) -> Option<Fault> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        self.fault.filter(|(at, _)| *at == call).map(|(_, fault)| fault)
    }
}

pub(crate) fn error(fault: Fault) -> CommunicatorError {
    let (what, reason) = ("call".to_owned(), "on purpose".to_owned());
    match fault {
        Fault::NotSent => CommunicatorError::NotSent { what, reason },
        Fault::Unknown => CommunicatorError::Unknown { what, reason },
        Fault::Timeout => CommunicatorError::Timeout { what, after: Duration::from_secs(1) },
        Fault::Refused => CommunicatorError::Refused { what, reason },
        Fault::Gone => CommunicatorError::Gone { what, reason },
    }
}

impl Communicator for Host {
    fn exec<'a>(&'a self, command: &'a Exec) -> BoxFuture<'a, Result<Output, CommunicatorError>> {
        Box::pin(async move {
            let fault = self.fault();
            if let Some(Fault::NotSent | Fault::Refused | Fault::Gone) = fault {
                return Err(error(fault.unwrap()));
            }
            assert!(command.stdin.len() <= EXEC_INPUT_MAX);
            let mut child = tokio::process::Command::new(&command.argv[0])
                .args(&command.argv[1..])
                .env_clear()
                .env("PATH", &self.path)
                .env("LC_ALL", "C.UTF-8")
                .envs(command.env.iter().map(|(name, value)| (name, value)))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .unwrap();
            // A program that does not read its input is no failure.
            let mut stdin = child.stdin.take().unwrap();
            drop(stdin.write_all(&command.stdin).await);
            drop(stdin);
            let output = tokio::time::timeout(command.timeout, child.wait_with_output())
                .await
                .map_err(|_| error(Fault::Timeout))?
                .unwrap();
            match fault {
                Some(fault) => Err(error(fault)),
                None => Ok(Output {
                    code: output.status.code(),
                    signal: None,
                    stdout: output.stdout,
                    stderr: output.stderr,
                    truncated: false,
                }),
            }
        })
    }

    fn put_file<'a>(
        &'a self,
        path: &'a str,
        content: &'a [u8],
    ) -> BoxFuture<'a, Result<(), CommunicatorError>> {
        Box::pin(async move {
            assert!(content.len() <= PUT_FILE_MAX);
            let fault = self.fault();
            if fault != Some(Fault::NotSent) {
                fs::write(path, content).unwrap();
            }
            fault.map_or(Ok(()), |fault| Err(error(fault)))
        })
    }

    fn get_file<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Vec<u8>, CommunicatorError>> {
        Box::pin(async move { Ok(fs::read(path).unwrap()) })
    }

    fn wait_for_reboot<'a>(
        &'a self,
        _previous_boot_id: &'a str,
        _deadline: Duration,
    ) -> BoxFuture<'a, Result<(), CommunicatorError>> {
        unreachable!("this host is not rebooted")
    }
}

/// A place for one test, and what the provisioner reported.
pub(crate) struct Bench {
    pub(crate) host: Host,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) shown: Mutex<Vec<(Instant, String)>>,
    pub(crate) logged: Mutex<Vec<String>>,
    pub(crate) retries: Mutex<Vec<String>>,
    pub(crate) secrets: Vec<String>,
    pub(crate) bulk: Option<FileServer>,
    pub(crate) sink: Option<Sink>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self {
            host: Host::new(),
            folder: tempfile::tempdir().unwrap(),
            shown: Mutex::default(),
            logged: Mutex::default(),
            retries: Mutex::default(),
            secrets: Vec::new(),
            bulk: None,
            sink: None,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) async fn apply(&self, step: &Step, timeout: Duration) -> Result<(), ProvisionError> {
        self.with_context(async |cx| apply(step, timeout, cx).await).await
    }

    pub(crate) async fn with_context<T>(&self, work: impl AsyncFnOnce(&Context<'_>) -> T) -> T {
        let guest = self.path("run/forge");
        let show = |line: &str| self.shown.lock().unwrap().push((Instant::now(), line.to_owned()));
        let log = |line: &str| self.logged.lock().unwrap().push(line.to_owned());
        let retry = |attempt: u32, of: u32, why: &str| {
            self.retries.lock().unwrap().push(format!("{attempt}/{of}: {why}"));
        };
        let render = |path: &Path| -> Result<String, Failure> {
            Ok(fs::read_to_string(path).unwrap().replace("{{ name }}", "odin"))
        };
        let cx = Context {
            guest: &self.host,
            folder: guest.to_str().unwrap(),
            bulk: match (&self.bulk, &self.sink) {
                (Some(bulk), _) => Some(bulk),
                (None, sink) => sink.as_ref().map(|sink| sink as &dyn Bulk),
            },
            root: self.folder.path(),
            output: &show,
            log: &log,
            retry: &retry,
            render: &render,
            secrets: &self.secrets,
        };
        work(&cx).await
    }

    /// Runs an inline script of the shell.
    pub(crate) async fn run(&self, interpreter: &[&str], text: &str) -> Result<(), ProvisionError> {
        self.apply(&shell(interpreter, text), Duration::from_secs(30)).await
    }

    pub(crate) fn shown(&self) -> Vec<String> {
        self.shown.lock().unwrap().iter().map(|(_, line)| line.clone()).collect()
    }

    /// Fails if anything of forge is left in the guest.
    pub(crate) fn assert_clean(&self) {
        assert!(!self.path("run/forge").exists(), "something is left in the guest");
    }
}

pub(crate) const SH: &[&str] = &["/bin/sh", "-eu"];
pub(crate) const BASH: &[&str] = &["/bin/bash", "-eu"];

pub(crate) fn shell(interpreter: &[&str], text: &str) -> Step {
    Step {
        name: "test".to_owned(),
        shell: Some(Shell {
            inline: Some(text.to_owned()),
            interpreter: interpreter.iter().map(|&word| word.to_owned()).collect(),
            exit_codes: vec![0],
            ..Shell::default()
        }),
        ..Step::default()
    }
}

pub(crate) fn upload(source: &str, destination: &Path, mode: Option<&str>) -> Step {
    Step {
        name: "up".to_owned(),
        upload: Some(Upload {
            source: source.to_owned(),
            destination: destination.to_str().unwrap().to_owned(),
            mode: mode.map(str::to_owned),
            owner: None,
        }),
        ..Step::default()
    }
}

pub(crate) fn packages(install: &[&str], upgrade: bool) -> Step {
    Step {
        name: "packages".to_owned(),
        packages: Some(Packages { install: install.iter().map(|&name| name.to_owned()).collect(), upgrade }),
        ..Step::default()
    }
}

/// Tells whether a process with that marker in its command line is alive.
pub(crate) fn is_running(marker: &str) -> bool {
    fs::read_dir("/proc").unwrap().flatten().any(|process| {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ").contains(marker)
    })
}
