//! Watches an installation: the machine, and what the installer fetches and reports.
//!
//! ```text
//!   booting ─► answers fetched ─► installing (reports) ─► shutdown reported ─► powered off
//!      │ fetch deadline   │ installer says FAIL   │ install deadline    │ reset, panic, QEMU died
//!      └──────────────────┴───────────────────────┴─────────────────────┴─► diagnosis
//! ```
//!
//! Powering off counts as success only after the installer's own last event; an installer that sent
//! no event at all is given the benefit of the doubt, and the boot that follows decides.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::anyhow;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, sleep_until};

use crate::event::{Unit, human_duration};
use crate::failure::{Failure, Kind};
use crate::qemu::{End, Error, Machine};
use crate::run::Step;
use crate::seed::installer::{Ended, InstallerProgress};
use crate::seed::server::ServerEvent;

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

#[derive(Debug, Default)]
struct Seen {
    answers: bool,
    reports: u64,
    progress: InstallerProgress,
    failed_at: Option<Instant>,
    logs: Option<PathBuf>,
}

/// Watches one installation to its end.
///
/// # Errors
/// A failure of kind `Guest`, `Infrastructure` (QEMU died) or `Deadline`, with a diagnosis.
pub async fn watch(
    step: &Step<'_>,
    machine: &Machine,
    events: &mut UnboundedReceiver<ServerEvent>,
    limits: &Limits,
) -> Result<(), Failure> {
    let started = Instant::now();
    let mut seen = Seen::default();
    let mut enter = started + ENTER_FROM;
    let end = machine.wait_for_end(limits.install);
    tokio::pin!(end);
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
                    Ok(end) => seen.verdict(step, &end),
                    Err(_) => Err(seen.too_long(limits)),
                };
            }
            () = until(fetch_deadline) => return Err(not_fetched(limits)),
            () = until(logs_deadline) => return Err(seen.installer_failed()),
            () = sleep_until(enter), if enter < started + ENTER_UNTIL => {
                enter += ENTER_EVERY;
                // A bonus that may fail; a QEMU that has gone is told of by its end.
                if let Err(Error::Refused { reason, .. }) = machine.press_enter().await {
                    step.note(format!("Enter cannot be pressed ({reason}): the medium's menu waits its time"));
                    enter = started + ENTER_UNTIL;
                }
            }
        }
    }
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
            ServerEvent::Refused { method, path, status, .. } => {
                step.note(format!("{method} {path} was answered with {status} after {after}"));
            }
        }
    }

    /// Decides what the machine's end means.
    fn verdict(&self, step: &Step<'_>, end: &End) -> Result<(), Failure> {
        match (end, self.progress.ended()) {
            (End::PowerOff, Some(Ended::PoweredOff)) => Ok(()),
            (End::PowerOff, None) if self.reports == 0 => {
                step.warn("the installer sent no reports: only the next boot can tell whether it succeeded");
                Ok(())
            }
            (_, Some(Ended::Failed { .. })) => Err(self.installer_failed()),
            (End::Crashed { .. } | End::Stopped, _) => {
                Err(Failure::new(Kind::Infrastructure, anyhow!("{end} {}", self.during())))
            }
            (End::Reset, Some(Ended::Rebooting)) => Err(Failure::new(
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
    use super::*;

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
