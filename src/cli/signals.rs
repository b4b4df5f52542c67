//! Ctrl-C and SIGTERM: the first stops the work and lets it be undone, the next Ctrl-C exits.
//!
//! ```text
//! running ── Ctrl-C ──► stopping (Interrupted, 130) ─┐
//!    └────── SIGTERM ─► stopping (Terminated, 143) ──┴─ Ctrl-C ──► says what is left, exits 130
//! ```
//! More SIGTERMs while stopping change nothing: whoever sends them sends SIGKILL in the end.

use std::io;
use std::sync::{Arc, OnceLock};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::failure::{Failure, Kind};

/// Tells a build that it was asked to stop.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    token: CancellationToken,
    kind: Arc<OnceLock<Kind>>,
}

impl Interrupt {
    /// Listens for signals, on the runtime that this is called in. The second Ctrl-C calls
    /// `on_second`, which says what is left, and exits at once with 130.
    ///
    /// # Errors
    /// The signals cannot be listened for.
    pub fn listen(on_second: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let mut ctrl_c = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let interrupt = Self::default();
        let inner = interrupt.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = ctrl_c.recv() => inner.cancel(Kind::Interrupted),
                _ = terminate.recv() => inner.cancel(Kind::Terminated),
            }
            ctrl_c.recv().await;
            on_second();
            std::process::exit(Kind::Interrupted.exit_code().into());
        });
        Ok(interrupt)
    }

    /// Cancels as that signal does.
    pub fn cancel(&self, kind: Kind) {
        // The first one counts.
        self.kind.get_or_init(|| kind);
        self.token.cancel();
    }

    /// Returns the token to wait for beside the work.
    #[must_use]
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Returns the failure to end with, once a signal came.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        let kind = *self.kind.get()?;
        Some(Failure::new(kind, anyhow::anyhow!(kind.meaning())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_signal_counts() {
        let interrupt = Interrupt::default();
        assert!(interrupt.failure().is_none());
        interrupt.cancel(Kind::Terminated);
        interrupt.cancel(Kind::Interrupted);
        assert!(interrupt.token().is_cancelled());
        assert_eq!(interrupt.failure().unwrap().kind, Kind::Terminated);
    }
}
