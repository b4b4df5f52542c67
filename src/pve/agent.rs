//! The guest agent's endpoints, with their limits and encodings.
//!
//! Text goes to the agent and comes from it as one character per byte, up to U+00FF. Arguments must be
//! ASCII: a character above U+00FF silences the agent until the VM is stopped. A call for a program that
//! does not exist is answered `596 Broken pipe`, which looks like a lost answer: run programs through
//! `/bin/sh`. (qemu-server, `src/PVE/API2/Qemu/Agent.pm`; recorded on 8.4.)

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::call::Call;
use super::client::understand;
use super::vm::Vm;
use super::{Error, loose};

/// The most characters that `input-data` of a command may have.
pub const INPUT_MAX: usize = 65_536;

/// The most characters that one write to a file may have, so the most bytes.
pub const WRITE_MAX: usize = 61_440;

/// The most bytes that a write can carry in base64.
const WRITE_BASE64_MAX: usize = WRITE_MAX / 4 * 3;

/// A VM's guest agent.
#[derive(Debug, Clone)]
pub struct Agent {
    pub(super) vm: Vm,
}

/// How a command in the guest is. One that has ended is told of once, then the agent forgets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecStatus {
    /// Whether it has ended.
    pub exited: bool,
    /// Its exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What it wrote to standard output.
    pub out: Vec<u8>,
    /// What it wrote to standard error.
    pub err: Vec<u8>,
    /// Whether the agent cut one of them short, at 16 MiB.
    pub truncated: bool,
}

#[derive(Deserialize)]
struct ExecAnswer {
    #[serde(deserialize_with = "loose::number")]
    pid: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct StatusAnswer {
    #[serde(deserialize_with = "loose::flag")]
    exited: bool,
    #[serde(default, deserialize_with = "loose::maybe_number")]
    exitcode: Option<i32>,
    #[serde(default, deserialize_with = "loose::maybe_number")]
    signal: Option<i32>,
    #[serde(default, deserialize_with = "loose::text")]
    out_data: String,
    #[serde(default, deserialize_with = "loose::text")]
    err_data: String,
    #[serde(default, deserialize_with = "loose::flag")]
    out_truncated: bool,
    #[serde(default, deserialize_with = "loose::flag")]
    err_truncated: bool,
}

#[derive(Deserialize)]
struct CountAnswer {
    #[serde(deserialize_with = "loose::number")]
    result: i64,
}

#[derive(Deserialize)]
struct ReadAnswer {
    #[serde(default, deserialize_with = "loose::text")]
    content: String,
    #[serde(default, deserialize_with = "loose::flag")]
    truncated: bool,
}

impl Agent {
    fn at(&self, call: Call) -> Call {
        call.at(&self.vm.node).vm(self.vm.vmid).through_agent(&self.vm.node)
    }

    /// Asks whether it answers. One that is silent costs the node's worker 3 s.
    ///
    /// # Errors
    /// [`Error::AgentSilent`], [`Error::NotRunning`].
    pub async fn ping(&self) -> Result<(), Error> {
        let call = self.at(Call::post("/nodes/{node}/qemu/{vmid}/agent/ping"));
        let what = call.to_string();
        check_result(what, &self.vm.client.call(call).await?)
    }

    /// Freezes the guest's file systems and returns how many; until they are thawed it only answers to that.
    ///
    /// # Errors
    /// As [`Self::ping`], and what the agent says.
    pub async fn freeze(&self) -> Result<i64, Error> {
        self.count(Call::post("/nodes/{node}/qemu/{vmid}/agent/fsfreeze-freeze")).await
    }

    /// Thaws the guest's file systems and returns how many.
    ///
    /// # Errors
    /// As [`Self::freeze`].
    pub async fn thaw(&self) -> Result<i64, Error> {
        self.count(Call::post("/nodes/{node}/qemu/{vmid}/agent/fsfreeze-thaw")).await
    }

    async fn count(&self, call: Call) -> Result<i64, Error> {
        let call = self.at(call);
        let what = call.to_string();
        let answer = self.vm.client.call(call).await?;
        check_result(what.clone(), &answer)?;
        let counted: CountAnswer = understand(what, answer)?;
        Ok(counted.result)
    }

    /// Sets a user's password, of 5 to 1024 characters.
    ///
    /// # Errors
    /// As [`Self::ping`], and what the agent says.
    pub async fn set_user_password(&self, user: &str, password: &str) -> Result<(), Error> {
        let call = self.at(Call::post("/nodes/{node}/qemu/{vmid}/agent/set-user-password"));
        let body = json!({ "username": user, "password": password });
        self.vm.client.call(call.body(body)).await.map(drop)
    }

    /// Starts a program as root and returns its process id.
    ///
    /// # Errors
    /// [`Error::Unusable`] for arguments that are not ASCII and input above [`INPUT_MAX`] bytes;
    /// [`Error::Unknown`] also when there is no such program.
    pub async fn exec(&self, argv: &[&str], input: &[u8]) -> Result<i64, Error> {
        let call = self.at(Call::post("/nodes/{node}/qemu/{vmid}/agent/exec"));
        let unusable =
            |reason: &str| Err(Error::Unusable { what: call.to_string(), reason: reason.to_owned() });
        if argv.iter().any(|argument| !argument.is_ascii()) {
            return unusable("an argument has characters besides ASCII");
        }
        if input.len() > INPUT_MAX {
            return unusable("the input is larger than 64 KiB");
        }
        let mut body = json!({ "command": argv });
        if !input.is_empty() {
            body["input-data"] = from_bytes(input).into();
        }
        let answer: ExecAnswer = self.vm.client.ask(call.body(body)).await?;
        Ok(answer.pid)
    }

    /// Returns how a command is; the result of one that has ended can be had once.
    pub async fn exec_status(&self, pid: i64) -> Result<ExecStatus, Error> {
        let call = self.at(Call::get("/nodes/{node}/qemu/{vmid}/agent/exec-status")).query("pid", pid);
        let what = call.to_string();
        parse_exec_status(&what, self.vm.client.call(call).await?)
    }

    /// Returns a file, for one of which it is known that it is small.
    pub async fn read_file(&self, path: &str) -> Result<Vec<u8>, Error> {
        let call = self.at(Call::get("/nodes/{node}/qemu/{vmid}/agent/file-read")).query("file", path);
        let what = call.to_string();
        parse_file(what, self.vm.client.call(call).await?)
    }

    /// Writes a file of at most [`WRITE_MAX`] bytes, replacing what was there.
    pub async fn write_file(&self, path: &str, content: &[u8]) -> Result<(), Error> {
        let call = self.at(Call::post("/nodes/{node}/qemu/{vmid}/agent/file-write"));
        if content.len() > WRITE_MAX {
            let reason = "the content is larger than 60 KiB".to_owned();
            return Err(Error::Unusable { what: call.to_string(), reason });
        }
        // Base64 where it fits, for then nothing on the way can mistake a byte.
        let body = if content.len() <= WRITE_BASE64_MAX {
            json!({ "file": path, "content": STANDARD.encode(content), "encode": 0 })
        } else {
            json!({ "file": path, "content": from_bytes(content) })
        };
        self.vm.client.call(call.body(body)).await.map(drop)
    }
}

/// Returns the error in an answer `{result: …}`, in which a failure is a success.
fn check_result(what: String, value: &Value) -> Result<(), Error> {
    let Some(result) = value.get("result") else {
        return Err(Error::Answer { what, reason: "it has no `result`".to_owned() });
    };
    match result.get("error") {
        Some(error) => {
            let text =
                error.get("desc").and_then(Value::as_str).map_or_else(|| error.to_string(), str::to_owned);
            Err(Error::Refused {
                what,
                status: 200,
                message: format!("Agent error: {text}"),
                parameters: Vec::new(),
            })
        }
        None => Ok(()),
    }
}

fn parse_exec_status(what: &str, value: Value) -> Result<ExecStatus, Error> {
    let answer: StatusAnswer = understand(what.to_owned(), value)?;
    Ok(ExecStatus {
        exited: answer.exited,
        code: answer.exitcode,
        signal: answer.signal,
        out: to_bytes(what, &answer.out_data)?,
        err: to_bytes(what, &answer.err_data)?,
        truncated: answer.out_truncated || answer.err_truncated,
    })
}

fn parse_file(what: String, value: Value) -> Result<Vec<u8>, Error> {
    let answer: ReadAnswer = understand(what.clone(), value)?;
    if answer.truncated {
        return Err(Error::Answer {
            what,
            reason: "the file is larger than what one call carries".to_owned(),
        });
    }
    to_bytes(&what, &answer.content)
}

/// Returns the bytes of a text that has one character for each.
fn to_bytes(what: &str, text: &str) -> Result<Vec<u8>, Error> {
    text.chars().map(u8::try_from).collect::<Result<_, _>>().map_err(|_| Error::Answer {
        what: what.to_owned(),
        reason: "it has characters that stand for no byte".to_owned(),
    })
}

/// Returns a text that has one character for each byte.
fn from_bytes(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_the_bytes_that_the_characters_stand_for() {
        let value = json!({"out-truncated": 0, "exited": 1, "exitcode": 0, "out-data": "\u{c3}\u{a9}\u{e2}\u{82}\u{ac}\n"});
        let status = parse_exec_status("x", value).unwrap();
        assert_eq!((status.exited, status.code, status.truncated), (true, Some(0), false));
        assert_eq!(String::from_utf8(status.out).unwrap(), "é€\n");
        let killed = parse_exec_status("x", json!({"signal": 9, "exited": 1})).unwrap();
        assert_eq!((killed.code, killed.signal), (None, Some(9)));
        let wide = parse_exec_status("x", json!({"exited": 1, "out-data": "€"}));
        assert!(matches!(wide, Err(Error::Answer { .. })));
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(to_bytes("x", &from_bytes(&all)).unwrap(), all);
    }

    #[test]
    fn a_failure_inside_a_success_is_a_failure() {
        let value = json!({"result": {"error": {"class": "CommandDisabled", "desc": "it is disabled"}}});
        let error = check_result("GET /x".to_owned(), &value).unwrap_err();
        assert_eq!(error.to_string(), "GET /x: refused with 200: Agent error: it is disabled");
        assert!(check_result("x".to_owned(), &json!({"result": {}})).is_ok());
        assert!(check_result("x".to_owned(), &json!(null)).is_err());
    }
}
