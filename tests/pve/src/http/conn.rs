//! One connection, from its first byte to its end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::form::{parse_form, parse_json};
use super::head::{Head, Read, read_head};
use super::response::{JSON, Response};
use super::upload;
use crate::answer::{Answer, Failure, Reply};
use crate::auth;
use crate::console;
use crate::fault::{Action, When};
use crate::held;
use crate::sim::{Incoming, Sim, Upgrade, dispatch};

/// Requests that one connection may carry.
const MAX_REQUESTS: u32 = 100;
/// Largest body, since pve-http-server 5.2.1.
const MAX_BODY: u64 = 512 * 1024;
/// What one read of the socket takes at most: a TLS record.
pub(crate) const READ: usize = 16 * 1024;

/// A connection's stream with what has been read ahead.
pub(crate) struct Wire<S> {
    pub(crate) stream: S,
    pub(crate) buffer: Vec<u8>,
    /// Silence longer than this ends the connection.
    pub(crate) patience: Duration,
}

/// What to do after a request.
pub(crate) enum Next {
    /// An answer, and whether the connection may live on after it.
    Answer(Response, bool),
    /// The connection ends without an answer.
    Drop,
    /// The connection belongs to a console from now on.
    Upgrade(console::Bridge),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Reads once more; false when there will be nothing more.
    pub(crate) async fn read_more(&mut self) -> bool {
        self.buffer.reserve(READ);
        matches!(timeout(self.patience, self.stream.read_buf(&mut self.buffer)).await, Ok(Ok(1..)))
    }

    /// Reads exactly `length` bytes of a body.
    async fn take(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < length {
            if !self.read_more().await {
                return None;
            }
        }
        let rest = self.buffer.split_off(length);
        Some(std::mem::replace(&mut self.buffer, rest))
    }
}

/// Serves a new TCP connection: TLS, or a hint for plain HTTP.
pub(crate) async fn accept(sim: Arc<Sim>, stream: TcpStream) {
    if sim.barred.load(Ordering::Relaxed) {
        return;
    }
    let patience = patience(&sim);
    let mut first = [0];
    match timeout(patience, stream.peek(&mut first)).await {
        // A TLS handshake record.
        Ok(Ok(1)) if first[0] == 0x16 => {}
        Ok(Ok(1)) => return redirect(&sim, stream).await,
        _ => return,
    }
    let config = Arc::clone(&held(&sim.certificate).config);
    // A handshake is work, not waiting: a loaded machine gets its whole time.
    let handshake = patience.max(Duration::from_secs(5));
    if let Ok(Ok(stream)) = timeout(handshake, TlsAcceptor::from(config).accept(stream)).await {
        serve(sim, stream).await;
    }
}

/// Proxmox waits 5 s; scaled time must still leave a loaded machine time to write.
fn patience(sim: &Sim) -> Duration {
    sim.clock.span(5.0).max(Duration::from_secs(1))
}

async fn redirect(sim: &Sim, stream: TcpStream) {
    let address = stream.local_addr().map_or(8006, |address| address.port());
    let mut wire = Wire { stream, buffer: Vec::new(), patience: patience(sim) };
    let head = loop {
        match read_head(&wire.buffer) {
            Read::Whole(head, _) => break head,
            Read::More if wire.read_more().await => {}
            _ => return,
        }
    };
    let plain = head.method == "GET" || head.method == "HEAD";
    let (status, text) = if plain { (301, "Moved Permanently") } else { (308, "Permanent Redirect") };
    let host = head.header("host").map_or_else(|| format!("{}:{address}", sim.world().home), str::to_owned);
    let mut response = Response::plain(status, text);
    response.location = Some(format!("https://{host}{}", head.path));
    drop(wire.stream.write_all(&response.into_bytes(false, false)).await);
    drop(wire.stream.shutdown().await);
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(sim: Arc<Sim>, stream: S) {
    let mut wire = Wire { stream, buffer: Vec::new(), patience: patience(&sim) };
    let worker = sim.proxies.seat();
    for number in 1..=MAX_REQUESTS {
        let Some(head) = next_head(&mut wire).await else {
            break;
        };
        let keep = sim.proxies.stays(worker) && head.wants_keep_alive() && number < MAX_REQUESTS;
        let gzip = head.header("accept-encoding").is_some_and(|offered| offered.contains("gzip"));
        let record = sim.record.begin(&head.method, &head.path);
        let next = request(&sim, &mut wire, &head, record).await;
        match next {
            Next::Drop => {
                sim.record.end(record, 0, "");
                break;
            }
            Next::Answer(response, may_live) => {
                let keep = keep && may_live && response.status < 400 && !sim.reloading(5.0);
                let keep = keep && !sim.barred.load(Ordering::Relaxed);
                sim.record.end(record, response.status, &response.reason);
                let sent = wire.stream.write_all(&response.into_bytes(keep, gzip)).await;
                let flushed = wire.stream.flush().await;
                if sent.is_err() || flushed.is_err() || !keep {
                    break;
                }
            }
            Next::Upgrade(bridge) => {
                let head = console::upgrade_head(&bridge);
                let Some(console) = bridge.console else {
                    sim.clock.sleep(5.0).await;
                    sim.record.end(record, 0, "");
                    break;
                };
                sim.record.end(record, 101, "Switching Protocols");
                if wire.stream.write_all(head.as_bytes()).await.is_ok() {
                    let rest = std::mem::take(&mut wire.buffer);
                    drop(console::run(&mut wire.stream, rest, console).await);
                }
                break;
            }
        }
    }
    drop(wire.stream.shutdown().await);
}

async fn next_head<S: AsyncRead + AsyncWrite + Unpin>(wire: &mut Wire<S>) -> Option<Head> {
    loop {
        match read_head(&wire.buffer) {
            Read::Whole(head, used) => {
                wire.buffer.drain(..used);
                return Some(head);
            }
            Read::More => {
                if !wire.read_more().await {
                    return None;
                }
            }
            Read::Dead => {
                tokio::time::sleep(wire.patience).await;
                return None;
            }
        }
    }
}

/// An error before the API is reached, which ends the connection.
fn early(status: u16, text: &str) -> Next {
    Next::Answer(Response::plain(status, text), false)
}

async fn request<S: AsyncRead + AsyncWrite + Unpin>(
    sim: &Arc<Sim>,
    wire: &mut Wire<S>,
    head: &Head,
    record: usize,
) -> Next {
    if head.major != 1 {
        let text = format!("http protocol version {}.{} not supported", head.major, head.minor);
        return early(506, &text);
    }
    if !["GET", "POST", "PUT", "DELETE"].contains(&head.method.as_str()) {
        let reason = format!("method '{}' not available", head.method);
        return Next::Answer(Response::new(501, reason), false);
    }
    if head.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        return early(501, "chunked transfer encoding not supported");
    }
    let Some((formatter, path)) = api_path(&head.path) else {
        return early(500, &no_file(&head.path));
    };
    let actions = sim.faults.matching(&head.method, &path);
    let is_upload = head.method == "POST" && upload::is_path(&path);
    let who = match auth::identify(sim, head, &path, is_upload) {
        Ok(who) => who,
        Err(text) => {
            sim.clock.sleep(3.0).await;
            return Next::Answer(Response::new(401, text), false);
        }
    };
    sim.record.note(record, |request| {
        request.path.clone_from(&path);
        request.who = who.as_ref().map(crate::access::Identity::full);
    });
    let length = head.content_length();
    if length > 0 && !["POST", "PUT"].contains(&head.method.as_str()) {
        return early(501, &format!("Unexpected content for method '{}'", head.method));
    }
    let mut given = parse_form(&head.query);
    if is_upload {
        return upload::receive(sim, wire, head, upload::Arrival { path, given, who, record, actions }).await;
    }
    if length > 0 || head.content_type().0 == Some("application/json") && head.method != "GET" {
        match read_body(wire, head, length).await {
            Ok(body) => merge_body(&mut given, body),
            Err(next) => return next,
        }
    }
    let faults = prepare(sim, &path, &given, actions).await;
    if let Some(next) = faults.instead {
        return next;
    }
    let upgrade = match upgrade_of(head) {
        Ok(upgrade) => upgrade,
        Err(text) => return early(500, &text),
    };
    let method = head.method.clone();
    let incoming = Incoming { method, path, given, who, record, fault: faults.task, upgrade };
    let answer = dispatch(sim, incoming).await;
    if let Some(next) = faults.afterwards {
        return next;
    }
    finish(sim, &formatter, answer).await
}

fn merge_body(given: &mut Map<String, Value>, body: Map<String, Value>) {
    for (key, value) in body {
        // What stands in the query wins.
        given.entry(key).or_insert(value);
    }
}

async fn read_body<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
    head: &Head,
    length: u64,
) -> Result<Map<String, Value>, Next> {
    if length > MAX_BODY {
        return Err(early(501, "for data too large"));
    }
    let (media, _) = head.content_type();
    let whole = head.header("content-type").unwrap_or_default();
    if !matches!(media, None | Some("application/x-www-form-urlencoded" | "application/json")) {
        return Err(early(506, &format!("upload 'Content-Type '{whole}' not implemented")));
    }
    if head.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue")) {
        drop(wire.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await);
        drop(wire.stream.flush().await);
    }
    let body = wire.take(length as usize).await.ok_or(Next::Drop)?;
    let text = String::from_utf8_lossy(&body);
    if media == Some("application/json") {
        return parse_json(&text).map_err(|text| early(500, &text));
    }
    Ok(parse_form(&text))
}

/// The formatter and the path below it.
fn api_path(path: &str) -> Option<(String, String)> {
    let rest = path.strip_prefix("/api2/")?;
    let (formatter, below) = rest.split_once('/').unwrap_or((rest, ""));
    let parts: Vec<&str> = below.split('/').filter(|part| !part.is_empty()).collect();
    Some((formatter.into(), format!("/{}", parts.join("/"))))
}

fn no_file(path: &str) -> String {
    if path == "/" {
        return "file error - /usr/share/pve-manager/index.html.tpl: not found\n".into();
    }
    format!("no such file '{path}'\n")
}

fn upgrade_of(head: &Head) -> Result<Option<Upgrade>, String> {
    let wanted = head.header("upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket"));
    if !wanted {
        return Ok(None);
    }
    let version = head.header("sec-websocket-version").unwrap_or_default();
    if version != "13" {
        return Err(format!("unsupported websocket-version '{version}'\n"));
    }
    let Some(key) = head.header("sec-websocket-key") else {
        return Err("missing websocket-key\n".into());
    };
    let binary = head.header("sec-websocket-protocol").is_some_and(|value| value.contains("binary"));
    Ok(Some(Upgrade { key: key.into(), binary }))
}

/// What a test's faults do with one request.
#[derive(Default)]
pub(crate) struct Prepared {
    /// The answer instead of doing anything.
    pub(crate) instead: Option<Next>,
    /// The answer after doing it.
    pub(crate) afterwards: Option<Next>,
    /// For the task that it starts.
    pub(crate) task: Option<Action>,
}

/// Lets the faults of a request strike.
pub(crate) async fn prepare(
    sim: &Arc<Sim>,
    path: &str,
    given: &Map<String, Value>,
    actions: Vec<Action>,
) -> Prepared {
    let mut prepared = Prepared::default();
    for action in actions {
        match action {
            Action::Refuse { status, message } => {
                let failure = Failure::new(status, format!("{message}\n"));
                let response = if status == 401 {
                    Response::new(401, message)
                } else {
                    Response::json(status, failure.reason(), &failure.body())
                };
                prepared.instead = Some(Next::Answer(response, false));
            }
            Action::Delay { seconds } => sim.clock.sleep(seconds).await,
            Action::DropBefore => prepared.instead = Some(Next::Drop),
            Action::DropAfter => prepared.afterwards = Some(Next::Drop),
            Action::Pseudo { status, done } => {
                let next = Next::Answer(Response::new(status, pseudo_reason(status)), false);
                *(if done { &mut prepared.afterwards } else { &mut prepared.instead }) = Some(next);
            }
            Action::TaskFails { .. }
            | Action::TaskHangs { .. }
            | Action::TaskWarns { .. }
            | Action::VmidTaken { when: When::Task, .. } => prepared.task = Some(action),
            strike => crate::strike::strike(sim, path, given, strike).await,
        }
    }
    prepared
}

fn pseudo_reason(status: u16) -> &'static str {
    match status {
        595 => "Connection refused",
        596 => "Connection timed out",
        597 => "Connection reset by peer",
        _ => "Too many redirections",
    }
}

/// Turns an answer into bytes of the wanted format.
pub(crate) async fn finish(sim: &Sim, formatter: &str, answer: Answer) -> Next {
    match formatter {
        "json" => finish_json(sim, answer).await,
        "extjs" => Next::Answer(finish_extjs(answer), true),
        "html" => {
            let mut response = Response::new(200, "OK");
            response.content_type = Some("text/html;charset=UTF-8");
            response.body = b"<!DOCTYPE html>\n<title>Proxmox VE API</title>\n".to_vec();
            Next::Answer(response, true)
        }
        other => early(501, &format!("no formatter for uri /version, {other}")),
    }
}

async fn finish_json(sim: &Sim, answer: Answer) -> Next {
    match answer {
        Ok(Reply::Websocket(bridge)) => Next::Upgrade(bridge),
        Ok(Reply::Text(text)) => {
            let mut response = Response::plain(200, &text);
            response.reason = "OK".into();
            response.content_type = Some("text/plain");
            Next::Answer(response, true)
        }
        Ok(Reply::Data(data)) => Next::Answer(Response::json(200, "OK", &json!({ "data": data })), true),
        Ok(Reply::List(data, total)) => {
            let mut body = json!({ "data": data });
            // Nothing is false to Perl, so it is left out.
            if total > 0 {
                body["total"] = json!(total);
            }
            Next::Answer(Response::json(200, "OK", &body), true)
        }
        Err(failure) => {
            if failure.delay > 0.0 {
                sim.clock.sleep(failure.delay).await;
            }
            let response = if (595..600).contains(&failure.status) {
                Response::new(failure.status, failure.reason())
            } else {
                Response::json(failure.status, failure.reason(), &failure.body())
            };
            Next::Answer(response, false)
        }
    }
}

fn finish_extjs(answer: Answer) -> Response {
    let body = match answer {
        Ok(Reply::Data(data) | Reply::List(data, _)) => json!({ "data": data, "success": 1 }),
        Ok(_) => json!({ "data": null, "success": 1 }),
        Err(failure) => {
            let mut body = failure.body();
            body["success"] = json!(0);
            body["status"] = json!(failure.status);
            body
        }
    };
    Response { content_type: Some(JSON), body: body.to_string().into_bytes(), ..Response::new(200, "OK") }
}
