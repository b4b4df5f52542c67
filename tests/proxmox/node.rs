//! A simulated node, and a root with a builder profile for it.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use forge::builder::proxmox::access;
use pve_sim::machine::Qemu;
use pve_sim::{AclSpec, Options, Release, Rule, Simulator, TokenSpec, WorldSpec};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::build::Build;
use crate::root::Root;

/// How many times faster time runs, unless a test says otherwise.
pub(crate) const FASTER: u32 = 10;

/// How long the last tasks may run on; a console waits ten seconds of the node's for its viewer.
const TASKS_END: Duration = Duration::from_secs(3);

/// The template's own VMID.
pub(crate) const TEMPLATE: &str = "9000";

const TOKEN: &str = "forge@pve!ci";

/// What is different on a node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Setting {
    /// The fault of a guest, as `FORGE_FAKE` of the stand-in for QEMU has it.
    pub(crate) guest: String,
    /// Keys of the profile's `[proxmox]` table beside those that it needs.
    pub(crate) profile: String,
    /// The node to build on, where it is not `asgard`.
    pub(crate) node: String,
    /// The cluster. Its one token may do what `forge doctor` asks for, and nothing else.
    pub(crate) world: WorldSpec,
    /// Whether the token may delete media, too.
    pub(crate) deletes_media: bool,
    /// A right that the token lacks.
    pub(crate) without: String,
    /// Whether the template is held to one contract only, that of a clone with a `NoCloud` drive.
    pub(crate) only_nocloud: bool,
    /// What goes wrong.
    pub(crate) rules: Vec<Rule>,
    /// How many times faster time runs.
    pub(crate) faster: Option<u32>,
}

/// A simulated node with a root beside it.
pub(crate) struct Node {
    pub(crate) simulator: Simulator,
    pub(crate) root: Root,
    pub(crate) faster: u32,
    _runtime: Runtime,
    _state: TempDir,
}

impl Node {
    pub(crate) fn new(setting: &Setting) -> Self {
        let root = Root::new();
        let state = tempfile::tempdir().unwrap();
        let mut options = Options::new(state.path());
        let faster = setting.faster.unwrap_or(FASTER);
        options.time = 1.0 / f64::from(faster);
        options.hypervisor = Arc::new(Qemu::default());
        options.qemu = root.path("bin/qemu");
        options.faults.clone_from(&setting.rules);
        options.world = with_rights(setting);
        let wrapper = format!(
            "#!/bin/sh\nFORGE_FAKE={} FORGE_FAKE_NOTES={} FORGE_FAKE_SSH={} exec \
             {}/tests/fake/qemu-system-x86_64 \"$@\"\n",
            setting.guest,
            root.path("notes").display(),
            root.ssh_socket().display(),
            env!("CARGO_MANIFEST_DIR")
        );
        fs::create_dir(root.path("notes")).unwrap();
        fs::write(&options.qemu, wrapper).unwrap();
        fs::set_permissions(&options.qemu, fs::Permissions::from_mode(0o755)).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.unwrap();
        let simulator = runtime.block_on(Simulator::start(options)).unwrap();
        let node = Self { simulator, root, faster, _runtime: runtime, _state: state };
        node.write_profile(setting);
        node.write_contracts(setting.only_nocloud);
        node
    }

    fn write_profile(&self, setting: &Setting) {
        let more = &setting.profile;
        let node = if setting.node.is_empty() { "asgard" } else { &setting.node };
        let profile = format!(
            "schema = 1\n[machine]\nkvm = false\ncpu = \"max\"\n[http]\nbind = \"127.0.0.1\"\n\
             advertise = \"10.0.2.2\"\n[proxmox]\nendpoints = [\"{}\"]\nfingerprint = \"{}\"\n\
             node = \"{node}\"\nvmids = \"8000-8009\"\n{more}\n",
            self.simulator.endpoint(),
            self.simulator.fingerprint(),
        );
        fs::write(self.root.path("builders/sim.toml"), profile).unwrap();
    }

    /// Returns the address of clones: one of this host that no other test's have.
    pub(crate) fn clone_address(&self) -> Ipv4Addr {
        let [high, low] = self.simulator.address().port().to_be_bytes();
        Ipv4Addr::new(127, high, low, 2)
    }

    fn write_contracts(&self, only_nocloud: bool) {
        let path = self.root.path("templates/mini/template.toml");
        let clone = self.clone_address();
        let [_, a, b, _] = clone.octets();
        let network = format!("[[contract]]\naddress = \"{clone}/24\"\ngateway = \"127.{a}.{b}.1\"");
        let mut text = fs::read_to_string(&path).unwrap().replace("[[contract]]", &network);
        if only_nocloud {
            text = text.replace("contracts = [\"proof\", \"config-drive\"]", "contracts = [\"proof\"]");
        }
        fs::write(&path, text).unwrap();
    }

    /// Returns forge with this root and the node's token.
    pub(crate) fn forge(&self, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forge"));
        let search = format!("{}:{}", self.root.path("bin").display(), std::env::var("PATH").unwrap());
        command.arg("-C").arg(self.root.path("")).arg(verb);
        command.env("PATH", search).env("XDG_CACHE_HOME", self.root.path("cache"));
        command.env("FORGE_TEST_MARK", &self.root.mark).env("FORGE_VAR_SECRET", &self.root.secret);
        command.env("FORGE_PVE_TOKEN", self.simulator.token().unwrap());
        command.env("FORGE_PVE_FASTER", self.faster.to_string());
        for name in ["FORGE_BUILDER", "FORGE_FAKE", "XDG_RUNTIME_DIR", "http_proxy", "https_proxy"] {
            command.env_remove(name);
        }
        command
    }

    /// Starts a build of `mini`.
    pub(crate) fn start(&self, args: &[&str]) -> Build {
        let mut command = self.forge("build");
        command.args(["mini", "--on", "sim", "--output", "json"]).args(args);
        Build::start(command)
    }

    /// Returns when a guest noted that, by the clock of the request log: `started-ROLE` when its agent
    /// started, `called-ROLE` when it said so to forge.
    pub(crate) fn noted_ms(&self, what: &str) -> Option<u64> {
        let text = fs::read_to_string(self.root.path("notes").join(what)).ok()?;
        let since_1970 = Duration::from_secs_f64(text.parse().unwrap());
        let began = self.simulator.began().duration_since(UNIX_EPOCH).unwrap();
        Some(since_1970.checked_sub(began)?.as_millis() as u64)
    }

    /// Removes what dead runs have left.
    pub(crate) fn remove_leftovers(&self) -> Output {
        self.forge("leftovers").args(["--on", "sim", "--remove"]).output().unwrap()
    }

    /// Returns everything that is there but media, which are a cache. A console that forge asked for and
    /// did not take up ends by itself: so tasks get a moment to do so.
    pub(crate) fn world(&self) -> Value {
        let deadline = Instant::now() + TASKS_END;
        let mut world = self.simulator.dump();
        while world["running_tasks"] != 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
            world = self.simulator.dump();
        }
        world["files"].as_array_mut().unwrap().retain(|file| !is_cached(file));
        world
    }

    /// Returns the numbers of all VMs.
    pub(crate) fn vmids(&self) -> Vec<String> {
        self.simulator.dump()["vms"].as_object().unwrap().keys().cloned().collect()
    }

    /// Returns the folder of the artifact.
    pub(crate) fn artifact(&self, file: &str) -> std::path::PathBuf {
        self.root.path("artifacts/mini/1.0").join(Path::new(file))
    }
}

/// Returns the cluster with a token that has the documented rights, where they are documented to be: on
/// VMs or the pool, on each storage by what it is for, on bridge and node.
fn with_rights(setting: &Setting) -> WorldSpec {
    let mut world = setting.world.clone();
    let agent = if world.release == Release::V9 { "VM.GuestAgent.Unrestricted" } else { "VM.Monitor" };
    let vms = [&access::VM[..], &[agent]].concat();
    let mut grants = match world.pools.first() {
        Some(pool) => vec![(format!("/pool/{pool}"), [&vms[..], &["Pool.Audit"]].concat())],
        None => vec![("/vms".to_owned(), vms)],
    };
    for storage in &world.storages {
        let holds = |content: &str| storage.content.iter().any(|held| held == content);
        let rights = [
            ("Datastore.Audit", true),
            ("Datastore.AllocateSpace", holds("images")),
            ("Datastore.AllocateTemplate", holds("iso")),
            ("Datastore.Allocate", holds("iso") && setting.deletes_media),
        ];
        let rights = rights.into_iter().filter(|(_, wanted)| *wanted).map(|(name, _)| name).collect();
        grants.push((format!("/storage/{}", storage.id), rights));
    }
    grants.push(("/sdn/zones/localnetwork/vmbr0".to_owned(), vec!["SDN.Use"]));
    grants.push(("/nodes".to_owned(), vec!["Sys.AccessNetwork", "Sys.Audit"]));
    for (at, (path, rights)) in grants.into_iter().enumerate() {
        let role = format!("Forge{at}");
        let rights = rights.into_iter().filter(|right| *right != setting.without);
        world.roles.insert(role.clone(), rights.map(String::from).collect());
        // A token has what both it and its user have.
        let acl = |who: &str| AclSpec { path: path.clone(), who: who.into(), role: role.clone() };
        world.acls.extend([acl("forge@pve"), acl(TOKEN)]);
    }
    world.tokens = vec![TokenSpec {
        id: TOKEN.to_owned(),
        secret: "5f0c6b1e-1d3c-4f5a-9a57-1d2f3c4b5a69".to_owned(),
        privsep: true,
        expire: 0,
        comment: None,
    }];
    world
}

/// Takes the VMs of that kind with their volumes out of the world, and returns how many there were.
pub(crate) fn take_vms(world: &mut Value, is_it: impl Fn(&Value) -> bool) -> usize {
    let all = world["vms"].as_object().unwrap().clone();
    let gone: Vec<_> = all.iter().filter(|(_, vm)| is_it(vm)).map(|(vmid, _)| vmid).collect();
    for vmid in &gone {
        world["vms"].as_object_mut().unwrap().remove(*vmid);
        let own = |image: &Value| image["volid"].as_str().unwrap().contains(&format!("-{vmid}-"));
        world["images"].as_array_mut().unwrap().retain(|image| !own(image));
        for members in world["pools"].as_object_mut().unwrap().values_mut() {
            members.as_array_mut().unwrap().retain(|member| member.as_u64() != vmid.parse().ok());
        }
    }
    gone.len()
}

pub(crate) fn is_template(vm: &Value) -> bool {
    vm["config"]["template"] == "1"
}

/// Tells whether a file is one that the next build uses again: named by its digest.
fn is_cached(file: &Value) -> bool {
    let volid = file["volid"].as_str().unwrap();
    let name = volid.split_once(":iso/").and_then(|(_, name)| name.strip_suffix(".iso"));
    let digest = name.and_then(|name| name.rsplit_once('-')).map(|(_, digest)| digest);
    digest.is_some_and(|digest| digest.len() == 64 && digest.bytes().all(|it| it.is_ascii_hexdigit()))
}
