//! What runs on this machine.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::root::names;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    /// When it started: tells it from a later one with its number.
    pub(crate) since: u64,
}

/// Returns all processes but zombies (`/proc/PID/stat`).
pub(crate) fn processes() -> Vec<Process> {
    let numbers = names(Path::new("/proc")).into_iter().filter_map(|name| name.parse::<i32>().ok());
    let read = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        (!matches!(fields[0], "Z" | "X")).then_some(())?;
        Some(Process { pid, parent: fields[1].parse().ok()?, since: fields[19].parse().ok()? })
    };
    numbers.filter_map(read).collect()
}

pub(crate) fn command_line(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// Returns a process's children, their children, and so on.
pub(crate) fn descendants(pid: i32) -> Vec<Process> {
    let all = processes();
    let mut family = vec![pid];
    let mut found = Vec::new();
    while let Some(parent) = family.pop() {
        for child in all.iter().filter(|process| process.parent == parent) {
            family.push(child.pid);
            found.push(child.clone());
        }
    }
    found
}

/// Collects the command lines of all processes, as often as it can, while `work` is done.
pub(crate) fn watching_command_lines<T>(work: impl FnOnce() -> T) -> (T, HashSet<String>) {
    let stop = AtomicBool::new(false);
    let watch = || {
        let mut seen = HashSet::new();
        while !stop.load(Ordering::Relaxed) {
            let numbers = names(Path::new("/proc")).into_iter().filter_map(|name| name.parse().ok());
            seen.extend(numbers.map(command_line));
            thread::sleep(Duration::from_millis(5));
        }
        seen
    };
    thread::scope(|scope| {
        let watcher = scope.spawn(watch);
        let stop = StopOnDrop(&stop);
        let done = work();
        drop(stop);
        (done, watcher.join().unwrap())
    })
}

/// Stops the watching also when a test fails: a scope waits for its threads.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
