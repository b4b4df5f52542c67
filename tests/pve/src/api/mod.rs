//! The endpoints: what each takes, who may call it, and its code.

mod access;
mod cluster;
mod nodes;
mod pools;
pub(crate) mod qemu;
mod storage;
mod tasks;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::LazyLock;

use serde_json::{Map, Value};

use crate::access::{Access, Identity};
use crate::answer::{Answer, Failure};
use crate::schema::Param;
use crate::sim::{Call, raw_text};

/// An endpoint's code.
pub(crate) type Run = fn(Call) -> Pin<Box<dyn Future<Output = Answer> + Send>>;

/// A check of its own, with the raw parameters.
pub(crate) type Check = fn(&Access, &Identity, &Map<String, Value>) -> Result<(), Failure>;

/// Who may call an endpoint; `{name}` stands for a raw parameter.
#[derive(Clone, Copy)]
pub(crate) enum Allow {
    /// Everybody, logged in or not; or rights that are checked in code.
    All,
    /// All of these on the path.
    Has(&'static str, &'static [&'static str]),
    /// One of these on the path.
    Any(&'static str, &'static [&'static str]),
    /// On the VM: VM.Monitor in release 8, one of these in release 9.
    Agent(&'static [&'static str]),
    /// Something of its own.
    Special(Check),
}

impl Allow {
    pub(crate) fn check(
        self,
        access: &Access,
        who: &Identity,
        given: &Map<String, Value>,
    ) -> Result<(), Failure> {
        match self {
            Self::All => Ok(()),
            Self::Has(path, wanted) => access.check(who, &fill(path, given), wanted),
            Self::Any(path, wanted) => access.check_any(who, &fill(path, given), wanted),
            Self::Agent(wanted) => {
                let path = fill("/vms/{vmid}", given);
                if access.major < 9 {
                    access.check(who, &path, &["VM.Monitor"])
                } else {
                    access.check_any(who, &path, wanted)
                }
            }
            Self::Special(check) => check(access, who, given),
        }
    }
}

/// Fills raw parameters into a path; a path that cannot be one becomes empty.
pub(crate) fn fill(template: &str, given: &Map<String, Value>) -> String {
    let mut path = template.to_owned();
    for (name, value) in given {
        path = path.replace(&format!("{{{name}}}"), &raw_text(value));
    }
    let legal = |c: char| c.is_ascii_alphanumeric() || ".-_/".contains(c);
    if path.chars().all(legal) { path } else { String::new() }
}

/// An endpoint.
pub(crate) struct Endpoint {
    pub(crate) method: &'static str,
    /// With `{name}` for parameters; `{name*}` takes all that is left.
    pub(crate) path: &'static str,
    pub(crate) allow: Allow,
    pub(crate) params: &'static [&'static [Param]],
    /// Run by one of pvedaemon's three workers.
    pub(crate) protected: bool,
    pub(crate) token_allowed: bool,
    pub(crate) run: Run,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

impl Endpoint {
    pub(crate) const fn new(method: &'static str, path: &'static str, allow: Allow, run: Run) -> Self {
        Self { method, path, allow, params: &[], protected: false, token_allowed: true, run }
    }

    pub(crate) const fn takes(mut self, params: &'static [&'static [Param]]) -> Self {
        self.params = params;
        self
    }

    pub(crate) const fn protected(mut self) -> Self {
        self.protected = true;
        self
    }

    pub(crate) const fn no_token(mut self) -> Self {
        self.token_allowed = false;
        self
    }

    fn captures(&self, path: &[&str]) -> Option<BTreeMap<&'static str, String>> {
        let mut captures = BTreeMap::new();
        let mut given = path.iter();
        for part in self.path.split('/').filter(|part| !part.is_empty()) {
            let name = part.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
            match name {
                None if given.next() == Some(&part) => {}
                None => return None,
                Some(name) => match name.strip_suffix('*') {
                    None => drop(captures.insert(name, (*given.next()?).to_owned())),
                    Some(name) => {
                        let rest = given.as_slice().join("/");
                        given = [].iter();
                        captures.insert(name, Some(rest).filter(|rest| !rest.is_empty())?);
                    }
                },
            }
        }
        given.next().is_none().then_some(captures)
    }
}

/// Turns an async function into an endpoint's code.
macro_rules! run {
    ($function:path) => {
        |call| Box::pin($function(call))
    };
}
pub(crate) use cluster::tell;
pub(crate) use run;

/// The parameters that stand in most paths.
pub(crate) const NODE: &[Param] = &[Param::named("node", "pve-node").path()];
pub(crate) const NODE_VM: &[Param] = &[
    Param::named("node", "pve-node").path(),
    Param::int("vmid").format("pve-vmid").min(100.0).max(999_999_999.0).path(),
];
/// A VMID that is not in the path.
pub(crate) const fn vmid(name: &'static str) -> Param {
    Param::int(name).format("pve-vmid").min(100.0).max(999_999_999.0)
}

static ENDPOINTS: LazyLock<Vec<&'static Endpoint>> = LazyLock::new(|| {
    let all = [
        access::ENDPOINTS,
        cluster::ENDPOINTS,
        nodes::ENDPOINTS,
        pools::ENDPOINTS,
        storage::ENDPOINTS,
        tasks::ENDPOINTS,
    ];
    let mut found: Vec<&Endpoint> = all.into_iter().flatten().collect();
    found.extend(qemu::ENDPOINTS.iter().copied().flatten());
    found
});

/// Finds the endpoint of a request; fixed parts win over parameters.
pub(crate) fn find(method: &str, path: &str) -> Option<(&'static Endpoint, BTreeMap<&'static str, String>)> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let matching = ENDPOINTS
        .iter()
        .filter(|endpoint| endpoint.method == method)
        .filter_map(|endpoint| Some((*endpoint, endpoint.captures(&parts)?)));
    matching.min_by_key(|(_, captures)| captures.len())
}

/// Every endpoint, for comparison with the published schema.
#[cfg(test)]
pub(crate) fn all() -> &'static [&'static Endpoint] {
    &ENDPOINTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_parts_win_over_parameters() {
        let path = |method, path| find(method, path).map(|(endpoint, _)| endpoint.path);
        assert_eq!(path("GET", "/nodes/a/qemu/1/config"), Some("/nodes/{node}/qemu/{vmid}/config"));
        assert_eq!(path("GET", "/nosuch"), None);
        assert_eq!(path("PUT", "/version"), None);
        let (_, captures) = find("GET", "/nodes/a/storage/local/content/local:iso/x.iso").unwrap();
        assert_eq!(captures["volume"], "local:iso/x.iso");
    }
}
