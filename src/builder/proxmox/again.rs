//! Does something again where that is safe: while the VM is held, and after an answer that was lost.

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep};

use crate::pve::{Client, Error, Seen};

/// How long something else may hold a VM that is to be changed: a shutdown holds it for a minute.
pub(super) const HELD: Duration = Duration::from_mins(2);

/// How often a change is made whose answers are lost.
const ATTEMPTS: usize = 3;

/// Something that can be done again.
pub(super) type Attempt<'t, T> = &'t (dyn Fn() -> BoxFuture<'t, Result<T, Error>> + Send + Sync);

/// Does something as soon as nothing else holds the VM. As [`Client::when_free`], whose futures of
/// borrowing closures the compiler cannot prove to be `Send`.
pub(super) async fn when_free<T>(
    client: &Client,
    limit: Duration,
    attempt: Attempt<'_, T>,
) -> Result<T, Error> {
    let deadline = Instant::now() + limit;
    let mut pause = client.pace().task;
    loop {
        match attempt().await {
            Err(error @ (Error::Busy { .. } | Error::TaskFailed { .. }))
                if error.is_passing() && Instant::now() + pause < deadline => {}
            result => return result,
        }
        sleep(pause).await;
        pause = (pause * 2).min(client.pace().agent_silent);
    }
}

/// Makes a change as soon as nothing else holds the VM; when its answer is lost, looks at the world before
/// making it again. As [`Client::settle`].
pub(super) async fn settle<T>(
    client: &Client,
    change: Attempt<'_, T>,
    look: Attempt<'_, Seen<T>>,
) -> Result<T, Error> {
    let mut attempt = 1;
    loop {
        let lost = match when_free(client, HELD, change).await {
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
