//! One machine of a build: its launch, its end, its last words.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::anyhow;

use super::host::{Host, Launch};
use crate::builder::calls::explain_silence;
use crate::builder::inputs::Prepared;
use crate::builder::workspace::Workspace;
use crate::builder::{BuildOptions, Kept, install, machine_folder};
use crate::communicator::socket_agent::SocketAgent;
use crate::definition::DiskFormat;
use crate::diagnosis;
use crate::event::{Worker, human_duration};
use crate::failure::{Failure, Kind, ResultExt as _};
use crate::plan::Plan;
use crate::qemu::spec::{Boot, Forward, OnReset, UserNet};
use crate::qemu::{End, Error, Machine, MachineSpec, State};
use crate::run::{Ending, Run, Step, UndoId, Undone};

/// Launches a machine whose end is registered first: after a failure with its screen kept, or with
/// the machine itself kept if that was asked for.
pub(super) async fn launch_machine(
    run: &Run,
    options: &BuildOptions,
    (name, ssh_port): (&'static str, u16),
    spec: &MachineSpec,
    folder: &Path,
) -> Result<(Arc<Machine>, UndoId), Failure> {
    let slot: Arc<Mutex<Option<Arc<Machine>>>> = Arc::default();
    let (for_undo, screenshot) = (Arc::clone(&slot), run.path(format!("{name}.png")));
    let keeper = options.keeper.clone();
    let undo = run.undo(
        format!("the machine of `{name}`"),
        "nothing: it ends with forge",
        move |ending| async move {
            let machine = for_undo.lock().unwrap_or_else(PoisonError::into_inner).take();
            let Some(machine) = machine else { return Ok(Undone::Nothing) };
            if ending == Ending::Failed {
                // Evidence, as far as it can be had.
                let _taken = machine.screenshot(&screenshot).await;
                if keeper.is_wanted() {
                    keeper.keep(kept(machine, ssh_port).await);
                    return Ok(Undone::Nothing);
                }
            }
            machine.kill().await;
            Ok(Undone::Removed)
        },
    );
    let machine = Arc::new(Machine::launch(spec, folder).await.kind(Kind::Infrastructure)?);
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&machine));
    Ok((machine, undo))
}

/// Says how a machine is reached that is kept until it is ended.
async fn kept(machine: Arc<Machine>, ssh_port: u16) -> Kept {
    let mut how_to_reach = vec![
        format!("process  {}", machine.pid()),
        format!("console  socat -,raw,echo=0 UNIX-CONNECT:{}", machine.serial_socket().display()),
        format!("agent    {}", machine.agent_socket().display()),
    ];
    if let Ok(forwarded) = machine.forwarded_port(ssh_port).await {
        how_to_reach.push(format!("ssh      ssh -p {forwarded} USER@127.0.0.1"));
    }
    Kept { how_to_reach, end: Box::new(|| Box::pin(async move { machine.kill().await })) }
}

/// Waits for a machine's end, as whoever watches an installation knows it.
pub(super) async fn end_of(machine: &Machine) -> install::End {
    let end = State::ended(&mut machine.state()).await;
    match end {
        End::PowerOff => install::End::PoweredOff,
        End::Reset => install::End::Reset,
        End::Panicked => install::End::Panicked,
        End::Stopped | End::Crashed { .. } => install::End::Died(end.to_string()),
    }
}

/// Presses Enter; a QEMU that has gone is told of by its end.
pub(super) async fn press_enter(machine: &Machine) -> Result<(), String> {
    match machine.press_enter().await {
        Err(Error::Refused { reason, .. }) => Err(reason),
        _ => Ok(()),
    }
}

/// The machine that runs the installed system.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) machine: Arc<Machine>,
    pub(super) agent: SocketAgent,
    pub(super) undo: UndoId,
}

/// Boots the installed system and waits for its guest agent.
pub(super) async fn boot(
    plan: &Plan,
    host: &Host,
    workspace: &Workspace,
    options: &BuildOptions,
    disks: &[(PathBuf, DiskFormat)],
    seed: &Prepared,
    step: &Step<'_>,
) -> Result<Running, Failure> {
    let folder = machine_folder(workspace, "guest")?;
    let launch = Launch {
        folder: &workspace.work("guest"),
        disks: disks.to_vec(),
        cdroms: Vec::new(),
        // For a person who keeps the machine of a failed build; forge itself has no use for it.
        network: UserNet {
            forwards: vec![Forward { address: None, port: plan.definition.prove.ssh_port }],
            ..UserNet::default()
        },
        serial: None,
        boot: Boot::Disk,
        on_reset: OnReset::Restart,
    };
    let spec = host.spec(&plan.machine, launch).kind(Kind::Infrastructure)?;
    let (machine, undo) =
        launch_machine(step.run(), options, ("guest", plan.definition.prove.ssh_port), &spec, &folder)
            .await?;
    step.worker(Worker::Guest);
    let agent = SocketAgent::new(machine.agent_socket(), machine.state());
    let started = tokio::time::Instant::now();
    let deadline = host.patience().scaled(plan.definition.timeouts.boot.duration());
    agent.wait_until_ready(deadline).await.kind(silence(&machine)).map_err(|failure| {
        explain_silence(failure, diagnosis::Guest::Installed, Some(seed), step, machine.serial_log())
    })?;
    step.note(format!("guest agent answers after {}", human_duration(started.elapsed())));
    seed.refuse_calls(diagnosis::Guest::Installed)?;
    Ok(Running { machine, agent, undo })
}

/// Powers off the sealed guest, and waits until its disks are whole.
pub(super) async fn power_off(machine: &Machine, deadline: Duration) -> Result<(), Failure> {
    machine.powerdown().await.kind(Kind::Infrastructure)?;
    let end = machine.wait_for_end(deadline).await.kind(Kind::Deadline)?;
    if end != End::PowerOff {
        return Err(Failure::new(Kind::Guest, anyhow!("{end} instead of powering off after it was sealed")));
    }
    machine.quit().await.kind(Kind::Infrastructure)
}

/// Returns what kind of failure it is that something went wrong with a guest: QEMU's own death is
/// none of the guest's doing.
pub(super) fn gone(machine: &Machine, otherwise: Kind) -> Kind {
    match machine.state().borrow().end {
        Some(End::Crashed { .. }) => Kind::Infrastructure,
        _ => otherwise,
    }
}

/// Returns what kind of failure it is that a guest does not answer.
pub(super) fn silence(machine: &Machine) -> Kind {
    match machine.state().borrow().end {
        None => Kind::Deadline,
        Some(End::Crashed { .. }) => Kind::Infrastructure,
        Some(_) => Kind::Guest,
    }
}
