//! Faults that change the world rather than an answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::{Map, Value};

use crate::fault::{Action, Guest, Of};
use crate::held;
use crate::sim::{Sim, raw_text};
use crate::tls::Certificate;
use crate::world::Vm;

/// Lets one fault strike before its request is looked at.
pub(crate) async fn strike(sim: &Arc<Sim>, path: &str, given: &Map<String, Value>, action: Action) {
    let vmid = vmid_of(path, given, Of::Target);
    match action {
        Action::AgentDies => {
            if let Some(vm) = sim.world().vms.get_mut(&vmid.unwrap_or_default()) {
                vm.agent_hangs = true;
            }
        }
        Action::MachineDies => {
            let machine = vmid.and_then(|vmid| sim.world().vms.get(&vmid).and_then(Vm::running));
            if let Some(machine) = machine {
                machine.stop().await;
            }
        }
        Action::StorageFull { storage } => {
            let mut world = sim.world();
            let full = world.storages.iter_mut().filter(|known| known.id == storage);
            full.for_each(|storage| storage.full = true);
        }
        Action::LockHeld { seconds, of } => {
            if let Some(vmid) = vmid_of(path, given, of) {
                hold_lock(sim, vmid, seconds).await;
            }
        }
        Action::ConfigLocked { lock, seconds, of } => {
            if let Some(vmid) = vmid_of(path, given, of) {
                lock_config(sim, vmid, lock, seconds);
            }
        }
        Action::VmidTaken { kind, node, .. } => {
            if let Some(vmid) = vmid {
                take_vmid(sim, vmid, kind, node);
            }
        }
        Action::CertificateChanged => {
            let names = vec!["localhost".into(), "127.0.0.1".into()];
            if let Ok(new) = Certificate::new(names) {
                *held(&sim.certificate) = new;
            }
        }
        Action::NotAllowed => sim.barred.store(true, Ordering::Relaxed),
        Action::Reload => sim.reload(),
        _ => {}
    }
}

async fn hold_lock(sim: &Arc<Sim>, vmid: u32, seconds: f64) {
    let Ok(guard) = sim.locks.exclusive(vmid, 10.0).await else {
        return;
    };
    let clock = sim.clock;
    tokio::spawn(async move {
        clock.sleep(seconds).await;
        drop(guard);
    });
}

fn lock_config(sim: &Arc<Sim>, vmid: u32, lock: String, seconds: Option<f64>) {
    if let Some(vm) = sim.world().vms.get_mut(&vmid) {
        vm.config.set("lock", &lock);
    }
    let Some(seconds) = seconds else {
        return;
    };
    let sim = Arc::clone(sim);
    tokio::spawn(async move {
        sim.clock.sleep(seconds).await;
        let mut world = sim.world();
        if let Some(vm) = world.vms.get_mut(&vmid).filter(|vm| vm.config.get("lock") == Some(&lock)) {
            vm.config.keys.remove("lock");
        }
    });
}

/// Puts somebody else's guest at a VMID that is still free.
pub(crate) fn take_vmid(sim: &Sim, vmid: u32, kind: Guest, node: Option<String>) {
    let mut world = sim.world();
    if world.owner_of(vmid).is_some() {
        return;
    }
    let node = node.unwrap_or_else(|| world.home.clone());
    match kind {
        Guest::Lxc => drop(world.containers.insert(vmid, node)),
        Guest::Qemu => {
            let mut vm = Vm { node, ..Vm::default() };
            vm.config.set("name", "somebody-elses");
            world.vms.insert(vmid, vm);
        }
    }
}

/// The VM that a request is about: in its path, or as `vmid` or `newid`.
fn vmid_of(path: &str, given: &Map<String, Value>, of: Of) -> Option<u32> {
    let parameter = |name: &str| given.get(name).and_then(|value| raw_text(value).parse().ok());
    let mut parts = path.split('/').skip_while(|part| *part != "qemu");
    let in_path = parts.nth(1).and_then(|part| part.parse().ok());
    match of {
        Of::Target => parameter("newid").or(in_path).or_else(|| parameter("vmid")),
        Of::Source => in_path,
    }
}
