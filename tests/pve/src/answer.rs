//! What a call ends in, before it becomes bytes.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// A call's answer.
#[derive(Debug)]
pub(crate) enum Reply {
    Data(Value),
    /// A list with its `total` beside it.
    List(Value, usize),
    Text(String),
    /// The connection goes over to this stream.
    Websocket(crate::console::Bridge),
}

impl From<Value> for Reply {
    fn from(data: Value) -> Self {
        Self::Data(data)
    }
}

/// A call's result.
pub(crate) type Answer = Result<Reply, Failure>;

/// The answer of calls that return nothing.
#[expect(clippy::unnecessary_wraps, reason = "it stands where an answer is wanted")]
pub(crate) fn nothing() -> Answer {
    Ok(Reply::Data(Value::Null))
}

/// A call that was refused or failed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Failure {
    pub(crate) status: u16,
    /// As in the body; mostly with a newline at its end.
    pub(crate) message: String,
    pub(crate) errors: BTreeMap<String, String>,
    /// Wait before answering, in seconds.
    pub(crate) delay: f64,
}

impl Failure {
    pub(crate) fn new(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), errors: BTreeMap::new(), delay: 0.0 }
    }

    /// A plain death in the server's code: 500 with the text and a newline.
    pub(crate) fn died(text: impl AsRef<str>) -> Self {
        Self::new(500, format!("{}\n", text.as_ref()))
    }

    pub(crate) fn forbidden(path: &str, privileges: &str) -> Self {
        Self::new(403, format!("Permission check failed ({path}, {privileges})\n"))
    }

    /// The refusal without a reason, as combined checks give it.
    pub(crate) fn forbidden_bare() -> Self {
        Self::new(403, "Permission check failed\n")
    }

    pub(crate) fn parameters(errors: BTreeMap<String, String>) -> Self {
        Self { errors, ..Self::new(400, "Parameter verification failed.\n") }
    }

    /// One wrong parameter.
    pub(crate) fn parameter(name: &str, text: impl Into<String>) -> Self {
        Self::parameters(BTreeMap::from([(name.to_owned(), text.into())]))
    }

    /// The HTTP reason: the first line of the message.
    pub(crate) fn reason(&self) -> &str {
        self.message.split('\n').next().unwrap_or_default()
    }

    pub(crate) fn body(&self) -> Value {
        let mut body = json!({ "data": null, "message": self.message });
        if !self.errors.is_empty() {
            body["errors"] = json!(self.errors);
        }
        body
    }

    /// The text as a task's log shows it.
    pub(crate) fn text(&self) -> String {
        let mut text = self.message.trim_end().to_owned();
        for (name, error) in &self.errors {
            text = format!("{text}\n{name}: {}", error.trim_end());
        }
        text
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self::died(text)
    }
}

impl From<&str> for Failure {
    fn from(text: &str) -> Self {
        Self::died(text)
    }
}
