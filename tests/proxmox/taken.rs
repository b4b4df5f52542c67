//! VMIDs that are somebody's, or may be.

use std::fs;

use pve_sim::Rule;
use serde_json::{Value, json};

use crate::node::{Node, Setting};

fn rule(rule: Value) -> Rule {
    serde_json::from_value(rule).unwrap()
}

fn node(rules: Vec<Rule>) -> Node {
    Node::new(&Setting { only_nocloud: true, rules, ..Setting::default() })
}

/// Returns what the only run's journal has open.
fn open(node: &Node) -> Vec<Value> {
    let text = fs::read_to_string(node.root.evidence().join("proxmox.json")).unwrap();
    let record: Value = serde_json::from_str(&text).unwrap();
    record["vms"].as_array().unwrap().clone()
}

#[test]
fn a_clone_whose_request_is_lost_is_not_taken_for_its_original() {
    // One VMID of the two becomes somebody's, so that the template has the other.
    let node = node(vec![
        rule(json!({ "method": "POST", "path": "/nodes/*/qemu", "nth": 1, "action": "vmid-taken" })),
        rule(json!({ "method": "POST", "path": "/nodes/*/qemu/*/clone", "action": "drop-before" })),
    ]);
    let profile = node.root.path("builders/sim.toml");
    let text = fs::read_to_string(&profile).unwrap().replace("8000-8009", "8000-8001");
    fs::write(&profile, text).unwrap();
    let ended = node.start(&[]).finish();
    ended.assert_code(12);
    assert!(ended.stderr.contains("every VMID of 8000-8001 is taken"), "{}", ended.stderr);
    let vms = node.simulator.dump()["vms"].clone();
    let names: Vec<_> = vms.as_object().unwrap().values().map(|vm| &vm["config"]["name"]).collect();
    assert_eq!(names, ["somebody-elses"]);
}

#[test]
fn a_request_that_was_never_answered_stays_in_the_journal() {
    let node = node(vec![rule(
        json!({ "method": "POST", "path": "/nodes/*/qemu", "nth": 1, "action": "drop-before" }),
    )]);
    node.start(&[]).finish().assert_code(12);
    assert_eq!(open(&node).len(), 1, "it may still be carried out");
    assert!(node.remove_leftovers().status.success());
    assert_eq!(open(&node).len(), 1, "and so soon nobody knows");
}

#[test]
fn a_template_that_somebody_holds_is_cloned_when_it_is_free() {
    let node = node(vec![rule(json!({
        "method": "POST", "path": "/nodes/*/qemu/*/clone", "nth": 1, "action": "lock-held", "seconds": 15,
    }))]);
    node.start(&[]).finish().assert_code(0);
}

#[test]
fn the_lock_of_a_task_that_was_killed_is_told_and_stays_in_the_journal() {
    let node = Node::new(&Setting {
        profile: "task_timeout = \"2s\"".into(),
        rules: vec![rule(json!({
            "method": "POST", "path": "/nodes/*/qemu", "action": "task-hangs", "deaf": true,
        }))],
        ..Setting::default()
    });
    let ended = node.start(&[]).finish();
    ended.assert_code(17);
    let said = format!("{}{}", ended.stdout, ended.stderr);
    assert!(said.contains("bears the lock `create` of its task, which has died"), "{said}");
    assert!(said.contains("qm unlock 80") && open(&node).len() == 1, "{said}");
}
