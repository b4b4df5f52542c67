//! One command inside a root.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;
use std::{fs, io};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin};
use tokio::time::timeout;

use super::END;
use super::namespaces::{Namespaces, Tools};
use crate::communicator::{Exec, Failure, GET_FILE_MAX, Output, environment};

const ENTER: &str = include_str!("enter.sh");

/// How long after a command's end its output is read, where a process that it left behind keeps that open.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// The most bytes of each of a command's outputs that are kept.
const OUTPUT_MAX: usize = GET_FILE_MAX;

/// Runs a command inside and returns its result; nothing when it was ended at its deadline, with all its
/// processes.
pub(super) async fn run(
    tools: &Tools,
    inside: &Namespaces,
    command: &Exec,
) -> Result<Option<Output>, Failure> {
    let mark = uuid::Uuid::new_v4().simple().to_string();
    if command.argv.is_empty() {
        return Err(Failure::Refused("the command is empty".to_owned()));
    }
    let env = environment(command).map_err(Failure::Refused)?;
    let mut process = tools.enter(inside, ENTER);
    process.arg(&mark).args(&command.argv).env("FORGE_ENV", env);
    let mut child = process.spawn().map_err(|error| match error.kind() {
        // An argument with a NUL, or more of them than the kernel takes.
        io::ErrorKind::InvalidInput | io::ErrorKind::ArgumentListTooLong => {
            Failure::Refused(error.to_string())
        }
        _ => Failure::NotSent(error.to_string()),
    })?;
    let session = Session::of(&child);
    let (mut stdout, mut stderr) = (Captured::default(), Captured::default());
    let ended = timeout(command.timeout, follow(&mut child, &command.stdin, &mut stdout, &mut stderr)).await;
    let Ok(status) = ended else {
        drop(session);
        let _reaped = timeout(END, child.wait()).await;
        return Ok(None);
    };
    session.leave();
    let status = status.map_err(|error| Failure::Lost(error.to_string()))?;
    output(status, stdout, &stderr, &mark).map(Some)
}

/// Tells whether a command may have ended with all others.
pub(super) fn was_killed(output: &Output) -> bool {
    output.signal == Some(Signal::KILL.as_raw())
}

/// Feeds a command and reads what it prints, until it has ended.
async fn follow(
    child: &mut Child,
    input: &[u8],
    stdout: &mut Captured,
    stderr: &mut Captured,
) -> io::Result<ExitStatus> {
    let (stdin, out, err) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let streams = async { tokio::join!(feed(stdin, input), stdout.read(out), stderr.read(err)) };
    tokio::pin!(streams);
    tokio::select! {
        biased;
        _ = &mut streams => child.wait().await,
        status = child.wait() => {
            let _still_open = timeout(LAST_WORDS, streams).await;
            status
        }
    }
}

async fn feed(stdin: Option<ChildStdin>, input: &[u8]) {
    if let Some(mut stdin) = stdin {
        // A command need not read its input.
        stdin.write_all(input).await.ok();
    }
}

/// What a command has printed.
#[derive(Default)]
struct Captured {
    bytes: Vec<u8>,
    truncated: bool,
}

impl Captured {
    /// Reads to the end, and keeps what there is room for.
    async fn read(&mut self, stream: Option<impl AsyncRead + Unpin>) {
        let Some(mut stream) = stream else { return };
        let mut piece = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = stream.read(&mut piece).await {
            let kept = count.min(OUTPUT_MAX - self.bytes.len());
            self.bytes.extend_from_slice(&piece[..kept]);
            self.truncated |= kept < count;
        }
    }
}

/// Returns what a command's end and its output mean; see `enter.sh` for the mark.
fn output(status: ExitStatus, stdout: Captured, stderr: &Captured, mark: &str) -> Result<Output, Failure> {
    let line = format!("{mark}\n").into_bytes();
    let begun = stderr.bytes.windows(line.len()).position(|window| window == line);
    let Some(begun) = begun else {
        return Err(Failure::NotSent(String::from_utf8_lossy(&stderr.bytes).trim().to_owned()));
    };
    let said = &stderr.bytes[begun + line.len()..];
    if let Some(said) = said.strip_suffix(&line[..]) {
        let reason = String::from_utf8_lossy(said).replace(&format!("{mark}: "), "");
        return Err(Failure::Refused(reason.trim().to_owned()));
    }
    Ok(Output {
        code: status.code(),
        signal: status.signal(),
        stdout: stdout.bytes,
        stderr: said.to_vec(),
        truncated: stdout.truncated || stderr.truncated,
    })
}

/// A command's processes: those of its session, and their descendants. Dropping it kills them, so that a
/// call that is given up leaves none behind.
#[derive(Debug)]
struct Session(Option<u32>);

impl Session {
    /// Returns the session of a process that leads one.
    fn of(leader: &Child) -> Self {
        Self(leader.id())
    }

    /// Leaves what the command has left running.
    fn leave(mut self) {
        self.0 = None;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let Some(leader) = self.0 else { return };
        // What a process started while the list was made is found the next time.
        for _ in 0..100 {
            let members = members(leader);
            if members.is_empty() {
                return;
            }
            for process in members {
                process.kill();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A process, as `/proc` tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: u32,
    parent: u32,
    session: u32,
    started: u64,
}

impl Process {
    /// Reads of a process that lives: one that is dead and not buried is none.
    fn read(pid: u32) -> Option<Self> {
        Self::parse(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Parses `/proc/PID/stat`, proc(5). The name in it may itself hold blanks and brackets.
    fn parse(pid: u32, stat: &str) -> Option<Self> {
        let words: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let [state, parent, _, session] = words.get(..4)?.try_into().ok()?;
        if matches!(state, "Z" | "X") {
            return None;
        }
        let started = words.get(19)?.parse().ok()?;
        Some(Self { pid, parent: parent.parse().ok()?, session: session.parse().ok()?, started })
    }

    /// Kills it, and no other process that has got its number.
    fn kill(self) {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return };
        if let Ok(handle) = pidfd_open(pid, PidfdFlags::empty())
            && Self::read(self.pid).is_some_and(|now| now.started == self.started)
        {
            pidfd_send_signal(&handle, Signal::KILL).ok();
        }
    }
}

/// Returns the living processes of a session, and their descendants.
fn members(leader: u32) -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let all: Vec<Process> = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(Process::read)
        .collect();
    belonging(leader, &all)
}

fn belonging(leader: u32, all: &[Process]) -> Vec<Process> {
    let mut found: Vec<Process> = all.iter().copied().filter(|it| it.session == leader).collect();
    let mut next = 0;
    while next < found.len() {
        let parent = found[next].pid;
        let children = all.iter().filter(|it| it.parent == parent);
        let children: Vec<Process> = children.filter(|it| !found.contains(it)).copied().collect();
        found.extend(children);
        next += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_read_whatever_their_names_are() {
        let numbers = "1 7 5 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 900 0 0";
        let process = Process { pid: 9, parent: 1, session: 5, started: 900 };
        assert_eq!(Process::parse(9, &format!("9 (a) S 3 4) S {numbers}")), Some(process));
        assert_eq!(Process::parse(9, &format!("9 (a) Z {numbers}")), None);
        assert_eq!(Process::parse(9, "9 (a"), None);
    }

    #[test]
    fn a_session_and_its_descendants_belong_together() {
        let process = |pid, parent, session| Process { pid, parent, session, started: 0 };
        let all = [
            process(10, 1, 10),
            process(11, 10, 10),
            process(12, 11, 12),
            process(13, 12, 13),
            process(14, 1, 10),
            process(20, 1, 20),
        ];
        let pids: Vec<u32> = belonging(10, &all).iter().map(|it| it.pid).collect();
        assert_eq!(pids, [10, 11, 14, 12, 13]);
    }

    #[test]
    fn marks_tell_what_began_and_what_is_not_there() {
        let ended = |stderr: &str| {
            let captured = Captured { bytes: stderr.into(), truncated: false };
            output(ExitStatus::from_raw(0), Captured::default(), &captured, "M")
        };
        assert!(matches!(ended("M\nwarning\n"), Ok(it) if it.stderr == b"warning\n"));
        assert!(
            matches!(ended("nsenter: fork failed\n"), Err(Failure::NotSent(why)) if why == "nsenter: fork failed")
        );
        assert!(
            matches!(ended("M\nM: 8: exec: x: not found\nM\n"), Err(Failure::Refused(why)) if why == "8: exec: x: not found")
        );
    }
}
