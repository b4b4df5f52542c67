//! One HTTP/1.1 connection to pveproxy.
//!
//! It is written by hand for what general clients hide: whether a request can have reached the server
//! when a connection breaks, the reason phrase, an upload's part headers in one write, an answer that
//! comes while a body is still being sent, and the bare stream below for websockets.

use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

/// The largest head of an answer.
const HEAD_MAX: usize = 64 * 1024;

/// The largest body of an answer: 16 MiB from the guest agent, escaped as JSON.
const BODY_MAX: usize = 128 * 1024 * 1024;

/// The stream under a connection.
pub(super) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// A connection on which no request is under way.
pub(super) struct Connection {
    pub(super) wire: Box<dyn Wire>,
    /// What was read and not yet used.
    pub(super) buffer: BytesMut,
    /// Which of the endpoints it leads to.
    pub(super) endpoint: usize,
    used: Instant,
}

/// How an exchange broke.
#[derive(Debug)]
pub(super) enum Broken {
    /// The request did not reach the server whole, so the server did nothing.
    Unsent(String),
    /// It may have reached the server.
    Sent(String),
}

/// An answer.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) reason: String,
    /// Names in lower case.
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// Whether the connection may be used again.
    pub(super) keeps: bool,
}

impl Response {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

impl Connection {
    pub(super) fn new(wire: impl Wire + 'static, endpoint: usize) -> Self {
        Self { wire: Box::new(wire), buffer: BytesMut::new(), endpoint, used: Instant::now() }
    }

    /// Tells whether it was used within that time and the server has not closed it since.
    pub(super) fn is_fresh(&mut self, within: Duration) -> bool {
        use futures_util::FutureExt as _;
        // Nothing may come between answers: bytes are as bad as an end.
        let recent = self.used.elapsed() < within && self.buffer.is_empty();
        recent && self.wire.read_u8().now_or_never().is_none()
    }

    /// Sends a request, in one write, and returns its answer.
    pub(super) async fn exchange(&mut self, request: &[u8]) -> Result<Response, Broken> {
        let sent = async {
            self.wire.write_all(request).await?;
            self.wire.flush().await
        };
        if let Err(error) = sent.await {
            // An answer may be there all the same: a server that refuses early does not read the rest.
            return match self.response().await {
                Ok(response) => Ok(Response { keeps: false, ..response }),
                Err(_) => Err(Broken::Unsent(error.to_string())),
            };
        }
        self.response().await.map_err(|error| Broken::Sent(told(&error)))
    }

    /// Reads an answer.
    pub(super) async fn response(&mut self) -> io::Result<Response> {
        let mut response = self.head().await?;
        // Answers to HEAD are never asked for; a 101 has what follows for a body.
        match response.status {
            101 | 204 | 304 => {}
            _ => response.body = self.body(&mut response).await?,
        }
        self.used = Instant::now();
        Ok(response)
    }

    async fn head(&mut self) -> io::Result<Response> {
        loop {
            if let Some((response, length)) = parse_head(&self.buffer)? {
                self.buffer.advance(length);
                if response.status >= 200 || response.status == 101 {
                    return Ok(response);
                }
                continue;
            }
            if self.buffer.len() > HEAD_MAX {
                return Err(bad("its head does not end"));
            }
            self.more("before an answer").await?;
        }
    }

    async fn body(&mut self, response: &mut Response) -> io::Result<Vec<u8>> {
        if response.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            return self.chunks().await;
        }
        match response.header("content-length").map(|value| value.trim().parse::<usize>()) {
            Some(Ok(length)) if length <= BODY_MAX => self.exactly(length).await,
            Some(_) => Err(bad("its length is impossible")),
            None => {
                response.keeps = false;
                self.rest().await
            }
        }
    }

    async fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < length {
            self.more("in the middle of an answer").await?;
        }
        Ok(self.buffer.split_to(length).to_vec())
    }

    async fn rest(&mut self) -> io::Result<Vec<u8>> {
        while self.wire.read_buf(&mut self.buffer).await? > 0 {
            if self.buffer.len() > BODY_MAX {
                return Err(bad("it does not end"));
            }
        }
        Ok(self.buffer.split().to_vec())
    }

    async fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line().await?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).map_err(|_| bad("a chunk has no size"))?;
            if body.len().saturating_add(size) > BODY_MAX {
                return Err(bad("it is too large"));
            }
            if size == 0 {
                // Trailers, which nobody needs, end with an empty line.
                while !self.line().await?.is_empty() {}
                return Ok(body);
            }
            body.extend(self.exactly(size).await?);
            self.line().await?;
        }
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            if self.buffer.len() > HEAD_MAX {
                return Err(bad("a line does not end"));
            }
            self.more("in the middle of an answer").await?;
        }
    }

    async fn more(&mut self, place: &str) -> io::Result<()> {
        if self.wire.read_buf(&mut self.buffer).await? == 0 {
            let text = format!("the server closed the connection {place}");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        Ok(())
    }
}

/// Returns an answer without its body and the length of its head; nothing while it is incomplete.
fn parse_head(bytes: &[u8]) -> io::Result<Option<(Response, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 96];
    let mut head = httparse::Response::new(&mut headers);
    let length = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(bad(&format!("it is not HTTP: {error}"))),
    };
    let headers: Vec<(String, String)> = head
        .headers
        .iter()
        .map(|header| (header.name.to_ascii_lowercase(), String::from_utf8_lossy(header.value).into_owned()))
        .collect();
    let asks_close = |(name, value): &(String, String)| {
        name == "connection" && value.to_ascii_lowercase().split(',').any(|word| word.trim() == "close")
    };
    let response = Response {
        status: head.code.unwrap_or_default(),
        reason: reason_of(bytes),
        keeps: head.version == Some(1) && !headers.iter().any(asks_close),
        headers,
        body: Vec::new(),
    };
    Ok(Some((response, length)))
}

/// Returns the reason phrase; Proxmox puts its messages there, in UTF-8, which `httparse` leaves out.
fn reason_of(head: &[u8]) -> String {
    let line = head.split(|byte| *byte == b'\n').find(|line| line.starts_with(b"HTTP/")).unwrap_or_default();
    let reason = line.splitn(3, |byte| *byte == b' ').nth(2).unwrap_or_default();
    String::from_utf8_lossy(reason).trim_end().to_owned()
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the answer cannot be read: {what}"))
}

/// Returns an I/O error's words, without a "connection reset" that hides whose.
fn told(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionReset => "the server reset the connection".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answer(text: &[u8]) -> Result<Response, Broken> {
        let (mut server, client) = tokio::io::duplex(1 << 20);
        server.write_all(text).await.unwrap();
        let mut connection = Connection::new(client, 0);
        let mut asked = [0; 4];
        let (response, ()) = tokio::join!(connection.exchange(b"ask\n"), async {
            server.read_exact(&mut asked).await.unwrap();
            drop(server);
        });
        assert_eq!(&asked, b"ask\n");
        response
    }

    #[tokio::test]
    async fn answers_are_read_whole() {
        let long = answer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: Keep-Alive\r\n\r\nhi")
            .await
            .unwrap();
        assert_eq!((long.status, long.body.as_slice(), long.keeps), (200, b"hi".as_slice(), true));
        let chunked =
            answer(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nT: r\r\n\r\n")
                .await
                .unwrap();
        assert_eq!((chunked.body.as_slice(), chunked.keeps), (b"abcde".as_slice(), true));
        let until_end = answer(b"HTTP/1.1 200 OK\r\n\r\nall of it").await.unwrap();
        assert_eq!((until_end.body.as_slice(), until_end.keeps), (b"all of it".as_slice(), false));
        let continued = answer(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\n\r\n").await.unwrap();
        assert_eq!((continued.status, continued.reason.as_str()), (204, "No"));
        let odd = "HTTP/1.1 596 Datei „x“ nicht da\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let odd = answer(odd.as_bytes()).await.unwrap();
        assert_eq!((odd.status, odd.reason.as_str(), odd.keeps), (596, "Datei „x“ nicht da", false));
    }

    #[tokio::test]
    async fn what_ends_early_or_is_no_http_may_have_been_done() {
        for text in [
            &b""[..],
            b"HTTP/1.1 200",
            b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc",
            b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            b"SSH-2.0-OpenSSH_9.2\r\n",
        ] {
            assert!(matches!(answer(text).await, Err(Broken::Sent(_))), "{}", String::from_utf8_lossy(text));
        }
    }

    #[tokio::test]
    async fn a_closed_connection_takes_no_request_and_is_not_fresh() {
        let (server, client) = tokio::io::duplex(64);
        let mut connection = Connection::new(client, 0);
        assert!(connection.is_fresh(Duration::from_secs(1)));
        drop(server);
        assert!(!connection.is_fresh(Duration::from_secs(1)));
        assert!(matches!(connection.exchange(b"x").await, Err(Broken::Unsent(_))));
    }
}
