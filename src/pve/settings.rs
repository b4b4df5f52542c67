//! Where the API is, who asks, whom to trust, how patiently.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::str::FromStr;
use std::time::Duration;

use super::Error;
use crate::definition::Secret;

/// The port of pveproxy.
const PORT: u16 = 8006;

/// How long a command that prints a secret may take.
const SECRET_COMMAND: Duration = Duration::from_mins(1);

/// Everything a client needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The nodes to talk to, the first one that is reached; at least one.
    pub endpoints: Vec<Endpoint>,
    /// Who asks.
    pub credentials: Credentials,
    /// Whom to trust.
    pub trust: Trust,
    /// How patiently.
    pub pace: Pace,
}

/// The address of a pveproxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
}

impl Endpoint {
    /// Returns the host, as a name or an address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns `HOST:PORT` as a `Host` header has it.
    pub(super) fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    /// Reads `asgard`, `10.0.0.1:8006` or `https://asgard:8006/`; plain `http` only to this machine.
    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = |reason: &str| unusable("the endpoint", reason);
        let (tls, rest) = match text.split_once("://") {
            None => (true, text),
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            Some(_) => return Err(bad("it begins with neither https:// nor http://")),
        };
        let authority = rest.trim_end_matches('/').trim_end_matches("/api2/json");
        if authority.contains('@') {
            return Err(bad("it holds a user or password; these belong to the credentials"));
        }
        let bare_ipv6 = authority.parse::<IpAddr>().is_ok() && authority.contains(':');
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !bare_ipv6 && !authority.ends_with(']') => {
                (host, port.parse().map_err(|_| bad("what follows its last colon is no port"))?)
            }
            _ => (authority, PORT),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let odd = |c: char| !(c.is_ascii_alphanumeric() || ".-_:%".contains(c));
        if host.is_empty() || host.contains(odd) {
            return Err(bad("it names no host; https://asgard:8006 is one"));
        }
        let endpoint = Self { tls, host, port };
        if !tls && !endpoint.is_loopback() {
            return Err(bad(
                "http:// would send the token in the clear: https:// is needed to another machine",
            ));
        }
        Ok(endpoint)
    }
}

/// Who asks.
#[derive(Clone)]
pub enum Credentials {
    /// An API token.
    Token {
        /// `USER@REALM!TOKENID`.
        id: String,
        /// Its secret.
        secret: Secret,
    },
    /// A user, who gets a ticket that is renewed before its two hours are over.
    Password {
        /// `USER@REALM`.
        user: String,
        /// The password.
        password: Secret,
    },
}

impl Credentials {
    /// Reads a token of the form `USER@REALM!TOKENID=SECRET`, also with `PVEAPIToken=` before it.
    pub fn parse_token(text: &Secret) -> Result<Self, Error> {
        let whole = text.expose().trim();
        let whole = whole.strip_prefix("PVEAPIToken=").unwrap_or(whole);
        let parts = whole.split_once('=').filter(|(id, secret)| {
            let user = id.split_once('!').and_then(|(user, token)| Some((user.rsplit_once('@')?, token)));
            user.is_some_and(|((name, realm), token)| ![name, realm, token].contains(&""))
                && !secret.is_empty()
                && !whole.contains(char::is_whitespace)
        });
        // Nothing of the text is shown: what it should have been is unknown, a secret may be in it.
        let (id, secret) = parts
            .ok_or_else(|| unusable("the API token", "it must have the form USER@REALM!TOKENID=SECRET"))?;
        Ok(Self::Token { id: id.to_owned(), secret: Secret::new(secret) })
    }

    /// Returns the credentials of a user `USER@REALM`.
    pub fn password(user: &str, password: Secret) -> Result<Self, Error> {
        if !user.contains('@') {
            return Err(unusable("the user", "it needs its realm, as in root@pam"));
        }
        Ok(Self::Password { user: user.to_owned(), password })
    }

    /// Returns `USER@REALM!TOKENID` or `USER@REALM`.
    #[must_use]
    pub fn who(&self) -> &str {
        match self {
            Self::Token { id, .. } => id,
            Self::Password { user, .. } => user,
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Credentials").field(&self.who()).finish()
    }
}

/// Where a secret comes from; never from the command line, which every process can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// An environment variable.
    Environment(String),
    /// A file's content.
    File(PathBuf),
    /// What a command prints, such as `pass show pve/forge`; run without a shell.
    Command(Vec<String>),
}

impl SecretSource {
    /// Returns the secret, without the white space around it.
    pub async fn load(&self) -> Result<Secret, Error> {
        let text = match self {
            Self::Environment(name) => {
                std::env::var(name).map_err(|error| unusable(self, &error.to_string()))?
            }
            Self::File(path) => {
                tokio::fs::read_to_string(path).await.map_err(|error| unusable(self, &error.to_string()))?
            }
            Self::Command(argv) => self.printed(argv).await?,
        };
        let secret = Secret::new(text.trim());
        if secret.is_set() { Ok(secret) } else { Err(unusable(self, "it is empty")) }
    }

    async fn printed(&self, argv: &[String]) -> Result<String, Error> {
        let Some((program, arguments)) = argv.split_first() else {
            return Err(unusable(self, "the command is empty"));
        };
        let mut command = tokio::process::Command::new(program);
        // Its standard error is the terminal's, for it may ask to unlock something.
        command.args(arguments).stdout(Stdio::piped()).kill_on_drop(true);
        let output = tokio::time::timeout(
            SECRET_COMMAND,
            command.spawn().map_err(|e| unusable(self, &e.to_string()))?.wait_with_output(),
        )
        .await
        .map_err(|_| unusable(self, "it has not ended within a minute"))?
        .map_err(|error| unusable(self, &error.to_string()))?;
        if !output.status.success() {
            return Err(unusable(self, &format!("it ended with {}", output.status)));
        }
        String::from_utf8(output.stdout).map_err(|_| unusable(self, "it printed something that is no text"))
    }
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment(name) => write!(f, "the environment variable {name}"),
            Self::File(path) => write!(f, "the file {}", path.display()),
            Self::Command(argv) => write!(f, "the command `{}`", argv.first().map_or("", String::as_str)),
        }
    }
}

/// Whom to trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// The certificate authorities of this system.
    System,
    /// Those in a PEM file, such as a cluster's /etc/pve/pve-root-ca.pem, and no other.
    CaFile(PathBuf),
    /// A server that shows one of these certificates, whatever its name: each node has its own.
    Pinned(Vec<Fingerprint>),
    /// Any server. Whoever can answer in its place gets the credentials.
    Anything,
}

/// The SHA-256 of a certificate in DER: 32 hexadecimal pairs with colons, in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    pub(super) fn of(certificate: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(certificate).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02X}", if index == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

impl FromStr for Fingerprint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let digits: Vec<u8> = text.trim().bytes().filter(|byte| *byte != b':').collect();
        let mut bytes = [0; 32];
        let well = digits.len() == 64
            && bytes.iter_mut().zip(digits.chunks(2)).all(|(byte, pair)| {
                let value = std::str::from_utf8(pair).ok().filter(|pair| !pair.starts_with('+'));
                value.and_then(|pair| u8::from_str_radix(pair, 16).ok()).map(|value| *byte = value).is_some()
            });
        let reason = format!("`{text}` is no SHA-256 fingerprint: 32 hexadecimal pairs such as A1:B2:… are");
        if well { Ok(Self(bytes)) } else { Err(unusable("the TLS pin", &reason)) }
    }
}

/// How long things may take, and how often the server is asked. Tests scale it.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// How long connecting may take, with the TLS handshake.
    pub connect: Duration,
    /// How long an answer may take: pveproxy itself gives up after 30 s.
    pub answer: Duration,
    /// How long requests that are safe to repeat are repeated.
    pub patience: Duration,
    /// The pause before the first repetition; doubled up to eight times.
    pub pause: Duration,
    /// How long an idle connection is used again; the server closes it after 5 s.
    pub idle: Duration,
    /// How soon after its start a task is asked for, then doubled up to [`Self::task_max`].
    pub task: Duration,
    /// The longest pause between two questions for a task.
    pub task_max: Duration,
    /// How long a task is looked for whose UPID was lost: a config lock may hold it back for 10 s.
    pub settle: Duration,
    /// How soon after its start a guest command is asked for.
    pub agent_first: Duration,
    /// The least pause between two questions for a guest command.
    pub agent: Duration,
    /// The least pause between two questions to an agent that has not answered: each costs one of
    /// three workers 3 s.
    pub agent_silent: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(75),
            patience: Duration::from_secs(20),
            pause: Duration::from_millis(250),
            idle: Duration::from_secs(4),
            task: Duration::from_secs(1),
            task_max: Duration::from_secs(2),
            settle: Duration::from_secs(20),
            agent_first: Duration::from_millis(250),
            agent: Duration::from_secs(1),
            agent_silent: Duration::from_secs(5),
        }
    }
}

impl Pace {
    /// Returns a pace that many times as fast, against a simulated server whose clock runs so.
    /// Connecting and answering take real time and keep theirs.
    #[must_use]
    pub fn faster(self, times: u32) -> Self {
        Self {
            patience: self.patience / times,
            pause: self.pause / times,
            idle: self.idle / times,
            task: self.task / times,
            task_max: self.task_max / times,
            settle: self.settle / times,
            agent_first: self.agent_first / times,
            agent: self.agent / times,
            agent_silent: self.agent_silent / times,
            ..self
        }
    }
}

fn unusable(what: &(impl ToString + ?Sized), reason: &str) -> Error {
    Error::Unusable { what: what.to_string(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_in_every_usual_form() {
        for (text, shown) in [
            ("asgard", "https://asgard:8006"),
            ("10.0.0.1:443", "https://10.0.0.1:443"),
            ("https://asgard.lan:8006/", "https://asgard.lan:8006"),
            ("https://asgard:8006/api2/json", "https://asgard:8006"),
            ("https://[fd00::1]:8006", "https://[fd00::1]:8006"),
            ("[fd00::1]", "https://[fd00::1]:8006"),
            ("fd00::1", "https://[fd00::1]:8006"),
            ("http://127.0.0.1:80", "http://127.0.0.1:80"),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), shown);
        }
        for text in ["", "ftp://x", "https://", "http://asgard", "https://root:secret@asgard", "a b", "x:y"] {
            let error = text.parse::<Endpoint>().unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn tokens_are_read_and_never_shown() {
        for text in [
            "forge@pve!ci=s3cret-value",
            "PVEAPIToken=forge@pve!ci=s3cret-value",
            " forge@pve!ci=s3cret-value\n",
        ] {
            let token = Credentials::parse_token(&Secret::new(text)).unwrap();
            assert_eq!(token.who(), "forge@pve!ci");
            assert!(!format!("{token:?}").contains("s3cret"));
        }
        for text in [
            "s3cret",
            "forge@pve=s3cret",
            "forge!ci=s3cret",
            "@pve!ci=s3cret",
            "forge@pve!ci=",
            "a@b!c=s3cret x",
        ] {
            let error = Credentials::parse_token(&Secret::new(text)).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("s3cret"));
        }
    }

    #[test]
    fn fingerprints_are_read_and_shown() {
        let text = (0..32).map(|n| format!("{n:02x}")).collect::<Vec<_>>().join(":");
        let pin: Fingerprint = text.parse().unwrap();
        assert_eq!(pin.to_string(), text.to_uppercase());
        assert_eq!(text.replace(':', "").parse::<Fingerprint>().unwrap(), pin);
        assert!("A1:B2".parse::<Fingerprint>().is_err());
        assert!(text.replace("1f", "+f").parse::<Fingerprint>().is_err());
    }

    #[tokio::test]
    async fn secrets_come_from_files_and_commands() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "value\n").unwrap();
        assert_eq!(SecretSource::File(path).load().await.unwrap().expose(), "value");
        let command = |words: &[&str]| SecretSource::Command(words.iter().map(ToString::to_string).collect());
        assert_eq!(command(&["echo", "value"]).load().await.unwrap().expose(), "value");
        for (source, reason) in [
            (command(&["false"]), "the command `false`: it ended with exit status: 1"),
            (command(&["true"]), "the command `true`: it is empty"),
            (command(&[]), "the command ``: the command is empty"),
            (
                SecretSource::Environment("FORGE_NO_SUCH_VARIABLE".to_owned()),
                "the environment variable FORGE_NO_SUCH_VARIABLE: environment variable not found",
            ),
        ] {
            assert_eq!(source.load().await.unwrap_err().to_string(), reason);
        }
    }
}
