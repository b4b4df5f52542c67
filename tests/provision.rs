//! Provisioners against a "guest" that is this host: everything really runs.
#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use forge::communicator::{Communicator, CommunicatorError, EXEC_INPUT_MAX, Exec, Output, PUT_FILE_MAX};
use forge::definition::{Packages, Reboot, Seal, Shell, Step, Upload};
use forge::failure::Failure;
use forge::provision::{Bulk, Content, Context, Feed, Offer, Place, ProvisionError, apply, seal};
use forge::seed::server::{Reach, Server, Settings};
use futures_util::future::BoxFuture;
use tokio::io::AsyncWriteExt;

/// Runs commands as local processes. The `fault` befalls the call with that number, after (or,
/// for `NotSent`, instead of) doing what it asks.
struct Host {
    path: String,
    calls: AtomicUsize,
    fault: Option<(usize, Fault)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    NotSent,
    Unknown,
    Timeout,
    Refused,
    Gone,
}

impl Host {
    fn new() -> Self {
        Self { path: "/usr/sbin:/usr/bin:/sbin:/bin".to_owned(), calls: AtomicUsize::new(0), fault: None }
    }

    /// Counts a call and returns the fault that befalls it.
    fn fault(&self) -> Option<Fault> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        self.fault.filter(|(at, _)| *at == call).map(|(_, fault)| fault)
    }
}

fn error(fault: Fault) -> CommunicatorError {
    let (what, reason) = ("call".to_owned(), "on purpose".to_owned());
    match fault {
        Fault::NotSent => CommunicatorError::NotSent { what, reason },
        Fault::Unknown => CommunicatorError::Unknown { what, reason },
        Fault::Timeout => CommunicatorError::Timeout { what, after: Duration::from_secs(1) },
        Fault::Refused => CommunicatorError::Refused { what, reason },
        Fault::Gone => CommunicatorError::Gone { what, reason },
    }
}

impl Communicator for Host {
    fn exec<'a>(&'a self, command: &'a Exec) -> BoxFuture<'a, Result<Output, CommunicatorError>> {
        Box::pin(async move {
            let fault = self.fault();
            if let Some(Fault::NotSent | Fault::Refused | Fault::Gone) = fault {
                return Err(error(fault.unwrap()));
            }
            assert!(command.stdin.len() <= EXEC_INPUT_MAX);
            let mut child = tokio::process::Command::new(&command.argv[0])
                .args(&command.argv[1..])
                .env_clear()
                .env("PATH", &self.path)
                .env("LC_ALL", "C.UTF-8")
                .envs(command.env.iter().map(|(name, value)| (name, value)))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .unwrap();
            // A program that does not read its input is no failure.
            let mut stdin = child.stdin.take().unwrap();
            drop(stdin.write_all(&command.stdin).await);
            drop(stdin);
            let output = tokio::time::timeout(command.timeout, child.wait_with_output())
                .await
                .map_err(|_| error(Fault::Timeout))?
                .unwrap();
            match fault {
                Some(fault) => Err(error(fault)),
                None => Ok(Output {
                    code: output.status.code(),
                    signal: None,
                    stdout: output.stdout,
                    stderr: output.stderr,
                    truncated: false,
                }),
            }
        })
    }

    fn put_file<'a>(
        &'a self,
        path: &'a str,
        content: &'a [u8],
    ) -> BoxFuture<'a, Result<(), CommunicatorError>> {
        Box::pin(async move {
            assert!(content.len() <= PUT_FILE_MAX);
            let fault = self.fault();
            if fault != Some(Fault::NotSent) {
                fs::write(path, content).unwrap();
            }
            fault.map_or(Ok(()), |fault| Err(error(fault)))
        })
    }

    fn get_file<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Vec<u8>, CommunicatorError>> {
        Box::pin(async move { Ok(fs::read(path).unwrap()) })
    }

    fn wait_for_reboot<'a>(
        &'a self,
        _previous_boot_id: &'a str,
        _deadline: Duration,
    ) -> BoxFuture<'a, Result<(), CommunicatorError>> {
        unreachable!("this host is not rebooted")
    }
}

/// A place for one test, and what the provisioner reported.
struct Bench {
    host: Host,
    folder: tempfile::TempDir,
    shown: Mutex<Vec<(Instant, String)>>,
    logged: Mutex<Vec<String>>,
    retries: Mutex<Vec<String>>,
    secrets: Vec<String>,
    bulk: Option<FileServer>,
    sink: Option<Sink>,
}

impl Bench {
    fn new() -> Self {
        Self {
            host: Host::new(),
            folder: tempfile::tempdir().unwrap(),
            shown: Mutex::default(),
            logged: Mutex::default(),
            retries: Mutex::default(),
            secrets: Vec::new(),
            bulk: None,
            sink: None,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn apply(&self, step: &Step, timeout: Duration) -> Result<(), ProvisionError> {
        self.with_context(async |cx| apply(step, timeout, cx).await).await
    }

    async fn with_context<T>(&self, work: impl AsyncFnOnce(&Context<'_>) -> T) -> T {
        let guest = self.path("run/forge");
        let show = |line: &str| self.shown.lock().unwrap().push((Instant::now(), line.to_owned()));
        let log = |line: &str| self.logged.lock().unwrap().push(line.to_owned());
        let retry = |attempt: u32, of: u32, why: &str| {
            self.retries.lock().unwrap().push(format!("{attempt}/{of}: {why}"));
        };
        let render = |path: &Path| -> Result<String, Failure> {
            Ok(fs::read_to_string(path).unwrap().replace("{{ name }}", "odin"))
        };
        let cx = Context {
            guest: &self.host,
            folder: guest.to_str().unwrap(),
            bulk: match (&self.bulk, &self.sink) {
                (Some(bulk), _) => Some(bulk),
                (None, sink) => sink.as_ref().map(|sink| sink as &dyn Bulk),
            },
            root: self.folder.path(),
            output: &show,
            log: &log,
            retry: &retry,
            render: &render,
            secrets: &self.secrets,
        };
        work(&cx).await
    }

    /// Runs an inline script of the shell.
    async fn run(&self, interpreter: &[&str], text: &str) -> Result<(), ProvisionError> {
        self.apply(&shell(interpreter, text), Duration::from_secs(30)).await
    }

    fn shown(&self) -> Vec<String> {
        self.shown.lock().unwrap().iter().map(|(_, line)| line.clone()).collect()
    }

    /// Fails if anything of forge is left in the guest.
    fn assert_clean(&self) {
        assert!(!self.path("run/forge").exists(), "something is left in the guest");
    }
}

const SH: &[&str] = &["/bin/sh", "-eu"];
const BASH: &[&str] = &["/bin/bash", "-eu"];

fn shell(interpreter: &[&str], text: &str) -> Step {
    Step {
        name: "test".to_owned(),
        shell: Some(Shell {
            inline: Some(text.to_owned()),
            interpreter: interpreter.iter().map(|&word| word.to_owned()).collect(),
            exit_codes: vec![0],
            ..Shell::default()
        }),
        ..Step::default()
    }
}

fn upload(source: &str, destination: &Path, mode: Option<&str>) -> Step {
    Step {
        name: "up".to_owned(),
        upload: Some(Upload {
            source: source.to_owned(),
            destination: destination.to_str().unwrap().to_owned(),
            mode: mode.map(str::to_owned),
            owner: None,
        }),
        ..Step::default()
    }
}

/// Tells whether a process with that marker in its command line is alive.
fn is_running(marker: &str) -> bool {
    fs::read_dir("/proc").unwrap().flatten().any(|process| {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ").contains(marker)
    })
}

#[tokio::test]
async fn output_is_live_and_whole() {
    let bench = Bench::new();
    let start = Instant::now();
    bench.run(SH, "echo one; sleep 1.2; echo two >&2; printf three").await.unwrap();
    let shown = bench.shown.lock().unwrap().clone();
    let lines: Vec<_> = shown.iter().map(|(_, line)| line.as_str()).collect();
    assert_eq!(lines, ["one", "two", "three"]);
    let first = shown[0].0 - start;
    assert!(first < Duration::from_secs(1), "the first line came after {first:?}");
    assert_eq!(*bench.logged.lock().unwrap(), ["one", "two", "three"]);
    bench.assert_clean();
}

/// Takes what scripts print, until it is stopped; offers nothing.
struct Sink {
    server: Mutex<Option<Server>>,
    asked: AtomicUsize,
}

impl Sink {
    async fn start(folder: &Path) -> Self {
        let reach = Reach::Towards("127.0.0.1".parse().unwrap());
        let (server, _) = Server::start(Settings::new(reach, folder).unwrap()).await.unwrap();
        Self { server: Mutex::new(Some(server)), asked: AtomicUsize::new(0) }
    }
}

impl Bulk for Sink {
    fn offer(&self, _content: Content) -> Option<Offer> {
        None
    }

    fn receive(&self) -> Option<Feed> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let (inlet, pieces) = self.server.lock().unwrap().as_ref()?.receive();
        Some(Feed { url: inlet.url().to_owned(), pieces, guard: Box::new(inlet) })
    }
}

const COUNTING: &str = "for number in $(seq 20); do echo $number; sleep 0.3; done; exit 7";

fn twenty() -> Vec<String> {
    (1..=20).map(|number| number.to_string()).collect()
}

#[tokio::test]
async fn output_that_the_guest_sends_is_not_asked_for() {
    let mut bench = Bench::new();
    bench.sink = Some(Sink::start(bench.folder.path()).await);
    let error = bench.run(SH, COUNTING).await.unwrap_err();
    assert!(matches!(error, ProvisionError::Failed { code: 7, .. }), "{error}");
    assert_eq!(bench.shown(), twenty());
    let calls = bench.host.calls.load(Ordering::Relaxed);
    println!("{calls} calls");
    assert!(calls < 18, "{calls} calls: asked for, they are more than thirty");
    bench.assert_clean();
    let settings = format!("--config {}", bench.path("run").display());
    let deadline = Instant::now() + Duration::from_secs(5);
    while is_running(&settings) {
        assert!(Instant::now() < deadline, "curl is left in the guest");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn output_that_does_not_arrive_is_read_and_nothing_is_shown_twice() {
    let mut bench = Bench::new();
    bench.sink = Some(Sink::start(bench.folder.path()).await);
    let stopping = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let server = bench.sink.as_ref().unwrap().server.lock().unwrap().take();
        server.unwrap().stop().await;
    };
    let (result, ()) = tokio::join!(bench.run(SH, COUNTING), stopping);
    assert!(matches!(result, Err(ProvisionError::Failed { code: 7, .. })), "{result:?}");
    assert_eq!(bench.shown(), twenty());
    bench.assert_clean();
}

#[tokio::test]
async fn what_may_print_a_secret_is_not_sent_in_the_clear() {
    let mut bench = Bench::new();
    bench.sink = Some(Sink::start(bench.folder.path()).await);
    bench.secrets = vec!["hunter2".to_owned()];
    for (value, asked) in [("token=hunter2", 0), ("nothing", 1)] {
        let mut step = shell(SH, "echo $VALUE");
        step.shell.as_mut().unwrap().env.insert("VALUE".to_owned(), value.to_owned());
        bench.apply(&step, Duration::from_secs(30)).await.unwrap();
        assert_eq!(bench.sink.as_ref().unwrap().asked.load(Ordering::Relaxed), asked, "{value}");
    }
    assert_eq!(bench.shown(), ["token=••••", "nothing"]);
}

#[tokio::test]
async fn strange_output_survives() {
    let bench = Bench::new();
    let text = r"printf 'a\377b\n10%%\r20%%\r100%%\n'; head -c 300000 /dev/zero | tr '\0' x; echo; seq 20000";
    bench.run(SH, text).await.unwrap();
    let (shown, logged) = (bench.shown(), bench.logged.lock().unwrap().clone());
    assert_eq!(shown[..2], ["a\u{fffd}b", "100%"]);
    assert_eq!((shown[2].len(), logged[2].len()), (4096, 300_000));
    assert_eq!((shown.len(), shown.last().unwrap().as_str()), (20_003, "20000"));
}

#[tokio::test]
async fn failures_name_the_line_in_sh_and_bash() {
    let places = |first, last, text: &str| Some(Place { first, last, text: text.to_owned() });
    for (interpreter, text, code, place) in [
        (SH, "true\n\nls /nonexistent-forge\ntrue\n", 2, places(3, 3, "ls /nonexistent-forge")),
        (SH, "true\nexit 3\n", 3, places(2, 2, "exit 3")),
        (SH, "x=$(false)\ntrue\n", 1, places(1, 1, "x=$(false)")),
        (SH, "true\nif true; then\n  false\nfi\ntrue\n", 1, places(1, 4, "true")),
        (SH, "f() {\n  false\n}\ntrue\nf\n", 1, places(5, 5, "f")),
        (SH, "true\necho $forge_nothing\n", 2, places(2, 2, "echo $forge_nothing")),
        (SH, "true | false\ntrue\n", 1, places(1, 1, "true | false")),
        (SH, "trap 'true' EXIT\nfalse\n", 1, None),
        (BASH, "true\n\nls /nonexistent-forge\ntrue\n", 2, places(3, 3, "ls /nonexistent-forge")),
        (BASH, "f() {\n  true\n  false\n}\nif true; then\n  f\nfi\n", 1, places(3, 3, "false")),
        (SH, "if true; then\n  forge-nothing\nfi\n", 127, places(2, 2, "forge-nothing")),
        (BASH, "false || true\nexit 3\n", 3, None),
        (BASH, "true\necho $forge_nothing\n", 1, places(2, 2, "echo $forge_nothing")),
        (&["/usr/bin/env", "python3"], "import sys\nsys.exit(4)\n", 4, None),
    ] {
        let bench = Bench::new();
        match bench.run(interpreter, text).await.unwrap_err() {
            ProvisionError::Failed { code: found, place: at, .. } => {
                assert_eq!((found, at), (code, place), "{interpreter:?} {text}");
            }
            other => panic!("{other}"),
        }
        bench.assert_clean();
    }
}

#[tokio::test]
async fn marks_do_not_change_what_a_script_does() {
    let bench = Bench::new();
    let text = r#"set +e
false
rc=$?
echo "rc $rc"
false
test $? -eq 1 && echo 'status kept'
check() { echo "saw $?"; }
(exit 7)
check
export A=1
B=$(echo 2)
cat <<END
_ $A $B
END
read -r line <<'END'
  from here
END
echo "$line"
set -- x y
echo "$# $1"
"#;
    bench.run(&["/bin/sh", "-u"], text).await.unwrap();
    assert_eq!(bench.shown(), ["rc 1", "status kept", "saw 7", "_ 1 2", "from here", "2 x"],);
}

#[tokio::test]
async fn a_deadline_ends_the_whole_tree() {
    let bench = Bench::new();
    // One child ignores the polite signal.
    let text = "echo begun\nsh -c 'trap : TERM; while :; do sleep 613.1; done' &\nsleep 613.2 & sleep 613.3";
    let error = bench.apply(&shell(SH, text), Duration::from_secs(1)).await.unwrap_err();
    assert!(matches!(&error, ProvisionError::TimedOut { tail, .. } if tail == &["begun"]), "{error}");
    assert_eq!(error.to_string(), "test: still running after 1.0 s, so it was ended");
    assert!(!is_running("sleep 613."));
    bench.assert_clean();
}

#[tokio::test]
async fn a_background_child_does_not_hold_the_step() {
    let bench = Bench::new();
    let start = Instant::now();
    bench.run(SH, "sleep 614.1 &\necho done").await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(bench.shown(), ["done", "forge: ended 1 process that test had left running"]);
    assert!(!is_running("sleep 614.1"));
    bench.assert_clean();
}

#[tokio::test]
async fn a_killed_script_is_not_waited_for() {
    let bench = Bench::new();
    let error = bench.run(SH, "echo here; kill -9 $PPID; sleep 0.2").await.unwrap_err();
    assert!(matches!(&error, ProvisionError::Vanished { tail, .. } if tail[0] == "here"), "{error}");
    bench.assert_clean();
}

#[tokio::test]
async fn attempts_are_repeated_and_reported() {
    let bench = Bench::new();
    let counter = bench.path("count");
    let text = format!("echo x >>{0}\n[ $(wc -l <{0}) = 2 ]\n", counter.display());
    let step = Step { retries: 3, ..shell(SH, &text) };
    bench.apply(&step, Duration::from_secs(20)).await.unwrap();
    assert_eq!(fs::read_to_string(&counter).unwrap(), "x\nx\n");
    let retries = bench.retries.lock().unwrap().clone();
    assert_eq!(retries.len(), 1);
    assert!(retries[0].starts_with("2/4: test: exit code 1 at line 2: `[ "), "{}", retries[0]);
}

#[tokio::test]
async fn secrets_are_masked_and_never_in_argv() {
    let mut bench = Bench::new();
    bench.secrets = vec!["hunter2hunter2".to_owned()];
    let mut step = shell(
        SH,
        "echo \"pw $PW\"\nfor f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$f; done 2>/dev/null | grep -c hunter2 || true\necho hunter2hunter2; false\n",
    );
    step.shell.as_mut().unwrap().env = BTreeMap::from([
        ("PW".to_owned(), "hunter2hunter2".to_owned()),
        ("Q".to_owned(), "it's \"$x\"".to_owned()),
    ]);
    let error = bench.apply(&step, Duration::from_secs(20)).await.unwrap_err();
    // grep's own command line is the only one.
    assert_eq!(bench.shown()[0], "pw ••••");
    assert_eq!(bench.shown().last().unwrap(), "••••");
    assert!(!format!("{error} {:?} {:?}", error.tail(), bench.logged.lock().unwrap()).contains("hunter2h"));
    assert!(error.to_string().contains("echo ••••; false"), "{error}");
    let count: u32 = bench.shown()[1].parse().unwrap();
    assert!(count <= 1, "{count} command lines hold the secret");
}

#[tokio::test]
async fn lost_answers_do_not_run_a_script_twice() {
    let faults = [Fault::NotSent, Fault::Unknown, Fault::Timeout, Fault::Refused, Fault::Gone];
    let cases = faults.into_iter().flat_map(|fault| (0..3).map(move |call| (fault, call)));
    let runs = cases.map(async |(fault, call)| {
        let mut bench = Bench::new();
        bench.host.fault = Some((call, fault));
        let counter = bench.path("count");
        let text = format!("echo x >>{}\nsleep 0.3\necho end\n", counter.display());
        let result = bench.run(SH, &text).await;
        let runs = fs::read_to_string(&counter).unwrap_or_default().len() / 2;
        if matches!(fault, Fault::Refused | Fault::Gone) {
            let error = result.unwrap_err().to_string();
            assert!(
                ["starting test: ", "looking at test: ", "cleaning up after test: "]
                    .iter()
                    .any(|what| error.starts_with(what)),
                "{error}"
            );
            assert!(runs <= 1, "{fault:?} {call}: ran {runs} times");
        } else {
            result.unwrap();
            assert_eq!((runs, bench.shown()), (1, vec!["end".to_owned()]), "{fault:?} {call}");
            bench.assert_clean();
        }
    });
    futures_util::future::join_all(runs).await;
}

#[tokio::test]
async fn large_scripts_go_in_pieces() {
    let bench = Bench::new();
    let text = format!("# {}\necho \"$A\"\n", "x".repeat(150_000));
    let mut step = shell(SH, &text);
    step.shell.as_mut().unwrap().env = BTreeMap::from([("A".to_owned(), "whole\nvalue".to_owned())]);
    bench.apply(&step, Duration::from_secs(20)).await.unwrap();
    assert_eq!(bench.shown(), ["whole", "value"]);
    bench.assert_clean();
}

#[tokio::test]
async fn script_files_are_rendered_when_they_are_templates() {
    let bench = Bench::new();
    fs::write(bench.path("a.sh.j2"), "echo {{ name }}\n").unwrap();
    fs::write(bench.path("a.sh"), "echo '{{ name }}'\n").unwrap();
    for name in ["a.sh.j2", "a.sh"] {
        let mut step = shell(SH, "");
        let shell = step.shell.as_mut().unwrap();
        (shell.inline, shell.script) = (None, Some(name.to_owned()));
        bench.apply(&step, Duration::from_secs(20)).await.unwrap();
    }
    assert_eq!(bench.shown(), ["odin", "{{ name }}"]);
}

#[tokio::test]
async fn trees_arrive_with_modes_links_and_strange_names() {
    let bench = Bench::new();
    let source = bench.path("tree");
    fs::create_dir_all(source.join("sub/deep")).unwrap();
    let long = "long/".repeat(30);
    fs::create_dir_all(source.join(&long)).unwrap();
    for name in ["a b'c\"$(x)", "-rf", "new\nline", "sub/deep/é.j2x", &format!("{long}file")] {
        fs::write(source.join(name), name).unwrap();
    }
    fs::write(source.join("sub/motd.j2"), "hello {{ name }}").unwrap();
    fs::write(source.join("run.sh"), "x").unwrap();
    fs::set_permissions(source.join("run.sh"), fs::Permissions::from_mode(0o700)).unwrap();
    symlink("sub/deep", source.join("link")).unwrap();
    let target = bench.path("out/there");
    fs::create_dir_all(target.join("sub")).unwrap();
    fs::set_permissions(target.join("sub"), fs::Permissions::from_mode(0o2750)).unwrap();
    bench.apply(&upload("tree", &target, None), Duration::from_secs(20)).await.unwrap();
    for name in ["a b'c\"$(x)", "-rf", "new\nline", "sub/deep/é.j2x", &format!("{long}file")] {
        assert_eq!(fs::read_to_string(target.join(name)).unwrap(), name);
    }
    assert_eq!(fs::read_to_string(target.join("sub/motd")).unwrap(), "hello odin");
    assert_eq!(fs::read_link(target.join("link")).unwrap(), Path::new("sub/deep"));
    let mode = |name: &str| fs::metadata(target.join(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("run.sh"), mode("-rf"), mode("sub"), mode("sub/deep")), (0o755, 0o644, 0o2750, 0o755));
}

#[tokio::test]
async fn one_file_gets_its_mode_and_replaces_what_was_there() {
    let bench = Bench::new();
    fs::write(bench.path("one"), "new").unwrap();
    let target = bench.path("etc/two");
    fs::create_dir(bench.path("etc")).unwrap();
    fs::write(&target, "old").unwrap();
    bench.apply(&upload("one", &target, Some("0440")), Duration::from_secs(20)).await.unwrap();
    assert_eq!(fs::read_to_string(&target).unwrap(), "new");
    assert_eq!(fs::metadata(&target).unwrap().mode() & 0o7777, 0o440);
    let mut wrong = upload("missing", &target, None);
    assert!(matches!(
        bench.apply(&wrong, Duration::from_secs(5)).await,
        Err(ProvisionError::Local { path, .. }) if path.ends_with("missing")
    ));
    wrong.upload.as_mut().unwrap().owner = Some("nobody".to_owned());
    assert!(matches!(bench.apply(&wrong, Duration::from_secs(5)).await, Err(ProvisionError::Invalid(_))));
}

/// Bytes that do not repeat.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

#[tokio::test]
async fn big_files_go_in_pieces_and_lost_answers_do_no_harm() {
    let content = noise(200 * 1024);
    for fault in [None, Some((3, Fault::Unknown)), Some((2, Fault::NotSent)), Some((6, Fault::Timeout))] {
        let mut bench = Bench::new();
        bench.host.fault = fault;
        fs::write(bench.path("big"), &content).unwrap();
        let target = bench.path("out/big");
        bench.apply(&upload("big", &target, None), Duration::from_secs(20)).await.unwrap();
        assert!(fs::read(&target).unwrap() == content, "{fault:?}");
        assert_eq!(fs::read_dir(bench.path("out")).unwrap().count(), 1, "{fault:?}");
        bench.assert_clean();
    }
}

/// Offers files as `file://` URLs, which curl understands as well.
struct FileServer {
    spoil: bool,
    offered: AtomicUsize,
}

impl Bulk for FileServer {
    fn offer(&self, content: Content) -> Option<Offer> {
        self.offered.fetch_add(1, Ordering::Relaxed);
        let Content::File(path) = content else { panic!("files are offered as files") };
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("archive");
        fs::copy(path, &copy).unwrap();
        if self.spoil {
            fs::write(&copy, "something else").unwrap();
        }
        Some(Offer { url: format!("file://{}", copy.display()), guard: Box::new(folder) })
    }
}

#[tokio::test]
async fn big_files_are_fetched_and_verified() {
    let content = noise(200 * 1024);
    for spoil in [false, true] {
        let mut bench = Bench::new();
        bench.bulk = Some(FileServer { spoil, offered: AtomicUsize::new(0) });
        fs::write(bench.path("big"), &content).unwrap();
        let target = bench.path("out/big");
        let result = bench.apply(&upload("big", &target, None), Duration::from_secs(20)).await;
        if spoil {
            let error = result.unwrap_err().to_string();
            assert!(error.contains("what arrived is not what was sent: expected sha256"), "{error}");
            assert!(!target.exists());
        } else {
            result.unwrap();
            assert!(fs::read(&target).unwrap() == content);
        }
        assert_eq!(bench.bulk.as_ref().unwrap().offered.load(Ordering::Relaxed), 1);
        assert!(fs::read_dir(bench.path("out")).unwrap().count() <= 1);
    }
}

#[tokio::test]
async fn a_guest_that_cannot_fetch_gets_pieces() {
    struct Nowhere;
    impl Bulk for Nowhere {
        fn offer(&self, _content: Content) -> Option<Offer> {
            Some(Offer { url: "file:///nonexistent-forge".to_owned(), guard: Box::new(()) })
        }
    }
    let bench = Bench::new();
    let content = noise(100 * 1024);
    fs::write(bench.path("big"), &content).unwrap();
    let target = bench.path("out/big");
    let shown = Mutex::new(Vec::new());
    let guest = bench.path("run/forge");
    let cx = Context {
        guest: &bench.host,
        folder: guest.to_str().unwrap(),
        bulk: Some(&Nowhere),
        root: bench.folder.path(),
        output: &|line| shown.lock().unwrap().push(line.to_owned()),
        log: &|_| (),
        retry: &|_, _, _| (),
        render: &|_| unreachable!(),
        secrets: &[],
    };
    apply(&upload("big", &target, None), Duration::from_secs(30), &cx).await.unwrap();
    assert!(fs::read(&target).unwrap() == content);
    assert_eq!(shown.lock().unwrap().last().unwrap(), "forge: sending in pieces instead");
}

/// Puts programs with those names and texts first on the guest's search path.
fn fake_programs(bench: &mut Bench, programs: &[(&str, &str)]) {
    let bin = bench.path("bin");
    fs::create_dir(&bin).unwrap();
    for (name, text) in programs {
        fs::write(bin.join(name), format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    bench.host.path = format!("{}:{}", bin.display(), bench.host.path);
}

fn packages(install: &[&str], upgrade: bool) -> Step {
    Step {
        name: "packages".to_owned(),
        packages: Some(Packages { install: install.iter().map(|&name| name.to_owned()).collect(), upgrade }),
        ..Step::default()
    }
}

#[tokio::test]
async fn packages_are_installed_after_a_retried_update() {
    let mut bench = Bench::new();
    let count = bench.path("updates");
    let apt = format!(
        "for word; do case $word in update) echo x >>{0}; [ $(wc -l <{0}) -gt 1 ] || exit 100; echo updated;; \
         install) shift $(($# - 2)); echo \"installing $2 as $DEBIAN_FRONTEND\";; esac; done",
        count.display()
    );
    let query = "for word; do :; done; [ \"$word\" != vim ] || printf installed";
    fake_programs(&mut bench, &[("apt-get", &apt), ("dpkg-query", query)]);
    bench.apply(&packages(&["vim", "zip"], false), Duration::from_secs(20)).await.unwrap();
    assert_eq!(
        bench.shown(),
        [
            "forge: the package lists could not be fetched; again in 1 s",
            "updated",
            "installing zip as noninteractive"
        ]
    );
}

#[tokio::test]
async fn nothing_is_fetched_when_all_is_installed() {
    let mut bench = Bench::new();
    fake_programs(&mut bench, &[("apt-get", "exit 9"), ("dpkg-query", "printf installed")]);
    bench.apply(&packages(&["vim", "zip"], false), Duration::from_secs(20)).await.unwrap();
    assert_eq!(bench.shown(), ["forge: already installed: vim zip"]);
}

#[tokio::test]
async fn a_held_lock_is_waited_for_and_named() {
    let mut bench = Bench::new();
    let lock = bench.path("lock");
    fs::write(&lock, "").unwrap();
    let ready = bench.path("ready");
    let program = "import fcntl,sys,time\nf=open(sys.argv[1],'w'); fcntl.lockf(f, fcntl.LOCK_EX)\n\
                   open(sys.argv[2],'w').close(); time.sleep(60)";
    let mut holder = tokio::process::Command::new("python3")
        .args(["-c", program, lock.to_str().unwrap(), ready.to_str().unwrap()])
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    while !ready.exists() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    fake_programs(&mut bench, &[("apt-get", "exit 9"), ("dpkg-query", "exit 1")]);
    // The locks' paths are the system's own; only the test's script names another.
    let text = format!("locks={}\n", lock.display()) + include_str!("../src/provision/guest/packages.sh");
    let mut step = shell(SH, &text);
    step.shell.as_mut().unwrap().env = [("packages", "vim"), ("upgrade", "false"), ("lock_wait", "1")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into_iter()
        .collect();
    let error = bench.apply(&step, Duration::from_secs(20)).await.unwrap_err();
    let shown = bench.shown();
    let who =
        format!("forge: waiting for process {} (python3) holding {}", holder.id().unwrap(), lock.display());
    assert_eq!(shown[0], who);
    assert!(shown[1].starts_with("forge: gave up after 1 s waiting for process"), "{shown:?}");
    assert!(matches!(error, ProvisionError::Failed { code: 100, .. }), "{error}");
    holder.kill().await.unwrap();
}

#[tokio::test]
async fn wrong_steps_are_refused_before_the_guest_is_touched() {
    let bench = Bench::new();
    let both = Step { packages: packages(&[], false).packages, ..shell(SH, "true") };
    let mut variable = shell(SH, "true");
    variable.shell.as_mut().unwrap().env = BTreeMap::from([("A B".to_owned(), String::new())]);
    for step in [Step::default(), both, packages(&["--reinstall"], false), shell(&[], "true"), variable] {
        let error = bench.apply(&step, Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(error, ProvisionError::Invalid(_)), "{error}");
    }
    bench.assert_clean();
}

#[tokio::test]
async fn sealing_tells_the_script_what_must_be_gone() {
    let bench = Bench::new();
    fs::write(bench.path("seal.sh"), "echo \"$USER_NAME|$FORGE_ABSENT|$FORGE_TRIM\"\n").unwrap();
    for trim in [false, true] {
        let what = Seal {
            script: "seal.sh".to_owned(),
            env: BTreeMap::from([("USER_NAME".to_owned(), "odin".to_owned())]),
            absent: vec!["/a b".to_owned(), "/c*".to_owned()],
            trim,
        };
        bench.with_context(async |cx| seal(&what, Duration::from_secs(20), cx).await).await.unwrap();
    }
    assert_eq!(bench.shown(), ["odin|/a b", "/c*|no", "odin|/a b", "/c*|yes"]);
}

/// A guest that reboots: it remembers what it was asked, and loses some answers.
struct Rebooting {
    asked: Mutex<Vec<String>>,
    faults: Mutex<Vec<Option<Fault>>>,
}

impl Communicator for Rebooting {
    fn exec<'a>(&'a self, command: &'a Exec) -> BoxFuture<'a, Result<Output, CommunicatorError>> {
        Box::pin(async move {
            let kind = if command.argv[2].contains("boot_id") { "read" } else { "reboot" };
            self.asked.lock().unwrap().push(kind.to_owned());
            if let Some(fault) = self.faults.lock().unwrap().pop().flatten() {
                return Err(error(fault));
            }
            let (stdout, stderr) = (b"old-boot\n".to_vec(), Vec::new());
            Ok(Output { code: Some(0), signal: None, stdout, stderr, truncated: false })
        })
    }

    fn put_file<'a>(&'a self, _: &'a str, _: &'a [u8]) -> BoxFuture<'a, Result<(), CommunicatorError>> {
        unreachable!("a reboot writes nothing")
    }

    fn get_file<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Vec<u8>, CommunicatorError>> {
        unreachable!("a reboot reads no file whole")
    }

    fn wait_for_reboot<'a>(
        &'a self,
        previous_boot_id: &'a str,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<(), CommunicatorError>> {
        assert!(deadline > Duration::from_secs(10));
        Box::pin(async move {
            self.asked.lock().unwrap().push(format!("wait {previous_boot_id}"));
            Ok(())
        })
    }
}

#[tokio::test]
async fn a_reboot_is_asked_for_once_and_waited_for() {
    let step = Step { name: "again".to_owned(), reboot: Some(Reboot::default()), ..Step::default() };
    for (fault, asked) in [
        (None, &["read", "reboot", "wait old-boot"][..]),
        (Some(Fault::Unknown), &["read", "reboot", "wait old-boot"]),
        (Some(Fault::NotSent), &["read", "reboot", "reboot", "wait old-boot"]),
    ] {
        let guest = Rebooting { asked: Mutex::default(), faults: Mutex::new(vec![fault, None]) };
        let cx = Context {
            guest: &guest,
            folder: "/nowhere",
            bulk: None,
            root: Path::new("/"),
            output: &|_| (),
            log: &|_| (),
            retry: &|_, _, _| (),
            render: &|_| unreachable!(),
            secrets: &[],
        };
        apply(&step, Duration::from_secs(20), &cx).await.unwrap();
        assert_eq!(*guest.asked.lock().unwrap(), asked, "{fault:?}");
    }
}
