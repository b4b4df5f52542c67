//! The file locks of guests: exclusive for changes, shared by the source of a clone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::clock::Clock;
use crate::held;

/// Held as long as the file would stay locked.
#[derive(Debug)]
pub(crate) enum Guard {
    Exclusive(#[expect(dead_code, reason = "held for its drop")] OwnedRwLockWriteGuard<()>),
    Shared(#[expect(dead_code, reason = "held for its drop")] OwnedRwLockReadGuard<()>),
}

/// All file locks.
#[derive(Debug)]
pub(crate) struct Locks {
    clock: Clock,
    files: Mutex<BTreeMap<u32, Arc<RwLock<()>>>>,
}

impl Locks {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, files: Mutex::default() }
    }

    fn file(&self, vmid: u32) -> Arc<RwLock<()>> {
        let mut files = held(&self.files);
        Arc::clone(files.entry(vmid).or_default())
    }

    pub(crate) fn try_exclusive(&self, vmid: u32) -> Option<Guard> {
        self.file(vmid).try_write_owned().ok().map(Guard::Exclusive)
    }

    pub(crate) fn try_shared(&self, vmid: u32) -> Option<Guard> {
        self.file(vmid).try_read_owned().ok().map(Guard::Shared)
    }

    /// # Errors
    /// The server's text when the lock is not free within `seconds`.
    pub(crate) async fn exclusive(&self, vmid: u32, seconds: f64) -> Result<Guard, String> {
        let free = self.file(vmid).write_owned();
        match tokio::time::timeout(self.clock.span(seconds), free).await {
            Ok(guard) => Ok(Guard::Exclusive(guard)),
            Err(_) => Err(timed_out(vmid)),
        }
    }

    /// # Errors
    /// As [`Self::exclusive`].
    pub(crate) async fn shared(&self, vmid: u32, seconds: f64) -> Result<Guard, String> {
        let free = self.file(vmid).read_owned();
        match tokio::time::timeout(self.clock.span(seconds), free).await {
            Ok(guard) => Ok(Guard::Shared(guard)),
            Err(_) => Err(timed_out(vmid)),
        }
    }
}

fn timed_out(vmid: u32) -> String {
    format!("can't lock file '/var/lock/qemu-server/lock-{vmid}.conf' - got timeout")
}
