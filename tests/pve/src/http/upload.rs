//! Uploads: received into a file of their own before the API sees them.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufWriter};

use super::conn::{Next, Wire, finish, prepare};
use super::head::Head;
use super::multipart::Upload;
use super::response::Response;
use crate::access::Identity;
use crate::fault::Action;
use crate::random;
use crate::sim::{Incoming, Sim, dispatch};

/// Whether a POST to this path is an upload.
pub(crate) fn is_path(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    matches!(parts.as_slice(), ["", "nodes", _, "storage", _, "upload"])
}

/// An upload whose head has been read.
pub(crate) struct Arrival {
    pub(crate) path: String,
    pub(crate) given: Map<String, Value>,
    pub(crate) who: Option<Identity>,
    pub(crate) record: usize,
    pub(crate) actions: Vec<Action>,
}

/// The real file behind `/var/tmp/pveupload-…`.
pub(crate) fn real_path(sim: &Sim, shown: &str) -> PathBuf {
    let name = shown.rsplit('/').next().unwrap_or(shown);
    sim.world().state().join("tmp").join(name)
}

/// Receives an upload, then hands it to the API.
pub(crate) async fn receive<S: AsyncRead + AsyncWrite + Unpin>(
    sim: &Arc<Sim>,
    wire: &mut Wire<S>,
    head: &Head,
    arrival: Arrival,
) -> Next {
    let Arrival { path, mut given, who, record, actions } = arrival;
    if let Err(response) = may_upload(sim, &path, who.as_ref()) {
        sim.clock.sleep(3.0).await;
        return Next::Answer(response, false);
    }
    let (media, boundary) = head.content_type();
    let length = head.content_length();
    let whole = media == Some("multipart/form-data") && boundary.is_some() && length > 0;
    if !whole || given.contains_key("tmpfilename") {
        tokio::time::sleep(wire.patience).await;
        return Next::Drop;
    }
    if actions.contains(&Action::DropBefore) {
        return Next::Drop;
    }
    if head.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue")) {
        drop(wire.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await);
        drop(wire.stream.flush().await);
    }
    let shown = format!("/var/tmp/pveupload-{}", random::hex(16));
    let real = real_path(sim, &shown);
    let mut upload = Upload::new(&boundary.unwrap_or_default());
    let received = store(wire, &mut upload, length, &real).await;
    match received {
        Ok(()) => {}
        Err(Broken::Gone) => {
            drop(tokio::fs::remove_file(&real).await);
            return Next::Drop;
        }
        Err(Broken::Died(text)) => {
            drop(tokio::fs::remove_file(&real).await);
            return Next::Answer(Response::plain_died(&text), false);
        }
    }
    for (key, value) in &upload.fields {
        given.entry(key.clone()).or_insert_with(|| json!(value));
    }
    given.insert("tmpfilename".into(), json!(shown));
    let faults = prepare(sim, &path, &given, actions).await;
    if let Some(next) = faults.instead {
        drop(tokio::fs::remove_file(&real).await);
        return next;
    }
    let (method, fault) = ("POST".into(), faults.task);
    let incoming = Incoming { method, path, given, who, record, fault, upgrade: None };
    let answer = dispatch(sim, incoming).await;
    if answer.is_err() {
        drop(tokio::fs::remove_file(&real).await);
    }
    let next = match faults.afterwards {
        Some(next) => next,
        None => finish(sim, "json", answer).await,
    };
    match next {
        // An upload always ends its connection.
        Next::Answer(response, _) => Next::Answer(response, false),
        other => other,
    }
}

/// The right to upload is checked before the body is read.
fn may_upload(sim: &Sim, path: &str, who: Option<&Identity>) -> Result<(), Response> {
    let storage = path.split('/').nth(4).unwrap_or_default();
    let Some(who) = who else {
        return Err(Response::new(401, "No ticket"));
    };
    let path = format!("/storage/{storage}");
    let checked = sim.world().access.check(who, &path, &["Datastore.AllocateTemplate"]);
    checked.map_err(|failure| Response::new(failure.status, failure.reason()))
}

enum Broken {
    /// The client stalled or left.
    Gone,
    /// The parser's text.
    Died(String),
}

async fn store<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
    upload: &mut Upload,
    length: u64,
    to: &std::path::Path,
) -> Result<(), Broken> {
    let lost = |error: std::io::Error| Broken::Died(format!("unable to create file - {error}\n"));
    if let Some(folder) = to.parent() {
        tokio::fs::create_dir_all(folder).await.map_err(lost)?;
    }
    // Every byte is stored, as on a node; only the copy of it leaves out what is padding.
    let file = File::create(to).await.map_err(lost)?;
    let mut file = BufWriter::with_capacity(1 << 20, file);
    let mut left = length;
    while left > 0 {
        if wire.buffer.is_empty() && !wire.read_more().await {
            return Err(Broken::Gone);
        }
        let take = wire.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let data = upload.push(&wire.buffer[..take]).map_err(Broken::Died)?;
        wire.buffer.drain(..take);
        left -= take as u64;
        file.write_all(&data).await.map_err(lost)?;
    }
    file.flush().await.map_err(lost)?;
    upload.finish().map_err(Broken::Died)
}
