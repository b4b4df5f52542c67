//! What every communicator must do, held by each one's tests with commands that really run: on this host,
//! behind a fake of the way to the guest.

use std::collections::HashMap;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use super::{Communicator, CommunicatorError, EXEC_INPUT_MAX, Exec, PUT_FILE_MAX};

/// Runs commands as the guest agent does: in the background, each result told once.
#[derive(Default)]
pub(super) struct Host {
    running: HashMap<i64, Receiver<Ended>>,
    last: i64,
}

/// How a command is.
pub(super) enum Status {
    Running,
    Ended(Ended),
    Unknown,
}

/// How a command ended.
pub(super) struct Ended {
    pub(super) code: Option<i32>,
    pub(super) signal: Option<i32>,
    pub(super) out: Vec<u8>,
    pub(super) err: Vec<u8>,
}

impl Host {
    /// Starts a command; nothing when there is no such program.
    pub(super) fn start(&mut self, argv: &[String], env: Option<Vec<String>>, input: Vec<u8>) -> Option<i64> {
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(env) = env {
            command.env_clear().envs(env.iter().map(|pair| pair.split_once('=').unwrap()));
        }
        let mut child = command.spawn().ok()?;
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            let mut stdin = child.stdin.take().unwrap();
            let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
            let output = child.wait_with_output().unwrap();
            writer.join().unwrap();
            let (code, signal) = (output.status.code(), output.status.signal());
            // Nobody may ask any more.
            drop(sender.send(Ended { code, signal, out: output.stdout, err: output.stderr }));
        });
        self.last += 1;
        self.running.insert(self.last, receiver);
        Some(self.last)
    }

    /// Tells how a command is.
    pub(super) fn status(&mut self, pid: i64) -> Status {
        let told = self.running.get(&pid).map(Receiver::try_recv);
        match told {
            Some(Ok(ended)) => {
                self.running.remove(&pid);
                Status::Ended(ended)
            }
            Some(Err(TryRecvError::Empty)) => Status::Running,
            Some(Err(TryRecvError::Disconnected)) | None => Status::Unknown,
        }
    }
}

/// Holds a communicator to the contract; `folder` is one that it can use.
pub(super) async fn hold(guest: &dyn Communicator, folder: &Path) {
    commands(guest).await;
    environment(guest).await;
    limits(guest).await;
    files(guest, folder.to_str().unwrap()).await;
}

async fn commands(guest: &dyn Communicator) {
    let output = guest.exec(&Exec::shell(r"printf 'a\377\303\251'; echo b >&2; exit 3")).await.unwrap();
    assert_eq!((output.code, output.signal, output.truncated), (Some(3), None, false));
    assert_eq!((output.stdout, output.stderr), (b"a\xff\xc3\xa9".to_vec(), b"b\n".to_vec()));

    let every: Vec<u8> = (0..=255).cycle().take(EXEC_INPUT_MAX).collect();
    let output = guest.exec(&Exec::new(["cat"]).stdin(every.clone())).await.unwrap();
    assert!(output.success() && output.stdout == every, "{} bytes", output.stdout.len());

    let odd = ["", "a b", "it's", "$HOME `x` \\", "€ é", "two\nlines", "-n", "*"];
    let mut argv = vec![r"printf", "<%s>"];
    argv.extend(odd);
    assert_eq!(guest.exec(&Exec::new(argv)).await.unwrap().text(), format!("<{}>", odd.join("><")));

    let missing = guest.exec(&Exec::new(["/no/such/program"])).await.unwrap_err();
    assert!(matches!(&missing, CommunicatorError::Refused { .. }), "{missing}");
    let empty = guest.exec(&Exec::new(Vec::<String>::new())).await.unwrap_err();
    assert!(matches!(&empty, CommunicatorError::Refused { .. }), "{empty}");

    let large =
        guest.exec(&Exec::shell("head -c 600000 /dev/zero; head -c 300000 /dev/zero >&2")).await.unwrap();
    assert_eq!((large.stdout.len(), large.stderr.len(), large.truncated), (600_000, 300_000, false));
}

async fn environment(guest: &dyn Communicator) {
    let mut command = Exec::shell("echo \"$PATH|$LC_ALL|$SECRET|$HOME|$(umask)\"");
    command.env =
        vec![("SECRET".to_owned(), "it's $x\n\"y\"".to_owned()), ("LC_ALL".to_owned(), "C".to_owned())];
    let text = guest.exec(&command).await.unwrap().text();
    let [path, locale, secret, home, umask] = text.split('|').collect::<Vec<_>>()[..] else {
        panic!("{text}")
    };
    assert!(path.starts_with("/usr/local/sbin:"), "{text}");
    assert_eq!((locale, secret, home), ("C", "it's $x\n\"y\"", ""));
    assert_ne!(umask, "0077");
    let locale = guest.exec(&Exec::shell("echo \"$LC_ALL\"")).await.unwrap().text();
    assert_eq!(locale, "C.UTF-8");
}

async fn limits(guest: &dyn Communicator) {
    let started = Instant::now();
    let slow = guest.exec(&Exec::new(["sleep", "5"]).timeout(Duration::from_millis(400))).await.unwrap_err();
    assert!(matches!(&slow, CommunicatorError::Timeout { .. }), "{slow}");
    assert!(started.elapsed() < Duration::from_secs(4));
    for error in [
        guest.exec(&Exec::new(["cat"]).stdin(vec![0; EXEC_INPUT_MAX + 1])).await.unwrap_err(),
        guest.put_file("/x", &vec![0; PUT_FILE_MAX + 1]).await.unwrap_err(),
    ] {
        assert!(matches!(&error, CommunicatorError::TooLarge { .. }), "{error}");
    }
}

async fn files(guest: &dyn Communicator, folder: &str) {
    for (name, size) in [("empty", 0), ("a b", 10), ("full", PUT_FILE_MAX), ("full", 1), ("é", 300)] {
        let path = format!("{folder}/{name}");
        let content: Vec<u8> = (0..=255).cycle().take(size).collect();
        guest.put_file(&path, &content).await.unwrap();
        assert_eq!(guest.get_file(&path).await.unwrap(), content, "{name}");
    }
    for error in [
        guest.put_file(&format!("{folder}/missing/x"), b"x").await.unwrap_err(),
        guest.get_file(&format!("{folder}/missing")).await.unwrap_err(),
    ] {
        assert!(matches!(&error, CommunicatorError::Refused { .. }), "{error}");
    }
}
