//! What must hold in the guest; checks change nothing.
//!
//! Several checks go to the guest in one command, because a round trip costs up to half a second
//! under emulation. The guest only gathers facts (`probe`); what they mean is decided here
//! (`judge`).

mod judge;
mod probe;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::communicator::{Communicator, CommunicatorError, Exec, Output};
use crate::definition::{Check, Timeout};

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The check's name.
    pub name: String,
    /// Whether it holds.
    pub passed: bool,
    /// What was found, and what was expected if that differs.
    pub detail: String,
}

/// The most checks that go to the guest in one command; after each command findings are reported.
const BATCH_CHECKS: usize = 24;

/// The most bytes of script that go to the guest in one command, apart from the last check's.
const BATCH_BYTES: usize = 24 * 1024;

/// How often a command is tried whose answer was lost; gathering facts twice does no harm.
const TRIES: u32 = 3;

/// Makes the checks, each within `timeout` unless it says otherwise, and returns one finding each,
/// in order; `on_finding` gets each as soon as it is known.
///
/// # Errors
/// The guest could not be asked; a check that does not hold is no error.
pub async fn run(
    checks: &[&Check],
    guest: &dyn Communicator,
    timeout: Duration,
    on_finding: &(dyn Fn(&Finding) + Send + Sync),
) -> Result<Vec<Finding>, CommunicatorError> {
    let mut findings = Vec::with_capacity(checks.len());
    let mut rest = checks;
    while !rest.is_empty() {
        let (command, count) = next_batch(rest, timeout);
        let output = ask(&command, guest).await?;
        let answers = probe::parse_answers(&output.stdout);
        for (number, check) in rest[..count].iter().enumerate() {
            let finding = judge::judge(check, answers.get(&number));
            on_finding(&finding);
            findings.push(finding);
        }
        rest = &rest[count..];
    }
    Ok(findings)
}

/// Returns the command for the first of the checks, and how many those are.
fn next_batch(checks: &[&Check], timeout: Duration) -> (Exec, usize) {
    let mut script = probe::PRELUDE.to_owned();
    let mut total = Duration::from_secs(30);
    let mut count = 0;
    for check in checks.iter().take(BATCH_CHECKS) {
        let limit = check.command.as_ref().and_then(|command| command.timeout);
        let limit = limit.map_or(timeout, Timeout::duration);
        script.push_str(&probe::call(count, check, limit));
        total += limit + probe::KILL_AFTER;
        count += 1;
        if script.len() > BATCH_BYTES {
            break;
        }
    }
    script.push_str(probe::ENDING);
    (Exec::new(["/bin/sh"]).stdin(script).timeout(total), count)
}

/// Runs a command that changes nothing, and so may be run again when its answer is lost.
pub(crate) async fn ask(command: &Exec, guest: &dyn Communicator) -> Result<Output, CommunicatorError> {
    for _ in 1..TRIES {
        match guest.exec(command).await {
            Err(CommunicatorError::NotSent { .. } | CommunicatorError::Unknown { .. }) => {}
            result => return result,
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    guest.exec(command).await
}

/// Returns the findings as a table for people, with a summary as its last line.
#[must_use]
pub fn table(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for Finding { name, passed, detail } in findings {
        let mark = if *passed { "✓" } else { "✗" };
        text.push_str(format!("{mark} {name:width$}  {detail}").trim_end());
        text.push('\n');
    }
    let failed = findings.iter().filter(|finding| !finding.passed).count();
    let held = findings.len() - failed;
    text + &summary(held, failed)
}

fn summary(held: usize, failed: usize) -> String {
    let checks = if held == 1 { "check holds" } else { "checks hold" };
    match failed {
        0 => format!("{held} {checks}\n"),
        1 => format!("{held} {checks}, 1 does not\n"),
        _ => format!("{held} {checks}, {failed} do not\n"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::definition::{CommandCheck, FileCheck};
    use crate::testing::Host;

    fn command(run: &str, exit_code: i32, stdout: Option<&str>) -> Check {
        let command =
            CommandCheck { run: run.to_owned(), exit_code, stdout: stdout.map(str::to_owned), timeout: None };
        Check { name: run.to_owned(), command: Some(command), ..Check::default() }
    }

    async fn findings(host: &Host, checks: &[Check], timeout: Duration) -> Vec<Finding> {
        let seen = Mutex::new(Vec::new());
        let note = |finding: &Finding| seen.lock().unwrap().push(finding.clone());
        let findings = run(&checks.iter().collect::<Vec<_>>(), host, timeout, &note).await.unwrap();
        assert_eq!(*seen.lock().unwrap(), findings);
        findings
    }

    #[tokio::test]
    async fn commands_are_judged_by_code_and_output() {
        let checks = [
            command("echo it\\'s; exit 3", 3, Some("^it's$")),
            command("echo a; echo b >&2; exit 1", 0, None),
            command("printf 'x\\ny\\n'", 0, Some("^y$")),
            command("printf 'x\\ny\\n'", 0, Some("^z$")),
            command("cat", 0, Some("^$")),
        ];
        let found = findings(&Host::new(0), &checks, Duration::from_secs(5)).await;
        let passed: Vec<_> = found.iter().map(|finding| finding.passed).collect();
        assert_eq!(passed, [true, false, true, false, true], "{found:?}");
        assert_eq!(found[1].detail, "expected exit code 0, found 1: b");
        assert_eq!(found[3].detail, "expected output to match `^z$`, found `x` … `y`");
    }

    #[tokio::test]
    async fn a_hanging_command_fails_alone() {
        let checks = [command("sleep 617", 0, None), command("true", 0, None)];
        let found = findings(&Host::new(0), &checks, Duration::from_secs(1)).await;
        assert_eq!((found[0].passed, found[1].passed), (false, true));
        assert_eq!(found[0].detail, "still running at its deadline, so it was ended");
    }

    #[tokio::test]
    async fn many_checks_take_few_commands_and_lost_answers_are_asked_for_again() {
        let checks: Vec<_> = (0..30).map(|_| command("true", 0, None)).collect();
        let host = Host::new(2);
        assert!(findings(&host, &checks, Duration::from_secs(5)).await.iter().all(|finding| finding.passed));
        assert_eq!(*host.commands.lock().unwrap(), 4);
    }

    #[tokio::test]
    async fn kernel_parameters_are_read_by_their_names() {
        let ttl = std::fs::read_to_string("/proc/sys/net/ipv4/ip_default_ttl").unwrap();
        let parameters = [("kernel.ostype", "Linux"), ("net.ipv4.ip_default_ttl", ttl.trim())];
        let parameters = parameters.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let good = Check { name: "good".into(), sysctl: Some(parameters), ..Check::default() };
        let wrong = [("kernel.ostype", "Plan 9"), ("kernel.no_such_thing", "1")];
        let wrong = wrong.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let bad = Check { name: "bad".into(), sysctl: Some(wrong), ..Check::default() };
        let found = findings(&Host::new(0), &[good, bad], Duration::from_secs(5)).await;
        assert!(found[0].passed, "{}", found[0].detail);
        let expected =
            "expected kernel.no_such_thing 1, found nothing; expected kernel.ostype Plan 9, found Linux";
        assert_eq!((found[1].passed, found[1].detail.as_str()), (false, expected));
    }

    #[tokio::test]
    async fn files_are_looked_at_in_the_guest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("it's \"a\" $file");
        std::fs::write(&path, "one\ntwo\n").unwrap();
        let path = path.to_str().unwrap().to_owned();
        let base = FileCheck { path: path.clone(), ..FileCheck::default() };
        let text = |text: &str| Some(text.to_owned());
        let missing = format!("{path}.not");
        for (file, detail) in [
            (FileCheck { exists: Some(true), ..base.clone() }, Ok("there")),
            (FileCheck { exists: Some(false), ..base.clone() }, Err("expected no file, found one")),
            (FileCheck { exists: Some(false), path: missing.clone(), ..base.clone() }, Ok("not there")),
            (FileCheck { path: missing, ..base.clone() }, Err("expected a file, found none")),
            (FileCheck { mode: text("0644"), ..base.clone() }, Ok("mode 0644")),
            (FileCheck { mode: text("600"), ..base.clone() }, Err("expected mode 0600, found 0644")),
            (
                FileCheck { contains: text("^two$"), lacks: text("three"), ..base.clone() },
                Ok("contains `two`"),
            ),
            (
                FileCheck { lacks: text("w"), ..base.clone() },
                Err("expected no line to match `w`, found `two`"),
            ),
            (
                FileCheck { contains: text("x"), ..base.clone() },
                Err("expected a line to match `x`, found none"),
            ),
        ] {
            let check = Check { name: "f".to_owned(), file: Some(file), ..Check::default() };
            let found = findings(&Host::new(0), &[check], Duration::from_secs(5)).await.remove(0);
            let expected = (detail.is_ok(), detail.unwrap_or_else(|wrong| wrong));
            assert_eq!((found.passed, found.detail.as_str()), expected);
        }
    }

    #[test]
    fn tables_are_aligned_and_summed_up() {
        let finding = |name: &str, passed, detail: &str| Finding {
            name: name.to_owned(),
            passed,
            detail: detail.to_owned(),
        };
        let mut findings = vec![finding("é", true, "fine"), finding("longer", false, "expected 1, found 2")];
        assert_eq!(
            table(&findings),
            "✓ é       fine\n✗ longer  expected 1, found 2\n1 check holds, 1 does not\n"
        );
        findings.pop();
        assert_eq!(table(&findings), "✓ é  fine\n1 check holds\n");
    }
}
