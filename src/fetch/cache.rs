//! The cache's folders, locks and memory.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{FetchError, OnProgress, Progress, Retries};

/// How often a lock that somebody else holds is tried. A blocking wait could not be cancelled.
const LOCK_POLL: Duration = Duration::from_millis(100);

/// The cache of base images.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
    /// How downloads are tried again.
    pub retries: Retries,
}

impl Cache {
    /// Returns a cache in that folder, which is made when something is put into it.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), retries: Retries::default() }
    }

    /// Returns the user's cache: `$FORGE_CACHE`, else `$XDG_CACHE_HOME/forge`, else `~/.cache/forge`.
    ///
    /// # Errors
    /// When none of these is set.
    pub fn of_user() -> Result<Self, FetchError> {
        Self::from_variables(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> Result<Self, FetchError> {
        // The XDG base directory specification: relative paths are to be ignored.
        let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let root = variable("FORGE_CACHE")
            .map(PathBuf::from)
            .or_else(|| absolute("XDG_CACHE_HOME").map(|path| path.join("forge")))
            .or_else(|| absolute("HOME").map(|path| path.join(".cache/forge")))
            .ok_or(FetchError::NoCache)?;
        Ok(Self::at(root))
    }

    /// Returns the cache's folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the one whole file with that digest, if there is one.
    #[must_use]
    pub fn whole(&self, digest: &str) -> Option<PathBuf> {
        let mut entries = fs::read_dir(self.root.join("sha256").join(digest)).ok()?;
        entries.next()?.ok().map(|entry| entry.path())
    }

    pub(super) fn partial(&self, digest: &str) -> Result<PathBuf, FetchError> {
        Ok(self.folder("partial")?.join(digest))
    }

    /// Moves a verified file to its place, so that it is there whole or not at all.
    pub(super) fn keep(&self, verified: &Path, digest: &str, name: &str) -> Result<PathBuf, FetchError> {
        let folder = self.folder(&format!("sha256/{digest}"))?;
        let path = folder.join(name);
        fs::rename(verified, &path)
            .map_err(|error| FetchError::disk("moving a download to", &path, error))?;
        let synced = File::open(&folder).and_then(|folder| folder.sync_all());
        synced.map_err(|error| FetchError::disk("writing", &folder, error))?;
        Ok(path)
    }

    /// Moves a file that is not what it must be out of the way and returns where it is.
    pub(super) fn set_aside(&self, file: &Path, actual: &str, name: &str) -> Result<PathBuf, FetchError> {
        let path = self.folder("wrong")?.join(format!("{actual}-{name}"));
        fs::rename(file, &path).map_err(|error| FetchError::disk("moving a download to", &path, error))?;
        Ok(path)
    }

    /// Waits until nobody else, in this process or another, fetches that digest.
    pub(super) async fn lock(
        &self,
        digest: &str,
        name: &str,
        progress: OnProgress<'_>,
    ) -> Result<File, FetchError> {
        let path = self.folder("locks")?.join(digest);
        let failed = |error| FetchError::disk("locking", &path, error);
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
                Err(TryLockError::WouldBlock) => {
                    if !told {
                        progress(Progress::Waiting(format!("waiting for another forge to fetch {name}")));
                        told = true;
                    }
                    tokio::time::sleep(LOCK_POLL).await;
                }
            }
        }
    }

    /// Returns the digest of a file that has not changed since it was hashed.
    pub(super) fn recall(&self, stamp: &Stamp) -> Option<String> {
        let text = fs::read_to_string(self.memory(stamp)).ok()?;
        let known: Known = serde_json::from_str(&text).ok()?;
        (known.stamp == *stamp).then_some(known.sha256)
    }

    /// Remembers a file's digest. That this fails costs time later, and nothing else.
    pub(super) fn remember(&self, stamp: &Stamp, path: &Path, sha256: &str) {
        let known =
            Known { stamp: stamp.clone(), sha256: sha256.to_owned(), path: path.display().to_string() };
        let written = self.folder("known").and_then(|folder| {
            let draft = tempfile::NamedTempFile::new_in(&folder)
                .map_err(|error| FetchError::disk("writing in", &folder, error))?;
            let text = serde_json::to_string(&known).expect("numbers and texts become JSON");
            fs::write(draft.path(), text)
                .map_err(|error| FetchError::disk("writing", draft.path(), error))?;
            let target = self.memory(stamp);
            draft.persist(&target).map_err(|error| FetchError::disk("writing", &target, error.error))
        });
        drop(written);
    }

    fn memory(&self, stamp: &Stamp) -> PathBuf {
        self.root.join("known").join(format!("{}-{}", stamp.device, stamp.inode))
    }

    fn folder(&self, name: &str) -> Result<PathBuf, FetchError> {
        let path = self.root.join(name);
        fs::create_dir_all(&path).map_err(|error| FetchError::disk("making the folder", &path, error))?;
        Ok(path)
    }
}

/// What tells that a file is still the same one, unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    pub(super) size: u64,
    modified_seconds: i64,
    modified_nanoseconds: i64,
}

impl Stamp {
    /// Returns the stamp of a regular file.
    pub(super) fn of(path: &Path) -> Result<Self, FetchError> {
        let metadata = fs::metadata(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => FetchError::Missing { path: path.to_owned() },
            _ => FetchError::disk("reading", path, error),
        })?;
        if !metadata.is_file() {
            let what = if metadata.is_dir() { "it is a folder" } else { "it is not a regular file" };
            let error = std::io::Error::new(ErrorKind::InvalidInput, what);
            return Err(FetchError::disk("reading", path, error));
        }
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified_seconds: metadata.mtime(),
            modified_nanoseconds: metadata.mtime_nsec(),
        })
    }
}

/// What is remembered of a file.
#[derive(Debug, Serialize, Deserialize)]
struct Known {
    #[serde(flatten)]
    stamp: Stamp,
    sha256: String,
    /// For people who look into the cache.
    path: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_follows_the_environment() {
        for (variables, root) in [
            (vec![("FORGE_CACHE", "/f"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")], Some("/f")),
            (vec![("XDG_CACHE_HOME", "/x"), ("HOME", "/h")], Some("/x/forge")),
            (vec![("XDG_CACHE_HOME", "x"), ("HOME", "/h")], Some("/h/.cache/forge")),
            (vec![], None),
        ] {
            let variable = |name: &str| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
            };
            let cache = Cache::from_variables(variable).ok();
            assert_eq!(cache.as_ref().map(Cache::root), root.map(Path::new), "{variables:?}");
        }
    }

    #[test]
    fn only_an_unchanged_file_is_recalled() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("cache"));
        let path = folder.path().join("image");
        fs::write(&path, "one").unwrap();
        let stamp = Stamp::of(&path).unwrap();
        assert_eq!(cache.recall(&stamp), None);
        cache.remember(&stamp, &path, "abc");
        assert_eq!(cache.recall(&Stamp::of(&path).unwrap()).as_deref(), Some("abc"));
        for change in [
            Stamp { size: 4, ..stamp.clone() },
            Stamp { inode: stamp.inode + 1, ..stamp.clone() },
            Stamp { device: stamp.device + 1, ..stamp.clone() },
            Stamp { modified_nanoseconds: stamp.modified_nanoseconds ^ 1, ..stamp.clone() },
        ] {
            assert_eq!(cache.recall(&change), None);
        }
        fs::write(cache.memory(&stamp), "{half a reco").unwrap();
        assert_eq!(cache.recall(&stamp), None);
    }
}
