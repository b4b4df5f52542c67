//! Reads the line-wise JSON of QMP and of the guest agent.

use std::io;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The longest line that is read: 16 MiB of output twice, in base64, and some.
const LINE_MAX: usize = 48 * 1024 * 1024;

/// What the guest agent sends before the answer to `guest-sync-delimited`; no JSON has this byte.
const DELIMITER: u8 = 0xff;

/// Reads messages; what a dropped `next` has read is kept for the next one.
#[derive(Debug)]
pub(super) struct Messages<R> {
    source: R,
    buffer: Vec<u8>,
    /// How many bytes of the buffer hold no line end.
    scanned: usize,
}

impl<R: AsyncRead + Unpin> Messages<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, buffer: Vec::new(), scanned: 0 }
    }

    /// Returns the next line that is JSON; nothing at the end.
    pub(super) async fn next(&mut self) -> io::Result<Option<Value>> {
        loop {
            if let Some(at) = self.buffer[self.scanned..].iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=self.scanned + at).collect();
                self.scanned = 0;
                if let Some(message) = parse(&line) {
                    return Ok(Some(message));
                }
                continue;
            }
            self.scanned = self.buffer.len();
            if self.scanned > LINE_MAX {
                return Err(io::Error::other(format!("a line above {LINE_MAX} bytes")));
            }
            if self.source.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

/// Returns a line's message without the noise before it, which an earlier client may have left.
fn parse(line: &[u8]) -> Option<Value> {
    let start = line.iter().rposition(|&byte| byte == DELIMITER).map_or(0, |at| at + 1);
    serde_json::from_slice(&line[start..]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn noise_is_dropped_and_halves_are_joined() {
        let bytes = b"\"half\xff{\"return\":1}\r\nnoise\n{\"a\"" as &[u8];
        let mut messages =
            Messages::new(tokio::io::AsyncReadExt::chain(bytes, b":2}\n{\"unended\":" as &[u8]));
        assert_eq!(messages.next().await.unwrap().unwrap()["return"], 1);
        assert_eq!(messages.next().await.unwrap().unwrap()["a"], 2);
        assert_eq!(messages.next().await.unwrap(), None);
    }
}
