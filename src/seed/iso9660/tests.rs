use std::path::Path;
use std::process::Command;

use sha2::{Digest, Sha256};

use super::*;
use crate::testing::tool;

fn sample(label: &str) -> Vec<u8> {
    let long = "x".repeat(NAME_MAX);
    volume(
        label,
        &[
            ("user-data", b"#cloud-config\n"),
            ("meta-data", b""),
            ("network-config", &[b'n'; 5000]),
            ("openstack/latest/meta_data.json", b"{}"),
            ("openstack/latest/user_data", b"u"),
            ("openstack/content/0000", b"auto lo\n"),
            (&long, b"long"),
        ],
    )
    .unwrap()
}

/// Runs a tool and returns what it prints.
fn run(tool: &mut Command) -> String {
    let output = tool.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{tool:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn written(image: &[u8]) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("volume.iso");
    std::fs::write(&path, image).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (folder, path)
}

#[test]
fn the_bytes_are_the_same_each_time() {
    let digest = Sha256::digest(sample("CIDATA"));
    let hex = format!("{:x}", bytes::Bytes::copy_from_slice(&digest));
    assert_eq!(hex, "f41242676f53e8484cf7f0967345e3b9fe6a5c91932a70a3eef78d07543ccde5");
    assert_eq!(sample("CIDATA").len() % SECTOR, 0);
}

#[test]
fn the_order_of_the_files_does_not_matter() {
    let one = volume("X", &[("a", b"1"), ("b/c", b"2")]).unwrap();
    let two = volume("X", &[("b/c", b"2"), ("a", b"1")]).unwrap();
    assert!(one == two);
}

#[test]
fn blkid_reports_exactly_the_label() {
    for label in ["CIDATA", "cidata", "config-2"] {
        let (_folder, path) = written(&sample(label));
        let text = run(tool("blkid", "util-linux").args(["-p", "-o", "export", &path]));
        assert!(text.lines().any(|line| line == format!("LABEL={label}")), "{text}");
        assert!(text.lines().any(|line| line == "TYPE=iso9660"), "{text}");
    }
}

#[test]
fn xorriso_sees_all_files_and_no_fault() {
    let (folder, path) = written(&sample("CIDATA"));
    let out = folder.path().join("out");
    let out_text = out.to_str().unwrap();
    let args = ["-osirrox", "on", "-indev", &path, "-extract", "/", out_text, "-report_about", "ALL"];
    run(tool("xorriso", "xorriso").args(args));
    compare(&out);
    run(Command::new("chmod").args(["-R", "u+w", out_text]));
}

fn compare(folder: &Path) {
    let read = |path: &str| std::fs::read(folder.join(path)).unwrap();
    assert_eq!(read("user-data"), b"#cloud-config\n");
    assert_eq!(read("meta-data"), b"");
    assert_eq!(read("network-config"), [b'n'; 5000]);
    assert_eq!(read("openstack/latest/meta_data.json"), b"{}");
    assert_eq!(read("openstack/content/0000"), b"auto lo\n");
    assert_eq!(read(&"x".repeat(NAME_MAX)), b"long");
    let names = std::fs::read_dir(folder).unwrap().count();
    assert_eq!(names, 5);
}

/// Linux itself, with Rock Ridge and with Joliet alone.
#[test]
fn linux_mounts_it() {
    let (folder, path) = written(&sample("CIDATA"));
    if let Err(reason) = can_mount(&path) {
        eprintln!("NOT SHOWN: {reason}, so the kernel has not read this volume");
        return;
    }
    let point = folder.path().join("mnt");
    std::fs::create_dir(&point).unwrap();
    let point_text = point.to_str().unwrap();
    for options in ["loop,ro", "loop,ro,norock"] {
        run(tool("mount", "mount").args(["-t", "iso9660", "-o", options, &path, point_text]));
        let compared = std::panic::catch_unwind(|| compare(&point));
        run(tool("umount", "mount").arg(point_text));
        compared.unwrap();
    }
}

/// Tells whether this process can mount a volume here at all, or why it cannot.
fn can_mount(volume: &str) -> Result<(), &'static str> {
    const CAP_SYS_ADMIN: u32 = 21;
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    if u64::from_str_radix(capabilities.trim(), 16).unwrap() >> CAP_SYS_ADMIN & 1 == 0 {
        return Err("mounting takes root");
    }
    let knows = || std::fs::read_to_string("/proc/filesystems").unwrap().contains("\tiso9660\n");
    // Mounting would load the module as well; there may be none, nor a modprobe.
    if !knows() && (Command::new("modprobe").args(["--quiet", "iso9660"]).status().is_err() || !knows()) {
        return Err("this kernel has no ISO 9660");
    }
    let losetup = || tool("losetup", "mount");
    let attached = losetup().args(["--find", "--show", "--read-only", volume]).output().unwrap();
    if !attached.status.success() {
        return Err("there are no loop devices here");
    }
    run(losetup().args(["--detach", String::from_utf8_lossy(&attached.stdout).trim()]));
    Ok(())
}

#[test]
fn what_readers_would_show_differently_is_refused() {
    for label in ["", "seventeen-letters", "two words", "ä", "a/b"] {
        assert!(matches!(volume(label, &[]), Err(VolumeError::Label { .. })), "{label}");
    }
    let long = "x".repeat(NAME_MAX + 1);
    for path in ["", "/a", "a/", "a//b", ".", "a/../b", "a b", "é", "a\0", "1/2/3/4/5/6/7/8/9", &long] {
        assert!(matches!(volume("X", &[(path, b"")]), Err(VolumeError::Path { .. })), "{path}");
    }
    for files in [["a", "a"], ["a", "a/b"], ["a/b", "a"]] {
        let files = files.map(|path| (path, b"".as_slice()));
        assert!(matches!(volume("X", &files), Err(VolumeError::Twice { .. })), "{files:?}");
    }
    let large = vec![0; CONTENT_MAX + 1];
    assert!(matches!(volume("X", &[("a", &large)]), Err(VolumeError::TooMuch { .. })));
}

#[test]
fn many_files_of_one_short_name_stay_apart() {
    let names: Vec<String> =
        (0..FILES_MAX).map(|number| format!("the-same-long-beginning-{number}")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), name.as_bytes())).collect();
    let (_folder, path) = written(&volume("MANY", &files).unwrap());
    let text = run(tool("xorriso", "xorriso").args(["-indev", &path, "-find", "/", "-type", "f"]));
    assert_eq!(text.lines().filter(|line| line.contains("the-same-long-beginning-")).count(), FILES_MAX);
}
