//! What goes into a build: the verified media, and the installer's answers on their way to it.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Mutex, Notify};

use super::calls::Calls;
use super::workspace::{Workspace, write_whole};
use crate::artifact;
use crate::definition::{Transport, autoinstall};
use crate::diagnosis::Answers;
use crate::event::{Unit, Worker};
use crate::failure::{Failure, Kind, ResultExt as _};
use crate::fetch::{self, Expected, FetchError};
use crate::plan::{ForgeUrls, Plan, SeedFile};
use crate::run::Step;
use crate::seed;
use crate::seed::server::{Reach, Server, ServerEvent, Settings};

/// The name under which the installer's answers are served.
pub(super) const ANSWERS: &str = "autoinstall.yaml";

/// The verified media: the installer's first.
#[derive(Debug)]
pub(super) struct Media(pub(super) Vec<fetch::Image>);

impl Media {
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.0.iter().map(|image| image.path.clone()).collect()
    }

    /// Returns them as a manifest names them.
    pub(super) fn inputs(&self) -> Vec<artifact::Input> {
        let input = |image: &fetch::Image| artifact::Input {
            name: image.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            sha256: image.sha256.clone(),
            size: image.size,
        };
        self.0.iter().map(input).collect()
    }
}

pub(super) async fn fetch_media(plan: &Plan, step: &Step<'_>) -> Result<Media, Failure> {
    let cache = fetch::Cache::of_user().kind(Kind::Infrastructure)?;
    let mut images = Vec::new();
    for (location, expected) in media(plan)? {
        images.push(fetch_medium(plan, &location, &expected, &cache, step).await?);
    }
    Ok(Media(images))
}

/// Fetches one medium to this machine.
pub(super) async fn fetch_medium(
    plan: &Plan,
    location: &str,
    expected: &Expected,
    cache: &fetch::Cache,
    step: &Step<'_>,
) -> Result<fetch::Image, Failure> {
    let show = |progress: fetch::Progress| show_fetch(step, progress);
    let image = fetch::image(location, &plan.root, expected, cache, &show).await.map_err(fetch_failure)?;
    if let Some(signer) = &image.signed_by {
        step.note(format!("its checksum is signed by {signer}"));
    }
    Ok(image)
}

/// Returns where each medium is and what it must be.
pub(super) fn media(plan: &Plan) -> Result<Vec<(String, Expected)>, Failure> {
    let source = &plan.definition.source;
    let expected = match (&source.sha256, &source.checksums) {
        (Some(sha256), _) => Expected::Sha256(sha256.clone()),
        (None, Some(checksums)) => Expected::Signed {
            file: checksums.file.clone(),
            signature: checksums.signature.clone(),
            key: plan.root.join("templates").join(&plan.template).join(&checksums.key),
            fingerprint: checksums.fingerprint.clone(),
            name: checksums.name.clone().unwrap_or_else(|| last_part(&source.iso)),
        },
        (None, None) => {
            return Err(Failure::new(Kind::Definition, anyhow!("source has neither sha256 nor checksums")));
        }
    };
    let mut media = vec![(source.iso.clone(), expected)];
    let cdroms = plan.definition.machine.cdroms.iter();
    media.extend(cdroms.map(|cdrom| (cdrom.iso.clone(), Expected::Sha256(cdrom.sha256.clone()))));
    Ok(media)
}

pub(super) fn last_part(location: &str) -> String {
    location.rsplit('/').next().unwrap_or(location).to_owned()
}

/// Tells inputs that are not what they should be from a machine or network that fails.
fn fetch_failure(error: FetchError) -> Failure {
    use FetchError as Error;
    let kind = match &error {
        Error::Location { .. } | Error::NoDigest { .. } => Kind::Definition,
        Error::Unreachable { .. }
        | Error::Tls { .. }
        | Error::Space { .. }
        | Error::Disk { .. }
        | Error::NoCache => Kind::Infrastructure,
        _ => Kind::Plan,
    };
    let hint = match &error {
        Error::Missing { .. } | Error::Unreadable { .. } => {
            Some("name the medium in `source.iso`, or with the variable it takes: --var iso=PATH")
        }
        Error::WrongDigest { .. } => Some(
            "if this is the medium you want, its digest belongs into `source.sha256` (--var iso_sha256=…)",
        ),
        Error::Refused { .. } => {
            Some("look whether the release has moved, and set `source.iso` to where it is now")
        }
        _ => None,
    };
    let failure = Failure::new(kind, error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

fn show_fetch(step: &Step<'_>, progress: fetch::Progress) {
    match progress {
        fetch::Progress::Downloading { done, total } => {
            step.worker(Worker::Download);
            step.progress(done, total, Unit::Bytes, Some("downloading"));
        }
        fetch::Progress::Hashing { done, total } => {
            step.worker(Worker::Hash);
            step.progress(done, Some(total), Unit::Bytes, Some("verifying"));
        }
        fetch::Progress::Waiting(what) => {
            step.worker(Worker::Download);
            step.note(what);
        }
        fetch::Progress::Retry { attempt, of, reason } => step.retry(attempt, of, reason),
        fetch::Progress::Remembered => {
            step.note("the medium has not changed since it was hashed: its digest is known");
        }
    }
}

/// The installer's answers, on their way to it.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) server: Server,
    pub(super) events: Mutex<UnboundedReceiver<ServerEvent>>,
    pub(super) volume: PathBuf,
    pub(super) serial: Option<String>,
    pub(super) transport: Transport,
    /// What the answers ask for.
    pub(super) answers: Answers,
    /// What the server has heard of the installed system.
    pub(super) calls: Calls,
    /// Notified whenever the installed system says that its guest agent runs.
    pub(super) wake: Arc<Notify>,
    // Files stay on offer as long as these live.
    _offers: Vec<seed::server::Offer>,
}

/// Starts the server that the guest reaches that way, with the plan's answers on it.
pub(super) async fn prepare_seed(
    plan: &Plan,
    workspace: &Workspace,
    reach: Reach,
    step: &Step<'_>,
) -> Result<Prepared, Failure> {
    let http = &plan.builder.profile.http;
    let settings = Settings::new(reach, workspace.folder.join("installer-logs"))
        .and_then(|settings| {
            let [bind, port, advertise] = [&http.bind, &http.port, &http.advertise].map(Option::as_deref);
            settings.with_profile(reach, bind, port, advertise)
        })
        .kind(Kind::Definition)?;
    let (server, events) = Server::start(settings).await.kind(Kind::Infrastructure)?;
    let urls = ForgeUrls {
        url: server.url(""),
        report_url: server.report_url(),
        logs_url: server.logs_url(),
        ready_url: server.ready_url(),
    };
    let files = plan.render_seed(&urls)?;
    let transport = plan.definition.seed.transport;
    let answers = answers(&files)?;
    let asks = Answers {
        report: answers.contains(&urls.report_url),
        call: answers.contains(&urls.ready_url),
        install_agent: autoinstall::installs(answers, "qemu-guest-agent"),
        want_mirror: autoinstall::wants_mirror(answers),
    };
    let (volume, serial) = match transport {
        Transport::Http => {
            (seed::stub_volume(), Some(seed::serial(&server.url(ANSWERS)).kind(Kind::Definition)?))
        }
        Transport::Cdrom => (seed::cdrom_volume(answers).kind(Kind::Definition)?, None),
    };
    let mut offers = Vec::new();
    for file in &files {
        let name = if file.is_autoinstall { ANSWERS } else { &file.name };
        if !(file.is_autoinstall && transport == Transport::Cdrom) {
            offers.push(server.offer(name, file.content.clone()).kind(Kind::Definition)?);
        }
    }
    let path = workspace.work("seed.iso");
    write_whole(&path, &volume).kind(Kind::Infrastructure)?;
    step.note(format!("answers are served at {}", server.advertises()));
    Ok(Prepared {
        server,
        events: Mutex::new(events),
        volume: path,
        serial,
        transport,
        answers: asks,
        calls: Calls::default(),
        wake: Arc::default(),
        _offers: offers,
    })
}

/// Returns the installer's answers, refusing what the installer would refuse or silently ignore.
fn answers(files: &[SeedFile]) -> Result<&str, Failure> {
    let file = files.iter().find(|file| file.is_autoinstall);
    let file = file.context("the plan has no autoinstall file").kind(Kind::Unexpected)?;
    let text = std::str::from_utf8(&file.content)
        .with_context(|| format!("reading {} as UTF-8", file.name))
        .kind(Kind::Definition)?;
    let show = |finding: &autoinstall::Finding| format!("line {}: {}", finding.line, finding.message);
    let findings: Vec<_> = autoinstall::lint(text).iter().map(show).collect();
    if findings.is_empty() {
        return Ok(text);
    }
    let error =
        anyhow!("the installer would not take {} as it is rendered: {}", file.name, findings.join("; "));
    Err(Failure::new(Kind::Definition, error))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::definition::{self, Inputs, Root};
    use crate::event::Discard;
    use crate::plan::{Selection, choose_builder, resolve};
    use crate::run::{Cancel, Run};

    /// Returns what the installer is given: the volume's bytes, the serial number, what is served.
    #[expect(clippy::used_underscore_binding, reason = "a build only keeps the offers alive")]
    async fn given(transport: Transport) -> (Vec<u8>, Option<String>, Vec<String>) {
        let root = Root::at(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
        let loaded = definition::load(&root, "ubuntu-noble", &Inputs::default()).unwrap();
        let builder = choose_builder(None, &BTreeMap::new(), &loaded.definition);
        let mut plan = resolve(&root, loaded, builder, &Selection::default()).unwrap();
        plan.definition.seed.transport = transport;
        let folder = tempfile::tempdir().unwrap();
        let workspace = Workspace::create(folder.path()).unwrap();
        let run =
            Run::new("r".into(), "t".into(), folder.path().into(), Arc::new(Discard), Cancel::default());
        let work = async |step: &Step<'_>| prepare_seed(&plan, &workspace, Reach::QEMU, step).await;
        let seed = run.step("seed", "title", Worker::Forge, work).await.unwrap();
        let served = seed._offers.iter().map(|offer| offer.url().to_owned()).collect();
        (std::fs::read(&seed.volume).unwrap(), seed.serial.clone(), served)
    }

    #[tokio::test]
    async fn answers_are_served_or_lie_on_the_volume() {
        let (volume, serial, served) = given(Transport::Http).await;
        assert!(volume == seed::stub_volume());
        assert_eq!(serial.unwrap(), format!("forge={}", served[0]));
        assert_eq!(served.len(), 1);

        let (volume, serial, served) = given(Transport::Cdrom).await;
        let holds = |text: &str| volume.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(holds("timezone: \"Europe/Paris\"") && !holds("{{ var.timezone"));
        assert_eq!((serial, served.len()), (None, 0));
    }
}
