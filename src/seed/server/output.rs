//! Takes what a guest's script prints, while it prints it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::{Response, StatusCode};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::body::Answer;
use super::request::{plain, plain_and_close};
use super::{Activity, Shared};

/// How many pieces may wait to be looked at; then the guest waits, too.
const PIECES: usize = 16;

/// How often a connection on which nothing comes is looked after: a script may be silent for hours.
const QUIET: Duration = Duration::from_secs(20);

/// An address for what one script prints; nothing is there any more when this is dropped.
#[derive(Debug)]
pub struct Inlet {
    pub(super) shared: Arc<Shared>,
    pub(super) name: String,
    pub(super) url: String,
}

impl Inlet {
    /// Returns where the guest sends it to, in one request.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Inlet {
    fn drop(&mut self) {
        self.shared.inlets().remove(&self.name);
    }
}

/// Returns both ends of what one script prints.
pub(super) fn pieces() -> (mpsc::Sender<Bytes>, mpsc::Receiver<Bytes>) {
    mpsc::channel(PIECES)
}

/// Passes a request's body on as it comes, after an empty piece that says that it has begun. However it
/// ends, `sender` ends with it.
pub(super) async fn take(
    mut body: Incoming,
    sender: mpsc::Sender<Bytes>,
    activity: Activity,
) -> Response<Answer> {
    let mut piece = Bytes::new();
    while sender.send(piece).await.is_ok() {
        piece = loop {
            match timeout(QUIET, body.frame()).await {
                Err(_) if !sender.is_closed() => activity.touch(),
                Ok(Some(Ok(frame))) => {
                    activity.touch();
                    if let Ok(data) = frame.into_data() {
                        break data;
                    }
                }
                Ok(None) => return plain(StatusCode::NO_CONTENT),
                Err(_) | Ok(Some(Err(_))) => return plain_and_close(StatusCode::BAD_REQUEST),
            }
        };
    }
    plain_and_close(StatusCode::GONE)
}
