//! The log of requests, for tests to read.

use std::sync::Mutex;
use std::time::{Instant, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::held;

/// One request and its answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// `GET`, …
    pub method: String,
    /// The path below `/api2/json`; a whole path for anything else.
    pub path: String,
    /// The endpoint's path in the published schema, when it has one.
    pub endpoint: Option<String>,
    /// Everything given in the path, query and body; secrets are replaced.
    pub params: Map<String, Value>,
    /// User or token, once known.
    pub who: Option<String>,
    /// 0 until there is one, and when there never is.
    pub status: u16,
    /// The reason beside it.
    pub reason: String,
    /// Milliseconds since the simulator was started.
    pub started_ms: u64,
    /// When the answer began to be sent, or the connection was dropped. Not later: who has the answer may
    /// have asked for the next thing before this end knows that it is sent.
    pub ended_ms: Option<u64>,
    /// The task that it started.
    pub upid: Option<String>,
    /// When that task was over.
    pub task_ended_ms: Option<u64>,
}

/// Parameters that are never written down.
const SECRET: &[&str] =
    &["password", "cipassword", "confirmation-password", "vncticket", "otp", "tfa-challenge"];

/// All requests so far.
#[derive(Debug)]
pub(crate) struct Record {
    since: Instant,
    pub(crate) began: SystemTime,
    requests: Mutex<Vec<Request>>,
}

impl Record {
    pub(crate) fn new() -> Self {
        Self { since: Instant::now(), began: SystemTime::now(), requests: Mutex::default() }
    }

    fn now(&self) -> u64 {
        self.since.elapsed().as_millis() as u64
    }

    /// Notes the start of a request; returns its number.
    pub(crate) fn begin(&self, method: &str, path: &str) -> usize {
        let mut requests = held(&self.requests);
        requests.push(Request {
            method: method.into(),
            path: path.into(),
            endpoint: None,
            params: Map::new(),
            who: None,
            status: 0,
            reason: String::new(),
            started_ms: self.now(),
            ended_ms: None,
            upid: None,
            task_ended_ms: None,
        });
        requests.len() - 1
    }

    pub(crate) fn note(&self, number: usize, change: impl FnOnce(&mut Request)) {
        if let Some(request) = held(&self.requests).get_mut(number) {
            change(request);
        }
    }

    pub(crate) fn params(&self, number: usize, given: &Map<String, Value>) {
        let mut params = given.clone();
        for (key, value) in &mut params {
            if SECRET.contains(&key.as_str()) {
                *value = json!("<redacted>");
            }
        }
        self.note(number, |request| request.params = params);
    }

    pub(crate) fn end(&self, number: usize, status: u16, reason: &str) {
        let now = self.now();
        self.note(number, |request| {
            request.status = status;
            request.reason = reason.into();
            request.ended_ms = Some(now);
        });
    }

    pub(crate) fn task_ended(&self, upid: &str) {
        let now = self.now();
        let mut requests = held(&self.requests);
        for request in requests.iter_mut().filter(|request| request.upid.as_deref() == Some(upid)) {
            request.task_ended_ms = Some(now);
        }
    }

    pub(crate) fn all(&self) -> Vec<Request> {
        held(&self.requests).clone()
    }
}
