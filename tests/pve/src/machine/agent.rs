//! The guest agent, as Proxmox talks to it: each call has a connection of its own.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};

use super::lines::Messages;
use crate::hypervisor::AgentError;

/// One machine's agent: one call at a time.
#[derive(Debug)]
pub(super) struct Agent {
    inside: tokio::sync::Mutex<()>,
    next_id: AtomicU64,
}

impl Agent {
    pub(super) fn new() -> Self {
        // Different from those of an earlier simulator, whose replies may still be on their way.
        let start = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_micros() as u64);
        Self { inside: tokio::sync::Mutex::new(()), next_id: AtomicU64::new(start & (u64::MAX >> 12)) }
    }

    /// Executes a command over the agent's socket. A command that succeeds without a word, such as
    /// `guest-shutdown`, is done when the connection ends.
    pub(super) async fn call(
        &self,
        socket: &Path,
        execute: &str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value, AgentError> {
        let deadline = Instant::now() + limit;
        let _inside = timeout_at(deadline, self.inside.lock()).await.map_err(|_| AgentError::Timeout)?;
        let exchange = async {
            let stream = UnixStream::connect(socket).await.map_err(|_| AgentError::NotRunning)?;
            self.exchange(stream, execute, arguments).await
        };
        timeout_at(deadline, exchange).await.map_err(|_| AgentError::Timeout)?
    }

    async fn exchange(
        &self,
        stream: UnixStream,
        execute: &str,
        arguments: Value,
    ) -> Result<Value, AgentError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let sync = json!({ "execute": "guest-sync-delimited", "arguments": { "id": id } });
        let command = json!({ "execute": execute, "arguments": arguments });
        let (reader, mut writer) = stream.into_split();
        let lines = format!("{sync}\n{command}\n");
        writer.write_all(lines.as_bytes()).await.map_err(|_| AgentError::NotRunning)?;
        let mut messages = Messages::new(reader);
        let mut synchronised = false;
        loop {
            match messages.next().await {
                Ok(Some(message)) if synchronised => return reply(&message),
                // A reply to an earlier call that gave up waiting is not ours.
                Ok(Some(message)) => synchronised = message["return"] == id,
                Ok(None) | Err(_) if synchronised => return Ok(json!({})),
                Ok(None) | Err(_) => return Err(AgentError::NotRunning),
            }
        }
    }
}

fn reply(message: &Value) -> Result<Value, AgentError> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match message.get("error") {
        Some(error) => Err(AgentError::Error { class: text(&error["class"]), desc: text(&error["desc"]) }),
        None => Ok(message["return"].clone()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncBufReadExt as _, BufReader};
    use tokio::net::UnixListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    /// An agent as QEMU's socket shows it: one client after another; `silent` never answers, and late
    /// replies reach whoever is there.
    async fn serve(listener: UnixListener) {
        let mut late = String::new();
        while let Ok((stream, _)) = listener.accept().await {
            let (reader, mut writer) = stream.into_split();
            writer.write_all(std::mem::take(&mut late).as_bytes()).await.unwrap();
            let mut lines = BufReader::new(reader).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let request: Value = serde_json::from_str(&line).unwrap();
                let answer = match request["execute"].as_str().unwrap() {
                    "guest-sync-delimited" => {
                        format!("\u{0}{{\"return\": {}}}\n", request["arguments"]["id"])
                    }
                    "silent" => {
                        late = "{\"return\": \"too late\"}\n".to_owned();
                        continue;
                    }
                    "shutdown" => break,
                    "bad" => "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\n".to_owned(),
                    name => format!("{{\"return\": \"{name}\"}}\n"),
                };
                let bytes: Vec<u8> = answer.bytes().map(|byte| if byte == 0 { 0xff } else { byte }).collect();
                if writer.write_all(&bytes).await.is_err() {
                    break;
                }
            }
        }
    }

    #[tokio::test]
    async fn calls_are_apart_and_late_replies_are_nobodys() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("qga");
        tokio::spawn(serve(UnixListener::bind(&socket).unwrap()));
        let agent = Arc::new(Agent::new());
        let call = |name: &'static str, limit| {
            let (agent, socket) = (Arc::clone(&agent), socket.clone());
            async move { agent.call(&socket, name, json!({}), limit).await }
        };
        assert_eq!(call("first", LIMIT).await.unwrap(), "first");
        let short = Duration::from_millis(150);
        assert_eq!(call("silent", short).await, Err(AgentError::Timeout));
        assert_eq!(call("next", LIMIT).await.unwrap(), "next");
        let error = AgentError::Error { class: "GenericError".into(), desc: "no".into() };
        assert_eq!(call("bad", LIMIT).await, Err(error));
        assert_eq!(call("shutdown", LIMIT).await.unwrap(), json!({}));
        assert_eq!(call("again", LIMIT).await.unwrap(), "again");

        let inside = tokio::spawn(call("silent", LIMIT));
        while agent.inside.try_lock().is_ok() {
            tokio::task::yield_now().await;
        }
        assert_eq!(call("second", short).await, Err(AgentError::Timeout));
        inside.abort();

        std::fs::remove_file(&socket).unwrap();
        assert_eq!(call("gone", LIMIT).await, Err(AgentError::NotRunning));
    }
}
