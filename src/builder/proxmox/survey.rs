//! What a cluster has of all that a build needs: plain data, and what to think of it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use serde::Serialize;

use super::access::{self, Need, Rights};
use super::site::{DiskStorage, MediaStorage, Site};
use crate::definition::ProxmoxProfile;
use crate::pve::{Bridge, StorageStatus, Version};

const GIB: u64 = 1 << 30;

/// How many VMIDs a build takes: the machine and the clone that proves it.
const VMIDS: usize = 2;

/// How large installer media are, about.
const MEDIUM: u64 = 4 * GIB;

/// How far clocks may be apart before it disturbs people who compare logs.
const SKEW_SECONDS: i64 = 30;

/// The versions that forge knows.
const MAJORS: RangeInclusive<u32> = 8..=9;

/// What somebody wants to build there.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// The VMIDs that its templates get when they are promoted.
    pub templates: Vec<u32>,
    /// What its disks may grow to, in bytes.
    pub disk_bytes: u64,
    /// Whether it is promoted at once: then the rights for that are needed, too.
    pub promotes: bool,
    /// Whether its answers are uploaded (`seed.transport = "cdrom"`).
    pub uploads_answers: bool,
}

/// Returns the VMIDs that builds may take; a range that is none, which loading refuses, has the least.
pub(super) fn vmids(profile: &ProxmoxProfile) -> RangeInclusive<u32> {
    let parts = profile.vmids.split_once('-');
    let range = parts.and_then(|(first, last)| Some(first.parse().ok()?..=last.parse().ok()?));
    range.unwrap_or(100..=100)
}

/// Whether a thing will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// It will.
    Ok,
    /// Something to know.
    Note,
    /// A build is possible, but something about it is not.
    Warn,
    /// No build is possible.
    Missing,
}

/// What was found of one thing that building needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The thing.
    pub name: String,
    /// Whether it will do.
    pub level: Level,
    /// What is there.
    pub found: String,
    /// What to do, where it will not do.
    pub advice: Option<String>,
}

impl Finding {
    /// Returns a finding with which all is well.
    pub fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { name: name.into(), level: Level::Ok, found: found.into(), advice: None }
    }

    /// Returns a finding with what to do about it; an empty advice is none.
    pub fn bad(
        name: impl Into<String>,
        level: Level,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        let advice = Some(advice.into()).filter(|advice| !advice.is_empty());
        Self { name: name.into(), level, found: found.into(), advice }
    }
}

/// A node with what matters of it.
#[derive(Debug, Clone, Default)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// Whether it is there.
    pub is_online: bool,
    /// Free memory in bytes, where this user may know.
    pub free_memory: Option<u64>,
    /// Its storages, as far as this user may see them.
    pub storages: Vec<StorageStatus>,
    /// Its bridges, as far as this user may see or use them.
    pub bridges: Vec<Bridge>,
    /// Whether its processors run guests, where this user may know.
    pub has_kvm: Option<bool>,
    /// Why nothing is known of them.
    pub trouble: Option<String>,
}

impl NodeView {
    /// Returns a storage.
    #[must_use]
    pub fn storage(&self, id: &str) -> Option<&StorageStatus> {
        self.storages.iter().find(|storage| storage.storage == id)
    }

    /// Returns a bridge.
    #[must_use]
    pub fn bridge(&self, name: &str) -> Option<&Bridge> {
        self.bridges.iter().find(|bridge| bridge.iface == name)
    }

    /// Returns why no build can happen on it.
    fn obstacle(&self, profile: &ProxmoxProfile) -> Option<String> {
        if !self.is_online {
            return Some("it is not online".to_owned());
        }
        if self.trouble.is_some() {
            return self.trouble.clone();
        }
        let wanted = [(&profile.vm_storage, "images"), (&profile.iso_storage, "iso")];
        wanted
            .into_iter()
            .find_map(|(id, content)| storage_obstacle(self.storage(id), id, content))
            .or_else(|| bridge_obstacle(self.bridge(&profile.bridge), &profile.bridge))
    }
}

fn storage_obstacle(storage: Option<&StorageStatus>, id: &str, content: &str) -> Option<String> {
    match storage {
        None => Some(format!("there is no storage `{id}`, or none that this user may see")),
        Some(it) if !it.enabled => Some(format!("the storage `{id}` is disabled")),
        Some(it) if !it.active => Some(format!("the storage `{id}` is not active")),
        Some(it) if !it.content.contains(content) => {
            let has: Vec<&str> = it.content.iter().map(String::as_str).collect();
            Some(format!("the storage `{id}` takes no {content}, only {}", has.join(", ")))
        }
        Some(_) => None,
    }
}

fn bridge_obstacle(bridge: Option<&Bridge>, name: &str) -> Option<String> {
    match bridge {
        None => Some(format!("there is no bridge `{name}`, or none that this user may use")),
        Some(it) if !it.active => Some(format!("the bridge `{name}` is down")),
        Some(_) => None,
    }
}

/// Returns the node that a profile names.
pub(super) fn fixed(profile: &ProxmoxProfile) -> Option<&str> {
    (profile.node != "auto").then_some(profile.node.as_str())
}

/// Chooses the node: the one that is named or, of those that have the storages and the bridge, the one
/// with the most free memory.
///
/// # Errors
/// Why not, for each node that came into question.
pub fn choose<'a>(profile: &ProxmoxProfile, nodes: &'a [NodeView]) -> Result<&'a NodeView, Vec<String>> {
    if let Some(name) = fixed(profile) {
        let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
        let unknown = || vec![format!("there is no node `{name}`; there are: {}", names.join(", "))];
        let node = nodes.iter().find(|node| node.name == name).ok_or_else(unknown)?;
        return match node.obstacle(profile) {
            Some(why) if !node.is_online || node.trouble.is_some() => Err(vec![format!("{name}: {why}")]),
            // The rest is told of each thing by itself.
            _ => Ok(node),
        };
    }
    let mut refused = Vec::new();
    let mut best: Option<&NodeView> = None;
    for node in nodes {
        match node.obstacle(profile) {
            Some(why) => refused.push(format!("{}: {why}", node.name)),
            None if best.is_none_or(|best| node.free_memory > best.free_memory) => best = Some(node),
            None => {}
        }
    }
    best.ok_or(refused)
}

/// How guests reach forge's server.
#[derive(Debug, Clone, Default)]
pub struct Route {
    /// The node's address.
    pub node: Option<IpAddr>,
    /// This machine's towards it, or the one that the profile says.
    pub ours: Option<IpAddr>,
    /// What the profile says that guests are told.
    pub advertised: Option<String>,
}

/// What was seen of a cluster.
#[derive(Debug, Clone)]
pub struct Survey {
    pub(super) profile: ProxmoxProfile,
    /// Whether the profile has guests emulated.
    pub(super) emulates: bool,
    pub(super) wish: Wish,
    /// The user or token that asked.
    pub who: String,
    /// What it runs.
    pub version: Version,
    /// How many seconds its clock is ahead.
    pub ahead: Option<i64>,
    pub(super) nodes: Vec<NodeView>,
    pub(super) taken: BTreeSet<u32>,
    pub(super) scratch: u32,
    pub(super) needs: Vec<Need>,
    pub(super) rights: Rights,
    pub(super) roles: BTreeSet<String>,
    /// The pools that this user may see.
    pub(super) pools: Vec<String>,
    pub(super) route: Route,
}

impl Survey {
    /// Returns what was found of each thing, in the order of the table.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = vec![self.version_finding()];
        findings.extend(self.rights_findings());
        let node = choose(&self.profile, &self.nodes);
        findings.push(self.node_finding(&node));
        if let Ok(node) = node {
            findings.push(self.disk_storage_finding(node));
            findings.push(self.media_storage_finding(node));
            findings.push(self.bridge_finding(node));
            findings.extend(self.kvm_finding(node));
        }
        findings.extend(self.profile.pool.as_deref().map(|pool| self.pool_finding(pool)));
        findings.push(self.vmids_finding());
        findings.push(self.address_finding(node.ok()));
        findings.push(self.clock_finding());
        findings
    }

    /// Returns the commands, for root on a node, that give this user the rights that it lacks.
    #[must_use]
    pub fn commands(&self) -> Vec<String> {
        access::commands(Some(&self.who), &self.needs, &self.rights, &self.roles)
    }

    /// Returns where a build would happen.
    pub(super) fn site(&self, warnings: Vec<String>) -> Option<Site> {
        let Self { profile, route, .. } = self;
        let node = choose(profile, &self.nodes).ok()?;
        let disks = node.storage(&profile.vm_storage)?;
        let media = node.storage(&profile.iso_storage)?;
        Some(Site {
            node: node.name.parse().ok()?,
            version: self.version.clone(),
            disks: DiskStorage {
                id: profile.vm_storage.parse().ok()?,
                takes_format: takes_format(&disks.kind),
                linked_clones: has_linked_clones(&disks.kind),
                kind: disks.kind.clone(),
                free: disks.avail,
            },
            media: MediaStorage { id: profile.iso_storage.parse().ok()?, free: media.avail },
            bridge: profile.bridge.clone(),
            vlan: profile.vlan,
            pool: profile.pool.clone(),
            vmids: vmids(profile),
            taken: self.taken.clone(),
            can_download: self.holds(&format!("/nodes/{}", node.name), "Sys.AccessNetwork"),
            tags_on_create: self.holds(&format!("/vms/{}", self.scratch), "VM.Config.Options"),
            address: route.node,
            warnings,
        })
    }

    fn holds(&self, path: &str, privilege: &str) -> bool {
        self.rights.get(path).is_some_and(|held| held.contains(privilege))
    }

    fn version_finding(&self) -> Finding {
        let Version { version, .. } = &self.version;
        let found = format!("Proxmox VE {version}, as {}", self.who);
        match self.version.major() {
            major if MAJORS.contains(&major) => Finding::ok("version", found),
            major if major > *MAJORS.end() => {
                Finding::bad("version", Level::Warn, found, "forge knows 8 and 9: look for a newer forge")
            }
            _ => Finding::bad("version", Level::Missing, found, "forge needs Proxmox VE 8 or 9"),
        }
    }

    fn rights_findings(&self) -> Vec<Finding> {
        let judge = |need: &Need| {
            let name = format!("rights on {}", need.path);
            let missing = need.missing(&self.rights);
            if missing.is_empty() {
                return Finding::ok(name, summary(&need.privileges));
            }
            let is_vital = need.is_vital || (self.wish.promotes && need.path.starts_with("/vms/"));
            let level = if is_vital { Level::Missing } else { Level::Warn };
            let missing = match missing.len() {
                count if count > 2 && count == need.privileges.len() => format!("all {count} of them"),
                _ => missing.join(" "),
            };
            let found = format!("{missing} missing: {}", need.without);
            Finding::bad(name, level, found, "")
        };
        self.needs.iter().map(judge).collect()
    }

    fn node_finding(&self, node: &Result<&NodeView, Vec<String>>) -> Finding {
        match node {
            Err(reasons) => {
                let advice = "set `node`, `vm_storage`, `iso_storage` and `bridge` in the builder profile";
                Finding::bad("node", Level::Missing, reasons.join("; "), advice)
            }
            Ok(node) => {
                let memory = node.free_memory.map(|free| format!(", {} of memory free", gib(free)));
                let how = if fixed(&self.profile).is_some() { "" } else { ", chosen" };
                Finding::ok("node", format!("{}{how}{}", node.name, memory.unwrap_or_default()))
            }
        }
    }

    fn disk_storage_finding(&self, node: &NodeView) -> Finding {
        let id = &self.profile.vm_storage;
        let name = format!("storage {id}");
        if let Some(why) = storage_obstacle(node.storage(id), id, "images") {
            return Finding::bad(name, Level::Missing, why, storage_advice(node, "vm_storage", "images"));
        }
        let Some(storage) = node.storage(id) else { return Finding::ok(name, "") };
        let found = storage_text(storage);
        // Thin disks take far less than their size, so that a lack of room is none for certain.
        let wanted = self.wish.disk_bytes.max(10 * GIB);
        match storage.avail {
            avail if avail < GIB => Finding::bad(name, Level::Missing, found, "make room there"),
            avail if avail < wanted => {
                let advice = format!("a build may take up to {}", gib(wanted));
                Finding::bad(name, Level::Warn, found, advice)
            }
            _ if !has_linked_clones(&storage.kind) => Finding::bad(
                name,
                Level::Note,
                found,
                "it has no linked clones: proofs are made from full ones, which takes longer",
            ),
            _ => Finding::ok(name, found),
        }
    }

    fn media_storage_finding(&self, node: &NodeView) -> Finding {
        let id = &self.profile.iso_storage;
        let name = format!("storage {id}{}", if *id == self.profile.vm_storage { " (media)" } else { "" });
        if let Some(why) = storage_obstacle(node.storage(id), id, "iso") {
            return Finding::bad(name, Level::Missing, why, storage_advice(node, "iso_storage", "iso"));
        }
        let Some(storage) = node.storage(id) else { return Finding::ok(name, "") };
        let found = storage_text(storage);
        if storage.avail >= MEDIUM {
            return Finding::ok(name, found);
        }
        Finding::bad(name, Level::Warn, found, "an installer medium that is not there yet takes about 3 GiB")
    }

    fn bridge_finding(&self, node: &NodeView) -> Finding {
        let wanted = &self.profile.bridge;
        let name = format!("bridge {wanted}");
        if let Some(why) = bridge_obstacle(node.bridge(wanted), wanted) {
            let names: Vec<&str> = node.bridges.iter().map(|bridge| bridge.iface.as_str()).collect();
            let advice = if names.is_empty() {
                "see the rights on /sdn/zones/localnetwork".to_owned()
            } else {
                format!("set `bridge` in the builder profile; there are: {}", names.join(", "))
            };
            return Finding::bad(name, Level::Missing, why, advice);
        }
        let cidr = node.bridge(wanted).and_then(|bridge| bridge.cidr.as_deref());
        let vlan = self.profile.vlan.map(|vlan| format!(", VLAN {vlan}")).unwrap_or_default();
        let network = cidr.map(|cidr| format!(", {cidr}")).unwrap_or_default();
        Finding::ok(name, format!("up{network}{vlan}"))
    }

    fn pool_finding(&self, pool: &str) -> Finding {
        let name = format!("pool {pool}");
        if self.pools.iter().any(|known| known == pool) {
            return Finding::ok(name, "there");
        }
        // Only pools that one may look at are listed.
        if self.holds(&format!("/pool/{pool}"), "Pool.Audit") {
            let advice =
                format!("`pvesh create /pools --poolid {pool}`, or another `pool` in the builder profile");
            return Finding::bad(name, Level::Missing, "there is no such pool", advice);
        }
        Finding::bad(name, Level::Note, "whether it exists cannot be told without Pool.Audit on it", "")
    }

    /// Proxmox starts no VM on such a node unless it is told not to ask for KVM.
    fn kvm_finding(&self, node: &NodeView) -> Option<Finding> {
        let is_wanting = node.has_kvm == Some(false) && !self.emulates;
        is_wanting.then(|| {
            let found = format!("the processors of {} run no guests, and builds ask for that", node.name);
            let advice = "have guests emulated, ten to thirty times slower, by `kvm = false` and `cpu = \"max\"` \
                          under `[machine]` of the builder profile";
            Finding::bad("virtualisation", Level::Missing, found, advice)
        })
    }

    fn vmids_finding(&self) -> Finding {
        let range = vmids(&self.profile);
        let count = range.clone().count();
        let free = count.saturating_sub(self.taken.len());
        let name = format!("VMIDs {}-{}", range.start(), range.end());
        let found = format!("{free} of {count} free");
        if let Some(template) = self.wish.templates.iter().find(|vmid| range.contains(vmid)) {
            let found = format!("{template} is a template's own, and builds would take it");
            let advice = "give a range without the VMIDs of templates as `vmids` in the builder profile";
            return Finding::bad(name, Level::Missing, found, advice);
        }
        let advice = "give a wider range as `vmids` in the builder profile, or see `forge leftovers`";
        match free {
            0 => Finding::bad(name, Level::Missing, found, advice),
            free if free < VMIDS => {
                Finding::bad(name, Level::Missing, found + ", and a build takes 2", advice)
            }
            _ => Finding::ok(name, found),
        }
    }

    fn address_finding(&self, node: Option<&NodeView>) -> Finding {
        let Route { node: towards, ours, advertised } = &self.route;
        let name = "forge's address";
        let advice = "set `advertise` in `[http]` of the builder profile to an address that guests reach";
        if let Some(advertised) = advertised {
            return Finding::ok(name, format!("{advertised}, as the builder profile says"));
        }
        let Some(ours) = ours else {
            let towards = towards.map_or_else(|| "the node".to_owned(), |it| it.to_string());
            return Finding::bad(
                name,
                Level::Missing,
                format!("no address of this machine's towards {towards}"),
                advice,
            );
        };
        if ours.is_loopback() {
            return Finding::bad(name, Level::Missing, format!("{ours}, which no guest reaches"), advice);
        }
        let network = node.and_then(|node| node.bridge(&self.profile.bridge)?.cidr.clone());
        match network.as_deref().map(|cidr| (cidr, is_inside(*ours, cidr))) {
            Some((cidr, true)) if self.profile.vlan.is_none() => {
                Finding::ok(name, format!("{ours}, in the bridge's own network {cidr}"))
            }
            Some((cidr, false)) => {
                let found = format!("{ours}, outside the bridge's network {cidr}");
                Finding::bad(name, Level::Note, found, format!("guests need a route there; else {advice}"))
            }
            _ => Finding::bad(
                name,
                Level::Note,
                format!("{ours}; whether guests reach it cannot be told from here"),
                format!("if they do not, {advice}"),
            ),
        }
    }

    fn clock_finding(&self) -> Finding {
        let name = "clock";
        match self.ahead {
            None => Finding::bad(name, Level::Note, "the node does not tell its time", ""),
            Some(ahead) if ahead.abs() <= SKEW_SECONDS => {
                Finding::ok(name, format!("within {SKEW_SECONDS} s of this machine's"))
            }
            Some(ahead) => {
                let way = if ahead > 0 { "ahead of" } else { "behind" };
                let found = format!("{} s {way} this machine's", ahead.abs());
                Finding::bad(name, Level::Warn, found, "let both follow a time server (NTP)")
            }
        }
    }
}

fn gib(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) / GIB;
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

fn summary(privileges: &[&str]) -> String {
    match privileges {
        [one] => (*one).to_owned(),
        [one, two] => format!("{one} {two}"),
        many => format!("all {} of them", many.len()),
    }
}

fn storage_text(storage: &StorageStatus) -> String {
    let content: Vec<&str> = storage.content.iter().map(String::as_str).collect();
    let StorageStatus { kind, avail, total, .. } = storage;
    let (free, all) = (gib(*avail), gib(*total));
    format!("{kind}, {free} of {all} free, takes {}", content.join(", "))
}

fn storage_advice(node: &NodeView, key: &str, content: &str) -> String {
    let good =
        |storage: &&StorageStatus| storage_obstacle(Some(storage), &storage.storage, content).is_none();
    let names: Vec<&str> = node.storages.iter().filter(good).map(|it| it.storage.as_str()).collect();
    if names.is_empty() {
        return format!("let a storage take {content} (`pvesm set STORAGE --content …`), and see the rights");
    }
    format!("set `{key}` in the builder profile; these take {content}: {}", names.join(", "))
}

/// Tells whether a storage keeps disks as files, of which it takes several formats.
fn takes_format(kind: &str) -> bool {
    matches!(kind, "dir" | "nfs" | "cifs" | "btrfs" | "glusterfs" | "cephfs")
}

/// Tells whether a storage has linked clones of templates (pve-storage, `volume_has_feature`).
fn has_linked_clones(kind: &str) -> bool {
    !matches!(kind, "lvm" | "iscsi" | "iscsidirect")
}

/// Tells whether an address is in a network such as `10.0.0.1/24`.
fn is_inside(address: IpAddr, cidr: &str) -> bool {
    let Some((network, length)) = cidr.split_once('/') else { return false };
    let (Ok(network), Ok(length)) = (network.parse::<IpAddr>(), length.parse::<u32>()) else { return false };
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) if length <= 32 => {
            let differ = u32::from(address) ^ u32::from(network);
            u64::from(differ) >> (32 - length) == 0
        }
        (IpAddr::V6(address), IpAddr::V6(network)) if length <= 128 => {
            let differ = u128::from(address) ^ u128::from(network);
            differ.checked_shr(128 - length).unwrap_or(0) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
