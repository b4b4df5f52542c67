//! Runs of the real forge.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::process::{Process, command_line, descendants};

/// How long nothing may happen in a build before a test gives it up: hashing a raw disk of 1 GiB
/// takes 20 s on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// A build that runs; killed with its test.
pub(crate) struct Build {
    pub(crate) child: Child,
    started: Instant,
    lines: Receiver<String>,
    seen: Vec<Value>,
    stdout: String,
    stderr: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

/// A build that has ended.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) wall: Duration,
    pub(crate) events: Vec<Value>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Build {
    pub(crate) fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let started = Instant::now();
        let mut child = command.spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            for line in stdout.lines() {
                let _test_has_ended = sender.send(line.unwrap());
            }
        });
        let mut pipe = child.stderr.take().unwrap();
        let stderr = Arc::new(Mutex::new(String::new()));
        let shared = Arc::clone(&stderr);
        let reader = thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut bytes) {
                shared.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        });
        Self { child, started, lines, seen: Vec::new(), stdout: String::new(), stderr, reader: Some(reader) }
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid()).unwrap(), signal).unwrap();
    }

    pub(crate) fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    /// Waits for the next event; `None` at the end.
    pub(crate) fn next_event(&mut self) -> Option<Value> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => {
                let event: Value = serde_json::from_str(&line).unwrap();
                self.stdout += &line;
                self.stdout.push('\n');
                self.seen.push(event.clone());
                Some(event)
            }
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                panic!("nothing happened for {PATIENCE:?}: {:#?}\n{}", self.seen.last(), self.stderr())
            }
        }
    }

    pub(crate) fn wait_for(&mut self, what: &str, so: impl Fn(&Value) -> bool) {
        while let Some(event) = self.next_event() {
            if so(&event) {
                return;
            }
        }
        panic!("the build ended before {what}:\n{}", self.stderr());
    }

    pub(crate) fn wait_for_step(&mut self, step: &str) {
        self.wait_for(step, |event| event["event"] == "step_started" && event["step"] == step);
    }

    /// Waits until forge has started a process whose command line holds all of that.
    pub(crate) fn wait_for_process(&self, words: &[&str]) {
        let is_it = |process: &Process| {
            let line = command_line(process.pid);
            words.iter().all(|word| line.contains(word))
        };
        wait_until(&format!("a process of {words:?}"), || descendants(self.pid()).iter().any(is_it));
    }

    pub(crate) fn wait_for_stderr(&self, text: &str) {
        wait_until(text, || self.stderr().contains(text));
    }

    pub(crate) fn finish(mut self) -> Ended {
        while self.next_event().is_some() {}
        let status = self.child.wait().unwrap();
        let wall = self.started.elapsed();
        self.reader.take().unwrap().join().unwrap();
        Ended {
            status,
            wall,
            events: std::mem::take(&mut self.seen),
            stdout: std::mem::take(&mut self.stdout),
            stderr: self.stderr(),
        }
    }
}

impl Drop for Build {
    fn drop(&mut self) {
        // Both fail when it has ended, and that is what is wanted.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

pub(crate) fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

impl Ended {
    pub(crate) fn assert_code(&self, code: i32) {
        assert_eq!(self.status.code(), Some(code), "{}\n{:#?}", self.stderr, self.events.last());
    }

    pub(crate) fn last(&self) -> &Value {
        self.events.last().expect("a build has events")
    }

    /// Returns the messages of all notes.
    pub(crate) fn notes(&self) -> impl Iterator<Item = &str> {
        let notes = self.events.iter().filter(|event| event["event"] == "note");
        notes.map(|note| note["message"].as_str().unwrap())
    }

    /// Returns the event with which a step ended.
    pub(crate) fn step(&self, step: &str) -> &Value {
        let end = self.events.iter().find(|it| it["event"] == "step_finished" && it["step"] == step);
        end.unwrap_or_else(|| panic!("{step} has not ended: {:#?}", self.events))
    }

    /// Makes sure that the spans follow one another without gaps and sum to the run's time.
    pub(crate) fn assert_spans_sum(&self) {
        let last = self.last();
        let seconds = last["seconds"].as_f64().unwrap();
        let spans = last["spans"].as_array().unwrap();
        let mut at = 0.0;
        for span in spans {
            assert!((span["start"].as_f64().unwrap() - at).abs() < 0.001, "a gap before {span}");
            at += span["seconds"].as_f64().unwrap();
        }
        assert!((at - seconds).abs() <= (0.01 * seconds).max(0.001), "spans sum to {at} of {seconds} s");
    }

    pub(crate) fn forges_share(&self) -> f64 {
        let spans = self.last()["spans"].as_array().unwrap();
        let own = spans.iter().filter(|span| span["worker"] == "forge");
        own.map(|span| span["seconds"].as_f64().unwrap()).sum()
    }
}
