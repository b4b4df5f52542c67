//! A build of the real forge, and what it is given.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use forge::event::{Event, Outcome, Record};

/// What a build may use at most, in KiB, whatever the medium's size (`VmHWM`).
pub(crate) const MEMORY_MAX_KIB: u64 = 64 * 1024;

/// The size that the medium is padded to: that of a real one.
const MEDIUM_BYTES: u64 = 3 << 30;

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the release build where `make` names it, else the one under test.
pub(crate) fn forge() -> PathBuf {
    std::env::var_os("FORGE_RELEASE").map_or_else(|| env!("CARGO_BIN_EXE_forge").into(), PathBuf::from)
}

/// Returns the simulated Proxmox VE that lies beside forge.
pub(crate) fn simulator() -> PathBuf {
    let path = forge().with_file_name("pve-sim");
    assert!(path.exists(), "{} is not there: build it by `cargo build -p pve-sim`", path.display());
    path
}

pub(crate) fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("e2e").join(name);
    fs::create_dir_all(&folder).expect("a folder for the test");
    folder
}

/// What a build did.
pub(crate) struct Build {
    pub(crate) exit_code: Option<i32>,
    pub(crate) records: Vec<Record>,
    pub(crate) stderr: String,
    pub(crate) memory_kib: u64,
    pub(crate) wall: Duration,
}

impl Build {
    pub(crate) fn finished(&self) -> (&Outcome, f64, &[forge::event::Span]) {
        match &self.records.last().expect("events").event {
            Event::RunFinished { outcome, seconds, spans, .. } => (outcome, *seconds, spans),
            other => panic!("the last event is {other:?}\n{}", self.stderr),
        }
    }

    pub(crate) fn notes(&self) -> Vec<&str> {
        let note = |record| match record {
            &Record { event: Event::Note { ref message, .. }, .. } => Some(message.as_str()),
            _ => None,
        };
        self.records.iter().filter_map(note).collect()
    }

    pub(crate) fn folder(&self) -> PathBuf {
        match &self.records.first().expect("events").event {
            Event::RunStarted { folder, .. } => folder.into(),
            other => panic!("the first event is {other:?}"),
        }
    }
}

/// Runs a command that becomes `forge build --output json`, following what it tells and its memory.
pub(crate) fn run(mut command: Command) -> Build {
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("starting {command:?}: {error}"));
    let mut stderr = child.stderr.take().expect("a pipe");
    let said = std::thread::spawn(move || std::io::read_to_string(&mut stderr).unwrap_or_default());
    let mut records: Vec<Record> = Vec::new();
    let mut memory_kib = 0;
    for line in BufReader::new(child.stdout.take().expect("a pipe")).lines() {
        let line = line.expect("UTF-8 on standard output");
        let record: Record = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        if let Event::StepStarted { title, .. } = &record.event {
            println!("{:>7.1} s  {title}", record.at);
        }
        memory_kib = memory_kib.max(peak_memory_kib(&record.run).unwrap_or(0));
        records.push(record);
    }
    let status = child.wait().expect("the build ends");
    let stderr = said.join().expect("standard error is read");
    Build { exit_code: status.code(), records, stderr, memory_kib, wall: started.elapsed() }
}

/// Returns the peak memory of the forge process that holds a run's lock.
fn peak_memory_kib(run: &str) -> Option<u64> {
    let lock = Path::new(".forge/runs").join(run).join("lock");
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Ok(exe) = fs::read_link(entry.path().join("exe")) else { continue };
        if exe != forge() {
            continue;
        }
        let open = fs::read_dir(entry.path().join("fd")).ok()?.flatten();
        if open.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|path| path.ends_with(&lock)) {
            let status = fs::read_to_string(entry.path().join("status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
            return line.trim().strip_suffix(" kB")?.trim().parse().ok();
        }
    }
    None
}

/// Returns the stand-in medium, built if it is not there.
pub(crate) fn medium() -> PathBuf {
    let output = Command::new(root().join("tests/media/build")).output().expect("tests/media/build starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let built = String::from_utf8(output.stdout).expect("UTF-8");
    built.lines().find_map(|line| line.strip_prefix("iso=")).expect("iso= in what it prints").into()
}

/// Makes a copy of the medium that is as large as a real one, and returns it with its digest.
pub(crate) fn large_medium() -> (PathBuf, String) {
    let large = folder("media").join("large.iso");
    // `cp --sparse` and `truncate` cost no space for what is only padding.
    let copied = Command::new("cp").arg("--sparse=always").arg(medium()).arg(&large).status().expect("cp");
    assert!(copied.success());
    fs::OpenOptions::new()
        .write(true)
        .open(&large)
        .and_then(|file| file.set_len(MEDIUM_BYTES))
        .expect("the medium grows");
    let output = Command::new("sha256sum").arg(&large).output().expect("sha256sum");
    let digest = String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap_or_default().to_owned();
    (large, digest)
}
