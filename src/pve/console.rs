//! A VM's consoles: a picture of its screen, and what it writes to a serial port.

use std::io;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;

use super::call::Call;
use super::client::understand;
use super::rfb::{self, Channel, Picture};
use super::vm::Vm;
use super::websocket::{Received, WebSocket};
use super::{Error, loose};
use crate::definition::Secret;
use crate::event::human_duration;

/// How much of a VNC password is looked at.
const VNC_PASSWORD_MAX: usize = 8;

/// How long a silent terminal is left alone before it is told that somebody still listens.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// How long the terminal may take to let in.
const LOGIN: Duration = Duration::from_secs(10);

/// The answer of `vncproxy` and `termproxy`.
#[derive(Deserialize)]
struct ProxyAnswer {
    #[serde(deserialize_with = "loose::number")]
    port: u16,
    ticket: String,
    #[serde(default)]
    password: Option<String>,
    #[serde(default)]
    user: String,
}

/// A serial port's output, from the moment it was opened on: one reader at a time.
pub struct SerialLog {
    socket: WebSocket,
    what: String,
    /// What came with the login's answer.
    first: Vec<u8>,
}

impl std::fmt::Debug for SerialLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SerialLog").field(&self.what).finish()
    }
}

impl Channel for WebSocket {
    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        Self::send(self, bytes).await
    }

    async fn receive(&mut self) -> io::Result<Vec<u8>> {
        match Self::receive(self, Duration::MAX).await? {
            Received::Data(bytes) => Ok(bytes),
            Received::Silence | Received::End => {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the console was closed"))
            }
        }
    }
}

impl Vm {
    /// Takes a picture of its screen; needs VM.Console. A stopped VM has none.
    ///
    /// # Errors
    /// [`Error::NotSent`] when the console breaks: nothing is changed by it.
    pub async fn screenshot(&self, limit: Duration) -> Result<Picture, Error> {
        let what = format!("the screen of VM {} on {}", self.vmid, self.node);
        let late = || Error::Deadline { what: what.clone(), after: limit };
        let taking = async {
            let (proxy, endpoint) = self
                .console(
                    Call::post("/nodes/{node}/qemu/{vmid}/vncproxy")
                        .at(&self.node)
                        .vm(self.vmid)
                        // Newer versions always make a password, older ones only when asked.
                        .body(json!({ "websocket": 1, "generate-password": 1 })),
                )
                .await?;
            let ticket = Secret::new(proxy.ticket);
            let mut socket = WebSocket::open(self, endpoint, proxy.port, &ticket).await?;
            let password = proxy.password.unwrap_or_else(|| ticket.expose().to_owned());
            let password: String = password.chars().take(VNC_PASSWORD_MAX).collect();
            let broken = |error: io::Error| Error::NotSent { what: what.clone(), reason: error.to_string() };
            rfb::picture(&mut socket, &password).await.map_err(broken)
        };
        timeout(limit, taking).await.map_err(|_| late())?
    }

    /// Opens the serial port with that number, which must be a `socket`; needs VM.Console, and for a
    /// token pve-access-control 9.0.4 or later.
    pub async fn serial(&self, number: u8) -> Result<SerialLog, Error> {
        let what = format!("serial{number} of VM {} on {}", self.vmid, self.node);
        let call = Call::post("/nodes/{node}/qemu/{vmid}/termproxy").at(&self.node).vm(self.vmid);
        let (proxy, endpoint) =
            self.console(call.body(json!({ "serial": format!("serial{number}") }))).await?;
        let ticket = Secret::new(proxy.ticket);
        let mut socket = WebSocket::open(self, endpoint, proxy.port, &ticket).await?;
        let login = format!("{}:{}\n", proxy.user, ticket.expose());
        let broken = |reason: String| Error::NotSent { what: what.clone(), reason };
        socket.send(login.as_bytes()).await.map_err(|error| broken(error.to_string()))?;
        let mut said = Vec::new();
        while said.len() < 2 {
            match socket.receive(LOGIN).await.map_err(|error| broken(error.to_string()))? {
                Received::Data(bytes) => said.extend(bytes),
                Received::Silence => {
                    return Err(broken(format!("no answer within {}", human_duration(LOGIN))));
                }
                Received::End => return Err(broken("the terminal does not let this user in".to_owned())),
            }
        }
        if !said.starts_with(b"OK") {
            return Err(broken(format!("the terminal answers {}", String::from_utf8_lossy(&said))));
        }
        Ok(SerialLog { socket, what, first: said.split_off(2) })
    }

    async fn console(&self, call: Call) -> Result<(ProxyAnswer, usize), Error> {
        let what = call.to_string();
        let (value, endpoint) = self.client.call_at(call).await?;
        Ok((understand(what, value)?, endpoint))
    }
}

impl SerialLog {
    /// Returns what was written next; nothing once the port is closed, as by the VM's end.
    pub async fn read(&mut self) -> Result<Option<Vec<u8>>, Error> {
        if !self.first.is_empty() {
            return Ok(Some(std::mem::take(&mut self.first)));
        }
        let broken = |what: &str, error: io::Error| Error::NotSent {
            what: what.to_owned(),
            reason: error.to_string(),
        };
        loop {
            match self.socket.receive(KEEP_ALIVE).await.map_err(|error| broken(&self.what, error))? {
                Received::Data(bytes) => return Ok(Some(bytes)),
                Received::End => return Ok(None),
                Received::Silence => {
                    self.socket.send(b"2").await.map_err(|error| broken(&self.what, error))?;
                }
            }
        }
    }
}
