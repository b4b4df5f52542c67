//! What becomes of the VM of a failed build.

use rustix::process::Signal;
use serde_json::json;

use crate::node::{Node, Setting};

#[test]
fn a_kept_machine_runs_until_ctrl_c() {
    let node = Node::new(&Setting::default());
    let before = node.world();
    let build = node.start(&["--keep", "--var", "fault=step"]);
    build.wait_for_stderr("The machine is kept until Ctrl-C");
    let text = build.stderr();
    assert!(text.contains("greet: exit code 3"), "{text}");
    let vmids = node.vmids();
    assert_eq!(vmids.len(), 1, "{vmids:?}");
    assert!(text.contains(&format!("vm       {} on asgard", vmids[0])), "{text}");
    assert_eq!(node.simulator.dump()["vms"][&vmids[0]]["running"], json!(true));
    assert_eq!(node.remove_leftovers().status.code(), Some(0));
    assert_eq!(node.vmids(), vmids, "a kept machine is no leftover while forge looks after it");
    build.signal(Signal::INT);
    build.finish().assert_code(14);
    assert_eq!(node.world(), before);
}

#[test]
fn a_template_that_is_not_proven_is_kept_on_request_and_says_so() {
    let node = Node::new(&Setting { only_nocloud: true, ..Setting::default() });
    let build = node.start(&["--keep", "--var", "fault=proof"]);
    build.wait_for_stderr("marked as failed");
    build.signal(Signal::INT);
    build.finish().assert_code(15);
    let vmids = node.vmids();
    assert_eq!(vmids.len(), 1, "the clone is gone: {vmids:?}");
    let config = node.simulator.dump()["vms"][&vmids[0]]["config"].clone();
    assert_eq!(config["template"], json!("1"));
    assert!(config["description"].as_str().unwrap().contains("state = failed"), "{config:#}");
    assert!(node.remove_leftovers().status.success());
    assert_eq!(node.vmids(), vmids, "what is kept on purpose is no leftover");
}
