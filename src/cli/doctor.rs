//! `forge doctor`: whether this machine or a cluster can build, and what to do if not.

mod cluster;
mod host;

use std::io::Write;

use serde::Serialize;

use super::common::{VarArgs, root, write_answer};
use crate::builder::proxmox::survey;
use crate::definition::load_profile;
use crate::failure::{Failure, Kind};
use crate::report::{self, Look, columns, hang};

use super::Format;

/// The version of the JSON answer.
const FORMAT_VERSION: u32 = 1;

/// The arguments of `forge doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  forge doctor                 this machine
  forge doctor --on asgard     the cluster of builders/asgard.toml, and what its token may do
  forge doctor --format json | jq '.findings[] | select(.level != \"ok\")'")]
pub struct Args {
    /// Look at this builder: a profile in builders/, or qemu for this machine
    #[arg(long, value_name = "BUILDER")]
    pub on: Option<String>,
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

pub use survey::Level;

impl From<survey::Finding> for Finding {
    fn from(finding: survey::Finding) -> Self {
        let survey::Finding { name, level, found, advice } = finding;
        Self { name, level, found, advice, package: None }
    }
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

/// All that was found, with what there is to be copied.
#[derive(Debug, Default)]
struct Report {
    findings: Vec<Finding>,
    /// Lines for the builder profile that trust the certificates that were seen.
    pins: Vec<String>,
    /// What root types on a node to give the missing rights.
    commands: Vec<String>,
}

#[derive(Serialize)]
struct Answer<'a> {
    format: u32,
    can_build: bool,
    findings: &'a [Finding],
    /// Lines for the builder profile that trust the certificates that were seen.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    pins: &'a [String],
    /// What root types on a node to give the missing rights.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    commands: &'a [String],
}

/// Looks at this machine or at a builder and prints what was found.
///
/// # Errors
/// No build can run there.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    if let Some(name) = &args.on {
        let root = root()?;
        let profile = load_profile(&root, name)?;
        if profile.proxmox.is_some() {
            let report = cluster::report(&root, &profile, &VarArgs::default().inputs())?;
            return tell(args.format, &report, out, |missing| {
                cluster::cannot_build(name, missing, !report.commands.is_empty())
            });
        }
    }
    let (findings, installer) = host::findings()?;
    let report = Report { findings, ..Report::default() };
    tell(args.format, &report, out, |missing| cannot_build(missing, installer))
}

fn tell(
    format: Format,
    report: &Report,
    out: &mut dyn Write,
    failure: impl FnOnce(&[&Finding]) -> Failure,
) -> Result<(), Failure> {
    let findings = &report.findings;
    let missing: Vec<&Finding> = findings.iter().filter(|finding| finding.level == Level::Missing).collect();
    let text = match format {
        Format::Human => table(findings, report::stdout_look()) + &to_copy(report),
        Format::Json => json(report, missing.is_empty()),
    };
    write_answer(out, &text)?;
    if missing.is_empty() { Ok(()) } else { Err(failure(&missing)) }
}

/// Returns what is there to be copied, one a line, neither indented nor wrapped.
fn to_copy(report: &Report) -> String {
    let blocks = [
        (
            "For [proxmox] of the builder profile, if `pvenode cert info` on the node shows the same",
            &report.pins,
        ),
        ("For the missing rights, as root on a node", &report.commands),
    ];
    let blocks = blocks.into_iter().filter(|(_, lines)| !lines.is_empty());
    blocks
        .map(|(title, lines)| format!("\n{title}:\n\n{}\n", lines.join("\n")))
        .fold(String::new(), |a, b| a + &b)
}

fn json(report: &Report, can_build: bool) -> String {
    let Report { findings, pins, commands } = report;
    let answer = Answer { format: FORMAT_VERSION, can_build, findings, pins, commands };
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
            Finding::install("setpriv", Level::Missing, "not found", "apt-get install", "util-linux"),
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
missing  setpriv   not found
                   apt-get install util-linux
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
        assert_eq!(failure.to_string(), "this machine cannot build, for want of qemu-img, setpriv, space");
        assert_eq!(failure.hints, ["apt-get install qemu-utils util-linux", "make room"]);
    }
}
