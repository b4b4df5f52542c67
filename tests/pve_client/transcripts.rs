//! Every recorded answer of a genuine server, given to the client's call for it: each is a value or an error
//! that says what can be done, and never one that is not understood.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use forge::pve::{
    Client, CloneOptions, ConfigChange, Content, Download, Error, NodeName, Params, Storage, StorageId,
    TaskFilter, Upid, Vm,
};
use serde_json::Value;

use super::server::{Reply, Server};
use super::settings;

fn folder() -> Option<PathBuf> {
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let shared = std::env::var_os("FORGE_SHARED").map_or(beside, PathBuf::from);
    let folder = shared.join("pve-api/transcripts");
    folder.is_dir().then_some(folder)
}

/// A recorded exchange.
struct Exchange {
    place: String,
    method: String,
    path: String,
    request: Value,
    response: Value,
}

fn exchanges(folder: &PathBuf) -> Vec<Exchange> {
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    files.sort();
    let mut exchanges = Vec::new();
    for file in files {
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        for line in std::fs::read_to_string(&file).unwrap().lines() {
            let mut exchange: Value = serde_json::from_str(line).unwrap();
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            exchanges.push(Exchange {
                place: format!("{name} {}: {}", exchange["seq"], text(&exchange["note"])),
                method: text(&exchange["request"]["method"]),
                path: text(&exchange["request"]["path"]),
                request: exchange["request"].take(),
                response: exchange["response"].take(),
            });
        }
    }
    exchanges
}

/// Returns the recorded answer as it was on the wire; nothing for a connection that just ended.
fn reply(response: &Value) -> Reply {
    let status = response["status"].as_u64().unwrap() as u16;
    if status == 0 {
        return Reply::Hangup;
    }
    let body = match &response["body"] {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        body => filled(body).to_string(),
    };
    let Reply::Answer { headers, body, .. } = Reply::answer(status, "", &body) else { unreachable!() };
    Reply::Answer {
        status,
        reason: response["reason"].as_str().unwrap_or_default().to_owned(),
        headers,
        body,
    }
}

/// Returns a body without the marks of what the recording shortens.
fn filled(body: &Value) -> Value {
    match body {
        Value::Array(list) => {
            let mark = |value: &&Value| !value.as_str().is_some_and(|text| text.starts_with('…'));
            list.iter().filter(mark).map(filled).collect()
        }
        Value::Object(fields) => fields.iter().map(|(key, value)| (key.clone(), filled(value))).collect(),
        Value::String(text) => text.replace('…', ".").into(),
        other => other.clone(),
    }
}

/// Makes the client's call for a recorded request; nothing when the client has none.
async fn call(client: &Client, exchange: &Exchange) -> Option<Result<(), Error>> {
    // With these the answer can be null; the client never sends them.
    let body = exchange.request.to_string();
    if body.contains("\"delay\"") || body.contains("\"background_delay\"") {
        return None;
    }
    let path = exchange.path.strip_prefix("/api2/json/")?;
    let parts: Vec<&str> = path.split('/').collect();
    let node: NodeName = "pve1".parse().unwrap();
    Some(match (exchange.method.as_str(), &parts[..]) {
        ("GET", ["version"]) => client.version().await.map(drop),
        ("GET", ["access", "permissions"]) => client.privileges(asked(exchange, "path")?).await.map(drop),
        ("GET", ["access", "roles"]) => client.roles().await.map(drop),
        ("GET", ["cluster", "nextid"]) => {
            client.is_free(asked(exchange, "vmid")?.parse().ok()?).await.map(drop)
        }
        ("GET", ["cluster", "resources"]) if asked(exchange, "type") == Some("vm") => {
            client.guests().await.map(drop)
        }
        ("GET", ["pools"]) if asked(exchange, "poolid").is_none() => client.pools().await.map(drop),
        ("GET", ["nodes", _, "qemu"]) => client.vms(&node).await.map(drop),
        ("GET", ["nodes"]) => client.nodes().await.map(drop),
        ("GET", ["nodes", _, "time"]) => client.time(&node).await.map(drop),
        ("GET", ["nodes", _, "status"]) => client.node_status(&node).await.map(drop),
        ("GET", ["nodes", _, "network"]) => client.bridges(&node).await.map(drop),
        ("GET", ["nodes", _, "storage"]) => client.storages(&node, None).await.map(drop),
        ("GET", ["nodes", _, "tasks"]) => client.tasks(&node, &TaskFilter::default()).await.map(drop),
        (method, ["nodes", _, "tasks", _, rest @ ..]) => task(client, method, rest).await?,
        (method, ["nodes", _, "storage", _, rest @ ..]) => {
            let id: StorageId = "local".parse().unwrap();
            storage(&client.storage(&node, &id), method, rest).await?
        }
        ("POST", ["nodes", _, "qemu"]) => vm(client).create(&Params::new()).await.map(drop),
        (method, ["nodes", _, "qemu", _, "agent", name]) => agent(client, method, name).await?,
        (method, ["nodes", _, "qemu", _, rest @ ..]) => machine(&vm(client), method, rest).await?,
        _ => return None,
    })
}

fn asked<'a>(exchange: &'a Exchange, name: &str) -> Option<&'a str> {
    exchange.request["query"].get(name).and_then(Value::as_str)
}

fn vm(client: &Client) -> Vm {
    super::vm(client)
}

async fn task(client: &Client, method: &str, rest: &[&str]) -> Option<Result<(), Error>> {
    let upid: Upid = super::UPID.parse().unwrap();
    Some(match (method, rest) {
        ("GET", ["status"]) => client.task_state(&upid).await.map(drop),
        ("GET", ["log"]) => client.task_log(&upid, 0).await.map(drop),
        ("DELETE", []) => client.stop_task(&upid).await,
        _ => return None,
    })
}

async fn storage(storage: &Storage, method: &str, rest: &[&str]) -> Option<Result<(), Error>> {
    let download = Download { url: "http://x/", content: Content::Iso, name: "x.iso", sha256: "abc" };
    Some(match (method, rest) {
        ("GET", ["status"]) => storage.status().await.map(drop),
        ("GET", ["content"]) => storage.volumes(None, None).await.map(drop),
        ("GET", ["content", ..]) => storage.volume("local:iso/x.iso").await.map(drop),
        ("DELETE", ["content", ..]) => storage.delete("local:iso/x.iso").await.map(drop),
        ("POST", ["download-url"]) => storage.download(&download).await.map(drop),
        ("POST", ["upload"]) => {
            let file = tempfile::NamedTempFile::new().unwrap();
            let upload =
                forge::pve::Upload { path: file.path(), content: Content::Iso, name: "x.iso", sha256: None };
            storage.upload(&upload, &|_, _| {}).await.map(drop)
        }
        _ => return None,
    })
}

async fn agent(client: &Client, method: &str, name: &str) -> Option<Result<(), Error>> {
    let agent = vm(client).agent();
    Some(match (method, name) {
        ("POST", "ping") => agent.ping().await,
        ("POST", "exec") => agent.exec(&["true"], b"").await.map(drop),
        ("GET", "exec-status") => agent.exec_status(1).await.map(drop),
        ("GET", "file-read") => agent.read_file("/x").await.map(drop),
        ("POST", "file-write") => agent.write_file("/x", b"x").await,
        _ => return None,
    })
}

async fn machine(vm: &Vm, method: &str, rest: &[&str]) -> Option<Result<(), Error>> {
    let change = ConfigChange::set([("cores", "1")]);
    let limit = Duration::from_secs(5);
    let clone = CloneOptions {
        newid: "101".parse().unwrap(),
        name: None,
        full: true,
        storage: None,
        pool: None,
        description: None,
    };
    Some(match (method, rest) {
        ("GET", ["config"]) => vm.config().await.map(drop),
        ("PUT", ["config"]) => vm.set(&change).await,
        ("POST", ["config"]) => vm.update(&change).await.map(drop),
        ("GET", ["status", "current"]) => vm.status().await.map(drop),
        ("POST", ["status", "start"]) => vm.start(None).await.map(drop),
        ("POST", ["status", "stop"]) => vm.stop().await.map(drop),
        ("POST", ["status", "shutdown"]) => vm.shutdown(limit, false).await.map(drop),
        ("POST", ["clone"]) => vm.clone_to(&clone).await.map(drop),
        ("POST", ["template"]) => vm.convert().await.map(drop),
        ("PUT", ["resize"]) => vm.resize("virtio0", "+1G").await.map(drop),
        ("DELETE", []) => vm.destroy().await.map(drop),
        ("PUT", ["sendkey"]) => vm.send_key("ret").await,
        _ => return None,
    })
}

#[tokio::test]
async fn every_recorded_answer_is_understood() {
    let Some(folder) = folder() else {
        println!(
            "not checked: there are no transcripts in ../shared/pve-api (FORGE_SHARED names another folder)"
        );
        return;
    };
    let next = Arc::new(Mutex::new(Reply::Hangup));
    let given = Arc::clone(&next);
    let server = Server::plain(move |_| given.lock().unwrap().clone()).await;
    // Nothing is repeated: each recorded answer is asked for once.
    let mut patient = settings(&server, forge::pve::Trust::Anything);
    patient.pace = patient.pace.faster(1_000_000);
    let client = Client::new(patient).unwrap();

    let mut wrong = Vec::new();
    let mut others: BTreeMap<String, usize> = BTreeMap::new();
    let (mut values, mut errors) = (0, 0);
    for exchange in exchanges(&folder) {
        *next.lock().unwrap() = reply(&exchange.response);
        match call(&client, &exchange).await {
            None => *others.entry(kind(&exchange)).or_default() += 1,
            Some(Ok(())) => values += 1,
            Some(Err(Error::Answer { .. })) if !is_json(&exchange.response) => errors += 1,
            Some(Err(error @ (Error::Answer { .. } | Error::Unusable { .. }))) => {
                wrong.push(format!("{}: {error}", exchange.place));
            }
            Some(Err(error)) => {
                errors += 1;
                let said = exchange.response["reason"].as_str().unwrap_or_default();
                let status = exchange.response["status"].as_u64().unwrap();
                if status == 200 && !error.is_not_found() {
                    wrong.push(format!("{}: 200 became {error}", exchange.place));
                } else if status != 0 && status != 200 && !told(&error, said) {
                    wrong.push(format!("{}: `{said}` is missing in {error}", exchange.place));
                }
            }
        }
    }
    println!("{values} values, {errors} errors; no call of the client's: {others:#?}");
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(values > 800 && errors > 200, "{values} values, {errors} errors");
}

/// Tells whether an error has the words of the reason phrase, or of the parameters that replace it.
fn told(error: &Error, reason: &str) -> bool {
    let text = error.to_string();
    text.contains(reason) || reason == "Parameter verification failed."
}

/// Tells whether a success has the JSON that the API gives; `html` and downloads have not.
fn is_json(response: &Value) -> bool {
    response["body"].is_object()
}

fn kind(exchange: &Exchange) -> String {
    let parts = exchange.path.split('/').map(|part| match part {
        _ if part.starts_with("UPID") => "{upid}",
        _ if part.parse::<u32>().is_ok() => "{id}",
        _ if part.len() > 60 => "…",
        _ => part,
    });
    format!("{} {}", exchange.method, parts.collect::<Vec<_>>().join("/"))
}
