//! VNC and serial consoles: tickets, ports and the bridge of a websocket to a machine's socket.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use crate::held;
use crate::http::websocket::{self, BINARY, CLOSE, PING, PONG, take_frame};

/// A console waiting for its client.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) ticket: String,
    pub(crate) who: String,
    pub(crate) vmid: u32,
    pub(crate) socket: PathBuf,
    /// A terminal speaks its own little protocol and asks for the ticket once more.
    pub(crate) terminal: bool,
    /// Tells the proxy's task that a client is there; its end tells that the client is gone.
    pub(crate) taken: Option<oneshot::Sender<oneshot::Receiver<()>>>,
    /// Nobody listens any more; the ticket is still a right one.
    pub(crate) over: bool,
}

/// Consoles by port.
#[derive(Debug, Default)]
pub(crate) struct Consoles {
    pub(crate) ports: Mutex<BTreeMap<u16, Waiting>>,
}

/// First and last port of consoles.
pub(crate) const PORTS: std::ops::RangeInclusive<u16> = 5900..=5999;

impl Consoles {
    /// Puts a console on the next free port.
    pub(crate) fn add(&self, waiting: Waiting) -> Option<u16> {
        let mut ports = held(&self.ports);
        let unused = PORTS.clone().find(|port| !ports.contains_key(port));
        let over = || PORTS.clone().find(|port| ports[port].over);
        let port = unused.or_else(over)?;
        ports.insert(port, waiting);
        Some(port)
    }

    /// Nobody listens on a port any more.
    pub(crate) fn close(&self, port: u16) {
        if let Some(waiting) = held(&self.ports).get_mut(&port) {
            waiting.taken = None;
            waiting.over = true;
        }
    }
}

/// A connection that becomes a console's.
#[derive(Debug)]
pub(crate) struct Bridge {
    pub(crate) key: String,
    pub(crate) binary: bool,
    /// Nobody listens on the port any more: the connection ends without an answer.
    pub(crate) console: Option<Console>,
}

/// The machine's side of a bridge.
#[derive(Debug)]
pub(crate) struct Console {
    pub(crate) socket: PathBuf,
    pub(crate) terminal: bool,
    /// `USER:TICKET`, which a terminal's client must say first; nothing helps the owner of an API token
    /// before pve-access-control 9.0.4.
    pub(crate) hello: Option<String>,
    /// Dropped when the bridge is over.
    #[expect(dead_code, reason = "held for its drop")]
    pub(crate) done: oneshot::Sender<()>,
}

/// The answer that turns a connection into a websocket.
pub(crate) fn upgrade_head(bridge: &Bridge) -> String {
    let protocol = if bridge.binary { "Sec-WebSocket-Protocol: binary\r\n" } else { "" };
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {}\r\n{protocol}\r\n",
        websocket::accept(&bridge.key)
    )
}

/// Carries bytes between a websocket and a machine's socket until either ends.
pub(crate) async fn run<S>(mut client: S, mut rest: Vec<u8>, console: Console) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut machine = UnixStream::connect(&console.socket).await?;
    let mut from_machine = vec![0; 64 * 1024];
    let mut from_client = vec![0; 64 * 1024];
    let mut greeted = !console.terminal;
    let mut typed = Vec::new();
    loop {
        while let Some(frame) = take_frame(&mut rest).map_err(std::io::Error::other)? {
            match frame.opcode {
                CLOSE => return client.shutdown().await,
                PING => client.write_all(&websocket::frame(PONG, &frame.payload)).await?,
                websocket::TEXT | BINARY if console.terminal => {
                    typed.extend(frame.payload);
                    if !greeted {
                        greeted = greet(&mut client, &mut typed, console.hello.as_deref()).await?;
                    }
                    if greeted {
                        machine.write_all(&take_typed(&mut typed)).await?;
                    }
                }
                websocket::TEXT | BINARY => machine.write_all(&frame.payload).await?,
                _ => {}
            }
        }
        tokio::select! {
            read = machine.read(&mut from_machine), if greeted => match read? {
                0 => return client.write_all(&websocket::frame(CLOSE, &[])).await,
                count => {
                    client.write_all(&websocket::frame(BINARY, &from_machine[..count])).await?;
                    client.flush().await?;
                }
            },
            read = client.read(&mut from_client) => match read? {
                0 => return Ok(()),
                count => rest.extend(&from_client[..count]),
            },
        }
    }
}

/// A terminal's client says `USER:TICKET` and a newline, and is answered `OK`.
async fn greet<S>(client: &mut S, typed: &mut Vec<u8>, hello: Option<&str>) -> std::io::Result<bool>
where
    S: AsyncWrite + Unpin,
{
    let Some(end) = typed.iter().position(|&byte| byte == b'\n') else {
        return Ok(false);
    };
    let line: Vec<u8> = typed.drain(..=end).collect();
    if hello.is_none_or(|hello| line[..end] != *hello.as_bytes()) {
        return Err(std::io::Error::other("wrong ticket"));
    }
    client.write_all(&websocket::frame(BINARY, b"OK")).await?;
    Ok(true)
}

/// Takes whole messages off what a terminal's client sent; returns what was typed.
///
/// `0:LENGTH:BYTES` types, `1:COLUMNS:ROWS:` resizes, `2` only keeps the connection alive.
fn take_typed(sent: &mut Vec<u8>) -> Vec<u8> {
    let mut typed = Vec::new();
    loop {
        let fields: Vec<usize> =
            sent.iter().enumerate().filter(|(_, byte)| **byte == b':').map(|(at, _)| at).collect();
        let used = match (sent.first(), fields.as_slice()) {
            (Some(b'0'), [1, end, ..]) => {
                let length = std::str::from_utf8(&sent[2..*end]).ok().and_then(|text| text.parse().ok());
                let Some(length): Option<usize> = length else {
                    sent.clear();
                    return typed;
                };
                if sent.len() < end + 1 + length {
                    return typed;
                }
                typed.extend(&sent[end + 1..=end + length]);
                end + 1 + length
            }
            (Some(b'1'), [1, _, end, ..]) => end + 1,
            (Some(b'2'), _) => 1,
            (Some(b'0' | b'1') | None, _) => return typed,
            (Some(_), _) => sent.len(),
        };
        sent.drain(..used);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminals_messages_are_taken_apart() {
        let mut sent = b"21:80:24:0:5:ls -l0:3:a:b2".to_vec();
        assert_eq!(take_typed(&mut sent), b"ls -la:b");
        assert!(sent.is_empty());
        let mut part = b"0:5:ls".to_vec();
        assert_eq!(take_typed(&mut part), b"");
        assert_eq!(part, b"0:5:ls");
    }
}
