//! What the hardening controls of a plan do, as one step and its checks.

use std::fmt::Write as _;

use super::digest;
use crate::definition::{
    Check, CommandCheck, Control, ControlState, FileCheck, HARDENING_STEP, Hardening, NamedControl, Shell,
    Step,
};
use crate::provision::shell_quote;

/// A control with whether it is applied.
#[derive(Debug, Clone)]
pub struct PlannedControl {
    /// The control.
    pub control: NamedControl,
    /// Whether it is applied, and why.
    pub state: ControlState,
}

/// Returns each control with whether it is applied.
pub(super) fn choose(hardening: &Hardening, controls: Vec<NamedControl>) -> Vec<PlannedControl> {
    let planned = controls.into_iter().map(|control| {
        let state = hardening.state(&control);
        PlannedControl { control, state }
    });
    planned.collect()
}

/// Returns the step that applies the controls, with what a person reads while it runs; nothing where there are
/// none.
pub(super) fn step(hardening: &Hardening, controls: &[PlannedControl]) -> Option<(Step, String)> {
    let applied: Vec<_> = controls.iter().filter(|it| it.state.is_on()).map(|it| &it.control).collect();
    if applied.is_empty() {
        return None;
    }
    let which = hardening.profile.map(|profile| format!(" of the profile {}", profile.as_str()));
    let title = format!("applying {} hardening controls{}", applied.len(), which.unwrap_or_default());
    Some((hardening_step(hardening, &applied), title))
}

/// Returns the step that applies these controls, whatever the profile, with the profile's `[hardening.env]`.
#[must_use]
pub fn hardening_step(hardening: &Hardening, controls: &[&NamedControl]) -> Step {
    let shell = Shell { inline: Some(script(controls, hardening)), ..Shell::default() };
    Step { name: HARDENING_STEP.to_owned(), shell: Some(shell), ..Step::default() }
}

/// Returns what must hold where the controls are applied.
pub(super) fn checks(controls: &[PlannedControl]) -> impl Iterator<Item = Check> {
    controls.iter().filter(|it| it.state.is_on()).flat_map(|it| control_checks(&it.control))
}

/// Returns what must hold where a control is applied: what follows from what it does, and its own checks.
#[must_use]
pub fn control_checks(control: &NamedControl) -> Vec<Check> {
    let NamedControl { name, control } = control;
    let mut checks = Vec::new();
    for file in written_files(name, control) {
        let sha256 = Some(digest::hex(file.content.as_bytes()));
        let (mode, owner) = (Some(file.mode), Some("root:root".to_owned()));
        let file = FileCheck { path: file.path.clone(), mode, owner, sha256, ..FileCheck::default() };
        checks.push(Check { name: file.path.clone(), file: Some(file), ..Check::default() });
    }
    let required: Vec<_> = control.sysctl.iter().filter(|(key, _)| !key.starts_with('-')).collect();
    if !required.is_empty() {
        let sysctl = required.into_iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        checks.push(Check { name: "parameters".to_owned(), sysctl: Some(sysctl), ..Check::default() });
    }
    if !control.modules_off.is_empty() {
        let command = CommandCheck { run: modules_are_off(&control.modules_off), ..CommandCheck::default() };
        checks.push(Check { name: "modules".to_owned(), command: Some(command), ..Check::default() });
    }
    checks.extend(control.checks.iter().cloned());
    let alone = checks.len() == 1;
    for check in &mut checks {
        check.name =
            if alone { format!("hardening: {name}") } else { format!("hardening: {name}: {}", check.name) };
    }
    checks
}

/// A file that a control writes, its content with a line feed at its end.
struct Written {
    path: String,
    mode: String,
    content: String,
}

fn written_files(name: &str, control: &Control) -> Vec<Written> {
    let note = format!("# Written by forge (hardening/controls/{name}.toml).\n");
    let mut files = Vec::new();
    let mut add = |path: String, content: String| {
        files.push(Written { path, mode: "0644".to_owned(), content });
    };
    if !control.sysctl.is_empty() {
        let lines = control.sysctl.iter().map(|(key, value)| format!("{key} = {value}\n"));
        add(sysctl_path(name), note.clone() + &lines.collect::<String>());
    }
    if !control.modules_off.is_empty() {
        // `install` also holds against who asks for it by name; `blacklist` only against aliases.
        let lines = control.modules_off.iter().map(|it| format!("install {it} /bin/false\nblacklist {it}\n"));
        add(format!("/etc/modprobe.d/60-forge-{name}.conf"), note + &lines.collect::<String>());
    }
    for file in &control.files {
        let end = if file.content.ends_with('\n') { "" } else { "\n" };
        let content = format!("{}{end}", file.content);
        files.push(Written { path: file.path.clone(), mode: file.mode.clone(), content });
    }
    files
}

fn sysctl_path(name: &str) -> String {
    format!("/etc/sysctl.d/60-forge-{name}.conf")
}

/// Returns the command that succeeds where none of the modules is loaded, and none can be.
fn modules_are_off(modules: &[String]) -> String {
    // The kernel knows no dashes; to modprobe they are the same.
    let loaded = modules.join("|").replace('-', "_");
    format!(
        "! grep -E '^({loaded}) ' /proc/modules || exit 1\nfor module in {}; do\n    \
         modprobe --dry-run --verbose \"$module\" | grep -q '^install /bin/false' || {{ echo \"$module can be loaded\"; exit 1; }}\ndone",
        modules.join(" ")
    )
}

/// Returns the script that applies controls, each in a shell of its own, so that none sees another's variables.
fn script(controls: &[&NamedControl], hardening: &Hardening) -> String {
    // With `-e` here, a control's own `-e` would be of no effect in the lists below.
    let mut text = "set +e\n".to_owned();
    for named in controls {
        let NamedControl { name, control } = named;
        let mut add = |line: &str| writeln!(text, "{line}").expect("writing to a string succeeds");
        add(&format!("echo {}", shell_quote(&format!("{name}: {}", control.title))));
        add("(\nset -eu");
        for (key, default) in &control.env {
            let value = hardening.env.get(key).unwrap_or(default);
            add(&format!("export {key}={}", shell_quote(value)));
        }
        for file in written_files(name, control) {
            add(&write_file(&file));
        }
        if !control.sysctl.is_empty() {
            // Where no system runs, as in a folder that is to become one, its first boot sets them.
            add(&format!(
                "[ ! -d /run/systemd/system ] || /usr/lib/systemd/systemd-sysctl {}",
                sysctl_path(name)
            ));
        }
        if let Some(script) = &control.script {
            add(script.trim_end());
        }
        add(&format!(
            ")\n[ $? = 0 ] || {{ echo 'the hardening control {name} could not be applied' >&2; exit 1; }}"
        ));
    }
    text
}

/// Returns the lines that write a file whole: beside its place first.
fn write_file(file: &Written) -> String {
    let Written { path, mode, content } = file;
    let (quoted, new) = (shell_quote(path), shell_quote(&format!("{path}.forge-new")));
    let folder = shell_quote(path.rsplit_once('/').map_or("/", |(folder, _)| folder));
    let mut end = "FORGE-END".to_owned();
    while content.lines().any(|line| line == end) {
        end.push('-');
    }
    format!(
        "[ -d {folder} ] || mkdir -p {folder}\ninstall -o root -g root -m {mode} /dev/stdin {new} <<'{end}'\n\
         {content}{end}\nmv {new} {quoted}"
    )
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn named(name: &str, text: &str) -> NamedControl {
        let head = "schema = 1\ntitle = \"it's done\"\nwhy = \"w\"\nreferences = [\"r\"]\n";
        NamedControl { name: name.to_owned(), control: toml::from_str(&(head.to_owned() + text)).unwrap() }
    }

    #[test]
    fn checks_follow_from_what_a_control_does() {
        let control = named(
            "x",
            "sysctl = { \"a.b\" = \"1\", \"-c.d\" = \"2\" }\nmodules_off = [\"m\"]\n\
             file = [{ path = \"/etc/f\", mode = \"0600\", content = \"y\" }]\n",
        );
        let checks = control_checks(&control);
        let names: Vec<_> = checks.iter().map(|check| check.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "hardening: x: /etc/sysctl.d/60-forge-x.conf",
                "hardening: x: /etc/modprobe.d/60-forge-x.conf",
                "hardening: x: /etc/f",
                "hardening: x: parameters",
                "hardening: x: modules",
            ]
        );
        let file = checks[2].file.as_ref().unwrap();
        assert_eq!(
            (file.mode.as_deref(), file.sha256.as_deref()),
            (Some("0600"), Some(&*digest::hex(b"y\n")))
        );
        assert_eq!(checks[3].sysctl.as_ref().unwrap().len(), 1);
        let only = control_checks(&named("y", "file = [{ path = \"/etc/f\", content = \"y\" }]\n"));
        assert_eq!(only[0].name, "hardening: y");
    }

    #[test]
    fn the_step_says_what_runs_it_and_what_success_is() {
        let control = named("x", "script = 'true'");
        let shell = hardening_step(&Hardening::default(), &[&control]).shell.unwrap();
        assert_eq!((shell.interpreter.join(" "), shell.exit_codes), ("/bin/sh -eu".to_owned(), vec![0]));
    }

    #[test]
    fn the_script_writes_files_whole_and_stops_at_a_control_that_fails() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let controls = [
            named(
                "a",
                &format!(
                    "file = [{{ path = \"{}\", mode = \"0640\", content = \"FORGE-END\\n$x\" }}]\nenv = {{ V = \"d\" }}\nscript = 'echo \"$V\" >{}'",
                    at("sub/f"),
                    at("v")
                ),
            ),
            named("b", "script = 'false; true'"),
            named("c", &format!("script = 'touch {}'", at("late"))),
        ];
        let hardening =
            Hardening { env: [("V".to_owned(), "it's".to_owned())].into(), ..Hardening::default() };
        let text = script(&controls.iter().collect::<Vec<_>>(), &hardening);
        let output = Command::new("/bin/sh").args(["-euc", &text]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said, "the hardening control b could not be applied\n");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "a: it's done\nb: it's done\n");
        assert_eq!(std::fs::read_to_string(at("sub/f")).unwrap(), "FORGE-END\n$x\n");
        assert_eq!(std::fs::read_to_string(at("v")).unwrap(), "it's\n");
        assert!(!std::path::Path::new(&at("late")).exists());
    }
}
