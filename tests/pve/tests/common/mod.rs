//! A client that shows every byte, for tests of the simulator.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pve_sim::Simulator;
use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// The token of the default world.
pub(crate) const TOKEN: &str = "root@pam!full=11111111-2222-4333-8444-555555555555";

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) reason: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The answer's `data`; the test ends if it was refused.
    pub(crate) fn data(&self) -> Value {
        assert_eq!(self.status, 200, "{}: {}", self.reason, String::from_utf8_lossy(&self.body));
        self.json()["data"].clone()
    }
}

/// One TLS connection.
pub(crate) struct Connection {
    pub(crate) stream: TlsStream<TcpStream>,
    pub(crate) buffer: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr, pem: &str) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        Self { stream, buffer: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        // The server may have closed already; the answer tells.
        drop(self.stream.write_all(bytes).await);
        drop(self.stream.flush().await);
    }

    async fn more(&mut self) -> bool {
        let read = self.stream.read_buf(&mut self.buffer);
        matches!(
            tokio::time::timeout(Duration::from_secs(30), read).await.expect("an end within 30 s"),
            Ok(1..)
        )
    }

    /// The next answer; none when the connection ends without one.
    pub(crate) async fn receive(&mut self) -> Option<Response> {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.more().await {
                return None;
            }
        };
        let head: String = self.buffer[..end].iter().copied().map(char::from).collect();
        self.buffer.drain(..end);
        let mut lines = head.split("\r\n");
        let mut first = lines.next()?.splitn(3, ' ');
        let status = first.nth(1)?.parse().ok()?;
        let reason = first.next().unwrap_or_default().to_owned();
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let mut response = Response { status, reason, headers, body: Vec::new() };
        if status == 100 {
            return Box::pin(self.receive()).await;
        }
        let length = response.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        while self.buffer.len() < length {
            if !self.more().await {
                break;
            }
        }
        let rest = self.buffer.split_off(length.min(self.buffer.len()));
        response.body = std::mem::replace(&mut self.buffer, rest);
        Some(response)
    }

    /// Whether the server ends the connection within `limit`.
    pub(crate) async fn ends_within(&mut self, limit: Duration) -> bool {
        let read = self.stream.read_buf(&mut self.buffer);
        matches!(tokio::time::timeout(limit, read).await, Ok(Ok(0) | Err(_)))
    }
}

/// A client of one simulator.
pub(crate) struct Client {
    pub(crate) address: SocketAddr,
    pub(crate) pem: String,
    pub(crate) auth: Vec<(String, String)>,
}

impl Client {
    pub(crate) fn new(simulator: &Simulator) -> Self {
        let auth = vec![("Authorization".to_owned(), format!("PVEAPIToken={TOKEN}"))];
        Self { address: simulator.address(), pem: simulator.certificate(), auth }
    }

    /// One request on a connection of its own.
    pub(crate) async fn raw(
        &self,
        method: &str,
        target: &str,
        headers: &[(String, String)],
        body: Option<(&str, &[u8])>,
    ) -> Option<Response> {
        let mut connection = Connection::open(self.address, &self.pem).await;
        connection.send(&self.bytes(method, target, headers, body)).await;
        connection.receive().await
    }

    pub(crate) fn bytes(
        &self,
        method: &str,
        target: &str,
        headers: &[(String, String)],
        body: Option<(&str, &[u8])>,
    ) -> Vec<u8> {
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n");
        for (key, value) in self.auth.iter().chain(headers) {
            head.extend([key, ": ", value, "\r\n"]);
        }
        if let Some((media, body)) = body {
            if !media.is_empty() {
                head.extend(["Content-Type: ", media, "\r\n"]);
            }
            head.extend(["Content-Length: ", &body.len().to_string(), "\r\n"]);
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend(body.map_or(&[][..], |(_, body)| body));
        bytes
    }

    /// A call with JSON parameters; a path below `/api2/json`.
    pub(crate) async fn call(&self, method: &str, path: &str, params: Value) -> Response {
        let mut target = format!("/api2/json{path}");
        let with_body = ["POST", "PUT"].contains(&method);
        if !with_body && let Value::Object(params) = &params {
            let query = form(params);
            if !query.is_empty() {
                target.extend(["?", &query]);
            }
        }
        let text = params.to_string();
        let body = (with_body && params.is_object()).then_some(("application/json", text.as_bytes()));
        self.raw(method, &target, &[], body).await.expect("an answer")
    }

    /// Waits for the end of a task on node `node`; its exit status.
    pub(crate) async fn finish(&self, node: &str, upid: &Value) -> String {
        let upid = escape(upid.as_str().expect("a UPID"));
        for _ in 0..3000 {
            let status =
                self.call("GET", &format!("/nodes/{node}/tasks/{upid}/status"), Value::Null).await.data();
            if let Some(end) = status["exitstatus"].as_str() {
                return end.to_owned();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{upid} does not end");
    }

    /// A call whose task must end well.
    pub(crate) async fn done(&self, method: &str, path: &str, params: Value) {
        let answer = self.call(method, path, params).await.data();
        if answer.is_string() {
            let node = path.split('/').nth(2).expect("a node");
            assert_eq!(self.finish(node, &answer).await, "OK", "{method} {path}");
        }
    }
}

/// Percent-encodes everything but letters, digits and a few marks.
pub(crate) fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// Parameters as a form.
pub(crate) fn form(params: &Map<String, Value>) -> String {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Bool(flag) => u8::from(*flag).to_string(),
        other => other.to_string(),
    };
    let mut pairs = Vec::new();
    for (key, value) in params {
        match value {
            Value::Array(items) => {
                pairs.extend(items.iter().map(|item| format!("{}={}", escape(key), escape(&text(item)))));
            }
            lone => pairs.push(format!("{}={}", escape(key), escape(&text(lone)))),
        }
    }
    pairs.join("&")
}
