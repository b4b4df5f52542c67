//! Destroys a VM, if it still is the one that is meant.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::pve::{Error, HELD, Vm, VmConfig};

/// What became of a VM that was to be destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Destroyed {
    /// It is gone, or was not there.
    Gone,
    /// It has been left as it is.
    NotOurs,
}

/// Says of a configuration whether it is that of the VM that is meant.
pub(super) type Ours<'o> = &'o (dyn Fn(&VmConfig) -> bool + Send + Sync);

/// Stops and destroys a VM, reading its configuration anew before each. `limit` is for each of the two
/// tasks.
///
/// It is looked at again after what passes: one that is just starting seems stopped, and runs when its
/// turn to be destroyed comes.
///
/// # Errors
/// When something else holds it for long, or Proxmox refuses.
pub(super) async fn destroy_if(vm: &Vm, limit: Duration, ours: Ours<'_>) -> Result<Destroyed, Error> {
    let pace = vm.client().pace();
    let deadline = Instant::now() + HELD;
    let mut pause = pace.task;
    loop {
        let error = match attempt(vm, limit, ours).await {
            Ok(destroyed) => return Ok(destroyed),
            Err(error) => error,
        };
        // Somebody else was faster, or an answer was lost on the way.
        if matches!(config(vm).await, Ok(None)) {
            return Ok(Destroyed::Gone);
        }
        if !is_worth_another_look(&error) || Instant::now() + pause >= deadline {
            return Err(error);
        }
        sleep(pause).await;
        pause = (pause * 2).min(pace.agent_silent);
    }
}

async fn attempt(vm: &Vm, limit: Duration, ours: Ours<'_>) -> Result<Destroyed, Error> {
    let client = vm.client();
    if let Some(already) = look(vm, ours).await? {
        return Ok(already);
    }
    if vm.status().await?.is_running() {
        client.wait(&vm.stop().await?, limit, None).await?;
        if let Some(meanwhile) = look(vm, ours).await? {
            return Ok(meanwhile);
        }
    }
    client.wait(&vm.destroy().await?, limit, None).await?;
    Ok(Destroyed::Gone)
}

/// Says what has become of it, unless it is to be destroyed.
async fn look(vm: &Vm, ours: Ours<'_>) -> Result<Option<Destroyed>, Error> {
    Ok(match config(vm).await? {
        None => Some(Destroyed::Gone),
        Some(config) => (!ours(&config)).then_some(Destroyed::NotOurs),
    })
}

fn is_worth_another_look(error: &Error) -> bool {
    const RUNS: &str = " is running - destroy failed";
    match error {
        Error::Unknown { .. } | Error::Busy { .. } => true,
        Error::Refused { message, .. } => message.contains(RUNS),
        Error::TaskFailed { exitstatus, .. } => error.is_passing() || exitstatus.contains(RUNS),
        _ => false,
    }
}

/// Returns a VM's configuration; nothing when there is none.
pub(super) async fn config(vm: &Vm) -> Result<Option<VmConfig>, Error> {
    match vm.config().await {
        Ok(config) => Ok(Some(config)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}
