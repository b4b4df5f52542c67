//! Builds that go well.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::thread;

use pve_sim::Request;
use pve_sim::ssh::{HostKey, Sshd};
use serde_json::{Value, json};

use crate::STEPS;
use crate::build::Ended;
use crate::node::{Node, Setting, TEMPLATE};
use crate::requests::assert_requests_are_well;
use crate::root::{assert_sbom, files};

#[test]
fn a_build_leaves_a_proven_candidate_and_nothing_else() {
    let node = Node::new(&Setting { only_nocloud: true, ..Setting::default() });
    let before = node.world();
    let ended = node.start(&[]).finish();
    ended.assert_code(0);
    let started = ended.events.iter().filter(|event| event["event"] == "step_started");
    assert_eq!(started.map(|event| event["step"].as_str().unwrap()).collect::<Vec<_>>(), STEPS);

    let manifest: Value = serde_json::from_slice(&fs::read(node.artifact("manifest.json")).unwrap()).unwrap();
    let checks = manifest["checks"].as_array().unwrap();
    assert!(checks.iter().all(|check| check["passed"] == true), "{checks:#?}");
    for (at, name) in [
        ("build", "no secret is left in the guest"),
        ("proof", "odin logs in by key on port 2222 and has sudo"),
    ] {
        assert!(checks.iter().any(|check| check["at"] == at && check["name"] == name), "{checks:#?}");
    }

    assert_sbom(&node.artifact(""), &manifest);

    let vmids = node.vmids();
    assert_eq!(vmids.len(), 1, "{vmids:?}");
    let vmid = &vmids[0];
    assert_is_template(&node, vmid, "mini-1.0", "candidate");
    assert_media_are_cache(&node);
    let mut rest = node.world();
    rest["vms"].as_object_mut().unwrap().remove(vmid);
    let own = |image: &Value| image["volid"].as_str().unwrap().contains(&format!("-{vmid}-"));
    rest["images"].as_array_mut().unwrap().retain(|image| !own(image));
    assert_eq!(rest, before);

    assert_requests_are_well(&node.simulator.requests());
    assert_requests_are_few(&node, &ended);
    assert_hidden(&node, &[&ended.stdout, &ended.stderr]);
    ended.assert_spans_sum();
}

#[test]
fn a_promotion_makes_the_template_once_and_the_next_build_uses_the_media_again() {
    let node = Node::new(&Setting { only_nocloud: true, ..Setting::default() });
    node.start(&["--promote"]).finish().assert_code(0);
    assert_eq!(node.vmids().len(), 2);
    assert_is_template(&node, TEMPLATE, "mini", "stable");
    let manifest: Value = serde_json::from_slice(&fs::read(node.artifact("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["place"]["vmid"].to_string(), TEMPLATE, "the manifest is written anew");
    assert_sbom(&node.artifact(""), &manifest);
    assert_requests_are_well(&node.simulator.requests());

    let (world, asked) = (node.world(), node.simulator.requests().len());
    let refused = node.start(&["--promote"]).finish();
    refused.assert_code(16);
    assert!(
        refused.stderr.contains("9000 is taken already: the template mini on asgard"),
        "{}",
        refused.stderr
    );
    assert_eq!(node.world(), world);

    let files = node.simulator.dump()["files"].clone();
    node.start(&[]).finish().assert_code(0);
    assert_eq!(node.simulator.dump()["files"], files);
    assert_eq!(node.vmids().len(), 3, "the second candidate beside the first");
    let requests = node.simulator.requests();
    let uploads =
        |request: &&Request| request.path.ends_with("/upload") || request.path.ends_with("/download-url");
    assert_eq!(requests[asked..].iter().find(uploads).map(|it| &it.path), None);
}

#[test]
fn what_a_guest_sends_is_not_asked_for() {
    let node = Node::new(&Setting::default());
    // What a step with a secret prints is not sent in the clear.
    let template = node.root.path("templates/mini/template.toml");
    let text = fs::read_to_string(&template).unwrap();
    fs::write(&template, text.replace("secret = \"{{ var.secret }}\", ", "").replace(" $secret", ""))
        .unwrap();
    let mut build = node.start(&["--var", "fault=chatty"]);
    build.wait_for_step("step:greet");
    let before = node.simulator.requests().len();
    build.wait_for_step("step:upload");
    let requests = node.simulator.requests();
    let looks = requests[before..].iter().filter(|request| request.path.ends_with("/agent/exec")).count();
    drop(build);
    let log = fs::read_to_string(node.root.evidence().join("guest.log")).unwrap();
    let lines: Vec<_> = log.lines().filter(|line| line.starts_with("line ")).collect();
    assert_eq!(lines, (1..=12).map(|number| format!("line {number}")).collect::<Vec<_>>());
    println!("{looks} commands in all");
    // The node's time runs faster than the guest's: asked for, it would be several a second.
    assert!(looks < 14, "{looks} commands in six seconds: {:#?}", &requests[before..]);
}

#[test]
fn what_is_not_reached_over_the_network_is_told_as_not_proven() {
    let node = Node::new(&Setting { only_nocloud: true, ..Setting::default() });
    // Something on the way takes every connection, as some networks do.
    let way = TcpListener::bind((node.clone_address(), 2222)).unwrap();
    thread::spawn(move || {
        for client in way.incoming() {
            client.unwrap().write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").ok();
        }
    });
    let ended = node.start(&[]).finish();
    ended.assert_code(0);
    let manifest: Value = serde_json::from_slice(&fs::read(node.artifact("manifest.json")).unwrap()).unwrap();
    let checks = manifest["checks"].as_array().unwrap();
    let unproven = checks.iter().filter(|check| check["not_proven"] == true).count();
    assert_eq!(unproven, 4, "{checks:#?}");
    assert!(ended.stdout.contains("; nothing answers on port 22: "), "{}", ended.stdout);
    let told =
        ended.stdout.lines().find(|line| line.contains(r#""event":"not_proven""#)).expect(&ended.stdout);
    let told: Value = serde_json::from_str(told).unwrap();
    assert_eq!(told["names"].as_array().map(Vec::len), Some(4), "{told:#}");
}

#[test]
fn an_address_that_another_machine_has_is_refused_before_anything_is_made() {
    let node = Node::new(&Setting { only_nocloud: true, ..Setting::default() });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let stranger = Sshd { host_key: HostKey::new().unwrap().private, ..Sshd::default() };
    let listener = runtime.block_on(tokio::net::TcpListener::bind((node.clone_address(), 2222))).unwrap();
    runtime.spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(stranger.clone().serve(client));
        }
    });
    let before = node.world();
    let ended = node.start(&[]).finish();
    ended.assert_code(12);
    let reason = format!("a machine answers at {} already", node.clone_address());
    assert!(ended.stderr.contains(&reason) && ended.stderr.contains("`proof_addresses`"), "{}", ended.stderr);
    assert_eq!(node.world(), before);
}

#[test]
fn proofs_at_one_address_take_turns() {
    let node = Node::new(&Setting { only_nocloud: true, ..Setting::default() });
    let locks = node.root.path("cache/forge/locks");
    fs::create_dir_all(&locks).unwrap();
    let lock = fs::File::create(locks.join(format!("proof-sim-{}", node.clone_address()))).unwrap();
    lock.lock().unwrap();
    let mut build = node.start(&[]);
    let told = format!("another proof has a clone at {}: waiting for it", node.clone_address());
    build.wait_for("its turn", |event| event["message"] == told);
    assert_eq!(node.vmids().len(), 1, "no clone yet");
    lock.unlock().unwrap();
    build.finish().assert_code(0);
}

#[test]
fn an_installation_without_reports_counts_once_its_marker_is_seen() {
    let node = Node::new(&Setting { only_nocloud: true, ..Setting::default() });
    let answers = node.root.path("http/mini/autoinstall.yaml.j2");
    let text = fs::read_to_string(&answers).unwrap();
    let (before, rest) = text.split_once("  reporting:").unwrap();
    let (_, after) = rest.split_once("  late-commands:").unwrap();
    fs::write(&answers, format!("{before}  late-commands:{after}")).unwrap();
    let ended = node.start(&[]).finish();
    ended.assert_code(0);
    assert!(ended.notes().any(|note| note.contains("has left /var/log/installer")), "{}", ended.stdout);
}

/// Makes sure that a template is what the definition says, not what the node needed to build it.
fn assert_is_template(node: &Node, vmid: &str, name: &str, state: &str) {
    let vm = node.simulator.dump()["vms"][vmid].clone();
    let config = &vm["config"];
    let text = |key: &str| config[key].as_str().unwrap_or_default().to_owned();
    for (key, expected) in [
        ("template", json!("1")),
        ("name", json!(name)),
        ("cores", json!("1")),
        ("memory", json!("2048")),
        ("scsihw", json!("virtio-scsi-pci")),
        ("serial0", json!("socket")),
        ("boot", json!("order=virtio0")),
        ("ciupgrade", json!("0")),
        ("cpu", json!("host")),
        ("kvm", Value::Null),
        ("reboot", Value::Null),
        ("lock", Value::Null),
    ] {
        assert_eq!(config[key], expected, "{key} of {vmid}: {config:#}");
    }
    assert!(text("virtio0").starts_with(&format!("local-zfs:base-{vmid}-disk-0,")), "{config:#}");
    assert!(text("virtio0").ends_with("size=1G"), "{config:#}");
    assert!(text("net0").contains("bridge=vmbr0"), "{config:#}");
    assert!(text("agent").contains('1'), "{config:#}");
    let smbios = text("smbios1");
    assert!(smbios.starts_with("uuid=") && !smbios.contains("serial"), "{smbios}");
    let drives = config.as_object().unwrap().values().filter_map(Value::as_str);
    let drives: Vec<_> = drives.filter(|value| value.contains("media=cdrom")).collect();
    assert_eq!(drives.len(), 1, "only the cloud-init drive: {drives:?}");
    assert!(drives[0].contains("cloudinit"), "{drives:?}");
    let tags = text("tags");
    let mark = format!("forge-{state}");
    assert!(tags.split(';').any(|tag| tag == mark), "{tags}");
    assert!(text("description").contains(state), "{config:#}");
    assert_eq!((&vm["running"], &vm["pending"], &vm["deleted"]), (&json!(false), &json!({}), &json!({})));
}

/// What a build of `mini` asks of Proxmox, besides what it asks while it waits: 74 calls, and one more for
/// each of the 29 tasks and commands that are asked for right after their start.
const NEEDED: u64 = 103;

/// Makes sure that forge tells how many requests it made, and that it asks no more than it must: while it
/// waits, for one thing at a time, once a second.
fn assert_requests_are_few(node: &Node, ended: &Ended) {
    let table = fs::read_to_string(node.root.evidence().join("requests.txt")).unwrap();
    let requests = node.simulator.requests();
    let counted = format!("{} requests to the Proxmox API; requests.txt lists them", requests.len());
    assert!(ended.notes().any(|told| told == counted), "not `{counted}`: {table}");
    assert!(table.trim_end().ends_with(&format!("{}  in all", requests.len())), "{table}");
    let most = NEEDED + ended.wall.as_secs() * u64::from(node.faster);
    assert!(
        requests.len() as u64 <= most,
        "{} are more than {most} in {:?}:\n{table}",
        requests.len(),
        ended.wall
    );
    assert_polls_are_rare(&requests, u64::from(node.faster));
}

/// Makes sure that nothing was waited for with more than a question a second, and that no agent was asked
/// twice at once.
fn assert_polls_are_rare(requests: &[Request], faster: u64) {
    let mut waits: BTreeMap<String, Vec<&Request>> = BTreeMap::new();
    for request in requests.iter().filter(|request| request.method == "GET") {
        let is_wait = request.path.ends_with("/exec-status") || request.path.contains("/tasks/");
        if is_wait {
            waits
                .entry(format!("{} {}", request.path, request.params.get("pid").unwrap_or(&Value::Null)))
                .or_default()
                .push(request);
        }
    }
    assert!(waits.len() > 20, "{:?}", waits.keys());
    for (what, polls) in waits {
        let spent = polls[polls.len() - 1].started_ms - polls[0].started_ms;
        // A busy machine may write a question down later than it was asked.
        let most = 4 + spent * faster / 1000;
        assert!(polls.len() as u64 <= most, "{} questions in {spent} ms for {what}", polls.len());
    }
    let agents: Vec<_> = requests.iter().filter(|request| request.path.contains("/agent/")).collect();
    for pair in agents.windows(2) {
        assert!(pair[0].ended_ms.unwrap() <= pair[1].started_ms, "{pair:#?} overlap");
    }
}

fn assert_media_are_cache(node: &Node) {
    let files = node.simulator.dump()["files"].clone();
    let left = node.world()["files"].as_array().unwrap().len();
    assert_eq!((files.as_array().unwrap().len(), left), (2, 0), "{files:#}");
}

/// Makes sure that neither the token nor the template's secret is shown or written anywhere.
fn assert_hidden(node: &Node, shown: &[&str]) {
    let token = node.simulator.token().unwrap().split_once('=').unwrap().1.to_owned();
    let hidden = [token.as_str(), node.root.secret.as_str()];
    node.root.assert_hidden(&hidden);
    let requests = serde_json::to_string(&node.simulator.requests()).unwrap();
    for (what, text) in
        shown.iter().map(|text| ("forge's output", *text)).chain([("the request log", &*requests)])
    {
        assert!(!hidden.iter().any(|it| text.contains(it)), "{what} shows a secret");
    }
    let evidence = files(&node.root.evidence());
    assert!(evidence.iter().any(|path| path.ends_with("requests.txt")), "{evidence:?}");
}
