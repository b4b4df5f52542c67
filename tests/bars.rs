//! What the release binary must hold: static, small, and quick to answer. `make` names it in
//! `FORGE_RELEASE`; without that, only what a development build can show is shown.

#![expect(clippy::print_stdout, reason = "what was measured is part of the result")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How often a command is run for its median.
const RUNS: usize = 25;

fn release() -> Option<PathBuf> {
    let path = std::env::var_os("FORGE_RELEASE").map(PathBuf::from);
    if path.is_none() {
        println!("NOT MEASURED: FORGE_RELEASE names no release build (`make fast` does)");
    }
    path
}

fn median(binary: &Path, args: &[&str]) -> Duration {
    let mut times: Vec<Duration> = (0..RUNS)
        .map(|_| {
            let started = Instant::now();
            let status = Command::new(binary)
                .args(args)
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .stdout(Stdio::null())
                .status()
                .expect("forge starts");
            assert!(status.success(), "forge {args:?} ended with {status}");
            started.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[RUNS / 2]
}

#[test]
fn the_binary_needs_no_dynamic_library() {
    let binary = release().unwrap_or_else(|| env!("CARGO_BIN_EXE_forge").into());
    let output = Command::new("ldd").arg(&binary).output().expect("ldd is part of the C library");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(said.contains("statically linked") || said.contains("not a dynamic executable"), "{said}");
}

#[test]
fn the_release_binary_is_under_20_mib() {
    let Some(binary) = release() else { return };
    let size = std::fs::metadata(&binary).expect("a release build").len();
    println!("{size} bytes");
    assert!(size < 20 << 20, "{size} bytes");
}

#[test]
fn help_takes_under_10_ms() {
    let Some(binary) = release() else { return };
    let median = median(&binary, &["--help"]);
    println!("median of {RUNS}: {median:?}");
    assert!(median < Duration::from_millis(10), "{median:?}");
}

#[test]
fn validating_all_templates_takes_under_20_ms() {
    let Some(binary) = release() else { return };
    let median = median(&binary, &["validate"]);
    println!("median of {RUNS}: {median:?}");
    assert!(median < Duration::from_millis(20), "{median:?}");
}
