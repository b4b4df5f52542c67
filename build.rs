//! Tells forge its own version: the package's, with the git revision where it is known.

use std::process::Command;

fn main() {
    let version = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let revision = git(&["rev-parse", "--short=12", "HEAD"]);
    if let Some(revision) = &revision {
        println!("cargo::rustc-env=FORGE_REVISION={revision}");
    }
    let version = revision.map_or(version.clone(), |revision| format!("{version} ({revision})"));
    println!("cargo::rustc-env=FORGE_VERSION={version}");
    println!("cargo::rerun-if-changed=build.rs");
    // The log of HEAD changes with each commit and checkout, whichever branch it is.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}");
    }
}

/// Returns what git prints; nothing outside a repository or without git.
fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
