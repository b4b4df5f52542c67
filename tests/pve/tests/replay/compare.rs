//! Recorded and replayed answers, compared as the transcripts' README wants it.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Map, Value};

use crate::common::Response;

/// What may differ, and what it becomes.
static VARIABLE: LazyLock<Vec<(Regex, &'static str)>> = LazyLock::new(|| {
    [
        (r"UPID:[^ ']*:", "UPID"),
        (r"pveupload-[0-9a-f]+", "pveupload"),
        (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UUID"),
        (r"\b[0-9a-fA-F]{32,}\b", "HEX"),
        (r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}", "MAC"),
        (r"creation-qemu=[^,]*,ctime=\d+", "META"),
        (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME"),
        (r"tmp_dwnl\.\d+", "tmp_dwnl"),
        (r"\(?[\d.]+ [KMG]B/s\)?", "RATE"),
        (r"[\d.]+[KMG]=[\d.]+s", "RATE"),
        (r"(127\.0\.0\.1|10\.98\.0\.1):\d+", "SOURCE"),
        (r"\$5\$[^\n]*", "CRYPTED"),
        (r"file size is: \d+", "file size"),
        (r"character offset \d+", "character offset N"),
    ]
    .map(|(pattern, with)| (Regex::new(pattern).unwrap(), with))
    .into()
});

pub(crate) fn plain(text: &str) -> String {
    VARIABLE
        .iter()
        .fold(text.trim_end().to_owned(), |text, (regex, with)| regex.replace_all(&text, *with).into_owned())
}

/// Keys whose text is the server's own wording or a configuration's value.
const EXACT: &[&str] = &["message", "exitstatus", "reason"];

/// Answers of these calls are compared down to their texts.
fn is_exact_path(path: &str) -> bool {
    path.ends_with("/config") || path.ends_with("/pending")
}

/// Differences between a recorded answer and ours.
pub(crate) fn differences(recorded: &Value, ours: Option<&Response>, path: &str) -> Vec<String> {
    let status = recorded["status"].as_u64().unwrap_or(0) as u16;
    let Some(ours) = ours else {
        return if status == 0 { Vec::new() } else { vec![format!("no answer instead of {status}")] };
    };
    let mut found = Vec::new();
    let reason = recorded["reason"].as_str().unwrap_or_default();
    if status != ours.status || plain(reason) != plain(&ours.reason) {
        found.push(format!("{} {} instead of {status} {reason}", ours.status, ours.reason));
        return found;
    }
    let headers = &recorded["headers"];
    for name in ["content-type", "server", "cache-control"] {
        let recorded = headers[name].as_str();
        if recorded.is_some() && recorded != ours.header(name)
            || name == "content-type" && recorded != ours.header(name)
        {
            found.push(format!("{name}: {:?} instead of {recorded:?}", ours.header(name)));
        }
    }
    let connection = headers["connection"].as_str().unwrap_or_default();
    if status != 101 && !connection.is_empty() && ours.header("connection") != Some(connection) {
        found.push(format!("connection: {:?} instead of {connection}", ours.header("connection")));
    }
    match &recorded["body"] {
        Value::Object(body) if status != 101 => {
            let exact = is_exact_path(path);
            value("", &Value::Object(body.clone()), &ours.json(), exact, path.ends_with("/log"), &mut found);
        }
        Value::String(text) if headers["content-type"].as_str() != Some("text/html;charset=UTF-8") => {
            let body = String::from_utf8_lossy(&ours.body);
            if plain(text) != plain(&body) && !text.starts_with("(gzip") {
                found.push(format!("body {body:?} instead of {text:?}"));
            }
        }
        _ => {}
    }
    found
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "text",
        Value::Array(_) => "list",
        Value::Object(_) => "object",
    }
}

fn value(at: &str, recorded: &Value, ours: &Value, exact: bool, log: bool, found: &mut Vec<String>) {
    if kind(recorded) != kind(ours) {
        found.push(format!("{at}: {} {ours} instead of {recorded}", kind(ours)));
        return;
    }
    match (recorded, ours) {
        (Value::Object(recorded), Value::Object(ours)) => object(at, recorded, ours, exact, log, found),
        (Value::Array(recorded), Value::Array(ours)) => list(at, recorded, ours, exact, log, found),
        (Value::String(recorded), Value::String(ours)) => {
            let cut = recorded.contains("…(") || recorded == "<redacted>" || recorded == "**********";
            let name = at.rsplit('.').next().unwrap_or(at);
            let wanted = exact && name != "digest" || EXACT.contains(&name) || at.starts_with(".errors");
            if wanted && !cut && plain(recorded) != plain(ours) {
                found.push(format!("{at}: {ours:?} instead of {recorded:?}"));
            }
        }
        (recorded, ours) if exact && recorded != ours => {
            found.push(format!("{at}: {ours} instead of {recorded}"));
        }
        _ => {}
    }
}

fn object(
    at: &str,
    recorded: &Map<String, Value>,
    ours: &Map<String, Value>,
    exact: bool,
    log: bool,
    found: &mut Vec<String>,
) {
    // A task may be over sooner than it was.
    let sooner = recorded.get("status") == Some(&"running".into()) && ours.contains_key("exitstatus")
        || recorded.get("exited") == Some(&0.into()) && ours.get("exited") == Some(&1.into());
    if sooner {
        return;
    }
    for key in recorded.keys().chain(ours.keys()) {
        let at = format!("{at}.{key}");
        match (recorded.get(key), ours.get(key)) {
            (Some(recorded), Some(ours)) => value(&at, recorded, ours, exact, log, found),
            (Some(recorded), None) => found.push(format!("{at} is missing: {recorded}")),
            (None, ours) => found.push(format!("{at} is too much: {ours:?}")),
        }
    }
    found.sort();
    found.dedup();
}

fn list(at: &str, recorded: &[Value], ours: &[Value], exact: bool, log: bool, found: &mut Vec<String>) {
    let recorded: Vec<&Value> =
        recorded.iter().filter(|item| !item.as_str().is_some_and(|text| text.starts_with('…'))).collect();
    if log {
        return lines(at, &recorded, ours, found);
    }
    if recorded.is_empty() != ours.is_empty() {
        found.push(format!("{at}: {} entries instead of {}", ours.len(), recorded.len()));
        return;
    }
    for item in recorded {
        let mut best: Option<Vec<String>> = None;
        for candidate in ours {
            let mut differences = Vec::new();
            let same_key = item.get("key") == candidate.get("key");
            value(
                at,
                item,
                candidate,
                exact && same_key && item.get("key") != Some(&"digest".into()),
                false,
                &mut differences,
            );
            if !same_key {
                differences.push(format!("{at}: no entry like {item}"));
            }
            if best.as_ref().is_none_or(|best| differences.len() < best.len()) {
                best = Some(differences);
            }
        }
        found.extend(best.unwrap_or_default());
    }
}

/// Lines of a task's log: each recorded one must be there, progress aside.
fn lines(at: &str, recorded: &[&Value], ours: &[Value], found: &mut Vec<String>) {
    let text = |line: &Value| plain(line["t"].as_str().unwrap_or_default());
    let progress = |line: &str| line.starts_with("transferred ") || line.contains("100%");
    let ours: Vec<String> = ours.iter().map(text).collect();
    let recorded: Vec<String> =
        recorded.iter().map(|line| text(line)).filter(|line| !progress(line)).collect();
    for line in &recorded {
        if !ours.contains(line) {
            found.push(format!("{at}: no line {line:?} in {ours:?}"));
        }
    }
    // A lock that has to be waited for here was free there, or the other way round.
    let waiting = |line: &str| line == "trying to acquire lock..." || line == " OK";
    for line in ours.iter().filter(|line| !progress(line) && !waiting(line)) {
        if !recorded.contains(line) {
            found.push(format!("{at}: a line too much, {line:?}"));
        }
    }
}

/// Leaves of our answer only the keys that the recording kept of it.
pub(crate) fn abridge(recorded: &Value, ours: Option<&mut Response>) {
    let Some(ours) = ours else {
        return;
    };
    let mut body = ours.json();
    if let (Some(kept), Some(data)) = (recorded["body"]["data"].as_object(), body["data"].as_object_mut()) {
        data.retain(|key, _| kept.contains_key(key));
    }
    ours.body = body.to_string().into_bytes();
}
