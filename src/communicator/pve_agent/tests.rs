//! The communicator against a fake of Proxmox's agent endpoints, behind which commands really run.

use std::path::Path;

use serde_json::{Value, json};

use super::super::contract::{self, Host, Status};
use super::*;
use crate::definition::Secret;
use crate::pve::{Client, Credentials, Pace, Settings, Trust};

#[path = "../../../tests/pve_client/server.rs"]
#[expect(dead_code, unreachable_pub, clippy::pedantic, reason = "it belongs to the tests of the client")]
mod server;

use server::{Reply, Request, Server};

struct Fake {
    agent: PveAgent,
    server: Server,
    folder: tempfile::TempDir,
}

/// Starts a fake whose every request `script` sees first.
async fn fake(script: impl FnMut(&Request) -> Option<Reply> + Send + 'static) -> Fake {
    fake_at(Pace::default().faster(50), script).await
}

async fn fake_at(pace: Pace, mut script: impl FnMut(&Request) -> Option<Reply> + Send + 'static) -> Fake {
    let mut host = Host::default();
    let server =
        Server::plain(move |request| script(request).unwrap_or_else(|| answer(&mut host, request))).await;
    let token = Credentials::parse_token(&Secret::new("forge@pve!ci=secret")).unwrap();
    let settings = Settings {
        endpoints: vec![format!("http://{}", server.address).parse().unwrap()],
        credentials: token,
        trust: Trust::Anything,
        pace,
    };
    let vm = Client::new(settings).unwrap().vm(&"pve1".parse().unwrap(), "110".parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let mut agent = PveAgent::new(&vm, Arc::default());
    agent.folders = folder.path().join("run").to_str().unwrap().to_owned();
    Fake { agent, server, folder }
}

/// Answers as Proxmox does.
fn answer(host: &mut Host, request: &Request) -> Reply {
    let refused = |text: String| Reply::refusal(500, &format!("Agent error: {text}"));
    match request.path.rsplit('/').next().unwrap() {
        "ping" => Reply::data(json!({ "result": {} })),
        "exec" => {
            let body = request.json();
            let argv: Vec<String> = serde_json::from_value(body["command"].clone()).unwrap();
            assert!(argv.iter().all(|word| word.is_ascii()), "{argv:?}");
            let input = to_bytes(body["input-data"].as_str().unwrap_or_default());
            assert!(input.len() <= 65_536 && request.body.len() < 65_536, "{}", request.body.len());
            match host.start(&argv, None, input) {
                Some(pid) => Reply::data(json!({ "pid": pid })),
                None => Reply::answer(596, "Broken pipe", ""),
            }
        }
        "exec-status" => match host.status(request.asked("pid").unwrap().parse().unwrap()) {
            Status::Running => Reply::data(json!({ "exited": 0 })),
            Status::Ended(ended) => Reply::data(json!({
                "exited": 1, "exitcode": ended.code, "signal": ended.signal,
                "out-data": from_bytes(&ended.out), "err-data": from_bytes(&ended.err),
            })),
            Status::Unknown => refused("Invalid parameter 'pid'".to_owned()),
        },
        "file-write" => {
            let body = request.json();
            let content = body["content"].as_str().unwrap();
            assert!(content.chars().count() <= 61_440);
            let bytes =
                if body["encode"] == 0 { STANDARD.decode(content).unwrap() } else { to_bytes(content) };
            match std::fs::write(body["file"].as_str().unwrap(), bytes) {
                Ok(()) => Reply::data(Value::Null),
                Err(error) => refused(format!("failed to open file: {error}")),
            }
        }
        "file-read" => match std::fs::read(request.asked("file").unwrap()) {
            Ok(bytes) => Reply::data(json!({ "bytes-read": bytes.len(), "content": from_bytes(&bytes) })),
            Err(error) => refused(format!("failed to open file: {error}")),
        },
        other => panic!("{other}"),
    }
}

fn to_bytes(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(c).unwrap()).collect()
}

fn from_bytes(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

fn is(request: &Request, name: &str) -> bool {
    request.path.ends_with(&format!("/agent/{name}"))
}

/// Tells whether the request starts a command, and not a script that only sends or looks.
fn runs(request: &Request) -> bool {
    is(request, "exec") && request.json()["command"][2].as_str().unwrap().starts_with(RUN)
}

fn entries(folder: &Path) -> usize {
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}

#[tokio::test]
async fn the_contract_holds() {
    let fake = fake(|_| None).await;
    contract::hold(&fake.agent, fake.folder.path()).await;
}

#[tokio::test]
async fn the_contract_holds_on_a_server_that_takes_no_large_bodies() {
    let fake =
        fake(|request| (request.body.len() > 65_536).then(|| Reply::answer(501, "for data too large", "")))
            .await;
    contract::hold(&fake.agent, fake.folder.path()).await;
}

#[tokio::test]
async fn a_short_command_costs_two_calls_and_leaves_nothing_in_the_end() {
    let fake = fake(|_| None).await;
    assert_eq!(fake.agent.exec(&Exec::new(["echo", "hi"])).await.unwrap().text(), "hi");
    let requests = fake.server.requests();
    let starts = requests.iter().filter(|request| is(request, "exec")).count();
    assert_eq!((starts, requests.iter().all(|it| is(it, "exec") || is(it, "exec-status"))), (1, true));
    let run = fake.folder.path().join("run");
    assert_eq!(entries(&run), 1);
    fake.agent.exec(&Exec::new(["true"])).await.unwrap();
    assert_eq!(entries(&run), 1, "the next command removes what the last one left");
    fake.agent.tidy().await.unwrap();
    while entries(&run) > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_is_secret_is_in_no_argument() {
    let fake = fake(|_| None).await;
    let mut command = Exec::new(["/bin/sh", "-c", "cat; echo $KEY"]).stdin("hunter2-in");
    command.env = vec![("KEY".to_owned(), "hunter2-env".to_owned())];
    assert_eq!(fake.agent.exec(&command).await.unwrap().text(), "hunter2-inhunter2-env");
    for request in fake.server.requests() {
        let sent = request.head + &String::from_utf8_lossy(&request.body);
        assert!(!sent.contains("hunter2"), "{sent}");
    }
}

#[tokio::test]
async fn a_result_that_is_lost_is_read_from_the_files() {
    let mut asked = false;
    let fake = fake(move |request| {
        let first = is(request, "exec-status") && !std::mem::replace(&mut asked, true);
        let forgotten = Box::new(Reply::refusal(500, "Agent error: PID 1 does not exist"));
        first.then(|| Reply::Late(Duration::from_millis(200), forgotten))
    })
    .await;
    let output = fake.agent.exec(&Exec::shell("echo out; echo err >&2; exit 4")).await.unwrap();
    assert_eq!((output.code, output.stdout, output.stderr), (Some(4), b"out\n".to_vec(), b"err\n".to_vec()));
    assert_eq!(fake.server.requests().iter().filter(|it| runs(it)).count(), 1);
}

#[tokio::test]
async fn a_command_whose_start_was_not_confirmed_runs_once() {
    let mut host = Host::default();
    let mut lost = false;
    let fake = fake(move |request| {
        if runs(request) && !lost {
            lost = true;
            answer(&mut host, request);
            return Some(Reply::Hangup);
        }
        None
    })
    .await;
    let mark = fake.folder.path().join("mark");
    let script = format!("echo once >> {}; sleep 0.2; echo done", mark.display());
    assert_eq!(fake.agent.exec(&Exec::shell(script)).await.unwrap().text(), "done");
    assert_eq!(std::fs::read_to_string(mark).unwrap(), "once\n");
}

fn silent() -> Reply {
    Reply::refusal(500, "QEMU guest agent is not running")
}

#[tokio::test]
async fn an_agent_that_is_silent_for_a_moment_is_asked_again() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let times = Arc::clone(&asked);
    let fake = fake(move |request| {
        let mut times = times.lock().unwrap();
        times.push(Instant::now());
        let first = ["exec", "file-write"].iter().any(|name| is(request, name)) && times.len() <= 2;
        first.then(silent)
    })
    .await;
    let path = fake.folder.path().join("x");
    fake.agent.put_file(path.to_str().unwrap(), b"content").await.unwrap();
    assert_eq!(std::fs::read(path).unwrap(), b"content");
    let written = std::mem::take(&mut *asked.lock().unwrap());
    assert_eq!(fake.agent.exec(&Exec::new(["echo", "hi"])).await.unwrap().text(), "hi");
    let least = Pace::default().faster(50).agent_silent;
    for times in [written, asked.lock().unwrap().clone()] {
        assert!(times.len() >= 3, "{times:?}");
        assert!(times.windows(2).take(2).all(|pair| pair[1] - pair[0] >= least), "{times:?}");
    }
}

#[tokio::test]
async fn a_command_is_looked_for_until_its_agent_answers() {
    let mut host = Host::default();
    let mut starts = 0;
    let fake = fake(move |request| {
        if !is(request, "exec") {
            return None;
        }
        starts += 1;
        match starts {
            1 => {
                answer(&mut host, request);
                Some(Reply::refusal(500, "VM 110 qmp command 'guest-exec' failed - got timeout"))
            }
            2 | 3 => Some(silent()),
            _ => None,
        }
    })
    .await;
    assert_eq!(fake.agent.exec(&Exec::new(["echo", "hi"])).await.unwrap().text(), "hi");
    assert_eq!(fake.server.requests().iter().filter(|it| runs(it)).count(), 1);
}

#[tokio::test]
async fn a_start_is_given_up_at_the_commands_deadline() {
    let late = |data| Reply::Late(Duration::from_secs(3), Box::new(Reply::data(data)));
    let fake = fake(move |_| Some(late(json!({ "pid": 1 })))).await;
    for size in [0, PIECE_SENT] {
        let command = Exec::new(["true"]).stdin(vec![0; size]).timeout(Duration::from_millis(100));
        let started = Instant::now();
        let error = fake.agent.exec(&command).await.unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}: {error}", started.elapsed());
    }
}

#[tokio::test]
async fn what_could_not_be_tidied_is_tidied_later() {
    let mut tidied = false;
    let fake = fake(move |request| {
        let removes =
            is(request, "exec") && request.json()["command"][2].as_str().unwrap().starts_with("rm ");
        (removes && !std::mem::replace(&mut tidied, true)).then(silent)
    })
    .await;
    fake.agent.exec(&Exec::new(["true"])).await.unwrap();
    fake.agent.tidy().await.unwrap_err();
    fake.agent.tidy().await.unwrap();
    while entries(&fake.folder.path().join("run")) > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_command_that_a_restart_took_may_have_run() {
    let fake = fake(|request| {
        is(request, "exec-status").then(|| Reply::refusal(500, "Agent error: PID 1 does not exist"))
    })
    .await;
    let command = Exec::new(["true"]).timeout(Duration::from_millis(300));
    let error = fake.agent.exec(&command).await.unwrap_err();
    assert!(matches!(&error, CommunicatorError::Unknown { .. }), "{error}");
}

#[tokio::test]
async fn what_proxmox_says_becomes_what_can_be_done() {
    for (status, text, kind) in [
        (500, "QEMU guest agent is not running", "NotSent"),
        (
            500,
            "VM 110 qmp command 'guest-exec' failed - unable to connect to VM 110 qga socket - timeout after 31 retries",
            "NotSent",
        ),
        (500, "VM 110 qmp command 'guest-exec' failed - client closed connection", "Unknown"),
        (500, "VM 110 is not running", "Gone"),
        (500, "Configuration file 'nodes/pve1/qemu-server/110.conf' does not exist", "Gone"),
        (403, "Permission check failed (/vms/110, VM.Monitor)", "Refused"),
        (500, "No QEMU guest agent configured", "Refused"),
        (500, "Agent error: Command guest-exec has been disabled", "Refused"),
        (596, "Broken pipe", "Unknown"),
    ] {
        let fake = fake(move |_| Some(Reply::refusal(status, text))).await;
        let command = Exec::new(["true"]).timeout(Duration::from_millis(50));
        let error = fake.agent.exec(&command).await.unwrap_err();
        assert!(format!("{error:?}").starts_with(kind), "{text}: {error:?}");
        assert!(error.to_string().contains(text), "{error}");
    }
}

/// Waits that many pauses for an agent that never answers, while somebody calls as often as he likes;
/// returns how long it was left alone between the questions.
async fn wait_in_vain(pauses: u32, calls: bool) -> Vec<Duration> {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let times = Arc::clone(&asked);
    let fake = fake(move |request| {
        assert!(is(request, "ping"));
        times.lock().unwrap().push(Instant::now());
        Some(Reply::refusal(500, "QEMU guest agent is not running"))
    })
    .await;
    let ready = fake.agent.wait_until_ready(fake.agent.vm.client().pace().agent_silent * pauses);
    let calling = async {
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            fake.agent.wake().notify_waiters();
        }
    };
    let ready = tokio::select! {
        ready = ready => ready,
        () = calling, if calls => unreachable!("it calls for ever"),
    };
    let error = ready.unwrap_err();
    assert!(matches!(&error, CommunicatorError::NotSent { .. }), "{error}");
    asked.lock().unwrap().windows(2).map(|pair| pair[1] - pair[0]).collect()
}

#[tokio::test]
async fn a_silent_agent_is_asked_every_five_seconds() {
    let pauses = wait_in_vain(4, false).await;
    assert!((1..=3).contains(&pauses.len()), "{pauses:?}");
    let least = Pace::default().faster(50).agent_silent;
    assert!(pauses.iter().all(|pause| *pause >= least), "{pauses:?}");
}

#[tokio::test]
async fn a_silent_agent_is_asked_every_second_at_most_however_often_its_guest_calls() {
    let pauses = wait_in_vain(4, true).await;
    assert!(pauses.len() > 4, "calls are heard: {pauses:?}");
    // What a question takes on its way is not the same each time, least of all on a busy machine.
    let least = Pace::default().faster(50).agent / 2;
    assert!(pauses.iter().all(|pause| *pause >= least), "{pauses:?}");
}

#[tokio::test]
async fn a_silent_agent_is_asked_at_once_when_woken() {
    let mut first = true;
    let silent = Reply::refusal(500, "QEMU guest agent is not running");
    // Not faster: it would be asked again after 5 s only.
    let fake = fake_at(Pace::default(), move |_| std::mem::take(&mut first).then(|| silent.clone())).await;
    let (wake, started) = (Arc::clone(fake.agent.wake()), Instant::now());
    let ready = fake.agent.wait_until_ready(Duration::from_secs(20));
    let waking = async {
        loop {
            tokio::time::sleep(Duration::from_millis(10)).await;
            wake.notify_waiters();
        }
    };
    tokio::select! {
        ready = ready => ready.unwrap(),
        () = waking => {}
    }
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_reboot_is_over_when_the_boot_id_is_another() {
    let mut asked = 0;
    let fake = fake(move |_| {
        asked += 1;
        Some(match asked {
            1 | 2 => Reply::data(json!({ "content": "old\n", "bytes-read": 4 })),
            3 => Reply::refusal(500, "QEMU guest agent is not running"),
            _ => Reply::data(json!({ "content": "new\n", "bytes-read": 4 })),
        })
    })
    .await;
    fake.agent.wait_for_reboot("old", Duration::from_secs(5)).await.unwrap();
    assert_eq!(fake.server.requests().len(), 4);
    let error = fake.agent.wait_for_reboot("new", Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(&error, CommunicatorError::Timeout { .. }), "{error}");
}

#[test]
fn reports_are_read() {
    let ended = b"ended 3 5 0\naGVs\nbG8=\n-\n-\n";
    let pieces = [b"hello".to_vec(), Vec::new()];
    assert_eq!(parse_report(ended), Some(Report::Ended { code: 3, sizes: [5, 0], pieces }));
    assert_eq!(parse_report(b"running\n"), Some(Report::Running));
    for torn in [&b""[..], b"ended 3 5", b"ended 3 5 0\naGVs\n", b"ended x 5 0\n-\n-\n", b"\xff"] {
        assert_eq!(parse_report(torn), None);
    }
}

#[test]
fn names_that_a_shell_cannot_export_are_refused() {
    for name in ["", "1A", "a.b", "a b", "x;reboot"] {
        let mut command = Exec::new(["true"]);
        command.env = vec![(name.to_owned(), String::new())];
        assert!(script(&command, "/run/x").is_err(), "{name}");
    }
}
