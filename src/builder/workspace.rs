//! Where a build works and where its artifact ends up.
//!
//! ```text
//! .forge/runs/<id>/            evidence: events.jsonl, serial logs, screenshots; the newest 20 are kept
//!   lock                       held while the run lives: tells a live run from a dead one
//!   work/                      disks and sockets; gone when the run ends
//! artifacts/<template>/
//!   .<release>.<id>.partial/   being made; swept when its run is dead
//!   <release>/                 whole, by one rename
//! ```

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::fs::{CWD, RenameFlags};

use super::proxmox::journal;
use crate::qemu::sockets;

/// How many runs' evidence is kept.
pub const RUNS_KEPT: usize = 20;

const PARTIAL: &str = ".partial";

/// The folders of one run. Dropping it ends the run for others.
#[derive(Debug)]
pub struct Workspace {
    /// The run's id.
    pub id: String,
    /// `.forge/runs/<id>`.
    pub folder: PathBuf,
    root: PathBuf,
    _lock: File,
}

impl Workspace {
    /// Makes the folders of a new run below `root`, and removes what dead runs left.
    ///
    /// # Errors
    /// When a folder cannot be made.
    pub fn create(root: &Path) -> anyhow::Result<Self> {
        let runs = root.join(".forge/runs");
        fs::create_dir_all(&runs).with_context(|| format!("making {}", runs.display()))?;
        let ignore = root.join(".forge/.gitignore");
        if !ignore.exists() {
            fs::write(&ignore, "*\n").with_context(|| format!("writing {}", ignore.display()))?;
        }
        let id = new_id()?;
        let folder = runs.join(&id);
        fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
        let lock = File::create(folder.join("lock")).context("making the run's lock")?;
        lock.lock().context("taking the run's lock")?;
        fs::create_dir(folder.join("work")).context("making the run's work folder")?;
        Ok(Self { id, folder, root: root.to_owned(), _lock: lock })
    }

    /// Removes what dead runs left: their work folders, their partial artifacts, and the evidence
    /// of all but the newest [`RUNS_KEPT`]. Returns what was removed besides old evidence.
    ///
    /// # Errors
    /// When a folder cannot be read or removed.
    pub fn sweep(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut swept = Vec::new();
        let mut runs = runs(&self.root)?;
        runs.sort();
        let old = runs.len().saturating_sub(RUNS_KEPT);
        for (index, run) in runs.iter().enumerate() {
            if run == &self.folder {
                continue;
            }
            // Held while it is swept: a run that begins right now makes nothing before it has its lock.
            let Some(_held) = claim(run) else { continue };
            let work = run.join("work");
            if work.exists() {
                remove(&work)?;
                swept.push(work);
            }
            // The sockets of its machines, and perhaps the URL that a guest was about to be told.
            for machine in folders(run)? {
                sockets::sweep(&machine)
                    .with_context(|| format!("removing the sockets of {}", machine.display()))?;
            }
            // What it may have left on a node is known from its journal alone.
            if index < old && !journal::is_open(run) {
                remove(run)?;
            }
        }
        for template in folders(&self.root.join("artifacts"))? {
            for folder in folders(&template)? {
                if self.is_dead_partial(&folder) {
                    remove(&folder)?;
                    swept.push(folder);
                }
            }
        }
        Ok(swept)
    }

    fn is_dead_partial(&self, folder: &Path) -> bool {
        let Some(name) = folder.file_name().and_then(|name| name.to_str()) else { return false };
        let Some(id) = name
            .strip_prefix('.')
            .and_then(|rest| rest.strip_suffix(PARTIAL))
            .and_then(|rest| rest.rsplit_once('.'))
            .map(|(_, id)| id)
        else {
            return false;
        };
        id != self.id && !is_alive(&self.root.join(".forge/runs").join(id))
    }

    /// Returns a path in the run's work folder.
    #[must_use]
    pub fn work(&self, name: &str) -> PathBuf {
        self.folder.join("work").join(name)
    }

    /// Removes the work folder: what the run needs no more.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn clear_work(folder: &Path) -> anyhow::Result<()> {
        remove(&folder.join("work"))
    }

    /// Returns where the artifact is to be made, and where it is to lie.
    #[must_use]
    pub fn artifact(&self, out: Option<&Path>, template: &str, release: &str) -> Staging {
        let final_path = match out {
            Some(out) => out.to_owned(),
            None => self.root.join("artifacts").join(template).join(release),
        };
        let name = final_path.file_name().map_or_else(|| release.into(), |it| it.to_string_lossy());
        let partial = final_path.with_file_name(format!(".{name}.{}{PARTIAL}", self.id));
        Staging { partial, final_path }
    }
}

/// An artifact's folder while it is made.
#[derive(Debug, Clone)]
pub struct Staging {
    /// Where it is made.
    pub partial: PathBuf,
    /// Where it lies when it is whole.
    pub final_path: PathBuf,
}

impl Staging {
    /// Makes the partial folder.
    ///
    /// # Errors
    /// When it cannot be made, or when something that is no artifact is in its place.
    pub fn create(&self) -> anyhow::Result<()> {
        let present = self.final_path.exists();
        if present && !self.final_path.join(crate::artifact::MANIFEST_FILE).exists() {
            let empty = self.final_path.read_dir().is_ok_and(|mut entries| entries.next().is_none());
            anyhow::ensure!(
                empty,
                "{} is there and holds no artifact: forge will not replace it",
                self.final_path.display()
            );
        }
        fs::create_dir_all(&self.partial).with_context(|| format!("making {}", self.partial.display()))
    }

    /// Puts the whole artifact into its place by one rename, replacing an older one.
    ///
    /// # Errors
    /// When a file cannot be flushed or renamed.
    pub fn commit(&self) -> anyhow::Result<()> {
        sync_tree(&self.partial).with_context(|| format!("flushing {}", self.partial.display()))?;
        let context = || format!("renaming {} to {}", self.partial.display(), self.final_path.display());
        // Never a check before the rename: another forge may finish the same template just now.
        match rustix::fs::renameat_with(CWD, &self.partial, CWD, &self.final_path, RenameFlags::NOREPLACE) {
            Err(rustix::io::Errno::EXIST) => {
                // The older artifact and the new one change places at once: there is always a whole one.
                rustix::fs::renameat_with(CWD, &self.partial, CWD, &self.final_path, RenameFlags::EXCHANGE)
                    .with_context(context)?;
                remove(&self.partial)?;
            }
            renamed => renamed.with_context(context)?,
        }
        if let Some(parent) = self.final_path.parent() {
            File::open(parent)
                .and_then(|it| it.sync_all())
                .with_context(|| format!("flushing {}", parent.display()))?;
        }
        Ok(())
    }
}

/// Writes a file whole: beside its place first, flushed, then renamed.
///
/// # Errors
/// When it cannot be written.
pub fn write_whole(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)
        .and_then(|mut file| file.write_all(content).map(|()| file))
        .with_context(|| format!("writing {}", path.display()))?;
    file.as_file_mut().sync_all().with_context(|| format!("flushing {}", path.display()))?;
    file.persist(path).with_context(|| format!("renaming {}", path.display()))?;
    Ok(())
}

/// Removes a folder with all that is in it; one that is not there is fine.
///
/// # Errors
/// When it cannot be removed.
pub fn remove(folder: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Tells whether a text is a run's ID, as [`Workspace::create`] makes them: `20261121-142109-a1b2c3`.
#[must_use]
pub fn is_run_id(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let digits = |part: &str, length| part.len() == length && part.bytes().all(|it| it.is_ascii_digit());
    let hex = |part: &str| part.len() == 6 && part.bytes().all(|it| it.is_ascii_hexdigit());
    matches!(parts.as_slice(), [day, time, random] if digits(day, 8) && digits(time, 6) && hex(random))
}

fn new_id() -> anyhow::Result<String> {
    let mut random = [0_u8; 3];
    getrandom::fill(&mut random).map_err(|error| anyhow::anyhow!("asking for random bytes: {error}"))?;
    let now = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
    Ok(format!("{now}-{:02x}{:02x}{:02x}", random[0], random[1], random[2]))
}

/// Takes a dead run's lock; a live one holds it itself.
fn claim(run: &Path) -> Option<File> {
    let lock = File::options().create(true).truncate(false).write(true).open(run.join("lock")).ok()?;
    lock.try_lock().is_ok().then_some(lock)
}

/// Returns the folders of the runs below a root.
pub(crate) fn runs(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    folders(&root.join(".forge/runs"))
}

/// Tells whether a process holds the run's lock.
pub(crate) fn is_alive(run: &Path) -> bool {
    match File::open(run.join("lock")) {
        Ok(lock) => lock.try_lock().is_err(),
        Err(_) => false,
    }
}

fn folders(of: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let context = || format!("reading {}", of.display());
    let entries = match fs::read_dir(of) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(context)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.with_context(context)?;
        if entry.file_type().with_context(context)?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn sync_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_known_from_other_texts() {
        assert!(is_run_id(&new_id().unwrap()));
        for text in ["", "..", "20261121-142109", "20261121-142109-a1b2cg", "20261121-142109-a1b2c3-1"] {
            assert!(!is_run_id(text), "{text}");
        }
    }

    fn root() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn a_dead_runs_leftovers_are_swept_and_a_live_ones_stay() {
        let root = root();
        let dead = Workspace::create(root.path()).unwrap();
        let live = Workspace::create(root.path()).unwrap();
        let [gone, kept] = [&dead, &live].map(|run| {
            let staging = run.artifact(None, "t", "1.0");
            staging.create().unwrap();
            fs::write(run.work("disk.qcow2"), "x").unwrap();
            staging.partial
        });
        let dead_work = dead.work("");
        drop(dead);
        let mine = Workspace::create(root.path()).unwrap();
        let swept = mine.sweep().unwrap();
        assert_eq!(swept.len(), 2, "{swept:?}");
        assert!(!gone.exists() && !dead_work.exists());
        assert!(kept.exists() && live.work("disk.qcow2").exists());
    }

    #[test]
    fn only_the_newest_runs_are_kept() {
        let root = root();
        for number in 0..RUNS_KEPT + 5 {
            fs::create_dir_all(root.path().join(format!(".forge/runs/20200101-0000{number:02}-aaaaaa")))
                .unwrap();
        }
        let mine = Workspace::create(root.path()).unwrap();
        mine.sweep().unwrap();
        let left = folders(&root.path().join(".forge/runs")).unwrap();
        assert_eq!(left.len(), RUNS_KEPT);
        assert!(left.contains(&mine.folder));
    }

    #[test]
    fn an_artifact_appears_whole_and_replaces_an_older_one() {
        let root = root();
        for text in ["old", "new"] {
            let run = Workspace::create(root.path()).unwrap();
            let staging = run.artifact(None, "t", "1.0");
            staging.create().unwrap();
            write_whole(&staging.partial.join("manifest.json"), text.as_bytes()).unwrap();
            staging.commit().unwrap();
            assert_eq!(fs::read_to_string(staging.final_path.join("manifest.json")).unwrap(), text);
            assert_eq!(folders(&root.path().join("artifacts/t")).unwrap(), [staging.final_path]);
        }
    }

    #[test]
    fn something_else_in_the_artifacts_place_is_left_alone() {
        let root = root();
        let run = Workspace::create(root.path()).unwrap();
        let out = root.path().join("precious");
        fs::create_dir(&out).unwrap();
        fs::write(out.join("thesis.tex"), "x").unwrap();
        let error = run.artifact(Some(&out), "t", "1.0").create().unwrap_err();
        assert!(error.to_string().contains("will not replace it"), "{error}");
    }
}
