//! Builds that fail.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::thread;

use crate::root::Root;

/// A build that is to fail.
struct Fault<'a> {
    fakes: &'a [(&'a str, &'a str)],
    args: &'a [&'a str],
    /// The step in which it fails.
    step: &'a str,
    code: i32,
    /// What the error or a hint says.
    says: &'a str,
    /// The files that tell more, in the run's folder.
    evidence: &'a [&'a str],
}

/// The evidence of a machine that could still be asked for its screen.
const INSTALL: &[&str] = &["install.png", "install/serial.log", "install/qemu.log"];
const GUEST: &[&str] = &["guest.png", "guest/serial.log", "guest/qemu.log"];
const PROOF: &[&str] = &["proof.png", "proof/serial.log", "proof/qemu.log"];

impl Fault<'_> {
    fn happens(&self) {
        let root = Root::new();
        let notes = root.path("notes");
        fs::create_dir(&notes).unwrap();
        let fakes = [self.fakes, &[("FORGE_FAKE_NOTES", notes.to_str().unwrap())]].concat();
        let ended = root.start(&fakes, self.args).finish();
        let what = format!("{:?} {:?}\n{}", self.fakes, self.args, ended.stderr);
        ended.assert_code(self.code);
        root.assert_nothing_runs(&[]);
        root.assert_nothing_left();
        root.assert_no_artifact();

        assert_eq!(ended.last()["event"], "run_finished", "{what}");
        assert_eq!(ended.last()["outcome"], "failed", "{what}");
        let failed: Vec<_> = ended
            .events
            .iter()
            .filter(|event| event["event"] == "step_finished" && event["outcome"] == "failed")
            .map(|event| event["step"].as_str().unwrap())
            .collect();
        assert_eq!(failed, [self.step], "{what}");
        ended.assert_spans_sum();
        let errors = |it: &&str| it.starts_with("error: ") || it.contains("Z failed: ");
        assert_eq!(ended.stderr.lines().filter(errors).count(), 1, "{what}");
        assert!(ended.stderr.contains(self.says), "`{}` is not in {what}", self.says);
        assert!(!ended.stderr.contains(&root.secret), "{what}");

        let folder = root.evidence();
        let journal = fs::read_to_string(folder.join("events.jsonl")).unwrap();
        assert_eq!(journal, ended.stdout, "{what}");
        for name in self.evidence {
            let content =
                fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}\n{what}"));
            let picture = Path::new(name).extension() == Some(OsStr::from_bytes(b"png"));
            assert!(!picture || content.starts_with(b"\x89PNG"), "{name} is no picture\n{what}");
        }
    }
}

/// Makes faults happen side by side: builds mostly wait.
fn each_happens(faults: &[Fault<'_>]) {
    thread::scope(|scope| {
        for fault in faults {
            scope.spawn(|| fault.happens());
        }
    });
}

#[test]
fn inputs_and_disks_fail() {
    let wrong = format!("digest={}", "0".repeat(64));
    each_happens(&[
        Fault {
            fakes: &[],
            args: &["--var", &wrong],
            step: "fetch",
            code: 11,
            says: "000000",
            evidence: &[],
        },
        Fault {
            fakes: &[("FORGE_FAKE_IMG", "create:fail")],
            args: &[],
            step: "disks",
            code: 12,
            says: "No space left on device",
            evidence: &[],
        },
        Fault {
            fakes: &[("FORGE_FAKE_IMG", "convert:fail")],
            args: &[],
            step: "export",
            code: 12,
            says: "No space left on device",
            evidence: &["guest/serial.log"],
        },
    ]);
}

#[test]
fn qemu_fails() {
    each_happens(&[
        Fault {
            fakes: &[("FORGE_FAKE", "install:refuse")],
            args: &[],
            step: "install",
            code: 12,
            says: "asked to refuse to start",
            evidence: &["install/qemu.log", "install/qemu.args"],
        },
        Fault {
            fakes: &[("FORGE_FAKE", "install:crash")],
            args: &[],
            step: "install",
            code: 12,
            says: "Assertion `!fault' failed",
            evidence: &["install/qemu.log", "install/serial.log"],
        },
        Fault {
            fakes: &[("FORGE_FAKE", "guest:crash")],
            args: &[],
            step: "boot",
            code: 12,
            says: "Assertion `!fault' failed",
            evidence: &["guest/qemu.log", "guest/serial.log"],
        },
        Fault {
            fakes: &[("FORGE_FAKE", "proof:crash")],
            args: &[],
            step: "prove:proof",
            code: 12,
            says: "Assertion `!fault' failed",
            evidence: &["proof/qemu.log", "proof/serial.log"],
        },
    ]);
}

#[test]
fn a_qemu_that_dies_when_it_is_to_run_is_quoted() {
    each_happens(&[Fault {
        fakes: &[("FORGE_FAKE", "guest:crash-at-once")],
        args: &[],
        step: "boot",
        code: 12,
        says: "Assertion `!fault' failed",
        evidence: &["guest/qemu.log"],
    }]);
}

#[test]
fn a_guest_that_fails_is_quoted_from_its_console() {
    let root = Root::new();
    for (fault, step, args) in [
        ("install:no-network", "install", ["--var", "fetch=2s"]),
        ("guest:no-agent", "boot", ["--var", "boot=3s"]),
    ] {
        let ended = root.start(&[("FORGE_FAKE", fault)], &args).finish();
        let quoted = ended.events.iter().any(|event| {
            event["event"] == "output"
                && event["step"] == step
                && event["line"].as_str().is_some_and(|line| line.starts_with('['))
        });
        assert!(quoted, "nothing of the console in {step}: {:#?}", ended.events);
    }
}

/// A fault of the installer.
fn installer<'a>(
    fault: &'a [(&'a str, &'a str)],
    code: i32,
    says: &'a str,
    args: &'a [&'a str],
) -> Fault<'a> {
    Fault { fakes: fault, args, step: "install", code, says, evidence: INSTALL }
}

#[test]
fn the_installation_fails() {
    each_happens(&[
        installer(&[("FORGE_FAKE", "install:fail")], 13, "no disk is large enough", &[]),
        installer(&[("FORGE_FAKE", "install:fail")], 13, "its own logs are in", &[]),
        installer(&[("FORGE_FAKE", "install:reset")], 13, "the guest reset itself while", &[]),
        installer(&[("FORGE_FAKE", "install:reboots")], 13, "shutdown: poweroff", &[]),
        installer(&[("FORGE_FAKE", "install:panic")], 13, "kernel panicked while", &[]),
    ]);
}

const SHORT: &[&str] = &["--var", "fetch=1s", "--var", "install=3s"];

#[test]
fn an_installer_that_is_not_heard_of_is_explained() {
    each_happens(&[
        installer(&[("FORGE_FAKE", "install:no-network")], 17, "nothing fetched", SHORT),
        installer(&[("FORGE_FAKE", "install:silent")], 17, "has reported nothing in the 1.0 s since", SHORT),
        installer(&[("FORGE_FAKE", "install:unconfirmed")], 17, "nobody confirmed the installation", SHORT),
    ]);
}

#[test]
fn an_installer_that_does_not_come_to_its_end_is_explained() {
    each_happens(&[
        installer(&[("FORGE_FAKE", "install:hang")], 17, "it has been partitioning the disk for", SHORT),
        installer(&[("FORGE_FAKE", "install:updates")], 17, "it has been installing updates for", SHORT),
        installer(&[("FORGE_FAKE", "install:stays")], 17, "ago that it shuts down, and the machine", SHORT),
        installer(&[("FORGE_FAKE", "install:starved")], 17, "Killed process 812", SHORT),
        installer(&[("FORGE_FAKE", "install:again")], 13, "fetched the answers once more", SHORT),
    ]);
}

#[test]
fn what_the_installer_fails_at_is_explained() {
    each_happens(&[
        installer(&[("FORGE_FAKE", "install:refuses")], 13, "correct what it names", &[]),
        installer(&[("FORGE_FAKE", "install:mirror")], 13, "`apt.mirror-selection` and `proxy`", &[]),
        installer(&[("FORGE_FAKE", "install:disk")], 13, "`match: {size: largest}`", &[]),
        installer(&[("FORGE_FAKE", "install:package")], 13, "qemu-guest-agent is in `universe`", &[]),
        installer(&[("FORGE_FAKE", "install:command")], 13, "the `late-commands` from 0", &[]),
    ]);
}

#[test]
fn an_installed_system_that_is_not_heard_of_is_explained() {
    let boot = |fakes, says| Fault {
        fakes,
        args: &["--var", "boot=1s"],
        step: "boot",
        code: 17,
        says,
        evidence: GUEST,
    };
    each_happens(&[
        boot(&[("FORGE_FAKE", "guest:no-agent")], "the installer has installed the agent"),
        boot(&[("FORGE_FAKE", "guest:unheard")], "says that its guest agent runs, and it is not reached"),
        boot(&[("FORGE_FAKE", "guest:unbootable")], "its console says `[guest] No bootable device.`"),
        boot(&[("FORGE_FAKE", "guest:reinstalls")], "the answers were fetched again: the installer runs"),
        Fault {
            step: "prove:proof",
            evidence: PROOF,
            ..boot(&[("FORGE_FAKE", "proof:no-agent")], "sealing removed")
        },
    ]);
}

#[test]
fn an_agent_that_nothing_installs_is_explained() {
    let root = Root::new();
    let answers = root.path("http/mini/autoinstall.yaml.j2");
    let text = fs::read_to_string(&answers).unwrap();
    fs::write(&answers, text.replace("  packages: [qemu-guest-agent]\n", "")).unwrap();
    let ended = root.start(&[("FORGE_FAKE", "guest:no-agent")], &["--var", "boot=1s"]).finish();
    ended.assert_code(17);
    assert!(ended.stderr.contains("nothing in the answers installs one"), "{}", ended.stderr);
    assert!(ended.stderr.contains("add `qemu-guest-agent` to `packages`"), "{}", ended.stderr);
}

#[test]
fn a_system_that_still_asks_for_its_answers_is_no_template() {
    each_happens(&[Fault {
        fakes: &[("FORGE_FAKE", "guest:asks")],
        args: &[],
        step: "boot",
        code: 15,
        says: "the installed system asked forge for meta-data",
        evidence: GUEST,
    }]);
}

#[test]
fn the_guest_fails() {
    each_happens(&[
        Fault {
            fakes: &[],
            args: &["--var", "fault=step"],
            step: "step:greet",
            code: 14,
            says: "greet: exit code 3",
            evidence: &[GUEST, &["guest.log"]].concat(),
        },
        Fault {
            fakes: &[],
            args: &["--var", "fault=slow", "--var", "step=1s"],
            step: "step:greet",
            code: 14,
            says: "still running after 1.0 s",
            evidence: GUEST,
        },
        Fault {
            fakes: &[],
            args: &["--var", "fault=off"],
            step: "step:greet",
            code: 13,
            says: "the guest powered off",
            evidence: GUEST,
        },
        Fault {
            fakes: &[],
            args: &["--var", "fault=check"],
            step: "check",
            code: 15,
            says: "no fault is asked of this check",
            evidence: GUEST,
        },
        Fault {
            fakes: &[],
            args: &["--var", "fault=seal"],
            step: "seal",
            code: 14,
            says: "hardening/seal.sh: exit code 4",
            evidence: GUEST,
        },
        Fault {
            fakes: &[("FORGE_FAKE", "guest:no-power-off")],
            args: &["--var", "seal=2s"],
            step: "power-off",
            code: 17,
            says: "2.0 s",
            evidence: GUEST,
        },
    ]);
}

/// A fault of the clone.
fn proof<'a>(fakes: &'a [(&'a str, &'a str)], args: &'a [&'a str], says: &'a str) -> Fault<'a> {
    Fault { fakes, args, step: "prove:proof", code: 15, says, evidence: PROOF }
}

#[test]
fn a_clone_that_does_not_take_its_drive_is_explained() {
    each_happens(&[
        proof(
            &[("FORGE_FAKE", "proof:cloud-init-off")],
            &[],
            "off, because /etc/cloud/cloud-init.disabled is",
        ),
        proof(&[("FORGE_FAKE", "proof:no-drive")], &[], "no cloud-init drive is seen"),
        proof(
            &[("FORGE_FAKE", "proof:settings-left")],
            &[],
            "/etc/cloud/cloud.cfg.d/99-installer.cfg is left",
        ),
        proof(&[("FORGE_FAKE", "proof:other-source")], &[], "cloud-init took the data source none"),
        proof(
            &[("FORGE_FAKE", "proof:cloud-init-error")],
            &[],
            "in scripts-user; what cloud-init says of it",
        ),
        proof(&[("FORGE_FAKE", "proof:no-key")], &[], "is not in odin's authorized_keys"),
        proof(&[], &["--var", "fault=unsealed"], "the seal has to empty /etc/machine-id"),
    ]);
}

#[test]
fn a_clone_that_is_not_reached_or_not_grown_is_explained() {
    each_happens(&[
        proof(&[("FORGE_FAKE", "proof:network-left")], &[], "/etc/netplan/00-installer.yaml is left"),
        proof(&[("FORGE_FAKE", "proof:no-address")], &[], "it has none; cloud-init took the drive, and the"),
        proof(&[("FORGE_FAKE", "proof:no-sshd")], &[], "no SSH server listens: is ssh.socket or ssh.service"),
        proof(&[("FORGE_FAKE", "proof:ssh-port")], &[], "SSH listens on port 22 and not on 2222"),
        proof(&[("FORGE_FAKE", "proof:small")], &[], "a logical volume, which cloud-init does not grow"),
        proof(&[("FORGE_FAKE", "proof:waits")], &[], "waited for an interface until it gave up"),
    ]);
}

#[test]
fn what_only_the_build_should_know_is_left() {
    each_happens(&[
        Fault {
            fakes: &[],
            args: &["--var", "fault=unswept"],
            step: "sweep",
            code: 15,
            says: "/etc/systemd/system/forge-ready.service: the URL of forge's server, \
                   the address of forge's server, the token of forge's server; /etc/",
            evidence: GUEST,
        },
        Fault {
            fakes: &[("FORGE_FAKE", "install:ghost")],
            args: &[],
            step: "sweep-disk",
            code: 15,
            says: "; disk.qcow2, byte 53687",
            evidence: &["guest/serial.log"],
        },
        Fault {
            fakes: &[("FORGE_FAKE", "install:ghost")],
            args: &["--var", "format=raw"],
            step: "sweep-disk",
            code: 15,
            says: ": the token of forge's server)",
            evidence: &["guest/serial.log"],
        },
    ]);
}

#[test]
fn a_guest_that_cannot_be_looked_through_is_no_clean_one() {
    let sweep =
        |fault, says| Fault { fakes: &[], args: fault, step: "sweep", code: 13, says, evidence: GUEST };
    each_happens(&[
        sweep(&["--var", "fault=gone"], "the guest powered off"),
        sweep(
            &["--var", "fault=blind"],
            "not every file of the guest was looked at: grep: x: Input/output error",
        ),
    ]);
}

#[test]
fn the_proof_fails() {
    each_happens(&[
        proof(&[("FORGE_FAKE", "proof:hostname")], &[], "the clone took its hostname"),
        proof(&[("FORGE_FAKE", "proof:password")], &[], "password logins are refused"),
        proof(&[], &["--var", "fault=unsealed"], "the clone has a machine-id of its own"),
        proof(&[], &["--var", "fault=proof"], "no fault is asked of the proof"),
        Fault {
            fakes: &[("FORGE_FAKE", "config-drive:hostname")],
            args: &[],
            step: "prove:config-drive",
            code: 15,
            says: "its hostname is taken",
            evidence: &["config-drive/serial.log", "config-drive/qemu.log"],
        },
    ]);
}
