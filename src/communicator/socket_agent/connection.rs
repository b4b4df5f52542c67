//! One connection to a guest agent.

use std::io;
use std::path::Path;

use qapi::{Command, ErrorClass, qga};
use serde::Deserialize as _;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::qemu::wire::{self, Lines};

/// A connection to a guest agent.
#[derive(Debug)]
pub(super) struct Connection {
    lines: Lines<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

/// The agent's own words for not doing what it was asked.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) class: ErrorClass,
    pub(super) reason: String,
}

impl Connection {
    pub(super) async fn open(socket: &Path) -> io::Result<Self> {
        let (reader, writer) = UnixStream::connect(socket).await?.into_split();
        Ok(Self { lines: Lines::new(reader), writer })
    }

    /// Asks the agent to say `id`, and waits until it has said that or anything since `first_id`.
    ///
    /// The leading delimiter makes the agent forget the half of a request that an earlier client left.
    pub(super) async fn sync(&mut self, first_id: u64, id: u64) -> io::Result<()> {
        let request = qga::guest_sync_delimited { id: i64::try_from(id).map_err(io::Error::other)? };
        let mut line = vec![wire::DELIMITER];
        line.extend(wire::request(request, id));
        self.writer.write_all(&line).await?;
        loop {
            let said = self.message().await?["return"].as_u64();
            if said.is_some_and(|said| (first_id..=id).contains(&said)) {
                return Ok(());
            }
        }
    }

    /// Sends a command and waits for its reply; replies to anything else are dropped.
    pub(super) async fn exchange<C: Command>(
        &mut self,
        command: C,
        id: u64,
    ) -> io::Result<Result<C::Ok, Refusal>> {
        self.send(command, id).await?;
        self.reply::<C>(id).await
    }

    /// Sends a command.
    pub(super) async fn send<C: Command>(&mut self, command: C, id: u64) -> io::Result<()> {
        self.writer.write_all(&wire::request(command, id)).await
    }

    /// Waits for a command's reply.
    pub(super) async fn reply<C: Command>(&mut self, id: u64) -> io::Result<Result<C::Ok, Refusal>> {
        loop {
            let mut message = self.message().await?;
            if message["id"].as_u64() != Some(id) {
                continue;
            }
            if let Some(value) = message.get_mut("return") {
                return Ok(Ok(serde_json::from_value(value.take())?));
            }
            let error = &message["error"];
            // A class that qapi does not know tells no more than the general one.
            let class = ErrorClass::deserialize(&error["class"]).unwrap_or(ErrorClass::GenericError);
            let reason = error["desc"].as_str().unwrap_or("without a reason").to_owned();
            return Ok(Err(Refusal { class, reason }));
        }
    }

    /// Returns the next message; what is no JSON is dropped.
    async fn message(&mut self) -> io::Result<Value> {
        loop {
            let line = self.lines.next_line().await?;
            let line = line.ok_or_else(|| {
                io::Error::new(io::ErrorKind::UnexpectedEof, "the connection to the guest agent ended")
            })?;
            if let Ok(message) = serde_json::from_slice(&line) {
                return Ok(message);
            }
        }
    }
}
