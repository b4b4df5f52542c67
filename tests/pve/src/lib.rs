//! A simulated Proxmox VE: pveproxy, permissions, tasks, locks, configurations and storages.
//!
//! ```text
//! http/      bytes: TLS, heads, bodies, uploads, websockets       auth      who sends a request
//! sim        the way of a call through its checks                 schema/   its parameters
//! api/       the endpoints        worker    tasks                 disk      volumes as files
//! world/     what there is        fault, strike   what goes wrong record    what was asked
//! hypervisor what machines must be able to do        fake   machines that are only pretended
//! machine/   machines by QEMU                        cloudinit   their cloud-init drives
//! ssh        the SSH server of their guests
//! ```
//! Where the text of an error, an order or a delay looks odd, it is Proxmox's own.

mod access;
mod answer;
mod api;
mod auth;
mod clock;
pub mod cloudinit;
mod console;
mod disk;
mod download;
pub mod fake;
mod fault;
#[cfg(test)]
mod golden;
mod http;
pub mod hypervisor;
pub mod machine;
mod published;
mod random;
mod record;
mod schema;
mod sim;
mod sparse;
pub mod ssh;
mod strike;
mod tls;
mod worker;
mod world;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use anyhow::Context as _;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub use fault::{Action, Guest, Of, Rule, When};
pub use published::Published;
pub use record::Request;
pub use world::spec::{AclSpec, Bridge, Release, TokenSpec, UserSpec, WorldSpec};
pub use world::storage::{Storage, StorageKind};

use clock::Clock;
use fault::Faults;
use hypervisor::{Hypervisor, Network};
use sim::{Parts, Sim};
use tls::Certificate;
use world::World;

/// What a mutex guards; nobody panics while holding one.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder panics")
}

/// How to start a simulator.
#[derive(Debug)]
pub struct Options {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where volumes and sockets are kept.
    pub state: PathBuf,
    /// What the cluster starts with.
    pub world: WorldSpec,
    /// What goes wrong.
    pub faults: Vec<Rule>,
    /// One second of Proxmox takes this many seconds here.
    pub time: f64,
    /// What starts machines.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// The QEMU program.
    pub qemu: PathBuf,
    /// How the machines' NICs are connected.
    pub network: Network,
}

impl Options {
    /// A default cluster on a free port of loopback, with pretended machines.
    pub fn new(state: impl Into<PathBuf>) -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            state: state.into(),
            world: WorldSpec::default(),
            faults: Vec::new(),
            time: 1.0,
            hypervisor: Arc::new(fake::Pretend::default()),
            qemu: "qemu-system-x86_64".into(),
            network: Network::User,
        }
    }
}

/// A running simulator; it ends when dropped.
#[derive(Debug)]
pub struct Simulator {
    sim: Arc<Sim>,
    address: SocketAddr,
    token: Option<String>,
    tasks: Vec<JoinHandle<()>>,
}

impl Simulator {
    /// Starts one.
    ///
    /// # Errors
    /// The address is taken, or the state folder cannot be made.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(options.listen)
            .await
            .with_context(|| format!("listening on {}", options.listen))?;
        let address = listener.local_addr().context("reading the listener's address")?;
        std::fs::create_dir_all(&options.state)
            .with_context(|| format!("making {}", options.state.display()))?;
        let token = options.world.tokens.first().map(|token| format!("{}={}", token.id, token.secret));
        let clock = Clock::new(options.time);
        let names = vec!["localhost".into(), address.ip().to_string()];
        let sim = Arc::new(Sim::new(Parts {
            world: World::new(options.world, options.state),
            clock,
            hypervisor: options.hypervisor,
            qemu: options.qemu,
            network: options.network,
            faults: Faults::new(options.faults),
            certificate: Certificate::new(names)?,
        }));
        let tasks =
            vec![tokio::spawn(accept(Arc::clone(&sim), listener)), tokio::spawn(tell(Arc::clone(&sim)))];
        Ok(Self { sim, address, token, tasks })
    }

    /// `https://ADDRESS:PORT`
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The address it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// SHA-256 of the certificate in use, as 32 pairs with colons.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        held(&self.sim.certificate).fingerprint.clone()
    }

    /// The certificate in use, as PEM.
    #[must_use]
    pub fn certificate(&self) -> String {
        held(&self.sim.certificate).pem.clone()
    }

    /// The first token: `USER@REALM!ID=SECRET`.
    #[must_use]
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// All requests so far.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.sim.record.all()
    }

    /// When the milliseconds of requests began.
    #[must_use]
    pub fn began(&self) -> SystemTime {
        self.sim.record.began
    }

    /// VMs, volumes, files, pools and rights, for comparison.
    #[must_use]
    pub fn dump(&self) -> Value {
        self.sim.world().dump()
    }

    /// Adds something that goes wrong from now on.
    pub fn add_fault(&self, rule: Rule) {
        self.sim.faults.add(rule);
    }

    /// Nothing goes wrong any more, beyond what has happened.
    pub fn clear_faults(&self) {
        self.sim.faults.clear();
    }

    /// Puts a file on a storage of the first node, as if it had been uploaded.
    ///
    /// # Errors
    /// An unknown storage or content, or an unwritable folder.
    pub fn put_file(&self, storage: &str, content: &str, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let folder = {
            let world = self.sim.world();
            let known = world.storage(storage).map_err(anyhow::Error::msg)?;
            let below = world::storage::content_folder(content);
            world.root(known, &world.home).join(below.context("this content has no folder")?)
        };
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let path = folder.join(name);
        std::fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))
    }

    /// Holds a VM's file lock until the guard is dropped, as another process would.
    pub async fn hold_lock(&self, vmid: u32) -> LockGuard {
        loop {
            if let Ok(guard) = self.sim.locks.exclusive(vmid, 10.0).await {
                return LockGuard(guard);
            }
        }
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// A held file lock.
#[derive(Debug)]
pub struct LockGuard(#[expect(dead_code, reason = "held for its drop")] world::lock::Guard);

async fn accept(sim: Arc<Sim>, listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        // Small answers must not wait for the acknowledgement of the one before.
        drop(stream.set_nodelay(true));
        tokio::spawn(http::conn::accept(Arc::clone(&sim), stream));
    }
}

/// The statistics daemon: lists of the whole cluster are 5 to 10 s late.
async fn tell(sim: Arc<Sim>) {
    loop {
        sim.clock.sleep(5.0).await;
        api::tell(&mut sim.world(), sim.clock.span(5.0));
    }
}
