//! The simulator's time: real seconds since 1970, and waits shortened by one factor.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Scales every wait of the simulator.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    factor: f64,
}

impl Clock {
    pub(crate) fn new(factor: f64) -> Self {
        Self { factor }
    }

    /// `seconds` of Proxmox's time as the time they take here.
    pub(crate) fn span(self, seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds * self.factor)
    }

    pub(crate) async fn sleep(self, seconds: f64) {
        tokio::time::sleep(self.span(seconds)).await;
    }

    #[expect(clippy::unused_self, reason = "the time of this clock, though all show the same")]
    pub(crate) fn now(self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_secs()).unwrap_or_default()
    }
}
