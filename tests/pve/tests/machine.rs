//! Machines by real QEMU, under emulation and with nothing but firmware, and by the stand-in of the
//! fast tier, which has a guest agent.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pve_sim::hypervisor::{AgentError, Hypervisor as _, Machine, Network, Spec, Volume};
use pve_sim::machine::{Qemu, firmware};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

/// A VM of that configuration: `local:NAME,…` volumes are sparse files of 64 MiB, with the suffix's
/// format; what QEMU is not given a value for is emulated.
fn spec(folder: &TempDir, config: &str) -> Spec {
    let pair = |line: &str| line.split_once(": ").map(|(key, value)| (key.to_owned(), value.to_owned()));
    let mut config: BTreeMap<_, _> = config.lines().filter_map(pair).collect();
    config.entry("kvm".to_owned()).or_insert_with(|| "0".to_owned());
    config.entry("memory".to_owned()).or_insert_with(|| "64".to_owned());
    let volids = config.values().filter_map(|value| value.split(',').next());
    let volumes = volids.filter(|volid| volid.starts_with("local:")).map(|volid| {
        let path = folder.path().join(volid.trim_start_matches("local:"));
        (volid.to_owned(), disk(path))
    });
    Spec {
        vmid: 100,
        volumes: volumes.collect(),
        folder: folder.path().join("run"),
        qemu: "qemu-system-x86_64".into(),
        network: Network::User,
        config,
    }
}

fn disk(path: PathBuf) -> Volume {
    let format = if path.to_string_lossy().contains(".qcow2") { "qcow2" } else { "raw" };
    if !path.exists() {
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-f", format]);
        assert!(command.arg(&path).arg("64M").status().unwrap().success());
    }
    Volume { path, format: format.to_owned() }
}

async fn start(spec: Spec) -> Arc<dyn Machine> {
    Qemu::default().start(spec).await.unwrap()
}

async fn start_error(spec: Spec) -> String {
    Qemu::default().start(spec).await.err().unwrap()
}

/// Returns what a machine's serial port has said.
fn serial_log(machine: &Arc<dyn Machine>) -> String {
    let socket = machine.serial_socket(0).unwrap();
    fs::read_to_string(socket.with_extension("log")).unwrap()
}

fn alive(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !status.is_empty() && !status.contains(") Z ")
}

async fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

// Real QEMU ---------------------------------------------------------------------------------------

#[tokio::test]
async fn a_machine_is_watched_driven_and_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let config =
        "virtio0: local:disk.raw,iothread=1\nide2: none,media=cdrom\nserial0: socket\nserial1: socket";
    let machine = start(spec(&folder, config)).await;
    let status = machine.status();
    assert!(status.running && status.qmp == "running", "{status:?}");
    assert!(alive(status.pid.unwrap()));

    machine.send_key("ctrl-alt-delete").await.unwrap();
    let error = machine.send_key("nosuch").await.unwrap_err();
    assert!(error.contains("nosuch") && error.contains('\r'), "{error:?}");
    assert_eq!(machine.hmp("info status").await.unwrap(), "VM status: running\r\n");
    assert!(machine.hmp("nosuch").await.unwrap().starts_with("unknown command: 'nosuch'"));

    machine.hmp("stop").await.unwrap();
    wait_until("the pause", || machine.status().qmp == "paused").await;
    machine.hmp("cont").await.unwrap();
    wait_until("the pause's end", || machine.status().qmp == "running").await;

    machine.resize("virtio0", 128 * 1024 * 1024).await.unwrap();
    assert_eq!(fs::metadata(folder.path().join("disk.raw")).unwrap().len(), 128 * 1024 * 1024);
    let medium = disk(folder.path().join("medium.raw"));
    machine.change_medium("ide2", Some(&medium)).await.unwrap();
    assert!(machine.hmp("info block").await.unwrap().contains("medium.raw"));
    machine.change_medium("ide2", None).await.unwrap();
    assert!(!machine.hmp("info block").await.unwrap().contains("medium.raw"));

    assert!(machine.serial_socket(1).unwrap().exists() && machine.serial_socket(2).is_none());
    assert_eq!(machine.agent("guest-ping", json!({}), PATIENCE).await, Err(AgentError::NotRunning));
    machine.powerdown().await.unwrap();

    let pid = machine.status().pid.unwrap();
    machine.stop().await;
    assert!(!alive(pid));
    let status = machine.status();
    assert!(!status.running && status.qmp == "stopped" && status.pid.is_none(), "{status:?}");
    machine.wait_for_end().await;
    machine.stop().await;
}

#[tokio::test]
async fn vnc_greets_and_lets_nobody_in_without_a_password() {
    let folder = tempfile::tempdir().unwrap();
    let machine = start(spec(&folder, "vga: std")).await;
    machine.set_vnc_password("secret12").await.unwrap();
    let mut client = UnixStream::connect(machine.vnc_socket()).await.unwrap();
    let mut greeting = [0; 12];
    client.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"RFB 003.008\n");
    client.write_all(&greeting).await.unwrap();
    let mut kinds = [0; 2];
    client.read_exact(&mut kinds).await.unwrap();
    // One kind, and that is VNC's own (RFC 6143, section 7.2.2).
    assert_eq!(kinds, [1, 2]);
    machine.stop().await;
}

#[tokio::test]
async fn a_reset_ends_a_machine_that_is_told_not_to_reboot_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let machine = start(spec(&folder, "reboot: 0\nvirtio0: local:disk.qcow2,discard=on")).await;
    machine.reset().await.unwrap();
    timeout(PATIENCE, machine.wait_for_end()).await.unwrap();
    assert_eq!(machine.status().qmp, "stopped");

    let machine = start(spec(&folder, "virtio0: local:disk.qcow2")).await;
    machine.reset().await.unwrap();
    assert_eq!(machine.hmp("info status").await.unwrap(), "VM status: running\r\n");
    machine.stop().await;
}

/// Each bus, firmware and device that is given to QEMU is one that it takes.
#[tokio::test]
async fn qemu_takes_every_kind_of_configuration() {
    let efi = "bios: ovmf\nefidisk0: local:vars.raw,efitype=4m,pre-enrolled-keys=0\n";
    for (name, config) in [
        (
            "q35",
            "machine: q35\nide0: none,media=cdrom\nide1: local:a,media=cdrom\nide2: local:b\nide3: local:c",
        ),
        ("pc", "ide0: none,media=cdrom\nide1: local:a,media=cdrom\nide2: local:b\nide3: local:c"),
        ("lsi", "scsi0: local:a\nscsi7: local:b,ssd=1\nscsi3: local:c,media=cdrom"),
        ("single", "scsihw: virtio-scsi-single\nscsi0: local:a,iothread=1\nscsi30: local:b.qcow2,ro=1"),
        ("scsi", "machine: q35\nscsihw: virtio-scsi-pci\nscsi0: local:a,serial=x%2Cy\nscsi20: local:b"),
        ("sata", "machine: q35\nsata0: local:a\nsata5: none,media=cdrom\nvirtio15: local:b"),
        ("serial", "vga: serial0\nserial0: socket\nagent: 1\nacpi: 0\nlocaltime: 1"),
        ("isa", "vga: none\nagent: enabled=1,type=isa\nballoon: 0\ncpu: x86-64-v2-AES"),
        (
            "nics",
            "net0: virtio=BC:24:11:00:00:01,bridge=x\nnet1: e1000=BC:24:11:00:00:02\nnet6: rtl8139=BC:24:11:00:00:03",
        ),
        (
            "rest",
            "rng0: /dev/urandom,max_bytes=0\nvmgenid: b7eaab74-a60e-4c0f-b636-3c1dbf936e6a\ncores: 2\nsockets: 2\n\
                  smbios1: base64=1,serial=YSxi,uuid=7b10d7af-b932-4c66-b2c3-3996152ec465\nname: a.b\ncpu: max",
        ),
        ("efi", &format!("{efi}machine: pc")),
        ("secure", &format!("{efi}machine: q35\ntpmstate0: local:tpm,version=v2.0\nvirtio0: local:a")),
        ("no-vars", "bios: ovmf\nmachine: q35"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(firmware("efitype=4m", true).vars, folder.path().join("vars.raw")).unwrap();
        let machine = Qemu::default().start(spec(&folder, config)).await;
        let machine = machine.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(machine.status().running, "{name}");
        assert_eq!(fs::read_to_string(folder.path().join("run/qemu.log")).unwrap(), "", "{name}");
        machine.stop().await;
    }
}

#[tokio::test]
async fn what_does_not_start_says_why_as_proxmox_does() {
    let folder = tempfile::tempdir().unwrap();
    let error = start_error(spec(&folder, "cpu: host")).await;
    assert!(error.contains("CPU model 'host' requires KVM") && error.lines().count() == 1, "{error}");

    let mut without = spec(&folder, "virtio0: local:gone.raw");
    fs::remove_file(folder.path().join("gone.raw")).unwrap();
    assert!(start_error(without.clone()).await.contains("gone.raw"));
    without.volumes.clear();
    assert_eq!(start_error(without).await, "volume 'local:gone.raw' does not exist");

    let mut deep = spec(&folder, "");
    deep.folder = folder.path().join("x".repeat(120));
    assert!(start_error(deep).await.contains("too long for a socket"));
    let mut other = spec(&folder, "");
    other.qemu = folder.path().join("no-qemu");
    assert!(start_error(other).await.contains("no-qemu"));
}

/// The other half of `a_killed_simulator_takes_its_machines_along`, which runs it in a process of its own.
#[tokio::test]
async fn simulator_that_is_killed() {
    let Some(folder) = std::env::var_os("PVE_SIM_TEST_FOLDER") else { return };
    let temporary = tempfile::Builder::new().tempdir_in(&folder).unwrap();
    let machine = start(spec(&temporary, "")).await;
    let pid = machine.status().pid.unwrap().to_string();
    fs::write(Path::new(&folder).join("pid.new"), pid).unwrap();
    fs::rename(Path::new(&folder).join("pid.new"), Path::new(&folder).join("pid")).unwrap();
    tokio::time::sleep(PATIENCE).await;
}

#[tokio::test]
async fn a_killed_simulator_takes_its_machines_along() {
    let folder = tempfile::tempdir().unwrap();
    let mut simulator = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "simulator_that_is_killed"])
        .env("PVE_SIM_TEST_FOLDER", folder.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let noted = folder.path().join("pid");
    wait_until("the machine", || noted.exists()).await;
    let pid = fs::read_to_string(&noted).unwrap().parse().unwrap();
    assert!(alive(pid));
    simulator.kill().unwrap();
    assert_eq!(simulator.wait().unwrap().signal(), Some(9));
    wait_until("the machine's end", || !alive(pid)).await;
}

/// The other half of `nics_are_taps_in_their_bridges`, which runs it in a network of its own.
#[tokio::test]
async fn machine_in_a_bridge() {
    if std::env::var_os("PVE_SIM_TEST_BRIDGE").is_none() {
        return;
    }
    let ip = |line: &str| Command::new("ip").args(line.split(' ')).output().unwrap();
    assert!(ip("link add vmbr0 type bridge").status.success());
    let folder = tempfile::tempdir().unwrap();
    let config = "net0: virtio=BC:24:11:00:00:01,bridge=vmbr0\nnet1: virtio=BC:24:11:00:00:02,bridge=vmbr0";
    let mut bridged = spec(&folder, config);
    bridged.network = Network::Bridge;
    let machine = start(bridged.clone()).await;
    let members = || String::from_utf8(ip("-br link show master vmbr0").stdout).unwrap();
    assert!(members().contains("tap100i0") && members().contains("tap100i1"), "{}", members());
    machine.stop().await;
    assert_eq!(members(), "");

    for (place, error) in [
        ("bridge=vmbr9", "bridge 'vmbr9' does not exist"),
        ("bridge=lo", "bridge 'lo' does not exist"),
        ("bridge=vmbr0,tag=20", "net1: VLAN 20 needs a bridge with VLAN filtering, not vmbr0"),
    ] {
        bridged.config.insert("net1".into(), format!("virtio=BC:24:11:00:00:02,{place}"));
        assert_eq!(start_error(bridged.clone()).await, error);
        assert_eq!(members(), "");
    }
}

#[test]
fn nics_are_taps_in_their_bridges() {
    let exe = std::env::current_exe().unwrap();
    let output = Command::new("unshare")
        .args(["--map-root-user", "--net", "--"])
        .arg(exe)
        .args(["--exact", "machine_in_a_bridge", "--nocapture"])
        .env("PVE_SIM_TEST_BRIDGE", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
}

// The stand-in ------------------------------------------------------------------------------------

/// A disk on which the stand-in finds a system.
fn installed(path: &Path) -> Volume {
    let files = json!({
        "/etc/hostname": "one\n",
        "/etc/os-release": "ID=stand-in\n",
        "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
        "/etc/ssh/ssh_host_ed25519_key.pub": "ssh-ed25519 AAAA root@one\n",
    });
    fs::write(path, files.to_string()).unwrap();
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(64 * 1024 * 1024).unwrap();
    Volume { path: path.to_owned(), format: "raw".to_owned() }
}

/// A VM for the stand-in with a system on its disk, booting it before the medium that is in its drive.
fn standin(folder: &TempDir, more: &str) -> Spec {
    installed(&folder.path().join("disk.raw"));
    let hardware = "machine: q35\nagent: 1\nserial0: socket\nboot: order=virtio0;ide2\nide2: local:medium.raw,media=cdrom\n\
                    virtio0: local:disk.raw\nnet0: virtio=BC:24:11:00:00:01,bridge=vmbr0\nrng0: source=/dev/urandom\n\
                    vmgenid: b7eaab74-a60e-4c0f-b636-3c1dbf936e6a\n";
    let mut spec = spec(folder, &(hardware.to_owned() + more));
    spec.qemu = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fake/qemu-system-x86_64");
    spec
}

async fn agent_is_up(machine: &Arc<dyn Machine>) {
    let deadline = Instant::now() + PATIENCE;
    while machine.agent("guest-ping", json!({}), Duration::from_secs(1)).await.is_err() {
        assert!(Instant::now() < deadline && machine.status().running, "no agent: {}", serial_log(machine));
    }
}

#[tokio::test]
async fn the_guest_agent_answers_and_powers_off() {
    let folder = tempfile::tempdir().unwrap();
    let machine = start(standin(&folder, "")).await;
    agent_is_up(&machine).await;
    let arguments = json!({ "path": "/bin/sh", "arg": ["-c", "echo hello"], "capture-output": true });
    let pid = machine.agent("guest-exec", arguments, PATIENCE).await.unwrap();
    let status = loop {
        let status = machine.agent("guest-exec-status", pid.clone(), PATIENCE).await.unwrap();
        if status["exited"] == true {
            break status;
        }
    };
    assert_eq!(status["out-data"], "aGVsbG8K");
    let info = machine.agent("guest-get-osinfo", json!({}), PATIENCE).await.unwrap();
    assert_eq!(info["id"], "stand-in");
    let nics = machine.agent("guest-network-get-interfaces", json!({}), PATIENCE).await.unwrap();
    assert_eq!(nics[1]["ip-addresses"][0]["ip-address"], "10.0.2.15");
    let name = machine.agent("guest-get-host-name", json!({}), PATIENCE).await.unwrap();
    assert_eq!(name["host-name"], "one");
    let error = |desc: &str| Err(AgentError::Error { class: "GenericError".into(), desc: desc.into() });
    assert_eq!(machine.agent("guest-exec-status", pid, PATIENCE).await, error("Invalid parameter 'pid'"));
    let arguments = json!({ "path": "/no/dir/x", "mode": "wb" });
    assert_eq!(
        machine.agent("guest-file-open", arguments, PATIENCE).await,
        error("failed to open file '/no/dir/x' (mode: 'wb'): No such file or directory")
    );
    // It has no answer but the end.
    machine.agent("guest-shutdown", json!({}), PATIENCE).await.ok();
    timeout(PATIENCE, machine.wait_for_end()).await.unwrap();
    let log = serial_log(&machine);
    assert!(log.contains("[guest] powered off"), "{log}");
    assert_eq!(machine.agent("guest-ping", json!({}), PATIENCE).await, Err(AgentError::NotRunning));
}

#[tokio::test]
async fn the_stand_in_takes_keys_vnc_and_a_cloud_init_drive() {
    let folder = tempfile::tempdir().unwrap();
    let more = "name: clone\nide0: local:vm-100-cloudinit.qcow2,media=cdrom\nipconfig0: ip=10.0.2.77/24\n\
                sshkeys: ssh-ed25519%20AAAA\nreboot: 0\n";
    let spec = standin(&folder, more);
    let volume = &spec.volumes["local:vm-100-cloudinit.qcow2"];
    Qemu::default().write_cloud_init(&spec.config, volume).await.unwrap();
    let machine = start(spec).await;
    agent_is_up(&machine).await;
    machine.send_key("ret").await.unwrap();
    assert!(machine.send_key("nosuch").await.unwrap_err().contains('\r'));
    machine.set_vnc_password("secret12").await.unwrap();
    let mut client = UnixStream::connect(machine.vnc_socket()).await.unwrap();
    let mut greeting = [0; 12];
    client.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"RFB 003.008\n");
    let opened =
        machine.agent("guest-file-open", json!({ "path": "/etc/hostname" }), PATIENCE).await.unwrap();
    let read = machine.agent("guest-file-read", json!({ "handle": opened }), PATIENCE).await.unwrap();
    assert_eq!(read["buf-b64"], "Y2xvbmUK");
    let log = serial_log(&machine);
    assert!(log.contains("[proof]"), "{log}");
    machine.reset().await.unwrap();
    timeout(PATIENCE, machine.wait_for_end()).await.unwrap();
}

#[tokio::test]
async fn the_stand_in_boots_the_medium_when_the_disk_is_empty() {
    let folder = tempfile::tempdir().unwrap();
    let spec = standin(&folder, "");
    let empty = fs::File::create(folder.path().join("disk.raw")).unwrap();
    empty.set_len(64 * 1024 * 1024).unwrap();
    let machine = start(spec).await;
    wait_until("the installer", || serial_log(&machine).contains("[install]")).await;
    machine.stop().await;
}
