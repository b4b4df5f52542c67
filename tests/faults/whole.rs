//! Builds that go well.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use crate::STEPS;
use crate::build::Build;
use crate::process::watching_command_lines;
use crate::root::{ANSWERS, Root, SEAL, files, sha256};

#[test]
fn a_build_makes_a_whole_artifact_and_accounts_for_its_time() {
    let root = Root::new();
    let ended = root.start(&[], &[]).finish();
    ended.assert_code(0);
    let steps: Vec<_> = ended
        .events
        .iter()
        .filter(|event| event["event"] == "step_started")
        .map(|event| event["step"].as_str().unwrap())
        .collect();
    assert_eq!(steps, STEPS);

    let manifest = root.assert_whole("mini");
    root.assert_nothing_left();
    root.assert_nothing_runs(&[]);
    root.assert_seed_is_gone();
    let started = &ended.events[0];
    assert_eq!(manifest["plan"], started["plan"]);
    assert_eq!(manifest["run"], started["run"]);
    assert_eq!(manifest["os"]["id"], "stand-in");
    let inputs: BTreeMap<_, _> = manifest["inputs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|input| (input["name"].as_str().unwrap(), input["sha256"].as_str().unwrap()))
        .collect();
    for (name, content) in
        [("http/mini/autoinstall.yaml.j2", ANSWERS.as_bytes()), ("hardening/seal.sh", SEAL.as_bytes())]
    {
        assert_eq!(inputs.get(name), Some(&sha256(content).as_str()), "{name} in {inputs:?}");
    }
    assert!(inputs.values().any(|digest| *digest == sha256(&root.iso)), "the ISO in {inputs:?}");
    let checks = manifest["checks"].as_array().unwrap();
    assert!(checks.iter().all(|check| check["passed"] == true), "{checks:#?}");
    for (at, name) in [
        ("build", "zip is installed"),
        ("build", "no secret is left in the guest"),
        ("build", "no secret is left on the disk"),
        ("proof", "zip is installed"),
        ("proof", "odin logs in by key on port 2222 and has sudo"),
        ("config-drive", "the ConfigDrive volume is accepted"),
    ] {
        assert!(checks.iter().any(|check| check["at"] == at && check["name"] == name), "{at}: {name}");
    }
    assert!(manifest["packages"].as_array().unwrap().iter().any(|package| package["name"] == "zip"));
    let logs: Vec<_> = files(&root.path("artifacts/mini/1.0/logs"));
    for name in [
        "events.jsonl",
        "guest.log",
        "install/serial.log",
        "proof/qemu.log",
        "checks-build.txt",
        "checks-proof.json",
    ] {
        assert!(logs.iter().any(|path| path.ends_with(name)), "{name} in {logs:?}");
    }

    let table = fs::read_to_string(root.path("artifacts/mini/1.0/logs/checks-build.txt")).unwrap();
    assert!(table.contains("✓ zip is installed"), "{table}");

    ended.assert_spans_sum();
    let seconds = ended.last()["seconds"].as_f64().unwrap();
    assert!(ended.wall.as_secs_f64() - seconds < 1.0, "{:?} for a run of {seconds} s", ended.wall);
    assert!(ended.forges_share() < 2.0, "forge's own share is {} s", ended.forges_share());
}

#[test]
fn no_secret_and_no_token_is_ever_seen() {
    let root = Root::new();
    let notes = root.path("notes");
    fs::create_dir(&notes).unwrap();
    let (ended, lines) =
        watching_command_lines(|| root.start(&[("FORGE_FAKE_NOTES", notes.to_str().unwrap())], &[]).finish());
    ended.assert_code(0);
    let url = fs::read_to_string(notes.join("url")).unwrap();
    let token = url.split('/').nth(3).unwrap();
    assert_eq!(token.len(), 40, "{url}");
    let hidden = [root.secret.as_str(), token];

    assert!(ended.stdout.contains("hello, the secret is"), "the step's output is shown");
    for text in [&ended.stdout, &ended.stderr] {
        assert!(!hidden.iter().any(|it| text.contains(it)), "{text}");
    }
    assert!(lines.iter().any(|line| line.contains("qemu-system-x86_64") && line.contains(&root.mark)));
    for line in &lines {
        assert!(!hidden.iter().any(|it| line.contains(it)), "{line}");
    }
    root.assert_hidden(&hidden);
}

#[test]
fn remarks_of_cloud_init_are_no_error() {
    let root = Root::new();
    let ended = root.start(&[("FORGE_FAKE", "proof:cloud-init-remarks")], &[]).finish();
    ended.assert_code(0);
    assert!(ended.stdout.contains("status: done, with remarks"), "{}", ended.stdout);
    root.assert_whole("mini");
}

#[test]
fn a_secret_that_is_too_short_to_be_looked_for_is_told() {
    let root = Root::new();
    let ended = root.start(&[("FORGE_VAR_SECRET", "e")], &[]).finish();
    ended.assert_code(0);
    let told = &ended.step("sweep")["message"];
    assert_eq!(*told, "not looked for, being shorter than 8 characters: secret");
}

#[test]
fn several_builds_at_once_do_not_meet() {
    let root = Root::new();
    let mut command = root.command(&["mini", "maxi"]);
    command.args(["--output", "json", "--parallel", "2"]);
    Build::start(command).finish().assert_code(0);
    root.assert_whole("mini");
    root.assert_whole("maxi");
    root.assert_nothing_left();
    root.assert_nothing_runs(&[]);
}

#[test]
fn two_forges_may_build_one_template() {
    let root = Root::new();
    let plans = [root.start(&[], &[]), root.start(&[], &[])].map(|build| {
        let ended = build.finish();
        ended.assert_code(0);
        ended.events[0]["plan"].clone()
    });
    assert_eq!(plans[0], plans[1], "the addresses of one build's server are not part of the plan");
    root.assert_whole("mini");
    root.assert_nothing_left();
    root.assert_nothing_runs(&[]);
}

#[test]
fn a_disk_is_raw_on_request() {
    let root = Root::new();
    root.start(&[], &["--var", "format=raw"]).finish().assert_code(0);
    let folder = root.path("artifacts/mini/1.0");
    let manifest: Value = serde_json::from_slice(&fs::read(folder.join("manifest.json")).unwrap()).unwrap();
    assert_eq!((&manifest["disk"]["format"], &manifest["disk"]["file"]), (&"raw".into(), &"disk.raw".into()));
    assert_eq!(fs::metadata(folder.join("disk.raw")).unwrap().len(), manifest["disk"]["virtual_size"]);
}

#[test]
fn all_disks_are_in_the_artifact() {
    let root = Root::new();
    let path = root.path("templates/mini/template.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text + "\n[[machine.disk]]\nsize_gib = 2\n").unwrap();
    root.start(&[], &[]).finish().assert_code(0);
    let manifest = root.assert_whole("mini");
    let second = &manifest["more_disks"][0];
    assert_eq!((&second["file"], &second["virtual_size"]), (&"disk1.qcow2".into(), &(2_u64 << 30).into()));
    let content = fs::read(root.path("artifacts/mini/1.0/disk1.qcow2")).unwrap();
    assert_eq!(second["sha256"], sha256(&content).as_str());
}
