//! Ctrl-C and SIGTERM: the first stops the work and lets it be undone, the next Ctrl-C exits.
//!
//! ```text
//! running ── Ctrl-C ──► stopping (Interrupted, 130) ─┐
//!    └────── SIGTERM ─► stopping (Terminated, 143) ──┴─ Ctrl-C ──► says what is left, exits 130
//! ```
//! More SIGTERMs while stopping change nothing: whoever sends them sends SIGKILL in the end.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

use crate::failure::Kind;
use crate::run::Cancel;

/// Listens for signals, on the runtime that this is called in. The second Ctrl-C calls
/// `on_second`, which says what is left, and exits at once with 130.
///
/// # Errors
/// The signals cannot be listened for.
pub fn listen(cancel: Cancel, on_second: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let mut ctrl_c = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = ctrl_c.recv() => cancel.request(Kind::Interrupted),
            _ = terminate.recv() => cancel.request(Kind::Terminated),
        }
        ctrl_c.recv().await;
        on_second();
        std::process::exit(Kind::Interrupted.exit_code().into());
    });
    Ok(())
}
