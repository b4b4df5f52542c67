//! A script's output by two ways: sent by the guest while it comes, and read from the script's log.
//!
//! ```text
//!           0          passed              arrived
//! the log   ├────────────┼────────────────────┤
//! read      looks begin at `passed`, and bring what is there by then
//! sent      ├───── from the beginning on ─────┤  what lies before `passed` was read already
//! ```
//!
//! What is read is the truth: what was not sent, or not yet, the next look brings. While the guest sends,
//! looks are rare; when it stops, the script has ended most likely, and is looked at once.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

use super::lines::Lines;
use super::transfer::Feed;

/// How long the log is left alone while the guest sends it.
const WHILE_SENT: Duration = Duration::from_secs(10);

/// How long an unfinished line may stand before it is shown.
const UNFINISHED: Duration = Duration::from_millis(800);

/// The output of one script on its way to people.
pub(super) struct Output<'a> {
    lines: Lines<'a>,
    /// How many bytes of the log have been passed on.
    passed: usize,
    /// How many bytes of it the guest has sent.
    arrived: usize,
    feed: Option<Feed>,
    /// Whether the guest sends at all.
    is_sent: bool,
    /// When something was last passed on.
    shown: Instant,
}

impl<'a> Output<'a> {
    pub(super) fn new(lines: Lines<'a>, feed: Option<Feed>) -> Self {
        Self { lines, passed: 0, arrived: 0, feed, is_sent: false, shown: Instant::now() }
    }

    /// Returns from where on the log is to be read.
    pub(super) fn passed(&self) -> usize {
        self.passed
    }

    /// Takes what was read there.
    pub(super) fn read(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            self.flush_in_time();
        } else {
            self.pass_on(bytes);
        }
    }

    /// Passes on what is left and returns the last lines.
    pub(super) fn finish(self) -> Vec<String> {
        self.lines.finish()
    }

    /// Waits until the log is to be looked at: after `pause`, later while the guest sends it, at once when
    /// it stops; and never after the deadline.
    pub(super) async fn wait(&mut self, pause: Duration, deadline: Instant) {
        let began = Instant::now();
        loop {
            let rare = self.is_sent && !pause.is_zero();
            let due = began + if rare { WHILE_SENT.max(pause) } else { pause };
            let due = if began < deadline { due.min(deadline) } else { due };
            tokio::select! {
                // Whatever is sent, the script is looked at when it is time to.
                biased;
                () = sleep_until(due) => return,
                piece = next(self.feed.as_mut()) => {
                    let Some(bytes) = piece else {
                        self.feed = None;
                        if std::mem::take(&mut self.is_sent) {
                            return;
                        }
                        continue;
                    };
                    self.take(&bytes);
                }
                () = sleep_until(self.shown + UNFINISHED), if self.is_sent => self.flush_in_time(),
            }
        }
    }

    /// Takes the next piece that was sent.
    fn take(&mut self, bytes: &Bytes) {
        self.is_sent = true;
        let known = self.passed.saturating_sub(self.arrived).min(bytes.len());
        self.arrived += bytes.len();
        self.pass_on(&bytes[known..]);
    }

    fn pass_on(&mut self, bytes: &[u8]) {
        self.passed += bytes.len();
        self.lines.push(bytes);
        self.shown = Instant::now();
    }

    fn flush_in_time(&mut self) {
        if self.shown.elapsed() >= UNFINISHED {
            self.lines.flush();
            self.shown = Instant::now();
        }
    }
}

async fn next(feed: Option<&mut Feed>) -> Option<Bytes> {
    match feed {
        Some(feed) => feed.pieces.recv().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::sync::mpsc;

    use super::*;
    use crate::provision::lines::Mask;

    const DAY: Duration = Duration::from_hours(24);

    enum Way {
        Sent(&'static str),
        Read(&'static str),
    }
    use Way::{Read, Sent};

    /// Calls `body` with the output of a script and returns the lines that people see.
    async fn seen(feed: Option<Feed>, body: impl AsyncFnOnce(&mut Output<'_>)) -> Vec<String> {
        let lines = Mutex::new(Vec::new());
        let (mask, show) = (Mask::new(&[]), |line: &str| lines.lock().unwrap().push(line.to_owned()));
        let mut output = Output::new(Lines::new(&mask, (String::new(), ""), &show, &|_| ()), feed);
        body(&mut output).await;
        output.finish();
        lines.into_inner().unwrap()
    }

    fn feed() -> (mpsc::Sender<Bytes>, Feed) {
        let (sender, pieces) = mpsc::channel(16);
        (sender, Feed { url: String::new(), pieces, guard: Box::new(()) })
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_shown_twice_and_nothing_lost() {
        for (number, ways) in [
            &[Sent("one\n"), Sent("two\nthree\n")][..],
            &[Read("one\ntwo\nthree\n"), Sent("one\ntwo\n"), Sent("three\n")],
            &[Read("one\nt"), Sent("one\ntwo\n"), Sent("three\n")],
            &[Sent("one\nt"), Read("wo\nth"), Sent("wo\nthree\n")],
            &[Sent("one\nt"), Read("wo\nthree\n")],
            &[Sent(""), Sent("one\n"), Read(""), Sent("t"), Read("wo\n"), Read("three\n")],
        ]
        .into_iter()
        .enumerate()
        {
            let lines = seen(None, async |output| {
                for way in ways {
                    match way {
                        Sent(text) => output.take(&Bytes::from_static(text.as_bytes())),
                        Read(text) => output.read(text.as_bytes()),
                    }
                }
                assert_eq!(output.passed(), 14, "{number}");
            });
            assert_eq!(lines.await, ["one", "two", "three"], "{number}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn looks_are_rare_only_while_the_guest_sends() {
        let pause = Duration::from_millis(100);
        let far = Instant::now() + DAY;
        let (sender, feed) = feed();
        let lines = seen(Some(feed), async |output| {
            let start = Instant::now();
            output.wait(pause, far).await;
            assert_eq!(start.elapsed(), pause, "the guest has not begun");

            sender.send(Bytes::new()).await.unwrap();
            sender.send("a question? ".into()).await.unwrap();
            let start = Instant::now();
            output.wait(pause, far).await;
            assert_eq!(start.elapsed(), WHILE_SENT);
            output.wait(pause, Instant::now() + pause).await;
            assert_eq!(start.elapsed(), WHILE_SENT + pause, "there is a deadline");
            output.wait(Duration::ZERO, far).await;
            assert_eq!(start.elapsed(), WHILE_SENT + pause, "there was more than one look brings");

            drop(sender);
            let start = Instant::now();
            output.wait(pause, far).await;
            assert_eq!(start.elapsed(), Duration::ZERO, "the script has ended, or the guest is not heard");
            output.wait(pause, far).await;
            assert_eq!(start.elapsed(), pause);
        });
        assert_eq!(lines.await, ["a question? "]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_never_stops_sending_is_looked_at_all_the_same() {
        let (sender, feed) = feed();
        let sending = tokio::spawn(async move {
            while sender.send("y\n".into()).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        let start = Instant::now();
        seen(Some(feed), async |output| output.wait(WHILE_SENT, start + DAY).await).await;
        assert!(start.elapsed() <= WHILE_SENT * 2, "{:?}", start.elapsed());
        sending.await.unwrap();
    }
}
