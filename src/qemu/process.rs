//! A running machine.
//!
//! ```text
//! launch ─► stopped before its first instruction ─► runs ─► State.end: PowerOff │ Reset │ Panicked
//!                                                    │        QEMU stays, stopped, for a screenshot
//!                                                    ├─ quit, kill ─► Stopped │ Crashed
//!                                                    └─ QEMU ends by itself ─► Crashed
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use qapi::qmp;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::args::{Places, machine_args, product};
use super::guard::{self, Guard};
use super::qmp::{Event, Qmp};
use super::sockets::Sockets;
use super::spec::MachineSpec;
use super::state::{AgentPort, End, State};
use super::{Error, screen, smbios, tpm};

/// How long QEMU may take until it has answered on QMP.
const START: Duration = Duration::from_secs(30);

/// How long QEMU may take for one QMP command.
const COMMAND: Duration = Duration::from_secs(15);

/// How long QEMU may take to write its caches and end.
const QUIT: Duration = Duration::from_secs(30);

/// A running machine; dropping it kills it.
#[derive(Debug)]
pub struct Machine {
    qmp: Qmp,
    process: Arc<Guard>,
    tpm: Option<Guard>,
    state: watch::Receiver<State>,
    places: Places,
    folder: PathBuf,
    _sockets: Sockets,
    _watcher: AbortOnDropHandle<()>,
}

impl Machine {
    /// Launches a machine whose logs lie in `folder`, one folder for one machine. It dies with
    /// forge, however forge dies.
    ///
    /// # Errors
    /// [`Error::NotInstalled`], or [`Error::Died`] with QEMU's own words.
    pub async fn launch(spec: &MachineSpec, folder: &Path) -> Result<Self, Error> {
        let binary = guard::find_program(&spec.binary, "qemu-system-x86")?;
        let folder = std::path::absolute(folder).map_err(Error::io("finding the working folder"))?;
        fs::create_dir_all(&folder).map_err(Error::io(format!("creating {}", folder.display())))?;
        let sockets = Sockets::create(&folder)?;
        let places = places(sockets.path(), &folder);
        write_smbios(spec, &places.smbios)?;
        let tpm = if spec.tpm { Some(tpm::launch(&places.tpm, &folder).await?) } else { None };
        let listener = UnixListener::bind(&places.qmp)
            .map_err(Error::io(format!("listening on {}", places.qmp.display())))?;
        let process = start(&binary, &machine_args(spec, &places), &folder).await?;
        let (qmp, events) = connect(listener, &process, &folder).await?;
        if spec.serial_number.is_some() {
            // QEMU has read it, and a killed forge should leave no token behind.
            fs::remove_file(&places.smbios)
                .map_err(Error::io(format!("removing {}", places.smbios.display())))?;
        }
        let initial = State {
            agent_port: if spec.agent { AgentPort::Closed } else { AgentPort::Unknown },
            ..State::default()
        };
        let (sender, state) = watch::channel(initial);
        let process = Arc::new(process);
        let watcher = tokio::spawn(watch_over(events, Arc::clone(&process), folder.clone(), sender));
        let machine = Self {
            qmp,
            process,
            tpm,
            state,
            places,
            folder,
            _sockets: sockets,
            _watcher: AbortOnDropHandle::new(watcher),
        };
        match machine.qmp.execute(qmp::cont {}, COMMAND).await {
            Ok(_) => Ok(machine),
            // It died of its first instruction; what it said last tells why.
            Err(Error::Closed { command }) => {
                let ended = tokio::time::timeout(COMMAND, machine.process.wait()).await;
                let status = ended.map_err(|_| Error::Closed { command })?;
                Err(died(status, &machine.folder))
            }
            Err(other) => Err(other),
        }
    }

    /// Returns what is known of the machine, now and from now on.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Waits for the machine's end, whatever it is. QEMU's death is one, noticed at once.
    ///
    /// # Errors
    /// [`Error::Deadline`].
    pub async fn wait_for_end(&self, limit: Duration) -> Result<End, Error> {
        let late = |_| Error::Deadline { what: "the end of the machine".to_owned(), after: limit };
        timeout(limit, State::ended(&mut self.state())).await.map_err(late)
    }

    /// Presses the power button; the guest decides what follows.
    ///
    /// # Errors
    /// See [`Qmp::execute`].
    pub async fn powerdown(&self) -> Result<(), Error> {
        self.qmp.execute(qmp::system_powerdown {}, COMMAND).await.map(drop)
    }

    /// Presses and releases Enter.
    ///
    /// # Errors
    /// See [`Qmp::execute`].
    pub async fn press_enter(&self) -> Result<(), Error> {
        let enter = qmp::KeyValue::qcode(qmp::QKeyCodeWrapper { data: qmp::QKeyCode::ret });
        self.qmp.execute(qmp::send_key { hold_time: None, keys: vec![enter] }, COMMAND).await.map(drop)
    }

    /// Ends QEMU and waits until it has gone; only then are its disks whole. A machine that has
    /// gone already is no error.
    ///
    /// # Errors
    /// [`Error::Deadline`] when QEMU had to be killed, and its disks are not to be trusted.
    pub async fn quit(&self) -> Result<(), Error> {
        // How it answers does not matter: what matters is that it ends.
        drop(self.qmp.execute(qmp::quit {}, COMMAND).await);
        let ended = timeout(QUIT, self.process.wait()).await;
        self.kill().await;
        match ended {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Deadline { what: "QEMU ending when told to".to_owned(), after: QUIT }),
        }
    }

    /// Kills QEMU and waits until it has gone.
    pub async fn kill(&self) {
        self.process.kill();
        self.process.wait().await;
        if let Some(tpm) = &self.tpm {
            tpm.kill();
            tpm.wait().await;
        }
    }

    /// Writes the screen as a PNG; works until QEMU has gone, also after the guest's end.
    ///
    /// # Errors
    /// See [`Qmp::execute`].
    pub async fn screenshot(&self, path: &Path) -> Result<(), Error> {
        let path = std::path::absolute(path).map_err(Error::io("finding the working folder"))?;
        let dump = |path: &Path, format| qmp::screendump {
            device: None,
            format,
            head: None,
            filename: path.to_string_lossy().into_owned(),
        };
        match self.qmp.execute(dump(&path, Some(qmp::ImageFormat::png)), COMMAND).await {
            // QEMU before 7.1, or built without libpng.
            Err(Error::Refused { .. }) => {}
            other => return other.map(drop),
        }
        let ppm = self.places.qmp.with_extension("ppm");
        self.qmp.execute(dump(&ppm, None), COMMAND).await?;
        ppm_to_png(&ppm, &path).map_err(Error::io(format!("writing {}", path.display())))
    }

    /// Returns the port on the host's loopback that leads to a port of the guest.
    ///
    /// # Errors
    /// [`Error::Refused`] when the machine's specification forwards no such port.
    pub async fn forwarded_port(&self, guest_port: u16) -> Result<u16, Error> {
        let command = "info usernet";
        let request = qmp::human_monitor_command { cpu_index: None, command_line: command.to_owned() };
        let table = self.qmp.execute(request, COMMAND).await?;
        parse_forwarded_port(&table, guest_port).ok_or_else(|| Error::Refused {
            command,
            reason: format!("port {guest_port} of the guest is not forwarded"),
        })
    }

    /// Returns the QMP client, for what has no method here.
    #[must_use]
    pub fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// Returns QEMU's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Returns the guest agent's socket.
    #[must_use]
    pub fn agent_socket(&self) -> &Path {
        &self.places.agent
    }

    /// Returns the serial console's socket.
    #[must_use]
    pub fn serial_socket(&self) -> &Path {
        &self.places.serial
    }

    /// Returns the serial console's log.
    #[must_use]
    pub fn serial_log(&self) -> &Path {
        &self.places.serial_log
    }

    /// Returns the file that gets what QEMU says.
    #[must_use]
    pub fn stderr_log(&self) -> PathBuf {
        stderr_log(&self.folder)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The watcher holds the process too.
        self.process.kill();
    }
}

fn stderr_log(folder: &Path) -> PathBuf {
    folder.join("qemu.log")
}

fn places(sockets: &Path, folder: &Path) -> Places {
    Places {
        qmp: sockets.join("qmp"),
        agent: sockets.join("agent"),
        serial: sockets.join("serial"),
        serial_log: folder.join("serial.log"),
        smbios: sockets.join("smbios"),
        tpm: sockets.join("tpm"),
    }
}

/// Writes the SMBIOS record, which holds the build's token, for this user's eyes only.
fn write_smbios(spec: &MachineSpec, path: &Path) -> Result<(), Error> {
    let Some(serial) = &spec.serial_number else { return Ok(()) };
    let record = smbios::system_record(product(spec.chipset), spec.uuid, &serial.0);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(&record))
        .map_err(Error::io(format!("writing {}", path.display())))
}

async fn start(binary: &Path, args: &[String], folder: &Path) -> Result<Guard, Error> {
    let listing = folder.join("qemu.args");
    fs::write(&listing, guard::one_a_line(args))
        .map_err(Error::io(format!("writing {}", listing.display())))?;
    let log = stderr_log(folder);
    let stderr = File::create(&log).map_err(Error::io(format!("creating {}", log.display())))?;
    let mut command = guard::armed(binary)?;
    command.args(args).stderr(Stdio::from(stderr));
    let (process, _) = Guard::spawn(command, "qemu").await?;
    Ok(process)
}

/// Waits for QEMU to connect and to answer, or to end.
async fn connect(
    listener: UnixListener,
    process: &Guard,
    folder: &Path,
) -> Result<(Qmp, mpsc::UnboundedReceiver<Event>), Error> {
    let deadline = Instant::now() + START;
    let late = |_| Error::Deadline { what: "QEMU starting".to_owned(), after: START };
    let opened = async {
        let accepted = timeout_at(deadline, listener.accept()).await.map_err(late)?;
        let (stream, _) = accepted.map_err(Error::io("accepting QEMU's connection"))?;
        match Qmp::open(stream, COMMAND).await {
            // It ended while it answered, and its end says more.
            Err(Error::Closed { .. }) => std::future::pending().await,
            other => other,
        }
    };
    tokio::select! {
        opened = timeout_at(deadline, opened) => opened.map_err(late)?,
        status = process.wait() => Err(died(status, folder)),
    }
}

fn died(status: ExitStatus, folder: &Path) -> Error {
    let stderr = fs::read(stderr_log(folder)).unwrap_or_default();
    Error::Died {
        program: "QEMU".to_owned(),
        status: guard::describe(status),
        stderr: guard::last_words(&stderr),
    }
}

/// Keeps the state up to date until QEMU has ended.
async fn watch_over(
    mut events: mpsc::UnboundedReceiver<Event>,
    process: Arc<Guard>,
    folder: PathBuf,
    state: watch::Sender<State>,
) {
    while let Some(event) = events.recv().await {
        state.send_modify(|state| state.apply(&event));
    }
    // All events are in, and so is the reason if there was one. The connection ends with the process.
    let status = process.wait().await;
    if let Error::Died { status, stderr, .. } = died(status, &folder) {
        state.send_modify(|state| state.finish(End::Crashed { status, stderr }));
    }
}

fn ppm_to_png(ppm: &Path, path: &Path) -> std::io::Result<()> {
    let invalid = |text: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, text.to_owned());
    let bytes = fs::read(ppm)?;
    let (width, height, pixels) =
        screen::parse_ppm(&bytes).ok_or_else(|| invalid("QEMU's picture is no PPM"))?;
    screen::write_png(File::create(path)?, width, height, pixels).map_err(|error| match error {
        png::EncodingError::IoError(error) => error,
        other => invalid(&other.to_string()),
    })
}

/// Parses the table of `info usernet`, whose lines for forwarded ports read
/// `TCP[HOST_FORWARD] FD 127.0.0.1 HOSTPORT ADDRESS PORT …`.
fn parse_forwarded_port(table: &str, guest_port: u16) -> Option<u16> {
    table.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["TCP[HOST_FORWARD]", _, _, host, _, guest, ..] if guest.parse() == Ok(guest_port) => {
                host.parse().ok()
            }
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarded_ports_are_read_from_the_table() {
        let table = "Hub -1 (net0):\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\n\
                     \x20 TCP[HOST_FORWARD]  12       127.0.0.1 44321      10.10.10.5  2222     0     0\n\
                     \x20 UDP[236 sec]       15       10.0.2.15   2222      9.9.9.9      53     0     0\n";
        assert_eq!(parse_forwarded_port(table, 2222), Some(44321));
        assert_eq!(parse_forwarded_port(table, 22), None);
    }
}
