//! Whose VM this is: a block in its description, for people and for forge.
//!
//! ````text
//! ```forge
//! Whose VM this is: forge reads these lines, leave them as they are.
//! schema = 1
//! state = building
//! vmid = 9000
//! uuid = 1b4e28ba-2fa1-41d2-883f-0016d3cca427
//! run = 20261121-142109-a1b2c3
//! template = ubuntu-noble
//! plan = sha256:…
//! host = builder1/5f3c2a1b
//! process = 4711 since 8812345
//! lease = 2026-11-21T14:36:09Z
//! ```
//! ````
//!
//! A clone inherits its original's description, tags and even `meta`. So the block says which VM it is
//! about, and speaks for no other: the VMID and the UUID must both be the VM's own.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::pve::Vmid;

/// How long a lease lasts; it is renewed at each step and every [`RENEW`].
pub const LEASE: Duration = Duration::from_mins(15);

/// How often a lease is renewed within a step.
pub const RENEW: Duration = Duration::from_mins(5);

/// The longest description that Proxmox takes, in characters.
pub const DESCRIPTION_MAX: usize = 8192;

/// The tag that everything of forge's bears.
pub const TAG: &str = "forge";

const OPEN: &str = "```forge";
const CLOSE: &str = "```";
const INTRO: &str = "Whose VM this is: forge reads these lines, leave them as they are.";
const SCHEMA: &str = "1";
const UNKNOWN: &str = "unknown";

/// What a VM is to forge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It is installed, provisioned, checked or converted.
    Building,
    /// It is proven, or it is the clone that proves another.
    Proving,
    /// A template whose proof held.
    Candidate,
    /// The template that users clone.
    Stable,
    /// Its build failed, and somebody wanted it kept.
    Failed,
}

impl State {
    const ALL: [Self; 5] = [Self::Building, Self::Proving, Self::Candidate, Self::Stable, Self::Failed];

    /// Returns its word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Building => "building",
            Self::Proving => "proving",
            Self::Candidate => "candidate",
            Self::Stable => "stable",
            Self::Failed => "failed",
        }
    }

    /// Tells whether a run is at work on it, without which it is of no use.
    #[must_use]
    pub const fn is_passing(self) -> bool {
        matches!(self, Self::Building | Self::Proving)
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a VM's block says.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Marks {
    /// The VM that it is about.
    pub vmid: Vmid,
    /// That VM's SMBIOS UUID, in lower case; empty for a clone whose UUID nobody has read yet.
    pub uuid: String,
    /// The run that made it.
    pub run: String,
    /// The template's name.
    pub template: String,
    /// The plan's digest.
    pub plan: String,
    /// The machine that forge runs on, as [`super::process::host`] names it.
    pub host: String,
    /// forge's process there.
    pub pid: u32,
    /// That process's start, in clock ticks since the machine's.
    pub process_start: u64,
    /// What it is.
    pub state: State,
    /// Until when it is looked after without a further word, in seconds since 1970 by the node's clock.
    pub lease_until: i64,
}

impl Marks {
    /// Returns the block.
    #[must_use]
    pub fn block(&self) -> String {
        let Self { vmid, uuid, run, template, plan, host, pid, process_start, state, lease_until } = self;
        let uuid = if uuid.is_empty() { UNKNOWN } else { uuid };
        let [run, template, plan, host] = [run, template, plan, host].map(|text| harmless(text));
        let lease = jiff::Timestamp::from_second(*lease_until).unwrap_or(jiff::Timestamp::MAX);
        format!(
            "{OPEN}\n{INTRO}\nschema = {SCHEMA}\nstate = {state}\nvmid = {vmid}\nuuid = {uuid}\nrun = {run}\n\
             template = {template}\nplan = {plan}\nhost = {host}\nprocess = {pid} since {process_start}\n\
             lease = {lease}\n{CLOSE}"
        )
    }

    /// Reads the block of a description, whatever its line ends and the blanks around its lines.
    ///
    /// Returns nothing unless there is exactly one and each of its lines is as forge writes it.
    #[must_use]
    pub fn read(description: &str) -> Option<Self> {
        let description = unified(description);
        let parts = split(&description);
        let [block] = parts.blocks[..] else { return None };
        let mut fields = BTreeMap::new();
        for line in block.lines().map(str::trim).filter(|line| !line.is_empty() && *line != INTRO) {
            let (key, value) = line.split_once('=')?;
            if fields.insert(key.trim_end(), value.trim_start()).is_some() {
                return None;
            }
        }
        let marks = Self::of_fields(&mut fields)?;
        fields.is_empty().then_some(marks)
    }

    fn of_fields(fields: &mut BTreeMap<&str, &str>) -> Option<Self> {
        let mut take = |key| fields.remove(key).filter(|value| !value.is_empty());
        (take("schema")? == SCHEMA).then_some(())?;
        let (pid, process_start) = take("process")?.split_once(" since ")?;
        Some(Self {
            vmid: take("vmid")?.parse().ok()?,
            uuid: parse_uuid(take("uuid")?)?,
            run: take("run")?.to_owned(),
            template: take("template")?.to_owned(),
            plan: take("plan")?.to_owned(),
            host: take("host")?.to_owned(),
            pid: pid.parse().ok()?,
            process_start: process_start.parse().ok()?,
            state: State::parse(take("state")?)?,
            lease_until: take("lease")?.parse::<jiff::Timestamp>().ok()?.as_second(),
        })
    }

    /// Returns a description with this block in it: in place of the one that was there, else behind the
    /// text. A text too long for Proxmox is cut.
    #[must_use]
    pub fn in_description(&self, text: &str) -> String {
        let text = unified(text);
        let Split { before, after, .. } = split(&text);
        let block = self.block();
        let frame = "\n\n".len() * 2;
        let room = DESCRIPTION_MAX.saturating_sub(block.chars().count() + frame);
        let before = cut(before.trim(), room);
        let after = cut(after.trim(), room.saturating_sub(before.chars().count()));
        let parts = [before.as_str(), block.as_str(), after.as_str()];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n\n")
    }

    /// Returns the tags by which people find it.
    #[must_use]
    pub fn tags(&self) -> Vec<String> {
        let mut tags = vec![TAG.to_owned(), format!("{TAG}-{}", self.state)];
        if self.state.is_passing() {
            tags.push(format!("run-{}", self.run.to_lowercase()));
        }
        tags
    }

    /// Returns the marks with a lease that begins now, by the node's clock.
    #[must_use]
    pub fn renewed(&self, now: i64) -> Self {
        Self { lease_until: now + LEASE.as_secs().cast_signed(), ..self.clone() }
    }

    /// Tells whether the block is about the VM that bears it, and not about one that it was cloned from.
    #[must_use]
    pub fn is_about(&self, vmid: Vmid, uuid: Option<&str>) -> bool {
        self.vmid == vmid
            && !self.uuid.is_empty()
            && uuid.is_some_and(|it| it.eq_ignore_ascii_case(&self.uuid))
    }

    /// Tells whether nobody works for that run any more: its process is gone from this machine or, when
    /// it is another machine's, its lease is over.
    ///
    /// A process that lives here keeps its VM however late it is: a machine may have slept.
    pub fn is_forsaken(
        &self,
        now: i64,
        local_host: &str,
        process_alive: impl FnOnce(u32, u64) -> bool,
    ) -> bool {
        if self.host == local_host {
            !process_alive(self.pid, self.process_start)
        } else {
            now > self.lease_until
        }
    }
}

/// Tells whether a VM is one that a dead run has left: the block is about this very VM, it is no template,
/// it was being built or proven, and nobody does so any more.
///
/// `now` is the time by the node's clock; `process_alive` is asked about processes of this machine only.
pub fn is_leftover(
    marks: &Marks,
    vmid: Vmid,
    uuid: Option<&str>,
    is_template: bool,
    now: i64,
    local_host: &str,
    process_alive: impl FnOnce(u32, u64) -> bool,
) -> bool {
    marks.is_about(vmid, uuid)
        && !is_template
        && marks.state.is_passing()
        && marks.is_forsaken(now, local_host, process_alive)
}

/// A description without its blocks.
struct Split<'a> {
    before: &'a str,
    /// What stands between the fences.
    blocks: Vec<&'a str>,
    after: String,
}

fn split(text: &str) -> Split<'_> {
    let mut parts = Split { before: text, blocks: Vec::new(), after: String::new() };
    let mut rest = text;
    while let Some((start, inner, end)) = next_block(rest) {
        if parts.blocks.is_empty() {
            parts.before = &rest[..start];
        } else {
            parts.after += &rest[..start];
        }
        parts.blocks.push(inner);
        rest = &rest[end..];
    }
    if !parts.blocks.is_empty() {
        parts.after += rest;
    }
    parts
}

/// Returns where the next block begins, what is in it and where it ends; one without an end reaches to the
/// text's.
fn next_block(text: &str) -> Option<(usize, &str, usize)> {
    let mut start = None;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let (begins, ends) = (line.trim() == OPEN, line.trim() == CLOSE);
        match start {
            None if begins => start = Some((at, at + line.len())),
            Some((open, inner)) if ends => return Some((open, &text[inner..at], at + line.len())),
            _ => {}
        }
        at += line.len();
    }
    start.map(|(open, inner)| (open, &text[inner..], text.len()))
}

/// Returns a text whose lines end as they do here.
fn unified(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

/// Returns a value that cannot be taken for anything else in the block.
fn harmless(text: &str) -> String {
    let text: String =
        text.trim().chars().map(|c| if c.is_control() || c == '`' { '_' } else { c }).collect();
    if text.is_empty() { UNKNOWN.to_owned() } else { text }
}

fn parse_uuid(text: &str) -> Option<String> {
    if text == UNKNOWN {
        return Some(String::new());
    }
    (text.len() == 36).then(|| uuid::Uuid::parse_str(text).ok())?.map(|uuid| uuid.to_string())
}

fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "1b4e28ba-2fa1-41d2-883f-0016d3cca427";
    const NOW: i64 = 1_795_271_000;

    fn vmid(number: u32) -> Vmid {
        Vmid::new(number).unwrap()
    }

    fn marks() -> Marks {
        Marks {
            vmid: vmid(9000),
            uuid: UUID.to_owned(),
            run: "20261121-142109-a1b2c3".to_owned(),
            template: "ubuntu-noble".to_owned(),
            plan: format!("sha256:{}", "ab".repeat(32)),
            host: "builder1/5f3c2a1b".to_owned(),
            pid: 4711,
            process_start: 8_812_345,
            state: State::Building,
            lease_until: NOW + 900,
        }
    }

    #[test]
    fn a_block_is_read_as_it_was_written() {
        for state in State::ALL {
            let marks = Marks { state, ..marks() };
            assert_eq!(Marks::read(&marks.block()), Some(marks.clone()));
        }
        let early = Marks { uuid: String::new(), ..marks() };
        assert_eq!(Marks::read(&early.in_description("Noble.")), Some(early));
    }

    #[test]
    fn a_block_survives_what_proxmox_and_browsers_do_to_text() {
        let text = marks().in_description("Ubuntu 24.04");
        for changed in [
            text.clone() + "\n",
            text.replace('\n', "\r\n"),
            text.replace('\n', "\r"),
            text.replace('\n', " \n  "),
            text.replace('\n', "\n\n"),
            text.replace(" = ", "="),
            format!("{text}\n\nA note of somebody's\n"),
        ] {
            assert_eq!(Marks::read(&changed), Some(marks()), "{changed:?}");
        }
    }

    #[test]
    fn what_is_not_exactly_a_block_is_not_believed() {
        let block = marks().block();
        for changed in [
            String::new(),
            "forge built this".to_owned(),
            format!("{block}\n{block}"),
            block.replace("schema = 1", "schema = 2"),
            block.replace("state = building", "state = Building"),
            block.replace("state = building\n", ""),
            block.replace("state = building\n", "state = building\nstate = stable\n"),
            block.replace("vmid = 9000", "vmid = 99"),
            block.replace(UUID, "1b4e28ba"),
            block.replace("run = 20261121-142109-a1b2c3", "run ="),
            block.replace(" since ", " "),
            block.replace("lease = 2", "lease = x2"),
            block.replace("host =", "owner = me\nhost ="),
            block.replace("```forge", "```"),
        ] {
            assert_ne!(changed, block);
            assert_eq!(Marks::read(&changed), None, "{changed}");
        }
    }

    #[test]
    fn the_text_around_the_block_stays_and_the_block_is_replaced() {
        let first = marks().in_description("Noble.\r\nFor asgard.\n");
        assert!(first.starts_with("Noble.\nFor asgard.\n\n```forge\n"), "{first}");
        let with_note = format!("{first}\n\nMine.\n");
        let second = Marks { state: State::Proving, ..marks() }.in_description(&with_note);
        assert_eq!(second, with_note.replace("building", "proving").trim_end());
        let healed = marks().in_description(&format!("{first}\n{first}"));
        assert_eq!(Marks::read(&healed), Some(marks()));
        assert_eq!(marks().in_description(""), marks().block());
    }

    #[test]
    fn a_description_fits_and_the_block_is_never_cut() {
        let long = "ä".repeat(DESCRIPTION_MAX);
        for text in [long.clone(), format!("a\n{}\n{long}", marks().block())] {
            let fitted = marks().in_description(&text);
            assert_eq!(fitted.chars().count(), DESCRIPTION_MAX - if text == long { 2 } else { 0 });
            assert_eq!(Marks::read(&fitted), Some(marks()));
        }
    }

    #[test]
    fn no_value_can_end_the_block_or_add_to_it() {
        let odd = Marks { template: "a\n```\nstate = stable".to_owned(), host: String::new(), ..marks() };
        let read = Marks::read(&odd.block()).unwrap();
        assert_eq!((read.state, read.template.as_str()), (State::Building, "a_____state = stable"));
    }

    #[test]
    fn tags_are_what_proxmox_takes() {
        for state in State::ALL {
            let tags = Marks { state, run: "Run-1".to_owned(), ..marks() }.tags();
            let good =
                |tag: &String| tag.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
            assert!(tags.iter().all(good), "{tags:?}");
            assert_eq!(tags.contains(&"run-run-1".to_owned()), state.is_passing());
        }
    }

    #[test]
    fn only_what_a_dead_run_left_is_a_leftover() {
        let m = marks;
        let (here, there) = ("builder1/5f3c2a1b", "builder2/00000000");
        let late = NOW + 901;
        // marks, own VMID, own UUID, template, time, this machine, the process lives, leftover
        for (name, marks, own, uuid, template, now, host, alive, expected) in [
            ("lease over, another machine", m(), 9000, Some(UUID), false, late, there, false, true),
            ("in upper case", m(), 9000, Some(&*UUID.to_uppercase()), false, late, there, false, true),
            ("lease holds", m(), 9000, Some(UUID), false, NOW + 900, there, false, false),
            ("process gone, lease holds", m(), 9000, Some(UUID), false, NOW, here, false, true),
            ("process lives, lease over", m(), 9000, Some(UUID), false, late, here, true, false),
            ("a clone of it", m(), 9001, Some(UUID), false, late, there, false, false),
            (
                "another UUID",
                m(),
                9000,
                Some("7c9e6679-7425-40de-944b-e07fc1f90ae7"),
                false,
                late,
                there,
                false,
                false,
            ),
            ("no UUID", m(), 9000, None, false, late, there, false, false),
            ("a template", m(), 9000, Some(UUID), true, late, there, false, false),
            (
                "UUID never read",
                Marks { uuid: String::new(), ..m() },
                9000,
                Some(""),
                false,
                late,
                there,
                false,
                false,
            ),
            (
                "proving",
                Marks { state: State::Proving, ..m() },
                9000,
                Some(UUID),
                false,
                late,
                there,
                false,
                true,
            ),
            (
                "a candidate",
                Marks { state: State::Candidate, ..m() },
                9000,
                Some(UUID),
                false,
                late,
                here,
                false,
                false,
            ),
            (
                "stable",
                Marks { state: State::Stable, ..m() },
                9000,
                Some(UUID),
                false,
                late,
                here,
                false,
                false,
            ),
            (
                "kept",
                Marks { state: State::Failed, ..m() },
                9000,
                Some(UUID),
                false,
                late,
                here,
                false,
                false,
            ),
        ] {
            let found = is_leftover(&marks, vmid(own), uuid, template, now, host, |pid, start| {
                assert_eq!((pid, start), (4711, 8_812_345));
                alive
            });
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn clones_of_90001_and_of_a_candidate_survive_every_lease() {
        let never = i64::MAX / 2;
        let other = "7c9e6679-7425-40de-944b-e07fc1f90ae7";
        for state in State::ALL {
            for original in [90001, 9005] {
                let inherited = Marks { vmid: vmid(original), state, ..marks() };
                let inherited = Marks::read(&inherited.in_description("cloned")).unwrap();
                for host in [inherited.host.clone(), "elsewhere/0".to_owned()] {
                    // A clone has a VMID and a UUID of its own; a restored one may keep the UUID.
                    for (number, uuid) in [(9006, other), (9006, UUID), (original, other)] {
                        let clone =
                            is_leftover(&inherited, vmid(number), Some(uuid), false, never, &host, |_, _| {
                                false
                            });
                        assert!(!clone, "{state} {original} {number} {uuid}");
                    }
                    let itself =
                        is_leftover(&inherited, vmid(original), Some(UUID), true, never, &host, |_, _| false);
                    assert!(!itself, "{state} {original}");
                }
            }
        }
    }
}
