//! Why an installation did not come to a good end.

use std::path::Path;
use std::time::Duration;

use super::{Answers, Cause, Diagnosis, LET_IT_TELL, MEMORY_AT_EASE, line_with, memory_ran_out, more_memory};
use crate::event::human_duration;
use crate::failure::Kind;

/// Where a person sees what only the guest knows.
const PICTURE: &str = "the picture of its screen in the run's folder";

const MORE_TIME: &str = "more time: `timeouts.install`";

/// What the stub says of its way to the answers (`seed/answers.py`).
const OF_THE_FETCH: [&str; 4] = [
    "forge: fetching the answers",
    "has not answered yet",
    "forge: giving up on",
    "serial number carries no url",
];

/// The stage, as [`crate::seed::installer`] calls it, that a mirror makes slow.
const UPDATES: &str = "installing updates";

/// What went wrong with an installation, as whoever watched it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble<'a> {
    /// Nothing fetched the answers in that time.
    NotFetched(Duration),
    /// The answers were fetched, and nothing was reported in that time after it.
    NotReported(Duration),
    /// The answers were applied, and nothing began in that time after it.
    NotConfirmed(Duration),
    /// It did not end in that time.
    TooLong(Duration),
    /// The installer said that it failed: the innermost context that did so first, and its words.
    Failed {
        /// The context, such as `subiquity/Install/install/configure_apt`.
        name: &'a str,
        /// What the installer said; may be empty.
        reason: &'a str,
    },
    /// The answers were fetched once more, so long after the installer had said that it shuts down.
    Again(Duration),
    /// The machine was switched off or reset: in these words.
    Ended(&'a str),
    /// The guest's kernel panicked: in these words.
    Panicked(&'a str),
    /// What runs the machine failed: in these words.
    Died(&'a str),
}

/// That the answers were fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetched {
    /// How long after power-on they were fetched first.
    pub after: Duration,
    /// How often.
    pub times: usize,
}

/// What is known of an installation that did not come to a good end.
#[derive(Debug, Clone, Copy)]
pub struct Installation<'a> {
    /// What went wrong.
    pub trouble: Trouble<'a>,
    /// The address that the guest was told, without the token; `None` where the answers are on the volume.
    pub address: Option<&'a str>,
    /// What the answers ask for.
    pub answers: Answers,
    /// That they were fetched.
    pub fetched: Option<Fetched>,
    /// The last request that was refused, such as `GET /…/user-data with 404`.
    pub refused: Option<&'a str>,
    /// How long ago the installer reported last; `None` when it never did.
    pub reported: Option<Duration>,
    /// The stage that it reported last, such as "extracting the system", and for how long it has been in it.
    pub stage: Option<(&'a str, Duration)>,
    /// How long ago it said that it shuts the machine down.
    pub shutdown: Option<Duration>,
    /// Whether that was a reboot.
    pub reboots: bool,
    /// Where its logs are, if it sent any.
    pub logs: Option<&'a Path>,
    /// The machine's memory in MiB.
    pub memory_mib: u32,
    /// The last lines of the machine's serial port.
    pub console: &'a [String],
}

/// Returns why an installation did not come to a good end.
#[must_use]
pub fn diagnose(it: &Installation<'_>) -> Diagnosis {
    match it.trouble {
        Trouble::NotFetched(waited) => it.not_fetched(waited),
        Trouble::NotReported(waited) => it.not_reported(waited),
        Trouble::NotConfirmed(waited) => it.not_confirmed(waited),
        Trouble::TooLong(limit) => it.too_long(limit),
        Trouble::Failed { name, reason } => it.failed(name, reason),
        Trouble::Again(ago) => it.again(ago),
        Trouble::Ended(_) if it.reboots => rebooted(),
        Trouble::Panicked(words) if it.memory_mib < MEMORY_AT_EASE => it.ended(Cause::MemoryTooSmall, words),
        Trouble::Panicked(words) | Trouble::Ended(words) => it.ended(Cause::EndedEarly, words),
        Trouble::Died(words) => {
            Diagnosis::new(Cause::MachineDied, Kind::Infrastructure, format!("{words} {}", it.during())).hint(
                "it is not the guest that ended, but what runs it: look at qemu.log in the run's folder or at the \
                 node's log, at space on its disks and at its memory",
            )
        }
    }
}

impl Installation<'_> {
    fn not_fetched(&self, waited: Duration) -> Diagnosis {
        let address = self.address.unwrap_or("forge");
        let told = line_with(self.console, &OF_THE_FETCH);
        let error = format!(
            "nothing fetched the installer's answers from {address} within {}{}{}",
            human_duration(waited),
            more("; what was asked for instead was refused, last", self.refused),
            more("; the stub's last word on the console is", quoted(told).as_deref()),
        );
        if let Some(line) = memory_ran_out(self.console) {
            return self.memory_ran_out(Kind::Deadline, &error, line);
        }
        let diagnosis = Diagnosis::new(Cause::AnswersNotFetched, Kind::Deadline, error);
        let diagnosis = match told {
            Some(line) if line.contains("serial number") => diagnosis.hint(
                "the machine's serial number, which says where the answers are, did not reach the guest: \
                 was the machine changed, or started by somebody else?",
            ),
            Some(_) => diagnosis
                .hint(format!(
                    "the guest looks for its answers and does not get through to {address}: check its DHCP and \
                     VLAN, the firewall of this machine, and `http.advertise` in the builder profile"
                ))
                .hint("a guest that cannot reach this machine takes them along: `seed.transport = \"cdrom\"`"),
            None => diagnosis
                .hint(format!(
                    "{PICTURE} shows where it stands: at a boot menu or in the firmware the medium did not \
                     boot; check `source.iso` and `machine.firmware`"
                ))
                .hint(
                    "at a language menu the seed volume was not found, and at a question about autoinstall the \
                     stub did not run",
                )
                .hint(format!(
                    "at an installer that waits the guest has no network: check its NIC, DHCP and the way to \
                     {address}, or use `seed.transport = \"cdrom\"`"
                )),
        };
        diagnosis.hint("more time: `timeouts.fetch`")
    }

    fn not_reported(&self, waited: Duration) -> Diagnosis {
        let error = format!(
            "{}, and the installer has reported nothing in the {} since",
            self.fetched_in_words(),
            human_duration(waited)
        );
        if let Some(line) = memory_ran_out(self.console) {
            return self.memory_ran_out(Kind::Deadline, &error, line);
        }
        Diagnosis::new(Cause::NothingReported, Kind::Deadline, error)
            .hint(format!(
                "{PICTURE} shows where it stands: at an error or a shell it refused the answers before it \
                 could report that"
            ))
            .hint("at a question it was not confirmed: the stub's job does not know this medium's installer")
            .hint(
                "at a running installation its reports do not get here: a proxy or a firewall lets only \
                 the fetch through",
            )
            .hint("more time: `timeouts.fetch`")
    }

    fn not_confirmed(&self, waited: Duration) -> Diagnosis {
        let waited = human_duration(waited);
        let console = line_with(self.console, &["continue with autoinstall", "forge: the installer"]);
        let error = format!(
            "the installer has applied the answers and begun nothing in the {waited} since: nobody confirmed \
             the installation{}",
            more("; its console says", quoted(console).as_deref())
        );
        Diagnosis::new(Cause::NotConfirmed, Kind::Deadline, error)
            .hint(
                "the stub confirms by the installer's socket, /run/subiquity/socket: this medium's installer may \
                 be newer than those that forge knows; check `source.iso`",
            )
            .hint("keep the machine with --keep, and answer `yes` on its console to see whether it goes on")
            .hint("a medium whose own kernel line says `autoinstall` asks nothing")
            .hint("more time: `timeouts.fetch`")
    }

    fn too_long(&self, limit: Duration) -> Diagnosis {
        let begins = format!("the installation did not end within {}", human_duration(limit));
        let quiet = match self.reported {
            Some(quiet) if quiet >= Duration::from_mins(2) => {
                format!(", and has reported nothing for {}", human_duration(quiet))
            }
            _ => String::new(),
        };
        if let Some(ago) = self.shutdown {
            let ago = human_duration(ago);
            let error = format!(
                "{begins}: the installer said {ago} ago that it shuts down, and the machine still runs"
            );
            return Diagnosis::new(Cause::NotPoweredOff, Kind::Deadline, error)
                .hint(format!(
                    "{PICTURE} and the serial log show what it waits for: a service that does not stop, or an \
                     Enter after the medium was taken out"
                ))
                .hint("a machine without ACPI cannot switch itself off: look for `acpi` and `args` in \
                       `[machine.pve]`")
                .hint(MORE_TIME);
        }
        let Some((stage, time)) = self.stage else { return self.never_heard(&begins) };
        let error = format!("{begins}: it has been {stage} for {}{quiet}", human_duration(time));
        if let Some(line) = memory_ran_out(self.console) {
            return self.memory_ran_out(Kind::Deadline, &error, line);
        }
        if stage == UPDATES {
            return Diagnosis::new(Cause::UpdatesTooSlow, Kind::Deadline, error)
                .hint(
                    "a mirror that is near, or a cache such as apt-cacher-ng, makes updates fast: \
                     `apt.mirror-selection` in the answers",
                )
                .hint_if(self.memory_mib < MEMORY_AT_EASE, more_memory(self.memory_mib))
                .hint("updates cannot be switched off; `updates: security` installs the fewest")
                .hint(MORE_TIME);
        }
        Diagnosis::new(Cause::StageTooSlow, Kind::Deadline, error)
            .hint(format!(
                "{PICTURE} and the serial log show whether it still works: slow disks and mirrors take long, an \
                 emulated processor ten to thirty times as long"
            ))
            .hint_if(self.memory_mib < MEMORY_AT_EASE, more_memory(self.memory_mib))
            .hint(MORE_TIME)
    }

    /// An installation whose time is over and that has said nothing.
    fn never_heard(&self, begins: &str) -> Diagnosis {
        let known = if self.fetched.is_some() || self.address.is_some() {
            self.fetched_in_words()
        } else {
            "its answers are on the volume".to_owned()
        };
        let error = format!("{begins}: {known}, and nothing was reported");
        if let Some(line) = memory_ran_out(self.console) {
            return self.memory_ran_out(Kind::Deadline, &error, line);
        }
        Diagnosis::new(Cause::NothingReported, Kind::Deadline, error)
            .hint_if(!self.answers.report, LET_IT_TELL)
            .hint(format!(
                "{PICTURE} shows where it stands: a language menu means that the seed volume was not found, an \
                 error or a shell that it refused the answers"
            ))
            .hint_if(self.memory_mib < MEMORY_AT_EASE, more_memory(self.memory_mib))
            .hint(MORE_TIME)
    }

    fn failed(&self, name: &str, reason: &str) -> Diagnosis {
        let words = if reason.is_empty() { "it gives no reason" } else { reason };
        let place = if name.is_empty() { String::new() } else { format!(" in {name}") };
        let error = format!("the installer failed{place}: {words}");
        let cause = cause_of(name, reason);
        let diagnosis = Diagnosis::new(cause, Kind::Guest, error);
        let diagnosis = match cause {
            Cause::MirrorUnusable => diagnosis
                .hint(
                    "the mirror must answer in the guest's network, over its DNS: check \
                     `apt.mirror-selection` and `proxy` in the answers",
                )
                .hint(
                    "a firewall between guest and mirror looks the same; for guests of the local QEMU \
                     this machine is 10.0.2.2",
                ),
            Cause::PackageNotInstalled => {
                self.package_not_installed(diagnosis, package_in(name).unwrap_or_default())
            }
            Cause::DiskNotFound => diagnosis
                .hint(
                    "VirtIO disks have no model, vendor or serial number to match: `match: {size: \
                     largest}` under `storage.layout` takes what is there",
                )
                .hint(
                    "the first `[[machine.disk]]` is what is installed to: its `size_gib` may be too \
                     small",
                ),
            Cause::AnswersRefused => diagnosis
                .hint(
                    "it has read the answers and does not take them: correct what it names in the \
                     autoinstall file",
                )
                .hint_if(
                    name.contains("/Source/"),
                    "`source.id` must be one that the medium has: `ubuntu-server` or \
                     `ubuntu-server-minimal`",
                ),
            Cause::CommandFailed => diagnosis.hint(
                "the number counts the `late-commands` from 0; they run by sh, before the installed \
                 system has ever booted",
            ),
            _ => diagnosis,
        };
        let diagnosis =
            diagnosis.hint_if(memory_ran_out(self.console).is_some(), more_memory(self.memory_mib));
        match self.logs {
            Some(path) => diagnosis.hint(format!("its own logs are in {}", path.display())),
            None => diagnosis.hint("it sent no logs: let `error-commands` send them to forge.logs_url"),
        }
    }

    fn package_not_installed(&self, diagnosis: Diagnosis, package: &str) -> Diagnosis {
        let aborts =
            "without a mirror the installer goes on, and fails only here: say `fallback: abort` under `apt`";
        if package == "qemu-guest-agent" {
            return diagnosis
                .hint(
                    "qemu-guest-agent is in `universe`, which is not on the medium: it takes a mirror that has it \
                     and is reached",
                )
                .hint_if(!self.answers.want_mirror, aborts)
                .hint(
                    "a network that the answers themselves set up may be none: match interfaces by \
                     `name: \"en*\"`",
                );
        }
        diagnosis
            .hint(format!(
                "{package} must be in the release's archive, in a component that is enabled: check `packages` \
                 and `apt` in the answers"
            ))
            .hint_if(!self.answers.want_mirror, aborts)
    }

    fn again(&self, ago: Duration) -> Diagnosis {
        let ago = human_duration(ago);
        let error = format!(
            "the installer started again: it fetched the answers once more, {ago} after it had said that it \
             shuts down"
        );
        Diagnosis::new(Cause::InstalledAgain, Kind::Guest, error)
            .hint_if(
                self.reboots,
                "say `shutdown: poweroff` in the answers: whoever reboots meets the medium again",
            )
            .hint(
                "who resets the machine by hand while it installs starts the medium again: let forge \
                 switch it",
            )
            .hint("on Proxmox the disk must come first in the boot order: look for `boot` in `[machine.pve]`")
    }

    /// A machine that came to its end in the middle.
    fn ended(&self, cause: Cause, words: &str) -> Diagnosis {
        let error = format!("{words} {}", self.during());
        if let Some(line) = memory_ran_out(self.console) {
            return self.memory_ran_out(Kind::Guest, &error, line);
        }
        let diagnosis = Diagnosis::new(cause, Kind::Guest, error);
        let diagnosis = diagnosis
            .hint_if(cause == Cause::MemoryTooSmall, more_memory(self.memory_mib))
            .hint(format!("{PICTURE} and the serial log show its last words"));
        let may_be = cause != Cause::MemoryTooSmall && self.memory_mib < MEMORY_AT_EASE;
        diagnosis.hint_if(may_be, more_memory(self.memory_mib))
    }

    fn memory_ran_out(&self, kind: Kind, error: &str, line: &str) -> Diagnosis {
        Diagnosis::new(Cause::MemoryTooSmall, kind, format!("{error}; its console says `{line}`"))
            .hint(more_memory(self.memory_mib))
    }

    fn during(&self) -> String {
        match (self.stage, self.fetched) {
            (Some((stage, _)), _) => format!("while {stage}"),
            (None, Some(_)) => {
                "after the answers were fetched and before the installer reported anything".to_owned()
            }
            (None, None) if self.address.is_none() => "before the installer reported anything".to_owned(),
            (None, None) => "before anything was fetched".to_owned(),
        }
    }

    fn fetched_in_words(&self) -> String {
        let Some(Fetched { after, times }) = self.fetched else {
            return "nothing was fetched".to_owned();
        };
        let after = human_duration(after);
        match times {
            0 | 1 => format!("the answers were fetched after {after}"),
            2 => format!("the answers were fetched twice, first after {after}"),
            times => format!("the answers were fetched {times} times, first after {after}"),
        }
    }
}

fn rebooted() -> Diagnosis {
    let error = "the installer rebooted at its end instead of powering off";
    Diagnosis::new(Cause::Rebooted, Kind::Guest, error).hint(
        "say `shutdown: poweroff` in the autoinstall file: powering off is what forge takes for success",
    )
}

/// Returns a further fact, where it is known.
fn more(words: &str, fact: Option<&str>) -> String {
    fact.map(|fact| format!("{words} {fact}")).unwrap_or_default()
}

fn quoted(line: Option<&str>) -> Option<String> {
    line.map(|line| format!("`{line}`"))
}

/// Returns what an installer's failure means, from its context and its words (subiquity 24.04.3).
fn cause_of(name: &str, reason: &str) -> Cause {
    let says = |words: &[&str]| words.iter().any(|word| reason.contains(word));
    let has = |part: &str| name.split('/').any(|segment| segment == part);
    let loads = ["core_validation", "load_autoinstall_config", "load_autoinstall_data"];
    if says(&["alformed autoinstall", "isplaced autoinstall"])
        || loads.iter().any(|part| has(part))
        || (has("Source") && reason.is_empty())
    {
        Cause::AnswersRefused
    } else if has("Mirror") || says(&["no mirror is usable"]) {
        Cause::MirrorUnusable
    } else if package_in(name).is_some() {
        Cause::PackageNotInstalled
    } else if says(&["matching device"]) {
        Cause::DiskNotFound
    } else if has("Late") {
        Cause::CommandFailed
    } else {
        Cause::InstallerFailed
    }
}

/// Returns the package in whose installation a context is.
fn package_in(name: &str) -> Option<&str> {
    let (_, inside) = name.split_once("/postinstall/")?;
    inside.split('/').find_map(|segment| segment.strip_prefix("install_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    /// An installation of which nothing is known.
    fn dark(trouble: Trouble<'_>) -> Installation<'_> {
        Installation {
            trouble,
            address: Some("10.0.2.2:8000"),
            answers: Answers { report: true, call: true, install_agent: true, want_mirror: true },
            fetched: None,
            refused: None,
            reported: None,
            stage: None,
            shutdown: None,
            reboots: false,
            logs: None,
            memory_mib: 4096,
            console: &[],
        }
    }

    /// One that has been in a stage for five minutes.
    fn busy<'a>(trouble: Trouble<'a>, stage: &'a str) -> Installation<'a> {
        Installation {
            fetched: Some(Fetched { after: MINUTE, times: 1 }),
            reported: Some(5 * MINUTE),
            stage: Some((stage, 5 * MINUTE)),
            ..dark(trouble)
        }
    }

    #[track_caller]
    fn assert_says(it: &Installation<'_>, cause: Cause, kind: Kind, error: &str, hints: &[&str]) {
        let found = diagnose(it);
        assert_eq!((found.cause, found.kind), (cause, kind), "{found:#?}");
        assert!(found.error.contains(error), "`{error}` is not in {found:#?}");
        assert!((1..=4).contains(&found.hints.len()), "{found:#?}");
        for hint in hints {
            assert!(found.hints.iter().any(|it| it.contains(hint)), "`{hint}` is not in {found:#?}");
        }
        let texts = found.hints.iter().chain([&found.error]);
        for text in texts {
            assert!(!text.ends_with('.') && !text.contains("  "), "{text}");
        }
    }

    #[test]
    fn answers_that_nobody_fetched_are_diagnosed() {
        let it = dark(Trouble::NotFetched(5 * MINUTE));
        let says = "nothing fetched the installer's answers from 10.0.2.2:8000 within 5 min 00 s";
        let hints = ["did not boot", "seed volume", "NIC, DHCP", "seed.transport", "timeouts.fetch"];
        assert_says(&it, Cause::AnswersNotFetched, Kind::Deadline, says, &hints);

        let it = Installation { refused: Some("GET /…/user-data with 404"), ..it };
        let says = "was refused, last GET /…/user-data with 404";
        assert_says(&it, Cause::AnswersNotFetched, Kind::Deadline, says, &hints);
    }

    #[test]
    fn what_the_stub_says_on_the_console_counts_more_than_guesses() {
        let console = [
            "forge: fetching the answers from 10.0.2.2:8000",
            "forge: 10.0.2.2:8000 has not answered yet (attempt 10): timed out",
            "forge: the installer's state is EARLY_COMMANDS",
        ];
        let console = console.map(str::to_owned);
        let it = Installation { console: &console, ..dark(Trouble::NotFetched(MINUTE)) };
        let says = "`forge: 10.0.2.2:8000 has not answered yet (attempt 10): timed out`";
        let hints = ["does not get through to 10.0.2.2:8000", "http.advertise", "cdrom", "timeouts.fetch"];
        assert_says(&it, Cause::AnswersNotFetched, Kind::Deadline, says, &hints);

        let console = ["forge: this machine's serial number carries no URL: it was not started by forge"];
        let console = console.map(str::to_owned);
        let it = Installation { console: &console, ..it };
        assert_says(
            &it,
            Cause::AnswersNotFetched,
            Kind::Deadline,
            "carries no URL",
            &["did not reach the guest"],
        );
    }

    #[test]
    fn silence_after_the_fetch_is_diagnosed_by_how_far_it_came() {
        let fetched = Some(Fetched { after: Duration::from_secs(100), times: 1 });
        let it = Installation { fetched, ..dark(Trouble::NotReported(10 * MINUTE)) };
        let says = "the answers were fetched after 1 min 40 s, and the installer has reported nothing in the \
                    10 min 00 s since";
        let hints =
            ["it refused the answers", "it was not confirmed", "a proxy or a firewall", "timeouts.fetch"];
        assert_says(&it, Cause::NothingReported, Kind::Deadline, says, &hints);

        let console = ["Continue with autoinstall? (yes|no)".to_owned()];
        let it = busy(Trouble::NotConfirmed(10 * MINUTE), "applying the answers");
        let it = Installation { console: &console, ..it };
        let says = "begun nothing in the 10 min 00 s since: nobody confirmed the installation; its console says \
                    `Continue with autoinstall? (yes|no)`";
        let hints = ["/run/subiquity/socket", "--keep", "timeouts.fetch"];
        assert_says(&it, Cause::NotConfirmed, Kind::Deadline, says, &hints);
    }

    #[test]
    fn what_takes_too_long_is_named_with_its_time() {
        let trouble = Trouble::TooLong(60 * MINUTE);
        let it = busy(trouble, "installing updates");
        let says = "did not end within 1 h 00 min: it has been installing updates for 5 min 00 s, and has \
                    reported nothing for 5 min 00 s";
        let hints = ["apt.mirror-selection", "cannot be switched off", "timeouts.install"];
        assert_says(&it, Cause::UpdatesTooSlow, Kind::Deadline, says, &hints);

        let it = Installation {
            reported: Some(MINUTE),
            memory_mib: 2048,
            ..busy(trouble, "extracting the system")
        };
        let hints = ["2048 MiB of memory", "the serial log", "timeouts.install"];
        assert_says(&it, Cause::StageTooSlow, Kind::Deadline, "extracting the system for 5 min 00 s", &hints);
        assert!(!diagnose(&it).error.contains("reported nothing"), "it has just reported");

        let it = Installation { shutdown: Some(48 * MINUTE), ..busy(trouble, "shutting down") };
        let says = "the installer said 48 min 00 s ago that it shuts down, and the machine still runs";
        assert_says(&it, Cause::NotPoweredOff, Kind::Deadline, says, &["does not stop", "ACPI"]);

        let silent = Answers { report: false, ..it.answers };
        let it = Installation { address: None, answers: silent, ..dark(trouble) };
        let says = "its answers are on the volume, and nothing was reported";
        assert_says(
            &it,
            Cause::NothingReported,
            Kind::Deadline,
            says,
            &["forge.report_url", "language menu"],
        );
        let it = Installation { fetched: Some(Fetched { after: MINUTE, times: 3 }), ..it };
        let says = "the answers were fetched 3 times, first after 1 min 00 s, and nothing was reported";
        assert_says(&it, Cause::NothingReported, Kind::Deadline, says, &["forge.report_url"]);
    }

    #[test]
    fn failures_of_the_installer_have_their_cause() {
        const INSTALL: &str = "subiquity/Install/install";
        let agent = format!("{INSTALL}/postinstall/install_qemu-guest-agent/retrieving");
        let vim = format!("{INSTALL}/postinstall/install_vim");
        for (name, reason, cause, hints) in [
            (
                "subiquity/Mirror/apply_autoinstall_config",
                "aborting install since no mirror is usable",
                Cause::MirrorUnusable,
                vec!["apt.mirror-selection", "firewall"],
            ),
            (&agent, "exit status 100", Cause::PackageNotInstalled, vec!["`universe`", "name: \"en*\""]),
            (
                &vim,
                "exit status 100",
                Cause::PackageNotInstalled,
                vec!["vim must be in the release's archive"],
            ),
            (
                "subiquity/Filesystem/apply_autoinstall_config",
                "Failed to find matching device for {'serial': 'x'}",
                Cause::DiskNotFound,
                vec!["size: largest", "size_gib"],
            ),
            (
                "subiquity/Keyboard/load_autoinstall_data",
                "Malformed autoinstall in 'keyboard' section",
                Cause::AnswersRefused,
                vec!["correct what it names"],
            ),
            (
                "subiquity/load_autoinstall_config",
                "Misplaced autoinstall directives resulted in a bad config",
                Cause::AnswersRefused,
                vec![],
            ),
            (
                "subiquity/Source/load_autoinstall_data",
                "",
                Cause::AnswersRefused,
                vec!["ubuntu-server-minimal"],
            ),
            ("subiquity/Mirror/load_autoinstall_data", "x", Cause::AnswersRefused, vec![]),
            ("subiquity/Late/run/command_1", "exit code 3", Cause::CommandFailed, vec!["from 0"]),
            (INSTALL, "no space left", Cause::InstallerFailed, vec![]),
            ("", "", Cause::InstallerFailed, vec![]),
        ] {
            let it = busy(Trouble::Failed { name, reason }, "applying the answers");
            let place = if name.is_empty() { String::new() } else { format!(" in {name}") };
            let words = if reason.is_empty() { "it gives no reason" } else { reason };
            assert_says(&it, cause, Kind::Guest, &format!("the installer failed{place}: {words}"), &hints);
            assert!(diagnose(&it).hints.last().unwrap().contains("forge.logs_url"), "{name}");
            let it = Installation { logs: Some(Path::new("/run/x.tar.gz")), ..it };
            assert!(diagnose(&it).hints.last().unwrap().contains("/run/x.tar.gz"), "{name}");
            let wants_none = Answers { want_mirror: false, ..it.answers };
            let abort = diagnose(&Installation { answers: wants_none, ..it }).hints.join("\n");
            assert_eq!(abort.contains("fallback: abort"), cause == Cause::PackageNotInstalled, "{abort}");
        }
    }

    #[test]
    fn a_machine_that_ends_early_is_diagnosed() {
        let stage = "partitioning the disk";
        let reset = Trouble::Ended("the guest reset itself");
        let says = "the guest reset itself while partitioning the disk";
        assert_says(&busy(reset, stage), Cause::EndedEarly, Kind::Guest, says, &["last words"]);
        let it = Installation { reboots: true, ..busy(reset, "shutting down") };
        assert_says(&it, Cause::Rebooted, Kind::Guest, "rebooted at its end", &["shutdown: poweroff"]);
        let died = Trouble::Died("QEMU crashed");
        assert_says(
            &dark(died),
            Cause::MachineDied,
            Kind::Infrastructure,
            "QEMU crashed",
            &["space on its disks"],
        );
        let found = diagnose(&dark(died));
        assert_eq!(found.error, "QEMU crashed before anything was fetched");
        let it = Installation { address: None, ..dark(died) };
        assert_eq!(diagnose(&it).error, "QEMU crashed before the installer reported anything");

        let it = busy(Trouble::Again(Duration::from_secs(12)), "shutting down");
        let says = "it fetched the answers once more, 12 s after it had said that it shuts down";
        assert_says(&it, Cause::InstalledAgain, Kind::Guest, says, &["boot order"]);
        let it = Installation { reboots: true, ..it };
        assert_says(&it, Cause::InstalledAgain, Kind::Guest, says, &["shutdown: poweroff"]);
    }

    #[test]
    fn memory_that_runs_out_is_told_whatever_came_of_it() {
        let panic = Trouble::Panicked("the guest's kernel panicked");
        let it = busy(panic, "extracting the system");
        assert_says(&it, Cause::EndedEarly, Kind::Guest, "panicked while extracting", &["last words"]);
        let small = Installation { memory_mib: 2048, ..it };
        assert_says(
            &small,
            Cause::MemoryTooSmall,
            Kind::Guest,
            "panicked while extracting",
            &["has 2048 MiB"],
        );

        let console = ["[  61.5] Out of memory: Killed process 812 (python3)".to_owned()];
        for trouble in [
            panic,
            Trouble::NotFetched(MINUTE),
            Trouble::NotReported(MINUTE),
            Trouble::TooLong(MINUTE),
            Trouble::Ended("the guest powered off"),
        ] {
            for it in [busy(trouble, "extracting the system"), dark(trouble)] {
                let found = diagnose(&Installation { console: &console, ..it });
                assert_eq!(found.cause, Cause::MemoryTooSmall, "{found:#?}");
                assert!(found.error.contains("Killed process 812"), "{found:#?}");
            }
        }
    }
}
