//! Whole builds by the real `forge` against a stand-in for QEMU and its guest, and what is left of
//! them when something goes wrong: a kill, a Ctrl-C or a failure, in each step.
//!
//! `tests/fake/` says what is real there and what is not.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// The steps of a build of `mini`, in order.
const STEPS: [&str; 14] = [
    "fetch",
    "seed",
    "disks",
    "install",
    "boot",
    "step:greet",
    "step:upload",
    "check",
    "facts",
    "seal",
    "export",
    "proof",
    "config-drive",
    "artifact",
];

/// How long a build may take on a busy machine before a test gives it up.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long after forge's end the last of its processes may still be there.
const GONE: Duration = Duration::from_secs(3);

// A root with small templates ----------------------------------------------------------------------

const TEMPLATE: &str = r#"
schema = 1

[variables.secret]
secret = true

[variables.fault]
default = "none"

[variables.format]
default = "qcow2"

[variables.iso]
default = "mini.iso"

[variables.digest]
default = "DIGEST"

[variables.fetch]
default = "60s"

[variables.install]
default = "90s"

[variables.boot]
default = "60s"

[variables.step]
default = "60s"

[variables.seal]
default = "60s"

[template]
name = "mini"
vmid = 9000
release = "1.0"
disk_format = "{{ var.format }}"

[source]
iso = "{{ var.iso }}"
sha256 = "{{ var.digest }}"

[machine]
cores = 1
memory_mib = 256

[[machine.disk]]
size_gib = 1

[[step]]
name = "greet"

[step.shell]
env = { secret = "{{ var.secret }}", fault = "{{ var.fault }}" }
inline = """
echo "hello, the secret is $secret"
case $fault in
step) echo 'about to fail'; exit 3 ;;
slow) sleep 60 ;;
off) poweroff; sleep 60 ;;
esac
"""

[[step]]
name = "upload"

[step.upload]
source = "hardening"
destination = "/opt/hardening"

[[check]]
name = "zip is installed"
package.name = "zip"

[[check]]
name = "the scripts are there"
file.path = "/opt/hardening/seal.sh"

[[check]]
name = "no fault is asked of this check"
at = ["build"]
command.run = "[ {{ var.fault | shquote }} != check ]"

[[check]]
name = "no fault is asked of the proof"
at = ["proof"]
command.run = "[ {{ var.fault | shquote }} != proof ]"

[seal]
env = { fault = "{{ var.fault }}" }

[proof]
ssh_port = 2222
grow_gib = 1

[timeouts]
fetch = "{{ var.fetch }}"
install = "{{ var.install }}"
boot = "{{ var.boot }}"
step = "{{ var.step }}"
seal = "{{ var.seal }}"
"#;

const SECOND_TEMPLATE: &str = r#"
schema = 1
extends = "mini"

[template]
name = "maxi"
vmid = 9001
"#;

const ANSWERS: &str = r#"#cloud-config
autoinstall:
  version: 1
  identity:
    hostname: mini
    username: odin
    password: "*"
  reporting:
    forge:
      type: webhook
      endpoint: {{ forge.report_url }}
      level: DEBUG
  late-commands:
    - echo {{ var.secret | shquote }} >/target/dev/null
  error-commands:
    - curl -T /var/log/installer.tar {{ forge.logs_url }}
  shutdown: poweroff
"#;

const SEAL: &str = r"
case $fault in
seal) echo 'about to fail'; exit 4 ;;
unsealed) exit 0 ;;
esac
: >/etc/machine-id
rm -f /etc/ssh/ssh_host_*
rm -rf /var/log/installer
";

/// A root of its own for one test, with its own cache and its own mark on each process.
struct Root {
    folder: TempDir,
    iso: Vec<u8>,
    mark: String,
    secret: String,
}

impl Root {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &[u8]| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        let iso: Vec<u8> = (0..200_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        write("mini.iso", &iso);
        write("templates/mini/template.toml", TEMPLATE.replace("DIGEST", &sha256(&iso)).as_bytes());
        write("templates/maxi/template.toml", SECOND_TEMPLATE.as_bytes());
        write("http/mini/autoinstall.yaml.j2", ANSWERS.as_bytes());
        write("hardening/seal.sh", SEAL.as_bytes());
        let fake = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake");
        let profile = format!(
            "schema = 1\n[qemu]\nbinary = \"{}\"\naccelerator = \"tcg\"\ntimeout_factor = 1\n",
            fake.join("qemu-system-x86_64").display()
        );
        write("builders/fake.toml", profile.as_bytes());
        fs::create_dir(folder.path().join("bin")).unwrap();
        for name in ["ssh", "qemu-img", "git"] {
            symlink(fake.join(name), folder.path().join("bin").join(name)).unwrap();
        }
        let mark = folder.path().file_name().unwrap().to_string_lossy().into_owned();
        let secret = format!(
            "hidden{:x}",
            Sha256::digest(&mark)[0..8].iter().fold(0_u64, |a, b| a << 8 | u64::from(*b))
        );
        Self { folder, iso, mark, secret }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, templates: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forge"));
        let search = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        command.arg("-C").arg(self.folder.path()).arg("build").args(templates);
        command.args(["--on", "fake", "--output", "json"]);
        command.env("PATH", search).env("XDG_CACHE_HOME", self.path("cache"));
        command.env("FORGE_TEST_MARK", &self.mark).env("FORGE_VAR_SECRET", &self.secret);
        for name in ["FORGE_BUILDER", "FORGE_FAKE", "FORGE_FAKE_IMG", "XDG_RUNTIME_DIR", "http_proxy"] {
            command.env_remove(name);
        }
        command
    }

    /// Starts a build of `mini` with these `FORGE_FAKE*` variables and these further arguments.
    fn start(&self, fakes: &[(&str, &str)], args: &[&str]) -> Build {
        let mut command = self.command(&["mini"]);
        command.args(args).envs(fakes.iter().copied());
        Build::start(command)
    }

    /// Builds once more, undisturbed, and makes sure that all is well and nothing of before is left.
    fn assert_next_build_works(&self) {
        self.start(&[], &[]).finish().assert_code(0);
        self.assert_whole("mini");
        self.assert_nothing_left();
    }

    /// Makes sure that the artifact is whole, and the only one.
    fn assert_whole(&self, template: &str) -> Value {
        let folder = self.path("artifacts").join(template);
        assert_eq!(names(&folder), ["1.0"], "in {}", folder.display());
        let text = fs::read(folder.join("1.0/manifest.json")).unwrap();
        let manifest: Value = serde_json::from_slice(&text).unwrap();
        let disk = fs::read(folder.join("1.0/disk.qcow2")).unwrap();
        assert_eq!(manifest["disk"]["sha256"], sha256(&disk).as_str());
        assert_eq!(manifest["disk"]["size"], disk.len());
        manifest
    }

    fn assert_no_artifact(&self) {
        assert_eq!(names(&self.path("artifacts/mini")), Vec::<String>::new());
    }

    /// Makes sure that no run has left more than evidence: no disk, no socket, no partial artifact.
    fn assert_nothing_left(&self) {
        let runs = self.path(".forge/runs");
        let left: Vec<_> = files(&runs)
            .into_iter()
            .filter(|path| {
                let inner = path.strip_prefix(&runs).unwrap().to_string_lossy().into_owned();
                inner.contains("/work/") || inner.contains("/forge-") || inner.ends_with(".partial")
            })
            .collect();
        assert_eq!(left, Vec::<PathBuf>::new());
        for run in names(&runs) {
            assert!(!runs.join(&run).join("work").exists(), "the work folder of {run} is left");
        }
        let partial = |name: &String| name.starts_with('.');
        assert!(!names(&self.path("artifacts/mini")).iter().any(partial), "a partial artifact is left");
    }

    /// Waits until no process that this root's builds have started is there any more.
    fn assert_nothing_runs(&self, started: &[Process]) {
        let deadline = Instant::now() + GONE;
        loop {
            let left: Vec<_> = processes()
                .into_iter()
                .filter(|process| self.owns(process.pid) || started.contains(process))
                .map(|process| format!("{} {}", process.pid, command_line(process.pid)))
                .collect();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "still running after {GONE:?}: {left:#?}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn owns(&self, pid: i32) -> bool {
        let mark = format!("FORGE_TEST_MARK={}", self.mark);
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|each| each == mark.as_bytes())
            || command_line(pid).contains(&self.mark)
    }

    /// Returns what a machine of the newest run has said so far.
    fn serial_log(&self, machine: &str) -> String {
        fs::read_to_string(self.evidence().join(machine).join("serial.log")).unwrap_or_default()
    }

    /// Returns the folder of the newest run.
    fn evidence(&self) -> PathBuf {
        let runs = self.path(".forge/runs");
        runs.join(names(&runs).pop().expect("there was a run"))
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// Returns the names in a folder, sorted; none when it is not there.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Returns everything below a folder that is no folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for name in names(folder) {
        let path = folder.join(name);
        if path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

// Processes ----------------------------------------------------------------------------------------

#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    /// When it started: tells it from a later one with its number.
    since: u64,
}

/// Returns all processes but zombies (`/proc/PID/stat`).
fn processes() -> Vec<Process> {
    let numbers = names(Path::new("/proc")).into_iter().filter_map(|name| name.parse::<i32>().ok());
    let read = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        (!matches!(fields[0], "Z" | "X")).then_some(())?;
        Some(Process { pid, parent: fields[1].parse().ok()?, since: fields[19].parse().ok()? })
    };
    numbers.filter_map(read).collect()
}

fn command_line(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// Returns a process's children, their children, and so on.
fn descendants(pid: i32) -> Vec<Process> {
    let all = processes();
    let mut family = vec![pid];
    let mut found = Vec::new();
    while let Some(parent) = family.pop() {
        for child in all.iter().filter(|process| process.parent == parent) {
            family.push(child.pid);
            found.push(child.clone());
        }
    }
    found
}

// Builds -------------------------------------------------------------------------------------------

/// A build that runs; killed with its test.
struct Build {
    child: Child,
    started: Instant,
    lines: Receiver<String>,
    seen: Vec<Value>,
    stdout: String,
    stderr: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

/// A build that has ended.
struct Ended {
    status: ExitStatus,
    wall: Duration,
    events: Vec<Value>,
    stdout: String,
    stderr: String,
}

impl Build {
    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let started = Instant::now();
        let mut child = command.spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            for line in stdout.lines() {
                let _test_has_ended = sender.send(line.unwrap());
            }
        });
        let mut pipe = child.stderr.take().unwrap();
        let stderr = Arc::new(Mutex::new(String::new()));
        let shared = Arc::clone(&stderr);
        let reader = thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut bytes) {
                shared.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        });
        Self { child, started, lines, seen: Vec::new(), stdout: String::new(), stderr, reader: Some(reader) }
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid()).unwrap(), signal).unwrap();
    }

    fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    /// Waits for the next event; `None` at the end.
    fn next_event(&mut self) -> Option<Value> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => {
                let event: Value = serde_json::from_str(&line).unwrap();
                self.stdout += &line;
                self.stdout.push('\n');
                self.seen.push(event.clone());
                Some(event)
            }
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                panic!("nothing happened for {PATIENCE:?}: {:#?}\n{}", self.seen.last(), self.stderr())
            }
        }
    }

    fn wait_for(&mut self, what: &str, so: impl Fn(&Value) -> bool) {
        while let Some(event) = self.next_event() {
            if so(&event) {
                return;
            }
        }
        panic!("the build ended before {what}:\n{}", self.stderr());
    }

    fn wait_for_step(&mut self, step: &str) {
        self.wait_for(step, |event| event["event"] == "step_started" && event["step"] == step);
    }

    /// Waits until forge has started a process whose command line holds all of that.
    fn wait_for_process(&self, words: &[&str]) {
        let is_it = |process: &Process| {
            let line = command_line(process.pid);
            words.iter().all(|word| line.contains(word))
        };
        wait_until(&format!("a process of {words:?}"), || descendants(self.pid()).iter().any(is_it));
    }

    fn wait_for_stderr(&self, text: &str) {
        wait_until(text, || self.stderr().contains(text));
    }

    fn finish(mut self) -> Ended {
        while self.next_event().is_some() {}
        let status = self.child.wait().unwrap();
        let wall = self.started.elapsed();
        self.reader.take().unwrap().join().unwrap();
        Ended {
            status,
            wall,
            events: std::mem::take(&mut self.seen),
            stdout: std::mem::take(&mut self.stdout),
            stderr: self.stderr(),
        }
    }
}

impl Drop for Build {
    fn drop(&mut self) {
        // Both fail when it has ended, and that is what is wanted.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

impl Ended {
    fn assert_code(&self, code: i32) {
        assert_eq!(self.status.code(), Some(code), "{}\n{:#?}", self.stderr, self.events.last());
    }

    fn last(&self) -> &Value {
        self.events.last().expect("a build has events")
    }

    /// Makes sure that the spans follow one another without gaps and sum to the run's time.
    fn assert_spans_sum(&self) {
        let last = self.last();
        let seconds = last["seconds"].as_f64().unwrap();
        let spans = last["spans"].as_array().unwrap();
        let mut at = 0.0;
        for span in spans {
            assert!((span["start"].as_f64().unwrap() - at).abs() < 0.001, "a gap before {span}");
            at += span["seconds"].as_f64().unwrap();
        }
        assert!((at - seconds).abs() <= (0.01 * seconds).max(0.001), "spans sum to {at} of {seconds} s");
    }

    fn forges_share(&self) -> f64 {
        let spans = self.last()["spans"].as_array().unwrap();
        let own = spans.iter().filter(|span| span["worker"] == "forge");
        own.map(|span| span["seconds"].as_f64().unwrap()).sum()
    }
}

// A build that goes well ---------------------------------------------------------------------------

/// Collects the command lines of all processes, as often as it can.
fn watch_command_lines(stop: &AtomicBool) -> HashSet<String> {
    let mut seen = HashSet::new();
    while !stop.load(Ordering::Relaxed) {
        let numbers = names(Path::new("/proc")).into_iter().filter_map(|name| name.parse().ok());
        seen.extend(numbers.map(command_line));
        thread::sleep(Duration::from_millis(5));
    }
    seen
}

#[test]
fn a_build_makes_a_whole_artifact_and_accounts_for_its_time() {
    let root = Root::new();
    let ended = root.start(&[], &[]).finish();
    ended.assert_code(0);
    let steps: Vec<_> = ended
        .events
        .iter()
        .filter(|event| event["event"] == "step_started")
        .map(|event| event["step"].as_str().unwrap())
        .collect();
    assert_eq!(steps, STEPS);

    let manifest = root.assert_whole("mini");
    root.assert_nothing_left();
    root.assert_nothing_runs(&[]);
    let started = &ended.events[0];
    assert_eq!(manifest["plan"], started["plan"]);
    assert_eq!(manifest["run"], started["run"]);
    assert_eq!(manifest["os"]["id"], "stand-in");
    let inputs: BTreeMap<_, _> = manifest["inputs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|input| (input["name"].as_str().unwrap(), input["sha256"].as_str().unwrap()))
        .collect();
    for (name, content) in
        [("http/mini/autoinstall.yaml.j2", ANSWERS.as_bytes()), ("hardening/seal.sh", SEAL.as_bytes())]
    {
        assert_eq!(inputs.get(name), Some(&sha256(content).as_str()), "{name} in {inputs:?}");
    }
    assert!(inputs.values().any(|digest| *digest == sha256(&root.iso)), "the ISO in {inputs:?}");
    let checks = manifest["checks"].as_array().unwrap();
    assert!(checks.iter().all(|check| check["passed"] == true), "{checks:#?}");
    for (at, name) in [
        ("build", "zip is installed"),
        ("proof", "zip is installed"),
        ("proof", "odin logs in by key on port 2222 and has sudo"),
        ("config-drive", "the ConfigDrive volume is accepted"),
    ] {
        assert!(checks.iter().any(|check| check["at"] == at && check["name"] == name), "{at}: {name}");
    }
    assert!(manifest["packages"].as_array().unwrap().iter().any(|package| package["name"] == "zip"));
    let logs: Vec<_> = files(&root.path("artifacts/mini/1.0/logs"));
    for name in [
        "events.jsonl",
        "guest.log",
        "install/serial.log",
        "proof/qemu.log",
        "checks-build.txt",
        "checks-proof.json",
    ] {
        assert!(logs.iter().any(|path| path.ends_with(name)), "{name} in {logs:?}");
    }

    let table = fs::read_to_string(root.path("artifacts/mini/1.0/logs/checks-build.txt")).unwrap();
    assert!(table.contains("✓ zip is installed"), "{table}");

    ended.assert_spans_sum();
    let seconds = ended.last()["seconds"].as_f64().unwrap();
    assert!(ended.wall.as_secs_f64() - seconds < 1.0, "{:?} for a run of {seconds} s", ended.wall);
    assert!(ended.forges_share() < 2.0, "forge's own share is {} s", ended.forges_share());
}

#[test]
fn no_secret_and_no_token_is_ever_seen() {
    let root = Root::new();
    let notes = root.path("notes");
    fs::create_dir(&notes).unwrap();
    let stop = AtomicBool::new(false);
    let (ended, lines) = thread::scope(|scope| {
        let watcher = scope.spawn(|| watch_command_lines(&stop));
        let ended = root.start(&[("FORGE_FAKE_NOTES", notes.to_str().unwrap())], &[]).finish();
        stop.store(true, Ordering::Relaxed);
        (ended, watcher.join().unwrap())
    });
    ended.assert_code(0);
    let url = fs::read_to_string(notes.join("url")).unwrap();
    let token = url.split('/').nth(3).unwrap();
    assert_eq!(token.len(), 40, "{url}");
    let hidden = [root.secret.as_str(), token];

    assert!(ended.stdout.contains("hello, the secret is"), "the step's output is shown");
    for text in [&ended.stdout, &ended.stderr] {
        assert!(!hidden.iter().any(|it| text.contains(it)), "{text}");
    }
    assert!(lines.iter().any(|line| line.contains("qemu-system-x86_64") && line.contains(&root.mark)));
    for line in &lines {
        assert!(!hidden.iter().any(|it| line.contains(it)), "{line}");
    }
    let all =
        [files(&root.path(".forge")), files(&root.path("artifacts")), files(&root.path("cache"))].concat();
    assert!(all.iter().any(|path| path.ends_with("guest.log")), "{all:?}");
    for path in all {
        let content = fs::read(&path).unwrap();
        let holds = |it: &str| content.windows(it.len()).any(|window| window == it.as_bytes());
        assert!(!hidden.iter().any(|it| holds(it)), "{} holds what is hidden", path.display());
    }
}

#[test]
fn several_builds_at_once_do_not_meet() {
    let root = Root::new();
    let mut command = root.command(&["mini", "maxi"]);
    command.args(["--parallel", "2"]);
    Build::start(command).finish().assert_code(0);
    root.assert_whole("mini");
    root.assert_whole("maxi");
    root.assert_nothing_left();
    root.assert_nothing_runs(&[]);
}

#[test]
fn two_forges_may_build_one_template() {
    let root = Root::new();
    let builds = [root.start(&[], &[]), root.start(&[], &[])];
    for build in builds {
        build.finish().assert_code(0);
    }
    root.assert_whole("mini");
    root.assert_nothing_left();
    root.assert_nothing_runs(&[]);
}

// Killed and interrupted ---------------------------------------------------------------------------

/// Serves an ISO; to the first that asks it sends half, and no more.
fn stalling_server(content: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let mut stalled = Vec::new();
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let from = requested_offset(&mut connection);
            let head = format!(
                "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{}/{}\r\n",
                content.len() - 1,
                content.len()
            );
            let head = if from == 0 { "HTTP/1.1 200 OK\r\n".to_owned() } else { head };
            let rest = &content[from..];
            let length =
                format!("ETag: \"one\"\r\nAccept-Ranges: bytes\r\nContent-Length: {}\r\n\r\n", rest.len());
            let sent = if stalled.is_empty() { &rest[..rest.len() / 2] } else { rest };
            // A client that was killed does not take it.
            let _gone = connection.write_all(&[head.as_bytes(), length.as_bytes(), sent].concat());
            stalled.push(connection);
        }
    });
    format!("http://{address}/mini.iso")
}

fn requested_offset(connection: &mut TcpStream) -> usize {
    let mut from = 0;
    for line in BufReader::new(connection).lines() {
        let line = line.unwrap_or_default().to_lowercase();
        if let Some(range) = line.strip_prefix("range: bytes=") {
            from = range.trim_end_matches('-').parse().unwrap();
        }
        if line.is_empty() {
            break;
        }
    }
    from
}

/// Starts a build and returns it when `step` is at work: a process of that step runs, a download is
/// half done, a file is half written.
fn build_until(root: &Root, step: &str) -> Build {
    let url = (step == "fetch").then(|| format!("iso={}", stalling_server(root.iso.clone())));
    let args: Vec<&str> = url.iter().flat_map(|url| ["--var", url]).collect();
    let fakes: &[(&str, &str)] = match step {
        "disks" => &[("FORGE_FAKE_IMG", "create:hang")],
        "install" => &[("FORGE_FAKE", "install:hang")],
        "boot" => &[("FORGE_FAKE", "guest:no-agent")],
        "export" => &[("FORGE_FAKE_IMG", "convert:hang")],
        "proof" => &[("FORGE_FAKE", "proof:no-agent")],
        "config-drive" => &[("FORGE_FAKE", "config-drive:no-agent")],
        "artifact" => &[("FORGE_FAKE_GIT", "0.3")],
        _ => &[],
    };
    let more: &[&str] = if step == "step:greet" { &["--var", "fault=slow"] } else { &[] };
    let mut build = root.start(fakes, &[&args, more].concat());
    build.wait_for_step(step);
    match step {
        "fetch" => wait_until("half the medium", || {
            let sizes =
                files(&root.path("cache")).into_iter().map(|path| path.metadata().map_or(0, |it| it.len()));
            sizes.sum::<u64>() >= root.iso.len() as u64 / 4
        }),
        "disks" | "export" => build.wait_for_process(&["sleep", "60"]),
        "install" => {
            wait_until("the installer", || root.serial_log("install").contains("stage-partitioning"));
        }
        "boot" => wait_until("the guest", || root.serial_log("guest").contains("login:")),
        "proof" | "config-drive" => {
            wait_until("the clone", || root.serial_log(step).contains("login:"));
        }
        "step:greet" => build.wait_for("output", |event| event["event"] == "output"),
        "artifact" => build.wait_for_process(&["git"]),
        _ => {}
    }
    build
}

/// Kills forge in a step, looks at what is left at once, and builds again.
fn kill(step: &str) {
    let root = Root::new();
    let build = build_until(&root, step);
    let family = descendants(build.pid());
    build.signal(Signal::KILL);
    let ended = build.finish();
    assert_eq!(ended.status.signal(), Some(9), "in {step}");
    root.assert_nothing_runs(&family);
    let visible: Vec<_> =
        names(&root.path("artifacts/mini")).into_iter().filter(|name| !name.starts_with('.')).collect();
    assert_eq!(visible, Vec::<String>::new(), "killed in {step}");
    root.assert_next_build_works();
    root.assert_nothing_runs(&family);
}

/// Stops forge in a step and makes sure that it has cleaned up after itself.
fn stop(step: &str, signal: Signal, code: i32) {
    let root = Root::new();
    let build = build_until(&root, step);
    let family = descendants(build.pid());
    build.signal(signal);
    let signalled = Instant::now();
    let ended = build.finish();
    assert!(signalled.elapsed() < GONE, "stopping in {step} took {:?}", signalled.elapsed());
    root.assert_nothing_runs(&family);
    root.assert_nothing_left();
    if step == "artifact" && ended.status.success() {
        // The artifact was whole before the stop was seen.
        root.assert_whole("mini");
        return;
    }
    ended.assert_code(code);
    assert_eq!(ended.last()["event"], "run_finished", "in {step}");
    assert_eq!(ended.last()["outcome"], "cancelled", "in {step}");
    ended.assert_spans_sum();
    root.assert_no_artifact();
}

macro_rules! in_each_step {
    ($($name:ident $step:literal),* $(,)?) => {
        const TRIED: &[&str] = &[$($step),*];

        mod killed {
            $(#[test] fn $name() { super::kill($step); })*
        }

        mod interrupted {
            $(#[test] fn $name() { super::stop($step, super::Signal::INT, 130); })*
        }
    };
}

in_each_step! {
    fetch "fetch",
    seed "seed",
    disks "disks",
    install "install",
    boot "boot",
    step "step:greet",
    upload "step:upload",
    check "check",
    facts "facts",
    seal "seal",
    export "export",
    proof "proof",
    config_drive "config-drive",
    artifact "artifact",
}

#[test]
fn each_step_is_killed_and_interrupted() {
    assert_eq!(TRIED, STEPS);
}

#[test]
fn a_sigterm_stops_as_well() {
    stop("install", Signal::TERM, 143);
}

#[test]
fn a_second_ctrl_c_ends_at_once_and_says_what_is_left() {
    let root = Root::new();
    // The failed build wants a picture of the screen, and this QEMU never answers.
    let mut build = root.start(&[("FORGE_FAKE", "install:fail-deaf")], &[]);
    build.wait_for("the failure", |event| event["event"] == "step_finished" && event["step"] == "install");
    let family = descendants(build.pid());
    build.signal(Signal::INT);
    thread::sleep(Duration::from_millis(200));
    assert!(build.child.try_wait().unwrap().is_none(), "the first Ctrl-C lets it be undone");
    build.signal(Signal::INT);
    let signalled = Instant::now();
    let ended = build.finish();
    assert!(signalled.elapsed() < Duration::from_secs(1), "{:?}", signalled.elapsed());
    ended.assert_code(130);
    let left = format!("rm -r {}", root.evidence().join("work").display());
    assert!(ended.stderr.contains("left behind: ") && ended.stderr.contains(&left), "{}", ended.stderr);
    root.assert_nothing_runs(&family);
    root.assert_next_build_works();
}

// Failures -----------------------------------------------------------------------------------------

/// A build that is to fail.
struct Fault<'a> {
    fakes: &'a [(&'a str, &'a str)],
    args: &'a [&'a str],
    /// The step in which it fails.
    step: &'a str,
    code: i32,
    /// What the error says.
    says: &'a str,
    /// The files that tell more, in the run's folder.
    evidence: &'a [&'a str],
}

/// The evidence of a machine that could still be asked for its screen.
const INSTALL: &[&str] = &["install.png", "install/serial.log", "install/qemu.log"];
const GUEST: &[&str] = &["guest.png", "guest/serial.log", "guest/qemu.log"];
const PROOF: &[&str] = &["proof.png", "proof/serial.log", "proof/qemu.log"];

impl Fault<'_> {
    fn happens(&self) {
        let root = Root::new();
        let ended = root.start(self.fakes, self.args).finish();
        let what = format!("{:?} {:?}\n{}", self.fakes, self.args, ended.stderr);
        ended.assert_code(self.code);
        root.assert_nothing_runs(&[]);
        root.assert_nothing_left();
        root.assert_no_artifact();

        assert_eq!(ended.last()["event"], "run_finished", "{what}");
        assert_eq!(ended.last()["outcome"], "failed", "{what}");
        let failed: Vec<_> = ended
            .events
            .iter()
            .filter(|event| event["event"] == "step_finished" && event["outcome"] == "failed")
            .map(|event| event["step"].as_str().unwrap())
            .collect();
        assert_eq!(failed, [self.step], "{what}");
        ended.assert_spans_sum();
        let errors = |it: &&str| it.starts_with("error: ") || it.contains("Z failed: ");
        assert_eq!(ended.stderr.lines().filter(errors).count(), 1, "{what}");
        assert!(ended.stderr.contains(self.says), "`{}` is not in {what}", self.says);
        assert!(!ended.stderr.contains(&root.secret), "{what}");

        let folder = root.evidence();
        let journal = fs::read_to_string(folder.join("events.jsonl")).unwrap();
        assert_eq!(journal, ended.stdout, "{what}");
        for name in self.evidence {
            let content =
                fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}\n{what}"));
            let picture = Path::new(name).extension() == Some(OsStr::from_bytes(b"png"));
            assert!(!picture || content.starts_with(b"\x89PNG"), "{name} is no picture\n{what}");
        }
    }
}

/// Makes faults happen side by side: builds mostly wait.
fn each_happens(faults: &[Fault<'_>]) {
    thread::scope(|scope| {
        for fault in faults {
            scope.spawn(|| fault.happens());
        }
    });
}

#[test]
fn inputs_and_disks_fail() {
    let wrong = format!("digest={}", "0".repeat(64));
    each_happens(&[
        Fault {
            fakes: &[],
            args: &["--var", &wrong],
            step: "fetch",
            code: 11,
            says: "000000",
            evidence: &[],
        },
        Fault {
            fakes: &[("FORGE_FAKE_IMG", "create:fail")],
            args: &[],
            step: "disks",
            code: 12,
            says: "No space left on device",
            evidence: &[],
        },
        Fault {
            fakes: &[("FORGE_FAKE_IMG", "convert:fail")],
            args: &[],
            step: "export",
            code: 12,
            says: "No space left on device",
            evidence: &["guest/serial.log"],
        },
    ]);
}

#[test]
fn qemu_fails() {
    each_happens(&[
        Fault {
            fakes: &[("FORGE_FAKE", "install:refuse")],
            args: &[],
            step: "install",
            code: 12,
            says: "asked to refuse to start",
            evidence: &["install/qemu.log", "install/qemu.args"],
        },
        Fault {
            fakes: &[("FORGE_FAKE", "install:crash")],
            args: &[],
            step: "install",
            code: 12,
            says: "Assertion `!fault' failed",
            evidence: &["install/qemu.log", "install/serial.log"],
        },
        Fault {
            fakes: &[("FORGE_FAKE", "guest:crash")],
            args: &[],
            step: "boot",
            code: 12,
            says: "Assertion `!fault' failed",
            evidence: &["guest/qemu.log", "guest/serial.log"],
        },
        Fault {
            fakes: &[("FORGE_FAKE", "proof:crash")],
            args: &[],
            step: "proof",
            code: 12,
            says: "Assertion `!fault' failed",
            evidence: &["proof/qemu.log", "proof/serial.log"],
        },
    ]);
}

#[test]
fn a_qemu_that_dies_when_it_is_to_run_is_quoted() {
    each_happens(&[Fault {
        fakes: &[("FORGE_FAKE", "guest:crash-at-once")],
        args: &[],
        step: "boot",
        code: 12,
        says: "Assertion `!fault' failed",
        evidence: &["guest/qemu.log"],
    }]);
}

#[test]
fn a_disk_is_raw_on_request() {
    let root = Root::new();
    root.start(&[], &["--var", "format=raw"]).finish().assert_code(0);
    let folder = root.path("artifacts/mini/1.0");
    let manifest: Value = serde_json::from_slice(&fs::read(folder.join("manifest.json")).unwrap()).unwrap();
    assert_eq!((&manifest["disk"]["format"], &manifest["disk"]["file"]), (&"raw".into(), &"disk.raw".into()));
    assert_eq!(fs::metadata(folder.join("disk.raw")).unwrap().len(), manifest["disk"]["virtual_size"]);
}

#[test]
fn all_disks_are_in_the_artifact() {
    let root = Root::new();
    let path = root.path("templates/mini/template.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text + "\n[[machine.disk]]\nsize_gib = 2\n").unwrap();
    root.start(&[], &[]).finish().assert_code(0);
    let manifest = root.assert_whole("mini");
    let second = &manifest["more_disks"][0];
    assert_eq!((&second["file"], &second["virtual_size"]), (&"disk1.qcow2".into(), &(2_u64 << 30).into()));
    let content = fs::read(root.path("artifacts/mini/1.0/disk1.qcow2")).unwrap();
    assert_eq!(second["sha256"], sha256(&content).as_str());
}

#[test]
fn a_guest_that_fails_is_quoted_from_its_console() {
    let root = Root::new();
    for (fault, step, args) in [
        ("install:no-fetch", "install", ["--var", "fetch=2s"]),
        ("guest:no-agent", "boot", ["--var", "boot=3s"]),
    ] {
        let ended = root.start(&[("FORGE_FAKE", fault)], &args).finish();
        let quoted = ended.events.iter().any(|event| {
            event["event"] == "output"
                && event["step"] == step
                && event["line"].as_str().is_some_and(|line| line.starts_with('['))
        });
        assert!(quoted, "nothing of the console in {step}: {:#?}", ended.events);
    }
}

#[test]
fn the_installation_fails() {
    let installer_fails = |fault, code, says, args| Fault {
        fakes: fault,
        args,
        step: "install",
        code,
        says,
        evidence: INSTALL,
    };
    each_happens(&[
        installer_fails(&[("FORGE_FAKE", "install:fail")], 13, "no disk is large enough", &[]),
        installer_fails(&[("FORGE_FAKE", "install:fail")], 13, "its own logs are in", &[]),
        installer_fails(&[("FORGE_FAKE", "install:reset")], 13, "the guest reset itself while", &[]),
        installer_fails(&[("FORGE_FAKE", "install:reboots")], 13, "shutdown: poweroff", &[]),
        installer_fails(&[("FORGE_FAKE", "install:panic")], 13, "kernel panicked while", &[]),
        installer_fails(
            &[("FORGE_FAKE", "install:hang")],
            17,
            "did not end within",
            &["--var", "fetch=2s", "--var", "install=3s"],
        ),
        installer_fails(&[("FORGE_FAKE", "install:no-fetch")], 17, "nothing fetched", &["--var", "fetch=1s"]),
    ]);
}

#[test]
fn the_guest_fails() {
    each_happens(&[
        Fault {
            fakes: &[("FORGE_FAKE", "guest:no-agent")],
            args: &["--var", "boot=1s"],
            step: "boot",
            code: 17,
            says: "guest agent",
            evidence: GUEST,
        },
        Fault {
            fakes: &[],
            args: &["--var", "fault=step"],
            step: "step:greet",
            code: 14,
            says: "greet: exit code 3",
            evidence: &[GUEST, &["guest.log"]].concat(),
        },
        Fault {
            fakes: &[],
            args: &["--var", "fault=slow", "--var", "step=1s"],
            step: "step:greet",
            code: 14,
            says: "still running after 1.0 s",
            evidence: GUEST,
        },
        Fault {
            fakes: &[],
            args: &["--var", "fault=off"],
            step: "step:greet",
            code: 13,
            says: "the guest powered off",
            evidence: GUEST,
        },
        Fault {
            fakes: &[],
            args: &["--var", "fault=check"],
            step: "check",
            code: 15,
            says: "no fault is asked of this check",
            evidence: GUEST,
        },
        Fault {
            fakes: &[],
            args: &["--var", "fault=seal"],
            step: "seal",
            code: 14,
            says: "hardening/seal.sh: exit code 4",
            evidence: GUEST,
        },
        Fault {
            fakes: &[("FORGE_FAKE", "guest:no-power-off")],
            args: &["--var", "seal=2s"],
            step: "seal",
            code: 17,
            says: "2.0 s",
            evidence: GUEST,
        },
    ]);
}

#[test]
fn the_proof_fails() {
    let proof = |fakes, args, says| Fault { fakes, args, step: "proof", code: 15, says, evidence: PROOF };
    each_happens(&[
        proof(&[("FORGE_FAKE", "proof:hostname")], &[], "the clone took its hostname"),
        proof(&[("FORGE_FAKE", "proof:password")], &[], "password logins are refused"),
        proof(&[], &["--var", "fault=unsealed"], "the clone has a machine-id of its own"),
        proof(&[], &["--var", "fault=proof"], "no fault is asked of the proof"),
        Fault {
            fakes: &[("FORGE_FAKE", "config-drive:hostname")],
            args: &[],
            step: "config-drive",
            code: 15,
            says: "its hostname is taken",
            evidence: &["config-drive/serial.log", "config-drive/qemu.log"],
        },
    ]);
}

#[test]
fn a_kept_machine_can_be_reached_and_ends_with_ctrl_c() {
    let root = Root::new();
    let build = root.start(&[], &["--keep", "--var", "fault=step"]);
    build.wait_for_stderr("The machine is kept until Ctrl-C");
    build.wait_for_stderr("  ssh      ssh -p ");
    let text = build.stderr();
    assert!(text.contains("greet: exit code 3"), "{text}");
    let agent = text.lines().find_map(|line| line.trim().strip_prefix("agent    ")).unwrap();
    let mut socket = std::os::unix::net::UnixStream::connect(agent.trim()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(b"{\"execute\":\"guest-ping\"}\n").unwrap();
    let mut answer = String::new();
    BufReader::new(socket).read_line(&mut answer).unwrap();
    assert_eq!(answer, "{\"return\": {}}\n");

    let family = descendants(build.pid());
    assert!(!family.is_empty());
    build.signal(Signal::INT);
    let ended = build.finish();
    ended.assert_code(14);
    root.assert_nothing_runs(&family);
    root.assert_nothing_left();
    root.assert_no_artifact();
}
