//! A root of its own for each test, with small templates.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::build::Build;
use crate::process::{Process, command_line, processes};
use crate::ssh;

/// The socket's name; in the root itself, as a socket's path must be short.
const SSH: &str = "ssh.sock";

/// How long after forge's end the last of its processes may still be there.
pub(crate) const GONE: Duration = Duration::from_secs(3);

/// The template that most tests build; `DIGEST` becomes that of its medium.
const TEMPLATE: &str = include_str!("mini.toml");

const SECOND_TEMPLATE: &str = r#"
schema = 1
extends = "mini"

[template]
name = "maxi"
vmid = 9001
"#;

pub(crate) const ANSWERS: &str = r#"#cloud-config
autoinstall:
  version: 1
  identity:
    hostname: mini
    username: odin
    password: "*"
  packages: [qemu-guest-agent]
  reporting:
    forge:
      type: webhook
      endpoint: {{ forge.report_url }}
      level: DEBUG
  late-commands:
    - echo {{ var.secret | shquote }} >/target/dev/null
    - |
      cd "$TARGET_MOUNT_POINT/etc/systemd/system"
      echo 'ExecStart=-curl -X POST {{ forge.ready_url }}' >forge-ready.service
      mkdir qemu-guest-agent.service.wants
      ln -s ../forge-ready.service qemu-guest-agent.service.wants/
  error-commands:
    - curl -T /var/log/installer.tar {{ forge.logs_url }}
  shutdown: poweroff
"#;

pub(crate) const SEAL: &str = r#"
case $fault in
seal) echo 'about to fail'; exit 4 ;;
gone) printf '#!/bin/sh\npoweroff\nsleep 60\n' >/usr/local/sbin/grep ;;
blind) printf '#!/bin/sh\necho grep: x: Input/output error >&2\n' >/usr/local/sbin/grep ;;
esac
[ "$fault" = unsealed ] || : >/etc/machine-id
rm -f /etc/ssh/ssh_host_*
[ "$fault" = unswept ] || rm -rf /var/log/installer /etc/systemd/system/forge-ready.service \
    /etc/systemd/system/qemu-guest-agent.service.wants
"#;

/// A root of its own for one test, with its own cache and its own mark on each process.
pub(crate) struct Root {
    folder: TempDir,
    place: PathBuf,
    _ssh: Runtime,
    pub(crate) iso: Vec<u8>,
    pub(crate) mark: String,
    pub(crate) secret: String,
}

impl Root {
    pub(crate) fn new() -> Self {
        Self::below("")
    }

    /// Makes a root in a subfolder of that name, or at once where the name is empty.
    pub(crate) fn below(subfolder: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join(subfolder);
        let write = |name: &str, content: &[u8]| {
            let path = place.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        let iso: Vec<u8> = (0..200_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        write("mini.iso", &iso);
        write("templates/mini/template.toml", TEMPLATE.replace("DIGEST", &sha256(&iso)).as_bytes());
        write("templates/maxi/template.toml", SECOND_TEMPLATE.as_bytes());
        write("http/mini/autoinstall.yaml.j2", ANSWERS.as_bytes());
        write("hardening/seal.sh", SEAL.as_bytes());
        let fake = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake");
        let profile = format!(
            "schema = 1\n[qemu]\nbinary = \"{}\"\naccelerator = \"tcg\"\ntimeout_factor = 1\n",
            fake.join("qemu-system-x86_64").display()
        );
        write("builders/fake.toml", profile.as_bytes());
        fs::create_dir(place.join("bin")).unwrap();
        for name in ["qemu-img", "git"] {
            symlink(fake.join(name), place.join("bin").join(name)).unwrap();
        }
        let mark = folder.path().file_name().unwrap().to_string_lossy().into_owned();
        let secret = format!(
            "hidden{:x}",
            Sha256::digest(&mark)[0..8].iter().fold(0_u64, |a, b| a << 8 | u64::from(*b))
        );
        let ssh = ssh::lend(&folder.path().join(SSH));
        Self { folder, place, _ssh: ssh, iso, mark, secret }
    }

    /// Returns where the stand-in's guests find their SSH server.
    pub(crate) fn ssh_socket(&self) -> PathBuf {
        self.folder.path().join(SSH)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }

    /// Returns a command that builds those templates, and shows it for people.
    pub(crate) fn command(&self, templates: &[&str]) -> Command {
        let mut command = self.forge("build");
        command.args(templates).args(["--on", "fake"]);
        command
    }

    /// Returns forge in this root, with that verb.
    pub(crate) fn forge(&self, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forge"));
        let search = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        command.arg("-C").arg(&self.place).arg(verb);
        command.env("PATH", search).env("XDG_CACHE_HOME", self.path("cache"));
        command.env("FORGE_TEST_MARK", &self.mark).env("FORGE_VAR_SECRET", &self.secret);
        command.env("FORGE_FAKE_SSH", self.ssh_socket());
        for name in ["FORGE_BUILDER", "FORGE_FAKE", "FORGE_FAKE_IMG", "XDG_RUNTIME_DIR", "http_proxy"] {
            command.env_remove(name);
        }
        command
    }

    /// Starts a build of `mini` with these `FORGE_FAKE*` variables and these further arguments.
    pub(crate) fn start(&self, fakes: &[(&str, &str)], args: &[&str]) -> Build {
        let mut command = self.command(&["mini"]);
        command.args(["--output", "json"]).args(args).envs(fakes.iter().copied());
        Build::start(command)
    }

    /// Builds once more, undisturbed, and makes sure that all is well and nothing of before is left.
    pub(crate) fn assert_next_build_works(&self) {
        self.start(&[], &[]).finish().assert_code(0);
        self.assert_whole("mini");
        self.assert_nothing_left();
    }

    /// Makes sure that the artifact is whole, and the only one.
    pub(crate) fn assert_whole(&self, template: &str) -> Value {
        let folder = self.path("artifacts").join(template);
        assert_eq!(names(&folder), ["1.0"], "in {}", folder.display());
        let text = fs::read(folder.join("1.0/manifest.json")).unwrap();
        let manifest: Value = serde_json::from_slice(&text).unwrap();
        let disk = fs::read(folder.join("1.0/disk.qcow2")).unwrap();
        assert_eq!(manifest["disk"]["sha256"], sha256(&disk).as_str());
        assert_eq!(manifest["disk"]["size"], disk.len());
        assert_sbom(&folder.join("1.0"), &manifest);
        manifest
    }

    pub(crate) fn assert_no_artifact(&self) {
        assert_eq!(names(&self.path("artifacts/mini")), Vec::<String>::new());
    }

    /// Makes sure that no run has left more than evidence: no disk, no socket, no partial artifact.
    pub(crate) fn assert_nothing_left(&self) {
        let runs = self.path(".forge/runs");
        let left: Vec<_> = files(&runs).into_iter().filter(|path| !is_evidence(path)).collect();
        assert_eq!(left, Vec::<PathBuf>::new());
        for run in names(&runs) {
            assert!(!runs.join(&run).join("work").exists(), "the work folder of {run} is left");
        }
        let partial = |name: &String| name.starts_with('.');
        assert!(!names(&self.path("artifacts/mini")).iter().any(partial), "a partial artifact is left");
    }

    /// Waits until no process that this root's builds have started is there any more.
    pub(crate) fn assert_nothing_runs(&self, started: &[Process]) {
        let deadline = Instant::now() + GONE;
        loop {
            let left: Vec<_> = processes()
                .into_iter()
                .filter(|process| self.owns(process.pid) || started.contains(process))
                .map(|process| format!("{} {}", process.pid, command_line(process.pid)))
                .collect();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "still running after {GONE:?}: {left:#?}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn owns(&self, pid: i32) -> bool {
        let mark = format!("FORGE_TEST_MARK={}", self.mark);
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|each| each == mark.as_bytes())
            || command_line(pid).contains(&self.mark)
    }

    /// Returns what a machine of the newest run has said so far.
    pub(crate) fn serial_log(&self, machine: &str) -> String {
        fs::read_to_string(self.evidence().join(machine).join("serial.log")).unwrap_or_default()
    }

    /// Returns the arguments that a machine of the newest run was started with.
    pub(crate) fn arguments(&self, machine: &str) -> Vec<String> {
        let text = fs::read_to_string(self.evidence().join(machine).join("qemu.args")).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// Makes sure that the installed system was started without anything of the seed, and its clones
    /// with nothing but their own.
    pub(crate) fn assert_seed_is_gone(&self) {
        for (machine, drive) in
            [("guest", None), ("proof", Some("cloudinit.iso")), ("config-drive", Some("cloudinit.iso"))]
        {
            let arguments = self.arguments(machine);
            assert!(!arguments.iter().any(|it| it == "-smbios" || it.contains("seed.iso")), "{arguments:#?}");
            let drives: Vec<_> = arguments.iter().filter(|it| it.contains("node-name=cd")).collect();
            assert_eq!(drives.len(), usize::from(drive.is_some()), "{machine}: {drives:?}");
            assert!(drives.iter().all(|it| drive.is_some_and(|name| it.contains(name))), "{drives:?}");
        }
    }

    /// Makes sure that nothing that a build leaves shows what is hidden.
    pub(crate) fn assert_hidden(&self, hidden: &[&str]) {
        let kept = [".forge", "artifacts", "cache"].map(|folder| files(&self.path(folder))).concat();
        assert!(kept.iter().any(|path| path.ends_with("guest.log")), "{kept:?}");
        for path in kept {
            let content = fs::read(&path).unwrap();
            let holds = |it: &str| content.windows(it.len()).any(|window| window == it.as_bytes());
            assert!(!hidden.iter().any(|it| holds(it)), "{} holds what is hidden", path.display());
        }
    }

    /// Returns the folder of the newest run.
    pub(crate) fn evidence(&self) -> PathBuf {
        let runs = self.path(".forge/runs");
        runs.join(names(&runs).pop().expect("there was a run"))
    }
}

/// Makes sure that the software bill of materials is the manifest's, and lists its packages.
pub(crate) fn assert_sbom(folder: &Path, manifest: &Value) {
    let text = fs::read(folder.join("sbom.cdx.json")).unwrap();
    let sbom = &manifest["sbom"];
    assert_eq!((&sbom["file"], &sbom["sha256"]), (&"sbom.cdx.json".into(), &sha256(&text).into()));
    assert_eq!(sbom["size"], text.len());
    let bill: Value = serde_json::from_slice(&text).unwrap();
    let components = bill["components"].as_array().unwrap();
    let listed: Vec<_> = components[1..].iter().map(|it| (&it["name"], &it["version"])).collect();
    let packages = manifest["packages"].as_array().unwrap();
    let facts: Vec<_> = packages.iter().map(|it| (&it["name"], &it["version"])).collect();
    assert!(!facts.is_empty());
    assert_eq!(listed, facts);
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// Tells whether a file in a run's folder is one of those that are kept for people.
fn is_evidence(path: &Path) -> bool {
    const ENDINGS: [&str; 6] = ["args", "json", "jsonl", "log", "png", "txt"];
    path.ends_with("lock")
        || path.parent().is_some_and(|folder| folder.ends_with("installer-logs"))
        || path.extension().is_some_and(|ending| ENDINGS.iter().any(|it| ending == *it))
}

/// Returns the names in a folder, sorted; none when it is not there.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Returns everything below a folder that is no folder.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for name in names(folder) {
        let path = folder.join(name);
        if path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}
