//! Puts a file or a folder into the guest, as an archive for the guest's `tar`.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;
use tokio::time::Instant;
use uuid::Uuid;

use super::script::{Script, expect_success, script, shell_command};
use super::tarball::{self, Entry, EntryContent};
use super::transfer::{Content, hex, put_part};
use super::{Context, ProvisionError, is_rendered};
use crate::communicator::{CommunicatorError, EXEC_INPUT_MAX, Exec, PUT_FILE_MAX};
use crate::definition::Upload;
use crate::event::human_duration;

const UNPACK: &str = include_str!("guest/unpack.sh");
const FETCH: &str = include_str!("guest/fetch.sh");

/// The exit code with which `guest/fetch.sh` says that it could not fetch.
const NOT_FETCHED: i32 = 75;

/// Uploads a file or a folder, with modes and owners.
pub(super) async fn upload(
    name: &str,
    upload: &Upload,
    timeout: Duration,
    cx: &Context<'_>,
) -> Result<(), ProvisionError> {
    let target = Target::new(name, upload)?;
    let entries = target.entries(upload, cx)?;
    let owner = target.owner.clone();
    let (archive, source) = (pack(entries, owner), cx.root.join(&upload.source));
    let archive = archive.await.map_err(|error| ProvisionError::Local { path: source, source: error })?;
    let limit = Instant::now() + timeout;
    let sending = target.send(name, archive, limit, timeout, cx);
    match tokio::time::timeout_at(limit, sending).await {
        Ok(result) => result,
        Err(_) => Err(CommunicatorError::Timeout {
            what: format!("{name}: sending {} ({})", upload.source, human_duration(timeout)),
            after: timeout,
        }
        .into()),
    }
}

/// Where an upload goes.
struct Target {
    /// The folder in the guest to unpack in.
    folder: String,
    /// The file's name in that folder; `None` when a folder is uploaded or the name is kept.
    file: Option<String>,
    mode: Option<u32>,
    owner: (String, String),
}

impl Target {
    fn new(name: &str, upload: &Upload) -> Result<Self, ProvisionError> {
        let invalid = |what: &str| ProvisionError::Invalid(format!("step `{name}`: {what}"));
        if !upload.destination.starts_with('/') {
            return Err(invalid(&format!("`{}` is not an absolute path", upload.destination)));
        }
        let mode = match &upload.mode {
            None => None,
            Some(text) => Some(
                u32::from_str_radix(text, 8)
                    .ok()
                    .filter(|mode| *mode <= 0o7777)
                    .ok_or_else(|| invalid(&format!("`{text}` is not a mode such as `0644`")))?,
            ),
        };
        let owner = upload.owner.as_deref().unwrap_or("root:root");
        let owner = owner
            .split_once(':')
            .filter(|(user, group)| [user, group].iter().all(|part| (1..=32).contains(&part.len())))
            .ok_or_else(|| invalid(&format!("`{owner}` is not an owner such as `root:root`")))?;
        let (folder, file) = upload.destination.rsplit_once('/').expect("it begins with a slash");
        Ok(Self {
            folder: if folder.is_empty() { "/".to_owned() } else { folder.to_owned() },
            file: Some(file.to_owned()).filter(|file| !file.is_empty()),
            mode,
            owner: (owner.0.to_owned(), owner.1.to_owned()),
        })
    }

    /// Returns what to send; `*.j2` files are rendered and lose that ending.
    fn entries(&self, upload: &Upload, cx: &Context<'_>) -> Result<Vec<Entry>, ProvisionError> {
        let source = cx.root.join(&upload.source);
        let local = |error| ProvisionError::Local { path: source.clone(), source: error };
        let own_name = source.file_name().map(|name| name.as_encoded_bytes().to_vec());
        let name = match &self.file {
            Some(file) => file.clone().into_bytes(),
            None => own_name.unwrap_or_default(),
        };
        let folder = source.is_dir();
        let mut entries = tarball::entries(&source, &name, self.mode).map_err(local)?;
        for entry in &mut entries {
            let EntryContent::File(path) = &entry.content else { continue };
            if is_rendered(path) {
                entry.content = EntryContent::Text((cx.render)(path)?);
                if (folder || self.file.is_none()) && entry.name.ends_with(b".j2") {
                    entry.name.truncate(entry.name.len() - 3);
                }
            }
        }
        if let (true, Some(file)) = (folder, &self.file) {
            for entry in &mut entries {
                entry.name = [file.as_bytes(), b"/", &entry.name].concat();
            }
        }
        Ok(entries)
    }

    async fn send(
        &self,
        name: &str,
        mut archive: Archive,
        deadline: Instant,
        timeout: Duration,
        cx: &Context<'_>,
    ) -> Result<(), ProvisionError> {
        if let Some(bytes) = &archive.small {
            let command = self.unpack("-", "-").stdin(bytes.clone());
            return self.exec_unpack(name, &command, deadline, cx).await;
        }
        let work = format!("{}/.forge-{}", self.folder.trim_end_matches('/'), Uuid::new_v4().simple());
        let result = match self.fetch(name, &archive, &work, timeout, cx).await {
            Ok(true) => self.exec_unpack(name, &self.unpack(&work, &archive.sha256), deadline, cx).await,
            Ok(false) => {
                self.put_parts(&mut archive, &work, deadline, cx).await?;
                self.exec_unpack(name, &self.unpack(&work, &archive.sha256), deadline, cx).await
            }
            Err(error) => Err(error),
        };
        if result.is_err() {
            let remove = shell_command("rm -rf -- \"$1\"", [work.as_str()]);
            // The first error is the one to show.
            drop(expect_success(&remove, "removing what was sent", deadline, cx).await);
        }
        result
    }

    fn unpack(&self, work: &str, sha256: &str) -> Exec {
        shell_command(UNPACK, [self.folder.as_str(), work, sha256]).timeout(Duration::from_mins(5))
    }

    async fn exec_unpack(
        &self,
        name: &str,
        command: &Exec,
        deadline: Instant,
        cx: &Context<'_>,
    ) -> Result<(), ProvisionError> {
        let what = format!("{name}: unpacking in {}", self.folder);
        expect_success(command, &what, deadline, cx).await?;
        Ok(())
    }

    /// Lets the guest fetch the archive; `false` when it cannot.
    async fn fetch(
        &self,
        name: &str,
        archive: &Archive,
        work: &str,
        timeout: Duration,
        cx: &Context<'_>,
    ) -> Result<bool, ProvisionError> {
        let content = Content::File(archive.file.path().to_owned());
        let Some(offer) = cx.bulk.and_then(|bulk| bulk.offer(content)) else { return Ok(false) };
        let env = [("url", offer.url.as_str()), ("folder", &self.folder), ("work", work)]
            .map(|(key, value)| (key.to_owned(), value.to_owned()));
        let interpreter = ["/bin/sh", "-eu"].map(str::to_owned);
        let fetch = Script {
            name,
            text: FETCH,
            interpreter: &interpreter,
            env: &env.into_iter().collect(),
            exit_codes: &[0],
        };
        match script(&fetch, timeout, cx).await {
            Ok(()) => Ok(true),
            Err(ProvisionError::Failed { code: NOT_FETCHED, .. }) => {
                (cx.output)("forge: sending in pieces instead");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    async fn put_parts(
        &self,
        archive: &mut Archive,
        work: &str,
        deadline: Instant,
        cx: &Context<'_>,
    ) -> Result<(), ProvisionError> {
        let make = shell_command(
            "mkdir -p -- \"$1\" && umask 077 && mkdir -p -- \"$2\" && rm -f -- \"$2\"/*",
            [self.folder.as_str(), work],
        );
        expect_success(&make, &format!("creating {}", self.folder), deadline, cx).await?;
        let local =
            |error| ProvisionError::Local { path: PathBuf::from("the packed archive"), source: error };
        archive.file.rewind().map_err(local)?;
        for number in 0.. {
            let mut part = Vec::with_capacity(PUT_FILE_MAX);
            archive.file.as_file_mut().take(PUT_FILE_MAX as u64).read_to_end(&mut part).map_err(local)?;
            if part.is_empty() {
                break;
            }
            put_part(&format!("{work}/part-{number:06}"), &part, deadline, cx).await?;
        }
        Ok(())
    }
}

/// An archive in a temporary file.
struct Archive {
    file: NamedTempFile,
    sha256: String,
    /// Its bytes, when one command carries them.
    small: Option<Vec<u8>>,
}

async fn pack(entries: Vec<Entry>, owner: (String, String)) -> io::Result<Archive> {
    tokio::task::spawn_blocking(move || {
        let mut writer = BufWriter::new(NamedTempFile::new()?);
        tarball::write(&entries, (&owner.0, &owner.1), &mut writer)?;
        let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        let (sha256, size) = digest(file.path())?;
        let small = (size <= EXEC_INPUT_MAX as u64).then(|| std::fs::read(file.path())).transpose()?;
        Ok(Archive { file, sha256, small })
    })
    .await
    .expect("packing does not panic")
}

fn digest(path: &Path) -> io::Result<(String, u64)> {
    let mut hasher = HashWriter(Sha256::new());
    let size = io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok((hex(&hasher.0.finalize()), size))
}

/// Hashes what is written to it.
struct HashWriter(Sha256);

impl Write for HashWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
