//! Watches an installation: the machine, whatever runs it, and what the installer fetches and reports.
//!
//! ```text
//!   booting ─► answers fetched ─► installing (reports) ─► shutdown reported ─► powered off
//!      │ fetch deadline   │ installer says FAIL   │ install deadline    │ reset, panic, died
//!      └──────────────────┴───────────────────────┴─────────────────────┴─► diagnosis
//! ```
//!
//! Powering off counts as success only after the installer's own last event; where it sent no event at
//! all, the boot that follows decides, and the marker that the installer leaves last, see [`check_marker`].

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use futures_util::future::BoxFuture;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::communicator::{Communicator, Exec};
use crate::event::{Unit, human_duration};
use crate::failure::{Failure, Kind, ResultExt as _};
use crate::run::Step;
use crate::seed::installer::{Ended, InstallerProgress};
use crate::seed::server::ServerEvent;

/// What the installer copies into the installed system last of all, after the late-commands.
const MARKER: &str = "/var/log/installer";

/// How long a failed installer may take to send its logs.
const LOGS_GRACE: Duration = Duration::from_secs(45);

/// When Enter is pressed after power-on, to save the medium's menu its wait. It may come too early
/// or too late without harm: the menu's own timeout, and the confirming job, do not need it.
const ENTER_FROM: Duration = Duration::from_secs(2);
const ENTER_UNTIL: Duration = Duration::from_secs(16);
const ENTER_EVERY: Duration = Duration::from_secs(2);

/// What an installation is measured by.
#[derive(Debug, Clone)]
pub struct Limits {
    /// From power-on until the answers are fetched; `None` when they are on the volume.
    pub fetch: Option<Duration>,
    /// From power-on until the machine has powered off.
    pub install: Duration,
    /// The address that the guest was told, without the token.
    pub address: String,
    /// The name of the file with the answers.
    pub answers: String,
}

/// How the machine of an installation came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It is off, and nothing says that the guest did not do that itself.
    PoweredOff,
    /// The guest reset itself, where that ends the machine.
    Reset,
    /// The guest's kernel panicked.
    Panicked,
    /// What runs it failed, in its own words.
    Died(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PoweredOff => "the guest powered off",
            Self::Reset => "the guest reset itself",
            Self::Panicked => "the guest's kernel panicked",
            Self::Died(words) => words,
        })
    }
}

/// What is known of the machine whose installation is watched.
pub struct Watched<'a> {
    /// Resolves when the machine has come to its end, or cannot be watched any more.
    pub end: BoxFuture<'a, Result<End, Failure>>,
    /// Presses Enter on the machine's keyboard; an error says why it need not be tried again.
    pub press_enter: &'a (dyn Fn() -> BoxFuture<'a, Result<(), String>> + Send + Sync),
}

impl fmt::Debug for Watched<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Seen {
    answers: bool,
    reports: u64,
    progress: InstallerProgress,
    failed_at: Option<Instant>,
    logs: Option<PathBuf>,
}

/// Makes sure in the installed system that the installation has come to its end, unless that was reported.
///
/// # Errors
/// Kind `Guest` when the system has not what the installer leaves last.
pub async fn check_marker(
    is_reported: bool,
    guest: &dyn Communicator,
    step: &Step<'_>,
) -> Result<(), Failure> {
    if is_reported {
        return Ok(());
    }
    let looked = guest.exec(&Exec::new(["test", "-d", MARKER])).await;
    if looked.with_context(|| format!("looking for {MARKER} in the guest")).kind(Kind::Guest)?.success() {
        step.note(format!("the installer has left {MARKER}: it came to its end"));
        return Ok(());
    }
    let error = anyhow!("the installation did not come to its end: it has not left {MARKER} in the system");
    Err(Failure::new(Kind::Guest, error)
        .hint("let it tell where it stands: `reporting` with `type: webhook` and forge.report_url"))
}

/// Watches one installation to its end, and returns whether the installer itself has reported that.
///
/// # Errors
/// A failure of kind `Guest`, `Infrastructure` (the machine died, or could not be watched) or
/// `Deadline`, with a diagnosis.
pub async fn watch(
    step: &Step<'_>,
    machine: Watched<'_>,
    events: &mut UnboundedReceiver<ServerEvent>,
    limits: &Limits,
) -> Result<bool, Failure> {
    let started = Instant::now();
    let mut seen = Seen::default();
    let Watched { end, press_enter } = machine;
    let mut end = pin!(timeout(limits.install, end));
    let mut menu = pin!(hurry_menu(step, press_enter));
    loop {
        let fetch_deadline = limits.fetch.filter(|_| !seen.answers).map(|limit| started + limit);
        let logs_deadline = seen.failed_at.map(|at| at + LOGS_GRACE);
        tokio::select! {
            biased;
            Some(event) = events.recv() => {
                seen.take(&event, step, limits, started);
                if seen.failed_at.is_some() && seen.logs.is_some() {
                    return Err(seen.installer_failed());
                }
            }
            end = &mut end => {
                // What the installer sent last is still on its way through the channel.
                while let Ok(event) = events.try_recv() {
                    seen.take(&event, step, limits, started);
                }
                return match end {
                    Ok(Ok(end)) => seen.verdict(step, &end),
                    Ok(Err(failure)) => Err(failure),
                    Err(_) => Err(seen.too_long(limits)),
                };
            }
            () = until(fetch_deadline) => return Err(not_fetched(limits)),
            () = until(logs_deadline) => return Err(seen.installer_failed()),
            never = &mut menu => match never {},
        }
    }
}

/// Presses Enter for a while, which saves the medium's menu its wait. A bonus that may fail.
async fn hurry_menu<'a>(
    step: &Step<'_>,
    press_enter: &(dyn Fn() -> BoxFuture<'a, Result<(), String>> + Send + Sync),
) -> Infallible {
    let started = Instant::now();
    sleep(ENTER_FROM).await;
    while started.elapsed() < ENTER_UNTIL {
        if let Err(reason) = press_enter().await {
            step.note(format!("Enter cannot be pressed ({reason}): the medium's menu waits its time"));
            break;
        }
        sleep(ENTER_EVERY).await;
    }
    std::future::pending().await
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

impl Seen {
    fn take(&mut self, event: &ServerEvent, step: &Step<'_>, limits: &Limits, started: Instant) {
        let after = human_duration(started.elapsed());
        match event {
            ServerEvent::Fetched { name, whole, .. } => {
                self.answers |= *whole && *name == limits.answers;
                let how = if *whole { "fetched" } else { "began to fetch, and gave up on," };
                step.note(format!("installer {how} {name} after {after}"));
            }
            ServerEvent::Report(report) => {
                self.reports += 1;
                if self.progress.take(report) {
                    let total = Some(InstallerProgress::total());
                    let stage = self.progress.stage();
                    step.progress(self.progress.done(), total, Unit::Stages, stage.as_deref());
                }
                if self.failed_at.is_none() && matches!(self.progress.ended(), Some(Ended::Failed { .. })) {
                    self.failed_at = Some(Instant::now());
                    step.note(format!("installer reports a failure after {after}; waiting for its logs"));
                }
            }
            ServerEvent::Logs { path, bytes, truncated, .. } => {
                let cut = truncated.as_ref().map(|why| format!(", not whole: {why}")).unwrap_or_default();
                step.note(format!("installer sent {bytes} bytes of logs after {after}{cut}"));
                self.logs = Some(path.clone());
            }
            // Only an installed system says that, and there is none yet.
            ServerEvent::Ready { .. } => {}
            ServerEvent::Refused { method, path, status, .. } => {
                step.note(format!("{method} {path} was answered with {status} after {after}"));
            }
        }
    }

    /// Decides what the machine's end means.
    fn verdict(&self, step: &Step<'_>, end: &End) -> Result<bool, Failure> {
        match (end, self.progress.ended()) {
            (End::PoweredOff, Some(Ended::PoweredOff)) => Ok(true),
            (End::PoweredOff, None) if self.reports == 0 => {
                step.warn("the installer sent no reports: only the next boot can tell whether it succeeded");
                Ok(false)
            }
            (_, Some(Ended::Failed { .. })) => Err(self.installer_failed()),
            (End::Died(_), _) => {
                Err(Failure::new(Kind::Infrastructure, anyhow!("{end} {}", self.during())))
            }
            // Where a reset ends the machine, not everything that runs one can tell it from a power-off.
            (End::Reset | End::PoweredOff, Some(Ended::Rebooting)) => Err(Failure::new(
                Kind::Guest,
                anyhow!("the installer rebooted at its end instead of powering off"),
            )
            .hint("say `shutdown: poweroff` in the autoinstall file: powering off is what forge takes for success")),
            _ => Err(Failure::new(Kind::Guest, anyhow!("{end} {}", self.during()))
                .hint("the screenshot and the serial log in the run's folder show its last words")),
        }
    }

    fn installer_failed(&self) -> Failure {
        let (name, reason) = match self.progress.ended() {
            Some(Ended::Failed { name, reason }) => (name.as_str(), reason.as_str()),
            _ => ("", ""),
        };
        let reason = if reason.is_empty() { "it gives no reason" } else { reason };
        let failure = Failure::new(Kind::Guest, anyhow!("the installer failed in {name}: {reason}"));
        match &self.logs {
            Some(path) => failure.hint(format!("its own logs are in {}", path.display())),
            None => failure.hint("it sent no logs: let `error-commands` send them to forge.logs_url"),
        }
    }

    fn too_long(&self, limits: &Limits) -> Failure {
        let waited = human_duration(limits.install);
        Failure::new(
            Kind::Deadline,
            anyhow!("the installation did not end within {waited}: it was {}", self.during()),
        )
        .hint("more time: `timeouts.install`")
    }

    fn during(&self) -> String {
        match (self.progress.stage(), self.answers) {
            (Some(stage), _) => format!("while {stage}"),
            (None, true) => {
                "after the answers were fetched and before the installer reported anything".to_owned()
            }
            (None, false) => "before anything was fetched".to_owned(),
        }
    }
}

fn not_fetched(limits: &Limits) -> Failure {
    let waited = human_duration(limits.fetch.unwrap_or_default());
    Failure::new(
        Kind::Deadline,
        anyhow!("nothing fetched the installer's answers from {} within {waited}", limits.address),
    )
    .hint("the screenshot in the run's folder shows where the guest stands")
    .hint("a boot menu or a firmware screen: the medium did not boot; check `source.iso` and `machine.firmware`")
    .hint("a language menu: the seed volume was not found; a question about autoinstall: the stub did not run")
    .hint("a waiting installer: the guest has no network; check its NIC and DHCP, or use `seed.transport = \"cdrom\"`")
    .hint("more time: `timeouts.fetch`")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::communicator::{CommunicatorError, Output};
    use crate::event::{Discard, Worker};
    use crate::run::{Cancel, Run};

    /// A guest in which every command ends with that code.
    struct Guest(i32);

    impl Communicator for Guest {
        fn exec<'a>(&'a self, _: &'a Exec) -> BoxFuture<'a, Result<Output, CommunicatorError>> {
            let output = Output {
                code: Some(self.0),
                signal: None,
                stdout: Vec::new(),
                stderr: Vec::new(),
                truncated: false,
            };
            Box::pin(async { Ok(output) })
        }

        fn put_file<'a>(&'a self, _: &'a str, _: &'a [u8]) -> BoxFuture<'a, Result<(), CommunicatorError>> {
            unreachable!("looking writes nothing")
        }

        fn get_file<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Vec<u8>, CommunicatorError>> {
            unreachable!("looking needs no file whole")
        }

        fn wait_for_reboot<'a>(
            &'a self,
            _: &'a str,
            _: Duration,
        ) -> BoxFuture<'a, Result<(), CommunicatorError>> {
            unreachable!("looking reboots nothing")
        }
    }

    #[tokio::test]
    async fn a_system_without_the_installers_last_trace_is_not_whole() {
        for (is_reported, code, expected) in
            [(false, 0, None), (false, 1, Some(Kind::Guest)), (true, 1, None)]
        {
            let run =
                Run::new("r".into(), "t".into(), "/nowhere".into(), Arc::new(Discard), Cancel::default());
            let looked = run
                .step("boot", "boot", Worker::Guest, async |step| {
                    check_marker(is_reported, &Guest(code), step).await
                })
                .await;
            assert_eq!(looked.err().map(|failure| failure.kind), expected);
        }
    }

    #[test]
    fn answers_that_nobody_fetched_are_diagnosed() {
        let limits = Limits {
            fetch: Some(Duration::from_mins(5)),
            install: Duration::from_hours(1),
            address: "http://10.0.2.2:8000".to_owned(),
            answers: "autoinstall.yaml".to_owned(),
        };
        let failure = not_fetched(&limits);
        assert_eq!(failure.kind, Kind::Deadline);
        let told = failure.to_string();
        assert!(told.contains("http://10.0.2.2:8000") && told.contains("5 min"), "{told}");
        let hints = failure.hints.join("\n");
        for cause in
            ["screenshot", "did not boot", "seed volume", "network", "seed.transport", "timeouts.fetch"]
        {
            assert!(hints.contains(cause), "{cause} is not in {hints}");
        }
    }
}
