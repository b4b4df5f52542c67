//! What Lynis says of a root as the installer leaves it, and of one that `templates/ubuntu-noble` has worked in.
//!
//! Both are audited at the same time, in the same way: in a root in a folder, with this machine's kernel, in a
//! network of its own in which the root's SSH server runs. Lynis is this machine's; it is brought in for the
//! audit, and installed in neither.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use forge::communicator::Exec;
use forge::communicator::chroot::Writes;
use forge::definition::{Check, Inputs, Root, Step, Upload, load};
use forge::plan::{Plan, Selection, resolve};
use serde::Deserialize;

use crate::build::{folder, root};
use crate::root::{Guest, Medium, output, prepared};

/// The index that a hardened root has at the least, and by how much more than the plain one.
const INDEX_MIN: u32 = 70;
const GAIN_MIN: u32 = 13;

/// Checks of the template's own that hardening must not break.
const STILL_HOLD: [&str; 8] = [
    "user exists with bash and sudo",
    "user has no password",
    "sudo needs no password",
    "root has no password",
    "SSH takes keys only, and no root",
    "SSH is set to its port",
    "locale",
    "no swap",
];

/// Where Lynis lies in a guest: in memory.
const LYNIS: &str = "/run/lynis";

/// `hardening/lynis.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    /// Tests whose suggestions stay, with the reason.
    stays: BTreeMap<String, String>,
    /// Tests whose suggestions depend on this machine, with what they depend on.
    depends: BTreeMap<String, String>,
}

/// What an audit found.
struct Report {
    version: String,
    index: u32,
    /// Test and text.
    suggestions: Vec<(String, String)>,
}

impl Report {
    /// Parses Lynis' report: lines of `KEY=VALUE`.
    fn parse(text: &str) -> Self {
        let values = |key: &str| text.lines().filter_map(|line| line.strip_prefix(key)).collect::<Vec<_>>();
        let one = |key: &str| *values(key).first().unwrap_or_else(|| panic!("no {key} in\n{text}"));
        let suggestions = values("suggestion[]=").into_iter().map(|line| {
            let (id, rest) = line.split_once('|').expect("a test");
            (id.to_owned(), rest.split('|').next().unwrap_or_default().to_owned())
        });
        Self {
            version: one("lynis_version=").to_owned(),
            index: one("hardening_index=").parse().expect("a number"),
            suggestions: suggestions.collect(),
        }
    }
}

/// Gathers this machine's Lynis in a folder.
fn lynis() -> String {
    let work = folder("lynis");
    let _none_yet = fs::remove_dir_all(&work);
    let program = ["/usr/sbin/lynis", "/usr/bin/lynis"].into_iter().find(|path| Path::new(path).exists());
    let program = program.expect("lynis is installed by `make e2e`");
    for part in ["/usr/share/lynis/.", "/etc/lynis/.", program] {
        output(Command::new("cp").args(["--recursive", part]).arg(&work));
    }
    work.display().to_string()
}

/// Audits a guest; `name` is for the evidence.
async fn audit(name: &str, guest: &Guest, lynis: &str) -> Report {
    let upload = Upload { source: lynis.to_owned(), destination: LYNIS.to_owned(), mode: None, owner: None };
    let step = Step { name: "lynis".to_owned(), upload: Some(upload), ..Step::default() };
    guest.apply(&step).await.unwrap_or_else(|error| panic!("{error}"));
    let script = format!(
        "ip link set lo up\nmkdir -p /run/sshd\n/usr/sbin/sshd\n/usr/lib/systemd/systemd-journald &\ncd {LYNIS}\n\
         sh ./lynis audit system --quick --no-colors --logfile /run/lynis.log --report-file /run/lynis.report"
    );
    let output = guest.exec(Exec::new(["unshare", "--net", "/bin/sh", "-euc", &script])).await;
    // Its exit code tells of warnings as well.
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("Hardening index"), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let report = guest.file("/run/lynis.report").await;
    let evidence = folder("lynis-reports");
    fs::write(evidence.join(format!("{name}.log")), guest.file("/run/lynis.log").await).expect("a log");
    fs::write(evidence.join(format!("{name}.report")), &report).expect("a report");
    Report::parse(&report)
}

/// Returns the plan of the template, without the step that waits for a first boot to end.
fn plan() -> Plan {
    let root = Root::at(root()).expect("a root");
    let loaded = load(&root, "ubuntu-noble", &Inputs::default()).expect("a template");
    let selection = Selection { skip: vec!["first-boot".to_owned()], ..Selection::default() };
    resolve(&root, loaded, ("local".to_owned(), "the test"), &selection).expect("a plan")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lynis_finds_the_hardened_root_hardened_and_every_suggestion_answered() {
    let Some(fresh) = prepared("plain", &[]).await else { return };
    let known: Known =
        toml::from_str(&fs::read_to_string(root().join("hardening/lynis.toml")).expect("reasons"))
            .expect("reasons");
    let medium = Medium::build();
    let (plain, hardened) =
        (Guest::open(&fresh, Writes::Forgotten).await, Guest::open(&fresh, Writes::Forgotten).await);
    let template = plan();
    let mirror = medium.serve(&hardened).await;
    for step in template.active_steps() {
        hardened.apply(step).await.unwrap_or_else(|error| panic!("{}: {error}", step.name));
    }
    drop(mirror);
    // Neither has a source of packages.
    hardened.shell("rm /etc/apt/sources.list").await;

    // A kernel's parameters are this machine's: of them the files are looked at.
    let is_seen = |check: &Check| {
        check.sysctl.is_none() && check.name.starts_with("hardening: ")
            || STILL_HOLD.contains(&check.name.as_str())
    };
    let checks: Vec<_> = template.active_checks().filter(|check| is_seen(check)).collect();
    let findings = hardened.check(&checks).await;
    let failed: Vec<_> = findings.iter().filter(|finding| !finding.passed).collect();
    assert!(findings.len() > 60 && failed.is_empty(), "{failed:#?}");
    assert_eq!(
        findings.iter().filter(|finding| STILL_HOLD.contains(&finding.name.as_str())).count(),
        STILL_HOLD.len()
    );

    let lynis = lynis();
    let (before, after) = tokio::join!(audit("plain", &plain, &lynis), audit("hardened", &hardened, &lynis));
    println!(
        "Lynis {} in roots made by {}: plain {}, hardened {}",
        after.version,
        hardened.way(),
        before.index,
        after.index
    );
    println!("suggestions: plain {}, hardened {}", before.suggestions.len(), after.suggestions.len());
    println!("the whole reports are in {}", folder("lynis-reports").display());
    assert!(after.index >= INDEX_MIN, "{} is less than {INDEX_MIN}", after.index);
    assert!(
        after.index >= before.index + GAIN_MIN,
        "{} gains less than {GAIN_MIN} over {}",
        after.index,
        before.index
    );

    let mut wrong = Vec::new();
    for (test, text) in &after.suggestions {
        if !known.stays.contains_key(test) && !known.depends.contains_key(test) {
            wrong.push(format!("no reason why this stays: {test}: {text}"));
        }
    }
    let left: BTreeSet<&str> = after.suggestions.iter().map(|(test, _)| test.as_str()).collect();
    for test in known.stays.keys().filter(|test| !left.contains(test.as_str())) {
        wrong.push(format!("{test} is not suggested any more"));
    }
    assert!(wrong.is_empty(), "hardening/lynis.toml: {wrong:#?}");
    for guest in [plain, hardened] {
        guest.close().await;
    }
}
