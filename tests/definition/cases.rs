//! The golden cases: what each gives to forge, what comes of it, and copies of them to change.

use std::path::{Path, PathBuf};

use forge::definition::{Inputs, Root, check, load, load_profile};
use forge::failure::Failure;
use forge::plan::{Plan, Selection, choose_builder, resolve};

pub(crate) const TEMPLATE: &str = "templates/web/template.toml";

pub(crate) fn golden(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/definition").join(part)
}

pub(crate) fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

/// What a case's `args.txt` gives: `--var a=b`, `--var-file f` and `NAME=value` of the environment.
pub(crate) fn inputs(case: &Path) -> Inputs {
    let mut inputs = Inputs::default();
    for line in std::fs::read_to_string(case.join("args.txt")).unwrap_or_default().lines() {
        if let Some(var) = line.strip_prefix("--var ") {
            let (name, value) = var.split_once('=').unwrap();
            inputs.vars.push((name.to_owned(), value.to_owned()));
        } else if let Some(file) = line.strip_prefix("--var-file ") {
            // Named as a user in the repository's root would: messages repeat it.
            let path = case.join(file);
            let here = Path::new(env!("CARGO_MANIFEST_DIR"));
            inputs.var_files.push(path.strip_prefix(here).unwrap().to_owned());
        } else if let Some((name, value)) = line.split_once('=') {
            inputs.env.insert(name.to_owned(), value.to_owned());
        }
    }
    inputs
}

/// Compares with a committed file, or writes it when asked to.
pub(crate) fn expect(path: &Path, actual: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, actual).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        expected == actual,
        "{} differs (UPDATE_GOLDEN=1 rewrites it); expected:\n{expected}\nactual:\n{actual}",
        path.display()
    );
}

/// The failures of everything in a root: each template, then each profile.
pub(crate) fn failures(case: &Path) -> Vec<Failure> {
    let root = Root::at(case).unwrap();
    let inputs = inputs(case);
    let templates = root.templates().unwrap();
    let mut failures: Vec<Failure> =
        templates.iter().filter_map(|name| check(&root, name, &inputs, &[].into()).err()).collect();
    failures.extend(root.profiles().unwrap().iter().filter_map(|name| load_profile(&root, name).err()));
    failures
}

pub(crate) fn plan_of(case: &Path, name: &str, inputs: &Inputs, selection: &Selection) -> Plan {
    let root = Root::at(case).unwrap();
    let loaded = load(&root, name, inputs).unwrap_or_else(|failure| panic!("{}: {failure}", case.display()));
    let builder = choose_builder(None, &inputs.env, &loaded.definition);
    resolve(&root, loaded, builder, selection).unwrap()
}

pub(crate) fn full() -> Plan {
    let case = golden("good/full");
    plan_of(&case, "web", &inputs(&case), &Selection::default())
}

pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// A checkout elsewhere, with one file changed.
pub(crate) fn changed(file: &str, change: impl Fn(&str) -> String) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy(&golden("good/full"), folder.path());
    let path = folder.path().join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    let new = change(&text);
    assert_ne!(new, text, "nothing to change in {file}");
    std::fs::write(&path, new).unwrap();
    folder
}
