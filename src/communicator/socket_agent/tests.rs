//! The agent's client against a fake agent on a real socket.

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex as StdMutex};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::task::AbortOnDropHandle;

use super::super::contract::{self, Host, Status};
use super::*;
use crate::qemu::End;

const SOON: Duration = Duration::from_millis(300);
const LIMIT: Duration = Duration::from_secs(10);

/// What the fake does with a request.
enum Answer {
    /// Replies with this value.
    Return(Value),
    /// Refuses with this class and description.
    Refuse(&'static str, &'static str),
    /// Says these bytes.
    Raw(Vec<u8>),
    /// Says these bytes and closes the connection.
    Close(Vec<u8>),
    /// Says nothing.
    Silence,
}

struct Fake {
    agent: SocketAgent,
    machine: watch::Sender<State>,
    socket: PathBuf,
    _folder: TempDir,
    _server: AbortOnDropHandle<()>,
}

/// Starts an agent that answers `guest-sync-delimited` by itself, and the rest by `script`.
fn fake(script: impl FnMut(&str, &Value) -> Answer + Send + 'static) -> Fake {
    fake_with_sync(script, |_| true)
}

/// The same, where `in_sync` tells whether a sync is answered; it sees how many came before it.
fn fake_with_sync(
    mut script: impl FnMut(&str, &Value) -> Answer + Send + 'static,
    in_sync: impl Fn(usize) -> bool + Send + Sync + 'static,
) -> Fake {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent");
    let (machine, state) = watch::channel(State::default());
    let listener = UnixListener::bind(&socket).unwrap();
    let server = tokio::spawn(async move {
        let mut syncs = 0;
        // Like QEMU, one client after another.
        while let Ok((stream, _)) = listener.accept().await {
            serve(stream, |command, request| {
                if command != "guest-sync-delimited" {
                    return script(command, &request["arguments"]);
                }
                syncs += 1;
                if in_sync(syncs - 1) {
                    let id = &request["arguments"]["id"];
                    let reply = json!({"return": id, "id": request["id"]});
                    Answer::Raw([b"\xff", reply.to_string().as_bytes(), b"\n"].concat())
                } else {
                    Answer::Silence
                }
            })
            .await;
        }
    });
    Fake {
        agent: SocketAgent::new(&socket, state),
        machine,
        socket,
        _folder: folder,
        _server: AbortOnDropHandle::new(server),
    }
}

async fn serve(mut stream: UnixStream, mut answer: impl FnMut(&str, &Value) -> Answer) {
    let mut bytes = Vec::new();
    while stream.read_buf(&mut bytes).await.is_ok_and(|count| count > 0) {
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = bytes.drain(..=end).collect();
            let start = line.iter().rposition(|&byte| byte == 0xff).map_or(0, |at| at + 1);
            let request: Value = serde_json::from_slice(&line[start..]).unwrap();
            let id = &request["id"];
            let reply = match answer(request["execute"].as_str().unwrap(), &request) {
                Answer::Return(value) => format!("{}\n", json!({"return": value, "id": id})).into_bytes(),
                Answer::Refuse(class, desc) => {
                    format!("{}\n", json!({"error": {"class": class, "desc": desc}, "id": id})).into_bytes()
                }
                Answer::Raw(bytes) => bytes,
                Answer::Close(bytes) => {
                    stream.write_all(&bytes).await.unwrap();
                    return;
                }
                Answer::Silence => continue,
            };
            if stream.write_all(&reply).await.is_err() {
                return;
            }
        }
    }
}

fn exited(out: &str) -> Answer {
    let data = qapi_base64(out.as_bytes());
    Answer::Return(json!({"exited": true, "exitcode": 0, "out-data": data}))
}

/// Returns bytes in base64, by way of a request of qapi's own.
fn qapi_base64(bytes: &[u8]) -> String {
    let request = qga::guest_file_write { count: None, buf_b64: bytes.to_vec(), handle: 0 };
    let request = serde_json::to_value(request).unwrap();
    request["buf-b64"].as_str().unwrap().to_owned()
}

fn from_base64(text: &Value) -> Vec<u8> {
    let request = json!({"buf-b64": text, "handle": 0});
    serde_json::from_value::<qga::guest_file_write>(request).unwrap().buf_b64
}

/// An agent on which every command prints `out` at once.
fn prints(out: &'static str) -> impl FnMut(&str, &Value) -> Answer {
    move |command, _| match command {
        "guest-exec" => Answer::Return(json!({"pid": 7})),
        _ => exited(out),
    }
}

fn quick() -> Exec {
    Exec::new(["true"]).timeout(LIMIT)
}

#[tokio::test(start_paused = true)]
async fn readiness_is_noticed_soon_when_nobody_tells() {
    // At several points of the first connections' lives, so that reconnecting is a part of it.
    let silences = [90, 380, 690, 980, 1310, 1720].map(Duration::from_millis);
    futures_util::future::join_all(silences.map(notices_soon_after)).await;
}

async fn notices_soon_after(silence: Duration) {
    let ready_at = Instant::now() + silence;
    let syncs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&syncs);
    let fake = fake_with_sync(prints(""), move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        Instant::now() >= ready_at
    });
    fake.agent.wait_until_ready(LIMIT).await.unwrap();
    let late = ready_at.elapsed();
    assert!(Instant::now() >= ready_at && late < SOON, "{late:?} after {silence:?}");
    // It waits between its questions.
    let most = silence.as_millis() / NUDGE.as_millis() + 4;
    let syncs = syncs.load(Ordering::Relaxed);
    assert!((syncs as u128) <= most, "{syncs} questions in {silence:?}");
}

#[tokio::test(start_paused = true)]
async fn readiness_is_noticed_soon_when_the_port_opens() {
    let fake = fake(prints(""));
    fake.machine.send_modify(|state| state.agent_port = AgentPort::Closed);
    let wait = fake.agent.wait_until_ready(LIMIT);
    let open = async {
        sleep(Duration::from_millis(500)).await;
        fake.machine.send_modify(|state| state.agent_port = AgentPort::Open);
        Instant::now()
    };
    let (ready, opened) = tokio::join!(async { wait.await.map(|()| Instant::now()) }, open);
    let ready = ready.unwrap();
    assert!(ready >= opened, "it answered through a closed port");
    assert!(ready - opened < SOON, "{:?}", ready - opened);
}

/// With the clock paused only waiting takes time, so the policy is measured and no load can matter.
#[tokio::test(start_paused = true)]
async fn a_socket_that_appears_later_is_noticed_soon() {
    // Just after the first try, where a long first pause shows at its longest, and later on.
    for moment in [1, 30, 150, 310, 620, 1250, 5010].map(Duration::from_millis) {
        let fake = fake(prints(""));
        let later = fake.socket.with_extension("later");
        let agent = SocketAgent::new(&later, fake.machine.subscribe());
        let appear = async {
            sleep(moment).await;
            std::fs::rename(&fake.socket, &later).unwrap();
            Instant::now()
        };
        let (ready, appeared) = tokio::join!(agent.wait_until_ready(LIMIT), appear);
        ready.unwrap();
        assert!(appeared.elapsed() < SOON, "{:?} after {moment:?}", appeared.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_ends_at_once_is_tried_again_soon_but_not_busily() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent");
    let listener = UnixListener::bind(&socket).unwrap();
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&tries);
    let _server = AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            drop(stream);
        }
    }));
    let (_machine, state) = watch::channel(State::default());
    SocketAgent::new(&socket, state).wait_until_ready(Duration::from_secs(3)).await.unwrap_err();
    let tries = tries.load(Ordering::Relaxed);
    assert!((10..=150).contains(&tries), "{tries} tries in 3 s");
}

#[tokio::test(start_paused = true)]
async fn a_command_that_is_done_at_once_is_noticed_soon() {
    let fake = fake(prints("out"));
    fake.agent.wait_until_ready(LIMIT).await.unwrap();
    let started = Instant::now();
    fake.agent.exec(&quick()).await.unwrap();
    assert!(started.elapsed() < Duration::from_millis(50), "{:?}", started.elapsed());
}

#[tokio::test]
async fn an_agent_that_is_always_slow_is_ready_too() {
    // Each reply comes after the connection on which it was asked for has been given up.
    let held = Arc::new(StdMutex::new(Vec::<u8>::new()));
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent");
    let listener = UnixListener::bind(&socket).unwrap();
    let _server = AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let stale = std::mem::take(&mut *held.lock().unwrap());
            stream.write_all(&stale).await.unwrap();
            serve(stream, |_, request| {
                let reply = json!({"return": request["arguments"]["id"], "id": request["id"]});
                *held.lock().unwrap() = format!("{reply}\n").into_bytes();
                Answer::Silence
            })
            .await;
        }
    }));
    let (_machine, state) = watch::channel(State::default());
    SocketAgent::new(&socket, state).wait_until_ready(LIMIT).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_never_answers_is_not_ready_at_the_deadline() {
    let fake = fake_with_sync(prints(""), |_| false);
    let started = Instant::now();
    let error = fake.agent.wait_until_ready(Duration::from_millis(250)).await.unwrap_err();
    assert!(matches!(&error, CommunicatorError::NotSent { .. }), "{error}");
    assert!(error.to_string().contains("not within 0.2 s: no answer to guest-sync"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(1));
    let error = fake.agent.exec(&quick().timeout(Duration::from_millis(50))).await.unwrap_err();
    assert!(matches!(&error, CommunicatorError::NotSent { .. }), "{error}");
}

#[tokio::test]
async fn stale_replies_noise_and_half_lines_do_no_harm() {
    let mut chunks = 0;
    let fake = fake(move |command, _| {
        chunks += 1;
        let stale = b"{\"return\": 1, \"id\": 3}\n{\"return\": {\"pid\": 1}}\nnonsense\n{\"half\xff".to_vec();
        match (command, chunks) {
            // The true reply comes with the next poll only, which asks again.
            ("guest-exec", 1) => Answer::Return(json!({"pid": 7})),
            (_, 2 | 3) => Answer::Return(json!({"exited": false})),
            (_, 4) => Answer::Close(stale),
            _ => exited("out"),
        }
    });
    let output = fake.agent.exec(&quick()).await.unwrap();
    assert_eq!(output.text(), "out");
}

#[tokio::test]
async fn noise_before_a_reply_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent");
    let listener = UnixListener::bind(&socket).unwrap();
    let _server = AbortOnDropHandle::new(tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        serve(stream, |_, request| {
            let (id, arguments) = (&request["id"], &request["arguments"]);
            let value = if arguments["id"].is_null() { json!(4711) } else { arguments["id"].clone() };
            let text = format!(
                "{{\"return\": 5, \"id\": 5}}\n{{\"return\": 6}}\n{{\"error\": {{\"class\": \"GenericError\", \
                 \"desc\": \"stale\"}}}}\n{{\"ret\u{0}{{\"return\": {value}, \"id\": {id}}}\n"
            );
            let bytes = text.bytes().map(|byte| if byte == 0 { 0xff } else { byte });
            Answer::Raw(bytes.collect())
        })
        .await;
    }));
    let (_machine, state) = watch::channel(State::default());
    let agent = SocketAgent::new(&socket, state);
    agent.wait_until_ready(LIMIT).await.unwrap();
    assert_eq!(agent.open("/x", "r").await.unwrap(), 4711);
}

#[tokio::test]
async fn a_lost_reply_is_not_a_refusal_and_the_next_command_works() {
    let mut first = true;
    let fake = fake(move |command, _| {
        if std::mem::take(&mut first) {
            return Answer::Close(b"{\"return\": {\"pi".to_vec());
        }
        match command {
            "guest-exec" => Answer::Return(json!({"pid": 7})),
            _ => exited("again"),
        }
    });
    let error = fake.agent.exec(&quick()).await.unwrap_err();
    assert!(matches!(&error, CommunicatorError::Unknown { .. }), "{error}");
    assert_eq!(fake.agent.exec(&quick()).await.unwrap().text(), "again");
}

#[tokio::test]
async fn an_unanswered_command_may_have_run() {
    let fake = fake(|_, _| Answer::Silence);
    let error = fake.agent.exec(&quick().timeout(Duration::from_millis(100))).await.unwrap_err();
    assert!(matches!(&error, CommunicatorError::Unknown { .. }), "{error}");
    assert!(error.to_string().contains("guest-exec was not answered in time"), "{error}");
}

#[tokio::test]
async fn a_command_is_sent_whole_and_its_result_comes_back() {
    let seen = Arc::new(StdMutex::new(Value::Null));
    let sent = Arc::clone(&seen);
    let mut polls = 0;
    let fake = fake(move |command, arguments| {
        if command == "guest-exec" {
            *sent.lock().unwrap() = arguments.clone();
            return Answer::Return(json!({"pid": 42}));
        }
        assert_eq!(arguments["pid"], 42);
        polls += 1;
        if polls < 3 {
            return Answer::Return(json!({"exited": false}));
        }
        Answer::Return(json!({
            "exited": true, "signal": 15, "out-data": qapi_base64(b"a\xff"), "err-data": qapi_base64(b"b"),
            "err-truncated": true, "from-mars": 1
        }))
    });
    let mut command = Exec::new(["/bin/cat", "-", "a b"]).stdin(b"in\0put".to_vec());
    command.env = vec![("LC_ALL".to_owned(), "C".to_owned()), ("X".to_owned(), "1=2".to_owned())];
    let output = fake.agent.exec(&command).await.unwrap();
    let expected = Output {
        code: None,
        signal: Some(15),
        stdout: b"a\xff".to_vec(),
        stderr: b"b".to_vec(),
        truncated: true,
    };
    assert_eq!(output, expected);

    let request = seen.lock().unwrap().clone();
    assert_eq!(request["path"], "/bin/cat");
    assert_eq!(request["arg"], json!(["-", "a b"]));
    assert_eq!(request["env"], json!([format!("PATH={}", ENVIRONMENT[0].1), "LC_ALL=C", "X=1=2"]));
    assert_eq!(request["capture-output"], true);
    assert_eq!(from_base64(&request["input-data"]), b"in\0put");
}

#[tokio::test]
async fn refusals_carry_the_guests_words_and_what_to_do() {
    let fake = fake(|command, _| match command {
        "guest-exec" => Answer::Refuse("CommandNotFound", "Command guest-exec has been disabled"),
        _ => Answer::Refuse("ClassFromMars", "failed to open file '/x': No such file or directory"),
    });
    let error = fake.agent.exec(&quick()).await.unwrap_err();
    assert!(matches!(&error, CommunicatorError::Refused { .. }), "{error}");
    for words in ["blocks guest-exec", "qemu-ga.conf", "has been disabled"] {
        assert!(error.to_string().contains(words), "{error}");
    }
    let error = fake.agent.get_file("/x").await.unwrap_err().to_string();
    assert!(error.starts_with("reading /x: refused by the guest: failed to open"), "{error}");
    let error = fake.agent.exec(&Exec::new([""; 0])).await.unwrap_err().to_string();
    assert!(error.contains("the command is empty"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_command_that_does_not_end_times_out() {
    let fake = fake(|command, _| match command {
        "guest-exec" => Answer::Return(json!({"pid": 7})),
        _ => Answer::Return(json!({"exited": false})),
    });
    let started = Instant::now();
    let error = fake.agent.exec(&quick().timeout(Duration::from_millis(150))).await.unwrap_err();
    assert!(matches!(&error, CommunicatorError::Timeout { .. }), "{error}");
    assert!((150..400).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_restarted_agent_has_forgotten_the_command() {
    let fake = fake(|command, _| match command {
        "guest-exec" => Answer::Return(json!({"pid": 7})),
        _ => Answer::Refuse("GenericError", "PID 7 does not exist"),
    });
    let error = fake.agent.exec(&quick()).await.unwrap_err();
    assert!(matches!(&error, CommunicatorError::Unknown { .. }), "{error}");
    assert!(error.to_string().contains("forgotten"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_ends_is_gone_at_once() {
    let fake = fake(|command, _| match command {
        "guest-exec" => Answer::Return(json!({"pid": 7})),
        _ => Answer::Silence,
    });
    let end = async {
        sleep(Duration::from_millis(100)).await;
        fake.machine.send_modify(|state| state.finish(End::PowerOff));
        Instant::now()
    };
    let silent = SocketAgent::new("/nowhere", fake.machine.subscribe());
    let command = quick();
    let (running, waiting, ended) =
        tokio::join!(fake.agent.exec(&command), silent.wait_until_ready(LIMIT), end);
    assert!(ended.elapsed() < Duration::from_millis(100), "{:?}", ended.elapsed());
    for error in [running.unwrap_err(), waiting.unwrap_err(), fake.agent.boot_id().await.unwrap_err()] {
        assert!(matches!(&error, CommunicatorError::Gone { .. }), "{error}");
        assert!(error.to_string().ends_with("the guest powered off"), "{error}");
    }
}

#[tokio::test]
async fn a_connection_that_ends_with_the_machine_is_gone_too() {
    let fake = fake(|_, _| Answer::Close(Vec::new()));
    fake.agent.wait_until_ready(LIMIT).await.unwrap();
    let command = quick();
    let crash = async {
        // Later than the connection's end, as a dying process is seen.
        sleep(Duration::from_millis(50)).await;
        let end = End::Crashed { status: "signal 9".to_owned(), stderr: String::new() };
        fake.machine.send_modify(|state| state.finish(end));
    };
    let (result, ()) = tokio::join!(fake.agent.exec(&command), crash);
    let error = result.unwrap_err();
    assert!(matches!(&error, CommunicatorError::Gone { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_restarting_guest_ends_its_commands_at_once() {
    let fake = fake(|command, _| match command {
        "guest-exec" => Answer::Return(json!({"pid": 7})),
        _ => Answer::Silence,
    });
    let restart = async {
        sleep(Duration::from_millis(100)).await;
        fake.machine.send_modify(|state| state.resets += 1);
        Instant::now()
    };
    let command = quick();
    let (result, restarted) = tokio::join!(fake.agent.exec(&command), restart);
    assert!(restarted.elapsed() < SOON + GRACE);
    let error = result.unwrap_err();
    assert!(matches!(&error, CommunicatorError::Unknown { .. }), "{error}");
    assert!(error.to_string().contains("the guest restarted"), "{error}");
}

#[tokio::test]
async fn many_callers_get_their_own_output() {
    let mut commands = HashMap::new();
    let fake = fake(move |command, arguments| {
        if command == "guest-exec" {
            let pid = commands.len() + 1;
            commands.insert(pid as u64, (arguments["path"].as_str().unwrap().to_owned(), 0));
            return Answer::Return(json!({"pid": pid}));
        }
        let (path, polls) = commands.get_mut(&arguments["pid"].as_u64().unwrap()).unwrap();
        *polls += 1;
        if *polls < 2 { Answer::Return(json!({"exited": false})) } else { exited(path) }
    });
    let names: Vec<String> = (0..20).map(|number| format!("command {number}")).collect();
    let commands: Vec<Exec> = names.iter().map(|name| Exec::new([name.as_str()])).collect();
    let outputs = futures_util::future::join_all(commands.iter().map(|command| fake.agent.exec(command)));
    let outputs: Vec<String> = outputs.await.into_iter().map(|output| output.unwrap().text()).collect();
    assert_eq!(outputs, names);
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_confuse_the_next() {
    let mut execs = 0;
    let fake = fake(move |command, _| match command {
        "guest-exec" => {
            execs += 1;
            if execs == 1 { Answer::Silence } else { Answer::Return(json!({"pid": 7})) }
        }
        _ => exited("mine"),
    });
    let command = quick();
    let cancelled = timeout(Duration::from_millis(50), fake.agent.exec(&command)).await;
    assert!(cancelled.is_err());
    assert_eq!(fake.agent.exec(&command).await.unwrap().text(), "mine");
}

/// An agent with files in memory; it writes 20000 and reads 1000 bytes a request at most.
fn files(initial: &[(&str, &[u8])]) -> impl FnMut(&str, &Value) -> Answer + use<> {
    let mut files: HashMap<String, Vec<u8>> =
        initial.iter().map(|&(path, content)| (path.to_owned(), content.to_vec())).collect();
    let (mut name, mut position) = (String::new(), 0);
    move |command, arguments| match command {
        "guest-file-open" => {
            assert!(name.is_empty(), "a file was left open");
            arguments["path"].as_str().unwrap().clone_into(&mut name);
            position = 0;
            if arguments["mode"] == "w" {
                files.insert(name.clone(), Vec::new());
            }
            Answer::Return(json!(5))
        }
        "guest-file-write" => {
            let mut bytes = from_base64(&arguments["buf-b64"]);
            bytes.truncate(20_000);
            let count = bytes.len();
            files.get_mut(&name).unwrap().extend(bytes);
            Answer::Return(json!({"count": count, "eof": false}))
        }
        "guest-file-read" => {
            let content = files.get(&name).unwrap();
            let wanted = arguments["count"].as_u64().unwrap() as usize;
            let end = content.len().min(position + wanted.min(1000));
            let bytes = &content[position..end];
            position = end;
            let eof = position == content.len();
            Answer::Return(json!({"count": bytes.len(), "eof": eof, "buf-b64": qapi_base64(bytes)}))
        }
        "guest-file-close" => {
            name.clear();
            Answer::Return(json!({}))
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn files_are_replaced_and_read_back() {
    let fake = fake(files(&[("/etc/x", b"what was there, and longer")]));
    for content in [b"new\0\xff".to_vec(), Vec::new(), vec![b'x'; PUT_FILE_MAX]] {
        fake.agent.put_file("/etc/x", &content).await.unwrap();
        assert_eq!(fake.agent.get_file("/etc/x").await.unwrap(), content);
    }
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    let fake = fake(files(&[("/x", &[b'x'; 3000])]));
    let errors = [
        fake.agent.put_file("/x", &vec![0; PUT_FILE_MAX + 1]).await.unwrap_err(),
        fake.agent.exec(&quick().stdin(vec![0; EXEC_INPUT_MAX + 1])).await.unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(&error, CommunicatorError::TooLarge { .. }), "{error}");
    }
    assert_eq!(fake.agent.read("/x", 2999).await.unwrap(), None);
    assert_eq!(fake.agent.read("/x", 3000).await.unwrap().unwrap().len(), 3000);
}

#[tokio::test]
async fn a_full_disk_is_a_refusal_and_the_file_is_closed() {
    let mut open = false;
    let fake = fake(move |command, _| match command {
        "guest-file-open" => {
            assert!(!std::mem::replace(&mut open, true), "the file was left open");
            Answer::Return(json!(5))
        }
        "guest-file-write" => Answer::Refuse("GenericError", "failed to write to file: No space left"),
        _ => {
            open = false;
            Answer::Return(json!({}))
        }
    });
    for _ in 0..2 {
        let error = fake.agent.put_file("/x", b"1").await.unwrap_err();
        assert!(matches!(&error, CommunicatorError::Refused { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_reboot_is_over_when_the_boot_id_is_another() {
    let booted = Instant::now() + Duration::from_millis(600);
    let mut files = (files(&[(BOOT_ID, b"old\n")]), files(&[(BOOT_ID, b"new\n")]));
    let fake =
        fake(
            move |command, arguments| {
                if Instant::now() < booted {
                    files.0(command, arguments)
                } else {
                    files.1(command, arguments)
                }
            },
        );
    let previous = fake.agent.boot_id().await.unwrap();
    assert_eq!(previous, "old");
    let error = fake.agent.wait_for_reboot(&previous, Duration::from_millis(100)).await.unwrap_err();
    assert!(matches!(&error, CommunicatorError::Timeout { .. }), "{error}");
    fake.agent.wait_for_reboot(&previous, LIMIT).await.unwrap();
    assert!(Instant::now() >= booted && booted.elapsed() < Duration::from_millis(500));
}

#[tokio::test]
async fn a_guest_that_does_not_come_back_is_waited_for_until_the_deadline_only() {
    let fake = fake(files(&[(BOOT_ID, b"old\n")]));
    fake.machine.send_modify(|state| state.agent_port = AgentPort::Closed);
    let started = Instant::now();
    let error = fake.agent.wait_for_reboot("old", Duration::from_millis(200)).await.unwrap_err();
    assert!(matches!(&error, CommunicatorError::NotSent { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(1));
    fake.machine.send_modify(|state| state.finish(End::Reset));
    let error = fake.agent.wait_for_reboot("old", LIMIT).await.unwrap_err();
    assert!(matches!(&error, CommunicatorError::Gone { .. }), "{error}");
}

/// An agent behind which commands really run and files are really written.
fn host() -> impl FnMut(&str, &Value) -> Answer {
    use std::io::{Read as _, Write as _};

    let mut host = Host::default();
    let mut files: HashMap<i64, std::fs::File> = HashMap::new();
    let words = |value: &Value| serde_json::from_value::<Vec<String>>(value.clone()).unwrap();
    move |command, arguments| match command {
        "guest-exec" => {
            let path = arguments["path"].as_str().unwrap().to_owned();
            let argv = [vec![path], words(&arguments["arg"])].concat();
            let input = &arguments["input-data"];
            let input = if input.is_null() { Vec::new() } else { from_base64(input) };
            match host.start(&argv, Some(words(&arguments["env"])), input) {
                Some(pid) => Answer::Return(json!({"pid": pid})),
                None => Answer::Refuse("GenericError", "Failed to execute child process"),
            }
        }
        "guest-exec-status" => match host.status(arguments["pid"].as_i64().unwrap()) {
            Status::Running => Answer::Return(json!({"exited": false})),
            Status::Ended(ended) => Answer::Return(json!({
                "exited": true, "exitcode": ended.code, "signal": ended.signal,
                "out-data": qapi_base64(&ended.out), "err-data": qapi_base64(&ended.err),
            })),
            Status::Unknown => Answer::Refuse("GenericError", "Invalid parameter 'pid'"),
        },
        "guest-file-open" => {
            let path = arguments["path"].as_str().unwrap();
            let writes = arguments["mode"] == "w";
            match if writes { std::fs::File::create(path) } else { std::fs::File::open(path) } {
                Ok(file) => {
                    files.insert(5, file);
                    Answer::Return(json!(5))
                }
                Err(_) => Answer::Refuse("GenericError", "failed to open file"),
            }
        }
        "guest-file-write" => {
            let bytes = from_base64(&arguments["buf-b64"]);
            files.get_mut(&5).unwrap().write_all(&bytes).unwrap();
            Answer::Return(json!({"count": bytes.len(), "eof": false}))
        }
        "guest-file-read" => {
            let mut bytes = Vec::new();
            files.get_mut(&5).unwrap().read_to_end(&mut bytes).unwrap();
            Answer::Return(json!({"count": bytes.len(), "eof": true, "buf-b64": qapi_base64(&bytes)}))
        }
        "guest-file-close" => {
            files.remove(&5);
            Answer::Return(json!({}))
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn the_contract_holds() {
    let fake = fake(host());
    let folder = tempfile::tempdir().unwrap();
    contract::hold(&fake.agent, folder.path()).await;
}
