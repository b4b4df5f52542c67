//! Runs a script in the guest, with its output live.
//!
//! The script lies in a folder of its own with its environment, its output and, at the end, its
//! exit code; `guest/*.sh` are the pieces that run there.
//!
//! ```text
//! start.sh ─► runner.sh ─► INTERPRETER script        (detached, in a session of its own)
//!      │          │              └─► log
//!      │          └─► pid, code
//!      └────► push.sh   sends the log as it grows    (where forge is reached over HTTP)
//! poll.sh   reads log from an offset on, and code    (every 0.1 to 1 s; every 10 s while it is sent)
//! stop.sh   ends what is left of the session
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;

use super::lines::{Lines, Mask};
use super::marks::{self, Marked};
use super::output::Output as Printed;
use super::transfer::{Bulk, Feed};
use super::{Context, Place, ProvisionError, is_transient, mask, shell_quote, transfer};
use crate::communicator::{CommunicatorError, EXEC_INPUT_MAX, Exec, Output};

const START: &str = include_str!("guest/start.sh");
const RUNNER: &str = include_str!("guest/runner.sh");
const POLL: &str = include_str!("guest/poll.sh");
const PUSH: &str = include_str!("guest/push.sh");
const STOP: &str = include_str!("guest/stop.sh");
const ERROR_TRAP: &str = include_str!("guest/errtrap.sh");

/// The most bytes of output that one look brings.
const POLL_BYTES: usize = 48 * 1024;

/// How long the guest is left alone between two looks.
const POLL_PAUSE: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(1);

/// How long one short command of forge's own may take.
const SHORT: Duration = Duration::from_secs(30);

/// How long the guest may be silent after a script's deadline, before it is given up.
const GRACE: Duration = Duration::from_mins(1);

/// A script to run in the guest as root.
#[derive(Debug, Clone, Copy)]
pub struct Script<'a> {
    /// What it is called in messages: its path, or its step's name.
    pub name: &'a str,
    /// Its text.
    pub text: &'a str,
    /// The program that runs it, with options.
    pub interpreter: &'a [String],
    /// Its environment, besides `PATH`, `HOME` and `LC_ALL`.
    pub env: &'a BTreeMap<String, String>,
    /// Exit codes that mean success.
    pub exit_codes: &'a [i32],
}

/// Runs a script and passes its output on while it runs.
///
/// # Errors
/// See [`ProvisionError`]; at the deadline the script is ended with all its processes.
pub async fn script(what: &Script<'_>, timeout: Duration, cx: &Context<'_>) -> Result<(), ProvisionError> {
    let mask = mask(cx);
    let run = Run {
        what,
        cx,
        mask: &mask,
        folder: format!("{}/{}", cx.folder, Uuid::new_v4().simple()),
        deadline: Instant::now() + timeout,
    };
    let marked = run.marked();
    let feed = if run.knows_secret() { None } else { cx.bulk.and_then(Bulk::receive) };
    let text = marked.as_ref().map_or(what.text, |marked| &marked.text);
    let result = match run.start(text, feed.as_ref()).await {
        Ok(()) => run.watch(timeout, marked.as_ref(), feed).await,
        Err(error) => Err(error),
    };
    // A machine that is gone took the folder along, and the first error says more than a second.
    if !matches!(result, Err(ProvisionError::Communicator(CommunicatorError::Gone { .. }))) {
        let cleaned = run.clean_up(result.is_ok()).await;
        if result.is_ok() {
            cleaned?;
        }
    }
    result
}

/// One run of one script.
struct Run<'a> {
    what: &'a Script<'a>,
    cx: &'a Context<'a>,
    mask: &'a Mask,
    folder: String,
    deadline: Instant,
}

/// What a look at the script found.
#[derive(Debug, PartialEq)]
struct Look {
    state: State,
    /// The line that was noted, and the exit code that it belongs to.
    note: Option<(i32, usize)>,
    output: Vec<u8>,
}

#[derive(Debug, PartialEq, Clone, Copy)]
enum State {
    Running,
    Ended(i32),
    /// The runner is gone without an exit code.
    Lost,
    /// The folder is gone.
    Missing,
}

impl Run<'_> {
    /// Returns the script with marks, if `sh` runs it; bash notes lines by itself.
    fn marked(&self) -> Option<Marked> {
        let shell = matches!(self.interpreter_name(), Some("sh" | "dash"));
        shell.then(|| marks::mark(self.what.text))
    }

    fn interpreter_name(&self) -> Option<&str> {
        self.what.interpreter.first().and_then(|program| Path::new(program).file_name()?.to_str())
    }

    /// Tells whether a secret is in the environment. What the script prints may hold it, and the way over
    /// forge's HTTP is not encrypted.
    fn knows_secret(&self) -> bool {
        self.what.env.values().any(|value| self.mask.apply(value) != *value)
    }

    /// Returns the environment as shell text: it may hold secrets, which argv must not.
    fn environment(&self) -> Result<String, ProvisionError> {
        let mut text = String::new();
        for (name, value) in self.what.env {
            if !is_variable_name(name) || value.contains('\0') {
                return Err(ProvisionError::Invalid(format!(
                    "{}: `{name}` cannot be an environment variable",
                    self.what.name
                )));
            }
            text.extend(["export ", name, "=", &shell_quote(value), "\n"]);
        }
        if self.interpreter_name() == Some("bash") {
            let (write, read) = ("\"$0/errtrap\"\n", "export BASH_ENV=\"$0/errtrap\"\n");
            text.extend(["printf %s ", &shell_quote(ERROR_TRAP), " >", write, read]);
        }
        Ok(text)
    }

    async fn start(&self, text: &str, feed: Option<&Feed>) -> Result<(), ProvisionError> {
        if self.what.interpreter.is_empty() {
            return Err(ProvisionError::Invalid(format!("{}: `interpreter` is empty", self.what.name)));
        }
        let mut input = transfer::base64(self.environment()?.as_bytes()).into_bytes();
        input.push(b'\n');
        input.extend(transfer::base64(feed.map(push_settings).unwrap_or_default().as_bytes()).into_bytes());
        input.push(b'\n');
        if input.len() + text.len() <= EXEC_INPUT_MAX {
            input.extend_from_slice(text.as_bytes());
        } else {
            transfer::put_parts(&self.folder, text.as_bytes(), self.deadline, self.cx).await?;
        }
        let mut command = shell_command(START, [self.folder.as_str(), RUNNER, PUSH]).stdin(input);
        command.argv.extend_from_slice(self.what.interpreter);
        let name = format!("starting {}", self.what.name);
        expect_success(&command, &name, self.deadline, self.cx).await?;
        Ok(())
    }

    /// Follows the script to its end or its deadline.
    async fn watch(
        &self,
        timeout: Duration,
        marked: Option<&Marked>,
        feed: Option<Feed>,
    ) -> Result<(), ProvisionError> {
        let lines = Lines::new(
            self.mask,
            (format!("{}/script", self.folder), self.what.name),
            self.cx.output,
            self.cx.log,
        );
        let mut printed = Printed::new(lines, feed);
        let mut pause = *POLL_PAUSE.start();
        loop {
            printed.wait(pause, self.deadline).await;
            let look = self.look(printed.passed()).await?;
            printed.read(&look.output);
            if !look.output.is_empty() {
                pause = *POLL_PAUSE.start();
            }
            pause = (pause * 3 / 2).min(*POLL_PAUSE.end());
            match look.state {
                State::Running if Instant::now() >= self.deadline => {
                    let (name, tail) = (self.what.name.to_owned(), printed.finish());
                    return Err(ProvisionError::TimedOut { name, after: timeout, tail });
                }
                _ if look.output.len() >= POLL_BYTES => pause = Duration::ZERO,
                State::Running => {}
                State::Ended(code) => return self.judge(code, look.note, marked, printed),
                State::Lost => return Err(self.vanished("its processes were killed", printed)),
                State::Missing => return Err(self.vanished("did the guest restart?", printed)),
            }
        }
    }

    /// Looks at the script; looking again harms nothing, so lost answers are asked for again.
    async fn look(&self, offset: usize) -> Result<Look, ProvisionError> {
        let (offset, limit) = (offset.to_string(), POLL_BYTES.to_string());
        let command = shell_command(POLL, [self.folder.as_str(), &offset, &limit]);
        let name = format!("looking at {}", self.what.name);
        let output = exec_until(&command, &name, self.deadline + GRACE, self.cx).await?;
        parse_look(&output.stdout).ok_or_else(|| {
            ProvisionError::Communicator(CommunicatorError::Refused {
                what: name,
                reason: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            })
        })
    }

    /// Ends what is left of the script and leaves nothing of it in the guest.
    async fn clean_up(&self, ended: bool) -> Result<(), ProvisionError> {
        let command = shell_command(STOP, [self.folder.as_str()]);
        let name = format!("cleaning up after {}", self.what.name);
        let output = exec_until(&command, &name, Instant::now() + GRACE, self.cx).await?;
        let left: usize = output.text().parse().unwrap_or(0);
        if ended && left > 0 {
            let processes = if left == 1 { "process" } else { "processes" };
            let line = format!("forge: ended {left} {processes} that {} had left running", self.what.name);
            (self.cx.log)(&line);
            (self.cx.output)(&line);
        }
        Ok(())
    }

    fn judge(
        &self,
        code: i32,
        note: Option<(i32, usize)>,
        marked: Option<&Marked>,
        printed: Printed<'_>,
    ) -> Result<(), ProvisionError> {
        let tail = printed.finish();
        if self.what.exit_codes.contains(&code) {
            return Ok(());
        }
        let said = tail.last().and_then(|line| line_in_message(line, self.what.name));
        let noted = note.filter(|(noted, _)| *noted == code).map(|(_, line)| line);
        let range = match (said, noted, marked) {
            (Some(line), ..) | (None, Some(line), None) => Some((line, line)),
            (None, Some(line), Some(marked)) => marked.range(self.what.text, line),
            (None, None, _) => None,
        };
        let place = range.map(|(first, last)| {
            let text = self.what.text.lines().nth(first - 1).unwrap_or_default().trim();
            Place { first, last, text: self.mask.apply(text) }
        });
        Err(ProvisionError::Failed { name: self.what.name.to_owned(), code, place, tail })
    }

    fn vanished(&self, reason: &'static str, printed: Printed<'_>) -> ProvisionError {
        ProvisionError::Vanished { name: self.what.name.to_owned(), reason, tail: printed.finish() }
    }
}

/// Returns how the guest's curl sends what a script prints. It is told by a file: every process may read
/// argv.
fn push_settings(feed: &Feed) -> String {
    let url = &feed.url;
    format!("url = \"{url}\"\nupload-file = \"-\"\nheader = \"Expect:\"\nconnect-timeout = 5\nsilent\n")
}

/// Returns `sh -c TEXT forge ARGUMENT…`.
pub(super) fn shell_command<'a>(text: &'a str, arguments: impl IntoIterator<Item = &'a str>) -> Exec {
    Exec::new(["/bin/sh", "-c", text, "forge"].into_iter().chain(arguments)).timeout(SHORT)
}

/// Runs a command that may be repeated, until it is answered or the deadline has passed; `what`
/// names it in errors, since its own argv is a page of shell.
pub(super) async fn exec_until(
    command: &Exec,
    what: &str,
    deadline: Instant,
    cx: &Context<'_>,
) -> Result<Output, CommunicatorError> {
    let mut pause = *POLL_PAUSE.start();
    loop {
        match cx.guest.exec(command).await {
            Err(error) if is_transient(&error) && Instant::now() < deadline => {
                let wait = timeout_at(deadline, sleep(pause));
                // Either way it is tried once more: the deadline is looked at above.
                drop(wait.await);
                pause = (pause * 2).min(*POLL_PAUSE.end());
            }
            result => return result.map_err(|error| named(error, what)),
        }
    }
}

/// Returns the error with another name for what was asked.
fn named(mut error: CommunicatorError, name: &str) -> CommunicatorError {
    let (CommunicatorError::NotSent { what, .. }
    | CommunicatorError::Unknown { what, .. }
    | CommunicatorError::Refused { what, .. }
    | CommunicatorError::Timeout { what, .. }
    | CommunicatorError::Gone { what, .. }
    | CommunicatorError::TooLarge { what, .. }) = &mut error;
    name.clone_into(what);
    error
}

/// Returns what the command printed, or an error with what it said if it failed.
pub(super) async fn expect_success(
    command: &Exec,
    what: &str,
    deadline: Instant,
    cx: &Context<'_>,
) -> Result<Output, CommunicatorError> {
    let output = exec_until(command, what, deadline, cx).await?;
    if output.success() {
        return Ok(output);
    }
    let reason = mask(cx).apply(String::from_utf8_lossy(&output.stderr).trim());
    Err(CommunicatorError::Refused { what: what.to_owned(), reason })
}

/// Parses what `guest/poll.sh` prints.
fn parse_look(text: &[u8]) -> Option<Look> {
    let end = text.iter().position(|byte| *byte == b'\n')?;
    let head = std::str::from_utf8(&text[..end]).ok()?;
    let mut words = head.split(' ');
    let (state, code, note, count) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let state = match state {
        "running" => State::Running,
        "ended" => State::Ended(code.parse().ok()?),
        "lost" => State::Lost,
        "missing" => State::Missing,
        _ => return None,
    };
    let note = note.split_once(':').and_then(|(code, line)| Some((code.parse().ok()?, line.parse().ok()?)));
    let output = transfer::parse_base64(&text[end + 1..])?;
    (count.parse() == Ok(output.len())).then_some(Look { state, note, output })
}

/// Returns the line that a shell names in an error message of its own, `NAME: LINE: …` (sh) or
/// `NAME: line LINE: …` (bash). It is the last thing that such a shell says.
fn line_in_message(message: &str, name: &str) -> Option<usize> {
    let rest = message.strip_prefix(name)?.strip_prefix(": ")?;
    let (line, _) = rest.strip_prefix("line ").unwrap_or(rest).split_once(": ")?;
    line.parse().ok().filter(|line| *line > 0)
}

fn is_variable_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_parsed() {
        let look = |state, note, output: &[u8]| Some(Look { state, note, output: output.to_vec() });
        for (text, expected) in [
            (&b"running - - 3\nYWIK"[..], look(State::Running, None, b"ab\n")),
            (b"ended 3 3:12 0\n", look(State::Ended(3), Some((3, 12)), b"")),
            (b"lost - - 2\n//4=", look(State::Lost, None, b"\xff\xfe")),
            (b"missing - - 0\n", look(State::Missing, None, b"")),
            (b"running - - 5\nYWIK", None),
            (b"ended - - 0\n", None),
            (b"", None),
        ] {
            assert_eq!(parse_look(text), expected, "{text:?}");
        }
    }

    #[test]
    fn the_shells_own_messages_name_lines() {
        for (message, line) in [
            ("a.sh: 12: foo: not found", Some(12)),
            ("a.sh: line 3: x: unbound variable", Some(3)),
            ("a.sh: 0: x", None),
            ("a.sh: foo: bar", None),
            ("b.sh: 12: foo: not found", None),
        ] {
            assert_eq!(line_in_message(message, "a.sh"), line, "{message}");
        }
    }

    #[test]
    fn variable_names_are_checked() {
        for (name, good) in
            [("A_1", true), ("_", true), ("1A", false), ("A-B", false), ("", false), ("A B", false)]
        {
            assert_eq!(is_variable_name(name), good, "{name}");
        }
    }
}
