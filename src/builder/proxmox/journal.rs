//! What a run is about to make on a node: `.forge/runs/<id>/proxmox.json`.
//!
//! While its create or clone task runs, a VM bears no marks. So the run writes down the VMID first, and
//! strikes it out when the VM is gone again or is handed over. What stands in the journal of a dead run may
//! still be there.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::{fs, io};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::super::workspace;
use crate::pve::{NodeName, Upid, Vmid};

/// The journal's name in its run's folder.
pub const FILE: &str = "proxmox.json";

const SCHEMA: u32 = 1;

/// A VM that a run is about to make, or has made and not handed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its number.
    pub vmid: Vmid,
    /// Its node.
    pub node: String,
    /// Its SMBIOS UUID, in lower case; a clone's is not known before it is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// When it was written down or its request last went out, in seconds since 1970 by this machine's
    /// clock.
    pub begun: i64,
    /// The task that makes it, once an answer has named it: a clone's names only the original.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Upid>,
}

/// A volume with a run's secrets that it is about to upload, or has uploaded and not removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Its name, such as `local:iso/forge-seed-20261121-142109-a1b2c3.iso`.
    pub volid: String,
    /// The node by which it is reached.
    pub node: String,
    /// When it was written down, in seconds since 1970 by this machine's clock.
    pub begun: i64,
}

/// A journal's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The version of this format: 1.
    pub schema: u32,
    /// The run.
    pub run: String,
    /// The addresses of the cluster, as the profile has them.
    pub endpoints: Vec<String>,
    /// The VMs that may be there.
    pub vms: Vec<Entry>,
    /// The volumes that may be there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
}

impl Record {
    fn is_empty(&self) -> bool {
        self.vms.is_empty() && self.volumes.is_empty()
    }

    /// Tells whether it is about a cluster with one of these addresses.
    #[must_use]
    pub fn is_of(&self, endpoints: &[String]) -> bool {
        let plain = |text: &String| text.trim_end_matches('/').to_lowercase();
        self.endpoints.iter().any(|ours| endpoints.iter().any(|other| plain(ours) == plain(other)))
    }
}

/// The journal of the run that is under way; every change is on the disk when the call returns.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    record: Mutex<Record>,
}

impl Journal {
    /// Begins the journal of a run in its folder; nothing is written before the first VM.
    #[must_use]
    pub fn new(run_folder: &Path, run: &str, endpoints: &[String]) -> Self {
        let record = Record {
            schema: SCHEMA,
            run: run.to_owned(),
            endpoints: endpoints.to_owned(),
            vms: Vec::new(),
            volumes: Vec::new(),
        };
        Self { path: run_folder.join(FILE), record: Mutex::new(record) }
    }

    /// Writes down a VM, to be called before the request that makes it.
    ///
    /// # Errors
    /// When it cannot be written, or that VMID is this run's already: then the request must not be made.
    pub fn begin(&self, vmid: Vmid, node: &NodeName, uuid: Option<&str>) -> anyhow::Result<()> {
        anyhow::ensure!(self.open().iter().all(|vm| vm.vmid != vmid), "VM {vmid} is this run's already");
        let uuid = uuid.map(str::to_lowercase);
        let begun = jiff::Timestamp::now().as_second();
        self.change(|record| {
            record.vms.push(Entry { vmid, node: node.to_string(), uuid, begun, task: None });
        })
    }

    /// Says that the request that makes a VM goes out now, for the first time or again.
    ///
    /// # Errors
    /// When it cannot be written: then the request must not be made.
    pub fn note_request(&self, vmid: Vmid) -> anyhow::Result<()> {
        let begun = jiff::Timestamp::now().as_second();
        self.change(|record| {
            for vm in record.vms.iter_mut().filter(|vm| vm.vmid == vmid) {
                (vm.begun, vm.task) = (begun, None);
            }
        })
    }

    /// Adds the task that makes a VM.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note_task(&self, vmid: Vmid, task: &Upid) -> anyhow::Result<()> {
        self.change(|record| {
            if let Some(vm) = record.vms.iter_mut().find(|vm| vm.vmid == vmid) {
                vm.task = Some(task.clone());
            }
        })
    }

    /// Strikes out a VM that is gone, was never made, or is handed over: a proven candidate, one that is
    /// kept on purpose, or somebody else's.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn close(&self, vmid: Vmid) -> anyhow::Result<()> {
        self.change(|record| record.vms.retain(|vm| vm.vmid != vmid))
    }

    /// Writes down a volume, to be called before its upload.
    ///
    /// # Errors
    /// When it cannot be written: then nothing must be uploaded.
    pub fn begin_volume(&self, node: &NodeName, volid: &str) -> anyhow::Result<()> {
        let begun = jiff::Timestamp::now().as_second();
        let volume = Volume { volid: volid.to_owned(), node: node.to_string(), begun };
        self.change(|record| record.volumes.push(volume))
    }

    /// Strikes out a volume that is gone.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn close_volume(&self, volid: &str) -> anyhow::Result<()> {
        self.change(|record| record.volumes.retain(|volume| volume.volid != volid))
    }

    /// Returns the VMs that are written down.
    #[must_use]
    pub fn open(&self) -> Vec<Entry> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).vms.clone()
    }

    fn change(&self, change: impl FnOnce(&mut Record)) -> anyhow::Result<()> {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut record);
        write(&self.path, &record)
    }
}

/// A journal with something open, of a run of this root.
#[derive(Debug)]
pub struct Found {
    /// What stands in it.
    pub record: Record,
    /// Whether the run still lives.
    pub is_alive: bool,
    path: PathBuf,
}

impl Found {
    /// Strikes out a VM of a dead run.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn close(&mut self, vmid: Vmid) -> anyhow::Result<()> {
        self.record.vms.retain(|vm| vm.vmid != vmid);
        write(&self.path, &self.record)
    }

    /// Strikes out a volume of a dead run.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn close_volume(&mut self, volid: &str) -> anyhow::Result<()> {
        self.record.volumes.retain(|volume| volume.volid != volid);
        write(&self.path, &self.record)
    }
}

/// Returns the journals below a root with something open, the oldest run first.
///
/// # Errors
/// When a folder or a journal cannot be read.
pub fn find(root: &Path) -> anyhow::Result<Vec<Found>> {
    let mut runs = workspace::runs(root)?;
    runs.sort();
    let mut found = Vec::new();
    for run in runs {
        if let Some(record) = read(&run)?.filter(|record| !record.is_empty()) {
            let is_alive = workspace::is_alive(&run);
            found.push(Found { record, is_alive, path: run.join(FILE) });
        }
    }
    Ok(found)
}

/// Tells whether a run's folder must stay, for what may still be on a node because of it.
#[must_use]
pub fn is_open(run_folder: &Path) -> bool {
    // One that cannot be read may say anything.
    read(run_folder).map_or(true, |record| record.is_some_and(|it| !it.is_empty()))
}

fn read(run_folder: &Path) -> anyhow::Result<Option<Record>> {
    let path = run_folder.join(FILE);
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| format!("reading {}", path.display()))?,
    };
    parse(&text).with_context(|| format!("reading {}", path.display())).map(Some)
}

fn parse(text: &str) -> anyhow::Result<Record> {
    let record: Record = serde_json::from_str(text)?;
    let schema = record.schema;
    anyhow::ensure!(schema == SCHEMA, "it has the version {schema}, and this forge reads {SCHEMA}");
    Ok(record)
}

fn write(path: &Path, record: &Record) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(record).context("writing a journal's JSON")? + "\n";
    workspace::write_whole(path, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::workspace::Workspace;

    fn vmid(number: u32) -> Vmid {
        Vmid::new(number).unwrap()
    }

    fn node() -> NodeName {
        "asgard".parse().unwrap()
    }

    fn endpoints() -> Vec<String> {
        vec!["https://asgard:8006".to_owned()]
    }

    #[test]
    fn what_is_open_is_found_when_the_run_is_dead() {
        let root = tempfile::tempdir().unwrap();
        let run = Workspace::create(root.path()).unwrap();
        let journal = Journal::new(&run.folder, &run.id, &endpoints());
        assert!(!is_open(&run.folder));
        journal.begin(vmid(9000), &node(), Some("1B4E28BA-2fa1-41d2-883f-0016d3cca427")).unwrap();
        journal.begin(vmid(9001), &node(), None).unwrap();
        journal.close(vmid(9000)).unwrap();
        assert!(is_open(&run.folder));
        assert!(find(root.path()).unwrap()[0].is_alive);
        drop(run);
        let mut found = find(root.path()).unwrap();
        assert!(!found[0].is_alive);
        assert_eq!(found[0].record.vms, journal.open());
        assert_eq!((found[0].record.vms[0].vmid, found.len()), (vmid(9001), 1));
        found[0].close(vmid(9001)).unwrap();
        assert!(find(root.path()).unwrap().is_empty());
    }

    #[test]
    fn a_vm_is_written_down_once_with_what_is_known_last() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::new(folder.path(), "r", &endpoints());
        journal.begin(vmid(9000), &node(), Some("ABC")).unwrap();
        let error = journal.begin(vmid(9000), &node(), None).unwrap_err();
        assert_eq!(error.to_string(), "VM 9000 is this run's already");
        let task: Upid =
            "UPID:asgard:0012D687:05F5E0FF:68E77800:qmcreate:9000:forge@pve!ci:".parse().unwrap();
        journal.note_task(vmid(9000), &task).unwrap();
        let now = || read(folder.path()).unwrap().unwrap().vms;
        assert_eq!(now().len(), 1);
        assert_eq!((now()[0].uuid.as_deref(), now()[0].task.as_ref()), (Some("abc"), Some(&task)));
        journal.note_request(vmid(9000)).unwrap();
        assert_eq!(now()[0].task, None, "that of an earlier request");
    }

    #[test]
    fn a_volume_keeps_a_journal_open_as_a_vm_does() {
        let root = tempfile::tempdir().unwrap();
        let run = Workspace::create(root.path()).unwrap();
        let journal = Journal::new(&run.folder, &run.id, &endpoints());
        journal.begin_volume(&node(), "local:iso/a.iso").unwrap();
        journal.begin_volume(&node(), "local:iso/b.iso").unwrap();
        journal.close_volume("local:iso/a.iso").unwrap();
        assert!(is_open(&run.folder));
        drop(run);
        let mut found = find(root.path()).unwrap();
        let volumes: Vec<_> = found[0].record.volumes.iter().map(|it| it.volid.as_str()).collect();
        assert_eq!(volumes, ["local:iso/b.iso"]);
        found[0].close_volume("local:iso/b.iso").unwrap();
        assert!(find(root.path()).unwrap().is_empty());
    }

    #[test]
    fn a_journal_that_cannot_be_read_counts_as_open_and_is_no_empty_answer() {
        let root = tempfile::tempdir().unwrap();
        let run = Workspace::create(root.path()).unwrap();
        for text in ["", "{", r#"{"schema":2,"run":"r","endpoints":[],"vms":[]}"#] {
            fs::write(run.folder.join(FILE), text).unwrap();
            assert!(is_open(&run.folder), "{text}");
            let error = find(root.path()).unwrap_err().to_string();
            assert!(error.contains(FILE), "{error}");
        }
    }

    #[test]
    fn a_dead_run_with_something_open_keeps_its_evidence() {
        let root = tempfile::tempdir().unwrap();
        let dead = Workspace::create(root.path()).unwrap();
        Journal::new(&dead.folder, &dead.id, &endpoints()).begin(vmid(9000), &node(), None).unwrap();
        let folder = dead.folder.clone();
        drop(dead);
        for number in 0..workspace::RUNS_KEPT + 2 {
            fs::create_dir_all(root.path().join(format!(".forge/runs/30000101-0000{number:02}-aaaaaa")))
                .unwrap();
        }
        Workspace::create(root.path()).unwrap().sweep().unwrap();
        assert!(is_open(&folder));
    }

    #[test]
    fn a_journal_is_about_its_cluster_only() {
        let record: Record =
            parse(r#"{"schema":1,"run":"r","endpoints":["https://asgard:8006"],"vms":[]}"#).unwrap();
        for (endpoint, expected) in
            [("https://asgard:8006", true), ("https://ASGARD:8006/", true), ("https://midgard:8006", false)]
        {
            assert_eq!(record.is_of(&["https://x:8006".into(), endpoint.into()]), expected, "{endpoint}");
        }
    }
}
