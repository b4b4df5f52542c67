//! An answer's body that knows how much of it went out.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::Stream;
use hyper::body::{Body, Frame, SizeHint};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, Take};
use tokio_util::io::ReaderStream;

use super::{Activity, Content, ServerEvent, Shared};

/// How much of a file is read at a time.
const CHUNK: usize = 64 * 1024;

/// The body of any answer.
pub(super) enum Answer {
    /// A few fixed words.
    Text(Option<Bytes>),
    /// A file on offer.
    Offer(Box<Sending>),
}

/// A file on its way out; its event is sent when it is dropped, whole or not.
pub(super) struct Sending {
    name: String,
    source: Source,
    size: u64,
    sent: u64,
    peer: SocketAddr,
    shared: Arc<Shared>,
    activity: Activity,
}

enum Source {
    Memory(Option<Bytes>),
    File(ReaderStream<Take<File>>),
    /// Only the head was asked for.
    Nothing,
}

impl Sending {
    /// Opens what is on offer under a name.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(super) async fn open(
        name: &str,
        content: Content,
        head_only: bool,
        peer: SocketAddr,
        shared: Arc<Shared>,
        activity: Activity,
    ) -> std::io::Result<Self> {
        let (source, size) = match content {
            Content::Memory(bytes) => {
                let size = bytes.len() as u64;
                (Source::Memory(Some(bytes)), size)
            }
            Content::File(path) => {
                let file = File::open(path).await?;
                let size = file.metadata().await?.len();
                (Source::File(ReaderStream::with_capacity(file.take(size), CHUNK)), size)
            }
        };
        let source = if head_only { Source::Nothing } else { source };
        Ok(Self { name: name.to_owned(), source, size, sent: 0, peer, shared, activity })
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<std::io::Result<Bytes>>> {
        match &mut self.source {
            Source::Memory(bytes) => Poll::Ready(bytes.take().map(Ok)),
            Source::File(stream) => Pin::new(stream).poll_next(cx),
            Source::Nothing => Poll::Ready(None),
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let whole = self.sent == self.size && !matches!(self.source, Source::Nothing);
        self.shared.tell(ServerEvent::Fetched {
            name: std::mem::take(&mut self.name),
            bytes: self.sent,
            whole,
            peer: self.peer,
        });
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        match self.get_mut() {
            Self::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Offer(sending) => {
                let next = ready!(sending.poll_next(cx));
                sending.activity.touch();
                Poll::Ready(next.map(|result| {
                    result.map(|bytes| {
                        sending.sent += bytes.len() as u64;
                        Frame::data(bytes)
                    })
                }))
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Self::Offer(sending) if matches!(sending.source, Source::Nothing) => SizeHint::with_exact(0),
            Self::Offer(sending) => SizeHint::with_exact(sending.size - sending.sent),
        }
    }
}
