//! The simulator's one shared state, and the way of a call through its checks.
//!
//! Route, conflict with the URI, token allowed, permission, node, parameters, code: in that order.
//! Source: pve-manager `PVE/HTTPServer.pm` `rest_handler`.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

use crate::access::Identity;
use crate::answer::{Answer, Failure};
use crate::api::{self, Endpoint};
use crate::clock::Clock;
use crate::console::Consoles;
use crate::fault::{Action, Faults};
use crate::held;
use crate::http::proxies::Proxies;
use crate::hypervisor::{Hypervisor, Network};
use crate::record::Record;
use crate::schema::{Args, validate};
use crate::tls::Certificate;
use crate::world::World;
use crate::world::lock::Locks;

/// A ticket that somebody logged in for.
#[derive(Clone, Debug)]
pub(crate) struct Ticket {
    pub(crate) user: String,
    pub(crate) csrf: String,
    pub(crate) made: i64,
}

/// Everything that connections and tasks share.
#[derive(Debug)]
pub(crate) struct Sim {
    world: Mutex<World>,
    pub(crate) locks: Locks,
    pub(crate) clock: Clock,
    pub(crate) hypervisor: Arc<dyn Hypervisor>,
    pub(crate) qemu: PathBuf,
    pub(crate) network: Network,
    pub(crate) faults: Faults,
    pub(crate) record: Record,
    pub(crate) consoles: Consoles,
    pub(crate) tickets: Mutex<BTreeMap<String, Ticket>>,
    pub(crate) certificate: Mutex<Certificate>,
    /// New connections are closed before their first byte.
    pub(crate) barred: AtomicBool,
    pub(crate) proxies: Proxies,
    /// The three single-threaded workers that run protected calls.
    pub(crate) workers: Semaphore,
    /// One client at a time per agent socket.
    agents: Mutex<HashMap<u32, Arc<tokio::sync::Mutex<()>>>>,
    reloading: Mutex<Option<Instant>>,
}

pub(crate) struct Parts {
    pub(crate) world: World,
    pub(crate) clock: Clock,
    pub(crate) hypervisor: Arc<dyn Hypervisor>,
    pub(crate) qemu: PathBuf,
    pub(crate) network: Network,
    pub(crate) faults: Faults,
    pub(crate) certificate: Certificate,
}

impl Sim {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            world: Mutex::new(parts.world),
            locks: Locks::new(parts.clock),
            clock: parts.clock,
            hypervisor: parts.hypervisor,
            qemu: parts.qemu,
            network: parts.network,
            faults: parts.faults,
            record: Record::new(),
            consoles: Consoles::default(),
            tickets: Mutex::default(),
            certificate: Mutex::new(parts.certificate),
            barred: AtomicBool::new(false),
            proxies: Proxies::default(),
            workers: Semaphore::new(3),
            agents: Mutex::default(),
            reloading: Mutex::default(),
        }
    }

    /// The world; held only for moments, never across an await.
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        held(&self.world)
    }

    pub(crate) fn agent_socket(&self, vmid: u32) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(held(&self.agents).entry(vmid).or_default())
    }

    /// Whether pveproxy has been told to reload within the last `seconds`.
    pub(crate) fn reloading(&self, seconds: f64) -> bool {
        let since = held(&self.reloading);
        since.is_some_and(|at| at.elapsed() < self.clock.span(seconds))
    }

    pub(crate) fn reload(&self) {
        *held(&self.reloading) = Some(Instant::now());
    }
}

/// A websocket client's headers.
#[derive(Clone, Debug)]
pub(crate) struct Upgrade {
    pub(crate) key: String,
    pub(crate) binary: bool,
}

/// A call on its way through the code of its endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) sim: Arc<Sim>,
    pub(crate) who: Identity,
    pub(crate) args: Args,
    /// The node in the path; the answering one for paths without.
    pub(crate) node: String,
    /// The number of this request in the record.
    pub(crate) record: usize,
    /// What goes wrong with the task that this call starts.
    pub(crate) fault: Option<Action>,
    pub(crate) upgrade: Option<Upgrade>,
}

/// A call before its checks.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) method: String,
    /// Below `/api2/json`.
    pub(crate) path: String,
    pub(crate) given: Map<String, Value>,
    pub(crate) who: Option<Identity>,
    pub(crate) record: usize,
    pub(crate) fault: Option<Action>,
    pub(crate) upgrade: Option<Upgrade>,
}

/// Takes a call through all checks and runs it.
pub(crate) async fn dispatch(sim: &Arc<Sim>, incoming: Incoming) -> Answer {
    let (endpoint, call) = check(sim, incoming)?;
    if !endpoint.protected {
        return (endpoint.run)(call).await;
    }
    if sim.reloading(1.0) {
        return Err(Failure::new(595, "Connection refused"));
    }
    run_protected(sim, endpoint, call).await
}

/// Protected calls go on when their client has gone, and when pveproxy has given up after 30 s.
async fn run_protected(sim: &Arc<Sim>, endpoint: &'static Endpoint, call: Call) -> Answer {
    let shared = Arc::clone(sim);
    let work = tokio::spawn(async move {
        let _worker = shared.workers.acquire().await.expect("the semaphore is never closed");
        (endpoint.run)(call).await
    });
    let answer = match tokio::time::timeout(sim.clock.span(30.0), work).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => return Err(Failure::new(596, "Connection reset by peer")),
        Err(_) => return Err(Failure::new(596, "Connection timed out")),
    };
    match answer {
        // A text above Latin-1 kills the worker while it writes its answer.
        Err(failure) if failure.message.chars().any(|c| c > '\u{ff}') => {
            Err(Failure { delay: 5.0, ..Failure::new(596, "Broken pipe") })
        }
        other => other,
    }
}

fn check(sim: &Arc<Sim>, incoming: Incoming) -> Result<(&'static Endpoint, Call), Failure> {
    let Incoming { method, path, mut given, who, record, fault, upgrade } = incoming;
    let Some((endpoint, captures)) = api::find(&method, &path) else {
        let shown = path.trim_end_matches('/');
        return Err(Failure::new(501, format!("Method '{method} {shown}' not implemented")));
    };
    merge_captures(&mut given, &captures)?;
    sim.record.note(record, |request| {
        request.endpoint = Some(format!("{method} {}", endpoint.path.replace('*', "")));
    });
    sim.record.params(record, &given);
    let who = who.unwrap_or_else(|| Identity::parse(""));
    if !endpoint.token_allowed && who.token.is_some() {
        return Err(Failure::new(
            403,
            format!(
                "Permission check failed (URI '{path}' not available with API token, need proper \
                 ticket.\n)\n"
            ),
        ));
    }
    let major = {
        let world = sim.world();
        endpoint.allow.check(&world.access, &who, &given)?;
        world.release.major()
    };
    let node = match captures.get("node").map(String::as_str) {
        None => sim.world().home.clone(),
        Some(name) => resolve_node(sim, name)?,
    };
    let args = validate(endpoint.params, major, &given).map_err(Failure::parameters)?;
    Ok((endpoint, Call { sim: Arc::clone(sim), who, args, node, record, fault, upgrade }))
}

/// Parameters in the path may be given once more, but not differently.
fn merge_captures(
    given: &mut Map<String, Value>,
    captures: &BTreeMap<&'static str, String>,
) -> Result<(), Failure> {
    for (name, value) in captures {
        let again = given.get(*name).map(raw_text);
        if again.is_some_and(|again| again != *value) {
            let text = "duplicate parameter (already defined in URI) with conflicting values!";
            return Err(Failure::parameter(name, text));
        }
        given.insert((*name).into(), json!(value));
    }
    Ok(())
}

/// A raw value as text, for templates of permissions.
pub(crate) fn raw_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn resolve_node(sim: &Sim, name: &str) -> Result<String, Failure> {
    let world = sim.world();
    if name == "localhost" {
        return Ok(world.home.clone());
    }
    if world.has_node(name) {
        return Ok(name.into());
    }
    Err(Failure::died(format!(
        "hostname lookup '{name}' failed - failed to get address info for: {name}: Temporary failure in \
         name resolution"
    )))
}
