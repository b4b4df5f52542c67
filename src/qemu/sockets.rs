//! The folder of a machine's sockets: open to nobody else, with short paths, and found again when
//! forge was killed.
//!
//! ```text
//! <machine>/forge-0123456789ab                             where its path is short enough
//! <machine>/forge-0123456789ab ─► /tmp/forge-0123456789ab  elsewhere: a link leads to it
//! ```

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::Error;

const PREFIX: &str = "forge-";

/// The longest path in such a folder, from the machine's own.
const LONGEST: usize = "/forge-0123456789ab/tpm-state/".len();

/// The folder of a running machine's sockets; dropping it removes it.
#[derive(Debug)]
pub(super) struct Sockets {
    folder: TempDir,
    // After the folder, in the order of the fields: what is there can always be found.
    _link: Option<Link>,
}

impl Sockets {
    /// Makes the folder: in the machine's own where the paths stay short enough for `sun_path`
    /// (unix(7): 108 bytes with the NUL) and hold no comma, which swtpm cannot take.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn create(machine: &Path) -> Result<Self, Error> {
        let name = format!("{PREFIX}{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let text = machine.as_os_str().as_encoded_bytes();
        let is_near = text.len() + LONGEST < 107 && !text.contains(&b',');
        let parent = if is_near { machine.to_owned() } else { elsewhere() };
        let context = || Error::io(format!("creating a folder for sockets in {}", parent.display()));
        // The link comes first: a killed forge must not leave a folder that nothing leads to.
        let link =
            if is_near { None } else { Some(Link::create(machine, &parent, &name).map_err(context())?) };
        let folder = tempfile::Builder::new()
            .prefix(&name)
            .rand_bytes(0)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(&parent)
            .map_err(context())?;
        Ok(Self { folder, _link: link })
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Returns where paths are short.
fn elsewhere() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    runtime.filter(|path| path.is_dir()).unwrap_or_else(|| PathBuf::from("/tmp"))
}

#[derive(Debug)]
struct Link(PathBuf);

impl Link {
    fn create(machine: &Path, parent: &Path, name: &str) -> io::Result<Self> {
        let path = machine.join(name);
        symlink(parent.join(name), &path)?;
        Ok(Self(path))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Whoever sweeps later finds a link that leads nowhere, and removes it.
        fs::remove_file(&self.0).ok();
    }
}

/// Removes the sockets that a killed forge has left of the machine with that folder.
///
/// # Errors
/// When the machine's folder cannot be read, or something cannot be removed.
pub fn sweep(machine: &Path) -> io::Result<()> {
    for entry in fs::read_dir(machine)? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        let path = entry.path();
        if entry.file_type()?.is_symlink() {
            let folder = fs::read_link(&path)?;
            if is_of_ours(&folder, &entry.file_name()) {
                fs::remove_dir_all(folder)?;
            }
            fs::remove_file(path)?;
        } else {
            fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

/// Tells whether a link's folder is still there: in `/tmp` another user may have made one since.
fn is_of_ours(folder: &Path, name: &OsStr) -> bool {
    folder.file_name() == Some(name)
        && fs::symlink_metadata(folder)
            .is_ok_and(|meta| meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_lie_where_their_paths_are_short() {
        let root = tempfile::tempdir().unwrap();
        let near = Sockets::create(root.path()).unwrap();
        assert!(near.path().starts_with(root.path()));
        for name in ["x".repeat(100), "a,b".to_owned()] {
            let machine = root.path().join(name);
            fs::create_dir(&machine).unwrap();
            let far = Sockets::create(&machine).unwrap();
            let path = far.path().to_owned();
            assert!(!path.starts_with(&machine) && path.as_os_str().len() < 90, "{}", path.display());
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
            drop(far);
            assert!(!path.exists() && fs::read_dir(&machine).unwrap().next().is_none());
        }
    }

    #[test]
    fn what_a_link_leads_to_is_swept_unless_it_is_something_else() {
        let root = tempfile::tempdir().unwrap();
        let [machine, far, precious] =
            ["machine", "forge-far", "precious"].map(|name| root.path().join(name));
        for folder in [&machine, &far, &precious, &machine.join("forge-near"), &machine.join("logs")] {
            fs::create_dir(folder).unwrap();
        }
        fs::write(far.join("smbios"), "x").unwrap();
        symlink(&far, machine.join("forge-far")).unwrap();
        symlink(&precious, machine.join("forge-other")).unwrap();
        symlink(root.path().join("forge-gone"), machine.join("forge-gone")).unwrap();
        sweep(&machine).unwrap();
        assert!(!far.exists() && precious.exists());
        let left: Vec<_> = fs::read_dir(&machine).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["logs"]);
    }
}
