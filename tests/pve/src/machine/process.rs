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

use super::agent::{Agent, AgentError};
use super::args::{Places, machine_args};
use super::config::Config;
use super::guard::{self, Guard};
use super::network::Tap;
use super::qmp::Qmp;
use super::{Format, Host, Network, Spec, Volume, tpm};

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

/// A running machine; dropping it kills it.
#[derive(Debug)]
pub struct Machine {
    vmid: u32,
    qmp: Arc<Qmp>,
    /// QEMU's run state, kept up to date by its events.
    state: watch::Receiver<String>,
    agent: Option<Agent>,
    serials: Vec<u32>,
    process: Guard,
    tpm: Option<Guard>,
    places: Places,
    vnc: PathBuf,
    started: Instant,
    taps: Mutex<Vec<Tap>>,
}

/// What a VM does, as `status/current` tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Whether QEMU runs: `running` or `stopped`.
    pub running: bool,
    /// QEMU's own word: `running`, `paused`, `prelaunch`, `io-error`, …; `stopped` without QEMU.
    pub qmp: String,
    /// QEMU's process, while it runs.
    pub pid: Option<u32>,
    /// Since the start.
    pub uptime: Duration,
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// QEMU's exit status in words; `exit status: 0` when the guest powered off or QEMU was told to quit.
    pub status: String,
    /// Whether it ended well.
    pub success: bool,
    /// What QEMU wrote on its standard error.
    pub stderr: String,
}

/// How a guest was asked to power off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Powerdown {
    /// The guest agent does it.
    Agent,
    /// The power button, as the VM has no agent.
    Acpi,
    /// The power button, after the agent did not answer for 3 s. Proxmox's task says then "QEMU Guest
    /// Agent is not running - VM 110 qmp command 'guest-ping' failed - got timeout".
    AcpiAgentSilent,
}

impl Machine {
    /// Starts a machine.
    ///
    /// # Errors
    /// A text of one or more lines; the last one ends the task, those before it go to its log.
    pub async fn start(spec: Spec, host: &Host) -> Result<Self, String> {
        let config = Config::parse(&spec, host)?;
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
        let args = machine_args(&spec, &config, &host.forwards, &places, vars_size);
        let (process, qmp, events) = launch(&spec, &places, &args).await?;
        let (qmp, (told, state)) = (Arc::new(qmp), watch::channel("running".to_owned()));
        tokio::spawn(follow(events, Arc::clone(&qmp), told));
        Ok(Self {
            vmid: spec.vmid,
            qmp,
            state,
            agent: config.agent.map(|_| Agent::new()),
            serials: config.serials,
            process,
            tpm,
            vnc: places.vnc(),
            places,
            started: Instant::now(),
            taps: Mutex::new(taps),
        })
    }

    /// Returns what the machine does.
    #[must_use]
    pub fn status(&self) -> Status {
        if self.process.ended() {
            return Status { running: false, qmp: "stopped".to_owned(), pid: None, uptime: Duration::ZERO };
        }
        Status {
            running: true,
            qmp: self.state.borrow().clone(),
            pid: Some(self.process.pid()),
            uptime: self.started.elapsed(),
        }
    }

    /// Calls the guest agent and returns what it returns. One call at a time; a second one waits
    /// as long as it would for the answer.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn agent(&self, execute: &str, arguments: Value, limit: Duration) -> Result<Value, AgentError> {
        let agent = self.agent.as_ref().filter(|_| !self.process.ended()).ok_or(AgentError::NotRunning)?;
        let socket = self.places.agent();
        tokio::select! {
            biased;
            answer = agent.call(&socket, execute, arguments, limit) => answer,
            _ = self.process.wait() => Err(AgentError::NotRunning),
        }
    }

    /// Asks the guest to power off: through its agent when it has one that answers, else by the power
    /// button. Returns at once; [`Machine::wait_for_end`] tells when it has.
    ///
    /// # Errors
    /// What QMP says.
    pub async fn powerdown(&self) -> Result<Powerdown, String> {
        let socket = self.places.agent();
        match &self.agent {
            Some(agent) if agent.answers(&socket).await => {
                // It answers only when it refuses, and that at once.
                const REFUSAL: Duration = Duration::from_secs(1);
                let arguments = json!({ "mode": "powerdown" });
                match self.agent("guest-shutdown", arguments, REFUSAL).await {
                    Err(AgentError::Error { desc, .. }) => Err(format!("Agent error: {desc}")),
                    _ => Ok(Powerdown::Agent),
                }
            }
            agent => {
                self.press_power_button().await?;
                Ok(if agent.is_some() { Powerdown::AcpiAgentSilent } else { Powerdown::Acpi })
            }
        }
    }

    /// Presses the power button; the guest decides what follows.
    ///
    /// # Errors
    /// What QMP says.
    pub async fn press_power_button(&self) -> Result<(), String> {
        self.qmp.execute("system_powerdown", json!({}), COMMAND).await.map(drop)
    }

    /// Resets the machine, as the button does.
    ///
    /// # Errors
    /// What QMP says.
    pub async fn reset(&self) -> Result<(), String> {
        self.qmp.execute("system_reset", json!({}), COMMAND).await.map(drop)
    }

    /// Stops the guest's CPUs; its `qmpstatus` is `paused` then.
    ///
    /// # Errors
    /// What QMP says.
    pub async fn suspend(&self) -> Result<(), String> {
        self.qmp.execute("stop", json!({}), COMMAND).await.map(drop)
    }

    /// Lets the guest's CPUs go on.
    ///
    /// # Errors
    /// What QMP says.
    pub async fn resume(&self) -> Result<(), String> {
        self.qmp.execute("cont", json!({}), COMMAND).await.map(drop)
    }

    /// Ends QEMU: tells it to quit, and goes on like [`Machine::kill`] after 10 s. A machine that has
    /// ended is no error.
    pub async fn stop(&self) {
        // How it answers does not matter: what matters is that it ends.
        self.qmp.execute("quit", json!({}), COMMAND).await.ok();
        match timeout(END, self.process.wait()).await {
            Ok(_) => self.clean_up().await,
            Err(_) => self.kill().await,
        }
    }

    /// Ends QEMU without asking the monitor, as `shutdown` with `forceStop` does: SIGTERM, then SIGKILL
    /// after 10 s.
    pub async fn kill(&self) {
        self.process.signal(Signal::TERM);
        if timeout(END, self.process.wait()).await.is_err() {
            self.process.signal(Signal::KILL);
            self.process.wait().await;
        }
        self.clean_up().await;
    }

    /// Waits for QEMU's end, whatever its reason.
    pub async fn wait_for_end(&self) -> End {
        let status = self.process.wait().await;
        self.clean_up().await;
        End { status: status.to_string(), success: status.success(), stderr: self.stderr() }
    }

    /// Removes what stood beside QEMU.
    async fn clean_up(&self) {
        let taps = std::mem::take(&mut *self.taps.lock().expect("nobody panics with the lock held"));
        drop(taps);
        if let Some(tpm) = &self.tpm {
            // It ends by itself when QEMU has gone.
            if timeout(END, tpm.wait()).await.is_err() {
                tpm.signal(Signal::KILL);
            }
        }
    }

    /// Presses keys together, in the words of HMP's `sendkey`: `ret`, `ctrl-alt-delete`.
    ///
    /// # Errors
    /// What the monitor says; it has a carriage return when the monitor refused the key.
    pub async fn send_key(&self, key: &str) -> Result<(), String> {
        let answer = self.monitor(&format!("sendkey {key}"), COMMAND).await?;
        if answer.is_empty() { Ok(()) } else { Err(answer) }
    }

    /// Runs a line of the human monitor and returns what it prints, with its carriage returns.
    ///
    /// # Errors
    /// What QMP says.
    pub async fn hmp(&self, line: &str) -> Result<String, String> {
        self.monitor(line, MONITOR).await
    }

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

    /// Puts another medium into a CD-ROM drive, or none.
    ///
    /// # Errors
    /// What QMP says.
    pub async fn change_medium(&self, drive: &str, volume: Option<&Volume>) -> Result<(), String> {
        let Some(volume) = volume else {
            return self.qmp.execute("eject", json!({ "id": drive, "force": true }), COMMAND).await.map(drop);
        };
        let arguments = json!({
            "id": drive,
            "filename": volume.path,
            "format": if volume.format == Format::Raw { "raw" } else { "qcow2" },
            "read-only-mode": "read-only",
            "force": true,
        });
        self.qmp.execute("blockdev-change-medium", arguments, COMMAND).await.map(drop)
    }

    /// Tells the guest that a disk, such as `virtio0`, has grown to `bytes`.
    ///
    /// # Errors
    /// What QMP says.
    pub async fn resize(&self, drive: &str, bytes: u64) -> Result<(), String> {
        let arguments = json!({ "node-name": format!("drive-{drive}"), "size": bytes });
        self.qmp.execute("block_resize", arguments, COMMAND).await.map(drop)
    }

    /// Sets the password of VNC's socket for 30 s: without one nobody gets in. VNC looks at its first
    /// eight bytes only.
    ///
    /// # Errors
    /// What QMP says.
    pub async fn set_vnc_password(&self, password: &str) -> Result<(), String> {
        let arguments = json!({ "protocol": "vnc", "password": password });
        self.qmp.execute("set_password", arguments, COMMAND).await?;
        let arguments = json!({ "protocol": "vnc", "time": "+30" });
        self.qmp.execute("expire_password", arguments, COMMAND).await.map(drop)
    }

    /// Returns the VNC socket; nobody listens there when `vga` is `none` or a serial port.
    #[must_use]
    pub fn vnc_socket(&self) -> &Path {
        &self.vnc
    }

    /// Returns the socket of a serial port that is one; it takes one client at a time.
    #[must_use]
    pub fn serial_socket(&self, port: u32) -> Option<PathBuf> {
        self.serials.contains(&port).then(|| self.places.serial(port))
    }

    /// Returns the file with all that a serial port ever said since the start.
    #[must_use]
    pub fn serial_log(&self, port: u32) -> Option<PathBuf> {
        self.serials.contains(&port).then(|| self.places.serial_log(port))
    }

    /// Returns what QEMU has written on its standard error.
    #[must_use]
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.places.qemu_log()).unwrap_or_default()
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

/// Starts QEMU, talks to it and lets the guest run.
async fn launch(spec: &Spec, places: &Places, args: &[String]) -> Result<(Guard, Qmp, Events), String> {
    let listener = UnixListener::bind(places.qmp()).map_err(in_folder(&places.qmp(), "listening on"))?;
    let list = places.folder.join("qemu.args");
    fs::write(&list, args.join("\n") + "\n").map_err(in_folder(&list, "writing"))?;
    let mut command = guard::armed(&spec.qemu, &places.qemu_log())?;
    command.args(args);
    let process = Guard::spawn(command).await.map_err(in_folder(&spec.qemu, "starting"))?;
    let answered = tokio::select! {
        answered = timeout(START, talk(spec.vmid, listener)) => {
            answered.unwrap_or_else(|_| Err(format!("got no answer from QEMU within {} s", START.as_secs())))
        }
        _ = process.wait() => Err("QEMU ended".to_owned()),
    };
    match answered {
        Ok((qmp, events)) => Ok((process, qmp, events)),
        Err(error) => Err(start_failed(&process, places, &error).await),
    }
}

type Events = mpsc::UnboundedReceiver<String>;

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

/// Returns what is said of a start that failed: QEMU's own words, then its exit code.
async fn start_failed(process: &Guard, places: &Places, error: &str) -> String {
    let ended = timeout(Duration::from_secs(1), process.wait()).await;
    let words = fs::read_to_string(places.qemu_log()).unwrap_or_default();
    let last = match ended {
        Ok(status) => match status.code() {
            Some(code) => format!("start failed: QEMU exited with code {code}"),
            None => format!("start failed: QEMU ended by {status}"),
        },
        Err(_) => format!("start failed: {error}"),
    };
    format!("{words}{last}")
}
