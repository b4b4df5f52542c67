//! Which privileges a build, a promotion and cleaning up need, path by path, and the commands that give
//! them.
//!
//! Source: the permission checks of pve-manager, qemu-server, pve-storage and pve-access-control, 8.4
//! and 9.2.

use std::collections::{BTreeMap, BTreeSet};

use crate::definition::ProxmoxProfile;

/// What is done with VMs; the agent's privileges come on top, see [`crate::pve::Version::agent_privileges`].
pub const VM: [&str; 13] = [
    "VM.Allocate",
    "VM.Audit",
    "VM.Clone",
    "VM.Config.CDROM",
    "VM.Config.CPU",
    "VM.Config.Cloudinit",
    "VM.Config.Disk",
    "VM.Config.HWType",
    "VM.Config.Memory",
    "VM.Config.Network",
    "VM.Config.Options",
    "VM.Console",
    "VM.PowerMgmt",
];

/// A promotion neither starts the template nor looks at its screen.
const NOT_FOR_TEMPLATES: [&str; 2] = ["VM.Console", "VM.PowerMgmt"];

const VM_ROLE: &str = "ForgeVM";
const STORAGE_ROLE: &str = "ForgeStorage";
const NETWORK_ROLE: &str = "ForgeNetwork";
const NODE_ROLE: &str = "ForgeNode";
const SEED_ROLE: &str = "ForgeSeed";

/// The user and the token that the commands make where there is none yet.
const NEW_USER: &str = "forge@pve";
const NEW_TOKEN: &str = "forge";

/// What must be held on a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// The path.
    pub path: String,
    /// Another path where it may be held instead: the pool that the VM is going to be in.
    pub or: Option<String>,
    /// The path where the commands grant it.
    pub grant_at: String,
    /// The privileges.
    pub privileges: Vec<&'static str>,
    /// The role that the commands put them into.
    pub role: &'static str,
    /// What comes of it when one is missing.
    pub without: &'static str,
    /// Whether no build is possible without them.
    pub is_vital: bool,
}

/// Which privileges are held on which path.
pub type Rights = BTreeMap<String, BTreeSet<String>>;

impl Need {
    /// Returns the paths to ask for.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.path.as_str()).chain(self.or.as_deref())
    }

    /// Returns the privileges that are missing.
    #[must_use]
    pub fn missing(&self, rights: &Rights) -> Vec<&'static str> {
        let held = |privilege: &str| {
            self.paths().any(|path| rights.get(path).is_some_and(|held| held.contains(privilege)))
        };
        self.privileges.iter().copied().filter(|privilege| !held(privilege)).collect()
    }
}

/// Where builds happen, as far as it matters for who may what.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The profile.
    pub profile: &'a ProxmoxProfile,
    /// The node, where it is known.
    pub node: Option<&'a str>,
    /// A VMID that a build may take.
    pub scratch: u32,
    /// The VMIDs of templates.
    pub templates: &'a [u32],
    /// The privileges for the agent.
    pub agent: &'static [&'static str],
    /// Whether the bridge is a virtual network, whose zone only its administrator knows.
    pub is_vnet: bool,
    /// Whether a template's answers are uploaded (`seed.transport = "cdrom"`), and removed in the end.
    pub uploads_answers: bool,
}

/// Returns what must be held.
#[must_use]
pub fn needs(place: &Place<'_>) -> Vec<Need> {
    let Place { profile, node, scratch, templates, agent, is_vnet, uploads_answers } = place;
    let pool = profile.pool.as_ref().map(|pool| format!("/pool/{pool}"));
    let vms_at = pool.clone().unwrap_or_else(|| "/vms".to_owned());
    let vm = |vmid: u32, privileges: Vec<&'static str>, without, is_vital| Need {
        path: format!("/vms/{vmid}"),
        or: pool.clone(),
        grant_at: vms_at.clone(),
        privileges,
        role: VM_ROLE,
        without,
        is_vital,
    };
    let on = |path: String, privileges: &[&'static str], role, without, is_vital| Need {
        grant_at: path.clone(),
        path,
        or: None,
        privileges: privileges.to_vec(),
        role,
        without,
        is_vital,
    };
    let mut needs = vec![vm(*scratch, [&VM, *agent].concat(), "no build is possible", true)];
    let for_templates: Vec<&str> = VM.into_iter().filter(|it| !NOT_FOR_TEMPLATES.contains(it)).collect();
    needs.extend(
        templates.iter().map(|vmid| vm(*vmid, for_templates.clone(), "no promotion is possible", false)),
    );
    needs.extend(pool.clone().map(|pool| {
        on(pool, &["Pool.Audit"], VM_ROLE, "whether the pool exists is seen only when a VM is made", false)
    }));
    needs.extend(storages(profile).into_iter().map(|(id, privileges)| {
        on(format!("/storage/{id}"), &privileges, STORAGE_ROLE, "no build is possible", true)
    }));
    if *uploads_answers {
        let path = format!("/storage/{}", profile.iso_storage);
        let without = "a volume with a build's answers (`transport = \"cdrom\"`) stays there";
        needs.push(on(path, &["Datastore.Allocate"], SEED_ROLE, without, false));
    }
    if !is_vnet {
        let vlan = profile.vlan.map(|vlan| format!("/{vlan}")).unwrap_or_default();
        let path = format!("/sdn/zones/localnetwork/{}{vlan}", profile.bridge);
        needs.push(on(path, &["SDN.Use"], NETWORK_ROLE, "no build is possible", true));
    }
    let node = node.map_or_else(|| "/nodes".to_owned(), |node| format!("/nodes/{node}"));
    let without_network = "installer media are uploaded from here instead of downloaded by the node";
    needs.push(on(node.clone(), &["Sys.AccessNetwork"], NODE_ROLE, without_network, false));
    let without_audit = "the node's memory cannot be told, and `auto` chooses blindly";
    needs.push(on(node, &["Sys.Audit"], NODE_ROLE, without_audit, false));
    needs
}

fn storages(profile: &ProxmoxProfile) -> Vec<(&str, Vec<&'static str>)> {
    let disks = vec!["Datastore.AllocateSpace", "Datastore.Audit"];
    let media = vec!["Datastore.AllocateTemplate", "Datastore.Audit"];
    if profile.vm_storage == profile.iso_storage {
        return vec![(&profile.vm_storage, [disks, vec!["Datastore.AllocateTemplate"]].concat())];
    }
    vec![(&profile.vm_storage, disks), (&profile.iso_storage, media)]
}

/// Returns the commands, to be run as root on a node, that give what is missing.
///
/// `who` is the user or token; without one a new token is made. `roles` are those that there are.
#[must_use]
pub fn commands(who: Option<&str>, needs: &[Need], rights: &Rights, roles: &BTreeSet<String>) -> Vec<String> {
    let mut of_role: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut lacking: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut grants = BTreeSet::new();
    for need in needs {
        of_role.entry(need.role).or_default().extend(&need.privileges);
        let missing = need.missing(rights);
        if !missing.is_empty() {
            lacking.entry(need.role).or_default().extend(missing);
            grants.insert((need.grant_at.as_str(), need.role));
        }
    }
    if grants.is_empty() {
        return Vec::new();
    }
    let mut commands = Vec::new();
    if who.is_none() {
        commands.push(format!("pveum user add {NEW_USER}"));
        commands.push(format!("pveum user token add {NEW_USER} {NEW_TOKEN} --privsep 1"));
    }
    for (role, missing) in lacking {
        let words = |privileges: &BTreeSet<&str>| privileges.iter().copied().collect::<Vec<_>>().join(" ");
        commands.push(if roles.contains(role) {
            format!("pveum role modify {role} --append 1 --privs \"{}\"", words(&missing))
        } else {
            format!("pveum role add {role} --privs \"{}\"", words(&of_role[role]))
        });
    }
    let whom = whom(who);
    commands
        .extend(grants.iter().map(|(path, role)| format!("pveum acl modify {path} {whom} --roles {role}")));
    commands
}

/// Returns the commands that make a token and give it everything, before anything is known of the cluster.
#[must_use]
pub fn setup(profile: &ProxmoxProfile, templates: &[u32], uploads_answers: bool) -> Vec<String> {
    let scratch = profile.vmids.split('-').next().and_then(|first| first.parse().ok()).unwrap_or(100);
    let node = (profile.node != "auto").then_some(profile.node.as_str());
    let agent = &["VM.GuestAgent.Unrestricted"];
    let is_vnet = false;
    let needs = needs(&Place { profile, node, scratch, templates, agent, is_vnet, uploads_answers });
    let mut commands = commands(None, &needs, &Rights::new(), &BTreeSet::new());
    commands.insert(0, "# on Proxmox VE 8 write VM.Monitor instead of VM.GuestAgent.Unrestricted".to_owned());
    commands
}

/// A token has what both it and its user have, so both get it.
fn whom(who: Option<&str>) -> String {
    let new = format!("{NEW_USER}!{NEW_TOKEN}");
    let who = who.unwrap_or(&new);
    match who.split_once('!') {
        Some((user, _)) => format!("--users {user} --tokens '{who}'"),
        None => format!("--users {who}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGENT_8: &[&str] = &["VM.Monitor"];

    fn place<'a>(profile: &'a ProxmoxProfile, templates: &'a [u32]) -> Place<'a> {
        Place {
            profile,
            node: Some("asgard"),
            scratch: 9000,
            templates,
            agent: AGENT_8,
            is_vnet: false,
            uploads_answers: false,
        }
    }

    fn held(needs: &[Need]) -> Rights {
        let mut rights = Rights::new();
        for need in needs {
            let held = need.privileges.iter().map(ToString::to_string);
            rights.entry(need.path.clone()).or_default().extend(held);
        }
        rights
    }

    #[test]
    fn a_build_needs_these_privileges_on_these_paths() {
        let profile = ProxmoxProfile { vlan: Some(7), ..ProxmoxProfile::default() };
        let needs = needs(&place(&profile, &[90001]));
        let shown: Vec<String> = needs
            .iter()
            .map(|need| format!("{} {} {}", need.path, need.privileges.join(","), need.is_vital))
            .collect();
        assert_eq!(
            shown,
            [
                "/vms/9000 VM.Allocate,VM.Audit,VM.Clone,VM.Config.CDROM,VM.Config.CPU,VM.Config.Cloudinit,\
                 VM.Config.Disk,VM.Config.HWType,VM.Config.Memory,VM.Config.Network,VM.Config.Options,\
                 VM.Console,VM.PowerMgmt,VM.Monitor true",
                "/vms/90001 VM.Allocate,VM.Audit,VM.Clone,VM.Config.CDROM,VM.Config.CPU,VM.Config.Cloudinit,\
                 VM.Config.Disk,VM.Config.HWType,VM.Config.Memory,VM.Config.Network,VM.Config.Options false",
                "/storage/local-zfs Datastore.AllocateSpace,Datastore.Audit true",
                "/storage/local Datastore.AllocateTemplate,Datastore.Audit true",
                "/sdn/zones/localnetwork/vmbr0/7 SDN.Use true",
                "/nodes/asgard Sys.AccessNetwork false",
                "/nodes/asgard Sys.Audit false",
            ]
        );
    }

    #[test]
    fn one_storage_for_both_needs_both() {
        let profile = ProxmoxProfile { iso_storage: "local-zfs".to_owned(), ..ProxmoxProfile::default() };
        let needs = needs(&place(&profile, &[]));
        let storages: Vec<_> = needs.iter().filter(|need| need.path.starts_with("/storage")).collect();
        assert_eq!(storages.len(), 1);
        assert_eq!(
            storages[0].privileges,
            ["Datastore.AllocateSpace", "Datastore.Audit", "Datastore.AllocateTemplate"]
        );
    }

    #[test]
    fn answers_on_a_volume_need_what_removes_them() {
        let profile = ProxmoxProfile::default();
        let needs = needs(&Place { uploads_answers: true, ..place(&profile, &[]) });
        let rights = held(&needs.iter().filter(|need| need.role != SEED_ROLE).cloned().collect::<Vec<_>>());
        assert_eq!(
            commands(Some("root@pam"), &needs, &rights, &BTreeSet::new()),
            [
                "pveum role add ForgeSeed --privs \"Datastore.Allocate\"",
                "pveum acl modify /storage/local --users root@pam --roles ForgeSeed",
            ]
        );
    }

    #[test]
    fn what_a_pool_gives_counts_for_vms() {
        let profile = ProxmoxProfile { pool: Some("forge".to_owned()), ..ProxmoxProfile::default() };
        let needs = needs(&place(&profile, &[]));
        let pool: BTreeSet<String> = needs[0].privileges.iter().map(ToString::to_string).collect();
        let mut rights = Rights::from([("/pool/forge".to_owned(), pool)]);
        assert!(needs[0].missing(&rights).is_empty());
        rights.get_mut("/pool/forge").unwrap().remove("VM.Console");
        assert_eq!(needs[0].missing(&rights), ["VM.Console"]);
        assert_eq!(needs[0].grant_at, "/pool/forge");
        assert_eq!((needs[1].path.as_str(), needs[1].missing(&rights)), ("/pool/forge", vec!["Pool.Audit"]));
    }

    #[test]
    fn whoever_has_it_all_need_type_nothing() {
        let profile = ProxmoxProfile::default();
        let needs = needs(&place(&profile, &[90001]));
        let mut rights = held(&needs);
        assert!(commands(Some("forge@pve!ci"), &needs, &rights, &BTreeSet::new()).is_empty());
        rights.get_mut("/vms/9000").unwrap().remove("VM.Monitor");
        rights.remove("/sdn/zones/localnetwork/vmbr0");
        let roles = BTreeSet::from([VM_ROLE.to_owned()]);
        assert_eq!(
            commands(Some("forge@pve!ci"), &needs, &rights, &roles),
            [
                "pveum role add ForgeNetwork --privs \"SDN.Use\"",
                "pveum role modify ForgeVM --append 1 --privs \"VM.Monitor\"",
                "pveum acl modify /sdn/zones/localnetwork/vmbr0 --users forge@pve --tokens 'forge@pve!ci' \
                 --roles ForgeNetwork",
                "pveum acl modify /vms --users forge@pve --tokens 'forge@pve!ci' --roles ForgeVM",
            ]
        );
        assert!(
            commands(Some("root@pam"), &needs, &rights, &roles)[3].contains(" --users root@pam --roles ")
        );
    }

    #[test]
    fn a_new_token_is_made_with_everything() {
        let profile = ProxmoxProfile::default();
        let needs = needs(&place(&profile, &[]));
        let commands = commands(None, &needs, &Rights::new(), &BTreeSet::new());
        assert_eq!(commands[0], "pveum user add forge@pve");
        assert_eq!(commands[1], "pveum user token add forge@pve forge --privsep 1");
        assert_eq!(commands.iter().filter(|it| it.starts_with("pveum role add ")).count(), 4);
        let grant = "pveum acl modify /storage/local --users forge@pve --tokens 'forge@pve!forge' --roles ForgeStorage";
        assert!(commands.contains(&grant.to_owned()), "{commands:#?}");
    }
}
