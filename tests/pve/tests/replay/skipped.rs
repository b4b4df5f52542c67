//! Exchanges that are not replayed, each with its reason.

/// First and last exchange of a file that is not replayed, and why.
const SKIPPED: &[(&str, u64, u64, &str)] = &[
    ("11", 1, u64::MAX, "containers are not simulated yet"),
    ("09", 61, 61, "two calls at the same moment are replayed one after another, so no lock was waited for"),
    ("12", 1, 8, "facts about one connection: see way.rs, connections_end_after_…"),
    ("12", 41, 46, "stalled bodies, plain HTTP, bare uploads and reloads: see connection.rs"),
    ("12", 47, 54, "a restart of real daemons beside a call of 9 s: see the fault 'reload'"),
];

/// Answers of which the recording kept only some keys.
const ABRIDGED: &[(&str, u64)] = &[("06", 21), ("06", 23), ("06", 25), ("06", 27), ("06", 29), ("06", 34)];

pub(crate) fn is_abridged(file: &str, seq: u64) -> bool {
    ABRIDGED.contains(&(file, seq))
}

pub(crate) fn why(file: &str, seq: u64) -> Option<&'static str> {
    SKIPPED
        .iter()
        .find(|(name, first, last, _)| *name == file && (*first..=*last).contains(&seq))
        .map(|(.., why)| *why)
}

pub(crate) fn print(file: &str) {
    for (name, first, last, why) in SKIPPED.iter().filter(|(name, ..)| *name == file) {
        println!("{name} {first}..={last} is not replayed: {why}");
    }
}
