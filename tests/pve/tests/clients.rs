//! Other people's clients against the simulator, where they are installed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[expect(dead_code, reason = "other tests use more of it")]
mod common;

use std::process::Stdio;

use common::Client;
use pve_sim::{Options, Simulator};
use serde_json::{Value, json};
use tokio::process::Command;

async fn simulator() -> (Simulator, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut options = Options { time: 0.1, ..Options::new(folder.path().join("state")) };
    // These clients cannot switch KVM off.
    options.world.has_kvm = true;
    let simulator = Simulator::start(options).await.unwrap();
    simulator.put_file("local", "iso", "tiny.iso", &[0; 4096]).unwrap();
    (simulator, folder)
}

/// Runs a program; its output, or nothing when it is not installed.
async fn run(command: &mut Command) -> Option<(bool, String)> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.ok()?;
    let text = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

/// Packer 1.6.6 allocates its disks by name, posts forms with empty values, and types over the monitor.
/// It cannot unmount an ISO of a node that notes the size behind `media=cdrom`, as genuine ones do too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packer_makes_a_template() {
    let (simulator, folder) = simulator().await;
    let version = run(Command::new("packer").arg("version")).await;
    if !version.is_some_and(|(_, text)| text.contains("v1.6.")) {
        println!("packer 1.6 is not installed");
        return;
    }
    let build = json!({ "builders": [{
        "type": "proxmox-iso", "proxmox_url": format!("{}/api2/json", simulator.endpoint()),
        "insecure_skip_tls_verify": true, "username": "root@pam", "password": "simulated", "node": "asgard",
        "vm_id": 9000, "vm_name": "packed", "memory": 512, "iso_file": "local:iso/tiny.iso", "os": "l26",
        "network_adapters": [{ "model": "virtio", "bridge": "vmbr0" }],
        "disks": [{
            "type": "virtio", "disk_size": "1G", "storage_pool": "local-zfs", "storage_pool_type": "zfspool",
            "format": "raw",
        }],
        "communicator": "none", "boot_wait": "100ms", "boot_command": ["<enter>a"], "qemu_agent": false,
        "template_name": "packed-template",
    }] });
    let file = folder.path().join("build.json");
    std::fs::write(&file, build.to_string()).unwrap();
    let packed = run(Command::new("packer").arg("build").arg(&file).env("CHECKPOINT_DISABLE", "1")).await;
    let (good, text) = packed.unwrap();
    assert!(good, "{text}");
    let client = Client::new(&simulator);
    let config = client.call("GET", "/nodes/asgard/qemu/9000/config", Value::Null).await.data();
    assert_eq!((&config["template"], &config["name"]), (&json!(1), &json!("packed-template")));
    assert!(config["virtio0"].as_str().unwrap().starts_with("local-zfs:base-9000-disk-0,"), "{config}");
}

const PROXMOXER: &str = r"
import sys, time, urllib3
from proxmoxer import ProxmoxAPI
urllib3.disable_warnings()
host, iso = sys.argv[1], sys.argv[2]
for login in ({'password': 'simulated'},
              {'token_name': 'full', 'token_value': '11111111-2222-4333-8444-555555555555'}):
    api = ProxmoxAPI(host, user='root@pam', verify_ssl=False, **login)
    node = api.nodes('asgard')
    def done(upid):
        while node.tasks(upid).status.get()['status'] != 'stopped':
            time.sleep(0.05)
        assert node.tasks(upid).status.get()['exitstatus'] == 'OK', node.tasks(upid).log.get()
    done(node.storage('local').upload.post(content='iso', filename=open(iso, 'rb')))
    assert any(row['volid'] == 'local:iso/up.iso' for row in node.storage('local').content.get())
    done(node.qemu.create(vmid=123, name='px', memory=512, virtio0='local-zfs:1', agent=1))
    done(node.qemu(123).status.start.post())
    assert 'pid' in node.qemu(123).agent('exec').post(command=['echo', 'hi'])
    done(node.qemu(123).status.stop.post())
    done(node.qemu(123).template.post())
    done(node.qemu(123).clone.post(newid=124))
    assert node.qemu(124).config.get()['virtio0'].startswith('local-zfs:base-123-disk-0/vm-124-disk-0')
    for vmid in (124, 123):
        done(node.qemu(vmid).delete(purge=1))
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxmoxer_goes_the_whole_way() {
    let (simulator, folder) = simulator().await;
    // A folder of its own: Python would import whatever lies about in the current one.
    let python = |arguments: &[&str]| {
        let mut command = Command::new("python3");
        command.arg("-I").args(arguments).current_dir(folder.path());
        command
    };
    let there = run(&mut python(&["-c", "import proxmoxer, requests"])).await;
    if !there.is_some_and(|(good, _)| good) {
        println!("proxmoxer is not installed");
        return;
    }
    let iso = folder.path().join("up.iso");
    std::fs::write(&iso, vec![7; 100_000]).unwrap();
    let host = simulator.address().to_string();
    let ran = run(&mut python(&["-c", PROXMOXER, &host, iso.to_str().unwrap()])).await;
    let (good, text) = ran.unwrap();
    assert!(good, "{text}");
    let dump = simulator.dump();
    assert_eq!((&dump["vms"], &dump["images"]), (&json!({}), &json!([])));
}
