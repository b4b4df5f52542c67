//! The real `hardening/seal.sh` in a real root, with everything that an installation leaves in it.
//!
//! The root is the one that the stand-in medium installs. In it are cloud-init, apt and the shell's tools as
//! they are; what would reach beyond a root (systemd, swap, trimming) is played, and only as it may be called.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use forge::communicator::{Communicator, CommunicatorError, Exec, Output as Answer};
use forge::sweep::{self, Value};
use futures_util::future::BoxFuture;

use crate::build::{folder, medium, root};

/// What stands in everything that is left over.
const TOKEN: &str = "5b1f0a6e9c3d47288f60d1e2b3a4c5968778695a";
const WANTED_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA== ops@example.org";

/// The installer's own hook, which also says that it ran.
const HOOK: &str = "#!/bin/sh\necho hook >>/calls\nrm -f /etc/cloud/cloud.cfg.d/99-installer.cfg \
                    /etc/cloud/cloud.cfg.d/90-installer-network.cfg \
                    /etc/cloud/cloud.cfg.d/20-disable-cc-dpkg-grub.cfg /etc/cloud/ds-identify.cfg \
                    /etc/cloud/cloud-init.disabled\n";

/// Programs that would reach beyond the root, with the first words that each may be called with.
const PLAYED: [(&str, &[&str]); 4] = [
    ("systemctl", &["stop apt-daily.timer ", "mask --quiet --runtime apt-daily.timer "]),
    ("journalctl", &["--relinquish-var"]),
    ("swapoff", &["--all"]),
    ("fstrim", &["--all --verbose"]),
];

/// What an installation leaves that breaks clones, and where; all of it has to be gone.
const LEFT_OVERS: [(&str, &[&str]); 22] = [
    ("the installer's settings of cloud-init", &["/etc/cloud/cloud.cfg.d/99-installer.cfg"]),
    ("the installer's network for cloud-init", &["/etc/cloud/cloud.cfg.d/90-installer-network.cfg"]),
    ("the installer's switch for grub_dpkg", &["/etc/cloud/cloud.cfg.d/20-disable-cc-dpkg-grub.cfg"]),
    ("the policy of ds-identify", &["/etc/cloud/ds-identify.cfg"]),
    ("the switch that turns cloud-init off", &["/etc/cloud/cloud-init.disabled"]),
    ("the installer's hook itself", &["/etc/cloud/clean.d/99-installer"]),
    ("the build's network", &["/etc/netplan/50-cloud-init.yaml"]),
    (
        "what older installers leave of the network",
        &[
            "/etc/netplan/00-installer-config.yaml",
            "/etc/cloud/cloud.cfg.d/subiquity-disable-cloudinit-networking.cfg",
        ],
    ),
    ("cloud-init's word on SSH passwords", &["/etc/ssh/sshd_config.d/50-cloud-init.conf"]),
    ("a machine-id of D-Bus", &["/var/lib/dbus/machine-id"]),
    (
        "SSH host keys",
        &[
            "/etc/ssh/ssh_host_ecdsa_key",
            "/etc/ssh/ssh_host_ed25519_key",
            "/etc/ssh/ssh_host_ed25519_key.pub",
            "/etc/ssh/ssh_host_rsa_key",
        ],
    ),
    (
        "logs",
        &[
            "/var/log/installer/autoinstall-user-data",
            "/var/log/installer/curtin-install/subiquity-curthooks.conf",
            "/var/log/installer",
            "/var/log/cloud-init.log",
            "/var/log/cloud-init-output.log",
            "/var/log/journal/0123456789abcdef0123456789abcdef/system.journal",
            "/var/log/syslog.1",
            "/var/log/dpkg.log.2.gz",
        ],
    ),
    (
        "cloud-init's state",
        &[
            "/var/lib/cloud/instances/iid/user-data.txt",
            "/var/lib/cloud/seed/nocloud/user-data",
            "/var/lib/cloud/data/instance-id",
            "/var/lib/cloud",
        ],
    ),
    (
        "the random seed and the secret of credentials",
        &[
            "/var/lib/systemd/random-seed",
            "/var/lib/systemd/credential.secret",
            "/boot/efi/loader/random-seed",
        ],
    ),
    ("the swap file", &["/swap.img"]),
    ("cloud-init's rule for sudo", &["/etc/sudoers.d/90-cloud-init-users"]),
    ("root's SSH keys", &["/root/.ssh/authorized_keys", "/root/.ssh"]),
    (
        "apt's lists and packages",
        &["/var/lib/apt/lists/mirror_InRelease", "/var/cache/apt/archives/x_1_amd64.deb"],
    ),
    (
        "caches, crashes and what is temporary",
        &[
            "/var/cache/apt/pkgcache.bin",
            "/var/cache/pollinate/seeded",
            "/var/crash/_usr_bin_x.0.crash",
            "/var/lib/snapd/cache/x",
            "/tmp/x",
            "/var/tmp/.x",
            "/home/odin/.cache/x",
            "/root/.cache/x",
        ],
    ),
    ("shell histories", &["/root/.bash_history", "/home/odin/.bash_history", "/home/odin/.python_history"]),
    ("the names of NVMe and ZFS hosts", &["/etc/nvme/hostid", "/etc/nvme/hostnqn", "/etc/hostid"]),
    (
        "the answers and what told forge of the agent",
        &[
            "/autoinstall.yaml",
            "/etc/systemd/system/forge-ready.service",
            "/etc/systemd/system/qemu-guest-agent.service.wants/forge-ready.service",
        ],
    ),
];

/// A root that is unpacked for the test.
struct Guest(PathBuf);

impl Drop for Guest {
    fn drop(&mut self) {
        // What cannot be removed is in the build's own folder.
        let _removed = fs::remove_dir_all(&self.0);
    }
}

impl Guest {
    /// Unpacks the system that the stand-in medium installs.
    fn unpack() -> Self {
        let folder = folder("seal");
        let squashed = folder.join("target.squashfs");
        let guest = Self(folder.join("root"));
        drop(Self(guest.0.clone()));
        let _older = fs::remove_file(&squashed);
        let mut extract = Command::new("xorriso");
        extract.args(["-osirrox", "on", "-indev"]).arg(medium());
        extract.args(["-extract", "/casper/target.squashfs"]).arg(&squashed);
        succeed(&mut extract);
        succeed(
            Command::new("unsquashfs").args(["-quiet", "-no-progress", "-dest"]).arg(&guest.0).arg(&squashed),
        );
        fs::remove_file(squashed).expect("it was just made");
        guest
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    fn write(&self, path: &str, content: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("folders can be made");
        // What is written through a link would be another file.
        let _link = fs::remove_file(&path);
        fs::write(&path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    fn write_program(&self, path: &str, content: &str) {
        self.write(path, content);
        fs::set_permissions(self.path(path), fs::Permissions::from_mode(0o755)).expect("a mode");
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn exists(&self, path: &str) -> bool {
        self.path(path).symlink_metadata().is_ok()
    }

    /// Puts everything into the root that an installation leaves.
    fn plant(&self) {
        self.write("/etc/os-release", "ID=ubuntu\nVERSION_ID=\"24.04\"\n");
        self.run("useradd --create-home --uid 1000 --groups sudo odin", &[]);
        for path in LEFT_OVERS.iter().flat_map(|(_, paths)| *paths) {
            // Folders that are named beside what is in them.
            if !self.path(path).is_dir() {
                self.write(path, &format!("# {TOKEN}\n"));
            }
        }
        self.write_program("/etc/cloud/clean.d/99-installer", &format!("{HOOK}# {TOKEN}\n"));
        self.write("/etc/machine-id", "0123456789abcdef0123456789abcdef\n");
        self.write("/var/log/auth.log", TOKEN);
        self.write("/var/log/apt/history.log", TOKEN);
        let fstab = "UUID=0a0a / ext4 defaults 0 1\n/swap.img\tnone\tswap\tsw\t0\t0\n";
        self.write("/etc/fstab", fstab);
        self.write("/etc/hostname", "tpl\n");
        self.write("/etc/iscsi/initiatorname.iscsi", "InitiatorName=iqn.2004-10.com.ubuntu:01:a0b1\n");
        self.write("/home/odin/.ssh/authorized_keys", &format!("ssh-ed25519 AAAA {TOKEN}\n{WANTED_KEY}\n"));
        self.write("/home/odin/.ssh/known_hosts", TOKEN);
        self.write("/etc/sudoers.d/50-forge", "odin ALL=(ALL) NOPASSWD:ALL\n");
        self.write("/etc/cloud/cloud.cfg.d/99-forge.cfg", "datasource_list: [ConfigDrive, NoCloud]\n");
        for (name, calls) in PLAYED {
            let allowed: Vec<_> = calls.iter().map(|call| format!("'{call}'*")).collect();
            let script = format!(
                "#!/bin/sh\ncase \"$*\" in {}) echo \"{name} $*\" >>/calls ;; \
                 *) echo \"{name} was called with $*\" >>/calls; exit 64 ;; esac\n",
                allowed.join(" | ")
            );
            self.write_program(&format!("/usr/local/sbin/{name}"), &script);
        }
        fs::create_dir_all(self.path("/run/systemd/system")).expect("folders can be made");
    }

    /// Runs a script in the root as the agent does, but with no right over anything outside of it.
    fn run(&self, script: &str, environment: &[(&str, &str)]) -> Output {
        let proc = self.path("/proc");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--uts", "--ipc", "--net"]);
        command.arg(format!("--mount-proc={}", proc.display())).arg("chroot").arg(&self.0);
        command.args(["setpriv", "--inh-caps=-all", "--no-new-privs"]);
        command.arg("--bounding-set=-all,+chown,+dac_override,+fowner,+fsetid");
        command.args(["/bin/sh", "-eu"]).env_clear().envs(environment.iter().copied());
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin").env("HOME", "/root");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("unshare is part of util-linux");
        child.stdin.take().expect("a pipe").write_all(script.as_bytes()).expect("sh reads its script");
        child.wait_with_output().expect("it ends")
    }

    fn seal(&self) -> Output {
        let script = fs::read_to_string(root().join("hardening/seal.sh")).expect("the seal script");
        let environment = [
            ("USER_NAME", "odin"),
            ("AUTHORIZED_KEYS", WANTED_KEY),
            ("FORGE_ABSENT", "/home/odin/.bash_history\n/home/odin/.cache"),
            ("FORGE_TRIM", "yes"),
        ];
        self.run(&script, &environment)
    }

    /// Returns in how many files secrets are found.
    async fn secrets(&self) -> usize {
        let values = Value::of("the token", TOKEN);
        let root = self.0.to_str().expect("a plain path");
        let report = sweep::guest::look(&values, root, &Host, Duration::from_mins(1)).await;
        let report = report.expect("the root can be looked through");
        println!(
            "{} places with secrets; {} that packages deliver",
            report.findings.len(),
            report.public.len()
        );
        report.findings.len()
    }
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// This machine in the place of a guest.
struct Host;

impl Communicator for Host {
    fn exec<'a>(&'a self, command: &'a Exec) -> BoxFuture<'a, Result<Answer, CommunicatorError>> {
        let mut process = Command::new(&command.argv[0]);
        process.args(&command.argv[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = process.spawn().expect("a shell");
        child.stdin.take().expect("a pipe").write_all(&command.stdin).expect("it reads its input");
        let Output { status, stdout, stderr } = child.wait_with_output().expect("it ends");
        let answer = Answer { code: status.code(), signal: None, stdout, stderr, truncated: false };
        Box::pin(async move { Ok(answer) })
    }

    fn put_file<'a>(&'a self, _: &'a str, _: &'a [u8]) -> BoxFuture<'a, Result<(), CommunicatorError>> {
        unreachable!("who only looks writes nothing")
    }

    fn get_file<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Vec<u8>, CommunicatorError>> {
        unreachable!("who only looks needs no file whole")
    }

    fn wait_for_reboot<'a>(
        &'a self,
        _: &'a str,
        _: Duration,
    ) -> BoxFuture<'a, Result<(), CommunicatorError>> {
        unreachable!("who only looks reboots nothing")
    }
}

#[test]
fn sealing_removes_every_left_over_of_an_installation() {
    if !rustix::process::geteuid().is_root() {
        println!("NOT RUN: a root of its own takes root");
        return;
    }
    let guest = Guest::unpack();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    assert_eq!(runtime.block_on(guest.secrets()), 0, "before anything is installed");
    guest.plant();
    let paths = LEFT_OVERS.iter().flat_map(|(_, paths)| *paths);
    let planted = paths.filter(|path| guest.path(path).is_file()).count();
    let found = runtime.block_on(guest.secrets());
    assert!(planted > 40 && found >= planted, "{found} places are found where {planted} are planted");

    let started = Instant::now();
    let output = guest.seal();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    println!("sealed in {:.1} s", started.elapsed().as_secs_f64());

    let mut left = Vec::new();
    let mut row = |name: &'static str, holds: bool| {
        println!("{} {name}", if holds { "✓" } else { "✗" });
        if !holds {
            left.push(name);
        }
    };
    for (name, paths) in LEFT_OVERS {
        row(name, !paths.iter().any(|path| guest.exists(path)));
    }
    row("the machine-id is there, and empty", guest.read("/etc/machine-id").is_empty());
    row("other logs are empty", guest.read("/var/log/auth.log").is_empty());
    row("apt's logs are empty", guest.read("/var/log/apt/history.log").is_empty());
    row("swap is not mounted, the root is", guest.read("/etc/fstab") == "UUID=0a0a / ext4 defaults 0 1\n");
    row("the host's name stays for cloud-init to change", guest.read("/etc/hostname") == "tpl\n");
    row(
        "the iSCSI initiator gets a name of its own",
        guest.read("/etc/iscsi/initiatorname.iscsi") == "GenerateName=yes\n",
    );
    row(
        "only wanted SSH keys stay",
        guest.read("/home/odin/.ssh/authorized_keys") == format!("{WANTED_KEY}\n")
            && !guest.exists("/home/odin/.ssh/known_hosts"),
    );
    row(
        "the template's own settings stay",
        guest.exists("/etc/sudoers.d/50-forge") && guest.exists("/etc/cloud/cloud.cfg.d/99-forge.cfg"),
    );
    assert!(left.is_empty(), "{left:#?}\n{said}");
    assert_calls(&guest.read("/calls"));
    assert_eq!(runtime.block_on(guest.secrets()), 0, "after sealing");

    assert_refusals(&guest);
}

/// Makes sure that the installer's hook ran, and that what would write again was stopped before it, in order.
fn assert_calls(calls: &str) {
    let calls: Vec<_> = calls.lines().collect();
    let firsts: Vec<_> =
        calls.iter().map(|call| call.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect();
    let expected = [
        "systemctl stop",
        "systemctl mask",
        "journalctl --relinquish-var",
        "hook",
        "swapoff --all",
        "fstrim --all",
    ];
    assert_eq!(firsts, expected, "{calls:#?}");
    for unit in ["systemd-random-seed.service", "rsyslog.service", "unattended-upgrades.service"] {
        assert!(calls[0].contains(unit) && calls[1].contains(unit), "{unit}: {calls:#?}");
    }
}

/// What is no left-over of an installation, but must not be there, is refused by name; and where D-Bus has no
/// machine-id of its own, its link stays.
fn assert_refusals(guest: &Guest) {
    symlink("/etc/machine-id", guest.path("/var/lib/dbus/machine-id")).expect("a link");
    assert!(guest.seal().status.success(), "sealing again does no harm");
    assert!(guest.exists("/var/lib/dbus/machine-id"));
    for (path, content, says) in [
        (
            "/etc/default/grub.d/50-curtin-settings.cfg",
            "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet autoinstall ds=nocloud;s=http://10.0.2.2/\"\n",
            "still there: arguments of the build in the boot configuration",
        ),
        (
            "/etc/udev/rules.d/70-persistent-net.rules",
            "# eth0\n",
            "still there: /etc/udev/rules.d/70-persistent-net.rules",
        ),
    ] {
        guest.write(path, content);
        let output = guest.seal();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{path}: {said}");
        assert!(said.contains(says) && said.contains("sealing is not complete: 1 left"), "{path}: {said}");
        println!("✓ refused: {path}");
        fs::remove_file(guest.path(path)).expect("it was just written");
    }
}
