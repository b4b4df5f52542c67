//! Looks for secrets in the files of a guest, by one script that changes nothing there.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Finding, SHAPES, Value};
use crate::check;
use crate::communicator::{Communicator, CommunicatorError, EXEC_INPUT_MAX, Exec, Output};
use crate::provision::base64;

const SCRIPT: &str = include_str!("guest.sh");

/// What was found in a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The secrets, by path.
    pub findings: Vec<Finding>,
    /// The SHA-256 of what looks like a secret and is in a package, as [`super::disk::scan`] takes it.
    pub public: BTreeSet<String>,
}

/// Why a guest could not be looked through.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// There is more to look for than a command takes.
    #[error("{bytes} bytes of secrets are more than the guest can be asked for at once, {EXEC_INPUT_MAX}")]
    TooMuch {
        /// How much it is.
        bytes: usize,
    },
    /// Some of the guest's files were not looked at.
    #[error("not every file of the guest was looked at: {0}")]
    Incomplete(String),
    /// The guest could not be reached, or refused.
    #[error(transparent)]
    Communicator(#[from] CommunicatorError),
}

/// Looks for those values and for every shape in the files of a guest below `root`, which is empty for all of
/// them; files that are on no disk are left out.
///
/// # Errors
/// See [`SweepError`]; secrets that are found are none.
pub async fn look(
    values: &[Value],
    root: &str,
    guest: &dyn Communicator,
    timeout: Duration,
) -> Result<Report, SweepError> {
    let (entries, count) = entries(values);
    let input = base64(entries.as_bytes());
    if input.len() > EXEC_INPUT_MAX {
        return Err(SweepError::TooMuch { bytes: input.len() });
    }
    let command = Exec::new(["/bin/sh", "-c", SCRIPT, "forge", root]).stdin(input).timeout(timeout);
    let output = check::ask(&command, guest).await?;
    parse(&output, count)
}

/// Returns what the script reads, and how many entries that are.
fn entries(values: &[Value]) -> (String, usize) {
    let (mut text, mut count) = (String::new(), 0);
    let mut add = |kind: &str, name: &str, value: &str| {
        text.extend([kind, "\n", name, "\n", value, "\n"]);
        count += 1;
    };
    for value in values {
        add(if value.is_password { "hash" } else { "value" }, &value.name, value.text());
    }
    for shape in &SHAPES {
        for start in shape.starts {
            add("start", shape.name, start);
        }
        add("shape", shape.name, shape.regex);
    }
    (text, count)
}

/// Reads what the script prints; it must have come to its end, and have had nothing to complain of.
fn parse(output: &Output, entries: usize) -> Result<Report, SweepError> {
    let said = String::from_utf8_lossy(&output.stderr);
    // Files come and go while a guest runs.
    if let Some(complaint) = said.lines().find(|line| !line.ends_with(": No such file or directory")) {
        return Err(SweepError::Incomplete(printable(complaint)));
    }
    let (mut findings, mut report, mut is_done) = (BTreeSet::new(), Report::default(), false);
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let mut fields = line.splitn(3, '\t');
        match (fields.next(), fields.next(), fields.next()) {
            (Some("found"), Some(name), Some(path)) => {
                findings.insert(Finding { place: printable(path), name: name.to_owned() });
            }
            (Some("public"), Some(digest), None) => {
                report.public.insert(digest.to_owned());
            }
            (Some("done"), Some(number), None) => is_done = number.parse() == Ok(entries),
            _ => return Err(SweepError::Incomplete(format!("it answered `{}`", printable(line)))),
        }
    }
    if !is_done || !output.success() || output.truncated {
        return Err(SweepError::Incomplete("its answer is not whole".to_owned()));
    }
    report.findings = findings.into_iter().collect();
    Ok(report)
}

/// Returns text without control characters: the guest has no say over the user's terminal.
fn printable(text: &str) -> String {
    text.chars().map(|it| if it.is_control() { '?' } else { it }).collect()
}
