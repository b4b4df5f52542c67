//! Files that are cut or have other bytes in them: forge never panics.

use std::collections::BTreeSet;
use std::path::Path;

use forge::definition::{Inputs, Root, check, diagnostics, load_profile};

use crate::cases::{copy, folders, golden};

/// A small generator, so that the test is the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }
}

/// Every golden definition, cut at every byte and with bytes changed: no panic, and what is found
/// can be drawn.
#[test]
fn broken_files_never_panic() {
    let mut random = Random(0x2545_F491_4F6C_DD1D);
    let mut broken = BTreeSet::new();
    for text in golden_definitions() {
        broken.extend((0..text.len()).map(|cut| text[..cut].to_vec()));
        broken.extend((0..8).map(|_| {
            let mut bytes = text.clone();
            for _ in 0..=random.below(3) {
                let at = random.below(bytes.len());
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = u8::try_from(random.below(256)).unwrap();
                }
            }
            bytes
        }));
    }
    let broken: Vec<Vec<u8>> = broken.into_iter().collect();
    std::thread::scope(|scope| {
        for part in broken.chunks(broken.len().div_ceil(4)) {
            scope.spawn(|| check_each(part));
        }
    });
}

fn golden_definitions() -> Vec<Vec<u8>> {
    let mut files = Vec::new();
    for case in folders(&golden("bad")).into_iter().chain(folders(&golden("good"))) {
        for template in folders(&case.join("templates")) {
            files.extend(std::fs::read(template.join("template.toml")).ok());
        }
    }
    files.sort();
    files.dedup();
    files
}

fn check_each(files: &[Vec<u8>]) {
    let folder = tempfile::tempdir().unwrap();
    let template = folder.path().join("templates/x/template.toml");
    std::fs::create_dir_all(template.parent().unwrap()).unwrap();
    let root = Root::at(folder.path()).unwrap();
    for (count, bytes) in files.iter().enumerate() {
        write_new(&template, bytes);
        let failure = check(&root, "x", &Inputs::default(), &[].into()).err();
        if let Some(found) = failure.as_ref().filter(|_| count % 16 == 0).and_then(diagnostics) {
            assert!(!found.to_string().is_empty());
        }
    }
}

/// Writes a file anew: ext4 flushes one that is cut and written over, thousands of times here.
fn write_new(path: &Path, bytes: &[u8]) {
    let _gone = std::fs::remove_file(path);
    std::fs::write(path, bytes).unwrap();
}

/// The same for the other files that a user writes.
#[test]
fn broken_seeds_profiles_and_variables_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    copy(&golden("good/full"), folder.path());
    let root = Root::at(folder.path()).unwrap();
    let var_files = ["vars.toml", "vars.json"].map(|name| folder.path().join(name));
    std::fs::write(&var_files[0], "mirror = \"http://é\"\nconsole_password = \"\"\"x\ny\"\"\"\n").unwrap();
    std::fs::write(
        &var_files[1],
        "{\"mem\": 4096, \"mirr\\u00e9r\": [\"é\"], \"console_password\":\n \"\\u00e9\"}",
    )
    .unwrap();
    let inputs = Inputs { var_files: var_files.into(), ..Inputs::default() };
    for file in ["http/base/autoinstall.yaml.j2", "builders/rack.toml", "vars.toml", "vars.json"] {
        let path = folder.path().join(file);
        let whole = std::fs::read(&path).unwrap();
        for cut in (0..whole.len()).step_by(7) {
            write_new(&path, &whole[..cut]);
            let found = check(&root, "web", &inputs, &[].into()).err();
            let profile = load_profile(&root, "rack").err();
            for failure in found.iter().chain(&profile) {
                assert!(!diagnostics(failure).unwrap().to_string().is_empty());
            }
        }
        std::fs::write(&path, whole).unwrap();
    }
}
