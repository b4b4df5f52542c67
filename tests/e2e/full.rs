//! What takes longer than a push waits for (`make e2e-full`, for a nightly run).

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::build::{folder, forge, root, run, simulator};
use crate::local::{manifest, standin};
use crate::report::assert_holds;

/// Returns a folder for an artifact, which is not there yet.
fn fresh(name: &str) -> PathBuf {
    let out = folder("full").join(name);
    let _none_yet = fs::remove_dir_all(&out);
    out
}

/// Runs forge with the stand-in medium; it must succeed.
fn succeed(verb: &str, args: &[&str]) {
    let build = standin(verb, args);
    assert_eq!(build.exit_code, Some(0), "{}", build.stderr);
    println!("{verb} {} in {:.0} s", args.join(" "), build.wall.as_secs_f64());
}

#[test]
#[ignore = "make e2e-full"]
fn two_builds_of_a_plan_are_alike_and_lynis_finds_a_clone_hardened() {
    let (one, two) = (fresh("one"), fresh("two"));
    let paths = [one.display().to_string(), two.display().to_string()];
    for path in &paths {
        succeed("build", &["--out", path]);
    }
    let (first, second) = (manifest(&one), manifest(&two));
    assert_eq!(first.plan, second.plan);
    assert_eq!(first.packages, second.packages);
    let names = |manifest: &forge::artifact::Manifest| {
        let named = manifest.checks.iter().map(|check| (check.at.clone(), check.name.clone(), check.passed));
        named.collect::<Vec<_>>()
    };
    assert_eq!(names(&first), names(&second));
    println!("two builds: {} checks alike, {} packages alike", first.checks.len(), first.packages.len());

    succeed(
        "prove",
        &["--artifact", &paths[0], "--contract", "valaskjalf-master", "--quick", "--var", "audits=lynis"],
    );
    let lynis = manifest(&one).audits.into_iter().find(|audit| audit.audit == "lynis").expect("Lynis' audit");
    println!("Lynis {} in a clone: {}, {:#?}", lynis.version, lynis.figure, lynis.remarks);
    assert!(lynis.passed && lynis.figure >= 70);
}

#[test]
#[ignore = "make e2e-full"]
fn the_uefi_variant_holds_to_its_contract() {
    let out = fresh("uefi");
    let path = out.display().to_string();
    let variables = ["firmware=uefi", "vmid=90002", "name=pkr-ubuntu-noble-1-uefi"];
    let variables: Vec<_> = variables.iter().flat_map(|variable| ["--var", variable]).collect();
    succeed("build", &[variables.as_slice(), &["--out", &path]].concat());
    let built = manifest(&out);
    assert_eq!((built.vmid, built.name.as_str()), (90002, "pkr-ubuntu-noble-1-uefi"));
    assert_holds(&built);
}

#[test]
#[ignore = "make e2e-full"]
fn a_template_on_a_node_holds_to_all_contracts() {
    let out = fresh("node");
    // One after the other in the same homelab.
    let script = "\"$1\" build ubuntu-noble --on sim --promote --output json --out \"$2\" --var audits=ssh-audit,ansible
        \"$1\" prove ubuntu-noble --on sim --artifact \"$2\" --all --output json --var audits=ssh-audit,ansible";
    let mut command = Command::new(root().join("tests/pve/homelab"));
    command.env("FORGE_HOMELAB_RECORD", folder("full-node")).arg(simulator());
    command.args(["sh", "-euc", script, "sh"]).arg(forge()).arg(&out);
    let build = run(command);
    assert_eq!(build.exit_code, Some(0), "{}", build.stderr);
    println!("built and proven in {:.0} s", build.wall.as_secs_f64());
    let manifest = manifest(&out);
    let full: BTreeMap<_, _> =
        manifest.proofs.iter().map(|proof| (proof.contract.as_str(), proof.full)).collect();
    let expected = [
        ("config-drive", false),
        ("k3s-server", true),
        ("valaskjalf-master", true),
        ("valaskjalf-worker", true),
    ];
    assert_eq!(full, BTreeMap::from(expected));
    assert_holds(&manifest);
}
