//! Definitions that become plans, and what a plan is made of.

use std::collections::BTreeMap;

use forge::cli;
use forge::definition::{Inputs, Root, load};
use forge::failure::Kind;
use forge::plan::{ForgeUrls, Plan, Selection, choose_builder, resolve};

use crate::cases::{changed, expect, failures, folders, full, golden, inputs, plan_of};

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

#[test]
fn steps_are_left_out_and_the_digest_knows() {
    let case = golden("good/full");
    let plan = |only: &[&str], skip: &[&str]| {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        plan_of(&case, "web", &Inputs::default(), &Selection { only: owned(only), skip: owned(skip) })
    };
    let names = |plan: &Plan| plan.active_steps().map(|step| step.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&plan(&[], &[])), ["packages", "inline", "motd", "more", "hardening"]);
    assert_eq!(names(&plan(&["motd", "packages"], &[])), ["packages", "motd"]);
    assert_eq!(names(&plan(&[], &["motd"])), ["packages", "inline", "more", "hardening"]);
    assert_ne!(plan(&[], &["motd"]).digest, full().digest);

    // Without the step that applies them, controls are not checked either.
    let unhardened = plan(&[], &["hardening"]);
    let checks = |plan: &Plan| plan.active_checks().filter(|it| it.name.starts_with("hardening: ")).count();
    assert_eq!((checks(&plan(&[], &[])), checks(&unhardened)), (3, 0));
    assert_ne!(unhardened.digest, full().digest);

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
