//! The hardening controls of this repository, as far as they can be judged without applying them; what they do
//! is seen by `tests/e2e/controls.rs`.
#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use forge::definition::{ControlState, HardeningProfile, Inputs, NamedControl, Root, load, load_controls};
use forge::plan::control_checks;
use regex::Regex;

fn root() -> Root {
    Root::at(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn controls() -> Vec<NamedControl> {
    load_controls(&root()).unwrap()
}

/// Returns the controls that `base` and `server` apply.
fn promised() -> impl Iterator<Item = NamedControl> {
    controls()
        .into_iter()
        .filter(|it| it.control.profile.is_some_and(|lowest| lowest <= HardeningProfile::Server))
}

#[test]
fn scripts_of_controls_pass_shellcheck() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for control in controls() {
        let checks = control_checks(&control);
        let commands = checks.iter().filter_map(|check| check.command.as_ref().map(|command| &command.run));
        for (number, script) in control.control.script.iter().chain(commands).enumerate() {
            let path = folder.path().join(format!("{}-{number}.sh", control.name));
            let exported = control.control.env.keys().fold(String::new(), |mut text, name| {
                writeln!(text, "{name}=${{{name}:-}}").unwrap();
                text
            });
            std::fs::write(&path, exported + script).unwrap();
            files.push(path);
        }
    }
    assert!(files.len() > 60, "{}", files.len());
    let output = Command::new("shellcheck")
        // Which file that is, the guest knows.
        .args(["--shell=sh", "--exclude=SC1091"])
        .args(files)
        .output()
        .expect("shellcheck is installed by `make test`");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn references_name_a_section_or_a_document() {
    let cis = Regex::new(r"^CIS Ubuntu Linux 24\.04 LTS Benchmark v1\.0\.0, \d+(\.\d+){1,4}( to \d+(\.\d+){1,4}| and \d+(\.\d+){1,4}|, \d+(\.\d+){1,4})*( \([^)]+\))?$").unwrap();
    let page = Regex::new(r"\(\d\)|^Kernel documentation, Documentation/[a-zA-Z0-9/_-]+\.rst|^Linux, [a-zA-Z/]+: |^Ubuntu, |^Lynis, [A-Z]{4}-\d{4}").unwrap();
    for control in controls() {
        for reference in &control.control.references {
            let good =
                if reference.starts_with("CIS") { cis.is_match(reference) } else { page.is_match(reference) };
            assert!(good, "{}: {reference}", control.name);
        }
    }
}

#[test]
fn what_a_control_writes_says_which_control_wrote_it() {
    for NamedControl { name, control } in controls() {
        for file in &control.files {
            let told = file.content.contains("hardening/controls/");
            let own = file.content.contains(&format!("Written by forge (hardening/controls/{name}.toml)."));
            assert_eq!(told, own, "{name}: {}", file.path);
        }
        for text in [&control.title, &control.why] {
            assert!(text.lines().all(|line| line.chars().count() <= 120), "{name}");
        }
        assert!(control.title.starts_with(char::is_lowercase) && !control.title.ends_with('.'), "{name}");
    }
}

/// Kubernetes sets these itself, or does not work with a hardened value.
#[test]
fn base_and_server_leave_kubernetes_its_kernel() {
    const PARAMETERS: [&str; 9] = [
        "ip_forward",
        "forwarding",
        "rp_filter",
        "max_user_namespaces",
        "unprivileged_userns_clone",
        "apparmor_restrict_unprivileged_userns",
        "bridge-nf-call",
        "modules_disabled",
        "overcommit_memory",
    ];
    const MODULES: [&str; 12] = [
        "overlay",
        "br_netfilter",
        "vxlan",
        "nf_conntrack",
        "iscsi_tcp",
        "dm_crypt",
        "squashfs",
        "udf",
        "nfs",
        "loop",
        "ip_tables",
        "nf_tables",
    ];
    for NamedControl { name, control } in promised() {
        for parameter in control.sysctl.keys() {
            assert!(!PARAMETERS.iter().any(|it| parameter.contains(it)), "{name} sets {parameter}");
        }
        for module in &control.modules_off {
            assert!(!MODULES.contains(&module.replace('-', "_").as_str()), "{name} takes {module} away");
        }
        let text = control.script.iter().chain(control.files.iter().map(|file| &file.content));
        for text in text {
            for harm in [
                "ip_forward",
                "rp_filter",
                "nft ",
                "iptables",
                "ufw enable",
                "cgroup",
                "user_namespaces",
                "NOPASSWD",
            ] {
                assert!(!text.contains(harm), "{name}: {harm}");
            }
            let limits = |line: &str| line.contains("noexec") && !line.contains("/dev/shm");
            assert!(!text.lines().any(limits), "{name} forbids programs somewhere");
        }
    }
}

#[test]
fn the_template_gives_its_reason_for_sudo_without_a_password() {
    let loaded = load(&root(), "ubuntu-noble", &Inputs::default()).unwrap();
    let hardening = &loaded.definition.hardening;
    assert_eq!(hardening.profile, Some(HardeningProfile::Server));
    let control = controls().into_iter().find(|it| it.name == "sudo-password").unwrap();
    assert!(control.control.references.iter().any(|it| it.ends_with(", 5.2.4")));
    assert!(matches!(hardening.state(&control), ControlState::Off { reason } if reason.contains("Ansible")));
    // Jumping over a clone to another host stays possible.
    let forwarding = controls().into_iter().find(|it| it.name == "ssh-forwarding").unwrap();
    assert!(!hardening.state(&forwarding).is_on());
}
