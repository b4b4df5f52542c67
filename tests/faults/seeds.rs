//! How the installer gets its answers, and what becomes of the seed.

use std::fs;

use crate::build::Ended;
use crate::root::{ANSWERS, Root};

/// Builds with `seed.transport = "cdrom"` and returns what the installer took from the volume.
fn build_from_cdrom(root: &Root, fault: &str) -> (Ended, String) {
    let notes = root.path("notes");
    fs::create_dir(&notes).unwrap();
    let fakes = [("FORGE_FAKE_NOTES", notes.to_str().unwrap()), ("FORGE_FAKE", fault)];
    let ended = root.start(&fakes, &["--var", "transport=cdrom", "--var", "fetch=1s"]).finish();
    ended.assert_code(0);
    root.assert_whole("mini");
    root.assert_nothing_left();
    root.assert_nothing_runs(&[]);
    root.assert_seed_is_gone();
    let fetched = ended.notes().filter(|note| note.contains("autoinstall")).count();
    assert_eq!(fetched, 0, "{:#?}", ended.events);
    assert!(!notes.join("url").exists(), "the guest was told a URL");
    assert!(!root.arguments("install").iter().any(|it| it == "-smbios"), "the machine has a serial number");
    (ended, fs::read_to_string(notes.join("answers")).unwrap())
}

#[test]
fn a_cdrom_seed_has_the_rendered_answers_whole() {
    let root = Root::new();
    let (ended, answers) = build_from_cdrom(&root, "");
    let (head, tail) = ANSWERS.split_once("{{ forge.report_url }}").unwrap();
    let tail = tail.split_once("{{ forge.logs_url }}").unwrap().1;
    assert!(answers.starts_with(head) && answers.trim_end().ends_with(tail.trim_end()), "{answers}");
    assert!(answers.contains(&format!("echo '{}' >", root.secret)) && !answers.contains("{{"), "{answers}");
    root.assert_hidden(&[&root.secret]);
    let reported = |event: &serde_json::Value| event["event"] == "progress" && event["unit"] == "stages";
    assert!(ended.events.iter().any(reported), "{:#?}", ended.events);
}

#[test]
fn a_guest_that_cannot_reach_forge_installs_from_a_cdrom_seed() {
    let root = Root::new();
    let (ended, _) = build_from_cdrom(&root, "install:no-network");
    // Longer than a fetch may take, were one waited for.
    assert!(ended.step("install")["seconds"].as_f64().unwrap() > 1.2, "{:#?}", ended.step("install"));
    assert_eq!(ended.step("install")["outcome"], "warned", "nobody knows whether it succeeded");
}

#[test]
fn a_key_that_is_refused_costs_no_more_than_the_menus_wait() {
    let root = Root::new();
    let ended = root.start(&[("FORGE_FAKE", "install:menu-no-keys")], &[]).finish();
    ended.assert_code(0);
    root.assert_whole("mini");
    let told: Vec<_> = ended.notes().filter(|note| note.contains("Enter cannot be pressed")).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("asked to take no key"), "QEMU's words are in {told:?}");
}

#[test]
fn enter_saves_the_menus_wait() {
    let root = Root::new();
    let ended = root.start(&[("FORGE_FAKE", "install:menu")], &[]).finish();
    ended.assert_code(0);
    assert!(ended.step("install")["seconds"].as_f64().unwrap() < 20.0, "{:#?}", ended.step("install"));
    assert!(!ended.notes().any(|note| note.contains("Enter")), "{:#?}", ended.events);
}

#[test]
fn a_transport_that_does_not_exist_is_refused_with_those_that_do() {
    let root = Root::new();
    let ended = root.start(&[], &["--var", "transport=kernel"]).finish();
    ended.assert_code(10);
    for word in ["kernel", "http", "cdrom"] {
        assert!(ended.stderr.contains(word), "{}", ended.stderr);
    }
}
