//! Every hardening control, switched off and on again in a root of the stand-in medium.
//!
//! A root in a folder has this machine's kernel, which a guest there can neither change nor see changed: of a
//! control's kernel parameters the file is looked at that sets them at boot, and commands that only a running
//! system can answer say that none runs. The proof of a build looks at both.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use forge::check::Finding;
use forge::communicator::Exec;
use forge::communicator::chroot::Writes;
use forge::definition::{Check, Hardening, HardeningProfile, NamedControl, Root, load_controls};
use forge::plan::{control_checks, hardening_step};
use futures_util::stream::{self, StreamExt as _};

use crate::build::{folder, root};
use crate::root::{Guest, output, prepared};

fn controls() -> Vec<NamedControl> {
    load_controls(&Root::at(root()).expect("a root")).expect("controls")
}

/// The snippet that makes a fresh root break a control that it keeps by itself.
fn breaker(control: &str) -> PathBuf {
    root().join("tests/e2e/controls/break").join(format!("{control}.sh"))
}

/// Tells whether a check can fail in a folder.
fn is_seen_in_a_folder(check: &Check) -> bool {
    let needs_system = |run: &str| {
        run.contains("[ -d /run/systemd/system ]") || run.contains("[ ! -d /run/systemd/system ]")
    };
    check.sysctl.is_none() && !check.command.as_ref().is_some_and(|command| needs_system(&command.run))
}

fn failed(findings: &[Finding]) -> BTreeSet<&str> {
    findings.iter().filter(|finding| !finding.passed).map(|finding| finding.name.as_str()).collect()
}

/// Everything that controls may change, so that two states can be compared.
const STATE: &str =
    "find /etc /boot /home /root /usr/share/pam-configs /usr/bin/su /var/log /var/lib/dpkg/statoverride \
    ! -type l -printf '%p %m %u %g\\n' | sort
find /etc /boot/grub /usr/share/pam-configs /var/lib/dpkg/statoverride -type f -exec sha256sum {} + | sort
find /etc -type l -printf '%p -> %l\\n' | sort";

/// Switches one control off and on where all others are on, and returns what is wrong with it.
async fn switch(control: &NamedControl, all: &[NamedControl], fresh: &Path) -> Vec<String> {
    let hardening = Hardening::default();
    let others: Vec<_> =
        all.iter().filter(|it| it.name != control.name && it.control.profile.is_some()).collect();
    let all_checks = control_checks(control);
    let checks: Vec<_> = all_checks.iter().filter(|check| check.sysctl.is_none()).collect();
    let guest = Guest::open(fresh, Writes::Forgotten).await;
    let mut wrong = Vec::new();
    if let Err(error) = guest.apply(&hardening_step(&hardening, &others)).await {
        return vec![format!("without it, the others: {error}")];
    }
    if let Ok(script) = fs::read_to_string(breaker(&control.name)) {
        let output = guest.exec(Exec::new(["/bin/sh", "-eu"]).stdin(script)).await;
        if !output.success() {
            return vec![format!("its breaker: {}", String::from_utf8_lossy(&output.stderr))];
        }
    }
    let off = guest.check(&checks).await;
    if failed(&off).is_empty() {
        wrong.push(
            "its checks hold without it, and tests/e2e/controls/break has nothing that breaks it".to_owned(),
        );
    }
    for (check, finding) in checks.iter().zip(&off) {
        if is_seen_in_a_folder(check) && finding.passed {
            wrong.push(format!("off, `{}` holds: {}", finding.name, finding.detail));
        }
    }
    let mut states = Vec::new();
    for time in ["once", "twice"] {
        if let Err(error) = guest.apply(&hardening_step(&hardening, &[control])).await {
            wrong.push(format!("applied {time}: {error}"));
            return wrong;
        }
        for finding in guest.check(&checks).await.iter().filter(|finding| !finding.passed) {
            wrong.push(format!("applied {time}, `{}` does not hold: {}", finding.name, finding.detail));
        }
        states.push(guest.shell(STATE).await);
    }
    let before: BTreeSet<_> = states[0].lines().collect();
    for line in states[1].lines().filter(|line| !before.contains(line)) {
        wrong.push(format!("applied twice, it changes: {line}"));
    }
    guest.close().await;
    wrong
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_control_fails_its_checks_when_it_is_off_and_keeps_them_when_it_is_on() {
    // It is on Ubuntu, and a control is about it.
    let Some(fresh) = prepared("controls", &["unattended-upgrades"]).await else { return };
    let (all, started) = (controls(), Instant::now());
    let only = std::env::var("FORGE_TEST_CONTROL").ok();
    let chosen = all.iter().filter(|it| only.as_ref().is_none_or(|only| it.name == *only));
    let tried = stream::iter(chosen)
        .map(|control| async { (control.name.as_str(), switch(control, &all, &fresh).await) })
        .buffer_unordered(2)
        .collect::<Vec<_>>()
        .await;
    println!("{} controls switched off and on in {:.0} s", tried.len(), started.elapsed().as_secs_f64());
    let mut report = String::new();
    for (name, wrong) in tried.iter().filter(|(_, wrong)| !wrong.is_empty()) {
        write!(report, "\n{name}:\n  {}", wrong.join("\n  ")).expect("writing to a string succeeds");
    }
    assert!(report.is_empty(), "{report}");
    // A breaker that belongs to no control breaks nothing.
    for entry in fs::read_dir(breaker("x").parent().expect("a folder")).expect("breakers").flatten() {
        let name = entry.file_name().to_string_lossy().trim_end_matches(".sh").to_owned();
        assert!(all.iter().any(|it| it.name == name), "there is no control {name}");
    }
}

/// Takes away what controls are about and a container may lack.
const BARE: &str = "export SUDO_FORCE_REMOVE=yes
dpkg --purge --force-all apparmor cron cron-daemon-common grub-common grub2-common kmod logrotate \
    openssh-server openssh-sftp-server sudo systemd-resolved systemd-timesyncd unattended-upgrades >/dev/null 2>&1 || true
rm -rf /etc/cron* /etc/ssh /etc/apparmor.d /boot/grub /var/lib/private
for program in sshd sudo visudo crontab apparmor_parser modprobe; do
    ! command -v \"$program\" || exit 1
done";

#[tokio::test]
async fn controls_hold_in_a_container_that_lacks_what_they_are_about() {
    let Some(fresh) = prepared("controls", &["unattended-upgrades"]).await else { return };
    let guest = Guest::open(&fresh, Writes::Forgotten).await;
    guest.shell(BARE).await;
    let all = controls();
    let applied: Vec<_> = all
        .iter()
        .filter(|it| it.control.profile.is_some() && it.control.not_in_container.is_none())
        .collect();
    let step = hardening_step(&Hardening::default(), &applied);
    guest.apply(&step).await.unwrap_or_else(|error| panic!("{error}"));
    let checks: Vec<_> = applied.iter().flat_map(|control| control_checks(control)).collect();
    let findings = guest.check(&checks.iter().collect::<Vec<_>>()).await;
    for finding in &findings {
        println!("{}: {}", finding.name, finding.detail);
    }
    assert_eq!(failed(&findings), BTreeSet::new());
    for word in ["cron is not installed", "sudo is not installed", "no SSH server is installed"] {
        assert!(findings.iter().any(|finding| finding.detail.contains(word)), "nobody says that {word}");
    }
    guest.close().await;
}

/// What Kubernetes, snaps and Ansible need, as far as a folder shows it.
const NEEDED: &str = r#"
version=$(ls /usr/lib/modules)
for module in overlay br_netfilter vxlan nf_conntrack iscsi_tcp dm_crypt squashfs udf; do
    loads=$(modprobe --set-version "$version" --show-depends "$module")
    case $loads in *install\ /bin/*) echo "$module: $loads" >&2; exit 1 ;; esac
done
# Says what is there that must not be.
refuse() { if grep . >&2; then exit 1; fi; }
grep -rhsE '^-?[a-z].*(forward|rp_filter|userns|user_namespaces)' /etc/sysctl.d | refuse
awk '$3 == "swap" || ($2 == "/tmp" || $2 ~ "^/var") && $4 ~ "noexec"' /etc/fstab | refuse
for unit in nftables.service ufw.service forge-firewall.service tmp.mount; do
    systemctl is-enabled "$unit" 2>/dev/null || true
done | grep -x enabled | refuse
grep -rsE '(unified_cgroup_hierarchy|user_namespace|apparmor=0)' /etc/default/grub /etc/default/grub.d /etc/systemd/system.conf.d | refuse
python3 -c 'import json, ssl, subprocess'
mkdir -p /run/sshd
sshd -T | grep -xE 'allowtcpforwarding (yes|local)'
sshd -T | grep -x 'disableforwarding no'
"#;

#[tokio::test]
async fn kubernetes_and_ansible_find_what_they_need_with_base_and_with_server() {
    let Some(fresh) = prepared("controls", &["unattended-upgrades"]).await else { return };
    for profile in [HardeningProfile::Base, HardeningProfile::Server] {
        let guest = Guest::open(&fresh, Writes::Forgotten).await;
        let all = controls();
        let applied: Vec<_> =
            all.iter().filter(|it| it.control.profile.is_some_and(|lowest| lowest <= profile)).collect();
        let step = hardening_step(&Hardening::default(), &applied);
        guest.apply(&step).await.unwrap_or_else(|error| panic!("{error}"));
        println!("{}: {} controls\n{}", profile.as_str(), applied.len(), guest.shell(NEEDED).await);
        guest.close().await;
    }
}

#[tokio::test]
async fn the_firewalls_rules_load_and_let_in_the_ports_that_are_named() {
    let Some(fresh) = prepared("controls", &["unattended-upgrades"]).await else { return };
    let guest = Guest::open(&fresh, Writes::Forgotten).await;
    guest.shell("cp /usr/bin/true /usr/sbin/nft").await;
    let env = [("SSH_PORT", "2222"), ("FIREWALL_TCP", "80 443"), ("FIREWALL_UDP", "")];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let (hardening, all) = (Hardening { env, ..Hardening::default() }, controls());
    let firewall = all.iter().find(|it| it.name == "firewall").expect("a control");
    guest.apply(&hardening_step(&hardening, &[firewall])).await.unwrap_or_else(|error| panic!("{error}"));
    let rules = folder("firewall").join("firewall.nft");
    fs::write(&rules, guest.file("/etc/forge/firewall.nft").await).expect("rules");
    guest.close().await;
    // Into a network of their own; twice, as when the service starts anew.
    let script = "nft list ruleset || { echo 'NOT RUN: this kernel has no nftables'; exit 0; }
        nft -f \"$1\" && nft -f \"$1\" && nft list ruleset";
    let listed = output(Command::new("unshare").args(["--net", "sh", "-euc", script, "sh"]).arg(&rules));
    println!("{listed}");
    if !listed.contains("NOT RUN") {
        assert_eq!(listed.matches("chain input").count(), 1);
        for rule in ["policy drop", "tcp dport 2222 accept", "tcp dport { 80, 443 } accept"] {
            assert!(listed.contains(rule), "{rule}");
        }
        assert!(!listed.contains("udp dport {"));
    }
}
