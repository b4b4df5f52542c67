//! Golden tests: definitions in, messages or plans out.
//!
//! `UPDATE_GOLDEN=1 cargo test --test definition` rewrites the expected files. Read what it wrote:
//! each message is for someone who meets it at three in the morning.

#![expect(clippy::unwrap_used, reason = "a test may fail so")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use forge::cli;
use forge::definition::{Inputs, Root, check, diagnostics, load, load_profile};
use forge::failure::{Failure, Kind};
use forge::plan::{ForgeUrls, Plan, Selection, choose_builder, resolve};

fn golden(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/definition").join(part)
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

/// What a case's `args.txt` gives: `--var a=b`, `--var-file f` and `NAME=value` of the environment.
fn inputs(case: &Path) -> Inputs {
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
fn expect(path: &Path, actual: &str) {
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
fn failures(case: &Path) -> Vec<Failure> {
    let root = Root::at(case).unwrap();
    let inputs = inputs(case);
    let templates = root.templates().unwrap();
    let mut failures: Vec<Failure> =
        templates.iter().filter_map(|name| check(&root, name, &inputs, &[].into()).err()).collect();
    failures.extend(root.profiles().unwrap().iter().filter_map(|name| load_profile(&root, name).err()));
    failures
}

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

fn plan_of(case: &Path, name: &str, inputs: &Inputs, selection: &Selection) -> Plan {
    let root = Root::at(case).unwrap();
    let loaded = load(&root, name, inputs).unwrap_or_else(|failure| panic!("{}: {failure}", case.display()));
    let builder = choose_builder(None, &inputs.env, &loaded.definition);
    resolve(&root, loaded, builder, selection).unwrap()
}

fn full() -> Plan {
    let case = golden("good/full");
    plan_of(&case, "web", &inputs(&case), &Selection::default())
}

#[test]
fn good_definitions_become_plans() {
    for case in folders(&golden("good")) {
        let problems: Vec<String> = failures(&case).iter().map(ToString::to_string).collect();
        assert_eq!(problems, Vec::<String>::new(), "{}", case.display());
        let root = Root::at(&case).unwrap();
        for name in root.templates().unwrap() {
            let Ok(loaded) = load(&root, &name, &inputs(&case)) else { continue };
            let builder = choose_builder(None, &BTreeMap::new(), &loaded.definition);
            let plan = resolve(&root, loaded, builder, &Selection::default()).unwrap();
            expect(&case.join(format!("{name}.plan.json")), &format!("{:#}\n", plan.to_json()));
            expect(&case.join(format!("{name}.plan.txt")), &cli::plan::human(&plan));
        }
    }
}

#[test]
fn a_secret_is_never_shown() {
    let case = golden("good/full");
    let mut inputs = inputs(&case);
    inputs.env.insert("FORGE_VAR_CONSOLE_PASSWORD".to_owned(), "hunter2".to_owned());
    let plan = plan_of(&case, "web", &inputs, &Selection::default());

    assert_eq!(plan.steps[1].step.shell.as_ref().unwrap().env["PASSWORD"], "hunter2");
    assert_eq!(plan.secrets().map(forge::definition::Secret::expose).collect::<Vec<_>>(), ["hunter2"]);
    let shown = [
        plan.to_json().to_string(),
        cli::plan::human(&plan),
        serde_json::to_string(&plan.shown).unwrap(),
        format!("{plan:?} {inputs:?}"),
    ];
    for text in shown {
        assert!(!text.contains("hunter2"), "{text}");
    }
    assert!(plan.to_json().to_string().contains("<secret console_password>"));
}

#[test]
fn seed_and_script_files_are_rendered_for_a_build() {
    let case = golden("good/full");
    let mut inputs = inputs(&case);
    inputs.vars.push(("console_password".to_owned(), "$6$x: \"y\"".to_owned()));
    let plan = plan_of(&case, "web", &inputs, &Selection::default());
    let forge = ForgeUrls {
        url: "http://10.0.0.5:8000/t/".to_owned(),
        report_url: "http://10.0.0.5:8000/t/report".to_owned(),
        logs_url: "http://10.0.0.5:8000/t/logs".to_owned(),
        ready_url: "http://10.0.0.5:8000/t/ready".to_owned(),
    };

    let seed = plan.render_seed(&forge).unwrap();
    let names: Vec<_> = seed.iter().map(|file| (file.name.as_str(), file.is_autoinstall)).collect();
    assert_eq!(names, [("autoinstall.yaml", true), ("extra.sh", false), ("late.sh", false)]);
    let text = String::from_utf8(seed[0].content.clone()).unwrap();
    let value: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
    assert_eq!(value["autoinstall"]["identity"]["password"], "$6$x: \"y\"");
    assert_eq!(value["autoinstall"]["reporting"]["forge"]["endpoint"], "http://10.0.0.5:8000/t/report");
    assert_eq!(value["autoinstall"]["storage"]["layout"]["name"], "direct");
    assert_eq!(seed[2].content, b"#!/bin/sh\ncurl http://10.0.0.5:8000/t/extra.sh | sh\n");

    let motd = &plan.steps[3].step;
    let uploads: Vec<_> = plan.upload_files(motd).collect();
    assert_eq!(
        uploads,
        [("files/motd.d/10-welcome", "10-welcome"), ("files/motd.d/20-name.j2", "20-name.j2")]
    );
    assert_eq!(plan.render_file(uploads[1].0).unwrap(), b"#!/bin/sh\necho web-24-04-3 24.04.3\n");
    assert_eq!(
        plan.render_file("./hardening/console.sh").unwrap(),
        std::fs::read(case.join("hardening/console.sh")).unwrap()
    );
}

fn copy(from: &Path, to: &Path) {
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
fn changed(file: &str, change: impl Fn(&str) -> String) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy(&golden("good/full"), folder.path());
    let path = folder.path().join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    let new = change(&text);
    assert_ne!(new, text, "nothing to change in {file}");
    std::fs::write(&path, new).unwrap();
    folder
}

const TEMPLATE: &str = "templates/web/template.toml";

#[test]
fn the_digest_changes_with_what_shapes_the_guest() {
    // With a password, so that the step `console` runs.
    let vars = vec![("console_password".to_owned(), "x".to_owned())];
    let inputs = Inputs { vars, ..Inputs::default() };
    let digest = plan_of(&golden("good/full"), "web", &inputs, &Selection::default()).digest;
    let cases: [(&str, &str, &str); 12] = [
        ("hardening/console.sh", "usermod", "usermod "),
        ("hardening/seal.sh", "exit 0", "exit 00"),
        ("files/motd.d/10-welcome", "welcome", "welcome!"),
        ("http/base/autoinstall.yaml.j2", "version: 1", "version: 1 "),
        ("http/web/extra.sh", "extra", "more"),
        (TEMPLATE, "size_gib = 32", "size_gib = 33"),
        (TEMPLATE, "vmid = 9001", "vmid = 9002"),
        (TEMPLATE, "D8274B", "D8274C"),
        (TEMPLATE, "http://archive.example/ubuntu", "http://other.example/ubuntu"),
        (TEMPLATE, "[\"curl\"]", "[\"wget\"]"),
        (TEMPLATE, "default = 2222", "default = 2223"),
        (TEMPLATE, "inline = \"\"\"", "inline = \"\"\"\n"),
    ];
    for (file, old, new) in cases {
        let folder = changed(file, |text| text.replace(old, new));
        let other = plan_of(folder.path(), "web", &inputs, &Selection::default()).digest;
        assert_ne!(other, digest, "{file}: {old} → {new}");
    }
}

#[test]
fn the_digest_does_not_change_with_place_and_time() {
    let digest = full().digest;
    let cases: [(&str, &str, &str); 9] = [
        ("args.txt", "", "\n"),
        (TEMPLATE, "timeout = \"90s\"", "timeout = \"91s\""),
        (TEMPLATE, "retries = 1", "retries = 2"),
        (TEMPLATE, "[proof]\n", "[timeouts]\ninstall = \"2h\"\n[proof]\naddress = \"10.10.10.60/24\"\n"),
        (TEMPLATE, "isos/live-server.iso", "https://mirror.example/other-name.iso"),
        (
            TEMPLATE,
            "C3514BF0056180D09376462A7A1B4F213C1D6E8EA67FAE5C25099C6FD3D8274B",
            "c3514bf0056180d09376462a7a1b4f213c1d6e8ea67fae5c25099c6fd3d8274b",
        ),
        (TEMPLATE, "[machine]\n", "[machine] # the hardware\n"),
        ("builders/rack.toml", "cpu = \"max\"", "cpu = \"host\"\ncores = 1"),
        ("builders/rack.toml", "8000-8099", "9000"),
    ];
    for (file, old, new) in cases {
        let folder =
            changed(file, |text| if old.is_empty() { new.to_owned() } else { text.replace(old, new) });
        let other = plan_of(folder.path(), "web", &Inputs::default(), &Selection::default()).digest;
        assert_eq!(other, digest, "{file}: {old} → {new}");
    }
}

#[test]
fn of_a_secret_only_whether_it_is_set_enters_the_digest() {
    let case = golden("good/full");
    let with = |value: &str| {
        let vars = vec![("console_password".to_owned(), value.to_owned())];
        plan_of(&case, "web", &Inputs { vars, ..Inputs::default() }, &Selection::default()).digest
    };
    assert_eq!(with("one"), with("two"));
    assert_eq!(with(""), full().digest);
    assert_ne!(with("one"), full().digest);
}

#[test]
fn steps_are_left_out_and_the_digest_knows() {
    let case = golden("good/full");
    let plan = |only: &[&str], skip: &[&str]| {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        plan_of(&case, "web", &Inputs::default(), &Selection { only: owned(only), skip: owned(skip) })
    };
    let names = |plan: &Plan| plan.active_steps().map(|step| step.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&plan(&[], &[])), ["packages", "inline", "motd", "more"]);
    assert_eq!(names(&plan(&["motd", "packages"], &[])), ["packages", "motd"]);
    assert_eq!(names(&plan(&[], &["motd"])), ["packages", "inline", "more"]);
    assert_ne!(plan(&[], &["motd"]).digest, full().digest);

    let root = Root::at(&case).unwrap();
    let loaded = load(&root, "web", &Inputs::default()).unwrap();
    let builder = choose_builder(None, &BTreeMap::new(), &loaded.definition);
    let skip = vec!["modt".to_owned()];
    let failure = resolve(&root, loaded, builder, &Selection { only: Vec::new(), skip }).unwrap_err();
    assert_eq!((failure.kind, failure.hints), (Kind::Usage, vec!["did you mean `motd`?".to_owned()]));
}

#[test]
fn a_file_changed_after_planning_is_noticed() {
    let folder = changed("hardening/seal.sh", |text| text.replace('0', "00"));
    let plan = plan_of(folder.path(), "web", &Inputs::default(), &Selection::default());
    std::fs::write(folder.path().join("hardening/seal.sh"), "#!/bin/sh\nrm -rf /\n").unwrap();
    let failure = plan.render_file("hardening/seal.sh").unwrap_err();
    assert_eq!(failure.kind, Kind::Plan);
    assert!(failure.to_string().contains("hardening/seal.sh was changed"), "{failure}");
}

#[test]
fn the_profile_shapes_the_build_and_not_the_template() {
    let plan = full();
    assert_eq!((plan.machine.cpu.as_str(), plan.definition.machine.cpu.as_str()), ("max", "host"));
    assert_eq!(plan.builder.profile.machine.kvm, Some(false));
}

#[test]
fn the_builder_is_chosen_in_a_stated_order() {
    let definition = full().definition;
    let env = |name: &str| BTreeMap::from([("FORGE_BUILDER".to_owned(), name.to_owned())]);
    let choose = |on, env: &BTreeMap<String, String>| choose_builder(on, env, &definition);
    assert_eq!(choose(Some("a"), &env("b")), ("a".to_owned(), "--on"));
    assert_eq!(choose(None, &env("b")), ("b".to_owned(), "FORGE_BUILDER"));
    assert_eq!(choose(None, &env("")), ("rack".to_owned(), "the template"));
    let mut without = definition.clone();
    without.builder = None;
    assert_eq!(choose_builder(None, &BTreeMap::new(), &without), ("qemu".to_owned(), "the default"));
}

#[test]
fn values_win_in_the_documented_order() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let case = golden("good/full");
    let mirror = |inputs: &Inputs| {
        let plan = plan_of(&case, "web", inputs, &Selection::default());
        let json = plan.to_json()["variables"]["mirror"].clone();
        (json["value"].as_str().unwrap().to_owned(), json["from"].as_str().unwrap().to_owned())
    };
    let mut inputs = Inputs::default();
    assert_eq!(mirror(&inputs), ("http://archive.example/ubuntu".into(), "default".into()));
    inputs.env.insert("UBUNTU_MIRROR".into(), "own".into());
    assert_eq!(mirror(&inputs), ("own".into(), "UBUNTU_MIRROR".into()));
    inputs.env.insert("FORGE_VAR_MIRROR".into(), "forge".into());
    assert_eq!(mirror(&inputs), ("forge".into(), "FORGE_VAR_MIRROR".into()));
    inputs.var_files.push(file("a.toml", "mirror = \"a\"\n"));
    assert_eq!(mirror(&inputs).0, "a");
    inputs.var_files.push(file("b.json", "{\"mirror\": \"b\"}"));
    assert_eq!(mirror(&inputs).0, "b");
    inputs.vars.push(("mirror".into(), "one".into()));
    inputs.vars.push(("mirror".into(), "two".into()));
    assert_eq!(mirror(&inputs), ("two".into(), "--var".into()));
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

#[test]
fn committed_schemas_are_current() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema");
    std::fs::create_dir_all(&folder).unwrap();
    for (name, schema) in [
        ("definition", forge::definition::schema::definition()),
        ("profile", forge::definition::schema::profile()),
    ] {
        // `forge schema {name} > schema/{name}.schema.json` refreshes it, too.
        expect(&folder.join(format!("{name}.schema.json")), &format!("{schema:#}\n"));
    }
}

/// What an editor accepts: the schema agrees with the loader on every good file and on what is
/// wrong in shape.
#[test]
fn editors_see_what_the_loader_sees() {
    let schema = forge::definition::schema::definition();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let valid = |text: &str| {
        let value: toml::Table = text.parse().unwrap();
        validator.is_valid(&serde_json::to_value(value).unwrap())
    };
    let web = std::fs::read_to_string(golden("good/full").join(TEMPLATE)).unwrap();
    // Only a merged definition is complete.
    let complete = web.replace("vmid = 9001", "vmid = 9001\nrelease = \"{{ var.release }}\"");
    assert!(valid(&complete));
    assert!(valid(&complete.replace("vmid = 9001", "vmid = \"{{ var.vmid }}\"")));
    for (old, new) in [
        ("vmid = 9001", "vmid = \"9001\""),
        ("vmid = 9001", "vmid = 1"),
        ("firmware = \"uefi\"", "firmware = \"efi\""),
        ("tpm = true", "tmp = true"),
        ("timeout = \"90s\"", "timeout = \"90\""),
        ("schema = 1", "schema = \"{{ 1 }}\""),
    ] {
        assert!(!valid(&complete.replacen(old, new, 1)), "{old} → {new}");
    }
    // What a parent may give is asked for only where there is none.
    let alone = complete.replace("extends = \"base\"\n", "");
    assert!(valid(&alone) && valid(&web));
    for line in ["vmid = 9001\n", "iso = \"{{ var.iso }}\"\n"] {
        assert!(alone.contains(line) && !valid(&alone.replacen(line, "", 1)), "{line}");
    }
}

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

/// Writes a file anew: ext4 flushes one that is cut and written over, thousands of times here.
fn write_new(path: &Path, bytes: &[u8]) {
    let _gone = std::fs::remove_file(path);
    std::fs::write(path, bytes).unwrap();
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
