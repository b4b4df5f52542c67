//! The API with the stand-in for QEMU behind it, and what other clients taught.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "other tests use the rest of it")]
mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::Client;
use pve_sim::machine::Qemu;
use pve_sim::{Options, Simulator};
use serde_json::{Value, json};
use tempfile::TempDir;

const NODE: &str = "/nodes/asgard";

async fn simulator() -> (Simulator, Client, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut options = Options::new(folder.path());
    options.time = 0.2;
    options.hypervisor = Arc::new(Qemu::default());
    options.qemu = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fake/qemu-system-x86_64");
    let simulator = Simulator::start(options).await.unwrap();
    let client = Client::new(&simulator);
    (simulator, client, folder)
}

/// Returns the file below `folder` that ends in that name.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find_map(|path| if path.is_dir() { find(&path, name) } else { path.ends_with(name).then_some(path) })
}

/// Puts a system onto a disk that the stand-in boots.
fn install(disk: &Path) {
    let files = json!({
        "/etc/hostname": "one\n",
        "/etc/os-release": "ID=stand-in\n",
        "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
        "/etc/ssh/ssh_host_ed25519_key.pub": "ssh-ed25519 AAAA root@one\n",
    });
    let file = fs::OpenOptions::new().write(true).open(disk).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, files.to_string().as_bytes(), 0).unwrap();
}

#[tokio::test]
async fn a_guest_is_used_through_the_api() {
    let (_simulator, client, folder) = simulator().await;
    let vm = |path: &str| format!("{NODE}/qemu/9000{path}");
    let hardware = json!({
        "vmid": 9000, "name": "one", "kvm": 0, "cpu": "max", "memory": 256, "agent": 1, "machine": "q35",
        "virtio0": "local-zfs:1,iothread=1,discard=on", "net0": "virtio,bridge=vmbr0", "serial0": "socket",
        "ide2": "local-zfs:cloudinit", "ciuser": "odin", "boot": "order=virtio0",
    });
    client.done("POST", &format!("{NODE}/qemu"), hardware).await;
    install(&find(folder.path(), "vm-9000-disk-0").unwrap());
    client.done("POST", &vm("/status/start"), json!({})).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while client.call("POST", &vm("/agent/ping"), json!({})).await.status != 200 {
        assert!(Instant::now() < deadline, "no agent");
    }

    client.call("PUT", &vm("/sendkey"), json!({ "key": "ret" })).await.data();
    assert_eq!(client.call("PUT", &vm("/sendkey"), json!({ "key": "nosuch" })).await.status, 400);
    let file = json!({ "file": "/tmp/a", "content": "hello\n" });
    client.call("POST", &vm("/agent/file-write"), file).await.data();
    let read = client.call("GET", &vm("/agent/file-read"), json!({ "file": "/tmp/a" })).await.data();
    assert_eq!(read["content"], "hello\n");
    let missing = client.call("GET", &vm("/agent/file-read"), json!({ "file": "/no" })).await;
    assert_eq!(
        missing.json()["message"],
        "Agent error: failed to open file '/no' (mode: 'r'): No such file or directory\n"
    );
    let command = json!({ "command": ["/bin/sh", "-c", "cat; exit 3"], "input-data": "given" });
    let pid = client.call("POST", &vm("/agent/exec"), command).await.data();
    let status = loop {
        let status = client.call("GET", &vm("/agent/exec-status"), pid.clone()).await.data();
        if status["exited"] == 1 {
            break status;
        }
    };
    assert_eq!((&status["out-data"], &status["exitcode"]), (&json!("given"), &json!(3)), "{status}");
    // A program that is missing: the agent's own words kill the answer.
    let lost = client.call("POST", &vm("/agent/exec"), json!({ "command": ["/no/such/program"] })).await;
    assert_eq!((lost.status, lost.reason.as_str()), (596, "Broken pipe"));

    client.done("POST", &vm("/status/shutdown"), json!({ "timeout": 30 })).await;
    let status = client.call("GET", &vm("/status/current"), Value::Null).await.data();
    assert_eq!((&status["status"], &status["qmpstatus"]), (&json!("stopped"), &json!("stopped")));
}

/// Packer makes a VM's disk before the VM.
#[tokio::test]
async fn a_disk_is_made_before_its_vm() {
    let (_simulator, client, _folder) = simulator().await;
    let content = format!("{NODE}/storage/local-zfs/content");
    let disk = |name: &str, more: Value| {
        let mut disk = json!({ "vmid": 8100, "size": "1G", "filename": name });
        disk.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        client.call("POST", &content, disk)
    };
    let made = disk("vm-8100-disk-0", json!({ "format": "raw" })).await.data();
    assert_eq!(made, "local-zfs:vm-8100-disk-0");
    let refused = disk("disk", json!({})).await;
    assert_eq!(refused.json()["message"], "illegal name 'disk' - should be 'vm-8100-*'\n");
    let refused = disk("vm-8100-disk-1.raw", json!({ "format": "qcow2" })).await;
    assert_eq!(refused.json()["errors"]["format"], "different storage formats (qcow2 != raw)");

    let hardware = json!({ "vmid": 8100, "virtio0": "local-zfs:vm-8100-disk-0,media=disk,iothread=false" });
    client.done("POST", &format!("{NODE}/qemu"), hardware).await;
    let config = client.call("GET", &format!("{NODE}/qemu/8100/config"), Value::Null).await.data();
    assert_eq!(config["virtio0"], "local-zfs:vm-8100-disk-0,iothread=0,media=disk,size=1G");
}
