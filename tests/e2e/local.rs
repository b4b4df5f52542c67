//! Builds on this machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cyclonedx_bom::models::bom::{Bom, SpecVersion};
use cyclonedx_bom::validation::Validate as _;
use forge::artifact::{MANIFEST_VERSION, Manifest};
use forge::event::{Outcome, Worker};
use serde_json::Value;

use crate::build::{Build, MEMORY_MAX_KIB, folder, forge, large_medium, root, run};
use crate::report::assert_promised;

/// Runs a verb of forge's on `ubuntu-noble`, with the stand-in medium. Lynis is left to `make e2e-full`.
pub(crate) fn standin(verb: &str, args: &[&str]) -> Build {
    let mut command = Command::new(root().join("tests/standin"));
    command.arg(forge()).arg("-C").arg(root()).args([verb, "ubuntu-noble", "--output", "json"]);
    command.args(["--var", "audits=ssh-audit,ansible"]).args(args);
    run(command)
}

fn build(args: &[&str]) -> Build {
    standin("build", args)
}

/// Reads the manifest of an artifact.
pub(crate) fn manifest(out: &Path) -> Manifest {
    let text = fs::read_to_string(out.join("manifest.json")).expect("a manifest");
    serde_json::from_str(&text).expect("a manifest")
}

#[test]
fn a_medium_becomes_a_proven_template() {
    let (medium, digest) = large_medium();
    let out = folder("artifact").join("ubuntu-noble");
    let _none_yet = fs::remove_dir_all(&out);
    let variables = [format!("iso={}", medium.display()), format!("iso_sha256={digest}")];
    let build = build(&["--var", &variables[0], "--var", &variables[1], "--out", &out.display().to_string()]);
    assert_eq!(build.exit_code, Some(0), "{}", build.stderr);
    let (outcome, seconds, spans) = build.finished();
    assert!(matches!(outcome, Outcome::Done));
    println!("built in {seconds:.0} s, {} KiB at the most", build.memory_kib);

    // The timeline: no gaps, and nearly none of it is forge's own.
    let sum: f64 = spans.iter().map(|span| span.seconds).sum();
    assert!((sum - seconds).abs() < 0.01 * seconds, "the spans sum to {sum:.1} of {seconds:.1} s");
    let own: f64 = spans.iter().filter(|span| span.worker == Worker::Forge).map(|span| span.seconds).sum();
    println!("of that {own:.2} s are forge's own");
    assert!(own < 2.0, "forge's own time is {own:.2} s");
    assert!(seconds <= build.wall.as_secs_f64());

    // Memory, while a 3 GB medium was hashed and a disk exported.
    assert!(build.memory_kib > 0 && build.memory_kib < MEMORY_MAX_KIB, "{} KiB", build.memory_kib);

    // The seed arrived over HTTP and the installer reported.
    let notes = build.notes().join("\n");
    assert!(notes.contains("installer fetched autoinstall.yaml after"), "{notes}");

    let manifest = manifest(&out);
    assert_eq!((manifest.vmid, manifest.name.as_str()), (90001, "pkr-ubuntu-noble-1"));
    assert!(manifest.inputs.iter().any(|input| input.sha256 == digest));
    assert!(manifest.packages.iter().any(|package| package.name == "qemu-guest-agent"));
    let failed: Vec<_> = manifest.checks.iter().filter(|check| !check.passed).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for check in &manifest.checks {
        *places.entry(&check.at).or_default() += 1;
    }
    println!("checks that hold: {places:?}");
    assert!(places["build"] >= 20 && places["valaskjalf-master"] >= 28, "{places:?}");

    for name in ["no secret is left in the guest", "no secret is left on the disk"] {
        assert!(manifest.checks.iter().any(|check| check.at == "build" && check.name == name), "{name}");
    }

    // What other tools read of its packages.
    let sbom = manifest.sbom.as_ref().expect("a software bill of materials");
    let bill = fs::File::open(out.join(&sbom.file)).expect("a software bill of materials");
    let bill = Bom::parse_from_json(bill).expect("a CycloneDX bill");
    let judged = bill.validate_version(SpecVersion::V1_5);
    assert!(judged.passed(), "{judged:#?}");
    let components = bill.components.expect("components").0;
    assert_eq!(components.len(), manifest.packages.len() + 1);
    assert!(components[1..].iter().all(|it| it.supplier.is_some() && it.purl.is_some()));

    // The manifest's own facts, and the logs beside it.
    assert_eq!(manifest.format, MANIFEST_VERSION);
    assert!(manifest.plan.starts_with("sha256:") && !manifest.spans.is_empty());
    assert_eq!(manifest.forge.version, env!("CARGO_PKG_VERSION"));
    assert!(manifest.revision.is_some(), "no git revision");
    assert!(out.join("logs/events.jsonl").exists() && out.join("logs/install/serial.log").exists());

    // The medium came first and unwritable; the installed system saw nothing of it, nor of the seed.
    let args = |machine: &str| {
        let listing = build.folder().join(machine).join("qemu.args");
        fs::read_to_string(&listing).unwrap_or_else(|error| panic!("{}: {error}", listing.display()))
    };
    let first_cd = args("install").lines().find(|line| line.contains("node-name=cd0")).map(str::to_owned);
    let first_cd = first_cd.expect("a first CD");
    assert!(
        first_cd.contains(&medium.display().to_string()) && first_cd.ends_with("read-only=on"),
        "{first_cd}"
    );
    assert!(args("install").contains("-smbios") && args("install").contains("seed.iso"));
    for trace in ["-smbios", "ide-cd", ".iso"] {
        assert!(!args("guest").contains(trace), "{trace} in {}", args("guest"));
    }

    // What lies there is whole, alone, and tells no secrets.
    assert_eq!(
        manifest.disk.as_ref().expect("a disk").size,
        fs::metadata(out.join("disk.qcow2")).expect("a disk").len()
    );
    let siblings: Vec<_> =
        fs::read_dir(out.parent().expect("a parent")).expect("a folder").flatten().collect();
    assert_eq!(siblings.len(), 1, "{siblings:?}");
    assert!(!build.folder().join("work").exists());
    let token = token_of(&build.folder());
    assert!(token.is_none(), "the build's URL is in {token:?}");
    hold_to_contracts(&out);
}

/// Holds an artifact to all its contracts: the master's in full, the others' by a first boot each.
fn hold_to_contracts(artifact: &Path) {
    let path = artifact.display().to_string();
    let others = "valaskjalf-worker,k3s-server,config-drive";
    for args in [
        ["--contract", "valaskjalf-master"].as_slice(),
        &["--contract", others, "--quick", "--parallel", "2"],
    ] {
        let proof = standin("prove", &[args, &["--artifact", &path]].concat());
        assert_eq!(proof.exit_code, Some(0), "{}", proof.stderr);
        println!("held to {} in {:.0} s", args[1], proof.wall.as_secs_f64());
    }
    let manifest = manifest(artifact);
    for proof in &manifest.proofs {
        println!("{}: {}", proof.contract, proof.scaled.join("; "));
    }
    let full: BTreeMap<_, _> =
        manifest.proofs.iter().map(|proof| (proof.contract.as_str(), proof.full)).collect();
    let expected = [
        ("config-drive", false),
        ("k3s-server", false),
        ("valaskjalf-master", true),
        ("valaskjalf-worker", false),
    ];
    assert_eq!(full, BTreeMap::from(expected));
    for audit in &manifest.audits {
        println!("{} {}: {} failures, {:?}", audit.audit, audit.version, audit.figure, audit.remarks);
    }
    let audits: BTreeMap<_, _> =
        manifest.audits.iter().map(|audit| (audit.audit.as_str(), (audit.figure, audit.passed))).collect();
    assert_eq!(audits, BTreeMap::from([("ansible", (0, true)), ("ssh-audit", (0, true))]));
    assert_promised(&manifest);
}

/// Returns the first file of a run's evidence in which an unguessable path stands.
fn token_of(folder: &Path) -> Option<PathBuf> {
    let pattern = regex::bytes::Regex::new(r"10\.0\.2\.2:[0-9]+/[A-Za-z0-9]{20}").expect("a pattern");
    for entry in fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        let found = if path.is_dir() {
            token_of(&path)
        } else {
            fs::read(&path).ok().filter(|bytes| pattern.is_match(bytes)).map(|_| path)
        };
        // What the installer itself sends is its own evidence, and holds what it was told.
        if found.as_ref().is_some_and(|path| !path.to_string_lossy().contains("installer-logs")) {
            return found;
        }
    }
    None
}

#[test]
fn an_installer_that_fails_is_diagnosed() {
    let out = folder("failed").join("ubuntu-noble");
    // Nothing listens there: the installer tests its mirror, and gives up as it is told to.
    let build = build(&["--var", "mirror=http://10.0.2.2:9/", "--out", &out.display().to_string()]);
    assert_eq!(build.exit_code, Some(13), "{}", build.stderr);
    assert!(build.stderr.contains("the installer failed in"), "{}", build.stderr);
    assert!(build.stderr.contains("the mirror must answer in the guest's network"), "{}", build.stderr);
    let folder = build.folder();
    assert!(folder.join("install.png").exists(), "no screenshot of the console");
    assert!(folder.join("installer-logs").read_dir().is_ok_and(|mut logs| logs.next().is_some()));
    assert!(!out.exists());
    let events = fs::read_to_string(folder.join("events.jsonl")).expect("a journal");
    let last: Value = serde_json::from_str(events.lines().last().expect("events")).expect("JSON");
    assert_eq!(last["event"], "run_finished");
}
