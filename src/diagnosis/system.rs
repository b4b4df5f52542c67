//! Why an installed system, or a clone of it, does not answer as it should.

use super::{Answers, Cause, Diagnosis, LET_IT_TELL, line_with};
use crate::failure::Kind;

/// Whose guest agent does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    /// That of the system that was just installed.
    Installed,
    /// That of a clone of the finished template.
    Clone,
}

impl Guest {
    const fn words(self) -> &'static str {
        match self {
            Self::Installed => "the installed system",
            Self::Clone => "the clone",
        }
    }
}

/// What is known of a guest whose agent does not answer.
#[derive(Debug, Clone, Copy)]
pub struct Silence<'a> {
    /// Whose.
    pub guest: Guest,
    /// What kind of failure that is: a deadline, or a guest that ended.
    pub kind: Kind,
    /// What the answers asked for.
    pub answers: Answers,
    /// Whether the system has said to forge that its agent runs.
    pub called: bool,
    /// Whether the answers were fetched meanwhile, which only an installer does.
    pub installs: bool,
    /// The last lines of the machine's serial port.
    pub console: &'a [String],
}

/// What a console says when the system behind it has not booted.
const NOT_BOOTED: [&str; 8] = [
    "no bootable device",
    "not a bootable disk",
    "boot failed",
    "kernel panic",
    "grub rescue>",
    "(initramfs)",
    "emergency mode",
    "unable to mount root",
];

/// Returns why a guest's agent does not answer.
#[must_use]
pub fn diagnose_silence(it: &Silence<'_>) -> Diagnosis {
    const MORE_TIME: &str = "more time: `timeouts.boot`, or `timeout_factor` in the builder profile";
    let new = |cause, error: &str| Diagnosis::new(cause, it.kind, format!("{} {error}", it.guest.words()));
    if it.installs {
        let error =
            "did not bring its guest agent up, and the answers were fetched again: the installer runs";
        return new(Cause::InstalledAgain, error)
            .hint("the medium was booted instead of the disk: look for `boot` in `[machine.pve]`")
            .hint(
                "its disk may hold nothing that boots: an installation under BIOS does not start under \
                 UEFI, nor the other way round",
            );
    }
    if it.called {
        return new(Cause::AgentOutOfReach, "says that its guest agent runs, and it is not reached")
            .hint(
                "the way to it is a port of the machine: was the machine changed while it ran, or by \
                 `[machine.pve]`?",
            )
            .hint(MORE_TIME);
    }
    if let Some(line) = line_with(it.console, &NOT_BOOTED) {
        return new(Cause::SystemNotBooted, &format!("has not booted: its console says `{line}`"))
            .hint(
                "a disk without a boot loader for this firmware: was it installed under the same \
                 `machine.firmware`?",
            )
            .hint("the picture of its screen and the serial log show what it lacks")
            .hint(MORE_TIME);
    }
    let last = it.console.last().map(|line| line.trim());
    let last = last.map(|line| format!("; its console's last line is `{line}`")).unwrap_or_default();
    if it.guest == Guest::Clone {
        return new(Cause::CloneSilent, &format!("did not bring its guest agent up{last}"))
            .hint(
                "the same system answered while it was built: something that sealing removed may be \
                 needed to boot",
            )
            .hint("the picture of its screen and the serial log show how far it came")
            .hint(MORE_TIME);
    }
    if !it.answers.install_agent {
        let error =
            format!("did not bring its guest agent up, and nothing in the answers installs one{last}");
        return new(Cause::AgentMissing, &error)
            .hint(
                "add `qemu-guest-agent` to `packages` in the autoinstall file: forge has no other way \
                 into the guest",
            )
            .hint(
                "a medium that brings it along: the picture of its screen and the serial log show how far \
                 it came",
            )
            .hint(MORE_TIME);
    }
    let mute = "nor has it called forge, as the answers have it do when its agent starts: it did not come that \
                far, or has no network";
    new(Cause::AgentSilent, &format!("did not bring its guest agent up{last}"))
        .hint(
            "the installer has installed the agent: the picture of its screen and the serial log show how \
             far it came",
        )
        .hint_if(it.answers.call, mute)
        .hint(MORE_TIME)
}

/// Returns the diagnosis of a system that has not what the installer leaves last, which is `marker`.
#[must_use]
pub fn not_installed(marker: &str) -> Diagnosis {
    let error = format!("the installation did not come to its end: it has not left {marker} in the system");
    Diagnosis::new(Cause::NotInstalled, Kind::Guest, error).hint(LET_IT_TELL)
}

/// Returns the diagnosis of a system that asks for what only an installer needs.
#[must_use]
pub fn address_kept(guest: Guest, asked: &[String]) -> Diagnosis {
    let who = guest.words();
    let what = asked.first().map_or("the answers", String::as_str);
    let error = format!(
        "{who} asked forge for {what}: it has kept the address of its build, and so would each clone, at \
         each boot"
    );
    Diagnosis::new(Cause::AddressKept, Kind::Check, error)
        .hint(
            "kernel arguments after `---` on the medium's line go on to the installed system: look for \
             `ds=` in /etc/default/grub",
        )
        .hint(
            "look for a `seedfrom` or a URL of this build in /etc/cloud, which late commands and steps \
             may have put there",
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silence() -> Silence<'static> {
        Silence {
            guest: Guest::Installed,
            kind: Kind::Deadline,
            answers: Answers { report: true, call: true, install_agent: true, want_mirror: true },
            called: false,
            installs: false,
            console: &[],
        }
    }

    #[track_caller]
    fn assert_says(it: &Silence<'_>, cause: Cause, error: &str, hint: &str) {
        let found = diagnose_silence(it);
        assert_eq!((found.cause, found.kind), (cause, Kind::Deadline), "{found:#?}");
        assert!(found.error.contains(error), "`{error}` is not in {found:#?}");
        assert!(found.hints.iter().any(|it| it.contains(hint)), "`{hint}` is not in {found:#?}");
    }

    #[test]
    fn an_agent_that_never_came_is_told_by_what_else_is_known() {
        let it = silence();
        assert_says(&it, Cause::AgentSilent, "the installed system did not bring", "nor has it called forge");
        let mute = Answers { call: false, ..it.answers };
        let quiet = Silence { answers: mute, ..it };
        assert!(!diagnose_silence(&quiet).hints.join(" ").contains("called forge"));
        let without = Answers { install_agent: false, ..it.answers };
        let it = Silence { answers: without, ..it };
        assert_says(&it, Cause::AgentMissing, "nothing in the answers installs one", "`qemu-guest-agent`");
        let it = Silence { called: true, ..silence() };
        assert_says(&it, Cause::AgentOutOfReach, "says that its guest agent runs", "a port of the machine");
        let it = Silence { installs: true, ..silence() };
        assert_says(&it, Cause::InstalledAgain, "the answers were fetched again", "instead of the disk");
    }

    #[test]
    fn the_console_tells_whether_it_booted() {
        for line in ["[   2.1] Kernel panic - not syncing: VFS", "No bootable device.", "grub rescue> "] {
            let console = [line.to_owned()];
            for guest in [Guest::Installed, Guest::Clone] {
                let it = Silence { guest, console: &console, ..silence() };
                assert_says(&it, Cause::SystemNotBooted, line.trim(), "machine.firmware");
            }
        }
        let console = ["mini login:".to_owned()];
        let it = Silence { guest: Guest::Clone, console: &console, ..silence() };
        assert_says(&it, Cause::CloneSilent, "its console's last line is `mini login:`", "sealing removed");
    }

    #[test]
    fn a_system_that_calls_home_is_told_with_what_it_asked_for() {
        let found = address_kept(Guest::Installed, &["GET /…/meta-data with 404".to_owned()]);
        assert_eq!((found.cause, found.kind), (Cause::AddressKept, Kind::Check));
        assert!(found.error.contains("asked forge for GET /…/meta-data"), "{found:#?}");
        assert!(address_kept(Guest::Clone, &[]).error.starts_with("the clone asked forge for the answers"));
    }
}
