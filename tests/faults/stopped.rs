//! Builds that are killed or interrupted, in each step.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::STEPS;
use crate::build::{Build, wait_until};
use crate::process::descendants;
use crate::root::{GONE, Root, files, names};

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
        "prove:proof" => &[("FORGE_FAKE", "proof:no-agent")],
        "prove:config-drive" => &[("FORGE_FAKE", "config-drive:no-agent")],
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
        "prove:proof" | "prove:config-drive" => {
            let clone = &step["prove:".len()..];
            wait_until("the clone", || root.serial_log(clone).contains("login:"));
        }
        "step:greet" => build.wait_for("output", |event| event["event"] == "output"),
        "artifact" => build.wait_for_process(&["git"]),
        _ => {}
    }
    build
}

#[test]
fn disks_are_removed_as_soon_as_nothing_needs_them() {
    let root = Root::new();
    let build = build_until(&root, "prove:config-drive");
    let left = files(&root.path(".forge"))
        .into_iter()
        .filter(|path| path.extension().is_some_and(|it| it == "qcow2" || it == "raw"));
    let left: Vec<_> = left.map(|path| path.iter().rev().take(2).collect::<PathBuf>()).collect();
    assert_eq!(left, [Path::new("clone0.qcow2/config-drive")]);
    drop(build);
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
            $(#[test] fn $name() { super::stop($step, crate::stopped::Signal::INT, 130); })*
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
    sweep "sweep",
    power_off "power-off",
    export "export",
    sweep_disk "sweep-disk",
    proof "prove:proof",
    config_drive "prove:config-drive",
    artifact "artifact",
}

#[test]
fn each_step_is_killed_and_interrupted() {
    assert_eq!(TRIED, STEPS);
}

/// Kills a build whose sockets lie far from its folder, whose path is long, and builds again.
fn kill_with_far_sockets(in_runtime_folder: bool) {
    let root = Root::below(&"long".repeat(25));
    let there = root.path("../run");
    fs::create_dir(&there).unwrap();
    let there = there.canonicalize().unwrap();
    let mut fakes = vec![("FORGE_FAKE", "guest:no-agent")];
    if in_runtime_folder {
        fakes.push(("XDG_RUNTIME_DIR", there.to_str().unwrap()));
    }
    let mut build = root.start(&fakes, &[]);
    build.wait_for_step("boot");
    wait_until("the guest", || root.serial_log("guest").contains("login:"));
    let links: Vec<_> =
        files(&root.evidence().join("guest")).into_iter().filter(|path| path.is_symlink()).collect();
    let [link] = links.as_slice() else { panic!("{links:?}") };
    let sockets = fs::read_link(link).unwrap();
    assert_eq!(sockets.starts_with(&there), in_runtime_folder, "{}", sockets.display());
    assert!(sockets.join("agent").exists());
    let family = descendants(build.pid());
    build.signal(Signal::KILL);
    build.finish();
    root.assert_nothing_runs(&family);
    assert!(sockets.exists(), "a killed forge can remove nothing");
    root.assert_next_build_works();
    assert!(!sockets.exists(), "{} is left", sockets.display());
    assert_eq!(names(&there), Vec::<String>::new());
}

#[test]
fn sockets_that_lie_far_from_their_run_are_swept_too() {
    thread::scope(|scope| {
        for in_runtime_folder in [false, true] {
            scope.spawn(move || kill_with_far_sockets(in_runtime_folder));
        }
    });
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
