//! Frames of RFC 6455, as far as pveproxy's bridge knows them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

/// The `Sec-WebSocket-Accept` for a key.
pub(crate) fn accept(key: &str) -> String {
    const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    STANDARD.encode(Sha1::digest(format!("{key}{GUID}")))
}

pub(crate) const CONTINUATION: u8 = 0;
pub(crate) const TEXT: u8 = 1;
pub(crate) const BINARY: u8 = 2;
pub(crate) const CLOSE: u8 = 8;
pub(crate) const PING: u8 = 9;
pub(crate) const PONG: u8 = 10;

/// Client frames larger than this end the connection.
const MAX_FRAME: usize = 128 * 1024;

/// A client's frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) opcode: u8,
    pub(crate) payload: Vec<u8>,
}

/// Takes one whole frame off the start of `buffer`.
///
/// # Errors
/// Unmasked, fragmented or too large: the server drops the connection.
pub(crate) fn take_frame(buffer: &mut Vec<u8>) -> Result<Option<Frame>, &'static str> {
    let [first, second, ..] = buffer[..] else {
        return Ok(None);
    };
    let opcode = first & 0x0f;
    if first & 0x80 == 0 || opcode == CONTINUATION {
        return Err("received fragmented websocket frame");
    }
    if second & 0x80 == 0 {
        return Err("received unmasked websocket frame from client");
    }
    let (length, start) = match second & 0x7f {
        126 if buffer.len() >= 4 => (usize::from(u16::from_be_bytes([buffer[2], buffer[3]])), 4),
        127 if buffer.len() >= 10 => {
            let bytes: [u8; 8] = buffer[2..10].try_into().expect("eight bytes were asked for");
            (usize::try_from(u64::from_be_bytes(bytes)).unwrap_or(usize::MAX), 10)
        }
        126 | 127 => return Ok(None),
        short => (usize::from(short), 2),
    };
    if length > MAX_FRAME {
        return Err("received too large websocket frame");
    }
    let end = start + 4 + length;
    if buffer.len() < end {
        return Ok(None);
    }
    let mask: [u8; 4] = buffer[start..start + 4].try_into().expect("four bytes were asked for");
    let payload = buffer[start + 4..end].iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key);
    let frame = Frame { opcode, payload: payload.collect() };
    buffer.drain(..end);
    Ok(Some(frame))
}

/// One unmasked frame of the server.
pub(crate) fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x80 | opcode];
    match payload.len() {
        short @ 0..=125 => bytes.push(short as u8),
        middle @ 126..=65535 => {
            bytes.push(126);
            bytes.extend((middle as u16).to_be_bytes());
        }
        long => {
            bytes.push(127);
            bytes.extend((long as u64).to_be_bytes());
        }
    }
    bytes.extend(payload);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handshake_answers_the_rfcs_example() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn only_masked_whole_frames_are_taken() {
        let mut masked = vec![0x82, 0x83, 1, 2, 3, 4, b'a' ^ 1, b'b' ^ 2, b'c' ^ 3];
        let mut part = masked[..5].to_vec();
        assert_eq!(take_frame(&mut part), Ok(None));
        let frame = take_frame(&mut masked).unwrap().unwrap();
        assert_eq!((frame.opcode, frame.payload.as_slice()), (BINARY, &b"abc"[..]));
        assert!(masked.is_empty());
        assert!(take_frame(&mut vec![0x82, 0x01, b'a']).is_err());
        assert!(take_frame(&mut vec![0x02, 0x81, 0, 0, 0, 0, b'a']).is_err());
    }

    #[test]
    fn long_frames_carry_their_length() {
        assert_eq!(frame(BINARY, b"RFB 003.008\n")[..2], [0x82, 0x0c]);
        assert_eq!(frame(BINARY, &[0; 300])[..4], [0x82, 126, 1, 44]);
    }
}
