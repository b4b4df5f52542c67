//! Proofs of a template on the node, after its build.

use std::fs;

use serde_json::Value;

use crate::build::Build;
use crate::node::{Node, Setting, is_template};
use crate::requests::assert_requests_are_well;

fn prove(node: &Node, args: &[&str]) -> Build {
    let mut command = node.forge("prove");
    command.args(["mini", "--output", "json"]).args(args);
    Build::start(command)
}

fn manifest(node: &Node) -> Value {
    serde_json::from_slice(&fs::read(node.artifact("manifest.json")).unwrap()).unwrap()
}

#[test]
fn a_contract_in_full_uses_the_node_and_leaves_it_as_it_was() {
    let node = Node::new(&Setting { only_nocloud: true, ..Setting::default() });
    // What a consumer's clone has besides an address.
    let path = node.root.path("templates/mini/template.toml");
    let shape = "cores = 2\nmemory_mib = 512\nqueues = 2\ntags = [\"rke2\"]\nonboot = true\nname = \"proof\"";
    let text = fs::read_to_string(&path).unwrap().replace("name = \"proof\"", shape);
    fs::write(&path, text).unwrap();
    node.start(&[]).finish().assert_code(0);
    let (before, asked) = (node.world(), node.simulator.requests().len());

    // The builder is the one in the manifest.
    let ended = prove(&node, &["--contract", "proof"]).finish();
    ended.assert_code(0);
    let manifest = manifest(&node);
    let checks = manifest["checks"].as_array().unwrap();
    for (at, name) in [
        ("proof", "the network interface has its packet queues"),
        ("proof, second clone", "two clones have different machine-ids"),
        ("proof, agent", "the agent freezes and thaws the file systems"),
        ("proof, agent", "the agent sets a user's password"),
        ("proof, reboot", "machine-id and host key stay"),
        ("proof, other address", "the agent powers the clone off within 30 s"),
        ("proof, other address", "the clone took its static address and no other"),
        ("proof, other address", "odin logs in by key on port 2222 and has sudo"),
    ] {
        let found = checks.iter().find(|check| check["at"] == at && check["name"] == name);
        assert_eq!(
            found.unwrap_or_else(|| panic!("{at}: {name}: {checks:#?}"))["passed"],
            true,
            "{found:#?}"
        );
    }
    let proof = &manifest["proofs"][0];
    assert_eq!(
        (&proof["full"], &proof["cores"], &proof["memory_mib"]),
        (&true.into(), &2.into(), &512.into())
    );

    let requests = node.simulator.requests();
    assert_requests_are_well(&requests);
    let sent: Vec<_> = requests[asked..].iter().map(|request| &request.params).collect();
    let has =
        |key: &str, value: &str| sent.iter().any(|params| params.get(key).is_some_and(|it| it == value));
    assert!(has("cores", "2") && has("memory", "512") && has("onboot", "1"), "{sent:#?}");
    let nets = sent.iter().filter_map(|params| params.get("net0")?.as_str());
    assert!(nets.clone().any(|net| net.ends_with("bridge=vmbr0,queues=2")), "{:?}", nets.collect::<Vec<_>>());
    let clones: Vec<_> =
        requests[asked..].iter().filter(|request| request.path.ends_with("/clone")).collect();
    assert_eq!(clones.len(), 2);
    assert_eq!(node.world(), before);
}

#[test]
fn a_template_without_a_manifest_is_proven_by_its_number_at_the_profiles_addresses() {
    let node = Node::new(&Setting { only_nocloud: true, ..Setting::default() });
    node.start(&[]).finish().assert_code(0);
    let world = node.world();
    let (vmid, _) = world["vms"].as_object().unwrap().iter().find(|(_, vm)| is_template(vm)).unwrap();
    let [_, a, b, _] = node.clone_address().octets();
    let profile = node.root.path("builders/sim.toml");
    let own = format!("127.{a}.{b}.77");
    let text = fs::read_to_string(&profile).unwrap();
    fs::write(&profile, format!("{text}proof_addresses = \"{own}-{own}\"\n")).unwrap();
    let before = manifest(&node);
    let ended = prove(&node, &["--on", "sim", "--vmid", vmid, "--quick"]).finish();
    ended.assert_code(0);
    let told = format!("proof: address {own} instead of {}", node.clone_address());
    assert!(ended.notes().any(|note| note.starts_with(&told)), "{}", ended.stdout);
    assert_eq!(manifest(&node), before, "whose manifest it is nobody said");
    assert_eq!(node.world(), world);

    for (args, says) in [
        (["--vmid", "8765"], "there is no VM 8765"),
        (["--artifact", "/nowhere"], "reading /nowhere/manifest.json"),
    ] {
        let ended = prove(&node, &[&["--on", "sim"][..], &args].concat()).finish();
        ended.assert_code(2);
        assert!(ended.stderr.contains(says), "{}", ended.stderr);
    }
}
