//! The simulated cluster: nodes, VMs, storages, tasks and who may do what.

pub(crate) mod config;
pub(crate) mod lock;
pub(crate) mod spec;
pub(crate) mod storage;
pub(crate) mod task;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value, json};

use crate::access::{Access, Identity};
use crate::answer::Failure;
use crate::hypervisor::{Machine, Volume};
use config::{Config, Drive};
use spec::{Bridge, Release};
use storage::{Image, Images, Storage, content_folder, content_of, split_linked};
use task::{Task, Upid};

/// A VM: its configuration, and the machine while one runs.
pub(crate) struct Vm {
    pub(crate) node: String,
    pub(crate) config: Config,
    pub(crate) machine: Option<Arc<dyn Machine>>,
    /// The configuration that the machine was started with.
    pub(crate) started_with: config::Keys,
    /// The agent hangs since a call with characters that it cannot bear.
    pub(crate) agent_hangs: bool,
    pub(crate) made: Instant,
}

impl Default for Vm {
    fn default() -> Self {
        Self {
            node: String::new(),
            config: Config::default(),
            machine: None,
            started_with: config::Keys::new(),
            agent_hangs: false,
            made: Instant::now(),
        }
    }
}

impl std::fmt::Debug for Vm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vm").field("node", &self.node).field("config", &self.config).finish_non_exhaustive()
    }
}

impl Vm {
    /// The machine, if it lives.
    pub(crate) fn running(&self) -> Option<Arc<dyn Machine>> {
        self.machine.clone().filter(|machine| machine.status().running)
    }
}

/// Everything that the simulated cluster knows.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) release: Release,
    pub(crate) nodes: Vec<String>,
    /// The node that answers.
    pub(crate) home: String,
    pub(crate) access: Access,
    pub(crate) storages: Vec<Storage>,
    pub(crate) bridges: Vec<Bridge>,
    pub(crate) pools: BTreeMap<String, Option<String>>,
    pub(crate) vms: BTreeMap<u32, Vm>,
    /// Containers, of which nothing is known but their nodes.
    pub(crate) containers: BTreeMap<u32, String>,
    pub(crate) images: Images,
    pub(crate) tasks: Vec<Task>,
    /// Tags that others than Sys.Modify holders may use; none means all.
    pub(crate) allowed_tags: Option<Vec<String>>,
    /// What the statistics daemon last told the cluster, by VMID.
    pub(crate) told: HashMap<u32, Value>,
    pub(crate) has_kvm: bool,
    state: PathBuf,
    next_pid: u32,
}

impl World {
    pub(crate) fn new(spec: spec::WorldSpec, state: PathBuf) -> Self {
        let access = spec.access();
        Self {
            release: spec.release,
            home: spec.nodes.first().cloned().unwrap_or_default(),
            nodes: spec.nodes,
            access,
            storages: spec.storages,
            bridges: spec.bridges,
            pools: spec.pools.into_iter().map(|pool| (pool, None)).collect(),
            vms: BTreeMap::new(),
            containers: BTreeMap::new(),
            images: Images::new(),
            tasks: Vec::new(),
            allowed_tags: spec.allowed_tags,
            told: HashMap::new(),
            has_kvm: spec.has_kvm,
            state,
            next_pid: 1000,
        }
    }

    /// # Errors
    /// The server's text for a VM that is not on this node.
    pub(crate) fn vm(&self, node: &str, vmid: u32) -> Result<&Vm, Failure> {
        self.vms.get(&vmid).filter(|vm| vm.node == node).ok_or_else(|| no_config(node, vmid))
    }

    /// # Errors
    /// As [`Self::vm`].
    pub(crate) fn vm_mut(&mut self, node: &str, vmid: u32) -> Result<&mut Vm, Failure> {
        self.vms.get_mut(&vmid).filter(|vm| vm.node == node).ok_or_else(|| no_config(node, vmid))
    }

    /// Who has a VMID, which is only one guest's in the whole cluster: `VM` or `CT`, and its node.
    pub(crate) fn owner_of(&self, vmid: u32) -> Option<(&'static str, &str)> {
        let vm = self.vms.get(&vmid).map(|vm| ("VM", vm.node.as_str()));
        vm.or_else(|| self.containers.get(&vmid).map(|node| ("CT", node.as_str())))
    }

    /// Puts a new VM's first configuration at a free VMID: nothing but its lock.
    pub(crate) fn reserve(&mut self, vmid: u32, node: &str, lock: &str) {
        let mut vm = Vm { node: node.into(), ..Vm::default() };
        vm.config.set("lock", lock);
        self.told.remove(&vmid);
        self.vms.insert(vmid, vm);
    }

    pub(crate) fn new_upid(&mut self, node: &str, kind: &str, id: &str, who: &Identity, now: i64) -> Upid {
        self.next_pid += 7;
        Upid {
            node: node.into(),
            pid: self.next_pid,
            pstart: self.next_pid * 13,
            starttime: now,
            kind: kind.into(),
            id: id.into(),
            user: who.full(),
        }
    }

    pub(crate) fn task(&self, upid: &str) -> Option<&Task> {
        self.tasks.iter().find(|task| task.upid.to_string() == upid)
    }

    pub(crate) fn task_mut(&mut self, upid: &Upid) -> Option<&mut Task> {
        self.tasks.iter_mut().find(|task| task.upid == *upid)
    }

    /// # Errors
    /// The server's text for a storage that is not configured.
    pub(crate) fn storage(&self, id: &str) -> Result<&Storage, String> {
        let found = self.storages.iter().find(|storage| storage.id == id);
        found.ok_or_else(|| format!("storage '{id}' does not exist"))
    }

    /// A storage that can be used on `node` now.
    ///
    /// # Errors
    /// The server's text: unknown, disabled, not on this node.
    pub(crate) fn usable_storage(&self, id: &str, node: &str) -> Result<&Storage, String> {
        let storage = self.storage(id)?;
        if storage.disabled {
            return Err(format!("storage '{id}' is disabled"));
        }
        if !storage.on(node) {
            return Err(format!("storage '{id}' is not available on node '{node}'"));
        }
        Ok(storage)
    }

    /// The folder that stands for a storage on `node`.
    pub(crate) fn root(&self, storage: &Storage, node: &str) -> PathBuf {
        self.state.join("storage").join(storage.scope(node)).join(&storage.id)
    }

    /// Where temporary files go.
    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    /// The image that `volid` names on `node`.
    pub(crate) fn image(&self, volid: &str, node: &str) -> Option<&Image> {
        self.images.get(&self.image_key(volid, node)?)
    }

    pub(crate) fn image_key(&self, volid: &str, node: &str) -> Option<(String, String, String)> {
        let (id, name) = volid.split_once(':')?;
        let storage = self.storage(id).ok()?;
        let (leaf, _) = split_linked(storage.kind, name);
        Some((storage.scope(node).to_owned(), id.to_owned(), leaf.to_owned()))
    }

    /// The file behind a volume of any content, and its size.
    pub(crate) fn volume(&self, volid: &str, node: &str) -> Option<(Volume, u64)> {
        if let Some(image) = self.image(volid, node) {
            let volume = Volume { path: image.file.clone(), format: image.file_format.clone() };
            return Some((volume, image.bytes));
        }
        let (id, name) = volid.split_once(':')?;
        let storage = self.storage(id).ok()?;
        let content = content_of(storage.kind, name).ok()?;
        let file = name.split_once('/')?.1;
        let path = self.root(storage, node).join(content_folder(content)?).join(file);
        let bytes = path.metadata().ok()?.len();
        let extension = path.extension().and_then(|text| text.to_str()).unwrap_or_default();
        let format = if content == "import" { extension } else { "raw" };
        Some((Volume { path: path.clone(), format: format.into() }, bytes))
    }

    /// Linked clones of an image.
    pub(crate) fn has_children(&self, image: &Image, scope: &str) -> bool {
        self.images.iter().any(|((in_scope, id, _), other)| {
            in_scope == scope && *id == image.storage && other.base.as_deref() == Some(image.leaf.as_str())
        })
    }

    /// The image of a drive, if it has one on this node.
    pub(crate) fn drive_image(&self, drive: &Drive, node: &str) -> Option<&Image> {
        if drive.has_volume() { self.image(&drive.file, node) } else { None }
    }

    pub(crate) fn has_node(&self, name: &str) -> bool {
        self.nodes.iter().any(|node| node == name)
    }

    pub(crate) fn free_vmid(&self) -> u32 {
        (100..=999_999_999).find(|vmid| self.owner_of(*vmid).is_none()).unwrap_or(100)
    }

    /// Everything that a test may want to compare: VMs, volumes, pools, rules; no times.
    pub(crate) fn dump(&self) -> Value {
        let vms: Map<String, Value> = self
            .vms
            .iter()
            .map(|(vmid, vm)| {
                let vm = json!({
                    "node": vm.node,
                    "config": vm.config.keys,
                    "pending": vm.config.pending,
                    "deleted": vm.config.deleted,
                    "running": vm.running().is_some(),
                });
                (vmid.to_string(), vm)
            })
            .collect();
        let images: Vec<Value> = self
            .images
            .iter()
            .map(|((scope, ..), image)| {
                let kind = self.storage(&image.storage).map_or(storage::StorageKind::Dir, |s| s.kind);
                json!({ "on": scope, "volid": image.volid(kind), "bytes": image.bytes, "format": image.format })
            })
            .collect();
        let rules: Vec<Value> = self
            .access
            .rules
            .iter()
            .map(|rule| json!([rule.path, rule.who, rule.role, rule.propagate]))
            .collect();
        json!({
            "vms": vms,
            "containers": self.containers,
            "images": images,
            "files": self.files(),
            "pools": self.access.pools,
            "rules": rules,
            "running_tasks": self.tasks.iter().filter(|task| task.end.is_none()).count(),
        })
    }

    /// Uploaded files of every storage, with their sizes.
    fn files(&self) -> Vec<Value> {
        let mut found = Vec::new();
        for storage in self.storages.iter().filter(|storage| storage.kind.has_files()) {
            let nodes = if storage.shared { &self.nodes[..1] } else { &self.nodes[..] };
            for node in nodes.iter().filter(|node| storage.on(node)) {
                for (volid, _, path) in self.uploaded(storage, node) {
                    let bytes = path.metadata().map_or(0, |meta| meta.len());
                    found.push(json!({ "on": storage.scope(node), "volid": volid, "bytes": bytes }));
                }
            }
        }
        found
    }

    /// Volume id, content and path of each uploaded file.
    pub(crate) fn uploaded(&self, storage: &Storage, node: &str) -> Vec<(String, &'static str, PathBuf)> {
        let mut found = Vec::new();
        for content in ["iso", "vztmpl", "import", "snippets"] {
            let folder = content_folder(content).map(|folder| self.root(storage, node).join(folder));
            let Some(Ok(entries)) = folder.map(std::fs::read_dir) else {
                continue;
            };
            for entry in entries.flatten() {
                let name = format!("{content}/{}", entry.file_name().to_string_lossy());
                if content_of(storage.kind, &name) == Ok(content) {
                    found.push((format!("{}:{name}", storage.id), content, entry.path()));
                }
            }
        }
        found.sort();
        found
    }
}

pub(crate) fn no_config(node: &str, vmid: u32) -> Failure {
    Failure::died(format!("Configuration file 'nodes/{node}/qemu-server/{vmid}.conf' does not exist"))
}
