//! The optional console password of `templates/ubuntu-noble`: its own variable, answers, scripts and
//! checks, in a build of `mini`.

use std::fs;
use std::path::Path;

use crate::build::Ended;
use crate::process::watching_command_lines;
use crate::root::{ANSWERS, Root, sha256};

/// The checks of which one is made.
const WITH: &str = "user has the console password";
const WITHOUT: &str = "user has no password";

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// Gives `mini` what `ubuntu-noble` has of the console password.
fn with_console_password(root: &Root) {
    let noble = read("templates/ubuntu-noble/template.toml");
    let wanted = [
        "[variables.user]",
        "[variables.console_password_hash]",
        "[variables.sudo_nopasswd]",
        "[[step]]\nname = \"user\"",
        "[[step]]\nname = \"cloud-init\"",
        &format!("[[check]]\nname = \"{WITH}\""),
        &format!("[[check]]\nname = \"{WITHOUT}\""),
    ];
    let blocks = wanted.map(|start| {
        let block = noble.split("\n\n").find(|block| block.starts_with(start));
        block.unwrap_or_else(|| panic!("ubuntu-noble has no {start}"))
    });
    let path = root.path("templates/mini/template.toml");
    fs::write(&path, fs::read_to_string(&path).unwrap() + "\n" + &blocks.join("\n\n")).unwrap();

    let answers = read("http/ubuntu-noble/autoinstall.yaml.j2");
    let line = answers.lines().find(|line| line.starts_with("    password: ")).unwrap();
    let mine = ANSWERS.replace("    password: \"*\"", line);
    assert_ne!(mine, ANSWERS);
    fs::write(root.path("http/mini/autoinstall.yaml.j2"), mine).unwrap();
    for name in ["hardening/user.sh", "hardening/cloud-init.sh"] {
        fs::write(root.path(name), read(name)).unwrap();
    }
}

/// Returns a hash that no other test has.
fn hash(root: &Root) -> String {
    let digits = sha256(root.secret.as_bytes());
    format!("$6$rounds=5000$forge$../{digits}{}", &digits[..19])
}

/// Builds with that hash.
fn start(root: &Root, hash: &str, fault: &str) -> Ended {
    with_console_password(root);
    // The stand-in's guest has no sudo to write rules for.
    let args = ["--var", "sudo_nopasswd=false"];
    root.start(&[("FORGE_VAR_CONSOLE_PASSWORD_HASH", hash), ("FORGE_FAKE", fault)], &args).finish()
}

/// Does so, and makes sure that of the two checks the right one is made, in the build and again in the
/// proof.
fn build(root: &Root, hash: &str) -> Ended {
    let ended = start(root, hash, "");
    ended.assert_code(0);
    let manifest = root.assert_whole("mini");
    let checks = manifest["checks"].as_array().unwrap();
    let (made, left_out) = if hash.is_empty() { (WITHOUT, WITH) } else { (WITH, WITHOUT) };
    let at: Vec<_> = checks.iter().filter(|it| it["name"] == made).map(|it| &it["at"]).collect();
    assert_eq!(at, ["build", "proof"], "{checks:#?}");
    assert!(!checks.iter().any(|it| it["name"] == left_out), "{checks:#?}");
    ended
}

#[test]
fn a_guest_has_the_console_password_and_nobody_sees_its_hash() {
    let root = Root::new();
    let hash = hash(&root);
    let (ended, lines) = watching_command_lines(|| build(&root, &hash));
    // Not its telling end either.
    let hidden = [hash.as_str(), &hash[20..]];
    for text in [&ended.stdout, &ended.stderr].into_iter().chain(&lines) {
        assert!(!hidden.iter().any(|it| text.contains(it)), "{text}");
    }
    root.assert_hidden(&hidden);
    let manifest = root.assert_whole("mini");
    let shown = &manifest["variables"]["console_password_hash"];
    assert_eq!(*shown, serde_json::json!({"secret": true, "set": true}));
}

#[test]
fn a_console_password_that_a_clone_locks_is_explained() {
    let root = Root::new();
    let ended = start(&root, &hash(&root), "proof:locked");
    ended.assert_code(15);
    assert!(
        ended.stderr.contains("odin's password is locked: with `lock_passwd: false`"),
        "{}",
        ended.stderr
    );
}

#[test]
fn a_guest_without_a_console_password_has_none() {
    build(&Root::new(), "");
}
