//! What was done between the recorded exchanges: the VMs made as setup, and who held which right.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use crate::Replay;

fn tiny(vmid: u32, name: &str, more: &Value) -> Value {
    let mut params = json!({
        "vmid": vmid, "name": name, "kvm": 0, "ostype": "l26", "cores": 1, "memory": 512,
        "scsihw": "virtio-scsi-pci", "net0": "virtio,bridge=vmbr0", "serial0": "socket",
        "ide2": "local:iso/tiny.iso,media=cdrom", "boot": "order=ide2",
    });
    for (key, value) in more.as_object().unwrap() {
        params[key] = value.clone();
    }
    if let Value::Object(params) = &mut params {
        params.retain(|_, value| !value.is_null());
    }
    params
}

impl Replay {
    async fn make(&self, params: Value) {
        self.root.done("POST", "/nodes/pve1/qemu", params).await;
    }

    async fn change(&self, vmid: u32, params: Value) {
        self.root.done("PUT", &format!("/nodes/pve1/qemu/{vmid}/config"), params).await;
    }

    async fn power(&self, vmid: u32, what: &str) {
        self.root.done("POST", &format!("/nodes/pve1/qemu/{vmid}/status/{what}"), json!({})).await;
    }

    async fn destroy(&self, vmid: u32) {
        self.root.done("DELETE", &format!("/nodes/pve1/qemu/{vmid}"), Value::Null).await;
    }

    fn agent(&self, up: bool) {
        self.switches.agent.store(up, Ordering::SeqCst);
    }

    fn heeds(&self, yes: bool) {
        self.switches.heeds.store(yes, Ordering::SeqCst);
    }

    /// Waits until the statistics daemon has told about a VM.
    async fn told(&self, vmid: u32) {
        loop {
            let rows = self.root.call("GET", "/cluster/resources?type=vm", Value::Null).await.data();
            let known = |row: &Value| row["vmid"] == json!(vmid) && row["status"] != "unknown";
            if rows.as_array().unwrap().iter().any(known) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    /// Brings the world into the state that exchange `seq` of `file` was recorded in.
    pub(crate) async fn prepare(&mut self, file: &str, seq: u64, exchange: &Value) {
        match (file, seq) {
            ("05", _) => self.prepare_guest(seq).await,
            ("06", _) => self.prepare_config(seq).await,
            ("07", _) => self.prepare_template(seq).await,
            ("09", _) => self.prepare_locks(seq).await,
            ("00", 10) => {
                let path = "/access/users/builder@pve/token/ci";
                let made = self.root.call("POST", path, json!({ "comment": "build token" })).await.data();
                self.limited_secret = made["value"].as_str().unwrap().into();
            }
            ("02", 1) => {
                self.root.done("PUT", "/pools/build", json!({ "comment": "test pool" })).await;
                let no_disk = json!({ "ide2": null, "boot": null, "net0": null, "agent": 1 });
                self.make(tiny(110, "tiny", &no_disk)).await;
                let inv = json!({
                    "vmid": 700, "name": "inv", "kvm": 0, "memory": 64, "tags": "b;a", "pool": "build",
                    "virtio0": "local:1,format=qcow2",
                });
                self.make(inv).await;
                self.told(700).await;
            }
            ("08", 1) => {
                self.earlier_tasks().await;
                self.make(json!({ "vmid": 600, "name": "t", "kvm": 0, "memory": 128, "virtio0": "local:1,format=raw" })).await;
            }
            ("10", 1) => self.make(tiny(850, "console", &json!({ "ide2": null, "boot": null }))).await,
            ("10", 4) => self.power(850, "start").await,
            // The recorded console had been waiting for almost its 10 s.
            ("10", 45) => {
                let path = "/nodes/pve1/qemu/850/vncproxy";
                let made = self.root.call("POST", path, json!({ "websocket": 1 })).await.data();
                let text = |key: &str| made[key].as_str().unwrap().to_owned();
                self.known.ports.insert("5903".into(), text("port"));
                self.known.tickets.insert(text("port"), text("ticket"));
            }
            ("12", 9) => {
                for vmid in [870, 871] {
                    self.make(json!({ "vmid": vmid, "kvm": 0, "memory": 64 })).await;
                }
            }
            ("12", 48) => {
                self.power(870, "stop").await;
                self.change(870, json!({ "delete": "cores" })).await;
            }
            ("13", 1) => self.alias_and_candidate().await,
            ("13", 53) => {
                self.change(622, json!({ "protection": 0 })).await;
                self.destroy(622).await;
            }
            ("04", 1) => self.root.done("PUT", "/pools/build", json!({ "comment": "test pool" })).await,
            ("04", _) => self.free_vmid(exchange).await,
            _ => {}
        }
    }

    async fn prepare_guest(&self, seq: u64) {
        match seq {
            1 => {
                self.make(tiny(110, "tiny", &json!({ "agent": 1, "reboot": 0 }))).await;
                self.make(tiny(111, "tiny2", &json!({}))).await;
            }
            2 => self.change(111, json!({ "agent": 0 })).await,
            3 => {
                self.change(111, json!({ "delete": "agent" })).await;
                self.power(111, "start").await;
            }
            36 => self.agent(false),
            38 => self.agent(true),
            91 => {
                self.power(111, "stop").await;
                self.power(111, "start").await;
            }
            159 => self.power(110, "start").await,
            165 => {
                self.agent(false);
                self.heeds(false);
                self.power(110, "start").await;
            }
            171 => {
                self.agent(true);
                self.heeds(true);
            }
            176 => {
                self.agent(true);
                self.power(110, "start").await;
            }
            184 => {
                self.heeds(false);
                self.change(110, json!({ "delete": "agent" })).await;
                self.power(110, "start").await;
            }
            _ => {}
        }
    }

    async fn prepare_config(&self, seq: u64) {
        match seq {
            1 => {
                self.make(tiny(110, "tiny", &json!({ "ide2": null, "boot": null }))).await;
                let conf = json!({
                    "agent": 1, "memory": 256, "virtio0": "local:1,format=qcow2", "boot": "order=ide2;virtio0",
                    "ostype": null,
                });
                self.make(tiny(500, "conf", &conf)).await;
            }
            90 => self.power(500, "start").await,
            114 => self.power(500, "stop").await,
            117 => self.change(500, json!({ "net0": "virtio,bridge=vmbr0", "agent": 1 })).await,
            178 => {
                let params = |vmid| json!({ "vmid": vmid, "kvm": 0, "memory": 64 });
                self.make(params(882)).await;
                let mut with_disk = params(881);
                with_disk["scsi0"] = json!("local:1,format=raw");
                self.make(with_disk).await;
            }
            _ => {}
        }
    }

    async fn prepare_template(&self, seq: u64) {
        match seq {
            1 => {
                let source = json!({
                    "memory": 256, "agent": 1, "description": "the source", "tags": "forge", "serial0": null,
                    "ostype": null, "scsi1": "local:1,format=raw", "virtio0": "local:1,format=qcow2",
                    "boot": "order=ide2;virtio0",
                });
                self.make(tiny(400, "src-400", &source)).await;
                let second = json!({
                    "memory": 256, "agent": 1, "serial0": null, "ostype": null, "ide2": null, "boot": null,
                    "virtio0": "local:1,format=qcow2",
                });
                self.make(tiny(401, "src-401", &second)).await;
                self.power(400, "start").await;
            }
            3 => self.power(400, "stop").await,
            96 => self.change(410, json!({ "protection": 0 })).await,
            105 => {
                for vmid in [411, 412, 413, 414, 415] {
                    self.change(vmid, json!({ "protection": 0 })).await;
                    self.destroy(vmid).await;
                }
            }
            _ => {}
        }
    }

    async fn prepare_locks(&mut self, seq: u64) {
        match seq {
            1 => {
                self.make(tiny(110, "tiny", &json!({ "ide2": null, "boot": null }))).await;
                self.told(110).await;
                self.make(json!({ "vmid": 800, "name": "l", "kvm": 0, "memory": 128, "virtio0": "local:1,format=raw" })).await;
            }
            27 | 29 | 31 | 33 => {
                let ticket = self.ticket().await;
                let params = json!({ "delete": "lock", "skiplock": 1 });
                ticket.done("PUT", "/nodes/pve1/qemu/800/config", params).await;
            }
            35 => {
                let ticket = self.ticket().await;
                let params = json!({ "delete": "lock", "skiplock": 1 });
                ticket.done("PUT", "/nodes/pve1/qemu/800/config", params).await;
                self.lock = Some(self.simulator.hold_lock(800).await);
            }
            49 => {
                self.lock = None;
                self.heeds(false);
                self.change(800, json!({ "delete": "cores" })).await;
                self.power(800, "start").await;
            }
            _ => {}
        }
    }

    /// Lists of tasks want something to list, of two owners and with failures.
    async fn earlier_tasks(&self) {
        let client = self.client("limited token", "").await;
        for (name, what) in [("a.iso", "GET"), ("b.tar.gz", "POST")] {
            let params = json!({
                "url": format!("http://127.0.0.1:{}/nosuch", self.source), "content": if what == "GET" { "iso" } else { "vztmpl" },
                "filename": name,
            });
            let path = "/nodes/pve1/storage/local/download-url";
            let upid = self.root.call("POST", path, params).await.data();
            self.root.finish("pve1", &upid).await;
        }
        client.done("POST", "/nodes/pve1/qemu", json!({ "vmid": 699 })).await;
        client.done("DELETE", "/nodes/pve1/qemu/699", Value::Null).await;
    }

    async fn alias_and_candidate(&self) {
        for (vmid, name, tags, text) in
            [(600, "alias", "forge;stable", "release 1"), (610, "candidate", "forge;candidate", "release 2")]
        {
            self.make(json!({
                "vmid": vmid, "name": name, "tags": tags, "description": text, "kvm": 0, "memory": 256, "agent": 1,
                "net0": "virtio,bridge=vmbr0", "virtio0": "local:1,format=qcow2,iothread=1,discard=on",
                "boot": "order=virtio0;net0",
            }))
            .await;
            self.root.done("POST", &format!("/nodes/pve1/qemu/{vmid}/template"), json!({})).await;
        }
        self.change(600, json!({ "protection": 1 })).await;
    }

    /// VMs that were removed unrecorded before their number was used again.
    async fn free_vmid(&self, exchange: &Value) {
        let request = &exchange["request"];
        let create = request["method"] == "POST" && request["path"] == "/api2/json/nodes/pve1/qemu";
        let made = exchange["response"]["body"]["data"].is_string();
        if !create || !made {
            return;
        }
        let raw = request["body"]["raw"].as_str().and_then(|raw| raw.strip_prefix("vmid=")?.parse().ok());
        let number = |value: &Value| value.as_u64().or_else(|| value.as_str()?.parse().ok());
        let vmid = number(&request["body"]["vmid"]).or_else(|| number(&request["query"]["vmid"])).or(raw);
        let Some(vmid) = vmid else {
            return;
        };
        loop {
            let answer = self.root.call("DELETE", &format!("/nodes/pve1/qemu/{vmid}"), Value::Null).await;
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            if text.contains("does not exist") {
                return;
            }
            if text.contains("is running") {
                self.power(vmid as u32, "stop").await;
            } else {
                self.root.finish("pve1", &answer.data()).await;
            }
        }
    }
}

/// The rights that the limited token lacks or has beside its usual ones, out of the note.
pub(crate) fn changed_rights(note: &str) -> (Vec<String>, Vec<String>) {
    let all = [
        "VM.Allocate",
        "VM.Audit",
        "VM.Clone",
        "VM.Config.CDROM",
        "VM.Config.CPU",
        "VM.Config.Cloudinit",
        "VM.Config.Disk",
        "VM.Config.HWType",
        "VM.Config.Memory",
        "VM.Config.Network",
        "VM.Config.Options",
        "VM.Console",
        "VM.Monitor",
        "VM.PowerMgmt",
        "Datastore.AllocateSpace",
        "Datastore.AllocateTemplate",
        "Datastore.Audit",
        "SDN.Use",
        "Sys.Audit",
    ];
    let mut without = Vec::new();
    if let Some(rest) = note.split(" without ").nth(1) {
        let rest = rest.split([':', ',']).next().unwrap_or(rest);
        for word in rest.trim_start_matches("any ").split(" and ").map(str::trim) {
            let hit = |name: &&&str| **name == word || name.ends_with(&format!(".{word}"));
            let group = |name: &&&str| rest.starts_with("any ") && name.starts_with("VM.Config");
            without.extend(all.iter().filter(|name| hit(name) || group(name)).map(|name| (*name).to_owned()));
        }
        if rest.contains("AllocateSpace and Audit") {
            without.retain(|name| name.starts_with("Datastore"));
        }
        if rest == "rights there" {
            without.push("VM.Config.Disk".into());
        }
    }
    let with =
        if note.contains("with Sys.AccessNetwork") { vec!["Sys.AccessNetwork".into()] } else { Vec::new() };
    (without, with)
}
