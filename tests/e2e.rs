//! The real-machine tier (`make e2e`): the real `templates/ubuntu-noble` is built from a real medium
//! in a real QEMU. Only variables differ from a user's build: the medium, its mirror, and the
//! operating system that it installs (see `tests/standin`).

#![expect(clippy::print_stdout, reason = "what was measured is part of the result")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use forge::artifact::{MANIFEST_VERSION, Manifest};
use forge::event::{Event, Outcome, Record, Worker};
use serde_json::Value;

/// What a build may use at most, in KiB, whatever the medium's size (`VmHWM`).
const MEMORY_MAX_KIB: u64 = 64 * 1024;

/// The size that the medium is padded to: that of a real one.
const MEDIUM_BYTES: u64 = 3 << 30;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the release build where `make` names it, else the one under test.
fn forge() -> PathBuf {
    std::env::var_os("FORGE_RELEASE").map_or_else(|| env!("CARGO_BIN_EXE_forge").into(), PathBuf::from)
}

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("e2e").join(name);
    fs::create_dir_all(&folder).expect("a folder for the test");
    folder
}

/// What a build did.
struct Build {
    exit_code: Option<i32>,
    records: Vec<Record>,
    stderr: String,
    memory_kib: u64,
    wall: Duration,
}

impl Build {
    fn finished(&self) -> (&Outcome, f64, &[forge::event::Span]) {
        match &self.records.last().expect("events").event {
            Event::RunFinished { outcome, seconds, spans, .. } => (outcome, *seconds, spans),
            other => panic!("the last event is {other:?}\n{}", self.stderr),
        }
    }

    fn notes(&self) -> Vec<&str> {
        let note = |record| match record {
            &Record { event: Event::Note { ref message, .. }, .. } => Some(message.as_str()),
            _ => None,
        };
        self.records.iter().filter_map(note).collect()
    }

    fn folder(&self) -> PathBuf {
        match &self.records.first().expect("events").event {
            Event::RunStarted { folder, .. } => folder.into(),
            other => panic!("the first event is {other:?}"),
        }
    }
}

/// Runs `forge build ubuntu-noble` with the stand-in medium, following its memory.
fn build(args: &[&str]) -> Build {
    let started = Instant::now();
    let mut child = Command::new(root().join("tests/standin"))
        .arg(forge())
        .args(["-C"])
        .arg(root())
        .args(["build", "ubuntu-noble", "--output", "json"])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("tests/standin starts");
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
    let lock = root().join(".forge/runs").join(run).join("lock");
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Ok(exe) = fs::read_link(entry.path().join("exe")) else { continue };
        if exe != forge() {
            continue;
        }
        let open = fs::read_dir(entry.path().join("fd")).ok()?.flatten();
        if open.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|path| path == lock) {
            let status = fs::read_to_string(entry.path().join("status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
            return line.trim().strip_suffix(" kB")?.trim().parse().ok();
        }
    }
    None
}

/// Makes a copy of the medium that is as large as a real one, and returns it with its digest.
fn large_medium() -> (PathBuf, String) {
    let output = Command::new(root().join("tests/media/build")).output().expect("tests/media/build starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let built = String::from_utf8(output.stdout).expect("UTF-8");
    let iso = built.lines().find_map(|line| line.strip_prefix("iso=")).expect("iso= in what it prints");
    let large = folder("media").join("large.iso");
    // `cp --sparse` and `truncate` cost no space for what is only padding.
    let copied = Command::new("cp").args(["--sparse=always", iso]).arg(&large).status().expect("cp");
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

#[test]
fn a_medium_becomes_a_proven_template() {
    let (medium, digest) = large_medium();
    let out = folder("artifact").join("ubuntu-noble");
    let _none_yet = fs::remove_dir_all(&out);
    let variables = [format!("iso={}", medium.display()), format!("iso_sha256={digest}")];
    let build = build(&["--var", &variables[0], "--var", &variables[1], "--out", &out.display().to_string()]);
    assert_eq!(build.exit_code, Some(0), "{}", build.stderr);
    let (outcome, seconds, spans) = build.finished();
    assert!(matches!(outcome, Outcome::Done));
    println!("built in {seconds:.0} s, {} KiB at the most", build.memory_kib);

    // The timeline: no gaps, and nearly none of it is forge's own.
    let sum: f64 = spans.iter().map(|span| span.seconds).sum();
    assert!((sum - seconds).abs() < 0.01 * seconds, "the spans sum to {sum:.1} of {seconds:.1} s");
    let own: f64 = spans.iter().filter(|span| span.worker == Worker::Forge).map(|span| span.seconds).sum();
    println!("of that {own:.2} s are forge's own");
    assert!(own < 2.0, "forge's own time is {own:.2} s");
    assert!(seconds <= build.wall.as_secs_f64());

    // Memory, while a 3 GB medium was hashed and a disk exported.
    assert!(build.memory_kib > 0 && build.memory_kib < MEMORY_MAX_KIB, "{} KiB", build.memory_kib);

    // The seed arrived over HTTP and the installer reported.
    let notes = build.notes().join("\n");
    assert!(notes.contains("installer fetched autoinstall.yaml after"), "{notes}");

    let text = fs::read_to_string(out.join("manifest.json")).expect("a manifest");
    let manifest: Manifest = serde_json::from_str(&text).expect("a manifest");
    assert_eq!((manifest.vmid, manifest.name.as_str()), (90001, "pkr-ubuntu-noble-1"));
    assert!(manifest.inputs.iter().any(|input| input.sha256 == digest));
    assert!(manifest.packages.iter().any(|package| package.name == "qemu-guest-agent"));
    let failed: Vec<_> = manifest.checks.iter().filter(|check| !check.passed).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for check in &manifest.checks {
        *places.entry(&check.at).or_default() += 1;
    }
    println!("checks that hold: {places:?}");
    assert!(places["build"] >= 20 && places["proof"] >= 28 && places["config-drive"] >= 4, "{places:?}");

    // The manifest's own facts, and the logs beside it.
    assert_eq!(manifest.format, MANIFEST_VERSION);
    assert!(manifest.plan.starts_with("sha256:") && !manifest.spans.is_empty());
    assert_eq!(manifest.forge.version, env!("CARGO_PKG_VERSION"));
    assert!(manifest.revision.is_some(), "no git revision");
    assert!(out.join("logs/events.jsonl").exists() && out.join("logs/install/serial.log").exists());

    // The medium came first and unwritable; the installed system saw nothing of it, nor of the seed.
    let args = |machine: &str| {
        let listing = build.folder().join(machine).join("qemu.args");
        fs::read_to_string(&listing).unwrap_or_else(|error| panic!("{}: {error}", listing.display()))
    };
    let first_cd = args("install").lines().find(|line| line.contains("node-name=cd0")).map(str::to_owned);
    let first_cd = first_cd.expect("a first CD");
    assert!(
        first_cd.contains(&medium.display().to_string()) && first_cd.ends_with("read-only=on"),
        "{first_cd}"
    );
    assert!(args("install").contains("-smbios") && args("install").contains("seed.iso"));
    for trace in ["-smbios", "ide-cd", ".iso"] {
        assert!(!args("guest").contains(trace), "{trace} in {}", args("guest"));
    }

    // What lies there is whole, alone, and tells no secrets.
    assert_eq!(
        manifest.disk.as_ref().expect("a disk").size,
        fs::metadata(out.join("disk.qcow2")).expect("a disk").len()
    );
    let siblings: Vec<_> =
        fs::read_dir(out.parent().expect("a parent")).expect("a folder").flatten().collect();
    assert_eq!(siblings.len(), 1, "{siblings:?}");
    assert!(!build.folder().join("work").exists());
    let token = token_of(&build.folder());
    assert!(token.is_none(), "the build's URL is in {token:?}");
}

/// Returns the first file of a run's evidence in which an unguessable path stands.
fn token_of(folder: &Path) -> Option<PathBuf> {
    let pattern = regex::bytes::Regex::new(r"10\.0\.2\.2:[0-9]+/[A-Za-z0-9]{20}").expect("a pattern");
    for entry in fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        let found = if path.is_dir() {
            token_of(&path)
        } else {
            fs::read(&path).ok().filter(|bytes| pattern.is_match(bytes)).map(|_| path)
        };
        // What the installer itself sends is its own evidence, and holds what it was told.
        if found.as_ref().is_some_and(|path| !path.to_string_lossy().contains("installer-logs")) {
            return found;
        }
    }
    None
}

#[test]
fn an_installer_that_fails_is_diagnosed() {
    let out = folder("failed").join("ubuntu-noble");
    // Nothing listens there: the installer tests its mirror, and gives up as it is told to.
    let build = build(&["--var", "mirror=http://10.0.2.2:9/", "--out", &out.display().to_string()]);
    assert_eq!(build.exit_code, Some(13), "{}", build.stderr);
    assert!(build.stderr.contains("the installer failed in"), "{}", build.stderr);
    let folder = build.folder();
    assert!(folder.join("install.png").exists(), "no screenshot of the console");
    assert!(folder.join("installer-logs").read_dir().is_ok_and(|mut logs| logs.next().is_some()));
    assert!(!out.exists());
    let events = fs::read_to_string(folder.join("events.jsonl")).expect("a journal");
    let last: Value = serde_json::from_str(events.lines().last().expect("events")).expect("JSON");
    assert_eq!(last["event"], "run_finished");
}
