//! Looks at a clone from outside, as its users will: over the network with the OpenSSH client.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::process::Command;

/// How long one login may take; emulated guests need seconds for a key exchange.
const LOGIN_DEADLINE: Duration = Duration::from_mins(1);

/// How often, and how long each time, it is tried whether an address is reached.
const ROUTE_TRIES: u32 = 3;
const ROUTE_DEADLINE: Duration = Duration::from_secs(5);

/// A key pair of one proof, gone with the run's work folder.
#[derive(Debug, Clone)]
pub struct Key {
    /// The private key's path.
    pub path: PathBuf,
    /// The public key, one line as in `authorized_keys`.
    pub public: String,
}

/// Makes an ed25519 key pair without a passphrase in `folder` (ssh-keygen(1)).
///
/// # Errors
/// When `ssh-keygen` is missing or fails.
pub async fn make_key(folder: &Path) -> anyhow::Result<Key> {
    let path = folder.join("proof_ed25519");
    let output = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "forge-proof", "-f"])
        .arg(&path)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("starting ssh-keygen (package openssh-client)")?;
    ensure!(output.status.success(), "making a key: {}", String::from_utf8_lossy(&output.stderr).trim());
    let public = std::fs::read_to_string(path.with_extension("pub")).context("reading the public key")?;
    Ok(Key { path, public: public.trim().to_owned() })
}

/// How a login attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// It succeeded, and the command printed this.
    Accepted(String),
    /// The server refused, and offers these methods.
    Refused(Vec<String>),
    /// There was no answer, or something else went wrong.
    Failed(String),
}

/// How to log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// With the key.
    Key,
    /// With a password, which the server must not even ask for.
    Password,
}

/// A clone's SSH server as it is reached from outside.
#[derive(Debug, Clone)]
pub struct Target {
    /// Where it answers, or a port that leads there.
    pub address: SocketAddr,
    /// The clone's host key as the guest agent read it, `ssh-ed25519 AAAA…`.
    pub host_key: String,
    /// A folder for the known-hosts file.
    pub folder: PathBuf,
}

impl Target {
    /// Tries to log in and run a command; the host key must be the one the guest itself has.
    ///
    /// # Errors
    /// When the client cannot be started.
    pub async fn login(&self, user: &str, key: &Key, method: Method, command: &str) -> anyhow::Result<Login> {
        let known_hosts = self.folder.join("known_hosts");
        let line = format!("[{}]:{} {}\n", self.address.ip(), self.address.port(), self.host_key);
        std::fs::write(&known_hosts, line).context("writing the known hosts")?;
        let output = Command::new("ssh")
            .args(ssh_args(user, self.address, key, &known_hosts, method))
            .arg(command)
            .stdin(Stdio::null())
            .env("LC_ALL", "C")
            .env_remove("SSH_AUTH_SOCK")
            .kill_on_drop(true)
            .output();
        let output = match tokio::time::timeout(LOGIN_DEADLINE, output).await {
            Ok(output) => output.context("starting ssh (package openssh-client)")?,
            Err(_) => return Ok(Login::Failed(format!("no answer within {} s", LOGIN_DEADLINE.as_secs()))),
        };
        let stdout = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if output.status.success() {
            return Ok(Login::Accepted(stdout));
        }
        Ok(parse_refusal(&String::from_utf8_lossy(&output.stderr)))
    }
}

/// Finds out whether packets from here reach an SSH server at an address, or at least a machine that
/// refuses them itself.
///
/// # Errors
/// In words, when nothing is reached, or something on the way that is no SSH server.
pub async fn route(address: SocketAddr) -> Result<(), String> {
    let mut reason = String::new();
    for _ in 0..ROUTE_TRIES {
        match tokio::time::timeout(ROUTE_DEADLINE, greeting(address)).await {
            Ok(Ok(greeting)) if &greeting == b"SSH-" => return Ok(()),
            Ok(Ok(_)) => "what answers is no SSH server".clone_into(&mut reason),
            // By the clone itself: the way is there, and what is behind it will be judged.
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(()),
            Ok(Err(error)) => reason = error.to_string(),
            Err(_) => reason = format!("no answer within {} s", ROUTE_DEADLINE.as_secs()),
        }
    }
    Err(format!("{address} is not reached from here: {reason}"))
}

/// Returns the first bytes that a server sends by itself, as SSH's do (RFC 4253, section 4.2).
async fn greeting(address: SocketAddr) -> io::Result<[u8; 4]> {
    let mut first = [0; 4];
    TcpStream::connect(address).await?.read_exact(&mut first).await?;
    Ok(first)
}

/// Returns ssh(1)'s arguments up to the command: no configuration, no agent, no question.
fn ssh_args(user: &str, address: SocketAddr, key: &Key, known_hosts: &Path, method: Method) -> Vec<String> {
    let options = match method {
        Method::Key => ["PreferredAuthentications=publickey", "PubkeyAuthentication=yes"],
        Method::Password => {
            ["PreferredAuthentications=password,keyboard-interactive", "PubkeyAuthentication=no"]
        }
    };
    let mut args: Vec<String> = ["-F", "none", "-T", "-p"].map(str::to_owned).into();
    args.push(address.port().to_string());
    args.push("-i".to_owned());
    args.push(key.path.display().to_string());
    let known = format!("UserKnownHostsFile={}", known_hosts.display());
    let fixed = [
        "BatchMode=yes",
        "IdentitiesOnly=yes",
        "StrictHostKeyChecking=yes",
        "GlobalKnownHostsFile=none",
        "HostKeyAlgorithms=ssh-ed25519",
        "ConnectTimeout=30",
        known.as_str(),
    ];
    for option in fixed.into_iter().chain(options) {
        args.extend(["-o".to_owned(), option.to_owned()]);
    }
    args.push(format!("{user}@{}", address.ip()));
    args
}

/// Reads `odin@127.0.0.1: Permission denied (publickey,password).` from the client's last line.
fn parse_refusal(stderr: &str) -> Login {
    let last = stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message").trim();
    let methods = last
        .split_once("Permission denied (")
        .and_then(|(_, rest)| rest.strip_suffix(")."))
        .map(|list| list.split(',').map(str::to_owned).collect());
    methods.map_or_else(|| Login::Failed(last.to_owned()), Login::Refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_methods() {
        let refused = |list: &[&str]| Login::Refused(list.iter().map(ToString::to_string).collect());
        for (text, expected) in [
            ("root@127.0.0.1: Permission denied (publickey).\n", refused(&["publickey"])),
            (
                "Warning: x\nodin@127.0.0.1: Permission denied (publickey,password).",
                refused(&["publickey", "password"]),
            ),
            (
                "ssh: connect to host 127.0.0.1 port 1: Connection refused",
                Login::Failed("ssh: connect to host 127.0.0.1 port 1: Connection refused".into()),
            ),
            ("", Login::Failed("no message".into())),
        ] {
            assert_eq!(parse_refusal(text), expected);
        }
    }

    #[tokio::test]
    async fn only_an_ssh_server_or_a_refusal_shows_that_there_is_a_way() {
        for (says, is_way) in [(&b"SSH-2.0-x\r\n"[..], true), (b"HTTP/1.1 400\r\n", false), (b"", false)] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let server = tokio::spawn(async move {
                while let Ok((mut client, _)) = listener.accept().await {
                    tokio::io::AsyncWriteExt::write_all(&mut client, says).await.unwrap();
                }
            });
            let way = route(address).await;
            assert_eq!(way.is_ok(), is_way, "{way:?}");
            assert!(way.is_ok() || way.unwrap_err().starts_with(&format!("{address} is not reached")));
            server.abort();
        }
    }

    #[tokio::test]
    async fn a_key_is_made_and_an_absent_server_is_no_refusal() {
        let folder = tempfile::tempdir().unwrap();
        let key = make_key(folder.path()).await.unwrap();
        assert!(key.public.starts_with("ssh-ed25519 "), "{}", key.public);
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = SocketAddr::from(([127, 0, 0, 1], free));
        let target = Target { address, host_key: key.public.clone(), folder: folder.path().into() };
        assert_eq!(route(address).await, Ok(()));
        for method in [Method::Key, Method::Password] {
            let login = target.login("odin", &key, method, "true").await.unwrap();
            assert!(matches!(login, Login::Failed(_)), "{login:?}");
        }
    }
}
