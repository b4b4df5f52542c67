use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::super::fake::{Answer, Fake, WHO};
use super::super::journal::Journal;
use super::*;
use crate::builder::workspace::Workspace;
use crate::pve::TaskEntry;

const UUID: &str = "1b4e28ba-2fa1-41d2-883f-0016d3cca427";
const OTHER_UUID: &str = "7c9e6679-7425-40de-944b-e07fc1f90ae7";
const NOW: i64 = 1_795_271_000;
const HERE: &str = "builder1/5f3c2a1b";

fn vmid(number: u32) -> Vmid {
    Vmid::new(number).unwrap()
}

fn marks(number: u32, run: &str, state: State) -> Marks {
    Marks {
        vmid: vmid(number),
        uuid: UUID.to_owned(),
        run: run.to_owned(),
        template: "ubuntu-noble".to_owned(),
        plan: "sha256:ab".to_owned(),
        host: "elsewhere/00000000".to_owned(),
        pid: 4711,
        process_start: 99,
        state,
        lease_until: NOW + 900,
    }
}

fn vm_config(uuid: &str, marks: Option<&Marks>, more: &[(&str, &str)]) -> VmConfig {
    let mut values = BTreeMap::from([("smbios1".to_owned(), format!("uuid={uuid}"))]);
    values.extend(marks.map(|marks| ("description".to_owned(), marks.in_description("Noble.") + "\n")));
    values.extend(more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    VmConfig { digest: String::new(), values }
}

fn claim(number: u32, run: &str, uuid: Option<&str>, is_alive: bool) -> Claim {
    let entry = Entry {
        vmid: vmid(number),
        node: "asgard".to_owned(),
        uuid: uuid.map(str::to_owned),
        begun: NOW - 100,
        task: None,
    };
    Claim { run: run.to_owned(), is_alive, entry }
}

fn upid(kind: &str, id: u32, started: i64) -> Upid {
    format!("UPID:asgard:0012D687:05F5E0FF:{started:08X}:{kind}:{id}:{WHO}:").parse().unwrap()
}

fn known(claims: Vec<Claim>, tasks: Vec<Making>) -> Circumstances {
    Circumstances { now: NOW, ahead: 0, host: HERE.to_owned(), claims, tasks }
}

/// Returns the verdict's word.
fn word(config: &VmConfig, known: &Circumstances) -> &'static str {
    match judge(vmid(9000), config, known, |_, _| false) {
        Verdict::Other => "other",
        Verdict::Leftover { .. } => "leftover",
        Verdict::Making { task: Some(_), .. } => "making",
        Verdict::Making { task: None, .. } => "waiting",
        Verdict::Stuck { .. } => "stuck",
        Verdict::Unsure => "unsure",
    }
}

#[test]
fn marks_make_a_leftover_where_no_journal_is() {
    let building = marks(9000, "r1", State::Building);
    let late = Marks { lease_until: NOW - 1, ..building.clone() };
    let none = known(Vec::new(), Vec::new());
    for (name, config, expected) in [
        ("lease holds", vm_config(UUID, Some(&building), &[]), "other"),
        ("lease over", vm_config(UUID, Some(&late), &[]), "leftover"),
        ("a clone", vm_config(OTHER_UUID, Some(&late), &[]), "other"),
        ("a template", vm_config(UUID, Some(&late), &[("template", "1")]), "other"),
        ("no marks", vm_config(UUID, None, &[]), "other"),
    ] {
        assert_eq!(word(&config, &none), expected, "{name}");
    }
}

#[test]
fn a_dead_runs_journal_and_the_vm_itself_make_a_leftover() {
    let building = marks(9000, "r1", State::Building);
    let unread = Marks { uuid: String::new(), ..building.clone() };
    let template = [("template", "1")];
    let dead = |uuid| vec![claim(9000, "r1", uuid, false)];
    for (name, config, claims, expected) in [
        ("its run is dead", vm_config(UUID, Some(&building), &[]), dead(Some(UUID)), "leftover"),
        (
            "its run lives",
            vm_config(UUID, Some(&building), &[]),
            vec![claim(9000, "r1", Some(UUID), true)],
            "other",
        ),
        ("a template not proven", vm_config(UUID, Some(&building), &template), dead(Some(UUID)), "leftover"),
        ("a fresh clone", vm_config(OTHER_UUID, Some(&unread), &[]), dead(None), "leftover"),
        (
            "another run's clone",
            vm_config(OTHER_UUID, Some(&unread), &[]),
            vec![claim(9000, "r2", None, false)],
            "other",
        ),
        ("somebody's clone of it", vm_config(OTHER_UUID, Some(&building), &[]), dead(Some(UUID)), "other"),
        ("marks lost", vm_config(UUID, None, &[]), dead(Some(UUID)), "leftover"),
        ("somebody else's", vm_config(OTHER_UUID, None, &[]), dead(Some(UUID)), "other"),
        ("nothing known", vm_config(OTHER_UUID, None, &[]), dead(None), "other"),
        (
            "another VMID's",
            vm_config(UUID, Some(&building), &[]),
            vec![claim(9001, "r1", Some(UUID), false)],
            "other",
        ),
        (
            "taken by two dead runs",
            vm_config(UUID, Some(&building), &[]),
            vec![claim(9000, "r1", Some(UUID), false), claim(9000, "r2", Some(OTHER_UUID), false)],
            "leftover",
        ),
        (
            "wanted by a live run",
            vm_config(UUID, Some(&building), &[]),
            vec![claim(9000, "r1", Some(UUID), false), claim(9000, "r2", Some(OTHER_UUID), true)],
            "other",
        ),
    ] {
        assert_eq!(word(&config, &known(claims, Vec::new())), expected, "{name}");
    }
}

#[test]
fn what_is_handed_over_is_safe_from_journals_that_were_never_closed() {
    for state in [State::Candidate, State::Stable, State::Failed] {
        for more in [&[("template", "1")][..], &[]] {
            let late = Marks { lease_until: 0, host: HERE.to_owned(), ..marks(9000, "r1", state) };
            let config = vm_config(UUID, Some(&late), more);
            let claims = vec![claim(9000, "r1", Some(UUID), false)];
            assert_eq!(word(&config, &known(claims, Vec::new())), "other", "{state}");
        }
    }
}

#[test]
fn a_vm_that_is_being_made_is_told_by_its_task() {
    let created = upid("qmcreate", 9000, NOW - 90);
    let cloned = upid("qmclone", 90001, NOW - 90);
    let task = |upid: &Upid, state: &str| {
        let state = TaskEntry { upid: upid.clone(), status: Some(state.to_owned()) }.state();
        vec![Making { upid: upid.clone(), state }]
    };
    let (runs, died) = ("RUNNING", "received interrupt");
    let later = |state| task(&upid("qmcreate", 9000, NOW - 10), state);
    let dead = || vec![claim(9000, "r1", Some(UUID), false)];
    let with_task = || {
        let mut claim = claim(9000, "r1", None, false);
        claim.entry.task = Some(cloned.clone());
        vec![claim]
    };
    let create = vm_config("", None, &[("lock", "create")]);
    let clone = vm_config("", None, &[("lock", "clone"), ("description", " qmclone temporary file\n")]);
    for (name, config, claims, tasks, expected) in [
        ("ours runs", &create, dead(), task(&created, runs), "making"),
        ("ours died", &create, dead(), task(&created, died), "stuck"),
        ("ours ended well", &create, dead(), task(&created, "OK"), "other"),
        ("no task of ours", &create, dead(), Vec::new(), "other"),
        ("an older task", &create, dead(), task(&upid("qmcreate", 9000, NOW - 200), died), "other"),
        ("a much later task", &create, dead(), task(&upid("qmcreate", 9000, NOW + 50), runs), "unsure"),
        ("a later task after ours", &create, dead(), [task(&created, died), later("OK")].concat(), "other"),
        ("another VM's task", &create, dead(), task(&upid("qmcreate", 9001, NOW - 90), runs), "other"),
        ("its run lives", &create, vec![claim(9000, "r1", None, true)], task(&created, runs), "other"),
        ("no journal, runs", &create, Vec::new(), task(&created, runs), "unsure"),
        ("no journal, died", &create, Vec::new(), task(&created, died), "stuck"),
        ("no journal, ended well", &create, Vec::new(), task(&created, "OK"), "other"),
        ("a clone, one task", &clone, dead(), task(&cloned, runs), "waiting"),
        ("a clone, its task", &clone, with_task(), task(&cloned, runs), "making"),
        ("a clone, another's", &clone, with_task(), task(&upid("qmclone", 90001, NOW - 80), runs), "other"),
        ("a clone, no journal", &clone, Vec::new(), task(&cloned, runs), "other"),
    ] {
        assert_eq!(word(config, &known(claims, tasks)), expected, "{name}");
    }
}

/// A node with VMs that can be stopped and destroyed.
#[derive(Clone)]
struct World {
    vms: Arc<Mutex<BTreeMap<u32, VmConfig>>>,
    tasks: Arc<Mutex<Vec<Value>>>,
    /// Whether the token sees no VMs.
    is_blind: bool,
}

impl World {
    fn new(vms: impl IntoIterator<Item = (u32, VmConfig)>) -> Self {
        Self { vms: Arc::new(Mutex::new(vms.into_iter().collect())), tasks: Arc::default(), is_blind: false }
    }

    fn answer(&self, request: &str) -> Answer {
        let (method, path) = request.split_once(' ').unwrap();
        let path = path.split('?').next().unwrap();
        let mut vms = self.vms.lock().unwrap();
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let vm = parts.get(3).and_then(|text| text.parse::<u32>().ok());
        match (method, &parts[..], vm) {
            ("GET", ["access", "permissions"], _) => {
                let asked = request.split("path=").nth(1).unwrap().replace("%2F", "/");
                let held = if self.is_blind { json!({}) } else { json!({ "VM.Audit": 1 }) };
                (200, json!({ asked: held }))
            }
            ("GET", ["nodes"], _) => (200, json!([{ "node": "asgard", "status": "online" }])),
            ("GET", ["cluster", "resources"], _) => {
                let shown = vms.iter().filter(|_| !self.is_blind);
                let guests = shown.map(|(vmid, config)| {
                    json!({ "vmid": vmid, "node": "asgard", "type": "qemu", "tags": config.get("tags") })
                });
                (200, guests.collect())
            }
            ("GET", ["nodes", _, "tasks"], _) => {
                let kind = request.split("typefilter=").nth(1).unwrap_or_default().split('&').next().unwrap();
                let tasks = self.tasks.lock().unwrap();
                let of_kind = |task: &&Value| task["upid"].as_str().unwrap().contains(&format!(":{kind}:"));
                (200, tasks.iter().filter(of_kind).cloned().collect())
            }
            ("GET", ["nodes", _, "tasks", _, "status"], _) => {
                (200, json!({ "status": "stopped", "exitstatus": "OK" }))
            }
            ("DELETE", ["nodes", _, "tasks", upid], _) => {
                // What an ended create does: its VM goes with it.
                self.tasks.lock().unwrap().retain(|task| task["upid"] != **upid);
                vms.retain(|_, config| config.lock() != Some("create"));
                (200, Value::Null)
            }
            (_, _, Some(vmid)) if !vms.contains_key(&vmid) => (
                500,
                json!(format!("Configuration file 'nodes/asgard/qemu-server/{vmid}.conf' does not exist")),
            ),
            ("GET", [.., "config"], Some(vmid)) => (200, json!(vms[&vmid].values)),
            ("GET", [.., "status", "current"], Some(vmid)) => {
                let status = vms[&vmid].get("test-status").filter(|status| *status == "running");
                let status = status.unwrap_or("stopped");
                (200, json!({ "vmid": vmid, "status": status }))
            }
            ("POST", [.., "status", "stop"], Some(vmid)) => {
                vms.get_mut(&vmid).unwrap().values.remove("test-status");
                (200, json!(upid("qmstop", vmid, NOW).to_string()))
            }
            ("DELETE", ["nodes", _, "qemu", _], Some(vmid)) => {
                if let Some(status) = vms.get_mut(&vmid).unwrap().values.get_mut("test-status") {
                    "running".clone_into(status);
                    return (500, json!(format!("VM {vmid} is running - destroy failed")));
                }
                vms.remove(&vmid);
                (200, json!(upid("qmdestroy", vmid, NOW).to_string()))
            }
            _ => (501, json!(format!("Method '{request}' not implemented"))),
        }
    }

    fn left(&self) -> Vec<u32> {
        self.vms.lock().unwrap().keys().copied().collect()
    }
}

async fn serve(world: &World) -> (Fake, ProxmoxProfile) {
    let server = world.clone();
    let fake = Fake::start(move |request| server.answer(request)).await;
    let profile = ProxmoxProfile { endpoints: vec![fake.endpoint.clone()], ..ProxmoxProfile::default() };
    (fake, profile)
}

/// Returns marks whose lease is long over, for whoever runs this test.
fn stale(number: u32, run: &str, state: State) -> Marks {
    Marks { lease_until: 1, ..marks(number, run, state) }
}

#[tokio::test]
async fn every_lease_runs_out_and_only_the_dead_runs_machines_go() {
    let running = [("test-status", "running")];
    let candidate = stale(9005, "r0", State::Candidate);
    let stable = stale(90001, "r0", State::Stable);
    let template = [("template", "1"), ("tags", "forge")];
    let world = World::new([
        (9000, vm_config(UUID, Some(&stale(9000, "r1", State::Building)), &running)),
        (9001, vm_config(UUID, Some(&stale(9001, "r2", State::Proving)), &[])),
        (9002, vm_config(OTHER_UUID, None, &[])),
        (9003, vm_config(OTHER_UUID, Some(&stale(9003, "r1", State::Building)), &[])),
        (9005, vm_config(UUID, Some(&candidate), &template)),
        // Clones inherit description and tags, and get a UUID and a VMID of their own.
        (9006, vm_config(OTHER_UUID, Some(&candidate), &[("tags", "forge")])),
        (9007, vm_config(OTHER_UUID, Some(&stable), &[("tags", "forge")])),
        (9008, vm_config(OTHER_UUID, Some(&stale(9000, "r1", State::Building)), &[])),
        (90001, vm_config(UUID, Some(&stable), &template)),
        (90002, vm_config(OTHER_UUID, Some(&stable), &[("tags", "forge")])),
    ]);
    let (fake, profile) = serve(&world).await;
    let root = tempfile::tempdir().unwrap();
    let only = Search::new(&fake.client, &profile, root.path(), Some("r2"));
    assert_eq!(
        only.find().await.unwrap().iter().filter_map(|it| Some(it.vmid?.get())).collect::<Vec<_>>(),
        [9001]
    );
    let search = Search::new(&fake.client, &profile, root.path(), None);
    let found = search.find().await.unwrap();
    assert_eq!(found.iter().filter_map(|it| Some(it.vmid?.get())).collect::<Vec<_>>(), [9000, 9001]);
    for leftover in &found {
        search.remove(leftover).await.unwrap();
    }
    search.tidy().await.unwrap();
    assert_eq!(world.left(), [9002, 9003, 9005, 9006, 9007, 9008, 90001, 90002]);
    assert_eq!(
        fake.changes(),
        [
            "POST /nodes/asgard/qemu/9000/status/stop",
            "DELETE /nodes/asgard/qemu/9000?purge=1",
            "DELETE /nodes/asgard/qemu/9001?purge=1",
        ]
    );
}

#[tokio::test]
async fn who_is_shown_no_vms_is_not_told_that_nothing_is_left() {
    let vm = vm_config(UUID, Some(&stale(9000, "r1", State::Building)), &[]);
    let world = World { is_blind: true, ..World::new([(9000, vm)]) };
    let (fake, profile) = serve(&world).await;
    let root = tempfile::tempdir().unwrap();
    let failure = Search::new(&fake.client, &profile, root.path(), None).find().await.unwrap_err();
    assert!(failure.to_string().contains("VM.Audit is missing on /vms/"), "{failure}");
}

#[tokio::test]
async fn what_changed_after_it_was_listed_is_left_alone() {
    let world = World::new([(9000, vm_config(UUID, Some(&stale(9000, "r1", State::Building)), &[]))]);
    let (fake, profile) = serve(&world).await;
    let root = tempfile::tempdir().unwrap();
    let search = Search::new(&fake.client, &profile, root.path(), None);
    let found = search.find().await.unwrap();
    let somebodys = vm_config(OTHER_UUID, None, &[]);
    world.vms.lock().unwrap().insert(9000, somebodys);
    let failure = search.remove(&found[0]).await.unwrap_err();
    assert_eq!(failure.to_string(), "VM 9000 is no leftover any more, and has been left alone");
    assert!(fake.changes().is_empty());
    world.vms.lock().unwrap().clear();
    search.remove(&found[0]).await.unwrap();
}

#[tokio::test]
async fn a_vm_that_changes_hands_between_stop_and_destroy_survives() {
    let world = World::new([(9000, vm_config(UUID, None, &[("test-status", "running")]))]);
    let (fake, _) = serve(&world).await;
    let vm = fake.client.vm(&"asgard".parse().unwrap(), vmid(9000));
    let ours = |config: &VmConfig| config.get("test-status").is_some();
    let became = destroy_if(&vm, Duration::from_secs(5), &ours).await.unwrap();
    assert_eq!((became, world.left()), (Destroyed::NotOurs, vec![9000]));
    assert_eq!(fake.changes(), ["POST /nodes/asgard/qemu/9000/status/stop"]);
}

#[tokio::test]
async fn a_vm_that_is_just_starting_is_stopped_once_it_runs() {
    // QEMU is there when the destroy's turn comes: the status has said `stopped` until then.
    let world = World::new([(9000, vm_config(UUID, None, &[("test-status", "starting")]))]);
    let (fake, _) = serve(&world).await;
    let vm = fake.client.vm(&"asgard".parse().unwrap(), vmid(9000));
    let became = destroy_if(&vm, Duration::from_secs(5), &|_| true).await.unwrap();
    assert_eq!((became, world.left()), (Destroyed::Gone, vec![]));
    let destroy = "DELETE /nodes/asgard/qemu/9000?purge=1";
    assert_eq!(fake.changes(), [destroy, "POST /nodes/asgard/qemu/9000/status/stop", destroy]);
}

#[tokio::test]
async fn the_journal_finds_what_bears_no_marks_and_is_struck_out_after() {
    let root = tempfile::tempdir().unwrap();
    let world = World::new([(9000, vm_config("", None, &[("lock", "create")]))]);
    let (fake, profile) = serve(&world).await;
    let run = Workspace::create(root.path()).unwrap();
    let id = run.id.clone();
    let journal = Journal::new(&run.folder, &run.id, &profile.endpoints);
    let node = "asgard".parse().unwrap();
    journal.begin(vmid(9000), &node, Some(UUID)).unwrap();
    let began = jiff::Timestamp::now().as_second();
    let task = upid("qmcreate", 9000, began);
    world.tasks.lock().unwrap().push(json!({ "upid": task.to_string(), "status": "RUNNING" }));
    let search = Search::new(&fake.client, &profile, root.path(), None);
    assert!(search.find().await.unwrap().is_empty(), "its run lives");
    drop((journal, run));
    let found = search.find().await.unwrap();
    assert_eq!((found[0].vmid, found[0].run.as_ref()), (Some(vmid(9000)), Some(&id)));
    search.remove(&found[0]).await.unwrap();
    assert_eq!(fake.changes(), [format!("DELETE /nodes/asgard/tasks/{task}")]);
    assert!(world.left().is_empty() && journal::find(root.path()).unwrap().is_empty());
}

#[tokio::test]
async fn a_clone_that_is_being_made_is_waited_for_and_then_removed() {
    let root = tempfile::tempdir().unwrap();
    let world = World::new([(9000, vm_config("", None, &[("lock", "clone")]))]);
    let (fake, profile) = serve(&world).await;
    let run = Workspace::create(root.path()).unwrap();
    let id = run.id.clone();
    let journal = Journal::new(&run.folder, &run.id, &profile.endpoints);
    journal.begin(vmid(9000), &"asgard".parse().unwrap(), None).unwrap();
    drop((journal, run));
    let task = upid("qmclone", 90001, jiff::Timestamp::now().as_second());
    world.tasks.lock().unwrap().push(json!({ "upid": task.to_string(), "status": "RUNNING" }));
    let search = Search::new(&fake.client, &profile, root.path(), None);
    let found = search.find().await.unwrap();
    let ending = async {
        tokio::time::sleep(Duration::from_millis(60)).await;
        assert!(fake.changes().is_empty(), "a clone task may be another run's");
        let marks = Marks { uuid: String::new(), ..stale(9000, &id, State::Proving) };
        world.vms.lock().unwrap().insert(9000, vm_config(OTHER_UUID, Some(&marks), &[]));
        world.tasks.lock().unwrap().clear();
    };
    let (removed, ()) = tokio::join!(search.remove(&found[0]), ending);
    removed.unwrap();
    assert!(world.left().is_empty());
}

#[tokio::test]
async fn a_lock_that_root_alone_may_clear_is_told_and_not_touched() {
    let root = tempfile::tempdir().unwrap();
    let world = World::new([(9000, vm_config("", None, &[("lock", "create")]))]);
    let (fake, profile) = serve(&world).await;
    let task = upid("qmcreate", 9000, jiff::Timestamp::now().as_second());
    world.tasks.lock().unwrap().push(json!({ "upid": task.to_string(), "status": "unexpected status" }));
    let search = Search::new(&fake.client, &profile, root.path(), None);
    let found = search.find().await.unwrap();
    assert!(!found[0].removable);
    let advice = "see first that nobody works on it; root alone may clear that: `qm unlock 9000 && qm destroy \
                  9000 --purge` on asgard";
    assert_eq!(found[0].advice.as_deref(), Some(advice));
    assert!(fake.changes().is_empty());
}

#[tokio::test]
async fn tidying_strikes_out_only_what_is_certainly_not_there() {
    let root = tempfile::tempdir().unwrap();
    let world = World::new([
        (9001, vm_config(OTHER_UUID, None, &[])),
        (9002, vm_config("", None, &[("lock", "create")])),
    ]);
    let (fake, profile) = serve(&world).await;
    let run = Workspace::create(root.path()).unwrap();
    let old = jiff::Timestamp::now().as_second() - 1000;
    let vms: Vec<Value> = [(9000, old), (9001, old), (9002, old), (9003, old + 1000)]
        .map(|(vmid, begun)| json!({ "vmid": vmid, "node": "asgard", "uuid": UUID, "begun": begun }))
        .into();
    let record = json!({ "schema": 1, "run": run.id, "endpoints": profile.endpoints, "vms": vms });
    std::fs::write(run.folder.join(journal::FILE), record.to_string()).unwrap();
    drop(run);
    Search::new(&fake.client, &profile, root.path(), None).tidy().await.unwrap();
    let open = journal::find(root.path()).unwrap().remove(0).record.vms;
    // Gone and somebody else's are struck out; being made, and perhaps still on its way, are not.
    assert_eq!(open.iter().map(|it| it.vmid.get()).collect::<Vec<_>>(), [9002, 9003]);
}
