//! Every recorded exchange with a genuine Proxmox VE 8.4, sent to the simulator in the same state.
//!
//! Reads `$FORGE_SHARED/pve-api/transcripts` (else `../shared` beside the checkout or its parent);
//! without that folder there is nothing to replay.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#![expect(clippy::print_stdout, reason = "what is not replayed is told")]

#[path = "../common/mod.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod common;
mod compare;
mod guest;
mod send;
mod setup;
mod skipped;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Client, Response};
use guest::{Switches, Tiny};
use pve_sim::fake::Pretend;
use pve_sim::{
    AclSpec, Bridge, LockGuard, Options, Simulator, Storage, StorageKind, TokenSpec, UserSpec, WorldSpec,
};
use send::Known;
use serde_json::{Value, json};
use sha2::Digest as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

fn folder() -> Option<PathBuf> {
    let named = std::env::var_os("FORGE_SHARED").map(PathBuf::from);
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let beside = here.ancestors().map(|above| above.join("shared"));
    let mut places = named.into_iter().chain(beside).map(|place| place.join("pve-api/transcripts"));
    places.find(|place| place.is_dir())
}

fn storage(id: &str, content: &[&str]) -> Storage {
    Storage {
        id: id.into(),
        kind: StorageKind::Dir,
        content: content.iter().map(|name| (*name).to_owned()).collect(),
        path: "/var/lib/vz".into(),
        shared: false,
        nodes: Vec::new(),
        disabled: false,
        size_gib: 252,
        full: false,
    }
}

const VM: &str = "VM.Allocate VM.Audit VM.Clone VM.Config.CDROM VM.Config.CPU VM.Config.Cloudinit VM.Config.Disk \
                  VM.Config.HWType VM.Config.Memory VM.Config.Network VM.Config.Options VM.Console VM.Monitor \
                  VM.PowerMgmt";
const ROLES: &[(&str, &str, &str)] = &[
    ("BuildVM", "/vms", VM),
    ("BuildStore", "/storage/local", "Datastore.AllocateSpace Datastore.AllocateTemplate Datastore.Audit"),
    ("BuildNet", "/sdn/zones/localnetwork", "SDN.Use"),
    ("BuildNode", "/nodes/pve1", "Sys.Audit"),
];
const SECRET: &str = "22222222-2222-4333-8444-555555555555";

fn world(file: &str) -> WorldSpec {
    let token = |id: &str, secret: &str, privsep, expire| TokenSpec {
        id: id.into(),
        secret: secret.into(),
        privsep,
        expire,
        comment: (id == "builder@pve!ci").then(|| "build token".into()),
    };
    let full = common::TOKEN.split_once('=').unwrap().1;
    let mut world = WorldSpec {
        nodes: vec!["pve1".into()],
        storages: vec![storage(
            "local",
            &["backup", "images", "iso", "import", "rootdir", "vztmpl", "snippets"],
        )],
        bridges: vec![Bridge { name: "vmbr0".into(), cidr: Some("10.98.0.2/24".into()) }],
        tokens: vec![token("root@pam!full", full, false, 0)],
        ..WorldSpec::default()
    };
    if file == "00" {
        return world;
    }
    if file == "03" {
        world.storages.push(storage("disksonly", &["images"]));
        world.storages.push(storage("isoonly", &["iso"]));
        world.storages.push(Storage { disabled: true, ..storage("isoonlydisabled", &["iso"]) });
    }
    world.has_kvm = file == "04";
    world.pools = vec!["build".into()];
    world.tokens.extend([
        token("root@pam!test", full, false, 0),
        token("root@pam!old", full, false, 1),
        token("builder@pve!ci", SECRET, true, 0),
        token("gone@pve!ci", SECRET, true, 0),
    ]);
    world.users = vec![
        UserSpec { id: "builder@pve".into(), password: None, disabled: false, tfa: false },
        UserSpec { id: "gone@pve".into(), password: None, disabled: true, tfa: false },
    ];
    let acl =
        |path: &str, who: &str, role: &str| AclSpec { path: path.into(), who: who.into(), role: role.into() };
    world.acls = vec![acl("/", "builder@pve", "Administrator")];
    for (role, path, privileges) in ROLES {
        world.roles.insert((*role).into(), privileges.split_whitespace().map(Into::into).collect());
        world.acls.push(acl(path, "builder@pve!ci", role));
    }
    world
}

/// Undoes what [`common::escape`] does to a ticket.
fn unescape(ticket: &str) -> String {
    let marks = [("%3A", ":"), ("%40", "@"), ("%2B", "+"), ("%2F", "/"), ("%3D", "=")];
    marks.iter().fold(ticket.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
}

/// One file's replay.
struct Replay {
    simulator: Simulator,
    root: Client,
    switches: Arc<Switches>,
    known: Known,
    limited_secret: String,
    lock: Option<LockGuard>,
    /// A program's end that came before it was recorded.
    early: std::sync::Mutex<Option<Response>>,
    /// Where downloads come from.
    source: u16,
    _state: tempfile::TempDir,
}

impl Replay {
    async fn start(file: &str) -> Self {
        let state = tempfile::tempdir().unwrap();
        let switches = Arc::new(Switches::default());
        switches.agent.store(true, Ordering::SeqCst);
        switches.heeds.store(true, Ordering::SeqCst);
        let options = Options {
            time: match file {
                "09" => 0.05,
                "04" | "10" => 0.1,
                _ => 0.02,
            },
            world: world(file),
            hypervisor: Arc::new(Pretend::new(Arc::new(Tiny(Arc::clone(&switches))))),
            ..Options::new(state.path())
        };
        let simulator = Simulator::start(options).await.unwrap();
        for (content, name, bytes) in
            [("iso", "tiny.iso", 18_806_784), ("vztmpl", "debian-12-mini_12.0-1_amd64.tar.zst", 71_272_290)]
        {
            simulator.put_file("local", content, name, b"").unwrap();
            let folder = if content == "iso" { "iso" } else { "cache" };
            let path = state.path().join("storage/pve1/local/template").join(folder).join(name);
            std::fs::File::create(path).unwrap().set_len(bytes).unwrap();
        }
        let mut known = Known::default();
        let download = send::file(65_536);
        let sha256 = hex(&sha2::Sha256::digest(&download));
        known.texts.insert(
            "2923d3b13c059a1c8db9fb0f310418ec5339366f3f1f915e674b94e88f6e06db".into(),
            sha256.clone(),
        );
        known.texts.insert(
            "2923D3B13C059A1C8DB9FB0F310418EC5339366F3F1F915E674B94E88F6E06DB".into(),
            sha256.to_uppercase(),
        );
        let big = "b44109da98c05acd7ec92229ddf6fbfe2eb0135a8036141d9c79e22c3a6d0c259895e62538b7cf755d3d24d5a8f26cc17985ef5157e551b153e564212378fdb8";
        if file == "03" {
            known.texts.insert(big.into(), hex(&sha2::Sha512::digest(send::file(67_108_864))));
        }
        let source = source(download).await;
        known.texts.insert("10.98.0.1:36119".into(), format!("127.0.0.1:{source}"));
        known.texts.insert("10.98.0.1:1/".into(), "127.0.0.1:1/".into());
        let root = Client::new(&simulator);
        let limited_secret = SECRET.into();
        Self {
            simulator,
            root,
            switches,
            known,
            limited_secret,
            lock: None,
            early: std::sync::Mutex::default(),
            source,
            _state: state,
        }
    }

    async fn ticket(&self) -> Client {
        let body = b"username=root%40pam&password=simulated";
        let none = Client { auth: Vec::new(), ..Client::new(&self.simulator) };
        let media = "application/x-www-form-urlencoded";
        let answer =
            none.raw("POST", "/api2/json/access/ticket", &[], Some((media, body))).await.unwrap().data();
        let text = |key: &str| answer[key].as_str().unwrap().to_owned();
        let auth = vec![
            ("Cookie".to_owned(), format!("PVEAuthCookie={}", common::escape(&text("ticket")))),
            ("CSRFPreventionToken".to_owned(), text("CSRFPreventionToken")),
        ];
        Client { auth, ..none }
    }

    /// The client that stands for who sent a recorded request.
    async fn client(&self, who: &str, note: &str) -> Client {
        let token = |text: &str| vec![("Authorization".to_owned(), text.to_owned())];
        let full = common::TOKEN;
        let secret = full.split_once('=').unwrap().1;
        let auth = match note {
            "valid token, scheme separated by a space" => token(&format!("PVEAPIToken {full}")),
            "token with the secret of zeros" => {
                token("PVEAPIToken=root@pam!full=00000000-0000-0000-0000-000000000000")
            }
            "unknown token id" => token(&format!("PVEAPIToken=root@pam!nosuch={secret}")),
            "unknown user" if who == "none" => token(&format!("PVEAPIToken=nobody@pve!full={secret}")),
            "unknown realm" if who == "none" => token(&format!("PVEAPIToken=root@nosuch!full={secret}")),
            "secret missing" => token("PVEAPIToken=root@pam!full"),
            "token id missing" => token(&format!("PVEAPIToken=root@pam={secret}")),
            "no user at all" => token("PVEAPIToken=x"),
            "other scheme: Bearer" => token(&format!("Bearer {full}")),
            "other scheme: Basic" => token("Basic cm9vdDpyb290"),
            "scheme in lower case" => token(&format!("pveapitoken={full}")),
            "expired token" => token(&format!("PVEAPIToken=root@pam!old={secret}")),
            "token of a disabled user" => token(&format!("PVEAPIToken=gone@pve!ci={SECRET}")),
            "damaged ticket" | "damaged ticket and a valid token: the ticket is used" => {
                let mut auth = token(&format!("PVEAPIToken={full}"));
                auth.push(("Cookie".into(), "PVEAuthCookie=PVE%3Aroot%40pam%3A00000000%3A%3Aabcd".into()));
                auth
            }
            _ => match who {
                "root@pam!full token" => token(&format!("PVEAPIToken={full}")),
                "limited token" => token(&format!("PVEAPIToken=builder@pve!ci={}", self.limited_secret)),
                "ticket" => {
                    let mut auth = self.ticket().await.auth;
                    match note {
                        note if note.contains("without CSRF") || note.contains("no CSRF") => auth.truncate(1),
                        note if note.contains("wrong CSRF") => auth[1].1 = "00000000:wrong".into(),
                        _ => {}
                    }
                    auth
                }
                _ => Vec::new(),
            },
        };
        Client { auth, ..Client::new(&self.simulator) }
    }

    async fn set_roles(&self, without: &[String], with: &[String]) {
        for (role, _, privileges) in ROLES {
            let mut held: Vec<&str> = privileges.split_whitespace().collect();
            held.retain(|name| !without.iter().any(|lost| lost == name));
            if *role == "BuildNode" {
                held.extend(with.iter().map(String::as_str));
            }
            let params = json!({ "privs": held.join(",") });
            self.root.call("PUT", &format!("/access/roles/{role}"), params).await.data();
        }
    }

    /// Sends one recorded exchange; the differences.
    async fn exchange(&mut self, file: &str, exchange: &Value) -> Vec<String> {
        let seq = exchange["seq"].as_u64().unwrap();
        let note = exchange["note"].as_str().unwrap();
        self.prepare(file, seq, exchange).await;
        let who = exchange["as"].as_str().unwrap();
        let (without, with) = setup::changed_rights(note);
        let changed = who == "limited token" && (!without.is_empty() || !with.is_empty());
        if changed {
            self.set_roles(&without, &with).await;
        }
        let client = self.client(who, note).await;
        let mut request = send::with_note(exchange);
        self.adapt(file, seq, &mut request).await;
        let mut response = self.answer(&client, &request, &exchange["response"]).await;
        if changed {
            self.set_roles(&[], &[]).await;
        }
        self.learn(&exchange["response"]["body"], response.as_ref());
        let path = request["path"].as_str().unwrap();
        let mut recorded = exchange["response"].clone();
        if (file, seq) == ("03", 108) {
            recorded =
                serde_json::from_str(&recorded.to_string().replace("isoonly", "isoonlydisabled")).unwrap();
        }
        if skipped::is_abridged(file, seq) {
            compare::abridge(&recorded, response.as_mut());
        }
        compare::differences(&recorded, response.as_ref(), path)
    }

    /// What the recording had to hide or what was switched outside the API.
    async fn adapt(&self, file: &str, seq: u64, request: &mut Value) {
        if (file, seq) == ("03", 108) {
            request["path"] = json!(request["path"].as_str().unwrap().replace("isoonly", "isoonlydisabled"));
        }
        if request["body"]["password"] == "<redacted>" {
            request["body"]["password"] = json!("simulated");
            if request["note"].as_str().unwrap().starts_with("renew") {
                let cookie = &self.ticket().await.auth[0].1;
                let ticket = cookie.strip_prefix("PVEAuthCookie=").unwrap();
                request["body"]["password"] = json!(unescape(ticket));
            }
        }
        if let Some(port) = request["query"]["port"].as_str() {
            let ours = self.known.ports.get(port).cloned().unwrap_or_else(|| port.into());
            if request["query"]["vncticket"] == "<redacted>" {
                let ticket = self.known.tickets.get(&ours).or_else(|| self.known.tickets.values().last());
                request["query"]["vncticket"] = json!(ticket);
            }
            request["query"]["port"] = json!(ours);
        }
    }

    /// Sends a request; a status that was recorded as over is asked for until it is.
    async fn answer(&self, client: &Client, request: &Value, recorded: &Value) -> Option<Response> {
        let path = request["path"].as_str().unwrap();
        let over = recorded["body"]["data"]["status"] == "stopped" && path.contains("/tasks/");
        let exited = path.ends_with("/exec-status") && recorded["body"]["data"]["exited"] != 0;
        if let Some(early) = self.early.lock().unwrap().take().filter(|_| exited) {
            return Some(early);
        }
        let whole_log = path.ends_with("/log")
            && recorded["body"]["data"].as_array().is_some_and(|lines| {
                lines
                    .last()
                    .is_some_and(|line| line["t"].as_str().is_some_and(|text| text.starts_with("TASK")))
            });
        for _ in 0..400 {
            let response = send::send(client, request, &self.known).await;
            let body = response.as_ref().map(Response::json).unwrap_or_default();
            let last = body["data"].as_array().and_then(|lines| lines.last()).cloned().unwrap_or_default();
            let waits = over && body["data"]["status"] == "running"
                || exited && body["data"]["exited"] == 0
                || whole_log && !last["t"].as_str().is_some_and(|text| text.starts_with("TASK"));
            if path.ends_with("/exec-status") && !exited && body["data"]["exited"] == 1 {
                // The end is told only once: it belongs to the next exchange.
                self.early.lock().unwrap().clone_from(&response);
            }
            if !waits {
                return response;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        send::send(client, request, &self.known).await
    }

    /// Notes what ours is for what was recorded.
    fn learn(&mut self, recorded: &Value, ours: Option<&Response>) {
        let Some(ours) = ours.map(Response::json) else {
            return;
        };
        let pairs = [
            (&recorded["data"], &ours["data"]),
            (&recorded["data"]["digest"], &ours["data"]["digest"]),
            (&recorded["data"]["upid"], &ours["data"]["upid"]),
        ];
        for (recorded, ours) in pairs {
            if let (Value::String(recorded), Value::String(ours)) = (recorded, ours)
                && (recorded.starts_with("UPID:") || recorded.len() == 40)
            {
                self.known.texts.insert(recorded.clone(), ours.clone());
            }
        }
        if let (Some(recorded), Some(ours)) = (recorded["data"]["pid"].as_u64(), ours["data"]["pid"].as_u64())
            && recorded != ours
            && recorded < 1000
        {
            self.known.pids.insert(recorded, ours);
        }
        if let (Some(port), Some(ticket)) = (ours["data"]["port"].as_str(), ours["data"]["ticket"].as_str()) {
            self.known.tickets.insert(port.into(), ticket.into());
            if let Some(recorded) = recorded["data"]["port"].as_str() {
                self.known.ports.insert(recorded.into(), port.into());
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// A web server with a file, a redirection, and a file that comes slowly.
async fn source(file: Vec<u8>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let file = file.clone();
            tokio::spawn(async move {
                let mut request = vec![0; 4096];
                let count = stream.read(&mut request).await.unwrap_or(0);
                let text = String::from_utf8_lossy(&request[..count]).into_owned();
                let path = text.split(' ').nth(1).unwrap_or_default();
                let media = "Content-Type: application/octet-stream\r\n";
                let (head, body) = match path {
                    "/ok.iso" => (format!("200 OK\r\n{media}Content-Length: {}", file.len()), file),
                    "/slow" => (
                        format!("200 OK\r\nContent-Length: {}", 3 * file.len()),
                        [&file[..], &file, &file].concat(),
                    ),
                    "/redir" => ("302 Found\r\nLocation: /ok.iso\r\nContent-Length: 0".into(), Vec::new()),
                    _ => ("404 Not Found\r\nContent-Length: 0".into(), Vec::new()),
                };
                let head = format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n");
                let sent = stream.write_all(head.as_bytes()).await;
                if sent.is_ok() && !text.starts_with("HEAD") {
                    // A client that has gone has its reasons.
                    drop(stream.write_all(&body).await);
                }
            });
        }
    });
    port
}

async fn replay(name: &str) {
    let Some(folder) = folder() else {
        println!("{name} is not replayed: the transcripts are not there");
        return;
    };
    let file = &name[..2];
    let text = std::fs::read_to_string(folder.join(format!("{name}.jsonl"))).unwrap();
    let mut replay = Replay::start(file).await;
    let (mut same, mut wrong) = (0, Vec::new());
    for line in text.lines() {
        let exchange: Value = serde_json::from_str(line).unwrap();
        let seq = exchange["seq"].as_u64().unwrap();
        if skipped::why(file, seq).is_some() {
            replay.prepare(file, seq, &exchange).await;
            continue;
        }
        let differences = replay.exchange(file, &exchange).await;
        if differences.is_empty() {
            same += 1;
        } else {
            let note = exchange["note"].as_str().unwrap();
            wrong.push(format!("{name} {seq} ({note}):\n    {}", differences.join("\n    ")));
        }
    }
    skipped::print(file);
    assert!(wrong.is_empty(), "{same} the same, {} not:\n{}", wrong.len(), wrong.join("\n"));
    assert!(same > 0 || file == "11", "nothing of {name} was replayed");
}

macro_rules! replays {
    ($($test:ident: $name:literal),* $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            replay($name).await;
        })*
    };
}

replays! {
    accounts: "00-accounts",
    auth: "01-auth",
    inventory: "02-inventory",
    upload: "03-upload",
    vm_create: "04-vm-create",
    run_agent: "05-run-agent",
    config: "06-config",
    template_clone_delete: "07-template-clone-delete",
    tasks: "08-tasks",
    locks: "09-locks",
    console: "10-console",
    connection: "12-connection",
    containers: "11-lxc",
    replace_in_place: "13-replace-in-place",
}

#[test]
fn every_transcript_has_its_test() {
    let Some(folder) = folder() else {
        println!("nothing is looked at: the transcripts are not there");
        return;
    };
    let source = include_str!("main.rs");
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if let Some(name) = name.strip_suffix(".jsonl") {
            assert!(source.contains(&format!("\"{name}\"")), "{name} is not replayed");
        }
    }
}
