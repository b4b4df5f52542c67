//! The websocket that carries consoles (RFC 6455), within pveproxy's rules: masked, unfragmented frames
//! of at most 128 KiB from us, the subprotocol `binary`, and the node that gave the ticket.

use std::io;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, BytesMut};
use sha1::{Digest as _, Sha1};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::Error;
use super::call::Call;
use super::client::data;
use super::http::{Broken, Wire};
use super::vm::Vm;
use crate::definition::Secret;

/// What RFC 6455 appends to the key.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The largest frame that is taken.
const FRAME_MAX: usize = 16 * 1024 * 1024;

const OPCODE_CLOSE: u8 = 8;
const OPCODE_PING: u8 = 9;
const OPCODE_PONG: u8 = 10;

pub(super) struct WebSocket {
    wire: Box<dyn Wire>,
    buffer: BytesMut,
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    Data(Vec<u8>),
    /// Nothing, for so long.
    Silence,
    /// The server has closed the socket.
    End,
}

impl WebSocket {
    /// Opens the socket behind a console ticket, on the endpoint that gave it.
    pub(super) async fn open(vm: &Vm, endpoint: usize, port: u16, ticket: &Secret) -> Result<Self, Error> {
        let call = Call::get("/nodes/{node}/qemu/{vmid}/vncwebsocket").at(&vm.node).at(vm.vmid);
        let call = call.query("port", port).query("vncticket", ticket.expose());
        let what = call.to_string();
        let client = &vm.client;
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).expect("the kernel gives random bytes");
        let key = STANDARD.encode(nonce);
        let auth = client.auth_headers(true).await?;
        let request = client.head(&format!("GET {}", call.target()), endpoint, Some(auth.expose()))
            + "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            + &format!("Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: binary\r\n\r\n");
        client.count(&call);

        let mut connection = client.connect(endpoint).await?;
        let limit = client.pace().connect;
        let not_sent = |reason: String| Error::NotSent { what: what.clone(), reason };
        let response = match timeout(limit, connection.exchange(request.as_bytes())).await {
            Ok(Ok(response)) => response,
            Ok(Err(Broken::Sent(reason) | Broken::Unsent(reason))) => return Err(not_sent(reason)),
            Err(_) => return Err(not_sent(format!("not within {}", crate::event::human_duration(limit)))),
        };
        if response.status != 101 {
            data(&what, client.who(), &response)?;
            return Err(Error::Answer {
                what,
                reason: "the server does not switch to a websocket".to_owned(),
            });
        }
        if response.header("sec-websocket-accept") != Some(accept(&key).as_str()) {
            return Err(Error::Answer { what, reason: "Sec-WebSocket-Accept does not fit".to_owned() });
        }
        Ok(Self { wire: connection.wire, buffer: connection.buffer })
    }

    /// Sends bytes, at most 128 KiB.
    pub(super) async fn send(&mut self, payload: &[u8]) -> io::Result<()> {
        self.send_frame(2, payload).await
    }

    async fn send_frame(&mut self, opcode: u8, payload: &[u8]) -> io::Result<()> {
        let mut mask = [0; 4];
        getrandom::fill(&mut mask).expect("the kernel gives random bytes");
        let frame = frame(opcode, mask, payload);
        self.wire.write_all(&frame).await?;
        self.wire.flush().await
    }

    /// Returns what comes next, within that time.
    pub(super) async fn receive(&mut self, limit: Duration) -> io::Result<Received> {
        loop {
            if let Some((opcode, payload)) = take_frame(&mut self.buffer)? {
                match opcode {
                    OPCODE_CLOSE => return Ok(Received::End),
                    OPCODE_PING => self.send_frame(OPCODE_PONG, &payload).await?,
                    OPCODE_PONG => {}
                    _ => return Ok(Received::Data(payload)),
                }
                continue;
            }
            match timeout(limit, self.wire.read_buf(&mut self.buffer)).await {
                Ok(Ok(0)) => return Ok(Received::End),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => return Ok(Received::Silence),
            }
        }
    }
}

fn accept(key: &str) -> String {
    STANDARD.encode(Sha1::digest(key.to_owned() + GUID))
}

/// Returns a whole frame, masked.
fn frame(opcode: u8, mask: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match payload.len() {
        length @ 0..126 => frame.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            frame.push(0x80 | 0x7e);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(0xff);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// Takes a whole frame off the buffer; nothing while there is none.
fn take_frame(buffer: &mut BytesMut) -> io::Result<Option<(u8, Vec<u8>)>> {
    let &[first, second, ref rest @ ..] = &buffer[..] else { return Ok(None) };
    let extended = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let Some(length) = rest.get(..extended) else { return Ok(None) };
    let length = match extended {
        0 => usize::from(second & 0x7f),
        _ => length.iter().fold(0, |sum: usize, byte| sum.saturating_mul(256).saturating_add((*byte).into())),
    };
    if second & 0x80 != 0 || length > FRAME_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the websocket is out of step"));
    }
    if rest.len() < extended + length {
        return Ok(None);
    }
    buffer.advance(2 + extended);
    Ok(Some((first & 0x0f, buffer.split_to(length).to_vec())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_answer_is_that_of_the_standard() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn frames_are_masked_and_have_their_length() {
        assert_eq!(frame(2, [1, 2, 3, 4], b"abcde"), b"\x82\x85\x01\x02\x03\x04```\x60d");
        assert_eq!(frame(2, [0; 4], &[7; 126])[..4], [0x82, 0xfe, 0, 126]);
        assert_eq!(frame(2, [0; 4], &vec![7; 70_000])[..10], [0x82, 0xff, 0, 0, 0, 0, 0, 1, 0x11, 0x70]);
    }

    #[test]
    fn frames_are_taken_as_they_become_whole() {
        // Recorded: the version of QEMU's VNC server, then one security type, 2.
        let mut stream = b"\x82\x0cRFB 003.008\n\x82\x02\x01\x02".to_vec();
        stream.extend(frame(2, [0; 4], &[9; 300]).iter().enumerate().filter_map(
            |(index, byte)| match index {
                1 => Some(byte & 0x7f),
                4..8 => None,
                _ => Some(*byte),
            },
        ));
        let mut buffer = BytesMut::new();
        let mut taken = Vec::new();
        for byte in stream {
            buffer.extend([byte]);
            taken.extend(take_frame(&mut buffer).unwrap());
        }
        assert_eq!(taken, [(2, b"RFB 003.008\n".to_vec()), (2, vec![1, 2]), (2, vec![9; 300])]);
        assert!(take_frame(&mut BytesMut::from(&b"\x82\x81"[..])).is_err());
    }
}
