//! Reads the line-wise JSON of QMP and of the guest agent.
//!
//! `qapi`'s own stream ends at the agent's 0xFF byte, at a reply to an earlier request and at an
//! event it does not know; so forge takes that crate's types and reads lines itself.

use std::io;

use bytes::{Buf as _, BytesMut};
use qapi::{Command, Execute};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The longest line that is read: 16 MiB of output twice, in base64, and some.
pub(crate) const LINE_MAX: usize = 48 * 1024 * 1024;

/// The byte that ends whatever garbage was before it; it cannot occur in JSON.
pub(crate) const DELIMITER: u8 = 0xff;

/// Reads lines; what a dropped `next_line` has read is kept for the next one.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    source: R,
    buffer: BytesMut,
    /// How many bytes of the buffer hold no line end.
    scanned: usize,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    /// Reads from `source`.
    pub(crate) fn new(source: R) -> Self {
        Self { source, buffer: BytesMut::new(), scanned: 0 }
    }

    /// Returns the next line without its end and without all up to its last [`DELIMITER`];
    /// nothing at the end. A last line without an end is no line.
    ///
    /// # Errors
    /// What the source says, and `InvalidData` for a line above [`LINE_MAX`].
    pub(crate) async fn next_line(&mut self) -> io::Result<Option<BytesMut>> {
        loop {
            if let Some(at) = self.buffer[self.scanned..].iter().position(|&byte| byte == b'\n') {
                let mut line = self.buffer.split_to(self.scanned + at);
                self.buffer.advance(1);
                self.scanned = 0;
                if let Some(noise) = line.iter().rposition(|&byte| byte == DELIMITER) {
                    line.advance(noise + 1);
                }
                return Ok(Some(line));
            }
            self.scanned = self.buffer.len();
            if self.scanned > LINE_MAX {
                let text = format!("a line above {LINE_MAX} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            self.buffer.reserve(16 * 1024);
            if self.source.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

/// Returns a command as one line of JSON with its id.
pub(crate) fn request<C: Command>(command: C, id: u64) -> Vec<u8> {
    let request = Execute::with_id(command, id);
    let mut line = serde_json::to_vec(&request).expect("commands of qapi are JSON");
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(chunks: &[&[u8]]) -> Vec<String> {
        let mut source = tokio_test_io(chunks);
        let mut lines = Vec::new();
        while let Some(line) = source.next_line().await.unwrap() {
            lines.push(String::from_utf8_lossy(&line).into_owned());
        }
        lines
    }

    /// Returns a reader that hands out the chunks one read after another.
    fn tokio_test_io(chunks: &[&[u8]]) -> Lines<impl AsyncRead + Unpin + use<>> {
        let chunks: Vec<io::Result<bytes::Bytes>> =
            chunks.iter().map(|chunk| Ok(bytes::Bytes::copy_from_slice(chunk))).collect();
        Lines::new(tokio_util::io::StreamReader::new(futures_util::stream::iter(chunks)))
    }

    #[tokio::test]
    async fn lines_are_put_together_and_noise_is_dropped() {
        assert_eq!(all(&[b"{\"a\"", b":1}\n{}\n", b"x"]).await, ["{\"a\":1}", "{}"]);
        assert_eq!(all(&[b"half {\xff\xff{\"return\":1}\n"]).await, ["{\"return\":1}"]);
        assert_eq!(all(&[b"\xff", b"{}\r\n", b"\n"]).await, ["{}\r", ""]);
        assert_eq!(all(&[]).await, Vec::<String>::new());
    }

    #[tokio::test]
    async fn an_endless_line_is_refused() {
        let chunk = vec![b'x'; 1024 * 1024];
        let chunks = vec![chunk.as_slice(); LINE_MAX / chunk.len() + 2];
        let error = tokio_test_io(&chunks).next_line().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn requests_carry_their_id() {
        let line = request(qapi::qmp::quit {}, 7);
        assert_eq!(line, b"{\"execute\":\"quit\",\"arguments\":{},\"id\":7}\n");
    }
}
