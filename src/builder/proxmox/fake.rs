//! A server on loopback that answers as it is told, for the flows.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::definition::Secret;
use crate::pve::{Client, Credentials, Pace, Settings, Trust};

/// What a request is answered with: a status and, as `data`, a value or, as `message`, a refusal.
pub(crate) type Answer = (u16, Value);

/// Who asks the server in tests.
pub(crate) const WHO: &str = "forge@pve!ci";

/// A server with the requests that it has had, as `GET /nodes/…`.
pub(crate) struct Fake {
    pub(crate) client: Client,
    pub(crate) endpoint: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    /// Starts it; `answer` gets each request as `GET /nodes`, with the query, percent-decoded.
    pub(crate) async fn start(answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (Arc::clone(&requests), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, Arc::clone(&log), Arc::clone(&answer)));
            }
        });
        let client = Client::new(Settings {
            endpoints: vec![endpoint.parse().unwrap()],
            credentials: Credentials::Token { id: WHO.to_owned(), secret: Secret::new("secret") },
            trust: Trust::Anything,
            pace: Pace::default().faster(100),
        })
        .unwrap();
        Self { client, endpoint, requests }
    }

    /// Returns the requests that change something.
    pub(crate) fn changes(&self) -> Vec<String> {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|request| !request.starts_with("GET ")).cloned().collect()
    }
}

async fn serve<F>(socket: TcpStream, log: Arc<Mutex<Vec<String>>>, answer: Arc<F>)
where
    F: Fn(&str) -> Answer + Send + Sync + 'static,
{
    let mut socket = BufReader::new(socket);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if socket.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            if line.trim().is_empty() {
                break;
            }
            head.push(line.trim().to_owned());
        }
        let length = head.iter().find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        socket.read_exact(&mut body).await.unwrap();
        let request = head[0].replace("/api2/json", "").replace(" HTTP/1.1", "");
        let request = percent_encoding::percent_decode_str(&request).decode_utf8_lossy().into_owned();
        log.lock().unwrap().push(request.clone());
        let (status, value) = answer(&request);
        let body =
            if status == 200 { json!({ "data": value }) } else { json!({ "data": null, "message": value }) };
        let body = body.to_string();
        let reason = if status == 200 { "OK".to_owned() } else { value.as_str().unwrap_or("no").to_owned() };
        let text = format!("HTTP/1.1 {status} {reason}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        if socket.write_all(text.as_bytes()).await.is_err() {
            return;
        }
    }
}
