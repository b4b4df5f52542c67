//! The guest agent of a local machine, on its unix socket.
//!
//! The agent answers in order and with the request's id, but a stream that several clients have used
//! one after another holds replies to requests that nobody waits for any more. So a connection begins
//! with `guest-sync-delimited`, replies are matched by id, and a connection on which a request was given
//! up is not used again. (QEMU `docs/interop/qemu-ga-ref`, `qga/qapi-schema.json`.)

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use qapi::{Command, ErrorClass, qga};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use self::connection::{Connection, Refusal};
use super::{
    BOOT_ID, Communicator, CommunicatorError, ENVIRONMENT, EXEC_INPUT_MAX, Exec, Failure, GET_FILE_MAX,
    GuestAgent, Output, PUT_FILE_MAX, describe, no_other_boot,
};
use crate::event::human_duration;
use crate::qemu::{AgentPort, State};

mod connection;

/// How long the agent may take for one request; emulated guests under load take seconds.
const REPLY: Duration = Duration::from_secs(30);

/// How long the file systems may take to become quiet.
const FREEZE: Duration = Duration::from_mins(1);

/// How long an agent may take to refuse what it answers in no other way.
const REFUSAL: Duration = Duration::from_secs(2);

/// How long after the first poll the second one comes; doubled up to [`POLL_MAX`].
const POLL_MIN: Duration = Duration::from_millis(20);
const POLL_MAX: Duration = Duration::from_millis(500);

/// How often an agent that is silent is asked again, so that it is noticed soon after it speaks.
const NUDGE: Duration = Duration::from_millis(150);

/// How long one connection is tried, at first and at most: each new one drops what QEMU still held.
const ROUND_MIN: Duration = Duration::from_millis(500);
const ROUND_MAX: Duration = Duration::from_secs(16);

/// How long after a closed connection the machine's end may become known.
const GRACE: Duration = Duration::from_millis(300);

/// How many bytes one request reads from a file.
const READ_CHUNK: i64 = 256 * 1024;

/// The guest agent of one machine. Many may call at once; their requests take turns.
#[derive(Debug)]
pub struct SocketAgent {
    socket: PathBuf,
    machine: watch::Receiver<State>,
    /// The connection, while it is in step and nobody uses it.
    connection: Mutex<Option<Connection>>,
    next_id: AtomicU64,
}

impl SocketAgent {
    /// Returns the agent on a socket, of a machine whose state tells when its port opens and when it
    /// ends (see [`crate::qemu::Machine::state`]).
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>, machine: watch::Receiver<State>) -> Self {
        // Replies to what another client asked earlier must not look like ours.
        let first_id = uuid::Uuid::new_v4().as_u64_pair().0 >> 16;
        Self {
            socket: socket.into(),
            machine,
            connection: Mutex::default(),
            next_id: AtomicU64::new(first_id),
        }
    }

    /// Waits until the agent answers, and notices it within 300 ms.
    ///
    /// # Errors
    /// [`CommunicatorError::NotSent`] at the deadline, [`CommunicatorError::Gone`] at once when the
    /// machine ends.
    pub async fn wait_until_ready(&self, limit: Duration) -> Result<(), CommunicatorError> {
        let deadline = Instant::now() + limit;
        let ready = async {
            let mut slot = self.turn(deadline).await?;
            slot.take();
            *slot = Some(self.connect(deadline).await?);
            Ok(())
        };
        self.unless_gone(ready).await.map_err(|failure| match failure {
            Failure::NotSent(reason) => {
                let reason = format!("not within {}: {reason}", human_duration(limit));
                Failure::NotSent(reason).of("waiting for the guest agent")
            }
            other => other.of("waiting for the guest agent"),
        })
    }

    /// Returns the id of the guest's present boot.
    ///
    /// # Errors
    /// See [`CommunicatorError`].
    pub async fn boot_id(&self) -> Result<String, CommunicatorError> {
        let text = self.get_file(BOOT_ID).await?;
        Ok(String::from_utf8_lossy(&text).trim().to_owned())
    }

    /// Asks the agent to power the guest off, or to reboot it. It answers only to refuse, so that a short silence
    /// means that it does.
    ///
    /// # Errors
    /// See [`CommunicatorError`].
    pub async fn shut_down(&self, mode: qga::GuestShutdownMode) -> Result<(), CommunicatorError> {
        let ask = async {
            let deadline = Instant::now() + REPLY;
            let mut slot = self.turn(deadline).await?;
            let mut connection = match slot.take() {
                Some(connection) if self.port() != AgentPort::Closed => connection,
                _ => self.connect(deadline).await?,
            };
            let id = self.next_id.fetch_add(1, Ordering::Relaxed);
            let sent = connection.send(qga::guest_shutdown { mode: Some(mode) }, id).await;
            sent.map_err(|error| Failure::Lost(error.to_string()))?;
            tokio::select! {
                reply = timeout(REFUSAL, connection.reply::<qga::guest_shutdown>(id)) => match reply {
                    Ok(Ok(Err(refusal))) => Err(Failure::Refused(explain("guest-shutdown", refusal))),
                    _ => Ok(()),
                },
                () = self.port_closed() => Ok(()),
            }
        };
        ask.await.map_err(|failure: Failure| failure.of("shutting the guest down"))
    }

    /// Sends a request and returns its result, in turn with others.
    async fn call<C: Command>(&self, command: C, deadline: Instant) -> Result<C::Ok, Failure> {
        let exchange = async {
            let mut slot = self.turn(deadline).await?;
            // Taken out until the reply is in: a connection with a reply still to come is dropped.
            let mut connection = match slot.take() {
                Some(connection) if self.port() != AgentPort::Closed => connection,
                _ => self.connect(deadline).await?,
            };
            let id = self.next_id.fetch_add(1, Ordering::Relaxed);
            let reply = tokio::select! {
                reply = timeout_at(deadline, connection.exchange(command, id)) => reply,
                () = self.port_closed() => {
                    return Err(Failure::Lost("it ended before it answered".to_owned()));
                }
            };
            let reply = reply
                .map_err(|_| Failure::Lost(format!("{} was not answered in time", C::NAME)))?
                .map_err(|error| Failure::Lost(error.to_string()))?;
            *slot = Some(connection);
            reply.map_err(|refusal| Failure::Refused(explain(C::NAME, refusal)))
        };
        self.unless_gone(exchange).await
    }

    /// Returns a request's result, or [`Failure::Gone`] as soon as the machine has ended.
    async fn unless_gone<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let mut machine = self.machine.clone();
        let result = tokio::select! {
            biased;
            end = State::ended(&mut machine) => return Err(Failure::Gone(end.to_string())),
            result = work => result,
        };
        match result {
            // The connection of a dying QEMU ends a moment before its death is known.
            Err(failure @ (Failure::NotSent(_) | Failure::Lost(_))) => {
                match timeout(GRACE, State::ended(&mut machine)).await {
                    Ok(end) => Err(Failure::Gone(end.to_string())),
                    Err(_) => Err(failure),
                }
            }
            result => result,
        }
    }

    async fn turn(
        &self,
        deadline: Instant,
    ) -> Result<tokio::sync::MutexGuard<'_, Option<Connection>>, Failure> {
        let late = |_| Failure::NotSent("other requests took all the time".to_owned());
        timeout_at(deadline, self.connection.lock()).await.map_err(late)
    }

    /// Connects and gets into step with the agent, as soon as it is there.
    async fn connect(&self, deadline: Instant) -> Result<Connection, Failure> {
        let first_id = self.next_id.load(Ordering::Relaxed);
        let mut round = ROUND_MIN;
        let mut reason = "nothing in the guest has opened its port".to_owned();
        loop {
            let open = timeout_at(deadline, self.port_open()).await;
            if open.is_err() || Instant::now() >= deadline {
                return Err(Failure::NotSent(reason));
            }
            match Connection::open(&self.socket).await {
                Ok(mut connection) => {
                    let until = deadline.min(Instant::now() + round);
                    match self.get_into_step(&mut connection, first_id, until).await {
                        Ok(()) => return Ok(connection),
                        Err(why) => reason = why,
                    }
                    round = (round * 2).min(ROUND_MAX);
                }
                Err(error) => reason = format!("connecting to {}: {error}", self.socket.display()),
            }
            // A connection that ends at once must not be tried in a busy loop.
            sleep_until(deadline.min(Instant::now() + POLL_MIN)).await;
        }
    }

    /// Asks until one answer is in: an earlier connection's will do, since the agent has then read it.
    async fn get_into_step(
        &self,
        connection: &mut Connection,
        first_id: u64,
        until: Instant,
    ) -> Result<(), String> {
        loop {
            let id = self.next_id.fetch_add(1, Ordering::Relaxed);
            let nudge = until.min(Instant::now() + NUDGE);
            let answer = tokio::select! {
                answer = timeout_at(nudge, connection.sync(first_id, id)) => answer,
                () = self.port_closed() => return Err("it closed its port".to_owned()),
            };
            match answer {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => return Err(error.to_string()),
                Err(_) if Instant::now() >= until => return Err("no answer to guest-sync".to_owned()),
                Err(_) => {}
            }
        }
    }

    fn port(&self) -> AgentPort {
        self.machine.borrow().agent_port
    }

    async fn port_open(&self) {
        self.wait_for(|state| state.agent_port != AgentPort::Closed).await;
    }

    async fn port_closed(&self) {
        self.wait_for(|state| state.agent_port == AgentPort::Closed).await;
    }

    async fn restarted_since(&self, resets: u32) {
        self.wait_for(|state| state.resets != resets).await;
    }

    /// Waits until the machine's state is so; forever when the machine is gone, which `unless_gone` sees.
    async fn wait_for(&self, so: impl FnMut(&State) -> bool) {
        if self.machine.clone().wait_for(so).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    async fn run(&self, command: &Exec) -> Result<Output, CommunicatorError> {
        let what = describe(command);
        if command.stdin.len() > EXEC_INPUT_MAX {
            return Err(CommunicatorError::TooLarge {
                what,
                size: command.stdin.len(),
                limit: EXEC_INPUT_MAX,
            });
        }
        let Some(request) = exec_request(command) else {
            return Err(Failure::Refused("the command is empty".to_owned()).of(what));
        };
        let deadline = Instant::now() + command.timeout;
        let resets = self.machine.borrow().resets;
        let started = self.call(request, deadline.min(Instant::now() + REPLY)).await;
        let pid = started.map_err(|failure| failure.of(&what))?.pid;
        tokio::select! {
            output = self.wait_for_exit(pid, deadline) => match output {
                Ok(Some(output)) => Ok(output),
                Ok(None) => Err(CommunicatorError::Timeout { what, after: command.timeout }),
                Err(failure) => Err(failure.of(what)),
            },
            () = self.restarted_since(resets) => {
                Err(Failure::Lost("the guest restarted".to_owned()).of(what))
            }
        }
    }

    /// Polls until a command has exited; returns nothing when it still runs at the deadline.
    async fn wait_for_exit(&self, pid: i64, deadline: Instant) -> Result<Option<Output>, Failure> {
        let mut pause = POLL_MIN;
        loop {
            sleep_until(deadline.min(Instant::now() + pause)).await;
            pause = (pause * 2).min(POLL_MAX);
            // The last poll, at the deadline, gets a moment of its own.
            let now = Instant::now();
            let until = deadline.max(now + Duration::from_secs(1)).min(now + REPLY);
            match self.call(qga::guest_exec_status { pid }, until).await {
                Ok(status) if status.exited => return Ok(Some(output(status))),
                Ok(_) if Instant::now() >= deadline => return Ok(None),
                // The agent keeps results of commands, so asking again is safe.
                Err(failure @ (Failure::NotSent(_) | Failure::Lost(_))) if Instant::now() >= deadline => {
                    return Err(failure.lost());
                }
                Ok(_) | Err(Failure::NotSent(_) | Failure::Lost(_)) => {}
                Err(Failure::Refused(reason)) => {
                    return Err(Failure::Lost(format!("the agent has forgotten the command: {reason}")));
                }
                Err(gone @ Failure::Gone(_)) => return Err(gone),
            }
        }
    }

    async fn write(&self, path: &str, content: &[u8]) -> Result<(), Failure> {
        let handle = self.open(path, "w").await?;
        let written = self.write_all(handle, content).await;
        let closed = self.call(qga::guest_file_close { handle }, Instant::now() + REPLY).await;
        // The first error is the telling one; a failing close means that not all was written.
        written.and(closed.map(drop))
    }

    async fn write_all(&self, handle: i64, mut rest: &[u8]) -> Result<(), Failure> {
        while !rest.is_empty() {
            let request = qga::guest_file_write { count: None, buf_b64: rest.to_vec(), handle };
            let written = self.call(request, Instant::now() + REPLY).await?.count;
            match usize::try_from(written) {
                Ok(count) if count > 0 && count <= rest.len() => rest = &rest[count..],
                _ => return Err(Failure::Refused(format!("it wrote {written} bytes"))),
            }
        }
        Ok(())
    }

    async fn open(&self, path: &str, mode: &str) -> Result<i64, Failure> {
        let request = qga::guest_file_open { mode: Some(mode.to_owned()), path: path.to_owned() };
        self.call(request, Instant::now() + REPLY).await
    }

    /// Reads a file; returns nothing when it is larger than `limit`.
    async fn read(&self, path: &str, limit: usize) -> Result<Option<Vec<u8>>, Failure> {
        let handle = self.open(path, "r").await?;
        let content = self.read_all(handle, limit).await;
        let closed = self.call(qga::guest_file_close { handle }, Instant::now() + REPLY).await;
        let content = content?;
        closed.map(|_| content)
    }

    async fn read_all(&self, handle: i64, limit: usize) -> Result<Option<Vec<u8>>, Failure> {
        let mut content = Vec::new();
        loop {
            let request = qga::guest_file_read { count: Some(READ_CHUNK), handle };
            let read = self.call(request, Instant::now() + REPLY).await?;
            content.extend(read.buf_b64);
            if content.len() > limit {
                return Ok(None);
            }
            if read.eof {
                return Ok(Some(content));
            }
        }
    }

    async fn wait_for_other_boot(&self, previous: &str, limit: Duration) -> Result<(), CommunicatorError> {
        let deadline = Instant::now() + limit;
        let mut answers = false;
        loop {
            match timeout_at(deadline, self.boot_id()).await {
                Ok(Ok(boot_id)) if boot_id != previous => return Ok(()),
                Ok(Err(gone @ CommunicatorError::Gone { .. })) => return Err(gone),
                Ok(Ok(_)) if Instant::now() + POLL_MAX >= deadline => return Err(no_other_boot(true, limit)),
                Ok(answer) => answers = answer.is_ok(),
                Err(_) => return Err(no_other_boot(answers, limit)),
            }
            sleep(POLL_MAX / 2).await;
        }
    }
}

impl Communicator for SocketAgent {
    fn exec<'a>(&'a self, command: &'a Exec) -> BoxFuture<'a, Result<Output, CommunicatorError>> {
        Box::pin(self.run(command))
    }

    fn put_file<'a>(
        &'a self,
        path: &'a str,
        content: &'a [u8],
    ) -> BoxFuture<'a, Result<(), CommunicatorError>> {
        Box::pin(async move {
            let what = format!("writing {path}");
            if content.len() > PUT_FILE_MAX {
                return Err(CommunicatorError::TooLarge { what, size: content.len(), limit: PUT_FILE_MAX });
            }
            self.write(path, content).await.map_err(|failure| failure.of(what))
        })
    }

    fn get_file<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Vec<u8>, CommunicatorError>> {
        Box::pin(async move {
            let what = format!("reading {path}");
            match self.read(path, GET_FILE_MAX).await {
                Ok(Some(content)) => Ok(content),
                Ok(None) => {
                    Err(CommunicatorError::TooLarge { what, size: GET_FILE_MAX + 1, limit: GET_FILE_MAX })
                }
                Err(failure) => Err(failure.of(what)),
            }
        })
    }

    fn wait_for_reboot<'a>(
        &'a self,
        previous_boot_id: &'a str,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<(), CommunicatorError>> {
        Box::pin(self.wait_for_other_boot(previous_boot_id, deadline))
    }
}

impl GuestAgent for SocketAgent {
    fn freeze(&self) -> BoxFuture<'_, Result<i64, CommunicatorError>> {
        Box::pin(async {
            let frozen = self.call(qga::guest_fsfreeze_freeze {}, Instant::now() + FREEZE).await;
            frozen.map_err(|failure| failure.of("freezing the file systems"))
        })
    }

    fn thaw(&self) -> BoxFuture<'_, Result<i64, CommunicatorError>> {
        Box::pin(async {
            let thawed = self.call(qga::guest_fsfreeze_thaw {}, Instant::now() + FREEZE).await;
            thawed.map_err(|failure| failure.of("thawing the file systems"))
        })
    }

    fn set_user_password<'a>(
        &'a self,
        user: &'a str,
        password: &'a str,
    ) -> BoxFuture<'a, Result<(), CommunicatorError>> {
        Box::pin(async move {
            let request = qga::guest_set_user_password {
                username: user.to_owned(),
                password: password.as_bytes().to_vec(),
                crypted: false,
            };
            let set = self.call(request, Instant::now() + REPLY).await;
            set.map(drop).map_err(|failure| failure.of(format!("setting the password of {user}")))
        })
    }
}

/// Returns the request that starts a command; nothing for an empty one.
fn exec_request(command: &Exec) -> Option<qga::guest_exec> {
    let (path, arguments) = command.argv.split_first()?;
    let given = |name: &str| command.env.iter().any(|(key, _)| key == name);
    let fixed = ENVIRONMENT
        .into_iter()
        .filter(|(name, _)| !given(name))
        .map(|(name, value)| format!("{name}={value}"));
    let env = fixed.chain(command.env.iter().map(|(name, value)| format!("{name}={value}"))).collect();
    Some(qga::guest_exec {
        path: path.clone(),
        arg: Some(arguments.to_vec()),
        env: Some(env),
        input_data: (!command.stdin.is_empty()).then(|| command.stdin.clone()),
        capture_output: Some(qga::GuestExecCaptureOutput::flag(true)),
    })
}

fn output(status: qga::GuestExecStatus) -> Output {
    let number = |value: Option<i64>| value.and_then(|value| i32::try_from(value).ok());
    Output {
        code: number(status.exitcode),
        signal: number(status.signal),
        stdout: status.out_data.unwrap_or_default(),
        stderr: status.err_data.unwrap_or_default(),
        truncated: status.out_truncated == Some(true) || status.err_truncated == Some(true),
    }
}

/// Returns the agent's words, and what to do when its configuration blocks a command.
fn explain(command: &str, refusal: Refusal) -> String {
    if refusal.class != ErrorClass::CommandNotFound {
        return refusal.reason;
    }
    format!(
        "its configuration blocks {command}; allow it in the guest (`block-rpcs` or `blacklist` in \
         /etc/qemu/qemu-ga.conf, BLACKLIST_RPC or `--block-rpcs` in its service): {}",
        refusal.reason
    )
}

#[cfg(test)]
mod tests;
