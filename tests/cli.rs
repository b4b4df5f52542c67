//! The command line from outside: help, exit codes, messages, signals.

#![expect(clippy::unwrap_used, reason = "a test may fail so")]

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use forge::cli;
use forge::cli::signals;
use forge::failure::Kind;
use forge::run::Cancel;
use rustix::process::{Pid, Signal, kill_process};

/// Answers that the installer takes.
const ANSWERS: &str = "#cloud-config\nautoinstall:\n  version: 1\n  shutdown: poweroff\n  \
    identity: {hostname: x, username: odin, password: \"*\"}\n";

/// Returns forge in a clean environment.
fn forge(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forge"));
    command.args(args).env_clear().stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    forge(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Compares with a golden file; `UPDATE_GOLDEN=1` writes it.
fn assert_golden(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cli").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, actual).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        expected == actual,
        "{} differs (UPDATE_GOLDEN=1 writes it); now it is:\n{actual}",
        path.display()
    );
}

fn collect_help(command: &mut clap::Command, path: &str, text: &mut String) {
    let help = command.clone().term_width(100).render_long_help();
    writeln!(text, "## {path}\n\n{help}").unwrap();
    for inner in command.get_subcommands_mut() {
        let path = format!("{path} {}", inner.get_name());
        collect_help(inner, &path, text);
    }
}

#[test]
fn help_of_every_command() {
    let mut command = cli::command().disable_help_subcommand(true);
    command.build();
    let mut help = String::new();
    collect_help(&mut command, "forge", &mut help);
    let tidy: Vec<&str> = help.lines().map(str::trim_end).collect();
    assert_golden("help.txt", &(tidy.join("\n") + "\n"));
}

#[test]
fn every_command_says_how_it_is_used() {
    for command in cli::command().get_subcommands() {
        let name = command.get_name();
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        assert!(!about.ends_with('.') && !about.is_empty(), "{name}: {about}");
        let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(after.starts_with("Examples:\n  forge "), "{name}: {after}");
    }
}

#[test]
fn help_and_version_exit_with_0() {
    for args in [&["--help"][..], &["--version"], &["help", "doctor"], &["doctor", "--help"]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(output.stderr.is_empty() && !output.stdout.is_empty(), "{args:?}");
    }
    assert!(text(&run(&["--version"]).stdout).starts_with(&format!("forge {}", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn a_wrong_command_line_exits_with_2() {
    for args in [
        &[][..],
        &["bild"],
        &["doctor", "--format", "xml"],
        &["doctor", "-v", "-q"],
        &["-C", "/nonexistent", "doctor"],
        &["man", "/dev/null"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn a_failure_is_an_error_its_causes_and_a_code() {
    let output = run(&["-C", "/nonexistent", "doctor"]);
    assert_eq!(
        text(&output.stderr),
        "error: changing to the folder /nonexistent (-C)\n\
         caused by: No such file or directory (os error 2)\n"
    );
}

/// Writes a program that prints that line.
fn program(folder: &Path, name: &str, line: &str) {
    let path = folder.join(name);
    std::fs::write(&path, format!("#!/bin/sh\necho '{line}'\n")).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
}

fn tools(folder: &Path, qemu: &str) {
    program(folder, "qemu-system-x86_64", &format!("QEMU emulator version {qemu} (Debian)"));
    program(folder, "qemu-img", "qemu-img version 8.2.2");
    program(folder, "setpriv", "setpriv from util-linux 2.39.3");
}

/// Returns the findings' levels by name, and the exit code.
fn doctor(path: &Path) -> (serde_json::Value, Option<i32>) {
    let output = forge(&["doctor", "--format", "json"]).env("PATH", path).output().unwrap();
    let answer = serde_json::from_slice(&output.stdout).unwrap();
    (answer, output.status.code())
}

fn level(answer: &serde_json::Value, name: &str) -> String {
    let findings = answer["findings"].as_array().unwrap();
    let finding = findings.iter().find(|finding| finding["name"] == name).unwrap();
    finding["level"].as_str().unwrap().to_owned()
}

#[test]
fn doctor_without_qemu_exits_with_12_and_says_what_to_install() {
    let empty = tempfile::tempdir().unwrap();
    let output = forge(&["doctor"]).env("PATH", empty.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(12));
    let table = text(&output.stdout);
    assert!(table.starts_with("missing  qemu-system-x86_64   not found\n"), "{table}");
    assert!(table.contains("qemu-system-x86\n") && !table.contains('\x1b'), "{table}");
    let error = text(&output.stderr);
    assert!(
        error.starts_with("error: this machine cannot build, for want of qemu-system-x86_64, "),
        "{error}"
    );
    assert!(error.contains("qemu-system-x86 qemu-utils util-linux\n"), "{error}");
}

#[test]
fn doctor_is_content_with_the_needed_tools() {
    let folder = tempfile::tempdir().unwrap();
    tools(folder.path(), "8.2.2");
    let (answer, code) = doctor(folder.path());
    for name in ["qemu-system-x86_64", "qemu-img", "setpriv"] {
        assert_eq!(level(&answer, name), "ok", "{answer}");
    }
    assert_eq!(level(&answer, "swtpm"), "warn", "a TPM is not always needed");
    // How much space there is differs from machine to machine.
    assert_eq!(code, Some(if answer["can_build"] == true { 0 } else { 12 }), "{answer}");
    assert_eq!(answer["format"], 1);
}

#[test]
fn doctor_fails_where_it_cannot_write_and_notes_that_there_is_no_root() {
    let folder = tempfile::tempdir().unwrap();
    tools(folder.path(), "8.2.2");
    let look = |here: &Path, cache: &Path| {
        let mut command = forge(&["doctor", "--format", "json"]);
        let output = command.current_dir(here).env("PATH", folder.path()).env("FORGE_CACHE", cache).output();
        let output = output.unwrap();
        (serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap(), output.status.code())
    };
    let (nowhere, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (answer, _) = look(nowhere.path(), &nowhere.path().join("cache"));
    assert_eq!(level(&answer, "root"), "note", "{answer}");
    assert!(answer.to_string().contains("no folder `templates` here or above"), "{answer}");

    // Files in the folders' places: root may write anywhere else.
    std::fs::create_dir(root.path().join("templates")).unwrap();
    for name in [".forge", "artifacts", "cache"] {
        std::fs::write(root.path().join(name), "").unwrap();
    }
    let (answer, code) = look(root.path(), &root.path().join("cache"));
    for name in ["space for downloads", "space for builds", "space for artifacts"] {
        assert_eq!(level(&answer, name), "missing", "{answer}");
    }
    assert_eq!((code, &answer["can_build"]), (Some(12), &false.into()));
    assert!(answer.to_string().contains("let this user write to"), "{answer}");
}

#[test]
fn doctor_refuses_an_old_qemu_and_one_that_does_not_run() {
    let folder = tempfile::tempdir().unwrap();
    tools(folder.path(), "6.2.0");
    let (answer, code) = doctor(folder.path());
    assert_eq!((level(&answer, "qemu-system-x86_64").as_str(), code), ("missing", Some(12)));
    assert!(answer.to_string().contains("6.2.0 is too old, 7.0 is the oldest that will do"), "{answer}");

    tools(folder.path(), "8.2.2");
    std::fs::write(folder.path().join("qemu-img"), "#!/bin/sh\necho broken >&2\nexit 3\n").unwrap();
    let (answer, code) = doctor(folder.path());
    assert_eq!((level(&answer, "qemu-img").as_str(), code), ("missing", Some(12)));
    assert!(answer.to_string().contains("exit status: 3: broken"), "{answer}");
}

#[test]
fn a_folder_that_is_gone_is_unexpected() {
    let folder = tempfile::tempdir().unwrap();
    let script = r#"cd "$1" && rmdir "$1" && exec "$2" list"#;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, "sh", folder.path().to_str().unwrap(), env!("CARGO_BIN_EXE_forge")]);
    let output = command.env_clear().output().unwrap();
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(Kind::Unexpected.exit_code().into()), "{error}");
    assert!(error.starts_with("error: finding the current folder\ncaused by: "), "{error}");
}

/// A root with one template, whose medium is a folder.
fn root_with_a_folder_as_medium() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let template = format!(
        "schema = 1\n[template]\nname = \"x\"\nvmid = 9000\nrelease = \"1\"\n[source]\niso = \"isos\"\n\
         sha256 = \"{}\"\n",
        "0".repeat(64)
    );
    for (path, content) in [
        ("templates/x/template.toml", template.as_str()),
        ("http/x/autoinstall.yaml.j2", ANSWERS),
        ("hardening/seal.sh", "#!/bin/sh\n"),
        ("isos/image.iso", ""),
    ] {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    root
}

#[test]
fn a_failed_build_tells_its_error_once_and_removes_only_what_it_made() {
    let root = root_with_a_folder_as_medium();
    let log = root.path().join("log");
    let file = std::fs::File::create(&log).unwrap();
    let mut command = forge(&["build", "x"]);
    command.current_dir(root.path()).env("FORGE_CACHE", root.path().join("cache"));
    let status = command.stdout(file.try_clone().unwrap()).stderr(file).status().unwrap();
    let said = std::fs::read_to_string(&log).unwrap();
    assert_eq!(status.code(), Some(Kind::Plan.exit_code().into()), "{said}");
    let error = format!("{} cannot be read: it is a folder", root.path().join("isos").display());
    assert_eq!(said.matches("it is a folder").count(), 1, "{said}");
    assert!(said.contains(&format!("s: {error}\n")) && !said.contains("error: "), "{said}");
    assert!(!said.contains("removed"), "{said}");
    assert!(said.lines().last().unwrap().starts_with("hint: name the medium"), "{said}");
    let place = |words: &str| said.find(words);
    assert!(place("without KVM").is_none_or(|warning| Some(warning) < place("started: ")), "{said}");

    // Whoever reads standard error alone reads it there.
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(text(&output.stderr).lines().next().unwrap(), format!("error: {error}"));
}

#[test]
fn a_build_without_a_run_tells_programs_why() {
    let root = root_with_a_folder_as_medium();
    std::fs::write(root.path().join(".forge"), "a file in the folder's place").unwrap();
    let mut command = forge(&["build", "x", "--output", "json"]);
    let output = command.current_dir(root.path()).env("FORGE_CACHE", root.path()).output().unwrap();
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["failure"]["kind"], "infrastructure", "{document}");
    assert_eq!(output.status.code(), Some(12));
    assert!(text(&output.stderr).starts_with("error: making "), "{}", text(&output.stderr));

    // Of a run that has begun, its events tell.
    std::fs::remove_file(root.path().join(".forge")).unwrap();
    let output = command.output().unwrap();
    let lines: Vec<serde_json::Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().all(|line| line["failure"].is_null() && line["event"].is_string()), "{lines:?}");
    assert_eq!(lines.last().unwrap()["event"], "run_finished");
}

#[test]
fn what_can_never_be_is_refused_before_anything_is_made() {
    let root = root_with_a_folder_as_medium();
    let path = root.path().to_str().unwrap();
    let output = run(&["-C", path, "build", "x", "--promote"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("--promote is for templates on a cluster"), "{output:?}");
    let output = run(&["-C", path, "leftovers", "--on", "asgard", "--run", "../../etc"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("IDs look like"), "{output:?}");
    assert!(!root.path().join(".forge").exists());
}

#[test]
fn a_reader_that_has_gone_is_no_failure() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = forge(&["completions", "bash"]).stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
}

#[test]
fn a_full_disk_is_a_failure() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = forge(&["completions", "bash"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(12));
    assert!(text(&output.stderr).starts_with("error: writing to standard output\n"));
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        assert!(text(&output.stdout).contains("doctor"), "{shell}");
    }
}

#[test]
fn each_command_has_a_manual_page() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("share/man1");
    assert_eq!(run(&["man", target.to_str().unwrap()]).status.code(), Some(0));
    for command in cli::command().get_subcommands() {
        let page = std::fs::read_to_string(target.join(format!("forge-{}.1", command.get_name()))).unwrap();
        assert!(page.contains("Examples:"), "{}", command.get_name());
    }
    let page = std::fs::read_to_string(target.join("forge.1")).unwrap();
    assert!(page.contains("130  interrupted by Ctrl") && page.contains(".TH"), "{page}");
}

/// Not a test of its own: the process that the signal tests send signals to.
#[test]
fn signals_child() {
    if std::env::var_os("FORGE_TEST_SIGNALS").is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let cancel = Cancel::default();
        signals::listen(cancel.clone(), || println!("left: the machine")).unwrap();
        println!("ready");
        cancel.requested().await;
        println!("stopping");
        let failure = cancel.failure();
        if failure.kind == Kind::Interrupted {
            // An undo that hangs: only a second Ctrl-C ends it.
            tokio::time::sleep(Duration::from_secs(30)).await;
        }
        std::process::exit(failure.kind.exit_code().into());
    });
}

/// Sends the first signal once the child is ready, the second once it is stopping; returns how it
/// ended and what it said.
fn signalled(signals: &[Signal]) -> (ExitStatus, String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "signals_child", "--nocapture"]).env("FORGE_TEST_SIGNALS", "1");
    let mut child: Child = command.stdout(Stdio::piped()).spawn().unwrap();
    let pid = Pid::from_child(&child);
    let mut signals = signals.iter();
    let mut said = String::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
        // The harness may print before the child's own words, on the same line.
        if line.ends_with("ready") || line == "stopping" {
            signals.next().into_iter().for_each(|signal| kill_process(pid, *signal).unwrap());
        }
        said += &(line + "\n");
    }
    (child.wait().unwrap(), said)
}

#[test]
fn the_second_ctrl_c_says_what_is_left_and_exits_with_130() {
    let (status, said) = signalled(&[Signal::INT, Signal::INT]);
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(said.ends_with("stopping\nleft: the machine\n"), "{said}");
}

#[test]
fn sigterm_stops_with_143() {
    let (status, said) = signalled(&[Signal::TERM]);
    assert_eq!(status.code(), Some(143), "{said}");
    assert!(said.ends_with("stopping\n"), "{said}");
}
