//! What a script prints: when it is shown, by which way it comes, and that it is whole.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use forge::provision::{Bulk, Content, Feed, Offer, ProvisionError};
use forge::seed::server::{Reach, Server, Settings};

use crate::bench::{Bench, SH, is_running, shell};

/// Takes what scripts print, until it is stopped; offers nothing.
pub(crate) struct Sink {
    server: Mutex<Option<Server>>,
    asked: AtomicUsize,
}

impl Sink {
    async fn start(folder: &Path) -> Self {
        let reach = Reach::Towards("127.0.0.1".parse().unwrap());
        let (server, _) = Server::start(Settings::new(reach, folder).unwrap()).await.unwrap();
        Self { server: Mutex::new(Some(server)), asked: AtomicUsize::new(0) }
    }
}

impl Bulk for Sink {
    fn offer(&self, _content: Content) -> Option<Offer> {
        None
    }

    fn receive(&self) -> Option<Feed> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let (inlet, pieces) = self.server.lock().unwrap().as_ref()?.receive();
        Some(Feed { url: inlet.url().to_owned(), pieces, guard: Box::new(inlet) })
    }
}

#[tokio::test]
async fn output_is_live_and_whole() {
    let bench = Bench::new();
    let start = Instant::now();
    bench.run(SH, "echo one; sleep 1.2; echo two >&2; printf three").await.unwrap();
    let shown = bench.shown.lock().unwrap().clone();
    let lines: Vec<_> = shown.iter().map(|(_, line)| line.as_str()).collect();
    assert_eq!(lines, ["one", "two", "three"]);
    let first = shown[0].0 - start;
    assert!(first < Duration::from_secs(1), "the first line came after {first:?}");
    assert_eq!(*bench.logged.lock().unwrap(), ["one", "two", "three"]);
    bench.assert_clean();
}

const COUNTING: &str = "for number in $(seq 20); do echo $number; sleep 0.3; done; exit 7";

fn twenty() -> Vec<String> {
    (1..=20).map(|number| number.to_string()).collect()
}

#[tokio::test]
async fn output_that_the_guest_sends_is_not_asked_for() {
    let mut bench = Bench::new();
    bench.sink = Some(Sink::start(bench.folder.path()).await);
    let error = bench.run(SH, COUNTING).await.unwrap_err();
    assert!(matches!(error, ProvisionError::Failed { code: 7, .. }), "{error}");
    assert_eq!(bench.shown(), twenty());
    let calls = bench.host.calls.load(Ordering::Relaxed);
    println!("{calls} calls");
    assert!(calls < 18, "{calls} calls: asked for, they are more than thirty");
    bench.assert_clean();
    let settings = format!("--config {}", bench.path("run").display());
    let deadline = Instant::now() + Duration::from_secs(5);
    while is_running(&settings) {
        assert!(Instant::now() < deadline, "curl is left in the guest");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn output_that_does_not_arrive_is_read_and_nothing_is_shown_twice() {
    let mut bench = Bench::new();
    bench.sink = Some(Sink::start(bench.folder.path()).await);
    let stopping = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let server = bench.sink.as_ref().unwrap().server.lock().unwrap().take();
        server.unwrap().stop().await;
    };
    let (result, ()) = tokio::join!(bench.run(SH, COUNTING), stopping);
    assert!(matches!(result, Err(ProvisionError::Failed { code: 7, .. })), "{result:?}");
    assert_eq!(bench.shown(), twenty());
    bench.assert_clean();
}

#[tokio::test]
async fn what_may_print_a_secret_is_not_sent_in_the_clear() {
    let mut bench = Bench::new();
    bench.sink = Some(Sink::start(bench.folder.path()).await);
    bench.secrets = vec!["hunter2".to_owned()];
    for (value, asked) in [("token=hunter2", 0), ("nothing", 1)] {
        let mut step = shell(SH, "echo $VALUE");
        step.shell.as_mut().unwrap().env.insert("VALUE".to_owned(), value.to_owned());
        bench.apply(&step, Duration::from_secs(30)).await.unwrap();
        assert_eq!(bench.sink.as_ref().unwrap().asked.load(Ordering::Relaxed), asked, "{value}");
    }
    assert_eq!(bench.shown(), ["token=••••", "nothing"]);
}

#[tokio::test]
async fn strange_output_survives() {
    let bench = Bench::new();
    let text = r"printf 'a\377b\n10%%\r20%%\r100%%\n'; head -c 300000 /dev/zero | tr '\0' x; echo; seq 20000";
    bench.run(SH, text).await.unwrap();
    let (shown, logged) = (bench.shown(), bench.logged.lock().unwrap().clone());
    assert_eq!(shown[..2], ["a\u{fffd}b", "100%"]);
    assert_eq!((shown[2].len(), logged[2].len()), (4096, 300_000));
    assert_eq!((shown.len(), shown.last().unwrap().as_str()), (20_003, "20000"));
}
