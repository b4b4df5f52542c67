//! Sends requests and repeats those that may be repeated.
//!
//! Each call is made in a task of its own and goes on when nobody waits for it any more: a change that has
//! been sent is carried out whatever the caller does, and the next call for that VM must not begin before
//! its answer is in. What has not been sent by then, is not.
//!
//! ```text
//! call ─► turn (one per VM, two agent calls per node) ─► attempt ─┬─► value
//!                                                          ▲      ├─► refused, forbidden, …: the caller's
//!                        not sent, or a read without answer┴──────┤
//!                                                                 └─► a change without answer: Unknown
//! ```

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use hickory_resolver::TokioResolver;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;

use super::auth::{Auth, Headers};
use super::call::Call;
use super::counts::{Counter, Counts};
use super::error::Answer;
use super::http::{Broken, Connection, Response};
use super::settings::{Endpoint, Pace, Settings};
use super::{Error, NodeName, Upid, Vmid, tls};

/// How many agent calls may be under way on a node, which has three workers for everybody.
const AGENT_CALLS: usize = 2;

/// How recently a connection must have been used for a change to be sent on it: a connection that the
/// server is just closing would leave the change's outcome unknown.
const FRESH_FOR_CHANGE: Duration = Duration::from_secs(1);

/// A client of one cluster; clones share everything.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    endpoints: Vec<Endpoint>,
    /// The endpoint that was reached last.
    current: AtomicUsize,
    auth: Auth,
    tls: TlsConnector,
    resolver: OnceLock<TokioResolver>,
    pace: Pace,
    idle: Mutex<Vec<Connection>>,
    vms: Mutex<HashMap<Vmid, Arc<tokio::sync::Mutex<()>>>>,
    agents: Mutex<HashMap<NodeName, Arc<Semaphore>>>,
    counter: Counter,
    /// The UPIDs that answers have named.
    tasks: Mutex<HashSet<String>>,
    /// How far the server's clock is ahead, in seconds, by the `Date` of its last answer.
    ahead: Mutex<Option<i64>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("endpoints", &self.inner.endpoints)
            .field("who", &self.who())
            .finish_non_exhaustive()
    }
}

/// The right to make a call now.
#[derive(Debug)]
struct Turn {
    _vms: Vec<OwnedMutexGuard<()>>,
    _agent: Option<OwnedSemaphorePermit>,
}

impl Client {
    /// Returns a client; nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::Unusable`] when no endpoint is given or the trusted certificates cannot be read.
    pub fn new(settings: Settings) -> Result<Self, Error> {
        let Settings { endpoints, credentials, trust, pace } = settings;
        if endpoints.is_empty() {
            let reason = "none is given; https://asgard:8006 is one".to_owned();
            return Err(Error::Unusable { what: "the endpoints".to_owned(), reason });
        }
        let inner = Inner {
            endpoints,
            current: AtomicUsize::new(0),
            auth: Auth::new(credentials),
            tls: TlsConnector::from(Arc::new(tls::config(&trust)?)),
            resolver: OnceLock::new(),
            pace,
            idle: Mutex::default(),
            vms: Mutex::default(),
            agents: Mutex::default(),
            counter: Counter::default(),
            tasks: Mutex::default(),
            ahead: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Returns the user or token that asks, without its secret.
    #[must_use]
    pub fn who(&self) -> &str {
        self.inner.auth.who()
    }

    /// Returns how patiently the client works.
    #[must_use]
    pub fn pace(&self) -> &Pace {
        &self.inner.pace
    }

    /// Returns the endpoint in use.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.inner.endpoints[self.inner.current.load(Ordering::Relaxed)]
    }

    /// Returns how often each endpoint of the API was called so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.inner.counter.counts()
    }

    /// Returns how many seconds the server's clock is ahead of this machine's, by the `Date` of its last
    /// answer; nothing while none had one.
    #[must_use]
    pub fn clock_ahead(&self) -> Option<i64> {
        *self.inner.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a call and returns the `data` of its answer.
    pub(super) async fn call(&self, call: Call) -> Result<Value, Error> {
        self.call_at(call).await.map(|(value, _)| value)
    }

    /// Makes a call and returns what its answer means.
    pub(super) async fn ask<T: serde::de::DeserializeOwned>(&self, call: Call) -> Result<T, Error> {
        let what = call.to_string();
        let value = self.call(call).await?;
        understand(what, value)
    }

    /// Makes a call and returns the `data` of its answer and which endpoint gave it.
    pub(super) async fn call_at(&self, call: Call) -> Result<(Value, usize), Error> {
        let what = call.to_string();
        // Waited for here: whoever goes away before his turn has sent nothing.
        let turn = self.turn(&call).await;
        let (_here, gone) = oneshot::channel();
        let client = self.clone();
        let worker = tokio::spawn(async move {
            let result = client.repeat(&call, gone).await;
            drop(turn);
            result
        });
        worker.await.unwrap_or_else(|error| match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Error::Unknown { what, reason: "forge is ending".to_owned() }),
        })
    }

    async fn turn(&self, call: &Call) -> Turn {
        let mut vms = Vec::new();
        // In ascending order, so that no two calls wait for each other.
        for vmid in &call.vms {
            vms.push(shared(&self.inner.vms, *vmid, tokio::sync::Mutex::default).lock_owned().await);
        }
        let agent = match &call.agent {
            Some(node) => {
                let calls = shared(&self.inner.agents, node.clone(), || Semaphore::new(AGENT_CALLS));
                Some(calls.acquire_owned().await.expect("it is never closed"))
            }
            None => None,
        };
        Turn { _vms: vms, _agent: agent }
    }

    /// Attempts a call until it has an answer or may not be repeated, or whoever made it is gone.
    async fn repeat(
        &self,
        call: &Call,
        mut gone: oneshot::Receiver<Infallible>,
    ) -> Result<(Value, usize), Error> {
        let Pace { patience, pause, .. } = self.inner.pace;
        let deadline = Instant::now() + patience;
        let mut next = pause;
        loop {
            let error = match self.attempt(call).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            match &error {
                Error::NotSent { .. } => {}
                Error::Unknown { .. } if call.may_repeat() => {}
                _ => return Err(error),
            }
            if Instant::now() + next > deadline {
                return Err(error);
            }
            tokio::select! {
                _ = &mut gone => return Err(error),
                () = sleep(next) => {}
            }
            next = (next * 2).min(pause * 8);
        }
    }

    async fn attempt(&self, call: &Call) -> Result<(Value, usize), Error> {
        let auth = &self.inner.auth;
        let headers = auth.headers(self, call.reads()).await?;
        match self.attempt_as(call, &headers).await {
            // A 401 is given before anything is done.
            Err(Error::Unauthorized { .. }) if auth.forget_ticket(&headers).await => {
                let headers = auth.headers(self, call.reads()).await?;
                self.attempt_as(call, &headers).await
            }
            result => result,
        }
    }

    async fn attempt_as(&self, call: &Call, headers: &Headers) -> Result<(Value, usize), Error> {
        let (response, endpoint) = self.send(call, Some(headers.lines.expose())).await?;
        Ok((self.value(call, &response)?, endpoint))
    }

    /// Sends a request once and returns its answer, whatever it is.
    async fn send(&self, call: &Call, auth: Option<&str>) -> Result<(Response, usize), Error> {
        let mut connection =
            self.connection(if call.reads() { self.inner.pace.idle } else { FRESH_FOR_CHANGE }).await?;
        let request = self.request(call, connection.endpoint, auth);
        self.inner.counter.count(call);
        let what = || call.to_string();
        let limit = self.inner.pace.answer;
        let response = match timeout(limit, connection.exchange(&request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(Broken::Unsent(reason))) => return Err(Error::NotSent { what: what(), reason }),
            Ok(Err(Broken::Sent(reason))) => return Err(Error::Unknown { what: what(), reason }),
            Err(_) => {
                let reason = format!("not within {}", crate::event::human_duration(limit));
                return Err(Error::Unknown { what: what(), reason });
            }
        };
        self.note_date(&response);
        let endpoint = connection.endpoint;
        if response.keeps && response.status != 101 {
            self.inner.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
        Ok((response, endpoint))
    }

    /// Returns the bytes of a request.
    fn request(&self, call: &Call, endpoint: usize, auth: Option<&str>) -> Vec<u8> {
        let mut request =
            self.head(&format!("{} {}", call.method, call.target()), endpoint, auth).into_bytes();
        match call.bytes() {
            Some(body) => {
                let length = body.len();
                request.extend(
                    format!("Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n").bytes(),
                );
                request.extend(body);
            }
            // An empty body with a content type is refused, and one on GET and DELETE needs no length.
            None if call.reads() || call.method == super::call::Method::Delete => request.extend(b"\r\n"),
            None => request.extend(b"Content-Length: 0\r\n\r\n"),
        }
        request
    }

    /// Returns a request's first lines, without the empty one that ends them.
    pub(super) fn head(&self, line: &str, endpoint: usize, auth: Option<&str>) -> String {
        let host = self.inner.endpoints[endpoint].authority();
        let version = env!("CARGO_PKG_VERSION");
        let auth = auth.unwrap_or_default();
        format!(
            "{line} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: forge/{version}\r\nAccept: application/json\r\n{auth}"
        )
    }

    /// Returns the header lines that say who asks, for requests that are sent by other means.
    pub(super) async fn auth_headers(&self, reads: bool) -> Result<crate::definition::Secret, Error> {
        Ok(self.inner.auth.headers(self, reads).await?.lines)
    }

    /// Makes the one call that needs no authentication, once.
    pub(super) async fn call_without_auth(&self, call: Call) -> Result<Value, Error> {
        let (response, _) = self.send(&call, None).await?;
        self.value(&call, &response)
    }

    pub(super) fn remember(&self, upid: &Upid) {
        self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner).insert(upid.to_string());
    }

    pub(super) fn remembers(&self, upid: &Upid) -> bool {
        self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner).contains(upid.as_str())
    }

    pub(super) fn count(&self, call: &Call) {
        self.inner.counter.count(call);
    }

    /// Returns the `data` of an answer, or its error.
    pub(super) fn value(&self, call: &Call, response: &Response) -> Result<Value, Error> {
        data(&call.to_string(), self.who(), response)
    }

    fn note_date(&self, response: &Response) {
        let Some(date) = response.header("date").and_then(parse_date) else { return };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        *self.inner.ahead.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(date - now.as_secs().cast_signed());
    }

    /// Returns a connection that was used within that time, else a new one.
    async fn connection(&self, within: Duration) -> Result<Connection, Error> {
        let within = within.min(self.inner.pace.idle);
        {
            let mut idle = self.inner.idle.lock().unwrap_or_else(PoisonError::into_inner);
            let current = self.inner.current.load(Ordering::Relaxed);
            while let Some(mut connection) = idle.pop() {
                if connection.endpoint == current && connection.is_fresh(within) {
                    return Ok(connection);
                }
            }
        }
        self.connect_any().await
    }

    /// Connects to the endpoint that served last, else to the next one that can be reached.
    pub(super) async fn connect_any(&self) -> Result<Connection, Error> {
        let count = self.inner.endpoints.len();
        let first = self.inner.current.load(Ordering::Relaxed);
        let mut failed = None;
        for index in (first..count).chain(0..first) {
            match self.connect(index).await {
                Ok(connection) => {
                    self.inner.current.store(index, Ordering::Relaxed);
                    return Ok(connection);
                }
                // One that cannot be trusted is not passed over in silence.
                Err(error @ Error::Tls { .. }) => return Err(error),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        Err(failed.expect("there is at least one endpoint"))
    }

    /// Connects to that node where one of the endpoints is known to be it, else to any.
    pub(super) async fn connect_to(&self, node: &NodeName) -> Result<Connection, Error> {
        match self.endpoint_of(node).await {
            Some(index) => match self.connect(index).await {
                Ok(connection) => Ok(connection),
                // As in `connect_any`.
                Err(error @ Error::Tls { .. }) => Err(error),
                Err(_) => self.connect_any().await,
            },
            None => self.connect_any().await,
        }
    }

    /// Returns which endpoint is that node, by its name or by what the cluster says, for which Sys.Audit on
    /// `/` is needed.
    async fn endpoint_of(&self, node: &NodeName) -> Option<usize> {
        let endpoints = &self.inner.endpoints;
        if endpoints.len() == 1 {
            return Some(0);
        }
        let is_named = |host: &str| {
            host.split('.').next().is_some_and(|label| label.eq_ignore_ascii_case(node.as_str()))
        };
        if let Some(index) = endpoints.iter().position(|endpoint| is_named(&endpoint.host)) {
            return Some(index);
        }
        let (status, asked) = self.cluster_status().await.ok()?;
        let line = status.into_iter().find(|line| line.kind == "node" && line.name == node.as_str())?;
        if line.local {
            return Some(asked);
        }
        let ip: IpAddr = line.ip?.parse().ok()?;
        endpoints.iter().position(|endpoint| endpoint.host.parse() == Ok(ip))
    }

    /// Returns an endpoint.
    pub(super) fn address(&self, index: usize) -> &Endpoint {
        &self.inner.endpoints[index]
    }

    /// Connects to one endpoint.
    pub(super) async fn connect(&self, index: usize) -> Result<Connection, Error> {
        let endpoint = &self.inner.endpoints[index];
        let limit = self.inner.pace.connect;
        let unreached = |reason: String| Error::NotSent { what: format!("connecting to {endpoint}"), reason };
        let late = |_| {
            let limit = crate::event::human_duration(limit);
            unreached(format!(
                "not within {limit}: is it switched on, and does a firewall let port {} through?",
                endpoint.port
            ))
        };
        let connecting = async {
            let socket = self.socket(endpoint).await.map_err(unreached)?;
            if !endpoint.tls {
                return Ok(Connection::new(socket, index));
            }
            let name =
                ServerName::try_from(endpoint.host.clone()).map_err(|error| unreached(error.to_string()))?;
            let shaken = self.inner.tls.connect(name, socket).await;
            let stream = shaken.map_err(|error| match error.get_ref().and_then(|it| it.downcast_ref()) {
                Some(error) => {
                    let (reason, seen) = tls::explain(error);
                    Error::Tls { endpoint: endpoint.to_string(), reason, seen }
                }
                None => unreached(format!(
                    "the TLS handshake broke ({error}): does /etc/default/pveproxy there let this machine in?"
                )),
            })?;
            Ok(Connection::new(stream, index))
        };
        timeout(limit, connecting).await.map_err(late)?
    }

    async fn socket(&self, endpoint: &Endpoint) -> Result<TcpStream, String> {
        let mut reason = "its name has no address".to_owned();
        for address in self.addresses(&endpoint.host).await? {
            match TcpStream::connect((address, endpoint.port)).await {
                Ok(socket) => {
                    // Small requests must not wait for each other's acknowledgement.
                    return socket.set_nodelay(true).map(|()| socket).map_err(|error| error.to_string());
                }
                Err(error) => reason = unconnected(&error, endpoint.port),
            }
        }
        Err(reason)
    }

    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, String> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        if self.inner.resolver.get().is_none() {
            // The system's own resolver is out of reach of a static binary.
            let built = TokioResolver::builder_tokio().and_then(hickory_resolver::ResolverBuilder::build);
            let built = built.map_err(|error| format!("this machine's resolver settings: {error}"))?;
            // Another call may have been first.
            let _first = self.inner.resolver.set(built).is_ok();
        }
        let resolver = self.inner.resolver.get().expect("it was just set");
        let found = resolver.lookup_ip(host).await.map_err(|error| {
            if error.is_nx_domain() || error.is_no_records_found() {
                "its name has no address: is it spelt right? an address in its place works, too".to_owned()
            } else {
                format!("its name could not be looked up: do this machine's name servers answer? ({error})")
            }
        })?;
        Ok(found.iter().collect())
    }
}

/// Returns why there is no connection, and what to look at.
fn unconnected(error: &io::Error, port: u16) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            format!("nothing listens on its port {port}: does pveproxy run there, and is the port right?")
        }
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            format!("no way leads there from this machine ({error})")
        }
        io::ErrorKind::TimedOut => format!("it does not answer: is it switched on? ({error})"),
        _ => error.to_string(),
    }
}

/// Returns the `data` of an answer, or its error.
pub(super) fn data(what: &str, who: &str, response: &Response) -> Result<Value, Error> {
    let Response { status, reason, body, .. } = response;
    if *status != 200 {
        return Err(Error::of_answer(what, who, &Answer { status: *status, reason, body }));
    }
    let odd = |reason: String| Error::Answer { what: what.to_owned(), reason };
    match serde_json::from_slice(body) {
        Ok(Value::Object(mut fields)) => match fields.remove("data") {
            Some(data) => Ok(data),
            None => Err(odd("it has no `data`".to_owned())),
        },
        Ok(_) => Err(odd("it is no object".to_owned())),
        Err(error) => Err(odd(format!("it is no JSON: {error}"))),
    }
}

/// Returns what a value means.
pub(super) fn understand<T: serde::de::DeserializeOwned>(what: String, value: Value) -> Result<T, Error> {
    serde_json::from_value(value).map_err(|error| Error::Answer { what, reason: error.to_string() })
}

fn shared<K: Eq + std::hash::Hash, V>(
    map: &Mutex<HashMap<K, Arc<V>>>,
    key: K,
    new: impl FnOnce() -> V,
) -> Arc<V> {
    let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(map.entry(key).or_insert_with(|| Arc::new(new())))
}

/// Reads a `Date` header, such as `Sat, 21 Nov 2026 07:55:46 GMT`, as seconds since 1970.
fn parse_date(text: &str) -> Option<i64> {
    jiff::fmt::rfc2822::parse(text).ok().map(|date| date.timestamp().as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read() {
        assert_eq!(parse_date("Thu, 01 Jan 1970 00:01:00 GMT"), Some(60));
        assert_eq!(parse_date("yesterday"), None);
    }
}
