//! Downloads, verifies and remembers base images.
//!
//! ```text
//!   location ─┬─ a path: used in place ───────────────► hash, unless remembered ─► compare ─► Image
//!             └─ a URL ─► in the cache? ─ yes ────────► hash, unless remembered ─► compare ─► Image
//!                           └─ no ─► lock ─► download, resume, hash on the way ─► compare ─► rename
//! ```
//!
//! What a file must be is always known first, by value or from a signed list ([`Expected`]), so the
//! cache is addressed by content:
//!
//! ```text
//! <cache>/sha256/<digest>/<name>   whole files and nothing else, each moved here after it was verified
//! <cache>/partial/<digest>         what has come so far, and beside it as .json from where
//! <cache>/locks/<digest>           held while that digest is fetched, by one forge or one task of it
//! <cache>/wrong/<digest>-<name>    kept aside: not what was expected; named by its own digest
//! <cache>/known/<device>-<inode>   size, modification time and digest of a file hashed before
//! ```
//!
//! The cache is `$FORGE_CACHE`, else `$XDG_CACHE_HOME/forge`, else `~/.cache/forge`. A killed or
//! dropped fetch leaves only its partial file, which the next one resumes.

mod cache;
mod download;
mod hash;
mod http;
mod signature;

use std::path::{Path, PathBuf};

pub use cache::Cache;
pub use http::Retries;

/// The largest list of checksums, signature or key that is read.
const SMALL_MAX: usize = 4 * 1024 * 1024;

/// What a fetch is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Bytes are asked for or come over the network; they are hashed as they come. The first such
    /// event of an attempt precedes its request.
    Downloading {
        /// How many there are, counting those of an earlier attempt.
        done: u64,
        /// How many there will be, if the server said so.
        total: Option<u64>,
    },
    /// A file on this machine is hashed.
    Hashing {
        /// How many bytes are done.
        done: u64,
        /// How many there are.
        total: u64,
    },
    /// Somebody else is at work; the text says who and on what.
    Waiting(String),
    /// An attempt failed and another one follows.
    Retry {
        /// Which attempt comes now, counting from 1.
        attempt: u32,
        /// How many there are at most without progress.
        of: u32,
        /// Why the last one failed.
        reason: String,
    },
    /// The file was hashed before and has not changed since: it is not hashed again.
    Remembered,
}

/// Takes progress as it happens; must not block.
pub type OnProgress<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// A verified base image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Where it is.
    pub path: PathBuf,
    /// Its SHA-256, 64 hexadecimal digits in lower case.
    pub sha256: String,
    /// Its size in bytes.
    pub size: u64,
    /// Who signed the list that names it: the key's fingerprint and its first user id.
    pub signed_by: Option<String>,
    /// Whether it was in the cache already.
    pub from_cache: bool,
}

/// What a file must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// Its SHA-256, 64 hexadecimal digits.
    Sha256(String),
    /// What a signed list says of it.
    Signed {
        /// URL or path of the list, in the format of `sha256sum`.
        file: String,
        /// URL or path of its detached OpenPGP signature.
        signature: String,
        /// Path of the OpenPGP public key.
        key: PathBuf,
        /// The key's fingerprint, in hexadecimal digits.
        fingerprint: String,
        /// The image's name in the list.
        name: String,
    },
}

/// Why an image cannot be had, by what can be done about it.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// There is no such file on this machine.
    #[error("there is no file {}", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The file on this machine is there and is none that can be read: a folder, or not the user's.
    #[error("{} cannot be read: {reason}", path.display())]
    Unreadable {
        /// What the definition names.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The location is neither a path nor an http or https URL.
    #[error("`{location}` cannot be fetched: {reason}")]
    Location {
        /// The location, without credentials.
        location: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The expected digest is not one.
    #[error("`{text}` is not a SHA-256: 64 hexadecimal digits are")]
    NoDigest {
        /// What is there instead.
        text: String,
    },
    /// The server answered, and trying again would not change the answer.
    #[error("{url}: the server answered {status}")]
    Refused {
        /// The URL, without credentials.
        url: String,
        /// The status with its meaning.
        status: String,
    },
    /// The server was not reached, or did not get through, as often as it was tried.
    #[error("{url}: {reason} (attempt {attempts} of {attempts}); what came so far is kept and resumed")]
    Unreachable {
        /// The URL, without credentials.
        url: String,
        /// How often it was tried without progress.
        attempts: u32,
        /// What went wrong the last time.
        reason: String,
    },
    /// No trust in the server: its certificate, or the TLS handshake.
    #[error("{url}: no secure connection: {reason}")]
    Tls {
        /// The URL, without credentials.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The file is not what it must be.
    #[error("{name} is not what it must be: expected SHA-256 {expected}, found {actual}; {}", kept_words(kept.as_deref()))]
    WrongDigest {
        /// The file, as the definition names it.
        name: String,
        /// What was expected.
        expected: String,
        /// What it is.
        actual: String,
        /// Where a download was put aside; a file of this machine stays what and where it is.
        kept: Option<PathBuf>,
    },
    /// The file changed while it was read.
    #[error("{} changed while it was hashed; is it still being written?", path.display())]
    Changing {
        /// The file.
        path: PathBuf,
    },
    /// The list does not name the image.
    #[error("{file} does not list `{name}`{advice}")]
    NotListed {
        /// The list.
        file: String,
        /// The name.
        name: String,
        /// A name like it, if the list has one.
        advice: String,
    },
    /// The list's signature does not hold.
    #[error("the signature {signature} of {file} does not hold: {reason}")]
    Signature {
        /// The list.
        file: String,
        /// The signature.
        signature: String,
        /// Why not.
        reason: String,
    },
    /// The public key cannot be used.
    #[error("the key {} cannot be used: {reason}", path.display())]
    Key {
        /// The key.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// There is too little room in the cache.
    #[error("{} has {free} bytes free, and {needed} more are needed; make room, or set FORGE_CACHE to another disk", path.display())]
    Space {
        /// The cache.
        path: PathBuf,
        /// How many bytes are still to come.
        needed: u64,
        /// How many bytes are free.
        free: u64,
    },
    /// The disk was full before the end.
    #[error("writing {}: no space is left; make room, or set FORGE_CACHE to another disk", path.display())]
    Full {
        /// The file that was being written.
        path: PathBuf,
    },
    /// A file or folder of this machine could not be read or written.
    #[error("{doing} {}: {source}", path.display())]
    Disk {
        /// What was being done, such as `writing`.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// No cache folder can be found.
    #[error("there is no place for the cache: set FORGE_CACHE, XDG_CACHE_HOME or HOME")]
    NoCache,
}

fn kept_words(kept: Option<&Path>) -> String {
    match kept {
        Some(path) => format!("the download is kept as {}", path.display()),
        None => "the file is left untouched".to_owned(),
    }
}

impl FetchError {
    fn disk(doing: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Disk { doing, path: path.to_owned(), source }
    }
}

/// Returns a file's SHA-256 in hexadecimal, and its size in bytes.
///
/// # Errors
/// When the file cannot be read.
pub async fn digest(path: &Path) -> Result<(String, u64), FetchError> {
    let size = std::fs::metadata(path).map_err(|source| FetchError::disk("reading", path, source))?.len();
    let (hasher, size) = hash::hash_file(path, size, &|_| ()).await?;
    Ok((hash::hex(hasher), size))
}

/// Returns the image at a location (a URL, or a path relative to `root`), verified.
///
/// Local files are used in place, downloads come through the cache. Dropping the future stops the
/// work and leaves at most a partial file. It waits for another forge that fetches the same image
/// without a deadline of its own: that one's lock falls with its process.
///
/// # Errors
/// See [`FetchError`].
pub async fn image(
    location: &str,
    root: &Path,
    expected: &Expected,
    cache: &Cache,
    progress: OnProgress<'_>,
) -> Result<Image, FetchError> {
    let source = Location::parse(location, root)?;
    let (digest, signed_by) = match expected {
        Expected::Sha256(digest) => (parse_digest(digest)?, None),
        Expected::Signed { file, signature, key, fingerprint, name } => {
            let key = signature::Key::load(key, fingerprint)?;
            let (digest, signer) =
                signed_digest(file, signature, &key, name, root, &cache.retries, progress).await?;
            (digest, Some(signer))
        }
    };
    let (path, size, from_cache) = match source {
        Location::Path(path) => {
            let size = local(location, &path, &digest, cache, progress).await?;
            (path, size, false)
        }
        Location::Url(url) => download::cached(&url, &digest, cache, progress).await?,
    };
    Ok(Image { path, sha256: digest, size, signed_by, from_cache })
}

/// Where a file is.
enum Location {
    Path(PathBuf),
    Url(reqwest::Url),
}

impl Location {
    fn parse(location: &str, root: &Path) -> Result<Self, FetchError> {
        let Some((scheme, _)) = location.split_once("://") else {
            return Ok(Self::Path(root.join(location)));
        };
        if !matches!(scheme.to_ascii_lowercase().as_str(), "http" | "https") {
            let reason = "only http, https and paths are understood".to_owned();
            return Err(FetchError::Location { location: http::shown_text(location), reason });
        }
        reqwest::Url::parse(location).map(Self::Url).map_err(|error| FetchError::Location {
            location: http::shown_text(location),
            reason: error.to_string(),
        })
    }
}

fn parse_digest(text: &str) -> Result<String, FetchError> {
    let fits = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if fits { Ok(text.to_ascii_lowercase()) } else { Err(FetchError::NoDigest { text: text.to_owned() }) }
}

/// Verifies a file of this machine where it is and returns its size.
async fn local(
    name: &str,
    path: &Path,
    digest: &str,
    cache: &Cache,
    progress: OnProgress<'_>,
) -> Result<u64, FetchError> {
    let found = hash::digest_of(path, cache, progress).await.map_err(|error| unreadable(path, error))?;
    if found.sha256 == digest {
        return Ok(found.size);
    }
    Err(FetchError::WrongDigest {
        name: name.to_owned(),
        expected: digest.to_owned(),
        actual: found.sha256,
        kept: None,
    })
}

/// Tells a file that can never be read so, whatever the machine does, from a disk that fails.
fn unreadable(path: &Path, error: FetchError) -> FetchError {
    use std::io::ErrorKind;
    match error {
        FetchError::Disk { source, .. }
            if matches!(
                source.kind(),
                ErrorKind::InvalidInput
                    | ErrorKind::IsADirectory
                    | ErrorKind::NotADirectory
                    | ErrorKind::PermissionDenied
            ) =>
        {
            FetchError::Unreadable { path: path.to_owned(), reason: source.to_string() }
        }
        other => other,
    }
}

/// Returns the digest that a signed list gives a name, and who signed the list.
async fn signed_digest(
    file: &str,
    signature: &str,
    key: &signature::Key,
    name: &str,
    root: &Path,
    retries: &Retries,
    progress: OnProgress<'_>,
) -> Result<(String, String), FetchError> {
    let list = small(file, root, retries, progress).await?;
    let signature_bytes = small(signature, root, retries, progress).await?;
    key.verify(&signature_bytes, &list, std::time::SystemTime::now()).map_err(|reason| {
        FetchError::Signature { file: http::shown_text(file), signature: http::shown_text(signature), reason }
    })?;
    let list = String::from_utf8_lossy(&list);
    let digest = signature::listed_digest(&list, name).ok_or_else(|| FetchError::NotListed {
        file: http::shown_text(file),
        name: name.to_owned(),
        advice: signature::similar_name(&list, name),
    })?;
    Ok((digest, key.owner()))
}

/// Returns the content of a small file at a location.
async fn small(
    location: &str,
    root: &Path,
    retries: &Retries,
    progress: OnProgress<'_>,
) -> Result<Vec<u8>, FetchError> {
    match Location::parse(location, root)? {
        Location::Url(url) => http::get_small(&url, SMALL_MAX, retries, progress).await,
        Location::Path(path) => {
            let content = tokio::fs::read(&path).await;
            content.map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => FetchError::Missing { path: path.clone() },
                _ => unreadable(&path, FetchError::disk("reading", &path, error)),
            })
        }
    }
}
