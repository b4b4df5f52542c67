//! A VM of this run: how it comes to be, whose it is, how it ends.
//!
//! ```text
//! journal ─► undo registered ─► create or clone ─► marks, lease ─► … ─► destroyed, or handed over
//!                                   │ taken: the next VMID
//! ```
//!
//! Nothing is destroyed that does not read back this run's marks: after an answer that was lost, the VMID
//! may be somebody else's.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use futures_util::future::BoxFuture;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::Cluster;
use super::destroy::{Destroyed, config, destroy_if};
use super::leftovers::unlock;
use super::marks::{Marks, RENEW, State};
use super::site::{failed, server_now};
use crate::builder::{Keeper, Kept};
use crate::failure::{Failure, Kind, ResultExt as _};
use crate::pve::{ConfigChange, Error, HELD, Seen, TaskState, Upid, Vm, VmConfig, Vmid};
use crate::run::{Ending, Run, UndoId, Undone};

/// How long removing a VM may take: the end of its creation, its stop, its disks.
const REMOVAL: Duration = Duration::from_mins(10);

/// How long a picture of the screen may take.
const PICTURE: Duration = Duration::from_secs(20);

/// The least time between two renewals of a lease, however many steps begin.
const RENEW_MIN: Duration = Duration::from_mins(1);

/// A VM that this run has made and looks after.
#[derive(Debug)]
pub(super) struct OwnVm {
    pub(super) vm: Vm,
    pub(super) marks: Marks,
    /// Its configuration right after it was made.
    pub(super) made: VmConfig,
    undo: UndoId,
    lease: Lease,
}

impl OwnVm {
    /// Renews the lease, unless that was done just now.
    pub(super) fn renew(&self) {
        self.lease.wanted.notify_one();
    }

    /// Says that it is gone, or no longer this run's to remove.
    pub(super) fn hand_over(self, cluster: &Cluster<'_>, run: &Run) -> Result<(), Failure> {
        run.forget_undo(self.undo);
        cluster.journal.close(self.vm.vmid()).kind(Kind::Infrastructure)
    }

    /// Stops and destroys it.
    pub(super) async fn destroy(self, cluster: &Cluster<'_>, run: &Run) -> Result<(), Failure> {
        let removed = remove(&self.vm, &self.marks.run).await;
        removed.with_context(|| format!("destroying VM {}", self.vm.vmid())).kind(Kind::Infrastructure)?;
        self.hand_over(cluster, run)
    }
}

/// What a VM that is about to be made is for.
#[derive(Debug, Clone)]
pub(super) struct Purpose {
    /// What it is called in evidence: `machine`, `template`, or a clone's name.
    pub(super) name: String,
    pub(super) state: State,
}

/// Sends the request that makes a VM.
pub(super) type Make<'m> =
    &'m (dyn for<'a> Fn(&'a Vm, &'a Marks) -> BoxFuture<'a, Result<Upid, Error>> + Send + Sync);

/// A VMID that is written down and whose undo is registered, before the request that takes it.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) vm: Vm,
    pub(super) marks: Marks,
    undo: UndoId,
    request: Arc<Mutex<Request>>,
}

/// What is known of the request that makes a VM.
#[derive(Debug, Default)]
enum Request {
    /// Nothing: it may yet be carried out.
    #[default]
    Open,
    /// It makes nothing.
    Refused,
    /// This task carries it out.
    Task(Upid),
}

impl Claim {
    fn note(&self, request: Request) {
        *self.request.lock().unwrap_or_else(PoisonError::into_inner) = request;
    }

    /// Tells whether a configuration bears the very marks that this claim's request has put there.
    fn has_made(&self, config: &VmConfig) -> bool {
        config.get("description").and_then(Marks::read).as_ref() == Some(&self.marks)
    }
}

impl Cluster<'_> {
    /// Makes a VM at a VMID of the scratch range by create-and-see: `make` sends the request that takes it.
    pub(super) async fn make_vm(
        &self,
        run: &Run,
        purpose: Purpose,
        uuid: &str,
        make: Make<'_>,
    ) -> Result<OwnVm, Failure> {
        // Not what the run has already, or has asked for in vain: it is written down once.
        let own: Vec<Vmid> = self.journal.open().into_iter().map(|entry| entry.vmid).collect();
        let free = self.site.candidates().filter(|vmid| !own.contains(vmid)).collect();
        for vmid in in_turn(free, random()) {
            if let Some(own) = self.make_at(run, vmid, &purpose, uuid, make).await? {
                return Ok(own);
            }
        }
        let range = &self.profile.vmids;
        Err(Failure::new(Kind::Infrastructure, anyhow!("every VMID of {range} is taken"))
            .hint(format!("see what is there: forge leftovers --on {}", self.plan.builder.name))
            .hint("or set a larger range: `vmids` in the builder profile"))
    }

    /// Makes a VM at that VMID; nothing when it is somebody's.
    pub(super) async fn make_at(
        &self,
        run: &Run,
        vmid: Vmid,
        purpose: &Purpose,
        uuid: &str,
        make: Make<'_>,
    ) -> Result<Option<OwnVm>, Failure> {
        let claim = self.claim(run, vmid, purpose, uuid)?;
        // What is copied may be held, by a backup for instance.
        let sent = self.client.when_free(HELD, &|| Box::pin(self.request(&claim, make))).await;
        let lost = match sent {
            Ok(written_down) => {
                written_down.kind(Kind::Infrastructure)?;
                None
            }
            Err(Error::Taken { .. }) => {
                run.forget_undo(claim.undo);
                self.journal.close(vmid).kind(Kind::Infrastructure)?;
                return Ok(None);
            }
            Err(lost @ Error::Unknown { .. }) => Some(lost),
            Err(error) => return Err(failed(error)),
        };
        // A task that was found in a list, and a VM that is there, may be another machine's with this token.
        match settled(&claim.vm, None).await.map_err(failed)? {
            Some(config) if claim.has_made(&config) => Ok(Some(self.own(claim, config))),
            // Somebody else's by now, or nobody's: whatever it is, it stays in the journal.
            Some(_) => Ok(None),
            None => Err(lost.map_or_else(|| gone(vmid), failed)),
        }
    }

    /// Sends the request that makes a VM and waits for its task; the inner error is the journal's.
    async fn request(&self, claim: &Claim, make: Make<'_>) -> Result<anyhow::Result<()>, Error> {
        let vmid = claim.vm.vmid();
        if let Err(error) = self.journal.note_request(vmid) {
            return Ok(Err(error));
        }
        claim.note(Request::Open);
        let task = make(&claim.vm, &claim.marks).await.map_err(|error| {
            if !matches!(error, Error::Unknown { .. } | Error::Answer { .. }) {
                claim.note(Request::Refused);
            }
            as_taken(error, vmid)
        })?;
        claim.note(Request::Task(task.clone()));
        if !task.is_found()
            && let Err(error) = self.journal.note_task(vmid, &task)
        {
            return Ok(Err(error));
        }
        let limit = self.profile.task_timeout.duration();
        self.client.wait(&task, limit, None).await.map_err(|error| as_taken(error, vmid))?;
        Ok(Ok(()))
    }

    fn own(&self, claim: Claim, made: VmConfig) -> OwnVm {
        let lease = Lease::begin(&self.client.vm(&self.site.node, claim.vm.vmid()), &claim.marks.run);
        OwnVm { vm: claim.vm, marks: claim.marks, made, undo: claim.undo, lease }
    }

    /// Writes a VMID down and registers how what will be there is removed.
    fn claim(&self, run: &Run, vmid: Vmid, purpose: &Purpose, uuid: &str) -> Result<Claim, Failure> {
        let vm = self.client.vm(&self.site.node, vmid);
        let known = Some(uuid).filter(|uuid| !uuid.is_empty());
        self.journal.begin(vmid, &self.site.node, known).kind(Kind::Infrastructure)?;
        let marks = Marks {
            vmid,
            uuid: uuid.to_owned(),
            run: run.id.clone(),
            template: self.plan.template.clone(),
            plan: self.plan.digest.clone(),
            host: self.process.host.clone(),
            pid: self.process.pid,
            process_start: self.process.start,
            state: purpose.state,
            lease_until: 0,
        }
        .renewed(server_now(&self.client));
        let request = Arc::<Mutex<Request>>::default();
        let removal = Removal {
            vm: vm.clone(),
            run: run.id.clone(),
            request: Arc::clone(&request),
            journal: Arc::clone(&self.journal),
            keeper: self.keeper.clone(),
            picture: run.path(format!("{}.png", purpose.name)),
            console: self.console(vmid),
        };
        let undo = run.undo_within(
            REMOVAL,
            format!("VM {vmid} on {}", self.site.node),
            format!("forge leftovers --on {} --run {} --remove", self.plan.builder.name, run.id),
            move |ending| removal.undo(ending),
        );
        Ok(Claim { vm, marks, undo, request })
    }

    /// Returns where people see a VM's screen.
    pub(super) fn console(&self, vmid: Vmid) -> String {
        format!("{}/#v1:0:=qemu%2F{vmid}:4:::::8", self.client.endpoint())
    }
}

/// What removes a VM when its run fails.
struct Removal {
    vm: Vm,
    run: String,
    request: Arc<Mutex<Request>>,
    journal: Arc<super::journal::Journal>,
    keeper: Keeper,
    picture: std::path::PathBuf,
    console: String,
}

impl Removal {
    async fn undo(self, ending: Ending) -> anyhow::Result<Undone> {
        let request = std::mem::take(&mut *self.request.lock().unwrap_or_else(PoisonError::into_inner));
        if let Request::Task(upid) = &request
            // One that no answer has named may be another machine's.
            && !upid.is_found()
            // A copy may take long: what it has made so far goes with it.
            && matches!(self.vm.client().task_state(upid).await, Ok(TaskState::Running))
        {
            self.vm.client().stop_task(upid).await?;
        }
        let own_task = match &request {
            Request::Task(upid) if !upid.is_found() => Some(upid),
            _ => None,
        };
        let config = match settled(&self.vm, own_task).await? {
            Some(config) if is_own(&config, self.vm.vmid(), &self.run) => config,
            Some(config) if own_task.is_some() && is_being_made(&config) => {
                let (vmid, lock) = (self.vm.vmid(), config.lock().unwrap_or_default());
                bail!(
                    "VM {vmid} bears the lock `{lock}` of its task, which has died; {}",
                    unlock(vmid, self.vm.node().as_str())
                )
            }
            left => {
                // What may still be made, or still is, stays in the journal for `forge leftovers`.
                let is_over = match left {
                    None => match request {
                        Request::Open => false,
                        Request::Refused => true,
                        Request::Task(upid) => !upid.is_found(),
                    },
                    Some(config) => !is_being_made(&config),
                };
                if is_over {
                    self.journal.close(self.vm.vmid())?;
                }
                return Ok(Undone::Nothing);
            }
        };
        if ending == Ending::Failed {
            // Evidence, as far as it can be had.
            if let Ok(picture) = self.vm.screenshot(PICTURE).await {
                let _taken = std::fs::write(&self.picture, picture.png());
            }
            if self.keeper.is_wanted() {
                return self.keep(&config).await;
            }
        }
        remove(&self.vm, &self.run).await?;
        self.journal.close(self.vm.vmid())?;
        Ok(Undone::Removed)
    }

    /// Keeps a template, marked as failed; keeps any other machine for as long as somebody looks at it.
    async fn keep(self, config: &VmConfig) -> anyhow::Result<Undone> {
        let (vm, vmid) = (self.vm.clone(), self.vm.vmid());
        if config.is_template() {
            mark(&vm, config, State::Failed).await?;
            self.journal.close(vmid)?;
            self.keeper.keep(Kept {
                how_to_reach: vec![format!("template {vmid} on {} stays, marked as failed", vm.node())],
                end: Box::new(|| Box::pin(async {})),
            });
            return Ok(Undone::Nothing);
        }
        let how_to_reach =
            vec![format!("vm       {vmid} on {}", vm.node()), format!("console  {}", self.console)];
        let lease = Lease::begin(&vm, &self.run);
        let end = Box::new(move || -> BoxFuture<'static, ()> {
            Box::pin(async move {
                drop(lease);
                // What cannot be removed now is what `forge leftovers` finds.
                if remove(&self.vm, &self.run).await.is_ok() {
                    let _closed = self.journal.close(vmid);
                }
            })
        });
        self.keeper.keep(Kept { how_to_reach, end });
        Ok(Undone::Nothing)
    }
}

/// Changes a VM as soon as nothing else holds it. A lost answer does not matter: the same is set again.
pub(super) async fn set(vm: &Vm, change: &ConfigChange) -> Result<(), Error> {
    let again = || -> BoxFuture<'_, _> { Box::pin(async { Ok(Seen::NotDone) }) };
    vm.client().settle(&|| Box::pin(vm.set(change)), &again).await
}

/// Writes another state into a VM's marks and, as far as that is allowed, its tags.
pub(super) async fn mark(vm: &Vm, config: &VmConfig, state: State) -> Result<(), Error> {
    let description = config.get("description").unwrap_or_default();
    let Some(old) = Marks::read(description) else { return Ok(()) };
    let new = Marks { state, ..old.clone() };
    let mut tags = config.tags();
    old.tags().iter().for_each(|tag| _ = tags.remove(tag));
    tags.extend(new.tags());
    let tags = ("tags", tags.into_iter().collect::<Vec<_>>().join(";"));
    let described = ("description", new.in_description(description));
    match set(vm, &ConfigChange::set([described.clone(), tags])).await {
        Err(Error::Forbidden { .. }) => set(vm, &ConfigChange::set([described])).await,
        result => result,
    }
}

/// Tells whether a configuration bears the marks that this run has put there.
pub(super) fn is_own(config: &VmConfig, vmid: Vmid, run: &str) -> bool {
    let marks = config.get("description").and_then(Marks::read);
    marks.is_some_and(|marks| {
        let is_of_it = marks.uuid.is_empty() || config.uuid().as_deref() == Some(marks.uuid.as_str());
        marks.run == run && marks.vmid == vmid && is_of_it
    })
}

/// Tells whether the VM's create or clone task has not ended, or has died.
pub(super) fn is_being_made(config: &VmConfig) -> bool {
    matches!(config.lock(), Some("create" | "clone"))
}

/// Returns a VM's configuration once nothing makes it any more; nothing when there is none. Where the task
/// that makes it is known, its end is enough: the lock of one that was killed stays.
async fn settled(vm: &Vm, task: Option<&Upid>) -> Result<Option<VmConfig>, Error> {
    let deadline = Instant::now() + REMOVAL;
    loop {
        // First, for it may end between both questions.
        let has_ended = match task {
            Some(upid) => !matches!(vm.client().task_state(upid).await?, TaskState::Running),
            None => false,
        };
        let config = config(vm).await?;
        if has_ended || !config.as_ref().is_some_and(is_being_made) || Instant::now() >= deadline {
            return Ok(config);
        }
        sleep(vm.client().pace().task_max).await;
    }
}

/// Returns [`Error::Taken`] for what says in other words that a VMID is somebody's.
fn as_taken(error: Error, vmid: Vmid) -> Error {
    match error {
        // Whoever takes it just now holds its lock file.
        Error::Busy { what, message, .. } if message.starts_with("unable to create ") => {
            Error::Taken { what, message }
        }
        // A clone's VMID is taken in its task.
        Error::TaskFailed { upid, exitstatus, .. } if says_taken(&exitstatus, vmid) => {
            Error::Taken { what: format!("task {upid}"), message: exitstatus }
        }
        error => error,
    }
}

fn says_taken(text: &str, vmid: Vmid) -> bool {
    text.contains(&format!("unable to create VM {vmid}: config file already exists"))
        // A clone's task finds out last: by a container, or on another node.
        || text.contains(&format!("/{vmid}.conf' failed: File exists"))
        || ["VM", "CT"].iter().any(|kind| text.contains(&format!("{kind} {vmid} already exists")))
}

fn gone(vmid: Vmid) -> Failure {
    let error = anyhow!("VM {vmid} is not there, though the task that was to make it has ended well");
    Failure::new(Kind::Infrastructure, error)
}

/// Stops and destroys a VM that bears that run's marks.
async fn remove(vm: &Vm, run: &str) -> anyhow::Result<()> {
    match destroy_if(vm, REMOVAL, &|config| is_own(config, vm.vmid(), run)).await? {
        Destroyed::Gone => Ok(()),
        Destroyed::NotOurs => {
            bail!("VM {} bears no marks of the run {run}: it may be somebody else's", vm.vmid())
        }
    }
}

/// Renews the lease in a VM's marks from time to time, until it is dropped.
#[derive(Debug)]
struct Lease {
    wanted: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Lease {
    fn begin(vm: &Vm, run: &str) -> Self {
        let wanted = Arc::new(Notify::new());
        let task = tokio::spawn(keep_lease(vm.clone(), run.to_owned(), Arc::clone(&wanted)));
        Self { wanted, task }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep_lease(vm: Vm, run: String, wanted: Arc<Notify>) {
    loop {
        sleep(RENEW_MIN).await;
        tokio::select! {
            () = wanted.notified() => {}
            () = sleep(RENEW.saturating_sub(RENEW_MIN)) => {}
        }
        // A renewal that fails is made up for by the next one: a lease outlives two of them.
        let _renewed = renew(&vm, &run).await;
    }
}

async fn renew(vm: &Vm, run: &str) -> Result<(), Error> {
    let config = vm.config().await?;
    let description = config.get("description").unwrap_or_default();
    let Some(marks) = Marks::read(description).filter(|_| is_own(&config, vm.vmid(), run)) else {
        return Ok(());
    };
    let renewed = marks.renewed(server_now(vm.client())).in_description(description);
    vm.set(&ConfigChange::set([("description", renewed)]).of(&config)).await
}

/// Returns VMIDs in their order from a random one on, so that builds seldom meet at one.
fn in_turn(mut vmids: Vec<Vmid>, random: usize) -> Vec<Vmid> {
    if !vmids.is_empty() {
        let start = random % vmids.len();
        vmids.rotate_left(start);
    }
    vmids
}

fn random() -> usize {
    getrandom::u32().unwrap_or_default() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vmid(number: u32) -> Vmid {
        Vmid::new(number).unwrap()
    }

    fn config(marks: Option<&Marks>, uuid: &str) -> VmConfig {
        let description = marks.map(|marks| marks.in_description("text")).unwrap_or_default();
        let values = [("description", description), ("smbios1", format!("uuid={uuid}"))];
        let values = values.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        VmConfig { values, ..VmConfig::default() }
    }

    #[test]
    fn only_what_bears_this_runs_marks_is_its_own() {
        const UUID: &str = "1b4e28ba-2fa1-41d2-883f-0016d3cca427";
        const OTHER: &str = "9f4e28ba-2fa1-41d2-883f-0016d3cca427";
        let marks = Marks {
            vmid: vmid(9000),
            uuid: UUID.to_owned(),
            run: "r1".to_owned(),
            template: "t".to_owned(),
            plan: "sha256:00".to_owned(),
            host: "h/1".to_owned(),
            pid: 1,
            process_start: 1,
            state: State::Building,
            lease_until: 0,
        };
        let young = Marks { uuid: String::new(), ..marks.clone() };
        for (config, number, run, expected) in [
            (config(Some(&marks), UUID), 9000, "r1", true),
            (config(Some(&young), OTHER), 9000, "r1", true),
            (config(Some(&marks), OTHER), 9000, "r1", false),
            (config(Some(&marks), UUID), 9001, "r1", false),
            (config(Some(&marks), UUID), 9000, "r2", false),
            (config(None, UUID), 9000, "r1", false),
        ] {
            assert_eq!(is_own(&config, vmid(number), run), expected, "{number} {run}");
        }
    }

    fn task_failed(exitstatus: &str) -> Error {
        let upid = "UPID:asgard:0012D687:05F5E0FF:68E77800:qmclone:9000:forge@pve!ci:".parse().unwrap();
        Error::TaskFailed { upid: Box::new(upid), exitstatus: exitstatus.to_owned(), log: Vec::new() }
    }

    fn busy(message: &str) -> Error {
        Error::Busy { what: "POST".to_owned(), message: message.to_owned(), lock: None }
    }

    #[test]
    fn a_vmid_is_taken_in_many_words() {
        let lock = "can't lock file '/var/lock/qemu-server/lock-9001.conf' - got timeout";
        for (error, expected) in [
            (busy(&format!("unable to create VM 9001 - {lock}")), true),
            (busy(lock), false),
            (task_failed("unable to create VM 9001: config file already exists"), true),
            (task_failed("clone failed: VM 9001 already exists on node 'midgard'"), true),
            (task_failed("unable to create CT 9001 - CT 9001 already exists on node 'asgard'"), true),
            (task_failed("VM 90010 already exists on node 'asgard'"), false),
            (
                task_failed(
                    "close (rename) atomic file '/etc/pve/nodes/a/lxc/9001.conf' failed: File exists",
                ),
                true,
            ),
            (
                task_failed(
                    "close (rename) atomic file '/etc/pve/nodes/a/lxc/19001.conf' failed: File exists",
                ),
                false,
            ),
            (task_failed("cannot create 'rpool/data/vm-9001-disk-0': dataset already exists"), false),
            (task_failed(lock), false),
        ] {
            let text = error.to_string();
            let is_taken = matches!(as_taken(error, vmid(9001)), Error::Taken { .. });
            assert_eq!(is_taken, expected, "{text}");
        }
    }

    #[test]
    fn vmids_are_tried_from_anywhere_and_each_once() {
        let all: Vec<_> = (9000..9004).map(vmid).collect();
        let numbers = |random| in_turn(all.clone(), random).iter().map(|it| it.get()).collect::<Vec<_>>();
        assert_eq!(numbers(0), [9000, 9001, 9002, 9003]);
        assert_eq!(numbers(6), [9002, 9003, 9000, 9001]);
        assert_eq!(in_turn(Vec::new(), 3), []);
    }
}
