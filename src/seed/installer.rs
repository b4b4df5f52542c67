//! What the installer's progress reports say: the stage, a share of the known stages, the end.
//!
//! ```text
//!   report ──► stage (never backwards) ──► Shutdown with mode=POWEROFF ──► PoweredOff
//!     │                                                 mode=REBOOT    ──► Rebooting
//!     └─ finish FAIL: the first that is not made good is the cause; of an ending context, or error commands ──► Failed
//! ```
//!
//! An installation sends about 300 reports, most of them details inside a stage (subiquity
//! 24.04.3, `reporting: webhook`): `{"name", "description", "event_type", "origin", "timestamp",
//! "level"}` and, at a finish, `"result"`.

use serde_json::Value;

/// One report of the installer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct InstallerReport {
    /// The context, from the outermost inwards: `subiquity/Install/install/configure_apt`.
    pub name: String,
    /// What the installer says about it.
    pub description: String,
    /// `start`, `finish`, `info`, `warning` or `error`.
    pub event_type: String,
    /// At a finish: `SUCCESS`, `WARN` or `FAIL`.
    pub result: Option<String>,
    /// Seconds since 1970, by the guest's clock.
    pub timestamp: Option<f64>,
    /// `DEBUG`, `INFO`, …
    pub level: Option<String>,
}

impl InstallerReport {
    /// Returns the report in a request's body; anything that has a name is one.
    #[must_use]
    pub fn parse(body: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(body).ok()?;
        let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        Some(Self {
            name: text("name").filter(|name| !name.is_empty())?,
            description: text("description").unwrap_or_default(),
            event_type: text("event_type").unwrap_or_default(),
            result: text("result"),
            timestamp: value.get("timestamp").and_then(Value::as_f64),
            level: text("level"),
        })
    }

    fn segments(&self) -> impl Iterator<Item = &str> {
        self.name.split('/')
    }

    /// Tells whether the name holds these segments, one after another. Every controller of the
    /// installer has contexts such as `Late/apply_autoinstall_config` long before its turn, so its
    /// name alone says nothing.
    fn has(&self, segments: &str) -> bool {
        format!("/{}/", self.name).contains(&format!("/{segments}/"))
    }

    fn failed(&self) -> bool {
        self.event_type == "finish" && self.result.as_deref() == Some("FAIL")
    }

    fn succeeded(&self) -> bool {
        self.event_type == "finish" && self.result.as_deref() == Some("SUCCESS")
    }

    fn is_within(&self, context: &str) -> bool {
        is_within(&self.name, context)
    }
}

/// Tells whether a context is the other one, or one inside it.
fn is_within(name: &str, context: &str) -> bool {
    name.strip_prefix(context).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The stages of an installation in their order: the context that begins each, and what to call it.
const STAGES: [(&str, &str); 13] = [
    ("core_validation", "reading the answers"),
    ("load_autoinstall_config", "reading the answers"),
    ("apply_autoinstall_config", "applying the answers"),
    ("configure_apt", "configuring the package sources"),
    ("stage-partitioning", "partitioning the disk"),
    ("stage-extract", "extracting the system"),
    ("stage-curthooks", "configuring the system"),
    ("installing-kernel", "installing the kernel"),
    ("install-grub", "installing the boot loader"),
    ("postinstall", "configuring the first boot"),
    ("run_unattended_upgrades", "installing updates"),
    ("Late/run", "running the late commands"),
    ("Shutdown/shutdown", "shutting down"),
];

/// The contexts whose failure ends the installation.
const ENDING: [&str; 5] = [
    "subiquity/core_validation",
    "subiquity/load_autoinstall_config",
    "subiquity/apply_autoinstall_config",
    "subiquity/Install/install",
    "subiquity/Late/run",
];

/// How an installation ended, as far as the installer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It powers the machine off: success.
    PoweredOff,
    /// It reboots the machine: the answers do not say `shutdown: poweroff`.
    Rebooting,
    /// It failed, and waits at a shell.
    Failed {
        /// The innermost context that failed first.
        name: String,
        /// What the installer said about it; may be empty.
        reason: String,
    },
}

/// The context in which the answers are applied; what follows is asked for, and then done.
const APPLYING: &str = "subiquity/apply_autoinstall_config";

/// The context in which all is done that changes the disk.
const INSTALLING: &str = "subiquity/Install/install";

/// How many failures are remembered: the guest decides how many there are.
const FAILURES_MAX: usize = 32;

/// Follows an installation through its reports.
#[derive(Debug, Clone, Default)]
pub struct InstallerProgress {
    stage: Option<usize>,
    package: Option<String>,
    /// What failed and was not made good, each with what the installer said.
    failures: Vec<(String, String)>,
    applied: bool,
    begun: bool,
    ended: Option<Ended>,
}

impl InstallerProgress {
    /// Returns the state before any report.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one report and tells whether what a person sees has changed.
    pub fn take(&mut self, report: &InstallerReport) -> bool {
        let before = (self.stage, self.package.clone(), self.ended.clone());
        self.note_stage(report);
        self.begun |= report.is_within(INSTALLING);
        self.applied |= report.succeeded() && report.name == APPLYING;
        self.note_failure(report);
        self.note_shutdown(report);
        before != (self.stage, self.package.clone(), self.ended.clone())
    }

    fn note_stage(&mut self, report: &InstallerReport) {
        let found = STAGES.iter().rposition(|(segment, _)| report.has(segment));
        let Some(stage) = found.filter(|stage| self.stage.is_none_or(|now| *stage >= now)) else { return };
        if self.stage != Some(stage) {
            self.package = None;
        }
        self.stage = Some(stage);
        let package = report.segments().find_map(|segment| segment.strip_prefix("install_"));
        if let (Some(package), "postinstall", "start") =
            (package, STAGES[stage].0, report.event_type.as_str())
        {
            self.package = Some(package.to_owned());
        }
    }

    fn note_failure(&mut self, report: &InstallerReport) {
        let error_commands = report.has("Error/run");
        if report.failed() && !error_commands && self.failures.len() < FAILURES_MAX {
            self.failures.push((report.name.clone(), report.description.clone()));
        }
        if report.succeeded() {
            // A mirror that was passed over for the next, a download that was tried again.
            let controller = report.name.strip_suffix("/apply_autoinstall_config");
            let context = controller.filter(|name| *name != "subiquity").unwrap_or(&report.name);
            self.failures.retain(|(name, _)| !is_within(name, context));
        }
        // Other contexts may fail and be tried again or passed over.
        let fatal = error_commands || (report.failed() && ENDING.contains(&report.name.as_str()));
        if fatal && self.ended.is_none() {
            let (name, reason) = self.failures.first().cloned().unwrap_or_default();
            self.ended = Some(Ended::Failed { name, reason });
        }
    }

    fn note_shutdown(&mut self, report: &InstallerReport) {
        if !report.has("Shutdown/shutdown") || self.ended.is_some() {
            return;
        }
        if report.description.contains("mode=POWEROFF") {
            self.ended = Some(Ended::PoweredOff);
        } else if report.description.contains("mode=REBOOT") {
            self.ended = Some(Ended::Rebooting);
        }
    }

    /// Returns the current stage as a person reads it, such as "extracting the system".
    #[must_use]
    pub fn stage(&self) -> Option<String> {
        let (_, title) = STAGES[self.stage?];
        Some(
            self.package.as_ref().map_or_else(|| title.to_owned(), |package| format!("installing {package}")),
        )
    }

    /// Returns how many of the known stages are done.
    #[must_use]
    pub fn done(&self) -> u64 {
        match self.ended {
            Some(Ended::PoweredOff | Ended::Rebooting) => Self::total(),
            _ => self.stage.unwrap_or_default() as u64,
        }
    }

    /// Returns how many stages are known.
    #[must_use]
    pub const fn total() -> u64 {
        STAGES.len() as u64
    }

    /// Returns how the installation ended, once the installer has said so.
    #[must_use]
    pub fn ended(&self) -> Option<&Ended> {
        self.ended.as_ref()
    }

    /// Tells whether the answers are applied and nothing has begun since: all that the installer wants
    /// then is to be confirmed.
    #[must_use]
    pub fn waits_for_confirmation(&self) -> bool {
        self.applied && !self.begun && self.ended.is_none()
    }

    /// Returns the first failure that was reported and not made good, even if the installation went on.
    #[must_use]
    pub fn first_failure(&self) -> Option<(&str, &str)> {
        self.failures.first().map(|(name, reason)| (name.as_str(), reason.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(event_type: &str, name: &str, description: &str, result: Option<&str>) -> InstallerReport {
        InstallerReport {
            name: name.to_owned(),
            description: description.to_owned(),
            event_type: event_type.to_owned(),
            result: result.map(str::to_owned),
            ..InstallerReport::default()
        }
    }

    fn after(reports: &[(&str, &str)]) -> InstallerProgress {
        let mut progress = InstallerProgress::new();
        for (event_type, name) in reports {
            progress.take(&report(event_type, name, "", Some("SUCCESS").filter(|_| *event_type == "finish")));
        }
        progress
    }

    const STEP: &str = "subiquity/Install/install/curtin_install/run_curtin_step/cmd-install";

    #[test]
    fn stages_follow_the_reports() {
        for (name, stage, done) in [
            ("subiquity/core_validation".to_owned(), "reading the answers", 0),
            ("subiquity/apply_autoinstall_config".to_owned(), "applying the answers", 2),
            ("subiquity/Install/install/configure_apt".to_owned(), "configuring the package sources", 3),
            (format!("{STEP}/stage-partitioning/builtin/cmd-block-meta"), "partitioning the disk", 4),
            (format!("{STEP}/stage-extract"), "extracting the system", 5),
            (format!("{STEP}/stage-curthooks/builtin/installing-kernel"), "installing the kernel", 7),
            (format!("{STEP}/stage-curthooks/builtin/install-grub"), "installing the boot loader", 8),
            ("subiquity/Install/install/postinstall".to_owned(), "configuring the first boot", 9),
            (
                "subiquity/Install/install/postinstall/install_qemu-guest-agent".to_owned(),
                "installing qemu-guest-agent",
                9,
            ),
            (
                "subiquity/Install/install/postinstall/run_unattended_upgrades".to_owned(),
                "installing updates",
                10,
            ),
            ("subiquity/Late/run/command_0".to_owned(), "running the late commands", 11),
        ] {
            let progress = after(&[("start", &name)]);
            assert_eq!((progress.stage().unwrap().as_str(), progress.done()), (stage, done), "{name}");
        }
    }

    #[test]
    fn a_stage_never_goes_back() {
        let extract = format!("{STEP}/stage-extract");
        let partitioning = format!("{STEP}/stage-partitioning");
        let progress =
            after(&[("start", &extract), ("finish", &partitioning), ("start", "subiquity/core_validation")]);
        assert_eq!(progress.stage().unwrap(), "extracting the system");
    }

    #[test]
    fn details_inside_a_stage_change_nothing() {
        let mut progress = after(&[("start", &format!("{STEP}/stage-extract"))]);
        for number in 0..300 {
            let detail = report("start", &format!("{STEP}/stage-extract/detail-{number}"), "", None);
            assert!(!progress.take(&detail));
        }
        assert!(!progress.take(&report("start", "somewhere/else", "", None)));
    }

    #[test]
    fn a_package_is_named_until_the_stage_ends() {
        let package = "subiquity/Install/install/postinstall/install_vim/unpacking";
        let progress = after(&[("start", package), ("finish", package)]);
        assert_eq!(progress.stage().unwrap(), "installing vim");
        let progress = after(&[("start", package), ("start", "subiquity/Late/run")]);
        assert_eq!(progress.stage().unwrap(), "running the late commands");
    }

    #[test]
    fn powering_off_is_the_end() {
        let mut progress = after(&[("start", "subiquity/Late/run")]);
        assert!(progress.take(&report("start", "subiquity/Shutdown/shutdown", "mode=POWEROFF", None)));
        assert_eq!(progress.ended(), Some(&Ended::PoweredOff));
        assert_eq!(progress.done(), InstallerProgress::total());

        let mut progress = InstallerProgress::new();
        progress.take(&report("start", "subiquity/Shutdown/shutdown", "mode=REBOOT", None));
        assert_eq!(progress.ended(), Some(&Ended::Rebooting));
    }

    #[test]
    fn the_first_failure_is_the_cause() {
        let mut progress = InstallerProgress::new();
        let inner = "subiquity/Install/install/postinstall/install_qemu-guest-agent";
        progress.take(&report("finish", inner, "exit code 100", Some("FAIL")));
        assert_eq!(progress.ended(), None, "an inner context may be tried again");
        progress.take(&report("finish", "subiquity/Install/install", "see above", Some("FAIL")));
        let failed = Ended::Failed { name: inner.to_owned(), reason: "exit code 100".to_owned() };
        assert_eq!(progress.ended(), Some(&failed));
        progress.take(&report("finish", "subiquity/Error/run/command_0", "also", Some("FAIL")));
        assert_eq!(progress.ended(), Some(&failed));
    }

    #[test]
    fn error_commands_alone_mean_failure() {
        let progress = after(&[("start", "subiquity/Error/run")]);
        assert!(matches!(progress.ended(), Some(Ended::Failed { .. })));
    }

    #[test]
    fn an_inner_failure_that_was_overcome_is_no_end() {
        let mut progress = InstallerProgress::new();
        progress.take(&report("finish", "subiquity/Mirror/check", "timed out", Some("FAIL")));
        progress.take(&report("finish", "subiquity/Shutdown/shutdown", "mode=POWEROFF", Some("SUCCESS")));
        assert_eq!(progress.ended(), Some(&Ended::PoweredOff));
        assert_eq!(progress.first_failure(), Some(("subiquity/Mirror/check", "timed out")));
    }

    #[test]
    fn what_was_made_good_is_not_the_cause() {
        const PACKAGE: &str = "subiquity/Install/install/postinstall/install_vim";
        for (overcome, by) in [
            ("subiquity/Mirror/check", "subiquity/Mirror/apply_autoinstall_config"),
            (&*format!("{PACKAGE}/retrieving"), PACKAGE),
        ] {
            let mut progress = InstallerProgress::new();
            progress.take(&report("finish", overcome, "timed out", Some("FAIL")));
            progress.take(&report("finish", by, "", Some("SUCCESS")));
            progress.take(&report("finish", &format!("{PACKAGE}-tiny"), "exit code 100", Some("FAIL")));
            progress.take(&report("finish", INSTALLING, "see above", Some("FAIL")));
            let name = format!("{PACKAGE}-tiny");
            let failed = Ended::Failed { name, reason: "exit code 100".to_owned() };
            assert_eq!(progress.ended(), Some(&failed), "{overcome}");
        }
    }

    #[test]
    fn applied_answers_wait_for_their_confirmation_until_something_begins() {
        let applied = [("start", APPLYING), ("finish", "subiquity/SSH/apply_autoinstall_config")];
        assert!(!after(&applied).waits_for_confirmation(), "one controller's are not all");
        let mut progress = after(&[applied.as_slice(), &[("finish", APPLYING)]].concat());
        assert!(progress.waits_for_confirmation());
        progress.take(&report("start", "subiquity/Error/apply_autoinstall_config", "", None));
        assert!(progress.waits_for_confirmation());
        progress.take(&report("start", INSTALLING, "installing system", None));
        assert!(!progress.waits_for_confirmation());
    }

    #[test]
    fn reports_are_read_tolerantly() {
        let body = br#"{"name": "a/b", "event_type": "finish", "result": "WARN", "timestamp": 1.5,
            "files": [], "origin": "curtin", "level": "DEBUG"}"#;
        let read = InstallerReport::parse(body).unwrap();
        assert_eq!((read.name.as_str(), read.result.as_deref()), ("a/b", Some("WARN")));
        assert_eq!((read.timestamp, read.description.as_str()), (Some(1.5), ""));
        for body in [&b"{}"[..], b"", b"[1]", b"{\"name\": 1}", b"{\"name\": \"\"}", b"\xff"] {
            assert_eq!(InstallerReport::parse(body), None);
        }
    }

    #[test]
    fn a_controllers_name_alone_says_nothing() {
        // The installer loads and applies each controller's part of the answers at the beginning.
        let progress = after(&[
            ("start", "subiquity/Error/apply_autoinstall_config"),
            ("start", "subiquity/Late/load_autoinstall_config"),
            ("start", "subiquity/Shutdown/apply_autoinstall_config"),
        ]);
        assert_eq!(progress.ended(), None);
        assert_eq!(progress.stage().as_deref(), Some("applying the answers"));
    }
}
