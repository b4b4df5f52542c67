//! forge's HTTP server: hands a build's files to its guest, takes what installer and guest report.
//!
//! ```text
//! GET  /<token>/<name>   a file that is on offer      200, Content-Length; HEAD too
//! POST /<token>/report   one installer report         204, at once: a slow answer freezes the installer
//! PUT  /<token>/logs     the log archive (or POST)    204; 413 beyond the limit, what came is kept
//! POST /<token>/ready    the guest agent runs         204, at once, however often
//! POST /<token>/output/… what a script prints (or PUT) 204 at its end; each address once
//! anything else                                       404, always the same
//! ```
//!
//! The token is 160 random bits, new for each server, and compared in constant time; it is never
//! in an event. Every request becomes one [`ServerEvent`],
//! but what scripts print: that goes to whoever asked for it. Paths are compared as they are sent:
//! there is nothing to decode, so nothing to traverse. Uploads and files of any size pass in
//! constant memory.

mod address;
mod body;
mod logs;
mod output;
mod request;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::{CancellationToken, DropGuard};

pub use address::{Reach, Settings, local_address_towards};
pub use output::Inlet;

use super::installer::InstallerReport;

/// The path under the token that takes installer reports.
pub const REPORT: &str = "report";

/// The path under the token that takes logs.
pub const LOGS: &str = "logs";

/// The path under the token that the installed system calls when its guest agent has started.
pub const READY: &str = "ready";

/// The folder under the token that takes what scripts print.
pub const OUTPUT: &str = "output";

/// Why the server cannot start or offer a file.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A setting is not what it should be.
    #[error("http.{key} = `{value}` {reason}")]
    Setting {
        /// The key in the builder profile's `[http]` table.
        key: &'static str,
        /// What it is set to.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing could be listened on.
    #[error("listening on {address} for guests: {source}")]
    Listen {
        /// The address with the port or ports.
        address: String,
        /// Why not; of the last port tried.
        source: std::io::Error,
    },
    /// There is no way from here to the guest's network.
    #[error("finding the local address towards {peer}: {source}")]
    Route {
        /// The other side.
        peer: std::net::IpAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// A name cannot be offered.
    #[error("`{name}` cannot be served: {reason}")]
    Name {
        /// The name.
        name: String,
        /// Why not.
        reason: &'static str,
    },
}

/// What happened at the server, one event a request.
#[derive(Debug, Clone, PartialEq)]
pub enum ServerEvent {
    /// A file was asked for and given.
    Fetched {
        /// The file's name.
        name: String,
        /// How much of it went out.
        bytes: u64,
        /// Whether that was all of it.
        whole: bool,
        /// Who asked.
        peer: SocketAddr,
    },
    /// The installer reported.
    Report(InstallerReport),
    /// Logs arrived.
    Logs {
        /// Where they are.
        path: PathBuf,
        /// Their size.
        bytes: u64,
        /// Why they are not whole, if they are not.
        truncated: Option<String>,
        /// Who sent them.
        peer: SocketAddr,
    },
    /// The installed system says that its guest agent runs.
    Ready {
        /// Who said so.
        peer: SocketAddr,
    },
    /// A request was not understood, or asked for something that is not on offer.
    Refused {
        /// Its method.
        method: String,
        /// Its path, without the token.
        path: String,
        /// The status it was answered with.
        status: u16,
        /// Who asked.
        peer: SocketAddr,
    },
}

/// What a name on offer stands for.
#[derive(Debug, Clone)]
pub enum Content {
    /// Bytes in memory.
    Memory(Bytes),
    /// A file, read anew for each request.
    File(PathBuf),
}

impl From<String> for Content {
    fn from(text: String) -> Self {
        Self::Memory(text.into())
    }
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Memory(bytes.into())
    }
}

impl From<PathBuf> for Content {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

/// A running server; it stops when this is dropped, and cleanly with [`Server::stop`].
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    base: String,
    loop_ended: JoinHandle<()>,
    cancel: DropGuard,
}

/// A file on offer; withdrawn when this is dropped.
#[derive(Debug)]
pub struct Offer {
    shared: Arc<Shared>,
    name: String,
    url: String,
}

impl Offer {
    /// Returns where the guest finds the file.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.shared.offers().remove(&self.name);
    }
}

/// What all connections share.
#[derive(Debug)]
struct Shared {
    token: String,
    offers: Mutex<HashMap<String, Content>>,
    inlets: Mutex<HashMap<String, mpsc::Sender<Bytes>>>,
    settings: Settings,
    uploads: AtomicU32,
    events: mpsc::UnboundedSender<ServerEvent>,
    started: Instant,
}

impl Shared {
    fn offers(&self) -> std::sync::MutexGuard<'_, HashMap<String, Content>> {
        self.offers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inlets(&self) -> std::sync::MutexGuard<'_, HashMap<String, mpsc::Sender<Bytes>>> {
        self.inlets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends an event; nobody may be listening any more, and that is fine.
    fn tell(&self, event: ServerEvent) {
        let _listening = self.events.send(event).is_ok();
    }
}

impl Server {
    /// Starts a server and returns it with the stream of its events.
    ///
    /// # Errors
    /// When no port of the range is free, or the address is not this machine's.
    pub async fn start(
        settings: Settings,
    ) -> Result<(Self, mpsc::UnboundedReceiver<ServerEvent>), ServerError> {
        let listener = listen(&settings).await?;
        let address = listener
            .local_addr()
            .map_err(|source| ServerError::Listen { address: settings.listen_text(), source })?;
        let token = random_token();
        let base = format!("http://{}/{token}", settings.advertised(address));
        let (events, receiver) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            token,
            offers: Mutex::default(),
            inlets: Mutex::default(),
            settings,
            uploads: AtomicU32::new(0),
            events,
            started: Instant::now(),
        });
        let cancel = CancellationToken::new();
        let loop_ended = tokio::spawn(accept(listener, Arc::clone(&shared), cancel.clone()));
        Ok((Self { shared, address, base, loop_ended, cancel: cancel.drop_guard() }, receiver))
    }

    /// Returns the address it listens on, for messages.
    #[must_use]
    pub fn listens_on(&self) -> SocketAddr {
        self.address
    }

    /// Returns the address that guests are told, without the secret path, for messages.
    #[must_use]
    pub fn advertises(&self) -> &str {
        self.base.trim_start_matches("http://").split('/').next().unwrap_or_default()
    }

    /// Returns where the installer sends its reports.
    #[must_use]
    pub fn report_url(&self) -> String {
        format!("{}/{REPORT}", self.base)
    }

    /// Returns where the installer sends its logs.
    #[must_use]
    pub fn logs_url(&self) -> String {
        format!("{}/{LOGS}", self.base)
    }

    /// Returns where the installed system says that its guest agent runs.
    #[must_use]
    pub fn ready_url(&self) -> String {
        format!("{}/{READY}", self.base)
    }

    /// Returns where a file of that name is, once it is on offer.
    #[must_use]
    pub fn url(&self, name: &str) -> String {
        format!("{}/{name}", self.base)
    }

    /// Puts a file on offer until the returned guard is dropped.
    ///
    /// # Errors
    /// When the name is taken, or has characters besides `A-Z a-z 0-9 . _ - /`.
    pub fn offer(&self, name: &str, content: impl Into<Content>) -> Result<Offer, ServerError> {
        let refused = |reason| Err(ServerError::Name { name: name.to_owned(), reason });
        let plain = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        if !name.split('/').all(plain) {
            return refused("each part of its path may have A-Z a-z 0-9 . _ - and must not begin with a dot");
        }
        let mut offers = self.shared.offers();
        let top = name.split('/').next().unwrap_or_default();
        if [REPORT, LOGS, READY].contains(&name) || top == OUTPUT || offers.contains_key(name) {
            return refused("that name is taken");
        }
        offers.insert(name.to_owned(), content.into());
        drop(offers);
        Ok(Offer { shared: Arc::clone(&self.shared), name: name.to_owned(), url: self.url(name) })
    }

    /// Returns an address for what a script prints, and what arrives there: first an empty piece, when the
    /// guest begins to send; the end, when it has ended or its connection is lost.
    #[must_use]
    pub fn receive(&self) -> (Inlet, mpsc::Receiver<Bytes>) {
        let name = uuid::Uuid::new_v4().simple().to_string();
        let (sender, receiver) = output::pieces();
        self.shared.inlets().insert(name.clone(), sender);
        let url = self.url(&format!("{OUTPUT}/{name}"));
        (Inlet { shared: Arc::clone(&self.shared), name, url }, receiver)
    }

    /// Stops: frees the port, lets answers under way finish for a moment, then ends all connections.
    pub async fn stop(self) {
        drop(self.cancel);
        // The accept loop does not panic; if it did, the connections went with it.
        let _ended = self.loop_ended.await.is_ok();
    }
}

async fn listen(settings: &Settings) -> Result<TcpListener, ServerError> {
    let mut last = std::io::Error::from(std::io::ErrorKind::AddrInUse);
    for port in settings.ports.clone() {
        match TcpListener::bind((settings.bind, port)).await {
            Ok(listener) => return Ok(listener),
            Err(error) => {
                let taken = error.kind() == std::io::ErrorKind::AddrInUse;
                last = error;
                if !taken {
                    break;
                }
            }
        }
    }
    Err(ServerError::Listen { address: settings.listen_text(), source: last })
}

fn random_token() -> String {
    let mut bytes = [0; 20];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    format!("{:x}", Bytes::copy_from_slice(&bytes))
}

/// Accepts connections until cancelled, then gives those under way a moment to end.
async fn accept(listener: TcpListener, shared: Arc<Shared>, cancel: CancellationToken) {
    let places = Arc::new(Semaphore::new(shared.settings.connections_max));
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
            (place, listener.accept().await)
        };
        tokio::select! {
            () = cancel.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            (place, accepted) = next => match accepted {
                Ok((stream, peer)) => {
                    let (shared, cancel) = (Arc::clone(&shared), cancel.clone());
                    connections.spawn(async move {
                        serve(stream, peer, shared, cancel).await;
                        drop(place);
                    });
                }
                // Out of descriptors, most likely: others must end first.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
        }
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    let in_time = tokio::time::timeout(shared.settings.grace, ended).await.is_ok();
    if !in_time {
        connections.shutdown().await;
    }
}

async fn serve(stream: TcpStream, peer: SocketAddr, shared: Arc<Shared>, cancel: CancellationToken) {
    // Without it small answers may wait for the guest's delayed acknowledgement; never fatal.
    let _nodelay = stream.set_nodelay(true).is_ok();
    let activity = Activity::new(shared.started);
    let service = {
        let (shared, activity) = (Arc::clone(&shared), activity.clone());
        service_fn(move |request| {
            activity.touch();
            request::answer(request, peer, Arc::clone(&shared), activity.clone())
        })
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.settings.header_timeout)
        .max_headers(64)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let mut stopping = false;
    loop {
        tokio::select! {
            // A client that breaks off or speaks nonsense is its own concern: the events tell.
            _ended = connection.as_mut() => return,
            () = activity.idle(shared.settings.idle_timeout) => return,
            () = cancel.cancelled(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// When something last moved on a connection, so that a stalled one can be ended.
#[derive(Debug, Clone)]
struct Activity {
    started: Instant,
    last: Arc<AtomicU64>,
}

impl Activity {
    fn new(started: Instant) -> Self {
        let activity = Self { started, last: Arc::default() };
        activity.touch();
        activity
    }

    fn touch(&self) {
        self.last.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Returns once nothing has moved for that long.
    async fn idle(&self, limit: Duration) {
        loop {
            let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
            let left = (last + limit).saturating_sub(self.started.elapsed());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }
}

#[cfg(test)]
mod tests;
