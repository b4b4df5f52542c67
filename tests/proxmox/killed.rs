//! A build that is killed at the start of each step, and what `forge leftovers` makes of it.

use std::fs;
use std::sync::Mutex;
use std::thread;

use serde_json::Value;

use crate::STEPS;
use crate::build::wait_until;
use crate::node::{Node, Setting, TEMPLATE};

/// How many builds run at the same time: mostly they wait.
const AT_ONCE: usize = 4;

#[test]
fn what_a_killed_build_leaves_is_removed_whole_in_each_step() {
    let steps = Mutex::new(STEPS.iter());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let Some(step) = steps.lock().unwrap().next() else { return };
                    kill_at(step, false);
                }
            });
        }
    });
}

#[test]
fn a_promotion_that_is_killed_leaves_its_candidate_alone() {
    let node = Node::new(&Setting { only_nocloud: true, ..Setting::default() });
    let mut build = node.start(&["--promote"]);
    build.wait_for_step("promote");
    wait_until("the copy", || node.vmids().iter().any(|vmid| vmid == TEMPLATE));
    drop(build);
    let removed = node.remove_leftovers();
    assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    let vmids = node.vmids();
    assert_eq!(vmids.len(), 1, "{vmids:?}");
    assert_ne!(vmids[0], TEMPLATE);
    let manifest: Value = serde_json::from_slice(&fs::read(node.artifact("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["place"]["vmid"].to_string(), vmids[0], "what stays is named by a manifest");
}

#[test]
fn answers_on_a_volume_do_not_outlive_a_killed_build() {
    for step in ["create", "install"] {
        kill_at(step, true);
    }
}

/// Kills a build in that step, and sees that its leftovers can be removed whole. `on_cdrom` puts the answers
/// on a volume of their own, which only some tokens may delete.
fn kill_at(step: &str, on_cdrom: bool) {
    let node = Node::new(&Setting { deletes_media: on_cdrom, only_nocloud: true, ..Setting::default() });
    let before = node.world();
    let args = ["--var", "transport=cdrom", "--var", "fetch=1s"];
    let mut build = node.start(if on_cdrom { &args } else { &[] });
    build.wait_for_step(step);
    drop(build);
    // Once the template is a proven candidate it is no leftover; that is what `candidate` makes of it, so
    // that the kill may come just after.
    let is_candidate =
        |vm: &Value| vm["config"]["description"].as_str().unwrap().contains("state = candidate");
    let is_made = match step {
        "candidate" => node.world()["vms"].as_object().unwrap().values().any(is_candidate),
        step => step == "artifact",
    };
    let removed = node.remove_leftovers();
    let said = format!(
        "killed in {step}\n{}{}",
        String::from_utf8_lossy(&removed.stdout),
        String::from_utf8_lossy(&removed.stderr)
    );
    assert!(removed.status.success(), "{said}");
    if is_made {
        assert_eq!(node.vmids().len(), 1, "{said}");
    } else {
        assert_eq!(node.world(), before, "{said}");
    }
    let again = node.remove_leftovers();
    assert!(again.status.success(), "nothing is left to remove: {again:?}");
}
