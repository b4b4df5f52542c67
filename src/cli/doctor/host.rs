//! What this machine has of all that building needs.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;

use crate::failure::{Failure, Kind, ResultExt};
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

const TOOLS: [Tool; 5] = [
    Tool { program: "qemu-system-x86_64", version: "--version", package: "qemu-system-x86", only_for: None },
    Tool { program: "qemu-img", version: "--version", package: "qemu-utils", only_for: None },
    Tool { program: "setpriv", version: "--version", package: "util-linux", only_for: None },
    Tool { program: "ssh", version: "-V", package: "openssh-client", only_for: None },
    Tool {
        program: "swtpm",
        version: "--version",
        package: "swtpm",
        only_for: Some("only machines with `tpm = true` need it"),
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
    findings.push(firmware(uefi_firmware(&firmware_folders()).as_deref(), installer));
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let device = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    findings.push(accelerator(&cpu, &device));
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    findings.extend(memory_available(&memory).map(memory_finding));
    // An installer medium is about 3 GiB; a build's disk, its clone and the artifact about 10.
    for (name, folder, enough) in [
        ("space for downloads", cache_folder(), 4 * GIB),
        ("space for builds", runs_folder(), 12 * GIB),
        ("space in /tmp", std::env::temp_dir(), GIB / 4),
    ] {
        findings.push(space(name, &folder, free(&folder), enough));
    }
    Ok((findings, installer))
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

/// Returns the folders with QEMU's firmware descriptors, the first winning
/// (QEMU, `docs/interop/firmware.json`).
fn firmware_folders() -> Vec<PathBuf> {
    let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let config = config.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")));
    let own = config.map(|config| config.join("qemu/firmware"));
    own.into_iter().chain(["/etc/qemu/firmware".into(), "/usr/share/qemu/firmware".into()]).collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Descriptor {
    interface_types: Vec<String>,
    mapping: Mapping,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Mapping {
    executable: Option<Executable>,
}

#[derive(Deserialize)]
struct Executable {
    filename: PathBuf,
}

#[derive(Deserialize)]
struct Target {
    architecture: String,
    machines: Vec<String>,
}

/// Returns the UEFI firmware of a q35 machine that QEMU's firmware descriptors name and that is there.
fn uefi_firmware(folders: &[PathBuf]) -> Option<PathBuf> {
    let mut files: Vec<PathBuf> = Vec::new();
    for folder in folders {
        let entries = folder.read_dir().into_iter().flatten().flatten();
        let mut here: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        here.sort();
        files.extend(here);
    }
    let descriptors = files.iter().filter_map(|file| serde_json::from_reader(File::open(file).ok()?).ok());
    descriptors.filter(|descriptor: &Descriptor| descriptor.fits()).find_map(|descriptor| {
        descriptor.mapping.executable.map(|executable| executable.filename).filter(|file| file.exists())
    })
}

impl Descriptor {
    fn fits(&self) -> bool {
        let machine = |target: &Target| target.machines.iter().any(|name| name.starts_with("pc-q35-"));
        self.interface_types.iter().any(|kind| kind == "uefi")
            && self.targets.iter().any(|target| target.architecture == "x86_64" && machine(target))
    }
}

fn firmware(found: Option<&Path>, installer: &str) -> Finding {
    if let Some(path) = found {
        return Finding::ok("uefi firmware", path.display().to_string());
    }
    let found = "not found; only machines with `firmware = \"uefi\"` need it";
    Finding::install("uefi firmware", Level::Warn, found, installer, "ovmf")
}

/// Tells whether KVM can run guests: the device opens and the CPU has the instructions; the device
/// alone proves nothing.
fn accelerator(cpuinfo: &str, device: &io::Result<File>) -> Finding {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let capable = flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
    let slow = |why: &str, advice: &str| {
        let found = format!("{why}: guests run emulated, about ten times slower");
        Finding::bad("accelerator", Level::Warn, found, advice)
    };
    match (capable, device) {
        (true, Ok(_)) => Finding::ok("accelerator", "KVM"),
        (false, _) => slow(
            "the CPU has neither vmx nor svm",
            "turn on virtualisation in the firmware, or nested virtualisation where this is a guest",
        ),
        (true, Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => slow(
            "/dev/kvm may not be opened",
            "add yourself to its group, `usermod -aG kvm NAME`, and log in again",
        ),
        (true, Err(error)) => {
            slow(&format!("/dev/kvm does not open ({error})"), "load the module kvm_intel or kvm_amd")
        }
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

fn cache_folder() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    cache.unwrap_or_else(std::env::temp_dir).join("forge")
}

/// Returns the folder of the runs: below the nearest folder with `templates/`, else below this one.
fn runs_folder() -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    let root = here.ancestors().find(|folder| folder.join("templates").is_dir()).unwrap_or(&here);
    root.join(".forge/runs")
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
            let expected = if tool.program == "swtpm" { Level::Warn } else { Level::Missing };
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
    fn kvm_needs_the_device_and_the_cpu() {
        let opens = || File::open("/dev/null");
        let refused = || Err(io::Error::from(io::ErrorKind::PermissionDenied));
        let absent = || Err(io::Error::from(io::ErrorKind::NotFound));
        for (flags, device, level, says) in [
            ("flags\t\t: fpu vmx sse", opens(), Level::Ok, "KVM"),
            ("flags\t\t: fpu svm", opens(), Level::Ok, "KVM"),
            ("flags\t\t: fpu vmx_something", opens(), Level::Warn, "neither vmx nor svm"),
            ("flags\t\t: fpu vmx", refused(), Level::Warn, "may not be opened"),
            ("flags\t\t: fpu vmx", absent(), Level::Warn, "does not open"),
            ("", absent(), Level::Warn, "neither vmx nor svm"),
        ] {
            let finding = accelerator(flags, &device);
            assert_eq!(finding.level, level, "{flags}");
            assert!(finding.found.contains(says), "{finding:?}");
        }
    }

    #[test]
    fn firmware_is_found_through_its_descriptor_only_where_the_file_is() {
        let folder = tempfile::tempdir().unwrap();
        let code = folder.path().join("OVMF_CODE_4M.fd");
        let describe = |name: &str, kind: &str, arch: &str, machine: &str| {
            let text = format!(
                r#"{{"interface-types":["{kind}"],"mapping":{{"device":"flash","executable":{{"filename":{code:?}}}}},
                "targets":[{{"architecture":"{arch}","machines":["{machine}"]}}]}}"#
            );
            std::fs::write(folder.path().join(name), text).unwrap();
        };
        let find = || uefi_firmware(&[PathBuf::from("/nonexistent"), folder.path().to_owned()]);
        std::fs::write(folder.path().join("10-broken.json"), "{").unwrap();
        describe("20-bios.json", "bios", "x86_64", "pc-q35-*");
        describe("30-arm.json", "uefi", "aarch64", "virt-*");
        std::fs::write(&code, "").unwrap();
        assert_eq!(find(), None);
        describe("40-uefi.json", "uefi", "x86_64", "pc-q35-*");
        assert_eq!(find(), Some(code.clone()));
        std::fs::remove_file(&code).unwrap();
        assert_eq!(find(), None);
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
    fn space_is_measured_where_the_folder_will_be() {
        let folder = tempfile::tempdir().unwrap();
        let later = folder.path().join("not/yet/there");
        assert!(free(&later).is_some_and(|free| free > 0));
        assert!(!later.exists());
    }
}
