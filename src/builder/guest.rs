//! What a build does in its guest, on whatever machine that runs: steps, checks, facts, seal.

use std::convert::Infallible;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::Context as _;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedReceiver;

use super::Patience;
use super::calls::Calls;
use super::inputs::Prepared;
use super::prove::{self, Identity};
use crate::artifact::{self, CheckResult};
use crate::check;
use crate::communicator::{Communicator, Exec};
use crate::definition::{CheckAt, Secret};
use crate::diagnosis;
use crate::failure::{Failure, Kind, ResultExt as _};
use crate::plan::{Plan, PlannedStep};
use crate::provision::{self, ProvisionError};
use crate::run::Step;
use crate::sbom;
use crate::seed::server::{Content, Server, ServerEvent};

/// The guest while a build works in it.
pub(super) struct Guest<'a> {
    pub(super) plan: &'a Plan,
    pub(super) patience: Patience,
    pub(super) communicator: &'a dyn Communicator,
    /// The server that bulk content goes over.
    pub(super) seed: &'a Prepared,
    /// Returns what kind of failure it is that something went wrong with the guest just now; the
    /// machine's own death is none of the guest's doing.
    pub(super) fault: &'a (dyn Fn() -> Kind + Send + Sync),
}

impl fmt::Debug for Guest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest").field("patience", &self.patience).finish_non_exhaustive()
    }
}

impl Guest<'_> {
    /// Makes the change that a step of the plan says.
    pub(super) async fn provision(&self, planned: &PlannedStep, step: &Step<'_>) -> Result<(), Failure> {
        let own = planned.step.timeout.unwrap_or(self.plan.definition.timeouts.step);
        let deadline = self.patience.scaled(own.duration());
        self.with_context(step, async |cx| provision::apply(&planned.step, deadline, cx).await).await
    }

    /// Removes the guest's identity and traces; it is to power off next, and to do nothing else.
    pub(super) async fn seal(&self, step: &Step<'_>) -> Result<(), Failure> {
        let seal = &self.plan.definition.seal;
        let deadline = self.patience.scaled(self.plan.definition.timeouts.seal.duration());
        self.with_context(step, async |cx| provision::seal(seal, deadline, cx).await).await
    }

    /// Calls `body` with the context in which provisioners work in that step.
    async fn with_context<F>(&self, step: &Step<'_>, body: F) -> Result<(), Failure>
    where
        F: AsyncFnOnce(&provision::Context<'_>) -> Result<(), ProvisionError>,
    {
        let plan = self.plan;
        let secrets: Vec<String> = plan.secrets().map(Secret::expose).map(str::to_owned).collect();
        let bulk = OverHttp(&self.seed.server);
        let log = GuestLog::open(&step.run().path("guest.log")).kind(Kind::Infrastructure)?;
        let cx = provision::Context {
            guest: self.communicator,
            folder: provision::GUEST_FOLDER,
            bulk: Some(&bulk),
            root: &plan.root,
            output: &|line| step.output(line),
            log: &|line| log.line(line),
            retry: &|attempt, of, reason| step.retry(attempt, of, reason),
            render: &|path| render(plan, path),
            secrets: &secrets,
        };
        let mut events = self.seed.events.lock().await;
        let result = tokio::select! {
            result = body(&cx) => result,
            never = follow(&mut events, &self.seed.calls, &self.seed.wake, step) => match never {},
        };
        drop(events);
        let result = result.map_err(|error| {
            let kind = match error.kind() {
                Kind::Guest => (self.fault)(),
                other => other,
            };
            Failure::new(kind, error).hint("the whole output is in guest.log in the run's folder")
        });
        result.and_then(|()| self.seed.refuse_calls(diagnosis::Guest::Installed))
    }

    /// Makes the template's checks in the build's guest.
    pub(super) async fn check(&self, step: &Step<'_>) -> Result<Vec<CheckResult>, Failure> {
        let checks = super::checks_at(self.plan, self.patience, CheckAt::Build);
        let timeout = self.patience.scaled(self.plan.definition.timeouts.check.duration());
        let found = check::run(&checks.iter().collect::<Vec<_>>(), self.communicator, timeout, &|finding| {
            step.check(&finding.name, finding.passed, &finding.detail);
        })
        .await
        .kind((self.fault)())?;
        let results = super::record_findings(step.run(), "build", found).kind(Kind::Infrastructure)?;
        prove::judge(&results, "checks")?;
        Ok(results)
    }

    /// Finds out what is known of the guest only before it is sealed.
    pub(super) async fn facts(&self) -> Result<Facts, Failure> {
        let guest = self.communicator;
        let identity = prove::identity(guest).await.kind((self.fault)())?;
        let os = guest.exec(&Exec::shell("uname -r; cat /etc/os-release")).await.kind((self.fault)())?.text();
        let (kernel, release) = os.split_once('\n').unwrap_or_default();
        let query = Exec::new(["dpkg-query", "-W", "-f", sbom::QUERY]);
        let packages = guest.exec(&query).await.kind((self.fault)())?.text();
        Ok(Facts {
            identity,
            os: artifact::parse_os_release(release, kernel),
            packages: sbom::parse_packages(&packages),
        })
    }
}

/// What is known of the guest before it is sealed.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) identity: Identity,
    pub(super) os: artifact::Os,
    pub(super) packages: Vec<sbom::Package>,
}

/// Offers bulk content to the guest over forge's HTTP server.
struct OverHttp<'a>(&'a Server);

impl provision::Bulk for OverHttp<'_> {
    fn offer(&self, content: provision::Content) -> Option<provision::Offer> {
        let name = format!("bulk/{}", uuid::Uuid::new_v4().simple());
        let content = match content {
            provision::Content::Bytes(bytes) => Content::Memory(bytes),
            provision::Content::File(path) => Content::from(path),
        };
        let offer = self.0.offer(&name, content).ok()?;
        Some(provision::Offer { url: offer.url().to_owned(), guard: Box::new(offer) })
    }

    fn receive(&self) -> Option<provision::Feed> {
        let (inlet, pieces) = self.0.receive();
        Some(provision::Feed { url: inlet.url().to_owned(), pieces, guard: Box::new(inlet) })
    }
}

/// Returns what a person reads while a step runs.
pub(super) fn title(planned: &PlannedStep) -> String {
    if let Some(title) = &planned.title {
        return title.clone();
    }
    let step = &planned.step;
    if let Some(packages) = &step.packages {
        return match packages.install.as_slice() {
            few if few.len() <= 4 => format!("installing {}", few.join(", ")),
            many => format!("installing {} packages", many.len()),
        };
    }
    if let Some(upload) = &step.upload {
        return format!("putting {} into the guest", upload.destination);
    }
    if let Some(reboot) = &step.reboot {
        return match &reboot.reason {
            Some(reason) => format!("rebooting: {reason}"),
            None => "rebooting".to_owned(),
        };
    }
    format!("running the step {}", step.name)
}

/// Returns a script as it is run.
fn render(plan: &Plan, path: &Path) -> Result<String, Failure> {
    let path = path.strip_prefix(&plan.root).unwrap_or(path);
    let bytes = plan.render_file(&path.to_string_lossy())?;
    String::from_utf8(bytes)
        .with_context(|| format!("reading {} as UTF-8", path.display()))
        .kind(Kind::Definition)
}

/// Notes what the guest fetches, and has its agent asked when it says that it runs, such as after a
/// reboot; for as long as it is asked to.
async fn follow(
    events: &mut UnboundedReceiver<ServerEvent>,
    calls: &Calls,
    wake: &Notify,
    step: &Step<'_>,
) -> Infallible {
    while let Some(event) = events.recv().await {
        calls.take(&event);
        match event {
            ServerEvent::Fetched { name, bytes, whole, .. } => {
                let how = if whole { "fetched" } else { "began to fetch, and gave up on," };
                step.note(format!("the guest {how} {name}, {bytes} bytes"));
            }
            ServerEvent::Ready { .. } => wake.notify_waiters(),
            _ => {}
        }
    }
    std::future::pending().await
}

/// The file that gets each line of a guest's output whole.
#[derive(Debug)]
struct GuestLog(Mutex<BufWriter<File>>);

impl GuestLog {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| format!("opening {}", path.display()))?;
        Ok(Self(Mutex::new(BufWriter::new(file))))
    }

    /// Writes a line; a full disk must not end a build that succeeds otherwise.
    fn line(&self, line: &str) {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _written = writeln!(file, "{line}").and_then(|()| file.flush());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::event::{Event, Record, Sink, Worker};
    use crate::run::{Cancel, Run};

    #[derive(Default)]
    struct Notes(Mutex<Vec<String>>);

    impl Sink for Notes {
        fn emit(&self, record: &Record) {
            if let Event::Note { message, .. } = &record.event {
                self.0.lock().unwrap().push(message.clone());
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_guest_fetches_is_noted_and_that_it_is_ready_wakes() {
        let notes = Arc::new(Notes::default());
        let run = Run::new("r".into(), "t".into(), "/nowhere".into(), notes.clone(), Cancel::default());
        let (sender, mut events) = tokio::sync::mpsc::unbounded_channel();
        let peer = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        let (name, whole) = ("bulk/x".to_owned(), true);
        sender.send(ServerEvent::Fetched { name, bytes: 7, whole, peer }).unwrap();
        sender.send(ServerEvent::Ready { peer }).unwrap();
        let (calls, wake) = (Calls::default(), Notify::new());
        run.step("step:x", "title", Worker::Guest, async |step| {
            tokio::select! {
                never = follow(&mut events, &calls, &wake, step) => match never {},
                () = wake.notified() => {}
                () = tokio::time::sleep(std::time::Duration::from_secs(1)) => panic!("nobody was woken"),
            }
            Ok(())
        })
        .await
        .unwrap();
        assert_eq!(*notes.0.lock().unwrap(), ["the guest fetched bulk/x, 7 bytes"]);
    }
}
