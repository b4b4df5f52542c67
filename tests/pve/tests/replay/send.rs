//! Recorded requests, sent again.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::common::{Client, Connection, Response, escape, form};

/// What stands in recorded requests for what is ours.
#[derive(Default)]
pub(crate) struct Known {
    /// UPIDs, digests and checksums.
    pub(crate) texts: BTreeMap<String, String>,
    /// Console tickets by our port, and our port by the recorded one.
    pub(crate) tickets: BTreeMap<String, String>,
    pub(crate) ports: BTreeMap<String, String>,
    /// Our guest's process numbers by the recorded ones.
    pub(crate) pids: BTreeMap<u64, u64>,
}

impl Known {
    /// Replaces what is known in any text, percent-encoded or not.
    pub(crate) fn translate(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (recorded, ours) in &self.texts {
            text = text.replace(recorded, ours).replace(&escape(recorded), &escape(ours));
        }
        text
    }

    fn params(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.translate(&expand(text))),
            Value::Array(items) => items.iter().map(|item| self.params(item)).collect(),
            Value::Object(map) => {
                map.iter().map(|(key, value)| (key.clone(), self.params(value))).collect::<Map<_, _>>().into()
            }
            other => other.clone(),
        }
    }
}

/// `xxx…(8193 chars of the same kind)` as it was sent.
fn expand(text: &str) -> String {
    let count = text.split("…(").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<usize>().ok());
    match count {
        Some(count) => text[..1].repeat(count),
        None => text.to_owned(),
    }
}

pub(crate) async fn send(client: &Client, request: &Value, known: &Known) -> Option<Response> {
    let method = request["method"].as_str().unwrap_or("GET");
    let mut target = known.translate(request["path"].as_str().unwrap());
    if let Some(query) = request["query"].as_object().filter(|query| !query.is_empty()) {
        let mut query = known.params(&Value::Object(query.clone()));
        let pid = query["pid"].as_u64().or_else(|| query["pid"].as_str()?.parse().ok());
        if let Some(pid) = pid.and_then(|pid| known.pids.get(&pid)) {
            query["pid"] = json!(pid);
        }
        target.extend(["?", &form(query.as_object().unwrap())]);
    }
    let headers: Vec<(String, String)> = request["headers"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
        .collect();
    let mut media = request["content_type"].as_str().unwrap_or_default().to_owned();
    let body = match &request["body"] {
        Value::Null if media == "application/json" && ["POST", "PUT"].contains(&method) => Some(Vec::new()),
        // A text describes what was sent: a chunked body, of which the head is enough.
        Value::Null | Value::String(_) => None,
        Value::Object(body) if body.contains_key("multipart") => {
            Some(multipart(body["multipart"].as_array().unwrap(), known, request, &mut media))
        }
        Value::Object(body) if body.contains_key("raw") => {
            Some(body["raw"].as_str().unwrap().as_bytes().to_vec())
        }
        Value::Object(body) if body.contains_key("bytes") => {
            let bytes = body["bytes"].as_u64().unwrap() as usize;
            let json = media == "application/json";
            let (before, after) = if json { ("{\"description\":\"", "\"}") } else { ("description=", "") };
            let filling = "x".repeat(bytes - before.len() - after.len());
            Some(format!("{before}{filling}{after}").into_bytes())
        }
        body if media.starts_with("application/json") => Some(known.params(body).to_string().into_bytes()),
        body => Some(form(known.params(body).as_object().unwrap()).into_bytes()),
    };
    let body = body.as_ref().map(|body| (media.as_str(), body.as_slice()));
    let mut bytes = client.bytes(method, &target, &headers, body);
    if let Some(version) = request["http"].as_str() {
        let end = bytes.windows(2).position(|two| two == b"\r\n").unwrap();
        bytes.splice(end - "HTTP/1.1".len()..end, version.bytes());
    }
    let mut connection = Connection::open(client.address, &client.pem).await;
    connection.send(&bytes).await;
    connection.receive().await
}

/// The bytes that stand for a recorded file, of which 1 MiB is enough.
pub(crate) fn file(bytes: u64) -> Vec<u8> {
    (0..bytes.min(1 << 20)).map(|at| (at % 251) as u8).collect()
}

fn multipart(parts: &[Value], known: &Known, request: &Value, media: &mut String) -> Vec<u8> {
    let boundary = "----------------------------0123456789abcdef";
    let note = request["note"].as_str().unwrap_or_default();
    *media = format!("multipart/form-data; boundary={boundary}");
    if note == "no boundary parameter" {
        *media = "multipart/form-data".into();
    }
    let end = if note == "LF line ends" { "\n" } else { "\r\n" };
    let mut body = Vec::new();
    for part in parts {
        body.extend(format!("--{boundary}{end}").bytes());
        for header in part["headers"].as_array().unwrap() {
            body.extend(format!("{}{end}", header.as_str().unwrap()).bytes());
        }
        body.extend(end.bytes());
        match part["file_bytes"].as_u64() {
            Some(bytes) => body.extend(file(bytes)),
            None => body.extend(known.translate(part["value"].as_str().unwrap_or_default()).bytes()),
        }
        body.extend(end.bytes());
    }
    body.extend(format!("--{boundary}--{end}").bytes());
    body
}

/// A recorded request for [`send`], its note beside it.
pub(crate) fn with_note(exchange: &Value) -> Value {
    let mut request = exchange["request"].clone();
    request["note"] = json!(exchange["note"]);
    request
}
