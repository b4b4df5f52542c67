//! What this machine has of all that building needs.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use crate::definition::{Accelerator, Chipset, Root};
use crate::failure::{Failure, Kind, ResultExt};
use crate::fetch::Cache;
use crate::qemu::accel;
use crate::qemu::firmware::find_ovmf;
use crate::report::human_bytes;

use super::{Finding, Level};

/// How long a program may take to tell its version.
const VERSION_DEADLINE: Duration = Duration::from_secs(10);

/// The oldest QEMU that forge drives, as major and minor version.
const OLDEST_QEMU: (u32, u32) = (7, 0);

const GIB: u64 = 1 << 30;

/// A program that building needs.
struct Tool {
    program: &'static str,
    /// What makes it say its version.
    version: &'static str,
    /// The package that has it, by Debian's name.
    package: &'static str,
    /// What cannot be done without it; a build always needs it otherwise.
    only_for: Option<&'static str>,
}

const TOOLS: [Tool; 7] = [
    Tool { program: "qemu-system-x86_64", version: "--version", package: "qemu-system-x86", only_for: None },
    Tool { program: "qemu-img", version: "--version", package: "qemu-utils", only_for: None },
    Tool { program: "setpriv", version: "--version", package: "util-linux", only_for: None },
    Tool {
        program: "swtpm",
        version: "--version",
        package: "swtpm",
        only_for: Some("only machines with `tpm = true` need it"),
    },
    Tool {
        program: "ssh-audit",
        version: "--help",
        package: "ssh-audit",
        only_for: Some("only the audit of that name needs it, in `forge prove`"),
    },
    Tool {
        program: "ansible",
        version: "--version",
        package: "ansible-core",
        only_for: Some("only the audit of that name needs it, in `forge prove`"),
    },
    Tool {
        program: "lynis",
        version: "--version",
        package: "lynis",
        only_for: Some("only the audit of that name needs it, in `forge prove`"),
    },
];

/// Returns what was found of each thing, in the order of the table, and how packages are installed.
pub(super) fn findings() -> Result<(Vec<Finding>, &'static str), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")
        .kind(Kind::Unexpected)?;
    let installer = installer(&std::fs::read_to_string("/etc/os-release").unwrap_or_default());
    let versions = futures_util::future::join_all(TOOLS.iter().map(version));
    let versions = runtime.block_on(versions);
    let mut findings: Vec<Finding> =
        TOOLS.iter().zip(versions).map(|(tool, version)| tool_finding(tool, version, installer)).collect();
    let ovmf = find_ovmf(Chipset::Q35).ok();
    findings.push(firmware(ovmf.as_ref().map(|ovmf| ovmf.code.path.as_path()), installer));
    findings.push(accelerator(&accel::Host::probe()));
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    findings.extend(memory_available(&memory).map(memory_finding));
    findings.extend(places(std::env::current_dir().ok().as_deref()));
    Ok((findings, installer))
}

/// Returns what was found of the folders that a build writes to.
fn places(here: Option<&Path>) -> Vec<Finding> {
    // An installer medium is about 3 GiB; a build's disk, its clone and the artifact about 10.
    let mut findings = vec![match Cache::of_user() {
        Ok(cache) => place("space for downloads", cache.root(), 4 * GIB),
        Err(_) => Finding::bad(
            "space for downloads",
            Level::Missing,
            "there is no place for the cache",
            "set FORGE_CACHE, XDG_CACHE_HOME or HOME",
        ),
    }];
    match here.and_then(|here| Root::find(here).ok()) {
        Some(root) => {
            findings.push(place("space for builds", &root.path().join(".forge/runs"), 12 * GIB));
            findings.push(place("space for artifacts", &root.path().join("artifacts"), 3 * GIB));
        }
        None => findings.push(Finding::bad(
            "root",
            Level::Note,
            "no folder `templates` here or above: there is nothing to build, and where builds and \
             artifacts would go was not looked at",
            "change to the repository, or name it with -C DIR",
        )),
    }
    findings.push(place("space in /tmp", &std::env::temp_dir(), GIB / 4));
    findings
}

/// Judges a folder by whether it can be written to, and by its space.
fn place(name: &str, folder: &Path, enough: u64) -> Finding {
    match try_writing(folder) {
        Ok(()) => space(name, folder, free(folder), enough),
        Err((at, reason)) => Finding::bad(
            name,
            Level::Missing,
            format!("{} cannot be written to: {reason}", folder.display()),
            format!("let this user write to {}{}", at.display(), elsewhere(name)),
        ),
    }
}

fn elsewhere(name: &str) -> &'static str {
    if name == "space for downloads" { ", or set FORGE_CACHE to another folder" } else { "" }
}

/// Tries to write where that folder is or will be; the file that it makes has no name, and goes by
/// itself. The error tells which folder it is that does not let this happen.
fn try_writing(folder: &Path) -> Result<(), (PathBuf, io::Error)> {
    let there = folder.ancestors().find(|folder| folder.symlink_metadata().is_ok()).unwrap_or(folder);
    match tempfile::tempfile_in(there) {
        Ok(_) => Ok(()),
        Err(error) => Err((there.to_owned(), error)),
    }
}

/// Returns the first line with which the program tells its version; `None` where it is not there.
async fn version(tool: &Tool) -> Result<Option<String>, String> {
    let mut command = tokio::process::Command::new(tool.program);
    command.arg(tool.version).stdin(std::process::Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(VERSION_DEADLINE, command.output()).await {
        Err(_) => Err(format!("no answer to {} within 10 s", tool.version)),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(output)) => {
            let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
            let text = String::from_utf8_lossy(&text);
            let first = crate::report::clean(text.lines().next().unwrap_or_default());
            if output.status.success() { Ok(Some(first)) } else { Err(format!("{}: {first}", output.status)) }
        }
    }
}

fn tool_finding(tool: &Tool, version: Result<Option<String>, String>, installer: &str) -> Finding {
    let level = if tool.only_for.is_some() { Level::Warn } else { Level::Missing };
    let missing = |found| Finding::install(tool.program, level, found, installer, tool.package);
    match version {
        Ok(Some(version)) if tool.program == "qemu-system-x86_64" => qemu(tool, &version, installer),
        Ok(Some(version)) => Finding::ok(tool.program, short(&version)),
        Ok(None) => {
            let why = tool.only_for.map(|why| format!("; {why}")).unwrap_or_default();
            missing(format!("not found{why}"))
        }
        Err(error) => missing(format!("does not run: {error}")),
    }
}

fn qemu(tool: &Tool, version: &str, installer: &str) -> Finding {
    let (major, minor) = OLDEST_QEMU;
    match parse_version(version) {
        Some(found) if found >= OLDEST_QEMU => Finding::ok(tool.program, short(version)),
        Some(_) => {
            let version = short(version);
            let found = format!("{version} is too old, {major}.{minor} is the oldest that will do");
            Finding::install(tool.program, Level::Missing, found, installer, tool.package)
        }
        None => {
            let found = format!("tells no version that forge can read: {version}");
            Finding::install(tool.program, Level::Warn, found, installer, tool.package)
        }
    }
}

/// Returns the word of a version line that tells the version.
fn short(line: &str) -> &str {
    let tells = |word: &&str| word.contains('.') && word.contains(|letter: char| letter.is_ascii_digit());
    line.split_whitespace().find(tells).map_or(line, |word| word.trim_end_matches(','))
}

/// Parses `QEMU emulator version 7.2.15 (Debian 1:7.2+dfsg-7)` to `(7, 2)`.
fn parse_version(line: &str) -> Option<(u32, u32)> {
    let version = line.split_whitespace().skip_while(|word| *word != "version").nth(1)?;
    let mut numbers = version.split('.');
    let mut number = || numbers.next()?.parse().ok();
    Some((number()?, number()?))
}

/// Returns the command that installs a package, from `/etc/os-release`.
fn installer(os_release: &str) -> &'static str {
    let words = |key: &str| {
        let value = os_release.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        value.trim_matches('"').split(' ').any(|word| word == "debian" || word == "ubuntu")
    };
    if words("ID=") || words("ID_LIKE=") {
        "apt-get install"
    } else {
        "install Debian's package or its like:"
    }
}

fn firmware(found: Option<&Path>, installer: &str) -> Finding {
    if let Some(path) = found {
        return Finding::ok("uefi firmware", path.display().to_string());
    }
    let found = "not found; only machines with `firmware = \"uefi\"` need it";
    Finding::install("uefi firmware", Level::Warn, found, installer, "ovmf")
}

/// Says what a build here would choose by itself.
fn accelerator(host: &accel::Host) -> Finding {
    match accel::choose(Accelerator::Auto, host) {
        Ok(accel::Choice { warning: None, .. }) => Finding::ok("accelerator", "KVM"),
        Ok(accel::Choice { warning: Some(why), .. }) => Finding::bad(
            "accelerator",
            Level::Warn,
            why,
            "turn virtualisation on in the firmware (nested, where this is a guest), load the kvm module, \
             and be in the group kvm",
        ),
        Err(error) => Finding::bad("accelerator", Level::Missing, error.to_string(), "see above"),
    }
}

/// Returns the bytes that `/proc/meminfo` says are available.
fn memory_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

fn memory_finding(available: u64) -> Finding {
    let found = format!("{} available", human_bytes(available));
    if available >= 4 * GIB + GIB / 2 {
        return Finding::ok("memory", found);
    }
    let advice = "a machine takes 4 GiB by default: free some, or lower `memory_mib`";
    Finding::bad("memory", Level::Warn, found, advice)
}

/// Returns the free bytes where that folder is or will be.
fn free(folder: &Path) -> Option<u64> {
    let there = folder.ancestors().find(|folder| folder.exists())?;
    let system = rustix::fs::statvfs(there).ok()?;
    Some(system.f_bavail.saturating_mul(system.f_frsize))
}

/// Space below an eighth of what is enough lets no build through.
fn space(name: &str, folder: &Path, free: Option<u64>, enough: u64) -> Finding {
    let folder = folder.display();
    let Some(free) = free else {
        return Finding::bad(
            name,
            Level::Warn,
            format!("cannot be told for {folder}"),
            "see whether it can be read",
        );
    };
    let found = format!("{} free in {folder}", human_bytes(free));
    let level = match free {
        free if free >= enough => return Finding::ok(name, found),
        free if free >= enough / 8 => Level::Warn,
        _ => Level::Missing,
    };
    Finding::bad(name, level, found, format!("make room there: {} will do", human_bytes(enough)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_versions_are_read_and_judged() {
        for (line, version) in [
            ("QEMU emulator version 7.2.15 (Debian 1:7.2+dfsg-7+deb12u12)", Some((7, 2))),
            ("QEMU emulator version 10.0.2", Some((10, 0))),
            ("QEMU emulator version 8.2", Some((8, 2))),
            ("QEMU emulator", None),
            ("version x.y", None),
        ] {
            assert_eq!(parse_version(line), version, "{line}");
        }
        let level = |line: &str| tool_finding(&TOOLS[0], Ok(Some(line.to_owned())), "apt-get install").level;
        assert_eq!(level("QEMU emulator version 6.2.0"), Level::Missing);
        assert_eq!(level("QEMU emulator version 7.0.0"), Level::Ok);
        assert_eq!(level("something else"), Level::Warn);
    }

    #[test]
    fn only_optional_tools_may_be_absent() {
        for tool in &TOOLS {
            let finding = tool_finding(tool, Ok(None), "apt-get install");
            let optional = ["swtpm", "ssh-audit", "ansible", "lynis"].contains(&tool.program);
            let expected = if optional { Level::Warn } else { Level::Missing };
            assert_eq!(finding.level, expected, "{}", tool.program);
            assert_eq!(finding.advice.unwrap(), format!("apt-get install {}", tool.package));
        }
    }

    #[test]
    fn packages_are_named_for_the_system() {
        for (os_release, installer_is) in [
            ("NAME=x\nID=debian\n", "apt-get install"),
            ("ID=ubuntu\nID_LIKE=debian", "apt-get install"),
            ("ID=pop\nID_LIKE=\"ubuntu debian\"", "apt-get install"),
            ("ID=fedora\n", "install Debian's package or its like:"),
            ("", "install Debian's package or its like:"),
        ] {
            assert_eq!(installer(os_release), installer_is, "{os_release}");
        }
    }

    #[test]
    fn the_accelerator_is_the_one_that_a_build_takes() {
        for (flags, device, level) in [
            ("flags\t\t: fpu svm", Ok(()), Level::Ok),
            ("flags\t\t: fpu sse", Ok(()), Level::Warn),
            ("flags\t\t: fpu vmx", Err(io::Error::from(io::ErrorKind::PermissionDenied)), Level::Warn),
        ] {
            let host = accel::Host { cpuinfo: flags.to_owned(), kvm_device: device };
            assert_eq!(accelerator(&host).level, level, "{flags}");
        }
    }

    #[test]
    fn memory_and_space_are_judged() {
        assert_eq!(
            memory_available("MemTotal: 8 kB\nMemAvailable:   24012345 kB\n"),
            Some(24_012_345 * 1024)
        );
        assert_eq!(memory_available("MemTotal: 8 kB\n"), None);
        assert_eq!(memory_finding(4 * GIB).level, Level::Warn);
        let level = |free| space("s", Path::new("/x"), free, 8 * GIB).level;
        assert_eq!(level(Some(8 * GIB)), Level::Ok);
        assert_eq!(level(Some(2 * GIB)), Level::Warn);
        assert_eq!(level(Some(GIB / 2)), Level::Missing);
        assert_eq!(level(None), Level::Warn);
    }

    #[test]
    fn a_folder_that_cannot_be_written_to_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("artifacts");
        std::fs::write(&blocked, "a file in its place").unwrap();
        let finding = place("space for artifacts", &blocked, 1);
        assert_eq!(finding.level, Level::Missing);
        assert!(finding.found.contains("cannot be written to: "), "{}", finding.found);
        assert_eq!(place("s", &folder.path().join("not/yet"), 1).level, Level::Ok);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "the trial leaves no trace");
    }

    #[test]
    fn outside_a_root_is_a_note() {
        let folder = tempfile::tempdir().unwrap();
        let names =
            |here: &Path| places(Some(here)).into_iter().map(|it| (it.name, it.level)).collect::<Vec<_>>();
        assert!(names(folder.path()).contains(&("root".to_owned(), Level::Note)));
        std::fs::create_dir(folder.path().join("templates")).unwrap();
        let inside = names(folder.path());
        assert!(inside.iter().all(|(name, _)| name != "root"), "{inside:?}");
        assert!(inside.iter().any(|(name, _)| name == "space for artifacts"), "{inside:?}");
    }

    #[test]
    fn space_is_measured_where_the_folder_will_be() {
        let folder = tempfile::tempdir().unwrap();
        let later = folder.path().join("not/yet/there");
        assert!(free(&later).is_some_and(|free| free > 0));
        assert!(!later.exists());
    }
}
