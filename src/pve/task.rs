//! Tasks: the work that a call leaves to the node, named by a UPID.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::call::Call;
use super::client::understand;
use super::{Client, Error, NodeName, Vmid, loose};

/// How many of a failed task's last log lines its error carries.
const LOG_LINES: usize = 8;

/// The name of a task: `UPID:NODE:PID:PSTART:STARTTIME:TYPE:ID:USER:` (pve-common, `src/PVE/UPID.pm`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Upid {
    text: String,
    node: NodeName,
    started: i64,
    kind: String,
    id: String,
    user: String,
    is_found: bool,
}

impl Upid {
    /// Returns the node that it runs on, which alone knows its state.
    #[must_use]
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// Returns when it began, by the node's clock, in seconds since 1970.
    #[must_use]
    pub fn started(&self) -> i64 {
        self.started
    }

    /// Returns its type, such as `qmcreate`.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Returns what it works on: a VMID, a file name, or nothing.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns who began it: `USER@REALM`, with `!TOKENID` for a token.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Tells whether no answer has named it: it was found in the node's list after one was lost, and may
    /// be another machine's with the same token.
    #[must_use]
    pub fn is_found(&self) -> bool {
        self.is_found
    }

    /// Returns the whole text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Upid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Why a text is no UPID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no UPID")]
pub struct BadUpid(String);

impl FromStr for Upid {
    type Err = BadUpid;

    fn from_str(text: &str) -> Result<Self, BadUpid> {
        let parsed = || {
            let parts: Vec<&str> = text.split(':').collect();
            let ["UPID", node, pid, pstart, start, kind, id, user, ""] = parts[..] else { return None };
            let hex =
                |text: &str| i64::from_str_radix(text, 16).ok().filter(|_| (8..=9).contains(&text.len()));
            hex(pid).and(hex(pstart))?;
            let plain = |text: &str| !text.is_empty() && !text.contains(['/', ' ']);
            (plain(kind) && plain(user)).then_some(())?;
            Some(Self {
                text: text.to_owned(),
                node: node.parse().ok()?,
                started: hex(start)?,
                kind: kind.to_owned(),
                id: id.to_owned(),
                user: user.to_owned(),
                is_found: false,
            })
        };
        parsed().ok_or_else(|| BadUpid(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for Upid {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Upid {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

/// How a task is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskState {
    /// It runs.
    Running,
    /// It has done what it was to do.
    Done(Ending),
    /// It has failed, in Proxmox's words.
    Failed(String),
}

/// How a task that succeeded ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Without a complaint.
    Ok,
    /// With so many warnings, which are in its log.
    Warnings(u32),
}

impl TaskState {
    fn of_exit(text: &str) -> Self {
        if text == "OK" {
            return Self::Done(Ending::Ok);
        }
        match text.strip_prefix("WARNINGS: ").and_then(|count| count.parse().ok()) {
            Some(count) => Self::Done(Ending::Warnings(count)),
            None => Self::Failed(text.to_owned()),
        }
    }
}

#[derive(Deserialize)]
struct StatusAnswer {
    status: String,
    #[serde(default)]
    exitstatus: Option<String>,
}

/// A piece of a task's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskLog {
    /// The lines, without their ends.
    pub lines: Vec<String>,
    /// Where the next piece begins.
    pub next: u64,
}

#[derive(Deserialize)]
struct LogLine {
    #[serde(default, deserialize_with = "loose::text")]
    t: String,
}

/// A task in a node's list.
#[derive(Debug, Clone, Deserialize)]
pub struct TaskEntry {
    /// Its name, with its type, VMID and time.
    pub upid: Upid,
    /// `RUNNING`, or how it ended; nothing while a node does not know.
    #[serde(default)]
    pub status: Option<String>,
}

impl TaskEntry {
    /// Returns how the task is.
    #[must_use]
    pub fn state(&self) -> TaskState {
        match self.status.as_deref() {
            None | Some("" | "RUNNING") => TaskState::Running,
            Some(text) => TaskState::of_exit(text),
        }
    }
}

/// Which tasks of a node to list.
#[derive(Debug, Clone, Default)]
pub struct TaskFilter<'a> {
    /// Only those of this VM.
    pub vmid: Option<Vmid>,
    /// Only those of this type, such as `qmcreate`.
    pub kind: Option<&'a str>,
    /// Only those that began at this time or later, in seconds since 1970 by the node's clock.
    pub since: Option<i64>,
}

/// Takes a task's log line by line.
pub type OnLine<'a> = &'a (dyn Fn(&str) + Send + Sync);

impl Client {
    /// Returns how a task is.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the node knows no such task.
    pub async fn task_state(&self, upid: &Upid) -> Result<TaskState, Error> {
        let call = Call::get("/nodes/{node}/tasks/{upid}/status").at(&upid.node).at(upid);
        let answer: StatusAnswer = self.ask(call).await?;
        if answer.status != "stopped" {
            return Ok(TaskState::Running);
        }
        Ok(TaskState::of_exit(answer.exitstatus.as_deref().unwrap_or("unexpected status")))
    }

    /// Returns a task's log from a line on, counting from 0.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the node knows no such task.
    pub async fn task_log(&self, upid: &Upid, start: u64) -> Result<TaskLog, Error> {
        let call = Call::get("/nodes/{node}/tasks/{upid}/log").at(&upid.node).at(upid);
        let call = call.query("start", start).query("limit", 0);
        let what = call.to_string();
        let value = self.call(call).await?;
        parse_log(what, value, start)
    }

    /// Ends a task: it is told to stop and, 5 s later, killed. One that is over is left as it is.
    pub async fn stop_task(&self, upid: &Upid) -> Result<(), Error> {
        let call = Call::delete("/nodes/{node}/tasks/{upid}").at(&upid.node).at(upid);
        self.call(call).await.map(drop)
    }

    /// Lists a node's tasks, the newest first; those of others only with Sys.Audit on the node.
    pub async fn tasks(&self, node: &NodeName, filter: &TaskFilter<'_>) -> Result<Vec<TaskEntry>, Error> {
        let call = Call::get("/nodes/{node}/tasks").at(node).query("source", "all").query("limit", 500);
        let call = call.query_if("vmid", filter.vmid).query_if("typefilter", filter.kind);
        self.ask(call.query_if("since", filter.since)).await
    }

    /// Waits for a task to end. A question that has no good answer says nothing about the task: it is asked
    /// again, unless nobody would ever be told.
    ///
    /// `on_line` gets its log as it grows; without it the log is only read after a failure.
    ///
    /// # Errors
    /// [`Error::TaskFailed`], [`Error::Deadline`] (the task goes on then), and what forbids to ask.
    pub async fn wait(
        &self,
        upid: &Upid,
        limit: Duration,
        on_line: Option<OnLine<'_>>,
    ) -> Result<Ending, Error> {
        let deadline = Instant::now() + limit;
        let mut pause = self.pace().task;
        let mut seen = 0;
        loop {
            let (state, trouble) = match self.task_state(upid).await {
                Ok(state) => (state, None),
                Err(
                    error @ (Error::NotFound { .. }
                    | Error::Forbidden { .. }
                    | Error::Unauthorized { .. }
                    | Error::Tls { .. }),
                ) => return Err(error),
                Err(error) => (TaskState::Running, Some(error)),
            };
            if let Some(on_line) = on_line
                && let Ok(log) = self.task_log(upid, seen).await
            {
                log.lines.iter().for_each(|line| on_line(line));
                seen = log.next;
            }
            match state {
                TaskState::Done(ending) => return Ok(ending),
                TaskState::Failed(exitstatus) => return Err(self.task_failed(upid, exitstatus).await),
                TaskState::Running => {}
            }
            let now = Instant::now();
            if now >= deadline {
                let trouble = trouble.map(|error| format!(" (when last asked: {error})")).unwrap_or_default();
                return Err(Error::Deadline { what: format!("task {upid}{trouble}"), after: limit });
            }
            sleep(pause.min(deadline - now)).await;
            pause = (pause * 2).min(self.pace().task_max);
        }
    }

    async fn task_failed(&self, upid: &Upid, exitstatus: String) -> Error {
        let log = self.task_log(upid, 0).await.map(|log| log.lines).unwrap_or_default();
        let log = log[log.len().saturating_sub(LOG_LINES)..].to_vec();
        Error::TaskFailed { upid: Box::new(upid.clone()), exitstatus, log }
    }

    /// Makes a call that leaves its work to a task. When the answer is lost, the task is looked for in
    /// the node's list: by its type, what it works on, who began it and when.
    pub(super) async fn start_task(
        &self,
        call: Call,
        node: &NodeName,
        kind: &str,
        id: &str,
    ) -> Result<Upid, Error> {
        let begun = Instant::now();
        let started = match self.ask::<Upid>(call).await {
            Err(lost @ Error::Unknown { .. }) => {
                let found = self.find_lost(node, kind, id, begun).await;
                found.map(|upid| Upid { is_found: true, ..upid }).ok_or(lost)
            }
            answer => answer,
        };
        if let Ok(upid) = &started {
            self.remember(upid);
        }
        started
    }

    /// Looks for a task of ours that no answer has named yet.
    pub(super) async fn find_lost(
        &self,
        node: &NodeName,
        kind: &str,
        id: &str,
        begun: Instant,
    ) -> Option<Upid> {
        let deadline = Instant::now() + self.pace().settle;
        loop {
            let since = self.server_now(node).await - begun.elapsed().as_secs().cast_signed() - 1;
            let filter = TaskFilter { vmid: id.parse().ok(), kind: Some(kind), since: Some(since) };
            let listed = self.tasks(node, &filter).await.unwrap_or_default();
            let ours = |upid: &Upid| {
                upid.kind == kind && upid.id == id && upid.user == self.who() && !self.remembers(upid)
            };
            if let Some(upid) = listed.into_iter().map(|task| task.upid).find(|upid| ours(upid)) {
                return Some(upid);
            }
            if Instant::now() >= deadline {
                return None;
            }
            sleep(self.pace().task_max).await;
        }
    }

    /// Returns the time by the server's clock, in seconds since 1970.
    async fn server_now(&self, node: &NodeName) -> i64 {
        let local = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let local = local.as_secs().cast_signed();
        match self.clock_ahead() {
            Some(ahead) => local + ahead,
            None => self.time(node).await.unwrap_or(local),
        }
    }
}

fn parse_log(what: String, value: Value, start: u64) -> Result<TaskLog, Error> {
    if value.is_object() {
        // So Proxmox answers for a task that it does not know.
        return Err(Error::NotFound { what, message: "no such task".to_owned() });
    }
    let lines: Vec<LogLine> = understand(what, value)?;
    let mut lines: Vec<String> = lines.into_iter().map(|line| line.t).collect();
    if start == 0 && lines == ["no content"] {
        lines.clear();
    }
    let next = start + lines.len() as u64;
    Ok(TaskLog { lines, next })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TEXT: &str = "UPID:pve1:0012D687:05F5E0FF:68E77800:qmcreate:9000:forge@pve!ci:";

    #[test]
    fn a_upid_tells_what_it_names() {
        let upid: Upid = TEXT.parse().unwrap();
        assert_eq!(
            (upid.node().as_str(), upid.kind(), upid.id(), upid.user(), upid.started()),
            ("pve1", "qmcreate", "9000", "forge@pve!ci", 0x68E7_7800)
        );
        assert_eq!(upid.to_string(), TEXT);
        let without_id: Upid =
            "UPID:pve1:000014B0:0008D88E:6B014E57:imgcopy::root@pam!full:".parse().unwrap();
        assert_eq!(without_id.id(), "");
        for text in [
            "",
            "OK",
            "UPID:pve1:0012D687:05F5E0FF:68E77800:qmcreate:9000:forge@pve!ci",
            "UPID:pve1:0012D687:05F5E0FF:68E77800::9000:forge@pve!ci:",
            "UPID:pve 1:0012D687:05F5E0FF:68E77800:qmcreate:9000:forge@pve!ci:",
            "UPID:pve1:12D687:05F5E0FF:68E77800:qmcreate:9000:forge@pve!ci:",
        ] {
            assert!(text.parse::<Upid>().is_err(), "{text}");
        }
    }

    #[test]
    fn warnings_are_a_success_and_everything_else_is_none() {
        assert_eq!(TaskState::of_exit("OK"), TaskState::Done(Ending::Ok));
        assert_eq!(TaskState::of_exit("WARNINGS: 2"), TaskState::Done(Ending::Warnings(2)));
        for text in ["WARNINGS: many", "unexpected status", "OK ", "received interrupt"] {
            assert_eq!(TaskState::of_exit(text), TaskState::Failed(text.to_owned()));
        }
    }

    #[test]
    fn logs_are_read_from_where_the_last_piece_ended() {
        let parse = |value, start| parse_log("x".to_owned(), value, start);
        let log = parse(json!([{"n": 6, "t": "a"}, {"n": 7, "t": "TASK OK"}]), 5).unwrap();
        assert_eq!((log.lines.join("|").as_str(), log.next), ("a|TASK OK", 7));
        assert_eq!(parse(json!([{"n": 1, "t": "no content"}]), 0).unwrap().next, 0);
        assert!(parse(json!({"n": 1, "t": "unable to open file"}), 0).unwrap_err().is_not_found());
    }
}
