//! Exchanges that are not replayed, each with its reason.

/// First and last exchange of a file that is not replayed, and why.
const SKIPPED: &[(&str, u64, u64, &str)] = &[
];

pub fn why(file: &str, seq: u64) -> Option<&'static str> {
    SKIPPED
        .iter()
        .find(|(name, first, last, _)| *name == file && (*first..=*last).contains(&seq))
        .map(|(.., why)| *why)
}

pub fn print(file: &str) {
    for (name, first, last, why) in SKIPPED.iter().filter(|(name, ..)| *name == file) {
        println!("{name} {first}..={last} is not replayed: {why}");
    }
}
