//! The whole way of a build: create, start, agent, configure, template, clone, delete.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;

use std::time::Duration;

use common::{Client, Connection, Response};
use pve_sim::{
    Action, Guest, Of, Options, Published, Release, Rule, Simulator, StorageKind, UserSpec, When, WorldSpec,
};
use serde_json::{Value, json};

async fn simulator(change: impl FnOnce(&mut Options)) -> (Simulator, Client, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut options = Options::new(folder.path());
    options.time = 0.02;
    change(&mut options);
    let simulator = Simulator::start(options).await.unwrap();
    let client = Client::new(&simulator);
    (simulator, client, folder)
}

fn vm(storage: &str) -> Value {
    json!({
        "vmid": 9000, "name": "build", "kvm": 0, "cpu": "max", "memory": 1024, "agent": "enabled=1",
        "scsihw": "virtio-scsi-pci", "virtio0": format!("{storage}:1,iothread=1"), "serial0": "socket",
        "net0": "virtio,bridge=vmbr0", "ide2": "local:iso/x.iso,media=cdrom", "boot": "order=virtio0;ide2",
    })
}

async fn config(client: &Client, vmid: u32) -> Value {
    client.call("GET", &format!("/nodes/asgard/qemu/{vmid}/config"), Value::Null).await.data()
}

fn message(response: &Response) -> String {
    response.json()["message"].as_str().unwrap_or_default().trim_end().to_owned()
}

#[tokio::test]
async fn a_build_goes_from_an_empty_node_to_a_template_with_clones_and_back() {
    let kinds = [
        (
            StorageKind::Dir,
            "disks:9000/base-9000-disk-0.raw",
            "disks:9000/base-9000-disk-0.raw/9001/vm-9001-disk-0.qcow2",
        ),
        (StorageKind::ZfsPool, "disks:base-9000-disk-0", "disks:base-9000-disk-0/vm-9001-disk-0"),
        (StorageKind::LvmThin, "disks:base-9000-disk-0", "disks:vm-9001-disk-0"),
        (StorageKind::Rbd, "disks:base-9000-disk-0", "disks:base-9000-disk-0/vm-9001-disk-0"),
    ];
    for (kind, base, linked) in kinds {
        let (simulator, client, _folder) = simulator(|options| {
            options.world.storages[1].id = "disks".into();
            options.world.storages[1].kind = kind;
        })
        .await;
        simulator.put_file("local", "iso", "x.iso", &[0; 2048]).unwrap();
        let before = simulator.dump();
        let node = "/nodes/asgard/qemu";
        client.done("POST", node, vm("disks")).await;
        client.done("POST", &format!("{node}/9000/status/start"), json!({})).await;
        let exec = json!({ "command": ["/bin/echo", "é"] });
        let pid = client.call("POST", &format!("{node}/9000/agent/exec"), exec).await.data()["pid"].clone();
        let status =
            client.call("GET", &format!("{node}/9000/agent/exec-status"), json!({ "pid": pid })).await;
        assert_eq!(status.data()["out-data"], "Ã©\n", "one code point for each byte");
        client.done("POST", &format!("{node}/9000/status/shutdown"), json!({ "timeout": 30 })).await;
        client.done("POST", &format!("{node}/9000/config"), json!({ "delete": "ide2", "tags": "B;a" })).await;
        client.done("POST", &format!("{node}/9000/template"), json!({})).await;
        let template = config(&client, 9000).await;
        assert_eq!(template["template"], 1);
        assert_eq!(template["tags"], "a;b");
        assert!(template["virtio0"].as_str().unwrap().starts_with(base), "{template}");
        client.done("POST", &format!("{node}/9000/clone"), json!({ "newid": 9001 })).await;
        client
            .done("POST", &format!("{node}/9000/clone"), json!({ "newid": 9002, "full": 1, "name": "whole" }))
            .await;
        let clone = config(&client, 9001).await;
        assert!(clone["virtio0"].as_str().unwrap().starts_with(&format!("{linked},")), "{clone}");
        assert_eq!(clone["name"], "Copy-of-VM-build");
        client.done("PUT", &format!("{node}/9001/resize"), json!({ "disk": "virtio0", "size": "+1G" })).await;
        assert!(config(&client, 9001).await["virtio0"].as_str().unwrap().ends_with("size=2G"));
        let destroyed = client.call("DELETE", &format!("{node}/9000"), Value::Null).await.data();
        let end = client.finish("asgard", &destroyed).await;
        if kind == StorageKind::LvmThin {
            assert_eq!(end, "OK", "a thin pool does not notice its linked clones");
        } else {
            assert_eq!(end, format!("base volume '{base}' is still in use by linked cloned"));
        }
        for vmid in [9002, 9001, 9000] {
            if client.call("GET", &format!("{node}/{vmid}/config"), Value::Null).await.status == 200 {
                let path = format!("{node}/{vmid}?purge=1&destroy-unreferenced-disks=1");
                client.done("DELETE", &path, Value::Null).await;
            }
        }
        assert_eq!(simulator.dump(), before, "{kind:?}");
        let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        if Published::find(here).is_none() {
            println!("the published schema is not there: no request is held against it");
        }
        if let Some(file) = Published::find(here) {
            let published = Published::load(&file).unwrap();
            let objections: Vec<String> =
                simulator.requests().iter().flat_map(|request| published.objections(request)).collect();
            assert!(objections.is_empty(), "{objections:?}");
        }
    }
}

#[tokio::test]
async fn a_start_needs_what_the_host_has() {
    let (_simulator, client, _folder) = simulator(|_| {}).await;
    client.done("POST", "/nodes/asgard/qemu", json!({ "vmid": 100, "name": "needs-kvm" })).await;
    let start = client.call("POST", "/nodes/asgard/qemu/100/status/start", json!({})).await.data();
    let end = client.finish("asgard", &start).await;
    assert!(end.starts_with("KVM virtualisation configured, but not available."), "{end}");
    client.done("PUT", "/nodes/asgard/qemu/100/config", json!({ "kvm": 0, "cpu": "host" })).await;
    let start = client.call("POST", "/nodes/asgard/qemu/100/status/start", json!({})).await.data();
    assert_eq!(client.finish("asgard", &start).await, "start failed: QEMU exited with code 1");
}

#[tokio::test]
async fn an_upload_is_listed_and_a_second_one_is_not_kept_alive() {
    let (simulator, client, _folder) = simulator(|_| {}).await;
    let body = "--b\r\nContent-Disposition: form-data; name=\"content\"\r\n\r\niso\r\n\
                --b\r\nContent-Disposition: form-data; name=\"filename\"; filename=\"a b.iso\"\r\n\
                Content-Type: application/octet-stream\r\n\r\nDATA\r\n--b--\r\n";
    let target = "/api2/json/nodes/asgard/storage/local/upload";
    let media = "multipart/form-data; boundary=b";
    let answer = client.raw("POST", target, &[], Some((media, body.as_bytes()))).await.unwrap();
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(client.finish("asgard", &answer.data()).await, "OK");
    let files = simulator.dump()["files"].clone();
    assert_eq!(files, json!([{ "on": "asgard", "volid": "local:iso/a_b.iso", "bytes": 4 }]));
    let gone = client.raw("POST", target, &[], Some(("application/json", b"{}"))).await;
    assert!(gone.is_none(), "not multipart: no answer at all");
}

#[tokio::test]
async fn a_disk_can_be_made_under_a_name_before_its_vm() {
    let (_simulator, client, _folder) = simulator(|_| {}).await;
    let path = "/nodes/asgard/storage/local-zfs/content";
    let disk = json!({ "vmid": 100, "filename": "vm-100-disk-3", "size": "1G", "format": "raw" });
    let volid = client.call("POST", path, disk.clone()).await.data();
    assert_eq!(volid, "local-zfs:vm-100-disk-3");
    assert_eq!(
        message(&client.call("POST", path, disk).await),
        "volume 'local-zfs:vm-100-disk-3' already exists"
    );
    client.done("POST", "/nodes/asgard/qemu", json!({ "vmid": 100, "scsi0": volid })).await;
    assert_eq!(config(&client, 100).await["scsi0"], "local-zfs:vm-100-disk-3,size=1G");
}

#[tokio::test]
async fn faults_strike_where_their_rules_say() {
    let (simulator, client, _folder) = simulator(|_| {}).await;
    let rule = |action| Rule { method: Some("POST".into()), path: "/nodes/*/qemu".into(), nth: None, action };
    let before = simulator.dump();
    simulator.add_fault(rule(Action::TaskFails { text: "no luck".into(), done: false }));
    let upid = client.call("POST", "/nodes/asgard/qemu", json!({ "vmid": 100 })).await.data();
    assert_eq!(client.finish("asgard", &upid).await, "unable to create VM 100 - no luck");
    assert_eq!(simulator.dump(), before, "a failed create leaves nothing");
    simulator.clear_faults();

    simulator.add_fault(rule(Action::DropAfter));
    let body = br#"{"vmid":101}"#;
    let answer =
        client.raw("POST", "/api2/json/nodes/asgard/qemu", &[], Some(("application/json", body))).await;
    assert!(answer.is_none());
    simulator.clear_faults();
    assert_eq!(client.call("GET", "/nodes/asgard/qemu/101/config", Value::Null).await.status, 200);

    simulator.add_fault(rule(Action::VmidTaken { kind: Guest::Qemu, node: None, when: When::Call }));
    let taken = client.call("POST", "/nodes/asgard/qemu", json!({ "vmid": 102 })).await;
    assert_eq!(message(&taken), "unable to create VM 102 - VM 102 already exists on node 'asgard'");
    simulator.clear_faults();

    simulator.add_fault(rule(Action::StorageFull { storage: "local-zfs".into() }));
    let upid =
        client.call("POST", "/nodes/asgard/qemu", json!({ "vmid": 103, "virtio0": "local-zfs:1" })).await;
    let end = client.finish("asgard", &upid.data()).await;
    assert!(end.contains("out of space"), "{end}");
    simulator.clear_faults();

    simulator.add_fault(Rule {
        method: None,
        path: "/nodes/*/qemu/101/config".into(),
        nth: Some(2),
        action: Action::Pseudo { status: 596, done: true },
    });
    let put =
        |name: &'static str| client.call("PUT", "/nodes/asgard/qemu/101/config", json!({ "name": name }));
    assert_eq!(put("first").await.status, 200);
    assert_eq!(put("second").await.status, 596);
    assert_eq!(config(&client, 101).await["name"], "second", "done all the same");

    simulator.add_fault(Rule {
        method: None,
        path: "/version".into(),
        nth: Some(1),
        action: Action::CertificateChanged,
    });
    let old = simulator.fingerprint();
    client.call("GET", "/version", Value::Null).await.data();
    assert_ne!(simulator.fingerprint(), old);
}

#[tokio::test]
async fn a_hanging_task_keeps_its_locks_until_it_is_stopped() {
    let (simulator, client, _folder) = simulator(|_| {}).await;
    let before = simulator.dump();
    simulator.add_fault(Rule {
        method: Some("POST".into()),
        path: "/nodes/*/qemu".into(),
        nth: Some(1),
        action: Action::TaskHangs { deaf: false },
    });
    let upid = client.call("POST", "/nodes/asgard/qemu", json!({ "vmid": 100 })).await.data();
    let answer = client.call("PUT", "/nodes/asgard/qemu/100/config", json!({ "cores": 2 })).await;
    assert_eq!(message(&answer), "can't lock file '/var/lock/qemu-server/lock-100.conf' - got timeout");
    assert_eq!(config(&client, 100).await["lock"], "create");
    let path = format!("/nodes/asgard/tasks/{}", common::escape(upid.as_str().unwrap()));
    client.call("DELETE", &path, Value::Null).await.data();
    assert_eq!(client.finish("asgard", &upid).await, "unable to create VM 100 - received interrupt");
    assert_eq!(simulator.dump(), before);
}

#[tokio::test]
async fn connections_end_after_a_hundred_requests_after_errors_and_when_idle() {
    let (_simulator, client, _folder) = simulator(|_| {}).await;
    let get = client.bytes("GET", "/api2/json/version", &[], None);
    let mut connection = Connection::open(client.address, &client.pem).await;
    for number in 1..=100 {
        connection.send(&get).await;
        let answer = connection.receive().await.unwrap();
        let expected = if number == 100 { "close" } else { "Keep-Alive" };
        assert_eq!(answer.header("connection"), Some(expected), "{number}");
    }
    assert!(connection.ends_within(Duration::from_millis(300)).await);
    let mut connection = Connection::open(client.address, &client.pem).await;
    connection.send(&client.bytes("GET", "/api2/json/nosuch", &[], None)).await;
    assert_eq!(connection.receive().await.unwrap().status, 501);
    assert!(connection.ends_within(Duration::from_millis(300)).await);
    let mut connection = Connection::open(client.address, &client.pem).await;
    connection.send(&get).await;
    connection.receive().await.unwrap();
    assert!(connection.ends_within(Duration::from_secs(4)).await, "idle connections are closed");
}

#[tokio::test]
async fn requests_are_recorded_without_their_secrets() {
    let (simulator, client, _folder) = simulator(|_| {}).await;
    client.done("POST", "/nodes/asgard/qemu", json!({ "vmid": 100, "cipassword": "very-secret" })).await;
    let login = json!({ "username": "root@pam", "password": "simulated" });
    client
        .raw(
            "POST",
            "/api2/json/access/ticket",
            &[],
            Some(("application/json", login.to_string().as_bytes())),
        )
        .await;
    let requests = simulator.requests();
    let create = &requests[0];
    assert_eq!(create.endpoint.as_deref(), Some("POST /nodes/{node}/qemu"));
    assert_eq!(create.who.as_deref(), Some("root@pam!full"));
    assert!(create.upid.is_some() && create.task_ended_ms.is_some());
    let text = serde_json::to_string(&requests).unwrap();
    assert!(!text.contains("very-secret") && !text.contains("simulated\""), "{text}");
}

#[tokio::test]
async fn release_9_has_its_own_rights_and_parameters() {
    let (_simulator, client, _folder) = simulator(|options| options.world.release = Release::V9).await;
    let version = client.call("GET", "/version", Value::Null).await.data();
    assert_eq!(version["release"], "9.1");
    let administrator = client.call("GET", "/access/roles/Administrator", Value::Null).await.data();
    assert_eq!(administrator["VM.GuestAgent.Unrestricted"], 1);
    assert_eq!(administrator.get("VM.Monitor"), None);
    assert_eq!(WorldSpec::default().release, Release::V8);
}

/// A rule for the first request of this kind.
fn first(method: &str, path: &str, action: Action) -> Rule {
    Rule { method: Some(method.into()), path: path.into(), nth: Some(1), action }
}

/// A stopped VM 9000 without disks on a cluster of three nodes.
async fn three_nodes() -> (Simulator, Client, tempfile::TempDir) {
    let nodes = ["asgard", "midgard", "jotunheim"].map(String::from);
    let made = simulator(|options| options.world.nodes = nodes.into()).await;
    made.1.done("POST", "/nodes/asgard/qemu", json!({ "vmid": 9000 })).await;
    made
}

#[tokio::test]
async fn a_clone_takes_its_vmid_in_its_task() {
    let elsewhere =
        "close (rename) atomic file '/etc/pve/nodes/asgard/qemu-server/9001.conf' failed: File exists";
    for (kind, node, when, expected) in [
        (Guest::Qemu, None, When::Task, "unable to create VM 9001: config file already exists"),
        (Guest::Qemu, Some("midgard"), When::Task, elsewhere),
        (Guest::Qemu, Some("midgard"), When::Call, elsewhere),
        (Guest::Lxc, None, When::Task, elsewhere),
        (Guest::Lxc, Some("midgard"), When::Call, elsewhere),
    ] {
        let (simulator, client, _folder) = three_nodes().await;
        let action = Action::VmidTaken { kind, node: node.map(String::from), when };
        simulator.add_fault(first("POST", "/nodes/*/qemu/*/clone", action));
        let clone = client.call("POST", "/nodes/asgard/qemu/9000/clone", json!({ "newid": 9001 })).await;
        assert_eq!(client.finish("asgard", &clone.data()).await, expected, "{kind:?} {node:?} {when:?}");
        let dump = simulator.dump();
        let stranger = dump["vms"]["9001"]["config"]["name"] == "somebody-elses"
            || dump["containers"]["9001"] == node.unwrap_or("asgard");
        assert!(stranger, "the failed clone took somebody else's guest with it: {dump:#}");
        let next = client.call("GET", "/cluster/nextid", json!({ "vmid": 9001 })).await;
        assert_eq!(next.status, 400, "one VMID for the whole cluster");
    }
    let (simulator, client, _folder) = three_nodes().await;
    let action = Action::VmidTaken { kind: Guest::Lxc, node: Some("midgard".into()), when: When::Call };
    simulator.add_fault(first("POST", "/nodes/*/qemu", action));
    let taken = client.call("POST", "/nodes/asgard/qemu", json!({ "vmid": 9001 })).await;
    assert_eq!(message(&taken), "unable to create VM 9001 - CT 9001 already exists on node 'midgard'");
}

#[tokio::test]
async fn a_deaf_task_is_killed_and_leaves_its_lock() {
    let (simulator, client, _folder) = simulator(|_| {}).await;
    simulator.add_fault(first("POST", "/nodes/*/qemu", Action::TaskHangs { deaf: true }));
    let upid = client.call("POST", "/nodes/asgard/qemu", json!({ "vmid": 100 })).await.data();
    let path = format!("/nodes/asgard/tasks/{}", common::escape(upid.as_str().unwrap()));
    client.call("DELETE", &path, Value::Null).await.data();
    assert_eq!(client.finish("asgard", &upid).await, "unexpected status");
    assert_eq!(config(&client, 100).await["lock"], "create");
    let put = client.call("PUT", "/nodes/asgard/qemu/100/config", json!({ "cores": 2 })).await;
    assert_eq!(message(&put), "VM is locked (create)", "the file is free, the VM is not");
}

#[tokio::test]
async fn a_backup_bars_a_clones_source_until_it_is_done() {
    let (simulator, client, _folder) = three_nodes().await;
    let lock = Action::ConfigLocked { lock: "backup".into(), seconds: Some(20.0), of: Of::Source };
    simulator.add_fault(first("POST", "/nodes/*/qemu/*/clone", lock));
    let clone = || client.call("POST", "/nodes/asgard/qemu/9000/clone", json!({ "newid": 9001 }));
    assert_eq!(message(&clone().await), "VM is locked (backup)");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(client.finish("asgard", &clone().await.data()).await, "OK");

    let lock = Action::LockHeld { seconds: 30.0, of: Of::Source };
    simulator.add_fault(first("POST", "/nodes/*/qemu/*/clone", lock));
    let again = client.call("POST", "/nodes/asgard/qemu/9000/clone", json!({ "newid": 9002 })).await;
    let held = "can't lock file '/var/lock/qemu-server/lock-9000.conf' - got timeout";
    assert_eq!(client.finish("asgard", &again.data()).await, held);
}

#[tokio::test]
async fn a_vm_that_was_started_meanwhile_is_not_destroyed() {
    let (simulator, client, _folder) = simulator(|_| {}).await;
    client.done("POST", "/nodes/asgard/qemu", json!({ "vmid": 100, "kvm": 0 })).await;
    let lock = simulator.hold_lock(100).await;
    let start = client.call("POST", "/nodes/asgard/qemu/100/status/start", json!({})).await.data();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let destroy = client.call("DELETE", "/nodes/asgard/qemu/100", Value::Null).await.data();
    drop(lock);
    assert_eq!(client.finish("asgard", &start).await, "OK");
    assert_eq!(client.finish("asgard", &destroy).await, "VM 100 is running - destroy failed");
}

#[tokio::test]
async fn a_boot_order_names_only_what_is_there() {
    let (_simulator, client, _folder) = simulator(|_| {}).await;
    let vm = json!({ "vmid": 100, "net0": "virtio,bridge=vmbr0", "ide2": "none,media=cdrom" });
    client.done("POST", "/nodes/asgard/qemu", vm).await;
    let put = |change| client.call("PUT", "/nodes/asgard/qemu/100/config", change);
    let refused = |device: &str| format!("invalid bootorder: device '{device}' does not exist'");
    assert_eq!(message(&put(json!({ "boot": "order=virtio0;net0" })).await), refused("virtio0"));
    assert_eq!(message(&put(json!({ "boot": "order=ide2", "delete": "ide2" })).await), refused("ide2"));
    assert_eq!(put(json!({ "boot": "order=virtio0;net0", "virtio0": "local-zfs:1" })).await.status, 200);
}

#[tokio::test]
async fn a_task_is_its_own_nodes() {
    let (_simulator, client, _folder) = three_nodes().await;
    let upid = client.call("POST", "/nodes/midgard/qemu", json!({ "vmid": 9001 })).await.data();
    let of = |node: &str, what: &str| {
        format!("/nodes/{node}/tasks/{}{what}", common::escape(upid.as_str().unwrap()))
    };
    assert_eq!(client.finish("midgard", &upid).await, "OK");
    for (method, what) in [("GET", "/status"), ("DELETE", "")] {
        let answer = client.call(method, &of("asgard", what), Value::Null).await;
        assert_eq!(answer.json()["errors"]["upid"], "no such task", "{method}");
    }
    let log = client.call("GET", &of("asgard", "/log"), Value::Null).await.data();
    assert_eq!(log["t"], "unable to open file - No such file or directory");
}

#[tokio::test]
async fn an_upload_grows_over_what_is_there_and_a_failed_one_takes_it_away() {
    let (simulator, client, _folder) = simulator(|options| options.time = 0.2).await;
    simulator.put_file("local", "iso", "x.iso", &[0; 100]).unwrap();
    let media = "multipart/form-data; boundary=b";
    let head = "--b\r\nContent-Disposition: form-data; name=\"content\"\r\n\r\niso\r\n\
                --b\r\nContent-Disposition: form-data; name=\"filename\"; filename=\"x.iso\"\r\n\r\n";
    let body = [head.as_bytes(), &[7; 4000], b"\r\n--b--\r\n"].concat();
    let target = "/api2/json/nodes/asgard/storage/local/upload";
    let upload = async || client.raw("POST", target, &[], Some((media, &body))).await.unwrap().data();
    let size = || simulator.dump()["files"][0]["bytes"].as_u64();
    let upid = upload().await;
    let mut seen = std::collections::BTreeSet::new();
    while simulator.dump()["running_tasks"] != 0 {
        seen.extend(size());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(client.finish("asgard", &upid).await, "OK");
    assert_eq!(size(), Some(4000));
    assert!(seen.contains(&1000) && seen.contains(&3000), "it is not seen to grow: {seen:?}");
    simulator.add_fault(first("POST", "/nodes/**", Action::StorageFull { storage: "local".into() }));
    let end = client.finish("asgard", &upload().await).await;
    assert!(end.ends_with("x.iso': No space left on device"), "{end}");
    assert_eq!(size(), None, "what it had written over is gone with it");
}

#[tokio::test]
async fn tickets_have_every_character_of_base64_and_a_second_factor_withholds_them() {
    let (_simulator, client, _folder) = simulator(|options| {
        let user = |id: &str, tfa| UserSpec {
            id: id.into(),
            password: Some("secret-1".into()),
            disabled: false,
            tfa,
        };
        options.world.users = vec![user("plain@pve", false), user("careful@pve", true)];
    })
    .await;
    let none = Client { auth: Vec::new(), ..client };
    let login = async |user: &str| {
        let body = json!({ "username": user, "password": "secret-1" });
        none.call("POST", "/access/ticket", body).await.data()
    };
    let plain = login("plain@pve").await;
    let ticket = plain["ticket"].as_str().unwrap();
    assert!(
        ticket.starts_with("PVE:plain@pve:") && ["+", "/", "="].iter().all(|it| ticket.contains(it)),
        "{ticket}"
    );
    let careful = login("careful@pve").await;
    let ticket = careful["ticket"].as_str().unwrap().to_owned();
    assert!(ticket.starts_with("PVE:!tfa!") && careful["NeedTFA"] == 1, "{careful}");
    let auth = vec![("Cookie".into(), format!("PVEAuthCookie={}", common::escape(&ticket)))];
    let with = Client { auth, ..none };
    assert_eq!(with.call("GET", "/version", Value::Null).await.status, 401, "a challenge lets nobody in");
}

#[tokio::test]
async fn a_client_that_is_not_allowed_is_closed_without_a_word() {
    let (simulator, client, _folder) = simulator(|_| {}).await;
    simulator.add_fault(first("GET", "/version", Action::NotAllowed));
    assert_eq!(client.call("GET", "/version", Value::Null).await.status, 200);
    let mut stream = tokio::net::TcpStream::connect(client.address).await.unwrap();
    let read = tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 16]).await.unwrap();
    assert_eq!(read, 0);
}
