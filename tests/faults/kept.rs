//! What becomes of the machine of a failed build.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::process::Signal;

use crate::build::{PATIENCE, wait_until};
use crate::process::{command_line, descendants};
use crate::root::{Root, files};

#[test]
fn a_kept_machine_can_be_reached_and_ends_with_ctrl_c() {
    let root = Root::new();
    let build = root.start(&[], &["--keep", "--var", "fault=step"]);
    build.wait_for_stderr("The machine is kept until Ctrl-C");
    build.wait_for_stderr("  ssh      ssh -p ");
    let text = build.stderr();
    assert!(text.contains("greet: exit code 3"), "{text}");
    let agent = text.lines().find_map(|line| line.trim().strip_prefix("agent    ")).unwrap();
    let mut socket = std::os::unix::net::UnixStream::connect(agent.trim()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(b"{\"execute\":\"guest-ping\"}\n").unwrap();
    let mut answer = String::new();
    BufReader::new(socket).read_line(&mut answer).unwrap();
    assert_eq!(answer, "{\"return\": {}}\n");

    let family = descendants(build.pid());
    assert!(!family.is_empty());
    build.signal(Signal::INT);
    let ended = build.finish();
    ended.assert_code(14);
    root.assert_nothing_runs(&family);
    root.assert_nothing_left();
    root.assert_no_artifact();
}

#[test]
fn a_kept_machine_is_not_swept_by_the_next_build() {
    let root = Root::new();
    let kept = root.start(&[], &["--keep", "--var", "fault=step"]);
    kept.wait_for_stderr("The machine is kept until Ctrl-C");
    let disks =
        || files(&root.path(".forge")).into_iter().filter(|path| path.ends_with("work/disk0.raw")).count();
    assert_eq!(disks(), 1);
    root.start(&[], &[]).finish().assert_code(0);
    assert_eq!(disks(), 1, "the next build took the kept machine's disk away");
    kept.signal(Signal::INT);
    kept.finish().assert_code(14);
    root.assert_nothing_left();
}

/// A build on a terminal of its own: `script` (util-linux) makes one.
struct Terminal {
    script: Child,
    keyboard: ChildStdin,
    screen: Arc<Mutex<String>>,
}

impl Terminal {
    fn start(build: &Command) -> Self {
        let quote = |word: &str| format!("'{}'", word.replace('\'', r"'\''"));
        let words = [build.get_program()].into_iter().chain(build.get_args());
        let line: Vec<_> = words.map(|word| quote(word.to_str().unwrap())).collect();
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--flush", "--command"]).arg(format!("exec {}", line.join(" ")));
        command.arg("/dev/null").env("SHELL", "/bin/sh").env("TERM", "xterm");
        for (name, value) in build.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let mut script = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let screen = Arc::new(Mutex::new(String::new()));
        let (shown, mut output) = (Arc::clone(&screen), script.stdout.take().unwrap());
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                shown.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        });
        Self { keyboard: script.stdin.take().unwrap(), script, screen }
    }

    fn screen(&self) -> String {
        self.screen.lock().unwrap().clone()
    }

    fn wait_for(&self, text: &str) {
        wait_until(text, || self.screen().contains(text));
    }

    fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
        self.keyboard.flush().unwrap();
    }

    fn exit_code(&mut self) -> Option<i32> {
        let mut code = None;
        wait_until(&format!("the end of {}", self.screen()), || {
            code = self.script.try_wait().unwrap();
            code.is_some()
        });
        code.unwrap().code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Both fail when it has ended, and that is what is wanted.
        self.script.kill().ok();
        self.script.wait().ok();
    }
}

const CTRL_C: &str = "\x03";

/// Builds until the question whether to keep the machine, answers it, and ends what was kept.
fn answer(keys: &str, is_kept: bool) {
    let root = Root::new();
    let mut command = root.command(&["mini"]);
    command.args(["--on-error", "ask", "--var", "fault=step"]);
    let mut terminal = Terminal::start(&command);
    terminal.wait_for("keep the machine to look at it? [y/N]");
    assert!(terminal.screen().contains("greet: exit code 3"), "{}", terminal.screen());
    let family = descendants(terminal.script.id().try_into().unwrap());
    assert!(family.iter().any(|process| command_line(process.pid).contains("qemu-system-x86_64")));
    terminal.press(keys);
    if is_kept {
        terminal.wait_for("The machine is kept until Ctrl-C");
        terminal.wait_for("  ssh      ssh -p ");
        assert!(root.evidence().join("work/disk0.raw").exists());
        terminal.press(CTRL_C);
    }
    assert_eq!(terminal.exit_code(), Some(14), "{keys:?}: {}", terminal.screen());
    assert_eq!(terminal.screen().contains("is kept until"), is_kept, "{keys:?}: {}", terminal.screen());
    root.assert_nothing_runs(&family);
    root.assert_nothing_left();
    root.assert_no_artifact();
}

#[test]
fn who_is_asked_decides_whether_the_machine_is_kept() {
    thread::scope(|scope| {
        for (keys, is_kept) in [("y\n", true), ("Y\n", true), ("n\n", false), ("\n", false), (CTRL_C, false)]
        {
            scope.spawn(move || answer(keys, is_kept));
        }
    });
}

#[test]
fn nobody_is_asked_without_a_terminal() {
    let root = Root::new();
    let ended = root.start(&[], &["--on-error", "ask", "--var", "fault=step"]).finish();
    ended.assert_code(14);
    assert!(!ended.stderr.contains("[y/N]"), "{}", ended.stderr);
    root.assert_nothing_runs(&[]);
    root.assert_nothing_left();
}
