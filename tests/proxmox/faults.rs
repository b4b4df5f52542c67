//! What goes wrong on the node or in the guest, and what is left of the build then.
//!
//! `scenarios/*.toml` say what goes wrong, how the build ends and what stays.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use pve_sim::Rule;
use serde::Deserialize;

use crate::node::{Node, Setting, is_template, take_vms};

/// How many builds run at the same time: mostly they wait.
const AT_ONCE: usize = 8;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Scenarios {
    scenario: Vec<Scenario>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Scenario {
    name: String,
    /// Further arguments of `forge build`.
    #[serde(default)]
    args: Vec<String>,
    /// The fault of the guest, as the stand-in for QEMU has it.
    #[serde(default)]
    guest: String,
    /// Further keys of the profile.
    #[serde(default)]
    profile: String,
    /// What goes wrong on the node.
    #[serde(default)]
    rule: Vec<Rule>,
    /// The exit code.
    code: i32,
    /// What forge says, in events or in the end.
    #[serde(default)]
    says: Vec<String>,
    /// How many templates there are afterwards, beside what was there before.
    templates: usize,
    /// How many guests of somebody else's there are then.
    #[serde(default)]
    strangers: usize,
}

fn run_all(text: &str) {
    let scenarios: Scenarios = toml::from_str(text).unwrap();
    let next = Mutex::new(scenarios.scenario.iter());
    let wrong = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let Some(scenario) = next.lock().unwrap().next() else { return };
                    let started = Instant::now();
                    let result = run(scenario);
                    println!("{:>6.1} s  {}", started.elapsed().as_secs_f64(), scenario.name);
                    if let Err(reason) = result {
                        wrong.lock().unwrap().push(format!("── {}\n{reason}", scenario.name));
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), scenarios.scenario.len(), wrong.join("\n\n"));
}

fn run(scenario: &Scenario) -> Result<(), String> {
    let node = Node::new(&Setting {
        guest: scenario.guest.clone(),
        profile: scenario.profile.clone(),
        only_nocloud: true,
        rules: scenario.rule.clone(),
        ..Setting::default()
    });
    let before = node.world();
    let args: Vec<_> = scenario.args.iter().map(String::as_str).collect();
    let ended = node.start(&args).finish();
    let told =
        || format!("{}\n{}", ended.stdout.lines().rev().take(6).collect::<Vec<_>>().join("\n"), ended.stderr);
    if ended.status.code() != Some(scenario.code) {
        return Err(format!("it ends with {:?}, not {}: {}", ended.status, scenario.code, told()));
    }
    let said = format!("{}{}", ended.stdout, ended.stderr);
    if let Some(missing) = scenario.says.iter().find(|text| !said.contains(*text)) {
        return Err(format!("it does not say `{missing}`: {}", told()));
    }
    let mut after = node.world();
    let templates = take_vms(&mut after, is_template);
    let containers = after["containers"].as_object_mut().map(std::mem::take).unwrap().len();
    let strangers = containers + take_vms(&mut after, |vm| vm["config"]["name"] == "somebody-elses");
    for (what, there, expected) in [
        ("templates", templates, scenario.templates),
        ("guests of somebody else's", strangers, scenario.strangers),
    ] {
        if there != expected {
            return Err(format!("there are {there} {what}, not {expected}: {}", told()));
        }
    }
    if after != before {
        return Err(format!("something is left: {after:#}\n{}", told()));
    }
    Ok(())
}

fn scenarios(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/proxmox/scenarios");
    fs::read_to_string(folder.join(name)).unwrap()
}

#[test]
fn refusals_and_failed_tasks_leave_nothing() {
    run_all(&scenarios("refused.toml"));
}

#[test]
fn lost_answers_are_looked_after() {
    run_all(&scenarios("lost.toml"));
}

#[test]
fn guests_that_fail_leave_nothing() {
    run_all(&scenarios("guest.toml"));
}

#[test]
fn what_others_do_meanwhile_is_lived_with() {
    run_all(&scenarios("others.toml"));
}
