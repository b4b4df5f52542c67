//! Takes the logs that an installer sends, onto the disk as they come.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes};
use hyper::{Response, StatusCode};
use tokio::fs::{self, File};
use tokio::io::AsyncWriteExt;

use super::body::Answer;
use super::request::{plain, plain_and_close};
use super::{Activity, ServerEvent, Shared};

/// How many uploads one server takes: a guest must not fill the disk.
const UPLOADS_MAX: u32 = 16;

/// Why an upload is not whole.
enum Cut {
    TooLarge(u64),
    Lost,
    Disk(std::io::Error),
}

impl Cut {
    fn reason(&self) -> String {
        match self {
            Self::TooLarge(limit) => format!("larger than {} MiB", limit.div_ceil(1024 * 1024)),
            Self::Lost => "the connection was lost".to_owned(),
            Self::Disk(error) => format!("writing failed: {error}"),
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Lost => StatusCode::BAD_REQUEST,
            Self::Disk(_) => StatusCode::INSUFFICIENT_STORAGE,
        }
    }
}

/// Takes one upload and answers it.
pub(super) async fn take<B>(
    body: B,
    peer: SocketAddr,
    shared: Arc<Shared>,
    activity: Activity,
) -> Response<Answer>
where
    B: Body<Data = Bytes> + Unpin,
{
    let (number, limit) = (shared.uploads.fetch_add(1, Ordering::Relaxed) + 1, shared.settings.logs_max);
    let Ok(mut upload) = Upload::create(&shared, number, peer).await else {
        let status = StatusCode::INSUFFICIENT_STORAGE;
        shared.tell(ServerEvent::Refused {
            method: "PUT".to_owned(),
            path: "/…/logs".to_owned(),
            status: status.as_u16(),
            peer,
        });
        return plain_and_close(status);
    };
    match upload.receive(body, limit, &activity).await {
        Ok(()) => match upload.finish().await {
            Ok(()) => plain(StatusCode::NO_CONTENT),
            Err(error) => upload.cut(&Cut::Disk(error)).await,
        },
        Err(cut) => upload.cut(&cut).await,
    }
}

/// An upload on its way in: `installer-logs-1.partial` until it is whole.
struct Upload {
    shared: Arc<Shared>,
    peer: SocketAddr,
    stem: PathBuf,
    file: File,
    bytes: u64,
    gzip: bool,
    told: bool,
}

impl Upload {
    async fn create(shared: &Arc<Shared>, number: u32, peer: SocketAddr) -> std::io::Result<Self> {
        if number > UPLOADS_MAX {
            return Err(std::io::Error::from(std::io::ErrorKind::QuotaExceeded));
        }
        fs::create_dir_all(&shared.settings.logs).await?;
        let stem = shared.settings.logs.join(format!("installer-logs-{number}"));
        let file = File::create(stem.with_extension("partial")).await?;
        Ok(Self { shared: Arc::clone(shared), peer, stem, file, bytes: 0, gzip: false, told: false })
    }

    async fn receive<B>(&mut self, mut body: B, limit: u64, activity: &Activity) -> Result<(), Cut>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| Cut::Lost)?.into_data() else { continue };
            activity.touch();
            if self.bytes == 0 {
                self.gzip = data.starts_with(&[0x1f, 0x8b]);
            }
            let room = (limit - self.bytes).min(data.len() as u64) as usize;
            self.file.write_all(&data[..room]).await.map_err(Cut::Disk)?;
            self.bytes += room as u64;
            if room < data.len() {
                return Err(Cut::TooLarge(limit));
            }
        }
        Ok(())
    }

    async fn finish(&mut self) -> std::io::Result<()> {
        self.file.sync_all().await?;
        let path = self.stem.with_extension(if self.gzip { "tar.gz" } else { "log" });
        fs::rename(self.partial(), &path).await?;
        self.tell(path, None);
        Ok(())
    }

    /// Keeps what came, under a name that says so.
    async fn cut(mut self, cut: &Cut) -> Response<Answer> {
        // What could not be written is not kept; the cut is already the news.
        let _written = self.file.flush().await.is_ok();
        self.keep(cut);
        plain_and_close(cut.status())
    }

    fn keep(&mut self, cut: &Cut) {
        let name = if self.gzip { "tar.gz.truncated" } else { "log.truncated" };
        let path = self.stem.with_extension(name);
        let kept = match std::fs::rename(self.partial(), &path) {
            Ok(()) => path,
            Err(_) => self.partial(),
        };
        self.tell(kept, Some(cut.reason()));
    }

    fn partial(&self) -> PathBuf {
        Path::with_extension(&self.stem, "partial")
    }

    fn tell(&mut self, path: PathBuf, truncated: Option<String>) {
        self.told = true;
        self.shared.tell(ServerEvent::Logs { path, bytes: self.bytes, truncated, peer: self.peer });
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // The connection was ended under it: stalled, or the server stopped.
        if !self.told {
            self.keep(&Cut::Lost);
        }
    }
}
