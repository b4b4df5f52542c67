//! Machines with more than a disk and SeaBIOS.

use std::fs;

use serde_json::json;

use crate::process::descendants;
use crate::root::{Root, sha256};

/// What the firmware's variables begin with as they are delivered.
const FRESH: &str = "as delivered";

/// The machines of a build.
const MACHINES: [&str; 4] = ["install", "guest", "proof", "config-drive"];

/// Gives a root an OVMF of its own, and returns the path and the content of its variables.
fn ovmf(root: &Root) -> (std::path::PathBuf, Vec<u8>) {
    let folder = root.path("config/qemu/firmware");
    fs::create_dir_all(&folder).unwrap();
    let [code, vars] = ["code.fd", "vars.fd"].map(|name| root.path(name));
    let content = [format!("{FRESH:16}").into_bytes(), vec![0xff; 4096]].concat();
    fs::write(&code, [0x90; 4096]).unwrap();
    fs::write(&vars, &content).unwrap();
    let descriptor = json!({
        "description": "stand-in", "interface-types": ["uefi"], "tags": [], "features": ["acpi-s3"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": code, "format": "raw"},
            "nvram-template": {"filename": vars, "format": "raw"},
        },
        "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
    });
    // Before those of the system, which are taken in the order of their names.
    fs::write(folder.join("00-first.json"), descriptor.to_string()).unwrap();
    (vars, content)
}

/// Builds `mini` with such a machine and returns what its machines have said on their consoles.
fn consoles(root: &Root, args: &[&str]) -> [String; 4] {
    let config = root.path("config");
    let mut build = root.start(&[("XDG_CONFIG_HOME", config.to_str().unwrap())], args);
    build.wait_for_step("step:greet");
    let family = descendants(build.pid());
    build.finish().assert_code(0);
    root.assert_whole("mini");
    root.assert_nothing_left();
    root.assert_nothing_runs(&family);
    MACHINES.map(|machine| root.serial_log(machine))
}

#[test]
fn each_machine_with_uefi_has_fresh_variables_and_leaves_none() {
    let root = Root::new();
    let (vars, delivered) = ovmf(&root);
    for console in consoles(&root, &["--var", "firmware=uefi"]) {
        let fresh = format!("UEFI variables: {FRESH}");
        assert!(console.contains(&fresh), "{console}");
    }
    assert_eq!(sha256(&fs::read(vars).unwrap()), sha256(&delivered), "the delivered variables have changed");
    let arguments = root.arguments("guest");
    let code = format!("filename={},read-only=on", root.path("code.fd").display());
    assert!(arguments.iter().any(|it| it.contains(&code)), "{arguments:#?}");
}

#[test]
fn a_machine_with_a_tpm_has_one_in_each_life_and_leaves_none() {
    let root = Root::new();
    ovmf(&root);
    for console in consoles(&root, &["--var", "firmware=uefi", "--var", "tpm=true"]) {
        assert!(console.contains("TPM: 16 random bytes"), "{console}");
    }
}
