//! The guest agent of a machine on Proxmox, through its API.
//!
//! The API tells a command's result once, as one character per byte, and loses it when it is larger than
//! what the agent hands over in 5 s. So a command runs under a script that keeps its output and exit code
//! in files, reports what fits, and can be asked again:
//!
//! ```text
//! payload (base64, by standard input) ─► FOLDER/run: environment and command, FOLDER/stdin
//!    ─► run ─► FOLDER/out, FOLDER/err, FOLDER/code ─► report: code, sizes, the first piece of each
//!                                                        └─► more pieces, or the same again if it was lost
//! ```
//!
//! Nothing but the folder's name is in an argument: what a command gets may be secret, and arguments that
//! are not ASCII silence the agent. The folder is on a file system in memory that only root can read, and
//! is removed by the next command.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::BoxFuture;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{
    BOOT_ID, Communicator, CommunicatorError, EXEC_INPUT_MAX, Exec, Failure, GET_FILE_MAX, GuestAgent,
    Output, PUT_FILE_MAX, describe, environment, no_other_boot, quote,
};
use crate::event::human_duration;
use crate::pve::agent::ExecStatus;
use crate::pve::{Agent, Error, Vm};

/// The most bytes of payload in one call: in base64 and with the script they stay under 64 KiB, which is
/// all that older servers take.
const PIECE_SENT: usize = 44 * 1024;

/// The most bytes of each stream in one report.
const PIECE_READ: u64 = 256 * 1024;

/// What is known when an answer has not come by the deadline.
const SLOW: &str = "the agent is slow";

/// Where folders are made in the guest: in memory.
const FOLDERS: &str = "/run";

/// Takes a piece of payload: folder.
const TAKE: &str = r#"umask 077; mkdir -p "$1" && base64 -d >> "$1/in""#;

/// Takes the last piece and runs the command: folder, length of its script, first bytes to report, folders
/// to remove. The umask is only this script's own.
const RUN: &str = r#"u=$(umask); umask 077; d=$1 n=$2 o=0 e=0 m=$3; shift 3; [ $# -eq 0 ] || rm -rf "$@"
mkdir -p "$d" && base64 -d >> "$d/in" && echo $$ > "$d/pid" || exit 1
head -c "$n" "$d/in" > "$d/run" && tail -c "+$((n+1))" "$d/in" > "$d/stdin" || exit 1
(umask "$u"; exec env -i /bin/sh "$d/run" < "$d/stdin") > "$d/out" 2> "$d/err"
echo $? > "$d/code.new" && mv "$d/code.new" "$d/code"; rm -f "$d/in" "$d/run" "$d/stdin"
"#;

/// Reports on a command: folder, where to begin in each stream, how many bytes of each.
const LOOK: &str = "d=$1 o=$2 e=$3 m=$4\n";

/// The end of both: prints the code, the streams' sizes and a piece of each in base64. Most commands say
/// nothing on at least one stream, and a process costs a slow guest much: so none is started for those.
const REPORT: &str = r#"size() { s=0; [ ! -s "$1" ] || s=$(wc -c < "$1"); }
piece() { [ ! -s "$1" ] || tail -c "+$(($2+1))" "$1" | head -c "$m" | base64; echo -; }
if [ -f "$d/missing" ]; then echo missing
elif [ -f "$d/code" ]; then
read -r c < "$d/code"; size "$d/out"; a=$s; size "$d/err"; echo "ended $c $a $s"
piece "$d/out" "$o"; piece "$d/err" "$e"
elif [ -f "$d/pid" ] && read -r p < "$d/pid" && kill -0 "$p" 2>/dev/null; then echo running
else echo gone; fi"#;

/// The guest agent of one machine on Proxmox. Many may call at once; their requests take turns.
#[derive(Debug)]
pub struct PveAgent {
    agent: Agent,
    vm: Vm,
    wake: Arc<Notify>,
    folders: String,
    /// Folders that the next command removes.
    stale: Mutex<Vec<String>>,
    /// When a command was last asked for.
    asked: Mutex<Option<Instant>>,
}

/// A command's folder in the guest; what happens to the command, it ends as something to remove.
struct Folder<'a> {
    agent: &'a PveAgent,
    path: String,
}

impl Drop for Folder<'_> {
    fn drop(&mut self) {
        self.agent.leave([std::mem::take(&mut self.path)]);
    }
}

/// What a folder tells of its command.
#[derive(Debug, PartialEq, Eq)]
enum Report {
    Ended {
        code: i32,
        sizes: [u64; 2],
        pieces: [Vec<u8>; 2],
    },
    Running,
    Missing,
    /// Nobody knows: the guest restarted, or the agent was killed with its commands.
    Gone,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let reason = error.to_string();
        match error {
            Error::NotSent { .. } | Error::Busy { .. } | Error::AgentSilent { .. } => Self::NotSent(reason),
            Error::Unknown { .. } => Self::Lost(reason),
            Error::NotRunning { .. } | Error::NotFound { .. } => Self::Gone(reason),
            _ => Self::Refused(reason),
        }
    }
}

impl PveAgent {
    /// Returns the agent of a VM. Whoever hears from the guest by another way (it fetched something, it
    /// reported) calls `wake.notify_waiters()`, so that the agent is asked at once.
    #[must_use]
    pub fn new(vm: &Vm, wake: Arc<Notify>) -> Self {
        Self {
            agent: vm.agent(),
            vm: vm.clone(),
            wake,
            folders: FOLDERS.to_owned(),
            stale: Mutex::default(),
            asked: Mutex::default(),
        }
    }

    /// Returns the handle that wakes it.
    #[must_use]
    pub fn wake(&self) -> &Arc<Notify> {
        &self.wake
    }

    /// Waits until the agent answers: asked every 5 s, and when woken at once, yet not twice a second.
    ///
    /// # Errors
    /// [`CommunicatorError::NotSent`] at the deadline, [`CommunicatorError::Gone`] when the machine ended.
    pub async fn wait_until_ready(&self, limit: Duration) -> Result<(), CommunicatorError> {
        const WHAT: &str = "waiting for the guest agent";
        let deadline = Instant::now() + limit;
        loop {
            // Listened for from here on, so that no call during the ping is missed.
            let (woken, asked) = (self.wake.notified(), Instant::now());
            let reason = match timeout_at(deadline, self.agent.ping()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => match Failure::from(error) {
                    Failure::NotSent(reason) | Failure::Lost(reason) => reason,
                    other => return Err(other.of(WHAT)),
                },
                Err(_) => "it has not answered a ping".to_owned(),
            };
            self.rest_after(asked, woken, deadline).await;
            if Instant::now() >= deadline {
                let reason = format!("not within {}: {reason}", human_duration(limit));
                return Err(Failure::NotSent(reason).of(WHAT));
            }
        }
    }

    /// Returns the id of the guest's present boot.
    ///
    /// # Errors
    /// See [`CommunicatorError`].
    pub async fn boot_id(&self) -> Result<String, CommunicatorError> {
        let content = self.agent.read_file(BOOT_ID).await;
        let content = content.map_err(|error| Failure::from(error).of(format!("reading {BOOT_ID}")))?;
        Ok(String::from_utf8_lossy(&content).trim().to_owned())
    }

    /// Removes what commands have left in the guest's memory, for when none follows.
    ///
    /// # Errors
    /// See [`CommunicatorError`].
    pub async fn tidy(&self) -> Result<(), CommunicatorError> {
        let stale = self.take_stale();
        if stale.is_empty() {
            return Ok(());
        }
        let mut argv = vec!["/bin/sh", "-c", r#"rm -rf "$@""#, "forge"];
        argv.extend(stale.iter().map(String::as_str));
        if let Err(error) = self.agent.exec(&argv, &[]).await {
            self.leave(stale);
            return Err(Failure::from(error).of("removing what commands left"));
        }
        Ok(())
    }

    /// Notes folders for the next command to remove.
    fn leave(&self, folders: impl IntoIterator<Item = String>) {
        self.stale.lock().unwrap_or_else(PoisonError::into_inner).extend(folders);
    }

    fn take_stale(&self) -> Vec<String> {
        std::mem::take(&mut *self.stale.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn run(&self, command: &Exec) -> Result<Output, CommunicatorError> {
        if command.stdin.len() > EXEC_INPUT_MAX {
            let (what, size) = (describe(command), command.stdin.len());
            return Err(CommunicatorError::TooLarge { what, size, limit: EXEC_INPUT_MAX });
        }
        let deadline = Instant::now() + command.timeout;
        loop {
            let (woken, asked) = (self.wake.notified(), Instant::now());
            match self.attempt(command, deadline).await {
                // It certainly did not start: the guest may have stood still for a moment.
                Err(error @ CommunicatorError::NotSent { .. }) => {
                    if !self.rest_before_next(asked, woken, deadline).await {
                        return Err(error);
                    }
                }
                result => return result,
            }
        }
    }

    /// Runs a command in a folder of its own.
    async fn attempt(&self, command: &Exec, deadline: Instant) -> Result<Output, CommunicatorError> {
        let what = describe(command);
        let path = format!("{}/forge-{}", self.folders, uuid::Uuid::new_v4().simple());
        let folder = Folder { agent: self, path };
        let script = script(command, &folder.path).map_err(|reason| Failure::Refused(reason).of(&what))?;
        let report = match self.start(&folder.path, script.as_bytes(), &command.stdin, deadline).await {
            Ok(pid) => self.wait_for_report(&folder.path, pid, deadline).await,
            // It may run: its folder will tell.
            Err(Failure::Lost(reason)) => match self.seen_later(&folder.path, deadline).await {
                told @ (Ok(Report::Ended { .. } | Report::Running | Report::Missing)
                | Err(Failure::Gone(_))) => told,
                Ok(Report::Gone) | Err(_) => Err(Failure::Lost(reason)),
            },
            Err(failure) => Err(failure),
        };
        match report.map_err(|failure| failure.of(&what))? {
            Report::Running => Err(CommunicatorError::Timeout { what, after: command.timeout }),
            Report::Missing => {
                let program = command.argv.first().map(String::as_str).unwrap_or_default();
                Err(Failure::Refused(format!("there is no program {program}")).of(what))
            }
            Report::Gone => Err(Failure::Lost("the guest or its agent restarted".to_owned()).of(what)),
            Report::Ended { code, sizes, pieces } => {
                self.collect(&folder.path, code, sizes, pieces).await.map_err(|failure| failure.of(what))
            }
        }
    }

    /// Sends a command's script and input and starts it.
    async fn start(
        &self,
        folder: &str,
        script: &[u8],
        stdin: &[u8],
        deadline: Instant,
    ) -> Result<i64, Failure> {
        let payload = [script, stdin].concat();
        let mut pieces: Vec<&[u8]> = payload.chunks(PIECE_SENT).collect();
        let last = pieces.pop().unwrap_or_default();
        for piece in pieces {
            self.send_piece(folder, piece, deadline).await?;
        }
        let (length, first) = (script.len().to_string(), PIECE_READ.to_string());
        let program = [RUN, REPORT].concat();
        let stale = self.take_stale();
        let mut argv = vec!["/bin/sh", "-c", &program, "forge", folder, &length, &first];
        argv.extend(stale.iter().map(String::as_str));
        let input = STANDARD.encode(last);
        let started = match timeout_at(deadline, self.agent.exec(&argv, input.as_bytes())).await {
            Ok(started) => started.map_err(Failure::from),
            Err(_) => Err(Failure::Lost(SLOW.to_owned())),
        };
        if started.is_err() {
            self.leave(stale);
        }
        started
    }

    /// Sends a piece before the last one; without the last, nothing starts.
    async fn send_piece(&self, folder: &str, piece: &[u8], deadline: Instant) -> Result<(), Failure> {
        let unsent = |failure| match failure {
            Failure::Lost(reason) => Failure::NotSent(reason),
            other => other,
        };
        let input = STANDARD.encode(piece);
        let argv = ["/bin/sh", "-c", TAKE, "forge", folder];
        let status = self.quick(&argv, input.as_bytes(), deadline).await.map_err(unsent)?;
        if status.code == Some(0) { Ok(()) } else { Err(Failure::Refused(words(&status))) }
    }

    /// Runs a short script of forge's own, whose result may be lost.
    async fn quick(&self, argv: &[&str], input: &[u8], deadline: Instant) -> Result<ExecStatus, Failure> {
        let running = async {
            let pid = self.agent.exec(argv, input).await?;
            let mut first = true;
            loop {
                self.pause(first, deadline).await;
                first = false;
                match self.agent.exec_status(pid).await {
                    Ok(status) if status.exited => return Ok(status),
                    Ok(_) => {}
                    Err(error) if is_forgotten(&error) => return Err(Failure::Lost(error.to_string())),
                    Err(error) => return Err(error.into()),
                }
            }
        };
        timeout_at(deadline, running).await.unwrap_or_else(|_| Err(Failure::Lost(SLOW.to_owned())))
    }

    /// Waits until the next question is due: soon after a command's start, else a second after the last
    /// one, and earlier when woken.
    async fn pause(&self, first: bool, deadline: Instant) {
        let pace = self.vm.client().pace();
        let now = Instant::now();
        let asked = *self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let soonest = now + pace.agent_first;
        let due = asked.map_or(soonest, |asked| asked + pace.agent).max(soonest);
        let due = if first { soonest } else { due };
        let woken = self.wake.notified();
        sleep_until(soonest.min(deadline)).await;
        tokio::select! {
            () = woken => {}
            () = sleep_until(due.min(deadline)) => {}
        }
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Polls until a command's script has ended and returns its report, [`Report::Running`] at the deadline.
    async fn wait_for_report(&self, folder: &str, pid: i64, deadline: Instant) -> Result<Report, Failure> {
        let mut first = true;
        loop {
            self.pause(first, deadline).await;
            first = false;
            let late = Instant::now() >= deadline;
            match self.agent.exec_status(pid).await {
                Ok(status) if status.exited => return self.reported(folder, &status, deadline).await,
                Ok(_) if late => return Ok(Report::Running),
                Ok(_) => {}
                Err(error) if is_forgotten(&error) => return self.wait_by_looking(folder, deadline).await,
                Err(error) => match Failure::from(error) {
                    failure @ (Failure::NotSent(_) | Failure::Lost(_)) if late => return Err(failure.lost()),
                    // A silent agent must not be asked every second.
                    Failure::NotSent(_) | Failure::Lost(_) => self.rest(deadline).await,
                    failure => return Err(failure),
                },
            }
        }
    }

    async fn reported(
        &self,
        folder: &str,
        status: &ExecStatus,
        deadline: Instant,
    ) -> Result<Report, Failure> {
        if status.code != Some(0) {
            return Err(Failure::Refused(format!("it could not be started: {}", words(status))));
        }
        match parse_report(&status.out) {
            Some(Report::Running | Report::Gone) | None => self.wait_by_looking(folder, deadline).await,
            Some(report) => Ok(report),
        }
    }

    /// Asks a command's folder until it tells the command's end, or the deadline is over.
    async fn wait_by_looking(&self, folder: &str, deadline: Instant) -> Result<Report, Failure> {
        loop {
            match self.look(folder, [0, 0], deadline).await {
                Ok(Report::Running) if Instant::now() >= deadline => return Ok(Report::Running),
                Ok(Report::Running) => self.pause(false, deadline).await,
                Ok(report) => return Ok(report),
                Err(failure @ (Failure::NotSent(_) | Failure::Lost(_))) => {
                    if Instant::now() >= deadline {
                        return Err(failure.lost());
                    }
                    self.rest(deadline).await;
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Asks as [`Self::wait_by_looking`], twice if the folder is not there: the command may be just about to
    /// begin.
    async fn seen_later(&self, folder: &str, deadline: Instant) -> Result<Report, Failure> {
        match self.wait_by_looking(folder, deadline).await? {
            Report::Gone => {
                sleep_until(Instant::now() + self.vm.client().pace().agent).await;
                self.wait_by_looking(folder, deadline).await
            }
            report => Ok(report),
        }
    }

    /// Leaves a silent agent alone for a while.
    async fn rest(&self, deadline: Instant) {
        self.rest_after(Instant::now(), self.wake.notified(), deadline).await;
    }

    /// Leaves an agent alone for a while that was asked then and was silent. When woken it is asked sooner,
    /// yet not within a second of the last time.
    async fn rest_after(&self, asked: Instant, woken: Notified<'_>, deadline: Instant) {
        let pace = self.vm.client().pace();
        let (soonest, next) = (asked + pace.agent, Instant::now() + pace.agent_silent);
        tokio::select! {
            () = woken => sleep_until(soonest.min(deadline)).await,
            () = sleep_until(next.min(deadline)) => {}
        }
    }

    /// Leaves an agent alone as [`Self::rest_after`] and tells whether there is time to ask it again; the
    /// rest is kept also when there is none, for whoever is told so may call again at once.
    async fn rest_before_next(&self, asked: Instant, woken: Notified<'_>, deadline: Instant) -> bool {
        let rested = Instant::now() + self.vm.client().pace().agent_silent;
        self.rest_after(asked, woken, rested).await;
        rested < deadline
    }

    /// Asks a command's folder once.
    async fn look(&self, folder: &str, from: [u64; 2], deadline: Instant) -> Result<Report, Failure> {
        let [out, err] = from.map(|position| position.to_string());
        let (program, most) = ([LOOK, REPORT].concat(), PIECE_READ.to_string());
        let argv = ["/bin/sh", "-c", &program, "forge", folder, &out, &err, &most];
        // The last question, at the deadline, gets a moment of its own.
        let until = deadline.max(Instant::now() + self.vm.client().pace().agent_silent);
        let status = self.quick(&argv, &[], until).await?;
        parse_report(&status.out)
            .ok_or_else(|| Failure::Lost(format!("the report is torn: {}", words(&status))))
    }

    /// Returns a command's whole output, of which the first pieces are there.
    async fn collect(
        &self,
        folder: &str,
        code: i32,
        sizes: [u64; 2],
        mut streams: [Vec<u8>; 2],
    ) -> Result<Output, Failure> {
        let most = sizes.map(|size| size.min(GET_FILE_MAX as u64));
        let mut attempts = 0;
        while streams[0].len() as u64 != most[0] || streams[1].len() as u64 != most[1] {
            let from = [streams[0].len() as u64, streams[1].len() as u64];
            let deadline = Instant::now() + self.vm.client().pace().answer;
            let reason = match self.look(folder, from, deadline).await {
                Ok(Report::Ended { pieces, .. }) if pieces.iter().any(|piece| !piece.is_empty()) => {
                    attempts = 0;
                    for ((stream, piece), most) in streams.iter_mut().zip(pieces).zip(most) {
                        stream.extend(piece);
                        stream.truncate(most as usize);
                    }
                    continue;
                }
                Ok(_) => "it is gone".to_owned(),
                Err(
                    Failure::NotSent(reason)
                    | Failure::Lost(reason)
                    | Failure::Refused(reason)
                    | Failure::Gone(reason),
                ) => reason,
            };
            attempts += 1;
            if attempts == 3 {
                return Err(Failure::Lost(format!("its output cannot be read: {reason}")));
            }
            self.rest(deadline).await;
        }
        let [stdout, stderr] = streams;
        let truncated = most != sizes;
        Ok(Output { code: Some(code), signal: None, stdout, stderr, truncated })
    }

    async fn write(&self, path: &str, content: &[u8]) -> Result<(), CommunicatorError> {
        let what = format!("writing {path}");
        if content.len() > PUT_FILE_MAX {
            return Err(CommunicatorError::TooLarge { what, size: content.len(), limit: PUT_FILE_MAX });
        }
        let command = Exec::new(["/bin/sh", "-c", r#"cat > "$1""#, "sh", path]).stdin(content);
        let deadline = Instant::now() + command.timeout;
        while path.is_ascii() {
            let (woken, asked) = (self.wake.notified(), Instant::now());
            match self.agent.write_file(path, content).await {
                // An older server takes no body above 64 KiB, which binary content can reach.
                Err(Error::Refused { status: 501, .. }) => break,
                Err(error) => match Failure::from(error) {
                    failure @ Failure::NotSent(_) => {
                        if !self.rest_before_next(asked, woken, deadline).await {
                            return Err(failure.of(what));
                        }
                    }
                    failure => return Err(failure.of(what)),
                },
                Ok(()) => return Ok(()),
            }
        }
        let output = self.run(&command).await?;
        if output.success() { Ok(()) } else { Err(Failure::Refused(failed(&output)).of(what)) }
    }

    async fn read(&self, path: &str) -> Result<Vec<u8>, CommunicatorError> {
        let what = format!("reading {path}");
        let most = (GET_FILE_MAX + 1).to_string();
        let output = self.run(&Exec::new(["head", "-c", &most, "--", path])).await?;
        if !output.success() {
            return Err(Failure::Refused(failed(&output)).of(what));
        }
        if output.truncated {
            return Err(CommunicatorError::TooLarge { what, size: GET_FILE_MAX + 1, limit: GET_FILE_MAX });
        }
        Ok(output.stdout)
    }

    async fn wait_for_other_boot(&self, previous: &str, limit: Duration) -> Result<(), CommunicatorError> {
        let deadline = Instant::now() + limit;
        let mut answers = false;
        loop {
            let (woken, asked) = (self.wake.notified(), Instant::now());
            match timeout_at(deadline, self.boot_id()).await {
                Ok(Ok(boot_id)) if boot_id != previous => return Ok(()),
                Ok(Err(gone @ CommunicatorError::Gone { .. })) => return Err(gone),
                Ok(Ok(_)) => {
                    answers = true;
                    let next = Instant::now() + self.vm.client().pace().agent;
                    if next >= deadline {
                        return Err(no_other_boot(answers, limit));
                    }
                    sleep_until(next).await;
                }
                Ok(Err(_)) if Instant::now() < deadline => {
                    answers = false;
                    self.rest_after(asked, woken, deadline).await;
                }
                Ok(Err(_)) | Err(_) => return Err(no_other_boot(answers, limit)),
            }
        }
    }
}

impl Communicator for PveAgent {
    /// As the trait says; a signal shows as the exit code 128 and its number, as a shell has it.
    fn exec<'a>(&'a self, command: &'a Exec) -> BoxFuture<'a, Result<Output, CommunicatorError>> {
        Box::pin(self.run(command))
    }

    fn put_file<'a>(
        &'a self,
        path: &'a str,
        content: &'a [u8],
    ) -> BoxFuture<'a, Result<(), CommunicatorError>> {
        Box::pin(self.write(path, content))
    }

    fn get_file<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Vec<u8>, CommunicatorError>> {
        Box::pin(self.read(path))
    }

    fn wait_for_reboot<'a>(
        &'a self,
        previous_boot_id: &'a str,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<(), CommunicatorError>> {
        Box::pin(self.wait_for_other_boot(previous_boot_id, deadline))
    }
}

impl GuestAgent for PveAgent {
    fn freeze(&self) -> BoxFuture<'_, Result<i64, CommunicatorError>> {
        Box::pin(async {
            let frozen = self.agent.freeze().await;
            frozen.map_err(|error| Failure::from(error).of("freezing the file systems"))
        })
    }

    fn thaw(&self) -> BoxFuture<'_, Result<i64, CommunicatorError>> {
        Box::pin(async {
            let thawed = self.agent.thaw().await;
            thawed.map_err(|error| Failure::from(error).of("thawing the file systems"))
        })
    }

    fn set_user_password<'a>(
        &'a self,
        user: &'a str,
        password: &'a str,
    ) -> BoxFuture<'a, Result<(), CommunicatorError>> {
        Box::pin(async move {
            let set = self.agent.set_user_password(user, password).await;
            set.map_err(|error| Failure::from(error).of(format!("setting the password of {user}")))
        })
    }
}

/// Tells whether the agent does not know the command: it has told its end already and the answer was lost,
/// or it is a new agent.
fn is_forgotten(error: &Error) -> bool {
    matches!(error, Error::Refused { message, .. } if message.starts_with("Agent error: "))
}

/// Returns the script that sets the environment and becomes the command.
fn script(command: &Exec, folder: &str) -> Result<String, String> {
    let Some(program) = command.argv.first() else {
        return Err("the command is empty".to_owned());
    };
    let mut lines = vec!["unset PWD OLDPWD SHLVL".to_owned(), environment(command)?];
    let words: Vec<String> = command.argv.iter().map(|word| quote(word)).collect::<Result<_, _>>()?;
    lines.push(format!("command -v {} >/dev/null || {{ : > {folder}/missing; exit 127; }}", quote(program)?));
    lines.push(format!("exec {}\n", words.join(" ")));
    Ok(lines.join("\n"))
}

fn parse_report(text: &[u8]) -> Option<Report> {
    let mut lines = std::str::from_utf8(text).ok()?.lines();
    let head: Vec<&str> = lines.next()?.split_whitespace().collect();
    match head[..] {
        ["running"] => Some(Report::Running),
        ["missing"] => Some(Report::Missing),
        ["gone"] => Some(Report::Gone),
        ["ended", code, out, err] => {
            let mut piece = || {
                let mut base64 = String::new();
                loop {
                    match lines.next()? {
                        "-" => return STANDARD.decode(base64).ok(),
                        line => base64 += line,
                    }
                }
            };
            let pieces = [piece()?, piece()?];
            Some(Report::Ended {
                code: code.parse().ok()?,
                sizes: [out.parse().ok()?, err.parse().ok()?],
                pieces,
            })
        }
        _ => None,
    }
}

/// Returns what a script of forge's own complained about.
fn words(status: &ExecStatus) -> String {
    let text = String::from_utf8_lossy(&status.err);
    match (text.trim(), status.code) {
        ("", Some(code)) => format!("exit code {code}"),
        ("", None) => "ended by a signal".to_owned(),
        (text, _) => text.to_owned(),
    }
}

fn failed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

#[cfg(test)]
mod tests;
