//! Definitions that are refused, and what a person reads then.

use std::path::Path;

use forge::definition::{Inputs, Root, check, diagnostics, load, load_profile};
use forge::failure::Kind;

use crate::cases::{expect, failures, folders, golden};

/// What a person sees of a case.
fn message(case: &Path) -> String {
    let mut failures = failures(case).into_iter();
    let Some(first) = failures.next() else { return String::new() };
    let mut all = diagnostics(&first).unwrap_or_else(|| panic!("{}: {first:?}", case.display())).clone();
    for failure in failures {
        all.append(diagnostics(&failure).unwrap().clone());
    }
    format!("{all}\n")
}

#[test]
fn bad_definitions_say_what_is_wrong() {
    let cases = folders(&golden("bad"));
    assert!(cases.len() >= 30, "only {} bad definitions", cases.len());
    for case in cases {
        let message = message(&case);
        assert!(!message.is_empty(), "{} is not refused", case.display());
        assert!(!message.contains("hunter2"), "{} shows a secret:\n{message}", case.display());
        expect(&case.join("expected.txt"), &message);
    }
}

/// Returns what a person reads about the template `x` of a root that `prepare` fills.
fn refused(prepare: impl FnOnce(&Path)) -> String {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(root.path().join("templates/x")).unwrap();
    prepare(&root.path().join("templates"));
    let failure = check(&Root::at(root.path()).unwrap(), "x", &Inputs::default(), &[].into()).unwrap_err();
    diagnostics(&failure).unwrap().to_string()
}

#[test]
fn what_is_no_definition_is_refused_before_it_is_read() {
    let pipe = refused(|templates| {
        let made = std::process::Command::new("mkfifo").arg(templates.join("x/template.toml")).status();
        assert!(made.unwrap().success());
    });
    assert!(pipe.contains("it is a pipe, a socket or a device, not a file"), "{pipe}");
    let large = refused(|templates| {
        let file = std::fs::File::create(templates.join("x/template.toml")).unwrap();
        file.set_len(300 << 20).unwrap();
    });
    assert!(large.contains("it has 300 MiB, and forge reads at most 4") && large.len() < 1000, "{large}");
}

#[test]
fn a_long_row_of_templates_is_refused() {
    let message = refused(|templates| {
        for index in 0..400 {
            let name = if index == 0 { "x".to_owned() } else { format!("t{index}") };
            std::fs::create_dir_all(templates.join(&name)).unwrap();
            let text = format!("schema = 1\nabstract = true\nextends = \"t{}\"\n", index + 1);
            std::fs::write(templates.join(name).join("template.toml"), text).unwrap();
        }
    });
    assert!(message.contains("the 16th template in a row"), "{message}");
}

#[test]
fn what_is_not_there_is_named_with_what_is() {
    let root = Root::find(&golden("good/full/templates/web")).unwrap();
    assert_eq!(root, Root::at(&golden("good/full")).unwrap());
    let failure = load(&root, "wbe", &Inputs::default()).unwrap_err();
    assert_eq!((failure.kind, failure.hints), (Kind::Usage, vec!["did you mean `web`?".to_owned()]));
    let failure = load(&root, "base", &Inputs::default()).unwrap_err();
    assert_eq!(failure.kind, Kind::Usage);
    assert!(failure.to_string().contains("abstract"), "{failure}");
    assert!(load_profile(&root, "qemu").is_ok(), "the local builder is there without a file");
    assert_eq!(load_profile(&root, "rak").unwrap_err().hints, ["did you mean `rack`?"]);
    let nowhere = tempfile::tempdir().unwrap();
    assert_eq!(Root::find(nowhere.path()).unwrap_err().kind, Kind::Usage);
}
