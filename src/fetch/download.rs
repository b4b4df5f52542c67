//! Downloads into the cache: resumed where possible, hashed on the way, verified before use.

use std::fs::{self, File};
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE, LAST_MODIFIED, RANGE};
use reqwest::{Client, Response, StatusCode, Url};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::cache::{Cache, Stamp};
use super::http::{self, Attempts, Failed, shown};
use super::{FetchError, OnProgress, Progress, hash};

/// How many chunks may wait to be written; each is what one read of the socket gave, up to 400 KiB.
const QUEUE: usize = 4;

/// How often progress is told.
const TICK: Duration = Duration::from_millis(100);

/// Returns the path and size of the file with that digest, from the cache or from the URL, and
/// whether it was in the cache.
pub(super) async fn cached(
    url: &Url,
    digest: &str,
    cache: &Cache,
    progress: OnProgress<'_>,
) -> Result<(PathBuf, u64, bool), FetchError> {
    let name = file_name(url);
    // Held until the file is in its place, or this future and the thread that writes are gone.
    let lock = Arc::new(cache.lock(digest, &name, progress).await?);
    if let Some((path, size)) = in_cache(digest, &name, cache, progress).await? {
        return Ok((path, size, true));
    }
    let mut download = Download::resume(url, digest, cache, lock, progress).await?;
    let mut actual = download.run(progress).await?;
    if actual != digest && download.doubtful {
        // Its parts may be of different files: judge only what came at once.
        progress(Progress::Retry {
            attempt: 2,
            of: 2,
            reason: "the resumed download is not what it must be; starting over".to_owned(),
        });
        download.start_over()?;
        actual = download.run(progress).await?;
    }
    let (partial, size) = (download.path.clone(), download.done);
    download.forget_state();
    if actual != digest {
        let kept = Some(cache.set_aside(&partial, &actual, &name)?);
        let expected = digest.to_owned();
        return Err(FetchError::WrongDigest { name: shown(url), expected, actual, kept });
    }
    let path = cache.keep(&partial, digest, &name)?;
    cache.remember(&Stamp::of(&path)?, &path, digest);
    Ok((path, size, false))
}

/// Returns the file from the cache; one that has changed there is put aside.
async fn in_cache(
    digest: &str,
    name: &str,
    cache: &Cache,
    progress: OnProgress<'_>,
) -> Result<Option<(PathBuf, u64)>, FetchError> {
    let Some(path) = cache.whole(digest) else { return Ok(None) };
    let found = hash::digest_of(&path, cache, progress).await?;
    if found.sha256 == digest {
        return Ok(Some((path, found.size)));
    }
    let kept = cache.set_aside(&path, &found.sha256, name)?;
    let reason = format!("the cached {name} is damaged, and kept as {}", kept.display());
    progress(Progress::Retry { attempt: 2, of: 2, reason });
    Ok(None)
}

/// Returns the last part of a URL's path as a file name.
fn file_name(url: &Url) -> String {
    let last = url.path_segments().and_then(Iterator::last).unwrap_or_default();
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-+".contains(c) { c } else { '_' };
    let name: String = last.chars().map(plain).take(100).collect();
    let name = name.trim_start_matches('.');
    if name.is_empty() { "image".to_owned() } else { name.to_owned() }
}

/// What a partial file is a part of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Origin {
    url: String,
    /// What the server called this version of the file: an entity tag, else a date.
    version: Option<String>,
    total: Option<u64>,
}

/// A download under way.
struct Download<'a> {
    url: &'a Url,
    cache: &'a Cache,
    client: Client,
    lock: Arc<File>,
    path: PathBuf,
    origin: Option<Origin>,
    hasher: Sha256,
    done: u64,
    /// Whether the beginning is of an earlier run, or nothing told that the parts are of one file.
    doubtful: bool,
}

impl<'a> Download<'a> {
    /// Returns the download that goes on where the partial file ends.
    async fn resume(
        url: &'a Url,
        digest: &str,
        cache: &'a Cache,
        lock: Arc<File>,
        progress: OnProgress<'_>,
    ) -> Result<Self, FetchError> {
        let path = cache.partial(digest)?;
        let client = http::client(&cache.retries)?;
        let mut download = Self {
            url,
            cache,
            client,
            lock,
            path,
            origin: None,
            hasher: Sha256::new(),
            done: 0,
            doubtful: false,
        };
        download.origin = download.load_state();
        match fs::metadata(&download.path) {
            Ok(metadata) if download.origin.is_some() && metadata.len() > 0 => {
                let (hasher, size) = hash::hash_file(&download.path, metadata.len(), progress).await?;
                (download.hasher, download.done, download.doubtful) = (hasher, size, true);
            }
            Ok(_) => download.start_over()?,
            Err(error) if error.kind() == ErrorKind::NotFound => download.start_over()?,
            Err(error) => return Err(FetchError::disk("reading", &download.path, error)),
        }
        Ok(download)
    }

    /// Forgets what has come.
    fn start_over(&mut self) -> Result<(), FetchError> {
        self.forget_state();
        File::create(&self.path).map_err(|error| FetchError::disk("writing", &self.path, error))?;
        (self.origin, self.hasher, self.done, self.doubtful) = (None, Sha256::new(), 0, false);
        Ok(())
    }

    /// Downloads all that is missing and returns the digest of the whole.
    async fn run(&mut self, progress: OnProgress<'_>) -> Result<String, FetchError> {
        let mut attempts = Attempts::new(self.url, &self.cache.retries);
        loop {
            let before = self.done;
            match self.attempt(progress).await {
                Ok(()) => return Ok(hash::hex(self.hasher.clone())),
                Err(failed) => {
                    if self.done > before {
                        attempts.progressed();
                    }
                    attempts.after(failed, progress).await?;
                }
            }
        }
    }

    async fn attempt(&mut self, progress: OnProgress<'_>) -> Result<(), Failed> {
        let known = self.origin.as_ref().and_then(|origin| origin.total);
        progress(Progress::Downloading { done: self.done, total: known });
        let response = self.request().await?;
        let total = self.settle(&response)?;
        self.check_space(total)?;
        progress(Progress::Downloading { done: self.done, total });
        self.receive(response, total, progress).await?;
        match total {
            Some(total) if total != self.done => {
                let done = self.done;
                Err(Failed::passing(format!("the connection ended after {done} of {total} bytes")))
            }
            _ => Ok(()),
        }
    }

    /// Asks for what is missing, of the same version as what is there.
    async fn request(&self) -> Result<Response, Failed> {
        let mut request = self.client.get(self.url.clone());
        if self.done > 0 {
            request = request.header(RANGE, format!("bytes={}-", self.done));
            if let Some(version) = self.origin.as_ref().and_then(|origin| origin.version.as_ref()) {
                request = request.header(IF_RANGE, version);
            }
        }
        request.send().await.map_err(|error| http::failed(self.url, error))
    }

    /// Makes partial file and answer fit together and returns the size of the whole.
    fn settle(&mut self, response: &Response) -> Result<Option<u64>, Failed> {
        match response.status() {
            StatusCode::PARTIAL_CONTENT => return self.settle_part(response.headers()),
            StatusCode::RANGE_NOT_SATISFIABLE if self.done > 0 => {
                self.start_over()?;
                return Err(Failed::passing("the file is now shorter than what has come so far"));
            }
            StatusCode::OK => {}
            status => return Err(http::refused(self.url, status, response.headers())),
        }
        if self.done > 0 {
            // No ranges here, or the file has changed: it all comes again.
            self.start_over()?;
        }
        let total = response.content_length();
        let origin = Origin { url: shown(self.url), version: version(response.headers()), total };
        self.save_state(&origin)?;
        self.origin = Some(origin);
        Ok(total)
    }

    /// Goes on with a part, if it is the one that was asked for.
    fn settle_part(&mut self, headers: &HeaderMap) -> Result<Option<u64>, Failed> {
        let range = headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let range = range.and_then(parse_content_range);
        let expected = self.origin.as_ref().and_then(|origin| origin.total);
        match range {
            Some((start, total)) if start == self.done && (expected.is_none() || expected == total) => {
                self.doubtful |= self.origin.as_ref().is_none_or(|origin| origin.version.is_none());
                Ok(total)
            }
            _ => {
                self.start_over()?;
                Err(Failed::passing("the server sent another part than was asked for"))
            }
        }
    }

    fn check_space(&self, total: Option<u64>) -> Result<(), FetchError> {
        let Some(total) = total else { return Ok(()) };
        let needed = total.saturating_sub(self.done);
        // A file system that does not tell is found out by writing.
        let Ok(stat) = rustix::fs::statvfs(self.cache.root()) else { return Ok(()) };
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if needed > free {
            return Err(FetchError::Space { path: self.cache.root().to_owned(), needed, free });
        }
        Ok(())
    }

    async fn receive(
        &mut self,
        mut response: Response,
        total: Option<u64>,
        progress: OnProgress<'_>,
    ) -> Result<(), Failed> {
        let mut writer = Writer::start(&self.path, self.hasher.clone(), self.done, Arc::clone(&self.lock))?;
        let (mut done, mut told) = (self.done, Instant::now());
        let ended = loop {
            match response.chunk().await {
                Ok(None) => break Ok(()),
                Err(error) => break Err(http::failed(self.url, error)),
                Ok(Some(chunk)) => {
                    done += chunk.len() as u64;
                    if !writer.write(chunk).await {
                        break Ok(());
                    }
                }
            }
            if told.elapsed() >= TICK {
                progress(Progress::Downloading { done, total });
                told = Instant::now();
            }
        };
        // What was written counts whatever ended it: the next attempt goes on from there.
        (self.hasher, self.done) = writer.finish().await.map_err(|error| disk(&self.path, error))?;
        progress(Progress::Downloading { done: self.done, total });
        ended
    }

    fn state_path(&self) -> PathBuf {
        self.path.with_extension("json")
    }

    /// Returns where the partial file is from, unless it is from elsewhere than this URL.
    fn load_state(&self) -> Option<Origin> {
        let text = fs::read_to_string(self.state_path()).ok()?;
        let origin: Origin = serde_json::from_str(&text).ok()?;
        (origin.url == shown(self.url)).then_some(origin)
    }

    fn save_state(&self, origin: &Origin) -> Result<(), FetchError> {
        let text = serde_json::to_string(origin).expect("texts and numbers become JSON");
        let path = self.state_path();
        fs::write(&path, text).map_err(|error| disk(&path, error))
    }

    fn forget_state(&self) {
        // If it stays, it is overwritten or found not to fit.
        let _removed = fs::remove_file(self.state_path()).is_ok();
    }
}

/// Returns a failure to write, with the way out when the disk is full.
fn disk(path: &Path, error: std::io::Error) -> FetchError {
    if error.kind() == ErrorKind::StorageFull {
        return FetchError::Full { path: path.to_owned() };
    }
    FetchError::disk("writing", path, error)
}

/// Returns what a server calls the version of a file: a strong entity tag, else a date (RFC 9110,
/// 13.1.5: a weak tag must not be used for ranges).
fn version(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    text(ETAG).filter(|tag| !tag.starts_with("W/")).or_else(|| text(LAST_MODIFIED))
}

/// Parses `bytes 5-9/10` into the start, 5, and the size of the whole, 10 or unknown.
fn parse_content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some((start.parse().ok()?, total))
}

/// Writes and hashes on a thread of its own; ends by itself when the download is dropped.
struct Writer {
    queue: mpsc::Sender<Bytes>,
    work: JoinHandle<std::io::Result<(Sha256, u64)>>,
}

impl Writer {
    fn start(path: &Path, mut hasher: Sha256, mut done: u64, lock: Arc<File>) -> Result<Self, FetchError> {
        let file = File::options().create(true).truncate(false).write(true).open(path);
        let mut file = file.map_err(|error| disk(path, error))?;
        let (queue, mut chunks) = mpsc::channel::<Bytes>(QUEUE);
        let work = tokio::task::spawn_blocking(move || {
            file.set_len(done)?;
            file.seek(SeekFrom::Start(done))?;
            while let Some(chunk) = chunks.blocking_recv() {
                file.write_all(&chunk)?;
                hasher.update(&chunk);
                done += chunk.len() as u64;
            }
            file.sync_all()?;
            drop(lock);
            Ok((hasher, done))
        });
        Ok(Self { queue, work })
    }

    /// Hands a chunk over; false when writing has failed, which [`Writer::finish`] explains.
    async fn write(&mut self, chunk: Bytes) -> bool {
        self.queue.send(chunk).await.is_ok()
    }

    async fn finish(self) -> std::io::Result<(Sha256, u64)> {
        drop(self.queue);
        self.work.await.map_err(std::io::Error::other).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read() {
        assert_eq!(parse_content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(parse_content_range("bytes 0-9/*"), Some((0, None)));
        for text in ["", "bytes", "bytes */10", "items 5-9/10", "bytes 5/10", "bytes 5-9/x"] {
            assert_eq!(parse_content_range(text), None, "{text}");
        }
    }

    #[test]
    fn names_are_safe_file_names() {
        for (url, name) in [
            ("http://h/a/ubuntu-24.04.3.iso?x=/y", "ubuntu-24.04.3.iso"),
            ("http://h/", "image"),
            ("http://h", "image"),
            ("http://h/..%2fx", "_2fx"),
            ("http://h/.hidden", "hidden"),
            ("http://h/a%20b.iso", "a_20b.iso"),
        ] {
            assert_eq!(file_name(&Url::parse(url).unwrap()), name, "{url}");
        }
    }

    #[test]
    fn weak_tags_do_not_name_a_version() {
        let headers = |tag: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ETAG, tag.parse().unwrap());
            headers.insert(LAST_MODIFIED, "date".parse().unwrap());
            headers
        };
        assert_eq!(version(&headers("\"a\"")).as_deref(), Some("\"a\""));
        assert_eq!(version(&headers("W/\"a\"")).as_deref(), Some("date"));
    }
}
