//! The workers behind UPIDs.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::watch;

use crate::answer::{Answer, Reply};
use crate::fault::Action;
use crate::sim::{Call, Sim};
use crate::strike::take_vmid;
use crate::world::lock::Guard;
use crate::world::task::{Task, Upid};

/// A task's own side: its log, its interruption, and what a test wants to go wrong.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) sim: Arc<Sim>,
    pub(crate) upid: Upid,
    cancel: watch::Receiver<bool>,
    fault: Option<Action>,
}

impl Call {
    /// Starts a task on the call's node; its UPID is the call's answer.
    pub(crate) fn fork<F, W>(&self, kind: &str, id: &str, work: F) -> String
    where
        F: FnOnce(Worker) -> W,
        W: Future<Output = Result<(), String>> + Send + 'static,
    {
        let now = self.sim.clock.now();
        let (upid, cancel) = {
            let mut world = self.sim.world();
            let upid = world.new_upid(&self.node, kind, id, &self.who, now);
            let task = Task::new(upid.clone());
            let cancel = task.cancel.subscribe();
            world.tasks.push(task);
            (upid, cancel)
        };
        let name = upid.to_string();
        self.sim.record.note(self.record, |request| request.upid = Some(name.clone()));
        let sim = Arc::clone(&self.sim);
        let fault = self.fault.clone();
        let done_first = matches!(&fault, Some(Action::TaskFails { done: true, .. }));
        let late = if done_first { fault.clone() } else { None };
        let worker = Worker {
            sim: Arc::clone(&sim),
            upid: upid.clone(),
            cancel,
            fault: fault.filter(|_| !done_first),
        };
        let work = work(worker);
        let work = tokio::spawn(async move {
            let mut result = work.await;
            if let (Ok(()), Some(Action::TaskFails { text, .. })) = (&result, late) {
                result = Err(text);
            }
            let end = sim.clock.now();
            if let Some(task) = sim.world().task_mut(&upid)
                && task.end.is_none()
            {
                task.finish(result, end);
            }
            sim.record.task_ended(&upid.to_string());
        });
        if let Some(task) = self.sim.world().tasks.last_mut() {
            task.abort = Some(work.abort_handle());
        }
        name
    }

    /// As [`Self::fork`], as an answer.
    #[expect(clippy::unnecessary_wraps, reason = "it stands where an answer is wanted")]
    pub(crate) fn task<F, W>(&self, kind: &str, id: &str, work: F) -> Answer
    where
        F: FnOnce(Worker) -> W,
        W: Future<Output = Result<(), String>> + Send + 'static,
    {
        Ok(Reply::Data(Value::String(self.fork(kind, id, work))))
    }
}

impl Worker {
    pub(crate) fn log(&self, line: impl Into<String>) {
        let line = line.into();
        if let Some(task) = self.sim.world().task_mut(&self.upid) {
            task.log.extend(line.split('\n').map(String::from));
        }
    }

    pub(crate) fn warn(&self, line: &str) {
        self.log(format!("WARN: {line}"));
        if let Some(task) = self.sim.world().task_mut(&self.upid) {
            task.warnings += 1;
        }
    }

    /// Where a test's fault strikes: after the task has taken hold of things, before its work.
    ///
    /// # Errors
    /// The fault's text, or the interruption of a task that hangs.
    pub(crate) async fn fault_point(&self) -> Result<(), String> {
        match &self.fault {
            Some(Action::TaskFails { text, .. }) => Err(text.clone()),
            Some(Action::TaskHangs { deaf: true }) => std::future::pending().await,
            Some(Action::TaskHangs { deaf: false }) => {
                self.cancelled().await;
                Err("received interrupt".into())
            }
            Some(Action::TaskWarns { count }) => {
                (0..*count).for_each(|_| self.warn("as a test wants it"));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Where somebody else may be faster than a clone's task.
    pub(crate) fn taken_point(&self, vmid: u32) {
        if let Some(Action::VmidTaken { kind, node, .. }) = &self.fault {
            take_vmid(&self.sim, vmid, *kind, node.clone());
        }
    }

    /// Ends when somebody stops the task.
    pub(crate) async fn cancelled(&self) {
        let mut cancel = self.cancel.clone();
        // The sender lives in the world's list of tasks, which is never shortened.
        drop(cancel.wait_for(|stopped| *stopped).await);
    }

    /// Waits, unless the task is stopped.
    ///
    /// # Errors
    /// The interruption.
    pub(crate) async fn sleep(&self, seconds: f64) -> Result<(), String> {
        tokio::select! {
            () = self.sim.clock.sleep(seconds) => Ok(()),
            () = self.cancelled() => Err("received interrupt".into()),
        }
    }

    /// Takes a guest's file lock; a wait shows in the log.
    ///
    /// # Errors
    /// The server's text after 10 s.
    pub(crate) async fn lock(&self, vmid: u32) -> Result<Guard, String> {
        if let Some(guard) = self.sim.locks.try_exclusive(vmid) {
            return Ok(guard);
        }
        self.log("trying to acquire lock...");
        let guard = self.sim.locks.exclusive(vmid, 10.0).await?;
        self.log(" OK");
        Ok(guard)
    }

    /// As [`Self::lock`], beside others that only read.
    ///
    /// # Errors
    /// The server's text after 10 s.
    pub(crate) async fn lock_shared(&self, vmid: u32) -> Result<Guard, String> {
        if let Some(guard) = self.sim.locks.try_shared(vmid) {
            return Ok(guard);
        }
        self.log("trying to acquire lock...");
        let guard = self.sim.locks.shared(vmid, 10.0).await?;
        self.log(" OK");
        Ok(guard)
    }
}

/// Stops a task: asked first, killed after 5 s.
pub(crate) async fn stop(sim: &Sim, upid: &Upid) {
    if let Some(task) = sim.world().task_mut(upid) {
        task.cancel.send_replace(true);
    }
    let over = |sim: &Sim| sim.world().task(&upid.to_string()).is_none_or(|task| task.end.is_some());
    let mut waited = 0.0;
    while !over(sim) && waited < 5.0 {
        sim.clock.sleep(0.1).await;
        waited += 0.1;
    }
    let now = sim.clock.now();
    if let Some(task) = sim.world().task_mut(upid)
        && task.end.is_none()
    {
        if let Some(abort) = &task.abort {
            abort.abort();
        }
        task.end = Some(("unexpected status".into(), now));
        sim.record.task_ended(&upid.to_string());
    }
}

/// The lines of a task's log as `GET …/log` gives them.
pub(crate) fn log_page(lines: &[String], start: usize, limit: usize) -> Value {
    let numbered = lines.iter().enumerate().skip(start);
    let limit = if limit == 0 { usize::MAX } else { limit };
    numbered.take(limit).map(|(at, line)| json!({ "n": at + 1, "t": line })).collect()
}
