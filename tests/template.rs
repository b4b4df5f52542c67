//! The templates in this repository: what they render to is what installers and shells accept.
#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use forge::definition::{CheckAt, Definition};
use minijinja::value::{Kwargs, Serde, ValueKind};
use minijinja::{Environment, UndefinedBehavior, context};
use serde_json::{Value, json};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the folder of facts beside the repository, if it is here.
fn shared() -> Option<PathBuf> {
    let folder = std::env::var_os("FORGE_SHARED").map_or_else(|| root().join("../shared"), PathBuf::from);
    folder.join("autoinstall/schema.json").exists().then_some(folder)
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment
        .add_filter("toyaml", |value: minijinja::Value, _: Kwargs| serde_json::to_string(&value).unwrap());
    environment.add_filter("shquote", |text: String| format!("'{}'", text.replace('\'', r"'\''")));
    environment
}

/// Returns the template's variables at their defaults, apart from those given.
fn variables(definition: &Value, given: &Value) -> minijinja::Value {
    let mut variables = serde_json::Map::new();
    for (name, variable) in definition["variables"].as_object().unwrap() {
        let value = given.get(name).or_else(|| variable.get("default")).cloned();
        assert!(value.is_some() || variable["secret"] == true, "{name} has no default");
        variables.insert(name.clone(), value.unwrap_or_else(|| json!("")));
    }
    minijinja::Value::from(Serde(variables))
}

/// Renders every string of a tree; one that is a lone expression takes its type.
fn render_tree(tree: &mut Value, environment: &Environment<'_>, names: &minijinja::Value) {
    match tree {
        Value::Object(table) => table.values_mut().for_each(|value| render_tree(value, environment, names)),
        Value::Array(list) => list.iter_mut().for_each(|value| render_tree(value, environment, names)),
        Value::String(text) => {
            let lone = text.strip_prefix("{{").and_then(|text| text.strip_suffix("}}"));
            *tree = match lone.filter(|inner| !inner.contains("{{")) {
                Some(expression) => {
                    let value = environment.compile_expression(expression).unwrap().eval(names).unwrap();
                    assert_ne!(value.kind(), ValueKind::Undefined, "{expression}");
                    serde_json::to_value(value).unwrap()
                }
                None => Value::String(environment.render_str(text, names).unwrap()),
            };
        }
        _ => {}
    }
}

fn definition_text() -> Value {
    let text = fs::read_to_string(root().join("templates/ubuntu-noble/template.toml")).unwrap();
    toml::from_str(&text).unwrap()
}

fn definition(given: &Value) -> Definition {
    let mut tree = definition_text();
    let variables = variables(&tree, given);
    let described = tree.as_object_mut().unwrap().remove("variables").unwrap();
    render_tree(&mut tree, &environment(), &context! { var => variables });
    tree["variables"] = described;
    serde_json::from_value(tree).unwrap()
}

/// Returns the rendered autoinstall file, as text and parsed.
fn autoinstall(given: &Value) -> (String, Value) {
    autoinstall_with(given, "http://10.0.0.5:8080/b/0123456789abcdef/ready")
}

fn autoinstall_with(given: &Value, ready: &str) -> (String, Value) {
    let path = root().join("http/ubuntu-noble/autoinstall.yaml.j2");
    let names = context! {
        var => variables(&definition_text(), given),
        template => context! { name => "pkr-ubuntu-noble-1" },
        machine => context! { memory_mib => 4096 },
        forge => context! {
            url => "http://10.0.0.5:8080/b/0123456789abcdef",
            report_url => "http://10.0.0.5:8080/b/0123456789abcdef/report",
            logs_url => "http://10.0.0.5:8080/b/0123456789abcdef/logs",
            ready_url => ready,
        },
    };
    let text = environment().render_str(&fs::read_to_string(path).unwrap(), names).unwrap();
    let value = serde_saphyr::from_str(&text).unwrap();
    (text, value)
}

fn hash() -> String {
    format!("$6$saltsalt${}", "a".repeat(86))
}

/// What users set, from nothing to everything.
fn inputs() -> Vec<Value> {
    vec![
        json!({}),
        json!({
            "user": "ops",
            "console_password_hash": hash(),
            "authorized_keys": ["ssh-ed25519 AAAA one@host", "ssh-ed25519 BBBB it's \"two\": #2"],
            "mirror": "http://10.0.0.5:3142/debian",
            "keyboard_variant": "",
            "sudo_nopasswd": false,
            "ssh_port": 22,
        }),
    ]
}

fn assert_valid(schema: &Path, document: &Value, what: &str) {
    let schema: Value = serde_json::from_str(&fs::read_to_string(schema).unwrap()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<_> =
        validator.iter_errors(document).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{what}: {errors:#?}\n{document:#}");
}

#[test]
fn autoinstall_holds_to_the_installers_schema() {
    let Some(shared) = shared() else {
        println!("NOT RUN: the schemas are neither in ../shared nor in $FORGE_SHARED");
        return;
    };
    let schema = shared.join("autoinstall/schema.json");
    let known: Value = serde_json::from_str(&fs::read_to_string(&schema).unwrap()).unwrap();
    for input in inputs() {
        let (_, document) = autoinstall(&input);
        assert_valid(&schema, &document["autoinstall"], "autoinstall");
        // The installer drops keys that it does not know, with a warning.
        for key in document["autoinstall"].as_object().unwrap().keys() {
            assert!(known["properties"].get(key).is_some(), "the installer knows no `{key}`");
        }
    }
}

#[test]
fn autoinstall_holds_to_cloud_inits_schema() {
    let Some(shared) = shared() else {
        println!("NOT RUN: the schemas are neither in ../shared nor in $FORGE_SHARED");
        return;
    };
    let schema = shared.join("autoinstall/cloud-config-schema.json");
    for input in inputs() {
        let (_, document) = autoinstall(&input);
        assert_valid(&schema, &document, "the served document");
        if let Some(user_data) = document["autoinstall"].get("user-data") {
            assert_valid(&schema, user_data, "autoinstall.user-data");
        }
    }
}

#[test]
fn autoinstall_says_what_the_schemas_do_not_ask() {
    for input in inputs() {
        let (text, document) = autoinstall(&input);
        assert!(text.starts_with("#cloud-config\n"));
        assert_eq!(document.as_object().unwrap().len(), 1, "keys beside `autoinstall` are fatal");
        let autoinstall = &document["autoinstall"];
        assert_eq!(autoinstall["shutdown"], "poweroff");
        assert_eq!(autoinstall["storage"]["layout"]["name"], "direct");
        assert_eq!(autoinstall["storage"]["swap"]["size"], 0);
        assert_eq!(autoinstall["apt"]["fallback"], "abort");
        assert!(autoinstall.get("interactive-sections").is_none(), "it would make the whole run interactive");
        let keys = input.get("authorized_keys").cloned().unwrap_or_else(|| json!([]));
        assert_eq!(autoinstall["ssh"]["authorized-keys"], keys);
    }
    assert_eq!(autoinstall(&json!({})).1["autoinstall"]["identity"]["password"], "*");
    let (_, document) = autoinstall(&inputs()[1]);
    assert_eq!(document["autoinstall"]["identity"]["password"], hash());
    assert_eq!(document["autoinstall"]["identity"]["username"], "ops");
}

/// Runs the late commands in a target of their own and returns its folder of units.
fn late_commands(document: &Value) -> (tempfile::TempDir, PathBuf) {
    let target = tempfile::tempdir().unwrap();
    let units = target.path().join("etc/systemd/system");
    fs::create_dir_all(&units).unwrap();
    for command in document["autoinstall"]["late-commands"].as_array().unwrap() {
        let mut shell = Command::new("sh");
        shell.args(["-c", command.as_str().unwrap()]).env("TARGET_MOUNT_POINT", target.path());
        assert!(shell.status().unwrap().success(), "{command}");
    }
    (target, units)
}

#[test]
fn the_installed_system_tells_by_whatever_client_it_has_that_its_agent_runs() {
    for client in ["curl", "wget", "python3"] {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/token/ready", server.local_addr().unwrap());
        let (target, units) = late_commands(&autoinstall_with(&json!({}), &url).1);
        // It starts when udev starts the agent, which no target wants.
        let wanted = fs::read_to_string(units.join("qemu-guest-agent.service.wants/forge-ready.service"));
        let unit = wanted.unwrap().replace("\\\n", " ");
        let command = unit.lines().find_map(|line| line.strip_prefix("ExecStart=-")).unwrap();
        // Neither is left as it is by systemd.
        assert!(!command.contains(['$', '%']), "{command}");

        let bin = target.path().join("bin");
        fs::create_dir(&bin).unwrap();
        for program in ["sh", "sleep", client] {
            symlink(Path::new("/usr/bin").join(program), bin.join(program)).unwrap();
        }
        let mut child = Command::new("/bin/sh").args(["-c", command]).env("PATH", &bin).spawn().unwrap();
        // The first answer is none, as when forge is not reached yet.
        drop(server.accept().unwrap());
        let mut request = [0; 5];
        let (mut stream, _) = server.accept().unwrap();
        stream.read_exact(&mut request).unwrap();
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
        drop(stream);
        assert_eq!(&request, b"POST ", "{client}");
        assert!(child.wait().unwrap().success(), "{client}");
    }
}

#[test]
fn the_definition_fits_its_model() {
    let definition = definition(&json!({}));
    assert_eq!((definition.template.vmid, definition.template.name.as_str()), (90001, "pkr-ubuntu-noble-1"));
    assert_eq!((definition.prove.ssh_port, definition.machine.disks[0].size_gib), (2222, 20));
    assert_eq!(definition.template.release, "24.04.3");
    let mut names = BTreeSet::new();
    for step in &definition.steps {
        assert!(names.insert(&step.name), "two steps are called {}", step.name);
        let script = step.shell.as_ref().and_then(|shell| shell.script.as_ref());
        assert!(script.is_none_or(|script| root().join(script).exists()), "{script:?} is missing");
    }
    assert!(root().join(&definition.seal.script).exists());
    let mut names = BTreeSet::new();
    for check in &definition.checks {
        assert!(names.insert(&check.name), "two checks are called {}", check.name);
        let kinds = serde_json::to_value(check).unwrap();
        let kinds =
            kinds.as_object().unwrap().keys().filter(|key| !["name", "when", "at"].contains(&key.as_str()));
        assert_eq!(kinds.count(), 1, "{} must check one thing", check.name);
    }
}

#[test]
fn what_a_user_sets_arrives_in_steps_and_checks() {
    let definition = definition(&inputs()[1]);
    let env = |name: &str| {
        &definition.steps.iter().find(|step| step.name == name).unwrap().shell.as_ref().unwrap().env
    };
    assert_eq!(env("ssh")["SSH_PORT"], "22");
    assert_eq!(env("user")["CONSOLE_PASSWORD"], "yes");
    assert_eq!(env("cloud-init")["SUDO_NOPASSWD"], "no");
    assert_eq!(definition.seal.env["AUTHORIZED_KEYS"].lines().count(), 2);
    let wanted = |name: &str| definition.checks.iter().find(|check| check.name == name).unwrap().when;
    assert_eq!(
        (wanted("user has no password"), wanted("user has the console password")),
        (Some(false), Some(true))
    );
    let ports = definition.checks.iter().find_map(|check| check.listening.clone()).unwrap();
    assert_eq!(ports, [22]);
}

/// Returns the shell scripts that run in guests.
fn scripts() -> Vec<PathBuf> {
    let mut scripts: Vec<_> =
        ["hardening", "src/communicator/chroot", "src/diagnosis", "src/provision/guest"]
            .into_iter()
            .flat_map(|folder| fs::read_dir(root().join(folder)).unwrap())
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|ending| ending == "sh"))
            .collect();
    scripts.sort();
    scripts
}

#[test]
fn scripts_pass_shellcheck() {
    let scripts = scripts();
    assert!(scripts.len() > 10);
    let (bash, sh): (Vec<_>, Vec<_>) = scripts.into_iter().partition(|path| path.ends_with("errtrap.sh"));
    for (shell, scripts) in [("bash", bash), ("sh", sh)] {
        let output = Command::new("shellcheck")
            .args(["-s", shell])
            .args(scripts)
            .output()
            .expect("shellcheck is installed by `make test`");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn hardening_scripts_say_what_they_are_and_stop_at_errors() {
    for path in scripts().iter().filter(|path| path.starts_with(root().join("hardening"))) {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.starts_with("#!/bin/sh\n# "), "{}", path.display());
        assert!(text.contains("\nset -eu\n"), "{}", path.display());
    }
}

#[test]
fn builder_profiles_fit_their_model() {
    let text = fs::read_to_string(root().join("builders/local.toml")).unwrap();
    for text in [text.clone(), text.replace("\n# ", "\n").replace("\n#", "\n")] {
        // Only lines that are settings when uncommented.
        let lines = text.lines().filter(|line| line.starts_with('[') || line.contains(" = "));
        let text = lines.collect::<Vec<_>>().join("\n");
        let profile: forge::definition::Profile = toml::from_str(&text).unwrap();
        assert!(profile.qemu.is_some());
    }
}

/// A command such as `! grep x a b` never fails while one of its files is missing.
#[test]
fn command_checks_fail_when_they_should() {
    let definition = definition(&json!({}));
    let folder = tempfile::tempdir().unwrap();
    for (name, path, good, bad) in [
        (
            "kernel arguments are free of the build",
            "/etc/default/grub",
            "X=\"quiet\"",
            "X=\"quiet ds=nocloud\"",
        ),
        ("nothing of the installer is left", "/etc/cloud/ds-identify.cfg", "", "policy: enabled"),
        (
            "root has no SSH key that logs in",
            "/root/.ssh/authorized_keys",
            "no-port-forwarding,x k",
            "ssh-ed25519 k",
        ),
        (
            "no account has an empty password",
            "/etc/shadow",
            "root:*:1::::::",
            "root:*:1::::::\nodin::1::::::",
        ),
        ("no swap", "/etc/fstab", "UUID=1 / ext4 defaults 0 1", "/swap.img none swap sw 0 0"),
        ("SSH has no weak moduli", "/etc/ssh/moduli", "2024 2 6 100 3071 2 A", "2024 2 6 100 2047 2 A"),
    ] {
        let check = definition.checks.iter().find(|check| check.name == name).unwrap();
        let file = folder.path().join(name.replace(' ', "-"));
        let own = format!("{} ", file.display());
        let run = format!("{} ", check.command.as_ref().unwrap().run.trim_end());
        // The other files are this host's, or missing.
        let run = run.replace("/proc/swaps", "/dev/null").replace("/proc/cmdline ", "");
        let run = run
            .replace(&format!("{path} "), &own)
            .replace(&format!("{path};"), &format!("{};", file.display()));
        assert!(run.contains(own.trim()), "{name}: {run}");
        for (text, holds) in [(good, true), (bad, false)] {
            if text.is_empty() {
                drop(fs::remove_file(&file));
            } else {
                fs::write(&file, format!("{text}\n")).unwrap();
            }
            let output = Command::new("sh").args(["-c", &run]).output().unwrap();
            assert_eq!(output.status.success(), holds, "{name} with `{text}`: {output:?}");
        }
    }
}

/// What holds in the build holds in the proof again; what only a clone can show is named here.
#[test]
fn checks_hold_in_the_build_and_again_in_the_proof() {
    let mut clones_only = BTreeSet::new();
    for check in definition(&json!({})).checks {
        assert!(check.at.is_empty() || check.at == [CheckAt::Proof], "{} is not in the proof", check.name);
        if !check.at.is_empty() {
            clones_only.insert(check.name);
        }
    }
    let expected = [
        "Kubernetes: IP forwarding can be turned on",
        "Kubernetes: cgroups have version 2",
        "Kubernetes: kernel modules load",
        "Kubernetes: network namespaces reach each other through a bridge",
        "Kubernetes: no firewall",
        "Kubernetes: programs run from /tmp and /var",
        "Kubernetes: reverse paths are not filtered strictly",
        "Kubernetes: user namespaces are on",
        "Longhorn: its volumes can be mounted",
        "boot waits for no network",
        "clone's key is accepted for the user",
        "cloud-init is done",
        "cloud-init is on",
        "cloud-init took the clone's drive",
        "machine-id was made at first boot",
        "network comes from cloud-init alone",
        "nothing of the installer is left",
    ];
    assert_eq!(clones_only, expected.map(str::to_owned).into());
}

#[test]
fn hardening_scripts_live_in_one_place() {
    for template in fs::read_dir(root().join("templates")).unwrap() {
        let text = fs::read_to_string(template.unwrap().path().join("template.toml")).unwrap();
        for script in text.lines().filter_map(|line| line.trim().strip_prefix("script = ")) {
            assert!(script.starts_with("\"hardening/"), "{script}");
        }
    }
}

/// Sealing fails when one of these is still there, so none may be forgotten here.
#[test]
fn sealing_looks_for_what_must_be_gone() {
    let text = fs::read_to_string(root().join("hardening/seal.sh")).unwrap();
    let (removing, proof) = text.split_once("# --- Proof ---").unwrap();
    let own = definition(&json!({})).seal.absent.join("\n");
    for path in [
        "/etc/ssh/ssh_host_*",
        "/var/lib/cloud",
        "/var/log/installer",
        "/autoinstall.yaml",
        "/etc/cloud/cloud.cfg.d/99-installer.cfg",
        "/etc/cloud/cloud.cfg.d/90-installer-network.cfg",
        "/etc/cloud/clean.d/99-installer",
        "/etc/cloud/cloud-init.disabled",
        "/etc/netplan/*",
        "/var/lib/apt/lists/*",
        "/var/lib/systemd/random-seed",
        "/var/log/journal/*",
        "/var/log/cloud-init*",
        "/root/.ssh",
        "/etc/systemd/system/forge-ready.service",
        "/etc/systemd/system/*/forge-ready.service",
        "/home/odin/.bash_history",
        "/home/odin/.cache",
    ] {
        let listed = |line: &str| line.trim_start_matches("absent='").trim_end_matches('\'') == path;
        assert!(proof.lines().chain(own.lines()).any(listed), "{path} is not looked for");
    }
    assert!(proof.contains("[ ! -s /etc/machine-id ] || remains"));
    assert!(proof.contains("logs=$(find /var/log -type f -size +0)\n[ -z \"$logs\" ] || remains"));
    assert!(proof.contains("fstrim --all") && removing.contains("apt-get clean"));
}
