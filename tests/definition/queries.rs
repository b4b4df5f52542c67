//! What the forge binary answers: `validate`, `list`, `plan` and `schema`.

use std::path::Path;

use forge::failure::Kind;

use crate::cases::{copy, expect, full, golden};

/// How a command ended, and what it said on standard error.
struct End {
    code: Option<i32>,
    stderr: String,
}

/// Runs forge and returns what it prints with how it ends.
fn forge(arguments: &[&str]) -> (String, End) {
    let output =
        std::process::Command::new(env!("CARGO_BIN_EXE_forge")).args(arguments).env_clear().output().unwrap();
    let end = End { code: output.status.code(), stderr: String::from_utf8(output.stderr).unwrap() };
    (String::from_utf8(output.stdout).unwrap(), end)
}

fn root_of(case: &str) -> String {
    golden(case).to_str().unwrap().to_owned()
}

#[test]
fn validate_says_ok_or_everything_that_is_wrong() {
    let (out, end) = forge(&["validate", "-C", &root_of("good/full")]);
    assert_eq!(end.code, Some(0), "{}", end.stderr);
    assert_eq!(
        out,
        "ok  template  base  abstract: only serves to be extended\nok  template  web\nok  builder   rack\n"
    );

    let (out, end) = forge(&["validate", "-C", &root_of("bad/extends-broken-parent")]);
    assert_eq!(
        out,
        "wrong  template  base  2 errors in 1 file\nwrong  template  x     4 errors in 2 files\n"
    );
    assert_eq!(end.code, Some(Kind::Definition.exit_code().into()));
    assert!(end.stderr.contains("4 errors in 2 files"), "shared errors count once: {}", end.stderr);

    let (out, end) = forge(&["validate", "-C", &root_of("bad/bad-sha256"), "--format", "json"]);
    let answer: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_ne!(end.code, Some(0));
    assert_eq!(answer["valid"], false);
    let error = &answer["templates"][0]["errors"][0];
    assert_eq!(
        (&error["file"], &error["line"], &error["column"]),
        (&"templates/x/template.toml".into(), &10.into(), &10.into())
    );
}

#[test]
fn diagnostics_in_json_say_what_to_do() {
    let (out, _) = forge(&["validate", "-C", &root_of("bad/unknown-keys"), "--format", "json"]);
    let answer: serde_json::Value = serde_json::from_str(&out).unwrap();
    let error = &answer["templates"][0]["errors"][0];
    assert!(error["help"].as_str().is_some_and(|help| !help.is_empty()), "{error}");
}

#[test]
fn two_templates_with_one_vmid_are_refused_with_both_places() {
    let folder = tempfile::tempdir().unwrap();
    copy(&golden("good/full"), folder.path());
    let root = folder.path().to_str().unwrap();
    let second = folder.path().join("templates/web2/template.toml");
    std::fs::create_dir(second.parent().unwrap()).unwrap();
    let wrong = Some(Kind::Definition.exit_code().into());
    for (own, place, help) in [
        ("", "templates/web/template.toml:", "set `template.vmid` in templates/web2/template.toml"),
        (
            "[template]\nvmid = 9001\n",
            "templates/web2/template.toml:4:8",
            "stands at templates/web/template.toml:",
        ),
    ] {
        std::fs::write(&second, format!("schema = 1\nextends = \"web\"\n{own}")).unwrap();
        let (out, end) = forge(&["validate", "-C", root]);
        assert_eq!(end.code, wrong, "{}", end.stderr);
        assert!(end.stderr.contains("`web` and `web2` have the same VMID 9001"), "{}", end.stderr);
        assert!(end.stderr.contains(place) && end.stderr.contains(help), "{}", end.stderr);
        assert!(out.contains("ok     template  web\nwrong  template  web2"), "{out}");
        assert_eq!(forge(&["validate", "-C", root, "web2"]).1.code, Some(0), "alone it holds");
        let (_, end) = forge(&["build", "web", "web2", "-C", root]);
        assert_eq!(end.code, wrong, "{}", end.stderr);
        assert!(end.stderr.contains("`web` and `web2` have the same VMID 9001"), "{}", end.stderr);
    }
    std::fs::write(&second, "schema = 1\nextends = \"web\"\n[template]\nvmid = 9002\n").unwrap();
    assert_eq!(forge(&["validate", "-C", root]).1.code, Some(0));
}

#[test]
fn an_environment_variable_that_no_template_takes_is_warned_of_once() {
    let folder = tempfile::tempdir().unwrap();
    copy(&golden("good/full"), folder.path());
    let said = |arguments: &[&str], name: &str, value: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_forge"));
        command.args(arguments).arg("-C").arg(folder.path()).env_clear().env(name, value);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for arguments in [&["validate"][..], &["list"], &["plan", "web"], &["validate", "web"]] {
        let (code, stderr) = said(arguments, "FORGE_VAR_MIROR", "hunter2");
        assert_eq!(
            (code, stderr.as_str()),
            (
                Some(0),
                "warning: FORGE_VAR_MIROR names no variable of any template here; \
                 did you mean `FORGE_VAR_MIRROR`?\n"
            ),
            "{arguments:?}"
        );
        assert_eq!(said(arguments, "FORGE_VAR_MIRROR", "http://x.example/").1, "", "{arguments:?}");
    }
    // `web` takes it; that `base` does not is no matter.
    assert_eq!(said(&["validate", "base"], "FORGE_VAR_PORT", "2200").1, "");
    assert!(said(&["list"], "FORGE_VAR_QQQ", "x").1.ends_with("; it has no effect\n"));
    // What cannot be read may be what takes it.
    std::fs::write(folder.path().join("templates/base/template.toml"), "=").unwrap();
    assert!(!said(&["list"], "FORGE_VAR_QQQ", "x").1.contains("warning"));
}

#[test]
fn a_query_that_has_no_answer_prints_the_failure_as_json() {
    let schema = forge::report::failure_schema();
    expect(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("schema/failure.schema.json"),
        &format!("{schema:#}\n"),
    );
    let validator = jsonschema::validator_for(&schema).unwrap();
    let events = jsonschema::validator_for(&forge::report::events_schema()).unwrap();
    let good = root_of("good/full");
    let bad = root_of("bad/unknown-keys");
    for (arguments, kind, hints) in [
        (&["plan", "wbe", "-C", &good, "--format", "json"][..], Kind::Usage, true),
        (&["plan", "x", "-C", &bad, "--format", "json"], Kind::Definition, false),
        (&["validate", "wbe", "-C", &good, "--format", "json"], Kind::Usage, true),
        (&["list", "-C", "/nonexistent", "--format", "json"], Kind::Usage, false),
        (&["doctor", "-C", "/nonexistent", "--format", "json"], Kind::Usage, false),
        (&["build", "x", "-C", &bad, "--output", "json"], Kind::Definition, false),
        (&["build", "wbe", "-C", &good, "--output", "json"], Kind::Usage, true),
        (&["build", "x", "-C", "/nonexistent", "--output", "json"], Kind::Usage, false),
    ] {
        let (out, end) = forge(arguments);
        let document: serde_json::Value =
            serde_json::from_str(&out).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {out}"));
        assert!(validator.is_valid(&document), "{document}");
        let failure = &document["failure"];
        assert_eq!((end.code, &document["format"]), (Some(kind.exit_code().into()), &1.into()));
        assert_eq!(failure["exit_code"], kind.exit_code(), "{failure}");
        assert_eq!(!failure["hints"].as_array().unwrap().is_empty(), hints, "{failure}");
        let diagnostics = failure["diagnostics"].as_array().unwrap();
        assert_eq!(!diagnostics.is_empty(), kind == Kind::Definition, "{failure}");
        assert!(
            diagnostics
                .iter()
                .all(|it| it["file"].is_string() && it["line"].is_u64() && it["column"].is_u64())
        );
        assert!(!failure["message"].as_str().unwrap().contains('\n'), "{failure}");
        assert!(end.stderr.len() > 10, "people still read it: {}", end.stderr);
        if arguments[0] == "build" {
            assert_eq!(out.lines().count(), 1, "{out}");
            assert!(events.is_valid(&document), "{document}");
        }
    }
    // An answer that is a failure stands alone.
    let (out, _) = forge(&["validate", "-C", &bad, "--format", "json"]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&out).unwrap()["valid"], false);
}

#[test]
fn a_variable_of_one_template_does_not_trouble_another() {
    let root = root_of("good/full");
    let validate = |var: &str| forge(&["validate", "-C", &root, "--var", var]).1;
    assert_eq!(validate("port=2200").code, Some(0), "`base` does not know it, `web` does");
    assert_eq!(validate("prot=2200").code, Some(Kind::Definition.exit_code().into()));
    assert_eq!(forge(&["validate", "-C", &root, "base", "--var", "mem=1"]).1.code, Some(0));
}

#[test]
fn list_shows_what_there_is() {
    let (out, end) = forge(&["list", "-C", &root_of("good/full")]);
    assert_eq!(end.code, Some(0), "{}", end.stderr);
    let rows: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["TEMPLATE", "RELEASE", "VMID", "BUILDER", "DESCRIPTION"]);
    assert_eq!(rows[2], ["web", "24.04.3", "9001", "rack", "Web", "server"]);
    let (out, _) = forge(&["list", "-C", &root_of("bad/bad-sha256"), "--format=json"]);
    let answer: serde_json::Value = serde_json::from_str(&out).unwrap();
    let listed = &answer["templates"][0];
    assert_eq!((&listed["name"], &listed["errors"][0]["line"]), (&"x".into(), &10.into()), "{listed}");

    let (out, _) = forge(&["list", "-C", &root_of("bad/bad-sha256")]);
    assert!(out.contains("  templates/x/template.toml:10:10: `"), "{out}");
    let (out, _) = forge(&["list", "-C", &root_of("good/full"), "--var", "bad=1"]);
    assert!(out.contains("  command line: no variable `bad` is declared by this template\n"), "{out}");
}

#[test]
fn list_names_the_builder_that_a_build_takes() {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_forge"));
    let command =
        command.args(["list", "-C", &root_of("good/full")]).env_clear().env("FORGE_BUILDER", "qemu");
    let out = String::from_utf8(command.output().unwrap().stdout).unwrap();
    let row: Vec<&str> = out.lines().nth(2).unwrap().split_whitespace().collect();
    assert_eq!(row[..4], ["web", "24.04.3", "9001", "qemu"]);
}

#[test]
fn plan_and_schema_print_json() {
    let (out, end) = forge(&["plan", "web", "-C", &root_of("good/full"), "--on", "qemu", "--format", "json"]);
    assert_eq!(end.code, Some(0), "{}", end.stderr);
    let plan: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&plan["builder"]["name"], &plan["builder"]["from"]), (&"qemu".into(), &"--on".into()));
    assert_eq!(plan["digest"], full().digest.as_str(), "where it is built does not matter");
    for file in ["definition", "profile"] {
        let (out, _) = forge(&["schema", file]);
        assert!(serde_json::from_str::<serde_json::Value>(&out).unwrap()["$schema"].is_string());
    }
}
