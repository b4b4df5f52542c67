//! Boots clones of the finished template, as its users do, for the proof.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::anyhow;
use futures_util::future::BoxFuture;
use tokio::sync::Notify;

use super::hardware::{CLOUD_INIT, cloud_init_drive, overrides, system_disk};
use super::marks::State;
use super::site::{failed, server_now};
use super::vm::{OwnVm, Purpose, mark};
use super::{Cluster, silence, text};
use crate::artifact::CheckResult;
use crate::builder::clone::CloneSeed;
use crate::builder::outside;
use crate::builder::proof::{Drive, Identity, Subject, clone_seed};
use crate::builder::workspace::Workspace;
use crate::builder::{machine_folder, show_console};
use crate::communicator::pve_agent::PveAgent;
use crate::event::{Worker, human_duration};
use crate::failure::{Failure, Kind, ResultExt as _};
use crate::pve::property::{Properties, parse_size};
use crate::pve::{CloneOptions, ConfigChange, Params, Seen, VmConfig};
use crate::run::{Step, UndoId, Undone};

impl Cluster<'_> {
    /// Boots a clone, looks at it and destroys it. The results are returned whether or not they hold.
    pub(super) async fn prove(
        &self,
        own: &OwnVm,
        built: &Identity,
        drive: Drive,
        workspace: &Workspace,
        step: &Step<'_>,
    ) -> Result<Vec<CheckResult>, Failure> {
        let turn = self.turn_to_prove(step).await?;
        let config = own.vm.config().await.map_err(failed)?;
        mark(&own.vm, &config, State::Proving).await.map_err(failed)?;
        let key = outside::make_key().kind(Kind::Infrastructure)?;
        let mut seed = clone_seed(self.plan, &key, "", drive)?;
        let mut clone = self.clone_template(own, &seed, drive, step).await?;
        let config = self.prepare_clone(&mut clone, &mut seed, drive).await?;
        let disk_size = self.grow(&clone, &config).await?;

        let folder = machine_folder(workspace, drive.at())?;
        self.start(&clone.vm).await?;
        let recorder = self.record(&clone.vm, folder.clone());
        step.worker(Worker::Guest);
        let started = tokio::time::Instant::now();
        let agent = PveAgent::new(&clone.vm, Arc::new(Notify::new()));
        let deadline = self.patience.scaled(self.plan.definition.timeouts.boot.duration());
        agent.wait_until_ready(deadline).await.map_err(|error| {
            show_console(step, &folder.join("serial.log"));
            silence(error).hint("the clone did not bring its guest agent up: see its pictures and serial log")
        })?;
        step.note(format!("the clone's agent answers after {}", human_duration(started.elapsed())));
        let subject = Subject {
            plan: self.plan,
            patience: self.patience,
            built,
            disk_size,
            seed: &seed,
            drive,
            key: &key,
            communicator: &agent,
            ssh: SocketAddr::from((seed.address, self.plan.definition.proof.ssh_port)),
            is_routed: false,
        };
        let results = subject.look(step, started).await?;
        drop(recorder);
        step.worker(Worker::Node);
        if results.iter().any(CheckResult::has_failed) {
            // Its undo takes a picture of it first, and keeps it if that was asked for.
            return Ok(results);
        }
        clone.destroy(self, step.run()).await?;
        step.run().forget_undo(turn);
        Ok(results)
    }

    /// Waits until no other build on this machine has a clone with that address: each would be taken for
    /// the other. The turn lasts until the returned undo is forgotten, or has come after the clone's.
    async fn turn_to_prove(&self, step: &Step<'_>) -> Result<UndoId, Failure> {
        let (builder, address) = (&self.plan.builder.name, &self.plan.definition.proof.address);
        let address = address.split('/').next().unwrap_or_default();
        let waiting = format!("another build proves its template at {address}");
        let turn = self.turn(&format!("proof-{builder}-{address}"), &waiting, step).await?;
        Ok(step.run().undo("the turn to prove", "", move |_| async move {
            drop(turn);
            Ok(Undone::Nothing)
        }))
    }

    /// Makes the clone, linked where the storage can.
    async fn clone_template(
        &self,
        own: &OwnVm,
        seed: &CloneSeed,
        drive: Drive,
        step: &Step<'_>,
    ) -> Result<OwnVm, Failure> {
        let purpose = Purpose { name: drive.at(), state: State::Proving };
        let heading = heading(own);
        let clone = self
            .make_vm(step.run(), purpose, "", &|vm, marks| {
                let options = CloneOptions {
                    newid: vm.vmid(),
                    name: Some(seed.hostname.clone()),
                    full: !self.site.disks.linked_clones,
                    storage: None,
                    pool: self.site.pool.clone(),
                    description: Some(marks.in_description(&heading)),
                };
                let original = own.vm.clone();
                Box::pin(async move { original.clone_to(&options).await })
            })
            .await?;
        step.note(format!("the clone is VM {}: {}", clone.vm.vmid(), self.console(clone.vm.vmid())));
        Ok(clone)
    }

    /// Gives the clone its seed and what the node needs to run it, and returns its configuration.
    async fn prepare_clone(
        &self,
        clone: &mut OwnVm,
        seed: &mut CloneSeed,
        drive: Drive,
    ) -> Result<VmConfig, Failure> {
        let config = clone.made.clone();
        clone.marks.uuid = config.uuid().unwrap_or_default();
        let net = Properties::parse_net(config.get("net0").unwrap_or_default());
        net.get("macaddr").unwrap_or_default().clone_into(&mut seed.mac);
        if config.get(CLOUD_INIT).is_none() {
            self.attach_cloud_init(&clone.vm, &cloud_init_drive(&self.site)).await?;
        }
        let mut set = clone_params(seed, &self.plan.definition.template.cloud_init.user, drive);
        let described = clone.marks.renewed(server_now(&self.client));
        let text = config.get("description").unwrap_or_default();
        set.insert("description".to_owned(), described.in_description(text));
        set.extend(overrides(self.plan));
        self.set(&clone.vm, &ConfigChange::set(set)).await?;
        Ok(config)
    }

    /// Makes the clone's system disk larger than the template's, whose size in bytes is returned.
    async fn grow(&self, clone: &OwnVm, config: &VmConfig) -> Result<u64, Failure> {
        let key = system_disk(&self.plan.definition.machine);
        let disk = Properties::parse(config.get(&key).unwrap_or_default(), "file");
        let size = disk.get("size").and_then(parse_size).ok_or_else(|| {
            Failure::new(Kind::Infrastructure, anyhow!("the clone has no disk {key} whose size is known"))
        })?;
        let grown = size + (u64::from(self.plan.definition.proof.grow_gib) << 30);
        // In whole GiB and absolute: repeated after a lost answer it does nothing more.
        let wanted = format!("{}G", grown >> 30);
        let limit = self.profile.task_timeout.duration();
        let resize = async || {
            let upid = clone.vm.resize(&key, &wanted).await?;
            self.client.wait(&upid, limit, None).await.map(drop)
        };
        let again = || -> BoxFuture<'_, _> { Box::pin(async { Ok(Seen::NotDone) }) };
        self.client.settle(&|| Box::pin(resize()), &again).await.map_err(failed)?;
        Ok(size)
    }
}

fn heading(own: &OwnVm) -> String {
    format!("forge proves the template {} with this clone of it.", own.vm.vmid())
}

/// Returns what the clone's users would set, too.
fn clone_params(seed: &CloneSeed, user: &str, drive: Drive) -> Params {
    let mut params = Params::from([
        ("ciuser".to_owned(), user.to_owned()),
        ("sshkeys".to_owned(), text::encoded_keys(&seed.public_key)),
        ("ipconfig0".to_owned(), format!("ip={}/{},gw={}", seed.address, seed.prefix, seed.gateway)),
        ("nameserver".to_owned(), seed.gateway.to_string()),
        ("ciupgrade".to_owned(), "0".to_owned()),
    ]);
    if drive == Drive::ConfigDrive {
        params.insert("citype".to_owned(), "configdrive2".to_owned());
    }
    params
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_gets_its_seed_as_its_users_give_it() {
        let seed = CloneSeed {
            hostname: "proof".into(),
            public_key: "ssh-ed25519 AA+/ forge-proof".into(),
            mac: String::new(),
            address: [10, 10, 10, 50].into(),
            prefix: 24,
            gateway: [10, 10, 10, 1].into(),
        };
        let params = clone_params(&seed, "odin", Drive::NoCloud);
        assert_eq!(params["ipconfig0"], "ip=10.10.10.50/24,gw=10.10.10.1");
        assert_eq!(params["sshkeys"], "ssh%2Ded25519%20AA%2B%2F%20forge%2Dproof");
        assert_eq!((params["ciupgrade"].as_str(), params.get("citype")), ("0", None));
        assert_eq!(clone_params(&seed, "odin", Drive::ConfigDrive)["citype"], "configdrive2");
    }
}
