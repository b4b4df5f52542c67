//! Hashes files without holding up the runtime.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::cache::{Cache, Stamp};
use super::{FetchError, OnProgress, Progress};

/// How much is read at a time.
const CHUNK: usize = 1024 * 1024;

/// How often progress is told.
const TICK: Duration = Duration::from_millis(100);

/// A file's digest and size.
pub(super) struct Digested {
    pub(super) sha256: String,
    pub(super) size: u64,
}

/// Returns a finished hash as hexadecimal digits.
pub(super) fn hex(hasher: Sha256) -> String {
    format!("{:x}", Bytes::copy_from_slice(&hasher.finalize()))
}

/// Returns a file's digest, from memory if it has not changed since it was last hashed.
pub(super) async fn digest_of(
    path: &Path,
    cache: &Cache,
    progress: OnProgress<'_>,
) -> Result<Digested, FetchError> {
    let stamp = Stamp::of(path)?;
    if let Some(sha256) = cache.recall(&stamp) {
        progress(Progress::Remembered);
        return Ok(Digested { sha256, size: stamp.size });
    }
    let (hasher, size) = hash_file(path, stamp.size, progress).await?;
    if Stamp::of(path)? != stamp || size != stamp.size {
        return Err(FetchError::Changing { path: path.to_owned() });
    }
    let sha256 = hex(hasher);
    cache.remember(&stamp, path, &sha256);
    Ok(Digested { sha256, size })
}

/// Hashes a file on a thread of its own and returns the hash, not yet finished, and the size.
///
/// Dropping the future ends the thread at its next chunk.
pub(super) async fn hash_file(
    path: &Path,
    total: u64,
    progress: OnProgress<'_>,
) -> Result<(Sha256, u64), FetchError> {
    let stop = StopOnDrop::default();
    let (sender, mut receiver) = watch::channel(0);
    let work = {
        let (path, stop) = (path.to_owned(), Arc::clone(&stop.0));
        tokio::task::spawn_blocking(move || read_and_hash(&path, &stop, &sender))
    };
    progress(Progress::Hashing { done: 0, total });
    // The sender goes when the work has ended.
    while receiver.changed().await.is_ok() {
        let done = *receiver.borrow_and_update();
        progress(Progress::Hashing { done, total });
    }
    let result = work.await.map_err(std::io::Error::other).flatten();
    let (hasher, size) = result.map_err(|error| FetchError::disk("reading", path, error))?;
    progress(Progress::Hashing { done: size, total: total.max(size) });
    Ok((hasher, size))
}

fn read_and_hash(
    path: &Path,
    stop: &AtomicBool,
    done: &watch::Sender<u64>,
) -> std::io::Result<(Sha256, u64)> {
    let mut file = File::open(path)?;
    let (mut hasher, mut size, mut buffer) = (Sha256::new(), 0, vec![0; CHUNK]);
    let mut told = std::time::Instant::now();
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(std::io::ErrorKind::Interrupted.into());
        }
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((hasher, size));
        }
        hasher.update(&buffer[..read]);
        size += read as u64;
        if told.elapsed() >= TICK {
            done.send_replace(size);
            told = std::time::Instant::now();
        }
    }
}

/// Tells a thread to stop when its future is dropped.
#[derive(Default)]
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
