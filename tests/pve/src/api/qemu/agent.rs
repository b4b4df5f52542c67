//! The guest agent's endpoints, with their limits and their way with characters.
//!
//! Texts go in as bytes of Latin-1 or UTF-8, depending on the call, and come out as one code point
//! for each byte. Source: qemu-server `PVE/API2/Qemu/Agent.pm`, `PVE/QemuServer/Agent.pm`.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use serde_json::{Value, json};

use super::power::has_agent_port;
use crate::answer::{Answer, Failure, nothing};
use crate::api::{Allow, Endpoint, NODE_VM, run};
use crate::hypervisor::{AgentError, Machine};
use crate::schema::{Arg, Param};
use crate::sim::Call;

const AUDIT: Allow = Allow::Agent(&["VM.GuestAgent.Audit", "VM.GuestAgent.Unrestricted"]);
const FREEZE: Allow = Allow::Agent(&["VM.GuestAgent.FileSystemMgmt", "VM.GuestAgent.Unrestricted"]);
const FREEZE_STATE: Allow =
    Allow::Agent(&["VM.GuestAgent.Audit", "VM.GuestAgent.FileSystemMgmt", "VM.GuestAgent.Unrestricted"]);
const POWER: Allow = Allow::Agent(&["VM.PowerMgmt", "VM.GuestAgent.Unrestricted"]);
const ALL: Allow = Allow::Agent(&["VM.GuestAgent.Unrestricted"]);
const READ: Allow = Allow::Agent(&["VM.GuestAgent.FileRead", "VM.GuestAgent.Unrestricted"]);
const WRITE: Allow = Allow::Agent(&["VM.GuestAgent.FileWrite", "VM.GuestAgent.Unrestricted"]);

const SIMPLE: &[&str] = &[
    "fsfreeze-freeze",
    "fsfreeze-status",
    "fsfreeze-thaw",
    "fstrim",
    "get-fsinfo",
    "get-host-name",
    "get-memory-block-info",
    "get-memory-blocks",
    "get-osinfo",
    "get-time",
    "get-timezone",
    "get-users",
    "get-vcpus",
    "info",
    "network-get-interfaces",
    "ping",
    "shutdown",
    "suspend-disk",
    "suspend-hybrid",
    "suspend-ram",
];

/// A command without parameters of its own.
macro_rules! simple {
    ($method:literal, $command:literal, $allow:expr) => {
        Endpoint::new($method, concat!("/nodes/{node}/qemu/{vmid}/agent/", $command), $allow, |call| {
            Box::pin(simple(call, $command))
        })
        .takes(&[NODE_VM])
        .protected()
    };
}

pub(crate) static ENDPOINTS: &[Endpoint] = &[
    Endpoint::new("POST", "/nodes/{node}/qemu/{vmid}/agent", ALL, run!(generic))
        .takes(&[NODE_VM, &[Param::choice("command", SIMPLE)]])
        .protected(),
    simple!("POST", "ping", AUDIT),
    simple!("GET", "info", AUDIT),
    simple!("GET", "get-osinfo", AUDIT),
    simple!("GET", "get-host-name", AUDIT),
    simple!("GET", "get-time", AUDIT),
    simple!("GET", "get-timezone", AUDIT),
    simple!("GET", "get-users", AUDIT),
    simple!("GET", "get-vcpus", AUDIT),
    simple!("GET", "get-fsinfo", AUDIT),
    simple!("GET", "get-memory-blocks", AUDIT),
    simple!("GET", "get-memory-block-info", AUDIT),
    simple!("GET", "network-get-interfaces", AUDIT),
    simple!("POST", "fsfreeze-freeze", FREEZE),
    simple!("POST", "fsfreeze-thaw", FREEZE),
    simple!("POST", "fstrim", FREEZE),
    simple!("POST", "fsfreeze-status", FREEZE_STATE),
    simple!("POST", "shutdown", POWER),
    simple!("POST", "suspend-disk", POWER),
    simple!("POST", "suspend-ram", POWER),
    simple!("POST", "suspend-hybrid", POWER),
    Endpoint::new("POST", "/nodes/{node}/qemu/{vmid}/agent/exec", ALL, run!(exec))
        .takes(&[NODE_VM, &[Param::list("command"), Param::text("input-data").max_len(65_536).opt()]])
        .protected(),
    Endpoint::new("GET", "/nodes/{node}/qemu/{vmid}/agent/exec-status", ALL, run!(exec_status))
        .takes(&[NODE_VM, &[Param::int("pid")]])
        .protected(),
    Endpoint::new("GET", "/nodes/{node}/qemu/{vmid}/agent/file-read", READ, run!(file_read))
        .takes(&[
            NODE_VM,
            &[
                Param::text("file"),
                Param::int("count").min(1.0).max(16_777_216.0).opt().since(9),
                Param::flag("decode").opt().since(9),
                Param::int("offset").min(0.0).opt().since(9),
            ],
        ])
        .protected(),
    Endpoint::new("POST", "/nodes/{node}/qemu/{vmid}/agent/file-write", WRITE, run!(file_write))
        .takes(&[
            NODE_VM,
            &[Param::text("content").max_len(61_440), Param::flag("encode").opt(), Param::text("file")],
        ])
        .protected(),
    Endpoint::new("POST", "/nodes/{node}/qemu/{vmid}/agent/set-user-password", ALL, run!(set_user_password))
        .takes(&[
            NODE_VM,
            &[
                Param::flag("crypted").opt(),
                Param::text("password").min_len(5).max_len(1024),
                Param::text("username"),
            ],
        ])
        .protected(),
];

/// A running VM's agent. Each command connects to its socket, which takes one client at a time: another
/// call's may come between two of ours.
struct Agent {
    call: Call,
    machine: Arc<dyn Machine>,
}

impl Agent {
    /// Looks whether there is an agent that answers.
    ///
    /// # Errors
    /// Not configured, not running, no answer to a ping within 3 s: in this order.
    async fn reach(call: Call) -> Result<Self, Failure> {
        let vmid = call.args.vmid();
        let (machine, port) = {
            let world = call.sim.world();
            let vm = world.vm(&call.node, vmid)?;
            if vm.config.get("agent").is_none() {
                return Err("No QEMU guest agent configured".into());
            }
            let machine = vm.running().ok_or_else(|| format!("VM {vmid} is not running"))?;
            (machine, has_agent_port(vm))
        };
        let agent = Self { call, machine };
        let Ok(socket) = agent.connect("guest-ping").await else {
            return Err("QEMU guest agent is not running".into());
        };
        let silent = !port || agent.hangs();
        let answered = !silent && {
            let limit = agent.call.sim.clock.span(3.0);
            agent.machine.agent("guest-ping", json!({}), limit).await.is_ok()
        };
        if silent {
            agent.call.sim.clock.sleep(3.0).await;
        }
        drop(socket);
        if answered { Ok(agent) } else { Err("QEMU guest agent is not running".into()) }
    }

    /// # Errors
    /// Somebody else holds the socket for 3 s.
    async fn connect(&self, command: &str) -> Result<tokio::sync::OwnedMutexGuard<()>, Failure> {
        let vmid = self.call.args.vmid();
        let waiting = self.call.sim.agent_socket(vmid).lock_owned();
        let connected = tokio::time::timeout(self.call.sim.clock.span(3.0), waiting).await;
        let text = format!("unable to connect to VM {vmid} qga socket - timeout after 31 retries");
        connected.map_err(|_| self.failed(command, &text))
    }

    fn hangs(&self) -> bool {
        self.call.sim.world().vms.get(&self.call.args.vmid()).is_some_and(|vm| vm.agent_hangs)
    }

    /// # Errors
    /// The socket's or the timeout's text; the agent's own refusals come back as they are.
    async fn ask(&self, command: &str, arguments: Value) -> Result<Result<Value, AgentError>, Failure> {
        let seconds = match command {
            "guest-fsfreeze-thaw" => 180.0,
            "guest-fstrim" | "guest-shutdown" => 600.0,
            "guest-fsfreeze-freeze" => 3600.0,
            _ => 5.0,
        };
        let limit = self.call.sim.clock.span(seconds);
        let _socket = self.connect(command).await?;
        match self.machine.agent(command, arguments, limit).await {
            Err(AgentError::Timeout) => Err(self.failed(command, "got timeout")),
            Err(AgentError::NotRunning) => Err(self.failed(command, "client closed connection")),
            other => Ok(other),
        }
    }

    /// What the server's QMP client dies of.
    fn failed(&self, command: &str, text: &str) -> Failure {
        let word = if self.call.sim.world().release.major() < 9 { "qmp" } else { "qga" };
        format!("VM {} {word} command '{command}' failed - {text}", self.call.args.vmid()).into()
    }

    /// As [`Self::ask`], for calls that turn the agent's refusals into errors.
    async fn demand(&self, command: &str, arguments: Value) -> Result<Value, Failure> {
        match self.ask(command, arguments).await? {
            Ok(value) => Ok(value),
            Err(AgentError::Error { desc, .. }) => Err(format!("Agent error: {desc}").into()),
            Err(other) => Err(format!("Agent error: {other:?}").into()),
        }
    }
}

async fn simple(call: Call, command: &str) -> Answer {
    let agent = Agent::reach(call).await?;
    let command = format!("guest-{command}");
    let result = match agent.ask(&command, json!({})).await? {
        Ok(value) => value,
        Err(AgentError::Error { class, desc }) => json!({ "error": { "class": class, "desc": desc } }),
        Err(other) => return Err(format!("{other:?}").into()),
    };
    Ok(json!({ "result": result }).into())
}

async fn generic(call: Call) -> Answer {
    let command = call.args.text("command").to_owned();
    simple(call, &command).await
}

/// Text as the bytes that Perl makes of it: one for each character.
fn latin1(text: &str) -> Option<Vec<u8>> {
    text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect()
}

/// Bytes as the text that Perl makes of them: one character for each.
fn code_points(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

/// The agent's base64; its padding is forgiven, as in Perl.
fn decode(text: &str) -> Vec<u8> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    LENIENT.decode(text.trim()).unwrap_or_default()
}

async fn exec(call: Call) -> Answer {
    let command = match call.args.0.get("command") {
        Some(Arg::List(command)) => command.clone(),
        _ => Vec::new(),
    };
    let input = call.args.get("input-data").map(String::from);
    let vmid = call.args.vmid();
    let agent = Agent::reach(call).await?;
    if command.iter().any(|word| word.chars().any(|c| c > '\u{ff}')) {
        if let Some(vm) = agent.call.sim.world().vms.get_mut(&vmid) {
            vm.agent_hangs = true;
        }
        agent.call.sim.clock.sleep(5.0).await;
        return Err(agent.failed("guest-exec", "got timeout"));
    }
    let mut arguments = json!({ "path": command.first(), "capture-output": true });
    if command.len() > 1 {
        arguments["arg"] = json!(command[1..]);
    }
    if let Some(input) = input {
        let bytes = latin1(&input);
        let bytes = bytes.ok_or_else(|| wide_character("QemuServer/Agent.pm line 115"))?;
        arguments["input-data"] = json!(STANDARD.encode(bytes));
    }
    let answer = agent.demand("guest-exec", arguments).await?;
    Ok(json!({ "pid": answer["pid"] }).into())
}

fn wide_character(place: &str) -> Failure {
    format!("Wide character in subroutine entry at /usr/share/perl5/PVE/{place}.").into()
}

async fn exec_status(call: Call) -> Answer {
    let pid: i64 = call.args.text("pid").parse().unwrap_or_default();
    let agent = Agent::reach(call).await?;
    let told = agent.demand("guest-exec-status", json!({ "pid": pid })).await?;
    let mut shown = json!({});
    for (key, value) in told.as_object().into_iter().flatten() {
        shown[key] = match value {
            Value::Bool(flag) => json!(u8::from(*flag)),
            Value::String(text) if key == "out-data" || key == "err-data" => {
                json!(code_points(&decode(text)))
            }
            other => other.clone(),
        };
    }
    // Both streams that were written have their mark, cut or not.
    for (data, mark) in [("out-data", "out-truncated"), ("err-data", "err-truncated")] {
        if shown.get(data).is_some() && shown.get(mark).is_none() {
            shown[mark] = json!(0);
        }
    }
    Ok(shown.into())
}

const CHUNK: u64 = 1 << 20;
const MOST: u64 = 16 << 20;

async fn file_read(call: Call) -> Answer {
    let file = call.args.text("file").to_owned();
    let count = call.args.number("count").unwrap_or(MOST);
    let offset = call.args.number("offset");
    let decoded = call.args.get("decode") != Some("0");
    let agent = Agent::reach(call).await?;
    let handle = agent.demand("guest-file-open", json!({ "path": file, "mode": "r" })).await?;
    let read = read_all(&agent, &handle, count, offset, decoded).await;
    let closed = agent.demand("guest-file-close", json!({ "handle": handle })).await;
    let (content, bytes, whole) = read?;
    closed?;
    let mut shown = json!({ "content": content, "bytes-read": bytes });
    if !whole {
        shown["truncated"] = json!(1);
    }
    Ok(shown.into())
}

async fn read_all(
    agent: &Agent,
    handle: &Value,
    count: u64,
    offset: Option<u64>,
    decoded: bool,
) -> Result<(String, u64, bool), Failure> {
    if let Some(offset) = offset {
        let seek = json!({ "handle": handle, "offset": offset, "whence": "set" });
        agent.demand("guest-file-seek", seek).await?;
    }
    let (mut content, mut bytes, mut whole) = (String::new(), 0, false);
    while bytes < count && !whole {
        let wanted = (count - bytes).min(CHUNK);
        let part = agent.demand("guest-file-read", json!({ "handle": handle, "count": wanted })).await?;
        let text = part["buf-b64"].as_str().unwrap_or_default();
        if decoded {
            content.push_str(&code_points(&decode(text)));
        } else {
            // Chunks are put behind one another, their padding included.
            content.push_str(text);
        }
        bytes += part["count"].as_u64().unwrap_or(0);
        whole = part["eof"] == json!(true);
    }
    Ok((content, bytes, whole))
}

async fn file_write(call: Call) -> Answer {
    let file = call.args.text("file").to_owned();
    let content = call.args.text("content").to_owned();
    let encode = call.args.get("encode") != Some("0");
    let agent = Agent::reach(call).await?;
    let content = if encode {
        let bytes = latin1(&content);
        STANDARD.encode(bytes.ok_or_else(|| wide_character("API2/Qemu/Agent.pm line 521"))?)
    } else {
        content
    };
    let handle = agent.demand("guest-file-open", json!({ "path": file, "mode": "wb" })).await?;
    let written = agent.demand("guest-file-write", json!({ "handle": handle, "buf-b64": content })).await;
    let closed = agent.demand("guest-file-close", json!({ "handle": handle })).await;
    written?;
    closed?;
    nothing()
}

async fn set_user_password(call: Call) -> Answer {
    let arguments = json!({
        "username": call.args.text("username"),
        "password": STANDARD.encode(call.args.text("password")),
        "crypted": call.args.flag("crypted"),
    });
    let agent = Agent::reach(call).await?;
    let answer = agent.demand("guest-set-user-password", arguments).await?;
    Ok(json!({ "result": answer }).into())
}
