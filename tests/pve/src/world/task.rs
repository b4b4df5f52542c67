//! Tasks: their UPIDs, logs and ends.

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::access::Identity;

/// What identifies a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Upid {
    pub(crate) node: String,
    pub(crate) pid: u32,
    pub(crate) pstart: u32,
    pub(crate) starttime: i64,
    pub(crate) kind: String,
    pub(crate) id: String,
    pub(crate) user: String,
}

impl std::fmt::Display for Upid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { node, pid, pstart, starttime, kind, id, user } = self;
        write!(f, "UPID:{node}:{pid:08X}:{pstart:08X}:{starttime:08X}:{kind}:{id}:{user}:")
    }
}

impl Upid {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let ["UPID", node, pid, pstart, starttime, kind, id, user, ""] = parts.as_slice() else {
            return None;
        };
        let hex = |text: &str, widest: usize| {
            let right = (8..=widest).contains(&text.len());
            right.then(|| u64::from_str_radix(text, 16).ok()).flatten()
        };
        Some(Self {
            node: (*node).to_owned(),
            pid: hex(pid, 8)? as u32,
            pstart: hex(pstart, 9)? as u32,
            starttime: hex(starttime, 8)?.cast_signed(),
            kind: (*kind).to_owned(),
            id: (*id).to_owned(),
            user: (*user).to_owned(),
        })
    }

    pub(crate) fn identity(&self) -> Identity {
        Identity::parse(&self.user)
    }
}

/// One task, running or over.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) upid: Upid,
    pub(crate) log: Vec<String>,
    /// `OK`, `WARNINGS: n` or the error's text, once it is over.
    pub(crate) end: Option<(String, i64)>,
    pub(crate) warnings: u32,
    /// Set to ask the worker to stop.
    pub(crate) cancel: watch::Sender<bool>,
    /// Kills the worker.
    pub(crate) abort: Option<AbortHandle>,
}

impl Task {
    pub(crate) fn new(upid: Upid) -> Self {
        Self { upid, log: Vec::new(), end: None, warnings: 0, cancel: watch::Sender::new(false), abort: None }
    }

    /// Ends the task as its worker's result says.
    pub(crate) fn finish(&mut self, result: Result<(), String>, now: i64) {
        let status = match result {
            Err(text) => {
                let text = text.trim_end().replace('\n', " ");
                self.log.push(format!("TASK ERROR: {text}"));
                text
            }
            Ok(()) if self.warnings > 0 => {
                let status = format!("WARNINGS: {}", self.warnings);
                self.log.push(format!("TASK {status}"));
                status
            }
            Ok(()) => {
                self.log.push("TASK OK".into());
                "OK".into()
            }
        };
        self.end = Some((status, now));
    }

    fn facts(&self) -> Value {
        let Upid { node, pid, pstart, starttime, kind, id, .. } = &self.upid;
        json!({
            "upid": self.upid.to_string(), "node": node, "pid": pid, "pstart": pstart,
            "starttime": starttime, "type": kind, "id": id,
        })
    }

    fn add_owner(&self, facts: &mut Value) {
        let who = self.upid.identity();
        facts["user"] = json!(who.user);
        if let Some(token) = who.token {
            facts["tokenid"] = json!(token);
        }
    }

    /// `GET …/status`.
    pub(crate) fn status(&self) -> Value {
        let mut status = self.facts();
        self.add_owner(&mut status);
        status["status"] = json!(if self.end.is_some() { "stopped" } else { "running" });
        if let Some((end, _)) = &self.end {
            status["exitstatus"] = json!(end);
        }
        status
    }

    /// A line of the list; running ones carry the whole token in `user`.
    pub(crate) fn row(&self) -> Value {
        let mut row = self.facts();
        if let Some((status, endtime)) = &self.end {
            self.add_owner(&mut row);
            row["status"] = json!(status);
            row["endtime"] = json!(endtime);
        } else {
            row["user"] = json!(self.upid.user);
            row["status"] = json!("RUNNING");
            row["saved"] = json!("0");
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_upid_is_read_back_as_it_was_written() {
        let text = "UPID:pve1:0012D687:05F5E0FF:68E77800:qmcreate:9000:forge@pve!ci:";
        let upid = Upid::parse(text).unwrap();
        assert_eq!(upid.to_string(), text);
        assert_eq!(upid.identity().token.as_deref(), Some("ci"));
        for wrong in ["nonsense", &text[..text.len() - 1], "UPID:a:1:2:3:t:i:u:"] {
            assert_eq!(Upid::parse(wrong), None, "{wrong}");
        }
    }
}
