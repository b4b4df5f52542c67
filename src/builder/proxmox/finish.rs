//! From a sealed VM to a template: as candidate at its scratch VMID, and with its own VMID on demand.

use anyhow::anyhow;

use super::Cluster;
use super::hardware::{self, CLOUD_INIT, differences, overrides, template_params};
use super::marks::{Marks, State};
use super::site::{failed, server_now};
use super::text::{self, Made};
use super::vm::{OwnVm, Purpose, mark, set};
use crate::artifact::{CheckResult, Place, Volume};
use crate::builder::workspace::Staging;
use crate::failure::{Failure, Kind};
use crate::pve::property::{Properties, parse_size};
use crate::pve::{CloneOptions, ConfigChange, Error, Params, Seen, Vm, VmConfig, Vmid};
use crate::run::Step;

/// What a template is called and says of itself.
#[derive(Debug)]
pub(super) struct Draft {
    name: String,
    built_at: String,
    packages: usize,
    manifest: String,
}

impl Draft {
    pub(super) fn new(cluster: &Cluster<'_>, staging: &Staging, packages: usize) -> Self {
        let template = &cluster.plan.definition.template;
        let path = staging.final_path.join(crate::artifact::MANIFEST_FILE);
        let path = path.strip_prefix(&cluster.plan.root).unwrap_or(&path);
        let host = cluster.process.host.split('/').next().unwrap_or_default();
        Self {
            name: text::candidate_name(&template.name, &template.release),
            built_at: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
            packages,
            manifest: format!("{} on {host}", path.display()),
        }
    }

    /// Returns the whole description.
    fn description(&self, cluster: &Cluster<'_>, marks: &Marks, proof: Option<&[CheckResult]>) -> String {
        let made =
            Made { built_at: &self.built_at, packages: self.packages, proof, manifest: &self.manifest };
        let marks = marks.renewed(server_now(&cluster.client));
        marks.in_description(&text::description(cluster.plan, &made))
    }
}

impl Cluster<'_> {
    /// Changes a VM as soon as nothing else holds it. A lost answer does not matter: the same is set again.
    pub(super) async fn set(&self, vm: &Vm, change: &ConfigChange) -> Result<(), Failure> {
        set(vm, change).await.map_err(failed)
    }

    /// Gives a VM its tags, as far as that is allowed, and returns them.
    pub(super) async fn tag(
        &self,
        vm: &Vm,
        marks: &Marks,
        more: &[String],
        step: &Step<'_>,
    ) -> Result<Option<String>, Failure> {
        let mut tags = marks.tags();
        tags.extend(more.iter().map(|tag| tag.to_lowercase()));
        tags.sort();
        tags.dedup();
        let value = tags.join(";");
        match set(vm, &ConfigChange::set([("tags", value.as_str())])).await {
            Err(error @ Error::Forbidden { .. }) => {
                step.warn(&format!("the tags {} are not allowed: {error}", tags.join(", ")));
                Ok(None)
            }
            result => result.map(|()| Some(value)).map_err(failed),
        }
    }

    /// Starts a VM and waits until QEMU runs.
    pub(super) async fn start(&self, vm: &Vm) -> Result<(), Failure> {
        let limit = self.profile.task_timeout.duration();
        let start = async || {
            let upid = vm.start(None).await?;
            self.client.wait(&upid, limit, None).await.map(drop)
        };
        let look = async || Ok(if vm.status().await?.is_running() { Seen::Done(()) } else { Seen::NotDone });
        self.client.settle(&|| Box::pin(start()), &|| Box::pin(look())).await.map_err(failed)
    }

    /// Gives the sealed VM the definition's hardware, name and cloud-init drive, converts it and looks
    /// whether it has become what was meant.
    pub(super) async fn finish_template(
        &self,
        own: &OwnVm,
        draft: &Draft,
        step: &Step<'_>,
    ) -> Result<(), Failure> {
        let meant = template_params(self.plan, &self.site, &draft.name);
        let description = draft.description(self, &own.marks, None);
        self.set(&own.vm, &finishing(&meant, &overrides(self.plan), description)).await?;
        if let Some(drive) = meant.get(CLOUD_INIT) {
            self.attach_cloud_init(&own.vm, drive).await?;
        }
        step.note(format!("converting VM {} to a template", own.vm.vmid()));
        self.convert(&own.vm).await?;
        self.compare(own, &meant).await.map(drop)
    }

    /// Attaches a new cloud-init drive.
    pub(super) async fn attach_cloud_init(&self, vm: &Vm, drive: &str) -> Result<(), Failure> {
        let change = ConfigChange::set([(CLOUD_INIT, drive)]);
        let limit = self.profile.task_timeout.duration();
        let attach = async || {
            let upid = vm.update(&change).await?;
            self.client.wait(&upid, limit, None).await.map(drop)
        };
        let look = async || {
            let config = vm.config().await?;
            let is_there = config.get(CLOUD_INIT).is_some_and(|value| value.contains("cloudinit"));
            Ok(if is_there { Seen::Done(()) } else { Seen::NotDone })
        };
        self.client.settle(&|| Box::pin(attach()), &|| Box::pin(look())).await.map_err(failed)
    }

    async fn convert(&self, vm: &Vm) -> Result<(), Failure> {
        let limit = self.profile.task_timeout.duration();
        let convert = async || {
            let upid = vm.convert().await?;
            self.client.wait(&upid, limit, None).await.map(drop)
        };
        let look = async || Ok(if vm.config().await?.is_template() { Seen::Done(()) } else { Seen::NotDone });
        self.client.settle(&|| Box::pin(convert()), &|| Box::pin(look())).await.map_err(failed)
    }

    /// Reads a template back and compares it field by field with what was meant.
    async fn compare(&self, own: &OwnVm, meant: &Params) -> Result<VmConfig, Failure> {
        let (vm, uuid) = (&own.vm, &own.marks.uuid);
        let config = vm.config().await.map_err(failed)?;
        let mut found = differences(&config, meant, self.site.disks.linked_clones);
        if config.uuid().as_ref() != Some(uuid) {
            found.push(format!("smbios1: its UUID is not {uuid}"));
        }
        if !config.is_template() {
            found.push("it is no template".to_owned());
        }
        if found.is_empty() {
            return Ok(config);
        }
        let error = anyhow!("template {} is not what was meant: {}", vm.vmid(), found.join("; "));
        Err(Failure::new(Kind::Infrastructure, error))
    }

    /// Marks the template as one that is being proven.
    pub(super) async fn mark_as_proving(&self, own: &OwnVm) -> Result<(), Failure> {
        let config = own.vm.config().await.map_err(failed)?;
        mark(&own.vm, &config, State::Proving).await.map_err(failed)
    }

    /// Marks the template as a proven candidate and returns its place.
    pub(super) async fn mark_as_proven(
        &self,
        own: &OwnVm,
        draft: &Draft,
        checks: &[CheckResult],
        step: &Step<'_>,
    ) -> Result<Place, Failure> {
        let place = self.label(own, draft, &draft.name, State::Candidate, checks, step).await?;
        step.note(format!("{} is the proven candidate, VM {} on {}", place.name, place.vmid, place.node));
        Ok(place)
    }

    /// Writes what a template is and how its proof ended into its description and tags.
    async fn label(
        &self,
        own: &OwnVm,
        draft: &Draft,
        name: &str,
        state: State,
        checks: &[CheckResult],
        step: &Step<'_>,
    ) -> Result<Place, Failure> {
        let marks = Marks { state, ..own.marks.clone() };
        let proof: Vec<_> = checks.iter().filter(|check| check.at != "build").cloned().collect();
        let description = draft.description(self, &marks, Some(&proof));
        self.set(&own.vm, &ConfigChange::set([("description", description.as_str())])).await?;
        let tags = self.tag(&own.vm, &marks, &self.plan.definition.template.tags, step).await?;
        let mut meant = template_params(self.plan, &self.site, name);
        meant.extend(tags.map(|tags| ("tags".to_owned(), tags)));
        let config = self.compare(own, &meant).await?;
        if config.get("description").unwrap_or_default().trim_end() != description.trim_end() {
            let error = anyhow!("the description of template {} is not what was written", own.vm.vmid());
            return Err(Failure::new(Kind::Infrastructure, error));
        }
        Ok(place(&own.vm, &config))
    }

    /// Copies the candidate to the template's own VMID, which nothing has yet.
    pub(super) async fn promote(
        &self,
        candidate: &Place,
        draft: &Draft,
        checks: &[CheckResult],
        step: &Step<'_>,
    ) -> Result<Place, Failure> {
        let template = &self.plan.definition.template;
        let number = |vmid: u32| {
            let error = || Failure::new(Kind::Definition, anyhow!("{vmid} is no VMID"));
            Vmid::new(vmid).ok_or_else(error)
        };
        let (from, to) = (number(candidate.vmid)?, number(template.vmid)?);
        let original = self.client.vm(&self.site.node, from);
        let purpose = Purpose { name: "template".to_owned(), state: State::Building };
        let heading = format!("forge copies {} here.", candidate.name);
        let made = self
            .make_at(step.run(), to, &purpose, "", &|_, marks| {
                let options = CloneOptions {
                    newid: to,
                    name: Some(template.name.clone()),
                    full: true,
                    storage: None,
                    pool: self.site.pool.clone(),
                    description: Some(marks.in_description(&heading)),
                };
                let original = original.clone();
                Box::pin(async move { original.clone_to(&options).await })
            })
            .await?;
        let Some(mut own) = made else {
            let error = anyhow!("{to} was taken while the candidate was built");
            return Err(Failure::new(Kind::Promotion, error)
                .hint(format!("the proven candidate is {} ({})", candidate.vmid, candidate.name)));
        };
        self.learn_uuid(&mut own, &heading).await?;
        self.convert(&own.vm).await?;
        let place = self.label(&own, draft, &template.name, State::Stable, checks, step).await?;
        own.hand_over(self, step.run())?;
        step.note(format!("{} is VM {} on {}", place.name, place.vmid, place.node));
        Ok(place)
    }

    /// Writes a clone's UUID, which it got from the node, into its marks.
    async fn learn_uuid(&self, own: &mut OwnVm, heading: &str) -> Result<(), Failure> {
        own.marks.uuid = own.made.uuid().unwrap_or_default();
        let marks = own.marks.renewed(server_now(&self.client));
        self.set(&own.vm, &ConfigChange::set([("description", marks.in_description(heading))])).await
    }
}

/// Returns the change that sets back what a node needed for building, and gives the template its name.
fn finishing(meant: &Params, overridden: &Params, description: String) -> ConfigChange {
    let new = ["name", "boot", "ciuser", "ciupgrade"];
    let wanted = |key: &str| new.contains(&key) || overridden.contains_key(key);
    let mut set: Params =
        meant.iter().filter(|(key, _)| wanted(key)).map(|(k, v)| (k.clone(), v.clone())).collect();
    set.insert("description".to_owned(), description);
    let delete = overridden.keys().filter(|key| !meant.contains_key(*key)).cloned().collect();
    ConfigChange { set, delete, ..ConfigChange::default() }
}

/// Returns where a template is.
fn place(vm: &Vm, config: &VmConfig) -> Place {
    let volumes = config.values.iter().filter(|(key, _)| hardware::is_volume(key)).map(|(key, value)| {
        let value = Properties::parse(value, "file");
        Volume {
            key: key.clone(),
            volid: value.get("file").unwrap_or_default().to_owned(),
            size: value.get("size").and_then(parse_size),
        }
    });
    Place {
        node: vm.node().to_string(),
        vmid: vm.vmid().get(),
        name: config.get("name").unwrap_or_default().to_owned(),
        uuid: config.uuid().unwrap_or_default(),
        volumes: volumes.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(pairs: &[(&str, &str)]) -> Params {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_a_node_needed_is_set_back() {
        let meant = params(&[("name", "n"), ("boot", "order=virtio0"), ("cpu", "host"), ("memory", "4096")]);
        let change = finishing(&meant, &params(&[("cpu", "max"), ("kvm", "0")]), "text".to_owned());
        let set =
            params(&[("name", "n"), ("boot", "order=virtio0"), ("cpu", "host"), ("description", "text")]);
        assert_eq!((change.set, change.delete), (set, vec!["kvm".to_owned()]));
    }
}
