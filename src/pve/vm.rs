//! Virtual machines: create, configure, power, clone, convert, destroy.
//!
//! Every method is one call. Those that return a [`Upid`] have begun a task, to be waited for with
//! [`Client::wait`]; when the answer to such a call is lost, the task is looked for before
//! [`Error::Unknown`] is given.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::agent::Agent;
use super::call::{Call, Params};
use super::loose::{self, Text};
use super::property::parse_tags;
use super::{Client, Error, NodeName, StorageId, Upid, Vmid};

/// A VM on a node, whether it exists or not.
#[derive(Debug, Clone)]
pub struct Vm {
    pub(super) client: Client,
    pub(super) node: NodeName,
    pub(super) vmid: Vmid,
}

/// A VM's configuration as read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VmConfig {
    /// Changes with every change; see [`ConfigChange::digest`].
    pub digest: String,
    /// Every key with its value as text, apart from the digest.
    pub values: BTreeMap<String, String>,
}

impl VmConfig {
    /// Returns a value.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str)
    }

    /// Returns the lock, such as `clone` or `backup`, while something works on the VM.
    #[must_use]
    pub fn lock(&self) -> Option<&str> {
        self.get("lock")
    }

    /// Tells whether it is a template.
    #[must_use]
    pub fn is_template(&self) -> bool {
        self.get("template") == Some("1")
    }

    /// Returns the tags, in lower case.
    #[must_use]
    pub fn tags(&self) -> std::collections::BTreeSet<String> {
        parse_tags(self.get("tags").unwrap_or_default())
    }

    /// Returns the UUID of `smbios1`, in lower case.
    #[must_use]
    pub fn uuid(&self) -> Option<String> {
        super::property::parse_smbios(self.get("smbios1")?).get("uuid").map(|uuid| uuid.to_lowercase())
    }
}

impl<'de> Deserialize<'de> for VmConfig {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = BTreeMap::<String, Text>::deserialize(deserializer)?;
        let mut values: BTreeMap<_, _> =
            fields.into_iter().filter_map(|(key, value)| Some((key, value.0?))).collect();
        let digest = values.remove("digest").unwrap_or_default();
        Ok(Self { digest, values })
    }
}

/// A change of a VM's configuration.
///
/// Never set a volume and delete something at once: the deletion is done even when the volume is refused.
#[derive(Debug, Clone, Default)]
pub struct ConfigChange {
    /// What to set.
    pub set: Params,
    /// What to delete.
    pub delete: Vec<String>,
    /// The digest that the configuration must still have, else [`Error::Changed`].
    pub digest: Option<String>,
}

impl ConfigChange {
    /// Returns a change that sets values.
    pub fn set<K: Into<String>, V: Into<String>>(values: impl IntoIterator<Item = (K, V)>) -> Self {
        let set = values.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        Self { set, ..Self::default() }
    }

    /// Returns a change that deletes keys.
    pub fn delete<K: Into<String>>(keys: impl IntoIterator<Item = K>) -> Self {
        Self { delete: keys.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// Returns the change bound to a configuration that was read.
    #[must_use]
    pub fn of(mut self, config: &VmConfig) -> Self {
        self.digest = Some(config.digest.clone());
        self
    }

    fn params(&self) -> Params {
        let mut params = self.set.clone();
        if !self.delete.is_empty() {
            params.insert("delete".to_owned(), self.delete.join(","));
        }
        params.extend(self.digest.clone().map(|digest| ("digest".to_owned(), digest)));
        params
    }
}

/// How a VM is.
#[derive(Debug, Clone, Deserialize)]
pub struct VmStatus {
    /// Its number.
    pub vmid: Vmid,
    /// `running` or `stopped`.
    pub status: String,
    /// What QEMU says: running, paused, prelaunch, io-error, internal-error, …
    #[serde(default)]
    pub qmpstatus: Option<String>,
    /// The name.
    #[serde(default)]
    pub name: Option<String>,
    /// The config's lock.
    #[serde(default)]
    pub lock: Option<String>,
    /// The tags as stored.
    #[serde(default)]
    pub tags: Option<String>,
    /// How long it has been running, in seconds.
    #[serde(default, deserialize_with = "loose::number")]
    pub uptime: u64,
    /// QEMU's process id.
    #[serde(default, deserialize_with = "loose::maybe_number")]
    pub pid: Option<u32>,
    /// Whether it is a template.
    #[serde(default, deserialize_with = "loose::flag")]
    pub template: bool,
}

impl VmStatus {
    /// Tells whether QEMU runs, be it paused.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.status == "running"
    }
}

/// How to clone a VM.
#[derive(Debug, Clone)]
pub struct CloneOptions {
    /// The VMID of the clone.
    pub newid: Vmid,
    /// Its name.
    pub name: Option<String>,
    /// Whether its disks are copies; else they are linked to a template's.
    pub full: bool,
    /// Where a full clone's disks go; else where the original's are.
    pub storage: Option<StorageId>,
    /// The pool it goes to.
    pub pool: Option<String>,
    /// Its description, else the original's.
    pub description: Option<String>,
}

impl Client {
    /// Returns a VM on a node, which may or may not exist.
    #[must_use]
    pub fn vm(&self, node: &NodeName, vmid: Vmid) -> Vm {
        Vm { client: self.clone(), node: node.clone(), vmid }
    }

    /// Lists the VMs of a node that this user may see, as they are at this moment.
    pub async fn vms(&self, node: &NodeName) -> Result<Vec<VmStatus>, Error> {
        self.ask(Call::get("/nodes/{node}/qemu").at(node)).await
    }
}

impl Vm {
    /// Returns its number.
    #[must_use]
    pub fn vmid(&self) -> Vmid {
        self.vmid
    }

    /// Returns its node.
    #[must_use]
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// Returns the client.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Returns its guest agent.
    #[must_use]
    pub fn agent(&self) -> Agent {
        Agent { vm: self.clone() }
    }

    fn at(&self, call: Call) -> Call {
        call.at(&self.node).vm(self.vmid)
    }

    async fn begin(&self, call: Call, kind: &str) -> Result<Upid, Error> {
        self.client.start_task(call, &self.node, kind, &self.vmid.to_string()).await
    }

    /// Creates it, with disks such as `local-zfs:50`.
    ///
    /// # Errors
    /// [`Error::Taken`] when the VMID is somebody's. After [`Error::Unknown`] the VMID may be
    /// somebody else's, too: see who made it before touching it.
    pub async fn create(&self, params: &Params) -> Result<Upid, Error> {
        let mut params = params.clone();
        params.insert("vmid".to_owned(), self.vmid.to_string());
        let call = Call::post("/nodes/{node}/qemu").at(&self.node).holding(self.vmid).params(&params);
        self.begin(call, "qmcreate").await
    }

    /// Returns its configuration, with pending changes in it.
    pub async fn config(&self) -> Result<VmConfig, Error> {
        self.client.ask(self.at(Call::get("/nodes/{node}/qemu/{vmid}/config"))).await
    }

    /// Changes its configuration at once, for what neither allocates nor plugs: an answer that takes
    /// over 30 s is lost.
    pub async fn set(&self, change: &ConfigChange) -> Result<(), Error> {
        let call = self.at(Call::put("/nodes/{node}/qemu/{vmid}/config")).params(&change.params());
        self.client.call(call).await.map(drop)
    }

    /// Changes its configuration by a task, for what takes long.
    pub async fn update(&self, change: &ConfigChange) -> Result<Upid, Error> {
        let call = self.at(Call::post("/nodes/{node}/qemu/{vmid}/config")).params(&change.params());
        self.begin(call, "qmconfig").await
    }

    /// Returns how it is.
    pub async fn status(&self) -> Result<VmStatus, Error> {
        self.client.ask(self.at(Call::get("/nodes/{node}/qemu/{vmid}/status/current"))).await
    }

    /// Starts it; `limit` is how long QEMU may take, else Proxmox's own.
    pub async fn start(&self, limit: Option<Duration>) -> Result<Upid, Error> {
        let call = self.at(Call::post("/nodes/{node}/qemu/{vmid}/status/start"));
        self.begin(with_timeout(call, limit, json!({})), "qmstart").await
    }

    /// Pulls its plug. One that is stopped stays so.
    pub async fn stop(&self) -> Result<Upid, Error> {
        self.begin(self.at(Call::post("/nodes/{node}/qemu/{vmid}/status/stop")), "qmstop").await
    }

    /// Asks its guest to power off, by the agent if that answers, else by ACPI; with `force` its plug is
    /// pulled when the time is over. The VM's lock is held all the while.
    pub async fn shutdown(&self, limit: Duration, force: bool) -> Result<Upid, Error> {
        let call = self.at(Call::post("/nodes/{node}/qemu/{vmid}/status/shutdown"));
        let body = json!({ "forceStop": u8::from(force) });
        self.begin(with_timeout(call, Some(limit), body), "qmshutdown").await
    }

    /// Asks its guest to power off, as [`Self::shutdown`] does, and starts it again.
    pub async fn reboot(&self, limit: Duration) -> Result<Upid, Error> {
        let call = self.at(Call::post("/nodes/{node}/qemu/{vmid}/status/reboot"));
        self.begin(with_timeout(call, Some(limit), json!({})), "qmreboot").await
    }

    /// Makes a copy of it. Tags, description, `onboot`, `protection` and even `meta` are copied.
    pub async fn clone_to(&self, options: &CloneOptions) -> Result<Upid, Error> {
        let CloneOptions { newid, name, full, storage, pool, description } = options;
        let mut params = Params::from([
            ("newid".to_owned(), newid.to_string()),
            ("full".to_owned(), u8::from(*full).to_string()),
        ]);
        let storage = storage.as_ref().map(ToString::to_string);
        let optional = [("name", name), ("storage", &storage), ("pool", pool), ("description", description)];
        params.extend(optional.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?))));
        let call = self.at(Call::post("/nodes/{node}/qemu/{vmid}/clone")).holding(*newid).params(&params);
        self.begin(call, "qmclone").await
    }

    /// Turns it into a template. A task that fails midway leaves it half converted.
    pub async fn convert(&self) -> Result<Upid, Error> {
        self.begin(self.at(Call::post("/nodes/{node}/qemu/{vmid}/template")), "qmtemplate").await
    }

    /// Enlarges a disk: `size` is `+10G` or, absolute, `60G`.
    pub async fn resize(&self, disk: &str, size: &str) -> Result<Upid, Error> {
        let call = self.at(Call::put("/nodes/{node}/qemu/{vmid}/resize"));
        self.begin(call.body(json!({ "disk": disk, "size": size })), "resize").await
    }

    /// Destroys it with its disks, and its entries in backup jobs, replication and HA. It must be stopped.
    ///
    /// Volumes that bear its VMID and that it does not name stay: they may be what somebody else keeps.
    pub async fn destroy(&self) -> Result<Upid, Error> {
        let call = self.at(Call::delete("/nodes/{node}/qemu/{vmid}")).query("purge", 1);
        self.begin(call, "qmdestroy").await
    }

    /// Presses keys together, named as QEMU's monitor names them: `ret`, `spc`, `shift-a`, `ctrl-alt-f2`.
    ///
    /// # Errors
    /// [`Error::Refused`] with 400 `Bad Request` and no reason for a key that QEMU does not know.
    pub async fn send_key(&self, key: &str) -> Result<(), Error> {
        let call = self.at(Call::put("/nodes/{node}/qemu/{vmid}/sendkey"));
        if !key.is_ascii() {
            // Anything else blocks the VM's monitor for 5 s.
            let reason = format!("`{key}` has characters besides ASCII");
            return Err(Error::Unusable { what: call.to_string(), reason });
        }
        self.client.call(call.body(json!({ "key": key }))).await.map(drop)
    }
}

fn with_timeout(call: Call, limit: Option<Duration>, mut body: Value) -> Call {
    if let Some(limit) = limit {
        body["timeout"] = limit.as_secs().max(1).into();
    }
    call.body(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_is_read_whatever_its_types() {
        let text = r#"{"kvm":0,"memory":"1024","boot":" ","digest":"3a1e","cores":2,"tags":"Forge;a",
            "lock":"clone","template":1,"smbios1":"uuid=A2DF-1","unused3":"local:5","vmgenid":null}"#;
        let config: VmConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.digest, "3a1e");
        assert_eq!(
            (config.get("kvm"), config.get("memory"), config.get("vmgenid")),
            (Some("0"), Some("1024"), None)
        );
        assert_eq!((config.lock(), config.is_template()), (Some("clone"), true));
        assert_eq!(config.uuid().unwrap(), "a2df-1");
        assert!(config.tags().contains("forge"));
    }

    #[test]
    fn a_change_names_what_it_sets_and_deletes() {
        let config = VmConfig { digest: "abc".to_owned(), ..VmConfig::default() };
        let change = ConfigChange {
            delete: vec!["ide2".into(), "reboot".into()],
            ..ConfigChange::set([("cores", "2")])
        };
        let params = change.of(&config).params();
        let expected = [("cores", "2"), ("delete", "ide2,reboot"), ("digest", "abc")];
        assert_eq!(params, expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    }
}
