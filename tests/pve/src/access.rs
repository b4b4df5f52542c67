//! Users, tokens, roles and access lists, and what they allow.
//!
//! Source: `PVE/AccessControl.pm` (roles, privilege groups), `PVE/RPCEnvironment.pm` (permissions).

use std::collections::{BTreeMap, BTreeSet};

use crate::answer::Failure;

/// Privileges that both releases have.
const COMMON: &[&str] = &[
    "Datastore.Allocate",
    "Datastore.AllocateSpace",
    "Datastore.AllocateTemplate",
    "Datastore.Audit",
    "Group.Allocate",
    "Mapping.Audit",
    "Mapping.Modify",
    "Mapping.Use",
    "Permissions.Modify",
    "Pool.Allocate",
    "Pool.Audit",
    "Realm.Allocate",
    "Realm.AllocateUser",
    "SDN.Allocate",
    "SDN.Audit",
    "SDN.Use",
    "Sys.AccessNetwork",
    "Sys.Audit",
    "Sys.Console",
    "Sys.Incoming",
    "Sys.Modify",
    "Sys.PowerMgmt",
    "Sys.Syslog",
    "User.Modify",
    "VM.Allocate",
    "VM.Audit",
    "VM.Backup",
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
    "VM.Migrate",
    "VM.PowerMgmt",
    "VM.Snapshot",
    "VM.Snapshot.Rollback",
];
const ONLY_8: &[&str] = &["VM.Monitor"];
const SINCE_9: &[&str] = &[
    "VM.GuestAgent.Audit",
    "VM.GuestAgent.FileRead",
    "VM.GuestAgent.FileSystemMgmt",
    "VM.GuestAgent.FileWrite",
    "VM.GuestAgent.Unrestricted",
    "VM.Replicate",
];

/// Every privilege of release `major`.
pub(crate) fn privileges(major: u8) -> impl Iterator<Item = &'static str> {
    let own = if major >= 9 { SINCE_9 } else { ONLY_8 };
    COMMON.iter().chain(own).copied()
}

pub(crate) fn is_privilege(major: u8, name: &str) -> bool {
    privileges(major).any(|privilege| privilege == name)
}

/// Who sends a request: a user, or a token of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) user: String,
    pub(crate) token: Option<String>,
}

impl Identity {
    pub(crate) fn parse(text: &str) -> Self {
        match text.split_once('!') {
            Some((user, token)) => Self { user: user.into(), token: Some(token.into()) },
            None => Self { user: text.into(), token: None },
        }
    }

    /// The name in access lists and UPIDs: `user@realm` or `user@realm!token`.
    pub(crate) fn full(&self) -> String {
        match &self.token {
            Some(token) => format!("{}!{token}", self.user),
            None => self.user.clone(),
        }
    }

    /// Only the user itself: a token of root@pam is not root@pam.
    pub(crate) fn is_root(&self) -> bool {
        self.user == "root@pam" && self.token.is_none()
    }
}

/// A user, with its password where it has one.
#[derive(Clone, Debug, Default)]
pub(crate) struct User {
    pub(crate) password: Option<String>,
    pub(crate) disabled: bool,
    /// A password alone does not let it in.
    pub(crate) tfa: bool,
    pub(crate) tokens: BTreeMap<String, Token>,
}

/// An API token.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) secret: String,
    pub(crate) separated: bool,
    /// Seconds since 1970; 0 never expires.
    pub(crate) expire: i64,
    pub(crate) comment: Option<String>,
}

/// One line of the access list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) path: String,
    pub(crate) who: String,
    pub(crate) role: String,
    pub(crate) propagate: bool,
}

/// Privileges held on one path; the value tells whether they reach its children.
pub(crate) type Held = BTreeMap<String, bool>;

/// Everything about who may do what.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    pub(crate) major: u8,
    pub(crate) users: BTreeMap<String, User>,
    /// Roles made by somebody; the built-in ones are not in here.
    pub(crate) roles: BTreeMap<String, BTreeSet<String>>,
    pub(crate) rules: Vec<Rule>,
    /// Guests by pool, for the rights that a pool hands to its members.
    pub(crate) pools: BTreeMap<String, BTreeSet<u32>>,
}

impl Access {
    pub(crate) fn new(major: u8) -> Self {
        Self {
            major,
            users: BTreeMap::new(),
            roles: BTreeMap::new(),
            rules: Vec::new(),
            pools: BTreeMap::new(),
        }
    }

    /// The privileges of a role, built in or made.
    pub(crate) fn role(&self, name: &str) -> Option<BTreeSet<String>> {
        self.roles.get(name).cloned().or_else(|| built_in(self.major, name))
    }

    /// Name and privileges of every role, and whether it is built in.
    pub(crate) fn all_roles(&self) -> Vec<(String, BTreeSet<String>, bool)> {
        let own = self.roles.iter().map(|(name, held)| (name.clone(), held.clone(), false));
        let special = BUILT_IN.iter().map(|name| {
            let held = built_in(self.major, name).expect("the list names built-in roles");
            ((*name).to_owned(), held, true)
        });
        own.chain(special).collect()
    }

    /// What `who` holds on `path`.
    pub(crate) fn held(&self, who: &Identity, path: &str) -> Held {
        let user = Identity { user: who.user.clone(), token: None };
        let of_user = self.held_plain(&user, path);
        let separated = who.token.as_ref().is_some_and(|token| {
            self.users.get(&who.user).and_then(|user| user.tokens.get(token)).is_none_or(|t| t.separated)
        });
        if !separated {
            return of_user;
        }
        let mut own = self.held_plain(who, path);
        own.retain(|privilege, _| of_user.contains_key(privilege));
        own
    }

    fn held_plain(&self, who: &Identity, path: &str) -> Held {
        if who.is_root() {
            return privileges(self.major).map(|name| (name.into(), true)).collect();
        }
        let mut roles = self.roles_on(&who.full(), path);
        if let Some(vmid) = path.strip_prefix("/vms/").and_then(|rest| rest.parse::<u32>().ok()) {
            for (pool, _) in self.pools.iter().filter(|(_, members)| members.contains(&vmid)) {
                roles.extend(self.roles_on(&who.full(), &format!("/pool/{pool}")));
            }
        }
        if roles.contains_key("NoAccess") {
            return Held::new();
        }
        let mut held = Held::new();
        for (role, propagate) in roles {
            for privilege in self.role(&role).unwrap_or_default() {
                *held.entry(privilege).or_default() |= propagate;
            }
        }
        held
    }

    /// A more specific path replaces what the paths above it gave.
    fn roles_on(&self, who: &str, path: &str) -> BTreeMap<String, bool> {
        let mut roles = BTreeMap::new();
        let mut paths: Vec<&str> = self.rules.iter().map(|rule| rule.path.as_str()).collect();
        paths.sort_unstable();
        paths.dedup();
        for above in paths {
            let exact = above == path;
            let below = above == "/" || path.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'));
            if !exact && !below {
                continue;
            }
            let here: BTreeMap<String, bool> = self
                .rules
                .iter()
                .filter(|rule| rule.path == above && rule.who == who && (exact || rule.propagate))
                .map(|rule| (rule.role.clone(), rule.propagate))
                .collect();
            if !here.is_empty() {
                roles = here;
            }
        }
        roles
    }

    pub(crate) fn has(&self, who: &Identity, path: &str, privilege: &str) -> bool {
        self.held(who, path).contains_key(privilege)
    }

    /// # Errors
    /// 403 with the first missing privilege, as the server words it.
    pub(crate) fn check(&self, who: &Identity, path: &str, wanted: &[&str]) -> Result<(), Failure> {
        // A path that cannot be one is nobody's, not even root's.
        let held = if path.is_empty() { Held::new() } else { self.held(who, path) };
        match wanted.iter().find(|privilege| !held.contains_key(**privilege)) {
            Some(missing) => Err(Failure::forbidden(path, missing)),
            None => Ok(()),
        }
    }

    /// # Errors
    /// 403 naming all alternatives.
    pub(crate) fn check_any(&self, who: &Identity, path: &str, wanted: &[&str]) -> Result<(), Failure> {
        let held = self.held(who, path);
        if wanted.iter().any(|privilege| held.contains_key(*privilege)) {
            return Ok(());
        }
        Err(Failure::forbidden(path, &wanted.join("|")))
    }

    /// Everything that `who` holds, path by path: the fixed tops, and each path with a rule.
    pub(crate) fn overview(&self, who: &Identity) -> BTreeMap<String, Held> {
        let mut paths: BTreeSet<String> = TOPS.iter().map(|top| (*top).to_owned()).collect();
        for rule in &self.rules {
            let mut path = rule.path.as_str();
            while !path.is_empty() {
                paths.insert(path.to_owned());
                path = path.rfind('/').map_or("", |end| &path[..end]);
            }
        }
        let with = paths.into_iter().map(|path| (path.clone(), self.held(who, &path)));
        with.filter(|(_, held)| !held.is_empty()).collect()
    }

    /// Forgets a destroyed guest: its rules and its place in pools.
    pub(crate) fn forget_guest(&mut self, vmid: u32) {
        let path = format!("/vms/{vmid}");
        self.rules.retain(|rule| rule.path != path);
        for members in self.pools.values_mut() {
            members.remove(&vmid);
        }
    }

    pub(crate) fn pool_of(&self, vmid: u32) -> Option<&str> {
        let found = self.pools.iter().find(|(_, members)| members.contains(&vmid));
        found.map(|(pool, _)| pool.as_str())
    }
}

const TOPS: &[&str] = &["/", "/access", "/access/groups", "/nodes", "/pool", "/sdn", "/storage", "/vms"];

const BUILT_IN: &[&str] = &[
    "Administrator",
    "NoAccess",
    "PVEAdmin",
    "PVEAuditor",
    "PVEDatastoreAdmin",
    "PVEDatastoreUser",
    "PVEMappingAdmin",
    "PVEMappingUser",
    "PVEPoolAdmin",
    "PVEPoolUser",
    "PVESDNAdmin",
    "PVESDNUser",
    "PVESysAdmin",
    "PVETemplateUser",
    "PVEUserAdmin",
    "PVEVMAdmin",
    "PVEVMUser",
];

/// Privileges that the role `PVEAdmin` lacks.
const NOT_ADMIN: &[&str] = &[
    "Permissions.Modify",
    "Sys.AccessNetwork",
    "Sys.Incoming",
    "Sys.Modify",
    "Sys.PowerMgmt",
    "Realm.Allocate",
    "Mapping.Modify",
];

fn built_in(major: u8, name: &str) -> Option<BTreeSet<String>> {
    let all = || privileges(major);
    let pick = |wanted: &[&str]| -> BTreeSet<String> {
        all().filter(|name| wanted.contains(name)).map(Into::into).collect()
    };
    let keep = |test: &dyn Fn(&str) -> bool| -> BTreeSet<String> {
        all().filter(|name| test(name)).map(Into::into).collect()
    };
    let under = |prefix: &str| keep(&|name: &str| name.starts_with(prefix));
    Some(match name {
        "Administrator" => keep(&|_| true),
        "NoAccess" => BTreeSet::new(),
        "PVEAdmin" => keep(&|name| !NOT_ADMIN.contains(&name)),
        "PVEAuditor" => keep(&|name| name.ends_with(".Audit")),
        "PVEDatastoreAdmin" => under("Datastore."),
        "PVEDatastoreUser" => pick(&["Datastore.AllocateSpace", "Datastore.Audit"]),
        "PVEMappingAdmin" => under("Mapping."),
        "PVEMappingUser" => pick(&["Mapping.Audit", "Mapping.Use"]),
        "PVEPoolAdmin" => under("Pool."),
        "PVEPoolUser" => pick(&["Pool.Audit"]),
        "PVESDNAdmin" => under("SDN."),
        "PVESDNUser" => pick(&["SDN.Audit", "SDN.Use"]),
        "PVESysAdmin" => pick(&["Sys.Audit", "Sys.Console", "Sys.Syslog"]),
        "PVETemplateUser" => pick(&["VM.Audit", "VM.Clone"]),
        "PVEUserAdmin" => pick(&["Group.Allocate", "Realm.AllocateUser", "User.Modify"]),
        "PVEVMAdmin" => under("VM."),
        "PVEVMUser" => pick(&[
            "VM.Audit",
            "VM.Backup",
            "VM.Config.CDROM",
            "VM.Config.Cloudinit",
            "VM.Console",
            "VM.GuestAgent.Audit",
            "VM.PowerMgmt",
        ]),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access() -> Access {
        let mut access = Access::new(8);
        let token = |separated| Token { secret: "s".into(), separated, expire: 0, comment: None };
        let tokens = BTreeMap::from([("ci".into(), token(true)), ("all".into(), token(false))]);
        access.users.insert("forge@pve".into(), User { tokens, ..User::default() });
        access.roles.insert("Build".into(), ["VM.Allocate", "VM.Audit"].map(String::from).into());
        for (path, who, role) in [
            ("/", "forge@pve", "PVEVMAdmin"),
            ("/vms", "forge@pve!ci", "Build"),
            ("/vms/100", "forge@pve!ci", "PVETemplateUser"),
            ("/vms/101", "forge@pve!ci", "NoAccess"),
            ("/storage", "forge@pve!ci", "PVEDatastoreAdmin"),
        ] {
            access.rules.push(Rule {
                path: path.into(),
                who: who.into(),
                role: role.into(),
                propagate: true,
            });
        }
        access
    }

    #[test]
    fn a_separated_token_holds_what_both_it_and_its_user_hold() {
        let access = access();
        let ci = Identity::parse("forge@pve!ci");
        assert!(access.has(&ci, "/vms/500", "VM.Allocate"));
        assert!(!access.has(&ci, "/vms/500", "VM.Clone"), "its role lacks it");
        assert!(!access.has(&ci, "/storage/local", "Datastore.Audit"), "its user lacks it");
        assert!(access.has(&Identity::parse("forge@pve!all"), "/vms/1", "VM.Clone"));
        assert!(!Identity::parse("root@pam!full").is_root());
    }

    #[test]
    fn a_more_specific_path_replaces_and_no_access_wins() {
        let access = access();
        let ci = Identity::parse("forge@pve!ci");
        assert!(access.has(&ci, "/vms/100", "VM.Clone"));
        assert!(!access.has(&ci, "/vms/100", "VM.Allocate"));
        assert!(access.held(&ci, "/vms/101").is_empty());
    }

    #[test]
    fn a_pool_hands_its_rights_to_its_members() {
        let mut access = access();
        access.rules.push(Rule {
            path: "/pool/build".into(),
            who: "forge@pve!ci".into(),
            role: "PVEVMAdmin".into(),
            propagate: true,
        });
        access.pools.insert("build".into(), [100].into());
        let ci = Identity::parse("forge@pve!ci");
        assert!(access.has(&ci, "/vms/100", "VM.Allocate"), "added to the path's own roles");
        access.forget_guest(100);
        assert!(access.rules.iter().all(|rule| rule.path != "/vms/100"));
        assert_eq!(access.pool_of(100), None);
    }
}
