//! The stand-in medium's root file system in a folder, as its installer lays it on a disk, and what happens to it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use forge::check::{self, Finding};
use forge::communicator::chroot::{Chroot, Writes};
use forge::communicator::{Communicator as _, Exec, Output};
use forge::definition::{Check, Packages, Step};
use forge::provision::{self, Context, GUEST_FOLDER};
use sha2::{Digest as _, Sha256};

use crate::build::{folder, root};

/// How long a step, or a check, may take on a busy machine.
const LIMIT: Duration = Duration::from_mins(5);

/// Returns a root as the installer and a first boot leave it, with an SSH host key and the user odin, and with
/// those packages of the medium's mirror. It is made once and then reused, so nothing may change it; says so
/// where it cannot be made.
pub(crate) async fn prepared(name: &str, packages: &[&str]) -> Option<PathBuf> {
    if !rustix::process::geteuid().is_root() {
        println!("NOT RUN: working in a root file system takes root");
        return None;
    }
    let medium = Medium::build();
    let shaped_by = format!("{}\n{packages:?}\n{}", medium.iso.display(), include_str!("root.rs"));
    let digest = Sha256::digest(&shaped_by);
    let key = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
    let work = folder("roots");
    let path = work.join(format!("{name}-{key}"));
    // Tests run at the same time, each in a process of its own; one makes the root, the others wait for it.
    let turn = fs::File::create(work.join(format!("{name}.lock"))).expect("a lock's file");
    turn.lock().expect("a turn");
    if path.exists() {
        return Some(path);
    }
    for entry in fs::read_dir(&work).expect("a folder").flatten() {
        if entry.file_name().to_string_lossy().starts_with(&format!("{name}-")) {
            fs::remove_dir_all(entry.path()).expect("an old root is removed");
        }
    }
    let (image, new) = (work.join(format!("{name}.squashfs")), work.join(format!("{name}-new")));
    let _none_yet = fs::remove_file(&image);
    let extract = ["-osirrox", "on", "-extract", "/casper/target.squashfs"];
    output(Command::new("xorriso").arg("-indev").arg(&medium.iso).args(extract).arg(&image));
    output(Command::new("unsquashfs").args(["-quiet", "-no-progress", "-dest"]).arg(&new).arg(&image));
    fs::remove_file(&image).expect("the image is removed");
    let guest = Guest::open(&new, Writes::Kept).await;
    guest.shell("ssh-keygen -q -A && useradd --create-home --shell /bin/bash odin").await;
    if !packages.is_empty() {
        let mirror = medium.serve(&guest).await;
        let install = packages.iter().map(|&name| name.to_owned()).collect();
        let packages = Some(Packages { install, upgrade: false });
        let step = Step { name: "packages".to_owned(), packages, ..Step::default() };
        guest.apply(&step).await.unwrap_or_else(|error| panic!("{error}"));
        guest.shell("rm /etc/apt/sources.list").await;
        drop(mirror);
    }
    guest.close().await;
    fs::rename(&new, &path).expect("the root is complete");
    Some(path)
}

/// Runs a program of this machine and returns what it printed.
pub(crate) fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("starting {command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The stand-in medium.
pub(crate) struct Medium {
    iso: PathBuf,
    mirror: PathBuf,
}

impl Medium {
    pub(crate) fn build() -> Self {
        let built = output(&mut Command::new(root().join("tests/media/build")));
        let value = |key: &str| built.lines().find_map(|line| line.strip_prefix(key)).expect("a line").into();
        Self { iso: value("iso="), mirror: value("mirror=") }
    }

    /// Serves the medium's packages to a guest, which shares this machine's network, until what is returned is
    /// dropped. They are its only source, as the installer leaves it.
    pub(crate) async fn serve(&self, guest: &Guest) -> Mirror {
        let mut server = Command::new(root().join("tests/media/serve"))
            .arg(&self.mirror)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tests/media/serve starts");
        let mut line = String::new();
        BufReader::new(server.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        let port = line.trim().strip_prefix("port=").expect("port=");
        let source = format!("deb http://127.0.0.1:{port}/ trixie main");
        guest.shell(&format!("echo '{source}' >/etc/apt/sources.list")).await;
        Mirror(server)
    }
}

/// The medium's packages, served.
pub(crate) struct Mirror(Child);

impl Drop for Mirror {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A root that is worked in.
pub(crate) struct Guest {
    root: Chroot,
    /// The last lines that steps have printed.
    said: Mutex<Vec<String>>,
}

impl Guest {
    pub(crate) async fn open(path: &Path, writes: Writes) -> Self {
        let root = Chroot::open(path, writes).await.unwrap_or_else(|error| panic!("{error}"));
        Self { root, said: Mutex::default() }
    }

    pub(crate) async fn close(self) {
        self.root.close().await;
    }

    /// Returns who made the root's namespaces.
    pub(crate) fn way(&self) -> &'static str {
        self.root.way().as_str()
    }

    pub(crate) async fn exec(&self, command: Exec) -> Output {
        self.root.exec(&command.timeout(LIMIT)).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs a script that must succeed, and returns what it printed.
    pub(crate) async fn shell(&self, script: &str) -> String {
        let output = self.exec(Exec::new(["/bin/sh", "-eu"]).stdin(script)).await;
        assert!(output.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
        output.text()
    }

    /// Returns a file of the guest.
    pub(crate) async fn file(&self, path: &str) -> String {
        let content = self.root.get_file(path).await.unwrap_or_else(|error| panic!("{error}"));
        String::from_utf8_lossy(&content).into_owned()
    }

    /// Makes the change that a step says, as a build does.
    pub(crate) async fn apply(&self, step: &Step) -> Result<(), String> {
        let cx = Context {
            guest: &self.root,
            folder: GUEST_FOLDER,
            bulk: None,
            root: root(),
            output: &|_| (),
            log: &|line| self.said.lock().expect("no panic meanwhile").push(line.to_owned()),
            retry: &|_, _, _| (),
            render: &|path| panic!("{} is to be rendered", path.display()),
            secrets: &[],
        };
        provision::apply(step, LIMIT, &cx).await.map_err(|error| {
            let said = self.said.lock().expect("no panic meanwhile");
            let last = said[said.len().saturating_sub(20)..].join("\n");
            format!("{error}\n{last}")
        })
    }

    /// Makes checks, as a build does.
    pub(crate) async fn check(&self, checks: &[&Check]) -> Vec<Finding> {
        check::run(checks, &self.root, LIMIT, &|_| ()).await.unwrap_or_else(|error| panic!("{error}"))
    }
}
