//! What a simulated cluster starts with, in code or as TOML.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::storage::{Storage, StorageKind};
use crate::access::{Access, Rule, Token, User};

/// Which Proxmox VE is simulated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Release {
    /// 8.4
    #[default]
    #[serde(rename = "8")]
    V8,
    /// 9.1
    #[serde(rename = "9")]
    V9,
}

impl Release {
    pub(crate) fn major(self) -> u8 {
        match self {
            Self::V8 => 8,
            Self::V9 => 9,
        }
    }

    pub(crate) fn version(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::V8 => ("8.4.21", "8.4", "2606ac850d46da29"),
            Self::V9 => ("9.1.9", "9.1", "a9d1c2b7e0f35846"),
        }
    }
}

/// A bridge of every node.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bridge {
    /// Its name.
    pub name: String,
    /// Address and prefix.
    #[serde(default)]
    pub cidr: Option<String>,
}

/// An API token.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenSpec {
    /// `user@realm!name`
    pub id: String,
    /// Its secret.
    pub secret: String,
    /// Whether it has only its own rights.
    #[serde(default = "yes")]
    pub privsep: bool,
    /// Seconds since 1970 at which it ends; 0 for never.
    #[serde(default)]
    pub expire: i64,
    /// Shown in lists.
    #[serde(default)]
    pub comment: Option<String>,
}

/// A user beside root@pam.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserSpec {
    /// `user@realm`
    pub id: String,
    /// For logging in.
    #[serde(default)]
    pub password: Option<String>,
    /// Cannot do anything.
    #[serde(default)]
    pub disabled: bool,
    /// Has a second factor, which no answer to its challenge is simulated for.
    #[serde(default)]
    pub tfa: bool,
}

/// One line of the access list.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AclSpec {
    /// `/vms`, `/storage/local`, …
    pub path: String,
    /// A user or a token.
    pub who: String,
    /// The role.
    pub role: String,
}

/// What a simulated cluster starts with.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorldSpec {
    /// 8 or 9.
    pub release: Release,
    /// Node names; the first one answers.
    pub nodes: Vec<String>,
    /// Its storages.
    #[serde(rename = "storage")]
    pub storages: Vec<Storage>,
    /// The bridges of every node.
    #[serde(rename = "bridge")]
    pub bridges: Vec<Bridge>,
    /// Pools.
    pub pools: Vec<String>,
    /// The password of root@pam.
    pub root_password: String,
    /// Users beside root@pam.
    #[serde(rename = "user")]
    pub users: Vec<UserSpec>,
    /// Tokens; the first one is printed by the binary.
    #[serde(rename = "token")]
    pub tokens: Vec<TokenSpec>,
    /// Roles: name to privileges.
    pub roles: BTreeMap<String, Vec<String>>,
    /// The access list.
    #[serde(rename = "acl")]
    pub acls: Vec<AclSpec>,
    /// Only these tags may be used without rights on `/`.
    pub allowed_tags: Option<Vec<String>>,
    /// Whether the nodes can virtualise in hardware.
    pub has_kvm: bool,
}

fn yes() -> bool {
    true
}

impl Default for WorldSpec {
    fn default() -> Self {
        let storage = |id: &str, kind, content: &[&str], path: &str| Storage {
            id: id.into(),
            kind,
            content: content.iter().map(|kind| (*kind).to_owned()).collect(),
            path: path.into(),
            shared: false,
            nodes: Vec::new(),
            disabled: false,
            size_gib: 256,
            full: false,
        };
        Self {
            release: Release::V8,
            nodes: vec!["asgard".into()],
            storages: vec![
                storage("local", StorageKind::Dir, &["iso", "vztmpl", "backup", "import"], "/var/lib/vz"),
                storage("local-zfs", StorageKind::ZfsPool, &["images", "rootdir"], "rpool/data"),
            ],
            bridges: vec![Bridge { name: "vmbr0".into(), cidr: Some("10.98.0.2/24".into()) }],
            pools: Vec::new(),
            root_password: "simulated".into(),
            users: Vec::new(),
            tokens: vec![TokenSpec {
                id: "root@pam!full".into(),
                secret: "11111111-2222-4333-8444-555555555555".into(),
                privsep: false,
                expire: 0,
                comment: None,
            }],
            roles: BTreeMap::new(),
            acls: Vec::new(),
            allowed_tags: None,
            has_kvm: false,
        }
    }
}

impl WorldSpec {
    /// Reads a cluster from TOML; what is not given is as in the default one.
    ///
    /// # Errors
    /// Wrong TOML or unknown keys.
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    pub(crate) fn access(&self) -> Access {
        let mut access = Access::new(self.release.major());
        let root = User { password: Some(self.root_password.clone()), ..User::default() };
        access.users.insert("root@pam".into(), root);
        for user in &self.users {
            let made = User {
                password: user.password.clone(),
                disabled: user.disabled,
                tfa: user.tfa,
                ..User::default()
            };
            access.users.insert(user.id.clone(), made);
        }
        for token in &self.tokens {
            let Some((user, name)) = token.id.split_once('!') else {
                continue;
            };
            let made = Token {
                secret: token.secret.clone(),
                separated: token.privsep,
                expire: token.expire,
                comment: token.comment.clone(),
            };
            access.users.entry(user.into()).or_default().tokens.insert(name.into(), made);
        }
        access.roles = self
            .roles
            .iter()
            .map(|(name, held)| (name.clone(), held.iter().cloned().collect::<BTreeSet<_>>()))
            .collect();
        access.rules = self
            .acls
            .iter()
            .map(|acl| Rule {
                path: acl.path.clone(),
                who: acl.who.clone(),
                role: acl.role.clone(),
                propagate: true,
            })
            .collect();
        access.pools = self.pools.iter().map(|pool| (pool.clone(), BTreeSet::new())).collect();
        access
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_read_from_toml() {
        let text = r#"
            release = "9"
            nodes = ["PVE-01", "PVE-02"]
            [[storage]]
            id = "ceph"
            kind = "rbd"
            content = ["images"]
            shared = true
            [[token]]
            id = "forge@pve!ci"
            secret = "s"
            [[acl]]
            path = "/vms"
            who = "forge@pve!ci"
            role = "PVEVMAdmin"
        "#;
        let spec = WorldSpec::parse(text).unwrap();
        assert_eq!(spec.release, Release::V9);
        assert_eq!(spec.storages.len(), 1);
        assert!(spec.access().users["forge@pve"].tokens["ci"].separated);
        assert!(WorldSpec::parse("nodes = 3").is_err());
        assert!(WorldSpec::parse("nonsense = 3").is_err());
    }
}
