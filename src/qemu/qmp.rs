//! A QMP client: `qapi`'s types over the line reader that the guest agent shares.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use qapi::{Command, qmp};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::Error;
use super::wire::{self, Lines};

/// An event that QEMU sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its name, such as `SHUTDOWN`.
    pub name: String,
    /// What it carries; null when nothing.
    pub data: Value,
}

/// A connection to QEMU's monitor.
#[derive(Debug)]
pub struct Qmp {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    waiting: Arc<Waiting>,
    next_id: AtomicU64,
    _reader: AbortOnDropHandle<()>,
}

/// Who waits for the reply to which request; nothing once the connection has ended.
type Waiting = Mutex<Option<HashMap<u64, oneshot::Sender<Reply>>>>;

type Reply = Result<Value, String>;

impl Qmp {
    /// Takes QEMU's greeting, leaves negotiation mode, and returns the client with QEMU's events.
    /// The events end when the connection does.
    ///
    /// # Errors
    /// [`Error::NoAnswer`] or [`Error::Closed`] for the whole exchange.
    pub async fn open(
        stream: UnixStream,
        limit: Duration,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Event>), Error> {
        let (reader, writer) = stream.into_split();
        let waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let (events, received) = mpsc::unbounded_channel();
        // The greeting needs no waiting for: it is no reply and no event, and commands queue up.
        let task = tokio::spawn(read_all(Lines::new(reader), Arc::clone(&waiting), events));
        let client = Self {
            writer: tokio::sync::Mutex::new(writer),
            waiting,
            next_id: AtomicU64::new(1),
            _reader: AbortOnDropHandle::new(task),
        };
        client.execute(qmp::qmp_capabilities { enable: None }, limit).await?;
        Ok((client, received))
    }

    /// Executes a command and returns its result.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::NoAnswer`] or [`Error::Closed`].
    pub async fn execute<C: Command>(&self, command: C, limit: Duration) -> Result<C::Ok, Error> {
        let deadline = Instant::now() + limit;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let closed = || Error::Closed { command: C::NAME };
        let late = |_| Error::NoAnswer { command: C::NAME, after: limit };
        let (sender, reply) = oneshot::channel();
        self.waiting().as_mut().ok_or_else(closed)?.insert(id, sender);
        let _forget = Forget { waiting: &self.waiting, id };

        let line = wire::request(command, id);
        let write = async {
            let mut writer = self.writer.lock().await;
            writer.write_all(&line).await
        };
        timeout_at(deadline, write).await.map_err(late)?.map_err(|_| closed())?;
        let reply = timeout_at(deadline, reply).await.map_err(late)?.map_err(|_| closed())?;
        let refused = |reason: String| Error::Refused { command: C::NAME, reason };
        serde_json::from_value(reply.map_err(refused)?)
            .map_err(|error| refused(format!("an answer that forge does not understand: {error}")))
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<Reply>>>> {
        lock(&self.waiting)
    }
}

/// Forgets a request whose caller has gone, so that its late reply is ignored.
struct Forget<'a> {
    waiting: &'a Waiting,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = lock(self.waiting).as_mut() {
            drop(waiting.remove(&self.id));
        }
    }
}

fn lock(waiting: &Waiting) -> std::sync::MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<Reply>>>> {
    waiting.lock().expect("nothing panics while it holds this lock")
}

/// Reads until the connection ends; replies go to who waits for them, events to `events`.
async fn read_all(
    mut lines: Lines<OwnedReadHalf>,
    waiting: Arc<Waiting>,
    events: mpsc::UnboundedSender<Event>,
) {
    // A failing read is an end like any other: why QEMU ended is told by its process.
    while let Ok(Some(line)) = lines.next_line().await {
        match parse_message(&line) {
            Some(Message::Reply(id, reply)) => {
                let waiter = lock(&waiting).as_mut().and_then(|waiting| waiting.remove(&id));
                if let Some(waiter) = waiter {
                    drop(waiter.send(reply));
                }
            }
            Some(Message::Event(event)) => drop(events.send(event)),
            None => {}
        }
    }
    drop(lock(&waiting).take());
}

#[derive(Debug, PartialEq)]
enum Message {
    Reply(u64, Reply),
    Event(Event),
}

/// Parses a line; the greeting, replies without an id and garbage are nothing.
fn parse_message(line: &[u8]) -> Option<Message> {
    let mut message: Value = serde_json::from_slice(line).ok()?;
    if let Some(name) = message["event"].as_str() {
        return Some(Message::Event(Event { name: name.to_owned(), data: message["data"].clone() }));
    }
    let id = message["id"].as_u64()?;
    let reply = match message.get_mut("return") {
        Some(value) => Ok(value.take()),
        None => Err(message["error"]["desc"].as_str()?.to_owned()),
    };
    Some(Message::Reply(id, reply))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    const LIMIT: Duration = Duration::from_millis(300);

    /// Plays QEMU: answers each line that comes in with what `answer` says to its id and command.
    async fn fake(mut stream: UnixStream, answer: impl Fn(u64, &str) -> Option<String>) {
        stream.write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n").await.unwrap();
        let mut bytes = Vec::new();
        loop {
            if stream.read_buf(&mut bytes).await.unwrap() == 0 {
                return;
            }
            while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = bytes.drain(..=end).collect();
                let request: Value = serde_json::from_slice(&line).unwrap();
                let id = request["id"].as_u64().unwrap();
                let Some(reply) = answer(id, request["execute"].as_str().unwrap()) else { return };
                // In two halves, as a socket may deliver them.
                let (first, second) = reply.as_bytes().split_at(reply.len() / 2);
                stream.write_all(first).await.unwrap();
                tokio::task::yield_now().await;
                stream.write_all(second).await.unwrap();
            }
        }
    }

    fn ok(id: u64) -> String {
        format!("{{\"return\": {{}}, \"id\": {id}}}\r\n")
    }

    #[tokio::test]
    async fn stale_replies_unknown_events_and_half_lines_do_no_harm() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = tokio::spawn(fake(theirs, |id, command| {
            let noise = "garbage\r\n{\"return\": {}, \"id\": 999}\r\n{\"return\": {}}\r\n\
                         {\"event\": \"FROM_MARS\", \"data\": {\"x\": 1}, \"timestamp\": {}}\r\n";
            let reply = if command == "stop" {
                format!("{{\"error\": {{\"class\": \"GenericError\", \"desc\": \"no\"}}, \"id\": {id}}}\r\n")
            } else {
                ok(id)
            };
            Some(format!("{noise}{reply}{{\"event\": \"STOP\"}}\r\n"))
        }));
        let (client, mut events) = Qmp::open(ours, LIMIT).await.unwrap();
        client.execute(qmp::cont {}, LIMIT).await.unwrap();
        let error = client.execute(qmp::stop {}, LIMIT).await.unwrap_err();
        assert_eq!(error.to_string(), "QMP stop: refused: no");
        assert_eq!(events.recv().await.unwrap().name, "FROM_MARS");
        assert_eq!(events.recv().await.unwrap(), Event { name: "STOP".to_owned(), data: Value::Null });
        drop(client);
        server.await.unwrap();
    }

    #[tokio::test]
    async fn many_callers_get_their_own_replies() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let _server = AbortOnDropHandle::new(tokio::spawn(fake(theirs, |id, command| {
            let value = if command == "human-monitor-command" { format!("\"{id}\"") } else { "{}".into() };
            Some(format!("{{\"return\": {value}, \"id\": {id}}}\r\n"))
        })));
        let (client, _events) = Qmp::open(ours, LIMIT).await.unwrap();
        let ask = || {
            client.execute(
                qmp::human_monitor_command { cpu_index: None, command_line: "info version".into() },
                LIMIT,
            )
        };
        let (a, b, c) = tokio::try_join!(ask(), ask(), ask()).unwrap();
        assert_eq!([a, b, c], ["2", "3", "4"]);
    }

    #[tokio::test]
    async fn silence_and_closing_are_told_apart() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let error = Qmp::open(ours, Duration::from_millis(20)).await.unwrap_err();
        assert!(matches!(error, Error::NoAnswer { command: "qmp_capabilities", .. }), "{error}");
        drop(theirs);

        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(fake(theirs, |id, command| (command != "cont").then(|| ok(id))));
        let (client, mut events) = Qmp::open(ours, LIMIT).await.unwrap();
        for _ in 0..2 {
            let error = client.execute(qmp::cont {}, LIMIT).await.unwrap_err();
            assert!(matches!(error, Error::Closed { command: "cont" }), "{error}");
        }
        assert_eq!(events.recv().await, None);
    }
}
