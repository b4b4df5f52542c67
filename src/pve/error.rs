//! What Proxmox did not do, by what the caller can do about it.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value;

use super::task::Upid;
use crate::event::human_duration;

/// Why a call has no result. Every message of Proxmox is carried whole.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request certainly did nothing: it may be sent again.
    #[error("{what}: the server was not reached: {reason}")]
    NotSent {
        /// The request.
        what: String,
        /// Why.
        reason: String,
    },
    /// The request went out and its answer is lost: a change may have been made, or be under way. Look
    /// before repeating it, see [`super::Client::settle`].
    #[error("{what}: no answer, so it may have been done: {reason}")]
    Unknown {
        /// The request.
        what: String,
        /// Why.
        reason: String,
    },
    /// No trust in the server: its certificate, or the TLS handshake.
    #[error("{endpoint}: no secure connection: {reason}")]
    Tls {
        /// The address.
        endpoint: String,
        /// What is wrong.
        reason: String,
        /// The fingerprint of the certificate that the server showed.
        seen: Option<String>,
    },
    /// The token, or user and password, are not accepted.
    #[error("{what}: {who} is not let in: {message}")]
    Unauthorized {
        /// The request.
        what: String,
        /// The user or token.
        who: String,
        /// Proxmox's words.
        message: String,
    },
    /// A privilege is missing.
    #[error("{what}: {who} may not: {message}")]
    Forbidden {
        /// The request.
        what: String,
        /// The user or token.
        who: String,
        /// Proxmox's words.
        message: String,
        /// What is missing, where Proxmox says so or only one thing can be.
        missing: Option<Box<Missing>>,
    },
    /// The VM, volume or task does not exist.
    #[error("{what}: {message}")]
    NotFound {
        /// The request.
        what: String,
        /// Proxmox's words.
        message: String,
    },
    /// The VMID is somebody's already: take another one.
    #[error("{what}: {message}")]
    Taken {
        /// The request.
        what: String,
        /// Proxmox's words.
        message: String,
    },
    /// Something else holds the VM: try again later. Nothing has been changed.
    #[error("{what}: {message}")]
    Busy {
        /// The request.
        what: String,
        /// Proxmox's words.
        message: String,
        /// The config's `lock`, when it is one: backup, clone, create, migrate, …
        lock: Option<String>,
    },
    /// Somebody changed the configuration meanwhile: read it again.
    #[error("{what}: {message}")]
    Changed {
        /// The request.
        what: String,
        /// Proxmox's words.
        message: String,
    },
    /// The machine runs and its guest agent does not answer (yet).
    #[error("{what}: {message}")]
    AgentSilent {
        /// The request.
        what: String,
        /// Proxmox's words.
        message: String,
    },
    /// The machine does not run.
    #[error("{what}: {message}")]
    NotRunning {
        /// The request.
        what: String,
        /// Proxmox's words.
        message: String,
    },
    /// Proxmox refused, and would again: the request itself must change.
    #[error("{what}: refused with {status}: {message}{}", parameters_text(.parameters))]
    Refused {
        /// The request.
        what: String,
        /// The HTTP status.
        status: u16,
        /// Proxmox's words.
        message: String,
        /// What is wrong with which parameter.
        parameters: Vec<(String, String)>,
    },
    /// The task that did the work failed.
    #[error("task {upid} failed: {exitstatus}{}", log_text(.log, .exitstatus))]
    TaskFailed {
        /// The task.
        upid: Box<Upid>,
        /// How it ended, in Proxmox's words.
        exitstatus: String,
        /// The last lines of its log.
        log: Vec<String>,
    },
    /// What was waited for did not happen in time.
    #[error("{what}: not within {}", human_duration(*.after))]
    Deadline {
        /// What was waited for.
        what: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The answer is none that Proxmox VE gives: something else listens there, or the API changed.
    #[error("{what}: the answer is not understood: {reason}")]
    Answer {
        /// The request.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The settings, or a request that Proxmox would mangle: nothing was sent.
    #[error("{what}: {reason}")]
    Unusable {
        /// The setting or the request.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Privileges that somebody lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Where: an access path such as `/vms/100`.
    pub path: String,
    /// Any one of these would do.
    pub privileges: Vec<String>,
}

impl Missing {
    /// Returns what a text like `Permission check failed (/vms/100, VM.Allocate)` names.
    #[must_use]
    pub fn parse(message: &str) -> Option<Self> {
        let inner = message.split_once("Permission check failed (")?.1.split_once(')')?.0;
        let (path, privileges) = inner.split_once(", ")?;
        let privileges = privileges.split_whitespace().next()?;
        let known =
            |name: &str| name.contains('.') && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '.');
        let good = path.starts_with('/') && privileges.split('|').all(known);
        good.then(|| Self {
            path: path.to_owned(),
            privileges: privileges.split('|').map(str::to_owned).collect(),
        })
    }

    /// Returns what is missing where Proxmox only says `Permission check failed`.
    fn guess(what: &str, message: &str) -> Option<Self> {
        if message != "Permission check failed" {
            return None;
        }
        let parts: Vec<&str> = what.strip_prefix("POST /nodes/")?.split('/').collect();
        let (path, privilege) = match parts[..] {
            [_, "qemu"] | [_, "qemu", _, "clone"] => ("/vms".to_owned(), "VM.Allocate"),
            [node, "storage", _, "download-url"] => (format!("/nodes/{node}"), "Sys.AccessNetwork"),
            _ => return None,
        };
        Some(Self { path, privileges: vec![privilege.to_owned()] })
    }
}

impl Error {
    /// Tells whether a change may or may not have been made.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }

    /// Tells whether the same request may well succeed later, and has done nothing so far.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::NotSent { .. } | Self::Busy { .. } | Self::AgentSilent { .. } => true,
            Self::TaskFailed { exitstatus, .. } => is_busy(exitstatus),
            _ => false,
        }
    }

    /// Tells whether the thing that was asked for is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::NotFound { .. } => true,
            Self::TaskFailed { exitstatus, .. } => not_found(exitstatus),
            _ => false,
        }
    }

    /// Returns what the user can do, one sentence each.
    #[must_use]
    pub fn hints(&self) -> Vec<String> {
        match self {
            Self::Forbidden { who, missing, message, .. } => {
                forbidden_hints(who, missing.as_deref(), message)
            }
            Self::Unauthorized { who, .. } => vec![format!(
                "see that the secret is whole, and that {who} exists, is enabled and has not expired: `pveum user list`, `pveum user token \
                 list USER@REALM`"
            )],
            Self::Tls { seen: Some(seen), .. } => vec![
                format!(
                    "if the node's own `pvenode cert info` shows the SHA-256 fingerprint {seen}, pin it in the \
                     builder profile"
                ),
                "or name the file of the authority that signed it: /etc/pve/pve-root-ca.pem of the cluster"
                    .to_owned(),
            ],
            Self::Busy { lock: Some(lock), .. } => {
                vec![format!(
                    "the VM bears the lock `{lock}`; if nothing works on it, root can `qm unlock` it"
                )]
            }
            Self::TaskFailed { upid, .. } => {
                vec![format!("the whole log: `pvenode task log {upid}` on {}", upid.node())]
            }
            Self::NotSent { .. } => vec![
                "see that the node is up, and that `endpoints` of the builder profile names it and its port (8006)"
                    .to_owned(),
            ],
            _ => Vec::new(),
        }
    }

    /// Returns the error of an answer that is no success.
    pub(super) fn of_answer(what: &str, who: &str, answer: &Answer<'_>) -> Self {
        let what = what.to_owned();
        let Words { message, parameters } = Words::of(answer);
        let status = answer.status;
        match status {
            595 => Self::NotSent { what, reason: format!("pveproxy answers {status} {message}") },
            596..=599 => Self::Unknown { what, reason: format!("pveproxy answers {status} {message}") },
            401 => Self::Unauthorized { what, who: who.to_owned(), message },
            403 => {
                let missing =
                    Missing::parse(&message).or_else(|| Missing::guess(&what, &message)).map(Box::new);
                Self::Forbidden { what, who: who.to_owned(), message, missing }
            }
            _ => Self::of_words(what, status, message, parameters),
        }
    }

    fn of_words(what: String, status: u16, message: String, parameters: Vec<(String, String)>) -> Self {
        let no_task = parameters.iter().any(|(_, text)| text == "no such task");
        if not_found(&message) || no_task {
            let message = if no_task { "no such task".to_owned() } else { message };
            return Self::NotFound { what, message };
        }
        if is_busy(&message) {
            let lock = lock_in(&message);
            return Self::Busy { what, message, lock };
        }
        match command_in(&message) {
            Some(Command::NotSent) => return Self::Busy { what, message, lock: None },
            Some(Command::Lost) => return Self::Unknown { what, reason: message },
            None => {}
        }
        let taken = |text: &str| text.contains("already exists");
        if (message.starts_with("unable to create ") || parameters.iter().any(|(name, _)| name == "vmid"))
            && (taken(&message) || parameters.iter().any(|(_, text)| taken(text)))
        {
            let message = parameters.into_iter().find(|(_, text)| taken(text)).map_or(message, |it| it.1);
            return Self::Taken { what, message };
        }
        if message == "QEMU guest agent is not running" {
            return Self::AgentSilent { what, message };
        }
        if message.starts_with("VM ") && message.ends_with(" not running") {
            return Self::NotRunning { what, message };
        }
        if message.contains("file change by other user")
            || message.contains("detected modified configuration")
        {
            return Self::Changed { what, message };
        }
        Self::Refused { what, status, message, parameters }
    }
}

fn not_found(message: &str) -> bool {
    (message.starts_with("Configuration file '") && message.ends_with("' does not exist"))
        || message.starts_with("unable to find configuration file for ")
        || (message.starts_with("volume_size_info on ") && message.ends_with("failed - no format"))
}

/// Tells whether a text says that something holds the VM.
fn is_busy(message: &str) -> bool {
    lock_in(message).is_some() || message.contains("can't lock file '")
}

/// What became of a command to QEMU or to the guest agent.
enum Command {
    NotSent,
    /// It may be, or have been, carried out.
    Lost,
}

/// Returns what became of the command that a text like `VM 110 qmp command 'guest-exec' failed - got timeout`
/// names; nothing where QEMU has refused it. (qemu-server, `src/PVE/QMPClient.pm`.)
fn command_in(message: &str) -> Option<Command> {
    /// They follow the opening of a file in the same call, and that has emptied a file to be written.
    const FOLLOWING: [&str; 3] = ["guest-file-write", "guest-file-read", "guest-file-close"];
    let (_, rest) = message.strip_prefix("VM ")?.split_once(' ')?;
    let rest = rest.strip_prefix("qmp command '").or_else(|| rest.strip_prefix("qga command '"))?;
    let (command, trouble) = rest.split_once("' failed - ")?;
    if trouble.starts_with("unable to connect to VM ") {
        return Some(if FOLLOWING.contains(&command) { Command::Lost } else { Command::NotSent });
    }
    // What the agent itself refuses reads `Agent error: …`; QEMU's refusals stand in this place.
    let broken = ["got timeout", "client closed connection", "got wrong command id", "received response"];
    let lost = command.starts_with("guest-") || broken.iter().any(|start| trouble.starts_with(start));
    lost.then_some(Command::Lost)
}

/// Returns the lock that a text like `VM is locked (clone)` names.
fn lock_in(message: &str) -> Option<String> {
    let (lock, _) = message.split_once(" is locked (")?.1.split_once(')')?;
    Some(lock.to_owned())
}

/// An answer as it came, for [`Error::of_answer`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer<'a> {
    pub(super) status: u16,
    pub(super) reason: &'a str,
    pub(super) body: &'a [u8],
}

struct Words {
    message: String,
    parameters: Vec<(String, String)>,
}

impl Words {
    /// Returns what an answer says, from its reason phrase and from its body, which may be JSON or text.
    fn of(answer: &Answer<'_>) -> Self {
        let reason = answer.reason.trim();
        let json: Option<Value> = serde_json::from_slice(answer.body).ok();
        let text = match &json {
            Some(Value::Object(fields)) => fields.get("message").and_then(Value::as_str).map(str::to_owned),
            Some(Value::String(text)) => Some(text.clone()),
            Some(_) => None,
            None => Some(String::from_utf8_lossy(answer.body).into_owned()),
        };
        let parameters = json
            .as_ref()
            .and_then(|json| json.get("errors")?.as_object())
            .map(|errors| errors.iter().map(|(name, text)| (name.clone(), shown(text))).collect())
            .unwrap_or_default();
        Self { message: join(reason, text.unwrap_or_default().trim()), parameters }
    }
}

/// Returns one message of the two that an answer has: the reason phrase is the body's first line, as a rule.
fn join(reason: &str, body: &str) -> String {
    if body.is_empty() || body.starts_with('<') {
        return if reason.is_empty() { "without a word".to_owned() } else { reason.to_owned() };
    }
    if body.starts_with(reason) { body.to_owned() } else { format!("{reason}: {body}") }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.trim().to_owned(),
        other => other.to_string(),
    }
}

fn parameters_text(parameters: &[(String, String)]) -> String {
    parameters.iter().fold(String::new(), |mut text, (name, what)| {
        let separator = if text.is_empty() { ' ' } else { ';' };
        let space = if text.is_empty() { "" } else { " " };
        write!(text, "{separator}{space}{name}: {what}").expect("a string takes everything");
        text
    })
}

fn log_text(log: &[String], exitstatus: &str) -> String {
    log.iter()
        .filter(|line| !line.strip_prefix("TASK ERROR: ").is_some_and(|rest| exitstatus.starts_with(rest)))
        .fold(String::new(), |text, line| text + "\n    " + line)
}

fn forbidden_hints(who: &str, missing: Option<&Missing>, message: &str) -> Vec<String> {
    if message.contains("not available with API token") {
        return vec!["this call needs a user and a password instead of a token".to_owned()];
    }
    let Some(Missing { path, privileges }) = missing else {
        return Vec::new();
    };
    let kind = if who.contains('!') { "tokens" } else { "users" };
    let privilege = privileges.first().map(String::as_str).unwrap_or_default();
    let any =
        if privileges.len() > 1 { format!("one of {}", privileges.join(", ")) } else { privilege.to_owned() };
    let mut hints = vec![format!(
        "{who} lacks {any} on {path}: add it to its role there with `pveum role modify ROLE --append 1 --privs \
         {privilege}`, or give it a role that has it with `pveum acl modify {path} --{kind} '{who}' --roles ROLE` \
         (a role on a path replaces what that path inherits)"
    )];
    if kind == "tokens" {
        let user = who.split('!').next().unwrap_or_default();
        hints.push(format!(
            "a token with privilege separation has only what its user has too: `pveum user permissions {user} \
             --path {path}`"
        ));
    }
    hints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(status: u16, reason: &str, body: &str) -> Error {
        Error::of_answer("GET /x", "forge@pve!ci", &Answer { status, reason, body: body.as_bytes() })
    }

    #[test]
    fn texts_are_sorted_by_what_can_be_done() {
        let kind = |status, text: &str| match error(status, text, "") {
            Error::NotSent { .. } => "not sent",
            Error::Unknown { .. } => "unknown",
            Error::Unauthorized { .. } => "unauthorized",
            Error::Forbidden { .. } => "forbidden",
            Error::NotFound { .. } => "not found",
            Error::Taken { .. } => "taken",
            Error::Busy { .. } => "busy",
            Error::Changed { .. } => "changed",
            Error::AgentSilent { .. } => "silent",
            Error::NotRunning { .. } => "not running",
            Error::Refused { .. } => "refused",
            _ => "?",
        };
        let failed = |command, trouble| format!("VM 110 qmp command '{command}' failed - {trouble}");
        for (status, text, wanted) in [
            (595, "Connection refused", "not sent"),
            (596, "Broken pipe", "unknown"),
            (597, "x", "unknown"),
            (599, "Too many redirections", "unknown"),
            (401, "No ticket", "unauthorized"),
            (403, "Permission check failed", "forbidden"),
            (500, "Configuration file 'nodes/pve1/qemu-server/4242.conf' does not exist", "not found"),
            (500, "unable to find configuration file for VM 4999 on node 'pve1'", "not found"),
            (500, "volume_size_info on 'local:iso/bad.iso' failed - no format", "not found"),
            (500, "unable to create VM 300 - VM 300 already exists on node 'pve1'", "taken"),
            (500, "unable to create VM 412: config file already exists", "taken"),
            (500, "create role failed: role 'BuildNode' already exists", "refused"),
            (500, "VM is locked (clone)", "busy"),
            (500, "can't lock file '/var/lock/qemu-server/lock-601.conf' - got timeout", "busy"),
            (
                500,
                &failed("guest-exec", "unable to connect to VM 110 qga socket - timeout after 31 retries"),
                "busy",
            ),
            (
                500,
                &failed("guest-exec", "unable to connect to VM 110 qga socket - Connection refused"),
                "busy",
            ),
            (500, &failed("guest-file-open", "unable to connect to VM 110 qga socket - timeout"), "busy"),
            (500, &failed("guest-file-write", "unable to connect to VM 110 qga socket - timeout"), "unknown"),
            (500, &failed("guest-exec", "got timeout"), "unknown"),
            (500, &failed("guest-exec", "got timeout").replace("qmp", "qga"), "unknown"),
            (500, &failed("guest-exec-status", "client closed connection"), "unknown"),
            (500, &failed("guest-exec", "got wrong command id '50012' (expected 50011)"), "unknown"),
            (500, &failed("human-monitor-command", "got timeout"), "unknown"),
            (
                500,
                &failed("human-monitor-command", "unable to connect to VM 110 qmp socket - timeout"),
                "busy",
            ),
            (500, &failed("netdev_add", "network script x failed with status 512"), "refused"),
            (500, "Agent error: Invalid parameter 'pid'", "refused"),
            (500, "No QEMU guest agent configured", "refused"),
            (500, "QEMU guest agent is not running", "silent"),
            (500, "VM 111 is not running", "not running"),
            (500, "VM 110 not running", "not running"),
            (500, "checksum mismatch (file change by other user?)", "changed"),
            (500, "detected modified configuration - file changed by other user? Try again.", "changed"),
            (500, "storage 'nosuch' does not exist", "refused"),
            (501, "for data too large", "refused"),
            (400, "Bad Request", "refused"),
        ] {
            assert_eq!(kind(status, text), wanted, "{status} {text}");
        }
    }

    #[test]
    fn the_whole_message_and_every_parameter_is_told() {
        let body = r#"{"data":null,"message":"Parameter verification failed.\n","errors":{"virtio0":"invalid format - format error\nvirtio0.ssd: property is not defined\n","x":"no"}}"#;
        let text = error(400, "Parameter verification failed.", body).to_string();
        assert_eq!(
            text,
            "GET /x: refused with 400: Parameter verification failed. virtio0: invalid format - format \
             error\nvirtio0.ssd: property is not defined; x: no"
        );
        let text = error(500, "first line", "{\"message\":\"first line\\nsecond line\\n\"}").to_string();
        assert_eq!(text, "GET /x: refused with 500: first line\nsecond line");
        let text = error(500, "Bad", "plain words").to_string();
        assert_eq!(text, "GET /x: refused with 500: Bad: plain words");
    }

    #[test]
    fn a_missing_privilege_is_named_with_what_to_type() {
        let text = "Permission check failed (/storage/local, Datastore.AllocateSpace|Datastore.Audit)";
        let missing = Missing::parse(text).unwrap();
        assert_eq!(missing.path, "/storage/local");
        assert_eq!(missing.privileges, ["Datastore.AllocateSpace", "Datastore.Audit"]);
        let hints = error(403, "Permission check failed (/vms/110, VM.Monitor)", "").hints().join("\n");
        assert!(hints.contains("pveum acl modify /vms/110 --tokens 'forge@pve!ci' --roles"), "{hints}");
        assert!(hints.contains("--privs VM.Monitor"), "{hints}");
        for text in [
            "Permission check failed",
            "Permission check failed (pool 'nosuch' does not exist)",
            "Permission check failed (, Sys.Audit)",
            "Permission check failed (URI '/access/password' not available with API token, need proper ticket.\n)",
            "Permission check failed (changing feature flags (except nesting) is only allowed for root@pam)",
        ] {
            assert_eq!(Missing::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_bare_refusal_gets_the_one_privilege_that_can_be_missing() {
        let guess = |what| {
            Missing::guess(what, "Permission check failed").map(|it| (it.path, it.privileges.concat()))
        };
        let of = |path: &str, privilege: &str| Some((path.to_owned(), privilege.to_owned()));
        assert_eq!(guess("POST /nodes/pve1/qemu"), of("/vms", "VM.Allocate"));
        assert_eq!(guess("POST /nodes/pve1/qemu/110/clone"), of("/vms", "VM.Allocate"));
        assert_eq!(
            guess("POST /nodes/pve1/storage/local/download-url"),
            of("/nodes/pve1", "Sys.AccessNetwork")
        );
        assert_eq!(guess("POST /nodes/pve1/qemu/110/config"), None);
    }

    #[test]
    fn a_taken_vmid_asked_for_by_number_is_taken() {
        let body =
            r#"{"message":"Parameter verification failed.\n","errors":{"vmid":"VM 300 already exists"}}"#;
        assert!(matches!(error(400, "Parameter verification failed.", body), Error::Taken { .. }));
    }
}
