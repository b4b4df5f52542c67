//! Versions, privileges and roles.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::call::Call;
use super::{Client, Error, loose};

/// What Proxmox VE it is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Version {
    /// Such as `8.4.21`.
    pub version: String,
    /// Such as `8.4`.
    #[serde(default)]
    pub release: String,
}

impl Version {
    /// Returns the major version; 0 when there is none in it.
    #[must_use]
    pub fn major(&self) -> u32 {
        self.version.split(['.', '-', '~']).next().and_then(|text| text.parse().ok()).unwrap_or_default()
    }

    /// Returns the privileges that let somebody use a guest's agent for everything; all are needed.
    #[must_use]
    pub fn agent_privileges(&self) -> &'static [&'static str] {
        // Named differently since version 9; either one unknown to a version makes a role invalid there.
        if self.major() >= 9 { &["VM.GuestAgent.Unrestricted"] } else { &["VM.Monitor"] }
    }
}

/// A role.
#[derive(Debug, Clone, Deserialize)]
pub struct Role {
    /// Its name.
    pub roleid: String,
    /// Its privileges.
    #[serde(default, deserialize_with = "loose::words")]
    pub privs: BTreeSet<String>,
}

impl Client {
    /// Returns the version; any user may ask.
    pub async fn version(&self) -> Result<Version, Error> {
        self.ask(Call::get("/version")).await
    }

    /// Returns the privileges that this user or token holds on a path such as `/vms/90001`, which need
    /// not exist. Those by way of a pool are not seen on paths of VMs that do not exist yet.
    pub async fn privileges(&self, path: &str) -> Result<BTreeSet<String>, Error> {
        let call = Call::get("/access/permissions").query("path", path);
        let mut paths: BTreeMap<String, BTreeMap<String, loose::Text>> = self.ask(call).await?;
        Ok(paths.remove(path).unwrap_or_default().into_keys().collect())
    }

    /// Returns the roles with their privileges.
    pub async fn roles(&self) -> Result<Vec<Role>, Error> {
        self.ask(Call::get("/access/roles")).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_privilege_has_another_name_since_version_9() {
        for (text, major, privilege) in [
            ("8.4.21", 8, "VM.Monitor"),
            ("9.0~beta", 9, "VM.GuestAgent.Unrestricted"),
            ("10.1", 10, "VM.GuestAgent.Unrestricted"),
        ] {
            let version = Version { version: text.to_owned(), release: String::new() };
            assert_eq!((version.major(), version.agent_privileges()), (major, [privilege].as_slice()));
        }
    }
}
