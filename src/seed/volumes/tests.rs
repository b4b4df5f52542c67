use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::*;
use crate::testing::tool;

#[test]
fn the_stub_is_the_same_for_every_build() {
    let digest = Sha256::digest(stub_volume());
    let hex = format!("{:x}", bytes::Bytes::copy_from_slice(&digest));
    assert_eq!(
        hex, "8d6a87dd74336e69136b2cd1d6f46197c3c65b3f9310cf3f47a41f93d64b7ff0",
        "the stub changed: nodes that keep it must get it anew"
    );
}

#[test]
fn the_stub_holds_its_scripts_to_the_letter() {
    let user_data = stub_user_data();
    assert!(user_data.starts_with("#cloud-config\n"));
    let value: serde_json::Value = serde_saphyr::from_str(&user_data).unwrap();
    let autoinstall = &value["autoinstall"];
    assert_eq!(autoinstall["version"], 1);
    assert_eq!(autoinstall["shutdown"], "poweroff");
    assert_eq!(autoinstall["user-data"], serde_json::json!({}));
    let commands = autoinstall["early-commands"].as_array().unwrap();
    assert_eq!(commands[0], "systemctl stop ssh.socket ssh.service || true");
    assert_eq!(commands[1], serde_json::json!(["python3", "-c", CONFIRM]));
    assert_eq!(commands[2], serde_json::json!(["python3", "-c", ANSWERS]));
    assert_eq!(commands.len(), 3);
}

#[test]
fn the_installer_takes_the_stub() {
    let findings = crate::definition::autoinstall::lint(&stub_user_data());
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(findings[0].message.contains("early-commands"), "which are forge's own here");
}

#[test]
fn a_cdrom_has_the_stub_and_the_answers() {
    let answers = "#cloud-config\nautoinstall: {}\n";
    let volume = cdrom_volume(answers).unwrap();
    for part in [answers, stub_user_data().as_str()] {
        assert!(volume.windows(part.len()).any(|window| window == part.as_bytes()));
    }
}

#[test]
fn serial_numbers_carry_urls_and_nothing_for_cloud_init() {
    let url = "http://10.0.2.2:40123/0123456789abcdef0123456789abcdef01234567/autoinstall.yaml";
    let serial_number = serial(url).unwrap();
    assert_eq!(serial_number, format!("forge={url}"));
    assert!(!serial_number.contains("ds=") && !serial_number.starts_with("ec2"));
    assert!(ANSWERS.contains(&format!("PREFIX = \"{SERIAL_PREFIX}\"\n")), "the script and forge agree");
    for (url, character) in [("http://a,b/", ','), ("http://a b/", ' '), ("http://é/", 'é'), ("a\n", '\n')]
    {
        assert_eq!(serial(url), Err(SerialError::Character { character }));
    }
    assert!(serial(&"x".repeat(250)).is_ok());
    assert_eq!(serial(&"x".repeat(251)), Err(SerialError::Long { length: 257 }));
}

#[test]
fn clones_get_what_proxmox_gives() {
    let nocloud = nocloud_volume("#cloud-config\n", "instance-id: x\n", "version: 1\n").unwrap();
    let config_drive = config_drive_volume("#cloud-config\n", "0a1b", "auto lo\n").unwrap();
    let text = |volume: &[u8]| String::from_utf8_lossy(volume).into_owned();
    for name in ["user-data", "meta-data", "network-config", "vendor-data"] {
        assert!(text(&nocloud).contains(name), "{name}");
    }
    assert!(text(&config_drive).contains("\"uuid\": \"0a1b\""));
    assert!(text(&config_drive).contains("\"content_path\": \"/content/0000\""));
}

/// The places that both scripts write to.
const CONSOLES: &str = r#"("/dev/console", "/dev/tty1", "/dev/ttyS0")"#;

/// Returns a script with its fixed places replaced by a test's own.
fn moved(script: &str, places: &[(&str, &str)]) -> String {
    places.iter().fold(script.to_owned(), |script, (from, to)| {
        assert!(script.contains(from), "{from}");
        script.replace(from, to)
    })
}

fn python(script: &str) -> Command {
    let mut command = tool("python3", "python3");
    command.args(["-c", script]);
    command
}

/// Returns the answers script with all its places in a folder.
fn answers_script(folder: &Path) -> String {
    let at = |name: &str| format!("\"{}\"", folder.join(name).display());
    moved(
        ANSWERS,
        &[
            ("\"/sys/class/dmi/id/product_serial\"", &at("serial")),
            ("\"/dev/disk/by-label/CIDATA\"", &at("volume")),
            ("\"/autoinstall.yaml\"", &at("autoinstall.yaml")),
            (CONSOLES, &format!("({},)", at("console"))),
            ("PAUSE = 2", "PAUSE = 0.01"),
            ("PATIENCE = 15 * 60", "PATIENCE = 0.2"),
        ],
    )
}

/// Answers each connection with the next of these, then closes it; returns the paths asked for.
fn serve(listener: TcpListener, answers: Vec<&'static str>) -> thread::JoinHandle<Vec<String>> {
    thread::spawn(move || {
        let mut asked = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            asked.push(line.split(' ').nth(1).unwrap_or_default().to_owned());
            while line != "\r\n" {
                line.clear();
                reader.read_line(&mut line).unwrap();
            }
            stream.write_all(answer.as_bytes()).unwrap();
        }
        asked
    })
}

#[test]
fn the_answers_are_fetched_with_patience() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/secret/autoinstall.yaml", listener.local_addr().unwrap());
    std::fs::write(folder.path().join("serial"), serial(&url).unwrap() + "\n").unwrap();
    std::fs::write(folder.path().join("autoinstall.yaml"), "stub").unwrap();
    std::fs::write(folder.path().join("console"), "").unwrap();
    let script = answers_script(folder.path()).replace("PATIENCE = 0.2", "PATIENCE = 30");
    let mut command = python(&script);
    let server = serve(
        listener,
        vec![
            "",
            "HTTP/1.1 503 Later\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ncut short",
            "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nanswers",
        ],
    );
    let output = command.env("http_proxy", "http://127.0.0.1:1").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(server.join().unwrap(), vec!["/secret/autoinstall.yaml"; 4]);
    let placed = folder.path().join("autoinstall.yaml");
    assert_eq!(std::fs::read_to_string(&placed).unwrap(), "answers");
    assert_eq!(std::fs::metadata(&placed).unwrap().permissions().mode() & 0o777, 0o600);
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.contains("the answers are in place, 7 bytes from the server"), "{told}");
    assert!(!told.contains("secret"), "{told}");
    let console = std::fs::read_to_string(folder.path().join("console")).unwrap();
    assert!(console.contains("forge: "), "{console}");
}

#[test]
fn without_answers_the_installer_stops_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    let script = answers_script(folder.path());
    for (serial_number, said) in [
        (None, "cannot read"),
        (Some("Not Specified\n".to_owned()), "was not started by forge"),
        (Some(format!("forge=http://{nobody}/secret/x")), "giving up on 127.0.0.1"),
    ] {
        if let Some(text) = serial_number {
            std::fs::write(folder.path().join("serial"), text).unwrap();
        }
        let output = python(&script).output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains(said) && !told.contains("Traceback") && !told.contains("secret"), "{told}");
        assert!(!folder.path().join("autoinstall.yaml").exists());
    }
}

/// The volume comes first: a guest that cannot reach forge has no serial number to look at.
#[test]
fn answers_on_the_volume_are_taken_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let bin = folder.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(folder.path().join("volume"), "").unwrap();
    // Stands in for mounting, which takes root and a kernel that knows ISO 9660.
    let mount = "#!/bin/sh\nfor last; do :; done\nprintf 'from the volume' > \"$last/autoinstall.yaml\"\n";
    let umount = "#!/bin/sh\nrm \"$1/autoinstall.yaml\"\n";
    for (name, text) in [("mount", mount), ("umount", umount)] {
        std::fs::write(bin.join(name), text).unwrap();
        std::fs::set_permissions(bin.join(name), PermissionsExt::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let output = python(&answers_script(folder.path())).env("PATH", path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let placed = std::fs::read_to_string(folder.path().join("autoinstall.yaml")).unwrap();
    assert_eq!(placed, "from the volume");
}

/// Plays the installer's socket: answers each request with the next of these.
fn installer(listener: UnixListener, answers: Vec<&'static str>) -> thread::JoinHandle<Vec<String>> {
    thread::spawn(move || {
        let mut asked = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).unwrap();
            asked.push(head.split(" HTTP").next().unwrap().to_owned());
            let status = if answer == "busy" { "503 Busy" } else { "200 OK" };
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{answer}", answer.len());
            stream.write_all(answer.as_bytes()).unwrap();
        }
        asked
    })
}

fn confirm_script(folder: &Path) -> String {
    let at = |name: &str| format!("\"{}\"", folder.join(name).display());
    let consoles = format!("({},)", at("console"));
    std::fs::write(folder.join("console"), "").unwrap();
    moved(
        CONFIRM,
        &[
            ("\"/run/subiquity/socket\"", &at("socket")),
            (CONSOLES, &consoles),
            // A file is written anew each time, and a console not.
            ("open(console, \"w\")", "open(console, \"a\")"),
            ("time.sleep(1)", "time.sleep(0.01)"),
        ],
    )
}

#[test]
fn the_installation_is_confirmed_once_when_it_asks() {
    const STATUS: &str = "GET /meta/status";
    const CONFIRMED: &str = "POST /meta/confirm?tty=%22forge%22";
    let folder = tempfile::tempdir().unwrap();
    let started = Instant::now();
    // Before the installer listens: the foreground must not wait, let alone fail.
    let output = python(&confirm_script(folder.path())).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(started.elapsed() < Duration::from_secs(5));
    let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
    let asked = installer(
        listener,
        vec![
            r#"{"state": "EARLY_COMMANDS"}"#,
            "nonsense",
            r#"{"state": "WAITING"}"#,
            r#"{"state": "NEEDS_CONFIRMATION"}"#,
            "busy",
            r#"{"state": "NEEDS_CONFIRMATION"}"#,
            "null",
        ],
    );
    let expected = [STATUS, STATUS, STATUS, STATUS, CONFIRMED, STATUS, CONFIRMED];
    assert_eq!(asked.join().unwrap(), expected);
    let console = folder.path().join("console");
    let told = "forge: the installer asked whether to go on, and was told to\r\n";
    let deadline = Instant::now() + Duration::from_secs(10);
    let said = loop {
        let said = std::fs::read_to_string(&console).unwrap();
        if said.ends_with(told) {
            break said;
        }
        assert!(Instant::now() < deadline, "{said}");
        thread::sleep(Duration::from_millis(5));
    };
    for news in ["socket does not answer: ", "state is EARLY_COMMANDS", "state is WAITING", "status 503"] {
        let lines = said.lines().filter(|line| line.contains(news));
        assert!(lines.count() >= 1, "`{news}` is not in {said}");
    }
    assert!(said.lines().count() < 10, "a state is told once: {said}");
}

#[test]
fn what_the_kernels_console_shows_is_not_told_there_twice() {
    let folder = tempfile::tempdir().unwrap();
    let [active, screen, port] = ["active", "screen", "ttyX"].map(|name| folder.path().join(name));
    let script = moved(
        include_str!("../tell.py"),
        &[
            (CONSOLES, &format!("({screen:?}, {port:?})")),
            ("\"/sys/class/tty/console/active\"", &format!("{active:?}")),
            ("\"/dev/\"", &format!("\"{}/\"", folder.path().display())),
        ],
    );
    for (kernels, is_told) in [(Some("tty0 ttyX\n"), false), (Some("tty0\n"), true), (None, true)] {
        for path in [&active, &screen, &port] {
            drop(std::fs::remove_file(path));
        }
        if let Some(kernels) = kernels {
            std::fs::write(&active, kernels).unwrap();
        }
        let output = python(&format!("{script}\ntell(\"x\")")).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(std::fs::read_to_string(&screen).unwrap(), "forge: x\r\n");
        assert_eq!(port.exists(), is_told, "{kernels:?}");
    }
}

#[test]
fn an_installation_under_way_is_left_alone() {
    for state in ["RUNNING", "UU_RUNNING", "LATE_COMMANDS", "DONE", "ERROR", "EXITED"] {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        let script = confirm_script(folder.path());
        // In the foreground, so that its end is seen.
        let mut command = python(&script.replace("if detach():", "if True:"));
        let answer: &'static str = format!(r#"{{"state": "{state}"}}"#).leak();
        let asked = installer(listener, vec![answer]);
        assert!(command.output().unwrap().status.success(), "{state}");
        assert_eq!(asked.join().unwrap(), ["GET /meta/status"]);
    }
}
