//! Does something again where that is safe: while the VM is held, and after an answer that was lost.

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep};

use super::{Client, Error};

/// How long something else may hold a VM that is to be changed: a shutdown holds it for a minute.
pub const HELD: Duration = Duration::from_mins(2);

/// How often a change is made whose answers are lost.
const ATTEMPTS: usize = 3;

/// Something that can be done again. Boxed, for the compiler cannot prove the futures of borrowing async
/// closures to be `Send`.
pub type Attempt<'t, T> = &'t (dyn Fn() -> BoxFuture<'t, Result<T, Error>> + Send + Sync);

/// What was seen of the world after a change whose outcome was unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen<T> {
    /// It has been made.
    Done(T),
    /// It has certainly not been made: it is made again.
    NotDone,
    /// Nobody can tell.
    Unclear,
}

impl Client {
    /// Does something as soon as nothing else holds the VM: repeats it while it is refused as busy.
    ///
    /// # Errors
    /// Those of `attempt`; the last refusal when the limit is over.
    pub async fn when_free<T>(&self, limit: Duration, attempt: Attempt<'_, T>) -> Result<T, Error> {
        let deadline = Instant::now() + limit;
        let mut pause = self.pace().task;
        loop {
            match attempt().await {
                Err(error @ (Error::Busy { .. } | Error::TaskFailed { .. }))
                    if error.is_passing() && Instant::now() + pause < deadline => {}
                result => return result,
            }
            sleep(pause).await;
            pause = (pause * 2).min(self.pace().agent_silent);
        }
    }

    /// Makes a change as soon as nothing else holds the VM, see [`HELD`]; when its outcome is unknown,
    /// looks at the world before making it again.
    ///
    /// `look` must wait as long as the server may still be at work. It is asked at most three times.
    ///
    /// # Errors
    /// Those of `change` and of `look`; [`Error::Unknown`] when `look` cannot tell.
    pub async fn settle<T>(&self, change: Attempt<'_, T>, look: Attempt<'_, Seen<T>>) -> Result<T, Error> {
        let mut attempt = 1;
        loop {
            let lost = match self.when_free(HELD, change).await {
                Err(error @ Error::Unknown { .. }) => error,
                result => return result,
            };
            match look().await? {
                Seen::Done(value) => return Ok(value),
                Seen::NotDone if attempt < ATTEMPTS => attempt += 1,
                Seen::NotDone | Seen::Unclear => return Err(lost),
            }
        }
    }
}
