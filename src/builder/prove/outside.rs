//! Looks at a clone from outside, as its users will: over the network, as an SSH client.

use std::borrow::Cow;
use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use russh::client::{self, AuthResult, Handle};
use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::keys::{Algorithm, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{ChannelMsg, Preferred};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// How long one login may take; emulated guests need seconds for a key exchange.
const LOGIN_DEADLINE: Duration = Duration::from_mins(1);

/// How often, and how long each time, it is tried whether an address is reached.
const ROUTE_TRIES: u32 = 3;
const ROUTE_DEADLINE: Duration = Duration::from_secs(5);

/// How long a machine may take to show that it is there.
const PRESENCE_DEADLINE: Duration = Duration::from_secs(2);

/// A key pair of one proof. Its private half is in no file: it is gone with the proof.
#[derive(Debug, Clone)]
pub struct Key {
    private: Arc<PrivateKey>,
    /// The public key, one line as in `authorized_keys`.
    pub public: String,
}

impl Key {
    /// Writes the private half into a new file that only its owner can read, for a program that takes no other way.
    ///
    /// # Errors
    /// When the file is there already or cannot be written.
    pub(super) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = self.private.to_openssh(LineEnding::LF).context("writing the private key")?;
        let context = || format!("writing {}", path.display());
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .with_context(context)?;
        file.write_all(text.as_bytes()).with_context(context)
    }
}

/// Makes an ed25519 key pair.
///
/// # Errors
/// When the system gives no random bytes.
pub fn make_key() -> anyhow::Result<Key> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).context("asking the system for random bytes")?;
    let mut private = PrivateKey::from(Ed25519Keypair::from_seed(&seed));
    private.set_comment("forge-proof");
    let public = private.public_key().to_openssh().context("writing the public key")?;
    Ok(Key { private: Arc::new(private), public })
}

/// How a login attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// It succeeded, and the command printed this.
    Accepted(String),
    /// The server refused, and offers these methods.
    Refused(Vec<String>),
    /// It is not the clone that answers there: the host key is another one.
    Stranger(String),
    /// There was no answer, or something else went wrong.
    Failed(String),
}

/// How to log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// With the key.
    Key,
    /// With a password, which the server must not even ask for: none is ever sent. What it would take
    /// is its answer to a request without any proof (RFC 4252, section 5.2).
    Password,
}

/// A clone's SSH server as it is reached from outside.
#[derive(Debug, Clone)]
pub struct Target {
    /// Where it answers, or a port that leads there.
    pub address: SocketAddr,
    /// The clone's host key as the guest agent read it, `ssh-ed25519 AAAA…`.
    pub host_key: String,
}

impl Target {
    /// Tries to log in and run a command; the host key must be the one the guest itself has.
    pub async fn login(&self, user: &str, key: &Key, method: Method, command: &str) -> Login {
        match tokio::time::timeout(LOGIN_DEADLINE, self.attempt(user, key, method, command)).await {
            Ok(Ok(login)) => login,
            Ok(Err(error)) if error.root_cause().is::<Foreign>() => Login::Stranger(format!("{error:#}")),
            Ok(Err(error)) => Login::Failed(format!("{error:#}")),
            Err(_) => Login::Failed(format!("no answer within {} s", LOGIN_DEADLINE.as_secs())),
        }
    }

    async fn attempt(&self, user: &str, key: &Key, method: Method, command: &str) -> anyhow::Result<Login> {
        let mut session = self.connect().await.with_context(|| format!("connecting to {}", self.address))?;
        let answer = match method {
            Method::Key => {
                let key = PrivateKeyWithHashAlg::new(key.private.clone(), None);
                session.authenticate_publickey(user, key).await
            }
            Method::Password => session.authenticate_none(user).await,
        };
        match answer.context("logging in")? {
            AuthResult::Success => run(&session, command).await,
            AuthResult::Failure { remaining_methods, .. } if remaining_methods.is_empty() => {
                // The connection has ended, or the server takes nothing at all.
                session.await.context("logging in")?;
                bail!("the server has ended the session before it answered")
            }
            AuthResult::Failure { remaining_methods, .. } => {
                Ok(Login::Refused(remaining_methods.iter().map(String::from).collect()))
            }
        }
    }

    async fn connect(&self) -> anyhow::Result<Handle<HostKey>> {
        let config = client::Config {
            preferred: Preferred { key: Cow::Borrowed(&[Algorithm::Ed25519]), ..Preferred::DEFAULT },
            // The session is a task of its own: this ends it when the deadline has passed, which comes first.
            inactivity_timeout: Some(LOGIN_DEADLINE.saturating_mul(2)),
            nodelay: true,
            ..client::Config::default()
        };
        client::connect(Arc::new(config), self.address, HostKey(self.host_key.clone())).await
    }
}

/// A host key that is not the good one.
#[derive(Debug, thiserror::Error)]
#[error("the server's host key {0} is not the guest's own")]
struct Foreign(String);

/// The only host key that is good, `ssh-ed25519 AAAA…`.
struct HostKey(String);

impl client::Handler for HostKey {
    type Error = anyhow::Error;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> anyhow::Result<bool> {
        let key = key.public_key();
        ensure!(key.to_openssh()? == self.0, Foreign(key.fingerprint(HashAlg::Sha256).to_string()));
        Ok(true)
    }
}

/// Runs a command and returns what it printed.
async fn run(session: &Handle<HostKey>, command: &str) -> anyhow::Result<Login> {
    let mut channel = session.channel_open_session().await.context("opening a channel")?;
    channel.exec(true, command).await.context("asking to run a command")?;
    let (mut stdout, mut stderr, mut status) = (Vec::new(), Vec::new(), None);
    while let Some(message) = channel.wait().await {
        match message {
            ChannelMsg::Data { data } => stdout.extend_from_slice(&data),
            ChannelMsg::ExtendedData { data, .. } => stderr.extend_from_slice(&data),
            ChannelMsg::ExitStatus { exit_status } => status = Some(exit_status),
            ChannelMsg::Failure => bail!("the server runs no command"),
            _ => (),
        }
    }
    match status.ok_or_else(|| anyhow!("the command ended without an exit code"))? {
        0 => Ok(Login::Accepted(String::from_utf8_lossy(&stdout).trim().to_owned())),
        status => bail!("the command ended with {status}: {}", last_line(&String::from_utf8_lossy(&stderr))),
    }
}

fn last_line(text: &str) -> &str {
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no message")
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

/// Tells whether there is a machine at an address: one that speaks SSH, or refuses a connection. Something on the
/// way may take every connection, and loopback refuses whatever nobody listens on: neither counts.
pub async fn is_anybody(address: SocketAddr) -> bool {
    match tokio::time::timeout(PRESENCE_DEADLINE, greeting(address)).await {
        Ok(Ok(greeting)) => &greeting == b"SSH-",
        Ok(Err(error)) => error.kind() == io::ErrorKind::ConnectionRefused && !address.ip().is_loopback(),
        Err(_) => false,
    }
}

/// Finds out whether nothing speaks at an address: it is closed, or nobody answers. A way that forwards the port
/// may open the connection first, and end it then.
///
/// # Errors
/// In words, when something speaks there.
pub async fn is_silent(address: SocketAddr) -> Result<(), String> {
    match tokio::time::timeout(ROUTE_DEADLINE, greeting(address)).await {
        Ok(Ok(greeting)) => {
            Err(format!("something there says `{}`", String::from_utf8_lossy(&greeting).escape_debug()))
        }
        Ok(Err(_)) | Err(_) => Ok(()),
    }
}

/// Returns the first bytes that a server sends by itself, as SSH's do (RFC 4253, section 4.2).
async fn greeting(address: SocketAddr) -> io::Result<[u8; 4]> {
    let mut first = [0; 4];
    TcpStream::connect(address).await?.read_exact(&mut first).await?;
    Ok(first)
}

#[cfg(test)]
mod tests {
    use pve_sim::ssh::{HostKey as MadeKey, Sshd};
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;
    use tokio::task::JoinHandle;

    use super::*;

    /// A server as a sealed guest has it, which lets `odin` in with this key.
    fn sshd(key: &Key) -> (Sshd, String) {
        let host_key = MadeKey::new().unwrap();
        let sshd = Sshd {
            host_key: host_key.private,
            methods: vec!["publickey".to_owned()],
            user: "odin".to_owned(),
            key: key.public.clone(),
            stdout: "odin\nroot\n".to_owned(),
            ..Sshd::default()
        };
        (sshd, host_key.public)
    }

    async fn serve(sshd: &Sshd) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let sshd = sshd.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(sshd.clone().serve(client));
            }
        });
        address
    }

    async fn target(sshd: &Sshd, host_key: &str) -> Target {
        Target { address: serve(sshd).await, host_key: host_key.to_owned() }
    }

    /// Sends each client these bytes and says no more.
    async fn greet(says: &'static [u8], keeps: bool) -> (SocketAddr, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((mut client, _)) = listener.accept().await {
                client.write_all(says).await.unwrap();
                kept.extend(keeps.then_some(client));
            }
        });
        (address, server)
    }

    fn refused(methods: &[&str]) -> Login {
        Login::Refused(methods.iter().map(ToString::to_string).collect())
    }

    #[track_caller]
    fn assert_failed(login: &Login, reason: &str) {
        assert!(
            matches!(login, Login::Failed(text) if text.contains(reason)),
            "{login:?} without `{reason}`"
        );
    }

    #[tokio::test]
    async fn who_has_the_key_runs_a_command() {
        let key = make_key().unwrap();
        let (sshd, host_key) = sshd(&key);
        let target = target(&sshd, &host_key).await;
        let login = target.login("odin", &key, Method::Key, "id -un && sudo -n id -un").await;
        assert_eq!(login, Login::Accepted("odin\nroot".into()));
    }

    #[tokio::test]
    async fn another_key_or_user_is_refused_with_the_methods_on_offer() {
        let (key, other) = (make_key().unwrap(), make_key().unwrap());
        let (mut sshd, host_key) = sshd(&key);
        let only_keys = target(&sshd, &host_key).await;
        assert_eq!(only_keys.login("odin", &other, Method::Key, "true").await, refused(&["publickey"]));
        assert_eq!(only_keys.login("root", &key, Method::Key, "true").await, refused(&["publickey"]));
        assert_eq!(only_keys.login("odin", &key, Method::Password, "true").await, refused(&["publickey"]));
        for methods in [&["publickey", "password"], &["publickey", "keyboard-interactive"]] {
            sshd.methods = methods.map(str::to_owned).into();
            let lax = target(&sshd, &host_key).await;
            assert_eq!(lax.login("odin", &key, Method::Password, "true").await, refused(methods));
            assert_eq!(lax.login("root", &key, Method::Key, "true").await, refused(methods));
        }
    }

    #[tokio::test]
    async fn a_server_with_another_host_key_learns_nothing() {
        let key = make_key().unwrap();
        let (sshd, _) = sshd(&key);
        for host_key in [MadeKey::new().unwrap().public, String::new()] {
            let target = target(&sshd, &host_key).await;
            for method in [Method::Key, Method::Password] {
                let login = target.login("odin", &key, method, "true").await;
                let Login::Stranger(reason) = &login else { panic!("{login:?}") };
                assert!(reason.contains("the server's host key SHA256:"), "{reason}");
                assert!(reason.ends_with("is not the guest's own"), "{reason}");
            }
        }
    }

    #[tokio::test]
    async fn a_command_that_fails_is_no_login() {
        let key = make_key().unwrap();
        let (mut sshd, host_key) = sshd(&key);
        (sshd.status, sshd.stderr) = (1, "sudo: a password is required\n\n".to_owned());
        let login = target(&sshd, &host_key).await.login("odin", &key, Method::Key, "true").await;
        assert_eq!(login, Login::Failed("the command ended with 1: sudo: a password is required".into()));
        sshd.stderr.clear();
        let login = target(&sshd, &host_key).await.login("odin", &key, Method::Key, "true").await;
        assert_eq!(login, Login::Failed("the command ended with 1: no message".into()));
    }

    #[tokio::test]
    async fn a_server_that_takes_nothing_at_all_is_no_refusal() {
        let key = make_key().unwrap();
        let (mut sshd, host_key) = sshd(&key);
        sshd.methods.clear();
        let target = target(&sshd, &host_key).await;
        assert_failed(&target.login("odin", &key, Method::Password, "true").await, "logging in: ");
        assert_failed(&target.login("root", &key, Method::Key, "true").await, "logging in: ");
    }

    #[tokio::test]
    async fn output_is_whole_however_long() {
        let key = make_key().unwrap();
        let (mut sshd, host_key) = sshd(&key);
        let window = client::Config::default().window_size as usize;
        sshd.stdout = "0123456789abcde\n".repeat(window / 16 + 1000).trim().to_owned();
        let login = target(&sshd, &host_key).await.login("odin", &key, Method::Key, "true").await;
        let Login::Accepted(output) = login else { panic!("{login:?}") };
        assert!(output == sshd.stdout, "{} bytes of {}", output.len(), sshd.stdout.len());
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_says_no_more_is_waited_for_until_the_deadline() {
        let key = make_key().unwrap();
        for says in [&b""[..], b"SSH-2.0-x\r\n"] {
            let (address, _server) = greet(says, true).await;
            let target = Target { address, host_key: key.public.clone() };
            for method in [Method::Key, Method::Password] {
                let begun = tokio::time::Instant::now();
                let login = target.login("odin", &key, method, "true").await;
                assert_eq!(login, Login::Failed("no answer within 60 s".into()));
                assert_eq!(begun.elapsed().as_secs(), 60);
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_server_is_no_refusal() {
        let key = make_key().unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (gone, _server) = greet(b"SSH-2.0-x\r\n", false).await;
        let (other, _server) = greet(b"HTTP/1.1 400\r\n", false).await;
        assert_eq!(route(free).await, Ok(()));
        for address in [free, gone, other] {
            let target = Target { address, host_key: key.public.clone() };
            for method in [Method::Key, Method::Password] {
                let login = target.login("odin", &key, method, "true").await;
                assert_failed(&login, &format!("connecting to {address}: "));
            }
        }
    }

    #[tokio::test]
    async fn only_an_ssh_server_or_a_refusal_shows_that_there_is_a_way() {
        for (says, is_way) in [(&b"SSH-2.0-x\r\n"[..], true), (b"HTTP/1.1 400\r\n", false), (b"", false)] {
            let (address, server) = greet(says, false).await;
            let way = route(address).await;
            assert_eq!(way.is_ok(), is_way, "{way:?}");
            assert!(way.is_ok() || way.unwrap_err().starts_with(&format!("{address} is not reached")));
            server.abort();
        }
    }

    #[tokio::test]
    async fn what_speaks_is_not_silent() {
        let key = make_key().unwrap();
        let (sshd, _) = sshd(&key);
        let speaking = is_silent(serve(&sshd).await).await.unwrap_err();
        assert_eq!(speaking, "something there says `SSH-`");
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (ended, _server) = greet(b"", false).await;
        assert_eq!((is_silent(free).await, is_silent(ended).await), (Ok(()), Ok(())));
    }

    #[test]
    fn a_key_is_a_fresh_one_and_its_private_half_is_not_shown() {
        let (key, other) = (make_key().unwrap(), make_key().unwrap());
        assert!(
            key.public.starts_with("ssh-ed25519 AAAA") && key.public.ends_with(" forge-proof"),
            "{key:?}"
        );
        assert_ne!(key.public, other.public);
        let seed = key.private.key_data().ed25519().unwrap().private.to_bytes();
        assert!(!format!("{key:?}").contains(&format!("{}, {}, {}", seed[0], seed[1], seed[2])), "{key:?}");
    }
}
