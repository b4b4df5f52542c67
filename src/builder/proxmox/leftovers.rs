//! What dead runs have left on a cluster, and its removal; nothing else, ever.
//!
//! ```text
//! VMs of the range, those tagged `forge`, those in journals ─┐
//! journals of this root's runs                               ├─► judge (pure) ─► Leftover | Stuck | Unsure
//! our token's create and clone tasks                         ┘                   └─► looked at again, stopped,
//!                                                                                    again, destroyed
//! ```
//!
//! Two things make a VM a leftover: its marks (see [`marks::is_leftover`]), or the journal of a dead run
//! here together with the run's id or the UUID read back from the VM. Media named by their digest are a
//! cache and stay; a volume with a run's answers is a leftover by that run's journal.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use tokio::time::Instant;

use super::destroy::{Destroyed, config, destroy_if};
use super::journal::{self, Entry, Found, Volume};
use super::marks::{self, Marks, State};
use super::vm::is_being_made;
use super::{process, site, survey};
use crate::definition::ProxmoxProfile;
use crate::event::human_duration;
use crate::failure::{Failure, Kind, ResultExt as _};
use crate::pve::{Client, Error, Guest, NodeName, Storage, TaskFilter, TaskState, Upid, Vm, VmConfig, Vmid};

/// How long after a run wrote a VM down its request may still be at the server.
const IN_FLIGHT_SECONDS: i64 = 120;

/// How far back tasks are of interest, in seconds.
const TASKS_SECONDS: i64 = 24 * 3600;

/// What a VM is, as far as it is of interest here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is somebody's, or nothing of a dead run's.
    Other,
    /// A dead run has left it.
    Leftover {
        /// The run.
        run: String,
        /// How that is known.
        why: String,
    },
    /// A dead run's create or clone task still makes it.
    Making {
        /// The run.
        run: String,
        /// The task, where it is known which one it is.
        task: Option<Upid>,
    },
    /// A dead run's create or clone task died and left its lock, which root alone may clear.
    Stuck {
        /// The run, where it is known.
        run: Option<String>,
        /// The lock.
        lock: String,
    },
    /// This token is making it, for a run that may live on another machine.
    Unsure,
}

/// A create or clone task of this user's or token's.
#[derive(Debug, Clone)]
pub struct Making {
    /// The task.
    pub upid: Upid,
    /// How it is.
    pub state: TaskState,
}

/// A VM that a journal of this root names.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The run.
    pub run: String,
    /// Whether the run lives.
    pub is_alive: bool,
    /// What it wrote.
    pub entry: Entry,
}

/// What is known besides the VM itself.
#[derive(Debug, Clone)]
pub struct Circumstances {
    /// The time by the node's clock, in seconds since 1970.
    pub now: i64,
    /// How far that clock is ahead of this machine's.
    pub ahead: i64,
    /// This machine, as marks name it.
    pub host: String,
    /// What this root's journals say.
    pub claims: Vec<Claim>,
    /// This token's tasks.
    pub tasks: Vec<Making>,
}

/// Says what a VM is. `process_alive` is asked about processes of this machine only.
pub fn judge(
    vmid: Vmid,
    config: &VmConfig,
    known: &Circumstances,
    process_alive: impl Fn(u32, u64) -> bool,
) -> Verdict {
    let uuid = config.uuid();
    let claims: Vec<&Claim> = known.claims.iter().filter(|claim| claim.entry.vmid == vmid).collect();
    if claims.iter().any(|claim| claim.is_alive) {
        return Verdict::Other;
    }
    let marks = config.get("description").and_then(Marks::read);
    // Of several runs that took this VMID one after another, the one whose VM it is; else the last.
    let fits = |claim: &&&Claim| {
        marks.as_ref().is_some_and(|marks| marks.run == claim.run)
            || (uuid.is_some() && claim.entry.uuid == uuid)
    };
    let claim = claims.iter().rev().find(fits).or(claims.last()).copied();
    if let Some(marks) = marks {
        return judge_marked(&marks, vmid, config, known, claim, process_alive);
    }
    match claim {
        Some(claim) if claim.entry.uuid.is_some() && claim.entry.uuid == uuid && !is_being_made(config) => {
            Verdict::Leftover { run: claim.run.clone(), why: "written down by a run that is dead".to_owned() }
        }
        _ if is_being_made(config) => judge_unfinished(vmid, config, known, claim),
        _ => Verdict::Other,
    }
}

fn judge_marked(
    marks: &Marks,
    vmid: Vmid,
    config: &VmConfig,
    known: &Circumstances,
    claim: Option<&Claim>,
    process_alive: impl Fn(u32, u64) -> bool,
) -> Verdict {
    let uuid = config.uuid();
    let run = marks.run.clone();
    let why = |how: String| Verdict::Leftover { run: run.clone(), why: format!("{}; {how}", marks.state) };
    if is_being_made(config) {
        return judge_unfinished(vmid, config, known, claim);
    }
    let is_local = marks.host == known.host;
    if marks::is_leftover(
        marks,
        vmid,
        uuid.as_deref(),
        config.is_template(),
        known.now,
        &known.host,
        &process_alive,
    ) {
        return why(if is_local {
            format!("its process {} is gone", marks.pid)
        } else {
            let over = known.now.saturating_sub(marks.lease_until).max(0).cast_unsigned();
            format!("its lease ended {} ago", human_duration(Duration::from_secs(over)))
        });
    }
    // A clone's block is written before anybody knows its UUID, and a template may be of use: the journal
    // of the run that made them, and no lease, tells that they are not.
    let is_claimed = claim.is_some_and(|claim| {
        let is_this = marks.uuid.is_empty() || marks.is_about(vmid, uuid.as_deref());
        claim.run == marks.run && marks.vmid == vmid && is_this && marks.state.is_passing()
    });
    if is_claimed { why("its run is dead".to_owned()) } else { Verdict::Other }
}

fn judge_unfinished(vmid: Vmid, config: &VmConfig, known: &Circumstances, claim: Option<&Claim>) -> Verdict {
    let lock = config.lock().unwrap_or_default();
    let named = claim.and_then(|claim| claim.entry.task.as_ref());
    // By the node's clock.
    let begun = claim.map(|claim| claim.entry.begun + known.ahead);
    // A clone's task is named after the original, so that many may be meant.
    let may_make = |task: &&Making| match (lock, named) {
        (_, Some(upid)) => task.upid == *upid,
        ("create", None) => task.upid.kind() == "qmcreate" && task.upid.id() == vmid.to_string(),
        _ => claim.is_some() && task.upid.kind() == "qmclone",
    };
    let is_since = |task: &&Making| begun.is_none_or(|begun| task.upid.started() >= begun - 5);
    let order = |task: &&Making| (task.state == TaskState::Running, task.upid.started());
    let Some(last) = known.tasks.iter().filter(may_make).filter(is_since).max_by_key(order) else {
        return Verdict::Other;
    };
    // A later one is another run's with this token, which may live on another machine.
    let is_soon = begun.is_some_and(|begun| last.upid.started() <= begun + IN_FLIGHT_SECONDS);
    let certain = claim.filter(|_| named.is_some() || (lock == "create" && is_soon));
    match (&last.state, certain, claim) {
        // Whoever holds the VM now, it is not that task.
        (TaskState::Done(_), ..) => Verdict::Other,
        (TaskState::Failed(_), ..) => {
            Verdict::Stuck { run: certain.map(|it| it.run.clone()), lock: lock.to_owned() }
        }
        (TaskState::Running, Some(claim), _) => {
            Verdict::Making { run: claim.run.clone(), task: Some(last.upid.clone()) }
        }
        (TaskState::Running, None, Some(claim)) if lock == "clone" => {
            Verdict::Making { run: claim.run.clone(), task: None }
        }
        (TaskState::Running, None, _) => Verdict::Unsure,
    }
}

/// Something that a dead run has left, as it is told.
#[derive(Debug, Clone, Serialize)]
pub struct Leftover {
    /// Its VMID, where it is a VM.
    pub vmid: Option<Vmid>,
    /// Its name on the node's storages, where it is a volume.
    pub volume: Option<String>,
    /// Its node.
    pub node: String,
    /// Its name.
    pub name: Option<String>,
    /// The run.
    pub run: Option<String>,
    /// The template that was being built.
    pub template: Option<String>,
    /// Its state by its marks.
    pub state: Option<State>,
    /// How it is known to be one, or what is known.
    pub why: String,
    /// Whether it can be removed from here.
    pub removable: bool,
    /// What to do, where it cannot.
    pub advice: Option<String>,
}

impl Leftover {
    /// Returns what it is called by: its VMID, or its name on the node's storages.
    #[must_use]
    pub fn called(&self) -> String {
        self.vmid.map(|vmid| vmid.to_string()).or_else(|| self.volume.clone()).unwrap_or_default()
    }

    fn of_volume(run: &str, volume: &Volume) -> Self {
        Self {
            vmid: None,
            volume: Some(volume.volid.clone()),
            node: volume.node.clone(),
            name: None,
            run: Some(run.to_owned()),
            template: None,
            state: None,
            why: "the answers for its installer; its run is dead".to_owned(),
            removable: true,
            advice: None,
        }
    }
}

/// Looks for leftovers.
#[derive(Debug)]
pub struct Search<'a> {
    client: &'a Client,
    profile: &'a ProxmoxProfile,
    root: &'a Path,
    run: Option<&'a str>,
}

impl<'a> Search<'a> {
    /// Returns a search, for one run's leftovers if it is given; `root` has the journals.
    #[must_use]
    pub fn new(
        client: &'a Client,
        profile: &'a ProxmoxProfile,
        root: &'a Path,
        run: Option<&'a str>,
    ) -> Self {
        Self { client, profile, root, run }
    }

    /// Returns what dead runs have left, by VMID.
    ///
    /// # Errors
    /// Kind `Infrastructure` when the cluster or a journal cannot be read, or the token may not see VMs.
    pub async fn find(&self) -> Result<Vec<Leftover>, Failure> {
        self.see_whether_vms_are_shown().await?;
        let (guests, known) = self.look().await?;
        let mut found = Vec::new();
        for guest in guests.iter().filter(|guest| self.is_of_interest(guest, &known)) {
            let Some(vm) = self.vm(&guest.node, guest.vmid) else { continue };
            let Some(config) = config(&vm).await.map_err(site::failed)? else { continue };
            let verdict = judge(guest.vmid, &config, &known, process::is_alive);
            found.extend(self.told(guest, &config, verdict));
        }
        found.sort_by_key(|leftover| leftover.vmid);
        for (run, volume) in self.volumes().kind(Kind::Infrastructure)? {
            if self.run.is_none_or(|wanted| run == wanted) && self.is_there(&volume).await? {
                found.push(Leftover::of_volume(&run, &volume));
            }
        }
        Ok(found)
    }

    /// Removes a leftover, if it still is one.
    ///
    /// # Errors
    /// When it is none any more, when something holds it, or when Proxmox refuses.
    pub async fn remove(&self, leftover: &Leftover) -> Result<(), Failure> {
        if let Some(volid) = &leftover.volume {
            return self.remove_volume(&leftover.node, volid).await;
        }
        let vm = leftover.vmid.and_then(|vmid| self.vm(&leftover.node, vmid));
        let vm = vm.context("its node has a strange name").kind(Kind::Infrastructure)?;
        let limit = self.profile.task_timeout.duration();
        let deadline = Instant::now() + limit;
        loop {
            let (_, known) = self.look().await?;
            let Some(config) = config(&vm).await.map_err(site::failed)? else {
                return self.forget(vm.vmid());
            };
            match judge(vm.vmid(), &config, &known, process::is_alive) {
                Verdict::Making { task, .. } if Instant::now() < deadline => {
                    self.end(task.as_ref()).await.map_err(site::failed)?;
                }
                Verdict::Making { .. } => return Err(still_made(vm.vmid(), limit)),
                Verdict::Leftover { .. } => {
                    let still = |config: &VmConfig| {
                        matches!(
                            judge(vm.vmid(), config, &known, process::is_alive),
                            Verdict::Leftover { .. }
                        )
                    };
                    return match destroy_if(&vm, limit, &still).await.map_err(site::failed)? {
                        Destroyed::Gone => self.forget(vm.vmid()),
                        Destroyed::NotOurs => Err(changed(vm.vmid())),
                    };
                }
                Verdict::Stuck { lock, .. } => return Err(stuck(&vm, &lock)),
                Verdict::Other | Verdict::Unsure => return Err(changed(vm.vmid())),
            }
        }
    }

    /// Strikes out of dead runs' journals what is not there or is somebody else's.
    ///
    /// # Errors
    /// Kind `Infrastructure` when the cluster or a journal cannot be read, or a journal not be written.
    pub async fn tidy(&self) -> Result<(), Failure> {
        let (guests, known) = self.look().await?;
        let now = known.now - known.ahead;
        let settled = |claim: &&Claim| !claim.is_alive && now - claim.entry.begun > IN_FLIGHT_SECONDS;
        for claim in known.claims.iter().filter(settled) {
            let vmid = claim.entry.vmid;
            let listed = guests.iter().find(|guest| guest.vmid == vmid);
            let node = listed.map_or(claim.entry.node.as_str(), |guest| guest.node.as_str());
            let Some(vm) = self.vm(node, vmid) else { continue };
            let is_nothing = match config(&vm).await.map_err(site::failed)? {
                None => listed.is_none(),
                Some(config) if is_being_made(&config) => false,
                Some(config) => judge(vmid, &config, &known, process::is_alive) == Verdict::Other,
            };
            if is_nothing {
                self.forget(vmid)?;
            }
        }
        for (_, volume) in self.volumes().kind(Kind::Infrastructure)? {
            if now - volume.begun > IN_FLIGHT_SECONDS && !self.is_there(&volume).await? {
                self.forget_volume(&volume.volid)?;
            }
        }
        Ok(())
    }

    /// Returns the volumes of dead runs, each with its run.
    fn volumes(&self) -> anyhow::Result<Vec<(String, Volume)>> {
        let ours = |found: &Found| !found.is_alive && found.record.is_of(&self.profile.endpoints);
        let dead = journal::find(self.root)?.into_iter().filter(ours).map(|found| found.record);
        Ok(dead
            .flat_map(|record| record.volumes.into_iter().map(move |volume| (record.run.clone(), volume)))
            .collect())
    }

    async fn is_there(&self, volume: &Volume) -> Result<bool, Failure> {
        let Some(storage) = self.storage(&volume.node, &volume.volid) else { return Ok(false) };
        Ok(storage.volume(&volume.volid).await.map_err(site::failed)?.is_some())
    }

    async fn remove_volume(&self, node: &str, volid: &str) -> Result<(), Failure> {
        let storage = self.storage(node, volid).context("its node or storage has a strange name");
        let storage = storage.kind(Kind::Infrastructure)?;
        let upid = storage.delete(volid).await.map_err(site::failed)?;
        let limit = self.profile.task_timeout.duration();
        self.client.wait(&upid, limit, None).await.map_err(site::failed)?;
        self.forget_volume(volid)
    }

    /// Refuses a token to which Proxmox shows no VMs: it leaves them out of its list without a word, and
    /// nothing would seem to be left.
    async fn see_whether_vms_are_shown(&self) -> Result<(), Failure> {
        const NEEDED: &str = "VM.Audit";
        let first = format!("/vms/{}", survey::vmids(self.profile).start());
        let pool = self.profile.pool.as_ref().map(|pool| format!("/pool/{pool}"));
        let paths: Vec<String> = std::iter::once(first).chain(pool).collect();
        for path in &paths {
            if self.client.privileges(path).await.map_err(site::failed)?.contains(NEEDED) {
                return Ok(());
            }
        }
        let (who, paths) = (self.client.who(), paths.join(" and "));
        let error = anyhow::anyhow!(
            "{who} is shown no VMs, so nobody can tell what is left: {NEEDED} is missing on {paths}"
        );
        Err(Failure::new(Kind::Infrastructure, error)
            .hint("`forge doctor --on` this builder says what root types to give it"))
    }

    async fn look(&self) -> Result<(Vec<Guest>, Circumstances), Failure> {
        let guests = self.client.guests().await.map_err(site::failed)?;
        let claims = self.claims().kind(Kind::Infrastructure)?;
        let ahead = self.client.clock_ahead().unwrap_or_default();
        let now = site::server_now(self.client);
        let mut tasks = Vec::new();
        for node in self.client.nodes().await.map_err(site::failed)?.iter().filter(|node| node.is_online()) {
            let Ok(name) = node.node.parse() else { continue };
            for kind in ["qmcreate", "qmclone"] {
                tasks.extend(self.tasks(&name, kind, now).await.map_err(site::failed)?);
            }
        }
        Ok((guests, Circumstances { now, ahead, host: process::host(), claims, tasks }))
    }

    async fn tasks(&self, node: &NodeName, kind: &str, now: i64) -> Result<Vec<Making>, Error> {
        let filter = TaskFilter { vmid: None, kind: Some(kind), since: Some(now - TASKS_SECONDS) };
        let listed = self.client.tasks(node, &filter).await?;
        let ours = listed.into_iter().filter(|task| task.upid.user() == self.client.who());
        Ok(ours.map(|task| Making { state: task.state(), upid: task.upid }).collect())
    }

    fn claims(&self) -> anyhow::Result<Vec<Claim>> {
        let mut claims = Vec::new();
        for found in journal::find(self.root)? {
            if found.record.is_of(&self.profile.endpoints) {
                let (run, is_alive) = (&found.record.run, found.is_alive);
                let claim = |entry: &Entry| Claim { run: run.clone(), is_alive, entry: entry.clone() };
                claims.extend(found.record.vms.iter().map(claim));
            }
        }
        Ok(claims)
    }

    fn is_of_interest(&self, guest: &Guest, known: &Circumstances) -> bool {
        let is_tagged = || {
            let tags = crate::pve::property::parse_tags(guest.tags.as_deref().unwrap_or_default());
            tags.contains(marks::TAG)
        };
        let is_scratch = survey::vmids(self.profile).contains(&guest.vmid.get());
        let is_claimed = || known.claims.iter().any(|claim| claim.entry.vmid == guest.vmid);
        guest.kind == "qemu" && (is_scratch || is_tagged() || is_claimed())
    }

    fn vm(&self, node: &str, vmid: Vmid) -> Option<Vm> {
        Some(self.client.vm(&node.parse().ok()?, vmid))
    }

    fn storage(&self, node: &str, volid: &str) -> Option<Storage> {
        let id = volid.split_once(':')?.0.parse().ok()?;
        Some(self.client.storage(&node.parse().ok()?, &id))
    }

    fn told(&self, guest: &Guest, config: &VmConfig, verdict: Verdict) -> Option<Leftover> {
        let marks = config.get("description").and_then(Marks::read).filter(|it| it.vmid == guest.vmid);
        let (run, why, removable, advice) = match verdict {
            Verdict::Other => return None,
            Verdict::Leftover { run, why } => (Some(run), why, true, None),
            Verdict::Making { run, .. } => {
                (Some(run), "its run is dead, its task still makes it".to_owned(), true, None)
            }
            Verdict::Stuck { run, lock } => {
                let why = format!("its task died and left the lock `{lock}`");
                (run, why, false, Some(unlock(guest.vmid, &guest.node)))
            }
            Verdict::Unsure => {
                let why = "this token is making it, perhaps for a run on another machine".to_owned();
                (None, why, false, Some("look again when its task has ended".to_owned()))
            }
        };
        if self.run.is_some_and(|wanted| run.as_deref() != Some(wanted)) {
            return None;
        }
        Some(Leftover {
            vmid: Some(guest.vmid),
            volume: None,
            node: guest.node.clone(),
            name: config.get("name").map(str::to_owned).or_else(|| guest.name.clone()),
            run,
            template: marks.as_ref().map(|marks| marks.template.clone()),
            state: marks.map(|marks| marks.state),
            why,
            removable,
            advice,
        })
    }

    /// Ends the task that makes a VM; one that may be another run's is given time instead.
    async fn end(&self, task: Option<&Upid>) -> Result<(), Error> {
        let Some(task) = task else {
            tokio::time::sleep(self.client.pace().task_max).await;
            return Ok(());
        };
        self.client.stop_task(task).await?;
        match self.client.wait(task, self.profile.task_timeout.duration(), None).await {
            // However it ended: what is left is looked at next.
            Ok(_) | Err(Error::TaskFailed { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn forget(&self, vmid: Vmid) -> Result<(), Failure> {
        self.strike_out(|found| found.close(vmid))
    }

    fn forget_volume(&self, volid: &str) -> Result<(), Failure> {
        self.strike_out(|found| found.close_volume(volid))
    }

    /// Changes the journals of dead runs.
    fn strike_out(&self, change: impl Fn(&mut Found) -> anyhow::Result<()>) -> Result<(), Failure> {
        for mut found in journal::find(self.root).kind(Kind::Infrastructure)? {
            if !found.is_alive && found.record.is_of(&self.profile.endpoints) {
                change(&mut found).kind(Kind::Infrastructure)?;
            }
        }
        Ok(())
    }
}

fn changed(vmid: Vmid) -> Failure {
    let error = anyhow::anyhow!("VM {vmid} is no leftover any more, and has been left alone");
    Failure::new(Kind::Infrastructure, error)
}

fn still_made(vmid: Vmid, limit: Duration) -> Failure {
    let limit = human_duration(limit);
    Failure::new(
        Kind::Infrastructure,
        anyhow::anyhow!("the clone task of VM {vmid} has not ended within {limit}"),
    )
}

fn stuck(vm: &Vm, lock: &str) -> Failure {
    let error = anyhow::anyhow!("VM {} bears the lock `{lock}` of a task that died", vm.vmid());
    Failure::new(Kind::Infrastructure, error).hint(unlock(vm.vmid(), vm.node().as_str()))
}

pub(super) fn unlock(vmid: Vmid, node: &str) -> String {
    format!(
        "see first that nobody works on it; root alone may clear that: `qm unlock {vmid} && qm destroy {vmid} \
         --purge` on {node}"
    )
}

#[cfg(test)]
mod tests;
