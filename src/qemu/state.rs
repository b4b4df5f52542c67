//! What is known of a running machine, told from QMP's events.

use std::fmt;

use tokio::sync::watch;

use super::qmp::Event;

/// How a machine came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The guest powered itself off.
    PowerOff,
    /// The guest reset itself, on purpose or by a triple fault, where that ends the machine.
    Reset,
    /// The guest's kernel panicked; the machine is stopped with its screen intact.
    Panicked,
    /// forge ended it, by QMP or by a signal that QEMU heeds.
    Stopped,
    /// QEMU ended by itself: it crashed or was killed.
    Crashed {
        /// Its exit code or signal.
        status: String,
        /// Its last words, possibly none.
        stderr: String,
    },
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest powered off"),
            Self::Reset => f.write_str("the guest reset itself"),
            Self::Panicked => f.write_str("the guest's kernel panicked"),
            Self::Stopped => f.write_str("QEMU was told to end"),
            Self::Crashed { status, stderr } if stderr.is_empty() => write!(f, "QEMU ended with {status}"),
            Self::Crashed { status, stderr } => write!(f, "QEMU ended with {status}: {stderr}"),
        }
    }
}

/// Whether a process in the guest has the guest agent's port open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AgentPort {
    /// Nobody tells; ask the agent itself.
    #[default]
    Unknown,
    /// No process has it open: asking is pointless.
    Closed,
    /// A process has it open.
    Open,
}

/// What is known of a running machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// The guest agent's port.
    pub agent_port: AgentPort,
    /// How many times the guest has reset itself and started again.
    pub resets: u32,
    /// How it ended, once it has. QEMU itself may still be there to be asked for its screen.
    pub end: Option<End>,
}

impl State {
    /// Takes an event in; events that forge does not know change nothing.
    pub fn apply(&mut self, event: &Event) {
        match event.name.as_str() {
            "VSERPORT_CHANGE" => match event.data["open"].as_bool() {
                Some(true) => self.agent_port = AgentPort::Open,
                Some(false) => self.agent_port = AgentPort::Closed,
                None => {}
            },
            "RESET" => self.resets += 1,
            "GUEST_PANICKED" => self.finish(End::Panicked),
            "SHUTDOWN" => self.finish(shutdown_reason(event)),
            _ => {}
        }
    }

    /// Waits for the end; dropping the machine ends it too.
    pub async fn ended(state: &mut watch::Receiver<Self>) -> End {
        loop {
            if let Some(end) = state.borrow_and_update().end.clone() {
                return end;
            }
            if state.changed().await.is_err() {
                return End::Stopped;
            }
        }
    }

    /// Records the end; the first one known is the true one.
    pub fn finish(&mut self, end: End) {
        self.agent_port = AgentPort::Closed;
        self.end.get_or_insert(end);
    }
}

/// Tells how the machine ended from SHUTDOWN's `reason` (QEMU `qapi/run-state.json`, `ShutdownCause`).
fn shutdown_reason(event: &Event) -> End {
    match event.data["reason"].as_str() {
        Some("guest-shutdown") => End::PowerOff,
        Some("guest-reset") => End::Reset,
        Some("guest-panic") => End::Panicked,
        Some(reason) if reason.starts_with("host-") && reason != "host-error" => End::Stopped,
        reason => End::Crashed {
            status: format!("SHUTDOWN for the reason {}", reason.unwrap_or("(none)")),
            stderr: String::new(),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn after(events: &[(&str, serde_json::Value)]) -> State {
        let mut state = State { agent_port: AgentPort::Closed, ..State::default() };
        for (name, data) in events {
            state.apply(&Event { name: (*name).to_owned(), data: data.clone() });
        }
        state
    }

    #[test]
    fn ends_are_told_apart_by_the_reason() {
        for (reason, end) in [
            ("guest-shutdown", End::PowerOff),
            ("guest-reset", End::Reset),
            ("guest-panic", End::Panicked),
            ("host-qmp-quit", End::Stopped),
            ("host-signal", End::Stopped),
        ] {
            let state = after(&[("SHUTDOWN", json!({"guest": true, "reason": reason}))]);
            assert_eq!(state.end, Some(end), "{reason}");
        }
        for odd in [json!({"reason": "host-error"}), json!({"reason": "from-mars"}), json!({}), json!(null)] {
            let end = after(&[("SHUTDOWN", odd)]).end.unwrap();
            assert!(matches!(end, End::Crashed { .. }), "{end}");
        }
    }

    #[test]
    fn the_first_end_stays() {
        let state = after(&[
            ("GUEST_PANICKED", json!({"action": "pause"})),
            ("SHUTDOWN", json!({"guest": false, "reason": "host-qmp-quit"})),
        ]);
        assert_eq!(state.end, Some(End::Panicked));
    }

    #[test]
    fn the_port_opens_and_closes_and_resets_are_counted() {
        let open = ("VSERPORT_CHANGE", json!({"open": true, "id": "agent0"}));
        let close = ("VSERPORT_CHANGE", json!({"open": false, "id": "agent0"}));
        assert_eq!(after(std::slice::from_ref(&open)).agent_port, AgentPort::Open);
        let state = after(&[open, close, ("RESET", json!({"guest": true})), ("FROM_MARS", json!(1))]);
        assert_eq!(state, State { agent_port: AgentPort::Closed, resets: 1, end: None });
    }
}
