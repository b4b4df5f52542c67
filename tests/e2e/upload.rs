//! How fast a medium gets to a node, and in how much memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pve_sim::Request;
use serde_json::Value;

use crate::build::{MEMORY_MAX_KIB, folder, forge, large_medium, root, run, simulator};

/// What forge's rate must be of curl's, at least.
const RATIO: f64 = 0.9;

/// How often both upload at the most: a machine may do something else for a while. The best of each counts.
const ROUNDS: usize = 4;

/// The build ends once its medium is there.
const FAULTS: &str = "[[rule]]\nmethod = \"POST\"\npath = \"/nodes/*/qemu\"\naction = \"refuse\"\nstatus = 500\nmessage = \"enough\"\n";

/// A simulated node, whose requests are written down once it has ended.
struct Node {
    process: Child,
    folder: PathBuf,
    facts: String,
}

impl Node {
    fn start() -> Self {
        let folder = folder("upload");
        fs::remove_dir_all(&folder).expect("the folder is removed");
        fs::create_dir_all(folder.join("root/builders")).expect("a folder");
        fs::write(folder.join("faults.toml"), FAULTS).expect("a file");
        let ready = folder.join("ready");
        let process = Command::new(simulator())
            .arg("--state")
            .arg(folder.join("node"))
            .arg("--ready-file")
            .arg(&ready)
            .arg("--faults")
            .arg(folder.join("faults.toml"))
            .arg("--record")
            .arg(&folder)
            .stdout(Stdio::null())
            .spawn()
            .expect("the simulator starts");
        let started = Instant::now();
        while !ready.exists() {
            assert!(started.elapsed() < Duration::from_secs(30), "the simulator is not ready");
            std::thread::sleep(Duration::from_millis(10));
        }
        let facts = fs::read_to_string(ready).expect("facts");
        Self { process, folder, facts }
    }

    fn fact(&self, key: &str) -> &str {
        let of_key = |line: &&str| line.split_once('=').is_some_and(|(found, _)| found == key);
        self.facts.lines().find(of_key).and_then(|line| line.split_once('=')).expect("a fact").1
    }

    /// Asks the node by curl, which adds `arguments` to the request, and returns the answer's `data`.
    fn curl(&self, path: &str, arguments: &[String]) -> Value {
        let token = format!("header = \"Authorization: PVEAPIToken={}\"\n", self.fact("token"));
        fs::write(self.folder.join("curlrc"), token).expect("a file");
        let output = Command::new("curl")
            .args(["--insecure", "--silent", "--show-error", "--fail", "--http1.1", "--config"])
            .arg(self.folder.join("curlrc"))
            .args(arguments)
            .arg(format!("{}/api2/json/nodes/asgard/{path}", self.fact("endpoint")))
            .stderr(Stdio::inherit())
            .output()
            .expect("curl starts");
        assert!(output.status.success(), "curl ends with {}", output.status);
        let mut answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        answer["data"].take()
    }

    /// Uploads a file by curl, as the node's web interface does, and waits until the node has stored it.
    fn upload_by_curl(&self, file: &Path, digest: &str) {
        let fields = [
            "content=iso".to_owned(),
            "checksum-algorithm=sha256".to_owned(),
            format!("checksum={digest}"),
            format!("filename=@{};filename=by-curl.iso", file.display()),
        ];
        let arguments: Vec<_> = fields.into_iter().flat_map(|field| ["--form".to_owned(), field]).collect();
        let task = self.curl("storage/local/upload", &arguments);
        // A task that still verifies what it was given would take its time from whoever uploads next.
        let status = format!("tasks/{}/status", task.as_str().expect("a task"));
        while self.curl(&status, &[])["status"] != "stopped" {
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Builds until the medium is there, and returns what that took in memory, in KiB.
    fn upload_by_forge(&self, file: &Path, digest: &str) -> u64 {
        let profile = format!(
            "schema = 1\n[machine]\nkvm = false\ncpu = \"max\"\n[http]\nbind = \"127.0.0.1\"\nadvertise = \"10.0.2.2\"\n\
             [proxmox]\nendpoints = [\"{}\"]\nfingerprint = \"{}\"\nnode = \"asgard\"\nvmids = \"8000-8009\"\n",
            self.fact("endpoint"),
            self.fact("fingerprint"),
        );
        let own = self.folder.join("root");
        fs::write(own.join("builders/sim.toml"), profile).expect("a profile");
        for folder in ["templates", "http", "hardening"] {
            let copied =
                Command::new("cp").arg("-r").arg(root().join(folder)).arg(&own).status().expect("cp");
            assert!(copied.success());
        }
        let mut command = Command::new(forge());
        command.env("FORGE_PVE_TOKEN", self.fact("token")).arg("-C").arg(&own);
        command.args(["build", "ubuntu-noble", "--on", "sim", "--output", "json"]);
        command.args(["--var", &format!("iso={}", file.display()), "--var", &format!("iso_sha256={digest}")]);
        let build = run(command);
        assert!(build.stderr.contains("enough"), "{}", build.stderr);
        build.memory_kib
    }

    /// Returns how long each upload of a medium took, in seconds.
    fn end(mut self) -> Vec<f64> {
        self.stop();
        let text = fs::read_to_string(self.folder.join("requests.json")).expect("requests");
        let requests: Vec<Request> = serde_json::from_str(&text).expect("requests");
        let uploads = requests.iter().filter(|request| request.path.ends_with("/upload"));
        let seconds = |request: &Request| {
            assert_eq!(request.status, 200, "{request:#?}");
            let ended = request.ended_ms.expect("it has ended");
            Duration::from_millis(ended - request.started_ms).as_secs_f64()
        };
        uploads.map(seconds).collect()
    }

    fn stop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            let _sent = Command::new("kill").arg(self.process.id().to_string()).status();
            let _status = self.process.wait();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop();
        let _removed = fs::remove_dir_all(&self.folder);
    }
}

/// Waits until the disk has what was written before.
fn settle() {
    assert!(Command::new("sync").status().expect("sync starts").success());
}

#[test]
fn a_large_medium_is_uploaded_as_fast_as_by_curl() {
    let (medium, digest) = large_medium();
    let gib = fs::metadata(&medium).expect("a medium").len() as f64 / f64::from(1 << 30);
    let (mut own, mut curl) = (f64::INFINITY, f64::INFINITY);
    for round in 0..ROUNDS {
        let node = Node::start();
        // A disk may be busy with what was before, so each is the first in turn.
        let curl_first = round % 2 == 0;
        settle();
        if curl_first {
            node.upload_by_curl(&medium, &digest);
            settle();
        }
        let memory_kib = node.upload_by_forge(&medium, &digest);
        if !curl_first {
            settle();
            node.upload_by_curl(&medium, &digest);
        }
        let took = node.end();
        // forge uploads the stub of its seed, too, right after the medium.
        let [first, second, third] = took[..] else { panic!("{took:?}") };
        let (curl_now, own_now) = if curl_first { (first, second) } else { (third, first) };
        (own, curl) = (own.min(own_now), curl.min(curl_now));
        let ratio = curl / own;
        println!(
            "{gib:.1} GiB: forge {own:.2} s in {memory_kib} KiB, curl {curl:.2} s: {ratio:.2} of its rate"
        );
        assert!(memory_kib > 0 && memory_kib < MEMORY_MAX_KIB, "{memory_kib} KiB");
        if ratio >= RATIO {
            return;
        }
    }
    panic!("forge's rate is {:.2} of curl's, and must be {RATIO}", curl / own);
}
