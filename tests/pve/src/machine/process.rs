//! A running machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use super::agent::Agent;
use super::args::{Places, machine_args};
use super::config::Config;
use super::guard::{self, Guard};
use super::network::Tap;
use super::qmp::Qmp;
use super::{Forward, tpm};
use crate::hypervisor::{AgentError, Later, Machine, Network, Spec, Status, Volume};

/// How long QEMU may take until it has answered on QMP: Proxmox's least.
const START: Duration = Duration::from_secs(30);

/// How long Proxmox waits for most QMP commands.
const COMMAND: Duration = Duration::from_secs(5);

/// How long a line for the human monitor may take.
const MONITOR: Duration = Duration::from_secs(25);

/// How long QEMU may take to end after each way of telling it to.
const END: Duration = Duration::from_secs(10);

/// The longest path of a socket: `sun_path` has 108 bytes (unix(7)).
const SOCKET_PATH_MAX: usize = 107;

/// A machine's processes; dropping them kills them.
#[derive(Debug)]
pub(super) struct Process {
    vmid: u32,
    qmp: Arc<Qmp>,
    /// QEMU's run state, kept up to date by its events.
    state: watch::Receiver<String>,
    agent: Option<Agent>,
    serials: Vec<u32>,
    qemu: Guard,
    tpm: Option<Guard>,
    places: Places,
    vnc: PathBuf,
    started: Instant,
    taps: Mutex<Vec<Tap>>,
}

impl Process {
    /// Starts a machine.
    ///
    /// # Errors
    /// What was said before it gave up, line by line.
    pub(super) async fn start(spec: Spec, forwards: &[Forward]) -> Result<Self, String> {
        let config = Config::parse(&spec)?;
        let places = places(&spec)?;
        let vars_size = prepare_uefi(&config, &places)?;
        let taps = match spec.network {
            Network::Bridge => config.nics.iter().map(|nic| Tap::create(spec.vmid, nic)).collect(),
            Network::User => Ok(Vec::new()),
        }?;
        let tpm = match &config.tpm {
            Some(tpm) => Some(tpm::launch(tpm, &places).await?),
            None => None,
        };
        let args = machine_args(&spec, &config, forwards, &places, vars_size);
        let (qemu, qmp, events) = launch(&spec, &places, &args).await?;
        let (qmp, (told, state)) = (Arc::new(qmp), watch::channel("running".to_owned()));
        tokio::spawn(follow(events, Arc::clone(&qmp), told));
        Ok(Self {
            vmid: spec.vmid,
            qmp,
            state,
            agent: config.agent.map(|_| Agent::new()),
            serials: config.serials,
            qemu,
            tpm,
            vnc: places.vnc(),
            places,
            started: Instant::now(),
            taps: Mutex::new(taps),
        })
    }

    async fn execute(&self, command: &str, arguments: Value) -> Result<(), String> {
        self.qmp.execute(command, arguments, COMMAND).await.map(drop)
    }

    /// Runs a line of the human monitor and returns what it prints, with its carriage returns.
    async fn monitor(&self, line: &str, limit: Duration) -> Result<String, String> {
        if !line.is_ascii() {
            // Proxmox sends bytes that are no UTF-8, and QEMU never answers.
            sleep(limit).await;
            return Err(format!("VM {} qmp command 'human-monitor-command' failed - got timeout", self.vmid));
        }
        let answer =
            self.qmp.execute("human-monitor-command", json!({ "command-line": line }), limit).await?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    async fn wait(&self) {
        self.qemu.wait().await;
        let taps = std::mem::take(&mut *self.taps.lock().expect("nobody panics with the lock held"));
        drop(taps);
        if let Some(tpm) = &self.tpm {
            // It ends by itself when QEMU has gone.
            if timeout(END, tpm.wait()).await.is_err() {
                tpm.signal(Signal::KILL);
            }
        }
    }
}

impl Machine for Process {
    fn status(&self) -> Status {
        if self.qemu.ended() {
            return Status { qmp: "stopped".to_owned(), ..Status::default() };
        }
        Status {
            running: true,
            qmp: self.state.borrow().clone(),
            pid: Some(self.qemu.pid()),
            uptime: self.started.elapsed(),
        }
    }

    /// One call at a time; a second one waits as long as it would for the answer.
    fn agent<'a>(
        &'a self,
        execute: &'a str,
        arguments: Value,
        timeout: Duration,
    ) -> Later<'a, Result<Value, AgentError>> {
        Box::pin(async move {
            let agent = self.agent.as_ref().filter(|_| !self.qemu.ended()).ok_or(AgentError::NotRunning)?;
            let socket = self.places.agent();
            tokio::select! {
                biased;
                answer = agent.call(&socket, execute, arguments, timeout) => answer,
                _ = self.qemu.wait() => Err(AgentError::NotRunning),
            }
        })
    }

    fn powerdown(&self) -> Later<'_, Result<(), String>> {
        Box::pin(self.execute("system_powerdown", json!({})))
    }

    fn reset(&self) -> Later<'_, Result<(), String>> {
        Box::pin(self.execute("system_reset", json!({})))
    }

    /// Each way has 10 s.
    fn stop(&self) -> Later<'_, ()> {
        Box::pin(async move {
            // How it answers does not matter: what matters is that it ends.
            self.execute("quit", json!({})).await.ok();
            for signal in [Signal::TERM, Signal::KILL] {
                if timeout(END, self.qemu.wait()).await.is_ok() {
                    break;
                }
                self.qemu.signal(signal);
            }
            self.wait().await;
        })
    }

    fn send_key<'a>(&'a self, chord: &'a str) -> Later<'a, Result<(), String>> {
        Box::pin(async move {
            let answer = self.monitor(&format!("sendkey {chord}"), COMMAND).await?;
            if answer.is_empty() { Ok(()) } else { Err(answer) }
        })
    }

    fn hmp<'a>(&'a self, command: &'a str) -> Later<'a, Result<String, String>> {
        Box::pin(self.monitor(command, MONITOR))
    }

    fn change_medium<'a>(
        &'a self,
        drive: &'a str,
        volume: Option<&'a Volume>,
    ) -> Later<'a, Result<(), String>> {
        Box::pin(async move {
            let Some(volume) = volume else {
                return self.execute("eject", json!({ "id": drive, "force": true })).await;
            };
            let arguments = json!({
                "id": drive,
                "filename": volume.path,
                "format": volume.format,
                "read-only-mode": "read-only",
                "force": true,
            });
            self.execute("blockdev-change-medium", arguments).await
        })
    }

    fn resize<'a>(&'a self, drive: &'a str, bytes: u64) -> Later<'a, Result<(), String>> {
        let arguments = json!({ "node-name": format!("drive-{drive}"), "size": bytes });
        Box::pin(self.execute("block_resize", arguments))
    }

    /// It holds for 30 s; VNC looks at its first eight bytes only.
    fn set_vnc_password<'a>(&'a self, password: &'a str) -> Later<'a, Result<(), String>> {
        Box::pin(async move {
            self.execute("set_password", json!({ "protocol": "vnc", "password": password })).await?;
            self.execute("expire_password", json!({ "protocol": "vnc", "time": "+30" })).await
        })
    }

    /// Nobody listens there when `vga` is `none` or a serial port.
    fn vnc_socket(&self) -> &Path {
        &self.vnc
    }

    /// It takes one client at a time; its log beside it has all that was ever said.
    fn serial_socket(&self, number: u8) -> Option<PathBuf> {
        let port = u32::from(number);
        self.serials.contains(&port).then(|| self.places.serial(port))
    }

    fn wait_for_end(&self) -> Later<'_, ()> {
        Box::pin(self.wait())
    }
}

fn in_folder<'a>(path: &'a Path, doing: &'a str) -> impl Fn(std::io::Error) -> String + 'a {
    move |error| format!("{doing} {}: {error}", path.display())
}

/// Makes the machine's folder, without the sockets of an earlier start.
fn places(spec: &Spec) -> Result<Places, String> {
    let folder = std::path::absolute(&spec.folder).map_err(in_folder(&spec.folder, "finding"))?;
    let places = Places { folder };
    let longest = places.serial(0);
    if longest.as_os_str().len() > SOCKET_PATH_MAX {
        return Err(format!("the path {} is too long for a socket", longest.display()));
    }
    fs::create_dir_all(&places.folder).map_err(in_folder(&places.folder, "creating"))?;
    let sockets = [places.qmp(), places.agent(), places.vnc(), places.tpm()];
    for socket in sockets.into_iter().chain((0..4).map(|port| places.serial(port))) {
        // There is none mostly; what cannot be removed QEMU complains about.
        fs::remove_file(&socket).ok();
    }
    Ok(places)
}

/// Returns the flash's size for the variables, and makes them for a VM without `efidisk0`.
fn prepare_uefi(config: &Config, places: &Places) -> Result<u64, String> {
    let Some(uefi) = &config.uefi else { return Ok(0) };
    let vars = &uefi.firmware.vars;
    let size = fs::metadata(vars).map_err(in_folder(vars, "reading"))?.len();
    if uefi.variables.is_none() {
        fs::copy(vars, places.uefi_vars()).map_err(in_folder(vars, "copying"))?;
    }
    Ok(size)
}

type Events = mpsc::UnboundedReceiver<String>;

/// Starts QEMU, talks to it and lets the guest run.
async fn launch(spec: &Spec, places: &Places, args: &[String]) -> Result<(Guard, Qmp, Events), String> {
    let listener = UnixListener::bind(places.qmp()).map_err(in_folder(&places.qmp(), "listening on"))?;
    let list = places.folder.join("qemu.args");
    fs::write(&list, args.join("\n") + "\n").map_err(in_folder(&list, "writing"))?;
    let mut command = guard::armed(&spec.qemu, &places.qemu_log())?;
    command.args(args);
    let qemu = Guard::spawn(command).await.map_err(in_folder(&spec.qemu, "starting"))?;
    let answered = tokio::select! {
        answered = timeout(START, talk(spec.vmid, listener)) => {
            answered.unwrap_or_else(|_| Err(format!("got no answer from QEMU within {} s", START.as_secs())))
        }
        _ = qemu.wait() => Err("QEMU ended".to_owned()),
    };
    match answered {
        Ok((qmp, events)) => Ok((qemu, qmp, events)),
        Err(error) => Err(last_words(&qemu, places, error).await),
    }
}

async fn talk(vmid: u32, listener: UnixListener) -> Result<(Qmp, Events), String> {
    let (stream, _) = listener.accept().await.map_err(|error| error.to_string())?;
    let (qmp, events) = Qmp::open(stream, vmid, START).await?;
    qmp.execute("cont", json!({}), START).await?;
    Ok((qmp, events))
}

/// Asks for the run state whenever an event may have changed it, until QEMU ends.
async fn follow(mut events: Events, qmp: Arc<Qmp>, state: watch::Sender<String>) {
    while let Some(event) = events.recv().await {
        if !["STOP", "RESUME", "SUSPEND", "WAKEUP", "SHUTDOWN", "RESET"].contains(&event.as_str()) {
            continue;
        }
        let Ok(answer) = qmp.execute("query-status", json!({}), COMMAND).await else { continue };
        if let Some(status) = answer["status"].as_str() {
            state.send_replace(status.to_owned());
        }
    }
}

/// Returns what QEMU said when it did not start, or what was noticed instead.
async fn last_words(qemu: &Guard, places: &Places, noticed: String) -> String {
    // It may still be about to speak.
    timeout(Duration::from_secs(1), qemu.wait()).await.ok();
    let words = fs::read_to_string(places.qemu_log()).unwrap_or_default();
    if words.trim().is_empty() { noticed } else { words }
}
