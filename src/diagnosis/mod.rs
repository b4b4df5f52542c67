//! Why an unattended installation failed, as far as forge can know it: from facts to a cause and a next step.
//!
//! ```text
//!   what was fetched, reported, and seen on the console ──► Installation ─┐
//!   what the installed system, or a clone, said for itself ──► Silence ───┴─► Diagnosis: facts, hints ─► Failure
//!   what a look into a clone shows ──► Symptoms ──► what the findings that do not hold are explained by
//! ```
//!
//! Plain data and rules: whoever watches a machine collects the facts. A [`Diagnosis`] tells facts first, and
//! then what they likely mean, the likeliest first. `docs/failures.md` has a row for each [`Cause`].

mod clone;
mod installation;
mod system;

pub use clone::{Explanation, LOOK, Symptoms, explain};
pub use installation::{Fetched, Installation, Trouble, diagnose};
pub use system::{Guest, Silence, address_kept, diagnose_silence, not_installed};

use anyhow::anyhow;

use crate::failure::{Failure, Kind};

/// How many hints a person still reads.
const HINTS_MAX: usize = 4;

/// The memory in MiB with which the installer is at ease; with less it may run short.
const MEMORY_AT_EASE: u32 = 4096;

/// What makes an installer explain itself that has said nothing.
const LET_IT_TELL: &str =
    "let it tell where it stands: `reporting` with `type: webhook` and forge.report_url";

/// Declares the causes, each with its name.
macro_rules! causes {
    ($($(#[doc = $symptom:literal])+ $cause:ident = $name:literal,)+) => {
        /// Why something failed. Each says how it shows; `docs/failures.md` names each, with what to do.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Cause {
            $($(#[doc = $symptom])+ $cause,)+
        }

        impl Cause {
            /// Every cause, in the order of a build.
            pub const ALL: &[Self] = &[$(Self::$cause),+];

            /// Returns its name, as documentation has it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$cause => $name,)+
                }
            }
        }
    };
}

causes! {
    /// A boot menu, a language menu, or an installer that waits: nothing fetches the answers.
    AnswersNotFetched = "answers-not-fetched",
    /// The answers were fetched, and the installer has reported nothing: it waits at a shell or a question.
    NothingReported = "nothing-reported",
    /// The answers are applied, and `Continue with autoinstall?` stands on the console.
    NotConfirmed = "not-confirmed",
    /// "Malformed autoinstall in …", "Misplaced autoinstall directives", or a failure without a word in `Source`.
    AnswersRefused = "answers-refused",
    /// "Failed to find matching device".
    DiskNotFound = "disk-not-found",
    /// "aborting install since no mirror is usable".
    MirrorUnusable = "mirror-unusable",
    /// The installation of a package ends with 100, above all that of `qemu-guest-agent`.
    PackageNotInstalled = "package-not-installed",
    /// A command of the answers' own ended with an error.
    CommandFailed = "command-failed",
    /// The installer says that it failed, in other words than the ones above.
    InstallerFailed = "installer-failed",
    /// `run_unattended_upgrades` does not come to its end.
    UpdatesTooSlow = "updates-too-slow",
    /// Another stage does not come to its end.
    StageTooSlow = "stage-too-slow",
    /// A kernel that panics, kills processes or cannot unpack its initramfs; or everything stands still.
    MemoryTooSmall = "memory-too-small",
    /// The installer said that it powers the machine off, and the machine runs on.
    NotPoweredOff = "not-powered-off",
    /// The installer rebooted the machine at its end.
    Rebooted = "rebooted",
    /// The installer starts again after its end, or where the installed system should boot.
    InstalledAgain = "installed-again",
    /// The machine was reset or switched off in the middle of the installation, or its kernel panicked.
    EndedEarly = "ended-early",
    /// What runs the machine has failed: QEMU crashed, the disk is full.
    MachineDied = "machine-died",
    /// The installer reported nothing, and has not left in the system what it leaves last.
    NotInstalled = "not-installed",
    /// The guest agent never answers, and nothing in the answers installs it.
    AgentMissing = "agent-missing",
    /// The installed system says that its agent runs, and the agent is not reached.
    AgentOutOfReach = "agent-out-of-reach",
    /// The console shows that the installed system, or a clone, has not booted.
    SystemNotBooted = "system-not-booted",
    /// The guest agent of the installed system never answers.
    AgentSilent = "agent-silent",
    /// The installed system, or a clone, asks for the installer's answers again.
    AddressKept = "address-kept",
    /// The clone's guest agent never answers, though the template's did.
    CloneSilent = "clone-silent",
    /// The clone has nothing of its drive: cloud-init does not run.
    CloudInitOff = "cloud-init-off",
    /// The clone has nothing of its drive: there is none.
    NoDriveSeen = "no-drive-seen",
    /// The clone has nothing of its drive: the installer's settings tell cloud-init to look nowhere.
    InstallerSettingsLeft = "installer-settings-left",
    /// The clone has no network, or another than its drive says, because it brought one along.
    NetworkLeft = "network-left",
    /// The clone has nothing of its drive: cloud-init took another data source.
    OtherDataSource = "other-data-source",
    /// cloud-init ended with an error.
    CloudInitFailed = "cloud-init-failed",
    /// The clone has no address, though cloud-init took its drive.
    NetworkDown = "network-down",
    /// Clones share a machine-id, hence a DHCP lease; or a host key.
    IdentityShared = "identity-shared",
    /// No SSH server listens in the clone.
    SshDown = "ssh-down",
    /// The clone's SSH server listens on another port.
    SshElsewhere = "ssh-elsewhere",
    /// The clone's user does not have the key of the drive.
    KeysNotTaken = "keys-not-taken",
    /// The clone's root file system has the template's size.
    DiskNotGrown = "disk-not-grown",
    /// The clone's first boot stands still for two minutes.
    NetworkWaitedFor = "network-waited-for",
    /// The console password is refused in the clone.
    PasswordLocked = "password-locked",
}

/// What the answers ask for, as far as it matters when something fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Answers {
    /// Whether the installer reports to forge.
    pub report: bool,
    /// Whether the installed system says to forge that its agent runs.
    pub call: bool,
    /// Whether something in them installs the guest agent.
    pub install_agent: bool,
    /// Whether the installer gives up where no mirror is usable; else it may go on without one.
    pub want_mirror: bool,
}

/// What is wrong, and what to do: the text of a failure, and its cause's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    /// Why, most likely.
    pub cause: Cause,
    /// What kind of failure it is.
    pub kind: Kind,
    /// What happened: facts, with their numbers.
    pub error: String,
    /// What it likely means and what to do, the likeliest first; at most four.
    pub hints: Vec<String>,
}

impl Diagnosis {
    fn new(cause: Cause, kind: Kind, error: impl Into<String>) -> Self {
        Self { cause, kind, error: error.into(), hints: Vec::new() }
    }

    /// Returns it with one more hint, as long as those are few.
    fn hint(mut self, hint: impl Into<String>) -> Self {
        if self.hints.len() < HINTS_MAX {
            self.hints.push(hint.into());
        }
        self
    }

    fn hint_if(self, so: bool, hint: impl Into<String>) -> Self {
        if so { self.hint(hint) } else { self }
    }
}

impl Diagnosis {
    /// Returns a failure with this before its own words: it keeps its kind and its causes.
    #[must_use]
    pub fn explain(self, failure: Failure) -> Failure {
        let explained = Failure { error: failure.error.context(self.error), hints: Vec::new(), ..failure };
        self.hints.into_iter().chain(failure.hints).fold(explained, Failure::hint)
    }
}

impl From<Diagnosis> for Failure {
    fn from(diagnosis: Diagnosis) -> Self {
        let failure = Self::new(diagnosis.kind, anyhow!(diagnosis.error));
        diagnosis.hints.into_iter().fold(failure, Self::hint)
    }
}

/// Returns the last line of a console that holds one of these, however the console writes it.
fn line_with<'a>(console: &'a [String], words: &[&str]) -> Option<&'a str> {
    let holds = |line: &&String| {
        let line = line.to_lowercase();
        words.iter().any(|word| line.contains(word))
    };
    console.iter().rev().find(holds).map(|line| line.trim())
}

/// Returns what a console says of memory that ran out.
fn memory_ran_out(console: &[String]) -> Option<&str> {
    let words = ["out of memory", "oom-kill", "deadlocked on memory", "initramfs unpacking failed"];
    line_with(console, &words)
}

fn more_memory(mib: u32) -> String {
    format!(
        "the machine has {mib} MiB of memory, and the installer is at ease with {MEMORY_AT_EASE}: `machine.memory_mib`"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_have_names_of_their_own_without_numbers() {
        let mut names: Vec<_> = Cause::ALL.iter().map(|cause| cause.name()).collect();
        for name in &names {
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{name}");
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Cause::ALL.len());
    }

    #[test]
    fn a_failure_has_the_facts_first_and_few_hints() {
        let diagnosis = Diagnosis::new(Cause::NotConfirmed, Kind::Deadline, "nobody confirmed it");
        let diagnosis = (0..9).fold(diagnosis, |diagnosis, number| diagnosis.hint(format!("try {number}")));
        let failure = Failure::from(diagnosis);
        assert_eq!((failure.kind, failure.to_string().as_str()), (Kind::Deadline, "nobody confirmed it"));
        assert_eq!(failure.hints, ["try 0", "try 1", "try 2", "try 3"]);
    }
}
