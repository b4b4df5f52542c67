//! Watches an installation: the machine, whatever runs it, and what the installer fetches and reports.
//!
//! ```text
//!   booting ─► answers fetched ─► answers applied ─► installing ─► shutdown reported ─► powered off
//!      │ no fetch     │ no report       │ no begin     │ FAIL, deadline    │ fetched again   │ reset, panic
//!      └──────────────┴─────────────────┴──────────────┴───────────────────┴─────────────────┴─► diagnosis
//! ```
//!
//! The first three may take `timeouts.fetch` each: whoever sees nothing then would see nothing for the hour that an
//! installation may take.
//!
//! Powering off counts as success only after the installer's own last event; where it sent no event at
//! all, the boot that follows decides, and the marker that the installer leaves last, see [`check_marker`].

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::inputs::{ANSWERS, Prepared};
use super::{Patience, show_console};
use crate::communicator::{Communicator, Exec};
use crate::definition::Transport;
use crate::diagnosis::{self, Answers, Diagnosis, Fetched, Installation, Trouble};
use crate::event::{Unit, human_duration};
use crate::failure::{Failure, Kind, ResultExt as _};
use crate::plan::Plan;
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

/// What an installation is measured by, and what is known of it beforehand.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How long each sign of life may take: the fetch of the answers from power-on, the first report from
    /// there, and the begin of the installation from when the answers are applied.
    pub sign: Duration,
    /// From power-on until the machine has powered off.
    pub install: Duration,
    /// The address that the guest was told, without the token; `None` when the answers are on the volume.
    pub address: Option<String>,
    /// What the answers ask for.
    pub answers: Answers,
    /// The machine's memory in MiB.
    pub memory_mib: u32,
}

impl Limits {
    /// Returns those of a plan, with the patience that guests need, and of its answers.
    pub(super) fn of(plan: &Plan, patience: Patience, seed: &Prepared) -> Self {
        let timeouts = &plan.definition.timeouts;
        Self {
            sign: patience.scaled(timeouts.fetch.duration()),
            install: patience.scaled(timeouts.install.duration()),
            address: (seed.transport == Transport::Http).then(|| seed.server.advertises().to_owned()),
            answers: seed.answers,
            memory_mib: plan.machine.memory_mib,
        }
    }
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
    /// Where what it prints on its serial port is written to.
    pub console: PathBuf,
}

impl fmt::Debug for Watched<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").finish_non_exhaustive()
    }
}

/// What has been seen of an installation.
#[derive(Debug)]
struct Seen<'a> {
    limits: &'a Limits,
    started: Instant,
    /// When the answers were fetched, each time.
    fetched: Vec<Instant>,
    /// The last request that was refused.
    refused: Option<String>,
    reported: Option<Instant>,
    progress: InstallerProgress,
    /// Since when the stage is the one that it is.
    stage_since: Instant,
    /// Since when the installer waits to be confirmed.
    waits_since: Option<Instant>,
    /// When the installer said that it shuts down.
    shutdown: Option<Instant>,
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
    Err(diagnosis::not_installed(MARKER).into())
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
    let mut seen = Seen::new(limits);
    let Watched { end, press_enter, console } = machine;
    let mut end = pin!(timeout(limits.install, end));
    let mut menu = pin!(hurry_menu(step, press_enter));
    let words;
    let trouble = loop {
        let overdue = seen.overdue();
        tokio::select! {
            biased;
            Some(event) = events.recv() => {
                seen.take(&event, step);
                if (seen.failed_at.is_some() && seen.logs.is_some()) || seen.began_again().is_some() {
                    break seen.trouble();
                }
            }
            end = &mut end => {
                // What the installer sent last is still on its way through the channel.
                while let Ok(event) = events.try_recv() {
                    seen.take(&event, step);
                }
                match end {
                    Ok(Ok(End::PoweredOff)) if seen.has_succeeded() => return Ok(true),
                    Ok(Ok(End::PoweredOff)) if seen.progress.ended().is_none() && seen.reported.is_none() => {
                        step.warn("the installer sent no reports: only the next boot can tell whether it succeeded");
                        return Ok(false);
                    }
                    Ok(Ok(end)) => {
                        words = end.to_string();
                        break seen.ended(&end, &words);
                    }
                    Ok(Err(failure)) => {
                        show_console(step, &console);
                        return Err(failure);
                    }
                    Err(_) => break Trouble::TooLong(limits.install),
                }
            }
            () = until(overdue) => break seen.trouble(),
            never = &mut menu => match never {},
        }
    };
    Err(seen.diagnose(trouble, &show_console(step, &console)).into())
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

impl<'a> Seen<'a> {
    fn new(limits: &'a Limits) -> Self {
        let started = Instant::now();
        Self {
            limits,
            started,
            fetched: Vec::new(),
            refused: None,
            reported: None,
            progress: InstallerProgress::new(),
            stage_since: started,
            waits_since: None,
            shutdown: None,
            failed_at: None,
            logs: None,
        }
    }

    fn take(&mut self, event: &ServerEvent, step: &Step<'_>) {
        let after = human_duration(self.started.elapsed());
        match event {
            ServerEvent::Fetched { name, whole, .. } => {
                if *whole && name == ANSWERS {
                    self.fetched.push(Instant::now());
                }
                let how = if *whole { "fetched" } else { "began to fetch, and gave up on," };
                step.note(format!("installer {how} {name} after {after}"));
            }
            ServerEvent::Report(report) => {
                let before = self.progress.stage();
                if self.progress.take(report) {
                    let total = Some(InstallerProgress::total());
                    let stage = self.progress.stage();
                    step.progress(self.progress.done(), total, Unit::Stages, stage.as_deref());
                }
                self.note_times(before.as_deref());
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
                self.refused = Some(format!("{method} {path} with {status}"));
            }
        }
    }

    /// Writes down when what a report has changed began.
    fn note_times(&mut self, before: Option<&str>) {
        let now = Instant::now();
        self.reported = Some(now);
        if self.progress.stage().as_deref() != before {
            self.stage_since = now;
        }
        self.waits_since = self.waits_since.or(Some(now)).filter(|_| self.progress.waits_for_confirmation());
        if matches!(self.progress.ended(), Some(Ended::PoweredOff | Ended::Rebooting)) {
            self.shutdown.get_or_insert(now);
        }
    }

    /// Returns when what has to come next is overdue.
    fn overdue(&self) -> Option<Instant> {
        let sign = self.limits.sign;
        if let Some(at) = self.failed_at {
            return Some(at + LOGS_GRACE);
        }
        if let Some(since) = self.waits_since {
            return Some(since + sign);
        }
        let is_awaited = self.limits.address.is_some() && self.reported.is_none();
        match self.fetched.last() {
            None if is_awaited => Some(self.started + sign),
            Some(at) if is_awaited && self.limits.answers.report => Some(*at + sign),
            _ => None,
        }
    }

    /// Returns what is wrong with an installation in which something is.
    fn trouble(&self) -> Trouble<'_> {
        let sign = self.limits.sign;
        if let Some(ago) = self.began_again() {
            return Trouble::Again(ago);
        }
        match self.progress.ended() {
            Some(Ended::Failed { name, reason }) => Trouble::Failed { name, reason },
            _ if self.waits_since.is_some() => Trouble::NotConfirmed(sign),
            _ if self.fetched.is_empty() => Trouble::NotFetched(sign),
            _ => Trouble::NotReported(sign),
        }
    }

    /// Returns what it means that the machine has ended so, in these words.
    fn ended<'w>(&'w self, end: &End, words: &'w str) -> Trouble<'w> {
        match (end, self.progress.ended()) {
            (_, Some(Ended::Failed { name, reason })) => Trouble::Failed { name, reason },
            (End::Died(_), _) => Trouble::Died(words),
            (End::Panicked, _) => Trouble::Panicked(words),
            (End::PoweredOff | End::Reset, _) => Trouble::Ended(words),
        }
    }

    fn has_succeeded(&self) -> bool {
        self.progress.ended() == Some(&Ended::PoweredOff)
    }

    /// Returns how long after its shutdown the installer fetched the answers again, if it did.
    fn began_again(&self) -> Option<Duration> {
        let (shutdown, last) = (self.shutdown?, self.fetched.last()?);
        last.checked_duration_since(shutdown).filter(|ago| !ago.is_zero())
    }

    fn diagnose(&self, trouble: Trouble<'_>, console: &[String]) -> Diagnosis {
        let first = self.fetched.first().map(|at| at.duration_since(self.started));
        let stage = self.progress.stage();
        diagnosis::diagnose(&Installation {
            trouble,
            address: self.limits.address.as_deref(),
            answers: self.limits.answers,
            fetched: first.map(|after| Fetched { after, times: self.fetched.len() }),
            refused: self.refused.as_deref(),
            reported: self.reported.map(|at| at.elapsed()),
            stage: stage.as_deref().map(|stage| (stage, self.stage_since.elapsed())),
            shutdown: self.shutdown.map(|at| at.elapsed()),
            reboots: self.progress.ended() == Some(&Ended::Rebooting),
            logs: self.logs.as_deref(),
            memory_mib: self.limits.memory_mib,
            console,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::communicator::{CommunicatorError, Output};
    use crate::event::{Discard, Worker};
    use crate::run::{Cancel, Run};
    use crate::seed::installer::InstallerReport;

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

    /// What the installer does, and so many minutes after power-on.
    type Does = (u64, &'static str);

    /// Returns how long after power-on an installation that does these things is given up, and why.
    async fn given_up(does: &[Does], transport: Transport, answers: Answers) -> (u64, Failure) {
        let limits = Limits {
            sign: Duration::from_mins(10),
            install: Duration::from_hours(1),
            address: (transport == Transport::Http).then(|| "10.0.2.2:8000".to_owned()),
            answers,
            memory_mib: 4096,
        };
        let (sender, mut events) = tokio::sync::mpsc::unbounded_channel();
        let run = Run::new("r".into(), "t".into(), "/nowhere".into(), Arc::new(Discard), Cancel::default());
        let watched = Watched {
            end: Box::pin(std::future::pending()),
            press_enter: &|| Box::pin(async { Ok(()) }),
            console: PathBuf::from("/nowhere"),
        };
        let started = Instant::now();
        let installing = async {
            for (minute, what) in does {
                sleep_until(started + Duration::from_mins(*minute)).await;
                sender.send(event(what)).unwrap();
            }
            std::future::pending::<()>().await;
        };
        let work = async |step: &Step<'_>| watch(step, watched, &mut events, &limits).await;
        tokio::select! {
            result = run.step("install", "title", Worker::Guest, work) => {
                (started.elapsed().as_secs() / 60, result.unwrap_err())
            }
            () = installing => unreachable!("it does not end"),
        }
    }

    /// Returns what forge's server tells of a fetch, or of a report: its context, and how it ended.
    fn event(what: &str) -> ServerEvent {
        if what == "fetch" {
            let peer = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
            return ServerEvent::Fetched { name: ANSWERS.to_owned(), bytes: 1, whole: true, peer };
        }
        let (name, end) = what.split_once(' ').unwrap_or((what, ""));
        let is_end = matches!(end, "SUCCESS" | "FAIL");
        ServerEvent::Report(InstallerReport {
            name: format!("subiquity/{name}"),
            description: if is_end { String::new() } else { end.to_owned() },
            event_type: if is_end { "finish" } else { "start" }.to_owned(),
            result: is_end.then(|| end.to_owned()),
            ..InstallerReport::default()
        })
    }

    #[tokio::test(start_paused = true)]
    async fn each_sign_of_life_is_awaited_from_the_one_before() {
        const APPLIED: &str = "apply_autoinstall_config SUCCESS";
        let telling = Answers { report: true, ..Answers::default() };
        let (http, cdrom) = (Transport::Http, Transport::Cdrom);
        for (does, transport, answers, minute, says) in [
            (&[][..], http, telling, 10, "nothing fetched"),
            (
                &[(9, "fetch")],
                http,
                telling,
                19,
                "were fetched after 9 min 00 s, and the installer has reported",
            ),
            (&[(9, "fetch")], http, Answers::default(), 60, "and nothing was reported"),
            (&[(5, "core_validation")], http, telling, 60, "reading the answers for 55 min 00 s, and has"),
            (&[(5, "fetch"), (6, APPLIED)], http, telling, 16, "nobody confirmed"),
            (&[(5, APPLIED), (9, "Install/install")], http, telling, 60, "applying the answers for 55 min"),
            (&[], cdrom, telling, 60, "its answers are on the volume, and nothing was reported"),
            (&[(5, APPLIED)], cdrom, telling, 15, "nobody confirmed"),
            (&[(5, APPLIED), (6, "Error/run")], http, telling, 6, "the installer failed: it gives no reason"),
            (&[(5, "fetch"), (6, "Shutdown/shutdown mode=POWEROFF")], http, telling, 60, "54 min 00 s ago"),
            (
                &[(5, "fetch"), (6, "Shutdown/shutdown mode=REBOOT"), (8, "fetch")],
                http,
                telling,
                8,
                "once more, 2 min 00 s after",
            ),
        ] {
            let (after, failure) = given_up(does, transport, answers).await;
            let told = failure.to_string();
            assert!(after == minute && told.contains(says), "{does:?}: after {after} min: {told}");
        }
    }
}
