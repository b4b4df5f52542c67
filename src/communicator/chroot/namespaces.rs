//! A root's namespaces: who makes them, and how they are found and entered.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::{env, io};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::{ChrootError, Way, Writes};
use crate::communicator::ENVIRONMENT;

const STAGE: &str = include_str!("stage.sh");
const INSIDE: &str = include_str!("inside.sh");
const WAIT: &str = include_str!("wait.sh");

/// Folders that are mounted over: they must be there, and lead nowhere else.
const MOUNTED_OVER: [&str; 5] = ["dev", "proc", "run", "sys", "tmp"];

/// Returns a root's path without links, if it looks like a root.
pub(super) fn checked(root: &Path) -> Result<PathBuf, ChrootError> {
    let wrong = |reason: String| ChrootError::Folder { path: root.to_owned(), reason };
    let path = root.canonicalize().map_err(|error| wrong(error.to_string()))?;
    for name in MOUNTED_OVER {
        // Not through links: what is mounted there must not land elsewhere.
        let is_folder = fs::symlink_metadata(path.join(name)).is_ok_and(|metadata| metadata.is_dir());
        if !is_folder {
            return Err(wrong(format!("it has no folder `{name}`")));
        }
    }
    Ok(path)
}

/// The host's programs, by their paths: a command's own search path is not the host's.
#[derive(Debug)]
pub(super) struct Tools {
    unshare: PathBuf,
    nsenter: PathBuf,
    setsid: PathBuf,
}

impl Tools {
    /// Looks for all that a way needs.
    pub(super) fn find(way: Way) -> Result<Self, ChrootError> {
        if way == Way::Nspawn {
            find("systemd-nspawn", "systemd-container")?;
        }
        find("mount", "mount")?;
        let [unshare, nsenter, setsid] = ["unshare", "nsenter", "setsid"].map(|it| find(it, "util-linux"));
        Ok(Self { unshare: unshare?, nsenter: nsenter?, setsid: setsid? })
    }

    /// Returns the command that mounts a root and starts its first process, which says `ready` and then
    /// waits for the end of its standard input.
    pub(super) fn stage(&self, way: Way, root: &Path, writes: Writes, work: &Path) -> Command {
        let mut command = Command::new(&self.unshare);
        // The host's later changes to its mounts are seen, so that none is kept busy; not the reverse.
        command.args(["--mount", "--propagation", "slave"]);
        if way == Way::Unshare {
            command.args(["--pid", "--fork", "--kill-child", "--uts", "--ipc"]);
        }
        let writes = match writes {
            Writes::Kept => "kept",
            Writes::Forgotten => "forgotten",
        };
        command.args(["--", "/bin/sh", "-c", STAGE, "forge", way.as_str()]).arg(root).arg(writes);
        command.arg(work).args([INSIDE, WAIT]);
        command.env_clear().envs(ENVIRONMENT);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A Ctrl-C at the terminal is for forge alone.
        command.process_group(0).kill_on_drop(true);
        command
    }

    /// Returns the command that runs `/bin/sh -c SCRIPT` in a session of its own inside, as root and at `/`.
    pub(super) fn enter(&self, namespaces: &Namespaces, script: &str) -> Command {
        let mut command = Command::new(&self.setsid);
        command.arg(&self.nsenter);
        for (kind, file) in &namespaces.files {
            command.arg(format!("--{kind}={}", path_of(file)));
        }
        command.arg(format!("--root={}", path_of(&namespaces.root)));
        command.arg(format!("--wd={}", path_of(&namespaces.root)));
        command.args(["--", "/bin/sh", "-c", script]).env_clear();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }
}

fn find(program: &'static str, package: &'static str) -> Result<PathBuf, ChrootError> {
    let own = env::var("PATH").unwrap_or_default();
    let folders = own.split(':').chain(ENVIRONMENT[0].1.split(':')).filter(|folder| !folder.is_empty());
    let found = folders.map(|folder| Path::new(folder).join(program)).find(|path| path.is_file());
    found.ok_or(ChrootError::NotInstalled { program, package })
}

/// The namespaces of a root's first process, held open: a number that another process gets later leads
/// nowhere wrong.
#[derive(Debug)]
pub(super) struct Namespaces {
    files: [(&'static str, File); 5],
    root: File,
}

/// Returns the path of an open file for a child of this process.
fn path_of(file: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}

/// Waits until the first process is ready and opens its namespaces, or returns what was said instead.
pub(super) async fn first_process(keeper: &mut Child) -> Result<Namespaces, String> {
    let (Some(stdout), Some(mut stderr)) = (keeper.stdout.take(), keeper.stderr.take()) else {
        return Err("its output cannot be read".to_owned());
    };
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).await.map_err(|error| error.to_string())?;
    if line != "ready\n" {
        let mut said = Vec::new();
        let _partly = (&mut stderr).take(4096).read_to_end(&mut said).await;
        let said = String::from_utf8_lossy(&said).trim().replace('\n', "; ");
        return Err(if said.is_empty() { "it ended without a word".to_owned() } else { said });
    }
    // Whatever it says later, it must not wait for somebody to read it.
    tokio::spawn(async move { tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await });
    let keeper = keeper.id().ok_or("it ended at once")?;
    let first = find_first(keeper).ok_or("its first process is not found in /proc")?;
    open(first).map_err(|error| format!("entering the namespaces of process {first}: {error}"))
}

/// Returns the descendant of a process that is the first one of its PID namespace.
fn find_first(keeper: u32) -> Option<u32> {
    let mut parents = vec![keeper];
    while let Some(parent) = parents.pop() {
        for child in fs::read_dir("/proc").ok()?.flatten() {
            let Some(pid) = child.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            let Ok(status) = fs::read_to_string(child.path().join("status")) else { continue };
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            if field("PPid:") != Some(&*parent.to_string()) {
                continue;
            }
            let mut numbers = field("NSpid:").unwrap_or_default().split_whitespace();
            if numbers.next().is_some() && numbers.next_back() == Some("1") {
                return Some(pid);
            }
            parents.push(pid);
        }
    }
    None
}

/// Opens the namespaces of a process, and lets its user namespace know every number as itself.
fn open(pid: u32) -> io::Result<Namespaces> {
    let path = |name: &str| format!("/proc/{pid}/{name}");
    // In another one, the mounts could be changed by whoever is root there.
    if fs::metadata(path("ns/user"))?.ino() == fs::metadata("/proc/self/ns/user")?.ino() {
        return Err(io::Error::other("they are not in a user namespace of their own"));
    }
    let root = File::open(path("root"))?;
    let namespace = |kind: &'static str, name: &str| Ok((kind, File::open(path(&format!("ns/{name}")))?));
    let files: io::Result<Vec<_>> =
        [("user", "user"), ("mount", "mnt"), ("pid", "pid"), ("uts", "uts"), ("ipc", "ipc")]
            .into_iter()
            .map(|(kind, name)| namespace(kind, name))
            .collect();
    for map in ["uid_map", "gid_map"] {
        fs::write(path(map), same(&fs::read_to_string(format!("/proc/self/{map}"))?))?;
    }
    let files = files?.try_into().expect("one file for each");
    Ok(Namespaces { files, root })
}

/// Returns a map in which every number that this process knows stands for itself.
fn same(own: &str) -> String {
    let mut map = String::new();
    for line in own.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        if let [inside, _, count] = words[..] {
            map.extend([inside, " ", inside, " ", count, "\n"]);
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_for_themselves() {
        assert_eq!(same("         0          0 4294967295\n"), "0 0 4294967295\n");
        assert_eq!(same("0 100000 1000\n5000 7000 10\n"), "0 0 1000\n5000 5000 10\n");
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let error = find("no-such-program", "x").unwrap_err().to_string();
        assert_eq!(error, "`no-such-program` is not installed (apt install x)");
    }
}
