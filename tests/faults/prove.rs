//! Proofs of an artifact, after its build.

use std::fs;

use rustix::process::Signal;
use serde_json::Value;

use crate::build::{Build, Ended};
use crate::root::Root;

/// Everything that a contract's proof in full makes known, by where it is found.
const PROMISES: [(&str, &str); 16] = [
    ("proof", "cloud-init ends without error"),
    ("proof", "the clone took its static address and no other"),
    ("proof", "the clone's default route leads to its gateway"),
    ("proof", "the clone asks its name servers"),
    ("proof", "no unit has failed"),
    ("proof", "the clone's clock is right"),
    ("proof", "nothing answers on port 22"),
    ("proof, second clone", "two clones have different machine-ids"),
    ("proof, second clone", "two clones have different host keys"),
    ("proof, agent", "the agent freezes and thaws the file systems"),
    ("proof, agent", "the agent sets a user's password"),
    ("proof, reboot", "the agent reboots the clone"),
    ("proof, reboot", "machine-id and host key stay"),
    ("proof, other address", "the agent powers the clone off within 30 s"),
    ("proof, other address", "the clone took its static address and no other"),
    ("proof, other address", "machine-id and host key stay"),
];

fn built() -> Root {
    let root = Root::new();
    root.start(&[], &[]).finish().assert_code(0);
    root
}

fn prove(root: &Root, fakes: &[(&str, &str)], args: &[&str]) -> Build {
    let mut command = root.forge("prove");
    command.args(["mini", "--output", "json"]).args(args).envs(fakes.iter().copied());
    Build::start(command)
}

fn manifest(root: &Root) -> Value {
    let text = fs::read(root.path("artifacts/mini/1.0/manifest.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn events<'a>(ended: &'a Ended, kind: &str) -> Vec<&'a Value> {
    ended.events.iter().filter(|event| event["event"] == kind).collect()
}

#[test]
fn a_contract_in_full_is_two_clones_a_reboot_and_another_address() {
    let root = built();
    // What is checked is what the definition says now: of this one a promise does not hold.
    let ended = prove(&root, &[], &["--contract", "proof", "--var", "fault=proof"]).finish();
    ended.assert_code(15);
    assert!(ended.stderr.contains("warning: the artifact was built of another plan"), "{}", ended.stderr);
    assert_eq!(events(&ended, "run_started")[0]["contract"], "proof");
    let manifest = manifest(&root);
    let checks = manifest["checks"].as_array().unwrap();
    for (at, name) in PROMISES {
        let found = checks.iter().find(|check| check["at"] == at && check["name"] == name);
        let found = found.unwrap_or_else(|| panic!("{at}: {name} is not in {checks:#?}"));
        assert_eq!(found["passed"], true, "{found:#}");
    }
    let failed: Vec<_> = checks.iter().filter(|check| check["passed"] == false).collect();
    assert_eq!(failed.len(), 1, "{failed:#?}");
    assert_eq!(failed[0]["name"], "no fault is asked of the proof");
    let proof = &manifest["proofs"].as_array().unwrap().iter().find(|it| it["contract"] == "proof").unwrap();
    assert_eq!((&proof["full"], &proof["disk_gib"], &proof["cores"]), (&true.into(), &2.into(), &1.into()));
    assert!(
        ended.stderr.contains("promises to proof do not hold: no fault is asked of the proof"),
        "{}",
        ended.stderr
    );
    root.assert_nothing_left();
    root.assert_nothing_runs(&[]);
}

#[test]
fn all_contracts_are_proven_side_by_side_and_their_findings_replaced() {
    let root = Root::new();
    root.start(&[], &[]).finish().assert_code(0);
    let before = manifest(&root);
    let ended = prove(&root, &[], &["--all", "--quick", "--parallel", "2"]).finish();
    ended.assert_code(0);
    let mut proven: Vec<_> =
        events(&ended, "run_started").iter().map(|event| event["contract"].as_str().unwrap()).collect();
    proven.sort_unstable();
    assert_eq!(proven, ["config-drive", "proof"]);
    let after = manifest(&root);
    let names = |manifest: &Value| {
        let checks = manifest["checks"].as_array().unwrap().clone();
        let mut names: Vec<_> = checks.iter().map(|it| format!("{}: {}", it["at"], it["name"])).collect();
        names.sort();
        names
    };
    assert_eq!(names(&after), names(&before));
    assert_eq!(after["proofs"].as_array().unwrap().len(), 2);
    assert_ne!(after["proofs"][0]["run"], before["proofs"][0]["run"]);
    assert_eq!(after["run"], before["run"], "the build is what it was");
    root.assert_whole("mini");
}

#[test]
fn a_clone_that_is_another_machine_after_a_reboot_is_found_out() {
    let root = built();
    let ended = prove(&root, &[("FORGE_FAKE", "proof:amnesia")], &["--contract", "proof"]).finish();
    ended.assert_code(15);
    assert!(ended.stderr.contains("machine-id and host key stay (both are other ones)"), "{}", ended.stderr);
    let checks = manifest(&root)["checks"].clone();
    let found = checks.as_array().unwrap().iter().any(|check| {
        check["at"] == "proof, reboot"
            && check["name"] == "machine-id and host key stay"
            && check["passed"] == false
    });
    assert!(found, "what does not hold is in the manifest, too: {checks:#}");
}

#[test]
fn what_cannot_be_proven_is_refused_before_anything_runs() {
    let root = Root::new();
    let refused = |args: &[&str], code: i32, says: &str| {
        let ended = prove(&root, &[], args).finish();
        ended.assert_code(code);
        assert!(ended.stderr.contains(says), "{says} is not in {}", ended.stderr);
    };
    refused(&[], 2, "hint: build it first: forge build mini");
    root.start(&[], &[]).finish().assert_code(0);
    refused(&["--contract", "prof"], 2, "hint: did you mean `proof`?");
    refused(&["--vmid", "9000"], 2, "qemu has no VMs");
    let disk = root.path("artifacts/mini/1.0/disk.qcow2");
    let mut content = fs::read(&disk).unwrap();
    let last = content.last_mut().unwrap();
    *last = last.wrapping_add(1);
    fs::write(&disk, content).unwrap();
    refused(&[], 12, "disk.qcow2 is not the disk that was built");
    root.assert_nothing_left();
}

#[test]
fn a_proof_that_is_stopped_leaves_nothing_and_changes_nothing() {
    let root = built();
    let before = manifest(&root);
    for (signal, code) in [(Signal::INT, Some(130)), (Signal::KILL, None)] {
        let mut build = prove(&root, &[("FORGE_FAKE", "proof:no-agent")], &["--contract", "proof"]);
        build.wait_for_step("prove:proof");
        build.signal(signal);
        let ended = build.finish();
        assert_eq!(ended.status.code(), code, "{}", ended.stderr);
        root.assert_nothing_runs(&[]);
        assert_eq!(manifest(&root), before);
    }
    root.assert_next_build_works();
}
