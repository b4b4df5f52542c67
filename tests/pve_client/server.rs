//! A server on loopback that answers as a test tells it to, over TLS or not.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// The path and query as sent.
    pub target: String,
    /// The path below `/api2/json`, decoded.
    pub path: String,
    /// The query, decoded.
    pub query: Vec<(String, String)>,
    /// The head as sent.
    pub head: String,
    pub body: Vec<u8>,
    /// How many bytes the first read brought.
    pub first_read: usize,
    /// Which connection it came on, from 0.
    pub connection: usize,
}

impl Request {
    /// Returns a header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Returns a value of the query.
    pub fn asked(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Returns the body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// What the server does with a request.
#[derive(Debug, Clone)]
pub enum Reply {
    /// Answers.
    Answer { status: u16, reason: String, headers: String, body: Vec<u8> },
    /// Closes the connection without an answer.
    Hangup,
    /// Says these bytes and keeps the connection to itself.
    Raw(Vec<u8>),
    /// Does that after a while.
    Late(Duration, Box<Reply>),
}

impl Reply {
    /// Answers 200 with that `data`.
    pub fn data(data: serde_json::Value) -> Self {
        Self::answer(200, "OK", &serde_json::json!({ "data": data }).to_string())
    }

    /// Answers with a message, as Proxmox does.
    pub fn refusal(status: u16, message: &str) -> Self {
        let body = serde_json::json!({ "data": null, "message": format!("{message}\n") });
        Self::answer(status, message, &body.to_string())
    }

    /// Answers with that text.
    pub fn answer(status: u16, reason: &str, body: &str) -> Self {
        let headers = if status >= 400 { "Connection: close\r\n" } else { "" };
        let (reason, headers) = (reason.to_owned(), headers.to_owned());
        Self::Answer { status, reason, headers, body: body.as_bytes().to_vec() }
    }
}

type Handler = Arc<Mutex<dyn FnMut(&Request) -> Reply + Send>>;

/// A server; it ends when it is dropped.
pub struct Server {
    pub address: std::net::SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    tasks: JoinSet<()>,
}

impl Server {
    /// Starts a server without TLS.
    pub async fn plain(handler: impl FnMut(&Request) -> Reply + Send + 'static) -> Self {
        Self::at("127.0.0.1:0", handler).await
    }

    /// Starts a server without TLS on that address.
    pub async fn at(address: &str, handler: impl FnMut(&Request) -> Reply + Send + 'static) -> Self {
        Self::start(address, None, Arc::new(Mutex::new(handler))).await
    }

    /// Starts a server with the certificate beside this file.
    pub async fn tls(handler: impl FnMut(&Request) -> Reply + Send + 'static) -> Self {
        Self::tls_at("127.0.0.1:0", handler).await
    }

    /// Starts a server with that certificate on that address.
    pub async fn tls_at(address: &str, handler: impl FnMut(&Request) -> Reply + Send + 'static) -> Self {
        let certificate = CertificateDer::from_pem_slice(include_bytes!("server.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_slice(include_bytes!("server.key")).unwrap();
        let config =
            rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate], key)
                .unwrap();
        let tls = Some(TlsAcceptor::from(Arc::new(config)));
        Self::start(address, tls, Arc::new(Mutex::new(handler))).await
    }

    async fn start(address: &str, tls: Option<TlsAcceptor>, handler: Handler) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
        let kept = Arc::clone(&requests);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            let count = AtomicUsize::new(0);
            while let Ok((socket, _)) = listener.accept().await {
                let number = count.fetch_add(1, Ordering::Relaxed);
                let (tls, handler, kept) = (tls.clone(), Arc::clone(&handler), Arc::clone(&kept));
                connections.spawn(async move {
                    match tls {
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(socket).await {
                                serve(stream, number, handler, kept).await;
                            }
                        }
                        None => serve(socket, number, handler, kept).await,
                    }
                });
            }
        });
        Self { address, requests, tasks }
    }

    /// Stops listening and closes every connection.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }

    /// Returns the requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// Returns the requests so far as `METHOD path`.
    pub fn lines(&self) -> Vec<String> {
        self.requests().iter().map(|request| format!("{} {}", request.method, request.path)).collect()
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    connection: usize,
    handler: Handler,
    kept: Arc<Mutex<Vec<Request>>>,
) {
    let mut buffer = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut buffer, connection).await {
        kept.lock().unwrap().push(request.clone());
        let mut reply = (handler.lock().unwrap())(&request);
        while let Reply::Late(pause, then) = reply {
            tokio::time::sleep(pause).await;
            reply = *then;
        }
        let (text, body, keeps) = match reply {
            Reply::Answer { status, reason, headers, body } => {
                let length = body.len();
                let text = format!("HTTP/1.1 {status} {reason}\r\n{headers}Content-Length: {length}\r\n\r\n");
                (text.into_bytes(), body, !headers.contains("close"))
            }
            Reply::Raw(bytes) => (bytes, Vec::new(), true),
            Reply::Hangup | Reply::Late(..) => return,
        };
        if stream.write_all(&[text, body].concat()).await.is_err() || stream.flush().await.is_err() || !keeps
        {
            // The end of TLS has to be told.
            let _ended = stream.shutdown().await.is_ok();
            return;
        }
    }
}

async fn read_request(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
    connection: usize,
) -> Option<Request> {
    let mut first_read = buffer.len();
    let end = loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        let mut piece = vec![0; 256 * 1024];
        let count = stream.read(&mut piece).await.ok().filter(|count| *count > 0)?;
        buffer.extend(&piece[..count]);
        first_read = first_read.max(count);
    };
    let head = String::from_utf8(buffer.drain(..end).collect()).unwrap();
    let mut words = head.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let query = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap());
    let mut request = Request {
        path: decode(path).trim_start_matches("/api2/json").to_owned(),
        query: query.map(|(key, value)| (decode(key), decode(value))).collect(),
        method,
        target,
        head,
        body: Vec::new(),
        first_read,
        connection,
    };
    let length: usize = request.header("content-length").map_or(0, |length| length.parse().unwrap());
    while buffer.len() < length {
        if stream.read_buf(buffer).await.ok().is_none_or(|count| count == 0) {
            return None;
        }
    }
    request.body = buffer.drain(..length).collect();
    Some(request)
}

fn decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8().unwrap().into_owned()
}

/// Returns the certificate authority of [`Server::tls`] as a file.
pub fn ca_file() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pve_client/ca.pem")
}

/// Returns the fingerprint of the certificate of [`Server::tls`], as openssl shows it.
pub fn fingerprint() -> &'static str {
    include_str!("fingerprint").trim()
}
