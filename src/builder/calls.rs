//! What an installed system says to forge by itself, and what it means when it says nothing.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::inputs::{ANSWERS, Prepared};
use super::show_console;
use crate::diagnosis::{self, Answers, Guest, Silence};
use crate::failure::{Failure, Kind};
use crate::run::Step;
use crate::seed::server::ServerEvent;

/// What cloud-init asks for at the address of a seed. An installed system has no use for these, nor for the
/// answers; other seed files its first boot may well fetch.
const OF_A_SEED: [&str; 4] = ["meta-data", "user-data", "vendor-data", "network-config"];

/// What the server heard of the installed system, and of its clones.
#[derive(Debug, Default)]
pub(super) struct Calls(Mutex<Heard>);

#[derive(Debug, Default)]
struct Heard {
    /// Whether it has said that its guest agent runs.
    is_up: bool,
    /// What it has asked for that only an installer needs.
    asked: Vec<String>,
}

impl Calls {
    /// Takes what happened at the server while no installer runs.
    pub(super) fn take(&self, event: &ServerEvent) {
        match event {
            ServerEvent::Ready { .. } => self.heard().is_up = true,
            ServerEvent::Fetched { name, .. } if is_for_installers(name) => {
                self.heard().asked.push(name.clone());
            }
            ServerEvent::Refused { path, .. } => {
                // Below what is, or nearly is, the secret path; see the server.
                let name = path.strip_prefix("/…/").filter(|name| is_for_installers(name));
                self.heard().asked.extend(name.map(str::to_owned));
            }
            _ => {}
        }
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_for_installers(name: &str) -> bool {
    name == ANSWERS || OF_A_SEED.contains(&name)
}

impl Prepared {
    /// Makes sure that a system which is installed has not asked for what only an installer needs.
    ///
    /// # Errors
    /// A failure of kind `Check`: each clone of it would call its builder at each boot.
    pub(super) fn refuse_calls(&self, guest: Guest) -> Result<(), Failure> {
        self.catch_up();
        match self.calls.heard().asked.as_slice() {
            [] => Ok(()),
            asked => Err(diagnosis::address_kept(guest, asked).into()),
        }
    }

    /// Takes what happened at the server while nobody listened.
    fn catch_up(&self) {
        let Ok(mut events) = self.events.try_lock() else { return };
        while let Ok(event) = events.try_recv() {
            self.calls.take(&event);
        }
    }
}

/// Explains that a guest's agent does not answer, and shows what its console says. `seed` is that of the installed
/// system; `failure` stays as it is where the machine itself failed.
pub(super) fn explain_silence(
    failure: Failure,
    guest: Guest,
    seed: Option<&Prepared>,
    step: &Step<'_>,
    console: &Path,
) -> Failure {
    let console = show_console(step, console);
    if !matches!(failure.kind, Kind::Deadline | Kind::Guest) {
        return failure;
    }
    seed.inspect(|seed| seed.catch_up());
    let heard = seed.map(|seed| seed.calls.heard());
    diagnosis::diagnose_silence(&Silence {
        guest,
        kind: failure.kind,
        answers: seed.map_or_else(Answers::default, |seed| seed.answers),
        called: heard.as_ref().is_some_and(|heard| heard.is_up),
        installs: heard.as_ref().is_some_and(|heard| heard.asked.iter().any(|name| name == ANSWERS)),
        console: &console,
    })
    .explain(failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_installers_need_is_a_call() {
        let peer = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        let fetched =
            |name: &str| ServerEvent::Fetched { name: name.to_owned(), bytes: 1, whole: true, peer };
        let refused = |path: &str| ServerEvent::Refused {
            method: "GET".to_owned(),
            path: path.to_owned(),
            status: 404,
            peer,
        };
        let calls = Calls::default();
        for event in [
            fetched("bulk/x"),
            fetched("first-boot.sh"),
            refused("/…/favicon.ico"),
            refused("/latest/user-data"),
            refused("/…/output/user-data"),
        ] {
            calls.take(&event);
        }
        assert!(calls.heard().asked.is_empty() && !calls.heard().is_up, "{calls:?}");
        for event in [fetched(ANSWERS), refused("/…/meta-data"), ServerEvent::Ready { peer }] {
            calls.take(&event);
        }
        assert_eq!(calls.heard().asked, [ANSWERS, "meta-data"]);
        assert!(calls.heard().is_up);
    }
}
