//! Machines that are only pretended: no QEMU, a guest of a few lines, quick and the same everywhere.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::sync::watch;

use crate::held;
use crate::hypervisor::{AgentError, Hypervisor, Later, Machine, Spec, Status, Volume};

/// What a program in a pretended guest leaves.
#[derive(Clone, Debug, Default)]
pub struct Output {
    /// Its exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Standard output.
    pub out: Vec<u8>,
    /// Standard error.
    pub err: Vec<u8>,
    /// How long it runs.
    pub takes: Duration,
}

/// The system in a pretended guest.
pub trait Guest: Send + Sync + std::fmt::Debug {
    /// The machine is switched on.
    fn started(&self, _machine: &Pretended) {}

    /// Whether the agent answers by now.
    fn agent_is_up(&self, _since_start: Duration) -> bool {
        true
    }

    /// Runs a program; the files of the guest may be changed.
    ///
    /// # Errors
    /// The agent's text when the program cannot be started.
    fn exec(&self, machine: &Pretended, command: &[String], input: &[u8]) -> Result<Output, String>;

    /// Whether the guest heeds the power button and the agent's shutdown.
    fn shuts_down(&self) -> bool {
        true
    }
}

/// A guest that knows `echo`, `cat`, `true`, `uname` and `sleep`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl Guest for Plain {
    fn exec(&self, _: &Pretended, command: &[String], input: &[u8]) -> Result<Output, String> {
        let name = command.first().map_or("", String::as_str);
        let rest = &command[command.len().min(1)..];
        let mut output = Output { code: Some(0), ..Output::default() };
        match name.rsplit('/').next().unwrap_or(name) {
            "echo" => output.out = format!("{}\n", rest.join(" ")).into_bytes(),
            "cat" => output.out = input.to_vec(),
            "true" => {}
            "uname" => output.out = b"Linux\n".to_vec(),
            "sleep" => {
                let seconds = rest.first().and_then(|text| text.parse().ok()).unwrap_or(0.0);
                output.takes = Duration::from_secs_f64(seconds);
            }
            _ => return Err(format!("Failed to execute child process “{name}” (No such file or directory)")),
        }
        Ok(output)
    }
}

/// Starts pretended machines, all with the same kind of guest.
#[derive(Debug)]
pub struct Pretend {
    guest: Arc<dyn Guest>,
}

impl Pretend {
    /// Machines with this guest.
    pub fn new(guest: Arc<dyn Guest>) -> Self {
        Self { guest }
    }
}

impl Default for Pretend {
    fn default() -> Self {
        Self::new(Arc::new(Plain))
    }
}

impl Hypervisor for Pretend {
    fn start(&self, spec: Spec) -> Later<'_, Result<Arc<dyn Machine>, String>> {
        Box::pin(async move {
            let failed = |error: std::io::Error| error.to_string();
            std::fs::create_dir_all(&spec.folder).map_err(failed)?;
            let vnc = spec.folder.join("vnc.sock");
            listen(&vnc, true).map_err(failed)?;
            let serial = spec.config.keys().any(|key| key.starts_with("serial"));
            let serial = serial.then(|| spec.folder.join("serial0.sock"));
            if let Some(serial) = &serial {
                listen(serial, false).map_err(failed)?;
            }
            let machine = Arc::new(Pretended {
                spec,
                guest: Arc::clone(&self.guest),
                started: Instant::now(),
                state: watch::Sender::new("running"),
                inside: Mutex::default(),
                vnc,
                serial,
            });
            self.guest.started(&machine);
            Ok(machine as Arc<dyn Machine>)
        })
    }

    fn cloud_init(&self, config: &BTreeMap<String, String>, document: &str) -> String {
        let name = config.get("name").map_or("", String::as_str);
        match document {
            "user" => format!("#cloud-config\nhostname: {}\n", name.split('.').next().unwrap_or(name)),
            "network" => "version: 1\nconfig:\n".into(),
            _ => "instance-id: 0\n".into(),
        }
    }

    fn write_cloud_init<'a>(
        &'a self,
        _: &'a BTreeMap<String, String>,
        _: &'a Volume,
    ) -> Later<'a, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
}

/// A console that greets as VNC does, or says nothing.
fn listen(path: &Path, vnc: bool) -> std::io::Result<()> {
    // A socket of an earlier start is in the way.
    drop(std::fs::remove_file(path));
    let listener = UnixListener::bind(path)?;
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 512];
                if vnc && client.write_all(b"RFB 003.008\n").await.is_ok() {
                    drop(client.read(&mut buffer).await);
                    // One kind of authentication: a password.
                    drop(client.write_all(&[1, 2]).await);
                }
                while matches!(client.read(&mut buffer).await, Ok(1..)) {}
            });
        }
    });
    Ok(())
}

#[derive(Debug, Default)]
struct Inside {
    files: BTreeMap<String, Vec<u8>>,
    handles: BTreeMap<i64, (String, usize)>,
    running: BTreeMap<i64, (Instant, Output)>,
    next: i64,
}

/// A pretended machine.
#[derive(Debug)]
pub struct Pretended {
    /// What it was started with.
    pub spec: Spec,
    guest: Arc<dyn Guest>,
    started: Instant,
    state: watch::Sender<&'static str>,
    inside: Mutex<Inside>,
    vnc: PathBuf,
    serial: Option<PathBuf>,
}

impl Pretended {
    /// Switches it off, as a guest does by itself.
    pub fn switch_off(&self) {
        self.state.send_replace("stopped");
    }

    /// Reads a file of the guest.
    pub fn file(&self, path: &str) -> Option<Vec<u8>> {
        held(&self.inside).files.get(path).cloned()
    }

    /// Writes a file of the guest.
    pub fn put_file(&self, path: &str, content: Vec<u8>) {
        held(&self.inside).files.insert(path.into(), content);
    }

    fn refusal(desc: impl Into<String>) -> AgentError {
        AgentError::Error { class: "GenericError".into(), desc: desc.into() }
    }

    fn answer(&self, execute: &str, arguments: &Value) -> Result<Value, AgentError> {
        let text = |key: &str| arguments[key].as_str().unwrap_or_default();
        match execute {
            "guest-ping" | "guest-file-close" => Ok(json!({})),
            "guest-info" => Ok(json!({ "version": "9.2.0", "supported_commands": [
                { "name": "guest-exec", "enabled": true, "success-response": true },
            ] })),
            "guest-get-osinfo" => Ok(json!({
                "id": "pretended", "name": "Pretended", "pretty-name": "Pretended guest", "version-id": "1",
                "machine": "x86_64", "kernel-release": "6.1.0", "kernel-version": "#1 SMP",
            })),
            "guest-get-host-name" => Ok(json!({ "host-name": self.spec.config.get("name") })),
            "guest-get-time" => Ok(json!(1_795_247_143_779_029_000_i64)),
            "guest-get-timezone" => Ok(json!({ "zone": "UTC", "offset": 0 })),
            "guest-get-vcpus" => Ok(json!([{ "logical-id": 0, "can-offline": false, "online": true }])),
            "guest-get-memory-block-info" => Ok(json!({ "size": 134_217_728 })),
            "guest-get-fsinfo" | "guest-get-users" | "guest-get-memory-blocks" => Ok(json!([])),
            "guest-network-get-interfaces" => Ok(interfaces()),
            "guest-fsfreeze-status" => Ok(json!("thawed")),
            "guest-shutdown" => {
                if self.guest.shuts_down() {
                    self.switch_off();
                }
                Ok(json!({}))
            }
            "guest-exec" => self.exec(arguments),
            "guest-exec-status" => self.exec_status(arguments["pid"].as_i64().unwrap_or_default()),
            "guest-file-open" => self.open(text("path"), text("mode")),
            "guest-file-read" => self.read(arguments),
            "guest-file-write" => self.write(arguments),
            "guest-file-seek" => self.seek(arguments),
            "guest-set-user-password" => Err(Self::refusal("cannot find 'passwd' program in PATH")),
            other => Err(AgentError::Error {
                class: "CommandNotFound".into(),
                desc: format!("The command {other} has not been found"),
            }),
        }
    }

    fn exec(&self, arguments: &Value) -> Result<Value, AgentError> {
        let mut command = vec![arguments["path"].as_str().unwrap_or_default().to_owned()];
        let rest = arguments["arg"].as_array().into_iter().flatten();
        command.extend(rest.filter_map(|word| word.as_str().map(String::from)));
        let input = STANDARD.decode(arguments["input-data"].as_str().unwrap_or_default()).unwrap_or_default();
        let output = self.guest.exec(self, &command, &input).map_err(Self::refusal)?;
        let mut inside = held(&self.inside);
        inside.next += 1;
        let pid = 100 + inside.next;
        inside.running.insert(pid, (Instant::now(), output));
        Ok(json!({ "pid": pid }))
    }

    fn exec_status(&self, pid: i64) -> Result<Value, AgentError> {
        /// What an agent sends within Proxmox's 5 s on an emulated CPU.
        const MOST: usize = 2 << 20;
        let mut inside = held(&self.inside);
        let Some((since, output)) = inside.running.get(&pid) else {
            return Err(Self::refusal("Invalid parameter 'pid'"));
        };
        if since.elapsed() < output.takes {
            return Ok(json!({ "exited": false }));
        }
        let (_, output) = inside.running.remove(&pid).expect("it was just found");
        if output.out.len() + output.err.len() > MOST {
            return Err(AgentError::Timeout);
        }
        let mut status = json!({ "exited": true });
        if let Some(code) = output.code {
            status["exitcode"] = json!(code);
        }
        if let Some(signal) = output.signal {
            status["signal"] = json!(signal);
        }
        for (key, bytes) in [("out-data", &output.out), ("err-data", &output.err)] {
            if !bytes.is_empty() {
                status[key] = json!(STANDARD.encode(bytes));
            }
        }
        Ok(status)
    }

    fn open(&self, path: &str, mode: &str) -> Result<Value, AgentError> {
        let mut inside = held(&self.inside);
        let missing = || {
            Self::refusal(format!("failed to open file '{path}' (mode: '{mode}'): No such file or directory"))
        };
        if mode == "r" {
            if path != "/etc" && !inside.files.contains_key(path) {
                return Err(missing());
            }
        } else if path.starts_with("/no/such/") {
            return Err(missing());
        } else {
            inside.files.insert(path.into(), Vec::new());
        }
        inside.next += 1;
        let handle = 1000 + inside.next;
        inside.handles.insert(handle, (path.into(), 0));
        Ok(json!(handle))
    }

    fn with_handle<T>(
        &self,
        arguments: &Value,
        work: impl FnOnce(&mut Vec<u8>, &mut usize) -> Result<T, AgentError>,
    ) -> Result<T, AgentError> {
        let mut inside = held(&self.inside);
        let handle = arguments["handle"].as_i64().unwrap_or_default();
        let Inside { files, handles, .. } = &mut *inside;
        let unknown = || Self::refusal(format!("handle '{handle}' has not been found"));
        let (path, at) = handles.get_mut(&handle).ok_or_else(unknown)?;
        let Some(file) = files.get_mut(path) else {
            return Err(Self::refusal("failed to read file: Is a directory"));
        };
        work(file, at)
    }

    fn read(&self, arguments: &Value) -> Result<Value, AgentError> {
        let count = arguments["count"].as_u64().unwrap_or(4096) as usize;
        self.with_handle(arguments, |file, at| {
            let end = (*at + count).min(file.len());
            let start = (*at).min(end);
            *at = end;
            let part = &file[start..end];
            Ok(json!({ "count": part.len(), "buf-b64": STANDARD.encode(part), "eof": end == file.len() }))
        })
    }

    fn write(&self, arguments: &Value) -> Result<Value, AgentError> {
        let text = arguments["buf-b64"].as_str().unwrap_or_default();
        let bytes = STANDARD.decode(text);
        let bytes = bytes.map_err(|_| Self::refusal("Base64 data contains invalid characters"))?;
        self.with_handle(arguments, |file, _| {
            file.extend(&bytes);
            Ok(json!({ "count": bytes.len(), "eof": false }))
        })
    }

    fn seek(&self, arguments: &Value) -> Result<Value, AgentError> {
        let offset = arguments["offset"].as_u64().unwrap_or_default() as usize;
        self.with_handle(arguments, |_, at| {
            *at = offset;
            Ok(json!({ "position": offset, "eof": false }))
        })
    }
}

fn interfaces() -> Value {
    let names = ["bytes", "packets", "errs", "dropped"];
    let counters: serde_json::Map<String, Value> =
        ["rx", "tx"].iter().flat_map(|way| names.map(|name| (format!("{way}-{name}"), json!(0)))).collect();
    json!([
        {
            "name": "lo", "hardware-address": "00:00:00:00:00:00",
            "ip-addresses": [{ "ip-address": "127.0.0.1", "ip-address-type": "ipv4", "prefix": 8 }],
            "statistics": counters,
        },
        {
            "name": "eth0", "hardware-address": "bc:24:11:00:00:01",
            "ip-addresses": [{ "ip-address": "10.98.0.50", "ip-address-type": "ipv4", "prefix": 24 }],
            "statistics": counters,
        },
    ])
}

impl Machine for Pretended {
    fn status(&self) -> Status {
        let state = *self.state.borrow();
        let running = state != "stopped";
        Status {
            running,
            qmp: state.into(),
            pid: running.then_some(4000 + self.spec.vmid % 1000),
            uptime: if running { self.started.elapsed() } else { Duration::ZERO },
        }
    }

    fn agent<'a>(
        &'a self,
        execute: &'a str,
        arguments: Value,
        timeout: Duration,
    ) -> Later<'a, Result<Value, AgentError>> {
        Box::pin(async move {
            let state = *self.state.borrow();
            if state == "stopped" {
                return Err(AgentError::NotRunning);
            }
            if state == "paused" || !self.guest.agent_is_up(self.started.elapsed()) {
                tokio::time::sleep(timeout).await;
                return Err(AgentError::Timeout);
            }
            let answer = self.answer(execute, &arguments);
            if answer == Err(AgentError::Timeout) {
                tokio::time::sleep(timeout).await;
            }
            answer
        })
    }

    fn powerdown(&self) -> Later<'_, Result<(), String>> {
        if self.guest.shuts_down() {
            self.switch_off();
        }
        Box::pin(async { Ok(()) })
    }

    fn reset(&self) -> Later<'_, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    fn stop(&self) -> Later<'_, ()> {
        self.switch_off();
        Box::pin(async {})
    }

    fn send_key<'a>(&'a self, chord: &'a str) -> Later<'a, Result<(), String>> {
        let known = |key: &str| {
            key.len() == 1 && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
                || ["ret", "spc", "esc", "tab", "ctrl", "alt", "shift", "delete", "up", "down"].contains(&key)
        };
        let wrong = chord.split('-').find(|key| !known(key)).map(String::from);
        Box::pin(async move { wrong.map_or(Ok(()), |key| Err(format!("unknown key: '{key}'\r\n"))) })
    }

    fn hmp<'a>(&'a self, command: &'a str) -> Later<'a, Result<String, String>> {
        let words: Vec<&str> = command.split_whitespace().collect();
        let answer = match words.as_slice() {
            ["stop"] => {
                self.state.send_replace("paused");
                String::new()
            }
            ["cont"] => {
                self.state.send_replace("running");
                String::new()
            }
            ["info", "status"] => format!("VM status: {}\r\n", *self.state.borrow()),
            ["info", "version"] => "9.2.0pretended\r\n".into(),
            ["help", ..] => "info balloon  -- show balloon information\r\n".into(),
            [] | ["info", "block"] | ["sendkey" | "screendump" | "system_reset", ..] => String::new(),
            _ => format!("unknown command: '{command}'\r\n"),
        };
        Box::pin(async move { Ok(answer) })
    }

    fn change_medium<'a>(&'a self, _: &'a str, _: Option<&'a Volume>) -> Later<'a, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    fn resize<'a>(&'a self, _: &'a str, _: u64) -> Later<'a, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    fn set_vnc_password<'a>(&'a self, _: &'a str) -> Later<'a, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    fn vnc_socket(&self) -> &Path {
        &self.vnc
    }

    fn serial_socket(&self, _: u8) -> Option<PathBuf> {
        self.serial.clone()
    }

    fn wait_for_end(&self) -> Later<'_, ()> {
        let mut state = self.state.subscribe();
        Box::pin(async move {
            // The sender is this machine's own.
            drop(state.wait_for(|state| *state == "stopped").await);
        })
    }
}
