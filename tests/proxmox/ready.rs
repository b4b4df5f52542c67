//! How soon a guest agent is seen to answer, and how seldom one is asked that does not.

use pve_sim::Request;

use crate::node::{Node, Setting};

/// The pings of a build: those of the VM that it installs, and those of the clone.
fn pings(node: &Node) -> [Vec<Request>; 2] {
    let all = node.simulator.requests();
    let pings: Vec<_> = all.into_iter().filter(|request| request.path.ends_with("/agent/ping")).collect();
    let built = pings.first().expect("the agent is asked").path.clone();
    let (own, others) = pings.into_iter().partition(|ping| ping.path == built);
    [own, others]
}

/// Makes sure that the last ping is the only one that was answered, and returns when.
fn answered_ms(pings: &[Request]) -> u64 {
    let (last, silent) = pings.split_last().expect("the agent is asked");
    assert!(!silent.is_empty() && silent.iter().all(|ping| ping.status != 200), "{silent:#?}");
    assert_eq!(last.status, 200, "{last:#?}");
    last.ended_ms.unwrap()
}

/// Returns the pauses between pings, in milliseconds of Proxmox's time.
fn pauses_ms(node: &Node, pings: &[Request]) -> Vec<u64> {
    let pause = |pair: &[Request]| pair[1].started_ms - pair[0].ended_ms.unwrap();
    // The log's clock cuts fractions off.
    pings.windows(2).map(|pair| (pause(pair) + 1) * u64::from(node.faster)).collect()
}

#[test]
fn a_guest_that_says_so_is_seen_to_be_ready_within_a_second() {
    // In real time: a second is not much where nothing is scaled but the waits.
    let node = Node::new(&Setting { guest: "guest:late".into(), faster: Some(1), ..Setting::default() });
    let mut build = node.start(&[]);
    build.wait_for("the guest's word", |event| event["message"] == "the guest says that its agent runs");
    build.wait_for_step("step:greet");
    drop(build);
    let [pings, _] = pings(&node);
    let after = answered_ms(&pings) - node.noted_ms("called-guest").unwrap();
    println!("answered {after} ms after the guest's word, pauses {:?} ms", pauses_ms(&node, &pings));
    assert!(after <= 1000, "answered {after} ms after the guest's word: {pings:#?}");
    assert!(pauses_ms(&node, &pings)[0] < 4900, "it was only its turn: {pings:#?}");
}

#[test]
fn a_clone_is_seen_to_be_ready_within_six_seconds_and_asked_every_five() {
    let node = Node::new(&Setting {
        guest: "proof:late".into(),
        only_nocloud: true,
        faster: Some(4),
        ..Setting::default()
    });
    let ended = node.start(&[]).finish();
    ended.assert_code(0);
    let [_, pings] = pings(&node);
    let after = (answered_ms(&pings) - node.noted_ms("started-proof").unwrap()) * u64::from(node.faster);
    let pauses = pauses_ms(&node, &pings);
    println!("answered {after} ms after the agent's start, pauses {pauses:?} ms");
    assert!(after <= 6000, "answered {after} ms after the agent's start: {pings:#?}");
    assert!(pauses.iter().all(|pause| *pause >= 5000), "{pauses:?} ms between {pings:#?}");
    assert!(node.noted_ms("called-guest").is_some() && node.noted_ms("called-proof").is_none());
}
