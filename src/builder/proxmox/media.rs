//! The media on the node's storage: the installer's ISO and the seed.
//!
//! ```text
//! ISO ─┬─ there, with the digest in its name and the right size ──────────────► used as it is
//!      ├─ the node downloads it, and verifies what is there by its checksum ──► used
//!      └─ fetched and verified here, uploaded with its checksum ──────────────► used
//! ```
//!
//! What is named by its digest is the same for every build and stays: a cache, not a leftover.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep};

use super::Cluster;
use super::hardware::cds_max;
use super::site::failed;
use crate::artifact;
use crate::builder::inputs::{Prepared, fetch_medium, last_part, media};
use crate::definition::Transport;
use crate::event::{Unit, Worker};
use crate::failure::{Failure, Kind, ResultExt as _};
use crate::fetch::{self, Expected};
use crate::pve::{Content, Download, Error, Storage, Upload};
use crate::run::{Step, UndoId};

/// How often a lock that another build on this machine holds is tried.
const LOCK_POLL: Duration = Duration::from_millis(200);

/// The most characters of a medium's own name in its volume's name.
const NAME_MAX: usize = 100;

/// A medium on the node's storage.
#[derive(Debug)]
pub(super) struct Medium {
    /// Its volume.
    pub(super) volid: String,
    /// What a manifest says of it.
    pub(super) input: artifact::Input,
}

/// The seed's volume, with the undo of one that is this build's own.
#[derive(Debug)]
pub(super) struct SeedVolume {
    pub(super) volid: String,
    own: Option<UndoId>,
}

impl Cluster<'_> {
    fn media_storage(&self) -> Storage {
        self.client.storage(&self.site.node, &self.site.media.id)
    }

    /// Sees to it that the plan's media are on the node's storage.
    pub(super) async fn bring_media(&self, step: &Step<'_>) -> Result<Vec<Medium>, Failure> {
        let wanted = media(self.plan)?;
        // One place is the seed's.
        if wanted.len() >= cds_max() {
            let error =
                anyhow!("the machine has {} CDs, and Proxmox has places for {}", wanted.len(), cds_max() - 1);
            return Err(Failure::new(Kind::Definition, error));
        }
        let cache = fetch::Cache::of_user().kind(Kind::Infrastructure)?;
        let mut media = Vec::new();
        for (location, expected) in wanted {
            media.push(self.bring_medium(&location, &expected, &cache, step).await?);
        }
        Ok(media)
    }

    async fn bring_medium(
        &self,
        location: &str,
        expected: &Expected,
        cache: &fetch::Cache,
        step: &Step<'_>,
    ) -> Result<Medium, Failure> {
        let name = last_part(location.split(['?', '#']).next().unwrap_or(location));
        if let Expected::Sha256(digest) = expected
            && is_plain_url(location)
        {
            let digest = digest.to_ascii_lowercase();
            let known = cache.whole(&digest).and_then(|path| Some(path.metadata().ok()?.len()));
            let volume = volume_name(&name, &digest);
            let there = match known {
                Some(size) => self.has(&volume, size).await?.then_some(size),
                None => None,
            };
            let size = match there {
                Some(size) => Some(size),
                None => self.let_node_download(location, &digest, &volume, step).await?,
            };
            if let Some(size) = size {
                let input = artifact::Input { name, sha256: digest, size };
                return Ok(self.medium(&volume, input, step));
            }
        }
        let image = fetch_medium(self.plan, location, expected, cache, step).await?;
        let volume = volume_name(&name, &image.sha256);
        self.upload(&image.path, &volume, &image.sha256, image.size, step).await?;
        let input = artifact::Input { name, sha256: image.sha256, size: image.size };
        Ok(self.medium(&volume, input, step))
    }

    fn medium(&self, volume: &str, input: artifact::Input, step: &Step<'_>) -> Medium {
        let volid = self.media_storage().volid(Content::Iso, volume);
        step.note(format!("the medium is {volid}"));
        Medium { volid, input }
    }

    /// Tells whether a volume is there with that size.
    async fn has(&self, volume: &str, size: u64) -> Result<bool, Failure> {
        let storage = self.media_storage();
        let found = storage.volume(&storage.volid(Content::Iso, volume)).await.map_err(failed)?;
        Ok(found.is_some_and(|found| found.size == size))
    }

    /// Lets the node download a medium, or verify the one that is there, and returns its size; nothing
    /// when the node cannot.
    async fn let_node_download(
        &self,
        url: &str,
        sha256: &str,
        name: &str,
        step: &Step<'_>,
    ) -> Result<Option<u64>, Failure> {
        if !self.site.can_download {
            step.note("the node may not download media by itself (Sys.AccessNetwork): fetching it here");
            return Ok(None);
        }
        step.worker(Worker::Download);
        let storage = self.media_storage();
        let show = |line: &str| {
            if let Some(percent) = parse_percent(line) {
                step.progress(percent, Some(100), Unit::Percent, Some("downloading to the node"));
            }
        };
        let download = Download { url, content: Content::Iso, name, sha256 };
        let downloaded = async {
            let upid = storage.download(&download).await?;
            self.client.wait(&upid, self.profile.task_timeout.duration(), Some(&show)).await?;
            storage.volume(&storage.volid(Content::Iso, name)).await
        };
        match downloaded.await {
            Ok(volume) => Ok(volume.map(|volume| volume.size)),
            Err(
                error @ (Error::TaskFailed { .. }
                | Error::Refused { .. }
                | Error::Forbidden { .. }
                | Error::Unknown { .. }),
            ) => {
                step.note(format!("the node cannot download the medium, so it is fetched here: {error}"));
                Ok(None)
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Uploads a file unless it is there already, one build on this machine at a time.
    async fn upload(
        &self,
        path: &Path,
        name: &str,
        sha256: &str,
        size: u64,
        step: &Step<'_>,
    ) -> Result<(), Failure> {
        if self.has(name, size).await? {
            return Ok(());
        }
        let waiting = format!("another build uploads {name}");
        let _turn = self.turn(&format!("upload-{name}"), &waiting, step).await?;
        step.worker(Worker::Node);
        if self.has(name, size).await? || self.comes_from_elsewhere(name, size, step).await? {
            return Ok(());
        }
        let storage = self.media_storage();
        let show = |done, total| step.progress(done, Some(total), Unit::Bytes, Some("uploading to the node"));
        let upload = Upload { path, content: Content::Iso, name, sha256: Some(sha256) };
        let upid = storage.upload(&upload, &show).await.map_err(failed)?;
        self.wait(&upid).await?;
        if self.has(name, size).await? {
            return Ok(());
        }
        let volid = storage.volid(Content::Iso, name);
        Err(Failure::new(
            Kind::Infrastructure,
            anyhow!("{volid} is not there with its {size} bytes after its upload"),
        )
        .hint(format!(
            "is there room on the root file system of {}? it stored the upload in /var/tmp first",
            upid.node()
        )))
    }

    /// Tells whether another machine is just storing the same file, and waits for its end if so: an upload
    /// on top would change the file under a machine that boots from it.
    async fn comes_from_elsewhere(&self, name: &str, size: u64, step: &Step<'_>) -> Result<bool, Failure> {
        let storage = self.media_storage();
        let volid = storage.volid(Content::Iso, name);
        let deadline = Instant::now() + self.profile.task_timeout.duration();
        let mut last = None;
        loop {
            let now = storage.volume(&volid).await.map_err(failed)?.map(|volume| volume.size);
            match now {
                None => return Ok(false),
                Some(bytes) if bytes == size => return Ok(true),
                // It does not grow: its upload was broken off, and what came is of no use.
                Some(_) if now == last || Instant::now() > deadline => return Ok(false),
                Some(bytes) => {
                    step.note(format!("{volid} has {bytes} of {size} bytes: waiting whether it grows"));
                }
            }
            last = now;
            sleep(self.client.pace().agent_silent).await;
        }
    }

    /// Waits until no other build on this machine has the turn of that name, which lasts as long as the
    /// file that is returned; `waiting` says what is waited for.
    pub(super) async fn turn(&self, name: &str, waiting: &str, step: &Step<'_>) -> Result<File, Failure> {
        let folder = fetch::Cache::of_user().kind(Kind::Infrastructure)?.root().join("locks");
        let path = folder.join(name);
        let open = || {
            std::fs::create_dir_all(&folder)?;
            File::options().create(true).truncate(false).write(true).open(&path)
        };
        let lock =
            open().with_context(|| format!("opening {}", path.display())).kind(Kind::Infrastructure)?;
        let mut told = false;
        while lock.try_lock().is_err() {
            if !told {
                step.note(format!("{waiting}: waiting for it"));
                told = true;
            }
            sleep(LOCK_POLL).await;
        }
        Ok(lock)
    }

    /// Sees to it that the seed's volume is on the node's storage.
    ///
    /// The stub is the same for every build and stays; a volume with answers is this build's own.
    pub(super) async fn bring_seed(&self, seed: &Prepared, step: &Step<'_>) -> Result<SeedVolume, Failure> {
        let content =
            std::fs::read(&seed.volume).context("reading the seed's volume").kind(Kind::Unexpected)?;
        let sha256 = format!("{:x}", bytes::Bytes::copy_from_slice(&Sha256::digest(&content)));
        let storage = self.media_storage();
        let (name, own) = match seed.transport {
            Transport::Http => (format!("forge-stub-{sha256}.iso"), None),
            Transport::Cdrom => {
                let name = format!("forge-seed-{}.iso", step.run().id);
                let undo = self.register_seed(&storage, &name, step)?;
                (name, Some(undo))
            }
        };
        self.upload(&seed.volume, &name, &sha256, content.len() as u64, step).await?;
        Ok(SeedVolume { volid: storage.volid(Content::Iso, &name), own })
    }

    fn register_seed(&self, storage: &Storage, name: &str, step: &Step<'_>) -> Result<UndoId, Failure> {
        let volid = storage.volid(Content::Iso, name);
        self.journal.begin_volume(&self.site.node, &volid).kind(Kind::Infrastructure)?;
        let by_hand = format!("pvesm free {volid} (on {})", self.site.node);
        let (storage, client, what) = (storage.clone(), self.client.clone(), format!("the seed {volid}"));
        let journal = Arc::clone(&self.journal);
        Ok(step.run().undo(what, by_hand, move |_| async move {
            let upid = storage.delete(&volid).await?;
            client.wait(&upid, Duration::from_secs(25), None).await?;
            journal.close_volume(&volid)
        }))
    }

    /// Removes a seed's volume that holds answers; what installed from it needs it no more.
    pub(super) async fn remove_seed(&self, seed: &SeedVolume, step: &Step<'_>) -> Result<(), Failure> {
        let Some(undo) = seed.own else { return Ok(()) };
        let deleted = async {
            let upid = self.media_storage().delete(&seed.volid).await?;
            self.client.wait(&upid, self.profile.task_timeout.duration(), None).await
        };
        match deleted.await {
            Ok(_) => self.journal.close_volume(&seed.volid).kind(Kind::Infrastructure)?,
            // It stays in the journal, for `forge leftovers`.
            Err(error) => step.warn(&format!(
                "the seed {} with this build's answers could not be removed: {error}",
                seed.volid
            )),
        }
        step.run().forget_undo(undo);
        Ok(())
    }
}

/// Tells whether a node may be told a location: a URL without a password in it.
fn is_plain_url(location: &str) -> bool {
    let rest = location.strip_prefix("https://").or_else(|| location.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.split('/').next().unwrap_or_default().contains('@'))
}

/// Returns the name of a medium's volume: its own name, then its digest.
fn volume_name(name: &str, sha256: &str) -> String {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    let stem: String = stem.chars().take(NAME_MAX).collect();
    crate::pve::normalise_file_name(&format!("{stem}-{sha256}.iso"))
}

/// Reads `  1024K ........ 12% 3.05M 4m` of wget's progress.
fn parse_percent(line: &str) -> Option<u64> {
    let before = line.split_once('%')?.0;
    let start = before.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1);
    before[start..].parse().ok().filter(|percent| *percent <= 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_named_by_what_it_is() {
        let digest = "c3".repeat(32);
        assert_eq!(volume_name("ubuntu 24.04.3.iso", &digest), format!("ubuntu_24.04.3-{digest}.iso"));
        assert_eq!(volume_name("medium", &digest), format!("medium-{digest}.iso"));
        assert!(volume_name(&"x".repeat(300), &digest).ends_with(&format!("-{digest}.iso")));
    }

    #[test]
    fn a_node_is_told_no_password() {
        for (location, plain) in [
            ("https://releases.example/a@b.iso", true),
            ("http://10.0.0.1:8000/x.iso", true),
            ("https://user:secret@releases.example/x.iso", false),
            ("media/x.iso", false),
            ("file:///x.iso", false),
        ] {
            assert_eq!(is_plain_url(location), plain, "{location}");
        }
    }

    #[test]
    fn progress_of_a_download_is_read() {
        for (line, percent) in [
            ("  3072K .......... ..........  12% 3.05M 4m12s", Some(12)),
            ("100%[====>]", Some(100)),
            ("downloading https://x/a%20b.iso", None),
            ("nothing", None),
        ] {
            assert_eq!(parse_percent(line), percent, "{line}");
        }
    }
}
