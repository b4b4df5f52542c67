//! `forge doctor`: whether this machine can build, and what to do if not.

mod host;

use std::io::Write;

use serde::Serialize;

use super::common::write_answer;
use crate::failure::{Failure, Kind};
use crate::report::{self, Look, columns, hang};

use super::Format;

/// The version of the JSON answer.
const FORMAT_VERSION: u32 = 1;

/// The arguments of `forge doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  forge doctor
  forge doctor --format json | jq '.findings[] | select(.level != \"ok\")'")]
pub struct Args {
    /// The format of the answer
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// What was found of one thing that building needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The thing.
    pub name: String,
    /// Whether it will do.
    pub level: Level,
    /// What is there.
    pub found: String,
    /// What to do, where it will not do.
    pub advice: Option<String>,
    /// The package to install, by Debian's name, where that is what to do.
    pub package: Option<&'static str>,
}

/// Whether a thing will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// It will.
    Ok,
    /// Something to know that is wrong with the place, not with the machine.
    Note,
    /// Builds run, but slowly, or not those that need it.
    Warn,
    /// No build runs.
    Missing,
}

impl Finding {
    fn ok(name: &str, found: impl Into<String>) -> Self {
        Self { name: name.to_owned(), level: Level::Ok, found: found.into(), advice: None, package: None }
    }

    fn bad(name: &str, level: Level, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name: name.to_owned(), level, found: found.into(), advice: Some(advice.into()), package: None }
    }

    fn install(
        name: &str,
        level: Level,
        found: impl Into<String>,
        installer: &str,
        package: &'static str,
    ) -> Self {
        let bad = Self::bad(name, level, found, format!("{installer} {package}"));
        Self { package: Some(package), ..bad }
    }
}

#[derive(Serialize)]
struct Answer<'a> {
    format: u32,
    can_build: bool,
    findings: &'a [Finding],
}

/// Looks at this machine and prints what was found.
///
/// # Errors
/// No build can run here.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let (findings, installer) = host::findings()?;
    let missing: Vec<&Finding> = findings.iter().filter(|finding| finding.level == Level::Missing).collect();
    let text = match args.format {
        Format::Human => table(&findings, report::stdout_look()),
        Format::Json => json(&findings, missing.is_empty()),
    };
    write_answer(out, &text)?;
    if missing.is_empty() { Ok(()) } else { Err(cannot_build(&missing, installer)) }
}

fn json(findings: &[Finding], can_build: bool) -> String {
    let answer = Answer { format: FORMAT_VERSION, can_build, findings };
    serde_json::to_string_pretty(&answer).expect("findings have no maps") + "\n"
}

fn cannot_build(missing: &[&Finding], installer: &str) -> Failure {
    let names: Vec<&str> = missing.iter().map(|finding| finding.name.as_str()).collect();
    let error = anyhow::anyhow!("this machine cannot build, for want of {}", names.join(", "));
    let packages: Vec<&str> = missing.iter().filter_map(|finding| finding.package).collect();
    let install = (!packages.is_empty()).then(|| format!("{installer} {}", packages.join(" ")));
    let others = missing.iter().filter(|finding| finding.package.is_none());
    let hints = install.into_iter().chain(others.filter_map(|finding| finding.advice.clone()));
    hints.fold(Failure::new(Kind::Infrastructure, error), Failure::hint)
}

/// Returns the findings as a table: level, name, what is there; below it what to do.
fn table(findings: &[Finding], look: Look) -> String {
    let name_width = findings.iter().map(|finding| columns(&finding.name)).max().unwrap_or(0);
    let indent = " ".repeat(9 + name_width + 2);
    let mut rows = Vec::new();
    for finding in findings {
        let level = match finding.level {
            Level::Ok => look.good("ok     "),
            Level::Note => look.accent("note   "),
            Level::Warn => look.odd("warn   "),
            Level::Missing => look.bad("missing"),
        };
        let name = format!("{:<name_width$}  ", finding.name);
        // Measured with blanks in the level's place: its colour takes no room.
        let lines = hang(&format!("{:9}{name}", ""), &finding.found, look.width);
        rows.extend(lines.first().map(|first| format!("{level}  {}", first.trim_start())));
        rows.extend(lines.into_iter().skip(1));
        rows.extend(finding.advice.iter().flat_map(|advice| hang(&indent, advice, look.width)));
    }
    rows.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Vec<Finding> {
        vec![
            Finding::ok("qemu", "7.2.15"),
            Finding::install("swtpm", Level::Warn, "not found", "apt-get install", "swtpm"),
            Finding::install("qemu-img", Level::Missing, "not found", "apt-get install", "qemu-utils"),
            Finding::install("ssh", Level::Missing, "not found", "apt-get install", "openssh-client"),
            Finding::bad("space", Level::Missing, "none", "make room"),
        ]
    }

    #[test]
    fn the_table_says_what_to_do() {
        let expected = "\
ok       qemu      7.2.15
warn     swtpm     not found
                   apt-get install swtpm
missing  qemu-img  not found
                   apt-get install qemu-utils
missing  ssh       not found
                   apt-get install openssh-client
missing  space     none
                   make room
";
        assert_eq!(table(&findings(), Look::plain(80)), expected);
    }

    #[test]
    fn long_findings_wrap_under_their_column() {
        let finding = Finding::ok("kvm", "one two three four five six seven");
        assert_eq!(
            table(&[finding], Look::plain(36)),
            "ok       kvm  one two three four\n              five six seven\n"
        );
    }

    #[test]
    fn only_what_is_missing_fails() {
        let all = findings();
        let missing: Vec<&Finding> = all.iter().filter(|finding| finding.level == Level::Missing).collect();
        let failure = cannot_build(&missing, "apt-get install");
        assert_eq!(failure.kind, Kind::Infrastructure);
        assert_eq!(failure.to_string(), "this machine cannot build, for want of qemu-img, ssh, space");
        assert_eq!(failure.hints, ["apt-get install qemu-utils openssh-client", "make room"]);
    }
}
