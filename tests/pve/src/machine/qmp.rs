//! A QMP client.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::lines::Messages;

/// A connection to QEMU's monitor; its error texts are those of Proxmox's client.
#[derive(Debug)]
pub(super) struct Qmp {
    vmid: u32,
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    waiting: Arc<Waiting>,
    next_id: AtomicU64,
}

/// Who waits for the reply to which request; nothing once the connection has ended.
type Waiting = Mutex<Option<HashMap<u64, oneshot::Sender<Value>>>>;

impl Qmp {
    /// Leaves negotiation mode and returns the client, with the names of QEMU's events as they come.
    pub(super) async fn open(
        stream: UnixStream,
        vmid: u32,
        limit: Duration,
    ) -> Result<(Self, mpsc::UnboundedReceiver<String>), String> {
        let (reader, writer) = stream.into_split();
        let waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let (events, received) = mpsc::unbounded_channel();
        tokio::spawn(read_all(Messages::new(reader), Arc::clone(&waiting), events));
        let writer = tokio::sync::Mutex::new(writer);
        let qmp = Self { vmid, writer, waiting, next_id: AtomicU64::new(1) };
        qmp.execute("qmp_capabilities", json!({}), limit).await?;
        Ok((qmp, received))
    }

    /// Executes a command and returns what it returns.
    pub(super) async fn execute(
        &self,
        command: &str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value, String> {
        let failed = |text: &str| format!("VM {} qmp command '{command}' failed - {text}", self.vmid);
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, reply) = oneshot::channel();
        match self.waiting().as_mut() {
            Some(waiting) => waiting.insert(id, sender),
            None => return Err(failed("unable to connect to the monitor")),
        };
        let line = json!({ "execute": command, "arguments": arguments, "id": id }).to_string() + "\n";
        let exchange = async {
            self.writer.lock().await.write_all(line.as_bytes()).await.ok()?;
            reply.await.ok()
        };
        let outcome = timeout(limit, exchange).await;
        if let Some(waiting) = self.waiting().as_mut() {
            waiting.remove(&id);
        }
        let reply =
            outcome.map_err(|_| failed("got timeout"))?.ok_or_else(|| failed("client closed connection"))?;
        match reply.get("error") {
            Some(error) => Err(failed(error["desc"].as_str().unwrap_or("unknown error"))),
            None => Ok(reply["return"].clone()),
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<Value>>>> {
        self.waiting.lock().expect("nobody panics with the lock held")
    }
}

/// Hands each reply to who waits for it, until the connection ends.
async fn read_all(
    mut messages: Messages<OwnedReadHalf>,
    waiting: Arc<Waiting>,
    events: mpsc::UnboundedSender<String>,
) {
    while let Ok(Some(message)) = messages.next().await {
        if let Some(name) = message["event"].as_str() {
            // Nobody may listen any more.
            events.send(name.to_owned()).ok();
        }
        let id = message["id"].as_u64();
        let mut waiting = waiting.lock().expect("nobody panics with the lock held");
        let sender = id.and_then(|id| waiting.as_mut()?.remove(&id));
        if let Some(sender) = sender {
            // Whoever has given up waiting does not hear it.
            sender.send(message).ok();
        }
    }
    waiting.lock().expect("nobody panics with the lock held").take();
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt as _, BufReader};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    /// Answers each command with what `answer` says, and noise before it.
    async fn serve(stream: UnixStream, answer: fn(&str) -> Option<Value>) {
        let (reader, mut writer) = stream.into_split();
        writer.write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n").await.unwrap();
        let mut lines = BufReader::new(reader).lines();
        while let Some(line) = lines.next_line().await.unwrap() {
            let request: Value = serde_json::from_str(&line).unwrap();
            let Some(mut reply) = answer(request["execute"].as_str().unwrap()) else { continue };
            reply["id"] = request["id"].clone();
            let noise = "{\"event\": \"STOP\"}\r\n{\"return\": {}, \"id\": 999}\r\n";
            writer.write_all(format!("{noise}{reply}\r\n").as_bytes()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn replies_errors_silence_and_the_end_are_told_apart() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = tokio::spawn(serve(theirs, |command| match command {
            "stop" => Some(json!({ "error": { "class": "GenericError", "desc": "no" } })),
            "cont" => None,
            _ => Some(json!({ "return": { "status": "running" } })),
        }));
        let (qmp, mut events) = Qmp::open(ours, 100, LIMIT).await.unwrap();
        assert_eq!(events.recv().await.unwrap(), "STOP");
        assert_eq!(qmp.execute("query-status", json!({}), LIMIT).await.unwrap()["status"], "running");
        let error = qmp.execute("stop", json!({}), LIMIT).await.unwrap_err();
        assert_eq!(error, "VM 100 qmp command 'stop' failed - no");
        let error = qmp.execute("cont", json!({}), Duration::from_millis(20)).await.unwrap_err();
        assert_eq!(error, "VM 100 qmp command 'cont' failed - got timeout");
        server.abort();
        let error = qmp.execute("quit", json!({}), LIMIT).await.unwrap_err();
        assert_eq!(error, "VM 100 qmp command 'quit' failed - client closed connection");
    }
}
