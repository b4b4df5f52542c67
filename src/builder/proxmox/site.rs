//! Where a build is going to happen: who asks, which node, which storages; and whether it can, before
//! anything is made.
//!
//! ```text
//! profile, environment ─► settings ─► Client ─► look ─► Survey ─► findings (for `forge doctor`)
//!                                                             └─► preflight: a Site, or what is missing
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::anyhow;

use super::access::{self, Place, Rights};
use super::survey::{self, NodeView, Route, Survey, Wish};
use crate::definition::{Profile, ProxmoxProfile, Secret};
use crate::failure::{Failure, Kind};
use crate::pve::{
    Client, Credentials, Error, NodeName, Pace, SecretSource, Settings, StorageId, StorageStatus, Trust,
    Version, Vmid,
};
use crate::seed::server::local_address_towards;

/// The environment variables that credentials may stand in.
pub const TOKEN: &str = "FORGE_PVE_TOKEN";
/// The user, as `USER@REALM`, with [`PASSWORD`].
pub const USER: &str = "FORGE_PVE_USER";
/// The user's password.
pub const PASSWORD: &str = "FORGE_PVE_PASSWORD";

/// How many times faster the server's clock runs than a real one's: a simulated server's may.
const FASTER: &str = "FORGE_PVE_FASTER";

/// A storage for disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskStorage {
    /// Its name.
    pub id: StorageId,
    /// `zfspool`, `lvmthin`, `dir`, …
    pub kind: String,
    /// Whether `format=` may be given: storages of files take several, the others take raw alone.
    pub takes_format: bool,
    /// Whether a template's clones can share its disks.
    pub linked_clones: bool,
    /// Free bytes.
    pub free: u64,
}

/// A storage for installer media.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MediaStorage {
    /// Its name.
    pub id: StorageId,
    /// Free bytes.
    pub free: u64,
}

/// Where a build happens.
#[derive(Debug, Clone)]
pub struct Site {
    /// The node.
    pub node: NodeName,
    /// What it runs.
    pub version: Version,
    /// Where disks go.
    pub disks: DiskStorage,
    /// Where installer media go.
    pub media: MediaStorage,
    /// The bridge.
    pub bridge: String,
    /// The VLAN on it.
    pub vlan: Option<u16>,
    /// The pool that machines are put into.
    pub pool: Option<String>,
    /// The VMIDs that a build may take.
    pub vmids: RangeInclusive<u32>,
    /// Those of them that were seen to be in use; there may be more, which this user may not see.
    pub taken: BTreeSet<u32>,
    /// Whether the node may download media by itself (Sys.AccessNetwork).
    pub can_download: bool,
    /// Whether tags may be given when a VM is created: rights that come by a pool do not count then.
    pub tags_on_create: bool,
    /// The address of the endpoint that answers, towards which forge's server is.
    pub address: Option<IpAddr>,
    /// What a build should say before it begins.
    pub warnings: Vec<String>,
}

impl Site {
    /// Returns the VMIDs to try, the free ones in order; the create call alone tells whether one is.
    pub fn candidates(&self) -> impl Iterator<Item = Vmid> {
        self.vmids.clone().filter(|vmid| !self.taken.contains(vmid)).filter_map(Vmid::new)
    }
}

/// Returns what the client needs to know, by a profile and the environment; `root` is what its paths are
/// relative to.
///
/// # Errors
/// Kind `Infrastructure` when there are no credentials or they cannot be read; kind `Definition` when an
/// endpoint or a fingerprint is none.
pub async fn settings(
    profile: &ProxmoxProfile,
    root: &Path,
    environment: &BTreeMap<String, String>,
) -> Result<Settings, Failure> {
    let credentials = credentials(profile, root, environment).await?;
    let mut settings = settings_with(profile, root, credentials)?;
    if let Some(times) = environment.get(FASTER).and_then(|text| text.parse().ok()).filter(|it| *it > 0) {
        settings.pace = settings.pace.faster(times);
    }
    Ok(settings)
}

/// Returns the settings with these credentials.
///
/// # Errors
/// As [`settings`].
pub fn settings_with(
    profile: &ProxmoxProfile,
    root: &Path,
    credentials: Credentials,
) -> Result<Settings, Failure> {
    let endpoints = profile.endpoints.iter().map(|text| text.parse()).collect::<Result<_, Error>>();
    let endpoints = endpoints.map_err(|error| Failure::new(Kind::Definition, error))?;
    Ok(Settings { endpoints, credentials, trust: trust(profile, root)?, pace: Pace::default() })
}

fn trust(profile: &ProxmoxProfile, root: &Path) -> Result<Trust, Failure> {
    if !profile.verify_tls {
        return Ok(Trust::Anything);
    }
    match (&profile.fingerprint, &profile.ca_file) {
        (Some(pin), _) => {
            let pin = pin.parse().map_err(|error: Error| Failure::new(Kind::Definition, error))?;
            Ok(Trust::Pinned(vec![pin]))
        }
        (None, Some(file)) => Ok(Trust::CaFile(root.join(file))),
        (None, None) => Ok(Trust::System),
    }
}

async fn credentials(
    profile: &ProxmoxProfile,
    root: &Path,
    environment: &BTreeMap<String, String>,
) -> Result<Credentials, Failure> {
    for name in [TOKEN, USER, PASSWORD] {
        // The environment that is passed on holds text alone.
        check_is_text(name, std::env::var_os(name).as_deref())?;
    }
    let set = |name: &str| environment.get(name).filter(|value| !value.trim().is_empty());
    let source = match (set(TOKEN), set(USER), set(PASSWORD)) {
        (Some(token), _, _) => return parsed(Credentials::parse_token(&Secret::new(token)), TOKEN),
        (None, Some(user), Some(password)) => {
            return parsed(Credentials::password(user.trim(), Secret::new(password)), USER);
        }
        (None, Some(_), None) => return Err(half(USER, PASSWORD)),
        (None, None, Some(_)) => return Err(half(PASSWORD, USER)),
        (None, None, None) => match (&profile.token_file, &profile.token_command) {
            (Some(file), _) => SecretSource::File(root.join(file)),
            (None, Some(command)) => SecretSource::Command(command.clone()),
            (None, None) => return Err(no_credentials()),
        },
    };
    let key = if matches!(source, SecretSource::File(_)) { "token_file" } else { "token_command" };
    let failed = |error: Error| {
        Failure::new(Kind::Infrastructure, error).hint(format!(
            "`{key}` of the builder profile says to take the token from there: set it right, or export {TOKEN}"
        ))
    };
    let token = source.load().await.map_err(failed)?;
    parsed(Credentials::parse_token(&token), &source.to_string())
}

fn check_is_text(name: &str, value: Option<&OsStr>) -> Result<(), Failure> {
    match value.map(OsStr::to_str) {
        Some(None) => Err(Failure::new(
            Kind::Infrastructure,
            anyhow!("{name} is set, but to something that is no UTF-8"),
        )),
        Some(Some(_)) | None => Ok(()),
    }
}

fn parsed(credentials: Result<Credentials, Error>, from: &str) -> Result<Credentials, Failure> {
    credentials
        .map_err(|error| Failure::new(Kind::Infrastructure, error).hint(format!("it was taken from {from}")))
}

fn half(set: &str, unset: &str) -> Failure {
    Failure::new(Kind::Infrastructure, anyhow!("{set} is set and {unset} is not"))
        .hint("set both, or a token")
}

fn no_credentials() -> Failure {
    let error = anyhow!("no credentials for Proxmox: {TOKEN} is not set, nor are {USER} and {PASSWORD}");
    Failure::new(Kind::Infrastructure, error)
        .hint(format!("export {TOKEN}='USER@REALM!NAME=SECRET'"))
        .hint("or name a `token_file` or a `token_command` in the builder profile")
}

/// What to know of a profile that switches verification off.
pub const UNVERIFIED: &str = "the certificate of Proxmox is not verified (`verify_tls = false`): anybody on the \
                              way can read the token";

/// Returns an error of the client as a failure, with what to do about it.
#[must_use]
pub fn failed(error: Error) -> Failure {
    let is_late = matches!(error, Error::Deadline { .. });
    let mut hints = error.hints();
    if is_late {
        hints.push("if it is only slow: a longer `task_timeout` in the builder profile".to_owned());
    }
    let kind = if is_late { Kind::Deadline } else { Kind::Infrastructure };
    hints.into_iter().fold(Failure::new(kind, error), Failure::hint)
}

/// Returns the time by the server's clock, in seconds since 1970: leases are written and read by it.
#[must_use]
pub fn server_now(client: &Client) -> i64 {
    jiff::Timestamp::now().as_second() + client.clock_ahead().unwrap_or_default()
}

/// Sees whether a build can happen there and chooses its node; nothing is changed.
///
/// # Errors
/// Kind `Infrastructure` with everything that is missing; `forge doctor --on` says the same.
pub async fn preflight(client: &Client, profile: &Profile, wish: &Wish) -> Result<Site, Failure> {
    let survey = look(client, profile, wish).await.map_err(failed)?;
    let findings = survey.findings();
    let missing: Vec<_> = findings.iter().filter(|finding| finding.level == survey::Level::Missing).collect();
    if !missing.is_empty() {
        let told = missing.iter().map(|finding| format!("{}: {}", finding.name, finding.found));
        let error = anyhow!("no build is possible there: {}", told.collect::<Vec<_>>().join("; "));
        let lacks_rights = missing.iter().any(|finding| finding.name.starts_with("rights on "));
        let commands = if lacks_rights { survey.commands() } else { Vec::new() };
        let hints = missing.iter().filter_map(|finding| finding.advice.clone()).chain(commands);
        return Err(hints.fold(Failure::new(Kind::Infrastructure, error), Failure::hint));
    }
    let warnings = findings.iter().filter(|finding| finding.level == survey::Level::Warn);
    let warnings = warnings.map(|finding| format!("{}: {}", finding.name, finding.found)).collect();
    survey.site(warnings).ok_or_else(|| {
        Failure::new(Kind::Unexpected, anyhow!("a build is possible there, and its place was not found"))
    })
}

/// Asks the cluster for everything that matters to a build.
///
/// # Errors
/// When it does not answer, or lets nobody in.
pub async fn look(client: &Client, profile: &Profile, wish: &Wish) -> Result<Survey, Error> {
    let place = profile.proxmox.clone().unwrap_or_default();
    let version = client.version().await?;
    let nodes = nodes(client, &place).await?;
    let chosen = survey::choose(&place, &nodes).ok();
    let guests = client.guests().await?;
    let vmids = survey::vmids(&place);
    let taken: BTreeSet<u32> =
        guests.iter().map(|guest| guest.vmid.get()).filter(|vmid| vmids.contains(vmid)).collect();
    let scratch = vmids.clone().find(|vmid| !taken.contains(vmid)).unwrap_or(*vmids.start());
    let is_vnet = chosen.is_some_and(|node| node.bridge(&place.bridge).is_some_and(|it| it.kind == "vnet"));
    let needs = access::needs(&Place {
        profile: &place,
        node: chosen.map(|node| node.name.as_str()).or(survey::fixed(&place)),
        scratch,
        templates: &wish.templates,
        agent: version.agent_privileges(),
        is_vnet,
        uploads_answers: wish.uploads_answers,
    });
    let mut rights = Rights::new();
    for path in needs.iter().flat_map(access::Need::paths).collect::<BTreeSet<_>>() {
        rights.insert(path.to_owned(), client.privileges(path).await?);
    }
    let roles = client.roles().await?.into_iter().map(|role| role.roleid).collect();
    let pools = if place.pool.is_some() { client.pools().await? } else { Vec::new() };
    let route = route(client, profile).await;
    Ok(Survey {
        profile: place,
        emulates: profile.machine.kvm == Some(false),
        wish: wish.clone(),
        who: client.who().to_owned(),
        version,
        ahead: client.clock_ahead(),
        nodes,
        taken,
        scratch,
        needs,
        rights,
        roles,
        pools,
        route,
    })
}

async fn nodes(client: &Client, profile: &ProxmoxProfile) -> Result<Vec<NodeView>, Error> {
    let mut views = Vec::new();
    for node in client.nodes().await? {
        let mut view = NodeView {
            name: node.node.clone(),
            is_online: node.is_online(),
            // Without Sys.Audit both are left out.
            free_memory: (node.maxmem > 0).then(|| node.maxmem.saturating_sub(node.mem)),
            ..NodeView::default()
        };
        let wanted = survey::fixed(profile).is_none_or(|name| name == node.node);
        if let Ok(name) = node.node.parse::<NodeName>()
            && wanted
            && view.is_online
        {
            match storages_and_bridges(client, &name).await {
                Ok((storages, bridges)) => {
                    (view.storages, view.bridges) = (storages, bridges);
                    view.has_kvm = client.node_status(&name).await.ok().and_then(|status| has_kvm(&status));
                }
                // A node that is down, as the cluster will notice in a moment, hides no other.
                Err(error @ (Error::NotSent { .. } | Error::Unknown { .. })) => {
                    view.trouble = Some(error.to_string());
                }
                Err(error) => return Err(error),
            }
        }
        views.push(view);
    }
    Ok(views)
}

/// Reads `cpuinfo.hvm` of a node's status: `1`, or an empty text where there is none.
fn has_kvm(status: &serde_json::Value) -> Option<bool> {
    match &status["cpuinfo"]["hvm"] {
        serde_json::Value::String(hvm) => Some(!matches!(hvm.as_str(), "" | "0")),
        serde_json::Value::Number(hvm) => Some(hvm.as_u64() != Some(0)),
        _ => None,
    }
}

async fn storages_and_bridges(
    client: &Client,
    node: &NodeName,
) -> Result<(Vec<StorageStatus>, Vec<crate::pve::Bridge>), Error> {
    Ok((client.storages(node, None).await?, client.bridges(node).await?))
}

/// Finds out how guests would reach this machine.
async fn route(client: &Client, profile: &Profile) -> Route {
    let node = address(client).await;
    let ours = match (&profile.http.bind, node) {
        (Some(bind), _) if bind.parse::<IpAddr>().is_ok_and(|it| !it.is_unspecified()) => bind.parse().ok(),
        (_, Some(node)) => local_address_towards(node).ok(),
        (_, None) => None,
    };
    Route { node, ours, advertised: profile.http.advertise.clone() }
}

/// Returns the address of the endpoint that answers; nothing when its name has none here.
pub async fn address(client: &Client) -> Option<IpAddr> {
    let host = client.endpoint().host();
    if let Ok(address) = host.parse() {
        return Some(address);
    }
    let found: Vec<_> = tokio::net::lookup_host((host, 0)).await.ok()?.map(|found| found.ip()).collect();
    // Guests get an IPv4 address first.
    found.iter().find(|address| address.is_ipv4()).or(found.first()).copied()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fake::{Answer, Fake};
    use super::*;
    use crate::pve::Fingerprint;

    fn environment(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    async fn who(profile: &ProxmoxProfile, root: &Path, pairs: &[(&str, &str)]) -> Result<String, Failure> {
        credentials(profile, root, &environment(pairs)).await.map(|found| found.who().to_owned())
    }

    #[tokio::test]
    async fn credentials_come_from_the_environment_first() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("token"), "file@pve!t=secret\n").unwrap();
        let with_file = ProxmoxProfile { token_file: Some("token".into()), ..ProxmoxProfile::default() };
        let command = vec!["echo".to_owned(), "command@pve!t=secret".to_owned()];
        let with_command = ProxmoxProfile { token_command: Some(command), ..ProxmoxProfile::default() };
        let token = (TOKEN, "env@pve!t=secret");
        let user = [(USER, "root@pam"), (PASSWORD, "secret")];
        for (profile, pairs, expected) in [
            (&with_file, &[token, user[0], user[1]][..], "env@pve!t"),
            (&with_file, &user, "root@pam"),
            (&with_file, &[(TOKEN, " ")], "file@pve!t"),
            (&with_command, &[], "command@pve!t"),
        ] {
            assert_eq!(who(profile, root.path(), pairs).await.unwrap(), expected);
        }
    }

    #[test]
    fn a_token_that_is_no_text_is_not_told_as_missing() {
        use std::os::unix::ffi::OsStrExt as _;
        let failure = check_is_text(TOKEN, Some(OsStr::from_bytes(b"a@b!c=\xff"))).unwrap_err();
        assert_eq!(failure.to_string(), "FORGE_PVE_TOKEN is set, but to something that is no UTF-8");
        assert!(check_is_text(TOKEN, Some(OsStr::new("a"))).is_ok() && check_is_text(TOKEN, None).is_ok());
    }

    #[tokio::test]
    async fn what_is_missing_is_said_and_no_secret() {
        let profile = ProxmoxProfile::default();
        let no_file = ProxmoxProfile { token_file: Some("nowhere".into()), ..ProxmoxProfile::default() };
        for (profile, pairs, expected) in [
            (&profile, &[][..], "no credentials for Proxmox: FORGE_PVE_TOKEN is not set, nor are "),
            (&profile, &[(USER, "root@pam")], "FORGE_PVE_USER is set and FORGE_PVE_PASSWORD is not"),
            (&profile, &[(PASSWORD, "hunter2")], "FORGE_PVE_PASSWORD is set and FORGE_PVE_USER is not"),
            (&profile, &[(TOKEN, "hunter2")], "the API token: it must have the form "),
            (&profile, &[(USER, "root"), (PASSWORD, "hunter2")], "the user: it needs its realm"),
            (&no_file, &[], "the file "),
        ] {
            let failure = who(profile, Path::new("/nonexistent"), pairs).await.unwrap_err();
            let text = format!("{failure} {:?}", failure.hints);
            assert!(text.contains(expected) && !text.contains("hunter2"), "{text}");
            assert_eq!(failure.kind, Kind::Infrastructure);
        }
    }

    /// Answers as a node does on which all is well but for rights on these paths.
    fn answer(request: &str, forbidden: &[&str]) -> Answer {
        const OTHERS: [&str; 8] = [
            "VM.Monitor",
            "Datastore.AllocateSpace",
            "Datastore.AllocateTemplate",
            "Datastore.Audit",
            "SDN.Use",
            "Sys.AccessNetwork",
            "Sys.Audit",
            "Pool.Audit",
        ];
        let (path, query) = request.split_once('?').unwrap_or((request, ""));
        let storage = |name: &str, kind: &str, content: &str| {
            let gib = 50_u64 << 30;
            json!({ "storage": name, "type": kind, "content": content, "enabled": 1, "active": 1, "avail": gib, "total": gib })
        };
        let data = match path {
            "GET /version" => json!({ "version": "8.4.21", "release": "8.4" }),
            "GET /nodes" => json!([
                { "node": "asgard", "status": "online", "maxmem": 100, "mem": 50 },
                { "node": "midgard", "status": "online", "maxmem": 100, "mem": 10 },
            ]),
            "GET /nodes/asgard/storage" => {
                json!([storage("local-zfs", "zfspool", "images"), storage("local", "dir", "iso")])
            }
            "GET /nodes/midgard/storage" => json!([storage("local", "dir", "iso")]),
            "GET /nodes/asgard/network" | "GET /nodes/midgard/network" => {
                json!([{ "iface": "vmbr0", "type": "bridge", "active": 1 }])
            }
            "GET /cluster/resources" => json!([{ "vmid": 9000, "node": "asgard", "type": "qemu" }]),
            "GET /access/roles" => json!([{ "roleid": "ForgeVM", "privs": "VM.Audit" }]),
            "GET /access/permissions" => {
                let asked = query.strip_prefix("path=").unwrap();
                let all = access::VM.iter().chain(&OTHERS).filter(|_| !forbidden.contains(&asked));
                let held: serde_json::Map<_, _> = all.map(|name| ((*name).to_owned(), json!(1))).collect();
                json!({ asked: held })
            }
            _ => return (501, json!(format!("Method '{request}' not implemented"))),
        };
        (200, data)
    }

    fn profile() -> Profile {
        toml::from_str("schema = 1\n[proxmox]\n[http]\nadvertise = \"forge.lan\"").unwrap()
    }

    #[tokio::test]
    async fn a_build_knows_its_place_before_it_begins_and_changes_nothing() {
        let fake = Fake::start(|request| answer(request, &["/nodes/asgard"])).await;
        let wish = Wish { templates: vec![90001], ..Wish::default() };
        let site = preflight(&fake.client, &profile(), &wish).await.unwrap();
        assert_eq!((site.node.as_str(), site.disks.kind.as_str()), ("asgard", "zfspool"));
        assert_eq!(site.candidates().next(), Vmid::new(9001));
        assert!(!site.can_download && site.tags_on_create);
        assert_eq!(site.warnings.len(), 2, "{:?}", site.warnings);
        assert!(fake.changes().is_empty());
    }

    #[tokio::test]
    async fn everything_that_is_missing_is_said_at_once_with_what_to_type() {
        let fake = Fake::start(|request| answer(request, &["/vms/9001", "/storage/local"])).await;
        let failure = preflight(&fake.client, &profile(), &Wish::default()).await.unwrap_err();
        let text = failure.to_string();
        for part in ["no build is possible there", "rights on /vms/9001", "rights on /storage/local: "] {
            assert!(text.contains(part), "{text}");
        }
        let hints = failure.hints.join("\n");
        for part in [
            "pveum role modify ForgeVM --append 1 --privs \"VM.Allocate ",
            "pveum role add ForgeStorage --privs ",
            "pveum acl modify /vms --users forge@pve --tokens 'forge@pve!ci' --roles ForgeVM",
        ] {
            assert!(hints.contains(part), "{hints}");
        }
    }

    #[test]
    fn trust_is_what_the_profile_says() {
        let pin = "A1:".repeat(31) + "B2";
        let profile = |change: fn(&mut ProxmoxProfile, String)| {
            let mut profile = ProxmoxProfile::default();
            change(&mut profile, pin.clone());
            trust(&profile, Path::new("/root")).unwrap()
        };
        assert_eq!(profile(|_, _| {}), Trust::System);
        assert_eq!(profile(|it, _| it.verify_tls = false), Trust::Anything);
        assert_eq!(profile(|it, _| it.ca_file = Some("ca.pem".into())), Trust::CaFile("/root/ca.pem".into()));
        let pinned: Fingerprint = pin.parse().unwrap();
        assert_eq!(profile(|it, pin| it.fingerprint = Some(pin)), Trust::Pinned(vec![pinned]));
    }
}
